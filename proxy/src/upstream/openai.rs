//! A remote target with an API of the OpenAI kind, and how its answers are read. The engine's are read the same way.
//!
//! Nothing of an upstream is taken on trust: sizes are bounded, every event must be an object of the API's shape, a
//! status is mapped and its text is thrown away.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use postern_wire::call::Endpoint;
use postern_wire::completion::{self, Part};
use postern_wire::json;
use postern_wire::json::Value;
use postern_wire::sse::{self, Decoder};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio_util::sync::CancellationToken;

use super::breaker::Health;
use super::local::EngineRefusal;
use super::progress::Progress;
use super::standing::{Said, Turn};
use super::{Asks, AttemptError, Reply, Upstream, members, scrape, tokens_used};
use crate::classify::clearance::{EgressPermit, Refusal};
use crate::egress::{Answer, Received, Remote, Seat, SendError};
use crate::workers;

/// The most bytes of a whole answer.
const MAX_ANSWER: usize = 16 << 20;
/// The most bytes of one event, and of all that come before the first token.
pub const MAX_EVENT: usize = 1 << 20;
/// The most values (and keys) of one event. A token with twenty alternatives has a hundred.
const MAX_EVENT_VALUES: usize = 20_000;
/// The most bytes of an error that is read for its code.
const MAX_ERROR: usize = 64 << 10;
/// The longest time that a target may ask us to wait.
const MAX_WAIT: Duration = Duration::from_secs(3600);
const NOBODY_MEANS: Duration = Duration::from_secs(7 * 86_400);
/// Who was not read from for so long may have given up for that.
const AWAY: Duration = Duration::from_secs(1);
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

    /// What its page of metrics says; `None`: there is none to look at, or what came was none.
    ///
    /// # Errors
    /// It is not there.
    pub async fn look(&self, within: Duration) -> Result<Option<Said>, AttemptError> {
        let looking = async {
            let Some(response) = self.remote.look().await else { return Ok(None) };
            let response = response.map_err(AttemptError::from)?;
            if response.status() != StatusCode::OK {
                return Ok(None);
            }
            let page = Limited::new(response.into_body(), scrape::MAX_PAGE).collect().await;
            Ok(page.ok().map(|page| scrape::read(&String::from_utf8_lossy(&page.to_bytes()))))
        };
        tokio::time::timeout(within, looking).await.map_err(|_| AttemptError::Connect)?
    }
}

impl From<SendError> for AttemptError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Connect => Self::Connect,
            SendError::Broken => Self::Broken,
            SendError::NotTaken => Self::NotTaken,
        }
    }
}

impl Upstream for OpenAi {
    fn send(&self, permit: EgressPermit) -> BoxFuture<'_, Result<Reply, AttemptError>> {
        async move {
            let asks = permit.asks();
            let response = self.remote.send(permit).await?;
            let read = read(response, asks, self.idle).await;
            if matches!(read, Err(AttemptError::NotSealed)) {
                self.remote.wants_a_seal();
            }
            read
        }
        .boxed()
    }
}

/// Reads the beginning of an answer of the engine on this machine.
///
/// # Errors
/// As [`read`]. Within the answer, why the engine does not go on is said in its own words.
pub(super) async fn read_own(response: Response<Incoming>, asks: Asks, idle: Duration) -> Result<Reply, AttemptError> {
    let mut reply = read(response.map(|body| Answer::Plain(Received::Http1(body))), asks, idle).await?;
    if let Reply::Stream(events) = &mut reply {
        events.is_own = true;
    }
    Ok(reply)
}

/// Reads the beginning of an answer.
///
/// # Errors
/// Its status is not 200, or it is not what was asked for.
pub(crate) async fn read(mut response: Response<Answer>, asks: Asks, idle: Duration) -> Result<Reply, AttemptError> {
    let status = response.status();
    if status != StatusCode::OK {
        let wait = retry_after(response.headers(), OffsetDateTime::now_utc());
        return Err(refused(status, wait, response.into_body()).await);
    }
    let seat = response.extensions_mut().remove::<Seat>();
    let media_type =
        response.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match (asks.stream(), essence.as_str()) {
        (true, "text/event-stream") => {
            let events = EventStream::new(response.into_body(), asks.endpoint(), idle);
            Ok(Reply::Stream(Box::new(EventStream { _seat: seat, ..events })))
        }
        (false, "application/json") => whole(response.into_body(), asks).await.map(Reply::Whole),
        _ => Err(AttemptError::Malformed("content type")),
    }
}

async fn whole(body: Answer, asks: Asks) -> Result<Value, AttemptError> {
    let Asks::Vectors(wanted) = asks else {
        let bytes = collected(body, MAX_ANSWER).await?;
        let read = || message(&bytes, asks.endpoint());
        return if workers::is_long(bytes.len()) { workers::beside(read) } else { read() };
    };
    let bytes = collected(body, wanted.max_bytes()).await.map_err(|error| match error {
        // As many texts can be asked for as would give more than is read of anybody.
        AttemptError::Malformed("size") if wanted.is_bounded() => AttemptError::TooLarge,
        other => other,
    })?;
    let read = move || wanted.read(&bytes).map_err(|_| AttemptError::Malformed("vectors"));
    // Up to 64 MiB of numbers: other requests need their thread meanwhile.
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(AttemptError::Malformed("vectors")))
}

async fn collected(body: Answer, limit: usize) -> Result<Bytes, AttemptError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(AttemptError::Malformed("size")),
        Err(_) => Err(AttemptError::Died),
    }
}

fn message(bytes: &[u8], endpoint: Endpoint) -> Result<Value, AttemptError> {
    let mut answer = json::parse(bytes, &json::Limits::default()).map_err(|_| AttemptError::Malformed("json"))?;
    if members::says_error(&answer) {
        return Err(AttemptError::Malformed("error in an answer"));
    }
    if endpoint == Endpoint::Completions {
        completion::to_chat(&mut answer, Part::Message).map_err(|_| AttemptError::Malformed("shape"))?;
    }
    let choices = answer.get("choices").and_then(Value::as_array);
    let shaped = choices.is_some_and(|choices| {
        !choices.is_empty() && choices.iter().all(|choice| choice.get("message").is_some_and(Value::is_object))
    });
    if !shaped {
        return Err(AttemptError::Malformed("shape"));
    }
    members::keep_known(&mut answer);
    Ok(answer)
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. What is longer than any request waits is as good as for ever; what nobody
/// can mean is not believed.
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse().map(Duration::try_from_secs_f64) {
        Ok(seconds) => seconds.ok()?,
        Err(_) => Duration::try_from(OffsetDateTime::parse(text, &Rfc2822).ok()? - now).unwrap_or_default(),
    };
    (wait <= NOBODY_MEANS).then(|| wait.min(MAX_WAIT))
}

async fn refused(status: StatusCode, wait: Option<Duration>, body: Answer) -> AttemptError {
    match status.as_u16() {
        429 => AttemptError::RateLimited(wait),
        503 => AttemptError::Busy(wait),
        401 | 403 => AttemptError::Credentials(status.as_u16()),
        // Servers that have chats only say the last two of other paths.
        404 | 405 | 501 => AttemptError::NotFound,
        400 | 413 | 422 => match code(body).await.as_deref() {
            // Nothing is wrong with the request, but with how it is asked there.
            Some("payload_not_sealed") => AttemptError::NotSealed,
            code => AttemptError::Rejected { context_length: code == Some("context_length_exceeded") },
        },
        code => AttemptError::Status(code),
    }
}

/// The code of an error, to be compared with: nothing else is looked at.
async fn code(body: Answer) -> Option<String> {
    let bytes = tokio::time::timeout(ERROR_WITHIN, Limited::new(body, MAX_ERROR).collect()).await.ok()?.ok()?;
    let error = json::parse(&bytes.to_bytes(), &json::Limits::default()).ok()?;
    error.pointer("/error/code").and_then(Value::as_str).map(ToOwned::to_owned)
}

/// The events of one answer.
pub struct EventStream {
    body: Answer,
    endpoint: Endpoint,
    decoder: Box<Decoder>,
    ready: VecDeque<sse::Event>,
    replayed: VecDeque<Value>,
    idle: Duration,
    received: usize,
    progress: Box<Progress>,
    ended: bool,
    turn: Option<Turn>,
    /// When it was last read from, and whether it was ever left for long since the client did not read.
    left_at: Option<Instant>,
    was_left: bool,
    /// Of the engine on this machine.
    is_own: bool,
    /// Breaks off when it is cancelled: the gateway goes offline.
    offline: Option<CancellationToken>,
    _seat: Option<Seat>,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("EventStream(…)")
    }
}

impl EventStream {
    fn new(body: Answer, endpoint: Endpoint, idle: Duration) -> Self {
        Self {
            body,
            endpoint,
            decoder: Box::new(Decoder::new(MAX_EVENT)),
            ready: VecDeque::new(),
            replayed: VecDeque::new(),
            idle,
            received: 0,
            progress: Box::default(),
            ended: false,
            turn: None,
            left_at: None,
            was_left: false,
            is_own: false,
            offline: None,
            _seat: None,
        }
    }

    pub(super) fn hold(&mut self, turn: Turn) {
        self.turn = Some(turn);
    }

    pub(super) fn end_with(&mut self, offline: CancellationToken) {
        self.offline = Some(offline);
    }

    /// Bytes that came so far.
    #[must_use]
    pub fn received(&self) -> usize {
        self.received
    }

    /// The next event; `None` after `[DONE]`.
    ///
    /// # Errors
    /// Silence, a break, or something that is no event of the API. A stream that ends without `[DONE]`, or with it before a choice that
    /// began has ended, is [`AttemptError::Died`]: a cut must never look like an end.
    pub async fn next(&mut self) -> Result<Option<Value>, AttemptError> {
        self.was_left |= self.left_at.is_some_and(|at| at.elapsed() > AWAY);
        let next = self.read().await;
        if let Some(turn) = &mut self.turn {
            match &next {
                Ok(Some(event)) => tokens_used(event).into_iter().for_each(|tokens| turn.used(tokens)),
                Ok(None) => turn.ended(Health::Good),
                // Who is not read from gives up some time: that is the client's doing. What was on its way still comes before it.
                Err(_) if self.was_left => turn.ended(Health::Unknown),
                Err(error) => turn.ended(error.health()),
            }
        }
        self.left_at = Some(Instant::now());
        next
    }

    async fn read(&mut self) -> Result<Option<Value>, AttemptError> {
        if let Some(event) = self.replayed.pop_front() {
            return Ok(Some(event));
        }
        while !self.ended {
            if let Some(said) = self.ready.pop_front() {
                if said.data == b"[DONE]" {
                    self.ended = true;
                    return if self.progress.is_complete() { Ok(None) } else { Err(AttemptError::Died) };
                }
                let read = if said.is_error { Err(AttemptError::Died) } else { event(&said.data, self.endpoint) };
                let event = read.map_err(|error| match EngineRefusal::of_event(&said.data) {
                    Some(refusal) if self.is_own => AttemptError::Engine(Box::new(refusal)),
                    _ => error,
                })?;
                self.progress.note(&event)?;
                return Ok(Some(event));
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
        // Of the time that nobody read, since the client does not, nothing counts.
        let (asked, patience) = (Instant::now(), self.progress.patience(self.idle));
        let frame = tokio::time::timeout(patience, self.body.frame());
        let frame = match &self.offline {
            None => frame.await,
            Some(offline) => match offline.run_until_cancelled(frame).await {
                Some(frame) => frame,
                None => return Err(AttemptError::Refused(Refusal::Offline)),
            },
        };
        self.progress.waited(asked.elapsed());
        let frame = frame.map_err(|_| AttemptError::Idle(self.idle))?;
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

/// Reads the data of one event of a stream of `endpoint`: a chunk of a chat completion.
///
/// # Errors
/// It is not JSON that we accept, has not the shape of a chunk, or says that the target failed.
pub fn event(data: &[u8], endpoint: Endpoint) -> Result<Value, AttemptError> {
    let limits = json::Limits { values: MAX_EVENT_VALUES, ..json::Limits::default() };
    let mut event = json::parse(data, &limits).map_err(|_| AttemptError::Malformed("event json"))?;
    if members::says_error(&event) {
        return Err(AttemptError::Died);
    }
    if endpoint == Endpoint::Completions {
        completion::to_chat(&mut event, Part::Delta).map_err(|_| AttemptError::Malformed("event shape"))?;
    }
    let shaped = event.get("choices").is_some_and(|choices| {
        choices.as_array().is_some_and(|choices| choices.iter().all(|c| c.get("delta").is_some_and(Value::is_object)))
    });
    if !shaped {
        return Err(AttemptError::Malformed("event shape"));
    }
    members::keep_known(&mut event);
    Ok(event)
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    #[test]
    fn a_legacy_completion_is_read_as_a_chat_and_other_shapes_are_refused() {
        let data = br#"{"choices":[{"index":0,"text":"Hi","finish_reason":null}]}"#;
        let chunk = event(data, Endpoint::Completions).unwrap();
        assert_eq!(chunk["choices"][0]["delta"], json!({"content": "Hi"}));
        assert!(event(data, Endpoint::Chat).is_err());
        assert_eq!(message(data, Endpoint::Completions).unwrap()["choices"][0]["message"]["content"], "Hi");
        assert!(message(data, Endpoint::Chat).is_err());
        let chat = br#"{"choices":[{"index":0,"message":{"content":"Hi"}}]}"#;
        assert!(message(chat, Endpoint::Completions).is_err() && message(chat, Endpoint::Chat).is_ok());
    }

    #[test]
    fn a_time_to_wait_is_seconds_or_a_date() {
        let now = OffsetDateTime::parse("Wed, 21 Oct 2015 07:28:00 GMT", &Rfc2822).unwrap();
        let wait = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, http::HeaderValue::from_static(text))]);
            retry_after(&headers, now).map(|wait| wait.as_millis())
        };
        let seconds = [("0", 0), ("2", 2000), (" 1.5 ", 1500), ("7200", 3_600_000)];
        let dates = [("Wed, 21 Oct 2015 07:28:09 GMT", 9000), ("Wed, 21 Oct 2015 07:27:00 GMT", 0)];
        for (text, ms) in seconds.into_iter().chain(dates) {
            assert_eq!(wait(text), Some(ms), "{text}");
        }
        for nonsense in
            ["-1", "soon", "", "1e99", "inf", "NaN", "99999999999999999999", "Wed, 21 Oct 2065 07:28:00 GMT"]
        {
            assert_eq!(wait(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn choices_that_nobody_asked_for_are_noticed() {
        assert!(is_asked_for(&json!({"choices": [{"index": 1}, {"index": 0}]}), 2));
        assert!(is_asked_for(&json!({"choices": [{}]}), 1) && is_asked_for(&json!({"choices": []}), 1));
        for wrong in [json!([{"index": 1}]), json!([{"index": -1}]), json!([{"index": "0"}]), json!([{}, {}])] {
            assert!(!is_asked_for(&json!({"choices": wrong}), 1));
        }
    }
}
