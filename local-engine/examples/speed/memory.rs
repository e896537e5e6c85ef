//! This process's memory, as the kernel counts it.

use std::time::Duration;

use serde::Serialize;

use crate::Done;

const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Memory {
    /// All that is in memory, pages of files among it.
    resident_mb: f64,
    /// What is no file's.
    anonymous_mb: f64,
}

impl Memory {
    pub(crate) fn now() -> Done<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> Done<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            let bytes = kib.ok_or(format!("the kernel does not tell {name}"))? * 1024.0;
            Ok((bytes / 1e5).round() / 10.0)
        };
        Ok(Self { resident_mb: field("VmRSS:")?, anonymous_mb: field("RssAnon:")? })
    }
}

/// The most of both while something goes on.
pub(crate) async fn most_while<T>(work: impl Future<Output = Done<T>>) -> Done<Memory> {
    let (mut most, mut work) = (Memory::now()?, std::pin::pin!(work));
    loop {
        let ended = tokio::time::timeout(LOOK_EVERY, work.as_mut()).await;
        let now = Memory::now()?;
        most.resident_mb = most.resident_mb.max(now.resident_mb);
        most.anonymous_mb = most.anonymous_mb.max(now.anonymous_mb);
        if let Ok(ended) = ended {
            ended?;
            return Ok(most);
        }
    }
}
