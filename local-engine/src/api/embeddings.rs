//! `POST /v1/embeddings`. Source: the OpenAI API reference, "Create embeddings".

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{ANY_MODEL, read_tree, refuse, the_model};
use crate::embed::{Embedded, Embedder, TEXTS_MAX};
use crate::error::EngineError;

pub(super) async fn embeddings(State(embedder): State<Arc<Embedder>>, body: Body) -> Response {
    let answered = async {
        let request = EmbeddingsRequest::from_json(&read_tree(body).await?, embedder.width())?;
        if request.model != embedder.name() && request.model != ANY_MODEL {
            return Err(EngineError::ModelNotServed);
        }
        let embedded = embedder.embed(request.texts).await?;
        Ok(Json(answer(request.base64, embedder.name(), &embedded)).into_response())
    };
    answered.await.unwrap_or_else(|error| refuse(&error))
}

pub(super) async fn models(State(embedder): State<Arc<Embedder>>) -> Json<Value> {
    the_model(embedder.name())
}

pub(super) async fn state(State(embedder): State<Arc<Embedder>>) -> Json<Value> {
    let (running, queue_depth) = embedder.load_now();
    let endpoints = ["/embeddings"];
    Json(json!({
        "model": embedder.name(), "endpoints": endpoints, "running": running, "queue_depth": queue_depth,
    }))
}

/// A request that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EmbeddingsRequest {
    model: String,
    texts: Vec<String>,
    /// Vectors as base64 of little-endian f32 instead of numbers.
    base64: bool,
}

impl EmbeddingsRequest {
    fn from_json(tree: &Value, width: usize) -> Result<Self, EngineError> {
        let text = |key: &str| match tree.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(EngineError::invalid(key, format!("`{key}` must be a string."))),
        };
        let model = text("model")?.ok_or_else(|| EngineError::invalid("model", "`model` is missing."))?.to_owned();
        let base64 = match text("encoding_format")? {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                return Err(EngineError::invalid("encoding_format", "`encoding_format` must be `float` or `base64`."));
            }
        };
        match tree.get("dimensions") {
            None | Some(Value::Null) => {}
            Some(given) if given.as_u64() == Some(width as u64) => {}
            Some(_) => {
                let message = format!("This model's vectors have {width} dimensions; others are not possible.");
                return Err(EngineError::invalid("dimensions", message));
            }
        }
        Ok(Self { model, texts: texts(tree.get("input"))?, base64 })
    }
}

fn texts(input: Option<&Value>) -> Result<Vec<String>, EngineError> {
    let wrong = || EngineError::invalid("input", "`input` must be a text or a list of texts, none of them empty.");
    let texts: Vec<String> = match input {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) if list.len() <= TEXTS_MAX => {
            list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(Value::Array(_)) => {
            return Err(EngineError::invalid("input", format!("`input` may have {TEXTS_MAX} texts at most.")));
        }
        _ => return Err(wrong()),
    };
    if texts.is_empty() || texts.iter().any(String::is_empty) { Err(wrong()) } else { Ok(texts) }
}

fn answer(base64: bool, model: &str, embedded: &Embedded) -> Value {
    let vector = |numbers: &Vec<f32>| match base64 {
        true => json!(BASE64.encode(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())),
        false => json!(numbers),
    };
    let data = embedded.vectors.iter().enumerate();
    let data: Vec<Value> = data
        .map(|(index, numbers)| json!({"object": "embedding", "index": index, "embedding": vector(numbers)}))
        .collect();
    json!({
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
    })
}

#[cfg(test)]
mod tests;
