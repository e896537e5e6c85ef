//! One request as far as policies are concerned: what was known when they were asked, and what they answered. The decision is made
//! from it, shadows are measured against it, and what may be kept of it is kept.

use std::borrow::Cow;
use std::sync::Arc;

use postern_plugins::{Answered, FleetFacts, RECORDED_VERSION, Recorded, RequestFacts};
use postern_wire::call::Endpoint;

use super::answers::Planned;
use super::votes::Ballot;
use super::{Policies, Votes};
use crate::audit::RecordId;
use crate::classify::Conversation;
use crate::classify::label::Label;
use crate::config::{Config, Placement, Target};
use crate::decide::{EngineFacts, Facts, SameModel};
use crate::upstream::standing::Now;

/// One request.
#[derive(Debug)]
pub struct Scene {
    /// Names it.
    pub record: RecordId,
    /// Those that were asked, and the shadows that will be.
    pub policies: Arc<Policies>,
    /// As routing policies were told it.
    pub request: RequestFacts,
    /// The targets, as policies were told them.
    pub fleet: FleetFacts,
    /// The label before the votes.
    pub label: Label,
    /// The label after them.
    pub final_label: Label,
    /// What raised it.
    pub final_sources: Vec<String>,
    /// No label above this is accepted from the identity.
    pub ceiling: Label,
    /// What the client asked for.
    pub asked: Option<Placement>,
    /// All redaction policies looked.
    pub complete: bool,
    /// What it belongs to.
    pub conversation: Conversation,
    /// Where it could go, and how each of them stands.
    pub targets: Vec<(Arc<Target>, Now)>,
    /// What spreads requests over nodes: another number for each, but the same for one that goes on with a conversation, since the
    /// node that it began at remembers its beginning.
    pub spread: u64,
    /// Likewise.
    pub engine: EngineFacts,
    /// No target but the engine may be asked.
    pub offline: bool,
    /// The model that it has loaded, by its own name.
    pub engine_model: String,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// What each routing policy said.
    pub ballots: Vec<Ballot>,
    /// The same, merged.
    pub votes: Votes,
    /// What each caching policy said, if they were asked.
    pub plans: Option<Vec<Planned>>,
    /// Answers in the form in which they are recorded.
    pub answers: Vec<Answered>,
}

impl Scene {
    /// The model that these votes lead to.
    #[must_use]
    pub fn model<'a>(&'a self, votes: &'a Votes) -> &'a str {
        votes.model_for(self.endpoint, &self.request.model)
    }

    /// The label that these votes lead to.
    #[must_use]
    pub fn label_by(&self, config: &Config, votes: &Votes) -> Label {
        let raised = votes.labels(&config.classification.routes, self.endpoint, &self.request.model);
        raised.into_iter().fold(self.label, |label, (raised, _)| label.join(raised))
    }

    /// What a decision by these votes depends on; everything else is as it was.
    #[must_use]
    pub fn facts<'a>(&'a self, config: &'a Config, votes: &'a Votes) -> Facts<'a> {
        let model = self.model(votes);
        let same = self.endpoint.keeps_model().then(|| SameModel::of(config, model, &self.engine_model)).flatten();
        let has_same = same.is_none_or(|same| same.is_at_engine(&self.engine_model));
        let serves =
            config.engine.as_ref().is_some_and(|engine| engine.serves(model)) && has_same && self.engine.serves;
        Facts {
            labels: &config.labels,
            targets: &self.targets,
            engine: EngineFacts { serves, ..self.engine },
            votes,
            weights: self.policies.weights(votes),
            conversation: self.conversation,
            default: self.policies.routing().default,
            edge_goal: config.placements.edge_first.ttft.map(|span| span.0),
            offline: self.offline,
            balance: self.policies.routing().balance,
            spread: self.spread,
            same_model: same,
        }
    }

    /// What caching policies are told: the same request with its final label.
    #[must_use]
    pub fn request_for_caching(&self, config: &Config) -> Cow<'_, RequestFacts> {
        if self.label == self.final_label {
            return Cow::Borrowed(&self.request);
        }
        let label = config.labels.name(self.final_label).to_owned();
        Cow::Owned(RequestFacts { label, label_sources: self.final_sources.clone(), ..self.request.clone() })
    }

    /// What may be kept of a request that may leave this machine. Never text.
    #[must_use]
    pub fn recorded(&self, config: &Config) -> Recorded {
        self.keep(config, self.request.clone(), self.fleet.clone(), self.answers.clone())
    }

    /// The same, of one that is needed for nothing else.
    #[must_use]
    pub fn into_recorded(mut self, config: &Config) -> Recorded {
        let (request, fleet) = (std::mem::take(&mut self.request), std::mem::take(&mut self.fleet));
        let answers = std::mem::take(&mut self.answers);
        self.keep(config, request, fleet, answers)
    }

    fn keep(&self, config: &Config, mut request: RequestFacts, fleet: FleetFacts, answers: Vec<Answered>) -> Recorded {
        request.messages.iter_mut().for_each(|message| message.text = None);
        Recorded {
            version: RECORDED_VERSION,
            record: self.record.to_string(),
            seed: self.record.seed(),
            request,
            fleet,
            final_label: config.labels.name(self.final_label).to_owned(),
            answers,
        }
    }
}
