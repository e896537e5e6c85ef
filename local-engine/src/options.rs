//! How an engine is to run.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::EngineError;
use crate::scheduler::Bounds;

/// Sequences that may be worked on at the same time, at most.
const BATCH_SIZE_MAX: usize = 256;
/// Requests that may wait, at most.
const QUEUE_MAX: usize = 65_536;

/// Memory for keys and values, unless an option says otherwise.
const KV_BYTES: usize = 2 << 30;

/// Where the model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The GPU, if this build supports one and the machine has one; the CPU otherwise.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
}

/// What an engine needs to know. All of it is checked by [`crate::Engine::load`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The model file (GGUF); see [`crate::catalog::locate`].
    pub model: PathBuf,
    /// The name it is served under, 1 to 256 bytes.
    pub name: String,
    /// Where it is computed.
    pub device: DeviceChoice,
    /// Threads of the computation; `None`: as many as the machine has cores. Takes effect only through the
    /// environment of the process: see [`thread_environment`].
    pub threads: Option<usize>,
    /// Sequences worked on at the same time, 1 to 256.
    pub max_batch_size: usize,
    /// From idle, the engine waits at most this long for requests that have arrived but are not tokenised yet,
    /// so that they share their first step. A lone request never waits.
    pub max_wait: Duration,
    /// Requests that may wait for a free sequence; one more is refused.
    pub max_queue: usize,
    /// Memory for the keys and values of all sequences and of beginnings that are kept, in bytes. On the CPU it is taken
    /// as it is needed.
    pub kv_bytes: usize,
    /// Keep keys and values in eight bits instead of sixteen: half the memory, a little less exact. CPU only.
    pub kv_eight_bit: bool,
    /// Guess tokens from what was said before, where that makes answers come sooner. Texts are the same without.
    pub speculation: bool,
    /// Context length in tokens; `None`: the model file's. Never more than that.
    pub context: Option<usize>,
    /// A step of the model that takes longer than this will never end: the engine counts as stopped. A step is at most one
    /// chunk of a prompt and one token of each other sequence.
    pub hung_after: Duration,
}

impl EngineOptions {
    /// The defaults for a model file: served as `name`, 32 sequences, 50 ms, 256 waiting, hung after 120 s.
    #[must_use]
    pub fn new(model: PathBuf, name: impl Into<String>) -> Self {
        Self {
            model,
            name: name.into(),
            device: DeviceChoice::Auto,
            threads: None,
            max_batch_size: 32,
            max_wait: Duration::from_millis(50),
            max_queue: 256,
            kv_bytes: KV_BYTES,
            kv_eight_bit: false,
            speculation: true,
            context: None,
            hung_after: Duration::from_secs(120),
        }
    }

    /// What the schedule may hold.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { running: self.max_batch_size, waiting: self.max_queue }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let wrong = |message: String| Err(EngineError::Options(message));
        if self.name.is_empty() || self.name.len() > 256 {
            return wrong("the model's name must have 1 to 256 bytes".to_owned());
        }
        if !(1..=BATCH_SIZE_MAX).contains(&self.max_batch_size) {
            return wrong(format!("max_batch_size must be 1 to {BATCH_SIZE_MAX}"));
        }
        if self.max_queue > QUEUE_MAX {
            return wrong(format!("the queue may hold at most {QUEUE_MAX} requests"));
        }
        if self.context.is_some_and(|context| context < 2) {
            return wrong("the context must have 2 tokens or more".to_owned());
        }
        if self.hung_after.is_zero() {
            return wrong("no step ends at once, so hung_after must be above 0".to_owned());
        }
        if self.threads == Some(0) {
            return wrong("the engine needs one thread or more".to_owned());
        }
        Ok(())
    }
}

/// How often candle's threads look for work before they sleep. Its own 25,000 keep a core busy that another process
/// needs: on a loaded machine of two cores, answers came four times slower with it.
const SPIN_LIMIT: u32 = 1000;

/// Environment variables with which an engine's process should be started, so that it computes with `threads` threads
/// (`None`: one for each core, but one core is left to the gateway on a machine of more than two), and gives way.
///
/// candle reads them once, when its thread pool starts, and Rust does not let a running process change its own
/// environment safely: so whoever starts the process sets them.
#[must_use]
pub fn thread_environment(threads: Option<usize>) -> [(&'static str, String); 3] {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.unwrap_or(if cores > 2 { cores - 1 } else { cores }).max(1).to_string();
    [
        ("CANDLE_NUM_THREADS", threads.clone()),
        ("RAYON_NUM_THREADS", threads),
        ("CANDLE_BARRIER_POOL_SPIN_LIMIT", SPIN_LIMIT.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_accepted_and_nonsense_is_not() {
        let good = EngineOptions::new(PathBuf::from("m.gguf"), "m");
        assert!(good.check().is_ok());
        let bad = [
            EngineOptions { name: String::new(), ..good.clone() },
            EngineOptions { max_batch_size: 0, ..good.clone() },
            EngineOptions { max_batch_size: 257, ..good.clone() },
            EngineOptions { max_queue: 65_537, ..good.clone() },
            EngineOptions { context: Some(1), ..good.clone() },
            EngineOptions { hung_after: Duration::ZERO, ..good.clone() },
            EngineOptions { threads: Some(0), ..good },
        ];
        for options in bad {
            assert!(matches!(options.check(), Err(EngineError::Options(_))), "{options:?}");
        }
    }

    #[test]
    fn threads_travel_in_the_environment() {
        let set: Vec<_> = thread_environment(Some(3)).into_iter().collect();
        assert!(set.contains(&("CANDLE_NUM_THREADS", "3".to_owned())));
        assert!(thread_environment(None).iter().all(|(_, n)| n.parse::<usize>().is_ok_and(|n| n > 0)));
    }
}
