//! Policies that are only watched: they are asked in the background, with what a request was, and what they would have changed is
//! recorded. The request has been answered by others meanwhile, and neither waits for them nor hears of them.

mod compare;

use std::pin::pin;
use std::sync::Arc;

use postern_plugins::{CallContext, TextSegment};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answers::{Finds, Planned};
use super::health::Step;
use super::heard::{FAILED, Fate, Heard, withhold};
use super::loaded::{Loaded, Version};
use super::scene::Scene;
use super::votes::{Ballot, Vote};
use super::{Policies, Votes};
use crate::classify::label::Label;
use crate::gateway::Gateway;

/// Requests at a time that shadows are asked about; for more they are passed over. Each keeps what the request was, its text among
/// it if a shadow looks for text.
const AT_A_TIME: usize = 8;

/// Places for requests that shadows are asked about.
#[derive(Debug, Clone)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_A_TIME)))
    }
}

/// A request that shadows will be asked about, as it becomes known. Dropping it passes it over.
#[derive(Debug)]
pub struct Watching {
    _place: OwnedSemaphorePermit,
    /// Its texts, and what was found in them; only if a shadow looks for text.
    looked: Option<(Vec<TextSegment>, Vec<Finds>)>,
    wants_text: bool,
}

/// What one shadow would have changed at one step; a record of kind `shadow`. No text, and only names from the configuration.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The shadow.
    pub policy: String,
    /// Which it was.
    #[serde(flatten)]
    pub version: Version,
    /// In whose place it is imagined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// Where.
    pub step: &'static str,
    /// `different`, or `failed:` and how.
    pub result: String,
    /// What was, as far as it differs.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub now: serde_json::Map<String, serde_json::Value>,
    /// What would have been.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub would: serde_json::Map<String, serde_json::Value>,
}

impl Places {
    /// Watches a request, if there are shadows and a place is free.
    #[must_use]
    pub fn watch(&self, gateway: &Gateway, policies: &Policies) -> Option<Watching> {
        let mut shadows = policies.shadows().peekable();
        shadows.peek()?;
        let Ok(place) = self.0.clone().try_acquire_owned() else {
            shadows.for_each(|shadow| gateway.metrics.shadowed(shadow.name(), "skipped"));
            return None;
        };
        let wants_text = shadows.any(|shadow| shadow.takes_part_at(Step::Redaction));
        Some(Watching { _place: place, looked: None, wants_text })
    }
}

impl Watching {
    /// Does a shadow look for text?
    #[must_use]
    pub fn wants_text(&self) -> bool {
        self.wants_text
    }

    /// Keeps the texts of the request, if a shadow looks for text.
    pub fn note_texts(&mut self, segments: Vec<TextSegment>, finds: Vec<Finds>) {
        if self.wants_text {
            self.looked = Some((segments, finds));
        }
    }

    /// Asks the shadows, in the background.
    pub fn start(self, gateway: &Arc<Gateway>, scene: Scene) {
        let gateway = gateway.clone();
        tokio::spawn(async move {
            let policies = scene.policies.clone();
            for shadow in policies.shadows() {
                if shadow.health.is_quarantined() {
                    gateway.metrics.shadowed(shadow.name(), "quarantined");
                    continue;
                }
                let asked = Asked { gateway: &gateway, scene: &scene, shadow };
                asked.all(self.looked.as_ref()).await;
            }
            drop(self);
        });
    }
}

/// One shadow and one request.
struct Asked<'a> {
    gateway: &'a Gateway,
    scene: &'a Scene,
    shadow: &'a Arc<Loaded>,
}

impl Asked<'_> {
    async fn all(&self, looked: Option<&(Vec<TextSegment>, Vec<Finds>)>) {
        let (scene, shadow) = (self.scene, self.shadow);
        let mut heard = Heard::default();
        let mut differences = Vec::new();
        let mut label = scene.final_label;
        if let Some((segments, finds)) = looked.filter(|_| shadow.takes_part_at(Step::Redaction)) {
            let context = self.context(scene.label);
            let call = pin!(shadow.policy.find(&context, segments));
            let reply = shadow.timed(Step::Redaction, call).await;
            let own = Finds { policy: shadow.name().to_owned(), spans: reply.answer.as_ref().ok().cloned() };
            let compared = || compare::finds(self.imagined(Step::Redaction, finds, &own), finds);
            differences.extend(self.heard(Step::Redaction, reply.answer.err(), reply.effects, &mut heard, compared));
        }
        if shadow.takes_part_at(Step::Routing) {
            let context = self.context(scene.label);
            let call = pin!(shadow.policy.route(&context, &scene.request, &scene.fleet));
            let reply = shadow.timed(Step::Routing, call).await;
            let choices = scene.policies.choices(&self.gateway.config, &scene.request, &scene.fleet);
            let vote = reply.answer.and_then(|verdict| Vote::read(&verdict, &choices));
            let own = Ballot { policy: shadow.name().to_owned(), vote: vote.as_ref().ok().cloned() };
            let would = Votes::merged(self.imagined(Step::Routing, &scene.ballots, &own));
            label = label.join(scene.label_by(&self.gateway.config, &would));
            let compared = || compare::decisions(&self.gateway.config, scene, &scene.votes, &would);
            differences.extend(self.heard(Step::Routing, vote.err(), reply.effects, &mut heard, compared));
        }
        if let Some(plans) = scene.plans.as_ref().filter(|_| shadow.takes_part_at(Step::Caching)) {
            let (context, request) = (self.context(scene.final_label), scene.request_for_caching(&self.gateway.config));
            let call = pin!(shadow.policy.plan(&context, &request));
            let reply = shadow.timed(Step::Caching, call).await;
            let own = Planned { policy: shadow.name().to_owned(), plan: reply.answer.as_ref().ok().cloned() };
            let compared = || compare::plans(self.imagined(Step::Caching, plans, &own), plans);
            differences.extend(self.heard(Step::Caching, reply.answer.err(), reply.effects, &mut heard, compared));
        }
        let config = &self.gateway.config;
        // The same rules as for those that count, with the label that it would have given if that is higher.
        let is_cleared = config.is_cleared(label);
        heard.settle(if is_cleared { Fate::Commit(config.labels.name(label)) } else { Fate::Drop });
        if !is_cleared {
            differences.iter_mut().for_each(|difference| withhold(&mut difference.result));
        }
        let result = match differences.iter().map(|difference| difference.result.as_str()).next() {
            None => "same",
            Some("different") => "different",
            Some(_) => "failed",
        };
        self.gateway.metrics.shadowed(shadow.name(), result);
        for difference in &differences {
            self.gateway.audit.shadow(scene.record, difference);
        }
    }

    fn context(&self, label: Label) -> CallContext<'_> {
        let label = self.gateway.config.labels.name(label);
        CallContext { tenant: &self.scene.request.tenant, label, seed: self.scene.record.seed(), time_ms: None }
    }

    /// Notes how a call ended, and what would be different if it had counted.
    fn heard(
        &self,
        step: Step,
        failure: Option<postern_plugins::PolicyFailure>,
        effects: Option<postern_plugins::Effects>,
        heard: &mut Heard,
        compared: impl FnOnce() -> Option<compare::Change>,
    ) -> Option<Difference> {
        let change = match &failure {
            Some(failure) => Some((format!("{FAILED}{}", failure.kind.name()), compare::Change::default())),
            None => compared().map(|change| ("different".to_owned(), change)),
        };
        heard.call(self.shadow, step, failure, effects, self.shadow.said(step, "shadow"));
        let (result, compare::Change { now, would }) = change?;
        Some(Difference {
            policy: self.shadow.name().to_owned(),
            version: self.shadow.version.clone(),
            replaces: self.shadow.settings.replaces.clone(),
            step: step.name(),
            result,
            now,
            would,
        })
    }

    /// The answers as they would have been: with the shadow's in the place of those of the policy that it replaces, else at its own
    /// place in the order.
    fn imagined<'b, T: Answered>(&self, step: Step, answers: &'b [T], own: &'b T) -> Vec<&'b T> {
        let replaced = self.shadow.settings.replaces.as_deref();
        let stands_in = |loaded: &Arc<Loaded>| match replaced {
            Some(name) => loaded.name() == name,
            None => Arc::ptr_eq(loaded, self.shadow),
        };
        let mut all = Vec::with_capacity(answers.len() + 1);
        for loaded in self.scene.policies.all() {
            if stands_in(loaded) {
                all.push(own);
            } else if loaded.counts_at(step) {
                all.extend(answers.iter().find(|answer| answer.policy() == loaded.name()));
            }
        }
        all
    }
}

/// An answer of one policy.
trait Answered {
    fn policy(&self) -> &str;
}

impl Answered for Ballot {
    fn policy(&self) -> &str {
        &self.policy
    }
}

impl Answered for Finds {
    fn policy(&self) -> &str {
        &self.policy
    }
}

impl Answered for Planned {
    fn policy(&self) -> &str {
        &self.policy
    }
}
