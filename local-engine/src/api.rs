//! HTTP towards the gateway: chat completions and legacy ones as OpenAI defines them, models, metrics, state.

mod answer;
mod embeddings;
mod fields;
mod messages;
mod metrics;
mod request;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use postern_wire::json;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::embed::Embedder;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::origin::Origin;
use answer::{Head, Kind};
use request::ChatRequest;

/// Bytes of a request's body at most: far more than any context holds.
const BODY_BYTES_MAX: usize = 8 << 20;
/// What the gateway calls whatever model is loaded: it may be replaced by an engine of another one at any time.
const ANY_MODEL: &str = "engine";
/// A body that is not here after this is not waited for.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);

/// All paths of the engine.
pub(crate) fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/metrics", get(metrics::scrape))
        .route("/state", get(state))
        .route("/livez", get(async || "ok\n"))
        .method_not_allowed_fallback(async || refuse(&EngineError::WrongMethod))
        .fallback(async || refuse(&EngineError::NoSuchPath))
        .with_state(engine)
}

/// All paths of an engine whose model makes vectors of texts.
pub(crate) fn embeddings_router(embedder: Arc<Embedder>) -> Router {
    Router::new()
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(embeddings::models))
        .route("/metrics", get(metrics::scrape_embedder))
        .route("/state", get(embeddings::state))
        .route("/livez", get(async || "ok\n"))
        .method_not_allowed_fallback(async || refuse(&EngineError::WrongMethod))
        .fallback(async || refuse(&EngineError::NoSuchPath))
        .with_state(embedder)
}

async fn chat_completions(State(engine): State<Arc<Engine>>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let origin = Origin::from_headers(&headers);
        let request = ChatRequest::from_json(&read_tree(body).await?)?;
        answer(engine, request, origin).await
    };
    answered.await.unwrap_or_else(|error| refuse(&error))
}

async fn completions(State(engine): State<Arc<Engine>>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let origin = Origin::from_headers(&headers);
        let request = ChatRequest::of_completion(&read_tree(body).await?)?;
        answer(engine, request, origin).await
    };
    answered.await.unwrap_or_else(|error| refuse(&error))
}

async fn answer(engine: Arc<Engine>, request: ChatRequest, origin: Origin) -> Result<Response, EngineError> {
    if request.model != engine.name() && request.model != ANY_MODEL {
        return Err(EngineError::ModelNotServed);
    }
    let (stream, include_usage, choices) = (request.stream, request.include_usage, request.choices);
    let kind = match &request.text {
        Some(_) => Kind::Text,
        None => Kind::Chat { calls: request.tools.is_some() },
    };
    let head = Head::new(engine.name().to_owned(), OffsetDateTime::now_utc().unix_timestamp(), kind);
    let arrival = engine.arrival();
    let turn = engine.turn(&origin).await?;
    let submitting = tokio::task::spawn_blocking(move || {
        // Moved here so that it is counted until the request is submitted, even if the client goes away.
        let _arrival = arrival;
        let _turn = turn;
        let prompt = match &request.text {
            Some(text) => engine.tokenize_text(text)?,
            None => engine.tokenize(&request.messages, request.begun.as_deref())?,
        };
        let grammar = request.constraint().map(|constraint| engine.grammar(&constraint)).transpose()?;
        engine.submit_choices(request.into_generation(prompt, grammar, origin), choices)
    });
    let choices = submitting.await.map_err(|_| EngineError::Stopped)??;
    if stream { Ok(answer::streamed(head, choices, include_usage)) } else { answer::whole(&head, choices).await }
}

async fn read_tree(body: Body) -> Result<Value, EngineError> {
    let bytes = tokio::time::timeout(BODY_WAIT_MAX, to_bytes(body, BODY_BYTES_MAX)).await;
    let bytes: Bytes = match bytes {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_too_large(&error) => {
            return Err(EngineError::TooLarge { limit_bytes: BODY_BYTES_MAX });
        }
        Ok(Err(_)) | Err(_) => return Err(invalid_body("The body did not arrive whole.".to_owned())),
    };
    json::parse(&bytes, &json::Limits::default()).map(Value::from).map_err(|error| invalid_body(error.to_string()))
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = inner.source();
    }
    false
}

fn invalid_body(message: String) -> EngineError {
    EngineError::Invalid { message, param: None, code: None }
}

async fn models(State(engine): State<Arc<Engine>>) -> Json<Value> {
    the_model(engine.name())
}

fn the_model(name: &str) -> Json<Value> {
    let model = json!({"id": name, "object": "model", "created": 0, "owned_by": "postern"});
    Json(json!({"object": "list", "data": [model]}))
}

async fn state(State(engine): State<Arc<Engine>>) -> Json<Value> {
    let load = engine.load_now();
    Json(json!({
        "model": engine.name(),
        "endpoints": ["/chat/completions", "/completions"],
        "context_length": engine.context_tokens(),
        "running": load.status.running,
        "queue_depth": load.queue_depth,
        "queued_prompt_tokens": load.queued_prompt_tokens,
        "prefill_tokens_per_second": load.status.prefill_rate,
        "decode_tokens_per_second": load.status.decode_rate,
        "slot_wait_ms": u64::try_from(load.slot_wait.as_millis()).unwrap_or(u64::MAX),
    }))
}

/// The one place where an error becomes an HTTP answer.
fn refuse(error: &EngineError) -> Response {
    let status = error.status();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(%error, "a request failed");
    }
    let mut response = (status, error.to_body().to_bytes()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(after) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    response
}

#[cfg(test)]
mod tests;
