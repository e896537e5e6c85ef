//! The HTTP API over a pair of UNIX sockets, with a model that says what it is told to.

mod choices;
mod structured;

use std::time::{Duration, Instant};

use axum::http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_wire::sse::{Decoder, Event};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::engine::tests::real_engine;
use crate::options::EngineOptions;
use crate::serve::serve_connection;
use crate::testing::{CONTEXT_TOKENS, scripted_engine};

const QUICK: Duration = Duration::ZERO;
/// "one two €!" in pieces that cut the € in the middle.
const PIECES: &[&[u8]] = &[b"one", b" two", b" \xe2", b"\x82", b"\xac!"];

/// A client on the other end of an engine's connection.
struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn of(engine: Arc<Engine>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let router = router(Arc::clone(&engine));
        tokio::spawn(async move { serve_connection(theirs, router, engine.as_ref(), &CancellationToken::new()).await });
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, method: Method, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        let request = Request::builder().method(method).uri(format!("http://engine{path}"));
        self.0.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap()
    }

    async fn chat(&mut self, more: Value) -> Response<Incoming> {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.send(Method::POST, "/v1/chat/completions", body.to_string()).await
    }

    async fn state(&mut self) -> Value {
        let response = self.send(Method::GET, "/state", "").await;
        assert_eq!(response.status(), 200);
        json_of(response).await
    }

    /// Waits until the engine's state is as wanted; how long it took.
    async fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Duration {
        let begun = Instant::now();
        while !wanted(&self.state().await) {
            assert!(begun.elapsed() < Duration::from_secs(20), "the engine's state stays {}", self.state().await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        begun.elapsed()
    }
}

/// What is done before a request has a place, one identity does one at a time.
#[tokio::test]
async fn requests_of_one_identity_are_prepared_one_after_the_other() {
    let engine = scripted_engine(PIECES, QUICK, |_| {});
    let (mut client, mut other) = (Client::of(Arc::clone(&engine)).await, Client::of(Arc::clone(&engine)).await);
    // Of whom the gateway does not speak, that is nobody: an identity like others.
    let turn = engine.turn(&Origin::default()).await.unwrap();
    let mut asking = std::pin::pin!(client.chat(json!({})));
    assert!(tokio::time::timeout(Duration::from_millis(200), asking.as_mut()).await.is_err(), "it did not wait");
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let request = Request::post("http://engine/v1/chat/completions").header("postern-identity", "somebody else");
    let answer = other.0.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(turn);
    assert_eq!(asking.await.status(), 200);
}

async fn json_of(response: Response<Incoming>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// All events of a stream; the last may be `[DONE]`, as a string.
async fn events_of(response: Response<Incoming>) -> Vec<Value> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let (mut decoder, mut events) = (Decoder::new(1 << 20), Vec::new());
    decoder.push(&bytes, &mut events).unwrap();
    assert!(decoder.is_between_events());
    let event = |event: &Event| {
        let text = String::from_utf8(event.data.clone()).unwrap();
        if text == "[DONE]" { Value::String(text) } else { serde_json::from_str(&text).unwrap() }
    };
    events.iter().map(event).collect()
}

fn idle(state: &Value) -> bool {
    state["running"] == 0 && state["queue_depth"] == 0
}

#[tokio::test]
async fn a_plain_answer() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let response = client.chat(json!({})).await;
    assert_eq!(response.status(), 200);
    let answer = json_of(response).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    assert!(
        answer["id"].as_str().unwrap().starts_with("chatcmpl-") && answer["created"].as_i64().unwrap() > 1_700_000_000
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "one two €!");
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    // "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n": 3 control tokens, the rest bytes.
    assert_eq!(answer["usage"]["prompt_tokens"], 3 + "user\nhi\nassistant\n".len());
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    assert_eq!(answer["usage"]["total_tokens"], 27);
}

#[tokio::test]
async fn a_streamed_answer_has_role_pieces_reason_usage_and_done() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let events = events_of(client.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await).await;
    let delta = |at: usize| events[at]["choices"][0]["delta"].clone();
    assert_eq!(delta(0), json!({"role": "assistant", "content": ""}));
    assert_eq!([delta(1), delta(2)], [json!({"content": "one"}), json!({"content": " two"})]);
    assert_eq!([delta(3), delta(4)], [json!({"content": " "}), json!({"content": "€!"})]);
    assert_eq!((delta(5), &events[5]["choices"][0]["finish_reason"]), (json!({}), &json!("stop")));
    assert_eq!(events[6]["choices"], json!([]));
    assert_eq!(events[6]["usage"]["completion_tokens"], 6);
    assert_eq!(events[7], "[DONE]");
    assert_eq!(events.len(), 8);
    assert!(events[..6].iter().all(|event| event["usage"].is_null() && event["object"] == "chat.completion.chunk"));
    assert!(events[..7].iter().all(|event| event["id"] == events[0]["id"]));
    let without = events_of(client.chat(json!({"stream": true})).await).await;
    assert_eq!(without.len(), 7);
    assert!(without[..6].iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn a_text_is_gone_on_with_as_it_stands() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let body = json!({"model": "tiny", "prompt": "hi<|im_end|>", "n": 2});
    let answer = json_of(client.send(Method::POST, "/v1/completions", body.to_string()).await).await;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("tiny")));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"), "{answer}");
    let choice = json!({"index": 1, "text": "one two €!", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(answer["choices"][1], choice);
    // No template around it, and no control token in it: bytes only.
    assert_eq!(answer["usage"]["prompt_tokens"], "hi<|im_end|>".len());
    let body = json!({"model": "tiny", "prompt": ["hi"], "stream": true, "stream_options": {"include_usage": true}});
    let events = events_of(client.send(Method::POST, "/v1/completions", body.to_string()).await).await;
    let text = |at: usize| events[at]["choices"][0]["text"].as_str().unwrap_or_default();
    assert_eq!([text(0), text(1), text(2), text(3), text(4)], ["", "one", " two", " ", "€!"]);
    assert_eq!(
        (&events[5]["choices"][0]["finish_reason"], &events[6]["usage"]["completion_tokens"]),
        (&json!("stop"), &json!(6))
    );
    assert!(events[..7].iter().all(|event| event["object"] == "text_completion") && events[7] == "[DONE]");
    let refused =
        client.send(Method::POST, "/v1/completions", json!({"model": "tiny", "prompt": "x", "echo": true}).to_string());
    let refused = refused.await;
    assert_eq!((refused.status().as_u16(), &json_of(refused).await["error"]["param"]), (400, &json!("echo")));
}

#[tokio::test]
async fn stop_strings_and_lengths_end_an_answer() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let answer = json_of(client.chat(json!({"stop": ["ne tw"]})).await).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "o");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    let answer = json_of(client.chat(json!({"stop": "two x", "max_tokens": 2})).await).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "one two", "held-back text comes out at the end");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let cut = json_of(client.chat(json!({"max_completion_tokens": 3})).await).await;
    assert_eq!(cut["choices"][0]["message"]["content"], "one two \u{fffd}", "an unfinished character");
}

#[tokio::test]
async fn errors_are_openai_errors() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let long = "x".repeat(CONTEXT_TOKENS * 16);
    let fits_not = "é".repeat(CONTEXT_TOKENS / 2);
    for (body, status, code, param) in [
        ("{".to_owned(), 400, Value::Null, Value::Null),
        (r#"{"model":"tiny","model":"tiny"}"#.to_owned(), 400, Value::Null, Value::Null),
        ("[".repeat(100_000), 400, Value::Null, Value::Null),
        ("{}".to_owned(), 400, Value::Null, json!("model")),
        (json!({"model": "tiny"}).to_string(), 400, Value::Null, json!("messages")),
        (
            json!({"model": "tiny", "messages": [], "best_of": 3}).to_string(),
            400,
            json!("unsupported_parameter"),
            json!("best_of"),
        ),
        (
            json!({"model": "other", "messages": [{"role": "user", "content": "x"}]}).to_string(),
            404,
            json!("model_not_found"),
            json!("model"),
        ),
        (
            json!({"model": "tiny", "messages": [{"role": "user", "content": long}]}).to_string(),
            400,
            json!("context_length_exceeded"),
            json!("messages"),
        ),
        (
            json!({"model": "tiny", "messages": [{"role": "user", "content": fits_not}]}).to_string(),
            400,
            json!("context_length_exceeded"),
            json!("messages"),
        ),
        (format!("\"{}\"", "x".repeat(BODY_BYTES_MAX)), 413, json!("request_too_large"), Value::Null),
    ] {
        let begin = body.get(..60).unwrap_or(&body).to_owned();
        let response = client.send(Method::POST, "/v1/chat/completions", body).await;
        assert_eq!(response.status().as_u16(), status, "{begin}");
        assert_eq!(response.headers()["content-type"], "application/json");
        let error = json_of(response).await["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&code, &param), "{begin}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(client.send(Method::GET, "/v1/chat/completions", "").await.status(), 405);
    let nowhere = client.send(Method::GET, "/v1/nowhere", "").await;
    assert_eq!(nowhere.status(), 404);
    assert_eq!(json_of(nowhere).await["error"]["type"], "invalid_request_error");
    assert_eq!(client.chat(json!({})).await.status(), 200, "it goes on serving");
}

#[tokio::test]
async fn models_state_and_metrics() {
    let mut client = Client::of(scripted_engine(PIECES, Duration::from_millis(1), |_| {})).await;
    client.chat(json!({})).await.into_body().collect().await.unwrap();
    client.wait_for(idle).await;
    let models = json_of(client.send(Method::GET, "/v1/models", "").await).await;
    assert_eq!(models["data"][0]["id"], "tiny");
    let state = client.state().await;
    assert_eq!((&state["model"], &state["context_length"]), (&json!("tiny"), &json!(CONTEXT_TOKENS)));
    assert_eq!(state["endpoints"], json!(["/chat/completions", "/completions"]));
    assert_eq!(state["queued_prompt_tokens"], 0);
    assert!(state["prefill_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(state["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    let metrics = client.send(Method::GET, "/metrics", "").await.into_body().collect().await.unwrap().to_bytes();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in [
        "queue_depth 0.0",
        "postern_engine_running 0.0",
        "postern_engine_waiting 0.0",
        "postern_engine_preemptions_total 0",
        "postern_engine_time_to_first_token_seconds_count 1",
        "postern_engine_time_per_token_seconds_count 5",
        "postern_engine_generated_tokens_total 6",
        "postern_engine_prompt_tokens_total 21",
        "postern_engine_requests_total{outcome=\"stop\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let latency = metrics.lines().find_map(|line| line.strip_prefix("inference_latency ")).unwrap();
    assert!(latency.parse::<f64>().unwrap() >= 1.0, "a step takes a millisecond");
}

/// One that goes on for a long time.
fn endless() -> Vec<&'static [u8]> {
    vec![b"word "; 400]
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_slot_within_a_step() {
    let step = Duration::from_millis(10);
    let mut client = Client::of(scripted_engine(&endless(), step, |_| {})).await;
    for stream in [true, false] {
        let mut second = Client(client.0.clone());
        let asking = tokio::spawn(async move {
            let response = second.chat(json!({"stream": stream})).await;
            let mut body = response.into_body();
            while body.frame().await.is_some() {}
        });
        client.wait_for(|state| state["running"] == 1).await;
        tokio::time::sleep(5 * step).await;
        asking.abort();
        let took = client.wait_for(idle).await;
        assert!(took < 20 * step, "stream: {stream}, {took:?} of about 4 s");
    }
    let metrics = client.send(Method::GET, "/metrics", "").await.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&metrics).contains("requests_total{outcome=\"cancelled\"} 2"));
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_client_that_waits_can_leave() {
    let options = |options: &mut EngineOptions| {
        options.max_batch_size = 1;
        options.max_queue = 1;
    };
    let mut client = Client::of(scripted_engine(&endless(), Duration::from_millis(5), options)).await;
    let ask = |client: &Client| {
        let mut client = Client(client.0.clone());
        tokio::spawn(async move { client.chat(json!({})).await })
    };
    let running = ask(&client);
    client.wait_for(|state| state["running"] == 1).await;
    let waiting = ask(&client);
    client.wait_for(|state| state["queue_depth"] == 1).await;
    assert!(client.state().await["queued_prompt_tokens"].as_u64().unwrap() >= 21);
    let refused = client.chat(json!({"stream": true})).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1", "nothing is known yet of how long an answer takes");
    assert_eq!(json_of(refused).await["error"]["code"], "queue_full");
    waiting.abort();
    client.wait_for(|state| state["queue_depth"] == 0).await;
    let next = ask(&client);
    client.wait_for(|state| state["queue_depth"] == 1).await;
    running.abort();
    client.wait_for(|state| state["running"] == 1 && state["queue_depth"] == 0).await;
    next.abort();
    client.wait_for(idle).await;
}

#[tokio::test]
async fn many_at_once_get_their_own_answers() {
    let client =
        Client::of(scripted_engine(PIECES, Duration::from_millis(1), |options| options.max_batch_size = 4)).await;
    let asking: Vec<_> = (0..24)
        .map(|number| {
            let mut client = Client(client.0.clone());
            tokio::spawn(async move {
                let answer = json_of(client.chat(json!({"max_tokens": 1 + number % 6})).await).await;
                (number, answer)
            })
        })
        .collect();
    for asking in asking {
        let (number, answer) = asking.await.unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 1 + number % 6);
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(
            text,
            ["one", "one two", "one two \u{fffd}", "one two \u{fffd}", "one two €!", "one two €!"][number % 6]
        );
    }
}

#[tokio::test]
async fn the_real_model_answers_in_words() {
    let mut client = Client::of(tokio::task::spawn_blocking(real_engine).await.unwrap()).await;
    let question = json!({
        "model": "smollm2-135m-instruct", "temperature": 0, "max_tokens": 12, "stream": true,
        "messages": [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
    });
    let events = events_of(client.send(Method::POST, "/v1/chat/completions", question.to_string()).await).await;
    let texts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    let text: String = texts.collect();
    assert!(text.contains("sky"), "{text}");
    assert_eq!(events.last().unwrap(), "[DONE]");
}
