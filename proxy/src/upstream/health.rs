//! What is known of a remote target from the requests that it answered: a moving average of its time to first token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Weight of the newest sample, in 1/8.
const NEWEST: u64 = 2;

/// Observations of one target. Races between two updates lose one sample, which a moving average bears.
#[derive(Debug, Default)]
pub struct Observed {
    /// Microseconds; 0: nothing known.
    ttft_us: AtomicU64,
}

impl Observed {
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
}
