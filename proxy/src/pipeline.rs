//! The way of a request, top to bottom.
//!
//! ```text
//! open → admission → request → classify → redact → route → decide → cache → record (intent) → dispatch → response → seal
//! ```
//!
//! Each step takes the type that the step before made, so none can be left out or turned round:
//! `OpenedRequest → ParsedRequest → ClassifiedRequest → MaskedRequest → PlannedRequest`.

mod answering;
mod way;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Request, Response};
use postern_plugins::{CallContext, Header};
use postern_wire::call::{Call, Endpoint};
use postern_wire::json::Value;
use postern_wire::vectors::Wanted;

use crate::audit::{Intent, Place, RecordId};
use crate::cache::redis::Owner;
use crate::cache::{self, CacheKey, Slot, Tiers};
use crate::classify::clearance::Destination;
use crate::classify::label::Label;
use crate::classify::{ClassifiedRequest, Source};
use crate::config;
use crate::connection::session::Session;
use crate::decide::balance::Load;
use crate::decide::{self, EngineFacts, Form, PlannedRequest};
use crate::dispatch::Past;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::facts;
use crate::gateway::Gateway;
use crate::open::{OpenedRequest, Payload, Unsealed};
use crate::redact::{self, MaskedRequest};
use crate::request::{CacheUse, ParsedRequest, Peer, discard, read_body};
use crate::response::{self, Body, Fill, GoingOn, Head, Others};
use crate::route::answers::merged_plans;
use crate::route::heard::{Fate, Heard};
use crate::route::scene::Scene;
use crate::route::shadow::Watching;
use crate::route::{Policies, Votes};
use crate::upstream::standing::Claim;
use crate::workers;
use answering::{Answering, Known, Responded};
use way::{Found, Shared, Way, follow};

const RECORD: HeaderName = HeaderName::from_static("postern-record");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LABEL: HeaderName = HeaderName::from_static("postern-label");

/// How soon it is looked again whether headers can go out.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Answers a `POST` to `endpoint`.
pub async fn call(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    peer: Peer,
    endpoint: Endpoint,
    request: Request<Payload>,
) -> Response<Body> {
    let (record, started) = (RecordId::new(), Instant::now());
    // Room for the outcome comes first: nothing is done that could not be recorded.
    let place = match gateway.audit.place().await {
        Ok(place) => place,
        Err(error) => return named(response::error(&error), record, gateway.config.labels.name(peer.floor)),
    };
    let mut exchange = open(gateway, record, started, place, session);
    exchange.outcome.sealed = request.body().form();
    let rates = gateway.admission.rates(&peer);
    let named = |mut response: Response<Body>, label: &str| {
        rates.add_to(response.headers_mut());
        named(response, record, label)
    };
    let known = Arc::new(Known::default());
    let timeouts = gateway.config.timeouts;
    let responding = respond(gateway.clone(), (peer, endpoint), request, exchange, known.clone());
    let mut answering = Answering { responding: Some(Box::pin(responding)), known: known.clone() };
    let mut patience = timeouts.headers;
    loop {
        match (tokio::time::timeout(patience, &mut answering).await, known.head.get()) {
            (Ok((Ok(response), label)), _) => return named(response, &label),
            (Ok((Err(error), label)), _) => return named(response::error(&error), &label),
            (Err(_), Some(head)) => {
                let rest = async move { answering.await.0 };
                return named(response::late(head, timeouts.headers, rest), &head.label);
            }
            // Nothing is known yet that headers could say: the body is still coming, or a policy is being asked.
            (Err(_), None) => patience = LOOK_AGAIN,
        }
    }
}

/// The answer, or why there is none; and the label, as far as it is known.
async fn respond(
    gateway: Arc<Gateway>,
    (peer, endpoint): (Peer, Endpoint),
    request: Request<Payload>,
    mut exchange: Exchange,
    known: Arc<Known>,
) -> Responded {
    let mut label = peer.floor;
    let (labels, total) = (&gateway.config.labels, gateway.config.timeouts.total);
    let deadline = exchange.started + total;
    // Pinned where it is: it is large, and would be copied into what bounds its time.
    let answered = {
        let answering = pin!(answer(&gateway, (peer, endpoint), request, &mut exchange, &mut label, &known));
        tokio::time::timeout_at(deadline.into(), answering).await
    };
    exchange.stays &= !gateway.config.is_cleared(label);
    let label = labels.name(label).to_owned();
    match answered.unwrap_or(Err(Error::DeadlineExceeded(total))) {
        Ok(Ready { request, source, others, going_on }) => {
            (Ok(response::answer(&gateway, source, request, exchange, others, going_on, deadline).await), label)
        }
        Err(error) => {
            exchange.outcome.label = Some(label.clone());
            if let Error::LabelRefused { sources, .. } = &error {
                exchange.outcome.label_sources.clone_from(sources);
            }
            match known.head.get().is_some_and(|head| head.sent.load(Ordering::Relaxed)) {
                true => exchange.broken(&error),
                false => exchange.refused(&error),
            }
            exchange.place.written().await;
            (Err(error), label)
        }
    }
}

/// Answers who has a certificate and no rule, or whose sealed request was not opened. Nothing was done with what they sent; that they came is
/// recorded.
pub async fn refuse(
    gateway: &Gateway,
    session: &Arc<Session>,
    sealed: Option<&'static str>,
    error: &Error,
) -> Response<Body> {
    let (record, started) = (RecordId::new(), Instant::now());
    let label = gateway.config.labels.name(gateway.config.labels.lowest());
    let place = match gateway.audit.place().await {
        Ok(place) => place,
        Err(error) => return named(response::error(&error), record, label),
    };
    let mut exchange = open(gateway, record, started, place, session);
    exchange.outcome.sealed = sealed;
    exchange.refused(error);
    exchange.place.written().await;
    named(response::error(error), record, label)
}

fn open(gateway: &Gateway, record: RecordId, started: Instant, place: Place, session: &Arc<Session>) -> Exchange {
    let (metrics, prices) = (gateway.metrics.clone(), gateway.prices.clone());
    Exchange::open(record, started, place, session.clone(), metrics, prices)
}

/// An answer whose first token is there.
struct Ready {
    request: PlannedRequest,
    source: response::Source,
    others: Others,
    going_on: GoingOn,
}

/// `label` is what is known of the label, also if it ends with an error.
async fn answer(
    gateway: &Arc<Gateway>,
    (peer, endpoint): (Peer, Endpoint),
    request: Request<Payload>,
    exchange: &mut Exchange,
    label: &mut Label,
    known: &Known,
) -> Result<Ready, Error> {
    let (config, keys) = (&gateway.config, &gateway.keys);
    // The same policies from here to the end, whatever is loaded meanwhile.
    let policies = gateway.live.policies();
    let mut going_on = GoingOn { policies: policies.clone(), past: Past::default() };

    let (parts, payload) = request.into_parts();
    let (admitted, body) = match payload {
        Payload::Opened(unsealed) => {
            let Unsealed { body, admitted, .. } = *unsealed;
            (exchange.admitted.insert(admitted), body)
        }
        Payload::Plain(body) if config.payload.required => {
            gateway.metrics.payload("none", Error::PayloadNotSealed.code());
            discard(body).await;
            return Err(Error::PayloadNotSealed);
        }
        Payload::Plain(body) | Payload::Inside(body) => {
            let admitted = match gateway.admission.enter(&peer).await {
                Ok(admitted) => exchange.admitted.insert(admitted),
                Err(error) => {
                    discard(body).await;
                    return Err(error);
                }
            };
            let body = read_body(body, config.limits.body.0, config.limits.receive.0, admitted).await?;
            (admitted, body)
        }
    };
    if workers::is_long(body.len()) {
        known.is_long.store(true, Ordering::Relaxed);
        // From the next time on that this goes on.
        tokio::task::yield_now().await;
    }
    let opened = OpenedRequest::new(parts.headers, body)?;
    let parsed = ParsedRequest::parse(config, peer, endpoint, &opened)?;
    *label = parsed.marks.label.map_or(*label, |marked| label.join(marked));
    admitted.charge_values(opened.body.len() as u64, parsed.call.values())?;
    admitted.reserve(parsed.prompt_tokens, &parsed.call).await?;
    let of_tenant = gateway.tenant_keys.of(&parsed.peer.tenant).await.map_err(|_| Error::RecordUnavailable)?;
    let request_hash = of_tenant.short_hash("request", &[&opened.body]);
    let headers = facts::granted_headers(&opened.headers, policies.granted_headers());
    drop(opened);

    let classified = gateway.classifier.classify(keys, parsed).await.inspect_err(|error| {
        if let Error::LabelRefused { label: refused, .. } = error {
            *label = config.labels.by_name(refused).unwrap_or(*label);
        }
    })?;
    *label = classified.label();
    classified.sources().clone_into(&mut exchange.outcome.label_sources);
    // Policies decide from here on, and are told of budgets. Where nothing ever leaves, nothing can be told by what leaves.
    exchange.stays = config.clears_anything() && !policies.all().is_empty();
    let mut heard = Heard::default();
    let consulted = consult(gateway, policies, classified, headers, exchange, label, &mut heard).await;
    exchange.outcome.policies = heard.into_said();
    let Consulted { masked, mut scene, watching } = consulted?;
    masked.classified().sources().clone_into(&mut exchange.outcome.label_sources);

    let planned = plan(gateway, &scene, masked);
    let way = match &planned {
        Ok(planned) => look_up(gateway, planned, &mut scene, exchange).await,
        Err(_) => Way::Ask(Others::default()),
    };
    remember(gateway, scene, watching);
    let planned = planned?;
    exchange.placement = planned.plan().placement.as_str();

    // Who follows may come to ask for itself.
    let leaves = !way.is_hit() && planned.plan().form == Form::Masked;
    record_intent(gateway, exchange, &planned, request_hash, leaves).await?;
    // The intent has them.
    exchange.outcome.policies.clear();
    exchange.outcome.label_sources.clear();
    exchange.outcome.cache = Some(way.word());

    if planned.masked().classified().request().call.stream() && !way.is_hit() {
        let (placement, reason) = (planned.plan().placement.as_str(), planned.plan().reason.as_str());
        let (label, cache) = (config.labels.name(*label).to_owned(), way.word());
        let _only_once = known.head.set(Head { sent: AtomicBool::new(false), label, placement, reason, cache });
    }
    let found = follow(gateway, way, planned.masked().classified().request().call.stream()).await?;
    exchange.outcome.cache = Some(found.word());
    if gateway.cache.is_some() && config.is_cleared(*label) {
        gateway.metrics.cache_used(&planned.masked().classified().request().peer.id, found.word());
    }
    let others = match found {
        Found::Ask(others) => *others,
        Found::Hit(entry) | Found::Similar(entry) => {
            exchange.outcome.target = Some(entry.target.to_string());
            (exchange.outcome.prompt_tokens, exchange.outcome.completion_tokens) = entry.tokens;
            let source = response::Source::Cached(entry);
            return Ok(Ready { request: planned, source, others: Others::default(), going_on });
        }
        Found::Shared(target, source) | Found::SharedSimilar(target, source) => {
            exchange.outcome.target = Some(target.to_string());
            return Ok(Ready { request: planned, source: *source, others: Others::default(), going_on });
        }
    };

    if let Some(admitted) = &mut exchange.admitted {
        let dearest = gateway.prices.dearest(planned.plan().targets.iter().map(Destination::name));
        admitted.reserve_cost(dearest).await?;
    }
    if let Call::Embeddings(vectors) = &planned.masked().classified().request().call
        && Wanted::from(vectors).is_large()
    {
        // The semaphore is never closed; the wait ends with the request's time.
        exchange.large = gateway.large.clone().acquire_owned().await.ok();
    }
    if let Some(leading) = &others.leading {
        let _only_once = known.flight.set(leading.flight().clone());
    }
    let attempts = &mut exchange.outcome.attempts;
    let answer = match gateway.dispatcher.dispatch(&planned, &mut going_on.past, attempts).await {
        Ok(answer) => answer,
        Err(error) => {
            others.leading.into_iter().for_each(|leading| leading.failed(&error));
            return Err(error);
        }
    };
    // An answer of a stand-in is not what the next request should get from the cache.
    let is_first_choice = planned.plan().targets.first().is_some_and(|first| first.name() == answer.target);
    exchange.outcome.target = Some(answer.target);
    let others = Others { fill: others.fill.filter(|_| is_first_choice), ..others };
    Ok(Ready { request: planned, source: response::Source::Live(answer.reply), others, going_on })
}

/// A request whose label is final.
struct Consulted {
    masked: MaskedRequest,
    scene: Scene,
    watching: Option<Watching>,
}

/// Redact and route: policies find and vote; the label is final afterwards, and what they wrote takes effect, or does not.
async fn consult(
    gateway: &Arc<Gateway>,
    policies: Arc<Policies>,
    classified: ClassifiedRequest,
    headers: Vec<Header>,
    exchange: &Exchange,
    label: &mut Label,
    heard: &mut Heard,
) -> Result<Consulted, Error> {
    let config = &gateway.config;
    let before = *label;
    let (tenant, record) = (classified.request().peer.tenant.clone(), exchange.record);
    let context =
        CallContext { tenant: &tenant, label: config.labels.name(before), seed: record.seed(), time_ms: None };
    let mut watching = gateway.shadows.watch(gateway, &policies);
    let mut masked = redact::mask(gateway, &policies, &context, classified, heard, watching.as_mut()).await?;
    // What was asked is what predictions are of: the longest answer is for limits alone.
    let tokens = masked.classified().request().prompt_tokens;
    let claim = Claim { tokens, ..gateway.dispatcher.claim(masked.classified().request()) };
    let targets = gateway.dispatcher.standings(claim);
    let engine = engine_facts(gateway, masked.classified(), claim);
    let request = facts::request(config, &masked, headers, exchange.admitted.as_ref(), policies.see_text());
    let fleet = facts::fleet(config, &targets, engine);
    let routed = policies.route(config, before, &context, (&request, &fleet), heard).await?;
    let votes = Votes::merged(&routed.answers);
    let accepted = raise(gateway, &mut masked, &votes).await;
    *label = masked.classified().label();
    let is_cleared = config.is_cleared(*label);
    heard.settle(if is_cleared { Fate::Commit(config.labels.name(*label)) } else { Fate::Drop });
    // A policy chooses kinds and numbers, so of what must stay here they are told to nobody.
    if is_cleared {
        masked.counts().iter().for_each(|(kind, count)| gateway.metrics.redacted(kind, *count));
    }
    accepted?;

    let classified = masked.classified();
    let scene = Scene {
        record,
        policies,
        request,
        fleet,
        label: before,
        final_label: *label,
        final_sources: facts::label_sources(classified),
        ceiling: classified.request().peer.ceiling,
        asked: classified.request().marks.placement,
        complete: masked.is_complete(),
        conversation: classified.conversation(),
        targets,
        spread: spread(classified, record),
        engine,
        offline: gateway.dispatcher.offline().is_cancelled(),
        engine_model: engine_model(gateway),
        endpoint: masked.classified().request().call.endpoint(),
        ballots: routed.answers,
        votes,
        plans: None,
        answers: routed.recorded,
    };
    Ok(Consulted { masked, scene, watching })
}

/// Joins what plugins raised, or chose a model that calls for it; the label is final afterwards.
async fn raise(gateway: &Gateway, masked: &mut MaskedRequest, votes: &Votes) -> Result<(), Error> {
    let labels = &gateway.config.labels;
    let call = &masked.classified().request().call;
    let called_for = votes.labels(&gateway.config.classification.routes, call.endpoint(), call.model());
    let Some(label) = called_for.iter().map(|(label, _)| *label).reduce(Label::join) else { return Ok(()) };
    for (label, source) in called_for {
        masked.raise(label, Source { source, label: labels.name(label).to_owned() });
    }
    // Who may not have a label does not mark what comes after.
    masked.classified().check(labels)?;
    if !gateway.classifier.taint_conversation(masked.classified(), label).await {
        masked.doubt(labels);
    }
    Ok(())
}

/// Where it goes; an error if a policy said no, or there is nowhere to go.
fn plan(gateway: &Gateway, scene: &Scene, masked: MaskedRequest) -> Result<PlannedRequest, Error> {
    if let Some(policy) = &scene.votes.denied {
        return Err(Error::PolicyDenied { policy: policy.clone() });
    }
    let is_certain = masked.classified().is_certain();
    let planned = decide::plan(&scene.facts(&gateway.config, &scene.votes), masked);
    let planned = planned.map_err(|error| match error {
        Error::NoPermittedTarget { .. } if !is_certain => Error::LabelsUnavailable,
        error => error,
    });
    planned.inspect_err(|error| {
        if matches!(error, Error::NoPermittedTarget { .. } | Error::LabelsUnavailable | Error::Offline) {
            gateway.metrics.egress_refused(gateway.config.labels.name(scene.final_label), error.code());
        }
    })
}

/// What the cache has, or somebody is waiting for; else where an answer is to be kept.
async fn look_up(gateway: &Gateway, planned: &PlannedRequest, scene: &mut Scene, exchange: &mut Exchange) -> Way {
    let alone = Way::Ask(Others::default());
    let Some(store) = &gateway.cache else { return alone };
    let config = &gateway.config;
    let label = config.labels.name(scene.final_label);
    let context = CallContext { tenant: &scene.request.tenant, label, seed: scene.record.seed(), time_ms: None };
    let mut heard = Heard::default();
    let plans = scene.policies.plan(&context, &scene.request_for_caching(config), &mut heard).await;
    heard.settle(if config.is_cleared(scene.final_label) { Fate::Commit(label) } else { Fate::Drop });
    exchange.outcome.policies.extend(heard.into_said());
    let choice = merged_plans(&plans.answers);
    scene.answers.extend(plans.recorded);
    scene.plans = Some(plans.answers);
    let request = planned.masked().classified().request();
    // A plain form has no placeholders that could be mapped onto another request.
    let is_bound = planned.plan().form == Form::Plain && !planned.masked().vault().is_empty();
    if !choice.exact || is_bound || request.marks.cache == CacheUse::None {
        return alone;
    }
    let key = cache::key(&gateway.keys, &config.labels, planned, &choice.key_parts);
    let fill = Fill { cache: store.clone(), slot: slot(gateway, store, planned, key), ttl: choice.ttl, asked: None };
    // Of large answers only a few should be in memory; log probabilities are not shared, so nobody should wait for them.
    let is_large = matches!(&request.call, Call::Embeddings(vectors) if Wanted::from(vectors).is_large());
    let logprobs = request.call.body().get("logprobs");
    let is_own = is_large || logprobs.is_some_and(|asked| !matches!(asked, Value::Null | Value::Bool(false)));
    if request.marks.cache == CacheUse::Fresh || is_own {
        let hit = match (request.marks.cache, store.memory.get(&key)) {
            (CacheUse::Any, None) => store.fetch(&fill.slot).await,
            (CacheUse::Any, hit) => hit,
            _ => None,
        };
        return hit.map_or(Way::Ask(Others { fill: Some(fill), leading: None }), Way::Hit);
    }
    let semantic = gateway.semantic.as_ref().filter(|_| choice.semantic);
    let question =
        semantic.and_then(|semantic| semantic.question(&gateway.keys, &config.labels, planned, &choice.key_parts, key));
    let flight = cache::flight_key(&gateway.keys, planned, &key, question.is_some());
    let shared = Shared { fill, flight, deadline: exchange.started + config.timeouts.total };
    shared.seek(gateway).await.in_other_words(gateway, question).await
}

/// Where an answer is kept. What may not leave is not in the second tier either, not even encrypted.
fn slot(gateway: &Gateway, cache: &Tiers, planned: &PlannedRequest, key: CacheKey) -> Slot {
    let classified = planned.masked().classified();
    let (tenant, label) = (&classified.request().peer.tenant, classified.label());
    let leaves = planned.plan().form == Form::Masked && gateway.config.is_cleared(label);
    let owner = || Owner { tenant: (&**tenant).into(), label: gateway.config.labels.name(label).into() };
    Slot { key, owner: (leaves && cache.redis.is_some()).then(owner) }
}

/// Keeps what later versions of policies are tried on, and asks the shadows.
fn remember(gateway: &Arc<Gateway>, scene: Scene, watching: Option<Watching>) {
    let policies = scene.policies.clone();
    let is_kept = gateway.config.is_cleared(scene.final_label);
    let recorded = match watching {
        Some(watching) => {
            let recorded = is_kept.then(|| scene.recorded(&gateway.config));
            watching.start(gateway, scene);
            recorded
        }
        None => is_kept.then(|| scene.into_recorded(&gateway.config)),
    };
    if let Some(recorded) = recorded.map(Arc::new) {
        if let Some(recorder) = policies.recorder() {
            recorder.note(recorded.clone());
        }
        gateway.live.recent.note(recorded);
    }
}

async fn record_intent(
    gateway: &Gateway,
    exchange: &mut Exchange,
    planned: &PlannedRequest,
    request_hash: String,
    durable: bool,
) -> Result<(), Error> {
    let (plan, masked) = (planned.plan(), planned.masked());
    let classified = masked.classified();
    let request = classified.request();
    let intent = Intent {
        identity: request.peer.id.as_str(),
        tenant: &request.peer.tenant,
        label: gateway.config.labels.name(classified.label()),
        label_sources: classified.sources(),
        model: &plan.model,
        placement: plan.placement.as_str(),
        targets: plan.targets.iter().map(Destination::name).collect(),
        reason: plan.reason.as_str(),
        form: if plan.form == Form::Masked && masked.is_masked() { "masked" } else { "plain" },
        policies: &exchange.outcome.policies,
        redactions: masked.counts(),
        flagged: masked.flagged(),
        prompt_tokens_estimated: request.prompt_tokens,
        request_hash,
    };
    let is_lowest = classified.label() == gateway.config.labels.lowest();
    gateway.audit.intent((exchange.record, &mut exchange.place), &intent, (durable, is_lowest)).await
}

fn engine_facts(gateway: &Gateway, classified: &ClassifiedRequest, claim: Claim) -> EngineFacts {
    let engine = gateway.dispatcher.engine();
    let known = gateway.dispatcher.engine_standing(claim);
    let queue = engine.state().map_or(0.0, |state| state.queue_depth as f64);
    EngineFacts {
        serves: gateway.config.engine.is_some() && engine.serves(classified.request().call.endpoint()),
        ready: engine.is_ready(),
        ttft: engine.predicted_ttft(claim.tokens),
        load: Load { base_ms: known.base_ms, latency_ms: known.latency_ms, queue: queue.max(known.queue) },
    }
}

/// See [`Scene::spread`].
fn spread(classified: &ClassifiedRequest, record: RecordId) -> u64 {
    if !classified.request().call.goes_on() {
        return record.seed();
    }
    let conversation = classified.conversation();
    conversation.0.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// What the engine calls its model, or will when it is connected.
fn engine_model(gateway: &Gateway) -> String {
    let configured = || gateway.config.engine.as_ref().map(|engine| config::Engine::own_name(&engine.model));
    gateway.dispatcher.engine().model().or_else(configured).unwrap_or_default()
}

/// What every response says, also an error.
fn named(mut response: Response<Body>, record: RecordId, label: &str) -> Response<Body> {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&record.to_string()) {
        headers.insert(RECORD, id.clone());
        headers.insert(REQUEST_ID, id);
    }
    if let Ok(label) = HeaderValue::from_str(label) {
        headers.insert(LABEL, label);
    }
    response
}
