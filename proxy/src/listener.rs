//! Accepts connections, proves who is there, and hands them on. Bounded in number and in the time of a handshake.

mod handshakes;

use std::sync::Arc;
use std::time::Duration;

use http::Version;
use postern_certs::{Clock as _, SpiffeId, SystemClock, verify};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection;
use crate::gateway::Gateway;
use crate::listener::handshakes::{Handshake, Handshakes};
use crate::tls::Certificate;

/// For a whole handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes at a time. Nobody is known before its end, so these places are not those of clients that are in.
const HANDSHAKES: usize = 1024;
/// Handshakes at a time from one address: one that only opens connections cannot take all places.
const HANDSHAKES_PER_ADDRESS: usize = 128;
/// After an error of accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);
/// No connection lives longer, so that load moves and rules take hold.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Serves until `drain` is cancelled; every connection is then a task of `connections`, ending by itself.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    certificate: Arc<Certificate>,
    listener: TcpListener,
    drain: CancellationToken,
    connections: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(gateway.config.limits.connections));
    let handshakes = Handshakes::new(HANDSHAKES, HANDSHAKES_PER_ADDRESS);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Full: the connection is closed at once, which costs the client less than waiting would.
        let Some(handshake) = handshakes.begin(address.ip()) else {
            gateway.metrics.handshake_failed("too_many");
            continue;
        };
        let guest = Guest { stream, handshake, places: places.clone() };
        connections.spawn(greet(gateway.clone(), certificate.clone(), guest, drain.clone()));
    }
}

/// Who has connected and not yet said who it is.
struct Guest {
    stream: TcpStream,
    handshake: Handshake,
    places: Arc<Semaphore>,
}

async fn greet(
    gateway: Arc<Gateway>,
    certificate: Arc<Certificate>,
    Guest { stream, handshake, places }: Guest,
    drain: CancellationToken,
) {
    // Small writes (one token) must not wait for an acknowledgement of the last.
    let _best_effort = stream.set_nodelay(true);
    let current = certificate.current();
    let acceptor = TlsAcceptor::from(current.tls.clone());
    let stream = match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let reason = reason(&error);
            gateway.metrics.handshake_failed(reason);
            return tracing::debug!(%error, reason, "a handshake failed");
        }
        Err(_) => {
            gateway.metrics.handshake_failed("timeout");
            return tracing::debug!("a handshake took too long");
        }
    };
    drop(handshake);
    let Ok(_place) = places.try_acquire_owned() else {
        gateway.metrics.handshake_failed("full");
        return tracing::debug!("`limits.connections` is reached; a client was turned away");
    };
    let (id, not_after) = match peer(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            gateway.metrics.handshake_failed("no_identity");
            return tracing::info!(%error, "a client's certificate names no identity");
        }
    };
    let now = SystemClock.now();
    let until = not_after.min(current.not_after);
    let life = Duration::try_from(until - now).unwrap_or_default().min(MAX_AGE);
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    connection::serve(gateway, stream, id, life, drain, version).await;
}

/// A fixed word for why a client could not connect.
fn reason(error: &std::io::Error) -> &'static str {
    use rustls::{CertificateError as C, Error as E};
    match error.get_ref().and_then(|error| error.downcast_ref::<E>()) {
        Some(E::NoCertificatesPresented) => "no_certificate",
        Some(E::InvalidCertificate(C::Expired | C::ExpiredContext { .. })) => "expired",
        Some(E::InvalidCertificate(C::UnknownIssuer)) => "unknown_authority",
        Some(E::InvalidCertificate(_)) => "certificate",
        Some(E::PeerIncompatible(_)) => "version",
        Some(E::AlertReceived(_)) => "refused_by_client",
        _ => "other",
    }
}

fn peer(stream: &TlsStream<TcpStream>) -> Result<(SpiffeId, OffsetDateTime), String> {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first).ok_or("no certificate")?;
    let id = verify::peer_id(leaf).map_err(|error| error.to_string())?;
    let (_, not_after) = verify::validity(leaf).map_err(|error| error.to_string())?;
    Ok((id, not_after))
}
