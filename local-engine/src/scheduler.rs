//! Who is worked on, and on how many tokens. Pure: no clock, no model, no memory; the worker asks, does, and reports.
//!
//! A sequence is a row of tokens, of which the first so many are computed. One that lacks a single token decodes: it is
//! in every step. One that lacks more prefills, in chunks, of which a step takes as many tokens as the worker's budget
//! allows: so a long prompt never holds up answers under way.
//!
//! Order: interactive requests before bulk ones, with a share for bulk so that it is never forgotten; then the identity
//! that got the fewest tokens so far (Sheng et al., "Fairness in Serving Large Language Models", 2024); then the order of
//! arrival. When memory runs out, the last in order gives way, is forgotten and later computed again, so the first in
//! order always goes on.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::origin::{Identity, Priority};

/// Names a sequence for as long as the engine runs.
pub(crate) type SequenceId = u64;

/// Of so many admissions for which bulk requests wait too, one is a bulk request's.
const BULK_SHARE: u64 = 8;

/// The bounds of the schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Sequences worked on at the same time.
    pub(crate) running: usize,
    /// Requests that wait.
    pub(crate) waiting: usize,
}

/// A sequence that is to be worked on.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: SequenceId,
    pub(crate) identity: Identity,
    pub(crate) priority: Priority,
    /// Tokens of the prompt, one or more.
    pub(crate) tokens: usize,
}

/// What a sequence does in a step: its next `count` tokens, one or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) id: SequenceId,
    pub(crate) count: usize,
    /// One token was lacking: the sequence generates.
    pub(crate) is_decode: bool,
}

/// No more requests may wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

#[derive(Debug)]
struct Entry {
    job: Job,
    /// Of the job's tokens.
    computed: usize,
    arrived: u64,
    /// When it last had a chunk; among equals, whoever waited longest is next.
    last_chunk: u64,
    was_preempted: bool,
}

/// Waiting and running sequences.
#[derive(Debug)]
pub(crate) struct Scheduler {
    bounds: Bounds,
    waiting: Vec<Entry>,
    running: Vec<Entry>,
    /// Tokens that each identity got; only of those that wait or run.
    served: HashMap<Identity, u64>,
    arrivals: u64,
    chunks: u64,
    /// Interactive requests admitted since a bulk request was, while one waited.
    passed_over: u64,
}

impl Scheduler {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            waiting: Vec::new(),
            running: Vec::new(),
            served: HashMap::new(),
            arrivals: 0,
            chunks: 0,
            passed_over: 0,
        }
    }

    /// Puts a sequence into the queue.
    pub(crate) fn enqueue(&mut self, job: Job) -> Result<(), QueueFull> {
        // What the next step will admit does not count as waiting, nor does what ran already.
        let new = self.waiting.iter().filter(|entry| !entry.was_preempted).count();
        if new >= self.bounds.waiting + self.free_slots() {
            return Err(QueueFull);
        }
        self.begin_account(&job.identity);
        self.arrivals += 1;
        self.waiting.push(Entry { job, computed: 0, arrived: self.arrivals, last_chunk: 0, was_preempted: false });
        Ok(())
    }

    /// The sequence that is to be admitted next, if a slot is free for it.
    pub(crate) fn candidate(&self) -> Option<SequenceId> {
        if self.free_slots() == 0 {
            return None;
        }
        self.next_waiting().map(|entry| entry.job.id)
    }

    /// Admits a sequence, of which the first `computed` tokens are in memory already.
    pub(crate) fn admit(&mut self, id: SequenceId, computed: usize) {
        let Some(at) = self.waiting.iter().position(|entry| entry.job.id == id) else { return };
        let mut entry = self.waiting.remove(at);
        let bulk_waits = self.waiting.iter().any(|entry| entry.job.priority == Priority::Bulk);
        match entry.job.priority {
            Priority::Interactive if bulk_waits => self.passed_over += 1,
            _ => self.passed_over = 0,
        }
        entry.computed = computed.min(entry.job.tokens.saturating_sub(1));
        self.running.push(entry);
    }

    /// A running sequence that should make room for whoever is next, since all slots are taken.
    pub(crate) fn in_the_way(&self) -> Option<SequenceId> {
        self.bulk_in_the_way().or_else(|| self.greedy_in_the_way())
    }

    /// The last sequence of the identity that has the most slots, if the next one to come has two fewer at least: so that
    /// nobody waits for the end of answers of somebody who has them all. It got fewer tokens, too, so it is next indeed.
    fn greedy_in_the_way(&self) -> Option<SequenceId> {
        let waiter = self.next_waiting().filter(|_| self.free_slots() == 0)?;
        let slots = |identity: &Identity| self.running.iter().filter(|entry| entry.job.identity == *identity).count();
        let most = self.running.iter().max_by_key(|entry| (slots(&entry.job.identity), entry.arrived))?;
        let (of_waiter, of_most) = (slots(&waiter.job.identity), slots(&most.job.identity));
        let is_next = self.served(waiter) < self.served(most) && waiter.job.priority <= most.job.priority;
        (of_waiter + 1 < of_most && is_next).then_some(most.job.id)
    }

    /// A running bulk sequence that should make room, since an interactive request waits; one in [`BULK_SHARE`] slots
    /// stays bulk's.
    fn bulk_in_the_way(&self) -> Option<SequenceId> {
        let interactive_waits = self.next_waiting().is_some_and(|entry| entry.job.priority == Priority::Interactive);
        let bulk = self.running.iter().filter(|entry| entry.job.priority == Priority::Bulk);
        let kept = (self.bounds.running as u64).div_ceil(BULK_SHARE) as usize;
        if self.free_slots() > 0 || !interactive_waits || bulk.clone().count() <= kept {
            return None;
        }
        bulk.max_by_key(|entry| entry.arrived).map(|entry| entry.job.id)
    }

    /// The next step's work, first in order first: every sequence that decodes, and at most `budget` tokens of those
    /// that prefill.
    pub(crate) fn plan(&mut self, budget: usize) -> Vec<Work> {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|at| self.running.get(*at).map(|entry| self.rank(entry)));
        let mut work = Vec::with_capacity(order.len());
        let mut prefilling = Vec::new();
        for at in order {
            let Some(entry) = self.running.get(at) else { continue };
            if entry.lacks() <= 1 {
                work.push(Work { id: entry.job.id, count: 1, is_decode: true });
            } else {
                prefilling.push(at);
            }
        }
        prefilling.sort_by_key(|at| self.running.get(*at).map(|entry| self.chunk_rank(entry)));
        let mut left = budget;
        for at in prefilling {
            let Some(entry) = self.running.get_mut(at).filter(|_| left > 0) else { break };
            let count = entry.lacks().min(left);
            left -= count;
            self.chunks += 1;
            entry.last_chunk = self.chunks;
            work.push(Work { id: entry.job.id, count, is_decode: false });
        }
        work
    }

    /// `count` more tokens of a sequence are computed.
    pub(crate) fn advance(&mut self, id: SequenceId, count: usize) {
        let Some(entry) = self.running.iter_mut().find(|entry| entry.job.id == id) else { return };
        entry.computed = (entry.computed + count).min(entry.job.tokens);
        if let Some(served) = self.served.get_mut(&entry.job.identity) {
            *served += count as u64;
        }
    }

    /// A token was drawn: the sequence is one longer.
    pub(crate) fn extend(&mut self, id: SequenceId) {
        if let Some(entry) = self.running.iter_mut().find(|entry| entry.job.id == id) {
            entry.job.tokens += 1;
        }
    }

    /// The running sequence that is last in order: who gives way when memory runs out.
    pub(crate) fn last(&self) -> Option<SequenceId> {
        self.running.iter().max_by_key(|entry| self.rank(entry)).map(|entry| entry.job.id)
    }

    /// Takes a running sequence's slot; all its tokens are to be computed again.
    pub(crate) fn preempt(&mut self, id: SequenceId) {
        let Some(at) = self.running.iter().position(|entry| entry.job.id == id) else { return };
        let entry = self.running.remove(at);
        self.waiting.push(Entry { computed: 0, last_chunk: 0, was_preempted: true, ..entry });
    }

    /// Forgets a sequence, waiting or running; its slot is free for the next step.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        let list =
            if self.running.iter().any(|entry| entry.job.id == id) { &mut self.running } else { &mut self.waiting };
        let Some(at) = list.iter().position(|entry| entry.job.id == id) else { return };
        let identity = list.remove(at).job.identity;
        if !self.entries().any(|entry| entry.job.identity == identity) {
            self.served.remove(&identity);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Running sequences that decode.
    pub(crate) fn decoding(&self) -> usize {
        self.running.iter().filter(|entry| entry.lacks() <= 1).count()
    }

    /// Tokens still to be prefilled, of running and waiting sequences: what a new request waits for.
    pub(crate) fn queued_prompt_tokens(&self) -> usize {
        self.entries().map(Entry::lacks).filter(|lacks| *lacks > 1).sum()
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.waiting.iter().chain(&self.running)
    }

    fn free_slots(&self) -> usize {
        self.bounds.running.saturating_sub(self.running.len())
    }

    /// Whoever comes while others are served begins with the least that any of them got: neither ahead of them for the
    /// time it was away, nor behind.
    fn begin_account(&mut self, identity: &Identity) {
        let least = self.served.values().min().copied().unwrap_or(0);
        self.served.entry(identity.clone()).or_insert(least);
    }

    fn served(&self, entry: &Entry) -> u64 {
        self.served.get(&entry.job.identity).copied().unwrap_or(0)
    }

    fn next_waiting(&self) -> Option<&Entry> {
        let bulk_first = self.passed_over + 1 >= BULK_SHARE;
        let rank = |entry: &&Entry| {
            let behind = (entry.job.priority == Priority::Bulk) != bulk_first;
            (behind, self.served(entry), entry.arrived)
        };
        self.waiting.iter().min_by_key(rank)
    }

    /// Who keeps its memory: not by tokens served, which would change with every step and let two take turns for ever.
    fn rank(&self, entry: &Entry) -> (Priority, u64) {
        (entry.job.priority, entry.arrived)
    }

    fn chunk_rank(&self, entry: &Entry) -> (Priority, u64, u64, Reverse<bool>) {
        (entry.job.priority, self.served(entry), entry.last_chunk, Reverse(entry.was_preempted))
    }
}

impl Entry {
    fn lacks(&self) -> usize {
        self.job.tokens.saturating_sub(self.computed)
    }
}

#[cfg(test)]
mod tests;
