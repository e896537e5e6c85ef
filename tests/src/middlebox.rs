//! A middlebox that breaks TLS open: it has an authority of its own, for the workstation it is the gateway, and for the gateway it is a relay; or it
//! stands so between a gateway and a node. It sees all that is sealed and nothing else, and can play tricks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use postern_sealed::SecretKey;
use rustls::ClientConfig;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::pki::Authority;
use crate::sealed::PLACE;
use crate::tls::{self, Http, Identity};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Onward = Pooled<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What it does to what it passes on.
#[derive(Debug, Clone, Default)]
pub enum Trick {
    /// Nothing.
    #[default]
    None,
    /// Says that its own key is the gateway's.
    SwapKeys,
    /// Changes a byte of each sealed request, counted from its end.
    FlipRequest(usize),
    /// Changes the byte at this place of each sealed answer.
    FlipAnswer(usize),
    /// Ends each sealed answer cleanly after so many bytes.
    CutAnswer(usize),
    /// Sends the second frame of each sealed answer twice.
    DoubleAnswer,
    /// Sends sealed requests there instead, with this method.
    Elsewhere(Method, String),
    /// Answers itself, in clear.
    Answer(u16, String),
    /// Sends each sealed request twice, and gives out the second answer.
    Repeat,
    /// Gives out the first sealed answer that it saw, whatever was asked.
    OldAnswer,
    /// Takes the seal for plain JSON: says so of each sealed request.
    StripSeal,
}

/// A running middlebox. Dropping it ends it.
#[derive(Debug)]
pub struct Middlebox {
    /// Where workstations find it.
    pub address: SocketAddr,
    dir: TempDir,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    gateway: SocketAddr,
    onward: Onward,
    trick: Mutex<Trick>,
    /// All requests that were sealed, as they came.
    sealed: Mutex<Vec<Bytes>>,
    /// The first sealed answer.
    answer: Mutex<Option<Bytes>>,
    /// All that it has read, to look for what it must not have.
    read: Mutex<Vec<u8>>,
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Middlebox {
    /// Before `gateway`, whose authority is in the PEM file `ca`, with the relay's own identity there.
    ///
    /// # Errors
    /// No port is free, or the certificates are of no use.
    pub async fn start(gateway: SocketAddr, ca: &std::path::Path, relay: &Identity) -> Result<Self> {
        Self::of(gateway, tls::client(ca, Some(relay), Http::Two)?, None).await
    }

    /// Before a node, which has no name that it could be known by, with the relay's own identity there. Its certificate may end.
    ///
    /// # Errors
    /// No port is free, or the certificates are of no use.
    pub async fn before_node(node: SocketAddr, relay: &Identity, end: Option<OffsetDateTime>) -> Result<Self> {
        Self::of(node, tls::client_of_any(Some(relay), Http::Two)?, end).await
    }

    async fn of(gateway: SocketAddr, client: Arc<ClientConfig>, end: Option<OffsetDateTime>) -> Result<Self> {
        let (authority, dir) = (Authority::new("Inspection")?, tempfile::tempdir()?);
        std::fs::write(dir.path().join("ca.pem"), authority.pem())?;
        let leaf = end.map_or_else(|| authority.server(), |end| authority.server_until(end))?;
        let own = Identity::from_pem(&leaf.cert_pem, &leaf.key_pem)?;
        let acceptor = TlsAcceptor::from(tls::server(&own, None)?);
        let mut client = (*client).clone();
        client.alpn_protocols.clear();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(client).https_only().enable_http2();
        let onward = Pooled::builder(TokioExecutor::new()).http2_only(true).build(connector.wrap_connector(http));
        let shared = Arc::new(Shared {
            gateway,
            onward,
            trick: Mutex::default(),
            sealed: Mutex::default(),
            answer: Mutex::default(),
            read: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = tokio::spawn(serve(listener, acceptor, shared.clone()));
        Ok(Self { address, dir, shared, serving })
    }

    /// Its authority, in PEM.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Plays another trick from now on.
    pub fn plays(&self, trick: Trick) {
        *self.shared.trick.lock().unwrap_or_else(PoisonError::into_inner) = trick;
    }

    /// The sealed requests that went through, as they came.
    #[must_use]
    pub fn sealed(&self) -> Vec<Bytes> {
        self.shared.sealed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has it read these words anywhere, in either direction?
    #[must_use]
    pub fn has_read(&self, words: &str) -> bool {
        let read = self.shared.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.windows(words.len()).any(|window| window == words.as_bytes())
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            let _nodelay = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move {
                    let answered = shared.pass_on(request).await;
                    Ok::<_, Infallible>(answered.unwrap_or_else(|_| plain(502, "the gateway is away")))
                }
            });
            let _ended = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn plain(status: u16, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

impl Shared {
    async fn pass_on(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>> {
        let trick = self.trick.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut parts, body) = request.into_parts();
        let mut body = body.collect().await?.to_bytes().to_vec();
        let is_sealed = parts.method == Method::POST && parts.uri.path() == PLACE;
        self.note(format!("{} {} {:?}", parts.method, parts.uri, parts.headers).as_bytes());
        self.note(&body);
        if is_sealed {
            self.sealed.lock().unwrap_or_else(PoisonError::into_inner).push(body.clone().into());
        }
        let mut path = parts.uri.path().to_owned();
        match &trick {
            Trick::FlipRequest(from_end) if is_sealed => {
                let at = body.len().saturating_sub(1 + from_end);
                *body.get_mut(at).context("a byte")? ^= 1;
            }
            Trick::Elsewhere(method, other) if is_sealed => (parts.method, path) = (method.clone(), other.clone()),
            Trick::Answer(status, text) if is_sealed => return Ok(plain(*status, text)),
            Trick::StripSeal if is_sealed => {
                path = "/v1/chat/completions".to_owned();
                parts.headers.insert("content-type", http::HeaderValue::from_static("application/json"));
            }
            _ => {}
        }
        parts.uri = format!("https://{}{path}", self.gateway).parse::<Uri>()?;
        parts.headers.remove("host");
        parts.version = http::Version::HTTP_2;
        let request = || Request::from_parts(parts.clone(), Full::new(Bytes::from(body.clone())));
        let mut answer = self.onward.request(request()).await?;
        if matches!(trick, Trick::Repeat) && is_sealed {
            answer.into_body().collect().await?;
            answer = self.onward.request(request()).await?;
        }
        let (mut parts, body) = answer.into_parts();
        parts.headers.remove("content-length");
        self.note(format!("{:?}", parts.headers).as_bytes());
        if let (Trick::SwapKeys, false) = (&trick, is_sealed) {
            let mut answer = plain(200, "");
            let own = postern_sealed::Keys::new(vec![SecretKey::generate(7, &mut rand::rng())]).list();
            *answer.body_mut() = Full::new(Bytes::from(own)).map_err(|never| match never {}).boxed_unsync();
            *answer.headers_mut() = parts.headers;
            return Ok(answer);
        }
        let trick = if is_sealed && parts.status.is_success() { trick } else { Trick::None };
        let old = self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Trick::OldAnswer, Some(old)) = (&trick, old) {
            return Ok(Response::from_parts(parts, Full::new(old).map_err(|never| match never {}).boxed_unsync()));
        }
        let keeps = is_sealed && parts.status.is_success();
        Ok(Response::from_parts(parts, self.tricked(trick, body, keeps)))
    }

    /// The answer, frame by frame as it comes.
    fn tricked(self: &Arc<Self>, trick: Trick, body: Incoming, keeps: bool) -> Body {
        let (mut passed, mut count, mut whole) = (0, 0, Vec::new());
        let shared = self.clone();
        let frames = body.into_data_stream().flat_map(move |frame| {
            let mut out = Vec::new();
            match frame {
                Ok(data) => {
                    shared.note(&data);
                    if keeps {
                        whole.extend_from_slice(&data);
                        shared.keep(&whole);
                    }
                    let mut data = data.to_vec();
                    let (begun, length) = (passed, data.len());
                    passed += length;
                    count += 1;
                    match trick {
                        Trick::FlipAnswer(at) if (begun..passed).contains(&at) => {
                            if let Some(byte) = data.get_mut(at - begun) {
                                *byte ^= 1;
                            }
                        }
                        Trick::CutAnswer(after) => data.truncate(after.saturating_sub(begun)),
                        Trick::DoubleAnswer if count == 2 => data.extend_from_within(..),
                        _ => {}
                    }
                    out.push(Ok(Frame::data(Bytes::from(data))));
                }
                Err(error) => out.push(Err(std::io::Error::other(error))),
            }
            futures_util::stream::iter(out)
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// The first sealed answer, as far as it has come: only the first has all of its beginnings.
    fn keep(&self, so_far: &[u8]) {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.as_ref().is_none_or(|kept| so_far.starts_with(kept)) {
            *answer = Some(Bytes::copy_from_slice(so_far));
        }
    }

    fn note(&self, bytes: &[u8]) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}
