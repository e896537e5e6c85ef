//! A circuit breaker: a target that fails is left alone for a while, then tried with one request. Pure: time and chance are
//! handed in. The pattern is Nygard's ("Release It!", 2007); opening after failures of real requests is what Envoy calls
//! passive outlier detection.
//!
//! A failure may be the request's fault, and whoever sends many such requests must not take a target away from others: as long as
//! all failures in a row are those of one identity, the target is closed to that one alone.

use std::time::{Duration, Instant};

/// Failures in a row after which it opens, if the target was not there or broke its word.
const DEAD_AFTER: u32 = 3;
/// Failures in a row after which it opens, of whatever kind. A cloud that refuses one request in three as busy does that once in
/// 36,000 requests; it is to be used, not to be left alone.
const BUSY_AFTER: u32 = 10;
/// How long it stays open the first time, doubled each time that the trial fails, and at most.
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_secs(30);
/// A trial that has not shown anything after this is no reason for others to wait: the next one is tried as well.
const TRIAL_FOR: Duration = Duration::from_secs(2);
/// Whoever had the last trial lets others try first, for so long.
const OTHERS_FIRST: Duration = Duration::from_secs(1);
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

/// Whose failures they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Blame {
    #[default]
    Nobody,
    One(u64),
    Several,
}

/// The breaker of one target.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    /// Failures in a row, of whatever kind.
    in_a_row: u32,
    /// Those of them in which it was not there, or said nothing in time.
    silent: u32,
    /// Those in which an answer broke off that had begun well: only one that ends well shows that it does not do so any more.
    broke_off: u32,
    blame: Blame,
    /// Set while it is not closed: until when no request passes.
    until: Option<Instant>,
    /// How often it opened since it was last closed.
    opened: u32,
    /// Since when a request of the half-open state is under way.
    trying: Option<Instant>,
    tried_last: Option<u64>,
}

/// How far a request came before it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// It was the one that [`Breaker::admit`] said so of, and nothing had been said of it.
    pub tried: bool,
    /// Its answer had begun.
    pub begun: bool,
}

impl Breaker {
    /// How it is; to one identity alone, maybe.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        match self.until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        }
    }

    /// Until when no request of `who` passes, if that was so.
    #[must_use]
    pub fn rests_until(&self, who: u64) -> Option<Instant> {
        self.until.filter(|_| self.concerns(Some(who)))
    }

    /// Would a request of `who` pass?
    #[must_use]
    pub fn passes(&self, who: u64, now: Instant) -> bool {
        self.rests_until(who).is_none_or(|until| until <= now && !self.is_trying(now))
    }

    fn concerns(&self, who: Option<u64>) -> bool {
        match self.blame {
            Blame::One(blamed) => who == Some(blamed),
            Blame::Nobody | Blame::Several => true,
        }
    }

    fn is_trying(&self, now: Instant) -> bool {
        self.trying.is_some_and(|since| now.saturating_duration_since(since) < TRIAL_FOR)
    }

    /// Lets a request of `who` through; `Ok(true)`: as the one that is tried. Whoever gets that tells [`Self::began`],
    /// [`Self::ended`] or [`Self::abandoned`].
    ///
    /// # Errors
    /// When to come again; `None`: when the one that is tried has ended.
    pub fn admit(&mut self, who: u64, now: Instant) -> Result<bool, Option<Instant>> {
        let Some(until) = self.rests_until(who) else { return Ok(false) };
        if now < until {
            return Err(Some(until));
        }
        if self.is_trying(now) {
            return Err(None);
        }
        let others_first = until + OTHERS_FIRST;
        if self.blame == Blame::Several && self.tried_last == Some(who) && now < others_first {
            return Err(Some(others_first));
        }
        (self.trying, self.tried_last) = (Some(now), Some(who));
        Ok(true)
    }

    /// An answer has begun. `tried`: it was the one that [`Self::admit`] said so of.
    pub fn began(&mut self, tried: bool) {
        if tried || self.broke_off < DEAD_AFTER {
            (self.until, self.trying) = (None, None);
        }
        // That answers break off is not refuted by one that has begun: the next that does so opens it again.
        self.broke_off = self.broke_off.min(DEAD_AFTER - 1);
        (self.silent, self.in_a_row) = (0, self.broke_off);
        if self.broke_off == 0 {
            self.blame = Blame::Nobody;
        }
    }

    /// A request of `who` has ended; `None`: we looked ourselves. `chance` is between 0 and 1.
    pub fn ended(&mut self, health: Health, who: Option<u64>, reached: Reached, now: Instant, chance: f64) {
        if reached.tried {
            self.trying = None;
        }
        match health {
            Health::Unknown => {}
            // What was sent before it opened says nothing of how it is now, unless it is good.
            Health::Good => *self = Self::default(),
            Health::Busy | Health::Dead if self.until.is_some() && self.concerns(who) && !reached.tried => {}
            Health::Busy | Health::Dead => {
                self.blame(who);
                self.in_a_row = self.in_a_row.saturating_add(1);
                match (health, reached.begun) {
                    (Health::Dead, true) => self.broke_off = self.broke_off.saturating_add(1),
                    (Health::Dead, false) => self.silent = self.silent.saturating_add(1),
                    _ => self.silent = 0,
                }
                let is_dead = self.silent.saturating_add(self.broke_off) >= DEAD_AFTER;
                if reached.tried || is_dead || self.in_a_row >= BUSY_AFTER {
                    self.open(now, chance);
                }
            }
        }
    }

    fn blame(&mut self, who: Option<u64>) {
        let blame = match (self.blame, who) {
            (Blame::Nobody, Some(who)) => Blame::One(who),
            (Blame::One(blamed), Some(who)) if blamed == who => return,
            _ => Blame::Several,
        };
        // However many one of them had: for all of them together it counts as one.
        if matches!(self.blame, Blame::One(_)) {
            (self.silent, self.broke_off) = (self.silent.min(1), self.broke_off.min(1));
            let (blame, tried_last) = (self.blame, self.tried_last);
            let (silent, broke_off) = (self.silent, self.broke_off);
            *self = Self { in_a_row: 1, silent, broke_off, blame, tried_last, ..Self::default() };
        }
        self.blame = blame;
    }

    /// The request that was tried was given up before anything could be said.
    pub fn abandoned(&mut self) {
        self.trying = None;
    }

    /// The target was seen to be well by other means: the next request is tried at once. Whether answers break off cannot be seen.
    pub fn seen_well(&mut self, now: Instant) {
        if let Some(until) = self.until.as_mut().filter(|_| self.broke_off < DEAD_AFTER) {
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

    const AMY: u64 = 1;
    const EVE: u64 = 2;

    const EARLY: Reached = Reached { tried: false, begun: false };
    const LATE: Reached = Reached { tried: false, begun: true };
    const TRIED: Reached = Reached { tried: true, begun: false };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fails(breaker: &mut Breaker, health: Health, who: u64, times: u32, now: Instant) {
        (0..times).for_each(|_| breaker.ended(health, Some(who), EARLY, now, 0.0));
    }

    #[test]
    fn it_opens_tries_once_and_closes() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        fails(&mut breaker, Health::Dead, AMY, 2, start);
        fails(&mut breaker, Health::Busy, AMY, 1, start);
        fails(&mut breaker, Health::Dead, AMY, 1, start);
        assert_eq!(breaker.admit(AMY, start), Ok(false), "three times, but not in a row");
        fails(&mut breaker, Health::Dead, AMY, 2, start);
        assert_eq!((breaker.state(start), breaker.admit(AMY, start)), (State::Open, Err(Some(start + seconds(1)))));
        let later = start + seconds(1);
        assert_eq!(breaker.admit(AMY, later), Ok(true));
        assert_eq!(breaker.admit(AMY, later), Err(None), "one at a time");
        breaker.ended(Health::Dead, Some(AMY), TRIED, later, 0.0);
        assert_eq!(breaker.admit(AMY, later), Err(Some(later + seconds(2))), "twice as long");
        let later = later + seconds(2);
        assert_eq!(breaker.admit(AMY, later), Ok(true));
        breaker.abandoned();
        assert_eq!(breaker.admit(AMY, later), Ok(true), "whoever went away does not block it");
        assert_eq!(breaker.admit(AMY, later + TRIAL_FOR), Ok(true), "nor does whoever takes long");
        breaker.ended(Health::Good, Some(AMY), TRIED, later, 0.0);
        assert_eq!((breaker.state(later), breaker.admit(AMY, later)), (State::Closed, Ok(false)));
    }

    #[test]
    fn a_busy_target_is_used_as_long_as_it_answers_now_and_then() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            fails(&mut breaker, Health::Busy, AMY, 9, start);
            breaker.began(false);
        }
        assert_eq!(breaker.state(start), State::Closed);
        fails(&mut breaker, Health::Busy, AMY, 10, start);
        assert_eq!(breaker.state(start), State::Open);
        breaker.seen_well(start);
        assert_eq!(breaker.admit(AMY, start), Ok(true));
    }

    #[test]
    fn answers_that_begin_do_not_refute_that_they_break_off() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(breaker.admit(AMY, start), Ok(false));
            breaker.began(false);
            breaker.ended(Health::Dead, Some(AMY), LATE, start, 0.0);
        }
        breaker.seen_well(start);
        assert_eq!(breaker.admit(AMY, start), Err(Some(start + seconds(1))), "its page of metrics says nothing of it");
        let mut later = start + seconds(1);
        for rest in [2, 4] {
            assert_eq!(breaker.admit(AMY, later), Ok(true));
            breaker.began(true);
            assert_eq!(breaker.admit(AMY, later), Ok(false), "nobody waits for its end");
            breaker.ended(Health::Dead, Some(AMY), LATE, later, 0.0);
            assert_eq!(breaker.admit(AMY, later), Err(Some(later + seconds(rest))));
            later += seconds(rest);
        }
        assert_eq!(breaker.admit(AMY, later), Ok(true));
        breaker.began(true);
        breaker.ended(Health::Good, Some(AMY), LATE, later, 0.0);
        breaker.ended(Health::Dead, Some(AMY), LATE, later, 0.0);
        assert_eq!(breaker.admit(AMY, later), Ok(false));
    }

    #[test]
    fn one_identity_closes_it_to_itself_alone() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        fails(&mut breaker, Health::Busy, EVE, 1000, start);
        assert!(breaker.admit(EVE, start).is_err() && !breaker.passes(EVE, start));
        assert!(breaker.admit(AMY, start) == Ok(false) && breaker.passes(AMY, start));
        fails(&mut breaker, Health::Busy, AMY, 1, start);
        assert_eq!((breaker.admit(AMY, start), breaker.admit(EVE, start)), (Ok(false), Ok(false)), "two in a row");
        fails(&mut breaker, Health::Busy, AMY, 8, start);
        assert_eq!(breaker.admit(AMY, start), Err(Some(start + seconds(1))), "for the first time");
        breaker.ended(Health::Good, Some(AMY), EARLY, start, 0.0);
        breaker.ended(Health::Dead, None, EARLY, start, 0.0);
        fails(&mut breaker, Health::Dead, EVE, 2, start);
        assert!(breaker.admit(AMY, start).is_err(), "we saw it ourselves");
    }

    #[test]
    fn whoever_failed_last_lets_others_try() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        fails(&mut breaker, Health::Dead, AMY, 1, start);
        fails(&mut breaker, Health::Dead, EVE, 2, start);
        let mut now = start + seconds(1);
        assert_eq!(breaker.admit(EVE, now), Ok(true));
        breaker.ended(Health::Dead, Some(EVE), TRIED, now, 0.0);
        now += seconds(2);
        assert_eq!(breaker.admit(EVE, now), Err(Some(now + OTHERS_FIRST)));
        assert_eq!(breaker.admit(AMY, now), Ok(true));
        breaker.abandoned();
        assert_eq!(breaker.admit(EVE, now + OTHERS_FIRST), Ok(true), "if there are any");
    }

    proptest! {
        #[test]
        fn it_never_stays_open_for_long_and_never_lets_two_try(
            steps in prop::collection::vec((0u64..5_000, 0u8..4, 0.0f64..1.0, 1u64..4, any::<bool>()), 1..200),
        ) {
            let (mut breaker, mut now, mut trying) = (Breaker::default(), Instant::now(), None);
            for (wait, what, chance, who, begun) in steps {
                now += Duration::from_millis(wait);
                let health = [Health::Good, Health::Busy, Health::Dead, Health::Unknown][usize::from(what)];
                match breaker.admit(who, now) {
                    Ok(tried) => {
                        let is_tried_still = trying.is_some_and(|since: Instant| now - since < TRIAL_FOR);
                        prop_assert!(!tried || !is_tried_still);
                        if what == 3 {
                            trying = tried.then_some(now).or(trying);
                            continue;
                        }
                        if begun {
                            breaker.began(tried);
                        }
                        breaker.ended(health, Some(who), Reached { tried: tried && !begun, begun }, now, chance);
                        if tried || breaker.state(now) == State::Closed {
                            trying = None;
                        }
                    }
                    Err(Some(until)) => prop_assert!(until > now && until - now <= OPEN_MOST),
                    Err(None) => {
                        prop_assert!(trying.is_some());
                        breaker.abandoned();
                        trying = None;
                    }
                }
            }
        }
    }
}
