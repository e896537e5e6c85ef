//! A SPIFFE Workload API on a UNIX socket, as an agent serves it: enough of gRPC for the one method that a gateway
//! calls, and levers for everything that can go wrong with it.
//!
//! Messages are those of the published `workloadapi.proto`, written down here a second time and not shared with the
//! gateway: a wrong field number on one side shows. It refuses what the SPIFFE Workload Endpoint says to refuse
//! (section 3: `workload.spiffe.io: true`; section 6: `InvalidArgument`). Clients on gRPC's C library need the channel
//! option `grpc.default_authority`: what they make of a socket's path is no authority for the h2 crate.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::pki::{Authority, Leaf};

/// The method's path. The published proto has no package.
const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// gRPC status codes.
const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;
const UNIMPLEMENTED: u32 = 12;

/// What the stream carries.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509SvidResponse {
    /// Identities; the first is the default one.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    /// Roots of foreign trust domains by their SPIFFE IDs, concatenated DER.
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

/// One identity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509Svid {
    /// Whose.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Leaf and intermediates, concatenated DER.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS #8.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Roots of its trust domain, concatenated DER.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// What it is for.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl X509SvidResponse {
    /// One identity with the roots that vouch for it.
    ///
    /// # Errors
    /// The PEM of `leaf` or of a root cannot be read.
    pub fn of(id: &str, leaf: &Leaf, roots: &[&Authority]) -> Result<Self> {
        let bundle: String = roots.iter().map(|root| root.pem()).collect();
        let svid = X509Svid {
            spiffe_id: id.to_owned(),
            x509_svid: certificates(&leaf.cert_pem)?,
            x509_svid_key: PrivatePkcs8KeyDer::from_pem_slice(leaf.key_pem.as_bytes())?.secret_pkcs8_der().to_vec(),
            bundle: certificates(&bundle)?,
            hint: String::new(),
        };
        Ok(Self { svids: vec![svid], ..Self::default() })
    }

    /// Adds a revocation list, given as PEM.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn with_crl(mut self, pem: &str) -> Result<Self> {
        self.crl.push(CertificateRevocationListDer::from_pem_slice(pem.as_bytes())?.to_vec());
        Ok(self)
    }
}

/// What is said on every stream, open and to come.
#[derive(Debug, Clone)]
enum Say {
    Nothing,
    Bytes(Bytes),
    Status(u32, &'static str),
}

/// The agent. It stops when this is dropped.
#[derive(Debug)]
pub struct WorkloadApi {
    socket: PathBuf,
    say: watch::Sender<Say>,
    cut: watch::Sender<u64>,
    calls: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl WorkloadApi {
    /// Listens on `socket`, which must not exist, and says nothing yet.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
        let (say, listening) = watch::channel(Say::Nothing);
        let (cut, cutting) = watch::channel(0);
        let calls = Arc::new(AtomicU64::new(0));
        let accepting = tokio::spawn(accept(listener, listening, cutting, calls.clone()));
        Ok(Self { socket: socket.to_owned(), say, cut, calls, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends this on every open stream, and first thing on every later one.
    pub fn send(&self, response: &X509SvidResponse) {
        self.send_message(&response.encode_to_vec());
    }

    /// Sends a message that need not be one.
    pub fn send_message(&self, message: &[u8]) {
        let mut framed = BytesMut::with_capacity(5 + message.len());
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        framed.put_slice(message);
        self.send_bytes(framed.freeze());
    }

    /// Sends bytes that need not be gRPC.
    pub fn send_bytes(&self, bytes: Bytes) {
        self.say.send_replace(Say::Bytes(bytes));
    }

    /// Ends every open stream, and every later one at once, with a gRPC status.
    pub fn refuse(&self, code: u32, message: &'static str) {
        self.say.send_replace(Say::Status(code, message));
    }

    /// Says nothing to later calls; open streams stay open.
    pub fn be_silent(&self) {
        self.say.send_replace(Say::Nothing);
    }

    /// Breaks every connection. What was sent last is sent again to those who come back.
    pub fn drop_connections(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// Calls so far, refused ones among them.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        self.accepting.abort();
        // Nothing is left to do if it is gone already.
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn accept(
    listener: UnixListener,
    say: watch::Receiver<Say>,
    mut cut: watch::Receiver<u64>,
    calls: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => return,
            },
            changed = cut.changed() => {
                connections.shutdown().await;
                if changed.is_err() {
                    return;
                }
                continue;
            }
        };
        let (say, calls) = (say.clone(), calls.clone());
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                calls.fetch_add(1, Ordering::Relaxed);
                let response = answer(&request, say.clone());
                async move { Ok::<_, Infallible>(response) }
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // A connection that breaks is what the tests are about.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn answer(request: &Request<Incoming>, say: watch::Receiver<Say>) -> Response<BoxBody<Bytes, Infallible>> {
    let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    if request.method() != http::Method::POST || header("content-type") != Some(b"application/grpc") {
        let mut response = Response::new(Empty::new().boxed());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return response;
    }
    if header("workload.spiffe.io") != Some(b"true") {
        return status_only(INVALID_ARGUMENT, "security header missing from request");
    }
    if header("te") != Some(b"trailers") {
        return status_only(INVALID_ARGUMENT, "te: trailers is missing");
    }
    if request.uri().path() != FETCH_X509_SVID {
        return status_only(UNIMPLEMENTED, "unknown method");
    }
    let mut response = Response::new(BoxBody::new(StreamBody::new(updates(say))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A gRPC answer without a message: its status stands among the headers.
fn status_only(code: u32, message: &'static str) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Empty::new().boxed());
    *response.headers_mut() = status(code, message);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn status(code: u32, message: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from(code));
    if code != OK {
        headers.insert("grpc-message", HeaderValue::from_static(message));
    }
    headers
}

/// What is to be said now, and each later change. Messages go out in pieces, since nothing promises that they do not.
fn updates(say: watch::Receiver<Say>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    struct Speaking {
        say: watch::Receiver<Say>,
        rest: Bytes,
        begun: bool,
        ended: bool,
    }
    stream::unfold(Speaking { say, rest: Bytes::new(), begun: false, ended: false }, |mut speaking| async move {
        loop {
            if !speaking.rest.is_empty() {
                let piece = speaking.rest.len().min(700);
                let piece = speaking.rest.split_to(piece);
                return Some((Ok(Frame::data(piece)), speaking));
            }
            if speaking.ended || (speaking.begun && speaking.say.changed().await.is_err()) {
                return None;
            }
            speaking.begun = true;
            let said = speaking.say.borrow_and_update().clone();
            match said {
                Say::Nothing => {}
                Say::Bytes(bytes) => speaking.rest = bytes,
                Say::Status(code, message) => {
                    speaking.ended = true;
                    return Some((Ok(Frame::trailers(status(code, message))), speaking));
                }
            }
        }
    })
}

fn certificates(pem: &str) -> Result<Vec<u8>> {
    let mut together = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        together.extend_from_slice(&certificate?);
    }
    Ok(together)
}
