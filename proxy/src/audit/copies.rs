//! Copies of other gateways' logs, kept here. Who may send one is named with the key of its log; of anybody else these addresses are not
//! there. Nothing is believed of a sender but what its log's key signed, and that only if it goes on with what is here.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use postern_tlog::{LogError, MAX_PUSH, Mirror, Push, Refusal, read_file};
use serde_json::json;
use time::Date;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::line::Notice;
use super::seldom::Seldom;
use super::{AuditLog, day_of};
use crate::config;
use crate::config::audit::CopyFrom;
use crate::connection::session::Session;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::keys::write_once;
use crate::request::{discard, read_small};
use crate::response::{self, Body};
use crate::telemetry::metrics::Metrics;

/// Where copies are asked about and sent, before the hash of the log's key.
pub(crate) const COPIES_PATH: &str = "/.well-known/postern/copies/";
/// What stays free of copies on a disk, or one part in so many of a small one: the own records need it.
const FREE: u64 = 1 << 30;
const FREE_PART: u64 = 20;
/// What a record takes on the disk beside its bytes: its length, its hash, and its part of what files of 256 take more than they have.
const BESIDE: u64 = 52;
/// What a file takes at least, and what is counted of it. A checkpoint at the end of a day is not longer.
const BLOCK: u64 = 4096;
/// Requests whose bodies are read at a time.
const READING: usize = 4;
/// Bytes of the checkpoint that contradicts a copy.
const MAX_EVIDENCE: u64 = 64 << 10;
/// Folders in each other, of a log.
const DEPTH: usize = 12;

/// Why a request about a copy is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyRefusal {
    /// It does not go on with what is here.
    #[error(
        "This copy has {has} records, and what was sent does not go on from there. Ask how many there are, and send what comes after."
    )]
    Elsewhere {
        /// Records that are here.
        has: u64,
    },
    /// It is not what it must be.
    #[error("This is not a step of a copy: {0}.")]
    Malformed(&'static str),
    /// The checkpoint is not signed by the log's key.
    #[error("The checkpoint is not signed by the key that this gateway knows for the log (`audit.copies`).")]
    NotSigned,
    /// The log says now something else than before.
    #[error(
        "What was sent is not the history that is here: by its own signature the log was set back, or rewritten. The copy stays as it is."
    )]
    Contradicts,
    /// It has as many bytes as it may, or the disk is nearly full.
    #[error("There is no room for more of this copy: its `max_size` is reached, or the disk is nearly full.")]
    Full,
    /// It cannot be written now.
    #[error(
        "This copy cannot be written now: somebody else is writing it, or its folder cannot be used, which the log of this gateway says. Try again later."
    )]
    Unavailable,
}

impl CopyRefusal {
    /// Status and code.
    #[must_use]
    pub fn class(self) -> (StatusCode, &'static str) {
        match self {
            Self::Elsewhere { .. } => (StatusCode::CONFLICT, "copy_elsewhere"),
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "copy_malformed"),
            Self::NotSigned => (StatusCode::FORBIDDEN, "copy_not_signed"),
            Self::Contradicts => (StatusCode::UNPROCESSABLE_ENTITY, "copy_contradicts"),
            Self::Full => (StatusCode::INSUFFICIENT_STORAGE, "copy_full"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "copy_unavailable"),
        }
    }
}

/// All copies that are kept here.
#[derive(Debug, Default)]
pub(crate) struct Copies(Vec<Arc<Kept>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Kept {
    from: CopyFrom,
    /// Bodies that are read.
    reading: Semaphore,
    /// That it cannot be kept.
    failing: Seldom,
    /// One request at a time.
    state: Arc<tokio::sync::Mutex<State>>,
    /// Its alarm is on record, once for each run.
    told: Mutex<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Opened with the first request, and again after the disk said no.
    mirror: Option<Mirror>,
    bytes: u64,
    /// The day of its newest record.
    day: Option<Date>,
}

impl Copies {
    /// Those of the configuration.
    pub(crate) fn of(settings: &config::Audit) -> Self {
        Self(settings.copies.iter().map(|from| Arc::new(Kept::of(from.clone()))).collect())
    }

    /// The one that this address is of, if whoever asks may send it. Over the connection of somebody else nobody may.
    pub(crate) fn asked(&self, session: &Session, path: &str) -> Option<&Arc<Kept>> {
        let hash = path.strip_prefix(COPIES_PATH)?;
        let is_it = |kept: &&Arc<Kept>| kept.from.key.hash() == hash && kept.from.identity == session.peer.id;
        self.0.iter().find(is_it).filter(|_| session.relay().is_none())
    }
}

impl Kept {
    fn of(from: CopyFrom) -> Self {
        let (reading, failing) = (Semaphore::new(READING), Seldom::default());
        Self { from, reading, failing, state: Arc::default(), told: Mutex::default() }
    }

    /// Answers a request of who sends it.
    pub(crate) async fn answer(self: &Arc<Self>, gateway: &Gateway, request: Request<Incoming>) -> Response<Body> {
        let within = gateway.config.limits.receive.0;
        let answered = match *request.method() {
            Method::GET => self.size().await,
            Method::POST => self.take(request.into_body(), within).await,
            _ => {
                discard(request.into_body()).await;
                return response::error(&Error::Method("GET and POST"));
            }
        };
        let log = self.from.key.name();
        match answered {
            Ok(records) => {
                gateway.metrics.copy_kept(log, records, time::OffsetDateTime::now_utc().unix_timestamp());
                accepted(records)
            }
            Err(Refused { error, shown }) => {
                gateway.metrics.copy_refused(log, error.code());
                if let Some((has, shown)) = shown {
                    self.tell(&gateway.audit, &gateway.metrics, has, shown).await;
                }
                response::error(&error)
            }
        }
    }

    async fn size(self: &Arc<Self>) -> Result<u64, Refused> {
        let state = self.lock()?;
        self.blocking(state, |kept, state| Ok(kept.opened(state)?.size())).await
    }

    async fn take(self: &Arc<Self>, body: Incoming, within: Duration) -> Result<u64, Refused> {
        // Who is slow keeps nobody else from it.
        let Ok(_reading) = self.reading.try_acquire() else {
            discard(body).await;
            return Err(CopyRefusal::Unavailable.into());
        };
        let bytes = read_small(body, MAX_PUSH, within).await?;
        self.blocking(self.lock()?, move |kept, state| kept.accept(state, &bytes)).await
    }

    fn lock(&self) -> Result<OwnedMutexGuard<State>, Refused> {
        self.state.clone().try_lock_owned().map_err(|_| CopyRefusal::Unavailable.into())
    }

    /// The lock goes with the work, and not with whoever waits for it.
    async fn blocking(
        self: &Arc<Self>,
        mut state: OwnedMutexGuard<State>,
        work: impl FnOnce(&Self, &mut State) -> Result<u64, Refused> + Send + 'static,
    ) -> Result<u64, Refused> {
        let kept = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&kept, &mut state)).await;
        done.unwrap_or_else(|_| Err(CopyRefusal::Unavailable.into()))
    }

    fn opened<'a>(&self, state: &'a mut State) -> Result<&'a mut Mirror, Refused> {
        if state.mirror.is_none() {
            let (mirror, day) = self.open().map_err(|error| self.cannot(&error))?;
            (state.bytes, state.day) = (bytes_below(&self.from.dir, 0), day);
            state.mirror = Some(mirror);
        }
        state.mirror.as_mut().ok_or_else(|| CopyRefusal::Unavailable.into())
    }

    fn open(&self) -> Result<(Mirror, Option<Date>), LogError> {
        let CopyFrom { dir, key, .. } = &self.from;
        let mirror = Mirror::open(dir, key)?;
        // For those who read the folder; whoever checks it has the key from elsewhere.
        let public = dir.join("key.pub");
        if !public.exists() {
            let written = write_once(&public, format!("{key}\n").as_bytes());
            written.map_err(|error| LogError::Io { path: public, error })?;
        }
        let last = mirror.size().checked_sub(1).map(|last| mirror.files().entry(last)).transpose()?;
        Ok((mirror, last.and_then(|record| day_of(&record))))
    }

    fn accept(&self, state: &mut State, bytes: &[u8]) -> Result<u64, Refused> {
        let push = Push::parse(bytes)?;
        let has = self.opened(state)?.size();
        let size: u64 = push.entries.iter().map(|entry| entry.len() as u64 + BESIDE).sum();
        let is_full = state.bytes.saturating_add(size + BLOCK) > self.from.max_size || is_nearly_full(&self.from.dir);
        if is_full && !push.entries.is_empty() {
            return Err(CopyRefusal::Full.into());
        }
        let day = push.entries.first().and_then(|entry| day_of(entry));
        let ended = state.day.filter(|before| day.is_some_and(|day| day > *before)).filter(|_| push.from == has);
        let ended = ended.map(|ended| ended.to_string());
        let mirror = self.opened(state)?;
        match mirror.accept(&push, ended.as_deref()) {
            Ok(records) => {
                state.bytes += size + if ended.is_some() { BLOCK } else { 0 };
                state.day = push.entries.last().and_then(|entry| day_of(entry)).max(state.day);
                Ok(records)
            }
            Err(Refusal::Disk(error)) => {
                state.mirror = None;
                Err(self.cannot(&error))
            }
            Err(refusal) => {
                let shown = match &refusal {
                    Refusal::SetBack { shown: size, .. } | Refusal::Rewritten { size } => Some((has, *size)),
                    _ => None,
                };
                if shown.is_some() {
                    let is_rewritten = matches!(refusal, Refusal::Rewritten { .. });
                    keep_evidence(mirror, &self.from.dir.join("contradicted"), &push.checkpoint, is_rewritten);
                }
                Err(Refused { shown, ..refusal.into() })
            }
        }
    }

    fn cannot(&self, error: &LogError) -> Refused {
        if self.failing.is_due() {
            tracing::error!(log = self.from.key.name(), %error, "the copy of this log cannot be kept here");
        }
        CopyRefusal::Unavailable.into()
    }

    async fn tell(&self, audit: &AuditLog, metrics: &Metrics, has: u64, shown: u64) {
        let log = self.from.key.name();
        metrics.copy_contradicts(log);
        if std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), true) {
            return;
        }
        tracing::error!(
            log,
            has,
            shown,
            folder = %self.from.dir.display(),
            "ALARM: this log signs another history than the one of which a copy is here: it was set back or rewritten. The copy stays as it is; \
             `contradicted` in its folder has the checkpoint that shows it"
        );
        let (subject, records, from) = (Some(log.to_owned()), Some(has), Some(shown));
        let notice = Notice { what: "copied", subject, records, from, ..Notice::default() };
        if audit.notice(&notice).await.is_err() {
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = false;
        }
    }
}

/// What is answered, and what contradicts each other: records here, records by the log's signature.
#[derive(Debug)]
struct Refused {
    error: Error,
    shown: Option<(u64, u64)>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, shown: None }
    }
}

impl From<CopyRefusal> for Refused {
    fn from(refusal: CopyRefusal) -> Self {
        Error::Copy(refusal).into()
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Elsewhere { size } => CopyRefusal::Elsewhere { has: size },
            Refusal::Malformed(what) => CopyRefusal::Malformed(what),
            Refusal::NotSigned(_) => CopyRefusal::NotSigned,
            Refusal::SetBack { .. } | Refusal::Rewritten { .. } => CopyRefusal::Contradicts,
            Refusal::Disk(_) => CopyRefusal::Unavailable,
        }
        .into()
    }
}

fn accepted(records: u64) -> Response<Body> {
    let body = json!({ "records": records }).to_string();
    let mut response = Response::new(response::full(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Keeps what shows that a log was set back or rewritten. Two histories are signed by the same key and prove it; an older state is a beginning
/// of what is here, and proves nothing by itself. So the first is never replaced, and takes the place of the second.
fn keep_evidence(mirror: &mut Mirror, path: &Path, checkpoint: &[u8], is_rewritten: bool) {
    let there = match read_file(path, MAX_EVIDENCE) {
        Ok(there) => there,
        // Whatever it is, it is not ours to replace.
        Err(_) => return,
    };
    let mut is_older = |there: Vec<u8>| {
        let shown = Push { from: 0, entries: Vec::new(), checkpoint: there };
        matches!(mirror.accept(&shown, None), Err(Refusal::SetBack { .. }))
    };
    if there.is_none_or(|there| is_rewritten && is_older(there)) {
        // What cannot be kept is said anyway.
        let _said = write_once(path, checkpoint);
    }
}

/// Bytes that all files below a folder take, in whole blocks.
fn bytes_below(dir: &Path, depth: usize) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth < DEPTH => BLOCK + bytes_below(&entry.path(), depth + 1),
        Ok(metadata) => metadata.len().div_ceil(BLOCK) * BLOCK,
        Err(_) => 0,
    });
    bytes.sum()
}

fn is_nearly_full(dir: &Path) -> bool {
    let Ok(there) = rustix::fs::statvfs(dir) else { return false };
    let bytes = |blocks: u64| blocks.saturating_mul(there.f_frsize);
    is_low((bytes(there.f_bavail), bytes(there.f_blocks)), (there.f_favail, there.f_files))
}

/// Whether of the bytes or the files that a disk can have, free ones and all, so few are free that the own records need them. A file system
/// that counts no files has as many as it wants.
fn is_low((free, all): (u64, u64), (free_files, all_files): (u64, u64)) -> bool {
    free < (all / FREE_PART).min(FREE) || free_files < all_files / FREE_PART
}

#[cfg(test)]
mod tests {
    use postern_tlog::{Files, Log, SecretKey};

    use super::*;
    use crate::audit::Records;

    #[test]
    fn a_day_that_ends_leaves_its_checkpoint_in_the_copy_and_a_full_copy_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::parse(&SecretKey::generate("branch.example.org/audit/0123abcd").unwrap()).unwrap();
        let mut log = Log::open(&dir.path().join("log"), key.clone(), |_| false).unwrap();
        let identity = "spiffe://branch.example.org/one/gateway".parse().unwrap();
        let copy = dir.path().join("copy");
        let from = CopyFrom { identity, key: key.public().clone(), max_size: 128 << 10, dir: copy.clone() };
        let kept = Kept::of(from);
        let mut has = 0;
        for day in ["2026-11-01", "2026-11-02", "2026-11-03"] {
            // As after a restart: the day is known by the records.
            let mut state = State::default();
            let records = ["00:00:00Z", "23:59:59Z"].map(|time| format!("{{\"time\":\"{day}T{time}\"}}"));
            log.append(&records, false).unwrap();
            let newest = log.end_segment(day).unwrap();
            let push = Push::of(log.files(), &key, &newest, has, u64::MAX).unwrap();
            has = kept.accept(&mut state, &push.to_bytes()).unwrap();
        }
        let ends = Files::new(&copy).ends().unwrap();
        assert_eq!(ends, [("2026-11-01".to_owned(), 2), ("2026-11-02".to_owned(), 4)].into());
        let day = time::macros::date!(2026 - 11 - 02);
        let records = Records::in_folder(&copy);
        let numbers: Vec<u64> =
            records.of_days(Some(day), Some(day)).unwrap().map(|record| record.unwrap().index).collect();
        assert_eq!(numbers, [2, 3]);

        log.append(&vec!["x".repeat(40_000); 2], false).unwrap();
        let newest = log.checkpoint().unwrap();
        let push = Push::of(log.files(), &key, &newest, has, u64::MAX).unwrap();
        let mut state = State::default();
        let refused = kept.accept(&mut state, &push.to_bytes()).unwrap_err();
        assert!(matches!(refused.error, Error::Copy(CopyRefusal::Full)), "{refused:?}");
        let trusted = postern_tlog::Trusted { key: key.public(), later: &[], witnesses: &[] };
        let report = postern_tlog::verify(&Files::new(&copy), &trusted, |_, _| {}).unwrap();
        assert!(report.is_good() && report.size == 6 && report.kept == 2, "{report:?}");
    }

    #[test]
    fn a_disk_is_full_by_its_bytes_or_by_its_files() {
        let gib = 1_u64 << 30;
        assert!(!is_low((2 * gib, 100 * gib), (60, 1000)));
        assert!(is_low((gib - 1, 100 * gib), (60, 1000)) && is_low((2 * gib, 100 * gib), (49, 1000)));
        assert!(!is_low((gib, 2 * gib), (0, 0)), "it counts none");
    }

    #[test]
    fn files_are_counted_by_the_blocks_that_they_take() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        for name in ["a", "inner/b"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(bytes_below(dir.path(), 0), 3 * BLOCK);
    }

    #[test]
    fn two_histories_are_kept_and_an_older_state_never_takes_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::parse(&SecretKey::generate("branch.example.org/audit/0123abcd").unwrap()).unwrap();
        let mut log = Log::open(&dir.path().join("log"), key.clone(), |_| false).unwrap();
        let identity = "spiffe://branch.example.org/one/gateway".parse().unwrap();
        let copy = dir.path().join("copy");
        let from = CopyFrom { identity, key: key.public().clone(), max_size: 1 << 20, dir: copy.clone() };
        let (kept, mut state) = (Kept::of(from), State::default());
        log.append(&["{}"], false).unwrap();
        let older = log.checkpoint().unwrap();
        log.append(&["{}", "{}"], false).unwrap();
        let newest = log.checkpoint().unwrap();
        let push = Push::of(log.files(), &key, &newest, 0, u64::MAX).unwrap();
        kept.accept(&mut state, &push.to_bytes()).unwrap();
        let other = |name: &str| {
            let mut other = Log::open(&dir.path().join(name), key.clone(), |_| false).unwrap();
            other.append(&[name], false).unwrap();
            other.checkpoint().unwrap().bytes
        };
        let (first, second) = (other("first"), other("second"));
        let mut shown = |checkpoint: &[u8]| {
            let push = Push { from: 0, entries: Vec::new(), checkpoint: checkpoint.to_vec() };
            assert!(kept.accept(&mut state, &push.to_bytes()).is_err());
            std::fs::read(copy.join("contradicted")).unwrap()
        };
        assert_eq!(shown(&older.bytes), older.bytes);
        assert_eq!(shown(&first), first);
        for later in [&older.bytes, &second] {
            assert_eq!(shown(later), first);
        }
    }
}
