//! What the gateway hands records to, and what writes them.

mod lock;
mod queue;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use postern_tlog::{Files, SecretKey, Signed};
use tokio::sync::{oneshot, watch};

use self::queue::{Line, Pace, Room, Sender};
use self::writer::Writer;
use super::line::{Action, Notice, line};
use super::{Intent, Outcome, RecordId};
use crate::config;
use crate::error::Error;
use crate::route::shadow::Difference;
use crate::telemetry::metrics::Metrics;

/// Lines that wait for the disk. When it is full, requests wait, and then are refused.
const QUEUE: usize = 16_384;
/// How long a request waits for a place in the queue.
const PLACE_WITHIN: Duration = Duration::from_secs(5);

/// Appends records.
#[derive(Debug, Clone)]
pub struct AuditLog {
    /// Let go of before the queue is: when that ends, so does the log.
    writer: Arc<Mutex<Writer>>,
    queue: Arc<Sender>,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    /// Where the lowest label is answered without a record rather than refused.
    spares_lowest: bool,
    source: Arc<Source>,
}

/// What others need of the log who read it while it is written.
#[derive(Debug)]
struct Source {
    files: Files,
    key: SecretKey,
    checkpoints: watch::Receiver<Option<Arc<Signed>>>,
}

/// What the writer and those who write through it know of each other.
#[derive(Debug)]
struct State {
    /// False while the disk refuses lines.
    healthy: AtomicBool,
    /// Writing takes less time than having it done.
    is_quick: AtomicBool,
    /// Answers without a record, which no record tells of yet.
    unrecorded: AtomicU64,
}

impl State {
    fn new() -> Self {
        Self { healthy: AtomicBool::new(true), is_quick: AtomicBool::new(false), unrecorded: AtomicU64::new(0) }
    }
}

/// A place in the queue for an outcome: it can be written without waiting, even while a request is torn down.
#[derive(Debug, Default)]
pub struct Place {
    room: Option<(Room, Arc<Sender>)>,
    is_recorded: bool,
    /// An intent tells of the request.
    has_intent: bool,
    /// Tells when an outcome is written without which nothing would tell of the request.
    written: Option<oneshot::Receiver<()>>,
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
    /// Opens the log of a trust domain and starts the writer; `configuration` is the digest that the first record has, and whether the gateway is offline. A record
    /// that a crash cut short is removed: it was never acknowledged, so nothing left because of it; requests that were left without
    /// an outcome get one.
    ///
    /// # Errors
    /// The log cannot be read or written, or is not what its checkpoint says.
    pub fn open(
        settings: &config::Audit,
        (domain, configuration, offline): (&str, String, bool),
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<(Self, Flushed)> {
        let mut writer = Writer::open(settings, domain).with_context(|| settings.dir.display().to_string())?;
        let closed = writer.begin(configuration, offline)?;
        if closed > 0 {
            tracing::warn!(
                requests = closed,
                "the last gateway ended while requests were under way; their records say `interrupted`"
            );
        }
        let source = Arc::new(writer.source());
        let (queue, lines) = queue::queue(QUEUE);
        let state = Arc::new(State::new());
        let (ended, flushed) = std::sync::mpsc::sync_channel(1);
        let writer = Arc::new(Mutex::new(writer));
        let shared = (writer.clone(), state.clone(), metrics.clone());
        std::thread::Builder::new().name("audit".into()).spawn(move || {
            let (writer, state, metrics) = shared;
            Writer::run(&writer, &lines, &state, &metrics);
            drop(writer);
            // Nobody may wait for it.
            let _unheard = ended.send(());
        })?;
        let spares_lowest = settings.unwritable == config::file::Unwritable::Public;
        Ok((Self { writer, queue: Arc::new(queue), state, metrics, spares_lowest, source }, Flushed(flushed)))
    }

    /// False while the disk refuses lines.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.state.healthy.load(Ordering::Relaxed)
    }

    /// Whether requests with the lowest label are answered while nothing can be recorded.
    #[must_use]
    pub fn spares_lowest(&self) -> bool {
        self.spares_lowest
    }

    /// The newest checkpoint, and each that is signed.
    pub(crate) fn checkpoints(&self) -> watch::Receiver<Option<Arc<Signed>>> {
        self.source.checkpoints.clone()
    }

    /// Its files, to be read.
    pub(crate) fn files(&self) -> &Files {
        &self.source.files
    }

    /// The key that signs it.
    pub(crate) fn key(&self) -> &SecretKey {
        &self.source.key
    }

    /// Reserves the place of an outcome, before anything is done that will have one.
    ///
    /// # Errors
    /// The log is full or not healthy.
    pub async fn place(&self) -> Result<Place, Error> {
        if self.is_healthy()
            && let Ok(room) = self.room().await
        {
            return Ok(Place { room: Some((room, self.queue.clone())), is_recorded: true, ..Place::default() });
        }
        if self.spares_lowest { Ok(Place::default()) } else { Err(Error::RecordUnavailable) }
    }

    /// Writes an intent. With `durable`, waits until it has reached the disk, or with `sync: interval` the kernel. `is_lowest`: its label
    /// is the lowest, and it may do without, where that is configured.
    ///
    /// # Errors
    /// It could not be written in time.
    pub async fn intent(
        &self,
        (record, place): (RecordId, &mut Place),
        intent: &Intent<'_>,
        (durable, is_lowest): (bool, bool),
    ) -> Result<(), Error> {
        let written = if place.is_recorded {
            self.write(line(record, "intent", intent), durable).await
        } else {
            Err(Error::RecordUnavailable)
        };
        place.has_intent = written.is_ok();
        if written.is_err() && is_lowest && self.spares_lowest {
            // Either both or none, or a reader would take it for one that was interrupted.
            *place = Place::default();
            self.state.unrecorded.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        written
    }

    /// Writes what somebody did with the gateway, and waits until it has reached the disk.
    ///
    /// # Errors
    /// It could not be written in time.
    pub(crate) async fn action(&self, record: RecordId, action: &Action) -> Result<(), Error> {
        self.write(line(record, "action", action), true).await
    }

    /// Writes what the log has to say about itself, and waits until it has reached the disk.
    ///
    /// # Errors
    /// It could not be written in time.
    pub(super) async fn notice(&self, notice: &Notice) -> Result<(), Error> {
        self.write(line(RecordId::new(), "notice", notice), true).await
    }

    /// Writes what a shadow would have changed, if there is room in the queue: nothing waits for it.
    pub fn shadow(&self, record: RecordId, difference: &Difference) {
        if let Some(room) = self.queue.room_now() {
            self.queue.send(Line { bytes: line(record, "shadow", difference), pace: Pace::Lingers, _room: room });
        }
    }

    async fn write(&self, bytes: Vec<u8>, durable: bool) -> Result<(), Error> {
        if !self.is_healthy() {
            return Err(Error::RecordUnavailable);
        }
        let room = self.room().await?;
        if !durable {
            self.queue.send(Line { bytes, pace: Pace::AtOnce, _room: room });
            return Ok(());
        }
        let (sender, receiver) = oneshot::channel();
        self.queue.send(Line { bytes, pace: Pace::Before(sender), _room: room });
        if self.queue.has_many() {
            // Whoever else is ready on this worker comes first, and is written along.
            tokio::task::yield_now().await;
        }
        if !self.write_here() {
            self.queue.call();
        }
        let written = tokio::time::timeout(PLACE_WITHIN, receiver).await;
        written.ok().and_then(Result::ok).ok_or(Error::RecordUnavailable)
    }

    /// Writes what there is, where that is quicker than to have the writer woken for it. False: it is for the writer.
    fn write_here(&self) -> bool {
        if !self.state.is_quick.load(Ordering::Relaxed) {
            return false;
        }
        let Ok(mut writer) = self.writer.try_lock() else { return false };
        // What takes longer is done by the writer's thread.
        if writer.has_day_to_end() {
            return false;
        }
        let batch = self.queue.take();
        // Somebody else took it along.
        if batch.is_empty() {
            return true;
        }
        if let Err(batch) = writer.write_once(batch, &self.state, &self.metrics) {
            self.queue.put_back(batch);
        }
        true
    }

    async fn room(&self) -> Result<Room, Error> {
        // Without a timer where it need not wait.
        if let Some(room) = self.queue.room_now() {
            return Ok(room);
        }
        let room = tokio::time::timeout(PLACE_WITHIN, self.queue.room()).await;
        room.ok().flatten().ok_or(Error::RecordUnavailable)
    }
}

impl Place {
    /// Writes the outcome; the second call does nothing.
    pub fn outcome(&mut self, record: RecordId, outcome: &Outcome) {
        if let Some((room, queue)) = self.room.take() {
            let pace = if self.has_intent {
                Pace::Lingers
            } else {
                let (sender, receiver) = oneshot::channel();
                self.written = Some(receiver);
                Pace::After(sender)
            };
            queue.send(Line { bytes: line(record, "outcome", outcome), pace, _room: room });
        }
    }

    /// Waits until the outcome is written, if nothing else tells of the request, for as long as for a place at most: then it is known,
    /// however this process ends.
    pub async fn written(&mut self) {
        if let Some(written) = self.written.take() {
            let _in_time = tokio::time::timeout(PLACE_WITHIN, written).await;
        }
    }
}
