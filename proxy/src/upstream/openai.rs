//! A remote target with an API of the OpenAI kind, and how its answers are read. The engine's are read the same way.
//!
//! Nothing of an upstream is taken on trust: sizes are bounded, every event must be an object of the API's shape, a
//! status is mapped and its text is thrown away.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use postern_wire::json;
use postern_wire::sse::Decoder;
use serde_json::Value;

use super::local::EngineRefusal;
use super::{AttemptError, Reply, Upstream};
use crate::classify::clearance::EgressPermit;
use crate::egress::{Remote, SendError};

/// The most bytes of a whole answer.
const MAX_ANSWER: usize = 16 << 20;
/// The most bytes of one event, and of all that come before the first token.
pub const MAX_EVENT: usize = 1 << 20;
/// The most values (and keys) of one event. A token with twenty alternatives has a hundred.
const MAX_EVENT_VALUES: usize = 20_000;
/// The most bytes of an error that is read for its code.
const MAX_ERROR: usize = 64 << 10;
/// How long an error's body may take.
const ERROR_WITHIN: Duration = Duration::from_secs(2);

/// One remote target.
#[derive(Debug)]
pub struct OpenAi {
    remote: Remote,
    idle: Duration,
}

impl OpenAi {
    /// `idle` bounds the silence between two events.
    #[must_use]
    pub fn new(remote: Remote, idle: Duration) -> Self {
        Self { remote, idle }
    }
}

impl Upstream for OpenAi {
    fn send(&self, permit: EgressPermit) -> BoxFuture<'_, Result<Reply, AttemptError>> {
        async move {
            let stream = permit.stream();
            let response = self.remote.send(permit).await.map_err(|error| match error {
                SendError::Connect => AttemptError::Connect,
                SendError::Broken => AttemptError::Broken,
            })?;
            read(response, stream, self.idle).await
        }
        .boxed()
    }
}

/// Reads the beginning of an answer of the engine on this machine.
///
/// # Errors
/// As [`read`]. Within the answer, why the engine does not go on is said in its own words.
pub(super) async fn read_own(
    response: Response<Incoming>,
    stream: bool,
    idle: Duration,
) -> Result<Reply, AttemptError> {
    let mut reply = read(response, stream, idle).await?;
    if let Reply::Stream(events) = &mut reply {
        events.is_own = true;
    }
    Ok(reply)
}

/// Reads the beginning of an answer.
///
/// # Errors
/// Its status is not 200, or it is not what was asked for.
pub async fn read(response: Response<Incoming>, stream: bool, idle: Duration) -> Result<Reply, AttemptError> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(refused(status, response.into_body()).await);
    }
    let media_type =
        response.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match (stream, essence.as_str()) {
        (true, "text/event-stream") => Ok(Reply::Stream(EventStream::new(response.into_body(), idle))),
        (false, "application/json") => whole(response.into_body()).await.map(Reply::Whole),
        _ => Err(AttemptError::Malformed("content type")),
    }
}

async fn whole(body: Incoming) -> Result<Value, AttemptError> {
    let bytes = match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(AttemptError::Malformed("size")),
        Err(_) => return Err(AttemptError::Died),
    };
    let answer = json::parse(&bytes, &json::Limits::default()).map_err(|_| AttemptError::Malformed("json"))?;
    if answer.get("error").is_some_and(|error| !error.is_null()) {
        return Err(AttemptError::Malformed("error in an answer"));
    }
    let choices = answer.get("choices").and_then(Value::as_array);
    let shaped = choices.is_some_and(|choices| {
        !choices.is_empty() && choices.iter().all(|choice| choice.get("message").is_some_and(Value::is_object))
    });
    if shaped { Ok(answer) } else { Err(AttemptError::Malformed("shape")) }
}

async fn refused(status: StatusCode, body: Incoming) -> AttemptError {
    match status.as_u16() {
        429 => AttemptError::RateLimited,
        401 | 403 => AttemptError::Credentials(status.as_u16()),
        404 => AttemptError::NotFound,
        400 | 413 | 422 => AttemptError::Rejected { context_length: says_context_length(body).await },
        code => AttemptError::Status(code),
    }
}

/// Only the code is looked at, and only for this one word.
async fn says_context_length(body: Incoming) -> bool {
    let Ok(Ok(bytes)) = tokio::time::timeout(ERROR_WITHIN, Limited::new(body, MAX_ERROR).collect()).await else {
        return false;
    };
    let Ok(error) = json::parse(&bytes.to_bytes(), &json::Limits::default()) else { return false };
    error.pointer("/error/code").and_then(Value::as_str) == Some("context_length_exceeded")
}

/// The events of one answer.
pub struct EventStream {
    body: Incoming,
    decoder: Decoder,
    ready: VecDeque<Vec<u8>>,
    replayed: VecDeque<Value>,
    idle: Duration,
    received: usize,
    ended: bool,
    /// Of the engine on this machine.
    is_own: bool,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("EventStream(…)")
    }
}

impl EventStream {
    fn new(body: Incoming, idle: Duration) -> Self {
        let (ready, replayed) = (VecDeque::new(), VecDeque::new());
        Self { body, decoder: Decoder::new(MAX_EVENT), ready, replayed, idle, received: 0, ended: false, is_own: false }
    }

    /// Bytes that came so far.
    #[must_use]
    pub fn received(&self) -> usize {
        self.received
    }

    /// The next event; `None` after `[DONE]`.
    ///
    /// # Errors
    /// Silence, a break, or something that is no event of the API. A stream that ends without `[DONE]` is
    /// [`AttemptError::Died`]: a cut must never look like an end.
    pub async fn next(&mut self) -> Result<Option<Value>, AttemptError> {
        if let Some(event) = self.replayed.pop_front() {
            return Ok(Some(event));
        }
        while !self.ended {
            if let Some(data) = self.ready.pop_front() {
                if data == b"[DONE]" {
                    self.ended = true;
                    return Ok(None);
                }
                return event(&data).map(Some).map_err(|error| match EngineRefusal::of_event(&data) {
                    Some(refusal) if self.is_own => AttemptError::Engine(Box::new(refusal)),
                    _ => error,
                });
            }
            self.receive().await?;
        }
        Ok(None)
    }

    /// Puts back events that were looked at, to come first again.
    pub fn put_back(&mut self, events: VecDeque<Value>) {
        self.replayed = events;
    }

    async fn receive(&mut self) -> Result<(), AttemptError> {
        let frame =
            tokio::time::timeout(self.idle, self.body.frame()).await.map_err(|_| AttemptError::Idle(self.idle))?;
        let frame = frame.ok_or(AttemptError::Died)?.map_err(|_| AttemptError::Died)?;
        if let Ok(data) = frame.into_data() {
            self.received = self.received.saturating_add(data.len());
            let mut events = Vec::new();
            self.decoder.push(&data, &mut events).map_err(|_| AttemptError::Malformed("event size"))?;
            self.ready.extend(events);
        }
        Ok(())
    }
}

/// Which of the `asked` choices one in an answer is; by its place, if it does not say. `None` if nobody asked for it.
#[must_use]
pub fn choice_index(position: usize, choice: &Value, asked: u64) -> Option<u64> {
    let index = match choice.get("index") {
        Some(index) => index.as_u64()?,
        None => position as u64,
    };
    (index < asked).then_some(index)
}

/// Has an event, or a whole answer, none but choices that were asked for?
#[must_use]
pub fn is_asked_for(answer: &Value, asked: u64) -> bool {
    let choices = answer.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    choices.iter().enumerate().all(|(position, choice)| choice_index(position, choice, asked).is_some())
}

/// Reads the data of one event of a stream.
///
/// # Errors
/// It is not JSON that we accept, has not the shape of a chunk, or says that the target failed.
pub fn event(data: &[u8]) -> Result<Value, AttemptError> {
    let limits = json::Limits { values: MAX_EVENT_VALUES, ..json::Limits::default() };
    let event = json::parse(data, &limits).map_err(|_| AttemptError::Malformed("event json"))?;
    if event.get("error").is_some_and(|error| !error.is_null()) {
        return Err(AttemptError::Died);
    }
    let shaped = event.get("choices").is_some_and(|choices| {
        choices.as_array().is_some_and(|choices| choices.iter().all(|c| c.get("delta").is_some_and(Value::is_object)))
    });
    if shaped { Ok(event) } else { Err(AttemptError::Malformed("event shape")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn choices_that_nobody_asked_for_are_noticed() {
        assert!(is_asked_for(&json!({"choices": [{"index": 1}, {"index": 0}]}), 2));
        assert!(is_asked_for(&json!({"choices": [{}]}), 1) && is_asked_for(&json!({"choices": []}), 1));
        for wrong in [json!([{"index": 1}]), json!([{"index": -1}]), json!([{"index": "0"}]), json!([{}, {}])] {
            assert!(!is_asked_for(&json!({"choices": wrong}), 1));
        }
    }
}
