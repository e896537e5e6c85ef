//! When to renew a certificate, and when to worry. Pure: the caller brings the time, the chance and the history.
//!
//! Everything is a fraction of the certificate's life, so that a leaf of one minute in a test goes through the same
//! stages as one of three days in an office: renewal at half of it, a warning at two thirds (48 h of 72), an alarm at
//! five sixths (60 h of 72).

use serde::Serialize;
use time::{Duration, OffsetDateTime};

/// A renewal falls due at half of the life, sooner or later by up to this part of that half: a thousand workstations
/// that were enrolled in the same minute must not come back in the same minute.
pub const SPREAD: f64 = 0.10;
/// The first wait after a failure, for a life of three days or more; doubled for each further one.
pub const FIRST_RETRY: Duration = Duration::MINUTE;
/// The longest wait after a failure, for a life of three days or more.
pub const LAST_RETRY: Duration = Duration::HOUR;

/// A wait after a failure is shorter by up to this part of it: those who failed together must not come back together.
pub const RETRY_SPREAD: f64 = 0.25;

/// The fraction of the golden ratio.
const GOLDEN: f64 = 0.618_033_988_749_894_9;
/// The shortest wait after a failure, however short the life.
const LEAST_RETRY: Duration = Duration::SECOND;
/// `FIRST_RETRY` and `LAST_RETRY` as fractions of 72 h: shorter lives have shorter waits.
const FIRST_RETRY_PER_LIFE: i32 = 72 * 60;
const LAST_RETRY_PER_LIFE: i32 = 72;
/// More doublings than this are beyond `LAST_RETRY` in any case.
const MAX_DOUBLINGS: u32 = 16;

/// The life of one certificate, and the moment to renew it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    due: OffsetDateTime,
    jitter: f64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for a new certificate, and then ask the schedule again.
    RenewNow,
    /// Nothing before this time. Ask again then, and also after the machine slept or its clock was set: it is wall
    /// time.
    WaitUntil(OffsetDateTime),
}

/// How far a certificate is through its life; in order of concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Less than two thirds are over.
    Good,
    /// Two thirds are over, so several renewals have failed: tell the operator.
    Warning,
    /// Five sixths are over: wake the operator.
    Alarm,
    /// Nobody accepts it any more; stop serving with it.
    Expired,
}

/// The renewals of one certificate that failed in a row. A new certificate begins with `Failures::default()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    count: u32,
    last: Option<OffsetDateTime>,
}

impl Failures {
    /// These, and one more at `now`.
    #[must_use]
    pub fn and_at(self, now: OffsetDateTime) -> Self {
        Self { count: self.count.saturating_add(1), last: Some(now) }
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }
}

impl Schedule {
    /// The schedule of a certificate. `jitter` is a random number from 0 up to 1, drawn once for this certificate: it
    /// moves the renewal between 45 % and 55 % of the life, and shortens the waits after failures. A number outside of that range counts as the nearest one
    /// inside.
    #[must_use]
    pub fn new(not_before: OffsetDateTime, not_after: OffsetDateTime, jitter: f64) -> Self {
        let jitter = if jitter.is_nan() { 0.5 } else { jitter.clamp(0.0, 1.0) };
        let fraction = 0.5 * (1.0 + SPREAD * (2.0 * jitter - 1.0));
        let due = not_before.saturating_add(scale(life(not_before, not_after), fraction));
        Self { not_before, not_after, due, jitter }
    }

    /// When the first renewal is due.
    #[must_use]
    pub fn due(&self) -> OffsetDateTime {
        self.due
    }

    /// What to do at `now`, after these failures.
    #[must_use]
    pub fn next(&self, now: OffsetDateTime, failures: Failures) -> Action {
        if now < self.due {
            return Action::WaitUntil(self.due);
        }
        match failures.last {
            // A failure in the future means that the clock was set back since: waiting for that time could outlast
            // the leaf.
            Some(last) if last <= now => {
                let again = last.saturating_add(self.pause_after(failures.count));
                if now < again { Action::WaitUntil(again) } else { Action::RenewNow }
            }
            _ => Action::RenewNow,
        }
    }

    /// How concerned to be at `now`.
    #[must_use]
    pub fn health(&self, now: OffsetDateTime) -> Health {
        let life = life(self.not_before, self.not_after);
        let reached =
            |numerator: i32, denominator: i32| now >= self.not_before.saturating_add(life / denominator * numerator);
        // RFC 5280, section 4.1.2.5: the last second still belongs to the life.
        if now > self.not_after {
            Health::Expired
        } else if reached(5, 6) {
            Health::Alarm
        } else if reached(2, 3) {
            Health::Warning
        } else {
            Health::Good
        }
    }

    /// One minute, doubled for each failure, up to one hour; less for a life under three days.
    fn pause_after(&self, failures: u32) -> Duration {
        let life = life(self.not_before, self.not_after);
        let first = (life / FIRST_RETRY_PER_LIFE).clamp(LEAST_RETRY, FIRST_RETRY);
        let last = (life / LAST_RETRY_PER_LIFE).clamp(LEAST_RETRY, LAST_RETRY);
        let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
        let pause = (first * (1_i32 << doublings)).min(last);
        // Steps of the golden ratio: spread evenly whatever the first number was, and another one after each failure.
        let turn = (self.jitter + f64::from(failures.min(1000)) * GOLDEN).fract();
        scale(pause, 1.0 - RETRY_SPREAD * turn).max(LEAST_RETRY)
    }
}

/// How far a switch to a new root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSwitch {
    /// Everyone is told of the new root at the next renewal; the old one issues.
    TrustBoth,
    /// Whoever has a valid leaf knows both; the new root issues.
    IssueNew,
    /// Nothing below the old root is valid any more; it can go.
    DropOld,
}

/// How far a switch that began at `began` is, where leaves live for `leaf_ttl` and the old root until `old_ends`.
///
/// Each step waits for the longest life of a leaf: whoever was away for longer has to be invited again in any case.
/// The end of the old root is the end of everything below it, so nothing is waited for after that.
#[must_use]
pub fn root_switch(
    began: OffsetDateTime,
    leaf_ttl: Duration,
    old_ends: OffsetDateTime,
    now: OffsetDateTime,
) -> RootSwitch {
    let told = began.saturating_add(leaf_ttl);
    if now > old_ends || now >= told.saturating_add(leaf_ttl) {
        RootSwitch::DropOld
    } else if now >= told {
        RootSwitch::IssueNew
    } else {
        RootSwitch::TrustBoth
    }
}

/// From the first moment to the last; nothing for a certificate that ends before it begins.
fn life(not_before: OffsetDateTime, not_after: OffsetDateTime) -> Duration {
    (not_after - not_before).max(Duration::ZERO)
}

fn scale(span: Duration, fraction: f64) -> Duration {
    Duration::saturating_seconds_f64(span.as_seconds_f64() * fraction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-11-01 08:00 UTC);

    fn after(hours: f64) -> OffsetDateTime {
        START + Duration::seconds_f64(hours * 3600.0)
    }

    fn three_days(jitter: f64) -> Schedule {
        Schedule::new(START, after(72.0), jitter)
    }

    #[test]
    fn renews_at_half_life_within_ten_percent() {
        assert_eq!(three_days(0.0).due(), after(32.4));
        assert_eq!(three_days(0.5).due(), after(36.0));
        assert_eq!(three_days(1.0).due(), after(39.6));
        assert_eq!(three_days(-7.0), three_days(0.0));
        assert_eq!(three_days(7.0), three_days(1.0));
        assert_eq!(three_days(f64::NAN), three_days(0.5));

        let schedule = three_days(0.5);
        assert_eq!(schedule.next(START, Failures::default()), Action::WaitUntil(after(36.0)));
        assert_eq!(schedule.next(after(35.99), Failures::default()), Action::WaitUntil(after(36.0)));
        assert_eq!(schedule.next(after(36.0), Failures::default()), Action::RenewNow);
        assert_eq!(schedule.next(after(500.0), Failures::default()), Action::RenewNow, "also long after the end");
    }

    #[test]
    fn retries_from_a_minute_to_an_hour() {
        let schedule = three_days(0.5);
        let mut failures = Failures::default();
        let now = after(40.0);
        for (count, minutes) in [1, 2, 4, 8, 16, 32, 60, 60, 60].into_iter().enumerate() {
            failures = failures.and_at(now);
            assert_eq!(failures.count() as usize, count + 1);
            let Action::WaitUntil(again) = schedule.next(now, failures) else { panic!("no pause") };
            let longest = Duration::minutes(minutes);
            assert!((longest * 0.75..=longest).contains(&(again - now)), "{count}: {}", again - now);
            assert_eq!(schedule.next(again - Duration::SECOND, failures), Action::WaitUntil(again));
            assert_eq!(schedule.next(again, failures), Action::RenewNow);
        }
        let endless = Failures { count: u32::MAX, last: Some(now) };
        let Action::WaitUntil(again) = schedule.next(now, endless.and_at(now)) else { panic!("no pause") };
        assert!((now + Duration::minutes(45)..=now + Duration::HOUR).contains(&again));
        let pauses: Vec<_> = (0..50).map(|i| three_days(f64::from(i) / 50.0).pause_after(3)).collect();
        let distinct: std::collections::BTreeSet<_> = pauses.iter().collect();
        assert!(distinct.len() > 40, "those who failed together come back together");
    }

    #[test]
    fn a_short_life_is_retried_sooner_but_not_without_pause() {
        let minute = Schedule::new(START, START + Duration::MINUTE, 0.5);
        let now = START + Duration::seconds(31);
        for count in 1..20 {
            let failures = Failures { count, last: Some(now) };
            assert_eq!(minute.next(now, failures), Action::WaitUntil(now + Duration::SECOND));
        }
    }

    #[test]
    fn a_clock_set_back_does_not_stop_retries() {
        let failures = Failures::default().and_at(after(400.0));
        assert_eq!(three_days(0.5).next(after(40.0), failures), Action::RenewNow);
    }

    #[test]
    fn worries_at_two_thirds_and_five_sixths() {
        let schedule = three_days(0.5);
        for (hours, health) in [
            (-1.0, Health::Good),
            (0.0, Health::Good),
            (47.99, Health::Good),
            (48.0, Health::Warning),
            (59.99, Health::Warning),
            (60.0, Health::Alarm),
            (72.0, Health::Alarm),
            (72.001, Health::Expired),
        ] {
            assert_eq!(schedule.health(after(hours)), health, "at {hours} h");
        }
    }

    #[test]
    fn a_root_switch_waits_for_every_leaf_twice() {
        let end = after(10_000.0);
        let phase = |hours| root_switch(START, Duration::hours(72), end, after(hours));
        assert_eq!([phase(0.0), phase(71.9)], [RootSwitch::TrustBoth; 2]);
        assert_eq!([phase(72.0), phase(143.9)], [RootSwitch::IssueNew; 2]);
        assert_eq!([phase(144.0), phase(9_000.0)], [RootSwitch::DropOld; 2]);
        let short = |hours| root_switch(START, Duration::hours(72), after(24.0), after(hours));
        assert_eq!([short(24.0), short(24.1)], [RootSwitch::TrustBoth, RootSwitch::DropOld], "the old root ends first");
    }

    #[test]
    fn a_life_that_ends_before_it_begins_is_renewed_at_once() {
        let nonsense = Schedule::new(START, after(-1.0), 0.5);
        assert_eq!(nonsense.next(START, Failures::default()), Action::RenewNow);
        assert_eq!(nonsense.health(START), Health::Expired);
    }

    proptest! {
        #[test]
        fn whoever_follows_the_schedule_always_gets_to_renew_in_time(
            life_s in 20_i64..400_000_000,
            jitter in 0.0..1.0,
            fails in 0_u32..4,
        ) {
            let schedule = Schedule::new(START, START + Duration::seconds(life_s), jitter);
            let (mut now, mut failures) = (START, Failures::default());
            for _ in 0..=2 * fails {
                match schedule.next(now, failures) {
                    Action::WaitUntil(later) => {
                        prop_assert!(later > now, "a wait goes forward");
                        now = later;
                    }
                    Action::RenewNow => failures = failures.and_at(now),
                }
            }
            prop_assert!(schedule.health(now) <= Health::Warning, "three failures are no alarm");
        }

        #[test]
        fn concern_only_grows(life_s in 1_i64..400_000_000, a in -10_i64..500_000_000, b in -10_i64..500_000_000) {
            let schedule = Schedule::new(START, START + Duration::seconds(life_s), 0.5);
            let (a, b) = (a.min(b), a.max(b));
            let health = |seconds| schedule.health(START + Duration::seconds(seconds));
            prop_assert!(health(a) <= health(b));
        }
    }
}
