//! The way of a request, top to bottom.
//!
//! ```text
//! admission → open → request → classify → redact → route → decide → cache → record (intent) → dispatch → response
//! ```
//!
//! Each step takes the type that the step before made, so none can be left out or turned round:
//! `SealedRequest → OpenedRequest → ParsedRequest → ClassifiedRequest → MaskedRequest → PlannedRequest`.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::Request;
use http::Response;
use hyper::body::Incoming;
use postern_plugins::{CallContext, FleetFacts, MessageFacts, RequestFacts, TargetFacts, TargetPlacement};

use crate::audit::{Intent, RecordId};
use crate::cache;
use crate::classify::clearance::Destination;
use crate::classify::label::Label;
use crate::classify::{ClassifiedRequest, Source};
use crate::connection::session::Session;
use crate::decide::{self, EngineFacts, Facts, Form, PlannedRequest};
use crate::error::Error;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::open::SealedRequest;
use crate::redact;
use crate::request::{ParsedRequest, Peer, read_body};
use crate::response::{self, Body, Fill};
use crate::route::{Said, Votes};

/// Answers `POST /v1/chat/completions`.
pub async fn chat(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<Body> {
    let (record, started) = (RecordId::new(), Instant::now());
    let mut label = peer.floor;
    let labels = &gateway.config.labels;
    // Room for the outcome comes first: nothing is done that could not be recorded.
    let place = match gateway.audit.place().await {
        Ok(place) => place,
        Err(error) => return named(response::error(&error), record, labels.name(label)),
    };
    let mut exchange = Exchange::open(record, started, place, session.clone(), gateway.metrics.clone());
    let deadline = started + gateway.config.timeouts.total;
    let answered =
        tokio::time::timeout_at(deadline.into(), answer(gateway, peer, request, &mut exchange, &mut label)).await;
    let error = match answered {
        Ok(Ok(ready)) => {
            let response = response::answer(ready.source, ready.request, exchange, ready.fill, deadline);
            return named(response, record, labels.name(label));
        }
        Ok(Err(error)) => error,
        Err(_) => Error::DeadlineExceeded(gateway.config.timeouts.total),
    };
    exchange.refused(&error);
    named(response::error(&error), record, labels.name(label))
}

/// Answers who has a certificate and no rule. Nothing was read of what they sent; that they came is recorded.
pub async fn refuse_unknown(gateway: &Gateway, session: &Arc<Session>, error: &Error) -> Response<Body> {
    let (record, started) = (RecordId::new(), Instant::now());
    let label = gateway.config.labels.name(gateway.config.labels.lowest());
    let place = match gateway.audit.place().await {
        Ok(place) => place,
        Err(error) => return named(response::error(&error), record, label),
    };
    Exchange::open(record, started, place, session.clone(), gateway.metrics.clone()).refused(error);
    named(response::error(error), record, label)
}

/// An answer whose first token is there.
struct Ready {
    request: PlannedRequest,
    source: response::Source,
    fill: Option<Fill>,
}

/// `label` is what is known of the label, also if it ends with an error.
async fn answer(
    gateway: &Arc<Gateway>,
    peer: Peer,
    request: Request<Incoming>,
    exchange: &mut Exchange,
    label: &mut Label,
) -> Result<Ready, Error> {
    let (config, keys) = (&gateway.config, &gateway.keys);

    let admitted = exchange.admitted.insert(gateway.admission.enter(&peer)?);
    let (parts, body) = request.into_parts();
    let body = read_body(body, config.limits.body.0, config.limits.receive.0, admitted).await?;
    let opened = SealedRequest { headers: parts.headers, body }.open()?;
    let parsed = ParsedRequest::parse(config, peer, &opened)?;
    *label = parsed.marks.label.map_or(*label, |marked| label.join(marked));
    admitted.charge_values(opened.body.len() as u64, parsed.chat.values())?;
    admitted.reserve(&parsed.chat)?;
    let request_hash = keys.short_hash("request", &[&opened.body]);
    drop(opened);

    let classified = gateway.classifier.classify(keys, parsed).await.inspect_err(|error| {
        if let Error::LabelRefused { label: refused, .. } = error {
            *label = config.labels.by_name(refused).unwrap_or(*label);
        }
    })?;
    *label = classified.label();
    let (tenant, seed) = (classified.request().peer.tenant.clone(), exchange.record.seed());
    let context = CallContext { tenant: &tenant, label: config.labels.name(*label), seed, time_ms: None };
    let mut masked = redact::mask(keys, &gateway.policies, &context, classified).await?;
    for (kind, count) in masked.counts() {
        gateway.metrics.redacted(kind, *count);
    }

    let predictions = gateway.dispatcher.predictions();
    let engine = engine_facts(gateway, masked.classified());
    let request_facts = request_facts(gateway, masked.classified());
    let fleet = fleet_facts(gateway, &predictions, engine);
    let votes = gateway.policies.route(config, &context, &request_facts, &fleet).await?;
    if let Some(policy) = &votes.denied {
        return Err(Error::PolicyDenied { policy: policy.clone() });
    }
    let raised = raise(gateway, &mut masked, &votes);
    *label = masked.classified().label();
    raised?;

    let engine = EngineFacts { serves: serves(gateway, &votes, masked.classified()), ..engine };
    let facts = Facts {
        labels: &config.labels,
        targets: &predictions,
        engine,
        votes: &votes,
        default: config.default_placement,
        edge_goal: config.placements.edge_first.ttft.map(|span| span.0),
        offline: config.offline,
    };
    let said = said(masked.said(), &votes.said);
    let planned = decide::plan(&facts, masked).inspect_err(|error| {
        if matches!(error, Error::NoPermittedTarget { .. } | Error::Offline) {
            gateway.metrics.egress_refused(config.labels.name(*label), error.code());
        }
    })?;
    exchange.placement = planned.plan().placement.as_str();

    let context = CallContext { label: config.labels.name(*label), ..context };
    let (hit, fill, said) = look_up(gateway, &context, &request_facts, &planned, said).await;
    let leaves = hit.is_none() && planned.plan().form == Form::Masked;
    record_intent(gateway, exchange, &planned, &said, request_hash, leaves).await?;
    if let Some(entry) = hit {
        exchange.outcome.cache = Some("exact");
        exchange.outcome.target = Some(entry.target.to_string());
        (exchange.outcome.prompt_tokens, exchange.outcome.completion_tokens) = entry.tokens;
        return Ok(Ready { request: planned, source: response::Source::Cached(entry), fill: None });
    }
    exchange.outcome.cache = Some(if fill.is_some() { "miss" } else { "bypass" });

    let answer = gateway.dispatcher.dispatch(&planned, &mut exchange.outcome.attempts).await?;
    // An answer of a stand-in is not what the next request should get from the cache.
    let is_first_choice = planned.plan().targets.first().is_some_and(|first| first.name() == answer.target);
    exchange.outcome.target = Some(answer.target);
    Ok(Ready { request: planned, source: response::Source::Live(answer.reply), fill: fill.filter(|_| is_first_choice) })
}

/// Joins what plugins raised; the label is final afterwards.
fn raise(gateway: &Gateway, masked: &mut redact::MaskedRequest, votes: &Votes) -> Result<(), Error> {
    let Some((label, policy)) = &votes.raised else { return Ok(()) };
    let labels = &gateway.config.labels;
    let source = Source { source: format!("policy:{policy}"), label: labels.name(*label).to_owned() };
    masked.raise(*label, source);
    let classified = masked.classified();
    gateway.classifier.taint_conversation(classified, *label);
    let (label, ceiling) = (classified.label(), classified.request().peer.ceiling);
    if label > ceiling {
        return Err(Error::LabelRefused {
            label: labels.name(label).to_owned(),
            ceiling: labels.name(ceiling).to_owned(),
        });
    }
    Ok(())
}

/// What the cache has, else where an answer is to be kept.
async fn look_up(
    gateway: &Gateway,
    context: &CallContext<'_>,
    facts: &RequestFacts,
    planned: &PlannedRequest,
    mut said: Vec<Said>,
) -> (Option<cache::Entry>, Option<Fill>, Vec<Said>) {
    let Some(store) = &gateway.cache else { return (None, None, said) };
    let choice = gateway.policies.cache(context, facts).await;
    said.extend(choice.said);
    // A plain form has no placeholders that could be mapped onto another request.
    if !choice.exact || (planned.plan().form == Form::Plain && !planned.masked().vault().is_empty()) {
        gateway.metrics.cache_used("bypass");
        return (None, None, said);
    }
    let key = cache::key(&gateway.keys, &gateway.config.labels, planned, &choice.key_parts);
    match store.get(&key) {
        Some(entry) => {
            gateway.metrics.cache_used("hit");
            (Some(entry), None, said)
        }
        None => {
            gateway.metrics.cache_used("miss");
            (None, Some(Fill { cache: store.clone(), key, ttl: choice.ttl }), said)
        }
    }
}

async fn record_intent(
    gateway: &Gateway,
    exchange: &Exchange,
    planned: &PlannedRequest,
    said: &[Said],
    request_hash: String,
    durable: bool,
) -> Result<(), Error> {
    let (plan, masked) = (planned.plan(), planned.masked());
    let classified = masked.classified();
    let request = classified.request();
    let intent = Intent {
        identity: request.peer.id.to_string(),
        tenant: &request.peer.tenant,
        label: gateway.config.labels.name(classified.label()),
        label_sources: classified.sources(),
        model: &plan.model,
        placement: plan.placement.as_str(),
        targets: plan.targets.iter().map(Destination::name).collect(),
        reason: plan.reason.as_str(),
        form: if plan.form == Form::Masked && masked.is_masked() { "masked" } else { "plain" },
        policies: said,
        redactions: masked.counts(),
        flagged: masked.flagged(),
        prompt_tokens_estimated: request.chat.estimated_prompt_tokens(),
        request_hash,
    };
    gateway.audit.intent(exchange.record, &intent, durable).await
}

fn said(redaction: &[Said], routing: &[Said]) -> Vec<Said> {
    redaction.iter().chain(routing).cloned().collect()
}

fn serves(gateway: &Gateway, votes: &Votes, classified: &ClassifiedRequest) -> bool {
    let model = votes.model.as_ref().unwrap_or(&classified.request().chat.model);
    gateway.config.engine.as_ref().is_some_and(|engine| engine.serves(model))
}

fn engine_facts(gateway: &Gateway, classified: &ClassifiedRequest) -> EngineFacts {
    let engine = gateway.dispatcher.engine();
    let tokens = classified.request().chat.estimated_prompt_tokens();
    EngineFacts {
        serves: gateway.config.engine.is_some(),
        ready: engine.is_ready(),
        ttft: engine.predicted_ttft(tokens),
    }
}

fn request_facts(gateway: &Gateway, classified: &ClassifiedRequest) -> RequestFacts {
    let ParsedRequest { peer, chat, marks } = classified.request();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let messages = chat.message_shapes().into_iter();
    RequestFacts {
        identity: peer.id.to_string(),
        tenant: peer.tenant.to_string(),
        label: gateway.config.labels.name(classified.label()).to_owned(),
        label_sources: classified.sources().iter().map(|source| source.source.clone()).collect(),
        model: chat.model.clone(),
        stream: chat.stream,
        prompt_tokens: chat.estimated_prompt_tokens(),
        messages: messages
            .map(|m| MessageFacts { role: m.role.to_owned(), bytes: m.bytes as u64, text: None })
            .collect(),
        tools: chat.tools,
        images: chat.opaque_parts,
        temperature: chat.temperature,
        placement_asked: marks.placement.map(to_plugin),
        conversation: classified.conversation().to_hex(),
        time: now.as_secs(),
        labels: gateway.config.labels.names().iter().map(ToString::to_string).collect(),
        ..RequestFacts::default()
    }
}

fn to_plugin(placement: crate::config::Placement) -> postern_plugins::Placement {
    match placement {
        crate::config::Placement::Cloud => postern_plugins::Placement::Cloud,
        crate::config::Placement::EdgeFirst => postern_plugins::Placement::EdgeFirst,
        crate::config::Placement::Local => postern_plugins::Placement::Local,
    }
}

fn fleet_facts(
    gateway: &Gateway,
    predictions: &[(Arc<crate::config::Target>, Option<std::time::Duration>)],
    engine: EngineFacts,
) -> FleetFacts {
    let ms = |span: std::time::Duration| u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
    let labels = &gateway.config.labels;
    let mut targets: Vec<TargetFacts> = predictions
        .iter()
        .map(|(target, ttft)| TargetFacts {
            name: target.name.clone(),
            placement: match target.kind {
                crate::config::file::TargetKind::Cloud => TargetPlacement::Cloud,
                crate::config::file::TargetKind::Edge => TargetPlacement::Edge,
            },
            clearance: labels.name(target.clearance).to_owned(),
            healthy: true,
            predicted_ttft_ms: ttft.map(ms),
            queue_depth: 0,
            price: None,
            requests_left: None,
        })
        .collect();
    if engine.serves {
        targets.push(TargetFacts {
            name: "engine".to_owned(),
            placement: TargetPlacement::Local,
            clearance: labels.name(labels.highest()).to_owned(),
            healthy: engine.ready,
            predicted_ttft_ms: engine.ttft.map(ms),
            queue_depth: gateway
                .dispatcher
                .engine()
                .state()
                .map_or(0, |s| u32::try_from(s.queue_depth).unwrap_or(u32::MAX)),
            price: None,
            requests_left: None,
        });
    }
    FleetFacts { targets }
}

/// What every response says, also an error.
fn named(mut response: Response<Body>, record: RecordId, label: &str) -> Response<Body> {
    let headers = response.headers_mut();
    if let Ok(id) = http::HeaderValue::from_str(&record.to_string()) {
        headers.insert("postern-record", id.clone());
        headers.insert("x-request-id", id);
    }
    if let Ok(label) = http::HeaderValue::from_str(label) {
        headers.insert("postern-label", label);
    }
    response
}
