//! One call of `FetchX509SVID`: gRPC with a stream of answers, over HTTP/2 on a UNIX socket.
//!
//! Sources: "gRPC over HTTP2" (grpc/grpc, `PROTOCOL-HTTP2.md`) for framing and status; SPIFFE Workload Endpoint,
//! sections 3 and 6, for the header that every request bears and for what a status means.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::{IssuerError, MAX_MESSAGE_BYTES};
use crate::egress;

/// The published proto has no package, so its service has no prefix.
const URI: &str = "http://localhost/SpiffeWorkloadAPI/FetchX509SVID";
/// Refused without it, so that nobody reaches the agent through a server that can be made to send requests.
const SECURITY_HEADER: HeaderName = HeaderName::from_static("workload.spiffe.io");
/// `X509SVIDRequest` has no fields: not compressed, 0 bytes.
const EMPTY_REQUEST: &[u8] = &[0; PREFIX_BYTES];
/// Compressed or not, and the length.
const PREFIX_BYTES: usize = 5;

/// An agent that was stopped but not ended is noticed. Servers of grpc-go, as SPIRE's agent is, close connections that
/// are pinged more than once in five minutes.
const PING_EVERY: Duration = Duration::from_secs(6 * 60);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// Characters of an agent's message that go into ours.
const MAX_STATUS_CHARS: usize = 200;

/// An open stream. The connection ends when this is dropped.
pub(super) struct Call {
    socket: PathBuf,
    body: Incoming,
    frames: Frames,
    within: Duration,
    first_by: Instant,
    _connection: AbortOnDropHandle<()>,
    _requests: SendRequest<Full<Bytes>>,
}

impl fmt::Debug for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Call").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Call {
    /// Connects and asks, `within` so much time; the first message has as much again.
    pub(super) async fn open(socket: &Path, within: Duration) -> Result<Self, IssuerError> {
        match tokio::time::timeout(within, Self::ask(socket, within)).await {
            Ok(asked) => asked,
            Err(_) => Err(broken(socket, format!("did not answer within {} s", within.as_secs_f32()))),
        }
    }

    async fn ask(socket: &Path, within: Duration) -> Result<Self, IssuerError> {
        let stream = egress::dial_unix(socket).await;
        let stream = stream.map_err(|error| broken(socket, format!("cannot be reached: {error}")))?;
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PONG_WITHIN);
        let not_http2 = |error: hyper::Error| broken(socket, format!("does not speak HTTP/2: {error}"));
        let (mut requests, connection) = http.handshake(TokioIo::new(stream)).await.map_err(not_http2)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // Whoever reads the body is told as well.
            let _ = connection.await;
        }));
        let response = requests.send_request(request()).await.map_err(not_http2)?;
        check_headers(&response, socket)?;
        Ok(Self {
            socket: socket.to_owned(),
            body: response.into_body(),
            frames: Frames::default(),
            within,
            first_by: Instant::now() + within,
            _connection: connection,
            _requests: requests,
        })
    }

    /// The next message; `None`: the stream is over, and nothing is wrong. Unless the stream `has_begun`, it has to
    /// come soon.
    pub(super) async fn message(&mut self, has_begun: bool) -> Result<Option<Zeroizing<Vec<u8>>>, IssuerError> {
        if has_begun {
            return self.wait().await;
        }
        let waited = tokio::time::timeout_at(self.first_by, self.wait()).await;
        waited.unwrap_or_else(|_| {
            Err(broken(&self.socket, format!("sent nothing within {} s", self.within.as_secs_f32())))
        })
    }

    async fn wait(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, IssuerError> {
        loop {
            match self.frames.take() {
                Ok(Some(message)) => return Ok(Some(message)),
                Ok(None) => {}
                Err(what) => return Err(IssuerError::Message { socket: self.socket.clone(), what }),
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.frames.push(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return status(&trailers, &self.socket).map(|()| None);
                    }
                },
                // A server that goes away; what was sent so far is whole or is thrown away.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}

fn request() -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from_static(EMPTY_REQUEST)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(URI);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("postern/", env!("CARGO_PKG_VERSION"))));
    headers.insert(SECURITY_HEADER, HeaderValue::from_static("true"));
    request
}

/// An answer without messages has its status among the headers.
fn check_headers(response: &Response<Incoming>, socket: &Path) -> Result<(), IssuerError> {
    let headers = response.headers();
    let is_grpc = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if response.status() != StatusCode::OK || !is_grpc {
        return Err(not_workload_api(
            socket,
            format!("it answers with HTTP status {}, not with gRPC", response.status().as_u16()),
        ));
    }
    if headers.contains_key("grpc-status") { status(headers, socket) } else { Ok(()) }
}

/// What a gRPC status means here (SPIFFE Workload Endpoint, appendix A).
fn status(headers: &HeaderMap, socket: &Path) -> Result<(), IssuerError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (code, message) = (text("grpc-status"), text("grpc-message"));
    // Not trusted to be short, or to be one line.
    let message: String = message.chars().take(MAX_STATUS_CHARS).flat_map(char::escape_default).collect();
    match code {
        "0" => Ok(()),
        "7" => Err(IssuerError::NoIdentity { socket: socket.to_owned(), what: format!("PermissionDenied, {message}") }),
        "3" => Err(not_workload_api(socket, format!("InvalidArgument, {message}"))),
        "12" => Err(not_workload_api(socket, format!("Unimplemented, {message}"))),
        "14" => Err(broken(socket, format!("is not available: {message}"))),
        _ => {
            let code: String = code.chars().filter(char::is_ascii_digit).take(3).collect();
            Err(broken(socket, format!("ended the stream with gRPC status {code}: {message}")))
        }
    }
}

fn broken(socket: &Path, what: impl Into<String>) -> IssuerError {
    IssuerError::Agent { socket: socket.to_owned(), what: what.into() }
}

fn not_workload_api(socket: &Path, what: impl Into<String>) -> IssuerError {
    IssuerError::NotWorkloadApi { socket: socket.to_owned(), what: what.into() }
}

/// Bytes as they come → messages. Holds one message and one HTTP/2 frame at most.
#[derive(Default)]
struct Frames {
    buffer: Zeroizing<Vec<u8>>,
}

impl Frames {
    fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole message.
    fn take(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        let Some((&[compressed, a, b, c, d], rest)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        if compressed != 0 {
            return Err("it compresses its messages, which nobody offered to read".to_owned());
        }
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE_BYTES {
            return Err(format!("its message is longer than {MAX_MESSAGE_BYTES} bytes"));
        }
        let Some((message, after)) = rest.split_at_checked(length) else {
            // At once: a buffer that grows leaves copies of the key behind in freed memory.
            let missing = length - rest.len();
            self.buffer.reserve(missing);
            return Ok(None);
        };
        let (message, after) = (Zeroizing::new(message.to_vec()), Zeroizing::new(after.to_vec()));
        self.buffer = after;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        bytes
    }

    proptest! {
        /// However a stream is cut into pieces, the messages are the same.
        #[test]
        fn messages_do_not_depend_on_where_they_are_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..6),
            pieces in prop::collection::vec(1..20_usize, 1..40),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
            let (mut frames, mut read, mut rest) = (Frames::default(), Vec::new(), &stream[..]);
            for length in pieces.iter().cycle() {
                let (piece, after) = rest.split_at((*length).min(rest.len()));
                frames.push(piece);
                while let Some(message) = frames.take().unwrap() {
                    read.push(message.to_vec());
                }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(read, messages);
            prop_assert!(frames.buffer.is_empty());
        }
    }

    #[test]
    fn what_is_too_long_or_compressed_is_refused_before_it_is_kept() {
        let mut frames = Frames::default();
        frames.push(&[0, 0, 0x40, 0, 1]);
        assert!(frames.take().unwrap_err().contains("longer than 4194304"));
        let mut frames = Frames::default();
        frames.push(&[0, 0, 0x40, 0, 0]);
        assert_eq!(frames.take().unwrap(), None, "exactly the bound");
        let mut frames = Frames::default();
        frames.push(&[1, 0, 0, 0, 1]);
        assert!(frames.take().unwrap_err().contains("compresses"));
    }

    #[test]
    fn a_status_is_told_in_words_that_are_short_and_one_line() {
        let socket = Path::new("/run/agent.sock");
        let said = |code: &'static str, message: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from_static(code));
            headers.insert("grpc-message", HeaderValue::from_str(message).unwrap());
            status(&headers, socket)
        };
        assert!(said("0", "").is_ok());
        assert!(matches!(said("7", "no identity issued"), Err(IssuerError::NoIdentity { .. })));
        assert!(matches!(said("3", ""), Err(IssuerError::NotWorkloadApi { .. })));
        assert!(matches!(said("12", ""), Err(IssuerError::NotWorkloadApi { .. })));
        assert!(matches!(said("14", ""), Err(IssuerError::Agent { .. })));
        assert!(matches!(status(&HeaderMap::new(), socket), Err(IssuerError::Agent { .. })), "none at all");
        let long = said("2", &"x\t".repeat(5000)).unwrap_err().to_string();
        assert!(long.contains("status 2: x\\tx") && long.len() < 600, "{long}");
    }
}
