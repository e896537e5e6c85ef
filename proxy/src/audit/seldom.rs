//! What would be said with every request is said once a minute; who fails is asked less and less often.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two times that something is said.
const EVERY: Duration = Duration::from_secs(60);

/// How long to wait after so many failures in a row, and no longer than `most`.
pub(super) fn wait(failures: u32, most: Duration) -> Duration {
    Duration::from_secs(1).saturating_mul(1 << failures.min(16)).min(most)
}

/// When something was said last.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it is to be said now.
    pub(super) fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= EVERY);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_is_asked_less_and_less_often() {
        let most = Duration::from_secs(300);
        assert_eq!([1, 2, 3, 9, u32::MAX].map(|failures| wait(failures, most).as_secs()), [2, 4, 8, 300, 300]);
    }

    #[test]
    fn what_is_asked_for_often_is_said_once() {
        let seldom = Seldom::default();
        assert_eq!([1, 2, 3].map(|_| seldom.is_due()), [true, false, false]);
        if let Some(long_ago) = Instant::now().checked_sub(EVERY) {
            *seldom.0.lock().unwrap() = Some(long_ago);
            assert!(seldom.is_due());
        }
    }
}
