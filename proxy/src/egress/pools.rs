//! Connections to one target: more of them, the more requests are under way there.
//!
//! Over HTTP/2 a pool has one connection, and what is under way on it shares one window: bytes that nobody has read yet count against
//! it. So the window of a connection has room for the windows of all its streams, and no more of them are put on it: clients
//! that do not read hold up nobody but themselves. Servers take a hundred streams or two on a connection as well, and whatever is more
//! would wait without a word.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::client::legacy::{Builder, Client, Error};

/// Requests of one pool at a time, and as many pools as there may be.
const REQUESTS_OF_A_POOL: usize = 64;
const MOST_POOLS: usize = 256;
/// Bytes of one answer that may wait to be read. More would make large answers quicker over long distances (this is 2.6 MB/s at 50 ms),
/// and cost as much memory for every client that does not read.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * REQUESTS_OF_A_POOL as u32;
/// Bytes that are read at a time over HTTP/1.1, and of the headers of an answer.
const MAX_READ: usize = 64 << 10;

/// The pools of one target.
#[derive(Debug)]
pub(super) struct Pools<C> {
    connector: C,
    builder: Builder,
    made: Mutex<Vec<Pool<C>>>,
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
        Self { connector, builder, made: Mutex::default() }
    }

    /// Sends a request. The answer has the [`Seat`] among its extensions: whoever reads the body keeps it until the end.
    pub(super) async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let (client, seat) = self.take();
        let mut response = client.request(request).await?;
        response.extensions_mut().insert(seat);
        Ok(response)
    }

    /// Of the first pool that has a seat left, so that there are as few connections as can be.
    fn take(&self) -> (Client<C, Full<Bytes>>, Seat) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let free = made.iter().find(|pool| pool.under_way() < REQUESTS_OF_A_POOL);
        let free =
            free.or_else(|| made.iter().min_by_key(|pool| pool.under_way()).filter(|_| made.len() >= MOST_POOLS));
        if let Some(pool) = free {
            return (pool.client.clone(), pool.seats.clone());
        }
        let client = self.builder.build(self.connector.clone());
        let pool = Pool { client: client.clone(), seats: Seat(Arc::default()) };
        let seat = pool.seats.clone();
        made.push(pool);
        (client, seat)
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
        let under_way = || -> Vec<usize> { pools.made.lock().unwrap().iter().map(Pool::under_way).collect() };
        let mut seats: Vec<Seat> = (0..150).map(|_| pools.take().1).collect();
        assert_eq!(under_way(), [64, 64, 22]);
        assert!(CONNECTION_WINDOW as usize >= REQUESTS_OF_A_POOL * STREAM_WINDOW as usize);
        // Those of the first connection end; what comes next takes their seats.
        seats.drain(..60);
        seats.extend((0..40).map(|_| pools.take().1));
        assert_eq!(under_way(), [44, 64, 22]);
    }
}
