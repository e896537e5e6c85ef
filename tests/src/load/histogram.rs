//! Times in buckets whose width grows with the time: bounded memory for any number of samples, 1.6 % of error.

use std::time::Duration;

/// Buckets of one doubling.
const STEPS: u64 = 64;
/// Bits of [`STEPS`].
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// The longest time: 2^36 µs are 19 hours.
const MAX_BITS: u32 = 36;
const BUCKETS: usize = (STEPS as usize) * (MAX_BITS - STEP_BITS + 1) as usize;

/// A histogram of times from 1 µs to 19 hours.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min((1 << MAX_BITS) - 1);
        if let Some(bucket) = self.buckets.get_mut(bucket(us)) {
            *bucket += 1;
            self.count += 1;
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Counts all of another one.
    pub fn add(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.count += other.count;
    }

    /// The time within which this share (0 to 1) was done; 0 if nothing was counted.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(Duration::ZERO, |bucket| Duration::from_micros(upper_us(bucket as u64)))
    }
}

/// Below 128 µs each has its own; above, 64 for each doubling.
fn bucket(us: u64) -> usize {
    let above = us.max(1).ilog2().saturating_sub(STEP_BITS);
    (u64::from(above) * STEPS + (us >> above)) as usize
}

/// The longest time in a bucket.
fn upper_us(bucket: u64) -> u64 {
    // From 2 × STEPS on, each doubling has STEPS buckets, the values STEPS to 2 × STEPS - 1.
    let above = (bucket / STEPS).saturating_sub(1);
    ((bucket - above * STEPS + 1) << above) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_a_bucket_that_ends_close_above_it() {
        for us in (0..20_000).chain((14..36).flat_map(|bits| [(1_u64 << bits) - 1, 1 << bits, (1 << bits) + 1])) {
            let upper = upper_us(bucket(us) as u64);
            assert!(upper >= us && upper <= us + us / 63, "{us} µs: {upper}");
            assert!(bucket(us + 1) - bucket(us) <= 1, "{us}");
        }
        assert!(bucket((1 << MAX_BITS) - 1) < BUCKETS);
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for us in 1..=50 {
            histogram.record(Duration::from_micros(us));
        }
        let mut other = Histogram::default();
        other.record(Duration::from_secs(3));
        histogram.add(&other);
        assert_eq!(histogram.count(), 51);
        assert_eq!(histogram.quantile(0.5), Duration::from_micros(26));
        assert!(histogram.quantile(1.0) >= Duration::from_secs(3));
        assert!(histogram.quantile(1.0) < Duration::from_millis(3050));
    }
}
