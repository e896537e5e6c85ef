//! The engine on this machine. It dials our UNIX listener when its model is loaded, and then *we* send requests over that
//! connection (HTTP/2, many at a time): so the gateway never has to find the engine, connected means ready, and a crash
//! shows at once.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};

use super::{AttemptError, Reply, Upstream, openai};
use crate::classify::clearance::EgressPermit;
use crate::telemetry::metrics::Metrics;

/// How often the engine is asked for its state.
const STATE_EVERY: Duration = Duration::from_millis(500);
/// How long it may take to say it.
const STATE_WITHIN: Duration = Duration::from_secs(2);
/// The most bytes of its state.
const MAX_STATE: usize = 64 << 10;

/// The engine, whether it is connected or not.
#[derive(Debug)]
pub struct Engine {
    link: ArcSwapOption<Link>,
    idle: Duration,
}

#[derive(Debug)]
struct Link {
    requests: SendRequest<Full<Bytes>>,
    state: ArcSwapOption<State>,
}

/// What the engine says of itself, as far as predictions need it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct State {
    /// Requests that wait or run.
    #[serde(default)]
    pub queue_depth: u64,
    /// Prompt tokens that wait.
    #[serde(default)]
    pub queued_prompt_tokens: u64,
    /// Measured rate; absent or 0: none yet.
    #[serde(default)]
    pub prefill_tokens_per_second: Option<f64>,
}

impl Engine {
    /// Not connected yet.
    #[must_use]
    pub fn new(idle: Duration) -> Arc<Self> {
        Arc::new(Self { link: ArcSwapOption::empty(), idle })
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

    /// When the first token of a prompt of `tokens` would come: everything that waits is read before it.
    #[must_use]
    pub fn predicted_ttft(&self, tokens: u64) -> Option<Duration> {
        let state = self.state()?;
        let rate = state.prefill_tokens_per_second.filter(|rate| *rate > 0.0)?;
        let tokens = state.queued_prompt_tokens.saturating_add(tokens).min(10_000_000);
        Some(Duration::from_secs_f64(tokens as f64 / rate.max(0.001)))
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
            if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own_uid) {
                tracing::warn!("a connection to the engine's socket from another user is refused");
                continue;
            }
            tokio::spawn(self.clone().serve(stream, metrics.clone()));
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream, metrics: Arc<Metrics>) {
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream));
        let (requests, connection) = match handshake.await {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!(%error, "the engine's connection is not HTTP/2"),
        };
        let link = Arc::new(Link { requests, state: ArcSwapOption::empty() });
        let watch = tokio::spawn(watch(link.clone()));
        self.link.store(Some(link.clone()));
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

impl Upstream for Engine {
    fn send(&self, permit: EgressPermit) -> BoxFuture<'_, Result<Reply, AttemptError>> {
        async move {
            let link = self.link.load_full().ok_or(AttemptError::EngineDown)?;
            let stream = permit.stream();
            let mut request = Request::new(Full::new(permit.into_body()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = Uri::from_static("http://engine/v1/chat/completions");
            let json = http::HeaderValue::from_static("application/json");
            request.headers_mut().insert(http::header::CONTENT_TYPE, json);
            let mut requests = link.requests.clone();
            requests.ready().await.map_err(|_| AttemptError::EngineDown)?;
            let response = requests.send_request(request).await.map_err(|_| AttemptError::Broken)?;
            openai::read(response, stream, self.idle).await
        }
        .boxed()
    }
}

/// Keeps the engine's state fresh.
async fn watch(link: Arc<Link>) {
    loop {
        if let Ok(Some(state)) = tokio::time::timeout(STATE_WITHIN, state(link.requests.clone())).await {
            link.state.store(Some(Arc::new(state)));
        }
        tokio::time::sleep(STATE_EVERY).await;
    }
}

async fn state(mut requests: SendRequest<Full<Bytes>>) -> Option<State> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = Uri::from_static("http://engine/state");
    requests.ready().await.ok()?;
    let response = requests.send_request(request).await.ok()?;
    let body = Limited::new(response.into_body(), MAX_STATE).collect().await.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}
