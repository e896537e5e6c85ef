//! The engine on this machine. It dials our UNIX listener before it is confined, speaks first when its model is loaded, and then
//! *we* send requests over that connection (HTTP/2, many at a time): so the gateway never has to find the engine, a first byte
//! means ready, and a crash shows at once.

mod refusal;

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_wire::call::Endpoint;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};

use super::{AttemptError, Reply, Upstream, openai};
use crate::classify::clearance::{EgressPermit, Origin};
use crate::supervise::Control;
use crate::telemetry::metrics::Metrics;
pub use refusal::EngineRefusal;

/// How often the engine is asked for its state.
const STATE_EVERY: Duration = Duration::from_millis(500);
/// How long it may take to say it.
const STATE_WITHIN: Duration = Duration::from_secs(2);
/// The most bytes of its state.
const MAX_STATE: usize = 64 << 10;

/// Requests at a time that the engine takes on its connection, and bytes of each answer that may wait to be read. The connection's
/// window has room for all of them: clients that do not read must hold up nobody else.
const STREAMS: u32 = 1024;
const STREAM_WINDOW: u32 = 64 << 10;

/// The engine, whether it is connected or not.
#[derive(Debug)]
pub struct Engine {
    link: ArcSwapOption<Link>,
    idle: Duration,
    control: OnceLock<Control>,
}

#[derive(Debug)]
struct Link {
    requests: SendRequest<Full<Bytes>>,
    state: ArcSwapOption<State>,
    pid: Option<i32>,
}

/// What the engine says of itself, as far as predictions need it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct State {
    /// The model that it has loaded.
    #[serde(default)]
    pub model: String,
    /// How long a new request waits for its turn, before its prompt is read.
    #[serde(default)]
    pub slot_wait_ms: u64,
    /// Requests that wait or run.
    #[serde(default)]
    pub queue_depth: u64,
    /// Prompt tokens that wait.
    #[serde(default)]
    pub queued_prompt_tokens: u64,
    /// Measured rate; absent or 0: none yet.
    #[serde(default)]
    pub prefill_tokens_per_second: Option<f64>,
    /// What can be asked of it, as paths such as `/embeddings`.
    #[serde(default)]
    pub endpoints: Vec<String>,
}

impl Engine {
    /// Not connected yet.
    #[must_use]
    pub fn new(idle: Duration) -> Arc<Self> {
        let (link, control) = (ArcSwapOption::empty(), OnceLock::new());
        Arc::new(Self { link, idle, control })
    }

    /// Says who starts engines. Once, before the first connection.
    pub fn controlled_by(&self, control: Control) {
        let _only_the_first_counts = self.control.set(control);
    }

    /// Who starts engines.
    #[must_use]
    pub fn control(&self) -> Option<&Control> {
        self.control.get()
    }

    /// The model that is loaded, as far as is known.
    #[must_use]
    pub fn model(&self) -> Option<String> {
        self.state().map(|state| state.model.clone()).filter(|model| !model.is_empty())
    }

    /// Can it be asked for that? As long as it has not said what it can, yes.
    #[must_use]
    pub fn serves(&self, endpoint: Endpoint) -> bool {
        self.state().is_none_or(|state| {
            state.endpoints.is_empty() || state.endpoints.iter().any(|known| known == endpoint.path())
        })
    }

    /// True while it is connected.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.link.load().as_ref().is_some_and(|link| !link.requests.is_closed())
    }

    /// What it last said of itself.
    #[must_use]
    pub fn state(&self) -> Option<Arc<State>> {
        self.link.load().as_ref()?.state.load_full()
    }

    /// The engine's own metrics (`postern_engine_…`) as lines of OpenMetrics; `None` while there is none, or it does not say.
    pub async fn metrics(&self) -> Option<String> {
        let link = self.link.load_full()?;
        let text = tokio::time::timeout(STATE_WITHIN, get(link.requests.clone(), "http://engine/metrics")).await;
        Some(own_metrics(&String::from_utf8(text.ok()??.to_vec()).ok()?))
    }

    /// When the first token of a prompt of `tokens` would come: everything that waits is read before it.
    #[must_use]
    pub fn predicted_ttft(&self, tokens: u64) -> Option<Duration> {
        let state = self.state()?;
        let rate = state.prefill_tokens_per_second.filter(|rate| *rate > 0.0)?;
        let tokens = state.queued_prompt_tokens.saturating_add(tokens).min(10_000_000);
        let wait = Duration::from_millis(state.slot_wait_ms.min(86_400_000));
        Some(wait + Duration::from_secs_f64(tokens as f64 / rate.max(0.001)))
    }

    /// Accepts the engine's connections for as long as the gateway runs. A newer one replaces the older.
    pub async fn accept(self: Arc<Self>, listener: UnixListener, metrics: Arc<Metrics>) {
        let own_uid = rustix::process::geteuid().as_raw();
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the engine's socket cannot be accepted from");
                    tokio::time::sleep(STATE_EVERY).await;
                    continue;
                }
            };
            // The socket lies in a folder of mode 0700; this holds even if somebody changes that.
            let peer = stream.peer_cred().ok().filter(|peer| peer.uid() == own_uid);
            let Some(peer) = peer else {
                tracing::warn!("a connection to the engine's socket from another user is refused");
                continue;
            };
            tokio::spawn(self.clone().serve(stream, peer.pid(), metrics.clone()));
        }
    }

    /// Gives what comes from now on to this engine.
    fn take_over(&self, link: Arc<Link>) {
        let pid = link.pid;
        self.link.store(Some(link));
        if let (Some(control), Some(pid)) = (self.control(), pid.and_then(|pid| u32::try_from(pid).ok())) {
            control.connected(pid);
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream, pid: Option<i32>, metrics: Arc<Metrics>) {
        if !says_it_is_ready(&stream).await {
            return tracing::debug!("an engine ended before its model was loaded");
        }
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * STREAMS)
            .handshake(TokioIo::new(stream));
        let (requests, connection) = match handshake.await {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!(%error, "the engine's connection is not HTTP/2"),
        };
        let mut connection = pin!(connection);
        let link = Arc::new(Link { requests, state: ArcSwapOption::empty(), pid });
        // What it serves is known before it gets a request.
        tokio::select! {
            _ended = connection.as_mut() => return tracing::warn!("an engine came and went"),
            () = refresh(&link) => {}
        }
        let watch = tokio::spawn(watch(link.clone()));
        self.take_over(link.clone());
        metrics.engine_connected(true);
        tracing::info!("the engine is connected");
        let ended = connection.await;
        watch.abort();
        // A newer connection may have taken its place already.
        let previous = self.link.compare_and_swap(&link, None);
        if previous.as_ref().is_some_and(|previous| Arc::ptr_eq(previous, &link)) {
            metrics.engine_connected(false);
        }
        match ended {
            Ok(()) => tracing::info!("the engine has gone"),
            Err(error) => tracing::warn!(%error, "the engine's connection broke"),
        }
    }
}

/// An engine dials before it loads its model, and speaks when that is there. How long it may take is the supervisor's concern:
/// it ends one that hangs. False: it has ended.
pub(crate) async fn says_it_is_ready(stream: &UnixStream) -> bool {
    let peek = || {
        let (_, count) = rustix::net::recv(stream, &mut [0], rustix::net::RecvFlags::PEEK)?;
        Ok(count)
    };
    while stream.readable().await.is_ok() {
        match stream.try_io(tokio::io::Interest::READABLE, peek) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    false
}

impl Upstream for Engine {
    fn send(&self, permit: EgressPermit) -> BoxFuture<'_, Result<Reply, AttemptError>> {
        async move {
            let asks = permit.asks();
            let headers = permit.origin().map(origin_headers).unwrap_or_default();
            let body = permit.into_body();
            let link = self.link.load_full().ok_or(AttemptError::EngineDown)?;
            let endpoint = asks.endpoint();
            let response = match ask(&link, endpoint, headers.clone(), body.clone()).await {
                // Another engine took over in this moment, and this one takes nothing new any more.
                Err(error) => match self.link.load_full().filter(|now| !Arc::ptr_eq(now, &link)) {
                    Some(now) => ask(&now, endpoint, headers, body).await?,
                    None => return Err(error),
                },
                Ok(response) => response,
            };
            match response.status() {
                StatusCode::OK => openai::read_own(response, asks, self.idle).await,
                status => Err(match EngineRefusal::read(response).await {
                    Some(refusal) => AttemptError::Engine(Box::new(refusal)),
                    None if status == StatusCode::NOT_FOUND => AttemptError::NotFound,
                    None => AttemptError::Status(status.as_u16()),
                }),
            }
        }
        .boxed()
    }
}

async fn ask(
    link: &Link,
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Incoming>, AttemptError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(match endpoint {
        Endpoint::Chat => "http://engine/v1/chat/completions",
        Endpoint::Completions => "http://engine/v1/completions",
        Endpoint::Embeddings => "http://engine/v1/embeddings",
    });
    *request.headers_mut() = headers;
    request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut requests = link.requests.clone();
    requests.ready().await.map_err(|_| AttemptError::EngineDown)?;
    requests.send_request(request).await.map_err(|_| AttemptError::Broken)
}

/// How an engine of our own, here or on a node, learns on whose behalf it computes. Nobody else can send it these: it is
/// reached only through our socket, or believes them only from a gateway; and clients' headers are never passed on.
pub(crate) fn origin_headers(origin: &Origin) -> HeaderMap {
    let priority = if origin.bulk { "bulk" } else { "interactive" };
    let pairs = [
        ("postern-tenant", origin.tenant.as_str()),
        ("postern-label", &origin.label),
        ("postern-identity", &origin.identity),
        ("postern-priority", priority),
    ];
    let headers = pairs.into_iter().filter_map(|(name, value)| {
        // Digests are hexadecimal; what could not be sent would be left out, and then nothing is shared.
        Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
    });
    headers.collect()
}

/// Keeps the engine's state fresh.
async fn watch(link: Arc<Link>) {
    loop {
        tokio::time::sleep(STATE_EVERY).await;
        refresh(&link).await;
    }
}

async fn refresh(link: &Link) {
    if let Ok(Some(state)) = tokio::time::timeout(STATE_WITHIN, state(link.requests.clone())).await {
        link.state.store(Some(Arc::new(state)));
    }
}

async fn state(requests: SendRequest<Full<Bytes>>) -> Option<State> {
    serde_json::from_slice(&get(requests, "http://engine/state").await?).ok()
}

async fn get(mut requests: SendRequest<Full<Bytes>>, uri: &'static str) -> Option<Bytes> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = Uri::from_static(uri);
    requests.ready().await.ok()?;
    let response = requests.send_request(request).await.ok()?;
    Some(Limited::new(response.into_body(), MAX_STATE).collect().await.ok()?.to_bytes())
}

/// Without the two that every node of the fleet has under the same name: the gateway's own are on the same page.
fn own_metrics(text: &str) -> String {
    let is_own = |line: &&str| {
        let name = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        name.starts_with("postern_engine_")
    };
    text.lines().filter(is_own).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_that_every_node_has_are_left_out() {
        let text = "# HELP queue_depth Requests that wait.\n# TYPE queue_depth gauge\nqueue_depth 3.0\n\
                    # HELP postern_engine_running Sequences.\n# TYPE postern_engine_running gauge\n\
                    postern_engine_running 2.0\ninference_latency 1.0\n# EOF\n";
        let own = own_metrics(text);
        assert_eq!(own.lines().count(), 3, "{own}");
        assert!(own.ends_with("postern_engine_running 2.0\n"), "{own}");
    }
}
