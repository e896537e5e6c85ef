//! Who may still come in, and how long one would wait. Places are bounded in all and for each identity, so that one
//! that asks for everything leaves room for others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::origin::Identity;

/// A client is never told to come back later than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Places of sequences that run or wait.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    max: usize,
    /// Of one identity that the gateway named.
    identity_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_identity: HashMap<Identity, usize>,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    identity: Identity,
    taken: Arc<Mutex<Taken>>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// All are taken.
    Full,
    /// This identity has as many as one may have.
    Share,
}

impl Places {
    /// For `running` sequences and `waiting` more. One identity may have all of the former and half of the latter.
    pub(crate) fn new(running: usize, waiting: usize) -> Self {
        Self { max: running + waiting, identity_max: running + waiting.div_ceil(2), taken: Arc::default() }
    }

    pub(crate) fn take(&self, identity: &Identity) -> Result<Place, Refused> {
        let mut taken = lock(&self.taken);
        if taken.all >= self.max {
            return Err(Refused::Full);
        }
        if !identity.is_empty() && taken.of_identity.get(identity).is_some_and(|count| *count >= self.identity_max) {
            return Err(Refused::Share);
        }
        taken.all += 1;
        *taken.of_identity.entry(Arc::clone(identity)).or_default() += 1;
        Ok(Place { identity: Arc::clone(identity), taken: Arc::clone(&self.taken) })
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        lock(&self.taken).all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.of_identity.get_mut(&self.identity) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.of_identity.remove(&self.identity);
            }
        }
    }
}

/// Nothing that holds the lock can panic half-way through a change.
fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a prediction is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Facts {
    /// Sequences that may run, and those that run or wait.
    pub(crate) slots: usize,
    pub(crate) taken: usize,
    /// Seconds that a sequence keeps its slot, on average.
    pub(crate) slot_seconds: f64,
    /// Prompt tokens before a new one's.
    pub(crate) queued_prompt_tokens: usize,
    /// Prompt tokens a second at the present load; 0: not known.
    pub(crate) prefill_rate: f64,
}

impl Facts {
    /// How long a new request would wait for a slot: slots come free one after the other.
    pub(crate) fn slot_wait(&self) -> Duration {
        let ahead = (self.taken + 1).saturating_sub(self.slots);
        seconds(ahead as f64 * self.slot_seconds / self.slots.max(1) as f64)
    }

    /// How long it would be until its first token.
    pub(crate) fn first_token(&self, prompt_tokens: usize) -> Duration {
        let tokens = (self.queued_prompt_tokens + prompt_tokens) as f64;
        let prefill = if self.prefill_rate > 0.0 { seconds(tokens / self.prefill_rate) } else { Duration::ZERO };
        self.slot_wait() + prefill
    }

    /// When it is worth asking again: when the next place should be free. Whole seconds, 1 to 60.
    pub(crate) fn retry_after(&self) -> Duration {
        let next = seconds(self.slot_seconds / self.slots.max(1) as f64).min(RETRY_AFTER_MAX);
        Duration::from_secs((next.as_secs_f64().ceil() as u64).max(1))
    }
}

fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number.max(0.0)).unwrap_or(Duration::from_secs(86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_identity() {
        let places = Places::new(2, 4);
        let (a, b, nobody) = (Identity::from("a"), Identity::from("b"), Identity::from(""));
        let mut of_a: Vec<Place> = (0..4).map(|_| places.take(&a).unwrap()).collect();
        assert_eq!(places.take(&a).unwrap_err(), Refused::Share);
        let _of_b = places.take(&b).unwrap();
        let _of_nobody = places.take(&nobody).unwrap();
        assert_eq!(places.take(&b).unwrap_err(), Refused::Full);
        of_a.pop();
        assert_eq!(places.taken(), 5);
        of_a.push(places.take(&a).unwrap());
        drop(of_a);
        assert_eq!((places.taken(), lock(&places.taken).of_identity.len()), (2, 2));
        let all: Vec<_> = (0..4).map(|_| places.take(&nobody).unwrap()).collect();
        assert_eq!(all.len(), 4, "those whom the gateway did not name share all places");
    }

    #[test]
    fn a_wait_is_for_those_ahead_and_their_prompts() {
        let facts = Facts { slots: 4, taken: 3, slot_seconds: 8.0, queued_prompt_tokens: 300, prefill_rate: 100.0 };
        assert_eq!((facts.slot_wait(), facts.first_token(100)), (Duration::ZERO, Duration::from_secs(4)));
        let full = Facts { taken: 6, ..facts };
        assert_eq!(full.slot_wait(), Duration::from_secs(6), "three are ahead of a slot, and one comes free every 2 s");
        assert_eq!(full.retry_after(), Duration::from_secs(2));
        let unknown = Facts { slot_seconds: 0.0, prefill_rate: 0.0, ..full };
        assert_eq!((unknown.first_token(5), unknown.retry_after()), (Duration::ZERO, Duration::from_secs(1)));
        assert_eq!(Facts { slot_seconds: f64::INFINITY, ..full }.retry_after(), Duration::from_secs(60));
    }
}
