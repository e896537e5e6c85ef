//! What the next step works on. Pure: no clock, no model, no channel.
//!
//! Requests are admitted in order of arrival, at every step, as long as a slot and the cache memory for their longest
//! possible end are free: so a sequence that runs never has to give way. A step takes one token of every sequence
//! that generates, and one chunk of ONE sequence that prefills: the chunk bounds how long the others wait. Chunks
//! have fixed borders, so that what is computed for a sequence does not depend on its company.

use std::collections::VecDeque;
use std::ops::Range;

/// Names a sequence for as long as the engine runs.
pub(crate) type SequenceId = u64;

/// Tokens of one prefill chunk.
pub(crate) const PREFILL_CHUNK_TOKENS: usize = 64;

/// The bounds of the schedule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Sequences worked on at the same time.
    pub(crate) running: usize,
    /// Requests that wait.
    pub(crate) waiting: usize,
    /// Tokens that fit in the memory for caches.
    pub(crate) cache_tokens: usize,
}

/// What a sequence does in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Work {
    /// These tokens of its prompt; a token is drawn if they are the last.
    Prefill(Range<usize>),
    /// The token drawn last.
    Decode,
}

/// The next step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Sequences that begin with it.
    pub(crate) admitted: Vec<SequenceId>,
    /// Who works on what; each sequence at most once.
    pub(crate) work: Vec<(SequenceId, Work)>,
}

/// No more requests may wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

#[derive(Debug)]
struct Entry {
    id: SequenceId,
    prompt_tokens: usize,
    /// Prompt and longest possible answer.
    reserved_tokens: usize,
    prefilled_tokens: usize,
}

/// Waiting and running sequences.
#[derive(Debug)]
pub(crate) struct Scheduler {
    bounds: Bounds,
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
}

impl Scheduler {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Puts a sequence at the end of the queue. `reserved_tokens` beyond the memory bound are cut to it, so that
    /// every request can run at least alone.
    pub(crate) fn enqueue(
        &mut self,
        id: SequenceId,
        prompt_tokens: usize,
        reserved_tokens: usize,
    ) -> Result<(), QueueFull> {
        // What the next step will admit does not count as waiting.
        if self.waiting.len() >= self.bounds.waiting + self.free_slots() {
            return Err(QueueFull);
        }
        let reserved_tokens = reserved_tokens.min(self.bounds.cache_tokens);
        self.waiting.push_back(Entry { id, prompt_tokens, reserved_tokens, prefilled_tokens: 0 });
        Ok(())
    }

    /// Forgets a sequence, waiting or running; its slot is free for the next step.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.waiting.retain(|entry| entry.id != id);
        self.running.retain(|entry| entry.id != id);
    }

    /// Plans the next step and takes it as done. Empty work means: nothing to do.
    pub(crate) fn next_step(&mut self) -> Step {
        let mut step = Step { admitted: self.admit(), work: Vec::with_capacity(self.running.len()) };
        let mut chunk_at = None;
        for (at, entry) in self.running.iter_mut().enumerate() {
            if entry.prefilled_tokens >= entry.prompt_tokens {
                step.work.push((entry.id, Work::Decode));
            } else if chunk_at.is_none() {
                let end = (entry.prefilled_tokens + PREFILL_CHUNK_TOKENS).min(entry.prompt_tokens);
                step.work.push((entry.id, Work::Prefill(entry.prefilled_tokens..end)));
                entry.prefilled_tokens = end;
                chunk_at = Some(at);
            }
        }
        // Behind the others that prefill, so that a long prompt does not hold up a short one.
        if let Some(at) = chunk_at {
            let entry = self.running.remove(at);
            self.running.push(entry);
        }
        step
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

    /// Prompt tokens still to be prefilled, of running and waiting sequences: what a new request waits for.
    pub(crate) fn queued_prompt_tokens(&self) -> usize {
        self.waiting.iter().chain(&self.running).map(|entry| entry.prompt_tokens - entry.prefilled_tokens).sum()
    }

    /// Tokens of cache memory that are spoken for.
    pub(crate) fn reserved_tokens(&self) -> usize {
        self.running.iter().map(|entry| entry.reserved_tokens).sum()
    }

    fn free_slots(&self) -> usize {
        self.bounds.running.saturating_sub(self.running.len())
    }

    fn admit(&mut self) -> Vec<SequenceId> {
        let mut admitted = Vec::new();
        while self.free_slots() > 0 {
            let free_tokens = self.bounds.cache_tokens - self.reserved_tokens();
            let Some(entry) = self.waiting.pop_front_if(|entry| entry.reserved_tokens <= free_tokens) else { break };
            admitted.push(entry.id);
            self.running.push(entry);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn scheduler(running: usize, waiting: usize) -> Scheduler {
        Scheduler::new(Bounds { running, waiting, cache_tokens: 10_000 })
    }

    fn prefills(step: &Step) -> Vec<(SequenceId, Range<usize>)> {
        let only = step.work.iter().filter_map(|(id, work)| match work {
            Work::Prefill(range) => Some((*id, range.clone())),
            Work::Decode => None,
        });
        only.collect()
    }

    #[test]
    fn a_prompt_is_cut_into_chunks_then_decodes() {
        let mut s = scheduler(4, 4);
        s.enqueue(1, 130, 200).unwrap();
        assert_eq!(s.next_step(), Step { admitted: vec![1], work: vec![(1, Work::Prefill(0..64))] });
        assert_eq!(s.queued_prompt_tokens(), 66);
        assert_eq!(s.next_step().work, [(1, Work::Prefill(64..128))]);
        assert_eq!(s.next_step().work, [(1, Work::Prefill(128..130))]);
        assert_eq!(s.next_step().work, [(1, Work::Decode)]);
    }

    #[test]
    fn decoding_goes_on_while_another_prefills_and_a_long_prompt_does_not_hold_up_a_short_one() {
        let mut s = scheduler(4, 4);
        s.enqueue(1, 10, 50).unwrap();
        s.next_step();
        s.enqueue(2, 1000, 1100).unwrap();
        s.enqueue(3, 60, 100).unwrap();
        let step = s.next_step();
        assert_eq!(step.work, [(1, Work::Decode), (2, Work::Prefill(0..64))]);
        let step = s.next_step();
        assert_eq!(prefills(&step), [(3, 0..60)]);
        assert!(step.work.contains(&(1, Work::Decode)));
        let step = s.next_step();
        assert_eq!(prefills(&step), [(2, 64..128)]);
        assert!(step.work.contains(&(3, Work::Decode)));
    }

    #[test]
    fn the_queue_is_bounded_and_a_removed_sequence_makes_room() {
        let mut s = scheduler(1, 2);
        for id in 1..=3 {
            s.enqueue(id, 5, 10).unwrap();
        }
        assert_eq!(s.enqueue(4, 5, 10), Err(QueueFull));
        s.next_step();
        assert_eq!(s.enqueue(4, 5, 10), Err(QueueFull));
        s.remove(1);
        assert_eq!(s.next_step().admitted, [2]);
        s.enqueue(5, 5, 10).unwrap();
        assert_eq!(s.waiting(), 2);
    }

    #[test]
    fn cache_memory_bounds_admission_in_order_of_arrival() {
        let mut s = scheduler(8, 8);
        s.enqueue(1, 10, 9_000).unwrap();
        s.enqueue(2, 10, 2_000).unwrap();
        s.enqueue(3, 10, 10).unwrap();
        assert_eq!(s.next_step().admitted, [1]);
        s.remove(1);
        assert_eq!(s.next_step().admitted, [2, 3]);
        s.enqueue(4, 10, 1_000_000).unwrap();
        s.remove(2);
        s.remove(3);
        assert_eq!(s.next_step().admitted, [4], "one larger than the memory still runs alone");
    }

    proptest! {
        #[test]
        fn every_sequence_is_prefilled_once_in_order_and_bounds_hold(
            prompts in proptest::collection::vec((1usize..300, 0usize..200, 0usize..6), 1..20),
            running in 1usize..5,
        ) {
            let mut s = Scheduler::new(Bounds { running, waiting: 100, cache_tokens: 1000 });
            let mut left: HashMap<SequenceId, (usize, usize, usize)> = HashMap::new();
            for (id, (prompt, more, answers)) in prompts.iter().enumerate() {
                s.enqueue(id as u64, *prompt, prompt + more).unwrap();
                left.insert(id as u64, (*prompt, 0, *answers));
            }
            let mut begun: Vec<SequenceId> = Vec::new();
            for _ in 0..10_000 {
                let step = s.next_step();
                begun.extend(&step.admitted);
                prop_assert!(s.running() <= running && s.reserved_tokens() <= 1000);
                let ids: HashSet<_> = step.work.iter().map(|(id, _)| *id).collect();
                prop_assert_eq!(ids.len(), step.work.len());
                prop_assert!(prefills(&step).len() <= 1);
                for (id, work) in step.work {
                    let (prompt, done, answers) = left.get_mut(&id).unwrap();
                    match work {
                        Work::Prefill(range) => {
                            prop_assert_eq!(range.start, *done);
                            prop_assert!(!range.is_empty() && range.start % PREFILL_CHUNK_TOKENS == 0);
                            *done = range.end;
                        }
                        Work::Decode => {
                            prop_assert_eq!(*done, *prompt);
                            if *answers == 0 { left.remove(&id); s.remove(id); } else { *answers -= 1; }
                        }
                    }
                }
                if s.is_idle() { break; }
            }
            prop_assert!(left.is_empty() && s.is_idle());
            prop_assert!(begun.is_sorted(), "first come, first served");
        }
    }
}
