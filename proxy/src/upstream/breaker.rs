//! A circuit breaker: a target that fails is left alone for a while, then tried with one request. Pure: time and chance are
//! handed in. The pattern is Nygard's ("Release It!", 2007); opening after failures of real requests is what Envoy calls
//! passive outlier detection.

use std::time::{Duration, Instant};

/// Failures in a row after which it opens, if the target was not there or broke its word.
const DEAD_AFTER: u32 = 3;
/// Failures in a row after which it opens, of whatever kind. A cloud that refuses one request in three as busy does that once in
/// 36,000 requests; it is to be used, not to be left alone.
const BUSY_AFTER: u32 = 10;
/// How long it stays open the first time, doubled each time that the trial fails, and at most.
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_secs(30);
/// Share of that time that is left to chance, so that gateways do not come back all at once.
const JITTER: f64 = 0.2;

/// How a request ended, as far as the target's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answered.
    Good,
    /// It is there and says that it is overloaded, or had an error of its own.
    Busy,
    /// It is not there, does not answer in time, or broke off.
    Dead,
    /// Nothing can be said: the request was at fault, or was given up.
    Unknown,
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests pass.
    Closed,
    /// One request is tried, or may be.
    HalfOpen,
    /// No request passes.
    Open,
}

impl State {
    /// A fixed word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The breaker of one target.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    in_a_row: u32,
    dead_in_a_row: u32,
    /// Set while it is not closed: until when no request passes.
    until: Option<Instant>,
    /// How often it opened since it was last closed.
    opened: u32,
    /// The one request of the half-open state is under way.
    trying: bool,
}

impl Breaker {
    /// How it is.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        match self.until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        }
    }

    /// Until when no request passes, if that was so.
    #[must_use]
    pub fn rests_until(&self) -> Option<Instant> {
        self.until
    }

    /// Lets a request through; `Ok(true)`: as the one that is tried. Whoever gets that tells [`Self::ended`] or
    /// [`Self::abandoned`].
    ///
    /// # Errors
    /// When to come again; `None`: when the one that is tried has ended.
    pub fn admit(&mut self, now: Instant) -> Result<bool, Option<Instant>> {
        match self.state(now) {
            State::Closed => Ok(false),
            State::Open => Err(self.until),
            State::HalfOpen if self.trying => Err(None),
            State::HalfOpen => {
                self.trying = true;
                Ok(true)
            }
        }
    }

    /// A request has ended. `tried`: it was the one that [`Self::admit`] said so of. `chance` is between 0 and 1.
    pub fn ended(&mut self, health: Health, tried: bool, now: Instant, chance: f64) {
        self.trying &= !tried;
        match health {
            Health::Unknown => {}
            // What was sent before it opened says nothing of how it is now, unless it is good.
            Health::Good => *self = Self::default(),
            Health::Busy | Health::Dead if self.until.is_some() && !tried => {}
            Health::Busy | Health::Dead => {
                self.in_a_row = self.in_a_row.saturating_add(1);
                self.dead_in_a_row = if health == Health::Dead { self.dead_in_a_row.saturating_add(1) } else { 0 };
                if tried || self.dead_in_a_row >= DEAD_AFTER || self.in_a_row >= BUSY_AFTER {
                    self.open(now, chance);
                }
            }
        }
    }

    /// The request that was tried was given up before anything could be said.
    pub fn abandoned(&mut self) {
        self.trying = false;
    }

    /// The target was seen to be well by other means: the next request is tried at once.
    pub fn seen_well(&mut self, now: Instant) {
        if let Some(until) = &mut self.until {
            *until = (*until).min(now);
        }
    }

    fn open(&mut self, now: Instant, chance: f64) {
        let doubled = OPEN_FIRST.saturating_mul(1 << self.opened.min(8)).min(OPEN_MOST);
        self.opened = self.opened.saturating_add(1);
        self.until = Some(now + doubled.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_tries_once_and_closes() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..2 {
            breaker.ended(Health::Dead, false, start, 0.0);
        }
        breaker.ended(Health::Busy, false, start, 0.0);
        breaker.ended(Health::Dead, false, start, 0.0);
        assert_eq!(breaker.admit(start), Ok(false), "three times, but not in a row");
        for _ in 0..2 {
            breaker.ended(Health::Dead, false, start, 0.0);
        }
        assert_eq!((breaker.state(start), breaker.admit(start)), (State::Open, Err(Some(start + seconds(1)))));
        let later = start + seconds(1);
        assert_eq!(breaker.admit(later), Ok(true));
        assert_eq!(breaker.admit(later), Err(None), "one at a time");
        breaker.ended(Health::Dead, true, later, 0.0);
        assert_eq!(breaker.admit(later), Err(Some(later + seconds(2))), "twice as long");
        let later = later + seconds(2);
        assert_eq!(breaker.admit(later), Ok(true));
        breaker.abandoned();
        assert_eq!(breaker.admit(later), Ok(true), "whoever went away does not block it");
        breaker.ended(Health::Good, true, later, 0.0);
        assert_eq!((breaker.state(later), breaker.admit(later)), (State::Closed, Ok(false)));
    }

    #[test]
    fn a_busy_target_is_used_as_long_as_it_answers_now_and_then() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            (0..9).for_each(|_| breaker.ended(Health::Busy, false, start, 0.0));
            breaker.ended(Health::Good, false, start, 0.0);
        }
        assert_eq!(breaker.state(start), State::Closed);
        (0..10).for_each(|_| breaker.ended(Health::Busy, false, start, 0.0));
        assert_eq!(breaker.state(start), State::Open);
        breaker.seen_well(start);
        assert_eq!(breaker.admit(start), Ok(true));
    }

    proptest! {
        #[test]
        fn it_never_stays_open_for_long_and_never_lets_two_try(
            steps in prop::collection::vec((0u64..5_000, 0u8..4, 0.0f64..1.0), 1..200),
        ) {
            let (mut breaker, mut now, mut trying) = (Breaker::default(), Instant::now(), false);
            for (wait, what, chance) in steps {
                now += Duration::from_millis(wait);
                let health = [Health::Good, Health::Busy, Health::Dead, Health::Unknown][usize::from(what)];
                match breaker.admit(now) {
                    Ok(true) => {
                        prop_assert!(!trying);
                        trying = what == 3;
                        if !trying {
                            breaker.ended(health, true, now, chance);
                        }
                    }
                    Ok(false) => breaker.ended(health, false, now, chance),
                    Err(Some(until)) => prop_assert!(until > now && until - now <= OPEN_MOST),
                    Err(None) => {
                        prop_assert!(trying);
                        breaker.abandoned();
                        trying = false;
                    }
                }
            }
        }
    }
}
