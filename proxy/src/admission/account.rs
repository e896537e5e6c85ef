//! What one identity, or one tenant, may use in a minute, a day and a month. Pure: the time is handed in.
//!
//! A minute is a bucket that fills all the time; a day and a month are those of the calendar, in UTC. What a request may use is taken
//! before it is sent, and corrected when it has ended, so that requests at the same time cannot overspend together.
//!
//! Of several gateways that count together each has an account, which says what it used itself, and what it heard last of the others.
//! While they cannot hear of each other, each may use its part of what was left then.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime};

use super::ledger::Ledger;

/// When a place may be free again: nobody knows.
const SOON: Duration = Duration::from_secs(1);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Requests.
    Requests,
    /// Tokens, those of prompts and of answers.
    Tokens,
    /// Tokens of prompts.
    InputTokens,
    /// Tokens of answers.
    OutputTokens,
    /// Money, in millionths.
    Cost,
    /// Places: what a request holds until it has ended.
    Places,
}

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// Any minute, about.
    Minute,
    /// A day of the calendar, in UTC.
    Day,
    /// A month of the calendar, in UTC.
    Month,
    /// At a time.
    Now,
}

/// At most `most` in a `period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What is counted.
    pub measure: Measure,
    /// For how long.
    pub period: Period,
    /// The limit.
    pub most: u64,
}

/// What a request uses, or may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of answers.
    pub output: u64,
    /// Money, in millionths.
    pub cost: u64,
    /// Places.
    pub places: u64,
}

impl Amount {
    /// How much of one measure.
    #[must_use]
    pub fn of(self, measure: Measure) -> u64 {
        match measure {
            Measure::Requests => self.requests,
            Measure::Tokens => self.input.saturating_add(self.output),
            Measure::InputTokens => self.input,
            Measure::OutputTokens => self.output,
            Measure::Cost => self.cost,
            Measure::Places => self.places,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(more.requests),
            input: self.input.saturating_add(more.input),
            output: self.output.saturating_add(more.output),
            cost: self.cost.saturating_add(more.cost),
            places: self.places.saturating_add(more.places),
        }
    }
}

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For minutes.
    pub instant: Instant,
    /// For days and months.
    pub time: OffsetDateTime,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: OffsetDateTime::now_utc() }
    }
}

/// A rule says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub rule: Rule,
    /// When there may be room again.
    pub retry_after: Duration,
}

/// What was taken, rule by rule; to be corrected once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken(Vec<Piece>);

/// What was taken by one rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Piece {
    /// Of what is known here.
    here: u64,
    /// In which day or month.
    number: u32,
    /// Of the minute of all together: one that asks for more than there is takes less.
    together: u64,
}

impl Taken {
    /// As much more.
    pub fn add(&mut self, more: &Self) {
        self.0.resize(self.0.len().max(more.0.len()), Piece::default());
        for (before, more) in self.0.iter_mut().zip(&more.0) {
            *before = Piece {
                here: before.here.saturating_add(more.here),
                number: if before.here == 0 { more.number } else { before.number },
                together: before.together.saturating_add(more.together),
            };
        }
    }

    /// So much was taken of the minutes of all together, rule by rule.
    pub fn together(&mut self, took: impl Iterator<Item = u64>) {
        self.0.iter_mut().zip(took).for_each(|(piece, took)| piece.together = took);
    }

    /// So much was used, by the same rules.
    pub fn is_now(&mut self, rules: &[Rule], used: Amount) {
        for (piece, rule) in self.0.iter_mut().zip(rules) {
            (piece.here, piece.together) = (used.of(rule.measure), used.of(rule.measure));
        }
    }

    /// What all together have of this, by the rule of that place; `None`: it was of another day, or month.
    #[must_use]
    pub fn told(&self, place: usize, known: &Known) -> Option<u64> {
        let piece = self.0.get(place)?;
        match known.rule.period {
            Period::Minute => Some(piece.together),
            _ => (piece.number == known.number).then_some(piece.here),
        }
    }
}

/// How a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The rule.
    pub rule: Rule,
    /// What is left.
    pub left: u64,
    /// After how long it is whole again.
    pub whole_in: Duration,
}

/// What was used of a rule of a calendar, to be kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// What is counted.
    pub measure: Measure,
    /// For how long.
    pub period: Period,
    /// Which day or month, counted from the beginning of our era.
    pub number: u32,
    /// How much.
    pub spent: u64,
}

impl Spent {
    /// Has its day, or month, passed?
    #[must_use]
    pub fn is_over(&self, now: Moment) -> bool {
        self.number < number_of(self.period, now.time.date())
    }
}

/// The rules of one identity or tenant, and what was used of them.
#[derive(Debug)]
pub struct Account {
    gauges: Vec<Gauge>,
    /// How many gateways count together; 1: this one counts alone.
    parts: NonZeroU16,
    /// Those who count together were told of it, since this gateway started.
    pub is_told: bool,
}

#[derive(Debug)]
struct Gauge {
    rule: Rule,
    filling: Filling,
}

#[derive(Debug)]
enum Filling {
    /// What may be used alone; and how it stands with all together, where there are others.
    Bucket {
        own: Ledger,
        all: Option<Ledger>,
    },
    Calendar {
        number: u32,
        spent: u64,
        heard: Heard,
    },
    Running {
        running: u64,
        /// Elsewhere, as it was heard last.
        others: u64,
        /// Those who count together may think otherwise of this gateway.
        unsure: bool,
    },
}

/// What was known last, when all counted together.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    /// What the others had used.
    others: u64,
    /// What this one had.
    own: u64,
}

/// What one rule is about, for those who count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The rule.
    pub rule: Rule,
    /// Which day or month; 0 for all else.
    pub number: u32,
    /// What this gateway used of a day or month, or holds; how full the bucket of a minute may be, going by what it used.
    pub own: u64,
    /// What it heard last that the others have used, or hold.
    pub others: u64,
}

impl Gauge {
    /// Goes on to the day, or month, that it is. A clock that was set back changes nothing: what was spent stays spent.
    fn turn(&mut self, now: Moment) {
        if let Filling::Calendar { number, spent, heard } = &mut self.filling {
            let today = number_of(self.rule.period, now.time.date());
            if today > *number {
                (*number, *spent, *heard) = (today, 0, Heard::default());
            }
        }
    }

    /// Is there room for so much, going by what is known here?
    fn room(&mut self, wanted: u64, parts: NonZeroU16, now: Moment) -> Result<(), Refused> {
        self.turn(now);
        let rule = self.rule;
        let refused = |retry_after| Err(Refused { rule, retry_after });
        match &mut self.filling {
            Filling::Bucket { own, .. } => match own.room(now.instant, wanted) {
                Some(wait) => refused(wait),
                None => Ok(()),
            },
            Filling::Calendar { spent, heard, .. } => {
                let left_then = rule.most.saturating_sub(heard.own).saturating_sub(heard.others);
                let may_use = heard.own.saturating_add(left_then / u64::from(parts.get()));
                match wanted > 0 && spent.saturating_add(wanted) > may_use {
                    true => refused(until_next(rule.period, now.time)),
                    false => Ok(()),
                }
            }
            // What the others hold changes all the time: each has its part, whatever was heard, and everybody may ask.
            Filling::Running { running, .. } => {
                let part = (rule.most / u64::from(parts.get())).max(1);
                if wanted > 0 && running.saturating_add(wanted) > part { refused(SOON) } else { Ok(()) }
            }
        }
    }

    fn take(&mut self, wanted: u64, now: Moment) -> (u64, u32) {
        match &mut self.filling {
            Filling::Bucket { own, all } => {
                if let Some(all) = all {
                    all.take(now.instant, wanted);
                }
                (own.take(now.instant, wanted), 0)
            }
            Filling::Calendar { number, spent, .. } => {
                *spent = spent.saturating_add(wanted);
                (wanted, *number)
            }
            Filling::Running { running, unsure, .. } => {
                (*running, *unsure) = (running.saturating_add(wanted), true);
                (wanted, 0)
            }
        }
    }

    fn correct(&mut self, (taken, of): (u64, u32), used: u64) {
        match &mut self.filling {
            Filling::Bucket { own, all } => {
                all.iter_mut().for_each(|all| all.correct(taken, used));
                own.correct(taken, used);
            }
            // What began yesterday was yesterday's.
            Filling::Calendar { number, spent, .. } if *number == of => {
                *spent = spent.saturating_sub(taken).saturating_add(used);
            }
            Filling::Calendar { .. } => {}
            Filling::Running { running, unsure, .. } => {
                (*running, *unsure) = (running.saturating_sub(taken).saturating_add(used), true);
            }
        }
    }

    fn standing(&mut self, now: Moment) -> Standing {
        self.turn(now);
        let rule = self.rule;
        let (left, whole_in) = match &mut self.filling {
            Filling::Bucket { own, all } => {
                let ledger = all.as_mut().unwrap_or(own);
                (ledger.available(now.instant), ledger.full_in(now.instant))
            }
            Filling::Calendar { spent, heard, .. } => {
                (rule.most.saturating_sub(*spent).saturating_sub(heard.others), until_next(rule.period, now.time))
            }
            Filling::Running { running, others, .. } => {
                (rule.most.saturating_sub(*running).saturating_sub(*others), Duration::ZERO)
            }
        };
        Standing { rule, left, whole_in }
    }
}

impl Account {
    /// With what was spent before; `parts`: of one of so many gateways.
    #[must_use]
    pub fn new(rules: &[Rule], before: &[Spent], parts: NonZeroU16, now: Moment) -> Self {
        let gauge = |rule: &Rule| {
            let filling = match rule.period {
                Period::Minute => {
                    let most = u32::try_from(rule.most).unwrap_or(u32::MAX);
                    let own = Ledger::new(most / u32::from(parts.get()), now.instant);
                    let all = (parts.get() > 1).then(|| Ledger::new(most, now.instant));
                    Filling::Bucket { own, all }
                }
                Period::Day | Period::Month => {
                    let number = number_of(rule.period, now.time.date());
                    let kept = before.iter().find(|kept| (kept.measure, kept.period) == (rule.measure, rule.period));
                    // One of the future was written by a clock that was wrong, then or now. It counts until it has come.
                    let kept = kept.filter(|kept| kept.number >= number);
                    let (number, spent) = kept.map_or((number, 0), |kept| (kept.number, kept.spent));
                    Filling::Calendar { number, spent, heard: Heard::default() }
                }
                Period::Now => Filling::Running { running: 0, others: 0, unsure: false },
            };
            Gauge { rule: *rule, filling }
        };
        Self { gauges: rules.iter().map(gauge).collect(), parts, is_told: false }
    }

    /// Is there room for so much, going by what is known here?
    ///
    /// # Errors
    /// A rule says no: the one that says no for longest.
    pub fn room(&mut self, amount: Amount, now: Moment) -> Result<(), Refused> {
        let refusals = self.gauges.iter_mut().filter_map(|gauge| {
            let wanted = amount.of(gauge.rule.measure);
            gauge.room(wanted, self.parts, now).err()
        });
        refusals.max_by_key(|refused| refused.retry_after).map_or(Ok(()), Err)
    }

    /// Takes so much, whether there is room or not, in addition to what was `taken`.
    pub fn take(&mut self, amount: Amount, taken: &mut Taken, now: Moment) {
        let more = self.gauges.iter_mut().map(|gauge| gauge.take(amount.of(gauge.rule.measure), now));
        taken.add(&Taken(more.map(|(here, number)| Piece { here, number, together: 0 }).collect()));
    }

    /// Corrects what was taken when it is known what was used.
    pub fn correct(&mut self, taken: &mut Taken, used: Amount) {
        for (gauge, taken) in self.gauges.iter_mut().zip(&mut taken.0) {
            let used = used.of(gauge.rule.measure);
            gauge.correct((taken.here, taken.number), used);
            (taken.here, taken.together) = (used, used);
        }
    }

    /// Gives back the places alone, which a request holds until it has ended.
    pub fn leave(&mut self, taken: &mut Taken) {
        let places = self.gauges.iter_mut().zip(&mut taken.0).filter(|(gauge, _)| gauge.rule.period == Period::Now);
        for (gauge, taken) in places {
            gauge.correct((std::mem::take(&mut taken.here), taken.number), 0);
        }
    }

    /// How each rule stands.
    pub fn standings(&mut self, now: Moment) -> impl Iterator<Item = Standing> {
        self.gauges.iter_mut().map(move |gauge| gauge.standing(now))
    }

    /// What has to be told again to who has lost it, and what was heard of the others.
    pub fn to_tell(&self) -> impl Iterator<Item = (Spent, u64)> {
        self.gauges.iter().filter_map(|gauge| match gauge.filling {
            Filling::Calendar { number, spent, heard } if spent > 0 || heard.others > 0 => {
                let spent = Spent { measure: gauge.rule.measure, period: gauge.rule.period, number, spent };
                Some((spent, heard.others))
            }
            Filling::Running { running, unsure, .. } if running > 0 || unsure => {
                Some((Spent { measure: gauge.rule.measure, period: Period::Now, number: 0, spent: running }, 0))
            }
            _ => None,
        })
    }

    /// What has to be kept over a restart.
    pub fn spent(&self) -> impl Iterator<Item = Spent> {
        self.gauges.iter().filter_map(|gauge| match gauge.filling {
            Filling::Calendar { number, spent, .. } if spent > 0 => {
                Some(Spent { measure: gauge.rule.measure, period: gauge.rule.period, number, spent })
            }
            _ => None,
        })
    }

    /// What those who count together need to know of each rule.
    pub fn known(&mut self, now: Moment) -> impl Iterator<Item = Known> {
        let parts = u64::from(self.parts.get());
        self.gauges.iter_mut().map(move |gauge| {
            gauge.turn(now);
            let rule = gauge.rule;
            let (number, own, others) = match &mut gauge.filling {
                // If nobody knows better: the others have used as much of theirs.
                Filling::Bucket { own, .. } => (0, own.available(now.instant).saturating_mul(parts).min(rule.most), 0),
                Filling::Calendar { number, spent, heard } => (*number, *spent, heard.others),
                Filling::Running { running, others, .. } => (0, *running, *others),
            };
            Known { rule, number, own, others }
        })
    }

    /// What came of counting together, rule by rule, as [`Account::known`] has them: of a day or month what this one, and what the others
    /// have used, of a minute how full the bucket is.
    pub fn hear(&mut self, known: &[Known], told: &[[i64; 4]], now: Moment) {
        self.is_told = true;
        for ((gauge, known), [own, others, ..]) in self.gauges.iter_mut().zip(known).zip(told) {
            match &mut gauge.filling {
                Filling::Bucket { all, .. } => all.iter_mut().for_each(|all| all.set(now.instant, *own)),
                Filling::Calendar { number, spent, heard } if *number == known.number => {
                    // Another start of this gateway may have used more than it could still write down; but what somebody else says does
                    // not shut anybody out for longer than the limit itself does.
                    let bounded = |told: &i64| u64::try_from(*told).unwrap_or_default().min(gauge.rule.most);
                    *spent = (*spent).max(bounded(own));
                    *heard = Heard { others: bounded(others), own: *spent };
                }
                Filling::Calendar { .. } => {}
                Filling::Running { running, others: elsewhere, unsure } => {
                    *elsewhere = u64::try_from(*others).unwrap_or_default().min(gauge.rule.most);
                    // All goes through one queue, so they should agree; if they do not, they are told with the next request.
                    *unsure = u64::try_from(*own).ok() != Some(*running);
                    self.is_told &= !*unsure;
                }
            }
        }
    }

    /// Those who count together may have done something that nobody here has heard of.
    pub fn doubt(&mut self) {
        self.is_told = false;
        for gauge in &mut self.gauges {
            if let Filling::Running { unsure, .. } = &mut gauge.filling {
                *unsure = true;
            }
        }
    }

    /// Would a new account be the same? `together`: others are told of it.
    #[must_use]
    pub fn is_fresh(&mut self, together: bool, now: Moment) -> bool {
        self.gauges.iter_mut().all(|gauge| match gauge.filling {
            Filling::Running { running, unsure, .. } => running == 0 && !(together && unsure),
            _ => gauge.standing(now).left >= gauge.rule.most,
        })
    }
}

fn number_of(period: Period, date: Date) -> u32 {
    let number = match period {
        Period::Month => date.year() * 12 + i32::from(u8::from(date.month())),
        Period::Minute | Period::Day => date.to_julian_day(),
        Period::Now => 0,
    };
    u32::try_from(number).unwrap_or_default()
}

/// Until the next day or month begins.
pub(super) fn until_next(period: Period, now: OffsetDateTime) -> Duration {
    let today = now.date();
    let next = match period {
        Period::Now => return SOON,
        Period::Minute | Period::Day => today.next_day(),
        Period::Month => {
            let (year, month) = (today.year(), today.month());
            let year = if month == time::Month::December { year + 1 } else { year };
            Date::from_calendar_date(year, month.next(), 1).ok()
        }
    };
    let next = next.unwrap_or(today).midnight().assume_utc();
    Duration::try_from(next - now).unwrap_or_default().max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const DAY: Rule = Rule { measure: Measure::Tokens, period: Period::Day, most: 100 };
    const MONTH: Rule = Rule { measure: Measure::Cost, period: Period::Month, most: 1000 };

    fn at(time: OffsetDateTime) -> Moment {
        Moment { instant: Instant::now(), time }
    }

    fn tokens(input: u64, output: u64) -> Amount {
        Amount { input, output, ..Amount::default() }
    }

    #[test]
    fn a_day_and_a_month_end_with_the_calendar() {
        let evening = at(datetime!(2026-12-31 23:00 UTC));
        let mut account = Account::new(&[DAY, MONTH], &[], NonZeroU16::MIN, evening);
        let mut taken = Taken::default();
        let all = Amount { cost: 1000, ..tokens(60, 40) };
        account.room(all, evening).unwrap();
        account.take(all, &mut taken, evening);
        let refused = account.room(tokens(1, 0), evening).unwrap_err();
        assert_eq!((refused.rule, refused.retry_after), (DAY, Duration::from_secs(3600)));
        let refused = account.room(Amount { cost: 1, ..Amount::default() }, evening).unwrap_err();
        assert_eq!((refused.rule, refused.retry_after), (MONTH, Duration::from_secs(3600)));
        let next = at(datetime!(2027-01-01 00:00 UTC));
        account.room(all, next).unwrap();
        // What is said later of yesterday's requests does not make today's budget larger, or smaller.
        account.correct(&mut taken, tokens(0, 0));
        assert!(account.standings(next).all(|standing| standing.left == standing.rule.most));
    }

    #[test]
    fn what_was_spent_outlives_a_restart_and_a_wrong_clock() {
        let now = at(datetime!(2026-11-27 12:00 UTC));
        let mut account = Account::new(&[DAY, MONTH], &[], NonZeroU16::MIN, now);
        account.take(Amount { cost: 7, ..tokens(90, 0) }, &mut Taken::default(), now);
        let kept: Vec<Spent> = account.spent().collect();
        let left =
            |account: &mut Account, now| account.standings(now).map(|standing| standing.left).collect::<Vec<_>>();
        assert_eq!(left(&mut Account::new(&[DAY, MONTH], &kept, NonZeroU16::MIN, now), now), [10, 993]);
        let before = at(datetime!(2026-11-26 12:00 UTC));
        assert_eq!(left(&mut Account::new(&[DAY, MONTH], &kept, NonZeroU16::MIN, before), before), [10, 993]);
        let later = at(datetime!(2026-11-28 12:00 UTC));
        assert_eq!(left(&mut Account::new(&[DAY, MONTH], &kept, NonZeroU16::MIN, later), later), [100, 993]);
    }

    #[test]
    fn what_was_taken_is_corrected_once() {
        let now = at(datetime!(2026-11-27 12:00 UTC));
        let mut account = Account::new(&[DAY], &[], NonZeroU16::MIN, now);
        let mut taken = Taken::default();
        account.take(tokens(10, 50), &mut taken, now);
        account.take(tokens(0, 20), &mut taken, now);
        assert_eq!(account.room(tokens(0, 21), now).unwrap_err().rule, DAY);
        for _ in 0..2 {
            account.correct(&mut taken, tokens(10, 30));
            assert!(account.room(tokens(60, 0), now).is_ok() && account.room(tokens(61, 0), now).is_err());
        }
        assert!(!account.is_fresh(false, now));
        account.correct(&mut taken, Amount::default());
        assert!(account.is_fresh(false, now));
    }

    #[test]
    fn who_hears_nothing_of_the_others_keeps_to_its_part_of_what_was_left() {
        let now = at(datetime!(2026-11-27 12:00 UTC));
        let minute = Rule { measure: Measure::Requests, period: Period::Minute, most: 10 };
        let two = NonZeroU16::new(2).unwrap();
        let mut account = Account::new(&[DAY, minute], &[], two, now);
        let fits = |account: &mut Account, n| account.room(tokens(n, 0), now).is_ok();
        assert!(fits(&mut account, 50) && !fits(&mut account, 51), "it has heard of nothing yet");
        account.take(tokens(30, 0), &mut Taken::default(), now);
        let known: Vec<Known> = account.known(now).collect();
        account.hear(&known, &[[30, 50, 0, 0], [7, 0, 0, 0]], now);
        assert!(fits(&mut account, 10) && !fits(&mut account, 11), "half of the 20 that were left");
        account.take(tokens(10, 0), &mut Taken::default(), now);
        assert!(!fits(&mut account, 1));
        let left: Vec<u64> = account.standings(now).map(|standing| standing.left).collect();
        assert_eq!(left, [10, 7], "of all together, as far as it knows");
        // Of a minute it has its own part, and of a limit that is smaller than the number of gateways nothing.
        let requests = |n| Amount { requests: n, ..Amount::default() };
        account.room(requests(5), now).unwrap();
        account.take(requests(5), &mut Taken::default(), now);
        assert!(account.room(requests(1), now).is_err());
        let mut small = Account::new(&[Rule { most: 1, ..DAY }, Rule { most: 1, ..minute }], &[], two, now);
        assert!(small.room(tokens(1, 0), now).is_err() && small.room(requests(1), now).is_err());
        // What another start of this gateway had used before it was killed is its own.
        let mut again = Account::new(&[DAY], &[], two, now);
        let known: Vec<Known> = again.known(now).collect();
        again.hear(&known, &[[40, 50, 0, 0]], now);
        assert!(fits(&mut again, 5) && !fits(&mut again, 6));
        // A new day is nobody's yet.
        let tomorrow = at(datetime!(2026-11-28 12:00 UTC));
        assert!(again.room(tokens(50, 0), tomorrow).is_ok());
    }

    #[test]
    fn places_are_held_until_they_are_left_whatever_was_used() {
        let now = at(datetime!(2026-11-27 12:00 UTC));
        let places = Rule { measure: Measure::Places, period: Period::Now, most: 5 };
        let two = NonZeroU16::new(2).unwrap();
        let mut account = Account::new(&[places, DAY], &[], two, now);
        let one = Amount { places: 1, ..tokens(5, 5) };
        let mut taken = [Taken::default(), Taken::default()];
        for taken in &mut taken {
            account.room(one, now).unwrap();
            account.take(one, taken, now);
        }
        // Half of five, whatever the others hold, as long as nobody says that there is room.
        assert_eq!(account.room(one, now).unwrap_err(), Refused { rule: places, retry_after: SOON });
        let left = |account: &mut Account| account.standings(now).map(|standing| standing.left).collect::<Vec<_>>();
        let known: Vec<Known> = account.known(now).collect();
        assert_eq!(account.to_tell().map(|(spent, _)| spent.spent).collect::<Vec<_>>(), [2, 20]);
        account.hear(&known, &[[2, 3, 0, 0], [20, 0, 0, 0]], now);
        assert_eq!(left(&mut account), [0, 80]);
        account.correct(&mut taken[0], Amount { places: 1, ..tokens(1, 1) });
        assert_eq!(left(&mut account), [0, 88]);
        for taken in &mut taken {
            account.leave(taken);
            account.leave(taken);
        }
        assert_eq!(left(&mut account), [2, 88], "the others hold three; what was used stays used");
        assert!(account.room(one, now).is_ok());
        assert_eq!(account.spent().count(), 1, "nothing of places outlives a restart");
        // A Redis that nobody told is told that none is held.
        assert_eq!(account.to_tell().map(|(spent, _)| spent.spent).collect::<Vec<_>>(), [0, 12]);
        let mut small = Account::new(&[Rule { most: 1, ..places }], &[], two, now);
        assert!(small.room(one, now).is_ok(), "everybody may ask");
        // Who holds nothing makes room for others, unless there is something to tell of it.
        let mut taken = Taken::default();
        small.take(one, &mut taken, now);
        assert!(!small.is_fresh(false, now));
        small.leave(&mut taken);
        assert!(small.is_fresh(false, now) && !small.is_fresh(true, now));
        let known: Vec<Known> = small.known(now).collect();
        small.hear(&known, &[[0, 0, 0, 0]], now);
        assert!(small.is_fresh(true, now));
    }

    proptest! {
        /// Whatever is asked for and used, of what has a bound, no rule is overspent.
        #[test]
        fn nobody_overspends(
            requests in proptest::collection::vec((0u64..60, 0u64..60, 0u64..=100), 1..60),
            limit in 1u64..300,
        ) {
            let now = at(datetime!(2026-11-27 12:00 UTC));
            let rules = [Rule { most: limit, ..DAY }, Rule { measure: Measure::OutputTokens, ..DAY }];
            let (mut account, mut under_way) = (Account::new(&rules, &[], NonZeroU16::MIN, now), Vec::new());
            let (mut used_tokens, mut used_output) = (0, 0);
            for (n, (input, output, share)) in requests.into_iter().enumerate() {
                let wanted = tokens(input, output);
                if account.room(wanted, now).is_ok() {
                    let mut taken = Taken::default();
                    account.take(wanted, &mut taken, now);
                    under_way.push((taken, input, output * share / 100));
                }
                if n % 3 == 0 && let Some((mut taken, input, output)) = under_way.pop() {
                    account.correct(&mut taken, tokens(input, output));
                    used_tokens += input + output;
                    used_output += output;
                }
            }
            for (mut taken, input, output) in under_way {
                account.correct(&mut taken, tokens(input, output));
                used_tokens += input + output;
                used_output += output;
            }
            prop_assert!(used_tokens <= limit && used_output <= DAY.most);
            let left: Vec<u64> = account.standings(now).map(|standing| standing.left).collect();
            prop_assert_eq!(left, vec![limit - used_tokens, DAY.most - used_output]);
        }
    }
}
