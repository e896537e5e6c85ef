//! What a policy may ask of the host: log, configuration, recognisers, counters, numbers, time. No file, no network, and
//! nothing that lasts before [`Effects`] are committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wasmtime::{ResourceLimiter, Trap, UpdateDeadline};

use crate::answer::MAX_NAME_BYTES;
use crate::bindings::postern::policy::{
    clock, config, counters as wit_counters, detectors as wit_detectors, log, metrics as wit_metrics, random, types,
};
use crate::counters::{Counters, MAX_TTL, Scope};
use crate::detectors::work::Work;
use crate::detectors::{self, Kind, Match};
use crate::effects::{Add, Effects, MAX_COUNTERS, MAX_LOG_LINES, MAX_NUMBERS, Number};
use crate::error::printable;
use crate::metrics::PolicyMetrics;
use crate::ticker::TICK;

/// Bytes that a guest may hand to the host at once, in an answer or an argument. Guests can name the same bytes many times
/// over, so their own memory is no bound on it.
pub(crate) const MAX_HANDED_BYTES: usize = 32 << 20;

/// Ticks (of a millisecond) that a guest may see before its deadline counts.
const FAIR_TICKS: u32 = 5;

const MAX_LOG_BYTES: usize = 1024;

/// Longer texts are searched on a thread of their own, so that other requests go on meanwhile.
const INLINE_TEXT_BYTES: usize = 64 << 10;

/// Bytes that the host searches in a tick; so many count as one that the guest has seen.
const BYTES_PER_TICK: usize = 64 << 10;

/// Bytes of text that a guest may have searched in one call.
const MAX_SEARCHED_BYTES: usize = 64 << 20;

/// What a policy is, for each of its calls.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: Arc<str>,
    /// As JSON text.
    pub(crate) config: Arc<str>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) metrics: Arc<PolicyMetrics>,
}

/// What a call belongs to.
#[derive(Debug, Clone, Copy)]
pub struct CallContext<'a> {
    /// The tenant of the request; no counter is seen by another.
    pub tenant: &'a str,
    /// The label of the request so far; no counter is seen under another.
    pub label: &'a str,
    /// `random` follows from it and the policy's name: give it again to repeat a call exactly.
    pub seed: u64,
}

/// Everything that belongs to one call; it is dropped with the instance.
#[derive(Debug)]
pub(crate) struct Call {
    owner: Arc<Owner>,
    /// It has seen text, so what it writes must not be read by people.
    sees_text: bool,
    time_ms: u64,
    random: u64,
    deadline: Instant,
    ticks: u32,
    searched_bytes: usize,
    searches: Arc<Semaphore>,
    memory: Memory,
    scope: Scope,
    lines: Vec<(tracing::Level, String)>,
    adds: Vec<Add>,
    numbers: Vec<Number>,
}

/// Counts what a guest takes.
#[derive(Debug)]
struct Memory {
    limit_bytes: usize,
    exceeded: bool,
}

impl Call {
    pub(crate) fn new(owner: Arc<Owner>, context: &CallContext<'_>, searches: Arc<Semaphore>, sees_text: bool) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            sees_text,
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            random: seed(context.seed, &owner.name),
            deadline: Instant::now() + owner.limits.deadline,
            ticks: 0,
            searched_bytes: 0,
            searches,
            memory: Memory { limit_bytes: owner.limits.memory_bytes, exceeded: false },
            scope: Scope { tenant: context.tenant.to_owned(), label: context.label.to_owned() },
            lines: Vec::new(),
            adds: Vec::new(),
            numbers: Vec::new(),
            owner,
        }
    }

    /// What it wrote, to be committed or dropped.
    pub(crate) fn into_effects(self) -> Effects {
        Effects {
            policy: Arc::clone(&self.owner.name),
            lines: self.lines,
            adds: self.adds,
            numbers: self.numbers,
            counters: Arc::clone(&self.owner.counters),
            metrics: Arc::clone(&self.owner.metrics),
            scope: self.scope,
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
        if !self.sees_text && self.lines.len() < MAX_LOG_LINES {
            let level = match level {
                log::Level::Debug => tracing::Level::DEBUG,
                log::Level::Info => tracing::Level::INFO,
                log::Level::Warn => tracing::Level::WARN,
                log::Level::Error => tracing::Level::ERROR,
            };
            self.lines.push((level, printable(&message, MAX_LOG_BYTES)));
        }
        Ok(())
    }
}

impl config::Host for Call {
    fn get(&mut self) -> wasmtime::Result<String> {
        Ok(self.owner.config.as_ref().to_owned())
    }
}

impl wit_counters::Host for Call {
    fn add(&mut self, key: String, by: i64, ttl_seconds: u32) -> wasmtime::Result<Result<i64, String>> {
        let ttl = Duration::from_secs(u64::from(ttl_seconds));
        if key.len() > MAX_NAME_BYTES {
            return Ok(Err(format!("a key of {} bytes, and {MAX_NAME_BYTES} is the most", key.len())));
        }
        if ttl.is_zero() || ttl > MAX_TTL {
            return Ok(Err(format!("a life of {ttl_seconds} s; it must be 1 to {}", MAX_TTL.as_secs())));
        }
        let known = self.adds.iter().any(|add| add.key == key);
        if !known && self.adds.len() >= MAX_COUNTERS {
            return Ok(Err(format!("more than {MAX_COUNTERS} counters in one call")));
        }
        if !known && !self.owner.counters.has_room(&self.scope, &key) {
            return Ok(Err("no room for another counter".to_owned()));
        }
        match self.adds.iter_mut().find(|add| add.key == key) {
            Some(add) => add.by = add.by.saturating_add(by),
            None => self.adds.push(Add { key: key.clone(), by, ttl }),
        }
        Ok(Ok(self.counter(&key)))
    }

    fn get(&mut self, key: String) -> wasmtime::Result<i64> {
        Ok(self.counter(&key))
    }
}

impl Call {
    /// What others have written, and what this call did.
    fn counter(&self, key: &str) -> i64 {
        let own = self.adds.iter().find(|add| add.key == key).map_or(0, |add| add.by);
        self.owner.counters.get(&self.scope, key).saturating_add(own)
    }

    fn number(&mut self, number: Number) {
        if !self.sees_text && self.numbers.len() < MAX_NUMBERS {
            self.numbers.push(number);
        }
    }
}

impl wit_metrics::Host for Call {
    fn count(&mut self, name: String, by: u32) -> wasmtime::Result<()> {
        self.number(Number::Count(name, by));
        Ok(())
    }

    fn set(&mut self, name: String, value: f64) -> wasmtime::Result<()> {
        self.number(Number::Value(name, value));
        Ok(())
    }
}

impl random::Host for Call {
    /// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    fn next(&mut self) -> wasmtime::Result<u64> {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Ok(mixed(self.random))
    }
}

/// Policies that are asked about one request get different numbers.
fn seed(request: u64, policy: &str) -> u64 {
    policy.bytes().fold(request, |state, byte| mixed(state ^ u64::from(byte)))
}

fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
