//! A budget for each minute. Pure: the time is handed in.

use std::time::{Duration, Instant};

/// A bucket of tokens, or of requests, that fills at a constant rate. A reservation larger than the bucket waits for a full one.
#[derive(Debug)]
pub(super) struct Ledger {
    per_minute: f64,
    available: f64,
    filled_at: Instant,
}

impl Ledger {
    /// A full one.
    #[must_use]
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute);
        Self { per_minute, available: per_minute, filled_at: now }
    }

    /// Is there room for so many? A number larger than the bucket waits for a full one. `Some`: not yet, but after so long.
    pub(super) fn room(&mut self, now: Instant, tokens: u64) -> Option<Duration> {
        self.fill(now);
        // A part of a limit that is smaller than the number of parts.
        if self.per_minute < 1.0 && tokens > 0 {
            return Some(Duration::from_secs(60));
        }
        let missing = (tokens as f64).min(self.per_minute) - self.available;
        (missing > 0.0 && tokens > 0)
            .then(|| Duration::try_from_secs_f64(missing * 60.0 / self.per_minute).unwrap_or(Duration::from_secs(60)))
    }

    /// Takes so many out of it, but no more than a minute's debt: a number that somebody only asked for must not shut them out for
    /// hours. Returns how many were taken.
    pub(super) fn take(&mut self, now: Instant, tokens: u64) -> u64 {
        self.fill(now);
        let taken = (tokens as f64).min(self.available + self.per_minute).max(0.0);
        self.available -= taken;
        taken as u64
    }

    /// After how long it is full, if nothing more is taken.
    #[must_use]
    pub(super) fn full_in(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let missing = (self.per_minute - self.available).max(0.0);
        Duration::try_from_secs_f64(missing * 60.0 / self.per_minute).unwrap_or_default()
    }

    /// How many are there.
    #[must_use]
    pub(super) fn available(&mut self, now: Instant) -> u64 {
        self.fill(now);
        self.available.max(0.0) as u64
    }

    /// Corrects a reservation when it is known what was used.
    pub(super) fn correct(&mut self, reserved: u64, used: u64) {
        self.available = (self.available + reserved as f64 - used as f64).clamp(-self.per_minute, self.per_minute);
    }

    /// There are so many now, as others say.
    pub(super) fn set(&mut self, now: Instant, available: i64) {
        self.fill(now);
        self.available = (available as f64).clamp(-self.per_minute, self.per_minute);
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.available = (self.available + elapsed * self.per_minute / 60.0).min(self.per_minute);
        self.filled_at = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Ledger {
        fn reserve(&mut self, now: Instant, tokens: u64) -> Result<u64, Duration> {
            self.room(now, tokens).map_or_else(|| Ok(self.take(now, tokens)), Err)
        }
    }

    #[test]
    fn reservations_are_settled_and_time_refills() {
        let start = Instant::now();
        let mut ledger = Ledger::new(600, start);
        assert_eq!(ledger.reserve(start, 500), Ok(500));
        assert_eq!(ledger.reserve(start, 200), Err(Duration::from_secs(10)));
        assert_eq!(ledger.available(start), 100);
        ledger.correct(500, 100);
        assert_eq!(ledger.reserve(start, 200), Ok(200));
        assert_eq!(ledger.reserve(start + Duration::from_secs(30), 600), Ok(600));
        assert!(ledger.reserve(start + Duration::from_secs(30), 1).is_err());
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_two_minutes(asked in proptest::collection::vec((0u64..100_000, 0u64..u64::MAX), 1..20)) {
            let start = Instant::now();
            let (mut ledger, mut now) = (Ledger::new(1000, start), start);
            for (wait_ms, tokens) in asked {
                now += Duration::from_millis(wait_ms);
                // Whatever was reserved and never settled.
                if let Err(wait) = ledger.reserve(now, tokens) {
                    prop_assert!(wait <= Duration::from_secs(121), "{wait:?}");
                }
            }
        }

        #[test]
        fn no_more_is_spent_than_was_there(steps in proptest::collection::vec((0u64..5_000, 1u64..2_000), 1..50)) {
            let start = Instant::now();
            let mut ledger = Ledger::new(1000, start);
            let (mut now, mut spent) = (start, 0u64);
            for (wait_ms, tokens) in steps {
                now += Duration::from_millis(wait_ms);
                if tokens <= 1000 && ledger.reserve(now, tokens).is_ok() {
                    spent += tokens;
                }
            }
            let filled = 1000.0 + (now - start).as_secs_f64() * 1000.0 / 60.0;
            prop_assert!(spent as f64 <= filled + 1e-6);
        }
    }
}
