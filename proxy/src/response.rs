//! The way back: restore what was masked, fill the cache with what was not, count, and close the books when the last byte
//! is given out.

mod beginning;
mod event;
mod gate;
mod keep;
mod shape;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use postern_wire::sse;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::cache::{CacheKey, Entry, MemoryCache};
use crate::decide::PlannedRequest;
use crate::dispatch::Past;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::redact::vault::Suffix;
use crate::route::Policies;
use crate::upstream::{AttemptError, EventStream, Reply};
use beginning::Beginning;
use event::Restoration;
use keep::Kept;

/// Every body that we send.
pub type Body = UnsyncBoxBody<Bytes, Cut>;

/// An answer ended before its end, and the client did not read what would have said so: the connection is broken off, since
/// a clean end would look like a complete answer.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the client did not read in time")]
pub struct Cut;

const EVENTS: &str = "text/event-stream; charset=utf-8";

/// Where an answer's events come from.
#[derive(Debug)]
pub enum Source {
    /// From a target, just now.
    Live(Reply),
    /// From the cache.
    Cached(Entry),
}

/// Keeps an answer when it is complete.
#[derive(Debug)]
pub struct Fill {
    /// Where.
    pub cache: Arc<MemoryCache>,
    /// Under which key.
    pub key: CacheKey,
    /// For how long at most.
    pub ttl: Option<std::time::Duration>,
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
    let mut response = Response::new(full(reply.body.to_bytes()));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(after) = reply.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64));
    }
    response
}

/// The response to a planned request. What goes wrong from here on is told in the stream, and by its end.
pub fn answer(
    gateway: &Arc<Gateway>,
    source: Source,
    request: PlannedRequest,
    mut exchange: Exchange,
    fill: Option<Fill>,
    going_on: GoingOn,
    deadline: Instant,
) -> Response<Body> {
    exchange.first_token();
    let (from, stream) = match &source {
        Source::Cached(_) => (Suffix::Cache, request.masked().classified().request().call.stream()),
        Source::Live(Reply::Stream(_)) => (Suffix::Wire, true),
        Source::Live(Reply::Whole(_)) => (Suffix::Wire, false),
    };
    let keep = fill.map(|fill| Kept::new(fill, request.masked().classified().request().call.choices()));
    let headers = headers(&request, &exchange, stream);
    let beginning = Beginning::new(&request.masked().classified().request().call);
    let (gateway, restoration) = (gateway.clone(), Restoration::new(from));
    let mut chain = Chain { gateway, restoration, beginning, request, exchange, keep, going_on, deadline };
    let body = match source {
        Source::Live(Reply::Whole(whole)) => {
            let bytes = chain.whole(whole);
            pieces(bytes, (chain.exchange.admitted.take(), chain.exchange.large.take()))
        }
        Source::Live(Reply::Stream(events)) => streamed(chain, Events::Live(events)),
        Source::Cached(entry) if stream => streamed(chain, Events::Cached(entry.events.iter().cloned().collect())),
        Source::Cached(entry) => full(chain.whole(entry.events.first().cloned().unwrap_or_default())),
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
    headers.insert("postern-placement", HeaderValue::from_static(placement));
    headers.insert("postern-reason", HeaderValue::from_static(reason));
    headers.insert("postern-cache", HeaderValue::from_static(cache));
    headers
}

/// A body that is given out in pieces, so that `held` is let go of when the client has taken about all of it.
fn pieces(bytes: Bytes, held: impl Send + 'static) -> Body {
    if bytes.len() <= PIECE {
        return full(bytes);
    }
    let pieces = futures_util::stream::unfold((bytes, held), |(mut bytes, held)| async move {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        (!piece.is_empty()).then_some((Ok(Frame::data(piece)), (bytes, held)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn headers(request: &PlannedRequest, exchange: &Exchange, stream: bool) -> http::HeaderMap {
    let media_type = if stream { EVENTS } else { "application/json" };
    let plan = request.plan();
    let cache = exchange.outcome.cache.unwrap_or("bypass");
    let mut headers = known_headers(media_type, [plan.placement.as_str(), plan.reason.as_str(), cache]);
    if let Some(target) = exchange.outcome.target.as_deref().and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert("postern-target", target);
    }
    let ttft_ms = exchange.outcome.ttft_ms.unwrap_or_default();
    if let Ok(timing) = HeaderValue::from_str(&format!("ttft;dur={ttft_ms:.1}")) {
        headers.insert("server-timing", timing);
    }
    headers
}

/// What is known of an answer when its headers have to go out before it has begun.
#[derive(Debug)]
pub struct Head {
    /// They have gone out: with status 200, whatever comes of it.
    pub sent: AtomicBool,
    /// The final label.
    pub label: String,
    /// Where it may be answered.
    pub placement: &'static str,
    /// Why.
    pub reason: &'static str,
    /// How the cache was used.
    pub cache: &'static str,
}

/// A streamed response whose headers go out now: comments keep the connection open until there is an answer, which then follows,
/// or an error in its place. Source of the comments: the HTML standard, 9.2.7, which asks for one every 15 s or so.
pub fn late(
    head: &Head,
    keep_alive: Duration,
    answering: impl Future<Output = Result<Response<Body>, Error>> + Send + 'static,
) -> Response<Body> {
    head.sent.store(true, Ordering::Relaxed);
    let (frames, taken) = mpsc::channel(MAX_FRAMES_AHEAD);
    tokio::spawn(wait(keep_alive, answering, frames));
    let mut response = Response::new(received(taken));
    *response.headers_mut() = known_headers(EVENTS, [head.placement, head.reason, head.cache]);
    response
}

async fn wait(
    keep_alive: Duration,
    answering: impl Future<Output = Result<Response<Body>, Error>>,
    frames: mpsc::Sender<Result<Bytes, Cut>>,
) {
    let mut answering = std::pin::pin!(answering);
    let answered = loop {
        let waited = async {
            let _read = frames.send(Ok(Bytes::from_static(sse::COMMENT.as_bytes()))).await;
            tokio::time::sleep(keep_alive).await;
        };
        tokio::select! {
            biased;
            // Dropping what is under way cancels it.
            () = frames.closed() => return,
            answered = &mut answering => break answered,
            () = waited => {}
        }
    };
    let mut body = match answered {
        Ok(response) => response.into_body(),
        Err(error) => return drop(frames.send(Ok(sse::data(&error.reply().body.to_json()))).await),
    };
    loop {
        let frame = tokio::select! {
            biased;
            () = frames.closed() => return,
            frame = body.frame() => frame,
        };
        let bytes = match frame {
            Some(Ok(frame)) => frame.into_data().map_err(|_trailers| Cut),
            Some(Err(cut)) => Err(cut),
            None => return,
        };
        if frames.send(bytes).await.is_err() {
            return;
        }
    }
}

/// What every event goes through.
struct Chain {
    gateway: Arc<Gateway>,
    request: PlannedRequest,
    restoration: Restoration,
    beginning: Beginning,
    exchange: Exchange,
    keep: Option<Kept>,
    going_on: GoingOn,
    deadline: Instant,
}

enum Events {
    Live(EventStream),
    Cached(VecDeque<Value>),
}

impl Events {
    async fn next(&mut self) -> Result<Option<Value>, AttemptError> {
        match self {
            Self::Live(events) => events.next().await,
            Self::Cached(events) => Ok(events.pop_front()),
        }
    }
}

/// Bytes of an answer that are given out at a time.
const PIECE: usize = 256 << 10;
/// Bytes that a pump has made and the connection has not taken.
const MAX_FRAMES_AHEAD: usize = 4;

/// A body that is fed from a task of its own. Nobody polls the body of a client that does not read, so a deadline inside of it
/// would never come; the task holds to it, and ends at once when the client goes away.
fn streamed(chain: Chain, events: Events) -> Body {
    let (frames, taken) = mpsc::channel(MAX_FRAMES_AHEAD);
    tokio::spawn(pump(chain, events, frames));
    received(taken)
}

fn received(taken: mpsc::Receiver<Result<Bytes, Cut>>) -> Body {
    let frames = futures_util::stream::unfold(taken, |mut taken| async move {
        let frame: Result<Bytes, Cut> = taken.recv().await?;
        Some((frame.map(Frame::data), taken))
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn pump(mut chain: Chain, mut events: Events, frames: mpsc::Sender<Result<Bytes, Cut>>) {
    // Room for the word that the answer was cut, whatever else waits.
    let Ok(last_place) = frames.clone().reserve_owned().await else { return };
    loop {
        let (bytes, goes_on) = tokio::select! {
            biased;
            // Dropping the chain drops the upstream's connection, and closes the books.
            () = frames.closed() => return,
            next = chain.next(&mut events) => next,
        };
        match tokio::time::timeout_at(chain.deadline.into(), frames.send(Ok(bytes))).await {
            Ok(Ok(())) if goes_on => {}
            Ok(_) => return,
            Err(_) => {
                let total = chain.deadline.saturating_duration_since(chain.exchange.started);
                let _unread = chain.break_off(&Error::DeadlineExceeded(total));
                last_place.send(Err(Cut));
                return;
            }
        }
    }
}

impl Chain {
    /// The next bytes, and whether more will come.
    async fn next(&mut self, events: &mut Events) -> (Bytes, bool) {
        loop {
            let mut event = match tokio::time::timeout_at(self.deadline.into(), self.from(events)).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return (self.end(), false),
                // Its own words say what to ask for instead.
                Ok(Err(AttemptError::Engine(refusal))) => {
                    return (self.break_off(&Error::EngineRefused(refusal)), false);
                }
                Ok(Err(_told)) => return (self.break_off(&Error::StreamBroken), false),
                Err(_) => {
                    let total = self.deadline.saturating_duration_since(self.exchange.started);
                    return (self.break_off(&Error::DeadlineExceeded(total)), false);
                }
            };
            self.beginning.note(&event);
            if self.beginning.was_gone_on_with() {
                self.beginning.go_on(&mut event);
                self.restoration.take_up(&mut event);
            }
            self.exchange.note_usage(&event);
            match self.event(event) {
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
        let (text, tokens) = self.beginning.cut(self.restoration.forget_held())?;
        let text = text.to_owned();
        // What came from two targets is no answer of either.
        self.keep = None;
        let broken = self.exchange.outcome.target.clone().unwrap_or_default();
        let asked = self.ask_others(&text, tokens, (&broken, error)).await;
        let outcome = &mut self.exchange.outcome;
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => {
                outcome.not_continued = Some(error.code());
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

    /// One event, restored. `None` if there is nothing to show.
    fn event(&mut self, mut event: Value) -> Result<Option<Bytes>, event::Malformed> {
        let masked = self.request.masked();
        let call = &masked.classified().request().call;
        let mut kept = self.keep.is_some().then(|| event.clone());
        self.restoration.chunk(masked.vault(), call.choices(), &mut event, kept.as_mut())?;
        Kept::chunk(&mut self.keep, kept);
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

    /// A whole answer.
    fn whole(&mut self, mut answer: Value) -> Bytes {
        self.exchange.note_usage(&answer);
        let masked = self.request.masked();
        let call = &masked.classified().request().call;
        let mut kept = self.keep.is_some().then(|| answer.clone());
        self.restoration.message(masked.vault(), &mut answer, kept.as_mut());
        Kept::whole(&mut self.keep, masked.vault(), kept);
        let bytes = shape::whole(call, answer);
        self.finish();
        bytes
    }

    fn end(&mut self) -> Bytes {
        let mut bytes = Vec::new();
        if let Some(rest) = self.restoration.rest() {
            bytes.extend_from_slice(&shape::chunk(&self.request.masked().classified().request().call, rest));
        }
        bytes.extend_from_slice(sse::DONE.as_bytes());
        self.finish();
        Bytes::from(bytes)
    }

    /// An event that says so, and no `[DONE]`: an answer that was cut must not look like one that is complete.
    fn break_off(&mut self, error: &Error) -> Bytes {
        self.exchange.outcome.restored = self.restoration.restored();
        self.exchange.broken(error);
        sse::data(&error.reply().body.to_json())
    }

    fn finish(&mut self) {
        self.exchange.outcome.restored = self.restoration.restored();
        if let Some(kept) = self.keep.take().filter(|_| !self.restoration.saw_foreign()) {
            kept.finish(&self.exchange.outcome);
        }
        self.exchange.answered();
    }
}
