//! Answers: one JSON object, or server-sent events, as OpenAI shapes them.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Json, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use postern_wire::sse;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::error::EngineError;
use crate::sequence::{FinishReason, GenerationEvent, Usage};

/// What all parts of one answer repeat.
#[derive(Debug, Clone)]
pub(super) struct Head {
    id: String,
    model: String,
    /// Seconds since 1970.
    created: i64,
}

impl Head {
    pub(super) fn new(model: String, created: i64) -> Self {
        Self { id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()), model, created }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// The whole answer at once.
pub(super) async fn whole(head: &Head, mut events: Receiver<GenerationEvent>) -> Result<Response, EngineError> {
    let mut text = String::new();
    loop {
        match events.recv().await {
            Some(GenerationEvent::Started) => {}
            Some(GenerationEvent::Text(more)) => text.push_str(&more),
            Some(GenerationEvent::Finished { reason, usage }) => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                let choice =
                    json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason.as_str()});
                let mut answer = head.object("chat.completion", json!([choice]));
                put(&mut answer, "usage", usage_json(usage));
                return Ok(Json(answer).into_response());
            }
            Some(GenerationEvent::Failed) => return Err(failed()),
            None => return Err(EngineError::Stopped),
        }
    }
}

/// The answer piece by piece. Dropping the body ends the generation.
pub(super) fn streamed(head: Head, events: Receiver<GenerationEvent>, include_usage: bool) -> Response {
    let state = Some((events, Chunks { head, include_usage }));
    let frames = stream::unfold(state, |state| async {
        let (mut events, chunks) = state?;
        let event = events.recv().await;
        let (frame, is_last) = chunks.frame(event);
        Some((Ok::<Bytes, Infallible>(frame), (!is_last).then_some((events, chunks))))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Chunks {
    head: Head,
    include_usage: bool,
}

impl Chunks {
    /// The bytes for an event, and whether they are the last.
    fn frame(&self, event: Option<GenerationEvent>) -> (Bytes, bool) {
        match event {
            Some(GenerationEvent::Started) => (self.chunk(json!({"role": "assistant", "content": ""}), None), false),
            Some(GenerationEvent::Text(text)) => (self.chunk(json!({"content": text}), None), false),
            Some(GenerationEvent::Finished { reason, usage }) => (self.ending(reason, usage), true),
            // In-band, and no `[DONE]`: a client must not take this for a complete answer.
            Some(GenerationEvent::Failed) => (sse::data(&failed().to_body().to_json()), true),
            None => (sse::data(&EngineError::Stopped.to_body().to_json()), true),
        }
    }

    fn ending(&self, reason: FinishReason, usage: Usage) -> Bytes {
        let mut frame = BytesMut::from(self.chunk(json!({}), Some(reason)).as_ref());
        if self.include_usage {
            let mut last = self.head.object("chat.completion.chunk", json!([]));
            put(&mut last, "usage", usage_json(usage));
            frame.extend_from_slice(&sse::data(&last));
        }
        frame.extend_from_slice(sse::DONE.as_bytes());
        frame.freeze()
    }

    fn chunk(&self, delta: Value, reason: Option<FinishReason>) -> Bytes {
        let reason = reason.map(FinishReason::as_str);
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
        let mut chunk = self.head.object("chat.completion.chunk", json!([choice]));
        if self.include_usage {
            put(&mut chunk, "usage", Value::Null);
        }
        sse::data(&chunk)
    }
}

fn failed() -> EngineError {
    EngineError::Compute(candle_core::Error::Msg("see the log of the step".to_owned()))
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
