//! Dials the gateway and serves HTTP/2 on the connection.
//!
//! Here the engine listens nowhere: it connects to the gateway's UNIX socket, and the gateway is the HTTP client on that
//! connection. It dials only when the model is loaded, so for the gateway "connected" means "ready".

use std::path::Path;
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

/// The pause before dialling again: at first, and at most.
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(2);
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

/// Serves until `shutdown`: dials the UNIX socket `connect`, and again, with growing pauses, whenever the connection is
/// lost. At shutdown, running answers have ten minutes to end.
///
/// # Errors
/// [`EngineError::Stopped`] if the engine's worker has died or hangs: the process should end, and be started anew.
pub async fn serve(engine: Arc<Engine>, connect: &Path, shutdown: CancellationToken) -> Result<(), EngineError> {
    let router = api::router(Arc::clone(&engine));
    serve_any(engine.as_ref(), router, connect, shutdown).await
}

/// As [`serve`], for a model that makes vectors of texts.
///
/// # Errors
/// None: each computation is by itself, and has no thread that could end.
pub async fn serve_embeddings(
    embedder: Arc<Embedder>,
    connect: &Path,
    shutdown: CancellationToken,
) -> Result<(), EngineError> {
    let router = api::embeddings_router(Arc::clone(&embedder));
    serve_any(embedder.as_ref(), router, connect, shutdown).await
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

#[expect(clippy::disallowed_methods, reason = "the engine's one connection, to its gateway")]
async fn serve_any(
    served: &impl Served,
    router: Router,
    connect: &Path,
    shutdown: CancellationToken,
) -> Result<(), EngineError> {
    let (mut pause, mut told) = (REDIAL_FIRST, false);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            () = served.stopped() => return Err(EngineError::Stopped),
            dialled = UnixStream::connect(connect) => match dialled {
                Ok(stream) => {
                    tracing::info!(model = served.name(), "connected to the gateway");
                    (pause, told) = (REDIAL_FIRST, false);
                    serve_connection(stream, router.clone(), served, &shutdown).await;
                    tracing::info!("the connection to the gateway has ended");
                }
                Err(error) if pause == REDIAL_MAX && !told => {
                    told = true;
                    tracing::warn!(%error, socket = %connect.display(), "the gateway is not there; it is dialled on");
                }
                Err(error) => tracing::debug!(%error, "the gateway is not there yet"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(REDIAL_MAX),
        }
    }
}

/// Serves one connection until it ends, the worker dies, or the shutdown is complete.
pub(crate) async fn serve_connection<S>(stream: S, router: Router, served: &impl Served, shutdown: &CancellationToken)
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
            return;
        }
        () = served.stopped() => return,
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    if tokio::time::timeout(DRAIN_MAX, connection).await.is_err() {
        tracing::warn!("answers were cut off, since the time to end is over");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::client::conn::http2::{SendRequest, handshake};
    use tokio::net::UnixListener;

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

    async fn accept(listener: &UnixListener) -> UnixStream {
        tokio::time::timeout(Duration::from_secs(10), listener.accept()).await.unwrap().unwrap().0
    }

    #[tokio::test]
    async fn it_dials_until_the_gateway_is_there_and_again_when_it_was_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let engine = scripted_engine(&[b"yes"], Duration::ZERO, |_| {});
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (path, shutdown) = (path.clone(), shutdown.clone());
            async move { serve(engine, &path, shutdown).await }
        });
        tokio::time::sleep(Duration::from_millis(120)).await;
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..2 {
            let mut client = client(accept(&listener).await).await;
            let (status, answer) = ask(&mut client, "?").await.unwrap();
            assert!(status == 200 && answer.contains("yes"), "{answer}");
        }
        shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), serving).await;
        ended.unwrap().unwrap().unwrap();
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let engine = scripted_engine(&[b"yes"], Duration::ZERO, |_| {});
        let serving = tokio::spawn(async move { serve(engine, &path, CancellationToken::new()).await });
        let mut client = client(accept(&listener).await).await;
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let hung_after = Duration::from_millis(700);
        // Twenty steps that take twice as long together, and a pause that does by itself.
        let engine =
            scripted_engine(&[b"slow ".as_slice(); 20], hung_after / 10, |options| options.hung_after = hung_after);
        let serving = tokio::spawn(async move { serve(engine, &path, CancellationToken::new()).await });
        let mut client = client(accept(&listener).await).await;
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
