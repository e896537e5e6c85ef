//! The one gate to the outside. An [`EgressPermit`] is the only thing that an upstream accepts, [`Clearance::permit`] is
//! the only place that makes one, and it needs a [`PlannedRequest`], which only a request can become that was parsed,
//! classified, masked and routed. So an unclassified or unmasked send does not compile.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::config::{self, Config, Placement, Target};
use crate::decide::{Form, PlannedRequest};

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
            Self::Engine => "engine",
            Self::Remote(target) => &target.name,
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
        }
    }
}

/// Leave for one attempt at one target. Owns the body that is sent; consumed by sending.
#[derive(Debug)]
pub struct EgressPermit {
    destination: Destination,
    body: Bytes,
    stream: bool,
}

impl EgressPermit {
    /// Where it leads.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Does the request ask for a stream?
    #[must_use]
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// Uses the permit up.
    pub(crate) fn into_body(self) -> Bytes {
        self.body
    }
}

/// Decides what may leave.
#[derive(Debug, Clone)]
pub struct Clearance {
    offline: bool,
    engine_model: String,
}

impl Clearance {
    /// By a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let engine_model = config.engine.as_ref().map(|engine| config::Engine::own_name(&engine.model));
        Self { offline: config.offline, engine_model: engine_model.unwrap_or_default() }
    }

    /// Leave to send `request` to `destination` once.
    ///
    /// The checks repeat what `decide` did on purpose: a mistake there must not be enough to let something out.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn permit(&self, request: &PlannedRequest, destination: &Destination) -> Result<EgressPermit, Refusal> {
        let plan = request.plan();
        if !plan.targets.iter().any(|planned| planned.name() == destination.name()) {
            return Err(Refusal::NotPlanned);
        }
        let chat = &request.masked().classified().request().chat;
        let (tree, model) = match destination {
            Destination::Engine if plan.form == Form::Plain => (chat.body(), self.engine_model.as_str()),
            Destination::Engine => (request.masked().body(), self.engine_model.as_str()),
            Destination::Remote(target) => {
                self.check(request, target)?;
                (request.masked().body(), target.model(&plan.model).ok_or(Refusal::Model)?)
            }
        };
        let body = serialise(tree, model, chat.stream);
        Ok(EgressPermit { destination: destination.clone(), body, stream: chat.stream })
    }

    fn check(&self, request: &PlannedRequest, target: &Target) -> Result<(), Refusal> {
        let plan = request.plan();
        if self.offline {
            return Err(Refusal::Offline);
        }
        if request.masked().classified().label() > target.clearance {
            return Err(Refusal::Label);
        }
        if plan.placement == Placement::Local {
            return Err(Refusal::Placement);
        }
        if plan.form == Form::Plain || !request.masked().is_complete() {
            return Err(Refusal::Unmasked);
        }
        Ok(())
    }
}

/// The inspected tree, with the target's name for the model. A stream is asked to end with its usage, for the record.
fn serialise(tree: &Map<String, Value>, model: &str, stream: bool) -> Bytes {
    let mut tree = tree.clone();
    tree.insert("model".to_owned(), Value::String(model.to_owned()));
    if stream {
        let options = tree.entry("stream_options").or_insert(Value::Null);
        if !options.is_object() {
            *options = Value::Object(Map::new());
        }
        if let Some(options) = options.as_object_mut() {
            options.insert("include_usage".to_owned(), Value::Bool(true));
        }
    }
    Bytes::from(Value::Object(tree).to_string())
}
