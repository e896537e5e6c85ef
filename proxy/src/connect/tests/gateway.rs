//! The gateway's half, as the connector sees it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_certs::{Authority, LeafRequest, Role, Signatory};
use postern_sealed::binary::{self, Decoder, Part};
use postern_sealed::chunked::{self, RequestOpener, ResponseSealer};
use postern_sealed::signed::{self, KEYS_SENDER, KEYS_SIGNATURE, KEYS_UNTIL, SENDER, SIGNATURE, Sent};
use postern_sealed::whole::Exchange;
use postern_sealed::{Keys, SealError, SecretKey};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connect::keys::{PATH, chain_of_text, chain_to_text};
use crate::enrol::RENEW_PATH;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What it does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    Answers,
    NeverKnowsKeys,
    SwapsKeys,
    AnswersInClear,
    AnswersWithAnothersSeal,
    /// The next request is reset.
    Resets(h2::Reason),
}

/// A request as it was opened.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: HeaderMap,
    pub(super) sender: String,
    pub(super) serial: String,
}

/// Pieces of an answer; `None` is its authentic end.
type Pieces = mpsc::Receiver<Option<String>>;

struct State {
    authority: Arc<Authority>,
    signatory: Signatory,
    secret: Mutex<SecretKey>,
    plan: Mutex<Plan>,
    stream: Mutex<Option<(Option<&'static str>, Pieces)>>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    fetches: AtomicUsize,
    posts: AtomicUsize,
}

pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

impl Gateway {
    pub(super) async fn of(authority: &Arc<Authority>) -> Self {
        Self::at(authority, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(super) async fn at(authority: &Arc<Authority>, address: SocketAddr) -> Self {
        let tls = postern_certs::server_config(&leaf(authority), &authority.trust()).unwrap();
        Self::with(authority, address, tls).await
    }

    /// It lets in whom another authority vouches for.
    pub(super) async fn asking_for(authority: &Arc<Authority>, other: &Authority) -> Self {
        let tls = postern_certs::server_config(&leaf(authority), &other.trust()).unwrap();
        Self::with(authority, "127.0.0.1:0".parse().unwrap(), tls).await
    }

    /// In front of it somebody breaks TLS open.
    pub(super) async fn behind_middlebox(authority: &Arc<Authority>, theirs: &Authority) -> Self {
        let theirs = leaf(theirs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(theirs.chain.clone(), theirs.key.clone_key());
        let mut tls = tls.unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self::with(authority, "127.0.0.1:0".parse().unwrap(), Arc::new(tls)).await
    }

    async fn with(authority: &Arc<Authority>, address: SocketAddr, tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            authority: authority.clone(),
            signatory: Signatory::new(&leaf(authority)).unwrap(),
            secret: Mutex::new(SecretKey::generate(1, &mut rand::rng())),
            plan: Mutex::new(Plan::Answers),
            stream: Mutex::default(),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            fetches: AtomicUsize::new(0),
            posts: AtomicUsize::new(0),
        });
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (serving, stop, track) = (state.clone(), stopping.clone(), tasks.clone());
        tasks.spawn(async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (state, tls, stop) = (serving.clone(), tls.clone(), stop.clone());
                track.spawn(async move {
                    let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
                    state.connections.fetch_add(1, Ordering::Relaxed);
                    let service = service_fn(|request| {
                        let state = state.clone();
                        async move { state.answer(request).await }
                    });
                    let http = http2::Builder::new(TokioExecutor::new());
                    let _ended = stop.run_until_cancelled(http.serve_connection(TokioIo::new(stream), service)).await;
                });
            }
        });
        Self { address, state, stopping, tasks }
    }

    /// Cuts all connections.
    pub(super) async fn stop(self) -> SocketAddr {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.address
    }

    pub(super) fn plan(&self, plan: Plan) {
        *self.state.plan.lock().unwrap() = plan;
    }

    /// The next request is answered with what is put in; without its end, if it is dropped before `None`.
    pub(super) fn stream(&self, kind: &'static str) -> mpsc::Sender<Option<String>> {
        self.next_answer(Some(kind))
    }

    /// The next request is not answered.
    pub(super) fn stream_without_head(&self) -> mpsc::Sender<Option<String>> {
        self.next_answer(None)
    }

    fn next_answer(&self, kind: Option<&'static str>) -> mpsc::Sender<Option<String>> {
        let (pieces, answer) = mpsc::channel(1);
        *self.state.stream.lock().unwrap() = Some((kind, answer));
        pieces
    }

    /// The former ones are unknown from now on.
    pub(super) fn new_keys(&self) {
        let mut secret = self.state.secret.lock().unwrap();
        *secret = SecretKey::generate(secret.id() + 1, &mut rand::rng());
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    pub(super) fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::Relaxed)
    }

    pub(super) fn posts(&self) -> usize {
        self.state.posts.load(Ordering::Relaxed)
    }
}

fn leaf(authority: &Authority) -> postern_certs::IssuedLeaf {
    let role = Role::Gateway { names: vec![] };
    authority.issue(LeafRequest { id: authority.gateway_id().clone(), role }).unwrap()
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, h2::Error> {
        if let Some(reason) = self.reset(request.method()) {
            self.posts.fetch_add(1, Ordering::Relaxed);
            return Err(reason.into());
        }
        Ok(self.answer_at_all(request).await)
    }

    fn reset(&self, method: &Method) -> Option<h2::Reason> {
        let mut plan = self.plan.lock().unwrap();
        let Plan::Resets(reason) = *plan else { return None };
        (method == Method::POST).then(|| {
            *plan = Plan::Answers;
            reason
        })
    }

    async fn answer_at_all(&self, request: Request<Incoming>) -> Response<Body> {
        assert_eq!(request.uri().path(), PATH);
        if request.method() == Method::GET {
            self.fetches.fetch_add(1, Ordering::Relaxed);
            return self.keys();
        }
        self.posts.fetch_add(1, Ordering::Relaxed);
        assert_eq!(request.headers()["content-type"], chunked::REQUEST);
        assert_eq!(request.headers()["incremental"], "?1");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let plan = *self.plan.lock().unwrap();
        let keys = Keys::new(vec![self.secret.lock().unwrap().clone()]);
        match self.open(keys, &body) {
            _ if plan == Plan::NeverKnowsKeys => refuse(StatusCode::UNPROCESSABLE_ENTITY, "payload_key_unknown"),
            Err(SealError::UnknownKey(_)) => refuse(StatusCode::UNPROCESSABLE_ENTITY, "payload_key_unknown"),
            Err(error) => panic!("{error}"),
            Ok(_) if plan == Plan::AnswersInClear => Response::new(Full::from(r#"{"choices":[]}"#).boxed_unsync()),
            Ok(_) if plan == Plan::AnswersWithAnothersSeal => {
                let other = SecretKey::generate(1, &mut rand::rng());
                let mut sealed = Vec::new();
                let begun = chunked::RequestSealer::begin(&other.public(), &mut rand::rng(), &mut sealed);
                begun.unwrap().0.finish(&mut sealed).unwrap();
                let mut opener = RequestOpener::new(Keys::new(vec![other]));
                opener.push(&sealed, &mut Vec::new()).unwrap();
                whole(&opener.finish(&mut Vec::new()).unwrap(), StatusCode::OK, "{}")
            }
            Ok((exchange, asked, content)) => self.reply(&exchange, &asked, &content),
        }
    }

    fn keys(&self) -> Response<Body> {
        let list = Keys::new(vec![self.secret.lock().unwrap().clone()]).list();
        let until = OffsetDateTime::now_utc().unix_timestamp() as u64 + 3600;
        let gateway = self.authority.gateway_id().to_string();
        let signature = self.signatory.sign(&signed::keys(&gateway, until, &list)).unwrap();
        let is_swapped = *self.plan.lock().unwrap() == Plan::SwapsKeys;
        let theirs = Keys::new(vec![SecretKey::generate(1, &mut rand::rng())]).list();
        let mut response = Response::new(Full::from(if is_swapped { theirs } else { list }).boxed_unsync());
        let mut put = |name, value: String| {
            response.headers_mut().insert(name, HeaderValue::try_from(value).unwrap());
        };
        put("content-type", postern_sealed::config::MEDIA_TYPE.to_owned());
        put(KEYS_SENDER, chain_to_text(self.signatory.chain()));
        put(KEYS_SIGNATURE, BASE64.encode(&signature));
        put(KEYS_UNTIL, until.to_string());
        response
    }

    /// Opens a request, and looks at its signature.
    fn open(&self, keys: Keys, body: &[u8]) -> Result<(Exchange, Request<()>, Vec<u8>), SealError> {
        let (mut opener, mut plain) = (RequestOpener::new(keys), Vec::new());
        opener.push(body, &mut plain)?;
        let exchange = opener.finish(&mut plain)?;
        let (mut decoder, mut asked, mut content) = (Decoder::request(), None, Vec::new());
        decoder.push(&plain, &mut |part| match part {
            Part::Request(request) => asked = Some(request),
            Part::Content(more) => content.extend_from_slice(more),
            Part::Response(_) => panic!(),
        })?;
        decoder.finish()?;
        let asked = asked.unwrap();
        let text = |name: &str| asked.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let sent = Sent {
            encapsulated: exchange.encapsulated(),
            key: self.secret.lock().unwrap().id(),
            gateway: &self.authority.gateway_id().to_string(),
            method: asked.method().as_str(),
            path: asked.uri().path_and_query().unwrap().as_str(),
            date: text("date"),
            label: text("postern-label"),
            body: &content,
        };
        let age = httpdate::parse_http_date(text("date")).unwrap().elapsed().unwrap_or_default();
        assert!(age < Duration::from_secs(5));
        let chain = chain_of_text(text(SENDER)).unwrap();
        let signature = BASE64.decode(text(SIGNATURE).as_bytes()).unwrap();
        let peer = self.authority.trust().signed_by_client(&chain, "b.example", &sent.to_bytes(), &signature).unwrap();
        self.seen.lock().unwrap().push(Seen {
            line: format!("{} {}", asked.method(), asked.uri()),
            headers: asked.headers().clone(),
            sender: peer.id.to_string(),
            serial: peer.serial.to_string(),
        });
        Ok((exchange, asked, content))
    }

    fn reply(&self, exchange: &Exchange, asked: &Request<()>, content: &[u8]) -> Response<Body> {
        if asked.uri().path() == RENEW_PATH {
            return whole(exchange, StatusCode::OK, &self.renew(asked, content).to_string());
        }
        if let Some((kind, pieces)) = self.stream.lock().unwrap().take() {
            return streamed(exchange, kind, pieces);
        }
        let echo = json!({"echo": String::from_utf8_lossy(content)});
        whole(exchange, StatusCode::OK, &echo.to_string())
    }

    fn renew(&self, asked: &Request<()>, content: &[u8]) -> Value {
        let content: Value = serde_json::from_slice(content).unwrap();
        let csr = content["csr"].as_str().unwrap().as_bytes();
        let csr = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(csr).unwrap();
        let chain = chain_of_text(asked.headers()[SENDER].to_str().unwrap()).unwrap();
        let peer = postern_certs::verify::peer(&chain[0]).unwrap();
        let signed = self.authority.renew(&peer, &csr).unwrap();
        let pem = |certificates: &[_]| postern_certs::pem::certificates(certificates);
        json!({"certificate": pem(&signed.chain), "ca": pem(&signed.roots)})
    }
}

fn refuse(status: StatusCode, code: &str) -> Response<Body> {
    let body = json!({"error": {"message": "secret words", "type": "x", "param": null, "code": code}}).to_string();
    let mut response = Response::new(Full::from(body).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn sealed_body(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static(chunked::RESPONSE));
    response
}

fn head(kind: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(kind));
    headers.insert("x-inner", HeaderValue::from_static("of the gateway"));
    headers.insert("connection", HeaderValue::from_static("close"));
    headers
}

fn whole(exchange: &Exchange, status: StatusCode, content: &str) -> Response<Body> {
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    binary::put_response(status, &head("application/json"), content.as_bytes(), &mut plain);
    let mut sealer = ResponseSealer::begin(exchange, &mut rand::rng(), &mut out).unwrap();
    sealer.push(&plain, &mut out).unwrap();
    sealer.finish(&mut out).unwrap();
    sealed_body(Full::from(out).boxed_unsync())
}

fn streamed(exchange: &Exchange, kind: Option<&'static str>, pieces: Pieces) -> Response<Body> {
    let (mut plain, mut begun) = (Vec::new(), Vec::new());
    let mut sealer = ResponseSealer::begin(exchange, &mut rand::rng(), &mut begun).unwrap();
    if let Some(kind) = kind {
        binary::begin_response(StatusCode::OK, &head(kind), &mut plain);
        sealer.push(&plain, &mut begun).unwrap();
    }
    let frames =
        futures_util::stream::unfold((Some(begun), Some(sealer), pieces), |(begun, sealer, mut pieces)| async {
            if let Some(begun) = begun {
                return Some((Ok(Frame::data(Bytes::from(begun))), (None, sealer, pieces)));
            }
            let (mut sealer, mut plain, mut out) = (sealer?, Vec::new(), Vec::new());
            let left = if let Some(piece) = pieces.recv().await? {
                binary::put_content(piece.as_bytes(), &mut plain);
                sealer.push(&plain, &mut out).unwrap();
                Some(sealer)
            } else {
                binary::end_response(&mut plain);
                sealer.push(&plain, &mut out).unwrap();
                sealer.finish(&mut out).unwrap();
                None
            };
            Some((Ok(Frame::data(Bytes::from(out))), (None, left, pieces)))
        });
    sealed_body(StreamBody::new(frames).boxed_unsync())
}
