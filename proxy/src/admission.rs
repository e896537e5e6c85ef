//! How much one identity, and one tenant, may ask for: requests at a time; requests, tokens and money in a minute, a day or a
//! month; and how much the gateway takes on in all.
//!
//! Bodies are charged as they arrive, so that memory has a bound whatever is sent at the same time.
//!
//! What a request may use is reserved before it is sent (prompt estimated, answer at its bound, cost at the dearest target that it
//! may go to), grows with an answer that has no bound, and is settled when it has ended, so that requests at the same time cannot
//! overspend together.

pub mod account;
pub mod books;
pub mod kept;
mod ledger;
mod rates;
pub mod together;

use std::collections::HashMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use postern_wire::call::Call;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::file::{IdentityLimits, Limits};
use crate::config::units::Money;
use crate::cost::Cost;
use crate::error::Error;
use crate::request::Peer;
use account::{Amount, Measure, Moment, Period, Refused, Rule, Spent};
use books::{Bill, Books, NotTaken, Payers, Who};
pub use rates::Rates;
use together::Counter;

/// Identities of which it is known how much of their bodies is held, until they were not seen for [`IDLE`].
const IDENTITIES: u64 = 100_000;
const IDLE: Duration = Duration::from_secs(600);
/// Bodies are charged in pieces of so many bytes.
const CHARGE: u64 = 1024;
/// Charged for each value of a parsed body. A fifth of what one costs, however short it is, since a body costs five times what
/// is charged.
const VALUE_BYTES: u64 = 60;
/// The part of all bodies that one identity may hold: several clients must be needed to keep everybody else out.
const SHARE: u64 = 4;

/// What is known when a request has ended.
const OF_REQUESTS: [Measure; 4] = [Measure::Tokens, Measure::InputTokens, Measure::OutputTokens, Measure::Cost];
/// What is known before it is sent.
const TOKENS: [Measure; 3] = [Measure::Tokens, Measure::InputTokens, Measure::OutputTokens];
/// What answers use as they come.
const OF_ANSWERS: [Measure; 3] = [Measure::Tokens, Measure::OutputTokens, Measure::Cost];

/// An answer without a bound grows by so many tokens at a time.
const GROWTH: u64 = 256;
/// Tokens of a prompt that its text does not show, at most: of its template, and of pictures.
const UNSEEN: u64 = 65_536;
/// The longest answer that a target is believed to have given without a bound, thoughts included.
const LONGEST: u64 = 131_072;

/// Admits requests.
#[derive(Debug)]
pub struct Admission {
    all: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    /// Of each identity, out of everybody's.
    own_bodies: Cache<Arc<str>, Arc<Semaphore>>,
    share: usize,
    books: Arc<Books>,
}

/// Leave to be served. Dropping it gives back the places; [`settle`](Self::settle) says what was used.
#[derive(Debug)]
pub struct Admitted {
    _all: OwnedSemaphorePermit,
    bodies: Arc<Semaphore>,
    own_bodies: Arc<Semaphore>,
    /// Bytes that one identity may hold.
    share: u64,
    charged: Option<Charged>,
    books: Arc<Books>,
    payers: Payers,
    bill: Bill,
    reserved: Amount,
    /// Tokens of the answer that have come so far, as far as they can be counted.
    counted: u64,
    /// What tokens cost at most, where it may go.
    dearest: Cost,
    /// What is believed of a target that says how many tokens it used.
    most: Amount,
}

/// Memory of a body, out of everybody's and out of the identity's own.
#[derive(Debug)]
struct Charged {
    all: OwnedSemaphorePermit,
    own: OwnedSemaphorePermit,
    bytes: u64,
}

impl Admission {
    /// At most `requests` at a time, and `bodies` bytes of theirs; one body of `body` bytes always fits an identity's share. `spent`:
    /// of days and months, before the start.
    #[must_use]
    pub fn new(limits: &Limits, spent: HashMap<Who, Vec<Spent>>, parts: NonZeroU16, counter: Option<Counter>) -> Self {
        let (bodies, body) = (limits.bodies.0, limits.body.0);
        let share = permits((bodies / SHARE).max(body).min(bodies));
        Self {
            all: Arc::new(Semaphore::new(limits.requests)),
            bodies: Arc::new(Semaphore::new(permits(bodies))),
            own_bodies: Cache::builder().max_capacity(IDENTITIES).time_to_idle(IDLE).build(),
            share,
            books: Arc::new(Books::new(spent, parts, counter)),
        }
    }

    /// What was spent.
    #[must_use]
    pub fn books(&self) -> &Arc<Books> {
        &self.books
    }

    /// How the limits of somebody stand, whenever it is asked.
    #[must_use]
    pub fn rates(&self, peer: &Peer) -> Rates {
        Rates::new(self.books.clone(), payers(peer))
    }

    /// Takes the next request of an identity, before its body is read.
    ///
    /// # Errors
    /// [`Error::RateLimited`] or [`Error::Busy`].
    pub async fn enter(&self, peer: &Peer) -> Result<Admitted, Error> {
        let all = self.all.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let (payers, mut bill) = (payers(peer), Bill::default());
        let reserved = Amount { requests: 1, places: 1, ..Amount::default() };
        if payers.count(&[Measure::Requests, Measure::Places]) {
            self.books.take(&payers, reserved, &mut bill).await.map_err(refusal)?;
        }
        Ok(Admitted {
            _all: all,
            bodies: self.bodies.clone(),
            own_bodies: self.own_bodies_of(peer),
            share: self.share as u64 * CHARGE,
            charged: None,
            books: self.books.clone(),
            payers,
            bill,
            reserved,
            counted: 0,
            dearest: Cost::default(),
            most: Amount::default(),
        })
    }

    fn own_bodies_of(&self, peer: &Peer) -> Arc<Semaphore> {
        let (Who::Identity(id) | Who::Tenant(id)) = peer.who();
        self.own_bodies.get_with(id, || Arc::new(Semaphore::new(self.share)))
    }
}

fn payers(peer: &Peer) -> Payers {
    let identity = peer.limits.count_something().then(|| (peer.who(), Rule::all(peer.limits)));
    let of_tenant = || (Who::Tenant(peer.tenant.clone()), Rule::all(peer.tenant_limits));
    let tenant = peer.tenant_limits.count_something().then(of_tenant);
    Payers::of(identity.into_iter().chain(tenant))
}

fn refusal(why: NotTaken) -> Error {
    let NotTaken::Rule(who, refused) = why else { return Error::Busy };
    let (what, whose) = (refused.rule.in_words(), whose(&who));
    Error::RateLimited { what, whose, retry_after: refused.retry_after }
}

/// The same for who asks for `wanted` at once. A bucket of a minute lets more through than it holds, when it is full; no other does.
fn refusal_of(wanted: Amount, why: NotTaken) -> Error {
    match &why {
        NotTaken::Rule(who, Refused { rule, .. }) if rule.period != Period::Minute => {
            let (wanted, most) = (wanted.of(rule.measure), rule.most);
            let over = || Error::OverLimit { what: rule.in_words(), whose: whose(who), wanted, most };
            if wanted > most { over() } else { refusal(why) }
        }
        _ => refusal(why),
    }
}

fn whose(who: &Who) -> &'static str {
    match who {
        Who::Identity(_) => "your identity",
        Who::Tenant(_) => "your tenant",
    }
}

impl Rule {
    /// What it counts, for how long.
    fn in_words(self) -> &'static str {
        match (self.measure, self.period) {
            (Measure::Requests, Period::Minute) => "requests a minute",
            (Measure::Requests, _) => "requests a day",
            (Measure::Tokens, Period::Minute) => "tokens a minute",
            (Measure::Tokens, _) => "tokens a day",
            (Measure::InputTokens, Period::Minute) => "input tokens a minute",
            (Measure::InputTokens, _) => "input tokens a day",
            (Measure::OutputTokens, Period::Minute) => "output tokens a minute",
            (Measure::OutputTokens, _) => "output tokens a day",
            (Measure::Cost, _) => "money a month",
            (Measure::Places, _) => "requests at a time",
        }
    }

    /// Those of a configuration.
    #[must_use]
    pub fn all(limits: IdentityLimits) -> Arc<[Self]> {
        use Measure::{Cost, InputTokens, OutputTokens, Places, Requests, Tokens};
        let count =
            |measure, period, most: Option<NonZeroU32>| (measure, period, most.map(|most| u64::from(most.get())));
        let all = [
            count(Requests, Period::Minute, limits.requests_per_minute),
            count(Requests, Period::Day, limits.requests_per_day),
            count(Tokens, Period::Minute, limits.tokens_per_minute),
            count(Tokens, Period::Day, limits.tokens_per_day),
            count(InputTokens, Period::Minute, limits.input_tokens_per_minute),
            count(InputTokens, Period::Day, limits.input_tokens_per_day),
            count(OutputTokens, Period::Minute, limits.output_tokens_per_minute),
            count(OutputTokens, Period::Day, limits.output_tokens_per_day),
            (Cost, Period::Month, limits.cost_per_month.map(Money::millionths)),
            count(Places, Period::Now, limits.concurrency),
        ];
        all.into_iter().filter_map(|(measure, period, most)| Some(Self { measure, period, most: most? })).collect()
    }
}

fn permits(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(CHARGE)).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

impl Admitted {
    /// Charges a body that has grown to `bytes`; given back when this is dropped.
    ///
    /// # Errors
    /// [`Error::Busy`]: the identity, or all together, hold as much as they may.
    pub fn charge(&mut self, bytes: u64) -> Result<(), Error> {
        let held = self.charged.as_ref().map_or(0, |charged| charged.bytes);
        let missing = bytes.div_ceil(CHARGE).saturating_sub(held.div_ceil(CHARGE));
        let missing = u32::try_from(missing).map_err(|_| Error::Busy)?;
        if missing == 0 {
            return Ok(());
        }
        let own = self.own_bodies.clone().try_acquire_many_owned(missing).map_err(|_| Error::Busy)?;
        let all = self.bodies.clone().try_acquire_many_owned(missing).map_err(|_| Error::Busy)?;
        match &mut self.charged {
            Some(charged) => {
                charged.own.merge(own);
                charged.all.merge(all);
                charged.bytes = bytes;
            }
            none => *none = Some(Charged { all, own, bytes }),
        }
        Ok(())
    }

    /// Charges a body of `bytes` that turned out to hold `values`: many short ones need far more memory than they have bytes.
    /// What would not fit into an identity's share is charged as all of it, so that a single request is always served.
    ///
    /// # Errors
    /// As [`charge`](Self::charge).
    pub fn charge_values(&mut self, bytes: u64, values: u64) -> Result<(), Error> {
        self.charge(bytes.saturating_add(values.saturating_mul(VALUE_BYTES)).min(self.share))
    }

    /// Reserves tokens, when it is known what is asked.
    ///
    /// # Errors
    /// [`Error::RateLimited`].
    pub async fn reserve(&mut self, prompt_tokens: u64, call: &Call) -> Result<(), Error> {
        let (input, output) = (prompt_tokens, call.max_answer_tokens());
        // A token has a byte at least, and the estimate is a quarter of them; templates and pictures add some.
        let most_input = input.saturating_mul(4).saturating_add(UNSEEN);
        let most_output =
            if call.max_tokens().is_some() { output } else { LONGEST.saturating_mul(call.choices().max(1)) };
        self.most = Amount { input: most_input, output: most_output, ..Amount::default() };
        let wanted = Amount { input, output, ..Amount::default() };
        self.take(&TOKENS, wanted).await.map_err(|why| refusal_of(wanted, why))
    }

    /// Reserves what it may cost, when it is known where it may go.
    ///
    /// # Errors
    /// [`Error::RateLimited`].
    pub async fn reserve_cost(&mut self, dearest: Cost) -> Result<(), Error> {
        self.dearest = dearest;
        let wanted = Amount { cost: dearest.of(self.reserved.input, self.reserved.output), ..Amount::default() };
        self.take(&[Measure::Cost], wanted).await.map_err(|why| refusal_of(wanted, why))
    }

    /// Takes more of these measures, if somebody counts one of them.
    async fn take(&mut self, measures: &[Measure], more: Amount) -> Result<(), NotTaken> {
        if self.payers.count(measures) {
            self.books.take(&self.payers, more, &mut self.bill).await?;
        }
        self.reserved = self.reserved.and(more);
        Ok(())
    }

    /// Is there a limit that counts what an answer uses?
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.payers.count(&OF_ANSWERS)
    }

    /// So many tokens more of the answer have come. One that names no bound may become longer than what was reserved: then more is.
    ///
    /// # Errors
    /// [`Error::RateLimited`]: there is no more.
    pub async fn count(&mut self, tokens: u64) -> Result<(), Error> {
        self.counted = self.counted.saturating_add(tokens);
        let Some(missing) = self.counted.checked_sub(self.reserved.output).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        let dearest = self.dearest;
        let growth = |output: u64| Amount { output, cost: dearest.of(0, output), ..Amount::default() };
        // The last of a budget may be used up.
        match self.take(&OF_ANSWERS, growth(missing.max(GROWTH))).await {
            Ok(()) => Ok(()),
            Err(_) => self.take(&OF_ANSWERS, growth(missing)).await.map_err(refusal),
        }
    }

    /// Tokens that are left, after what was reserved, by the limit that leaves fewest; `None`: there is no limit.
    #[must_use]
    pub fn tokens_left(&self) -> Option<u64> {
        let standings = self.books.standings(&self.payers, Moment::now());
        let of_tokens = |standing: &account::Standing| matches!(standing.rule.measure, Measure::Tokens);
        standings.iter().filter(|standing| of_tokens(standing)).map(|standing| standing.left).min()
    }

    /// What is believed of these numbers of a target's: it could shut out an identity, and its whole tenant, for a month.
    #[must_use]
    pub fn believed(&self, input: u64, output: u64) -> (u64, u64) {
        (input.min(self.most.input), output.min(self.most.output.max(self.counted)))
    }

    /// Gives back what was reserved and not used.
    pub fn settle(&mut self, input: u64, output: u64, cost: u64) {
        self.reserved = Amount { requests: 1, input, output, cost, places: 1 };
        if self.payers.count(&OF_REQUESTS) {
            self.books.correct(&self.payers, &mut self.bill, self.reserved);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.books.leave(&self.payers, &mut self.bill);
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::call::Endpoint;

    use super::*;
    use crate::config::units::Size;

    fn admission() -> Admission {
        let limits = Limits { requests: 100, bodies: Size(64 << 10), body: Size(16 << 10), ..Limits::default() };
        Admission::new(&limits, HashMap::new(), NonZeroU16::MIN, None)
    }

    fn peer(id: &str) -> Peer {
        let labels = crate::classify::label::Labels::new(vec!["low".to_owned(), "high".to_owned()]).unwrap();
        let (floor, ceiling) = (labels.lowest(), labels.highest());
        let limits = crate::config::file::IdentityLimits::default();
        Peer { id: id.parse().unwrap(), tenant: "t".into(), floor, ceiling, limits, tenant_limits: limits }
    }

    #[tokio::test]
    async fn bodies_at_a_time_are_bounded_in_all_and_for_each() {
        let admission = admission();
        let (one, other) = (peer("spiffe://b.example/one"), peer("spiffe://b.example/other"));
        let mut first = admission.enter(&one).await.unwrap();
        for bytes in [1, 1000, 1025, 16 << 10] {
            first.charge(bytes).unwrap();
        }
        let mut second = admission.enter(&one).await.unwrap();
        assert!(matches!(second.charge(1), Err(Error::Busy)), "a quarter is in use");
        let mut foreign = admission.enter(&other).await.unwrap();
        foreign.charge(16 << 10).unwrap();
        drop(first);
        second.charge(1).unwrap();
    }

    #[tokio::test]
    async fn a_short_body_of_many_values_is_charged_for_them() {
        let admission = admission();
        let one = peer("spiffe://b.example/one");
        let mut first = admission.enter(&one).await.unwrap();
        first.charge(1000).unwrap();
        first.charge_values(1000, 200).unwrap();
        let mut second = admission.enter(&one).await.unwrap();
        assert!(matches!(second.charge(4 << 10), Err(Error::Busy)), "13,000 of 16,384 are in use");
        second.charge(2 << 10).unwrap();
        drop((first, second));
        // More than the share: served alone.
        let mut large = admission.enter(&one).await.unwrap();
        large.charge_values(1000, 1_000_000).unwrap();
        assert!(matches!(admission.enter(&one).await.unwrap().charge(1), Err(Error::Busy)));
        drop(large);
        admission.enter(&one).await.unwrap().charge(16 << 10).unwrap();
    }

    fn chat(max_tokens: u64) -> Call {
        let chat = postern_wire::json::json!({"model": "m", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "x"}]});
        Call::from_json(Endpoint::Chat, chat, 1).unwrap()
    }

    fn left(admission: &Admission, peer: &Peer) -> Vec<u64> {
        let standings = admission.books.standings(&payers(peer), Moment::now());
        standings.iter().map(|standing| standing.left).collect()
    }

    #[tokio::test]
    async fn what_a_target_says_it_used_is_not_believed_without_bound() {
        let mut limited = peer("spiffe://b.example/one");
        limited.limits.tokens_per_minute = NonZeroU32::new(1000);
        for used in [u64::MAX, 0] {
            let admission = admission();
            let mut admitted = admission.enter(&limited).await.unwrap();
            admitted.reserve(10, &chat(100)).await.unwrap();
            let (input, output) = admitted.believed(used, used);
            assert!(input <= 40 + UNSEEN && output <= 100, "{input} {output}");
            admitted.settle(input, output, 0);
            assert_eq!(left(&admission, &limited), [if used == 0 { 1000 } else { 0 }]);
            // Nobody is shut out for much more than a minute, whatever was said.
            let wait = match admission.enter(&limited).await.unwrap().reserve(1, &chat(1)).await {
                Err(Error::RateLimited { retry_after, .. }) => retry_after,
                _ => Duration::ZERO,
            };
            assert!(wait < Duration::from_secs(61), "{wait:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_bound_takes_more_as_it_grows_to_the_last_token() {
        let admission = admission();
        let mut limited = peer("spiffe://b.example/one");
        limited.tenant_limits.output_tokens_per_day = NonZeroU32::new(1000);
        let unbounded = postern_wire::json::json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        let unbounded = Call::from_json(Endpoint::Chat, unbounded, 1).unwrap();
        let mut admitted = admission.enter(&limited).await.unwrap();
        admitted.reserve(10, &unbounded).await.unwrap();
        assert_eq!(left(&admission, &limited), [488]);
        admitted.count(512).await.unwrap();
        assert_eq!(left(&admission, &limited), [488], "what was reserved is used first");
        admitted.count(1).await.unwrap();
        assert_eq!(left(&admission, &limited), [232]);
        admitted.count(487).await.unwrap();
        assert_eq!(left(&admission, &limited), [0]);
        let refused = admitted.count(1).await.unwrap_err();
        assert!(refused.to_string().contains("output tokens a day for your tenant"), "{refused}");
        admitted.settle(10, 600, 0);
        assert_eq!(left(&admission, &limited), [400]);
    }

    #[tokio::test]
    async fn money_is_reserved_at_the_dearest_and_settled_at_the_real_price() {
        let admission = admission();
        let mut limited = peer("spiffe://b.example/one");
        limited.limits.cost_per_month = serde_json::from_str("0.001").ok();
        let dear = Cost { input: 1.0, output: 5.0 };
        let mut admitted = admission.enter(&limited).await.unwrap();
        admitted.reserve(100, &chat(100)).await.unwrap();
        admitted.reserve_cost(dear).await.unwrap();
        assert_eq!(left(&admission, &limited), [400]);
        let mut second = admission.enter(&limited).await.unwrap();
        second.reserve(1, &chat(100)).await.unwrap();
        let refused = second.reserve_cost(dear).await.unwrap_err();
        assert!(refused.to_string().contains("money a month") && refused.to_string().contains("days"), "{refused}");
        admitted.settle(100, 10, 150);
        assert_eq!(left(&admission, &limited), [850]);
    }
}
