//! A sealed request is accepted once. Pure: the time is handed in.
//!
//! A request says inside when it was sealed, and is refused if that is more than [`SKEW`] away; so what was accepted needs to be known for twice as long,
//! and no longer. By the monotonic clock. One of the wall that is set back would open a window, so its keys have to be replaced then. What is known has a bound;
//! when it is full, requests are refused rather than forgotten.
//!
//! Bodies that are sealed alone ([`ehbp`](crate::ehbp)) say no date, so they are known for as long as their key is in use; a key that has opened as many as
//! can be known is replaced.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use crate::cipher::ENC;

/// How far the date of a sealed request may be from ours.
pub const SKEW: Duration = Duration::from_secs(60);
/// What is forgotten together.
const BUCKET: Duration = Duration::from_secs(30);
/// For how long a request is known at least: from one end of what may be said of its date to the other, and as long again as clocks may differ in that.
const KNOWN: Duration = SKEW.saturating_mul(2).saturating_add(Duration::from_secs(5));

/// Which requests have been accepted.
#[derive(Debug)]
pub struct Replays {
    most: usize,
    /// Of what stands for a request, eight bytes are kept: a keyed hash, so nobody can make two that are taken for the same. In a million
    /// requests one in 10^13 is refused though it is new.
    hash: RandomState,
    /// By when they came, the oldest first.
    buckets: VecDeque<(Instant, HashSet<u64>)>,
    count: usize,
}

/// Why a request is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// It was accepted before.
    #[error("the sealed request was sent before")]
    Replayed,
    /// Too many came of late.
    #[error("too many sealed requests at a time")]
    Full,
}

impl Replays {
    /// Knows of so many at most: some 16 bytes each.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, hash: RandomState::new(), buckets: VecDeque::new(), count: 0 }
    }

    /// Accepts a request by its key and what it encapsulates, which must have been authenticated: else anybody could fill this.
    ///
    /// # Errors
    /// It was accepted before, or there are too many.
    pub fn accept(&mut self, key: u8, encapsulated: &[u8; ENC], now: Instant) -> Result<(), NotAccepted> {
        self.forget(now);
        let hash = self.hash.hash_one((key, encapsulated));
        if self.buckets.iter().any(|(_, known)| known.contains(&hash)) {
            return Err(NotAccepted::Replayed);
        }
        if self.count >= self.most {
            return Err(NotAccepted::Full);
        }
        let is_current = |(begun, _): &(Instant, _)| now.saturating_duration_since(*begun) < BUCKET;
        if !self.buckets.back().is_some_and(is_current) {
            self.buckets.push_back((now, HashSet::new()));
        }
        if let Some((_, known)) = self.buckets.back_mut() {
            known.insert(hash);
            self.count += 1;
        }
        Ok(())
    }

    fn forget(&mut self, now: Instant) {
        let is_old = |begun: Instant| now.saturating_duration_since(begun) > KNOWN + BUCKET;
        while let Some((_, known)) = self.buckets.pop_front_if(|(begun, _)| is_old(*begun)) {
            self.count -= known.len();
        }
    }
}

/// Which requests without a date have been accepted, by the number of their key.
#[derive(Debug)]
pub struct Undated {
    most: usize,
    hash: RandomState,
    known: Vec<(u8, HashSet<u64>)>,
}

impl Undated {
    /// Knows of so many at most of each key.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, hash: RandomState::new(), known: Vec::new() }
    }

    /// Accepts a request that was authenticated. True: it is the last one that its key may open, and the key has to be replaced.
    ///
    /// # Errors
    /// It was accepted before, or its key has opened too many.
    pub fn accept(&mut self, key: u8, encapsulated: &[u8; ENC]) -> Result<bool, NotAccepted> {
        let hash = self.hash.hash_one(encapsulated);
        if !self.known.iter().any(|(of, _)| *of == key) {
            self.known.push((key, HashSet::new()));
        }
        let Some((_, known)) = self.known.iter_mut().find(|(of, _)| *of == key) else { return Err(NotAccepted::Full) };
        if known.contains(&hash) {
            return Err(NotAccepted::Replayed);
        }
        if known.len() >= self.most {
            return Err(NotAccepted::Full);
        }
        known.insert(hash);
        Ok(known.len() >= self.most)
    }

    /// Forgets those of keys that are not in use any more.
    pub fn forget(&mut self, is_in_use: impl Fn(u8) -> bool) {
        self.known.retain(|(key, _)| is_in_use(*key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_date_it_is_known_as_long_as_its_key_and_a_full_key_is_replaced() {
        let mut undated = Undated::new(2);
        assert_eq!(undated.accept(1, &encapsulated(1)), Ok(false));
        assert_eq!(undated.accept(1, &encapsulated(1)), Err(NotAccepted::Replayed));
        assert_eq!(undated.accept(1, &encapsulated(2)), Ok(true));
        assert_eq!(undated.accept(1, &encapsulated(3)), Err(NotAccepted::Full));
        assert_eq!(undated.accept(1, &encapsulated(1)), Err(NotAccepted::Replayed));
        assert_eq!(undated.accept(2, &encapsulated(1)), Ok(false));
        undated.forget(|key| key == 2);
        assert_eq!(undated.accept(2, &encapsulated(1)), Err(NotAccepted::Replayed));
        assert_eq!(undated.known.len(), 1);
    }

    fn encapsulated(n: u32) -> [u8; ENC] {
        let mut all = [0; ENC];
        all[..4].copy_from_slice(&n.to_le_bytes());
        all
    }

    #[test]
    fn once_for_as_long_as_its_date_would_pass() {
        let (mut replays, begun) = (Replays::new(100), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(replays.accept(1, &encapsulated(1), at(0)), Ok(()));
        assert_eq!(replays.accept(2, &encapsulated(1), at(0)), Ok(()), "for another key");
        for (n, seconds) in [0, 1, 59, 61, 119, 120].into_iter().enumerate() {
            assert_eq!(replays.accept(1, &encapsulated(100 + n as u32), at(seconds)), Ok(()));
            assert_eq!(replays.accept(1, &encapsulated(1), at(seconds)), Err(NotAccepted::Replayed), "{seconds}");
            assert_eq!(replays.accept(1, &encapsulated(100 + n as u32), at(seconds)), Err(NotAccepted::Replayed));
        }
        // The one that came last of its bucket is known for as long.
        assert_eq!(replays.accept(1, &encapsulated(102), at(59 + 119)), Err(NotAccepted::Replayed));
        assert_eq!(replays.accept(1, &encapsulated(102), at(59 + 124)), Err(NotAccepted::Replayed));
    }

    #[test]
    fn a_full_one_refuses_until_it_may_forget() {
        let (mut replays, now) = (Replays::new(3), Instant::now());
        (0..3).for_each(|n| replays.accept(1, &encapsulated(n), now).unwrap());
        assert_eq!(replays.accept(1, &encapsulated(3), now), Err(NotAccepted::Full));
        assert_eq!(replays.accept(1, &encapsulated(0), now), Err(NotAccepted::Replayed));
        let later = now + Duration::from_secs(156);
        assert_eq!(replays.accept(1, &encapsulated(3), later), Ok(()));
        assert_eq!((replays.count, replays.buckets.len()), (1, 1));
    }
}
