//! The records as an auditor reads them: lines of JSON in files by day.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The folder of a gateway's records.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// Both records of one request.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its `Postern-Record`.
    pub id: String,
    /// What was about to happen; `Null` if there is none.
    pub intent: Value,
    /// What happened; `Null` if there is none yet.
    pub outcome: Value,
    /// What policies that are only watched would have changed.
    pub shadows: Vec<Value>,
}

impl Records {
    /// Names the folder.
    #[must_use]
    pub fn in_folder(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// All lines in the order in which they were written. A last line without its end is left out.
    ///
    /// # Errors
    /// A file cannot be read, or a whole line is not JSON.
    pub fn lines(&self) -> Result<Vec<Value>> {
        let text = self.text()?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// Everything as text, to look for what must not be in it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn text(&self) -> Result<String> {
        let entries = std::fs::read_dir(&self.dir).with_context(|| format!("the folder {}", self.dir.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        // Their names sort by date.
        files.sort();
        Ok(files.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?)
    }

    /// All requests, in the order of their first line.
    ///
    /// # Errors
    /// As for [`Records::lines`].
    pub fn all(&self) -> Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        for line in self.lines()? {
            let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
            let (id, kind) = (field("record"), field("kind"));
            let index = records.iter().position(|record| record.id == id).unwrap_or_else(|| {
                records.push(Record { id, intent: Value::Null, outcome: Value::Null, shadows: Vec::new() });
                records.len() - 1
            });
            let Some(record) = records.get_mut(index) else { continue };
            match kind.as_str() {
                "intent" => record.intent = line,
                "outcome" => record.outcome = line,
                "shadow" => record.shadows.push(line),
                other => bail!("a record of kind {other:?}"),
            }
        }
        Ok(records)
    }

    /// Waits until the request `id` has its outcome, and returns both records.
    ///
    /// # Errors
    /// It did not come in time.
    pub async fn of(&self, id: &str, within: Duration) -> Result<Record> {
        let wanted = |record: &Record| record.id == id && !record.outcome.is_null();
        self.when(within, |records| records.iter().find(|record| wanted(record)).cloned())
            .await
            .with_context(|| format!("the outcome of {id}"))
    }

    /// Waits until `wanted` takes something from the records.
    ///
    /// # Errors
    /// It did not in time.
    pub async fn when<T>(&self, within: Duration, wanted: impl Fn(&[Record]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let records = self.all()?;
            if let Some(found) = wanted(&records) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("not among the records after {within:?}: {records:#?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn joins_both_records_and_waits_for_the_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("records-2026-01-01.jsonl");
        let text = "{\"record\":\"a\",\"kind\":\"intent\"}\n{\"record\":\"b\",\"kind\":\"outcome\"}\n{\"record\":\"a\",\"kind\":\"out";
        std::fs::write(&file, text).unwrap();
        let records = Records::in_folder(dir.path().to_owned());
        let all = records.all().unwrap();
        assert_eq!(all.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(records.of("a", Duration::from_millis(30)).await.is_err());
        std::fs::write(&file, format!("{text}come\",\"result\":\"answered\"}}\n")).unwrap();
        let record = records.of("a", Duration::from_secs(1)).await.unwrap();
        assert_eq!(
            (record.intent["kind"].as_str(), record.outcome["result"].as_str()),
            (Some("intent"), Some("answered"))
        );
    }
}
