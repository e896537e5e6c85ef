//! What the model made itself, looked at before anybody gets it (see [`crate::screen`]): the client, the cache, those who follow.

use bytes::{Bytes, BytesMut};
use postern_wire::json::Value;

use super::Chain;
use super::event::{Malformed, size};
use super::keep::Kept;
use crate::error::Error;
use crate::screen::{Own, Seen};

/// Bytes of a whole answer that are looked at on a worker's thread as if it were nothing.
pub(super) const LARGE: usize = 256 << 10;

impl Chain {
    /// Looks at one event. True: the answer ends with what is left of it.
    pub(super) fn look_at(&mut self, event: &mut Value) -> Result<bool, Malformed> {
        let Some(screen) = &mut self.screen else { return Ok(false) };
        let (masked, form) = (self.request.masked(), self.restoration.form());
        let choices = masked.classified().request().call.choices();
        let seen = screen.chunk(Own { vault: masked.vault(), form }, choices, event).map_err(|_| Malformed)?;
        Ok(self.note_seen(seen))
    }

    /// Looks at a whole answer.
    pub(super) fn look_at_whole(&mut self, answer: &mut Value) -> Result<(), Error> {
        let Some(screen) = &mut self.screen else { return Ok(()) };
        let (masked, form) = (self.request.masked(), self.restoration.form());
        let own = Own { vault: masked.vault(), form };
        // Of a large one it takes a while: other requests need their thread meanwhile.
        let is_large = size(answer) > LARGE;
        let mut look = || screen.message(own, answer);
        let seen = if is_large { tokio::task::block_in_place(look) } else { look() };
        if !self.note_seen(seen) {
            return Ok(());
        }
        self.exchange.note_usage(answer);
        let error = Error::AnswerStopped;
        Kept::failed(&mut self.keep, &error);
        self.exchange.stopped(&error, false);
        Err(error)
    }

    /// What was held back when a stream ended whose choices did not say that they had. True: the answer ends with it.
    pub(super) fn look_at_rest(&mut self) -> (Bytes, bool) {
        let Some(screen) = &mut self.screen else { return (Bytes::new(), false) };
        let (rest, seen) = screen.rest(Own { vault: self.request.masked().vault(), form: self.restoration.form() });
        let stopped = self.note_seen(seen);
        let Some(mut event) = rest else { return (Bytes::new(), stopped) };
        self.restoration.take_up(&mut event);
        (self.event(event).ok().flatten().unwrap_or_default(), stopped)
    }

    /// The last bytes of an answer that ends here, whatever its model would say.
    pub(super) fn stop(&mut self, given: Bytes) -> Bytes {
        let mut bytes = BytesMut::from(given);
        bytes.extend_from_slice(&self.break_off(&Error::AnswerStopped));
        bytes.freeze()
    }

    /// For the record, and for metrics where the label may be told. True: the answer ends.
    fn note_seen(&mut self, seen: Seen) -> bool {
        let label = self.request.masked().classified().label();
        let metrics = self.gateway.config.is_cleared(label).then_some(&self.gateway.metrics);
        let outcome = &mut self.exchange.outcome;
        for (kind, count) in seen.masked {
            if let Some(metrics) = metrics {
                metrics.answer_masked(&kind, count);
            }
            *outcome.answer_masked.entry(kind.to_string()).or_insert(0) += count;
        }
        let Some(kind) = seen.stopped else { return false };
        if let Some(metrics) = metrics {
            metrics.answer_stopped(&kind);
        }
        outcome.answer_stopped = Some(kind.to_string());
        true
    }
}
