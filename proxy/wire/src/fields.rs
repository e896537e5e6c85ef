//! What the readers of requests have in common: faults, typed fields, sizes.

use crate::json::{Map, Value};

use crate::error::ErrorBody;

/// What is wrong with a request, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What to do, for a person; names fields, never their values.
    pub message: String,
    /// The field, such as `messages[3].role`.
    pub param: Option<String>,
    /// A fixed word.
    pub code: &'static str,
}

impl From<Invalid> for ErrorBody {
    fn from(invalid: Invalid) -> Self {
        Self { message: invalid.message, kind: "invalid_request_error", param: invalid.param, code: Some(invalid.code) }
    }
}

pub(crate) fn invalid(param: &str, code: &'static str, message: &str) -> Invalid {
    let param = (!param.is_empty()).then(|| param.to_owned());
    Invalid { message: message.to_owned(), param, code }
}

pub(crate) fn wrong_type(param: &str, wanted: &str) -> Invalid {
    invalid(param, "invalid_type", &format!("`{param}` must be {wanted}."))
}

pub(crate) fn the_object(tree: Value) -> Result<Map, Invalid> {
    match tree {
        Value::Object(body) => Ok(body),
        _ => Err(invalid("", "invalid_type", "The body must be a JSON object.")),
    }
}

/// `model` of a body.
pub(crate) fn model_name(body: &Map) -> Result<String, Invalid> {
    match body.get("model") {
        Some(Value::String(model)) if is_model_name(model) => Ok(model.clone()),
        Some(Value::String(_)) => {
            let what = "`model` has 1 to 128 of the characters a-z A-Z 0-9 . _ : / + -; see GET /v1/models.";
            Err(invalid("model", "invalid_value", what))
        }
        Some(_) => Err(invalid("model", "invalid_type", "`model` must be a string.")),
        None => Err(invalid("model", "missing_required_parameter", "`model` is missing; see GET /v1/models.")),
    }
}

/// Whether `name` may be asked for. It travels to targets and into records as it is: it must not be able to hold a sentence or an address.
#[must_use]
pub fn is_model_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/+-".contains(&b);
    (1..=128).contains(&name.len()) && name.bytes().all(plain)
}

pub(crate) fn optional_bool(body: &Map, field: &str) -> Result<Option<bool>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(wrong_type(field, "true or false")),
    }
}

pub(crate) fn optional_number(body: &Map, field: &str) -> Result<Option<f64>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong_type(field, "a number")),
    }
}

pub(crate) fn optional_count(body: &Map, field: &str) -> Result<Option<u64>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let count = value.as_u64().filter(|count| (1..=10_000_000).contains(count));
            count.map(Some).ok_or_else(|| wrong_type(field, "a whole number above 0"))
        }
    }
}

pub(crate) fn optional_object<'a>(body: &'a Map, field: &str) -> Result<Option<&'a Map>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(wrong_type(field, "an object")),
    }
}

pub(crate) fn optional_array<'a>(body: &'a Map, field: &str) -> Result<Option<&'a Vec<Value>>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(wrong_type(field, "an array")),
    }
}

/// The most choices of one request.
const MAX_CHOICES: u64 = 16;

/// `n` of a body.
pub(crate) fn choices(body: &Map) -> Result<u64, Invalid> {
    let choices = counted(body, "n")?;
    counted(body, "best_of")?;
    Ok(choices)
}

/// How many answers are made, of which some may be thrown away.
pub(crate) fn answers_made(body: &Map) -> u64 {
    ["n", "best_of"].into_iter().filter_map(|field| body.get(field)?.as_u64()).max().unwrap_or(1)
}

fn counted(body: &Map, field: &str) -> Result<u64, Invalid> {
    let choices = optional_count(body, field)?.unwrap_or(1);
    if (1..=MAX_CHOICES).contains(&choices) {
        return Ok(choices);
    }
    Err(invalid(field, "invalid_value", &format!("`{field}` must be 1 to {MAX_CHOICES}.")))
}

/// Estimated tokens of texts: a quarter of the ASCII bytes of each value, and one for each other character.
pub(crate) fn estimated_tokens<'a>(values: impl Iterator<Item = &'a Value>) -> u64 {
    fn of(value: &Value) -> (u64, u64) {
        match value {
            Value::String(text) => {
                let ascii = text.bytes().filter(u8::is_ascii).count();
                // Each other character has one byte of these.
                let wide = text.bytes().filter(|byte| *byte >= 0b1100_0000).count();
                (ascii as u64, wide as u64)
            }
            Value::Array(items) => items.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
            Value::Object(members) => members.values().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
            _ => (0, 0),
        }
    }
    values.map(of).fold(0, |sum, (ascii, wide)| sum + ascii.div_ceil(4) + wide)
}

/// Values in a tree, keys included: what it costs in memory, beside its text.
pub(crate) fn values(body: &Map) -> u64 {
    fn of(value: &Value) -> u64 {
        match value {
            Value::Array(items) => 1 + items.iter().map(of).sum::<u64>(),
            Value::Object(members) => 1 + members.values().map(|value| 1 + of(value)).sum::<u64>(),
            _ => 1,
        }
    }
    body.values().map(|value| 1 + of(value)).sum()
}
