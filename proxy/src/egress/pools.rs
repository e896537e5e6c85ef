//! Connections to one target: more of them, the more requests are under way there.
//!
//! Over HTTP/2 a pool has one connection, and what is under way on it shares one window: bytes that nobody has read yet count against
//! it. So the window of a connection has room for the windows of all its streams, and no more of them are put on it: clients
//! that do not read hold up nobody but themselves. Servers take a hundred streams or two on a connection as well, and whatever is more
//! would wait without a word.
//!
//! Each [worker](crate::workers) has pools of its own: what comes on a connection is read by the thread that waits for it, mostly. While a
//! worker asks seldom, it borrows.
//!
//! Which HTTP a target speaks is known when the first connection of a pool is open. From then on the pool goes by it: to its connection
//! of HTTP/2 ([`http2`]), or to hyper's client.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use hyper_util::client::legacy::{Client, Error as Http1Error};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::{ConnectError, IDLE_FOR, http2, pool};
use crate::workers;

/// Requests of one pool at a time, and as many pools as there may be of all workers.
const REQUESTS_OF_A_POOL: usize = 64;
const MOST_POOLS: usize = 256;
const CONNECTION_WINDOW: u32 = http2::STREAM_WINDOW * REQUESTS_OF_A_POOL as u32;
/// Bytes that are read at a time over HTTP/1.1, and of the headers of an answer.
const MAX_READ: usize = 64 << 10;
/// How often a request is handed to a connection that turns out to have ended.
const ATTEMPTS: usize = 3;

/// A worker whose connections were used so lately has one that is open: they are kept for twice as long.
const WARM: Duration = Duration::from_secs(30);
/// How often it is looked whether a connection is of use.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// What was connected so long ago may have ended.
const FRESH: Duration = Duration::from_secs(1);

/// Makes connections, and says of each which HTTP it is for.
pub(super) trait Connector:
    Service<Uri, Response = Self::Stream, Error = ConnectError, Future = Connecting<Self::Stream>>
    + Clone
    + Send
    + Sync
    + 'static
{
    type Stream: Read + Write + Connection + Unpin + Send + 'static;
}

pub(super) type Connecting<S> = Pin<Box<dyn Future<Output = Result<S, ConnectError>> + Send>>;

impl<C, S> Connector for C
where
    C: Service<Uri, Response = S, Error = ConnectError, Future = Connecting<S>> + Clone + Send + Sync + 'static,
    S: Read + Write + Connection + Unpin + Send + 'static,
{
    type Stream = S;
}

/// The pools of one target.
#[derive(Debug)]
pub(super) struct Pools<C: Connector> {
    connector: C,
    /// How often a silent connection of HTTP/2 is asked whether the other side is still there.
    ping_every: Option<Duration>,
    /// Those of whoever is no worker, and of each worker.
    made: Vec<Mutex<Made<C>>>,
}

#[derive(Debug)]
struct Made<C: Connector> {
    pools: Vec<Pool<C>>,
    used: Option<Instant>,
}

#[derive(Debug)]
struct Pool<C: Connector> {
    line: Arc<Line<C>>,
    /// One more of it than requests are under way.
    seats: Seat,
}

/// A request under way, from before it is sent until its answer has been read or dropped.
#[derive(Debug, Clone)]
pub(crate) struct Seat(Arc<()>);

/// Where the requests of a pool go.
struct Line<C: Connector> {
    dialled: Mutex<Dialled>,
    http1: Client<Handing<C>, Full<Bytes>>,
    /// The first connection, if it is for that client.
    handed: Handed<C::Stream>,
}

impl<C: Connector> std::fmt::Debug for Line<C> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Line(…)")
    }
}

struct Dialled {
    way: Option<Dialling>,
    used: Instant,
}

/// Under way until it is known what the target speaks.
type Dialling = Shared<BoxFuture<'static, Result<Way, NotConnected>>>;
type NotConnected = Arc<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Clone)]
enum Way {
    Http1,
    Http2(http2::Requests),
}

/// Why no answer began.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// There is no connection.
    #[error("no connection")]
    Connect(#[source] NotConnected),
    #[error("{0}")]
    Http1(#[from] Http1Error),
    #[error("no answer")]
    Http2(#[from] h2::Error),
}

impl RequestError {
    pub(super) fn is_connect(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Http1(error) => error.is_connect(),
            Self::Http2(_) => false,
        }
    }
}

/// The body of an answer as it comes.
#[derive(Debug)]
pub(crate) enum Received {
    Http1(Incoming),
    Http2(http2::Incoming),
}

impl Body for Received {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Http2(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }
}

impl<C: Connector> Pools<C> {
    pub(super) fn new(connector: C, ping_every: Option<Duration>) -> Self {
        let made = || Mutex::new(Made { pools: Vec::new(), used: None });
        Self { connector, ping_every, made: (0..=workers::number()).map(|_| made()).collect() }
    }

    /// Sends a request. The answer has the [`Seat`] among its extensions: whoever reads the body keeps it until the end.
    pub(super) async fn request(&self, request: Request<Bytes>) -> Result<Response<Received>, RequestError> {
        let (line, seat) = self.take(workers::here());
        let mut response = self.ask(&line, &seat, request).await?;
        response.extensions_mut().insert(seat);
        Ok(response)
    }

    async fn ask(
        &self,
        line: &Arc<Line<C>>,
        seat: &Seat,
        request: Request<Bytes>,
    ) -> Result<Response<Received>, RequestError> {
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (dialling, is_new) = self.way(line, seat, head.uri());
            let way = dialling.clone().await.map_err(|error| {
                line.forget(&dialling);
                RequestError::Connect(error)
            })?;
            let requests = match way {
                Way::Http1 => {
                    let response = line.http1.request(head.map(|()| Full::new(body))).await?;
                    return Ok(response.map(Received::Http1));
                }
                Way::Http2(requests) => requests.ready().await,
            };
            match requests {
                Ok(ready) => return Ok(ready.ask(head, body)?.await?.map(Received::Http2)),
                // It has ended since it was used last.
                Err(error) => {
                    line.forget(&dialling);
                    if is_new || attempt >= ATTEMPTS {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Where this pool's requests go, and whether that is new.
    fn way(&self, line: &Arc<Line<C>>, seat: &Seat, to: &Uri) -> (Dialling, bool) {
        let mut dialled = line.lock();
        dialled.used = Instant::now();
        if let Some(way) = &dialled.way {
            return (way.clone(), false);
        }
        let use_of = UseOf { line: Arc::downgrade(line), seats: Arc::downgrade(&seat.0), ping_every: self.ping_every };
        // In a task of its own: whoever asked first may not wait for it to the end.
        let dialling = tokio::spawn(dial(self.connector.clone(), to.clone(), use_of, line.handed.clone()));
        let dialling = async move { dialling.await.unwrap_or_else(|error| Err(Arc::new(error))) };
        (dialled.way.insert(dialling.boxed().shared()).clone(), true)
    }

    /// A seat at one of this worker's. While it asks seldom, at another's that is open and that nobody uses: to open one takes longer
    /// than to wake its thread.
    fn take(&self, here: usize) -> (Arc<Line<C>>, Seat) {
        let now = Instant::now();
        let own = self.made.get(here).or(self.made.first());
        let is_warm = own.is_some_and(|own| lock(own).is_warm(now));
        if !is_warm && let Some(taken) = self.made.iter().find_map(|made| lock(made).idle(now)) {
            return taken;
        }
        let make = || Arc::new(Line::new(&self.connector, now));
        match own {
            Some(own) => lock(own).take(now, make),
            None => (make(), Seat(Arc::default())),
        }
    }
}

/// Opens the first connection of a pool.
async fn dial<C: Connector>(
    mut connector: C,
    to: Uri,
    use_of: UseOf<C>,
    handed: Handed<C::Stream>,
) -> Result<Way, NotConnected> {
    let stream = connector.call(to).await?;
    if !stream.connected().is_negotiated_h2() {
        handed.put(stream);
        return Ok(Way::Http1);
    }
    let requests = http2::open(TokioIo::new(stream), CONNECTION_WINDOW, |pings| use_of.ends(pings)).await;
    Ok(Way::Http2(requests.map_err(|error| -> NotConnected { Arc::new(error) })?))
}

/// Who uses a connection of HTTP/2.
struct UseOf<C: Connector> {
    line: Weak<Line<C>>,
    seats: Weak<()>,
    ping_every: Option<Duration>,
}

impl<C: Connector> UseOf<C> {
    /// Lets go of a connection that nobody has used for long; it ends then. Ends itself if the other side is no longer there.
    async fn ends(self, pings: Option<h2::PingPong>) {
        let mut pings = pings.zip(self.ping_every);
        loop {
            tokio::time::sleep(self.ping_every.unwrap_or(LOOK_EVERY)).await;
            let held = self.line.upgrade();
            let others = self.seats.strong_count().saturating_sub(usize::from(held.is_some()));
            if others > 0 {
                if let Some((pings, within)) = &mut pings
                    && !http2::is_alive(pings, *within).await
                {
                    return;
                }
            } else if let Some(line) = held {
                line.forget_if_idle();
            }
        }
    }
}

impl<C: Connector> Line<C> {
    fn new(connector: &C, now: Instant) -> Self {
        let handed = Handed::default();
        let mut builder = pool();
        builder.http1_max_buf_size(MAX_READ);
        builder.http2_initial_stream_window_size(http2::STREAM_WINDOW);
        builder.http2_initial_connection_window_size(CONNECTION_WINDOW);
        let http1 = builder.build(Handing { first: handed.clone(), connector: connector.clone() });
        Self { dialled: Mutex::new(Dialled { way: None, used: now }), http1, handed }
    }

    fn lock(&self) -> MutexGuard<'_, Dialled> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was dialled is of no use.
    fn forget(&self, dialling: &Dialling) {
        let mut dialled = self.lock();
        if dialled.way.as_ref().is_some_and(|way| way.ptr_eq(dialling)) {
            dialled.way = None;
        }
    }

    /// Whoever has it already uses it to the end.
    fn forget_if_idle(&self) {
        let mut dialled = self.lock();
        if dialled.used.elapsed() >= IDLE_FOR {
            dialled.way = None;
        }
    }
}

/// A connection that was opened to see what the target speaks, for hyper's client.
struct Handed<S>(Arc<Mutex<Option<(Instant, S)>>>);

impl<S> Clone for Handed<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Handed<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Handed<S> {
    fn put(&self, stream: S) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), stream));
    }

    fn take(&self) -> Option<S> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.filter(|(at, _)| at.elapsed() < FRESH).map(|(_, stream)| stream)
    }
}

/// Connects, but for the first connection, which is there.
struct Handing<C: Connector> {
    first: Handed<C::Stream>,
    connector: C,
}

impl<C: Connector> Clone for Handing<C> {
    fn clone(&self) -> Self {
        Self { first: self.first.clone(), connector: self.connector.clone() }
    }
}

impl<C: Connector> Service<Uri> for Handing<C> {
    type Response = C::Stream;
    type Error = ConnectError;
    type Future = Connecting<C::Stream>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self.first.take() {
            Some(stream) => Box::pin(std::future::ready(Ok(stream))),
            None => self.connector.call(uri),
        }
    }
}

/// Of one worker.
fn most_pools() -> usize {
    (MOST_POOLS / workers::number()).max(1)
}

fn lock<C: Connector>(made: &Mutex<Made<C>>) -> MutexGuard<'_, Made<C>> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Connector> Made<C> {
    fn is_warm(&self, now: Instant) -> bool {
        self.used.is_some_and(|used| now.saturating_duration_since(used) < WARM)
    }

    /// A seat where there is an open connection, with nothing under way.
    fn idle(&mut self, now: Instant) -> Option<(Arc<Line<C>>, Seat)> {
        let pool = self.pools.first().filter(|pool| self.is_warm(now) && pool.under_way() == 0)?;
        self.used = Some(now);
        Some((pool.line.clone(), pool.seats.clone()))
    }

    /// Of the first pool that has a seat left, so that there are as few connections as can be.
    fn take(&mut self, now: Instant, make: impl FnOnce() -> Arc<Line<C>>) -> (Arc<Line<C>>, Seat) {
        self.used = Some(now);
        let Self { pools, .. } = self;
        let free = pools.iter().find(|pool| pool.under_way() < REQUESTS_OF_A_POOL);
        let free =
            free.or_else(|| pools.iter().min_by_key(|pool| pool.under_way()).filter(|_| pools.len() >= most_pools()));
        if let Some(pool) = free {
            return (pool.line.clone(), pool.seats.clone());
        }
        let pool = Pool { line: make(), seats: Seat(Arc::default()) };
        let taken = (pool.line.clone(), pool.seats.clone());
        pools.push(pool);
        taken
    }
}

impl<C: Connector> Pool<C> {
    fn under_way(&self) -> usize {
        Arc::strong_count(&self.seats.0).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests;
