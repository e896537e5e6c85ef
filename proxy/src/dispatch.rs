//! Carries a plan out: one attempt after the other, or two in a race, until one has its first token.
//!
//! Everything happens inside one future and the stream it gives back. Dropping either drops the connection to the
//! upstream with it, so a client that goes away cancels what was done for it, and the loser of a race is cancelled at
//! once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use serde_json::Value;
use tokio::time::timeout;

use crate::admission::Ledger;
use crate::audit::Attempt;
use crate::classify::clearance::{Clearance, Destination};
use crate::classify::label::Labels;
use crate::config::{Config, Target, Timeouts};
use crate::decide::PlannedRequest;
use crate::egress::{EgressError, Remote};
use crate::error::Error;
use crate::telemetry::metrics::Metrics;
use crate::tls::Certificate;
use crate::upstream::health::Observed;
use crate::upstream::openai::{MAX_EVENT, OpenAi, is_asked_for};
use crate::upstream::{AttemptError, Reply, Upstream, local};

/// Events before the first token (roles, empty deltas) that are looked at.
const MAX_EVENTS_BEFORE_TOKEN: usize = 64;

/// What may come together with the first token in one piece.
const READ_AHEAD: usize = 64 << 10;

/// Everybody who can answer.
pub struct Dispatcher {
    clearance: Clearance,
    remotes: Vec<RemoteTarget>,
    engine: Arc<local::Engine>,
    timeouts: Timeouts,
    labels: Labels,
    metrics: Arc<Metrics>,
}

struct RemoteTarget {
    target: Arc<Target>,
    upstream: OpenAi,
    limit: Option<Mutex<Ledger>>,
    observed: Observed,
}

/// A remote target as it is now.
#[derive(Debug, Clone, Copy)]
pub struct TargetState {
    /// It answered when it was last asked, or has not been asked for a while.
    pub healthy: bool,
    /// When its first token would come.
    pub predicted_ttft: Option<Duration>,
    /// Our requests that have no first token from it yet.
    pub waiting: u32,
    /// What we may still send it in this minute; `None`: there is no limit.
    pub requests_left: Option<u64>,
}

/// Who answered, and the beginning of the answer.
#[derive(Debug)]
pub struct Answer {
    /// The target's name.
    pub target: String,
    /// The answer.
    pub reply: Reply,
}

/// What was tried. Lives outside of the future, so that it is known even when that is dropped.
pub type Attempts = Vec<Attempt>;

impl Dispatcher {
    /// Makes a client for every target; connects to nothing yet.
    ///
    /// # Errors
    /// A key or an authority is not to be had.
    pub fn new(
        config: &Config,
        engine: Arc<local::Engine>,
        certificate: &Arc<Certificate>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EgressError> {
        let remote = |target: &Arc<Target>| {
            Ok(RemoteTarget {
                target: target.clone(),
                upstream: OpenAi::new(Remote::new(target, config.timeouts, certificate)?, config.timeouts.idle),
                limit: target.requests_per_minute.map(|n| Mutex::new(Ledger::new(n, Instant::now()))),
                observed: Observed::default(),
            })
        };
        // Offline, not even a client is made.
        let remotes =
            if config.offline { Vec::new() } else { config.targets.iter().map(remote).collect::<Result<_, _>>()? };
        Ok(Self {
            clearance: Clearance::new(config),
            remotes,
            engine,
            timeouts: config.timeouts,
            labels: config.labels.clone(),
            metrics,
        })
    }

    /// Remote targets with their predicted times to first token.
    #[must_use]
    pub fn predictions(&self) -> Vec<(Arc<Target>, Option<Duration>)> {
        self.remotes.iter().map(|remote| (remote.target.clone(), remote.observed.predicted_ttft())).collect()
    }

    /// What is known of a remote target now; `None`: it is not used, because the gateway is offline.
    #[must_use]
    pub fn state(&self, target: &str) -> Option<TargetState> {
        let remote = self.remotes.iter().find(|remote| remote.target.name == target)?;
        let left =
            |limit: &Mutex<Ledger>| limit.lock().unwrap_or_else(PoisonError::into_inner).available(Instant::now());
        Some(TargetState {
            healthy: remote.observed.is_healthy(Instant::now()),
            predicted_ttft: remote.observed.predicted_ttft(),
            waiting: remote.observed.waiting(),
            requests_left: remote.limit.as_ref().map(left),
        })
    }

    /// The engine on this machine.
    #[must_use]
    pub fn engine(&self) -> &local::Engine {
        &self.engine
    }

    /// Tries the targets of the plan until one answers.
    ///
    /// # Errors
    /// None could; or the request itself is at fault.
    pub async fn dispatch(&self, request: &PlannedRequest, attempts: &mut Attempts) -> Result<Answer, Error> {
        let plan = request.plan();
        let mut last = AttemptError::EngineDown;
        let mut failures = 0;
        // The cloud that lost or failed in a race is not asked again.
        let mut raced = None;
        for (index, target) in plan.targets.iter().enumerate() {
            if raced == Some(index) {
                continue;
            }
            let (winner, result) = match self.rival(request, index) {
                Some((after, rival)) => {
                    let race = Race { first: target, rival: plan.targets.get(rival).unwrap_or(target), after };
                    let (winner, result, began) = self.race(request, &race, attempts).await;
                    raced = began.then_some(rival);
                    (winner, result)
                }
                None => (target, self.noted(request, target, attempts).await),
            };
            match result {
                Ok(reply) => return Ok(Answer { target: winner.name().to_owned(), reply }),
                Err(AttemptError::Rejected { context_length: true }) => return Err(Error::ContextLength),
                Err(error) if !error.is_worth_another_target() => return Err(Error::UpstreamRejected),
                Err(error) => {
                    failures += 1;
                    if let Some(next) = plan.targets.get(index + 1) {
                        self.metrics.fell_back(target.name(), next.name(), error.code());
                    }
                    last = error;
                }
            }
        }
        let only_engine = plan.targets.iter().all(|target| matches!(target, Destination::Engine));
        Err(match last {
            AttemptError::EngineDown if only_engine => Error::EngineStarting,
            // What only the engine does not take, another target may take later, if it failed for a reason of its own.
            AttemptError::Engine(refusal) if refusal.is_temporary() || refusal.is_final() || failures == 1 => {
                Error::EngineRefused(refusal)
            }
            AttemptError::FirstToken(bound) => Error::DeadlineExceeded(bound),
            AttemptError::NotFound if plan.targets.len() == 1 => Error::ModelUnknown,
            _ => Error::UpstreamUnavailable { tried: plan.targets.len() },
        })
    }

    /// Whom the target at `index` races, and after what time. Only streams race: an answer that comes as a whole has no first
    /// token to wait for, and would be paid for twice each time.
    fn rival(&self, request: &PlannedRequest, index: usize) -> Option<(Duration, usize)> {
        let plan = request.plan();
        let stream = request.masked().classified().request().call.stream();
        let after = plan.race_after.filter(|_| index == 0 && stream)?;
        Some((after, first_cloud(&plan.targets)?))
    }

    /// Asks the first; if it has no token after a while, asks the rival as well. The first token wins. The last part of what is
    /// given back says whether the rival was asked.
    async fn race<'a>(
        &self,
        request: &PlannedRequest,
        race: &Race<'a>,
        attempts: &mut Attempts,
    ) -> (&'a Destination, Result<Reply, AttemptError>, bool) {
        let Race { first, rival, after } = *race;
        let started = Instant::now();
        let mut note = |target: &Destination, result: &'static str, since: Instant| {
            let ms = since.elapsed().as_secs_f64() * 1000.0;
            attempts.push(Attempt { target: target.name().to_owned(), result, ms });
        };
        let mut near = Box::pin(self.attempt(request, first));
        if let Ok(result) = timeout(after, &mut near).await {
            note(first, code(&result), started);
            return (first, result, false);
        }
        let raced_at = Instant::now();
        let far = Box::pin(self.attempt(request, rival));
        let (winner, result) = match select(near, far).await {
            Either::Left((Ok(reply), _)) => {
                note(first, "ok", started);
                note(rival, "lost_race", raced_at);
                (first, Ok(reply))
            }
            Either::Right((Ok(reply), _)) => {
                note(first, "lost_race", started);
                note(rival, "ok", raced_at);
                (rival, Ok(reply))
            }
            Either::Left((Err(error), far)) => {
                note(first, error.code(), started);
                let result = far.await;
                note(rival, code(&result), raced_at);
                (rival, result)
            }
            Either::Right((Err(error), near)) => {
                note(rival, error.code(), raced_at);
                let result = near.await;
                note(first, code(&result), started);
                (first, result)
            }
        };
        (winner, result, true)
    }

    async fn noted(
        &self,
        request: &PlannedRequest,
        target: &Destination,
        attempts: &mut Attempts,
    ) -> Result<Reply, AttemptError> {
        let started = Instant::now();
        // Noted before it is known how it ends: if the client goes away meanwhile, the record still says who was asked.
        let index = attempts.len();
        attempts.push(Attempt { target: target.name().to_owned(), result: "abandoned", ms: 0.0 });
        let result = self.attempt(request, target).await;
        if let Some(attempt) = attempts.get_mut(index) {
            attempt.result = code(&result);
            attempt.ms = started.elapsed().as_secs_f64() * 1000.0;
        }
        result
    }

    /// One attempt, up to the first token.
    async fn attempt(&self, request: &PlannedRequest, target: &Destination) -> Result<Reply, AttemptError> {
        let permit = self.clearance.permit(request, target).inspect_err(|refusal| {
            let label = self.labels.name(request.masked().classified().label());
            tracing::error!(target = target.name(), label, %refusal, "a planned send was refused by the clearance");
            self.metrics.egress_refused(label, refusal.code());
        })?;
        let stream = permit.asks().stream();
        let choices = request.masked().classified().request().call.choices();
        let started = Instant::now();
        // An answer that comes as a whole shows nothing until it is complete.
        let within = if stream { self.timeouts.first_token } else { self.timeouts.first_token + self.timeouts.idle };
        let in_time = |sending| async move {
            timeout(within, first_token(sending, choices)).await.map_err(|_| AttemptError::FirstToken(within))?
        };
        let target = match target {
            Destination::Engine => {
                let tokens = request.masked().classified().request().call.estimated_prompt_tokens();
                let predicted = self.engine.predicted_ttft(tokens).filter(|_| stream);
                let reply = in_time(self.engine.send(permit)).await?;
                if let Some(predicted) = predicted {
                    self.metrics.engine_predicted(predicted, started.elapsed());
                }
                return Ok(reply);
            }
            Destination::Remote(target) => target,
        };
        let remote = self.remotes.iter().find(|remote| remote.target.name == target.name);
        let remote = remote.ok_or(AttemptError::Connect)?;
        let is_over = |limit: &Mutex<Ledger>| {
            limit.lock().unwrap_or_else(PoisonError::into_inner).reserve(Instant::now(), 1).is_err()
        };
        if remote.limit.as_ref().is_some_and(is_over) {
            return Err(AttemptError::Limited);
        }
        let _waiting = remote.observed.wait();
        let reply = in_time(remote.upstream.send(permit)).await;
        remote.observed.ended(reply.as_ref().err().is_some_and(AttemptError::is_of_the_target), Instant::now());
        if stream && reply.is_ok() {
            remote.observed.first_token(started.elapsed());
        }
        reply
    }
}

/// The first target of a plan and the one that it races.
struct Race<'a> {
    first: &'a Destination,
    rival: &'a Destination,
    after: Duration,
}

fn code(result: &Result<Reply, AttemptError>) -> &'static str {
    result.as_ref().map_or_else(AttemptError::code, |_| "ok")
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Dispatcher({} remotes)", self.remotes.len())
    }
}

fn first_cloud(targets: &[Destination]) -> Option<usize> {
    let is_cloud = |target: &Destination| matches!(target, Destination::Remote(target) if target.kind == crate::config::file::TargetKind::Cloud);
    targets.iter().position(is_cloud).filter(|index| *index > 0)
}

/// Waits until a stream has something to show, so that a target that says “200” and then nothing, or something that nobody
/// asked for, can still be left.
async fn first_token(
    sending: impl Future<Output = Result<Reply, AttemptError>>,
    choices: u64,
) -> Result<Reply, AttemptError> {
    let asked_for = |answer: &Value| match is_asked_for(answer, choices) {
        true => Ok(()),
        false => Err(AttemptError::Malformed("choices")),
    };
    let mut events = match sending.await? {
        Reply::Stream(events) => events,
        Reply::Whole(answer) => return asked_for(&answer).map(|()| Reply::Whole(answer)),
    };
    let mut seen = VecDeque::new();
    while seen.len() < MAX_EVENTS_BEFORE_TOKEN {
        // An empty answer is an answer as well, if it says why it ended.
        let event = events.next().await?.ok_or(AttemptError::Malformed("no events"))?;
        if events.received() > MAX_EVENT + READ_AHEAD {
            return Err(AttemptError::Malformed("size before the first token"));
        }
        asked_for(&event)?;
        let shows = shows_something(&event);
        seen.push_back(event);
        if shows {
            break;
        }
    }
    events.put_back(seen);
    Ok(Reply::Stream(events))
}

fn shows_something(event: &Value) -> bool {
    let choices = event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    choices.iter().any(|choice| {
        let ended = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
        let delta = choice.get("delta").and_then(Value::as_object);
        let says = delta.is_some_and(|delta| {
            delta.iter().any(|(key, value)| match value {
                Value::String(text) => key != "role" && !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                Value::Object(_) => true,
                _ => false,
            })
        });
        ended || says
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_role_is_no_token() {
        let event =
            |delta: Value, finish: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        assert!(!shows_something(&event(json!({"role": "assistant", "content": ""}), Value::Null)));
        assert!(!shows_something(&json!({"choices": []})));
        assert!(shows_something(&event(json!({"content": "Hi"}), Value::Null)));
        assert!(shows_something(&event(json!({"tool_calls": [{"index": 0}]}), Value::Null)));
        assert!(shows_something(&event(json!({}), json!("stop"))));
    }
}
