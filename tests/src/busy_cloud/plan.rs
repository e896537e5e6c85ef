//! What to say to a request: a pure function from the request and the switches to a script of bytes and waits.

mod vectors;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{
    ALT_SVC, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, SET_COOKIE,
};
use serde_json::{Map, Value, json};

use super::admission::Admission;
use super::{Malformed, Switches};

/// Choices of one answer, at most.
const MAX_CHOICES: u64 = 8;
/// A huge answer: this many pieces of this many bytes.
const HUGE_PIECES: usize = 1024;
/// Before the first token: this many events without one, of this many bytes.
const PREAMBLE_EVENTS: usize = 20;
const PREAMBLE_EVENT_BYTES: usize = 256 << 10;
const HUGE_PIECE_BYTES: usize = 64 << 10;
/// Comments of a stream that says nothing more.
const COMMENTS: usize = 1000;
/// For bytes to leave before the connection is cut.
const BEFORE_CUT: Duration = Duration::from_millis(30);
const DONE: &[u8] = b"data: [DONE]\n\n";

/// One step of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Send(Bytes),
    Wait(Duration),
    /// Cut the TCP connection.
    Cut,
    /// Send nothing any more.
    Hang,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    /// Before the headers; `None`: for ever.
    pub(super) wait: Option<Duration>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) steps: VecDeque<Step>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    /// A legacy completion.
    Text,
    Vectors,
}

impl Kind {
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Text),
            "/v1/embeddings" => Some(Self::Vectors),
            _ => None,
        }
    }
}

/// The answer to a `POST` of that kind. `serial` numbers it, `created` is seconds since 1970.
pub(super) fn reply(
    asked: (Kind, &[u8]),
    admission: Admission,
    switches: &Switches,
    serial: u64,
    created: u64,
) -> Reply {
    let mut reply = decide(asked, admission, switches, serial, created);
    if switches.hang_before_headers {
        reply.wait = None;
    }
    if switches.set_cookie {
        add_what_must_not_pass(&mut reply.headers);
    }
    reply
}

/// An error as OpenAI writes it.
pub(super) fn error(status: StatusCode, kind: &str, code: Option<&str>, message: &str, param: Option<&str>) -> Reply {
    let body = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
    whole(status, "application/json", body.to_string())
}

/// A body that is sent at once.
pub(super) fn whole(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (CONTENT_LENGTH, HeaderValue::from(body.len())),
    ]);
    Reply { wait: Some(Duration::ZERO), status, headers, steps: [Step::Send(body.into())].into() }
}

fn decide((kind, body): (Kind, &[u8]), admission: Admission, switches: &Switches, serial: u64, created: u64) -> Reply {
    if let Some(to) = &switches.redirect {
        let mut reply = whole(StatusCode::TEMPORARY_REDIRECT, "text/plain", String::new());
        if let Ok(to) = HeaderValue::from_str(to) {
            reply.headers.insert(LOCATION, to);
        }
        return reply;
    }
    if let Some(text) = &switches.error_text {
        return error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, text, None);
    }
    match admission {
        Admission::Taken => {}
        Admission::Unavailable => {
            let text = "The engine is currently overloaded, please try again later.";
            return error(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("overloaded"), text, None);
        }
        Admission::TooMany { retry_after_s } => {
            let text = "Rate limit reached for requests.";
            let mut reply = error(StatusCode::TOO_MANY_REQUESTS, "requests", Some("rate_limit_exceeded"), text, None);
            reply.headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
            return reply;
        }
    }
    if kind == Kind::Vectors && switches.malformed.is_none() {
        let mut reply = match vectors::answer(body, switches) {
            Some(answer) => whole(StatusCode::OK, "application/json", answer),
            None => unusable("input"),
        };
        reply.wait = Some(Duration::from_millis(switches.latency_ms));
        return reply;
    }
    let Some(question) = Question::read(kind, body) else {
        return unusable(if kind == Kind::Text { "prompt" } else { "messages" });
    };
    let answer = Answer::new(&question, switches, serial, created);
    let mut reply = match switches.malformed {
        Some(Malformed::Status) => {
            let status = StatusCode::from_u16(999).unwrap_or(StatusCode::IM_A_TEAPOT);
            whole(status, "application/json", answer.plain())
        }
        Some(Malformed::ContentType) => {
            whole(StatusCode::OK, "text/html; charset=utf-8", "<html><h1>Welcome to the free WiFi</h1></html>".into())
        }
        Some(kind) if question.stream => streamed(malformed_stream(&answer, kind)),
        Some(kind) => malformed_plain(&answer, kind),
        None if question.stream => streamed(stream(&answer, &question, switches)),
        None => plain(&answer, switches),
    };
    reply.wait = reply.wait.map(|wait| wait + Duration::from_millis(switches.latency_ms));
    reply
}

fn unusable(field: &str) -> Reply {
    let text = format!("We could not use the body of your request: `model` and `{field}` are needed.");
    error(StatusCode::BAD_REQUEST, "invalid_request_error", None, &text, Some(field))
}

/// The parts of a request that matter.
struct Question {
    kind: Kind,
    model: String,
    last_user_text: String,
    /// What the last message begins the answer with, if it is the assistant's: the answer goes on from there.
    begun: String,
    prompt_tokens: u64,
    stream: bool,
    include_usage: bool,
    choices: u64,
}

impl Question {
    fn read(kind: Kind, body: &[u8]) -> Option<Self> {
        let mut body: Value = serde_json::from_slice(body).ok()?;
        if let (Kind::Text | Kind::Vectors, Some(body)) = (kind, body.as_object_mut()) {
            let texts = [body.remove("prompt"), body.remove("input")].into_iter().flatten();
            let texts = texts.flat_map(|texts| match texts {
                Value::Array(list) => list,
                one => vec![one],
            });
            let messages = texts.map(|text| json!({"role": "user", "content": text})).collect();
            body.insert("messages".into(), messages);
        }
        let messages = body.get("messages")?.as_array().filter(|messages| !messages.is_empty())?;
        let of = |message: &Value, role: &str| message.get("role").and_then(Value::as_str) == Some(role);
        let (last, last_user) = (messages.last(), messages.iter().rfind(|message| of(message, "user")));
        let characters: usize = messages.iter().map(|message| text(message).chars().count()).sum();
        Some(Self {
            kind,
            model: body.get("model")?.as_str()?.to_owned(),
            last_user_text: last_user.map(text).unwrap_or_default(),
            begun: last.filter(|last| of(last, "assistant")).map(text).unwrap_or_default(),
            prompt_tokens: characters.div_ceil(4) as u64,
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            include_usage: body.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false),
            choices: body.get("n").and_then(Value::as_u64).unwrap_or(1).clamp(1, MAX_CHOICES),
        })
    }
}

/// The text of a message, whether it is a string or a list of parts.
fn text(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// An answer in pieces, and how it is written down.
struct Answer {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    pieces: Vec<String>,
    choices: u64,
    prompt_tokens: u64,
    finish_reason: Option<String>,
    first_choice: u64,
    beside: Map<String, Value>,
}

impl Answer {
    fn new(question: &Question, switches: &Switches, serial: u64, created: u64) -> Self {
        let text = switches.answer.clone().unwrap_or_else(|| format!("You asked: {}", question.last_user_text));
        let characters: Vec<char> = text.strip_prefix(&question.begun).unwrap_or(&text).chars().collect();
        Self {
            kind: question.kind,
            id: format!("chatcmpl-{serial:08}"),
            created,
            model: question.model.clone(),
            pieces: characters.chunks(switches.chunk_chars.get()).map(|piece| piece.iter().collect()).collect(),
            choices: question.choices,
            prompt_tokens: question.prompt_tokens,
            finish_reason: Some(switches.finish_reason.clone().unwrap_or_else(|| "stop".to_owned()))
                .filter(|reason| !reason.is_empty()),
            first_choice: switches.first_choice,
            beside: switches.choice.clone(),
        }
    }

    fn indices(&self) -> impl Iterator<Item = u64> {
        (0..self.choices).map(|index| index + self.first_choice)
    }

    fn usage(&self) -> Value {
        let completion_tokens = self.pieces.len() as u64 * self.choices;
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        })
    }

    fn plain(&self) -> String {
        let content = self.pieces.concat();
        let choices: Vec<Value> = self
            .indices()
            .map(|index| {
                let message = json!({"role": "assistant", "content": content, "refusal": null});
                let (name, said) = self.said("message", &message);
                self.choice(json!({"index": index, name: said, "logprobs": null, "finish_reason": self.finish_reason}))
            })
            .collect();
        json!({
            "id": self.id, "object": self.object("chat.completion"), "created": self.created, "model": self.model,
            "choices": choices, "usage": self.usage(), "system_fingerprint": "fp_busy",
        })
        .to_string()
    }

    /// With what it has beside that.
    fn choice(&self, mut choice: Value) -> Value {
        if let Some(choice) = choice.as_object_mut() {
            choice.extend(self.beside.clone());
        }
        choice
    }

    fn object<'a>(&self, of_chats: &'a str) -> &'a str {
        if self.kind == Kind::Text { "text_completion" } else { of_chats }
    }

    /// The field of a choice that says something.
    fn said<'a>(&self, of_chats: &'a str, said: &Value) -> (&'a str, Value) {
        match self.kind {
            Kind::Text => ("text", said.get("content").cloned().unwrap_or_else(|| Value::from(""))),
            Kind::Chat | Kind::Vectors => (of_chats, said.clone()),
        }
    }

    /// The events of one step in all choices.
    fn events(&self, delta: &Value, finish_reason: Option<&str>, usage_follows: bool) -> Bytes {
        let (name, said) = self.said("delta", delta);
        let choice =
            |index| self.choice(json!({"index": index, name: said, "logprobs": null, "finish_reason": finish_reason}));
        self.indices()
            .flat_map(|index| self.event(&json!([choice(index)]), usage_follows.then_some(Value::Null)))
            .collect()
    }

    fn event(&self, choices: &Value, usage: Option<Value>) -> Bytes {
        let mut event = json!({
            "id": self.id, "object": self.object("chat.completion.chunk"), "created": self.created, "model": self.model,
            "system_fingerprint": "fp_busy", "choices": choices,
        });
        if let (Some(usage), Some(event)) = (usage, event.as_object_mut()) {
            event.insert("usage".into(), usage);
        }
        Bytes::from(format!("data: {event}\n\n"))
    }
}

fn plain(answer: &Answer, switches: &Switches) -> Reply {
    let mut reply = whole(StatusCode::OK, "application/json", answer.plain());
    let pieces = u32::try_from(answer.pieces.len()).unwrap_or(u32::MAX);
    reply.wait = Some(Duration::from_millis(switches.token_ms) * pieces);
    let ending = match (switches.die_after_chunks, switches.hang_after_chunks) {
        (Some(_), _) => &[Step::Wait(BEFORE_CUT), Step::Cut][..],
        (None, Some(_)) => &[Step::Hang],
        (None, None) => return reply,
    };
    if let Some(Step::Send(body)) = reply.steps.front_mut() {
        body.truncate(body.len() / 2);
    }
    reply.steps.extend(ending.iter().cloned());
    reply
}

fn stream(answer: &Answer, question: &Question, switches: &Switches) -> VecDeque<Step> {
    let usage = question.include_usage;
    let mut steps =
        VecDeque::from([Step::Send(answer.events(&json!({"role": "assistant", "content": ""}), None, usage))]);
    for (done, piece) in answer.pieces.iter().enumerate() {
        if ended_early(done, switches, &mut steps) {
            return steps;
        }
        if switches.token_ms > 0 {
            steps.push_back(Step::Wait(Duration::from_millis(switches.token_ms)));
        }
        steps.push_back(Step::Send(answer.events(&json!({"content": piece}), None, usage)));
    }
    if ended_early(answer.pieces.len(), switches, &mut steps) {
        return steps;
    }
    if let Some(ending) = &switches.ending {
        steps.push_back(Step::Send(Bytes::from(ending.clone())));
        return steps;
    }
    if let Some(reason) = &answer.finish_reason {
        steps.push_back(Step::Send(answer.events(&json!({}), Some(reason), usage)));
    }
    if usage {
        steps.push_back(Step::Send(answer.event(&json!([]), Some(answer.usage()))));
    }
    steps.push_back(Step::Send(Bytes::from_static(DONE)));
    steps
}

fn ended_early(done: usize, switches: &Switches, steps: &mut VecDeque<Step>) -> bool {
    if switches.die_after_chunks == Some(done) {
        steps.extend([Step::Wait(BEFORE_CUT), Step::Cut]);
    } else if switches.hang_after_chunks == Some(done) {
        for ms in switches.comment_ms.iter().cycle().take(COMMENTS) {
            steps.extend([Step::Wait(Duration::from_millis(*ms)), Step::Send(Bytes::from_static(b": thinking\n\n"))]);
        }
        steps.push_back(Step::Hang);
    } else {
        return false;
    }
    true
}

fn streamed(steps: VecDeque<Step>) -> Reply {
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ]);
    Reply { wait: Some(Duration::ZERO), status: StatusCode::OK, headers, steps }
}

fn malformed_plain(answer: &Answer, kind: Malformed) -> Reply {
    let body = answer.plain();
    if kind != Malformed::Huge {
        let half: String = body.chars().take(body.chars().count() / 2).collect();
        return whole(StatusCode::OK, "application/json", half);
    }
    let steps = huge(r#"{"choices":[{"index":0,"message":{"role":"assistant","content":""#, r#""}}]}"#);
    let mut reply = streamed(steps);
    reply.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn malformed_stream(answer: &Answer, kind: Malformed) -> VecDeque<Step> {
    if kind == Malformed::Preamble {
        let filler = "x".repeat(PREAMBLE_EVENT_BYTES);
        let event = format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\"}}}}],\"x\":\"{filler}\"}}\n\n"
        );
        let said = stream_of(answer, "At last");
        return std::iter::repeat_n(Step::Send(Bytes::from(event)), PREAMBLE_EVENTS).chain(said).collect();
    }
    let first = answer.events(&json!({"role": "assistant", "content": "Well"}), None, false);
    let rest = match kind {
        Malformed::Huge => huge(r#"data: {"choices":[{"index":0,"delta":{"content":""#, "\"}}]}\n\n"),
        Malformed::Sse => {
            [Step::Send(Bytes::from_static(br#"data: {"choices":[{"index":0,"delta":{"content":"br"#))].into()
        }
        _ => [
            Step::Send(Bytes::from_static(b"data: {\"choices\":[{\"index\":0,\"delta\":\n\n")),
            Step::Send(Bytes::from_static(DONE)),
        ]
        .into(),
    };
    std::iter::once(Step::Send(first)).chain(rest).collect()
}

fn stream_of(answer: &Answer, text: &str) -> [Step; 2] {
    let said = answer.events(&json!({"content": text}), Some("stop"), false);
    [Step::Send(said), Step::Send(Bytes::from_static(DONE))]
}

fn huge(before: &'static str, after: &'static str) -> VecDeque<Step> {
    let piece = Bytes::from(vec![b'x'; HUGE_PIECE_BYTES]);
    let pieces = std::iter::repeat_n(Step::Send(piece), HUGE_PIECES);
    let text = |text: &'static str| Step::Send(Bytes::from_static(text.as_bytes()));
    std::iter::once(text(before)).chain(pieces).chain([text(after)]).collect()
}

fn add_what_must_not_pass(headers: &mut HeaderMap) {
    for (name, value) in [
        (SET_COOKIE, "session=of-the-cloud; Path=/"),
        (ALT_SVC, "h3=\":443\"; ma=86400"),
        (HeaderName::from_static("postern-label"), "public"),
        (HeaderName::from_static("x-upstream"), "busy-cloud"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests;
