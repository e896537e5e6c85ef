//! What writes, and the thread that does so when nobody else has. Records that come while a sync is under way share the next one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_tlog::{Log, LogError, Recovery, SecretKey, Signed};
use serde::Deserialize;
use time::{Date, OffsetDateTime};
use tokio::sync::watch;

use super::lock::Lock;
use super::queue::{Line, Pace, Receiver};
use super::{Source, State};
use crate::audit::line::{Began, Notice, line};
use crate::audit::{LogKeys, Outcome, RecordId, day_of};
use crate::config;
use crate::telemetry::metrics::Metrics;

/// How long the writer waits before it tries again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a record waits for the signature of a checkpoint.
const SIGN_WITHIN: Duration = Duration::from_secs(1);
/// How often the writer looks at the calendar when nobody asks for anything.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Records at the end of the log among which requests without an outcome are looked for. No request lives longer than so many are
/// written, by far.
const LOOK_BACK: u64 = 32_768;
/// A disk is quick that takes a batch in so much time: waking a thread, and being woken by it, takes about as long where the processor
/// sleeps meanwhile.
const QUICK: Duration = Duration::from_micros(100);
/// What hashing takes of that, of each record.
const HASHED_IN: Duration = Duration::from_micros(5);
/// A longer retention is for ever.
const MAX_DAYS: i64 = 1_000_000;

pub(super) struct Writer {
    _lock: Lock,
    log: Log,
    dir: PathBuf,
    retention: Duration,
    /// Whether the disk must have an intent before anything leaves.
    syncs_each: bool,
    logs: usize,
    /// The day of the newest record.
    day: Date,
    /// When the next checkpoint is due, if there is something to be signed.
    sign_at: Option<Instant>,
    took: Took,
    /// Since when the disk has refused what is to be written next.
    failing: Option<Instant>,
    key: SecretKey,
    /// Whoever reads along sees the newest.
    shown: watch::Sender<Option<Arc<Signed>>>,
}

/// What the disk took of late for records that somebody waits for: the longest, which is forgotten slowly.
#[derive(Debug, Default)]
pub(super) struct Took(Duration);

impl Took {
    pub(super) fn note(&mut self, took: Duration, records: usize) {
        let hashed_in = HASHED_IN.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX));
        self.0 = took.saturating_sub(hashed_in).max(self.0 * 7 / 8);
    }

    pub(super) fn is_quick(&self) -> bool {
        self.0 < QUICK
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Writer({})", self.dir.display())
    }
}

impl Writer {
    pub(super) fn open(settings: &config::Audit, domain: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&settings.dir)?;
        let lock = Lock::take(&settings.dir)?;
        let keys = LogKeys::of(&settings.state_dir, &settings.dir);
        let key = keys.open(domain)?;
        let log = Log::open(&settings.dir, key.clone(), is_stop)?;
        keys.has_begun(log.size())?;
        let last = log.size().checked_sub(1).map(|last| log.files().entry(last)).transpose()?;
        let day = last.and_then(|record| day_of(&record)).max(newest_end(&log)?).unwrap_or_else(today);
        Ok(Self {
            _lock: lock,
            log,
            dir: settings.dir.clone(),
            retention: settings.retention,
            syncs_each: settings.sync == config::file::Sync::Each,
            logs: keys.count(),
            day,
            sign_at: None,
            took: Took::default(),
            failing: None,
            key,
            shown: watch::Sender::new(None),
        })
    }

    pub(super) fn source(&self) -> Source {
        Source { files: self.log.files().clone(), key: self.key.clone(), checkpoints: self.shown.subscribe() }
    }

    /// Signs what there is, and shows it.
    fn sign(&mut self) -> Result<(), LogError> {
        let signed = self.log.checkpoint()?;
        self.shown.send_replace(Some(Arc::new(signed)));
        Ok(())
    }

    /// Says what was found that nobody had signed, gives an outcome to every request that the last gateway left without one, and says
    /// that a gateway begins.
    pub(super) fn begin(&mut self, configuration: String, offline: bool) -> anyhow::Result<usize> {
        self.turn_day()?;
        let open = self.without_outcome()?;
        let mut records = self.recovered();
        for (record, identity) in &open {
            let outcome = Outcome { result: "interrupted", identity: identity.clone(), ..Outcome::default() };
            records.push(line(record, "outcome", &outcome));
        }
        let (version, interrupted) = (env!("CARGO_PKG_VERSION"), open.len());
        let began = Began { version, configuration, offline, interrupted, logs: self.logs };
        records.push(line(RecordId::new(), "start", &began));
        self.log.append(&records, true)?;
        self.sign()?;
        Ok(open.len())
    }

    fn recovered(&self) -> Vec<Vec<u8>> {
        let Recovery { taken: (from, taken), set_aside } = self.log.recovered();
        let notice = |what, from, records: u64| {
            let notice = Notice { what, from, records: (records > 0).then_some(records), ..Notice::default() };
            (records > 0).then(|| line(RecordId::new(), "notice", &notice))
        };
        if set_aside > 0 {
            tracing::error!(
                records = set_aside,
                "somebody wrote into the journal after the last gateway had ended; it is set aside there, and no record"
            );
        }
        [notice("unsigned", Some(from), taken), notice("foreign", None, set_aside)].into_iter().flatten().collect()
    }

    /// Requests that were planned and have no outcome: ID and identity.
    fn without_outcome(&self) -> Result<BTreeMap<String, String>, LogError> {
        #[derive(Deserialize)]
        struct Read {
            record: String,
            kind: String,
            #[serde(default)]
            identity: String,
        }
        let first = self.log.size().saturating_sub(LOOK_BACK).max(self.log.files().first()?);
        let mut open = BTreeMap::new();
        for entry in self.log.files().entries(first, self.log.size()) {
            let Ok(read) = serde_json::from_slice::<Read>(&entry?) else { continue };
            match read.kind.as_str() {
                "intent" => drop(open.insert(read.record, read.identity)),
                "outcome" => drop(open.remove(&read.record)),
                _ => {}
            }
        }
        Ok(open)
    }

    /// Writes what nobody has written by themselves, and signs, until there will be no more.
    pub(super) fn run(writer: &Mutex<Self>, lines: &Receiver, state: &State, metrics: &Metrics) {
        metrics.records_writable(true);
        let mut due = Instant::now();
        while lines.wait(due) {
            // Whoever writes by themselves and panics leaves nobody knows what: nothing is written any more, and every request is refused.
            let Ok(mut writer) = writer.lock() else {
                state.healthy.store(false, Ordering::Relaxed);
                return metrics.records_writable(false);
            };
            let batch = lines.take();
            // The day turns before what came in it is written, or its segment would not have all of it.
            let _next_time = writer.turn_day();
            if !batch.is_empty() {
                writer.write(batch, state, metrics);
            }
            if writer.sign_at.is_some_and(|at| at <= Instant::now()) {
                // What fails here fails for the next record as well, and that one is refused.
                let signed = writer.sign();
                writer.sign_at = signed.is_err().then(|| Instant::now() + SIGN_WITHIN);
            }
            // Others may write meanwhile: what they do is to be signed later than that.
            due = writer.sign_at.unwrap_or_else(|| Instant::now() + LOOK_EVERY);
        }
        let Ok(mut writer) = writer.lock() else { return };
        let end = line(RecordId::new(), "stop", &serde_json::Map::new());
        let ended = writer.log.append(&[end], true).and_then(|_| writer.log.checkpoint());
        if let Err(error) = ended {
            tracing::error!(%error, "the end could not be recorded");
        }
    }

    /// Writes a batch at once, for one who waits for one of its lines.
    ///
    /// # Errors
    /// The batch, if it could not be written.
    pub(super) fn write_once(
        &mut self,
        mut batch: Vec<Line>,
        state: &State,
        metrics: &Metrics,
    ) -> Result<(), Vec<Line>> {
        match self.append(&mut batch, metrics) {
            Ok(()) => {
                self.written(batch, state, metrics);
                Ok(())
            }
            Err(error) => {
                self.refused(&error, state, metrics);
                Err(batch)
            }
        }
    }

    /// Whether the next record is of another day, so that there is more to be done than to write it.
    pub(super) fn has_day_to_end(&self) -> bool {
        today() > self.day
    }

    /// Writes a batch, however long that takes.
    pub(super) fn write(&mut self, mut batch: Vec<Line>, state: &State, metrics: &Metrics) {
        while let Err(error) = self.append(&mut batch, metrics) {
            self.refused(&error, state, metrics);
            std::thread::sleep(RETRY_AFTER);
        }
        self.written(batch, state, metrics);
    }

    fn refused(&mut self, error: &LogError, state: &State, metrics: &Metrics) {
        self.failing.get_or_insert_with(Instant::now);
        state.is_quick.store(false, Ordering::Relaxed);
        metrics.records_writable(false);
        if state.healthy.swap(false, Ordering::Relaxed) {
            tracing::error!(%error, "records cannot be written; requests are refused until they can: free the disk or mend the folder");
        }
    }

    fn append(&mut self, batch: &mut Vec<Line>, metrics: &Metrics) -> Result<(), LogError> {
        // Whoever gave up was refused, and does nothing that would have to be recorded before.
        batch.retain(|line| !matches!(&line.pace, Pace::Before(waiting) if waiting.is_closed()));
        // The first that is written again says for how long nothing was; and it tries the disk when nobody waits any more.
        let gap = self.failing.map(|since| {
            let seconds = Some(since.elapsed().as_secs());
            line(RecordId::new(), "notice", &Notice { what: "unwritable", seconds, ..Notice::default() })
        });
        let records: Vec<&[u8]> = batch.iter().map(|line| &line.bytes).chain(&gap).map(Vec::as_slice).collect();
        let is_waited_for = batch.iter().any(|line| matches!(line.pace, Pace::Before(_)));
        let began = Instant::now();
        // What is written to a file that is no longer there is written nowhere.
        let durable = self.syncs_each && is_waited_for;
        let appended = self.look(metrics).and_then(|()| self.log.append(&records, durable));
        if durable {
            self.took.note(began.elapsed(), records.len());
        }
        metrics.recorded(appended.map(|_| records.len() as u64)?);
        Ok(())
    }

    /// Says so to those who wait, and what else is to be said now.
    fn written(&mut self, batch: Vec<Line>, state: &State, metrics: &Metrics) {
        self.failing = None;
        // Where the kernel may keep them for a while, nobody knows what the disk takes.
        state.is_quick.store(self.syncs_each && self.took.is_quick(), Ordering::Relaxed);
        let unrecorded = state.unrecorded.swap(0, Ordering::Relaxed);
        if unrecorded > 0 {
            let notice = Notice { what: "unrecorded", requests: Some(unrecorded), ..Notice::default() };
            if self.log.append(&[line(RecordId::new(), "notice", &notice)], false).is_err() {
                state.unrecorded.fetch_add(unrecorded, Ordering::Relaxed);
            }
            metrics.unrecorded(unrecorded);
        }
        if !state.healthy.swap(true, Ordering::Relaxed) {
            tracing::info!("records are written again");
        }
        metrics.records_writable(true);
        self.sign_at.get_or_insert_with(|| Instant::now() + SIGN_WITHIN);
        for line in batch {
            if let Pace::Before(waiting) | Pace::After(waiting) = line.pace {
                // The request may have been given up meanwhile.
                let _gone = waiting.send(());
            }
        }
    }

    /// Whether the journal is what this writer made of it.
    fn look(&mut self, metrics: &Metrics) -> Result<(), LogError> {
        let Some(changed) = self.log.changed() else { return Ok(()) };
        self.log.mend()?;
        tracing::error!(
            what = changed.what,
            bytes_expected = changed.bytes_expected,
            bytes_found = changed.bytes_found,
            "the records were changed by somebody else; they are as they were again, and what was there is kept beside them in `journal`"
        );
        metrics.records_changed(changed.what);
        let notice = Notice {
            what: changed.what,
            bytes_expected: Some(changed.bytes_expected),
            bytes_found: Some(changed.bytes_found),
            ..Notice::default()
        };
        self.log.append(&[line(RecordId::new(), "notice", &notice)], true).map(|_| ())
    }

    /// A day is a segment: its last checkpoint is kept, and the oldest day past its time is deleted.
    fn turn_day(&mut self) -> Result<(), LogError> {
        let today = today();
        // A clock that goes back changes nothing: the names of segments ascend.
        if today <= self.day {
            return Ok(());
        }
        // What ended already is left: its clock was set back since, and what came after belongs to the next segment.
        let name = self.day.to_string();
        if self.log.size() > 0 && self.log.files().kept_one(&name)?.is_none() {
            self.log.end_segment(&name)?;
        }
        self.day = today;
        if let Err(error) = self.delete_oldest() {
            tracing::warn!(%error, "records past their retention cannot be deleted");
        }
        Ok(())
    }

    /// Only the oldest day goes, once a day: a clock that is wrong by years must not be able to delete everything at once.
    pub(super) fn delete_oldest(&mut self) -> Result<(), LogError> {
        let days = i64::try_from(self.retention.as_secs() / 86_400).unwrap_or(i64::MAX).min(MAX_DAYS);
        let Some(oldest) = self.day.checked_sub(time::Duration::days(days)).map(|day| day.to_string()) else {
            return Ok(());
        };
        let first = self.log.files().first()?;
        for name in self.log.files().kept()?.into_iter().filter(|name| *name < oldest) {
            let before = self.log.forgettable(&name)?;
            if before <= first {
                continue;
            }
            // A name is not signed: the records say themselves of which day they are.
            let last = self.log.files().entry(before - 1)?;
            if day_of(&last).is_none_or(|day| day.to_string() > name) {
                tracing::error!(
                    segment = name,
                    "this checkpoint is not of the end of that day: somebody put it there; nothing is deleted by it"
                );
                continue;
            }
            // Said first: what is not there and of which nobody said that it would go was taken.
            let segment = Some(name.clone());
            let notice = Notice { what: "retention", segment, before: Some(before), ..Notice::default() };
            self.log.append(&[line(RecordId::new(), "notice", &notice)], true)?;
            self.log.checkpoint()?;
            self.log.forget(&name)?;
            tracing::info!(segment = name, before, folder = %self.dir.display(), "records past their retention are deleted");
            break;
        }
        Ok(())
    }
}

/// The day of the newest segment that has ended, if the record before its end is not of an earlier one: a name is not signed.
fn newest_end(log: &Log) -> Result<Option<Date>, LogError> {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    for name in log.files().kept()?.into_iter().rev() {
        let Ok(day) = Date::parse(&name, &format) else { continue };
        let end = log.files().kept_one(&name)?.and_then(|bytes| Some(log.key().checkpoint(&bytes).ok()?.head.size));
        let last = end.and_then(|end| end.checked_sub(1)).and_then(|last| log.files().entry(last).ok());
        if last.and_then(|last| day_of(&last)).is_some_and(|last| last >= day) {
            return Ok(Some(day));
        }
    }
    Ok(None)
}

/// The last record of a gateway that ended in order.
fn is_stop(record: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Read<'a> {
        kind: &'a str,
    }
    serde_json::from_slice::<Read<'_>>(record).is_ok_and(|read| read.kind == "stop")
}

fn today() -> Date {
    OffsetDateTime::now_utc().date()
}
