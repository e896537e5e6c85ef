//! A closed-loop load generator: each connection sends its next request when the last one is answered.
//!
//! One thread does everything, so that on a small machine the generator takes no core of what it measures for longer
//! than it must, and its own cost is the same for every server it is pointed at.

mod histogram;
mod worker;

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;

use crate::tls::{self, Http, Identity};
pub use histogram::Histogram;

/// Connections of one run, at most.
pub const MAX_CONNECTIONS: usize = 4096;

/// Connections that are held open, at most.
pub const MAX_IDLE: usize = 20_000;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// `https://HOST:PORT/PATH`, or `http://…` for a port on this machine.
    pub url: Uri,
    /// PEM file of the authority to trust; none for `http://`.
    pub ca: Option<PathBuf>,
    /// Client certificate and key, if the server asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// How many at a time.
    pub connections: usize,
    /// Measured time.
    pub measure: Duration,
    /// Time before it, with the same load.
    pub warmup: Duration,
    /// What is sent.
    pub body: Bytes,
    /// Sent beside it.
    pub headers: HeaderMap,
    /// The answer is a stream, which must end with `data: [DONE]`.
    pub stream: bool,
    /// HTTP/2, one request at a time on each connection.
    pub http2: bool,
    /// `GET` without a body, on a new connection each time: what is measured is the handshake.
    pub handshakes: bool,
    /// X25519 as the only key exchange.
    pub classical: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How many connections.
    pub connections: usize,
    /// Measured time.
    pub seconds: f64,
    /// Whole answers with status 200.
    pub completed: u64,
    /// The same per second.
    pub requests_per_second: f64,
    /// Half of the answers were complete after this time, in ms.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// Half of the answers had begun after this time, in ms: the first byte of the body.
    pub ttfb_p50_ms: f64,
    /// Of streams: half of the answers had shown text after this time, in ms.
    pub ttft_p50_ms: Option<f64>,
    /// Of streams: half of the times between two pieces of a body were up to this, in ms. Pieces that come together are one.
    pub gap_p50_ms: Option<f64>,
    /// 99 of 100.
    pub gap_p99_ms: Option<f64>,
    /// Requests without a whole answer: connections refused, cut, streams without an end.
    pub errors: u64,
    /// Status → answers.
    pub statuses: BTreeMap<u16, u64>,
    /// The first error, in words.
    pub first_error: Option<String>,
}

/// What all workers share.
#[derive(Debug)]
struct Target {
    address: SocketAddr,
    /// And the server's name; none for `http://`.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    options: Options,
    /// Answers that arrive from here to `end` are counted.
    begin: Instant,
    end: Instant,
}

/// Runs it. Needs a tokio runtime; one thread is enough.
///
/// # Errors
/// The options are of no use. A server that does not answer is not an error but a count.
pub async fn run(options: Options) -> Result<Report> {
    let target = Arc::new(prepare(options)?);
    let workers: Vec<_> = (0..target.options.connections).map(|_| tokio::spawn(worker::run(target.clone()))).collect();
    let mut sum = worker::Tally::default();
    for worker in workers {
        sum.add(&worker.await?);
    }
    Ok(report(&target.options, &sum))
}

/// Opens `connections` connections, calls `open` when all of them are, and holds them until `end` is ready.
///
/// # Errors
/// One cannot be opened.
pub async fn idle(options: Options, count: usize, open: impl FnOnce(), end: impl Future<Output = ()>) -> Result<()> {
    ensure!(count <= MAX_IDLE, "at most {MAX_IDLE} connections");
    let target = prepare(options)?;
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let connection = worker::connect(&target).await.with_context(|| format!("connection {number}"))?;
        held.push(connection);
    }
    open();
    end.await;
    Ok(())
}

fn prepare(options: Options) -> Result<Target> {
    ensure!((1..=MAX_CONNECTIONS).contains(&options.connections), "from 1 to {MAX_CONNECTIONS} connections");
    let has_tls = options.url.scheme_str() == Some("https");
    ensure!(has_tls || options.url.scheme_str() == Some("http"), "the URL begins with https:// or http://");
    let host = options.url.host().context("a URL without a host")?.trim_matches(['[', ']']).to_owned();
    let port = options.url.port_u16().unwrap_or(if has_tls { 443 } else { 80 });
    let address = (host.as_str(), port).to_socket_addrs()?.next().with_context(|| format!("{host} has no address"))?;
    let tls = if has_tls { Some((tls_client(&options)?, host.try_into()?)) } else { None };
    ensure!(has_tls || !options.http2, "HTTP/2 needs https://");
    let begin = Instant::now() + options.warmup;
    let end = begin + options.measure;
    Ok(Target { address, tls, options, begin, end })
}

fn tls_client(options: &Options) -> Result<Arc<ClientConfig>> {
    let ca = options.ca.as_deref().context("https:// needs an authority to trust")?;
    let identity = options.identity.as_ref().map(|(cert, key)| Identity::read(cert, key)).transpose()?;
    let http = if options.http2 { Http::Two } else { Http::One };
    let client = if options.classical { tls::classical_client } else { tls::client };
    client(ca, identity.as_ref(), http)
}

fn report(options: &Options, sum: &worker::Tally) -> Report {
    let seconds = options.measure.as_secs_f64();
    let ms = |histogram: &Histogram, share: f64| histogram.quantile(share).as_secs_f64() * 1000.0;
    let of_streams = |histogram: &Histogram, share| (histogram.count() > 0).then(|| ms(histogram, share));
    Report {
        connections: options.connections,
        seconds,
        completed: sum.whole.count(),
        requests_per_second: sum.whole.count() as f64 / seconds,
        p50_ms: ms(&sum.whole, 0.5),
        p99_ms: ms(&sum.whole, 0.99),
        max_ms: ms(&sum.whole, 1.0),
        ttfb_p50_ms: ms(&sum.first_byte, 0.5),
        ttft_p50_ms: of_streams(&sum.first_text, 0.5),
        gap_p50_ms: of_streams(&sum.gaps, 0.5),
        gap_p99_ms: of_streams(&sum.gaps, 0.99),
        errors: sum.errors,
        statuses: sum.statuses.clone(),
        first_error: sum.first_error.clone(),
    }
}
