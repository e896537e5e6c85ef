//! What a policy may ask of the host: log, configuration, recognisers, time. No file, no network, nothing that lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wasmtime::{ResourceLimiter, Trap, UpdateDeadline};

use crate::bindings::postern::policy::{clock, config, detectors as wit_detectors, log, types};
use crate::detectors::work::Work;
use crate::detectors::{self, Kind, Match};
use crate::error::printable;
use crate::ticker::TICK;

/// Bytes that a guest may hand to the host at once, in an answer or an argument. Guests can name the same bytes many times
/// over, so their own memory is no bound on it.
pub(crate) const MAX_HANDED_BYTES: usize = 32 << 20;

/// Ticks (of a millisecond) that a guest may see before its deadline counts.
const FAIR_TICKS: u32 = 5;

const MAX_LOG_LINES: u32 = 32;
const MAX_LOG_BYTES: usize = 1024;

/// Longer texts are searched on a thread of their own, so that other requests go on meanwhile.
const INLINE_TEXT_BYTES: usize = 64 << 10;

/// Bytes that the host searches in a tick; so many count as one that the guest has seen.
const BYTES_PER_TICK: usize = 64 << 10;

/// Bytes of text that a guest may have searched in one call.
const MAX_SEARCHED_BYTES: usize = 64 << 20;

/// Everything that belongs to one call; it is dropped with the instance.
#[derive(Debug)]
pub(crate) struct Call {
    policy: Arc<str>,
    config: Arc<str>,
    /// A plugin that has seen text must not write to the log.
    may_log: bool,
    lines: u32,
    time_ms: u64,
    deadline: Instant,
    ticks: u32,
    searched_bytes: usize,
    searches: Arc<Semaphore>,
    memory: Memory,
}

/// Counts what a guest takes.
#[derive(Debug)]
struct Memory {
    limit_bytes: usize,
    exceeded: bool,
}

impl Call {
    pub(crate) fn new(
        policy: Arc<str>,
        config: Arc<str>,
        limits: Limits,
        searches: Arc<Semaphore>,
        may_log: bool,
    ) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            policy,
            config,
            may_log,
            lines: 0,
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            deadline: Instant::now() + limits.deadline,
            ticks: 0,
            searched_bytes: 0,
            searches,
            memory: Memory { limit_bytes: limits.memory_bytes, exceeded: false },
        }
    }

    pub(crate) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }

    pub(crate) fn wanted_too_much_memory(&self) -> bool {
        self.memory.exceeded
    }

    /// Called by the guest's own code when the epoch has advanced.
    pub(crate) fn at_tick(&mut self) -> UpdateDeadline {
        self.ticks = self.ticks.saturating_add(1);
        if self.is_late() { UpdateDeadline::Interrupt } else { UpdateDeadline::Yield(1) }
    }

    fn is_late(&self) -> bool {
        // A machine under load may stop our thread for longer than the deadline, and a guest that needs microseconds would be
        // blamed. Ticks are only seen by code that runs: whoever saw a few had its time.
        self.ticks >= FAIR_TICKS && Instant::now() >= self.deadline
    }

    /// What the host does for a guest is time of the guest.
    fn charge(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.ticks = self.ticks.saturating_add(u32::try_from(bytes / BYTES_PER_TICK).unwrap_or(u32::MAX));
        self.searched_bytes = self.searched_bytes.saturating_add(bytes);
        if self.is_late() || self.searched_bytes > MAX_SEARCHED_BYTES { Err(Trap::Interrupt.into()) } else { Ok(()) }
    }

    /// Until the deadline, or for as long as the first ticks in any case.
    async fn search(&self, kinds: Vec<Kind>, text: String) -> wasmtime::Result<Vec<Match>> {
        let is_short = text.len() <= INLINE_TEXT_BYTES;
        let end = self.deadline.max(Instant::now() + TICK * FAIR_TICKS);
        let given_up = GiveUp::default();
        let is_given_up = Arc::clone(&given_up.0);
        let is_late = move || is_given_up.load(Ordering::Relaxed) || Instant::now() >= end;
        let search = move || {
            let found = detectors::find_within(&kinds, &text, &mut Work::until(&is_late));
            found.map(detectors::disjoint).ok_or(Trap::Interrupt)
        };
        if is_short || Handle::try_current().is_err() {
            return Ok(search()?);
        }
        let search = async {
            let room = Arc::clone(&self.searches).acquire_owned().await.map_err(|_| Trap::Interrupt)?;
            let search = tokio::task::spawn_blocking(move || {
                let _room = room;
                search()
            });
            search.await.map_err(|_| Trap::Interrupt)?
        };
        Ok(tokio::time::timeout_at(end.into(), search).await.map_err(|_| Trap::Interrupt)??)
    }
}

/// Ends a search that nobody waits for any more.
#[derive(Debug, Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What one call may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) deadline: Duration,
    pub(crate) memory_bytes: usize,
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let fits = desired <= self.limit_bytes;
        self.exceeded |= !fits;
        Ok(fits)
    }

    fn table_growing(&mut self, _current: usize, _desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        // The pool bounds every table.
        Ok(true)
    }
}

impl types::Host for Call {}

impl log::Host for Call {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        self.lines = self.lines.saturating_add(1);
        if !self.may_log || self.lines > MAX_LOG_LINES {
            return Ok(());
        }
        let (policy, message) = (&*self.policy, printable(&message, MAX_LOG_BYTES));
        match level {
            log::Level::Debug => tracing::debug!(target: "postern::policy", policy, "{message}"),
            log::Level::Info => tracing::info!(target: "postern::policy", policy, "{message}"),
            log::Level::Warn => tracing::warn!(target: "postern::policy", policy, "{message}"),
            log::Level::Error => tracing::error!(target: "postern::policy", policy, "{message}"),
        }
        Ok(())
    }
}

impl config::Host for Call {
    fn get(&mut self) -> wasmtime::Result<String> {
        Ok(self.config.as_ref().to_owned())
    }
}

impl clock::Host for Call {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.time_ms)
    }
}

impl wit_detectors::Host for Call {
    async fn find(
        &mut self,
        kinds: Vec<String>,
        text: String,
    ) -> wasmtime::Result<Result<Vec<wit_detectors::Hit>, String>> {
        self.charge(text.len())?;
        let known =
            |name: &String| Kind::from_name(name).ok_or_else(|| format!("unknown kind `{}`", printable(name, 64)));
        match kinds.iter().map(known).collect() {
            Ok(kinds) => Ok(self.search(kinds, text).await?.into_iter().map(hit).collect()),
            Err(unknown) => Ok(Err(unknown)),
        }
    }
}

fn hit(found: Match) -> Result<wit_detectors::Hit, String> {
    let byte = |at: usize| u32::try_from(at).map_err(|_| "the text is longer than 4 GiB".to_owned());
    Ok(wit_detectors::Hit { start: byte(found.start)?, end: byte(found.end)?, kind: found.kind.name().to_owned() })
}
