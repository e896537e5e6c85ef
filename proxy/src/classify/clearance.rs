//! The one gate to the outside. An [`EgressPermit`] is the only thing that an upstream accepts, [`Clearance::permit`] is
//! the only place that makes one, and it needs a [`PlannedRequest`], which only a request can become that was parsed,
//! classified, masked and routed. So an unclassified or unmasked send does not compile. The beginning of an answer that another target
//! goes on from is a text that leaves as well: only a [`MaskedBeginning`] can be added.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use postern_wire::call::Call;
use postern_wire::json;
use postern_wire::json::{Map, Value};
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

use super::label::{Label, Labels};
use crate::config::{Config, Continues, Placement, Target};
use crate::decide::{Form, PlannedRequest};
use crate::redact::beginning::MaskedBeginning;
use crate::upstream::Asks;

/// The name of the engine on this machine among targets.
pub const ENGINE: &str = "engine";

/// Where a request can go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// The engine on this machine. Nothing leaves.
    Engine,
    /// A target elsewhere.
    Remote(Arc<Target>),
}

impl Destination {
    /// Its name in records, metrics and headers.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Engine => ENGINE,
            Self::Remote(target) => &target.name,
        }
    }

    /// How it is asked to go on with an answer that it did not begin; `None`: it cannot.
    #[must_use]
    pub fn goes_on(&self) -> Option<Continues> {
        match self {
            Self::Engine => Some(Continues::FinalMessage),
            Self::Remote(target) => target.continues,
        }
    }
}

/// Why a permit is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The plan does not name the target.
    #[error("the target is not in the plan")]
    NotPlanned,
    /// The gateway is offline.
    #[error("the gateway is offline")]
    Offline,
    /// The label is above the target's clearance.
    #[error("the label is above the target's clearance")]
    Label,
    /// The placement is `local`.
    #[error("the placement keeps it on this machine")]
    Placement,
    /// The text is not masked.
    #[error("the text is not masked")]
    Unmasked,
    /// The target has no model of that name.
    #[error("the target does not serve the model")]
    Model,
    /// The target cannot go on from the beginning of an answer.
    #[error("the target does not go on with answers")]
    Beginning,
}

impl Refusal {
    /// A fixed word for metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::NotPlanned => "not_planned",
            Self::Offline => "offline",
            Self::Label => "label",
            Self::Placement => "placement",
            Self::Unmasked => "unmasked",
            Self::Model => "model",
            Self::Beginning => "beginning",
        }
    }
}

/// Leave for one attempt at one target. Owns the body that is sent; consumed by sending.
#[derive(Debug)]
pub struct EgressPermit {
    destination: Destination,
    body: Bytes,
    asks: Asks,
    origin: Option<Origin>,
}

/// For engines of our own alone, here or on a node: on whose behalf it computes, so that it can be fair, and never lets one tenant
/// or label tell from its speed what another asked. Digests, which are compared and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Whose documents it may know.
    pub tenant: String,
    /// What they may reveal.
    pub label: String,
    /// Whose turn it is.
    pub identity: String,
    /// Nobody waits for the answer.
    pub bulk: bool,
}

impl EgressPermit {
    /// Where it leads.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// What kind of answer the request asks for.
    #[must_use]
    pub fn asks(&self) -> Asks {
        self.asks
    }

    /// On whose behalf; only a permit for an engine of our own says so.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Uses the permit up.
    pub(crate) fn into_body(self) -> Bytes {
        self.body
    }
}

/// What engines of our own call whatever model they have loaded: it may be another one by the time that a request arrives.
pub(crate) const ENGINE_MODEL: &str = "engine";

/// Decides what may leave.
#[derive(Debug, Clone)]
pub struct Clearance {
    offline: CancellationToken,
    labels: Labels,
}

impl Clearance {
    /// By a configuration; nothing is cleared for outside any more as soon as `offline` is cancelled.
    #[must_use]
    pub fn new(config: &Config, offline: CancellationToken) -> Self {
        Self { offline, labels: config.labels.clone() }
    }

    /// Leave to send `request` to `destination` once; with a beginning of its answer, if another target broke off, for it to go on
    /// from.
    ///
    /// The checks repeat what `decide` did on purpose: a mistake there must not be enough to let something out.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn permit(
        &self,
        request: &PlannedRequest,
        destination: &Destination,
        from: Option<&MaskedBeginning>,
    ) -> Result<EgressPermit, Refusal> {
        self.check(request, destination, from)?;
        let plan = request.plan();
        let call = &request.masked().classified().request().call;
        let engine_model = plan.same_model.as_deref().unwrap_or(ENGINE_MODEL);
        let (tree, model) = match destination {
            Destination::Engine if plan.form == Form::Plain => (call.body(), engine_model),
            Destination::Engine => (request.masked().body(), engine_model),
            Destination::Remote(target) => (request.masked().body(), target.model(&plan.model).ok_or(Refusal::Model)?),
        };
        let mut tree = Cow::Borrowed(tree);
        if let Some(from) = from {
            put_beginning(tree.to_mut(), destination.goes_on().ok_or(Refusal::Beginning)?, from);
        }
        let body = written(&tree, model, call.stream());
        let is_ours = match destination {
            Destination::Engine => true,
            Destination::Remote(target) => target.node.is_some(),
        };
        let origin = is_ours.then(|| self.origin(request, from));
        Ok(EgressPermit { destination: destination.clone(), body, asks: Asks::of(call), origin })
    }

    /// May `destination` see `request`, and `from`, as far as that can be said without asking it?
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn check(
        &self,
        request: &PlannedRequest,
        destination: &Destination,
        from: Option<&MaskedBeginning>,
    ) -> Result<(), Refusal> {
        let plan = request.plan();
        if !plan.targets.iter().any(|planned| planned.name() == destination.name()) {
            return Err(Refusal::NotPlanned);
        }
        let is_chat = matches!(request.masked().classified().request().call, Call::Chat(_));
        if from.is_some() && (!is_chat || destination.goes_on().is_none()) {
            return Err(Refusal::Beginning);
        }
        let Destination::Remote(target) = destination else { return Ok(()) };
        if self.offline.is_cancelled() {
            return Err(Refusal::Offline);
        }
        if label(request, from) > target.clearance {
            return Err(Refusal::Label);
        }
        if plan.placement == Placement::Local {
            return Err(Refusal::Placement);
        }
        let complete = request.masked().is_complete() && from.is_none_or(MaskedBeginning::is_complete);
        if plan.form == Form::Plain || !complete {
            return Err(Refusal::Unmasked);
        }
        Ok(())
    }

    fn origin(&self, request: &PlannedRequest, from: Option<&MaskedBeginning>) -> Origin {
        let asked = request.masked().classified().request();
        Origin {
            tenant: digest(&asked.peer.tenant),
            label: digest(self.labels.name(label(request, from))),
            identity: digest(asked.peer.id.as_str()),
            bulk: asked.marks.bulk,
        }
    }
}

/// Of all that is sent.
fn label(request: &PlannedRequest, from: Option<&MaskedBeginning>) -> Label {
    let label = request.masked().classified().label();
    from.map_or(label, |from| label.join(from.label()))
}

/// As the last message, of the assistant, so that the model goes on with it instead of answering anew.
fn put_beginning(tree: &mut Map, how: Continues, from: &MaskedBeginning) {
    let mut message = Map::new();
    message.insert("role".to_owned(), "assistant".into());
    message.insert("content".to_owned(), from.text().into());
    match how {
        Continues::Message => {}
        Continues::Prefix => {
            message.insert("prefix".to_owned(), true.into());
        }
        Continues::FinalMessage => {
            tree.insert("continue_final_message".to_owned(), true.into());
            tree.insert("add_generation_prompt".to_owned(), false.into());
        }
    }
    if let Some(messages) = tree.get_mut("messages").and_then(Value::as_array_mut) {
        messages.push(Value::Object(message));
    }
    for field in ["max_tokens", "max_completion_tokens"] {
        if let Some(most) = tree.get(field).and_then(Value::as_u64) {
            tree.insert(field.to_owned(), most.saturating_sub(from.tokens()).max(1).into());
        }
    }
}

/// Names of any length and script as one header of a fixed length.
fn digest(name: &str) -> String {
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(name.as_bytes()))
}

/// The inspected tree, with the target's name for the model. A stream is asked to end with its usage, for the record.
fn written(tree: &Map, model: &str, stream: bool) -> Bytes {
    let options = stream.then(|| {
        let mut options = tree.get("stream_options").and_then(Value::as_object).cloned().unwrap_or_default();
        options.insert("include_usage".to_owned(), Value::Bool(true));
        ("stream_options", Value::Object(options))
    });
    let instead = [Some(("model", model.into())), options];
    // Texts may be long, so nothing is copied but what is changed.
    json::written(&Sent { tree, instead }).into()
}

/// The members of a tree as they stand, but for those that are sent instead.
struct Sent<'a> {
    tree: &'a Map,
    instead: [Option<(&'static str, Value)>; 2],
}

impl json::Write for Sent<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let instead = || self.instead.iter().flatten();
        let as_it_stands = self.tree.iter().filter(|(key, _)| !instead().any(|(name, _)| name == key));
        let members = instead().map(|(name, value)| (*name, value));
        json::object(members.chain(as_it_stands), out);
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    #[test]
    fn a_tree_is_sent_as_it_stands_but_for_the_model_and_the_usage() {
        let sent = |tree: &Value, stream| {
            let bytes = written(tree.as_object().unwrap(), "theirs", stream);
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        let tree =
            json!({"model": "ours", "messages": [{"role": "user", "content": "a\"\n四"}], "x": {"y": [1.5, null]}});
        let mut wanted = tree.clone();
        wanted["model"] = json!("theirs");
        assert_eq!(sent(&tree, false), wanted);
        wanted["stream_options"] = json!({"include_usage": true});
        assert_eq!(sent(&tree, true), wanted);
        for (options, wanted) in [
            (json!({"include_usage": false, "z": 1}), json!({"include_usage": true, "z": 1})),
            (json!(null), json!({"include_usage": true})),
        ] {
            let tree = json!({"model": "ours", "stream_options": options});
            assert_eq!(sent(&tree, true), json!({"model": "theirs", "stream_options": wanted}));
        }
    }
}
