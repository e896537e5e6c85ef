//! What was spent of days and months, in a file: it must not be forgotten when the gateway is started anew. It is written once a
//! second, if something has changed, and at the end; a kill forgets the last second.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::account::{Moment, Spent};
use super::books::{Books, Who};
use crate::config::read::bounded;

/// How often it is written.
const EVERY: Duration = Duration::from_secs(1);
/// The most bytes that are read.
const MAX_BYTES: usize = 64 << 20;
/// Its name below the folder of the state.
const NAME: &str = "budgets.json";

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    tenant: Option<String>,
    spent: Vec<Spent>,
}

/// The file.
#[derive(Debug, Clone)]
pub struct Kept {
    path: PathBuf,
    /// Held while it is written: what is newer must not be replaced by what is older. True if the last time failed.
    failing: Arc<Mutex<bool>>,
}

impl Kept {
    /// Below the folder of the state.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME), failing: Arc::default() }
    }

    /// What was spent before of days and months that are not over; nothing if there is no file.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn read(&self, now: Moment) -> io::Result<HashMap<Who, Vec<Spent>>> {
        let bytes = match bounded(&self.path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let lines: Vec<Line> = serde_json::from_slice(&bytes)?;
        let who = |line: &Line| match (&line.identity, &line.tenant) {
            (Some(identity), _) => Some(Who::Identity(identity.as_str().into())),
            (None, tenant) => tenant.as_ref().map(|tenant| Who::Tenant(tenant.as_str().into())),
        };
        let current = |mut line: Line| {
            line.spent.retain(|spent| !spent.is_over(now));
            who(&line).filter(|_| !line.spent.is_empty()).map(|who| (who, line.spent))
        };
        Ok(lines.into_iter().filter_map(current).collect())
    }

    /// Writes it, once it is known to be on the disk in place of the one before.
    fn write(&self, all: Vec<(Who, Vec<Spent>)>) -> io::Result<()> {
        let line = |(who, spent)| match who {
            Who::Identity(identity) => Line { identity: Some(identity.to_string()), tenant: None, spent },
            Who::Tenant(tenant) => Line { identity: None, tenant: Some(tenant.to_string()), spent },
        };
        let text = serde_json::to_vec(&all.into_iter().map(line).collect::<Vec<_>>())?;
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_data()?;
        std::fs::rename(&new, &self.path)?;
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Writes what has changed.
    pub fn keep(&self, books: &Books) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(all) = books.to_keep(Moment::now()) else { return };
        let (file, failed_before) = (self.path.display(), *failing);
        let written = self.write(all);
        *failing = written.is_err();
        match written {
            Ok(()) if failed_before => tracing::info!(%file, "what was spent of budgets is written again"),
            Ok(()) => {}
            Err(error) => {
                books.not_kept();
                if !failed_before {
                    tracing::warn!(%file, %error, "what was spent of budgets cannot be written: a restart would forget it");
                }
            }
        }
    }

    /// Does so for as long as it is polled.
    pub async fn keep_up(&self, books: &Arc<Books>) {
        loop {
            tokio::time::sleep(EVERY).await;
            let (kept, books) = (self.clone(), books.clone());
            // It waits for the disk.
            let _panicked = tokio::task::spawn_blocking(move || kept.keep(&books)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::super::account::{Amount, Measure, Moment, Period, Rule};
    use super::super::books::{Bill, Payers};
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::below(dir.path());
        let now = Moment::now();
        assert!(kept.read(now).unwrap().is_empty());
        let rules: Arc<[Rule]> = [Rule { measure: Measure::Tokens, period: Period::Month, most: 100 }].into();
        let amy = Who::Identity("spiffe://b.example/clerk/amy".into());
        let payers = Payers::of([(amy.clone(), rules.clone()), (Who::Tenant("t".into()), rules)]);
        let books = Books::new(HashMap::new(), NonZeroU16::MIN, None);
        let amount = Amount { input: 7, ..Amount::default() };
        books.take_here(&payers, amount, &mut Bill::default(), Moment::now()).unwrap();
        kept.keep(&books);
        let read = kept.read(now).unwrap();
        assert_eq!((read.len(), read[&amy][0].spent), (2, 7));
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept.path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let next_month = Moment { time: now.time + time::Duration::days(32), ..now };
        assert!(kept.read(next_month).unwrap().is_empty(), "what is over is forgotten");
        std::fs::write(&kept.path, b"[{").unwrap();
        assert!(kept.read(now).is_err());
    }
}
