//! An engine on a machine of its own (`postern engine --listen`): mutual TLS with the gateway it serves, and nobody else.
//!
//! Who may come in is decided in the handshake, by [`identity`]; what the engine is asked is the engine's own API. On whose
//! behalf a request comes is believed of gateways alone, so that nothing is shared on the word of somebody else.
//!
//! Where a middlebox breaks TLS open on the way, the connection is a relay's: it brings what others have sealed and signed, and the node takes it
//! as theirs. Of its own it may ask for nothing but health.

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
use postern_certs::{Reason, verify};
use postern_engine::ORIGIN_HEADERS;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
use crate::open::{self, Form, OpenedAtNode, Senders};
use crate::request::discard;
use crate::response;
use crate::seal::{self, Sender};

/// Connections at a time. A gateway needs one, and one more while a certificate is replaced.
const CONNECTIONS: usize = 1024;
/// The part of connections, and of requests that are being read, that relays may have: whose requests they are is not known yet.
const CARRIED_SHARE: usize = 4;
/// What a relay may ask for itself, in clear.
const OPEN_TO_RELAYS: [&str; 2] = ["/livez", "/metrics"];
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
    connections: Arc<Semaphore>,
    relay_connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// For what relays bring, while it is being read.
    carried: Arc<Semaphore>,
    payload_keys: PayloadKeys,
    sealed_whole: Arc<Semaphore>,
    refused: Mutex<HashMap<&'static str, Instant>>,
}

impl Node {
    /// `places` is how many requests the engine runs or keeps waiting.
    pub(crate) fn new(identity: Arc<Identity>, router: Router, places: usize) -> Arc<Self> {
        let requests = places.saturating_add(ARRIVING).min(Semaphore::MAX_PERMITS);
        let places = |places| Arc::new(Semaphore::new(places));
        Arc::new(Self {
            identity,
            router,
            connections: places(CONNECTIONS),
            relay_connections: places(CONNECTIONS / CARRIED_SHARE),
            requests: places(requests),
            carried: places(requests / CARRIED_SHARE),
            payload_keys: PayloadKeys::default(),
            sealed_whole: places(SEALED_WHOLE),
            refused: Mutex::default(),
        })
    }

    /// Serves until `drain`, and then lets answers under way end.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, drain: CancellationToken) {
        let handshakes = Places::new(HANDSHAKES, HANDSHAKES_PER_ADDRESS);
        let connections = TaskTracker::new();
        let node = self.clone();
        let keeping = tokio::spawn(async move { node.payload_keys.keep_up().await });
        while let Some((stream, address)) = listener::next(&listener, &drain).await {
            let Some(place) = handshakes.take(address.ip()) else {
                self.tell("too_many", "too many handshakes are under way", address);
                continue;
            };
            connections.spawn(self.clone().greet((stream, address), place, drain.clone()));
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
        drain: CancellationToken,
    ) {
        // Before the handshake, so that no change of trust is missed between it and the first request.
        let (trust, current) = (self.identity.trust(), self.identity.current());
        if !current.is_valid() {
            return self.tell("own_certificate_expired", "this node's own certificate has ended", address);
        }
        let stream = match handshake(current.tls.clone(), stream).await {
            Ok(stream) => stream,
            Err((reason, error)) => return self.tell(reason, &with_advice(reason, error), address),
        };
        drop(handshake_place);
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(Ok(peer)) = leaf.map(verify::peer) else {
            // The verifier has looked at all of it already.
            return self.tell("no_identity", "its certificate names nobody", address);
        };
        let is_relay = self.identity.is_relay(&peer.id);
        let Some(_place) = self.connection_place(is_relay) else {
            return self.tell("full", "as many connections as there may be are open", address);
        };
        tracing::info!(id = %peer.id, %address, is_relay, "connected");
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

    /// Of all connections, and if it is a relay's of those of relays.
    fn connection_place(&self, is_relay: bool) -> Option<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)> {
        let place = self.connections.clone().try_acquire_owned().ok()?;
        let among_relays = is_relay.then(|| self.relay_connections.clone().try_acquire_owned()).transpose().ok()?;
        Some((place, among_relays))
    }

    async fn answer(&self, session: &Arc<Session>, request: Request<Incoming>) -> Response<Body> {
        if !session.is_current() {
            return refuse(&Error::ConnectionExpired);
        }
        if *request.method() == Method::GET && request.uri().path() == open::GATEWAY {
            let (own, current) = (self.identity.own().to_string(), self.identity.current());
            let keys = self.payload_keys.published(false, &own, (&current.signatory, current.not_after));
            return keys.map_or_else(|_| refuse(&Error::AuthorityUnavailable), |keys| keys.map(Body::new));
        }
        match Form::of(&request) {
            Ok(None) if self.identity.is_relay(&session.peer.id) && !is_open_to_relays(&request) => {
                discard(request.into_body()).await;
                refuse(&Error::CarriedInClear)
            }
            Ok(None) => self.route(session, request.map(Body::new)).await,
            Ok(Some(form)) => self.sealed(session, form, request).await,
            Err(error) => refuse(&error),
        }
    }

    /// Opens a request, and seals whatever its response is.
    async fn sealed(&self, session: &Arc<Session>, form: Form, request: Request<Incoming>) -> Response<Body> {
        let is_relay = self.identity.is_relay(&session.peer.id);
        let Some(reading) = self.reading_place(is_relay) else { return refuse(&Error::Busy) };
        let senders =
            if is_relay { Senders::Carried(self.identity.allowed()) } else { Senders::Peer(&session.peer.id) };
        let trust = self.identity.trust().borrow().clone();
        let whose = (&trust, self.identity.own());
        let opened = open::open_at_node(&self.payload_keys, whose, senders, form, request, LIMITS).await;
        let OpenedAtNode { request, carried, exchange } = match opened {
            Ok(opened) => opened,
            Err(error) => return refuse(&error),
        };
        drop(reading);
        // From here on it is under the name of whoever signed it.
        let sender = carried.map(|peer| Arc::new(Session::carried(peer, session)));
        let response = self.route(sender.as_ref().unwrap_or(session), request.map(Body::from)).await;
        let response = response.map(|body| body.map_err(|_| response::Cut).boxed_unsync());
        let sender = sender.map(|session| Sender { session, trust: self.identity.trust() });
        seal::seal(form, &exchange, response, sender, &self.sealed_whole).await.map(Body::new)
    }

    /// What is being read is bounded as what is being answered is.
    fn reading_place(&self, is_relay: bool) -> Option<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)> {
        let among_carried = is_relay.then(|| self.carried.clone().try_acquire_owned()).transpose().ok()?;
        Some((self.requests.clone().try_acquire_owned().ok()?, among_carried))
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

/// Whom this node does not know it was perhaps not told of.
fn with_advice(reason: &str, error: String) -> String {
    if reason != Reason::NotAllowed.word() {
        return error;
    }
    format!("{error}; a middlebox is named with `--relay`, and who may ask instead of the gateway with `--allow`")
}

fn is_open_to_relays<B>(request: &Request<B>) -> bool {
    *request.method() == Method::GET && OPEN_TO_RELAYS.contains(&request.uri().path())
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
