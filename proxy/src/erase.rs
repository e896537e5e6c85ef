//! Residual information: what is kept of a tenant is destroyed with its keys.
//!
//! The command line leaves a wish in `state_dir/erase`; the gateway fulfils it within a second, records it, and says so beside it. A wish that
//! waits, since no gateway runs or the Redis is away, is fulfilled as soon as it can be.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::{Action, RecordId};
use crate::config::read::bounded;
use crate::gateway::Gateway;
use crate::keys::write_once;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the next attempt waits, at most.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Bytes of a wish.
const MAX_WISH: usize = 16 << 10;
/// Wishes that are looked at, at a time.
const AT_A_TIME: usize = 64;

/// Whose data is to be destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The tenant, as the configuration or a SPIFFE ID names it.
    pub tenant: String,
}

impl Wish {
    /// Leaves it for the gateway, and returns the file that will be there when it is fulfilled.
    ///
    /// # Errors
    /// The disk says no.
    pub fn leave(&self, state_dir: &Path) -> io::Result<PathBuf> {
        let dir = folder(state_dir);
        std::fs::create_dir_all(&dir)?;
        let name = self.name();
        let done = dir.join(format!("{name}.done"));
        match std::fs::remove_file(&done) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write_once(&dir.join(format!("{name}.wish")), serde_json::to_string(self)?.as_bytes())?;
        Ok(done)
    }

    /// Whether it was left before, and is not fulfilled yet.
    #[must_use]
    pub fn waits(&self, state_dir: &Path) -> bool {
        folder(state_dir).join(format!("{}.wish", self.name())).exists()
    }

    fn name(&self) -> String {
        HEXLOWER.encode(Sha256::digest(self.tenant.as_bytes()).get(..16).unwrap_or_default())
    }
}

/// Fulfils wishes, for as long as the gateway runs.
pub async fn keep_up(gateway: Arc<Gateway>) {
    let dir = folder(&gateway.config.audit.state_dir);
    let mut tried: HashMap<PathBuf, Tried> = HashMap::new();
    loop {
        let looking = dir.clone();
        let wishes = tokio::task::spawn_blocking(move || wishes(&looking)).await.unwrap_or_default();
        tried.retain(|path, _| wishes.iter().any(|(there, _)| there == path));
        for (path, wish) in wishes {
            let before = tried.get(&path).copied();
            if before.is_some_and(|before| Instant::now() < before.again) {
                continue;
            }
            if let Err(why) = fulfil(&gateway, &wish, before.map(|before| before.why)).await {
                let wait = before.map_or(LOOK_EVERY, |before| (before.wait * 2).min(MAX_WAIT));
                tried.insert(path, Tried { why, wait, again: Instant::now() + wait });
                continue;
            }
            let done = path.with_extension("done");
            if let Err(error) = std::fs::rename(&path, &done) {
                tracing::error!(%error, "a tenant's data is destroyed, which cannot be said beside the wish");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A wish that could not be fulfilled yet.
#[derive(Debug, Clone, Copy)]
struct Tried {
    why: &'static str,
    wait: Duration,
    again: Instant,
}

/// Recorded when it is tried first, when it fails for another reason than `before`, and when it is done.
async fn fulfil(gateway: &Gateway, wish: &Wish, before: Option<&'static str>) -> Result<(), &'static str> {
    let record = async |result| {
        let subject = Some(wish.tenant.clone());
        let action = Action { by: "command-line".into(), action: "erase", subject, result };
        gateway.audit.action(RecordId::new(), &action).await.map_err(|_| "it cannot be recorded")
    };
    if before.is_none() {
        record("asked").await?;
    }
    let erased = gateway.erase(&wish.tenant).await;
    match erased {
        Ok(()) => record("done").await?,
        Err(why) if before != Some(why) => {
            tracing::warn!(why, "a tenant's data is not destroyed yet; it is tried again");
            record("failed").await?;
        }
        Err(_) => {}
    }
    erased
}

fn wishes(dir: &Path) -> Vec<(PathBuf, Wish)> {
    let paths = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let wishes = paths.filter(|path| path.extension().is_some_and(|extension| extension == "wish"));
    let read = |path: PathBuf| {
        let wish = serde_json::from_slice(&bounded(&path, MAX_WISH).ok()?).ok()?;
        Some((path, wish))
    };
    wishes.filter_map(read).take(AT_A_TIME).collect()
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("erase")
}
