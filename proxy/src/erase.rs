//! Residual information: what is kept of a tenant is destroyed with its keys.
//!
//! The command line leaves a wish in `state_dir/erase`; the gateway fulfils it within a second, records it, and says so beside it. A wish that
//! waits, since no gateway runs or the Redis is away, is fulfilled as soon as it can be.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::audit::{Action, RecordId};
use crate::config::read::bounded;
use crate::gateway::Gateway;
use crate::keys::write_once;

const LOOK_EVERY: Duration = Duration::from_millis(500);
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
        let name = HEXLOWER.encode(Sha256::digest(self.tenant.as_bytes()).get(..16).unwrap_or_default());
        let done = dir.join(format!("{name}.done"));
        match std::fs::remove_file(&done) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write_once(&dir.join(format!("{name}.wish")), serde_json::to_string(self)?.as_bytes())?;
        Ok(done)
    }
}

/// Fulfils wishes, for as long as the gateway runs.
pub async fn keep_up(gateway: Arc<Gateway>) {
    let dir = folder(&gateway.config.audit.state_dir);
    loop {
        let looking = dir.clone();
        let wishes = tokio::task::spawn_blocking(move || wishes(&looking)).await.unwrap_or_default();
        for (path, wish) in wishes {
            if let Err(why) = fulfil(&gateway, &wish).await {
                tracing::warn!(why, "a tenant's data is not destroyed yet; it is tried again");
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

async fn fulfil(gateway: &Gateway, wish: &Wish) -> Result<(), &'static str> {
    let record = RecordId::new();
    let action =
        |result| Action { by: "command-line".into(), action: "erase", subject: Some(wish.tenant.clone()), result };
    gateway.audit.action(record, &action("asked")).await.map_err(|_| "it cannot be recorded")?;
    let erased = gateway.erase(&wish.tenant).await;
    let result = if erased.is_ok() { "done" } else { "failed" };
    gateway.audit.action(record, &action(result)).await.map_err(|_| "it cannot be recorded")?;
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
