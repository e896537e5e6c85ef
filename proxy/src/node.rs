//! An engine on a machine of its own (`postern engine --listen`): mutual TLS with the gateway it serves, and nobody else.
//!
//! Who may come in is decided in the handshake, by [`identity`]; what the engine is asked is the engine's own API. On whose
//! behalf a request comes is believed of gateways alone, so that nothing is shared on the word of somebody else.

pub(crate) mod identity;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use postern_certs::verify;
use postern_engine::ORIGIN_HEADERS;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use self::identity::Identity;
use crate::connection::session::{self, Session};
use crate::connection::{self, Bounds};
use crate::error::Error;
use crate::listener::places::{Place, Places};
use crate::listener::{self, HANDSHAKES, HANDSHAKES_PER_ADDRESS, handshake};
use crate::open::keys::PayloadKeys;
use crate::open::{self, Form};
use crate::response;
use crate::seal;

/// Connections at a time. A gateway needs one, and one more while a certificate is replaced.
const CONNECTIONS: usize = 1024;
/// Per connection. All requests together are bounded by [`Node::new`].
const BOUNDS: Bounds = Bounds { receive: Duration::from_secs(20), streams: 1024 };
/// Bounds of a sealed request, as the engine has them of any.
const LIMITS: open::Limits = open::Limits { body: 8 << 20, receive: Duration::from_secs(30) };
/// Answers at a time that are sealed as a whole. The gateway asks for none.
const SEALED_WHOLE: usize = 2;
/// Requests beyond those that the engine has places for: being read, or about to be refused by it with a time to come again.
const ARRIVING: usize = 64;
/// For answers under way when it is asked to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(605);
/// How often the same reason is told.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What connections share.
#[derive(Debug)]
pub(crate) struct Node {
    identity: Arc<Identity>,
    router: Router,
    requests: Arc<Semaphore>,
    payload_keys: PayloadKeys,
    sealed_whole: Arc<Semaphore>,
    refused: Mutex<HashMap<&'static str, Instant>>,
}

impl Node {
    /// `places` is how many requests the engine runs or keeps waiting.
    pub(crate) fn new(identity: Arc<Identity>, router: Router, places: usize) -> Arc<Self> {
        let requests = Arc::new(Semaphore::new(places.saturating_add(ARRIVING).min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            identity,
            router,
            requests,
            payload_keys: PayloadKeys::default(),
            sealed_whole: Arc::new(Semaphore::new(SEALED_WHOLE)),
            refused: Mutex::default(),
        })
    }

    /// Serves until `drain`, and then lets answers under way end.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, drain: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let handshakes = Places::new(HANDSHAKES, HANDSHAKES_PER_ADDRESS);
        let connections = TaskTracker::new();
        let node = self.clone();
        let keeping = tokio::spawn(async move { node.payload_keys.keep_up().await });
        while let Some((stream, address)) = listener::next(&listener, &drain).await {
            let Some(place) = handshakes.take(address.ip()) else {
                self.tell("too_many", "too many handshakes are under way", address);
                continue;
            };
            connections.spawn(self.clone().greet((stream, address), place, places.clone(), drain.clone()));
        }
        keeping.abort();
        // Whoever comes now is refused, so that the gateway asks another target at once.
        drop(listener);
        connections.close();
        if tokio::time::timeout(DRAIN_WITHIN, connections.wait()).await.is_err() {
            tracing::warn!("answers were cut off, since the time to end is over");
        }
    }

    async fn greet(
        self: Arc<Self>,
        (stream, address): (TcpStream, SocketAddr),
        handshake_place: Place,
        places: Arc<Semaphore>,
        drain: CancellationToken,
    ) {
        // Before the handshake, so that no change of trust is missed between it and the first request.
        let (trust, current) = (self.identity.trust(), self.identity.current());
        if !current.is_valid() {
            return self.tell("own_certificate_expired", "this node's own certificate has ended", address);
        }
        let stream = match handshake(current.tls.clone(), stream).await {
            Ok(stream) => stream,
            Err((reason, error)) => return self.tell(reason, &error, address),
        };
        drop(handshake_place);
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(Ok(peer)) = leaf.map(verify::peer) else {
            // The verifier has looked at all of it already.
            return self.tell("no_identity", "its certificate names nobody", address);
        };
        let Ok(_place) = places.try_acquire_owned() else {
            return self.tell("full", "as many connections as there may be are open", address);
        };
        tracing::info!(id = %peer.id, %address, "connected");
        let version =
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") { Version::HTTP_2 } else { Version::HTTP_11 };
        let session = Arc::new(Session::with(peer, current.not_after, session::NODE));
        let (node, asking) = (self.clone(), session.clone());
        let service = service_fn(move |request| {
            let (node, session) = (node.clone(), asking.clone());
            async move { Ok::<_, Infallible>(node.answer(&session, request).await) }
        });
        // Either is a reason to end softly: a new leaf is shown to those who connect anew.
        let ending = current.replaced.child_token();
        let both = ending.clone();
        let either = async {
            drain.cancelled().await;
            both.cancel();
            std::future::pending().await
        };
        tokio::select! {
            () = connection::drive(stream, service, &session, (trust, ending), version, BOUNDS) => {}
            () = either => {}
        }
    }

    async fn answer(&self, session: &Session, request: Request<Incoming>) -> Response<Body> {
        if !session.is_current() {
            return refuse(&Error::ConnectionExpired);
        }
        if *request.method() == Method::GET && request.uri().path() == open::GATEWAY {
            let (own, current) = (self.identity.own().to_string(), self.identity.current());
            let keys = self.payload_keys.published(false, &own, (&current.signatory, current.not_after));
            return keys.map_or_else(|_| refuse(&Error::AuthorityUnavailable), |keys| keys.map(Body::new));
        }
        match Form::of(&request) {
            Ok(None) => self.route(session, request.map(Body::new)).await,
            Ok(Some(form)) => self.sealed(session, form, request).await,
            Err(error) => refuse(&error),
        }
    }

    /// Opens a request, and seals whatever its response is.
    async fn sealed(&self, session: &Session, form: Form, request: Request<Incoming>) -> Response<Body> {
        // What is being read is bounded as what is being answered is.
        let Ok(reading) = self.requests.clone().try_acquire_owned() else { return refuse(&Error::Busy) };
        let trust = self.identity.trust().borrow().clone();
        let whose = (&trust, self.identity.own());
        match open::open_directly(&self.payload_keys, whose, &session.peer.id, form, request, LIMITS).await {
            Ok((request, exchange)) => {
                drop(reading);
                let response = self.route(session, request.map(Body::from)).await;
                let response = response.map(|body| body.map_err(|_| response::Cut).boxed_unsync());
                seal::seal(form, &exchange, response, None, &self.sealed_whole).await.map(Body::new)
            }
            Err(error) => refuse(&error),
        }
    }

    async fn route(&self, session: &Session, mut request: Request<Body>) -> Response<Body> {
        if !session.peer.id.is_gateway() {
            take_away_origin(request.headers_mut());
        }
        let place = match *request.method() {
            Method::POST => match self.requests.clone().try_acquire_owned() {
                Ok(place) => Some(place),
                Err(_) => return refuse(&Error::Busy),
            },
            // Health, state and metrics are small, and wanted most when there is much to do.
            _ => None,
        };
        let Ok(response) = self.router.clone().call(request).await;
        // The place is free again when the last byte of the answer is out.
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &place;
                frame
            }))
        })
    }

    /// Says why somebody did not come in; each reason once a minute, since strangers decide how often.
    fn tell(&self, reason: &'static str, error: &str, address: SocketAddr) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.get(reason).is_none_or(|told| told.elapsed() > TELL_EVERY) {
            refused.insert(reason, Instant::now());
            tracing::warn!(reason, error, %address, "a connection was refused");
        }
    }
}

/// Nobody but a gateway may say on whose behalf it asks: with the name of another's tenant, anybody could tell from the time
/// to the first token what was asked before.
fn take_away_origin(headers: &mut HeaderMap) {
    for name in ORIGIN_HEADERS {
        headers.remove(name);
    }
}

fn refuse(error: &Error) -> Response<Body> {
    response::error(error).map(Body::new)
}

#[cfg(test)]
mod tests;
