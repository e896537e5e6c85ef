//! A stream of server-sent events, as it arrives. Read by code of its own, so that the gateway's framing is judged by
//! something that does not share its mistakes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use super::{Reply, WITHIN, connect, reply};

/// Bytes of one event.
const MAX_EVENT: usize = 8 << 20;

/// An answer whose events are read one by one.
#[derive(Debug)]
pub struct Events {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// From sending the request to its headers.
    pub headers_at: Duration,
    response: Response<Incoming>,
    _connection: connect::Connection,
    started: Instant,
    text: String,
    undecoded: Vec<u8>,
    ready: VecDeque<Event>,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its data; empty for an event that only has comments.
    pub data: String,
    /// Its comments.
    pub comments: Vec<String>,
    /// Since the request was sent.
    pub at: Duration,
}

impl Event {
    /// The data as JSON; `Null` for `[DONE]` and for what is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }

    /// The text that it adds to the first choice; empty if none.
    #[must_use]
    pub fn delta(&self) -> String {
        let json = self.json();
        json.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or("").to_owned()
    }

    /// `data: [DONE]`.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.data == "[DONE]"
    }

    /// `error.code` of an error in the stream; empty if it is none.
    #[must_use]
    pub fn error_code(&self) -> String {
        self.json().pointer("/error/code").and_then(Value::as_str).unwrap_or("").to_owned()
    }
}

/// What the events say together.
#[must_use]
pub fn text(events: &[Event]) -> String {
    events.iter().map(Event::delta).collect()
}

impl Events {
    pub(super) fn new(response: Response<Incoming>, connection: connect::Connection, started: Instant) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            headers_at: started.elapsed(),
            response,
            _connection: connection,
            started,
            text: String::new(),
            undecoded: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// A header's value; empty if it is absent or not text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The next event; `None` at the end of the body.
    ///
    /// # Errors
    /// The connection broke, an event was not ended or has a line that is none, or nothing came in time.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let frame = tokio::time::timeout(WITHIN, self.response.frame()).await.context("no event in time")?;
            let Some(frame) = frame.transpose()? else {
                let rest = (&self.text, &self.undecoded);
                ensure!(
                    self.text.is_empty() && self.undecoded.is_empty(),
                    "the stream ended within an event: {rest:?}"
                );
                return Ok(None);
            };
            if let Some(bytes) = frame.data_ref() {
                self.take(bytes)?;
            }
        }
    }

    /// All events to the end of the body.
    ///
    /// # Errors
    /// As for [`Events::next`].
    pub async fn rest(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }

    /// The answer as a whole, where it is no stream (an error, say).
    ///
    /// # Errors
    /// The connection broke.
    pub async fn whole(self) -> Result<Reply> {
        reply::collect(self.response, self.started).await
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.undecoded.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.undecoded) {
            Ok(_) => self.undecoded.len(),
            // A character that is cut between two pieces.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(error) => bail!("the stream is not UTF-8: {error}"),
        };
        let rest = self.undecoded.split_off(whole);
        self.text += std::str::from_utf8(&std::mem::replace(&mut self.undecoded, rest))?;
        while let Some((event, rest)) = self.text.split_once("\n\n") {
            let event = parse(event, self.started.elapsed())?;
            self.text = rest.to_owned();
            self.ready.push_back(event);
        }
        ensure!(self.text.len() <= MAX_EVENT, "an event of more than {MAX_EVENT} bytes");
        Ok(())
    }
}

fn parse(event: &str, at: Duration) -> Result<Event> {
    let (mut data, mut comments) = (Vec::new(), Vec::new());
    for line in event.split('\n') {
        match line.split_once(": ") {
            Some(("data", value)) => data.push(value),
            Some(("", comment)) => comments.push(comment.to_owned()),
            _ => bail!("not a line that we send: {line:?}"),
        }
    }
    Ok(Event { data: data.join("\n"), comments, at })
}
