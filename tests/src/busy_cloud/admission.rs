//! Who is refused because the cloud is busy. Pure: the time is an argument.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Switches;

const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered; beyond it those without a recent request are forgotten.
const MAX_ADDRESSES: usize = 1024;

/// Whether a request is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Taken,
    /// 503.
    Unavailable,
    /// 429, and the seconds until it makes sense to come again.
    TooMany {
        retry_after_s: u64,
    },
}

/// What it remembers between requests.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Grows by the share with each request; a refusal takes one away.
    debt: f64,
    recent: HashMap<IpAddr, VecDeque<Instant>>,
}

impl Gate {
    /// The rate comes first, as clouds do it: what is refused by it says nothing about whether they are up.
    pub(super) fn admit(&mut self, switches: &Switches, from: IpAddr, now: Instant) -> Admission {
        if let Some(limit) = switches.requests_per_minute
            && let Err(retry_after_s) = self.count(from, limit.get() as usize, now)
        {
            return Admission::TooMany { retry_after_s };
        }
        self.debt += switches.unavailable_share;
        // Ten times 0.1 is a little less than 1.
        if self.debt > 1.0 - 1e-9 {
            self.debt -= 1.0;
            return Admission::Unavailable;
        }
        Admission::Taken
    }

    fn count(&mut self, from: IpAddr, limit: usize, now: Instant) -> Result<(), u64> {
        if self.recent.len() >= MAX_ADDRESSES {
            self.recent.retain(|_, times| times.back().is_some_and(|last| now - *last < WINDOW));
        }
        let times = self.recent.entry(from).or_default();
        while times.front().is_some_and(|first| now - *first >= WINDOW) {
            times.pop_front();
        }
        match times.front() {
            Some(first) if times.len() >= limit => Err((WINDOW - (now - *first)).as_secs() + 1),
            _ => {
                times.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn refused(share: f64, requests: usize) -> Vec<bool> {
        let switches = Switches { unavailable_share: share, ..Switches::default() };
        let mut gate = Gate::default();
        let now = Instant::now();
        (0..requests).map(|_| gate.admit(&switches, HERE, now) == Admission::Unavailable).collect()
    }

    #[test]
    fn the_share_is_spread_evenly() {
        assert_eq!(refused(0.5, 4), [false, true, false, true]);
        assert_eq!(refused(1.0, 2), [true, true]);
        for share in [0.0, 0.1, 0.35, 0.99] {
            let count = refused(share, 1000).into_iter().filter(|refused| *refused).count();
            assert!(count.abs_diff((share * 1000.0) as usize) <= 1, "{share}: {count}");
        }
    }

    #[test]
    fn the_rate_is_for_any_minute_and_for_each_address() {
        let switches = Switches { requests_per_minute: std::num::NonZeroU32::new(2), ..Switches::default() };
        let mut gate = Gate::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(gate.admit(&switches, HERE, at(0)), Admission::Taken);
        assert_eq!(gate.admit(&switches, HERE, at(50)), Admission::Taken);
        assert_eq!(gate.admit(&switches, HERE, at(55)), Admission::TooMany { retry_after_s: 6 });
        assert_eq!(gate.admit(&switches, IpAddr::from([10, 0, 0, 1]), at(55)), Admission::Taken);
        assert_eq!(gate.admit(&switches, HERE, at(60)), Admission::Taken);
        assert_eq!(gate.admit(&switches, HERE, at(61)), Admission::TooMany { retry_after_s: 50 });
    }
}
