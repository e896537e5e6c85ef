//! The accounts of all identities and tenants that have limits. One lock for all of them: a request takes out of its identity's and
//! its tenant's account together, or of neither.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::account::{Account, Amount, Known, Measure, Moment, Refused, Rule, Spent, Standing, Taken};
use super::together::Counter;

/// Accounts at most. Those that are as good as new make room for others.
const ACCOUNTS: usize = 100_000;
/// How often it is looked for such accounts, when there is no room.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// For what is counted together to be counted, at the end.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);

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

    /// Nobody.
    pub(super) const fn nobody() -> Self {
        Self(Vec::new())
    }

    /// Nobody counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does somebody count one of these?
    #[must_use]
    pub fn count(&self, measures: &[Measure]) -> bool {
        self.0.iter().any(|(_, rules)| rules.iter().any(|rule| measures.contains(&rule.measure)))
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

/// What becomes of what a request has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// So much was used.
    Used(Amount),
    /// It has ended, and holds no place any more.
    Left,
}

impl Change {
    /// What is left of what was `taken`.
    #[must_use]
    pub fn left(self, measure: Measure, taken: u64) -> u64 {
        match self {
            Self::Used(used) => used.of(measure),
            Self::Left if measure == Measure::Places => 0,
            Self::Left => taken,
        }
    }
}

/// What a request has taken of each payer's account.
#[derive(Debug, Clone, Default)]
pub struct Bill(Vec<Taken>);

impl Bill {
    /// What all together have of this, by this rule of that payer's; `None`: it was of another day, or month.
    pub(super) fn told(&self, payer: usize, rule: usize, known: &Known) -> Option<u64> {
        self.0.get(payer)?.told(rule, known)
    }

    /// So much was taken of the minutes of all together, by the rules of all payers.
    pub(super) fn together(&mut self, parts: &[Part], mut took: impl Iterator<Item = u64>) {
        for (taken, part) in self.0.iter_mut().zip(parts) {
            taken.together(took.by_ref().take(part.known.len()).collect::<Vec<_>>().into_iter());
        }
    }

    fn add(&mut self, more: &Self) {
        self.0.resize_with(self.0.len().max(more.0.len()), Taken::default);
        self.0.iter_mut().zip(&more.0).for_each(|(taken, more)| taken.add(more));
    }
}

/// All accounts.
#[derive(Debug)]
pub struct Books {
    open: Mutex<Open>,
    /// Where all gateways count together; `None`: this one goes by what it knows.
    counter: Option<Counter>,
}

/// One account, as it is told to those who count together.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) who: Who,
    pub(super) known: Vec<Known>,
    /// They were not told of it, since this gateway started.
    pub(super) is_new: bool,
}

/// What a gateway has used of one day or month, to be told to who has lost it.
#[derive(Debug)]
pub(super) struct Telling {
    pub(super) who: Who,
    pub(super) spent: Spent,
    pub(super) others: u64,
    pub(super) is_new: bool,
}

#[derive(Debug)]
struct Open {
    /// How many gateways there are.
    parts: NonZeroU16,
    /// They count together.
    together: bool,
    accounts: HashMap<Who, Account>,
    /// Of those who did not come yet since the start.
    before: HashMap<Who, Vec<Spent>>,
    swept: Option<Instant>,
    /// Something was spent since it was last asked.
    changed: bool,
    /// Whose accounts have changed while those who count together were being told. At most as many as there are accounts.
    untold: HashSet<Who>,
}

impl Books {
    /// With what was spent before the start, of one of `parts` gateways.
    #[must_use]
    pub fn new(before: HashMap<Who, Vec<Spent>>, parts: NonZeroU16, counter: Option<Counter>) -> Self {
        let (together, accounts, untold) = (counter.is_some(), HashMap::new(), HashSet::new());
        let open = Open { parts, together, accounts, before, swept: None, changed: false, untold };
        Self { open: Mutex::new(open), counter }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so much of each payer's account, if all have room for it.
    ///
    /// # Errors
    /// One has not; nothing was taken.
    pub async fn take(&self, payers: &Payers, amount: Amount, bill: &mut Bill) -> Result<(), NotTaken> {
        match &self.counter {
            Some(counter) if !payers.is_empty() => {
                bill.add(&counter.take(payers, amount).await?);
                Ok(())
            }
            _ => self.take_here(payers, amount, bill, Moment::now()),
        }
    }

    /// Waits until what requests gave back that have ended is counted, for a second at most.
    pub async fn settled(&self) {
        if let Some(counter) = &self.counter {
            let _late = tokio::time::timeout(SETTLED_WITHIN, counter.flush()).await;
        }
    }

    /// Puts what was `used` in the place of what was taken, when it is known.
    pub fn correct(&self, payers: &Payers, bill: &mut Bill, used: Amount) {
        match &self.counter {
            Some(counter) if !payers.is_empty() => {
                self.queue(counter, payers, bill, Change::Used(used));
                bill.0.iter_mut().zip(&payers.0).for_each(|(taken, (_, rules))| taken.is_now(rules, used));
            }
            _ => self.correct_here(payers, bill, Change::Used(used)),
        }
    }

    /// Gives back the places that a request held which has ended; what it used, or may have used, stays as it is.
    pub fn leave(&self, payers: &Payers, bill: &mut Bill) {
        match &self.counter {
            _ if !payers.count(&[Measure::Places]) => {}
            Some(counter) => self.queue(counter, payers, bill, Change::Left),
            None => self.correct_here(payers, bill, Change::Left),
        }
    }

    fn queue(&self, counter: &Counter, payers: &Payers, bill: &Bill, change: Change) {
        if counter.correct(payers.clone(), bill.clone(), change) {
            return;
        }
        // Here it is known at least; those who count together are told with the next request.
        self.correct_here(payers, &mut bill.clone(), change);
        self.doubt(payers);
    }

    /// Takes so much of each payer's account, if all have room for it, going by what is known here.
    ///
    /// # Errors
    /// One has not; nothing was taken.
    pub(super) fn take_here(
        &self,
        payers: &Payers,
        amount: Amount,
        bill: &mut Bill,
        now: Moment,
    ) -> Result<(), NotTaken> {
        if payers.is_empty() {
            return Ok(());
        }
        let mut books = self.open();
        for (who, rules) in &payers.0 {
            let refused = books.account(who, rules, now)?.room(amount, now);
            refused.map_err(|refused| NotTaken::Rule(who.clone(), refused))?;
        }
        books.take(payers, amount, bill, now)
    }

    /// Takes it whether there is room or not: those who count together have seen to that.
    ///
    /// # Errors
    /// There are too many accounts.
    pub(super) fn take_all(
        &self,
        payers: &Payers,
        amount: Amount,
        bill: &mut Bill,
        now: Moment,
    ) -> Result<(), NotTaken> {
        self.open().take(payers, amount, bill, now)
    }

    /// What there is to tell of the payers' accounts; nothing, if there are too many accounts.
    pub(super) fn parts(&self, payers: &Payers, now: Moment) -> Vec<Part> {
        let mut books = self.open();
        let part = |(who, rules): &(Who, Arc<[Rule]>)| {
            let account = books.account(who, rules, now).ok()?;
            Some(Part { who: who.clone(), known: account.known(now).collect(), is_new: !account.is_told })
        };
        payers.0.iter().map(part).collect::<Option<_>>().unwrap_or_default()
    }

    /// What all together have come to, rule by rule of all parts.
    pub(super) fn hear(&self, parts: &[Part], mut said: &[[i64; 4]], now: Moment) {
        let mut books = self.open();
        for part in parts {
            let Some((of_this, rest)) = said.split_at_checked(part.known.len()) else { return };
            if let Some(account) = books.accounts.get_mut(&part.who) {
                account.hear(&part.known, of_this, now);
            }
            said = rest;
        }
    }

    /// What was used of days and months that are not over; and if those who count together have not been told of the account yet.
    pub(super) fn to_tell(&self, now: Moment) -> Vec<Telling> {
        let books = self.open();
        let known = books.accounts.iter().flat_map(|(who, account)| {
            let is_new = !account.is_told;
            account.to_tell().map(move |(spent, others)| Telling { who: who.clone(), spent, others, is_new })
        });
        let before = books.before.iter().flat_map(|(who, all)| {
            all.iter().map(move |spent| Telling { who: who.clone(), spent: *spent, others: 0, is_new: true })
        });
        known.chain(before).filter(|telling| !telling.spent.is_over(now)).collect()
    }

    /// Those of which something has changed since they were asked for the last time, while nobody was told.
    pub(super) fn take_untold(&self) -> Vec<Who> {
        std::mem::take(&mut self.open().untold).into_iter().collect()
    }

    /// All of one account, to be told.
    pub(super) fn to_tell_of(&self, who: &Who) -> Vec<Telling> {
        let books = self.open();
        let Some(account) = books.accounts.get(who) else { return Vec::new() };
        let telling = |(spent, others)| Telling { who: who.clone(), spent, others, is_new: !account.is_told };
        account.to_tell().map(telling).collect()
    }

    /// What changes from here on, without anybody being told, is remembered.
    pub(super) fn note_untold(&self, payers: &Payers) {
        let mut books = self.open();
        books.untold.extend(payers.0.iter().map(|(who, _)| who.clone()));
    }

    /// It is not known what came of something that was asked for the payers.
    pub(super) fn doubt(&self, payers: &Payers) {
        let mut books = self.open();
        for (who, _) in &payers.0 {
            books.accounts.get_mut(who).into_iter().for_each(Account::doubt);
        }
    }

    /// Corrects what was taken when it is known what was used.
    pub(super) fn correct_here(&self, payers: &Payers, bill: &mut Bill, change: Change) {
        if payers.is_empty() {
            return;
        }
        let mut books = self.open();
        for ((who, _), taken) in payers.0.iter().zip(&mut bill.0) {
            if let Some(account) = books.accounts.get_mut(who) {
                match change {
                    Change::Used(used) => account.correct(taken, used),
                    Change::Left => account.leave(taken),
                }
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
    fn take(&mut self, payers: &Payers, amount: Amount, bill: &mut Bill, now: Moment) -> Result<(), NotTaken> {
        bill.0.resize_with(payers.0.len(), Taken::default);
        for ((who, rules), taken) in payers.0.iter().zip(&mut bill.0) {
            self.account(who, rules, now)?.take(amount, taken, now);
        }
        self.changed = true;
        Ok(())
    }

    fn account(&mut self, who: &Who, rules: &[Rule], now: Moment) -> Result<&mut Account, NotTaken> {
        if !self.accounts.contains_key(who) {
            if !self.before.contains_key(who) {
                self.make_room(now)?;
            }
            let before = self.before.remove(who).unwrap_or_default();
            self.accounts.insert(who.clone(), Account::new(rules, &before, self.parts, now));
        }
        self.accounts.get_mut(who).ok_or(NotTaken::Full)
    }

    fn make_room(&mut self, now: Moment) -> Result<(), NotTaken> {
        if self.len() < ACCOUNTS {
            return Ok(());
        }
        if self.swept.is_none_or(|at| now.instant.saturating_duration_since(at) >= SWEEP_EVERY) {
            self.swept = Some(now.instant);
            let together = self.together;
            self.accounts.retain(|_, account| !account.is_fresh(together, now));
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
    use super::super::account::Period;
    use super::*;

    const REQUESTS: Rule = Rule { measure: Measure::Requests, period: Period::Day, most: 3 };
    const ONE: Amount = Amount { requests: 1, input: 0, output: 0, cost: 0, places: 0 };

    fn payers(identity: &str, most: u64) -> Payers {
        let identity = (Who::Identity(identity.into()), [REQUESTS].into());
        Payers::of([identity, (Who::Tenant("t".into()), [Rule { most, ..REQUESTS }].into())])
    }

    #[test]
    fn nothing_is_taken_of_one_if_the_other_has_no_room() {
        let (books, now) = (Books::new(HashMap::new(), NonZeroU16::MIN, None), Moment::now());
        let (amy, bob) = (payers("amy", 4), payers("bob", 4));
        for _ in 0..3 {
            books.take_here(&amy, ONE, &mut Bill::default(), now).unwrap();
        }
        let refused = books.take_here(&amy, ONE, &mut Bill::default(), now).unwrap_err();
        assert!(matches!(refused, NotTaken::Rule(Who::Identity(_), _)), "{refused:?}");
        books.take_here(&bob, ONE, &mut Bill::default(), now).unwrap();
        let refused = books.take_here(&bob, ONE, &mut Bill::default(), now).unwrap_err();
        assert!(matches!(refused, NotTaken::Rule(Who::Tenant(_), _)), "{refused:?}");
        let left: Vec<u64> = books.standings(&bob, now).iter().map(|standing| standing.left).collect();
        assert_eq!(left, [2, 0], "the refusal of the tenant's took nothing of the identity's");
    }

    #[test]
    fn what_was_spent_is_kept_also_of_those_who_did_not_come_again() {
        let (books, now) = (Books::new(HashMap::new(), NonZeroU16::MIN, None), Moment::now());
        books.take_here(&payers("amy", 9), ONE, &mut Bill::default(), now).unwrap();
        let kept = books.to_keep(now).unwrap();
        assert!(books.to_keep(now).is_none(), "nothing has changed");
        let books = Books::new(kept.into_iter().collect(), NonZeroU16::MIN, None);
        books.take_here(&payers("bob", 9), ONE, &mut Bill::default(), now).unwrap();
        let kept: HashMap<Who, Vec<Spent>> = books.to_keep(now).unwrap().into_iter().collect();
        let spent = |who: Who| kept[&who][0].spent;
        assert_eq!((spent(Who::Identity("amy".into())), spent(Who::Tenant("t".into()))), (1, 2));
    }

    #[test]
    fn threads_do_not_overspend_together() {
        let (books, now) = (Books::new(HashMap::new(), NonZeroU16::MIN, None), Moment::now());
        let payers = payers("amy", 1000);
        let taken = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let took = books.take_here(&payers, ONE, &mut Bill::default(), now).is_ok();
                        taken.fetch_add(u64::from(took), std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), REQUESTS.most);
    }
}
