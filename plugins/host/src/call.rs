//! One call of a policy, as the host sees it: what it may take, what it took, and what it wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wasmtime::{ResourceLimiter, Trap, UpdateDeadline};

use crate::counters::{Counters, Scope};
use crate::detectors::work::Work;
use crate::detectors::{self, Kind, Match};
use crate::effects::{Add, Effects, MAX_LOG_LINES, MAX_NUMBERS, Number};
use crate::error::printable;
use crate::metrics::PolicyMetrics;
use crate::ticker::TICK;

/// Bytes that a guest may hand to the host at once, in an answer or an argument. Guests can name the same bytes many times
/// over, so their own memory is no bound on it.
pub(crate) const MAX_HANDED_BYTES: usize = 32 << 20;

/// Ticks (of a millisecond) that a guest may see before its deadline counts.
const FAIR_TICKS: u32 = 5;

pub(crate) const MAX_LOG_BYTES: usize = 1024;

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

/// What one call may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) deadline: Duration,
    pub(crate) memory_bytes: usize,
    pub(crate) table_elements: usize,
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
    /// What `clock` says, in milliseconds since 1970-01-01 UTC; none: the time at the start of the call.
    pub time_ms: Option<u64>,
}

/// For calls about no request.
pub(crate) const TRIAL: CallContext<'static> = CallContext { tenant: "", label: "", seed: 0, time_ms: None };

/// What a guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It is made ready, for this call or for all of them: it must not depend on a request, nor leave anything but its memory.
    Start,
    /// It answers.
    Step,
}

/// Where a guest prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    Errors,
}

/// Everything that belongs to one call; it is dropped with the instance.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) owner: Arc<Owner>,
    pub(crate) phase: Phase,
    /// Handles of the host that the guest holds.
    pub(crate) handles: u32,
    /// It has seen text, so what it writes must not be read by people.
    sees_text: bool,
    pub(crate) time_ms: u64,
    random: u64,
    deadline: Instant,
    ticks: u32,
    searched_bytes: usize,
    searches: Arc<Semaphore>,
    taken: Taken,
    pub(crate) scope: Scope,
    lines: Vec<(tracing::Level, String)>,
    /// Lines that it prints, and has not ended.
    printed: [Vec<u8>; 2],
    pub(crate) adds: Vec<Add>,
    numbers: Vec<(String, Number)>,
}

/// What a guest takes of memories and tables.
#[derive(Debug)]
struct Taken {
    limits: Limits,
    bytes: usize,
    /// The last growth of a memory or table, in case that it fails.
    grown: usize,
    elements: usize,
    exceeded: bool,
}

impl Call {
    pub(crate) fn new(owner: Arc<Owner>, context: &CallContext<'_>, searches: Arc<Semaphore>, sees_text: bool) -> Self {
        let limits = owner.limits;
        Self {
            phase: Phase::Step,
            handles: 0,
            sees_text,
            time_ms: context.time_ms.unwrap_or_else(now_ms),
            random: seed(context.seed, &owner.name),
            deadline: Instant::now() + limits.deadline,
            ticks: 0,
            searched_bytes: 0,
            searches,
            taken: Taken { limits, bytes: 0, grown: 0, elements: 0, exceeded: false },
            scope: Scope { tenant: context.tenant.to_owned(), label: context.label.to_owned() },
            lines: Vec::new(),
            printed: [Vec::new(), Vec::new()],
            adds: Vec::new(),
            numbers: Vec::new(),
            owner,
        }
    }

    /// From here on until [`answer`](Self::answer), it is made ready: with the same time and the same chance at every start,
    /// so that it leaves the same memory, which is then found in the cache.
    pub(crate) fn start(&mut self) {
        self.phase = Phase::Start;
        self.time_ms = 0;
        self.random = seed(TRIAL.seed, &self.owner.name);
    }

    /// It is ready. What it logged meanwhile was about its configuration, and would be written with every call.
    pub(crate) fn answer(&mut self, context: &CallContext<'_>) {
        self.phase = Phase::Step;
        self.time_ms = context.time_ms.unwrap_or_else(now_ms);
        self.random = seed(context.seed, &self.owner.name);
        self.lines.clear();
        self.printed = [Vec::new(), Vec::new()];
    }

    pub(crate) fn end_after(&mut self, deadline: Duration) {
        self.deadline = Instant::now() + deadline;
    }

    /// What it wrote, to be committed or dropped.
    pub(crate) fn into_effects(mut self) -> Effects {
        for stream in [Stream::Output, Stream::Errors] {
            if !self.printing(stream).is_empty() {
                self.print(stream, [b'\n']);
            }
        }
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
        &mut self.taken
    }

    pub(crate) fn wanted_too_much_memory(&self) -> bool {
        self.taken.exceeded
    }

    /// Bytes of all its memories; they never shrink.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.taken.bytes
    }

    /// A line for the log, where what it writes may be read by people.
    pub(crate) fn log(&mut self, level: tracing::Level, message: &str) {
        if !self.sees_text && self.lines.len() < MAX_LOG_LINES {
            self.lines.push((level, printable(message, MAX_LOG_BYTES)));
        }
    }

    /// Prints, by lines, to where log lines go.
    pub(crate) fn print(&mut self, stream: Stream, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            let line = self.printing(stream);
            if byte == b'\n' {
                let line = std::mem::take(line);
                let level = if stream == Stream::Output { tracing::Level::INFO } else { tracing::Level::WARN };
                self.log(level, &String::from_utf8_lossy(&line));
            } else if line.len() < MAX_LOG_BYTES {
                line.push(byte);
            }
        }
    }

    fn printing(&mut self, stream: Stream) -> &mut Vec<u8> {
        let [output, errors] = &mut self.printed;
        if stream == Stream::Output { output } else { errors }
    }

    /// The value of a counter: what others have written, and what this call did.
    pub(crate) fn counter(&self, key: &str) -> i64 {
        let own = self.adds.iter().find(|add| add.key == key).map_or(0, |add| add.by);
        self.owner.counters.get(&self.scope, key).saturating_add(own)
    }

    pub(crate) fn number(&mut self, name: String, number: Number) {
        let is_shown = !self.sees_text && self.phase == Phase::Step && self.owner.metrics.has(&name);
        if is_shown && self.numbers.len() < MAX_NUMBERS {
            self.numbers.push((name, number));
        }
    }

    /// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    pub(crate) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.random)
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
    pub(crate) fn charge(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.ticks = self.ticks.saturating_add(u32::try_from(bytes / BYTES_PER_TICK).unwrap_or(u32::MAX));
        self.searched_bytes = self.searched_bytes.saturating_add(bytes);
        if self.is_late() || self.searched_bytes > MAX_SEARCHED_BYTES { Err(Trap::Interrupt.into()) } else { Ok(()) }
    }

    /// Until the deadline, or for as long as the first ticks in any case.
    pub(crate) async fn search(&self, kinds: Vec<Kind>, text: String) -> wasmtime::Result<Vec<Match>> {
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

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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

/// Ends a search that nobody waits for any more.
#[derive(Debug, Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Taken {
    /// The new total, if what grows from `current` to `desired` keeps it within `limit`.
    fn grow(&mut self, total: usize, limit: usize, current: usize, desired: usize) -> Option<usize> {
        let grown = desired.saturating_sub(current);
        let total = total.saturating_add(grown);
        let fits = total <= limit;
        self.grown = if fits { grown } else { 0 };
        self.exceeded |= !fits;
        fits.then_some(total)
    }
}

impl ResourceLimiter for Taken {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grown = self.grow(self.bytes, self.limits.memory_bytes, current, desired);
        self.bytes = grown.unwrap_or(self.bytes);
        Ok(grown.is_some())
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.bytes = self.bytes.saturating_sub(std::mem::take(&mut self.grown));
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let grown = self.grow(self.elements, self.limits.table_elements, current, desired);
        self.elements = grown.unwrap_or(self.elements);
        Ok(grown.is_some())
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.elements = self.elements.saturating_sub(std::mem::take(&mut self.grown));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_and_all_tables_of_a_call_are_counted_together() {
        let limits = Limits { deadline: Duration::from_secs(1), memory_bytes: 100, table_elements: 10 };
        let mut taken = Taken { limits, bytes: 0, grown: 0, elements: 0, exceeded: false };
        assert!(taken.memory_growing(0, 40, None).unwrap());
        assert!(taken.memory_growing(0, 40, None).unwrap(), "another memory");
        assert!(taken.table_growing(0, 10, None).unwrap());
        assert!(!taken.exceeded);
        assert!(!taken.memory_growing(40, 61, None).unwrap(), "40 and 61 are more than 100");
        assert!(taken.exceeded);
        taken.memory_grow_failed(wasmtime::Error::msg("refused")).unwrap();
        assert_eq!(taken.bytes, 80);
        assert!(taken.memory_growing(40, 60, None).unwrap());
        taken.memory_grow_failed(wasmtime::Error::msg("the memory has a maximum of its own")).unwrap();
        assert_eq!((taken.bytes, taken.elements), (80, 10));
        assert!(!taken.table_growing(10, 11, None).unwrap());
    }
}
