//! Connections to a node of our own: an engine on another machine, which proves to be exactly the one that the configuration
//! names, and lets in nobody but the gateway.
//!
//! Where somebody on the way may break TLS open (`ca`), the connection is with him: what proves the node is what it signs and seals
//! ([`super::sealed`]), for each answer.
//!
//! Each leaf and each change of trust has connections of its own. What was connected with the one before takes no new request;
//! what is under way there ends by itself, unless a leaf ends or is revoked meanwhile: then it is cut.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use postern_certs::verify::{self, Peer};
use postern_certs::{CertsError, SpiffeId};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use tower_service::Service;

use super::complaints::{Complaints, in_words};
use super::lifetime::Lifetime;
use super::pools::{Connecting, Pools};
use super::sealed::{Answer, Ends, NodeKey, Unsealed};
use super::{Bounded, ConnectError, SendError, tcp};
use crate::tls::{Certificate, Current};

/// How often a silent connection is asked whether the node is still there.
const PING_EVERY: Duration = Duration::from_secs(20);

type Requests = Pools<Watched>;

/// Whom a node must prove to be, and how.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) identity: SpiffeId,
    /// What it is asked is sealed.
    pub(super) is_sealed: bool,
    /// Authorities of a middlebox that breaks TLS open on the way. Then it is sealed in any case.
    pub(super) middlebox: Option<Arc<RootCertStore>>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    proof: Proof,
    certificate: Arc<Certificate>,
    connect_within: Duration,
    held: ArcSwapOption<Held>,
    complaints: Complaints,
}

/// Connections that were made with one leaf and one trust.
#[derive(Debug)]
struct Held {
    with: Arc<Current>,
    requests: Requests,
    key: Arc<NodeKey>,
    renew_at: RenewAt,
}

/// When connections with a middlebox are to be replaced: it may not do so itself before its certificate ends.
#[derive(Debug, Clone, Default)]
struct RenewAt(Arc<Mutex<Option<Instant>>>);

impl RenewAt {
    fn at_the_latest(&self, at: Instant) {
        let mut earliest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *earliest = Some(earliest.map_or(at, |before| before.min(at)));
    }

    fn is_due(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at <= Instant::now())
    }
}

impl Node {
    /// Connects to nothing yet.
    pub(super) fn new(target: String, proof: Proof, certificate: Arc<Certificate>, connect_within: Duration) -> Self {
        let what = format!("the node of our own {} cannot be used", proof.identity);
        Self::named(target, what, proof, certificate, connect_within)
    }

    /// The same, where it is called something else: `what` is wrong, for the log, when it cannot be used.
    pub(super) fn named(
        target: String,
        what: String,
        proof: Proof,
        certificate: Arc<Certificate>,
        connect_within: Duration,
    ) -> Self {
        let complaints = Complaints::of(target, what);
        Self { proof, certificate, connect_within, held: ArcSwapOption::empty(), complaints }
    }

    /// Says what is wrong with it, each reason once a minute.
    pub(super) fn complain(&self, why: &str) {
        self.complaints.tell(why);
    }

    pub(super) async fn request(&self, request: Request<Bytes>) -> Result<Response<Answer>, SendError> {
        let current = self.certificate.current();
        if !current.is_valid() {
            self.complaints.tell("the gateway's own certificate has ended");
            return Err(SendError::Connect);
        }
        let held = self.held(&current).map_err(|error| {
            self.complaints.tell(&error.to_string());
            SendError::Connect
        })?;
        let is_through = self.proof.middlebox.is_some();
        let broken = |error| {
            self.complaints.tell(&with_advice(in_words(&error), is_through));
            SendError::from(error)
        };
        // A page of metrics holds nothing of anybody. A middlebox can make the node look busy or idle with it, and no more.
        if request.method() == Method::GET || !self.proof.is_sealed && !is_through {
            return held.requests.request(request).await.map(|response| response.map(Answer::Plain)).map_err(broken);
        }
        let through = is_through.then_some(&*self.certificate);
        let ends =
            Ends { requests: &held.requests, own: &held.with, node: &self.proof.identity, key: &held.key, through };
        ends.ask(request).await.map_err(|why| match why {
            Unsealed::Sending(error) => broken(error),
            Unsealed::Refused(why) => {
                self.complaints.tell(&why);
                SendError::Connect
            }
        })
    }

    fn held(&self, current: &Arc<Current>) -> Result<Arc<Held>, CertsError> {
        let before = self.held.load_full().filter(|held| Arc::ptr_eq(&held.with, current));
        if let Some(held) = before.as_ref().filter(|held| !held.renew_at.is_due()) {
            return Ok(held.clone());
        }
        let identity = self.proof.identity.clone();
        let tls = match &self.proof.middlebox {
            None => current.towards(identity.clone())?,
            Some(authorities) => current.through(authorities.clone(), identity.clone())?,
        };
        let mut tls = rustls::ClientConfig::clone(&*tls);
        // The builder of the connector says itself what is offered.
        tls.alpn_protocols.clear();
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_all_versions().wrap_connector(tcp());
        let inner = Bounded { inner: https, within: self.connect_within };
        let renew_at = RenewAt::default();
        let through = self.proof.middlebox.is_some().then(|| (identity, renew_at.clone()));
        let connector = Watched { inner, certificate: self.certificate.clone(), with: current.clone(), through };
        let requests = Pools::new(connector, Some(PING_EVERY));
        let key = before.map(|before| before.key.clone()).unwrap_or_default();
        let held = Arc::new(Held { with: current.clone(), requests, key, renew_at });
        self.held.store(Some(held.clone()));
        Ok(held)
    }
}

/// What TLS and HTTP say, and what somebody may have to do about it. `is_through`: a middlebox is expected on the way.
fn with_advice(words: String, is_through: bool) -> String {
    /// What a connection ends with whose other side does not accept the certificate that it was shown.
    const CLOSED: [&str; 9] = [
        "broken pipe",
        "connection closed",
        "connection reset",
        "channel closed",
        "eof",
        "alert: accessdenied",
        "alert: badcertificate",
        "alert: certificateunknown",
        "alert: unknownca",
    ];
    let small = words.to_ascii_lowercase();
    if !is_through && small.contains("unknownissuer") {
        return format!("{words}; a middlebox on the way? Name its authority as `openai.ca`");
    }
    if !CLOSED.iter().any(|end| small.contains(end)) {
        return words;
    }
    let who =
        if is_through { "a middlebox's certificate (`--relay`?)" } else { "the gateway's certificate (`--allow`?)" };
    format!("{words}; it closed at once, as happens where the node does not accept {who}")
}

/// A connector whose connections end with the leaf of either side, and when the node's is revoked.
#[derive(Debug, Clone)]
struct Watched {
    inner: Bounded,
    certificate: Arc<Certificate>,
    with: Arc<Current>,
    /// The other side may be a middlebox before this node.
    through: Option<(SpiffeId, RenewAt)>,
}

/// Whose connection it is. A middlebox is nobody whom we could revoke: who the node is, and whether it still may be, is asked of each answer.
fn peer_of(leaf: &CertificateDer<'_>, through: Option<&(SpiffeId, RenewAt)>) -> Result<Peer, CertsError> {
    match through {
        None => verify::peer(leaf),
        Some((node, _)) => Ok(Peer::inside(node.clone(), verify::validity(leaf)?.1)),
    }
}

impl Service<Uri> for Watched {
    type Response = Guarded;
    type Error = ConnectError;
    type Future = Connecting<Guarded>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // Before the handshake, so that no change of trust is missed.
        let trust = self.certificate.trust();
        let (connecting, own_end, through) = (self.inner.call(uri), self.with.not_after, self.through.clone());
        Box::pin(async move {
            let stream = connecting.await?;
            let leaf = match &stream {
                MaybeHttpsStream::Https(tls) => tls.inner().get_ref().1.peer_certificates().and_then(<[_]>::first),
                MaybeHttpsStream::Http(_) => None,
            };
            let peer = peer_of(leaf.ok_or("the node showed no certificate")?, through.as_ref())?;
            let lifetime = Lifetime::new(peer, own_end, trust);
            if let Some((_, renew_at)) = through {
                renew_at.at_the_latest(lifetime.soft_end());
            }
            Ok(Guarded { stream, lifetime })
        })
    }
}

/// A connection to a node, as long as both leaves are good.
struct Guarded {
    stream: <Bounded as Service<Uri>>::Response,
    lifetime: Lifetime,
}

impl Read for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.lifetime.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Only reads wait for the end, since one is always under way.
        self.lifetime.check_now()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lifetime.check_now()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

impl Connection for Guarded {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_can_mend_is_said_with_how() {
        let said = |words: &str, is_through| with_advice(words.to_owned(), is_through);
        assert!(said("invalid peer certificate: UnknownIssuer", false).ends_with("Name its authority as `openai.ca`"));
        assert!(!said("invalid peer certificate: UnknownIssuer", true).contains("openai.ca"));
        for closed in ["Broken pipe (os error 32)", "tls handshake eof", "received fatal alert: AccessDenied"] {
            assert!(said(closed, true).contains("`--relay`"), "{closed}");
            assert!(said(closed, false).contains("`--allow`"), "{closed}");
        }
        assert_eq!(said("nobody listens", true), "nobody listens");
    }
}
