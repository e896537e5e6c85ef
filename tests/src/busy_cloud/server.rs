//! Sockets, TLS, and which request goes where.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::admission::{Admission, Gate};
use super::exchange::Exchange;
use super::plan::{self, Kind, Reply};
use super::stats::Stats;
use super::{Switches, control};
use crate::pki::Authority;
use crate::tls::{self, Identity};

/// Connections at a time, on each of the two ports.
const MAX_CONNECTIONS: usize = 4096;
/// Bytes of a request.
const MAX_BODY: usize = 64 << 20;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// After an error of `accept`, such as too many open files.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(50);

type Body = BoxBody<Bytes, Infallible>;

/// How to start.
#[derive(Debug)]
pub struct Options {
    /// HTTPS; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Plain HTTP for switches and statistics.
    pub control: SocketAddr,
    /// Where to write `ca.pem`, and `NAME-cert.pem` and `NAME-key.pem` of `server` and `client`.
    pub out: PathBuf,
    /// Take only clients that show `client-cert.pem`.
    pub client_certificates: bool,
    /// What to begin with.
    pub switches: Switches,
    /// Take the authority and the certificates that are in `out` already: it was there before, and died.
    pub again: bool,
}

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// HTTPS.
    pub listen: SocketAddr,
    /// Plain HTTP.
    pub control: SocketAddr,
}

/// Makes an authority, binds, calls `ready`, and serves for as long as the process lives.
///
/// # Errors
/// A file cannot be written or a port not bound.
pub async fn serve(options: Options, ready: impl FnOnce(Addresses)) -> Result<()> {
    let tls = scratch_tls(&options)?;
    let cloud = Arc::new(Cloud::new(options.switches));
    let listener = TcpListener::bind(options.listen).await.with_context(|| format!("listen {}", options.listen))?;
    let controls = TcpListener::bind(options.control).await.with_context(|| format!("control {}", options.control))?;
    ready(Addresses { listen: listener.local_addr()?, control: controls.local_addr()? });

    let controlled = cloud.clone();
    let accept_controls = accept(controls, move |stream, _| {
        let cloud = controlled.clone();
        async move {
            let service = service_fn(move |request| control::handle(cloud.clone(), request));
            // A test that went away needs no answer.
            let _ended = http().serve_connection(TokioIo::new(stream), service).await;
        }
    });
    let acceptor = TlsAcceptor::from(tls);
    let accept_requests = accept(listener, move |stream, from| {
        let (cloud, acceptor) = (cloud.clone(), acceptor.clone());
        async move {
            cloud.stats.report().connections += 1;
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                connection(cloud, stream, from.ip()).await;
            }
        }
    });
    tokio::join!(accept_controls, accept_requests);
    Ok(())
}

/// What connections share.
#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) stats: Arc<Stats>,
    switches: Mutex<Arc<Switches>>,
    gate: Mutex<Gate>,
    serial: AtomicU64,
}

impl Cloud {
    fn new(switches: Switches) -> Self {
        Self {
            stats: Arc::default(),
            switches: Mutex::new(Arc::new(switches)),
            gate: Mutex::default(),
            serial: AtomicU64::default(),
        }
    }

    pub(super) fn switches(&self) -> Arc<Switches> {
        locked(&self.switches).clone()
    }

    /// Also forgets who came before, so that a test begins with the first of its requests.
    pub(super) fn switch(&self, switches: Switches) {
        *locked(&self.gate) = Gate::default();
        *locked(&self.switches) = Arc::new(switches);
    }

    async fn handle(&self, request: Request<Incoming>, from: IpAddr, cut: Arc<Notify>) -> Option<Response<Body>> {
        if let (&Method::POST, Some(kind)) = (request.method(), Kind::of(request.uri().path())) {
            return self.answer(kind, request, from, cut).await;
        }
        self.stats.report().other_requests += 1;
        let page = self.switches().metrics.clone();
        let reply = match (request.method(), request.uri().path()) {
            _ if !authorized(request.headers()) => unauthorized(),
            (&Method::GET, "/v1/models") => models(),
            (&Method::GET, "/metrics") if page.is_some() => {
                plan::whole(StatusCode::OK, "text/plain; version=0.0.4", page.unwrap_or_default())
            }
            _ => plan::error(StatusCode::NOT_FOUND, "invalid_request_error", None, "There is nothing here.", None),
        };
        self.count(&reply);
        let body = reply.steps.into_iter().filter_map(|step| match step {
            plan::Step::Send(bytes) => Some(bytes),
            _ => None,
        });
        let body = http_body_util::Full::new(body.collect::<Vec<_>>().concat().into()).boxed();
        Some(response(reply.status, reply.headers, body))
    }

    /// `None`: the client went away while it sent.
    async fn answer(
        &self,
        kind: Kind,
        request: Request<Incoming>,
        from: IpAddr,
        cut: Arc<Notify>,
    ) -> Option<Response<Body>> {
        let exchange = Exchange::begin(self.stats.clone());
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.ok()?.to_bytes();
        {
            let mut report = self.stats.report();
            report.keep_headers(&parts.headers);
            report.keep_path(parts.uri.path());
            report.keep_body(&body);
        }
        let reply = if authorized(&parts.headers) { self.reply(kind, &body, from) } else { unauthorized() };
        match reply.wait {
            Some(Duration::ZERO) => {}
            Some(wait) => tokio::time::sleep(wait).await,
            None => std::future::pending().await,
        }
        self.count(&reply);
        let body = exchange.play(reply.steps, reply.status == StatusCode::OK, cut);
        Some(response(reply.status, reply.headers, StreamBody::new(Box::pin(body)).boxed()))
    }

    fn reply(&self, kind: Kind, body: &[u8], from: IpAddr) -> Reply {
        let switches = self.switches();
        let admission = if switches.redirect.is_some() || switches.error_text.is_some() {
            Admission::Taken
        } else {
            locked(&self.gate).admit(&switches, from, Instant::now())
        };
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        plan::reply((kind, body), admission, &switches, serial, now.as_secs())
    }

    fn count(&self, reply: &Reply) {
        *self.stats.report().statuses.entry(reply.status.as_u16()).or_default() += 1;
    }
}

fn scratch_tls(options: &Options) -> Result<Arc<rustls::ServerConfig>> {
    let out: &Path = &options.out;
    let ca = out.join("ca.pem");
    if !options.again {
        std::fs::create_dir_all(out).with_context(|| format!("the folder {}", out.display()))?;
        let authority = Authority::new("busy-cloud scratch authority")?;
        std::fs::write(&ca, authority.pem()).with_context(|| format!("writing {}", ca.display()))?;
        authority.server()?.write(out, "server")?;
        authority.client(&["spiffe://busy-cloud.test/client"])?.write(out, "client")?;
    }
    let read = |name: &str| {
        let path = out.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let identity = Identity::from_pem(&read("server-cert.pem")?, &read("server-key.pem")?)?;
    tls::server(&identity, options.client_certificates.then_some(&ca))
}

async fn accept<F, Serving>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> Serving,
    Serving: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                // Without it, small events wait for the acknowledgement of the one before.
                let _only_slower = stream.set_nodelay(true);
                let serving = serve(stream, from);
                tokio::spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(AFTER_ACCEPT_ERROR).await,
        }
    }
}

async fn connection<S>(cloud: Arc<Cloud>, stream: S, from: IpAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let cut = Arc::new(Notify::new());
    let on_cut = cut.clone();
    let service = service_fn(move |request| {
        let (cloud, cut) = (cloud.clone(), cut.clone());
        async move {
            cloud
                .handle(request, from, cut)
                .await
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionAborted))
        }
    });
    let http = http();
    tokio::select! {
        _ended = http.serve_connection(TokioIo::new(stream), service) => {}
        // Dropping the connection closes its socket without a TLS or HTTP goodbye.
        () = on_cut.notified() => {}
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new());
    http.http2().timer(TokioTimer::new());
    http
}

fn authorized(headers: &HeaderMap) -> bool {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|key| !key.trim().is_empty())
}

fn unauthorized() -> Reply {
    let text = "You didn't provide an API key.";
    plan::error(StatusCode::UNAUTHORIZED, "invalid_request_error", Some("invalid_api_key"), text, None)
}

fn models() -> Reply {
    let model = |id| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "busy-cloud"});
    let body = json!({"object": "list", "data": [model("busy-large"), model("busy-small")]});
    plan::whole(StatusCode::OK, "application/json", body.to_string())
}

fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
