//! The file, and the thread that writes it. Lines that come while a sync is under way share the next one.
//!
//! The writer knows how long the file must be. If somebody else removed, cut, replaced or extended it, that is said in the
//! log, counted, and written down as a line of its own; what a gateway that was killed left open is closed at the next start.

mod folder;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use time::{Date, OffsetDateTime};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::folder::file_name;
use self::folder::{Lock, open_day};
use super::{Intent, Outcome, RecordId, timestamp};
use crate::error::Error;
use crate::route::shadow::Difference;
use crate::telemetry::metrics::Metrics;

/// Lines that wait for the disk. When it is full, requests wait, and then are refused.
const QUEUE: usize = 16_384;
/// Lines written together.
const BATCH: usize = 256;
/// How long a request waits for a place in the queue.
const PLACE_WITHIN: Duration = Duration::from_secs(5);
/// A longer retention is for ever.
const MAX_DAYS: i64 = 1_000_000;
/// How long the writer waits before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Appends records.
#[derive(Debug, Clone)]
pub struct AuditLog {
    queue: mpsc::Sender<Line>,
    healthy: Arc<AtomicBool>,
}

struct Line {
    bytes: Vec<u8>,
    durable: Option<oneshot::Sender<()>>,
}

/// A place in the queue for an outcome: it can be written without waiting, even while a request is torn down.
#[derive(Debug)]
pub struct Place {
    permit: Option<mpsc::OwnedPermit<Line>>,
}

/// Tells when the last line is on the disk, after every [`AuditLog`] and [`Place`] is gone.
#[derive(Debug)]
pub struct Flushed(std::sync::mpsc::Receiver<()>);

impl Flushed {
    /// Waits for it; false if it took longer than `within`.
    #[must_use]
    pub fn wait(self, within: Duration) -> bool {
        self.0.recv_timeout(within).is_ok()
    }
}

impl AuditLog {
    /// Opens today's file under `dir` and starts the writer. A line that a crash cut short is removed: it was never
    /// acknowledged, so nothing left because of it. Of the files older than `retention`, the oldest is deleted.
    ///
    /// # Errors
    /// The folder or file cannot be made or written.
    pub fn open(dir: &Path, retention: Duration, metrics: Arc<Metrics>) -> io::Result<(Self, Flushed)> {
        let mut writer = Writer::open(dir, retention)?;
        let closed = writer.close_interrupted()?;
        if closed > 0 {
            tracing::warn!(
                requests = closed,
                "the last gateway ended while requests were under way; their records say `interrupted`"
            );
        }
        let (queue, lines) = mpsc::channel(QUEUE);
        let healthy = Arc::new(AtomicBool::new(true));
        let state = healthy.clone();
        let (ended, flushed) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            writer.run(lines, &state, &metrics);
            // Nobody may wait for it.
            let _unheard = ended.send(());
        })?;
        Ok((Self { queue, healthy }, Flushed(flushed)))
    }

    /// False while the disk refuses lines.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Reserves the place of an outcome, before anything is done that will have one.
    ///
    /// # Errors
    /// The log is full or not healthy.
    pub async fn place(&self) -> Result<Place, Error> {
        if !self.is_healthy() {
            return Err(Error::RecordUnavailable);
        }
        match tokio::time::timeout(PLACE_WITHIN, self.queue.clone().reserve_owned()).await {
            Ok(Ok(permit)) => Ok(Place { permit: Some(permit) }),
            _ => Err(Error::RecordUnavailable),
        }
    }

    /// Writes an intent. With `durable`, waits until it has reached the disk.
    ///
    /// # Errors
    /// It could not be written in time.
    pub async fn intent(&self, record: RecordId, intent: &Intent<'_>, durable: bool) -> Result<(), Error> {
        let bytes = line(record, "intent", intent);
        let (sender, receiver) = oneshot::channel();
        let line = Line { bytes, durable: durable.then_some(sender) };
        let written = async {
            self.queue.send(line).await.map_err(|_| Error::RecordUnavailable)?;
            if durable { receiver.await.map_err(|_| Error::RecordUnavailable) } else { Ok(()) }
        };
        tokio::time::timeout(PLACE_WITHIN, written).await.map_err(|_| Error::RecordUnavailable)?
    }

    /// Writes what a shadow would have changed, if there is room in the queue: nothing waits for it.
    pub fn shadow(&self, record: RecordId, difference: &Difference) {
        let _left_out = self.queue.try_send(Line { bytes: line(record, "shadow", difference), durable: None });
    }
}

impl Place {
    /// Writes the outcome; the second call does nothing.
    pub fn outcome(&mut self, record: RecordId, outcome: &Outcome) {
        if let Some(permit) = self.permit.take() {
            permit.send(Line { bytes: line(record, "outcome", outcome), durable: None });
        }
    }
}

fn line(record: impl Serialize, kind: &'static str, body: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Whole<'a, R, T> {
        record: R,
        kind: &'static str,
        time: String,
        #[serde(flatten)]
        body: &'a T,
    }
    let mut bytes = serde_json::to_vec(&Whole { record, kind, time: timestamp(), body }).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A line of the log about itself.
#[derive(Debug, Serialize)]
struct Notice {
    what: &'static str,
    bytes_expected: u64,
    bytes_found: u64,
}

struct Writer {
    _lock: Lock,
    dir: PathBuf,
    retention: Duration,
    day: Date,
    file: File,
    /// Bytes of the file that are whole lines.
    good: u64,
}

impl Writer {
    fn open(dir: &Path, retention: Duration) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let lock = Lock::take(dir)?;
        let day = OffsetDateTime::now_utc().date();
        let (file, good) = open_day(dir, day)?;
        let writer = Self { _lock: lock, dir: dir.to_owned(), retention, day, file, good };
        writer.delete_old();
        Ok(writer)
    }

    /// Gives an outcome to every request that the last gateway left without one.
    fn close_interrupted(&mut self) -> io::Result<usize> {
        let open = folder::without_outcome(&self.dir)?;
        let mut bytes = Vec::new();
        for (record, identity) in &open {
            let outcome = Outcome { result: "interrupted", identity: identity.clone(), ..Outcome::default() };
            bytes.extend(line(record, "outcome", &outcome));
        }
        self.append(&bytes, !open.is_empty())?;
        Ok(open.len())
    }

    fn run(mut self, mut lines: mpsc::Receiver<Line>, healthy: &AtomicBool, metrics: &Metrics) {
        let mut batch = Vec::with_capacity(BATCH);
        metrics.records_writable(true);
        while lines.blocking_recv_many(&mut batch, BATCH) > 0 {
            let bytes: Vec<u8> = batch.iter().flat_map(|line| line.bytes.iter().copied()).collect();
            let sync = batch.iter().any(|line| line.durable.is_some());
            self.look(metrics);
            while let Err(error) = self.append(&bytes, sync) {
                metrics.records_writable(false);
                if healthy.swap(false, Ordering::Relaxed) {
                    tracing::error!(%error, "records cannot be written; requests are refused until they can: free the disk or mend the folder");
                }
                std::thread::sleep(RETRY_AFTER);
            }
            if !healthy.swap(true, Ordering::Relaxed) {
                tracing::info!("records are written again");
            }
            metrics.records_writable(true);
            metrics.recorded(batch.len() as u64);
            for line in batch.drain(..) {
                if let Some(durable) = line.durable {
                    // The request may have been given up meanwhile.
                    let _gone = durable.send(());
                }
            }
        }
        let _last = self.file.sync_data();
    }

    /// Whether the file is what this writer made of it.
    fn look(&mut self, metrics: &Metrics) {
        let Some((what, bytes_found)) = folder::difference(&self.dir, self.day, &self.file, self.good) else { return };
        let bytes_expected = self.good;
        tracing::error!(
            what,
            bytes_expected,
            bytes_found,
            "the records were changed by somebody else: compare them with a copy"
        );
        metrics.records_changed(what);
        let notice = line(RecordId::new(), "notice", &Notice { what, bytes_expected, bytes_found });
        // If it cannot be opened now, the lines that wait will find that out, and wait.
        if let Ok((file, good)) = open_day(&self.dir, self.day) {
            (self.file, self.good) = (file, good);
            let _said_in_the_log = self.append(&notice, true);
        }
    }

    fn append(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        let today = OffsetDateTime::now_utc().date();
        if today != self.day {
            self.file.sync_data()?;
            (self.file, self.good) = open_day(&self.dir, today)?;
            self.day = today;
            self.delete_old();
        }
        let written = self.file.write_all(bytes).and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        if written.is_ok() {
            self.good += bytes.len() as u64;
            return Ok(());
        }
        // Half a line must not stand in front of the next one; and what is at the path may have been mended meanwhile.
        let _cut = self.file.set_len(self.good);
        (self.file, self.good) = open_day(&self.dir, today)?;
        written
    }

    fn delete_old(&self) {
        let days = i64::try_from(self.retention.as_secs() / 86_400).unwrap_or(i64::MAX).min(MAX_DAYS);
        let Some(oldest) = self.day.checked_sub(time::Duration::days(days)) else { return };
        let oldest = file_name(oldest);
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let is_record = |name: &String| name.starts_with("records-") && name.ends_with(".jsonl");
        // The names sort by date. Only the oldest file goes, once a day and once a start: a clock that is wrong by years must
        // not be able to delete everything at once.
        let Some(name) = names.filter(is_record).min().filter(|name| *name < oldest) else { return };
        match std::fs::remove_file(self.dir.join(&name)) {
            Ok(()) => tracing::info!(file = name, "records past their retention are deleted"),
            Err(error) => tracing::warn!(file = name, %error, "records past their retention cannot be deleted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome { result: "answered", ..Outcome::default() }
    }

    fn intent(redactions: &std::collections::BTreeMap<String, u64>) -> Intent<'_> {
        Intent {
            identity: String::new(),
            tenant: "",
            label: "",
            label_sources: &[],
            model: "",
            placement: "",
            targets: Vec::new(),
            reason: "",
            form: "",
            policies: &[],
            redactions,
            flagged: redactions,
            prompt_tokens_estimated: 0,
            request_hash: String::new(),
        }
    }

    fn lines(dir: &Path) -> Vec<serde_json::Value> {
        let path = dir.join(file_name(OffsetDateTime::now_utc().date()));
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_request_that_a_kill_left_open_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (open, whole) = (RecordId::new().to_string(), RecordId::new().to_string());
        let today = dir.path().join(file_name(OffsetDateTime::now_utc().date()));
        let text = format!(
            "{{\"record\":\"{whole}\",\"kind\":\"intent\"}}\n{{\"record\":\"{open}\",\"kind\":\"intent\",\"identity\":\"spiffe://b/c\"}}\n{{\"record\":\"{whole}\",\"kind\":\"outcome\"}}\n"
        );
        std::fs::write(&today, text).unwrap();
        for _ in 0..2 {
            let (log, flushed) = AuditLog::open(dir.path(), Duration::MAX, Arc::default()).unwrap();
            drop(log);
            assert!(flushed.wait(Duration::from_secs(5)));
        }
        let lines = lines(dir.path());
        assert_eq!(lines.len(), 4, "closed once");
        let last = &lines[3];
        assert_eq!((&last["record"], &last["result"]), (&open.into(), &"interrupted".into()));
        assert_eq!(last["identity"], "spiffe://b/c");
    }

    #[tokio::test]
    async fn who_changes_the_file_is_noticed() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 4] = [
            ("removed", |path| std::fs::remove_file(path).unwrap()),
            ("cut", |path| std::fs::write(path, "").unwrap()),
            ("extended", |path| {
                let text = std::fs::read_to_string(path).unwrap();
                std::fs::write(path, format!("{text}{text}")).unwrap();
            }),
            ("replaced", |path| {
                let other = path.with_extension("other");
                std::fs::copy(path, &other).unwrap();
                std::fs::rename(other, path).unwrap();
            }),
        ];
        for (what, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let today = dir.path().join(file_name(OffsetDateTime::now_utc().date()));
            let (log, flushed) = AuditLog::open(dir.path(), Duration::MAX, Arc::default()).unwrap();
            let none = std::collections::BTreeMap::new();
            let intent = intent(&none);
            log.intent(RecordId::new(), &intent, true).await.unwrap();
            change(&today);
            log.intent(RecordId::new(), &intent, true).await.unwrap();
            log.intent(RecordId::new(), &intent, true).await.unwrap();
            drop(log);
            assert!(flushed.wait(Duration::from_secs(5)));
            let lines = lines(dir.path());
            let notices: Vec<_> = lines.iter().filter(|line| line["kind"] == "notice").collect();
            assert_eq!(notices.len(), 1, "{what}: {lines:?}");
            assert_eq!(notices[0]["what"], what);
            assert_eq!(lines.iter().rev().take(2).filter(|line| line["kind"] == "intent").count(), 2);
        }
    }

    #[test]
    fn two_writers_do_not_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Lock::take(dir.path()).unwrap();
        let error = Lock::take_within(dir.path(), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("another gateway"), "{error}");
    }

    #[tokio::test]
    async fn a_torn_line_is_removed_and_old_files_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let today = dir.path().join(file_name(OffsetDateTime::now_utc().date()));
        std::fs::write(&today, format!("{{\"a\":1}}\n{{\"torn\":\"{}", "x".repeat(100_000))).unwrap();
        let [old, older] = ["2001-01-02", "2001-01-01"].map(|day| dir.path().join(format!("records-{day}.jsonl")));
        let recent = dir.path().join(file_name((OffsetDateTime::now_utc() - time::Duration::days(179)).date()));
        for file in [&old, &older, &recent] {
            std::fs::write(file, "{}\n").unwrap();
        }
        let (log, flushed) = AuditLog::open(dir.path(), Duration::from_secs(86_400 * 180), Arc::default()).unwrap();
        // Of those past their time the oldest only: a clock that is wrong by years must not take them all.
        assert!(!older.exists() && old.exists() && recent.exists());
        let (record, mut place) = (RecordId::new(), log.place().await.unwrap());
        place.outcome(record, &outcome());
        place.outcome(record, &outcome());
        drop((log, place));
        assert!(flushed.wait(Duration::from_secs(5)));
        let lines = lines(dir.path());
        assert_eq!((lines.len(), &lines[0]["a"], &lines[1]["kind"]), (2, &1.into(), &"outcome".into()));
        assert_eq!(lines[1]["record"], record.to_string());
    }
}
