//! How much one identity may ask for: requests a minute, tokens a minute, requests at a time; and how much the gateway
//! takes on in all.
//!
//! Bodies are charged as they arrive, so that memory has a bound whatever is sent at the same time.
//!
//! Tokens are reserved before a request is sent (prompt estimated, answer at its bound) and settled when it has ended, so
//! that requests at the same time cannot overspend together.

mod ledger;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use postern_certs::spiffe::SpiffeId;
use postern_wire::call::Call;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;
use crate::request::Peer;
pub use ledger::Ledger;

/// Identities whose rates are kept. Who was not seen for [`IDLE`] starts afresh, with full budgets by then anyway.
const IDENTITIES: u64 = 100_000;
const IDLE: Duration = Duration::from_secs(600);
/// Bodies are charged in pieces of so many bytes.
const CHARGE: u64 = 1024;
/// Charged for each value of a parsed body. A fifth of what one costs, however short it is, since a body costs five times what
/// is charged.
const VALUE_BYTES: u64 = 60;
/// The part of all bodies that one identity may hold: several clients must be needed to keep everybody else out.
const SHARE: u64 = 4;

/// Admits requests.
#[derive(Debug)]
pub struct Admission {
    identities: Cache<SpiffeId, Arc<Budget>>,
    all: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    share: usize,
}

#[derive(Debug)]
struct Budget {
    requests: Option<DefaultDirectRateLimiter>,
    concurrency: Option<Arc<Semaphore>>,
    bodies: Arc<Semaphore>,
    tokens: Option<Mutex<Ledger>>,
}

/// Leave to be served. Dropping it gives back the places; [`settle`](Self::settle) says what was used.
#[derive(Debug)]
pub struct Admitted {
    _all: OwnedSemaphorePermit,
    _one: Option<OwnedSemaphorePermit>,
    bodies: Arc<Semaphore>,
    /// Bytes that one identity may hold.
    share: u64,
    charged: Option<Charged>,
    budget: Arc<Budget>,
    reserved: u64,
}

/// Memory of a body, out of everybody's and out of the identity's own.
#[derive(Debug)]
struct Charged {
    all: OwnedSemaphorePermit,
    own: OwnedSemaphorePermit,
    bytes: u64,
}

impl Admission {
    /// At most `requests` at a time, and `bodies` bytes of theirs; one body of `body` bytes always fits an identity's share.
    #[must_use]
    pub fn new(requests: usize, bodies: u64, body: u64) -> Self {
        let identities = Cache::builder().max_capacity(IDENTITIES).time_to_idle(IDLE).build();
        let share = permits((bodies / SHARE).max(body).min(bodies));
        Self {
            identities,
            all: Arc::new(Semaphore::new(requests)),
            bodies: Arc::new(Semaphore::new(permits(bodies))),
            share,
        }
    }

    /// Takes the next request of an identity, before its body is read.
    ///
    /// # Errors
    /// [`Error::RateLimited`] or [`Error::Busy`].
    pub fn enter(&self, peer: &Peer) -> Result<Admitted, Error> {
        let all = self.all.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let budget = self.identities.get_with_by_ref(&peer.id, || Arc::new(Budget::new(peer, self.share)));
        let one =
            match &budget.concurrency {
                Some(places) => Some(places.clone().try_acquire_owned().map_err(|_| Error::RateLimited {
                    what: "requests at a time",
                    retry_after: Duration::from_secs(1),
                })?),
                None => None,
            };
        if let Some(Err(wait)) = budget.requests.as_ref().map(|requests| requests.check()) {
            let retry_after = wait.wait_time_from(governor::clock::DefaultClock::default().now());
            return Err(Error::RateLimited { what: "requests a minute", retry_after });
        }
        let bodies = self.bodies.clone();
        let share = self.share as u64 * CHARGE;
        Ok(Admitted { _all: all, _one: one, bodies, share, charged: None, budget, reserved: 0 })
    }
}

impl Budget {
    fn new(peer: &Peer, share: usize) -> Self {
        let limits = peer.limits;
        Self {
            requests: limits.requests_per_minute.map(|n| RateLimiter::direct(Quota::per_minute(n))),
            concurrency: limits.concurrency.map(|n| Arc::new(Semaphore::new(n.get() as usize))),
            bodies: Arc::new(Semaphore::new(share)),
            tokens: limits.tokens_per_minute.map(|n| Mutex::new(Ledger::new(n, Instant::now()))),
        }
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
        let own = self.budget.bodies.clone().try_acquire_many_owned(missing).map_err(|_| Error::Busy)?;
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
    pub fn reserve(&mut self, prompt_tokens: u64, call: &Call) -> Result<(), Error> {
        let Some(ledger) = &self.budget.tokens else { return Ok(()) };
        let wanted = prompt_tokens.saturating_add(call.max_answer_tokens());
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserved = ledger
            .reserve(Instant::now(), wanted)
            .map_err(|retry_after| Error::RateLimited { what: "tokens a minute", retry_after })?;
        Ok(())
    }

    /// Tokens that are left in this minute, after what was reserved; `None`: there is no limit.
    #[must_use]
    pub fn tokens_left(&self) -> Option<u64> {
        let ledger = self.budget.tokens.as_ref()?;
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ledger.available(Instant::now()))
    }

    /// Gives back what was reserved and not used.
    pub fn settle(&mut self, used: u64) {
        let reserved = std::mem::replace(&mut self.reserved, used);
        if let Some(ledger) = &self.budget.tokens {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.correct(reserved, used);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use postern_wire::call::Endpoint;

    use super::*;

    fn peer(id: &str) -> Peer {
        let labels = crate::classify::label::Labels::new(vec!["low".to_owned(), "high".to_owned()]).unwrap();
        let (floor, ceiling) = (labels.lowest(), labels.highest());
        let limits = crate::config::file::IdentityLimits::default();
        Peer { id: id.parse().unwrap(), tenant: "t".into(), floor, ceiling, limits }
    }

    #[test]
    fn bodies_at_a_time_are_bounded_in_all_and_for_each() {
        let admission = Admission::new(100, 64 << 10, 16 << 10);
        let (one, other) = (peer("spiffe://b.example/one"), peer("spiffe://b.example/other"));
        let mut first = admission.enter(&one).unwrap();
        for bytes in [1, 1000, 1025, 16 << 10] {
            first.charge(bytes).unwrap();
        }
        let mut second = admission.enter(&one).unwrap();
        assert!(matches!(second.charge(1), Err(Error::Busy)), "a quarter is in use");
        let mut foreign = admission.enter(&other).unwrap();
        foreign.charge(16 << 10).unwrap();
        drop(first);
        second.charge(1).unwrap();
    }

    #[test]
    fn a_short_body_of_many_values_is_charged_for_them() {
        let admission = Admission::new(100, 64 << 10, 16 << 10);
        let one = peer("spiffe://b.example/one");
        let mut first = admission.enter(&one).unwrap();
        first.charge(1000).unwrap();
        first.charge_values(1000, 200).unwrap();
        let mut second = admission.enter(&one).unwrap();
        assert!(matches!(second.charge(4 << 10), Err(Error::Busy)), "13,000 of 16,384 are in use");
        second.charge(2 << 10).unwrap();
        drop((first, second));
        // More than the share: served alone.
        let mut large = admission.enter(&one).unwrap();
        large.charge_values(1000, 1_000_000).unwrap();
        assert!(matches!(admission.enter(&one).unwrap().charge(1), Err(Error::Busy)));
        drop(large);
        admission.enter(&one).unwrap().charge(16 << 10).unwrap();
    }

    #[test]
    fn what_a_target_says_it_used_is_not_believed_without_bound() {
        let mut limited = peer("spiffe://b.example/one");
        limited.limits.tokens_per_minute = NonZeroU32::new(1000);
        let chat = serde_json::json!({"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "x"}]});
        let chat = Call::from_json(Endpoint::Chat, chat, 1).unwrap();
        let admission = Admission::new(100, 64 << 10, 16 << 10);
        for used in [u64::MAX, 0] {
            let mut admitted = admission.enter(&limited).unwrap();
            admitted.reserve(chat.estimated_prompt_tokens(), &chat).unwrap();
            admitted.settle(used);
            let mut budget = admitted.budget.tokens.as_ref().unwrap().lock().unwrap();
            let available = budget.available(Instant::now());
            drop(budget);
            assert_eq!(available, if used == 0 { 1000 } else { 0 });
            // Nobody is shut out for more than a minute, whatever was said.
            let mut budget = admitted.budget.tokens.as_ref().unwrap().lock().unwrap();
            assert!(budget.available(Instant::now() + Duration::from_secs(61)) > 0 || used == u64::MAX);
            drop(budget);
            admission.identities.invalidate_all();
        }
    }
}
