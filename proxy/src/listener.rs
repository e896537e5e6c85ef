//! Accepts connections, proves who is there, and hands them on. Bounded in number and in the time of a handshake.

pub(crate) mod places;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use postern_certs::verify;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::session::Session;
use crate::connection::{self, Front};
use crate::listener::places::{Place, Places};
use crate::telemetry::metrics::Metrics;
use crate::tls::{Certificate, Current};
use crate::workers::{Crew, Post};

/// For a whole handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes at a time. Nobody is known before its end, so these places are not those of clients that are in.
pub(crate) const HANDSHAKES: usize = 1024;
/// Handshakes at a time from one address: one that only opens connections cannot take all places.
pub(crate) const HANDSHAKES_PER_ADDRESS: usize = 128;
/// After an error of accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `drain` is cancelled; every connection is then a task of `connections` on one of the `workers`, ending by itself.
pub(crate) async fn serve(
    front: Arc<Front>,
    certificate: Arc<Certificate>,
    listener: TcpListener,
    drain: CancellationToken,
    (connections, workers): (TaskTracker, Arc<Crew>),
) {
    let places = Arc::new(Semaphore::new(front.gateway.config.limits.connections));
    let handshakes = Places::new(HANDSHAKES, HANDSHAKES_PER_ADDRESS);
    while let Some((stream, address)) = next(&listener, &drain).await {
        // Full: the connection is closed at once, which costs the client less than waiting would.
        let Some(handshake) = handshakes.take(address.ip()) else {
            front.gateway.metrics.handshake_failed("too_many");
            continue;
        };
        // What is left behind here is the runtime that it was accepted on.
        let Ok(stream) = stream.into_std() else { continue };
        let post = workers.post();
        let worker = post.handle();
        let guest = Guest { stream, handshake, places: places.clone(), _post: post };
        connections.spawn_on(greet(front.clone(), certificate.clone(), guest, drain.clone()), &worker);
    }
}

/// The next one to connect; `None` when it is time to end.
pub(crate) async fn next(listener: &TcpListener, drain: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Who has connected and not yet said who it is.
struct Guest {
    stream: std::net::TcpStream,
    handshake: Place,
    places: Arc<Semaphore>,
    _post: Post,
}

async fn greet(
    front: Arc<Front>,
    certificate: Arc<Certificate>,
    Guest { stream, handshake, places, _post }: Guest,
    drain: CancellationToken,
) {
    // Before the handshake, so that no change of trust is missed between it and the first request.
    let trust = certificate.trust();
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let Some((stream, session)) = shake_hands(&front.gateway.metrics, &certificate.current(), stream).await else {
        return;
    };
    drop(handshake);
    let Ok(_place) = places.try_acquire_owned() else {
        front.gateway.metrics.handshake_failed("full");
        return tracing::debug!("`limits.connections` is reached; a client was turned away");
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    connection::serve(front, stream, Arc::new(session), trust, drain, version).await;
}

/// Mutual TLS; `None` if the client may not come in, which is counted.
pub(crate) async fn shake_hands(
    metrics: &Metrics,
    current: &Current,
    stream: TcpStream,
) -> Option<(TlsStream<TcpStream>, Session)> {
    if !current.is_valid() {
        metrics.handshake_failed("own_certificate_expired");
        return None;
    }
    let stream = anonymous_handshake(metrics, current.tls.clone(), stream).await?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match leaf.map(verify::peer) {
        Some(Ok(peer)) => Some((stream, Session::new(peer, current.not_after))),
        // The verifier has looked at all of it already.
        _ => {
            metrics.handshake_failed("no_identity");
            None
        }
    }
}

/// TLS with whatever client certificate `tls` asks for.
pub(crate) async fn anonymous_handshake(
    metrics: &Metrics,
    tls: Arc<ServerConfig>,
    stream: TcpStream,
) -> Option<TlsStream<TcpStream>> {
    match handshake(tls, stream).await {
        Ok(stream) => Some(stream),
        Err((reason, error)) => {
            metrics.handshake_failed(reason);
            tracing::debug!(error, reason, "a handshake failed");
            None
        }
    }
}

/// The same for whoever counts himself: the error is a fixed word, and what is to be said of it.
pub(crate) async fn handshake(
    tls: Arc<ServerConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, (&'static str, String)> {
    // Small writes (one token) must not wait for an acknowledgement of the last.
    let _best_effort = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_WITHIN, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err((reason(&error), in_words(&error))),
        Err(_) => Err(("timeout", format!("it took longer than {} s", HANDSHAKE_WITHIN.as_secs()))),
    }
}

fn in_words(error: &std::io::Error) -> String {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    tls.map_or_else(|| error.to_string(), postern_certs::refusal::in_words)
}

/// A fixed word for why a client could not connect.
fn reason(error: &std::io::Error) -> &'static str {
    use rustls::Error as E;
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<E>()) else { return "other" };
    if let Some(reason) = postern_certs::Reason::of_handshake(error) {
        return reason.word();
    }
    match error {
        E::NoCertificatesPresented => "no_certificate",
        E::PeerIncompatible(_) => "version",
        E::AlertReceived(_) => "refused_by_client",
        _ => "other",
    }
}
