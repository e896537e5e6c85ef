//! What applications on this machine talk to: HTTP/1.1 on a loopback address, or on a UNIX socket. Who may ask, what is passed on, and
//! how much of it at a time.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_certs::{Clock as _, SystemClock};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::identity::Identity;
use super::link::Link;
use super::refusal::Refusal;
use super::sealing::{Cut, OpenBody};
use super::status;
use super::token::Token;
use crate::request::discard;

/// Connections at a time, each with one request at a time.
pub(crate) const CONNECTIONS: usize = 256;
/// Bytes of one body, and of all that are held at a time.
const MAX_BODY: usize = 32 << 20;
const MAX_BODIES: usize = 64 << 20;
/// For a client to send headers, and for a whole body.
const HEADERS_WITHIN: Duration = Duration::from_secs(20);
const BODY_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of headers, and of what waits to be written.
const MAX_BUFFER: usize = 64 << 10;
/// How often the same reason is told.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// After an error of accept, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

const STATUS_PATH: &str = super::status::PATH;
const FETCH_SITE: &str = "sec-fetch-site";
const PRIVATE_ASKED: &str = "access-control-request-private-network";
const PRIVATE_ALLOWED: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Every body that an application gets.
pub(crate) type Body = UnsyncBoxBody<Bytes, Cut>;

/// Where somebody comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Everybody on this machine can connect.
    Loopback,
    /// Only who may open the file.
    Socket,
}

/// Where connections come from.
pub(crate) trait Entrance {
    const DOOR: Door;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Entrance for TcpListener {
    const DOOR: Door = Door::Loopback;
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Small writes (one token) must not wait for an acknowledgement of the last.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Entrance for UnixListener {
    const DOOR: Door = Door::Socket;
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Requests since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) total: AtomicU64,
    pub(crate) under_way: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// The last that failed.
    last: Mutex<Option<Failure>>,
}

/// A request that got no answer, or not all of one. Nothing of what was asked.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) at: OffsetDateTime,
    pub(crate) refusal: Refusal,
    told_at: Instant,
}

impl Counts {
    /// The last that failed.
    pub(crate) fn last_failure(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes why one failed. The log has the same reason once a minute.
    fn failed_for(&self, refusal: &Refusal) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let told_at = last.as_ref().filter(|last| last.refusal == *refusal).map(|last| last.told_at);
        let told_at = told_at.filter(|at| at.elapsed() < TELL_EVERY).unwrap_or_else(|| {
            tracing::warn!(
                code = refusal.code(),
                error = refusal.told(),
                "a request was not answered, or not to its end"
            );
            Instant::now()
        });
        *last = Some(Failure { at: SystemClock.now(), refusal: refusal.clone(), told_at });
    }
}

/// What requests are answered with.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) link: Arc<Link>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) counts: Arc<Counts>,
    token: Option<Token>,
    /// Of each door, so that nobody without a token keeps out who has the file.
    places: [Arc<Semaphore>; 2],
    bodies: Arc<Semaphore>,
}

impl Front {
    /// `token`: what applications show; `None`: nothing.
    pub(crate) fn new(link: Arc<Link>, identity: Arc<Identity>, token: Option<Token>) -> Self {
        let places = [Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(CONNECTIONS))];
        let bodies = Arc::new(Semaphore::new(MAX_BODIES));
        Self { link, identity, counts: Arc::default(), token, places, bodies }
    }

    /// Serves until `drain`; every connection is then one of `tasks`, ending by itself.
    pub(crate) async fn serve<E: Entrance>(
        self: Arc<Self>,
        entrance: &E,
        drain: CancellationToken,
        tasks: TaskTracker,
    ) {
        let [loopback, socket] = &self.places;
        let places = if E::DOOR == Door::Socket { socket } else { loopback };
        loop {
            let next = async {
                // Whoever is too many waits in the kernel.
                let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((entrance.next().await?, place))
            };
            let accepted = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    tasks.spawn(self.clone().connection(stream, place, E::DOOR, drain.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: Arc<Self>,
        stream: S,
        _place: OwnedSemaphorePermit,
        door: Door,
        drain: CancellationToken,
    ) {
        let service = service_fn(move |request| {
            let front = self.clone();
            async move { Ok::<_, Infallible>(front.answer(door, request).await) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(MAX_BUFFER);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection of an application ended with an error");
        }
    }

    async fn answer(&self, door: Door, request: Request<Incoming>) -> Response<Body> {
        // A page that has no token gets nothing, so each may ask. Without tokens none may.
        let is_shared = door == Door::Loopback && self.token.is_some();
        if is_shared && is_preflight(&request) {
            return preflight(request.headers());
        }
        let answered = match self.admit(door, &request) {
            Ok(()) => self.route(request).await,
            Err(refusal) => {
                discard(request.into_body()).await;
                Err(refusal)
            }
        };
        let mut response = answered.unwrap_or_else(|refusal| {
            let mut response = refusal.response();
            // Whoever may not ask keeps no place.
            if matches!(refusal, Refusal::Token | Refusal::Foreign) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        });
        if is_shared {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        }
        response
    }

    /// Who may ask.
    fn admit<B>(&self, door: Door, request: &Request<B>) -> Result<(), Refusal> {
        if request.version() < Version::HTTP_11 {
            return Err(Refusal::Version);
        }
        match (door, &self.token) {
            (Door::Socket, _) => Ok(()),
            (Door::Loopback, Some(token)) if token.is_in(request.headers()) => Ok(()),
            (Door::Loopback, Some(_)) => Err(Refusal::Token),
            (Door::Loopback, None) if is_from_here(request) => Ok(()),
            (Door::Loopback, None) => Err(Refusal::Foreign),
        }
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path();
        if path.starts_with("/v1/") {
            let mut under_way = UnderWay::new(self.counts.clone());
            let answered = self.forward(request).await;
            under_way.has_failed = answered.is_err();
            if let Err(refusal) = &answered {
                self.counts.failed_for(refusal);
            }
            return answered.map(|response| response.map(|body| Answer { body, under_way }.boxed_unsync()));
        }
        let refusal = match (path, request.method()) {
            (STATUS_PATH, &Method::GET) => return Ok(json(&status::of(self))),
            (STATUS_PATH, _) => Refusal::Method,
            _ => Refusal::NotFound,
        };
        discard(request.into_body()).await;
        Err(refusal)
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<OpenBody<Incoming>>, Refusal> {
        let (parts, body) = request.into_parts();
        let (content, _room) = self.receive(body).await?;
        let mut asked = Request::new(());
        *asked.method_mut() = parts.method;
        *asked.uri_mut() = parts.uri.into_parts().path_and_query.map(Uri::from).ok_or(Refusal::NotFound)?;
        *asked.headers_mut() = parts.headers;
        self.link.ask(&asked, content).await
    }

    /// A whole body, and the room that it takes.
    async fn receive(&self, body: Incoming) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        let too_large = Refusal::TooLarge { limit: MAX_BODY };
        if body.size_hint().lower() > MAX_BODY as u64 {
            discard(body).await;
            return Err(too_large);
        }
        let within = tokio::time::timeout(BODY_WITHIN, self.collect(body));
        within.await.map_err(|_| Refusal::Late { seconds: BODY_WITHIN.as_secs() })?
    }

    async fn collect(&self, mut body: Incoming) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        // What is announced waits for its room as a whole. Waiting for more with some of it taken, all could wait for each other.
        let announced = body.size_hint().exact().and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(0);
        let room = self.bodies.clone().acquire_many_owned(announced).await;
        let mut room = room.map_err(|_| Refusal::Busy)?;
        let mut content = Vec::with_capacity(announced as usize);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Refusal::Cut)?.into_data() else { continue };
            let all = content.len().saturating_add(data.len());
            if all > MAX_BODY {
                discard(body).await;
                return Err(Refusal::TooLarge { limit: MAX_BODY });
            }
            let missing = u32::try_from(all.saturating_sub(room.num_permits())).unwrap_or(u32::MAX);
            if missing > 0 {
                let more = self.bodies.clone().try_acquire_many_owned(missing).map_err(|_| Refusal::Busy)?;
                room.merge(more);
            }
            content.extend_from_slice(&data);
        }
        Ok((content.into(), room))
    }
}

/// Under a loopback name, and not from a web page: the names of others can be made to lead here.
fn is_from_here<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let named = request.uri().authority().map(http::uri::Authority::as_str);
    // Browsers say where a request comes from; `none` is a person who typed the address.
    let is_of_a_page =
        headers.contains_key(header::ORIGIN) || headers.get(FETCH_SITE).is_some_and(|site| site.as_bytes() != b"none");
    !is_of_a_page && host.is_some_and(is_loopback) && named.is_none_or(is_loopback)
}

fn is_loopback(host: &str) -> bool {
    let without_port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = without_port.map_or(host, |(name, _)| name);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a browser asks before it lets a page ask.
fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let mut put = |name, value| headers.insert(name, HeaderValue::from_static(value));
    put(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    put(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, PATCH, DELETE");
    // `*` does not stand for `authorization`.
    put(header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, *");
    put(header::ACCESS_CONTROL_MAX_AGE, "600");
    if asked.contains_key(PRIVATE_ASKED) {
        put(PRIVATE_ALLOWED, "true");
    }
    response
}

fn json(body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Full::from(body.to_string()).map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Counts a request until the last byte of its answer is out.
#[derive(Debug)]
struct UnderWay {
    counts: Arc<Counts>,
    has_failed: bool,
}

impl UnderWay {
    fn new(counts: Arc<Counts>) -> Self {
        counts.total.fetch_add(1, Ordering::Relaxed);
        counts.under_way.fetch_add(1, Ordering::Relaxed);
        Self { counts, has_failed: false }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.counts.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.has_failed {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An answer, counted.
#[derive(Debug)]
struct Answer {
    body: OpenBody<Incoming>,
    under_way: UnderWay,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if self.body.was_cut() && !self.under_way.has_failed {
            self.under_way.has_failed = true;
            self.under_way.counts.failed_for(&Refusal::Incomplete);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_token_only_programs_on_this_machine_may_ask() {
        let asks = |headers: &[(&str, &str)], uri: &str| {
            let mut request = Request::builder().uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_from_here(&request.body(()).unwrap())
        };
        for host in ["127.0.0.1:4141", "localhost", "LocalHost:80", "[::1]:4141", "127.1.2.3"] {
            assert!(asks(&[("host", host)], "/v1/models"), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:4141",
            "localhost.evil.example",
            "192.0.2.1",
            "[2001:db8::1]:1",
            "",
            "127.0.0.1.evil:1",
        ] {
            assert!(!asks(&[("host", host)], "/v1/models"), "{host}");
        }
        assert!(!asks(&[], "/v1/models"));
        assert!(!asks(&[("host", "localhost"), ("origin", "http://localhost:3000")], "/v1/models"));
        assert!(!asks(&[("host", "localhost")], "http://evil.example/v1/models"));
    }
}
