//! One connection of HTTP/2 (RFC 9113) to a target. A request is handed to it with its body, so that both leave in one write, and
//! nothing stands between whoever waits for the answer and the connection: with hyper's client there are two more tasks, and the
//! headers leave alone.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use futures_util::future::{Either, select};
use h2::client::{Builder, SendRequest};
use h2::{Error, Ping, PingPong, Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{Request, Response, Version};
use hyper::body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes of one answer that may wait to be read. More would make large answers quicker over long distances (this is 2.6 MB/s at 50 ms),
/// and cost as much memory for every client that does not read.
pub(super) const STREAM_WINDOW: u32 = 128 << 10;
/// Bytes of the headers of an answer.
const MAX_HEADERS: u32 = 16 << 10;

/// Where requests are handed over, from anywhere. When all are dropped and no answer is awaited, the connection ends.
#[derive(Debug, Clone)]
pub(super) struct Requests(SendRequest<Bytes>);

/// The connection takes a request.
#[derive(Debug)]
pub(super) struct Ready(SendRequest<Bytes>);

/// The body of an answer. What is dropped before its end is no longer sent.
#[derive(Debug)]
pub(crate) struct Incoming(RecvStream);

/// Begins a connection over `stream`, and serves it in a task of its own until it ends, or `meanwhile` does. `window`: bytes that wait to
/// be read, of all answers together.
///
/// # Errors
/// The stream cannot be written to.
pub(super) async fn open<S, F, M>(stream: S, window: u32, meanwhile: M) -> Result<Requests, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    M: FnOnce(Option<PingPong>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (requests, mut connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_header_list_size(MAX_HEADERS)
        .enable_push(false)
        .handshake(stream)
        .await?;
    let meanwhile = Box::pin(meanwhile(connection.ping_pong()));
    tokio::spawn(async move {
        if let Either::Left((Err(error), _)) = select(connection, meanwhile).await {
            // Its words could be the other side's.
            tracing::debug!(reason = ?error.reason(), "a connection to a target ended");
        }
    });
    Ok(Requests(requests))
}

/// Asks for a sign of life, and waits for it for so long. False: none came.
pub(super) async fn is_alive(pings: &mut PingPong, within: Duration) -> bool {
    matches!(tokio::time::timeout(within, pings.ping(Ping::opaque())).await, Ok(Ok(_)))
}

impl Requests {
    /// Waits until the connection takes a request.
    ///
    /// # Errors
    /// It has ended, or takes no more.
    pub(super) async fn ready(self) -> Result<Ready, Error> {
        self.0.ready().await.map(Ready)
    }
}

impl Ready {
    /// Hands a request over; its answer, with its body as it comes, is to be waited for.
    ///
    /// # Errors
    /// It cannot be sent: nothing of it was.
    pub(super) fn ask(
        mut self,
        mut head: Request<()>,
        body: Bytes,
    ) -> Result<impl Future<Output = Result<Response<Incoming>, Error>> + Send, Error> {
        *head.version_mut() = Version::HTTP_2;
        if !body.is_empty() {
            head.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| body.len().into());
        }
        let (answer, mut sending) = self.0.send_request(head, body.is_empty())?;
        if !body.is_empty() {
            // It goes as the other side makes room for it, and goes on without this end.
            sending.send_data(body, true)?;
        }
        Ok(answer.map_ok(|response| response.map(Incoming)))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(match ready!(self.0.poll_data(context)) {
            Some(Ok(data)) => {
                // It is read now: as much more may come.
                let _given_back = self.0.flow_control().release_capacity(data.len());
                Some(Ok(Frame::data(data)))
            }
            // It wants no more of the request, and the answer is whole (RFC 9113, 8.1).
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => None,
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
