//! Carries a plan out: asks one target after the other, or two in a race, until one has its first token. [`course`] says whom and
//! when; here it is asked.
//!
//! Everything happens inside one future and the stream it gives back. Dropping either drops the connection to the
//! upstream with it, so a client that goes away cancels what was done for it, and the loser of a race is cancelled at
//! once.

mod budget;
mod course;

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use postern_wire::json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::audit::Attempt;
use crate::classify::clearance::{Clearance, Destination, ENGINE, Refusal};
use crate::classify::label::Labels;
use crate::config::{Config, Target, Timeouts};
use crate::decide::PlannedRequest;
use crate::egress::{EgressError, Remote};
use crate::error::Error;
use crate::redact::beginning::MaskedBeginning;
use crate::request::ParsedRequest;
use crate::telemetry::metrics::Metrics;
use crate::tls::Certificate;
use crate::upstream::limiter::Limiter;
use crate::upstream::openai::{MAX_EVENT, OpenAi, is_asked_for};
use crate::upstream::progress::shows_something;
use crate::upstream::standing::{self, Claim, Now, Standing, Turn};
use crate::upstream::{AttemptError, Reply, Upstream, local};
use budget::RetryBudget;
pub use course::Past;
use course::{Course, Lost, Rules, Slot};

/// Events before the first token (roles, empty deltas) that are looked at.
const MAX_EVENTS_BEFORE_TOKEN: usize = 64;
/// What may come together with the first token in one piece.
const READ_AHEAD: usize = 64 << 10;
/// Requests that may wait in line for one target, if it has no limit of requests.
const LINE_MAX: usize = 1024;

/// Everybody who can answer.
pub struct Dispatcher {
    clearance: Clearance,
    /// Cancelled when the gateway is offline, or about to be.
    offline: CancellationToken,
    remotes: Vec<RemoteTarget>,
    engine: Arc<local::Engine>,
    engine_standing: Arc<Standing>,
    timeouts: Timeouts,
    labels: Labels,
    metrics: Arc<Metrics>,
    budget: RetryBudget,
    /// Of identities and models, so that nobody can choose names that look alike.
    digests: RandomState,
}

struct RemoteTarget {
    target: Arc<Target>,
    upstream: OpenAi,
    standing: Arc<Standing>,
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
            let limiter = Limiter::new(target.requests_per_minute, target.tokens_per_minute, config.timeouts.connect);
            let standing = Standing::new(&target.name, limiter, line_max(target, config.timeouts.queue));
            let remote = Remote::new(target, config.timeouts, certificate)?;
            let upstream = OpenAi::new(remote, config.timeouts.idle);
            Ok(RemoteTarget { target: target.clone(), upstream, standing })
        };
        let offline = CancellationToken::new();
        if config.offline {
            offline.cancel();
        }
        // Offline, not even a client is made.
        let remotes =
            if config.offline { Vec::new() } else { config.targets.iter().map(remote).collect::<Result<_, _>>()? };
        Ok(Self {
            clearance: Clearance::new(config, offline.clone()),
            offline,
            remotes,
            engine,
            engine_standing: Standing::new(ENGINE, Limiter::new(None, None, Duration::ZERO), LINE_MAX),
            timeouts: config.timeouts,
            labels: config.labels.clone(),
            metrics,
            budget: RetryBudget::new(standing::now()),
            digests: RandomState::new(),
        })
    }

    /// What a request asks of each target. In limits of tokens it counts for its prompt, estimated, and the longest answer that it
    /// asks for.
    #[must_use]
    pub fn claim(&self, request: &ParsedRequest) -> Claim {
        let tokens = request.prompt_tokens.saturating_add(request.call.max_answer_tokens());
        let (who, model) = (self.digests.hash_one(&request.peer.id), self.digests.hash_one(request.call.model()));
        Claim { who, model: Some(model), tokens }
    }

    /// Cancelled when the gateway is offline: from then on no target but the engine is asked, and answers of others that are under
    /// way have ended. To cancel it is the way there; the kernel's part is the successor's ([`crate::confine`]).
    #[must_use]
    pub fn offline(&self) -> &CancellationToken {
        &self.offline
    }

    /// How the remote targets stand, for a request; none if the gateway is offline.
    #[must_use]
    pub fn standings(&self, claim: Claim) -> Vec<(Arc<Target>, Now)> {
        if self.offline.is_cancelled() {
            return Vec::new();
        }
        let now = standing::now();
        self.remotes.iter().map(|remote| (remote.target.clone(), remote.standing.now(claim, now))).collect()
    }

    /// How the engine on this machine stands, by the requests that it was sent.
    #[must_use]
    pub fn engine_standing(&self, claim: Claim) -> Now {
        self.engine_standing.now(claim, standing::now())
    }

    /// The engine on this machine.
    #[must_use]
    pub fn engine(&self) -> &local::Engine {
        &self.engine
    }

    /// Asks the targets of the plan until one answers. `past` is for [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// None could; or the request itself is at fault.
    pub async fn dispatch(
        &self,
        request: &PlannedRequest,
        past: &mut Past,
        attempts: &mut Attempts,
    ) -> Result<Answer, Error> {
        let targets: Vec<_> = request.plan().targets.iter().collect();
        let answered = self.ask(request, &targets, rival(request), None, past, attempts).await;
        answered.map_err(|lost| refusal(&request.plan().targets, lost, attempts))
    }

    /// The answer of `broken` ended in the middle, with an error: asks those targets of the plan that can go on with it and may see it,
    /// that one last. If nothing of it was given out (`from` is none), all of them can begin it anew.
    ///
    /// # Errors
    /// None can, may, or could: a fixed word for the record.
    pub async fn go_on(
        &self,
        request: &PlannedRequest,
        from: Option<&MaskedBeginning>,
        (broken, error): (&str, &AttemptError),
        past: &mut Past,
        attempts: &mut Attempts,
    ) -> Result<Answer, &'static str> {
        let planned = request.plan().targets.iter().find(|target| target.name() == broken);
        past.broke(broken, planned.and_then(|target| self.slot(target)).is_some_and(|slot| slot.ours), error);
        let mut refused = None;
        let may = |target: &&Destination| match self.clearance.check(request, target, from) {
            Ok(()) => true,
            Err(Refusal::Beginning) => false,
            Err(refusal) => {
                refused = Some(refusal);
                false
            }
        };
        let can: Vec<_> = request.plan().targets.iter().filter(may).collect();
        if can.is_empty() {
            let Some(refusal) = refused else { return Err("no_target_continues") };
            let label = from.map_or(request.masked().classified().label(), MaskedBeginning::label);
            self.metrics.egress_refused(self.labels.name(label), refusal.code());
            return Err("no_permitted_target");
        }
        let (others, same): (Vec<_>, Vec<_>) = can.into_iter().partition(|target| target.name() != broken);
        let targets: Vec<_> = others.into_iter().chain(same).collect();
        let answered = self.ask(request, &targets, None, from, past, attempts).await;
        answered.map_err(|lost| refusal(&request.plan().targets, lost, attempts).code())
    }

    async fn ask(
        &self,
        request: &PlannedRequest,
        targets: &[&Destination],
        race: Option<(Duration, usize)>,
        from: Option<&MaskedBeginning>,
        past: &mut Past,
        attempts: &mut Attempts,
    ) -> Result<Answer, Lost> {
        let known = targets.iter().filter_map(|target| Some((*target, self.slot(target)?)));
        let (targets, slots): (Vec<&Destination>, Vec<Slot<'_>>) = known.unzip();
        let (budget, metrics) = (&self.budget, &*self.metrics);
        let claim = self.claim(request.masked().classified().request());
        let rules = Rules { claim, queue: self.timeouts.queue, race, budget, metrics };
        let ask = |index: usize, turn: Turn| {
            let target = targets.get(index).copied();
            async move {
                let target = target.ok_or(AttemptError::Connect)?;
                self.attempt(request, target, from, turn).await
            }
            .boxed()
        };
        let (index, reply) = Course::new(slots, rules, past, attempts, ask).run().await?;
        let target = targets.get(index).map(|target| target.name()).unwrap_or_default().to_owned();
        Ok(Answer { target, reply })
    }

    /// Looks at the pages of metrics of those targets that have one, for as long as it is polled. One that is not there is spared.
    pub async fn watch(&self) {
        let each = self.remotes.iter().filter_map(|remote| Some((remote, remote.target.health.as_ref()?)));
        futures_util::future::join_all(each.map(|(remote, health)| async move {
            loop {
                match remote.upstream.look(health.every.max(self.timeouts.connect)).await {
                    Ok(Some(said)) => remote.standing.says(said, standing::now()),
                    Ok(None) => {}
                    Err(_) => remote.standing.seen_dead(standing::now()),
                }
                tokio::time::sleep(health.every.mul_f64(rand::random_range(0.8..1.2))).await;
            }
        }))
        .await;
    }

    fn slot<'a>(&'a self, target: &'a Destination) -> Option<Slot<'a>> {
        let (standing, ours) = match target {
            Destination::Engine => (&self.engine_standing, true),
            Destination::Remote(target) => (&self.remote(target)?.standing, target.node.is_some()),
        };
        Some(Slot { name: target.name(), standing, ours })
    }

    fn remote(&self, target: &Target) -> Option<&RemoteTarget> {
        self.remotes.iter().find(|remote| remote.target.name == target.name)
    }

    /// One attempt, up to the first token.
    async fn attempt(
        &self,
        request: &PlannedRequest,
        target: &Destination,
        from: Option<&MaskedBeginning>,
        mut turn: Turn,
    ) -> Result<Reply, AttemptError> {
        let permit = self.clearance.permit(request, target, from).inspect_err(|refusal| {
            let label = self.labels.name(request.masked().classified().label());
            tracing::error!(target = target.name(), label, %refusal, "a planned send was refused by the clearance");
            self.metrics.egress_refused(label, refusal.code());
        })?;
        let stream = permit.asks().stream();
        if stream {
            turn.streams();
        }
        let choices = request.masked().classified().request().call.choices();
        // An answer that comes as a whole shows nothing until it is complete.
        let within = if stream { self.timeouts.first_token } else { self.timeouts.first_token + self.timeouts.idle };
        let started = standing::now();
        let (sending, predicted) = match target {
            Destination::Engine => {
                let tokens = request.masked().classified().request().prompt_tokens;
                (self.engine.send(permit), self.engine.predicted_ttft(tokens).filter(|_| stream))
            }
            Destination::Remote(target) => {
                (self.remote(target).ok_or(AttemptError::Connect)?.upstream.send(permit), None)
            }
        };
        let asking = timeout(within, first_token(sending, choices));
        let result = match target {
            Destination::Engine => asking.await,
            Destination::Remote(_) => {
                let asked = self.offline.run_until_cancelled(asking).await;
                asked.unwrap_or(Ok(Err(AttemptError::Refused(Refusal::Offline))))
            }
        };
        let result = result.unwrap_or(Err(AttemptError::FirstToken(within)));
        course::settle(&mut turn, &result, stream);
        let reply = match target {
            Destination::Engine => result?,
            Destination::Remote(_) => result?.until(&self.offline),
        };
        if let Some(predicted) = predicted {
            self.metrics.engine_predicted(predicted, standing::now().saturating_duration_since(started));
        }
        Ok(reply.holding(turn))
    }
}

/// As many as could have their turn in time.
fn line_max(target: &Target, queue: Duration) -> usize {
    let per_minute = target.requests_per_minute.map(|requests| f64::from(requests.get()));
    per_minute.map_or(LINE_MAX, |requests| {
        (requests * queue.as_secs_f64() / 60.0).ceil().clamp(1.0, LINE_MAX as f64) as usize
    })
}

/// Whom the first target of the plan races, and after what time. Only streams race: an answer that comes as a whole has no first
/// token to wait for, and would be paid for twice each time.
fn rival(request: &PlannedRequest) -> Option<(Duration, usize)> {
    let plan = request.plan();
    let stream = request.masked().classified().request().call.stream();
    Some((plan.race_after.filter(|_| stream)?, first_cloud(&plan.targets)?))
}

/// What the client reads if nobody answered.
fn refusal(targets: &[Destination], lost: Lost, attempts: &Attempts) -> Error {
    let refuses_us = |attempt: &Attempt| matches!(attempt.result, "credentials" | "not_found" | "not_sealed");
    let only_engine = targets.iter().all(|target| matches!(target, Destination::Engine));
    let tried = lost.failed;
    match lost.last {
        None => Error::TargetsBusy { retry_after: lost.retry_after },
        Some(AttemptError::Rejected { context_length: true }) => Error::ContextLength,
        Some(AttemptError::Rejected { context_length: false }) => Error::UpstreamRejected,
        Some(AttemptError::TooLarge) => Error::AnswerTooLarge,
        Some(AttemptError::EngineDown) if only_engine => Error::EngineStarting,
        // What only the engine does not take, another target may take later, if it failed for a reason of its own.
        Some(AttemptError::Engine(refusal)) if refusal.is_temporary() || refusal.is_final() || tried == 1 => {
            Error::EngineRefused(refusal)
        }
        Some(AttemptError::FirstToken(bound)) => Error::DeadlineExceeded(bound),
        Some(AttemptError::Refused(Refusal::Offline)) => Error::WentOffline,
        Some(AttemptError::NotFound) if targets.len() == 1 => Error::ModelUnknown,
        Some(_) if attempts.iter().all(refuses_us) => Error::UpstreamRefusesUs,
        Some(_) => Error::UpstreamUnavailable { tried, retry_after: lost.retry_after },
    }
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
