//! The accounts of all identities and tenants that have limits. One lock for all of them: a request takes out of its identity's and
//! its tenant's account together, or of neither.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::account::{Account, Amount, Moment, Refused, Rule, Spent, Standing, Taken};

/// Accounts at most. Those that are as good as new make room for others.
const ACCOUNTS: usize = 100_000;
/// How often it is looked for such accounts, when there is no room.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Whose account it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// A SPIFFE ID.
    Identity(Arc<str>),
    /// The name of a tenant.
    Tenant(Arc<str>),
}

/// Who pays for a request: those of its identity and its tenant that have rules.
#[derive(Debug, Clone, Default)]
pub struct Payers(Vec<(Who, Arc<[Rule]>)>);

impl Payers {
    /// Those of them that have rules.
    #[must_use]
    pub fn of(all: impl IntoIterator<Item = (Who, Arc<[Rule]>)>) -> Self {
        Self(all.into_iter().filter(|(_, rules)| !rules.is_empty()).collect())
    }

    /// Nobody counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why nothing was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// A rule says no.
    Rule(Who, Refused),
    /// There are too many accounts.
    Full,
}

/// What a request has taken of each payer's account.
#[derive(Debug, Default)]
pub struct Bill(Vec<Taken>);

/// All accounts.
#[derive(Debug, Default)]
pub struct Books(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    accounts: HashMap<Who, Account>,
    /// Of those who did not come yet since the start.
    before: HashMap<Who, Vec<Spent>>,
    swept: Option<Instant>,
    /// Something was spent since it was last asked.
    changed: bool,
}

impl Books {
    /// With what was spent before the start.
    #[must_use]
    pub fn new(before: HashMap<Who, Vec<Spent>>) -> Self {
        Self(Mutex::new(Open { before, ..Open::default() }))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so much of each payer's account, if all have room for it.
    ///
    /// # Errors
    /// One has not; nothing was taken.
    pub fn take(&self, payers: &Payers, amount: Amount, bill: &mut Bill, now: Moment) -> Result<(), NotTaken> {
        if payers.is_empty() {
            return Ok(());
        }
        let mut books = self.open();
        for (who, rules) in &payers.0 {
            let refused = books.account(who, rules, now)?.room(amount, now);
            refused.map_err(|refused| NotTaken::Rule(who.clone(), refused))?;
        }
        bill.0.resize_with(payers.0.len(), Taken::default);
        for ((who, rules), taken) in payers.0.iter().zip(&mut bill.0) {
            books.account(who, rules, now)?.take(amount, taken, now);
        }
        books.changed = true;
        Ok(())
    }

    /// Corrects what was taken when it is known what was used.
    pub fn correct(&self, payers: &Payers, bill: &mut Bill, used: Amount) {
        if payers.is_empty() {
            return;
        }
        let mut books = self.open();
        for ((who, _), taken) in payers.0.iter().zip(&mut bill.0) {
            if let Some(account) = books.accounts.get_mut(who) {
                account.correct(taken, used);
            }
        }
        books.changed = true;
    }

    /// How each rule of the payers stands.
    #[must_use]
    pub fn standings(&self, payers: &Payers, now: Moment) -> Vec<Standing> {
        if payers.is_empty() {
            return Vec::new();
        }
        let mut books = self.open();
        let mut all = Vec::new();
        for (who, rules) in &payers.0 {
            if let Ok(account) = books.account(who, rules, now) {
                all.extend(account.standings(now));
            }
        }
        all
    }

    /// What has to be kept over a restart, if something has changed since it was last asked.
    #[must_use]
    pub fn to_keep(&self, now: Moment) -> Option<Vec<(Who, Vec<Spent>)>> {
        let mut books = self.open();
        if !std::mem::take(&mut books.changed) {
            return None;
        }
        let current = |spent: &Spent| !spent.is_over(now);
        let known =
            books.accounts.iter().map(|(who, account)| (who, account.spent().filter(current).collect::<Vec<_>>()));
        // Who has not come since the start has spent it all the same.
        let before = books.before.iter().map(|(who, spent)| (who, spent.iter().copied().filter(current).collect()));
        let all = known.chain(before).filter(|(_, spent)| !spent.is_empty());
        Some(all.map(|(who, spent)| (who.clone(), spent)).collect())
    }

    /// It could not be kept: the next time is told of it again.
    pub fn not_kept(&self) {
        self.open().changed = true;
    }
}

impl Open {
    fn account(&mut self, who: &Who, rules: &[Rule], now: Moment) -> Result<&mut Account, NotTaken> {
        if !self.accounts.contains_key(who) {
            if !self.before.contains_key(who) {
                self.make_room(now)?;
            }
            let before = self.before.remove(who).unwrap_or_default();
            self.accounts.insert(who.clone(), Account::new(rules, &before, now));
        }
        self.accounts.get_mut(who).ok_or(NotTaken::Full)
    }

    fn make_room(&mut self, now: Moment) -> Result<(), NotTaken> {
        if self.len() < ACCOUNTS {
            return Ok(());
        }
        if self.swept.is_none_or(|at| now.instant.saturating_duration_since(at) >= SWEEP_EVERY) {
            self.swept = Some(now.instant);
            self.accounts.retain(|_, account| !account.is_fresh(now));
            self.before.retain(|_, spent| spent.iter().any(|spent| !spent.is_over(now)));
        }
        if self.len() < ACCOUNTS { Ok(()) } else { Err(NotTaken::Full) }
    }

    fn len(&self) -> usize {
        self.accounts.len() + self.before.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::account::{Measure, Period};
    use super::*;

    const REQUESTS: Rule = Rule { measure: Measure::Requests, period: Period::Day, most: 3 };
    const ONE: Amount = Amount { requests: 1, input: 0, output: 0, cost: 0 };

    fn payers(identity: &str, most: u64) -> Payers {
        let identity = (Who::Identity(identity.into()), [REQUESTS].into());
        Payers::of([identity, (Who::Tenant("t".into()), [Rule { most, ..REQUESTS }].into())])
    }

    #[test]
    fn nothing_is_taken_of_one_if_the_other_has_no_room() {
        let (books, now) = (Books::default(), Moment::now());
        let (amy, bob) = (payers("amy", 4), payers("bob", 4));
        for _ in 0..3 {
            books.take(&amy, ONE, &mut Bill::default(), now).unwrap();
        }
        let refused = books.take(&amy, ONE, &mut Bill::default(), now).unwrap_err();
        assert!(matches!(refused, NotTaken::Rule(Who::Identity(_), _)), "{refused:?}");
        books.take(&bob, ONE, &mut Bill::default(), now).unwrap();
        let refused = books.take(&bob, ONE, &mut Bill::default(), now).unwrap_err();
        assert!(matches!(refused, NotTaken::Rule(Who::Tenant(_), _)), "{refused:?}");
        let left: Vec<u64> = books.standings(&bob, now).iter().map(|standing| standing.left).collect();
        assert_eq!(left, [2, 0], "the refusal of the tenant's took nothing of the identity's");
    }

    #[test]
    fn what_was_spent_is_kept_also_of_those_who_did_not_come_again() {
        let (books, now) = (Books::default(), Moment::now());
        books.take(&payers("amy", 9), ONE, &mut Bill::default(), now).unwrap();
        let kept = books.to_keep(now).unwrap();
        assert!(books.to_keep(now).is_none(), "nothing has changed");
        let books = Books::new(kept.into_iter().collect());
        books.take(&payers("bob", 9), ONE, &mut Bill::default(), now).unwrap();
        let kept: HashMap<Who, Vec<Spent>> = books.to_keep(now).unwrap().into_iter().collect();
        let spent = |who: Who| kept[&who][0].spent;
        assert_eq!((spent(Who::Identity("amy".into())), spent(Who::Tenant("t".into()))), (1, 2));
    }

    #[test]
    fn threads_do_not_overspend_together() {
        let (books, now) = (Books::default(), Moment::now());
        let payers = payers("amy", 1000);
        let taken = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let took = books.take(&payers, ONE, &mut Bill::default(), now).is_ok();
                        taken.fetch_add(u64::from(took), std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), REQUESTS.most);
    }
}
