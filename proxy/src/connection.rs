//! One authenticated connection: HTTP/1.1 or HTTP/2, and which request goes where.

pub(crate) mod session;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use postern_certs::Trust;
use postern_wire::call::Endpoint;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::session::{DRAIN_TIMEOUT, End, Session};
use crate::enrol::{RENEW_PATH, Registrar};
use crate::error::Error;
use crate::gateway::Gateway;
use crate::open::{self, Form, Opened, Payload};
use crate::pipeline;
use crate::request::{Peer, discard};
use crate::response::{self, Body};
use crate::seal::{self, Sender};
use crate::workers::Spread;

/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// Bytes of all headers of a request.
const MAX_HEADER_BYTES: u32 = 32 << 10;
/// Bytes that wait to be written to one slow reader; beyond it the upstream is not read either.
const MAX_SEND_BUFFER: usize = 256 << 10;
/// How often a silent HTTP/2 client is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(20);

/// For a client to read why its answer ends, before its connection is cut.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// What differs between those who are served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// For a peer to send headers.
    pub(crate) receive: Duration,
    /// Requests at a time on one HTTP/2 connection.
    pub(crate) streams: u32,
}

/// What requests are answered with.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) registrar: Arc<Registrar>,
}

/// Serves one connection until its session ends.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    front: Arc<Front>,
    stream: S,
    session: Arc<Session>,
    trust: watch::Receiver<Arc<Trust>>,
    drain: CancellationToken,
    version: Version,
) {
    let bounds = Bounds { receive: front.gateway.config.limits.receive.0, streams: MAX_STREAMS };
    let sessions = session.clone();
    let watched = trust.clone();
    let service = service_fn(move |request| {
        let (front, session, trust) = (front.clone(), sessions.clone(), watched.clone());
        async move { Ok::<_, Infallible>(handle(&front, &session, trust, request).await) }
    });
    drive(stream, service, &session, (trust, drain), version, bounds).await;
}

/// Serves one connection with `service` until its session ends.
pub(crate) async fn drive<S, H, B>(
    stream: S,
    service: H,
    session: &Session,
    (mut trust, drain): (watch::Receiver<Arc<Trust>>, CancellationToken),
    version: Version,
    bounds: Bounds,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    H::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // As agreed in the handshake. Waiting to see what comes first would be a wait without a bound.
    let http = auto::Builder::new(Spread);
    let mut http = if version == Version::HTTP_2 { http.http2_only() } else { http.http1_only() };
    http.http1().timer(TokioTimer::new()).header_read_timeout(bounds.receive).max_buf_size(MAX_SEND_BUFFER);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let end = tokio::select! {
        ended = connection.as_mut() => return note(ended),
        end = session.end(&mut trust, &drain) => end,
    };
    let code = match end {
        End::Now(code) => code,
        End::Soon => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => return note(ended),
                code = session.end_now(&mut trust) => code,
            }
        }
    };
    // Dropping the connection cuts it, and what is dropped with it asks why.
    session.set_cut(code);
    if code == DRAIN_TIMEOUT {
        session.ask_last_words();
        if let Ok(ended) = tokio::time::timeout(LAST_WORDS_WITHIN, connection).await {
            return note(ended);
        }
    }
    tracing::info!(code, "a connection was cut");
}

fn note(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

async fn handle(
    front: &Front,
    session: &Arc<Session>,
    trust: watch::Receiver<Arc<Trust>>,
    request: Request<Incoming>,
) -> Response<Body> {
    if !session.is_current() {
        return response::error(&Error::ConnectionExpired);
    }
    if *request.method() == Method::GET && [open::GATEWAY, open::HPKE_KEYS].contains(&request.uri().path()) {
        return payload_keys(front, request.uri().path() == open::HPKE_KEYS);
    }
    if let Some(copy) = front.gateway.copies.asked(session, request.uri().path()) {
        return copy.answer(&front.gateway, request).await;
    }
    match Form::of(&request) {
        Ok(None) => route(front, session, request.map(Payload::Plain)).await,
        Ok(Some(form)) => sealed(front, session, trust, form, request).await,
        Err(error) => {
            discard(request.into_body()).await;
            pipeline::refuse(&front.gateway, session, None, &error).await
        }
    }
}

/// Opens a request, and seals whatever its response is.
async fn sealed(
    front: &Front,
    session: &Arc<Session>,
    trust: watch::Receiver<Arc<Trust>>,
    form: Form,
    request: Request<Incoming>,
) -> Response<Body> {
    let (gateway, now) = (&front.gateway, trust.borrow().clone());
    match open::open(gateway, &now, session, form, request).await {
        Ok(Opened { request, session: sender, exchange }) => {
            gateway.metrics.payload(form.word(), "opened");
            let response = match request {
                Ok(request) => route(front, &sender, request).await,
                Err(error) => pipeline::refuse(gateway, &sender, Some(form.word()), &error).await,
            };
            let sender = sender.relay().is_some().then_some(Sender { session: sender, trust });
            seal::seal(form, &exchange, response, sender, &gateway.sealed_whole).await
        }
        Err(error) => {
            gateway.metrics.payload(form.word(), error.code());
            pipeline::refuse(gateway, session, Some(form.word()), &error).await
        }
    }
}

fn payload_keys(front: &Front, alone: bool) -> Response<Body> {
    let (gateway, current) = (&front.gateway, front.registrar.certificate().current());
    gateway
        .payload_keys
        .published(alone, &gateway.config.gateway_id(), (current.signatory(), current.not_after))
        .unwrap_or_else(|error| {
            tracing::error!(%error, "the payload keys cannot be signed");
            response::error(&Error::AuthorityUnavailable)
        })
}

/// Answers a request that is in clear by now.
async fn route(front: &Front, session: &Arc<Session>, request: Request<Payload>) -> Response<Body> {
    if request.uri().path() == RENEW_PATH {
        return match *request.method() {
            Method::POST => front.registrar.renew(session, request).await,
            _ => response::error(&Error::Method("POST")),
        };
    }
    let gateway = &front.gateway;
    // Rules are looked up for each request, not for each connection: a change takes hold at once.
    let peer = match Peer::resolve(&gateway.config, &session.peer.id) {
        Ok(peer) => peer,
        Err(error) => {
            let sealed = request.body().form();
            if let Payload::Plain(body) | Payload::Inside(body) = request.into_body() {
                discard(body).await;
            }
            return pipeline::refuse(gateway, session, sealed, &error).await;
        }
    };
    if let Some(endpoint) = Endpoint::of(request.uri().path()) {
        return match *request.method() {
            Method::POST => pipeline::call(gateway, session, peer, endpoint, request).await,
            _ => response::error(&Error::Method("POST")),
        };
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/models") => models(gateway),
        (&Method::GET, path) => match path.strip_prefix("/v1/models/") {
            Some(name) => model(gateway, name),
            None => response::error(&Error::NotFound),
        },
        (_, path) if path.starts_with("/v1/models") => response::error(&Error::Method("GET")),
        _ => response::error(&Error::NotFound),
    }
}

fn models(gateway: &Gateway) -> Response<Body> {
    let data: Vec<Value> = model_names(gateway).into_iter().map(described).collect();
    json(&json!({"object": "list", "data": data}))
}

fn model(gateway: &Gateway, name: &str) -> Response<Body> {
    if model_names(gateway).contains(name) { json(&described(name)) } else { response::error(&Error::ModelUnknown) }
}

fn model_names(gateway: &Gateway) -> BTreeSet<&str> {
    gateway.config.model_names(gateway.dispatcher.offline().is_cancelled())
}

fn described(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "postern"})
}

fn json(body: &Value) -> Response<Body> {
    let mut response = Response::new(response::full(Bytes::from(body.to_string())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
