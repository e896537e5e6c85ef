//! Asks the policy plugins. What they say is merged in [`votes`] and [`answers`], which have the rules; what they write waits in
//! [`heard`] until the label of the request is final.
//!
//! A set of [`Policies`] does not change: a reload makes a new one (see [`reload`]), and a request keeps the one that it began
//! with.

pub mod answers;
pub mod health;
pub mod heard;
pub mod load;
pub mod loaded;
pub mod probe;
pub mod recent;
pub mod recorder;
pub mod reload;
pub mod scene;
pub mod served;
pub mod shadow;
pub mod times;
pub mod votes;
pub mod watch;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use postern_plugins::{Answer, Answered, CallContext, FleetFacts, PolicyFailure, RequestFacts, TextSegment, Verdict};
use serde_json::Value;

use crate::classify::label::Label;
use crate::config::policies::Routing;
use crate::config::{AnswerPart, Config, OnFailure, Weights};
use crate::error::Error;
use answers::{Finds, Planned};
use health::Step;
use heard::{Fate, Heard};
use loaded::Loaded;
pub use loaded::Said;
use recorder::Recorder;
pub use votes::Votes;
use votes::{Ballot, Choices, Vote};

/// The policies of one configuration, in their order.
#[derive(Debug)]
pub struct Policies {
    all: Vec<Arc<Loaded>>,
    routing: Routing,
    headers: BTreeSet<String>,
    text: bool,
    recorder: Option<Arc<Recorder>>,
    answers: AnswerPart,
}

/// What redaction policies found.
#[derive(Debug)]
pub struct Found {
    /// By policy.
    pub finds: Vec<Finds>,
    /// False if one failed, so that something may have been missed.
    pub complete: bool,
}

/// What routing or caching policies answered.
#[derive(Debug)]
pub struct Answers<T> {
    /// By policy.
    pub answers: Vec<T>,
    /// The same, to be recorded.
    pub recorded: Vec<Answered>,
}

impl Policies {
    /// Those in `all`, in their order.
    #[must_use]
    pub fn new(all: Vec<Arc<Loaded>>, routing: Routing, recorder: Option<Arc<Recorder>>) -> Self {
        let headers = all.iter().flat_map(|loaded| loaded.policy.grants().headers.iter().cloned()).collect();
        let text = all.iter().any(|loaded| loaded.policy.grants().text);
        Self { all, routing, headers, text, recorder, answers: AnswerPart::default() }
    }

    /// With what becomes of what a model made.
    #[must_use]
    pub fn and_answers(self, answers: AnswerPart) -> Self {
        Self { answers, ..self }
    }

    /// What becomes of what a model made.
    #[must_use]
    pub fn answers(&self) -> &AnswerPart {
        &self.answers
    }

    /// All of them, shadows among them.
    #[must_use]
    pub fn all(&self) -> &[Arc<Loaded>] {
        &self.all
    }

    /// The one of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Loaded>> {
        self.all.iter().find(|loaded| loaded.name() == name)
    }

    /// What they choose from.
    #[must_use]
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The shares that the votes name.
    #[must_use]
    pub fn weights(&self, votes: &Votes) -> Option<&Weights> {
        self.routing.weights.get(votes.weight.as_ref()?)
    }

    /// Headers that some policy may see.
    #[must_use]
    pub fn granted_headers(&self) -> &BTreeSet<String> {
        &self.headers
    }

    /// May some policy see the text of messages?
    #[must_use]
    pub fn see_text(&self) -> bool {
        self.text
    }

    /// Where requests are recorded.
    #[must_use]
    pub fn recorder(&self) -> Option<&Arc<Recorder>> {
        self.recorder.as_ref()
    }

    /// Those that are only watched.
    pub fn shadows(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        self.all.iter().filter(|loaded| loaded.settings.shadow)
    }

    /// Does any policy that counts take part at `step`?
    #[must_use]
    pub fn count_at(&self, step: Step) -> bool {
        self.all.iter().any(|loaded| loaded.counts_at(step))
    }

    /// Asks every redaction policy what it finds. `label` is the request's so far.
    ///
    /// # Errors
    /// One failed whose configuration says `reject`.
    pub async fn find(
        &self,
        config: &Config,
        label: Label,
        context: &CallContext<'_>,
        segments: &[TextSegment],
        heard: &mut Heard,
    ) -> Result<Found, Error> {
        let step = Step::Redaction;
        let mut found = Found { finds: Vec::new(), complete: true };
        for loaded in self.all.iter().filter(|loaded| loaded.counts_at(step)) {
            let policy = loaded.name().to_owned();
            if loaded.health.is_quarantined() {
                found.finds.push(Finds { policy, spans: None });
                found.complete = false;
                quarantined(config, label, loaded, step, heard)?;
                continue;
            }
            let call = pin!(loaded.policy.find(context, segments));
            let reply = loaded.timed(step, call).await;
            match reply.answer {
                Ok(spans) => {
                    let said = loaded.said(step, format!("{}{}", spans.len(), heard::SPANS));
                    heard.call(loaded, step, None, reply.effects, said);
                    found.finds.push(Finds { policy, spans: Some(spans) });
                }
                Err(failure) => {
                    let said = loaded.said(step, failed(&failure));
                    heard.call(loaded, step, Some(failure), reply.effects, said);
                    found.finds.push(Finds { policy, spans: None });
                    found.complete = false;
                    refused(config, label, loaded, heard)?;
                }
            }
        }
        Ok(found)
    }

    /// Asks every routing policy where a request may go. `label` is the request's so far.
    ///
    /// # Errors
    /// One failed whose configuration says `reject`.
    pub async fn route(
        &self,
        config: &Config,
        label: Label,
        context: &CallContext<'_>,
        told: (&RequestFacts, &FleetFacts),
        heard: &mut Heard,
    ) -> Result<Answers<Ballot>, Error> {
        let (step, (request, fleet)) = (Step::Routing, told);
        let choices = self.choices(config, request, fleet);
        let mut all = Answers { answers: Vec::new(), recorded: Vec::new() };
        for loaded in self.all.iter().filter(|loaded| loaded.counts_at(step)) {
            let policy = loaded.name().to_owned();
            if loaded.health.is_quarantined() {
                all.answers.push(Ballot { policy, vote: None });
                all.recorded.push(answered(loaded, Answer::RouteFailed("quarantined".to_owned())));
                quarantined(config, label, loaded, step, heard)?;
                continue;
            }
            let call = pin!(loaded.policy.route(context, request, fleet));
            let reply = loaded.timed(step, call).await;
            match reply.answer.and_then(|verdict| Ok((Vote::read(&verdict, &choices)?, verdict))) {
                Ok((vote, verdict)) => {
                    heard.call(loaded, step, None, reply.effects, vote_said(loaded, &vote, &verdict));
                    all.answers.push(Ballot { policy, vote: Some(vote) });
                    all.recorded.push(answered(loaded, Answer::Route(verdict)));
                }
                Err(failure) => {
                    let kind = failure.kind.name().to_owned();
                    let said = loaded.said(step, failed(&failure));
                    heard.call(loaded, step, Some(failure), reply.effects, said);
                    all.answers.push(Ballot { policy, vote: None });
                    all.recorded.push(answered(loaded, Answer::RouteFailed(kind)));
                    refused(config, label, loaded, heard)?;
                }
            }
        }
        Ok(all)
    }

    /// Asks every caching policy whether an answer may be kept. A failure means: do not use the cache. Not caching is always safe,
    /// so even `reject` does not refuse the request here.
    pub async fn plan(&self, context: &CallContext<'_>, request: &RequestFacts, heard: &mut Heard) -> Answers<Planned> {
        let step = Step::Caching;
        let mut all = Answers { answers: Vec::new(), recorded: Vec::new() };
        for loaded in self.all.iter().filter(|loaded| loaded.counts_at(step)) {
            let policy = loaded.name().to_owned();
            if loaded.health.is_quarantined() {
                heard.not_called(loaded.said(step, "quarantined"));
                all.recorded.push(answered(loaded, Answer::PlanFailed("quarantined".to_owned())));
                all.answers.push(Planned { policy, plan: None });
                continue;
            }
            let call = pin!(loaded.policy.plan(context, request));
            let reply = loaded.timed(step, call).await;
            match reply.answer {
                Ok(plan) => {
                    let exact = answers::is_exact(&plan);
                    let said = loaded.said(step, if exact { "exact" } else { "bypass" });
                    heard.call(loaded, step, None, reply.effects, said);
                    all.recorded.push(answered(loaded, Answer::Plan(plan.clone())));
                    all.answers.push(Planned { policy, plan: Some(plan) });
                }
                Err(failure) => {
                    let kind = failure.kind.name().to_owned();
                    let said = loaded.said(step, failed(&failure));
                    heard.call(loaded, step, Some(failure), reply.effects, said);
                    all.recorded.push(answered(loaded, Answer::PlanFailed(kind)));
                    all.answers.push(Planned { policy, plan: None });
                }
            }
        }
        all
    }

    /// What a verdict may name.
    #[must_use]
    pub fn choices<'a>(&'a self, config: &'a Config, request: &'a RequestFacts, fleet: &'a FleetFacts) -> Choices<'a> {
        Choices { config, targets: &fleet.targets, routing: &self.routing, asked_model: &request.model }
    }
}

/// A policy is not called any more: the same as if it had failed.
fn quarantined(
    config: &Config,
    label: Label,
    loaded: &Arc<Loaded>,
    step: Step,
    heard: &mut Heard,
) -> Result<(), Error> {
    heard.not_called(loaded.said(step, "quarantined"));
    refused(config, label, loaded, heard)
}

/// A policy failed: with `reject`, the request ends here.
fn refused(config: &Config, label: Label, loaded: &Loaded, heard: &mut Heard) -> Result<(), Error> {
    match loaded.settings.on_failure {
        OnFailure::Local => Ok(()),
        OnFailure::Reject => {
            heard.settle(if config.is_cleared(label) { Fate::Count } else { Fate::Drop });
            Err(Error::PolicyFailed { policy: loaded.name().to_owned() })
        }
    }
}

fn failed(failure: &PolicyFailure) -> String {
    format!("{}{}", heard::FAILED, failure.kind.name())
}

fn vote_said(loaded: &Loaded, vote: &Vote, verdict: &Verdict) -> Said {
    let mut said = loaded.said(Step::Routing, vote.said());
    said.reason = verdict.deny.clone().filter(|reason| !reason.is_empty());
    let notes = verdict.annotations.iter().map(|note| (note.key.clone(), Value::String(note.value.clone())));
    said.annotations = notes.collect();
    said
}

fn answered(loaded: &Loaded, answer: Answer) -> Answered {
    let (version, digest) = (loaded.version.version.clone(), loaded.version.digest.clone());
    Answered { policy: loaded.name().to_owned(), version, digest, answer }
}
