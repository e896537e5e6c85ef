//! One connection and its requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Histogram, Target};
use crate::client::Connection;

/// The longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// After an error, so that a server that is down is not a busy loop.
const AFTER_ERROR: Duration = Duration::from_millis(10);
const END_OF_STREAM: &[u8] = b"data: [DONE]\n\n";

/// What came of the requests of some connections.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Times to the last byte, of status 200.
    pub(super) whole: Histogram,
    /// Times to the first byte of the body, of the same.
    pub(super) first_byte: Histogram,
    /// Of streams: times to the first text of the answer.
    pub(super) first_text: Histogram,
    /// Of streams: times between one piece of the body and the next.
    pub(super) gaps: Histogram,
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.whole.add(&other.whole);
        self.first_byte.add(&other.first_byte);
        self.first_text.add(&other.first_text);
        self.gaps.add(&other.gaps);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
    }

    fn count(&mut self, answer: &Answer) {
        *self.statuses.entry(answer.status).or_default() += 1;
        if answer.status == 200 {
            self.whole.record(answer.whole);
            self.first_byte.record(answer.first_byte);
            if let Some(time) = answer.first_text {
                self.first_text.record(time);
            }
            answer.gaps.iter().for_each(|gap| self.gaps.record(*gap));
        }
    }
}

struct Answer {
    status: u16,
    first_byte: Duration,
    first_text: Option<Duration>,
    gaps: Vec<Duration>,
    whole: Duration,
}

/// Sends until the end of the measured time.
pub(super) async fn run(target: Arc<Target>) -> Tally {
    let mut tally = Tally::default();
    let mut open = None;
    while Instant::now() < target.end {
        // An answer that comes after the end is not counted, so it is not waited for either.
        let left = target.end - Instant::now();
        let Ok(result) = tokio::time::timeout(left, once(&target, &mut open)).await else { break };
        let counts = Instant::now() >= target.begin;
        match result {
            Ok(answer) if counts => tally.count(&answer),
            Ok(_) => {}
            Err(error) => {
                if counts {
                    tally.errors += 1;
                    tally.first_error.get_or_insert_with(|| format!("{error:#}"));
                }
                open = None;
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
    tally
}

async fn once(target: &Target, open: &mut Option<Connection>) -> Result<Answer> {
    if target.options.handshakes {
        let asked = tokio::time::timeout(ANSWER_WITHIN, async {
            let begun = Instant::now();
            let mut connection = connect(target).await.context("connecting")?;
            let answer = exchange(target, &mut connection, request(target)?).await?;
            Ok(Answer { whole: begun.elapsed(), ..answer })
        });
        return asked.await.context("no answer in time")?;
    }
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(connect(target).await.context("connecting")?),
    };
    let request = request(target)?;
    tokio::time::timeout(ANSWER_WITHIN, exchange(target, connection, request)).await.context("no answer in time")?
}

async fn exchange(
    target: &Target,
    connection: &mut Connection,
    request: Request<Full<bytes::Bytes>>,
) -> Result<Answer> {
    let sent = Instant::now();
    let response = connection.send(request).await?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let (mut first_byte, mut first_text, mut last, mut gaps) = (None, None, None, Vec::new());
    let mut tail = Vec::with_capacity(2 * END_OF_STREAM.len());
    while let Some(frame) = body.frame().await {
        let frame = frame.context("within an answer")?;
        let Some(bytes) = frame.data_ref() else { continue };
        let now = sent.elapsed();
        first_byte.get_or_insert(now);
        if target.options.stream {
            gaps.extend(last.replace(now).map(|last| now - last));
            if first_text.is_none() && has_text(bytes) {
                first_text = Some(now);
            }
            tail.extend_from_slice(bytes);
            tail.drain(..tail.len().saturating_sub(END_OF_STREAM.len()));
        }
    }
    let whole = sent.elapsed();
    ensure!(!target.options.stream || status != 200 || tail == END_OF_STREAM, "a stream without [DONE]");
    Ok(Answer { status, first_byte: first_byte.unwrap_or(whole), first_text, gaps, whole })
}

/// Is there a delta with text in it, as far as it stands in one piece?
fn has_text(bytes: &[u8]) -> bool {
    const BEFORE: &[u8] = b"\"content\":\"";
    bytes.windows(BEFORE.len() + 1).any(|window| window.starts_with(BEFORE) && !window.ends_with(b"\""))
}

fn request(target: &Target) -> Result<Request<Full<bytes::Bytes>>> {
    let body = if target.options.handshakes { bytes::Bytes::new() } else { target.options.body.clone() };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = if target.options.handshakes { Method::GET } else { Method::POST };
    *request.uri_mut() = target.options.url.clone();
    *request.headers_mut() = target.options.headers.clone();
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(request)
}

pub(super) async fn connect(target: &Target) -> Result<Connection> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let Some((tls, name)) = &target.tls else { return Connection::one(stream).await };
    Connection::over(TlsConnector::from(tls.clone()).connect(name.clone(), stream).await?).await
}
