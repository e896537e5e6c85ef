//! A circuit breaker: a target that fails is left alone for a while, then tried with one request. Pure: time and chance are
//! handed in. The pattern is Nygard's ("Release It!", 2007); opening after failures of real requests is what Envoy calls
//! passive outlier detection.
//!
//! A failure may be the request's fault, and whoever sends many such requests must not take a target away from others. So each
//! identity has a circuit of its own, and for everybody's the failures of one alone are never enough.

use std::time::{Duration, Instant};

/// Failures in a row after which it opens, if the target was not there or broke its word.
const DEAD_AFTER: u32 = 3;
/// Failures in a row after which it opens, of whatever kind. A cloud that refuses one request in three as busy does that once in
/// 36,000 requests; it is to be used, not to be left alone.
const BUSY_AFTER: u32 = 10;
/// How long it stays open the first time, doubled each time that the trial fails, and at most.
const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_secs(30);
/// Of those that open it for everybody, so many count at most of one identity.
const DEAD_SHARE: u32 = 2;
const BUSY_SHARE: u32 = 5;
/// Identities with circuits of their own; of more, those that failed last.
const IDENTITIES: usize = 64;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// The breaker of one target: a circuit for everybody, and one for each identity that had failures of late.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    all: Circuit,
    /// Of whom everybody's last trial was.
    tried_last: Option<u64>,
    /// Failures in a row of each identity, and those that we saw ourselves.
    shares: Vec<(Option<u64>, Failures)>,
    own: Vec<(u64, Circuit)>,
}

/// Leave to ask, as the one request that a circuit which rests is tried with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tried {
    all: bool,
    own: bool,
}

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    /// Of whatever kind.
    any: u32,
    /// It was not there, or said nothing in time.
    silent: u32,
    /// An answer broke off that had begun well: only one that ends well shows that it does not do so any more.
    broke_off: u32,
}

impl Failures {
    fn add(&mut self, health: Health, begun: bool) {
        self.any = self.any.saturating_add(1);
        match (health, begun) {
            (Health::Dead, true) => self.broke_off = self.broke_off.saturating_add(1),
            (Health::Dead, false) => self.silent = self.silent.saturating_add(1),
            _ => self.silent = 0,
        }
    }

    fn began(&mut self) {
        // The next that breaks off opens it again.
        self.broke_off = self.broke_off.min(DEAD_AFTER - 1);
        (self.silent, self.any) = (0, self.broke_off);
    }

    fn are_enough(self) -> bool {
        self.silent.saturating_add(self.broke_off) >= DEAD_AFTER || self.any >= BUSY_AFTER
    }

    /// What counts for everybody of those of one identity.
    fn share(self) -> Self {
        let silent = self.silent.min(DEAD_SHARE);
        Self { any: self.any.min(BUSY_SHARE), silent, broke_off: self.broke_off.min(DEAD_SHARE - silent) }
    }
}

#[derive(Debug, Clone, Default)]
struct Circuit {
    failures: Failures,
    /// Set while it is not closed: until when no request passes.
    until: Option<Instant>,
    /// How often it opened since it was last closed.
    opened: u32,
    /// Since when a request of the half-open state is under way.
    trying: Option<Instant>,
}

impl Circuit {
    fn state(&self, now: Instant) -> State {
        match self.until {
            None => State::Closed,
            Some(until) if now < until => State::Open,
            Some(_) => State::HalfOpen,
        }
    }

    fn is_trying(&self, now: Instant) -> bool {
        self.trying.is_some_and(|since| now.saturating_duration_since(since) < TRIAL_FOR)
    }

    /// `Ok(true)`: as a trial.
    fn look(&self, now: Instant) -> Result<bool, Option<Instant>> {
        match self.until {
            None => Ok(false),
            Some(until) if now < until => Err(Some(until)),
            Some(_) if self.is_trying(now) => Err(None),
            Some(_) => Ok(true),
        }
    }

    fn began(&mut self, tried: bool) {
        if tried || self.failures.broke_off < DEAD_AFTER {
            (self.until, self.trying) = (None, None);
        }
        self.failures.began();
    }

    /// One more has failed; `tried`: as a trial.
    fn failed(&mut self, tried: bool, now: Instant, chance: f64) {
        if !tried && !self.failures.are_enough() {
            return;
        }
        let doubled = OPEN_FIRST.saturating_mul(1 << self.opened.min(8)).min(OPEN_MOST);
        self.opened = self.opened.saturating_add(1);
        self.trying = None;
        self.until = Some(now + doubled.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0)));
    }
}

impl Breaker {
    /// How it is; maybe to some identity alone.
    #[must_use]
    pub fn state(&self, now: Instant) -> State {
        let own = self.own.iter().map(|(_, circuit)| circuit.state(now)).max();
        self.all.state(now).max(own.unwrap_or(State::Closed))
    }

    /// Until when it keeps everybody back; what is past is for a trial to end. `None`: it is closed to all but maybe single
    /// identities.
    #[must_use]
    pub fn all_until(&self) -> Option<Instant> {
        self.all.until
    }

    /// To how many identities it is closed alone, as far as they are known.
    #[must_use]
    pub fn kept_out(&self) -> usize {
        self.own.iter().filter(|(_, circuit)| circuit.until.is_some()).count()
    }

    /// Until when no request of `who` passes, if that was so.
    #[must_use]
    pub fn rests_until(&self, who: u64) -> Option<Instant> {
        self.all.until.max(self.own(who).and_then(|own| own.until))
    }

    /// Would a request of `who` pass?
    #[must_use]
    pub fn passes(&self, who: u64, now: Instant) -> bool {
        self.all.look(now).is_ok() && self.own(who).is_none_or(|own| own.look(now).is_ok())
    }

    fn own(&self, who: u64) -> Option<&Circuit> {
        self.own.iter().find(|(other, _)| *other == who).map(|(_, circuit)| circuit)
    }

    fn own_mut(&mut self, who: u64) -> Option<&mut Circuit> {
        self.own.iter_mut().find(|(other, _)| *other == who).map(|(_, circuit)| circuit)
    }

    /// Lets a request of `who` through. Whoever gets leave tells [`Self::began`], [`Self::ended`] or [`Self::abandoned`].
    ///
    /// # Errors
    /// When to come again; `None`: when the one that is tried has ended.
    pub fn admit(&mut self, who: u64, now: Instant) -> Result<Tried, Option<Instant>> {
        let own = self.own(who).map_or(Ok(false), |own| own.look(now))?;
        let all = self.all.look(now)?;
        if let Some(others_first) = self.all.until.map(|until| until + OTHERS_FIRST)
            && self.tried_last == Some(who)
            && now < others_first
        {
            return Err(Some(others_first));
        }
        if all {
            (self.all.trying, self.tried_last) = (Some(now), Some(who));
        }
        if let Some(circuit) = self.own_mut(who).filter(|_| own) {
            circuit.trying = Some(now);
        }
        Ok(Tried { all, own })
    }

    /// An answer to `who` has begun.
    pub fn began(&mut self, who: u64, tried: Tried) {
        self.all.began(tried.all);
        self.shares.iter_mut().for_each(|(_, failures)| failures.began());
        self.shares.retain(|(_, failures)| failures.any > 0);
        if let Some(own) = self.own_mut(who) {
            own.began(tried.own);
        }
    }

    /// A request of `who` has ended, whose answer had `begun`; `None`: we looked ourselves. `chance` is between 0 and 1.
    pub fn ended(&mut self, health: Health, who: Option<u64>, tried: Tried, begun: bool, now: Instant, chance: f64) {
        match health {
            Health::Unknown => self.abandoned(who.unwrap_or_default(), tried),
            // What was sent before it opened says nothing of how it is now, unless it is good.
            Health::Good => {
                (self.all, self.tried_last) = (Circuit::default(), None);
                self.shares.clear();
                self.own.retain(|(other, _)| Some(*other) != who);
            }
            Health::Busy | Health::Dead => {
                if tried.all || self.all.until.is_none() {
                    self.all.failures = self.shared(who, health, begun);
                    self.all.failed(tried.all, now, chance);
                }
                let Some(who) = who else { return };
                let mut own = self.take_own(who);
                if tried.own || own.until.is_none() {
                    own.failures.add(health, begun);
                    own.failed(tried.own, now, chance);
                }
                self.own.push((who, own));
            }
        }
    }

    /// The failures of all, each identity's up to its share.
    fn shared(&mut self, who: Option<u64>, health: Health, begun: bool) -> Failures {
        match self.shares.iter_mut().find(|(other, _)| *other == who) {
            Some((_, failures)) => failures.add(health, begun),
            None => {
                let mut failures = Failures::default();
                failures.add(health, begun);
                // As many as are needed to open it.
                if self.shares.len() < BUSY_AFTER as usize {
                    self.shares.push((who, failures));
                }
            }
        }
        self.shares.iter().fold(Failures::default(), |sum, (who, each)| {
            let share = if who.is_some() { each.share() } else { *each };
            Failures {
                any: sum.any.saturating_add(share.any),
                silent: sum.silent.saturating_add(share.silent),
                broke_off: sum.broke_off.saturating_add(share.broke_off),
            }
        })
    }

    /// With room for it to be put back.
    fn take_own(&mut self, who: u64) -> Circuit {
        match self.own.iter().position(|(other, _)| *other == who) {
            Some(at) => self.own.remove(at).1,
            None => {
                if self.own.len() >= IDENTITIES {
                    self.own.remove(0);
                }
                Circuit::default()
            }
        }
    }

    /// The request was given up before anything could be said.
    pub fn abandoned(&mut self, who: u64, tried: Tried) {
        if tried.all {
            self.all.trying = None;
        }
        if let Some(own) = self.own_mut(who).filter(|_| tried.own) {
            own.trying = None;
        }
    }

    /// The target was seen to be well by other means: the next request is tried at once. Whether answers break off cannot be seen.
    pub fn seen_well(&mut self, now: Instant) {
        let circuits = self.own.iter_mut().map(|(_, own)| own).chain([&mut self.all]);
        for circuit in circuits.filter(|circuit| circuit.failures.broke_off == 0) {
            circuit.until = circuit.until.map(|until| until.min(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AMY: u64 = 1;
    const EVE: u64 = 2;

    const FREELY: Tried = Tried { all: false, own: false };
    const OWN_TRIAL: Tried = Tried { all: false, own: true };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fails(breaker: &mut Breaker, health: Health, who: u64, times: u32, now: Instant) {
        (0..times).for_each(|_| breaker.ended(health, Some(who), FREELY, false, now, 0.0));
    }

    #[test]
    fn it_opens_tries_once_and_closes() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        fails(&mut breaker, Health::Dead, AMY, 2, start);
        fails(&mut breaker, Health::Busy, AMY, 1, start);
        fails(&mut breaker, Health::Dead, AMY, 1, start);
        assert_eq!(breaker.admit(AMY, start), Ok(FREELY), "three times, but not in a row");
        fails(&mut breaker, Health::Dead, AMY, 2, start);
        assert_eq!((breaker.state(start), breaker.admit(AMY, start)), (State::Open, Err(Some(start + seconds(1)))));
        let later = start + seconds(1);
        assert_eq!(breaker.admit(AMY, later), Ok(OWN_TRIAL));
        assert_eq!(breaker.admit(AMY, later), Err(None), "one at a time");
        breaker.ended(Health::Dead, Some(AMY), OWN_TRIAL, false, later, 0.0);
        assert_eq!(breaker.admit(AMY, later), Err(Some(later + seconds(2))), "twice as long");
        let later = later + seconds(2);
        assert_eq!(breaker.admit(AMY, later), Ok(OWN_TRIAL));
        breaker.abandoned(AMY, OWN_TRIAL);
        assert_eq!(breaker.admit(AMY, later), Ok(OWN_TRIAL), "whoever went away does not block it");
        assert_eq!(breaker.admit(AMY, later + TRIAL_FOR), Ok(OWN_TRIAL), "nor does whoever takes long");
        breaker.ended(Health::Good, Some(AMY), OWN_TRIAL, false, later, 0.0);
        assert_eq!((breaker.state(later), breaker.admit(AMY, later)), (State::Closed, Ok(FREELY)));
    }

    #[test]
    fn a_busy_target_is_used_as_long_as_it_answers_now_and_then() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            fails(&mut breaker, Health::Busy, AMY, 9, start);
            breaker.began(AMY, FREELY);
        }
        assert_eq!(breaker.state(start), State::Closed);
        fails(&mut breaker, Health::Busy, AMY, 10, start);
        assert_eq!(breaker.state(start), State::Open);
        breaker.seen_well(start);
        assert_eq!(breaker.admit(AMY, start), Ok(OWN_TRIAL));
    }

    #[test]
    fn answers_that_begin_do_not_refute_that_they_break_off() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            assert_eq!(breaker.admit(AMY, start), Ok(FREELY));
            breaker.began(AMY, FREELY);
            breaker.ended(Health::Dead, Some(AMY), FREELY, true, start, 0.0);
        }
        breaker.seen_well(start);
        assert_eq!(breaker.admit(AMY, start), Err(Some(start + seconds(1))), "its page of metrics says nothing of it");
        let mut later = start + seconds(1);
        for rest in [2, 4] {
            assert_eq!(breaker.admit(AMY, later), Ok(OWN_TRIAL));
            breaker.began(AMY, OWN_TRIAL);
            assert_eq!(breaker.admit(AMY, later), Ok(FREELY), "nobody waits for its end");
            breaker.ended(Health::Dead, Some(AMY), FREELY, true, later, 0.0);
            assert_eq!(breaker.admit(AMY, later), Err(Some(later + seconds(rest))));
            later += seconds(rest);
        }
        assert_eq!(breaker.admit(AMY, later), Ok(OWN_TRIAL));
        breaker.began(AMY, OWN_TRIAL);
        breaker.ended(Health::Good, Some(AMY), FREELY, true, later, 0.0);
        breaker.ended(Health::Dead, Some(AMY), FREELY, true, later, 0.0);
        assert_eq!(breaker.admit(AMY, later), Ok(FREELY));
    }

    #[test]
    fn one_identity_closes_it_to_itself_alone() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        fails(&mut breaker, Health::Busy, EVE, 1000, start);
        fails(&mut breaker, Health::Busy, AMY, 4, start);
        assert!(breaker.admit(EVE, start).is_err() && !breaker.passes(EVE, start));
        assert_eq!(breaker.kept_out(), 1);
        assert!(breaker.admit(AMY, start) == Ok(FREELY) && breaker.passes(AMY, start));
        fails(&mut breaker, Health::Busy, AMY, 1, start);
        assert_eq!(breaker.admit(3, start), Err(Some(start + seconds(1))), "as many of two is enough for everybody");
        breaker.ended(Health::Good, Some(AMY), FREELY, false, start, 0.0);
        assert!(breaker.passes(3, start) && !breaker.passes(EVE, start), "of what Eve asks it says nothing");
        (0..3).for_each(|_| breaker.ended(Health::Dead, None, FREELY, false, start, 0.0));
        assert!(!breaker.passes(3, start), "we saw it ourselves");
    }

    #[test]
    fn whoever_failed_last_lets_others_try() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        fails(&mut breaker, Health::Dead, AMY, 1, start);
        fails(&mut breaker, Health::Dead, EVE, 2, start);
        let mut now = start + seconds(1);
        let tried = breaker.admit(EVE, now).unwrap();
        assert!(tried.all && !tried.own);
        breaker.ended(Health::Dead, Some(EVE), tried, false, now, 0.0);
        now += seconds(2);
        assert_eq!(breaker.admit(EVE, now), Err(Some(now + OTHERS_FIRST)));
        let tried = breaker.admit(AMY, now).unwrap();
        assert!(tried.all);
        breaker.abandoned(AMY, tried);
        assert!(breaker.admit(EVE, now + OTHERS_FIRST).unwrap().all, "if there are any");
    }

    #[test]
    fn what_is_known_of_identities_is_bounded() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        for who in 0..1000 {
            breaker.ended(Health::Busy, Some(who), FREELY, false, start, 0.0);
        }
        assert!(breaker.own.len() <= IDENTITIES && breaker.shares.len() <= BUSY_AFTER as usize);
    }

    proptest! {
        #[test]
        fn it_never_stays_open_for_long_and_never_lets_two_try(
            steps in prop::collection::vec((0u64..5_000, 0u8..4, 0.0f64..1.0, 1u64..4, any::<bool>()), 1..200),
        ) {
            let (mut breaker, mut now, mut trying) = (Breaker::default(), Instant::now(), None::<Instant>);
            for (wait, what, chance, who, begun) in steps {
                now += Duration::from_millis(wait);
                let health = [Health::Good, Health::Busy, Health::Dead, Health::Unknown][usize::from(what)];
                match breaker.admit(who, now) {
                    Ok(tried) => {
                        prop_assert!(!tried.all || trying.is_none_or(|since| now - since >= TRIAL_FOR));
                        if what == 3 {
                            trying = if tried.all { Some(now) } else { trying };
                            continue;
                        }
                        let mut left = tried;
                        if begun {
                            breaker.began(who, tried);
                            left = FREELY;
                        }
                        breaker.ended(health, Some(who), left, begun, now, chance);
                        if tried.all || breaker.all.until.is_none() {
                            trying = None;
                        }
                    }
                    Err(until) => {
                        prop_assert!(until.is_none_or(|until| until > now && until - now <= OPEN_MOST));
                        prop_assert!(!breaker.passes(who, now) || until.is_some_and(|at| at - now <= OTHERS_FIRST));
                    }
                }
            }
        }
    }
}
