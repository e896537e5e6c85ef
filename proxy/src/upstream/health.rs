//! What is known of a remote target from the requests that it was sent: a moving average of its time to first token, whether
//! it answers, and how many wait for it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Weight of the newest sample, in 1/8.
const NEWEST: u64 = 2;
/// A failure is forgotten after this: nobody asks a target that is said to be down, so nobody would learn that it is up.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Observations of one target. Races between two updates lose one sample, which a moving average bears.
#[derive(Debug, Default)]
pub struct Observed {
    /// Microseconds; 0: nothing known.
    ttft_us: AtomicU64,
    waiting: AtomicU32,
    /// When it failed, if nothing has gone well since.
    failed_at: Mutex<Option<Instant>>,
}

/// A request that waits for its first token.
#[derive(Debug)]
pub struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Observed {
    /// Counts a request as waiting until what is given back is dropped.
    #[must_use]
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// An attempt has ended, and whether the target is to blame if it failed.
    pub fn ended(&self, failed: bool, now: Instant) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = failed.then_some(now);
    }

    /// It answered when it was last asked, or that is a while ago.
    #[must_use]
    pub fn is_healthy(&self, now: Instant) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_none_or(|at| now.saturating_duration_since(at) >= FORGOTTEN_AFTER)
    }

    /// A first token has come.
    pub fn first_token(&self, after: Duration) {
        let sample = u64::try_from(after.as_micros()).unwrap_or(u64::MAX / 16).clamp(1, u64::MAX / 16);
        let before = self.ttft_us.load(Ordering::Relaxed);
        let average = if before == 0 { sample } else { (before * (8 - NEWEST) + sample * NEWEST) / 8 };
        self.ttft_us.store(average, Ordering::Relaxed);
    }

    /// When the first token of the next request would come.
    #[must_use]
    pub fn predicted_ttft(&self) -> Option<Duration> {
        match self.ttft_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_samples() {
        let observed = Observed::default();
        assert_eq!(observed.predicted_ttft(), None);
        observed.first_token(Duration::from_millis(100));
        assert_eq!(observed.predicted_ttft(), Some(Duration::from_millis(100)));
        observed.first_token(Duration::from_millis(200));
        assert_eq!(observed.predicted_ttft(), Some(Duration::from_millis(125)));
        for _ in 0..50 {
            observed.first_token(Duration::from_millis(10));
        }
        assert!(observed.predicted_ttft().unwrap() < Duration::from_millis(11));
    }

    #[test]
    fn a_failure_counts_until_something_goes_well_or_it_is_forgotten() {
        let (observed, now) = (Observed::default(), Instant::now());
        assert!(observed.is_healthy(now));
        observed.ended(true, now);
        assert!(!observed.is_healthy(now) && !observed.is_healthy(now + FORGOTTEN_AFTER / 2));
        assert!(observed.is_healthy(now + FORGOTTEN_AFTER));
        observed.ended(false, now);
        assert!(observed.is_healthy(now));
    }

    #[test]
    fn who_waits_is_counted_until_it_has_something() {
        let observed = Observed::default();
        let (one, two) = (observed.wait(), observed.wait());
        assert_eq!(observed.waiting(), 2);
        drop(one);
        assert_eq!(observed.waiting(), 1);
        drop(two);
        assert_eq!(observed.waiting(), 0);
    }
}
