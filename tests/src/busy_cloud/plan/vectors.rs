//! Vectors of texts: equal texts have equal ones, others differ.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::super::Switches;

/// Numbers of a vector, if the request does not say.
const DIMENSIONS: u64 = 8;
/// At most.
const MAX_DIMENSIONS: u64 = 4096;

/// The answer to a request for vectors; `None`: it is not one.
pub(super) fn answer(body: &[u8], switches: &Switches) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let model = body.get("model")?.as_str()?;
    let texts: Vec<&str> = match body.get("input")? {
        Value::String(text) => vec![text],
        Value::Array(list) => list.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let dimensions = body.get("dimensions").and_then(Value::as_u64).unwrap_or(DIMENSIONS).min(MAX_DIMENSIONS);
    let base64 = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let written = |numbers: Vec<f32>| match base64 {
        true => json!(BASE64.encode(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())),
        false => json!(numbers),
    };
    let tokens: usize = texts.iter().map(|text| text.chars().count().div_ceil(4)).sum();
    let data: Vec<Value> = texts
        .iter()
        .cycle()
        .take(switches.vectors.unwrap_or(texts.len()))
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": written(vector(text, dimensions))}))
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Some(json!({"object": "list", "data": data, "model": model, "usage": usage}).to_string())
}

/// Of the hash FNV-1a of the text and the place of each number.
fn vector(text: &str, dimensions: u64) -> Vec<f32> {
    let number = |at: u64| {
        let bytes = text.bytes().chain(at.to_le_bytes());
        let hash =
            bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        (hash >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..dimensions).map(number).collect()
}
