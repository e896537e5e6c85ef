//! What makes vectors: an engine process with an embedding model. It dials our UNIX socket and speaks when its model is loaded, as the engine that
//! answers does, and is asked over that connection. It is never waited for: without a vector, a question is one of its own.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::vector::Vector;
use crate::telemetry::metrics::Metrics;
use crate::upstream::local::says_it_is_ready;

/// Questions at a time; who comes when so many are being read is not compared. What is given up in time may still be computed.
const AT_A_TIME: usize = 16;
/// Bytes of an answer: a vector of 4,096 numbers has 22 KiB.
const MAX_ANSWER: usize = 64 << 10;
/// After a connection that could not be accepted.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The process that makes vectors, whether it is there or not.
#[derive(Debug)]
pub struct Encoder {
    model: String,
    wait: Duration,
    link: ArcSwapOption<SendRequest<Full<Bytes>>>,
    places: Semaphore,
}

#[derive(Deserialize)]
struct Answer {
    data: [Datum; 1],
}

#[derive(Deserialize)]
struct Datum {
    embedding: String,
}

impl Encoder {
    /// Not connected yet.
    #[must_use]
    pub fn new(model: String, wait: Duration) -> Arc<Self> {
        Arc::new(Self { model, wait, link: ArcSwapOption::empty(), places: Semaphore::new(AT_A_TIME) })
    }

    /// The vector of a text, if there is one in time.
    pub(super) async fn vector(&self, text: &str) -> Option<Vector> {
        let link = self.link.load_full()?;
        let _place = self.places.try_acquire().ok()?;
        tokio::time::timeout(self.wait, self.ask(SendRequest::clone(&link), text)).await.ok().flatten()
    }

    async fn ask(&self, mut requests: SendRequest<Full<Bytes>>, text: &str) -> Option<Vector> {
        let body = json!({"model": self.model, "input": text, "encoding_format": "base64"}).to_string();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static("http://engine/v1/embeddings");
        request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        requests.ready().await.ok()?;
        let response = requests.send_request(request).await.ok()?;
        // A text that is longer than the model takes is refused.
        if response.status() != StatusCode::OK {
            return None;
        }
        let bytes = Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok()?.to_bytes();
        let Answer { data: [Datum { embedding }] } = serde_json::from_slice(&bytes).ok()?;
        Vector::read(&embedding)
    }

    /// Accepts its connections for as long as the gateway runs. A newer one replaces the older.
    pub async fn accept(self: Arc<Self>, listener: UnixListener, metrics: Arc<Metrics>) {
        let own_uid = rustix::process::geteuid().as_raw();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tracing::warn!("the socket for vectors cannot be accepted from");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            // The socket lies in a folder of mode 0700; this holds even if somebody changes that.
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own_uid => drop(tokio::spawn(self.clone().serve(stream, metrics.clone()))),
                _ => tracing::warn!("a connection to the socket for vectors from another user is refused"),
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream, metrics: Arc<Metrics>) {
        if !says_it_is_ready(&stream).await {
            return;
        }
        let handshake = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .handshake(TokioIo::new(stream));
        let (requests, connection) = match handshake.await {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!(%error, "the connection for vectors is not HTTP/2"),
        };
        let connection = pin!(connection);
        let link = Arc::new(requests);
        self.link.store(Some(link.clone()));
        metrics.encoder_connected(true);
        tracing::info!(model = self.model, "questions are compared with earlier ones");
        let ended = connection.await;
        // A newer connection may have taken its place already.
        let previous = self.link.compare_and_swap(&link, None);
        if previous.as_ref().is_some_and(|previous| Arc::ptr_eq(previous, &link)) {
            metrics.encoder_connected(false);
            tracing::warn!(
                broken = ended.is_err(),
                "what makes vectors has gone; questions are not compared meanwhile"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Instant;

    use data_encoding::BASE64;
    use http::Response;
    use hyper::service::service_fn;

    use super::*;

    fn answer(numbers: &[f32]) -> String {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        json!({"object": "list", "data": [{"index": 0, "embedding": BASE64.encode(&bytes)}]}).to_string()
    }

    /// An encoder whose process answers so, after a while. Its process ends with the handle.
    #[expect(clippy::disallowed_methods, reason = "what the process of an encoder does")]
    async fn connected(status: u16, body: String, after: Duration) -> (Arc<Encoder>, tokio::task::JoinHandle<()>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let encoder = Encoder::new("m".to_owned(), Duration::from_millis(200));
        tokio::spawn(encoder.clone().accept(UnixListener::bind(&path).unwrap(), Arc::default()));
        let stream = UnixStream::connect(&path).await.unwrap();
        let serving = tokio::spawn(async move {
            let service = service_fn(move |_| {
                let body = body.clone();
                async move {
                    tokio::time::sleep(after).await;
                    Ok::<_, Infallible>(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
                }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
        while encoder.link.load().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (encoder, serving)
    }

    #[tokio::test]
    async fn a_vector_comes_or_nothing_does_and_nobody_waits_for_long() {
        let (encoder, serving) = connected(200, answer(&[0.6, 0.8]), Duration::ZERO).await;
        assert!(encoder.vector("a").await.is_some());
        serving.abort();
        while encoder.link.load().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(encoder.vector("a").await.is_none(), "it has gone");

        for (status, body) in [(400, answer(&[1.0])), (200, answer(&[9.0])), (200, "x".repeat(MAX_ANSWER + 1))] {
            let (encoder, _serving) = connected(status, body, Duration::ZERO).await;
            assert!(encoder.vector("a").await.is_none());
        }
        let (encoder, _serving) = connected(200, answer(&[1.0]), Duration::from_secs(60)).await;
        let begun = Instant::now();
        assert!(encoder.vector("a").await.is_none());
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn only_so_many_are_asked_at_a_time() {
        let (encoder, _serving) = connected(200, answer(&[1.0]), Duration::from_secs(60)).await;
        let asking: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                tokio::spawn({
                    let encoder = encoder.clone();
                    async move { encoder.vector("a").await.is_some() }
                })
            })
            .collect();
        while encoder.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let begun = Instant::now();
        assert!(encoder.vector("b").await.is_none() && begun.elapsed() < Duration::from_millis(150), "without waiting");
        for asking in asking {
            assert!(!asking.await.unwrap());
        }
    }
}
