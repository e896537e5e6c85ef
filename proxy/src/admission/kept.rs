//! What was spent of days and months, in a file: it must not be forgotten when the gateway is started anew. It is written once a
//! second, if something has changed, and at the end; a kill forgets the last second.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::account::Spent;
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
pub struct Kept(PathBuf);

impl Kept {
    /// Below the folder of the state.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self(state_dir.join(NAME))
    }

    /// What was spent before; nothing if there is no file.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn read(&self) -> io::Result<HashMap<Who, Vec<Spent>>> {
        let bytes = match bounded(&self.0, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let lines: Vec<Line> = serde_json::from_slice(&bytes)?;
        let who = |line: &Line| match (&line.identity, &line.tenant) {
            (Some(identity), _) => Some(Who::Identity(identity.as_str().into())),
            (None, tenant) => tenant.as_ref().map(|tenant| Who::Tenant(tenant.as_str().into())),
        };
        Ok(lines.into_iter().filter_map(|line| Some((who(&line)?, line.spent))).collect())
    }

    /// Writes it, once it is known to be on the disk in place of the one before.
    fn write(&self, all: Vec<(Who, Vec<Spent>)>) -> io::Result<()> {
        let line = |(who, spent)| match who {
            Who::Identity(identity) => Line { identity: Some(identity.to_string()), tenant: None, spent },
            Who::Tenant(tenant) => Line { identity: None, tenant: Some(tenant.to_string()), spent },
        };
        let text = serde_json::to_vec(&all.into_iter().map(line).collect::<Vec<_>>())?;
        let new = self.0.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_data()?;
        std::fs::rename(&new, &self.0)?;
        self.0.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Writes what has changed.
    pub fn keep(&self, books: &Books) {
        let Some(all) = books.to_keep() else { return };
        if let Err(error) = self.write(all) {
            books.not_kept();
            let file = self.0.display();
            tracing::warn!(%file, %error, "what was spent of budgets cannot be written: a restart would forget it");
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
    use super::super::account::{Amount, Measure, Moment, Period, Rule};
    use super::super::books::{Bill, Payers};
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::below(dir.path());
        assert!(kept.read().unwrap().is_empty());
        let rules: Arc<[Rule]> = [Rule { measure: Measure::Tokens, period: Period::Month, most: 100 }].into();
        let amy = Who::Identity("spiffe://b.example/clerk/amy".into());
        let payers = Payers::of([(amy.clone(), rules.clone()), (Who::Tenant("t".into()), rules)]);
        let books = Books::default();
        let amount = Amount { input: 7, ..Amount::default() };
        books.take(&payers, amount, &mut Bill::default(), Moment::now()).unwrap();
        kept.keep(&books);
        let read = kept.read().unwrap();
        assert_eq!((read.len(), read[&amy][0].spent), (2, 7));
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept.0).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&kept.0, b"[{").unwrap();
        assert!(kept.read().is_err());
    }
}
