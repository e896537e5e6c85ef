//! The keys that payloads are sealed for: made anew each day and at each start, published with the gateway's signature, and what they opened is
//! remembered, so that nothing is accepted twice. They are in memory only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderValue, Response, header};
use postern_certs::{CertsError, Clock as _, Signatory, SystemClock};
use postern_sealed::replays::{NotAccepted, Replays, Undated};
use postern_sealed::rotation::Rotation;
use postern_sealed::whole::Exchange;
use postern_sealed::{Keys, SealError, config, signed};
use time::OffsetDateTime;

use super::sender::Senders;
use crate::connect::keys::chain_to_text;
use crate::error::Error;
use crate::response::{self, Body};

/// Requests that are known, of the two minutes in which their dates would pass.
const DATED: usize = 1 << 20;
/// And of each key, those without a date.
const UNDATED: usize = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What clocks do by themselves.
const SET_BACK: time::Duration = time::Duration::SECOND;

/// The keys of one gateway.
#[derive(Debug)]
pub struct PayloadKeys {
    pub(super) senders: Senders,
    current: ArcSwap<Keys>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rotation: Rotation,
    /// When it was looked at the clocks: timers stand still while a machine sleeps, and the clock of the wall may be set.
    looked: (Instant, OffsetDateTime),
    /// The latest that the clock of the wall has said.
    latest: OffsetDateTime,
    dated: Replays,
    undated: Undated,
}

impl Default for PayloadKeys {
    fn default() -> Self {
        let rotation = Rotation::new(&mut rand::rng());
        let current = ArcSwap::from_pointee(rotation.keys());
        let (dated, undated, now) = (Replays::new(DATED), Undated::new(UNDATED), SystemClock.now());
        let state = State { rotation, looked: (Instant::now(), now), latest: now, dated, undated };
        Self { senders: Senders::default(), current, state: Mutex::new(state) }
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
        let mut state = self.state_for(exchange).ok_or(SealError::UnknownKey(exchange.key_id()))?;
        let accepted = state.dated.accept(exchange.key_id(), exchange.encapsulated(), Instant::now());
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
        let mut state = self.state_for(exchange).ok_or(SealError::NoKey)?;
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

    /// `None`: its key was replaced while it was read, and what that has opened may be forgotten.
    fn state_for(&self, exchange: &Exchange) -> Option<MutexGuard<'_, State>> {
        let mut state = self.state();
        self.look_at_clocks(&mut state);
        self.current.load().has(exchange.key_id()).then_some(state)
    }

    /// Replaces them when it is time, for as long as the gateway runs.
    pub async fn keep_up(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look_at_clocks(&mut self.state());
        }
    }

    /// Keys are replaced when it is time; all of them, if the clock of the wall was set back: dates that had passed would be good once more.
    fn look_at_clocks(&self, state: &mut State) {
        let (timer, wall) = (Instant::now(), SystemClock.now());
        if wall + SET_BACK < state.latest {
            state.rotation.restart(&mut rand::rng());
            (state.latest, state.looked) = (wall, (timer, wall));
            return self.publish(state, "the clock was set back");
        }
        state.latest = state.latest.max(wall);
        let (timer_before, wall_before) = state.looked;
        let passed = Duration::try_from(wall - wall_before).unwrap_or_default().max(timer - timer_before);
        if passed >= LOOK_EVERY {
            state.looked = (timer, wall);
            if state.rotation.pass(passed, &mut rand::rng()) {
                self.publish(state, "it was a day old");
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
        let until = (SystemClock.now() + newest_for).min(not_after).unix_timestamp();
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

#[cfg(test)]
mod tests {
    use postern_sealed::{PublicConfig, whole};

    use super::*;

    #[test]
    fn what_a_key_has_opened_is_not_accepted_after_the_key_is_gone() {
        let keys = PayloadKeys::default();
        let opened = |keys: &PayloadKeys| {
            let config = PublicConfig::from_list(&keys.keys().list()).unwrap();
            let (sealed, _) = whole::seal_request(&config, b"a", &mut rand::rng()).unwrap();
            whole::open_request(&keys.keys(), &sealed).unwrap().1
        };
        let (dated, undated) = (opened(&keys), opened(&keys));
        assert!(keys.accept(&dated).is_ok() && keys.accept_undated(&undated).is_ok());
        assert!(matches!(keys.accept(&dated), Err(Error::PayloadReplayed)));
        assert!(matches!(keys.accept_undated(&undated), Err(Error::PayloadReplayed)));
        // Who began to send before the clock was set back ends after it.
        keys.state().latest += time::Duration::MINUTE;
        keys.look_at_clocks(&mut keys.state());
        assert!(matches!(keys.accept_undated(&undated), Err(Error::Payload(SealError::NoKey))));
        assert!(matches!(keys.accept(&dated), Err(Error::Payload(SealError::UnknownKey(_)))));
        assert!(keys.accept(&opened(&keys)).is_ok());
    }
}
