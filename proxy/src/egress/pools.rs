//! Connections to one target: more of them, the more requests are under way there.
//!
//! Over HTTP/2 a pool has one connection, and what is under way on it shares one window: bytes that nobody has read yet count against
//! it. So the window of a connection has room for the windows of all its streams, and no more of them are put on it: clients
//! that do not read hold up nobody but themselves. Servers take a hundred streams or two on a connection as well, and whatever is more
//! would wait without a word.
//!
//! Each [worker](crate::workers) has pools of its own: what comes on a connection is read by the thread that waits for it, mostly. While a
//! worker asks seldom, it borrows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::client::legacy::{Builder, Client, Error};

use crate::workers;

/// Requests of one pool at a time, and as many pools as there may be of all workers.
const REQUESTS_OF_A_POOL: usize = 64;
const MOST_POOLS: usize = 256;
/// Bytes of one answer that may wait to be read. More would make large answers quicker over long distances (this is 2.6 MB/s at 50 ms),
/// and cost as much memory for every client that does not read.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * REQUESTS_OF_A_POOL as u32;
/// Bytes that are read at a time over HTTP/1.1, and of the headers of an answer.
const MAX_READ: usize = 64 << 10;

/// A worker whose connections were used so lately has one that is open: they are kept for twice as long.
const WARM: Duration = Duration::from_secs(30);

/// The pools of one target.
#[derive(Debug)]
pub(super) struct Pools<C> {
    connector: C,
    builder: Builder,
    /// Those of whoever is no worker, and of each worker.
    made: Vec<Mutex<Made<C>>>,
}

#[derive(Debug)]
struct Made<C> {
    pools: Vec<Pool<C>>,
    used: Option<Instant>,
}

#[derive(Debug)]
struct Pool<C> {
    client: Client<C, Full<Bytes>>,
    /// One more of it than requests are under way.
    seats: Seat,
}

/// A request under way, from before it is sent until its answer has been read or dropped.
#[derive(Debug, Clone)]
pub(crate) struct Seat(Arc<()>);

impl<C: Connect + Clone + Send + Sync + 'static> Pools<C> {
    pub(super) fn new(connector: C, mut builder: Builder) -> Self {
        builder
            .http1_max_buf_size(MAX_READ)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
        let made = || Mutex::new(Made { pools: Vec::new(), used: None });
        Self { connector, builder, made: (0..=workers::number()).map(|_| made()).collect() }
    }

    /// Sends a request. The answer has the [`Seat`] among its extensions: whoever reads the body keeps it until the end.
    pub(super) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let (client, seat) = self.take(workers::here());
        let mut response = client.request(request).await?;
        response.extensions_mut().insert(seat);
        Ok(response)
    }

    /// A seat at one of this worker's. While it asks seldom, at another's that is open and that nobody uses: to open one takes longer
    /// than to wake its thread.
    fn take(&self, here: usize) -> (Client<C, Full<Bytes>>, Seat) {
        let now = Instant::now();
        let own = self.made.get(here).or(self.made.first());
        let is_warm = own.is_some_and(|own| lock(own).is_warm(now));
        if !is_warm && let Some(taken) = self.made.iter().find_map(|made| lock(made).idle(now)) {
            return taken;
        }
        let make = || self.builder.build(self.connector.clone());
        match own {
            Some(own) => lock(own).take(now, make),
            None => (make(), Seat(Arc::default())),
        }
    }
}

/// Of one worker.
fn most_pools() -> usize {
    (MOST_POOLS / workers::number()).max(1)
}

fn lock<C>(made: &Mutex<Made<C>>) -> MutexGuard<'_, Made<C>> {
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Clone> Made<C> {
    fn is_warm(&self, now: Instant) -> bool {
        self.used.is_some_and(|used| now.saturating_duration_since(used) < WARM)
    }

    /// A seat where there is an open connection, with nothing under way.
    fn idle(&mut self, now: Instant) -> Option<(Client<C, Full<Bytes>>, Seat)> {
        let pool = self.pools.first().filter(|pool| self.is_warm(now) && pool.under_way() == 0)?;
        self.used = Some(now);
        Some((pool.client.clone(), pool.seats.clone()))
    }

    /// Of the first pool that has a seat left, so that there are as few connections as can be.
    fn take(&mut self, now: Instant, make: impl FnOnce() -> Client<C, Full<Bytes>>) -> (Client<C, Full<Bytes>>, Seat) {
        self.used = Some(now);
        let Self { pools, .. } = self;
        let free = pools.iter().find(|pool| pool.under_way() < REQUESTS_OF_A_POOL);
        let free =
            free.or_else(|| pools.iter().min_by_key(|pool| pool.under_way()).filter(|_| pools.len() >= most_pools()));
        if let Some(pool) = free {
            return (pool.client.clone(), pool.seats.clone());
        }
        let pool = Pool { client: make(), seats: Seat(Arc::default()) };
        let taken = (pool.client.clone(), pool.seats.clone());
        pools.push(pool);
        taken
    }
}

impl<C> Pool<C> {
    fn under_way(&self) -> usize {
        Arc::strong_count(&self.seats.0).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{pool, tcp};
    use super::*;

    #[tokio::test]
    async fn no_connection_has_more_under_way_than_its_window_has_room_for() {
        let pools = Pools::new(tcp(), pool());
        let under_way = || -> Vec<usize> { lock(&pools.made[0]).pools.iter().map(Pool::under_way).collect() };
        let mut seats: Vec<Seat> = (0..150).map(|_| pools.take(0).1).collect();
        assert_eq!(under_way(), [64, 64, 22]);
        assert!(CONNECTION_WINDOW as usize >= REQUESTS_OF_A_POOL * STREAM_WINDOW as usize);
        // Those of the first connection end; what comes next takes their seats.
        seats.drain(..60);
        seats.extend((0..40).map(|_| pools.take(0).1));
        assert_eq!(under_way(), [44, 64, 22]);
    }

    #[tokio::test]
    async fn a_worker_opens_connections_of_its_own_when_those_of_others_are_in_use() {
        let pools = Pools::new(tcp(), pool());
        let made = || -> Vec<usize> { pools.made.iter().map(|made| lock(made).pools.len()).collect() };
        drop(pools.take(0));
        // Nobody uses that one.
        drop(pools.take(1));
        assert_eq!(made()[..2], [1, 0]);
        let in_use = pools.take(0);
        drop(pools.take(1));
        assert_eq!(made()[..2], [1, 1]);
        // From now on it has its own.
        drop(in_use);
        let _own = pools.take(1);
        assert_eq!(lock(&pools.made[1]).pools[0].under_way(), 1);
    }
}
