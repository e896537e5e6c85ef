//! Answers: one JSON object, or server-sent events, as OpenAI shapes them.

mod choice;

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Json, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, SelectAll, Stream, StreamExt as _};
use postern_wire::sse;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::error::EngineError;
use crate::sequence::{FinishReason, GenerationEvent, Usage};
use choice::{Choice, scores_json};

/// What all parts of one answer repeat.
#[derive(Debug, Clone)]
pub(super) struct Head {
    id: String,
    model: String,
    /// Seconds since 1970.
    created: i64,
    kind: Kind,
}

/// What an answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A chat.
    Chat {
        /// The answer may call functions.
        calls: bool,
    },
    /// A text that is gone on with.
    Text,
}

impl Kind {
    fn calls(self) -> bool {
        matches!(self, Self::Chat { calls: true })
    }

    /// The name of the whole, and of a part.
    fn objects(self) -> [&'static str; 2] {
        match self {
            Self::Chat { .. } => ["chat.completion", "chat.completion.chunk"],
            Self::Text => ["text_completion"; 2],
        }
    }

    /// The field of a choice that says something, `message` or `delta` of a chat.
    fn said(self, field: &str, said: Value) -> (String, Value) {
        match self {
            Self::Chat { .. } => (field.to_owned(), said),
            Self::Text => ("text".to_owned(), said.get("content").and_then(Value::as_str).unwrap_or_default().into()),
        }
    }
}

impl Head {
    pub(super) fn new(model: String, created: i64, kind: Kind) -> Self {
        let prefix = if kind == Kind::Text { "cmpl" } else { "chatcmpl" };
        Self { id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()), model, created, kind }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// All choices at once.
pub(super) async fn whole(head: &Head, choices: Vec<Receiver<GenerationEvent>>) -> Result<Response, EngineError> {
    let (mut told, mut total) = (Vec::with_capacity(choices.len()), Usage::default());
    // All are kept until the last one has ended: who goes away ends them all. Each has room for every event.
    let mut choices: Vec<_> = choices.into_iter().enumerate().collect();
    for (index, events) in &mut choices {
        let (choice, usage) = whole_choice(head, *index, events).await?;
        told.push(choice);
        total = sum(total, usage);
    }
    let [whole, _] = head.kind.objects();
    let mut answer = head.object(whole, Value::Array(told));
    put(&mut answer, "usage", usage_json(total));
    Ok(Json(answer).into_response())
}

async fn whole_choice(
    head: &Head,
    index: usize,
    events: &mut Receiver<GenerationEvent>,
) -> Result<(Value, Usage), EngineError> {
    let (mut choice, mut scores) = (Choice::new(head.kind.calls()), None);
    loop {
        match events.recv().await {
            Some(GenerationEvent::Started) => {}
            Some(GenerationEvent::Text(text)) => choice.push(&text),
            Some(GenerationEvent::Scored { text, tokens }) => {
                choice.push(&text);
                scores.get_or_insert_with(Vec::new).extend(tokens);
            }
            Some(GenerationEvent::Finished { reason, usage }) => {
                choice.finish();
                let logprobs = scores.as_deref().map(scores_json);
                let reason = finish_reason(reason, &choice);
                let (name, said) = head.kind.said("message", choice.into_message());
                let told = json!({"index": index, name: said, "logprobs": logprobs, "finish_reason": reason});
                return Ok((told, usage));
            }
            Some(GenerationEvent::Failed) => return Err(failed()),
            Some(GenerationEvent::Unspellable { param }) => return Err(unspellable(param)),
            None => return Err(EngineError::Stopped),
        }
    }
}

/// The choices piece by piece, each as it comes. Dropping the body ends them.
pub(super) fn streamed(head: Head, choices: Vec<Receiver<GenerationEvent>>, include_usage: bool) -> Response {
    let states = choices.iter().map(|_| Choice::new(head.kind.calls())).collect();
    let events: SelectAll<_> = stream::select_all(choices.into_iter().enumerate().map(tagged));
    let chunks = Chunks { head, include_usage, running: events.len(), choices: states, total: Usage::default() };
    let frames = stream::unfold(Some((events, chunks)), |state| async {
        let (mut events, mut chunks) = state?;
        let (index, event) = events.next().await.unwrap_or_default();
        let (frame, is_last) = chunks.frame(index, event);
        Some((Ok::<Bytes, Infallible>(frame), (!is_last).then_some((events, chunks))))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The events of a choice with its index; after the last one comes `None`, which tells an early end.
fn tagged(
    (index, events): (usize, Receiver<GenerationEvent>),
) -> std::pin::Pin<Box<dyn Stream<Item = (usize, Option<GenerationEvent>)> + Send>> {
    Box::pin(stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        let event = events.recv().await;
        let goes_on = event.as_ref().is_some_and(|event| !event.is_last());
        Some(((index, event), goes_on.then_some(events)))
    }))
}

struct Chunks {
    head: Head,
    include_usage: bool,
    choices: Vec<Choice>,
    /// Choices that have not ended.
    running: usize,
    total: Usage,
}

impl Chunks {
    /// The bytes for an event, and whether they are the last.
    fn frame(&mut self, index: usize, event: Option<GenerationEvent>) -> (Bytes, bool) {
        match event {
            Some(GenerationEvent::Started) => {
                // What calls nothing begins with text, if only an empty one.
                let content = if self.head.kind.calls() { Value::Null } else { json!("") };
                (self.chunk(index, json!({"role": "assistant", "content": content}), Value::Null, None), false)
            }
            Some(GenerationEvent::Text(text)) => (self.said(index, &text, Value::Null), false),
            Some(GenerationEvent::Scored { text, tokens }) => (self.said(index, &text, scores_json(&tokens)), false),
            Some(GenerationEvent::Finished { reason, usage }) => self.ending(index, reason, usage),
            // In-band, and no `[DONE]`: a client must not take this for a complete answer.
            Some(GenerationEvent::Failed) => (sse::data(&failed().to_body().to_json()), true),
            Some(GenerationEvent::Unspellable { param }) => (sse::data(&unspellable(param).to_body().to_json()), true),
            None => (sse::data(&EngineError::Stopped.to_body().to_json()), true),
        }
    }

    fn said(&mut self, index: usize, text: &str, logprobs: Value) -> Bytes {
        let deltas = self.choices.get_mut(index).map_or_else(Vec::new, |choice| choice.deltas(text));
        self.all(index, deltas, logprobs)
    }

    /// A chunk for each delta. Probabilities go with the first, or with an empty one.
    fn all(&self, index: usize, mut deltas: Vec<Value>, mut logprobs: Value) -> Bytes {
        if deltas.is_empty() && !logprobs.is_null() {
            deltas.push(json!({}));
        }
        let chunks = deltas.into_iter().map(|delta| self.chunk(index, delta, logprobs.take(), None));
        chunks
            .fold(BytesMut::new(), |mut all, chunk| {
                all.extend_from_slice(&chunk);
                all
            })
            .freeze()
    }

    fn ending(&mut self, index: usize, reason: FinishReason, usage: Usage) -> (Bytes, bool) {
        let (rest, reason) = match self.choices.get_mut(index) {
            Some(choice) => (choice.last_deltas(), finish_reason(reason, choice)),
            None => (Vec::new(), reason.as_str()),
        };
        let mut frame = BytesMut::from(self.all(index, rest, Value::Null).as_ref());
        frame.extend_from_slice(&self.chunk(index, json!({}), Value::Null, Some(reason)));
        self.total = sum(self.total, usage);
        self.running = self.running.saturating_sub(1);
        if self.running > 0 {
            return (frame.freeze(), false);
        }
        if self.include_usage {
            let mut last = self.head.object(self.part(), json!([]));
            put(&mut last, "usage", usage_json(self.total));
            frame.extend_from_slice(&sse::data(&last));
        }
        frame.extend_from_slice(sse::DONE.as_bytes());
        (frame.freeze(), true)
    }

    fn part(&self) -> &'static str {
        let [_, part] = self.head.kind.objects();
        part
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Bytes {
        let (name, said) = self.head.kind.said("delta", delta);
        let choice = json!({"index": index, name: said, "logprobs": logprobs, "finish_reason": reason});
        let mut chunk = self.head.object(self.part(), json!([choice]));
        if self.include_usage {
            put(&mut chunk, "usage", Value::Null);
        }
        sse::data(&chunk)
    }
}

/// An answer that was not cut and calls something ends for that reason.
fn finish_reason(reason: FinishReason, choice: &Choice) -> &'static str {
    match reason {
        FinishReason::Stop if choice.has_calls() => "tool_calls",
        reason => reason.as_str(),
    }
}

fn failed() -> EngineError {
    EngineError::Compute(candle_core::Error::Msg("see the log of the step".to_owned()))
}

fn unspellable(param: &str) -> EngineError {
    let message = format!(
        "`{param}` asks for an answer whose check needs more work than the local engine does for one. The answer was not \
         completed. Please ask for something simpler: fewer alternatives, and shorter patterns and bounds."
    );
    EngineError::unsupported(param, message)
}

/// Of all choices. Their prompt counts once, what was generated for each counts. The first one computes the prompt and the
/// others find it, so the least that one of them found is what was there before.
fn sum(total: Usage, choice: Usage) -> Usage {
    let is_first = total.prompt_tokens == 0;
    Usage {
        prompt_tokens: choice.prompt_tokens,
        completion_tokens: total.completion_tokens + choice.completion_tokens,
        cached_tokens: if is_first { choice.cached_tokens } else { total.cached_tokens.min(choice.cached_tokens) },
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

fn put(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), value);
    }
}
