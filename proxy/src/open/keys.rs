//! The keys that payloads are sealed for: made anew each day and at each start, published with the gateway's signature, and what they opened is
//! remembered, so that nothing is accepted twice. They are in memory only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderValue, Response, header};
use postern_certs::{CertsError, Signatory, clock};
use postern_sealed::replays::{NotAccepted, Replays, Undated};
use postern_sealed::rotation::Rotation;
use postern_sealed::whole::Exchange;
use postern_sealed::{Keys, SealError, config, signed};
use time::OffsetDateTime;

use crate::connect::keys::chain_to_text;
use crate::error::Error;
use crate::response::{self, Body};

/// Requests that are known, of the two minutes in which their dates would pass.
const DATED: usize = 1 << 20;
/// And of each key, those without a date.
const UNDATED: usize = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The keys of one gateway.
#[derive(Debug)]
pub struct PayloadKeys {
    current: ArcSwap<Keys>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rotation: Rotation,
    /// By wall time, which goes on while a machine sleeps, and never back.
    looked: OffsetDateTime,
    dated: Replays,
    undated: Undated,
}

impl Default for PayloadKeys {
    fn default() -> Self {
        let rotation = Rotation::new(&mut rand::rng());
        let current = ArcSwap::from_pointee(rotation.keys());
        let (dated, undated) = (Replays::new(DATED), Undated::new(UNDATED));
        Self { current, state: Mutex::new(State { rotation, looked: clock::steady_now(), dated, undated }) }
    }
}

impl PayloadKeys {
    /// Those that open.
    #[must_use]
    pub fn keys(&self) -> Arc<Keys> {
        self.current.load_full()
    }

    /// Accepts what has been opened and says its date.
    ///
    /// # Errors
    /// It was accepted before, or too many were of late.
    pub fn accept(&self, exchange: &Exchange) -> Result<(), Error> {
        let accepted = self.state().dated.accept(exchange.key_id(), exchange.encapsulated(), Instant::now());
        accepted.map_err(|why| match why {
            NotAccepted::Replayed => Error::PayloadReplayed,
            NotAccepted::Full => Error::Busy,
        })
    }

    /// Accepts what has been opened and says no date.
    ///
    /// # Errors
    /// It was accepted before, or its key has opened too many: another one is in use by now.
    pub fn accept_undated(&self, exchange: &Exchange) -> Result<(), Error> {
        let mut state = self.state();
        match state.undated.accept(exchange.key_id(), exchange.encapsulated()) {
            Ok(false) => Ok(()),
            Ok(true) => {
                state.rotation.renew(&mut rand::rng());
                self.publish(&mut state, "it had opened as many as can be remembered");
                Ok(())
            }
            Err(NotAccepted::Replayed) => Err(Error::PayloadReplayed),
            Err(NotAccepted::Full) => Err(SealError::NoKey.into()),
        }
    }

    /// Replaces them when it is time, for as long as the gateway runs.
    pub async fn keep_up(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (mut state, now) = (self.state(), clock::steady_now());
            let passed = Duration::try_from(now - state.looked).unwrap_or_default();
            state.looked = now;
            if state.rotation.pass(passed, &mut rand::rng()) {
                self.publish(&mut state, "it was a day old");
            }
        }
    }

    fn publish(&self, state: &mut State, why: &'static str) {
        let keys = state.rotation.keys();
        state.undated.forget(|id| keys.has(id));
        self.current.store(Arc::new(keys));
        tracing::info!(why, "the payload key was replaced");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list, or for EHBP the newest alone, signed by whose they are; and until when it may be used.
    ///
    /// # Errors
    /// The gateway's key cannot sign.
    pub(crate) fn published(
        &self,
        alone: bool,
        own: &str,
        (signatory, not_after): (&Signatory, OffsetDateTime),
    ) -> Result<Response<Body>, CertsError> {
        let (keys, newest_for) = {
            let state = self.state();
            (state.rotation.keys(), state.rotation.newest_for())
        };
        let list = if alone { keys.newest() } else { keys.list() };
        // Nobody believes a signature for longer than the certificate behind it.
        let until = (clock::steady_now() + newest_for).min(not_after).unix_timestamp();
        let until = u64::try_from(until).unwrap_or(0);
        let signature = signatory.sign(&signed::keys(own, until, &list))?;
        let mut response = Response::new(response::full(list.into()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(config::MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(signed::KEYS_UNTIL, until.into());
        for (name, value) in [
            (signed::KEYS_SENDER, chain_to_text(signatory.chain())),
            (signed::KEYS_SIGNATURE, data_encoding::BASE64.encode(&signature)),
        ] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
        Ok(response)
    }
}
