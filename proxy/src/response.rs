//! The way back: restore what was masked, fill the cache with what was not, count, and close the books when the last byte
//! is given out.

mod beginning;
mod called;
mod event;
mod events;
mod gate;
mod keep;
mod late;
mod lead;
mod made;
mod outlet;
mod remembered;
mod shape;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use postern_wire::call::{Call, estimated_tokens_shown};
use postern_wire::json::Value;
use postern_wire::sse;

use crate::cache::flight::{Flight, Follower, Leading};
use crate::cache::semantic::Asked;
use crate::cache::{Entry, Slot, Tiers};
use crate::classify::Remembering;
use crate::classify::clearance::Refusal;
use crate::decide::PlannedRequest;
use crate::dispatch::Past;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::redact::vault::Suffix;
use crate::route::Policies;
use crate::screen::Screen;
use crate::upstream::{AttemptError, Reply};
use beginning::Beginning;
use event::{Malformed, Restoration};
use events::Events;
use keep::Kept;
pub use late::{Head, late};
use made::LARGE;
use outlet::{Outlet, Silence};

/// Every body that we send.
pub type Body = UnsyncBoxBody<Bytes, Cut>;

/// An answer ended before its end, and the client did not read what would have said so: the connection is broken off, since
/// a clean end would look like a complete answer.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the client did not read in time")]
pub struct Cut;

const EVENTS: &str = "text/event-stream; charset=utf-8";

const PLACEMENT: HeaderName = HeaderName::from_static("postern-placement");
const REASON: HeaderName = HeaderName::from_static("postern-reason");
const CACHE: HeaderName = HeaderName::from_static("postern-cache");
const TARGET: HeaderName = HeaderName::from_static("postern-target");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Where an answer's events come from.
#[derive(Debug)]
pub enum Source {
    /// From a target, just now.
    Live(Reply),
    /// From the cache.
    Cached(Entry),
    /// From a target that somebody else asked, as it comes.
    Shared(Follower),
    /// From a target that somebody else asked.
    SharedWhole(Arc<Value>),
}

/// Who else gets an answer.
#[derive(Debug, Default)]
pub struct Others {
    /// Those who ask for the same later.
    pub fill: Option<Fill>,
    /// Those who ask for it now.
    pub leading: Option<Leading>,
}

impl Others {
    /// How the cache was used, in one word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        if self.fill.is_some() { "miss" } else { "bypass" }
    }
}

/// Keeps an answer when it is complete.
#[derive(Debug)]
pub struct Fill {
    /// Where.
    pub cache: Arc<Tiers>,
    /// Its place there.
    pub slot: Slot,
    /// For how long at most.
    pub ttl: Option<std::time::Duration>,
    /// The question, by which others may find it that mean the same.
    pub asked: Option<Asked>,
}

/// What it takes to go on with an answer that breaks off.
#[derive(Debug)]
pub struct GoingOn {
    /// Those that the request was decided with.
    pub policies: Arc<Policies>,
    /// Who was asked.
    pub past: Past,
}

/// A body of `bytes`.
#[must_use]
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// An error as a response.
#[must_use]
pub fn error(error: &Error) -> Response<Body> {
    let reply = error.reply();
    let (body, media_type) = match reply.problem {
        Some(kind) => (reply.body.as_problem(kind), "application/problem+json"),
        None => (reply.body.to_bytes(), "application/json"),
    };
    let mut response = Response::new(full(body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(after) = reply.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64));
    }
    response
}

/// The response to a planned request. What goes wrong from here on is told in the stream, and by its end.
pub async fn answer(
    gateway: &Arc<Gateway>,
    source: Source,
    request: PlannedRequest,
    mut exchange: Exchange,
    others: Others,
    going_on: GoingOn,
    deadline: Instant,
) -> Response<Body> {
    exchange.first_token();
    let (from, stream) = match &source {
        Source::Cached(_) => (Suffix::Cache, request.masked().classified().request().call.stream()),
        Source::Shared(_) => (Suffix::Cache, true),
        Source::SharedWhole(_) => (Suffix::Cache, false),
        Source::Live(Reply::Stream(_)) => (Suffix::Wire, true),
        Source::Live(Reply::Whole(_)) => (Suffix::Wire, false),
    };
    let choices = request.masked().classified().request().call.choices();
    if let (Some(leading), Some(target)) = (&others.leading, &exchange.outcome.target) {
        leading.answers(target);
    }
    let keep = Kept::new(others.fill, others.leading, choices);
    let headers = headers(&request, &exchange, stream);
    let beginning = Beginning::new(&request.masked().classified().request().call);
    let answers = going_on.policies.answers();
    let restoration =
        Restoration::new(from, answers.tools.clone(), must_be_json(&request.masked().classified().request().call));
    let (gateway, left) = (gateway.clone(), Arc::default());
    // Also of what the cache has: it may have been kept by other rules.
    let screen = answers.rules.clone().map(Screen::new);
    let remembering = gateway.classifier.remembering(request.masked().classified());
    let mut chain = Box::new(Chain {
        gateway,
        remembering,
        screen,
        restoration,
        beginning,
        request,
        exchange,
        keep,
        going_on,
        deadline,
        left,
    });
    let mut once = |mut answer: Value| chain.look_at_whole(&mut answer).map(|()| answer);
    let source = match source {
        Source::Live(Reply::Whole(answer)) => once(answer).map(Given::Whole),
        Source::Live(Reply::Stream(events)) => Ok(Given::Events(Events::Live(events))),
        Source::Cached(entry) if stream => Ok(Given::Events(Events::Cached { events: entry.events, next: 0 })),
        Source::Cached(entry) => {
            once(entry.events.first().map(|event| Value::clone(event)).unwrap_or_default()).map(Given::Whole)
        }
        Source::Shared(follower) => Ok(Given::Events(Events::Shared(follower))),
        Source::SharedWhole(answer) => once(Value::clone(&answer)).map(Given::Whole),
    };
    let body = match source {
        Ok(Given::Whole(answer)) => whole(chain, answer).await,
        Ok(Given::Events(events)) => streamed(chain, events),
        Err(stopped) => return error(&stopped),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = headers;
    response
}

/// What is known before it is known who answers: placement, reason, use of the cache.
fn known_headers(media_type: &'static str, [placement, reason, cache]: [&'static str; 3]) -> http::HeaderMap {
    let mut headers = http::HeaderMap::with_capacity(10);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PLACEMENT, HeaderValue::from_static(placement));
    headers.insert(REASON, HeaderValue::from_static(reason));
    headers.insert(CACHE, HeaderValue::from_static(cache));
    headers
}

fn headers(request: &PlannedRequest, exchange: &Exchange, stream: bool) -> http::HeaderMap {
    let media_type = if stream { EVENTS } else { "application/json" };
    let plan = request.plan();
    let cache = exchange.outcome.cache.unwrap_or("bypass");
    let mut headers = known_headers(media_type, [plan.placement.as_str(), plan.reason.as_str(), cache]);
    if let Some(target) = exchange.outcome.target.as_deref().and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert(TARGET, target);
    }
    let ttft_ms = exchange.outcome.ttft_ms.unwrap_or_default();
    if let Ok(timing) = HeaderValue::from_str(&format!("ttft;dur={ttft_ms:.1}")) {
        headers.insert(SERVER_TIMING, timing);
    }
    headers
}

/// What every event goes through. It is large, and passed on: so it stands in a box.
struct Chain {
    gateway: Arc<Gateway>,
    request: PlannedRequest,
    /// What remembers the answer; `None`: its label needs no remembering.
    remembering: Option<Remembering>,
    /// What looks at what the model made; `None`: nobody does.
    screen: Option<Screen>,
    restoration: Restoration,
    beginning: Beginning,
    exchange: Exchange,
    keep: Option<Kept>,
    going_on: GoingOn,
    deadline: Instant,
    /// Its own client gets no more; the answer goes on for others.
    left: Arc<AtomicBool>,
}

enum Given {
    Whole(Value),
    Events(Events),
}

/// When it is looked again whether a limit of the minute has room.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(250);

/// A whole answer of so many bytes is handed over at once. It holds nothing else then.
const SMALL: usize = 256 << 10;

/// A whole answer. What a large one holds is let go of when the client has taken about all of it, at the deadline at the latest.
async fn whole(mut chain: Box<Chain>, answer: Value) -> Body {
    let bytes = chain.whole(answer);
    chain.remember().await;
    if bytes.len() <= SMALL {
        chain.finish();
        return full(bytes);
    }
    let (outlet, body) = Outlet::new();
    tokio::spawn(give_out(chain, bytes, outlet));
    body
}

async fn give_out(mut chain: Box<Chain>, bytes: Bytes, outlet: Outlet) {
    let giving = async { outlet.send(bytes).await && outlet.taken().await };
    match tokio::time::timeout_at(chain.deadline.into(), giving).await {
        Ok(true) => chain.finish(),
        // Dropping the chain closes the books.
        Ok(false) => {}
        Err(_) => {
            let _unread = chain.break_off(&chain.overdue());
            outlet.cut();
        }
    }
}

/// A body that is fed from a task of its own. Nobody polls the body of a client that does not read, so a deadline inside of it
/// would never come; the task holds to it, and ends at once when the client goes away.
fn streamed(chain: Box<Chain>, events: Events) -> Body {
    let (outlet, body) = Outlet::new();
    match chain.keep.as_ref().and_then(Kept::flight) {
        Some(flight) => tokio::spawn(lead::lead(chain, events, outlet, flight)),
        None => tokio::spawn(pump(chain, events, outlet)),
    };
    body
}

async fn pump(mut chain: Box<Chain>, mut events: Events, outlet: Outlet) {
    let mut silence = Silence::new(chain.gateway.config.timeouts.headers);
    let session = chain.exchange.session().clone();
    let mut last_words = pin!(session.last_words());
    loop {
        let (bytes, goes_on) = {
            // Pinned here: what is handed over stands in memory twice.
            let next = pin!(chain.next(&mut events));
            tokio::select! {
                biased;
                // Dropping the chain drops the upstream's connection, and closes the books.
                () = outlet.closed() => return,
                () = &mut last_words => return outlet.last(sse::data(&Error::Drained.reply().body.to_json())),
                next = silence.filled(next, &outlet) => next,
            }
        };
        match tokio::time::timeout_at(chain.deadline.into(), outlet.send(bytes)).await {
            Ok(true) if goes_on => {}
            Ok(_) => return,
            Err(_) => {
                let _unread = chain.break_off(&chain.overdue());
                return outlet.cut();
            }
        }
    }
}

impl Chain {
    /// The next bytes, and whether more will come.
    async fn next(&mut self, events: &mut Events) -> (Bytes, bool) {
        let given = self.next_event(events).await;
        self.remember().await;
        given
    }

    async fn next_event(&mut self, events: &mut Events) -> (Bytes, bool) {
        loop {
            let overdue = overdue(self.deadline, self.keep.as_ref().and_then(Kept::flight));
            let event = tokio::select! {
                biased;
                event = self.from(events) => Ok(event),
                () = overdue => Err(()),
            };
            let mut event = match event {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return (self.end(), false),
                // Its own words say what to ask for instead.
                Ok(Err(AttemptError::Engine(refusal))) => {
                    return (self.break_off(&Error::EngineRefused(refusal)), false);
                }
                Ok(Err(AttemptError::Refused(Refusal::Offline))) => {
                    return (self.break_off(&Error::WentOffline), false);
                }
                Ok(Err(_told)) => return (self.break_off(&events.why().unwrap_or(Error::StreamBroken)), false),
                Err(()) => return (self.break_off(&self.overdue()), false),
            };
            let shown = estimated_tokens_shown(&event);
            let stopped = match self.look_at(&mut event) {
                Ok(stopped) => stopped,
                Err(Malformed) => return (self.break_off(&Error::StreamBroken), false),
            };
            self.beginning.note(&event);
            if self.beginning.was_gone_on_with() {
                self.beginning.go_on(&mut event);
                self.restoration.take_up(&mut event);
            }
            self.exchange.note_usage(&event);
            if let Err(error) = self.pay_for(shown).await {
                return (self.break_off(&error), false);
            }
            match self.event(event) {
                Ok(bytes) if stopped => return (self.stop(bytes.unwrap_or_default()), false),
                Ok(Some(bytes)) => return (bytes, true),
                Ok(None) => {}
                Err(_) => return (self.break_off(&Error::StreamBroken), false),
            }
        }
    }

    /// The next event; from another target, if one can go on where this one broke off.
    async fn from(&mut self, events: &mut Events) -> Result<Option<Value>, AttemptError> {
        loop {
            let error = match events.next().await {
                Ok(event) => return Ok(event),
                // Whoever asked for it has seen to that already, as far as anybody can.
                Err(error) if matches!(events, Events::Shared(_)) => return Err(error),
                // It is told at once, and asked anew of whoever is there then.
                Err(error @ AttemptError::Refused(Refusal::Offline)) => return Err(error),
                Err(error) => error,
            };
            let record = self.exchange.record;
            tracing::warn!(%record, target = self.exchange.outcome.target, %error, "an answer broke off");
            *events = self.go_on(&error).await.ok_or(error)?;
        }
    }

    /// The rest of an answer that broke off.
    async fn go_on(&mut self, error: &AttemptError) -> Option<Events> {
        let outcome = &mut self.exchange.outcome;
        if let Some(attempt) =
            outcome.attempts.iter_mut().rfind(|attempt| Some(&attempt.target) == outcome.target.as_ref())
        {
            attempt.result = error.code();
        }
        // What is being left out goes on in an answer that broke off; where, another target would not know.
        let is_whole = self.screen.as_mut().is_none_or(Screen::forget_held);
        let Some((text, tokens)) = self.beginning.cut(self.restoration.forget_held()).filter(|_| is_whole) else {
            outcome.not_continued = Some("unsuitable");
            return None;
        };
        let text = text.to_owned();
        // What came from two targets is no answer of either; and it may be above what those who follow may read.
        self.keep = None;
        let broken = self.exchange.outcome.target.clone().unwrap_or_default();
        let asked = self.ask_others(&text, tokens, (&broken, error)).await;
        let outcome = &mut self.exchange.outcome;
        let answer = match asked {
            Ok(answer) => answer,
            Err(why) => {
                outcome.not_continued = Some(why);
                return None;
            }
        };
        self.gateway.metrics.fell_back(&broken, &answer.target, "mid_stream");
        outcome.target = Some(answer.target);
        outcome.continued += 1;
        match answer.reply {
            Reply::Stream(events) => Some(Events::Live(events)),
            Reply::Whole(_) => None,
        }
    }

    /// Counts the tokens that an event shows towards the limits of its client. Where a limit of the minute is reached, it waits for its turn; where
    /// one of the day or the month is, the answer ends. For those who follow it does neither; what was used is counted at the end.
    async fn pay_for(&mut self, mut tokens: u64) -> Result<(), Error> {
        let flight = self.keep.as_ref().and_then(Kept::flight);
        let Some(admitted) = self.exchange.admitted.as_mut().filter(|admitted| admitted.is_limited()) else {
            return Ok(());
        };
        loop {
            match admitted.count(std::mem::take(&mut tokens)).await {
                Err(_) if flight.as_ref().is_some_and(|flight| flight.is_followed()) => return Ok(()),
                Err(Error::RateLimited { retry_after, .. }) if Instant::now() + retry_after < self.deadline => {
                    // Somebody may come to follow meanwhile.
                    tokio::time::sleep(retry_after.min(LOOK_AGAIN)).await;
                }
                counted => return counted,
            }
        }
    }

    /// One event, restored. `None` if there is nothing to show.
    fn event(&mut self, mut event: Value) -> Result<Option<Bytes>, event::Malformed> {
        let masked = self.request.masked();
        let call = &masked.classified().request().call;
        let mut kept = self.keep.is_some().then(|| event.clone());
        self.restoration.chunk(masked.vault(), call.choices(), &mut event, kept.as_mut())?;
        remembered::read(&self.gateway, &mut self.remembering, &event);
        match self.keep.is_some() && self.restoration.saw_foreign() {
            true => Kept::unfit(&mut self.keep),
            false => Kept::chunk(&mut self.keep, kept),
        }
        let only_usage = event.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
        if !call.include_usage() {
            if only_usage {
                return Ok(None);
            }
            if let Some(event) = event.as_object_mut() {
                event.remove("usage");
            }
        }
        if !only_usage && !event::shows_anything(&event) {
            return Ok(None);
        }
        Ok(Some(shape::chunk(call, event)))
    }

    /// The bytes of a whole answer.
    fn whole(&mut self, answer: Value) -> Bytes {
        // Of a large one it takes a while: other requests need their thread meanwhile.
        let is_large = event::size(&answer) > LARGE;
        if is_large { tokio::task::block_in_place(|| self.restored(answer)) } else { self.restored(answer) }
    }

    fn restored(&mut self, mut answer: Value) -> Bytes {
        self.exchange.note_usage(&answer);
        let masked = self.request.masked();
        let call = &masked.classified().request().call;
        let mut kept = self.keep.is_some().then(|| answer.clone());
        self.restoration.message(masked.vault(), &mut answer, kept.as_mut());
        remembered::read(&self.gateway, &mut self.remembering, &answer);
        match self.restoration.saw_foreign() {
            true => Kept::unfit(&mut self.keep),
            false => Kept::whole(&mut self.keep, masked.vault(), kept),
        }
        shape::whole(call, answer)
    }

    fn end(&mut self) -> Bytes {
        let (given, stopped) = self.look_at_rest();
        let mut bytes = Vec::from(given);
        if stopped {
            return self.stop(Bytes::from(bytes));
        }
        if let Some(rest) = self.restoration.rest() {
            remembered::read(&self.gateway, &mut self.remembering, &rest);
            // Nobody else has this part of it.
            Kept::unfit(&mut self.keep);
            bytes.extend_from_slice(&shape::chunk(&self.request.masked().classified().request().call, rest));
        }
        bytes.extend_from_slice(sse::DONE.as_bytes());
        self.finish();
        Bytes::from(bytes)
    }

    fn overdue(&self) -> Error {
        Error::DeadlineExceeded(self.deadline.saturating_duration_since(self.exchange.started))
    }

    /// An event that says so, and no `[DONE]`: an answer that was cut must not look like one that is complete.
    fn break_off(&mut self, error: &Error) -> Bytes {
        // Those who follow need not wait until this one has read it.
        match error {
            Error::AnswerStopped => Kept::failed(&mut self.keep, error),
            _ => self.keep = None,
        }
        self.note_restored();
        // Else it is known already what became of it.
        if !self.left.load(Ordering::Relaxed) {
            match error {
                Error::AnswerStopped => self.exchange.stopped(error, true),
                _ => self.exchange.broken(error),
            }
        }
        sse::data(&error.reply().body.to_json())
    }

    fn note_restored(&mut self) {
        let outcome = &mut self.exchange.outcome;
        outcome.restored = self.restoration.restored();
        outcome.restored_for_tools = self.restoration.restored_for_tools();
    }

    fn finish(&mut self) {
        self.note_restored();
        if let Some(kept) = self.keep.take() {
            kept.finish(&self.exchange.outcome);
        }
        // Else dropping the books says that it went away.
        if !self.left.load(Ordering::Relaxed) {
            self.exchange.answered();
        }
    }
}

/// Whoever goes away has had what was given out.
impl Drop for Chain {
    fn drop(&mut self) {
        self.note_restored();
    }
}

/// Does the request ask for JSON, and nothing else?
fn must_be_json(call: &Call) -> bool {
    let format = call.body().get("response_format").and_then(|format| format.get("type")).and_then(Value::as_str);
    matches!(format, Some("json_object" | "json_schema"))
}

/// Comes when an answer has had its time: its own, or that of whoever follows it.
async fn overdue(deadline: Instant, flight: Option<Arc<Flight>>) {
    let mut until = deadline;
    loop {
        tokio::time::sleep_until(until.into()).await;
        let latest = flight.as_ref().map_or(deadline, |flight| flight.until());
        if latest <= until {
            return;
        }
        until = latest;
    }
}
