//! How long calls take, in a few hundred bytes: enough for a median and a 99th percentile that are right to a fifth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Four to each doubling, from 1 µs up to 16 s.
const BUCKETS: usize = 96;

/// The times of calls.
#[derive(Debug)]
pub struct Times([AtomicU64; BUCKETS]);

impl Default for Times {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Times {
    /// Adds one.
    pub fn note(&self, took: Duration) {
        if let Some(bucket) = self.0.get(bucket(took.as_nanos())) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The time within which this share of the calls ended, rounded up to a bucket's end; `None` if there were none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let wanted = ((counts.iter().sum::<u64>() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(end(at))
    }
}

fn bucket(nanoseconds: u128) -> usize {
    let microseconds = nanoseconds as f64 / 1e3;
    if microseconds <= 1.0 { 0 } else { ((microseconds.log2() * 4.0) as usize).min(BUCKETS - 1) }
}

fn end(bucket: usize) -> Duration {
    Duration::from_secs_f64(2_f64.powf((bucket + 1) as f64 / 4.0) / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_about_right() {
        let times = Times::default();
        assert_eq!((times.count(), times.quantile(0.5)), (0, None));
        for us in 1..=1000 {
            times.note(Duration::from_micros(us));
        }
        assert_eq!(times.count(), 1000);
        for (share, us) in [(0.5, 500.0), (0.99, 990.0)] {
            let found = times.quantile(share).unwrap().as_secs_f64() * 1e6;
            assert!((us..=us * 1.2).contains(&found), "{share}: {found} µs");
        }
        times.note(Duration::ZERO);
        times.note(Duration::from_secs(3600));
        assert!(times.quantile(1.0).unwrap() > Duration::from_secs(10));
    }
}
