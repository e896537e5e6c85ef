//! The books of one request: opened when it is known who asks, closed exactly once, however it ends. Dropping them
//! unclosed means that the client went away, or that its connection was cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_wire::json::Value;
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::Admitted;
use crate::audit::{Attempt, Outcome, Place, RecordId};
use crate::connection::session::Session;
use crate::cost::{Cost, Prices};
use crate::error::Error;
use crate::telemetry::metrics::{InFlight, Metrics};

/// One request's books.
#[derive(Debug)]
pub struct Exchange {
    /// Names it.
    pub record: RecordId,
    /// When its headers had come.
    pub started: Instant,
    /// What will be written.
    pub outcome: Outcome,
    /// Where it was placed; `none` until that is known.
    pub placement: &'static str,
    /// What it may use.
    pub admitted: Option<Admitted>,
    /// A place for a large answer.
    pub large: Option<OwnedSemaphorePermit>,
    /// Policies were asked, and no remote target may see its label. What was reserved stays spent then however it ends: a policy decides
    /// how, is told what is left, and could spell with it what it has read.
    pub stays: bool,
    /// Where the outcome will be written.
    pub place: Place,
    session: Arc<Session>,
    metrics: Arc<Metrics>,
    prices: Arc<Prices>,
    _in_flight: InFlight,
    closed: bool,
}

impl Exchange {
    /// Opens the books.
    #[must_use]
    pub fn open(
        record: RecordId,
        started: Instant,
        place: Place,
        session: Arc<Session>,
        metrics: Arc<Metrics>,
        prices: Arc<Prices>,
    ) -> Self {
        let in_flight = metrics.request_begins();
        let (identity, relay) = (session.peer.id.as_str().to_owned(), session.relay().map(|id| id.as_str().to_owned()));
        let outcome = Outcome { identity, relay, ..Outcome::default() };
        Self {
            record,
            started,
            outcome,
            placement: "none",
            admitted: None,
            large: None,
            stays: false,
            place,
            session,
            metrics,
            prices,
            _in_flight: in_flight,
            closed: false,
        }
    }

    /// Who asked, and over which connection.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The first token is about to be sent.
    pub fn first_token(&mut self) {
        if self.outcome.ttft_ms.is_none() {
            let after = self.started.elapsed();
            self.outcome.ttft_ms = Some(milliseconds(after));
            self.metrics.first_token(self.target(), after);
        }
    }

    /// Notes the usage that a target counted, if `answer` has it.
    pub fn note_usage(&mut self, answer: &Value) {
        let count = |field: &str| answer.pointer(field).and_then(Value::as_u64);
        self.outcome.prompt_tokens = count("/usage/prompt_tokens").or(self.outcome.prompt_tokens);
        self.outcome.completion_tokens = count("/usage/completion_tokens").or(self.outcome.completion_tokens);
        // Vectors are not made of tokens: all that was used was read.
        if answer.get("choices").is_none() && self.outcome.prompt_tokens.is_some() {
            self.outcome.completion_tokens.get_or_insert(0);
        }
    }

    /// It was answered to the end.
    pub fn answered(&mut self) {
        self.outcome.status = Some(200);
        self.close("answered");
    }

    /// It was refused or could not be answered; nothing but the error was sent.
    pub fn refused(&mut self, error: &Error) {
        let status = error.reply().status;
        self.outcome.status = Some(status.as_u16());
        self.outcome.code = Some(error.code());
        self.close(if status.is_server_error() { "failed" } else { "refused" });
    }

    /// The answer broke after its beginning.
    pub fn broken(&mut self, error: &Error) {
        self.outcome.status = Some(200);
        self.outcome.code = Some(error.code());
        self.close("broken");
    }

    /// What the model made ended the answer; `begun`: after its beginning.
    pub fn stopped(&mut self, error: &Error, begun: bool) {
        self.outcome.status = Some(if begun { 200 } else { error.reply().status.as_u16() });
        self.outcome.code = Some(error.code());
        self.close("stopped");
    }

    /// What tokens cost where it was answered; `None`: nothing, or nothing is known. What comes from the cache was paid for.
    fn cost(&self) -> Option<Cost> {
        let is_new = !matches!(self.outcome.cache, Some("exact" | "semantic" | "shared"));
        self.outcome.target.as_ref().filter(|_| is_new).and_then(|target| self.prices.of_target(target))
    }

    fn target(&self) -> &str {
        self.outcome.target.as_deref().unwrap_or("none")
    }

    fn close(&mut self, result: &'static str) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.outcome.result = result;
        self.outcome.duration_ms = milliseconds(self.started.elapsed());
        let tokens = self.outcome.prompt_tokens.zip(self.outcome.completion_tokens);
        let believed = |(prompt, completion)| {
            self.admitted.as_ref().map_or((prompt, completion), |admitted| admitted.believed(prompt, completion))
        };
        let tokens = tokens.map(believed);
        let cost = tokens.and_then(|(prompt, completion)| Some(self.cost()?.of(prompt, completion)));
        if let (Some(cost), Some(target)) = (cost, &self.outcome.target) {
            self.outcome.cost = Some(cost as f64 / 1e6);
            self.metrics.cost(target, cost);
        }
        if let Some(admitted) = self.admitted.as_mut().filter(|_| !self.stays) {
            // What a target counted; else what was reserved stays spent, since nobody knows better, unless nobody can have used any.
            let is_unused =
                self.outcome.cache != Some("shared") && !self.outcome.attempts.iter().any(Attempt::may_have_cost);
            if let Some((prompt, completion)) = tokens {
                admitted.settle(prompt, completion, cost.unwrap_or_default());
            } else if result == "refused" || is_unused {
                admitted.settle(0, 0, 0);
            }
        }
        self.metrics.request_ends(self.placement, self.target(), result, self.started);
        self.place.outcome(self.record, &self.outcome);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        match self.session.cut() {
            None => self.close("client_gone"),
            Some(code) => {
                self.outcome.code = Some(code);
                self.close("cut");
            }
        }
    }
}

fn milliseconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e6).round() / 1e3
}
