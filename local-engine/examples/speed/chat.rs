//! What needs texts: asked over HTTP, as the gateway asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_engine::{Engine, serve};
use postern_wire::sse::Decoder;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Done, median, rounded};

/// The name that the model is served under.
pub(crate) const MODEL: &str = "measured";
const EVENT_BYTES_MAX: usize = 1 << 20;
const TEXT: &str = "The lighthouse stands on a narrow rock two miles from the harbour. Every evening the keeper climbs one hundred \
    and twelve steps, cleans the glass with a linen cloth, and lights the lamp before the sun touches the water. In winter the \
    waves reach the second window, and the boat with bread and letters comes only when the wind allows it. The keeper writes the \
    weather into a thick green book: the wind, the clouds, the height of the sea, and the names of the ships that passed.";

/// An engine that serves one connection.
pub(crate) struct Server {
    client: SendRequest<Full<Bytes>>,
    _ends: DropGuard,
}

/// A streamed answer.
struct Answer {
    text: String,
    tokens: u64,
    /// From the first text to the end.
    took: Duration,
}

impl Answer {
    fn seconds_per_token(&self) -> f64 {
        self.took.as_secs_f64() / self.tokens.saturating_sub(1).max(1) as f64
    }
}

impl Server {
    pub(crate) async fn start(engine: Arc<Engine>) -> Done<Self> {
        let (stream, dialled) = UnixStream::pair()?;
        let ends = CancellationToken::new();
        let shutdown = ends.clone();
        tokio::spawn(async move { serve(engine, dialled, shutdown).await });
        let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { client, _ends: ends.drop_guard() })
    }

    /// Greedy.
    async fn ask(&self, question: &str, max_tokens: usize, more: Value) -> Done<Answer> {
        let mut body = json!({
            "model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": max_tokens,
            "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        });
        if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
            body.extend(more.clone());
        }
        let request = http::Request::post("http://engine/v1/chat/completions");
        let request = request.body(Full::new(Bytes::from(body.to_string())))?;
        let mut response = self.client.clone().send_request(request).await?;
        if response.status() != 200 {
            return Err(format!("the engine answered {}", response.status()).into());
        }
        let (mut decoder, mut first, mut last) = (Decoder::new(EVENT_BYTES_MAX), None, None);
        let (mut text, mut tokens) = (String::new(), 0);
        while let Some(frame) = response.body_mut().frame().await {
            let mut events = Vec::new();
            if let Ok(data) = frame?.into_data() {
                decoder.push(&data, &mut events)?;
            }
            for event in events {
                // The last one is a word, no JSON.
                let event: Value = serde_json::from_slice(&event.data).unwrap_or_default();
                let piece = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                if !piece.is_empty() {
                    let now = Instant::now();
                    first.get_or_insert(now);
                    last = Some(now);
                    text.push_str(piece);
                }
                tokens = event["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
            }
        }
        let (first, last) = first.zip(last).ok_or("an answer was empty")?;
        Ok(Answer { text, tokens, took: last - first })
    }
}

/// Tokens a second of an answer that repeats its prompt.
pub(crate) async fn quote(guessing: &Server, plain: &Server, rounds: usize) -> Done<Value> {
    let question = format!("Repeat this text word for word:\n\n{TEXT}");
    let (mut with, mut without, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    // By turns, so that other work on the machine meets both.
    for _ in 0..rounds {
        for (server, times) in [(guessing, &mut with), (plain, &mut without)] {
            let answer = server.ask(&question, 160, Value::Null).await?;
            times.push(answer.seconds_per_token());
            answers.push(answer);
        }
    }
    let (with, without) = (1.0 / median(with), 1.0 / median(without));
    let last = answers.pop().ok_or("no rounds")?;
    let quoted = last.text.split_whitespace().filter(|word| TEXT.contains(word)).count();
    Ok(json!({
        "guessing": rounded(with), "not_guessing": rounded(without), "times_faster": rounded(with / without),
        "tokens": last.tokens, "same_text": answers.iter().all(|answer| answer.text == last.text),
        "words_of_the_prompt": rounded(quoted as f64 / last.text.split_whitespace().count().max(1) as f64),
    }))
}

/// What a schema adds to each token.
pub(crate) async fn grammar(server: &Server, rounds: usize) -> Done<Value> {
    let question = "Describe ten animals: the name, the colour, and where each of them lives.";
    let animal = json!({
        "type": "object", "required": ["name", "colour", "home"], "additionalProperties": false,
        "properties": {"name": {"type": "string"}, "colour": {"enum": ["red", "grey", "white"]}, "home": {"type": "string"}},
    });
    let schema = json!({
        "type": "object", "required": ["animals"], "additionalProperties": false,
        "properties": {"animals": {"type": "array", "items": animal, "minItems": 10}},
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "animals", "schema": schema}});
    let more = json!({"response_format": format});
    // What is made for a model's first grammar is not a token's cost.
    server.ask(question, 4, more.clone()).await?;
    let (mut with, mut without, mut tokens) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        for (more, times) in [(&more, &mut with), (&Value::Null, &mut without)] {
            let answer = server.ask(question, 96, more.clone()).await?;
            times.push(1000.0 * answer.seconds_per_token());
            tokens = answer.tokens;
        }
    }
    let (with, without) = (median(with), median(without));
    Ok(json!({
        "ms_per_token": rounded(with), "ms_per_token_without": rounded(without), "added_ms": rounded(with - without),
        "tokens": tokens,
    }))
}
