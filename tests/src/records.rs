//! The records as an auditor reads them, who has nothing of ours: bundles of C2SP tlog-tiles, and the journal for what is not in
//! one yet.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

const LOOK_EVERY: Duration = Duration::from_millis(10);
/// An outcome is written up to 5 ms after its answer has ended; this is on a machine that has much to do.
const WRITTEN_WITHIN: Duration = Duration::from_millis(50);

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

    /// All lines of what has happened until now, in the order in which they were written. A last line without its end is left out.
    ///
    /// # Errors
    /// A file cannot be read, or a whole line is not JSON.
    pub fn lines(&self) -> Result<Vec<Value>> {
        Self::read(&self.text()?)
    }

    fn read(text: &str) -> Result<Vec<Value>> {
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// Everything as text, a line each, to look for what must not be in it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn text(&self) -> Result<String> {
        std::thread::sleep(WRITTEN_WITHIN);
        self.written()
    }

    /// What is there already.
    fn written(&self) -> Result<String> {
        // A journal may be taken away between its name and its lines: then its records are in bundles.
        let attempt = || -> Result<String> {
            let mut lines: Vec<String> = Vec::new();
            let mut journals: Vec<PathBuf> = std::fs::read_dir(self.dir.join("journal"))
                .with_context(|| format!("the folder {}", self.dir.display()))?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            journals.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
            // Their names sort by the number of their first record.
            journals.sort();
            for number in 0.. {
                let Ok(bundle) = std::fs::read(self.dir.join(bundle_path(number))) else { break };
                lines.extend(entries(&bundle)?);
            }
            for path in journals {
                let first: usize = path.file_stem().context("a name")?.to_str().context("a name")?.parse()?;
                let text = std::fs::read_to_string(&path)?;
                let known = lines.len().checked_sub(first).context("records are missing before this journal")?;
                lines.extend(text.split_inclusive('\n').skip(known).map(str::to_owned));
            }
            Ok(lines.concat())
        };
        attempt().or_else(|_| attempt())
    }

    /// All requests, in the order of their first line.
    ///
    /// # Errors
    /// As for [`Records::lines`].
    pub fn all(&self) -> Result<Vec<Record>> {
        Self::joined(self.lines()?)
    }

    fn joined(lines: Vec<Value>) -> Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        for line in lines {
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
                // Of no request.
                "start" | "stop" | "notice" | "action" => drop(records.pop()),
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
            let records = Self::joined(Self::read(&self.written()?)?)?;
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

/// Where a full bundle of 256 records is.
fn bundle_path(number: u64) -> PathBuf {
    let (thousands, rest) = (number / 1000, number % 1000);
    let folder = PathBuf::from("tile/entries");
    if thousands == 0 { folder.join(format!("{rest:03}")) } else { folder.join(format!("x{thousands:03}/{rest:03}")) }
}

/// Its records, each with the end of a line.
fn entries(bundle: &[u8]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut rest = bundle;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (entry, after) = after.split_at_checked(u16::from_be_bytes(*length).into()).context("a bundle is cut")?;
        lines.push(format!("{}\n", std::str::from_utf8(entry)?));
        rest = after;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn joins_both_records_and_waits_for_the_outcome() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        let file = dir.path().join("journal/00000000000000000000.jsonl");
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
