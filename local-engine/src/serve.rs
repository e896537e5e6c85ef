//! Serves HTTP/2 on a connection that was dialled to the gateway.
//!
//! Here the engine listens nowhere: whoever starts it has connected to the gateway's UNIX socket, before the process was
//! confined and the model loaded, and the gateway is the HTTP client on that connection. A server speaks first (its SETTINGS, RFC
//! 9113, 3.4), and here it does so when the model is loaded: so for the gateway, the first byte means "ready".

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::embed::Embedder;
use crate::engine::Engine;
use crate::error::EngineError;

/// How long running answers may take to end at a shutdown: as long as a request may last, since another model's engine may
/// have taken over. Whoever wants it to end sooner kills it.
const DRAIN_MAX: Duration = Duration::from_secs(600);
/// Requests on a connection at the same time; those beyond the queue are refused one by one with a reason.
const STREAMS_MAX: u32 = 1024;
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// A gateway that does not answer a ping for so long is gone; asked this often.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WAIT_MAX: Duration = Duration::from_secs(20);

/// Serves on a connection to the gateway that was `dialled` before the model was loaded, until `shutdown`; then running answers
/// have ten minutes to end.
///
/// # Errors
/// [`EngineError::Stopped`] if the engine's worker has died or hangs, [`EngineError::GatewayGone`] if the gateway has gone: the
/// process should end, and be started anew. A confined process cannot dial again.
pub async fn serve(engine: Arc<Engine>, dialled: UnixStream, shutdown: CancellationToken) -> Result<(), EngineError> {
    let router = api::router(Arc::clone(&engine));
    serve_any(engine.as_ref(), router, dialled, shutdown).await
}

/// As [`serve`], for a model that makes vectors of texts.
///
/// # Errors
/// [`EngineError::GatewayGone`].
pub async fn serve_embeddings(
    embedder: Arc<Embedder>,
    dialled: UnixStream,
    shutdown: CancellationToken,
) -> Result<(), EngineError> {
    let router = api::embeddings_router(Arc::clone(&embedder));
    serve_any(embedder.as_ref(), router, dialled, shutdown).await
}

/// The API of a chat model, for whoever accepts connections himself: the gateway is on another machine then.
///
/// Whose headers say on whose behalf a request comes is the caller's question: nothing is shared on the word of somebody
/// who is not the gateway.
pub fn router(engine: &Arc<Engine>) -> Router {
    api::router(Arc::clone(engine))
}

/// As [`router`], for a model that makes vectors of texts.
pub fn embeddings_router(embedder: &Arc<Embedder>) -> Router {
    api::embeddings_router(Arc::clone(embedder))
}

/// Resolves when the engine's worker has died or hangs: the process should end, and be started anew.
pub async fn stopped(engine: &Engine) {
    Served::stopped(engine).await;
}

/// A model that is served.
pub(crate) trait Served: Sync {
    fn name(&self) -> &str;

    /// Resolves when it can answer nothing any more.
    fn stopped(&self) -> impl Future<Output = ()> + Send;
}

impl Served for Engine {
    fn name(&self) -> &str {
        self.name()
    }

    async fn stopped(&self) {
        self.stopped().await;
    }
}

impl Served for Embedder {
    fn name(&self) -> &str {
        self.name()
    }

    async fn stopped(&self) {
        std::future::pending().await
    }
}

async fn serve_any(
    served: &impl Served,
    router: Router,
    dialled: UnixStream,
    shutdown: CancellationToken,
) -> Result<(), EngineError> {
    tracing::info!(model = served.name(), "ready, and the gateway is told");
    let ended = serve_connection(dialled, router, served, &shutdown).await;
    match ended {
        Ended::Stopped => Err(EngineError::Stopped),
        Ended::Shutdown => Ok(()),
        Ended::Lost if shutdown.is_cancelled() => Ok(()),
        Ended::Lost => Err(EngineError::GatewayGone),
    }
}

/// Why a connection is served no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The other side has gone.
    Lost,
    /// The engine can answer nothing any more.
    Stopped,
    /// It was asked to end, and answers that were under way have ended.
    Shutdown,
}

/// Serves one connection until it ends, the worker dies, or the shutdown is complete.
pub(crate) async fn serve_connection<S>(
    stream: S,
    router: Router,
    served: &impl Served,
    shutdown: &CancellationToken,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT_MAX);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "the connection broke");
            }
            return Ended::Lost;
        }
        () = served.stopped() => return Ended::Stopped,
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    if tokio::time::timeout(DRAIN_MAX, connection).await.is_err() {
        tracing::warn!("answers were cut off, since the time to end is over");
    }
    Ended::Shutdown
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http2::{SendRequest, handshake};

    use super::*;
    use crate::testing::{POISON, TRAP, scripted_engine};

    type Client = SendRequest<Full<Bytes>>;

    async fn client(stream: UnixStream) -> Client {
        let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn ask(client: &mut Client, content: &str) -> hyper::Result<(u16, String)> {
        let body = serde_json::json!({"model": "tiny", "messages": [{"role": "user", "content": content}]}).to_string();
        let request = http::Request::post("http://engine/v1/chat/completions").body(Full::new(Bytes::from(body)));
        let response = client.send_request(request.unwrap()).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }

    #[tokio::test]
    async fn it_speaks_first_and_ends_when_the_gateway_has_gone() {
        use tokio::io::AsyncReadExt as _;
        let engine = scripted_engine(&[b"yes"], Duration::ZERO, |_| {});
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(serve(Arc::clone(&engine), theirs, CancellationToken::new()));
        // Length, then the kind of the frame: SETTINGS.
        let mut head = [0; 9];
        tokio::time::timeout(Duration::from_secs(10), ours.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(head[3], 4);
        drop(ours);
        let ended = tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap();
        assert!(matches!(ended, Err(EngineError::GatewayGone)));

        let ((ours, theirs), shutdown) = (UnixStream::pair().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(engine, theirs, shutdown.clone()));
        let mut client = client(ours).await;
        let (status, answer) = ask(&mut client, "?").await.unwrap();
        assert!(status == 200 && answer.contains("yes"), "{answer}");
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_shutdown_lets_a_running_answer_end() {
        let engine = scripted_engine(&[b"slow ".as_slice(); 30], Duration::from_millis(5), |_| {});
        let (ours, theirs) = UnixStream::pair().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (engine, shutdown) = (Arc::clone(&engine), shutdown.clone());
            async move { serve_connection(theirs, api::router(Arc::clone(&engine)), engine.as_ref(), &shutdown).await }
        });
        let mut client = client(ours).await;
        let asking = tokio::spawn(async move { ask(&mut client, "?").await });
        while engine.load_now().status.running == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
        let (status, answer) = asking.await.unwrap().unwrap();
        assert!(status == 200 && answer.matches("slow ").count() == 30, "{answer}");
        tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_dead_worker_ends_the_process_and_nobody_waits_for_it() {
        let engine = scripted_engine(&[b"yes"], Duration::ZERO, |_| {});
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(serve(engine, theirs, CancellationToken::new()));
        let mut client = client(ours).await;
        let begun = Instant::now();
        match ask(&mut client, POISON).await {
            Ok((status, answer)) => assert!(status == 503 && answer.contains("engine_stopped"), "{answer}"),
            // The connection may be gone before the answer is out.
            Err(error) => assert!(!error.is_user(), "{error}"),
        }
        let ended = tokio::time::timeout(Duration::from_secs(10), serving).await.unwrap().unwrap();
        assert!(matches!(ended, Err(EngineError::Stopped)));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_worker_that_hangs_counts_as_dead_and_one_that_is_idle_or_slow_does_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let hung_after = Duration::from_millis(700);
        // Twenty steps that take twice as long together, and a pause that does by itself.
        let engine =
            scripted_engine(&[b"slow ".as_slice(); 20], hung_after / 10, |options| options.hung_after = hung_after);
        let serving = tokio::spawn(serve(engine, theirs, CancellationToken::new()));
        let mut client = client(ours).await;
        tokio::time::sleep(hung_after * 3 / 2).await;
        assert_eq!(ask(&mut client, "?").await.unwrap().0, 200);
        assert!(!serving.is_finished());
        let begun = Instant::now();
        let (asked, ended) =
            tokio::join!(ask(&mut client, TRAP), tokio::time::timeout(Duration::from_secs(10), serving));
        assert!(!matches!(asked, Ok((200, _))), "{asked:?}");
        assert!(matches!(ended.unwrap().unwrap(), Err(EngineError::Stopped)));
        assert!(begun.elapsed() >= hung_after, "{:?}", begun.elapsed());
    }
}
