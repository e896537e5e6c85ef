//! Every outgoing connection of the gateway is made here; clippy bans the functions that make one anywhere else.
//!
//! A remote target is reached over HTTPS, HTTP/2 if it offers it. Its certificate is checked against the machine's trust
//! store or the private authority that the configuration names. Redirects are not followed, cookies are not kept, and
//! only the headers that are set here go out.
//!
//! A target with an `identity` is a node of our own ([`node`]): there the gateway shows its own certificate, and says on whose
//! behalf it asks.
#![expect(clippy::disallowed_methods, reason = "this is the one place")]

mod complaints;
mod copy;
mod http2;
mod lifetime;
mod node;
mod pools;
mod post;
pub(crate) mod redis;
mod sealed;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use postern_wire::call::Endpoint;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tower_service::Service;

use crate::classify::clearance::EgressPermit;
use crate::config::file::TargetKind;
use crate::config::read::bounded;
use crate::config::{Secret, Target, Timeouts};
use crate::tls::Certificate;
use crate::upstream::local::origin_headers;
use complaints::Complaints;
pub(crate) use complaints::in_words;
pub(crate) use copy::CopyWay;
use node::{Node, Proof};
use pools::{Connecting, Pools, RequestError};
pub(crate) use pools::{Received, Seat};
pub(crate) use post::Post;
pub(crate) use sealed::Answer;

/// Idle connections kept to one target, and for how long.
const IDLE_CONNECTIONS: usize = 64;
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Bytes of a file with authorities; those of a whole machine have a quarter of it.
const MAX_AUTHORITIES: usize = 1 << 20;

/// Why a client for a target cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// Its key is not to be had.
    #[error("target `{target}`: the API key {what}")]
    Key {
        /// The target.
        target: String,
        /// Names the variable or file, never the key.
        what: String,
    },
    /// Its authority is not to be had.
    #[error("target `{target}`: {what}")]
    Authority {
        /// The target.
        target: String,
        /// What is wrong with the file.
        what: String,
    },
    /// TLS cannot be set up.
    #[error("target `{target}`: TLS: {source}")]
    Tls {
        /// The target.
        target: String,
        /// What rustls said.
        source: rustls::Error,
    },
}

/// Connections to one remote target.
#[derive(Debug, Clone)]
pub struct Remote {
    way: Way,
    endpoints: Endpoints,
    /// Its page of metrics, if it is looked at.
    page: Option<Uri>,
    authorization: Option<HeaderValue>,
    refusals: Arc<Refusals>,
}

/// What only a person can mend at a target that answers.
#[derive(Debug)]
struct Refusals {
    key: Complaints,
    path: Complaints,
    seal: Complaints,
}

impl Refusals {
    fn of(target: &str) -> Self {
        let of = || Complaints::of(target.to_owned(), "the target refuses what it is asked".to_owned());
        Self { key: of(), path: of(), seal: of() }
    }

    fn look_at(&self, status: StatusCode) {
        match status.as_u16() {
            401 | 403 => self.key.tell("status 401 or 403: mend its `api_key`, or what the key may have"),
            404 => self.path.tell("status 404: mend its `base_url`, `models` or `health.metrics`"),
            _ => {}
        }
    }
}

/// Where requests go at one target.
#[derive(Debug, Clone)]
struct Endpoints {
    chat: Uri,
    completions: Uri,
    embeddings: Uri,
}

impl Endpoints {
    fn below(base_url: &Uri) -> Option<Self> {
        let at = |endpoint: Endpoint| format!("{base_url}{}", endpoint.path()).parse().ok();
        let (chat, completions) = (at(Endpoint::Chat)?, at(Endpoint::Completions)?);
        Some(Self { chat, completions, embeddings: at(Endpoint::Embeddings)? })
    }

    fn of(&self, endpoint: Endpoint) -> Uri {
        match endpoint {
            Endpoint::Chat => self.chat.clone(),
            Endpoint::Completions => self.completions.clone(),
            Endpoint::Embeddings => self.embeddings.clone(),
        }
    }
}

#[derive(Debug, Clone)]
enum Way {
    /// To a service of others.
    Service(Arc<Pools<Bounded>>, Arc<Complaints>),
    /// To a node of our own.
    Node(Arc<Node>),
}

/// Why no answer began. What was said of it is in the log, if it is ours to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// There was no connection.
    Connect,
    /// It broke before the answer began.
    Broken,
    /// The target says that it has not looked at the request (RFC 9113, 8.7).
    NotTaken,
}

impl From<RequestError> for SendError {
    fn from(error: RequestError) -> Self {
        match error.is_connect() {
            true => Self::Connect,
            false if is_not_taken(&error) => Self::NotTaken,
            false => Self::Broken,
        }
    }
}

fn is_not_taken(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut http2 = causes.filter_map(|error| error.downcast_ref::<h2::Error>());
    http2.any(|error| error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

impl Remote {
    /// Reads key and authority; connects to nothing yet. `certificate` is what nodes are shown.
    ///
    /// # Errors
    /// See [`EgressError`].
    pub fn new(target: &Target, timeouts: Timeouts, certificate: &Arc<Certificate>) -> Result<Self, EgressError> {
        let name = || target.name.clone();
        let authorization = match &target.api_key {
            Some(secret) => Some(bearer(secret).map_err(|what| EgressError::Key { target: name(), what })?),
            None => None,
        };
        let way = match &target.node {
            Some(id) => {
                let middlebox = target.ca.as_deref().map(authority).transpose();
                let middlebox = middlebox.map_err(|what| EgressError::Authority { target: name(), what })?;
                let proof =
                    Proof { identity: id.clone(), is_sealed: target.sealed, middlebox: middlebox.map(Arc::new) };
                Way::Node(Arc::new(Node::new(name(), proof, certificate.clone(), timeouts.connect)))
            }
            None => {
                let roots = match &target.ca {
                    Some(path) => authority(path),
                    None => machine_authorities(),
                };
                let roots = roots.map_err(|what| EgressError::Authority { target: name(), what })?;
                let connector = connector(roots, timeouts.connect);
                let connector = connector.map_err(|source| EgressError::Tls { target: name(), source })?;
                let hint = match (target.kind, &target.ca) {
                    (TargetKind::Edge, None) => " (if it is a node of ours, `openai.identity` says which)",
                    _ => "",
                };
                let complaints = Complaints::of(name(), format!("the target cannot be reached{hint}"));
                Way::Service(Arc::new(Pools::new(connector, None)), Arc::new(complaints))
            }
        };
        let endpoints = Endpoints::below(&target.base_url)
            .ok_or_else(|| EgressError::Authority { target: name(), what: "its base_url is no URL".into() })?;
        let page = target.health.as_ref().and_then(|health| beside(&target.base_url, &health.metrics));
        let refusals = Arc::new(Refusals::of(&target.name));
        Ok(Self { way, endpoints, page, authorization, refusals })
    }

    /// Asks for its page of metrics; `None`: there is none to ask for. Nothing of any request goes with it.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(crate) async fn look(&self) -> Option<Result<Response<Answer>, SendError>> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = self.page.clone()?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/plain"));
        Some(self.ask(request).await)
    }

    /// One attempt. Uses the permit up. Whoever reads the answer's body keeps its [`Seat`] until the end.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(crate) async fn send(&self, permit: EgressPermit) -> Result<Response<Answer>, SendError> {
        let asks = permit.asks();
        let accept = if asks.stream() { "text/event-stream" } else { "application/json" };
        // Only a permit for a node of our own has an origin, and only there it goes.
        let origin = permit.origin().filter(|_| matches!(self.way, Way::Node(_))).map(origin_headers);
        let mut request = Request::new(permit.into_body());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoints.of(asks.endpoint());
        let headers = request.headers_mut();
        headers.extend(origin.unwrap_or_default());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        self.ask(request).await
    }

    /// It has said that it takes only what is sealed.
    pub(crate) fn wants_a_seal(&self) {
        self.refusals.seal.tell("code payload_not_sealed: it is a node of our own behind a middlebox, or another gateway. Name a node as `openai.identity`, without `sealed: false`, and what it is asked is sealed");
    }

    async fn ask(&self, mut request: Request<Bytes>) -> Result<Response<Answer>, SendError> {
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("postern/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let response = match &self.way {
            Way::Service(pools, complaints) => {
                let sent = pools.request(request).await;
                sent.map(|response| response.map(Answer::Plain)).map_err(|error| {
                    if error.is_connect() {
                        complaints.tell(&in_words(&error));
                    }
                    SendError::from(error)
                })
            }
            Way::Node(node) => node.request(request).await,
        }?;
        self.refusals.look_at(response.status());
        Ok(response)
    }
}

/// Where a page of the same server is.
fn beside(base_url: &Uri, path: &str) -> Option<Uri> {
    let mut parts = base_url.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Connections for fetching models from a hub, over HTTPS, or over HTTP to this machine.
#[derive(Debug, Clone)]
pub(crate) struct Hub(Client<Bounded, Full<Bytes>>);

impl Hub {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The machine has no trusted authorities, or TLS cannot be set up.
    pub(crate) fn new(connect_within: Duration) -> Result<Self, String> {
        let connector = connector(machine_authorities()?, connect_within).map_err(|error| format!("TLS: {error}"))?;
        Ok(Self(pool().build(connector)))
    }

    /// One request without a body. Redirects are the caller's affair.
    ///
    /// # Errors
    /// The address is neither HTTPS nor on this machine, or no answer came.
    pub(crate) async fn get(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let uri = request.uri();
        let here = matches!(uri.host(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if uri.scheme_str() != Some("https") && !here {
            return Err("only https addresses are fetched from".to_owned());
        }
        let agent = HeaderValue::from_static(concat!("postern/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        self.0.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})")).unwrap_or_default();
            format!("{error}{cause}")
        })
    }
}

fn connector(roots: rustls::RootCertStore, connect_within: Duration) -> Result<Bounded, rustls::Error> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().wrap_connector(tcp());
    Ok(Bounded { inner: https, within: connect_within })
}

fn tcp() -> HttpConnector {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http
}

fn pool() -> Builder {
    let mut pool = Client::builder(TokioExecutor::new());
    pool.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_FOR).pool_max_idle_per_host(IDLE_CONNECTIONS);
    pool
}

fn bearer(secret: &Secret) -> Result<HeaderValue, String> {
    let key = secret.read()?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.as_str()))
        .map_err(|_| format!("{} has characters that no header may hold", secret.place()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The authorities in a file.
pub(crate) fn authority(path: &std::path::Path) -> Result<rustls::RootCertStore, String> {
    let bad = |error: &dyn std::fmt::Display| format!("the authority in {} cannot be used: {error}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    let text = bounded(path, MAX_AUTHORITIES).map_err(|error| bad(&error))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    if roots.is_empty() { Err(bad(&"it holds no certificate")) } else { Ok(roots) }
}

/// The machine's own trust store. Single certificates that cannot be read do not matter; none at all does.
fn machine_authorities() -> Result<rustls::RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(roots);
    }
    Err("this machine has no trusted authorities; install its package ca-certificates, or name a file as `ca`"
        .to_owned())
}

/// A connector with a bound on the time for name, TCP and TLS together.
#[derive(Debug, Clone)]
struct Bounded {
    inner: HttpsConnector<HttpConnector>,
    within: Duration,
}

type Connection = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
type ConnectError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Bounded {
    type Response = Connection;
    type Error = ConnectError;
    type Future = Connecting<Connection>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let within = self.within;
        Box::pin(async move {
            match tokio::time::timeout(within, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long").into()),
            }
        })
    }
}

/// A TCP connection to a gateway, for a workstation that enrols or renews. `to` is `HOST:PORT`.
///
/// # Errors
/// The name is not known, or nobody listens.
pub(crate) async fn dial_gateway(to: &str) -> io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TCP connection to a loopback address: the demo's own parts talk to each other this way.
///
/// # Errors
/// The address is not a loopback address, or nobody listens.
pub(crate) async fn dial(to: std::net::SocketAddr) -> io::Result<tokio::net::TcpStream> {
    if !to.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a loopback address"));
    }
    let stream = tokio::net::TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to a UNIX socket of this machine: the agent that issues the gateway's certificate is reached this way.
///
/// # Errors
/// Nobody listens, or this process may not connect.
pub(crate) async fn dial_unix(to: &std::path::Path) -> io::Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::connect(to).await
}

/// The same, for a process that has no runtime yet: an engine dials its gateway before it is confined.
///
/// # Errors
/// As [`dial_unix`].
pub(crate) fn dial_unix_at_once(to: &std::path::Path) -> io::Result<std::os::unix::net::UnixStream> {
    let stream = std::os::unix::net::UnixStream::connect(to)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
