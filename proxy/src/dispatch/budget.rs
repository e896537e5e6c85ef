//! How many requests may be asked again at the same target: a share of the traffic, so that retries never multiply a load that is
//! too much already. Source: "Handling Overload" in Beyer et al., "Site Reliability Engineering" (2016), as a bucket like Finagle's.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Retries for each request.
const SHARE: f64 = 0.2;
/// Retries a second beside those, so that an office with little traffic may retry as well.
const EACH_SECOND: f64 = 10.0;
/// What may be saved up.
const MOST: f64 = 100.0;

/// The budget of one gateway.
#[derive(Debug)]
pub(super) struct RetryBudget(Mutex<Balance>);

#[derive(Debug)]
struct Balance {
    amount: f64,
    at: Instant,
}

impl RetryBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Balance { amount: EACH_SECOND, at: now }))
    }

    /// A request has come.
    pub(super) fn deposit(&self) {
        let mut balance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        balance.amount = (balance.amount + SHARE).min(MOST);
    }

    /// Is there one more retry?
    pub(super) fn withdraw(&self, now: Instant) -> bool {
        let mut balance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.saturating_duration_since(balance.at).as_secs_f64();
        balance.at = now;
        balance.amount = (balance.amount + seconds * EACH_SECOND).min(MOST);
        let there_is = balance.amount >= 1.0;
        if there_is {
            balance.amount -= 1.0;
        }
        there_is
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_share_of_the_traffic_and_a_few_each_second() {
        let start = Instant::now();
        let budget = RetryBudget::new(start);
        let spent = |now| (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(spent(start), 10);
        (0..100).for_each(|_| budget.deposit());
        assert!((19..=20).contains(&spent(start)));
        assert_eq!(spent(start + Duration::from_secs(2)), 20);
        (0..10_000).for_each(|_| budget.deposit());
        assert_eq!(spent(start + Duration::from_secs(2)), 100, "no storm is saved up");
    }
}
