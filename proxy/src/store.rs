//! A Redis that this gateway and others use. Whatever it keeps can be lost at any moment, and while it is away everybody goes on without
//! it: nobody waits for a connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline};

use crate::config::Redis;
use crate::egress::redis::{Away as Refused, Way, said};
use crate::telemetry::metrics::Metrics;

/// How long after one has failed a connection is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// One Redis.
#[derive(Debug)]
pub struct Store {
    way: Way,
    /// What it is for, in metrics.
    used_for: &'static str,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    connections: AtomicU64,
}

#[derive(Debug)]
enum State {
    Away { again: Option<Instant> },
    Connecting,
    There(Line),
}

/// A connection, and its number.
#[derive(Debug, Clone)]
pub struct Line {
    connection: MultiplexedConnection,
    number: u64,
}

impl Line {
    /// Which connection it is: what was told over another one may be lost.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// There is no Redis just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

impl Store {
    /// Connects to nothing yet. `loss`: what is missing while it is away, for the log.
    ///
    /// # Errors
    /// Says what of the configuration cannot be used.
    pub fn new(config: &Redis, used_for: &'static str, loss: &str, metrics: Arc<Metrics>) -> anyhow::Result<Arc<Self>> {
        let way = Way::new(config, loss).map_err(|what| anyhow::anyhow!("redis at {}: {what}", config.place))?;
        metrics.redis_is(used_for, false);
        let (state, connections) = (Mutex::new(State::Away { again: None }), AtomicU64::new(0));
        Ok(Arc::new(Self { way, used_for, metrics, state, connections }))
    }

    /// The connection. Where there is none, one is being made from here on.
    ///
    /// # Errors
    /// There is none yet.
    pub fn line(self: &Arc<Self>) -> Result<Line, Away> {
        let mut state = self.state();
        match &*state {
            State::There(line) => return Ok(line.clone()),
            State::Connecting => return Err(Away),
            State::Away { again } if again.is_some_and(|again| Instant::now() < again) => return Err(Away),
            State::Away { .. } => *state = State::Connecting,
        }
        drop(state);
        let store = self.clone();
        tokio::spawn(async move { store.connect().await });
        Err(Away)
    }

    /// Asks over `line`. A Redis that does not answer in time is away.
    ///
    /// # Errors
    /// It does not answer, or something else than what was asked.
    pub async fn ask<T: FromRedisValue>(&self, line: &Line, what: &Pipeline, within: Duration) -> Result<T, Away> {
        let mut connection = line.connection.clone();
        let asked = tokio::time::timeout(within, what.query_async(&mut connection));
        let why = match asked.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => said(&error),
            Err(_) => "it does not answer in time".to_owned(),
        };
        self.lost(line.number, &why);
        Err(Away)
    }

    /// Gives a connection up.
    fn lost(&self, number: u64, why: &str) {
        let mut state = self.state();
        if matches!(&*state, State::There(there) if there.number == number) {
            *state = State::Away { again: Some(Instant::now() + AGAIN_AFTER) };
            drop(state);
            self.metrics.redis_is(self.used_for, false);
            let Refused = self.way.complain(why);
        }
    }

    async fn connect(self: Arc<Self>) {
        let connected = self.way.connect().await;
        let (connection, driver) = match connected {
            Ok(connected) => connected,
            Err(Refused) => {
                *self.state() = State::Away { again: Some(Instant::now() + AGAIN_AFTER) };
                return;
            }
        };
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        // No copy is kept here: the connection ends when nobody has one.
        *self.state() = State::There(Line { connection, number });
        self.metrics.redis_is(self.used_for, true);
        tracing::info!(used_for = self.used_for, "connected to Redis");
        driver.await;
        self.lost(number, "the connection has ended");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
