//! A Redis that this gateway and others use. Whatever it keeps can be lost at any moment, and while it is away everybody goes on without
//! it: nobody waits for a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline};
use tokio::sync::watch;

use crate::config::Redis;
use crate::egress::redis::{Allowance, Away as Refused, Way, said};
use crate::telemetry::metrics::Metrics;

/// How long after one has failed or ended a connection is made again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often it is told in the log that it is there again: one that refuses all that is asked comes and goes.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// One Redis.
#[derive(Debug)]
pub struct Store {
    way: Way,
    /// What it is for, in metrics.
    used_for: &'static str,
    metrics: Arc<Metrics>,
    line: watch::Sender<Option<Line>>,
}

/// A connection, and its number.
#[derive(Debug, Clone)]
pub struct Line {
    connection: MultiplexedConnection,
    allowance: Arc<Allowance>,
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
    /// Connects to nothing yet. `loss`: what is missing while it is away, for the log; `reply`: bytes of one reply, at most.
    ///
    /// # Errors
    /// Says what of the configuration cannot be used.
    pub fn new(
        config: &Redis,
        (used_for, loss): (&'static str, &str),
        reply: usize,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Arc<Self>> {
        let way = Way::new(config, loss, reply).map_err(|what| anyhow::anyhow!("redis at {}: {what}", config.place))?;
        metrics.redis_is(used_for, false);
        Ok(Arc::new(Self { way, used_for, metrics, line: watch::Sender::new(None) }))
    }

    /// Keeps a connection, for as long as it is polled.
    pub async fn keep_up(&self) {
        let (mut number, mut told) = (0, None::<Instant>);
        let mut lines = self.line.subscribe();
        loop {
            if let Ok((connection, driver, allowance)) = self.way.connect().await {
                number += 1;
                if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                    tracing::info!(used_for = self.used_for, "connected to Redis");
                    told = Some(Instant::now());
                }
                self.metrics.redis_is(self.used_for, true);
                self.line.send_replace(Some(Line { connection, allowance, number }));
                tokio::select! {
                    () = driver => self.lost(number, "the connection has ended"),
                    // Whoever asked has given it up.
                    _ = lines.wait_for(Option::is_none) => {}
                }
                self.metrics.redis_is(self.used_for, false);
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// The connection.
    ///
    /// # Errors
    /// There is none just now.
    pub fn line(&self) -> Result<Line, Away> {
        self.line.borrow().clone().ok_or(Away)
    }

    /// Tells when there is another connection, or none.
    #[must_use]
    pub fn lines(&self) -> watch::Receiver<Option<Line>> {
        self.line.subscribe()
    }

    /// Asks over `line`. A Redis that does not answer in time is away.
    ///
    /// # Errors
    /// It does not answer, or something else than what was asked.
    pub async fn ask<T: FromRedisValue>(&self, line: &Line, what: &Pipeline, within: Duration) -> Result<T, Away> {
        let mut connection = line.connection.clone();
        let _open = line.allowance.ask(what.len());
        let asked = tokio::time::timeout(within, what.query_async(&mut connection));
        let why = match asked.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => said(error),
            Err(_) => "it does not answer in time".to_owned(),
        };
        self.lost(line.number, &why);
        Err(Away)
    }

    /// Gives a connection up over which something came that was not asked for.
    pub fn give_up(&self, line: &Line) -> Away {
        self.lost(line.number, "it answers something else than what was asked");
        Away
    }

    /// Gives a connection up.
    fn lost(&self, number: u64, why: &str) {
        let is_this = |line: &mut Option<Line>| line.take_if(|line| line.number == number).is_some();
        if self.line.send_if_modified(is_this) {
            let Refused = self.way.complain(why);
        }
    }
}
