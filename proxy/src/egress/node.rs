//! Connections to a node of our own: an engine on another machine, which proves to be exactly the one that the configuration
//! names, and lets in nobody but the gateway.
//!
//! Each leaf and each change of trust has connections of its own. What was connected with the one before takes no new request;
//! what is under way there ends by itself, unless a leaf ends or is revoked meanwhile: then it is cut.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioTimer;
use postern_certs::{CertsError, SpiffeId, verify};
use tower_service::Service;

use super::complaints::{Complaints, in_words};
use super::pools::Pools;
use super::sealed::{Answer, Ends, NodeKey, Unsealed};
use super::{Bounded, ConnectError, SendError, pool, tcp};
use crate::connection::session::{NODE, Session};
use crate::tls::{Certificate, Current};

/// How often a silent connection is asked whether the node is still there.
const PING_EVERY: Duration = Duration::from_secs(20);

type Requests = Pools<Watched>;

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    identity: SpiffeId,
    is_sealed: bool,
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
    key: NodeKey,
}

impl Node {
    /// Connects to nothing yet. `identity` is whom the node must prove to be, and whether what it is asked is sealed.
    pub(super) fn new(
        target: String,
        (identity, is_sealed): (SpiffeId, bool),
        certificate: Arc<Certificate>,
        connect_within: Duration,
    ) -> Self {
        let complaints = Complaints::of(target, format!("the node of our own {identity} cannot be used"));
        Self { identity, is_sealed, certificate, connect_within, held: ArcSwapOption::empty(), complaints }
    }

    pub(super) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Answer>, SendError> {
        let current = self.certificate.current();
        if !current.is_valid() {
            self.complaints.tell("the gateway's own certificate has ended");
            return Err(SendError::Connect);
        }
        let held = self.held(&current).map_err(|error| {
            self.complaints.tell(&error.to_string());
            SendError::Connect
        })?;
        let broken = |error| {
            self.complaints.tell(&in_words(&error));
            SendError::from(error)
        };
        // A page of metrics holds nothing of anybody.
        if !self.is_sealed || request.method() == Method::GET {
            return held.requests.request(request).await.map(|response| response.map(Answer::Plain)).map_err(broken);
        }
        let ends = Ends { requests: &held.requests, own: &held.with, node: &self.identity, key: &held.key };
        ends.ask(request).await.map_err(|why| match why {
            Unsealed::Sending(error) => broken(error),
            Unsealed::Refused(why) => {
                self.complaints.tell(&why);
                SendError::Connect
            }
        })
    }

    fn held(&self, current: &Arc<Current>) -> Result<Arc<Held>, CertsError> {
        if let Some(held) = self.held.load().as_ref().filter(|held| Arc::ptr_eq(&held.with, current)) {
            return Ok(held.clone());
        }
        let mut tls = rustls::ClientConfig::clone(&*current.towards(self.identity.clone())?);
        // The builder of the connector says itself what is offered.
        tls.alpn_protocols.clear();
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_all_versions().wrap_connector(tcp());
        let inner = Bounded { inner: https, within: self.connect_within };
        let connector = Watched { inner, certificate: self.certificate.clone(), with: current.clone() };
        let mut pool = pool();
        pool.timer(TokioTimer::new()).http2_keep_alive_interval(PING_EVERY).http2_keep_alive_timeout(PING_EVERY);
        let requests = Pools::new(connector, pool);
        let held = Arc::new(Held { with: current.clone(), requests, key: NodeKey::default() });
        self.held.store(Some(held.clone()));
        Ok(held)
    }
}

/// A connector whose connections end with the leaf of either side, and when the node's is revoked.
#[derive(Debug, Clone)]
struct Watched {
    inner: Bounded,
    certificate: Arc<Certificate>,
    with: Arc<Current>,
}

impl Service<Uri> for Watched {
    type Response = Guarded;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Guarded, ConnectError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // Before the handshake, so that no change of trust is missed.
        let mut trust = self.certificate.trust();
        let (connecting, own_end) = (self.inner.call(uri), self.with.not_after);
        Box::pin(async move {
            let stream = connecting.await?;
            let leaf = match &stream {
                MaybeHttpsStream::Https(tls) => tls.inner().get_ref().1.peer_certificates().and_then(<[_]>::first),
                MaybeHttpsStream::Http(_) => None,
            };
            let peer = leaf.map(verify::peer).ok_or("the node showed no certificate")??;
            let session = Arc::new(Session::with(peer, own_end, NODE));
            let watched = session.clone();
            let over = Box::pin(async move { watched.over(&mut trust).await });
            Ok(Guarded { stream, session, over, ended: None })
        })
    }
}

/// A connection to a node, as long as both leaves are good.
struct Guarded {
    stream: <Bounded as Service<Uri>>::Response,
    session: Arc<Session>,
    over: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    ended: Option<&'static str>,
}

impl Guarded {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.ended.is_none()
            && let Poll::Ready(code) = self.over.as_mut().poll(context)
        {
            self.ended = Some(code);
        }
        self.check_now()
    }

    /// Without waking anybody: only reads wait for the end, since one is always under way.
    fn check_now(&self) -> io::Result<()> {
        // By the clock of the wall as well: timers stand still while a machine sleeps.
        match self.ended {
            Some(code) => Err(io::Error::other(code)),
            None if !self.session.is_current() => Err(io::Error::other("connection_expired")),
            None => Ok(()),
        }
    }
}

impl Read for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_now()?;
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
        self.check_now()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

impl Connection for Guarded {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}
