//! A request for vectors of texts (`POST /v1/embeddings`): checked where Postern acts on it, kept whole otherwise.
//!
//! Source: the OpenAI API reference, “Create embeddings”. Unknown fields stay in the tree and travel on. Texts that come as
//! arrays of tokens are refused: nobody could look at them.

use crate::json::{Map, Value};

use crate::chat::MessageShape;
use crate::chat::provider;
use crate::fields::{
    Invalid, estimated_tokens, invalid, model_name, optional_bool, optional_count, the_object, wrong_type,
};

/// The most texts of one request.
pub const MAX_TEXTS: usize = 2048;
/// The most numbers of one vector.
pub const MAX_DIMENSIONS: usize = 8192;

/// A request whose fields that matter here have the right types. The tree is private, so that it stays so.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingsRequest {
    body: Map,
    /// The model asked for.
    pub model: String,
    /// How many texts.
    pub texts: usize,
    /// Vectors as base64 of little-endian 32-bit floats, instead of as numbers.
    pub base64: bool,
    /// Numbers of each vector, if given.
    pub dimensions: Option<usize>,
    /// Something in it cannot be read as text.
    pub opaque_parts: bool,
}

impl EmbeddingsRequest {
    /// Checks a tree.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is missing, has a wrong type or a value that cannot be served.
    pub fn from_json(tree: Value) -> Result<Self, Invalid> {
        let body = the_object(tree)?;
        let model = model_name(&body)?;
        let texts = check_input(&body)?;
        provider::refuse_state(&body)?;
        if optional_bool(&body, "stream")?.unwrap_or(false) {
            return Err(invalid("stream", "invalid_value", "Vectors are not streamed; leave `stream` out."));
        }
        let base64 = match body.get("encoding_format") {
            None | Some(Value::Null) => false,
            Some(Value::String(format)) if format == "float" => false,
            Some(Value::String(format)) if format == "base64" => true,
            Some(_) => {
                let what = "`encoding_format` must be `float` or `base64`.";
                return Err(invalid("encoding_format", "invalid_value", what));
            }
        };
        let dimensions = optional_count(&body, "dimensions")?.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        if dimensions.is_some_and(|dimensions| dimensions > MAX_DIMENSIONS) {
            let what = format!("`dimensions` must be {MAX_DIMENSIONS} at most.");
            return Err(invalid("dimensions", "invalid_value", &what));
        }
        let opaque_parts = provider::holds_opaque(&body);
        Ok(Self { model, texts, base64, dimensions, opaque_parts, body })
    }

    /// The whole request.
    #[must_use]
    pub fn body(&self) -> &Map {
        &self.body
    }

    /// Each text as what a user wrote.
    #[must_use]
    pub fn message_shapes(&self) -> Vec<MessageShape> {
        texts(&self.body).map(|text| MessageShape { role: "user", bytes: text.len() }).collect()
    }

    /// Estimated tokens of the texts.
    #[must_use]
    pub fn estimated_tokens(&self) -> u64 {
        estimated_tokens(self.body.get("input").into_iter())
    }
}

/// The texts of a body that has the shape of a request.
pub fn texts(body: &Map) -> impl Iterator<Item = &str> {
    strings(body.get("input"))
}

/// A string, or those of an array.
pub(crate) fn strings(field: Option<&Value>) -> impl Iterator<Item = &str> {
    let (one, many) = match field {
        Some(Value::String(text)) => (Some(text.as_str()), &[][..]),
        Some(Value::Array(list)) => (None, list.as_slice()),
        _ => (None, &[][..]),
    };
    one.into_iter().chain(many.iter().filter_map(Value::as_str))
}

/// How many texts there are.
fn check_input(body: &Map) -> Result<usize, Invalid> {
    let list = match body.get("input") {
        None => return Err(invalid("input", "missing_required_parameter", "`input` is missing.")),
        Some(Value::String(text)) => return check_text("input", text).map(|()| 1),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong_type("input", "a string or an array of strings")),
    };
    if list.is_empty() {
        return Err(invalid("input", "empty_array", "`input` is empty; send at least one text."));
    }
    if list.len() > MAX_TEXTS && !is_token(list.first()) {
        let what = format!("`input` has {} texts, more than the {MAX_TEXTS} that are accepted.", list.len());
        return Err(invalid("input", "array_above_max_length", &what));
    }
    for (index, text) in list.iter().enumerate() {
        let at = format!("input[{index}]");
        match text {
            Value::String(text) => check_text(&at, text)?,
            other if is_token(Some(other)) => return Err(tokens("input")),
            _ => return Err(wrong_type(&at, "a string")),
        }
    }
    Ok(list.len())
}

fn check_text(at: &str, text: &str) -> Result<(), Invalid> {
    if text.is_empty() {
        return Err(invalid(at, "invalid_value", &format!("`{at}` is empty; a text has at least one character.")));
    }
    Ok(())
}

/// A token, or an array of them.
pub(crate) fn is_token(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Number(_)) => true,
        Some(Value::Array(items)) => items.iter().all(Value::is_number),
        _ => false,
    }
}

/// Why tokens are refused.
pub(crate) fn tokens(field: &str) -> Invalid {
    let what = format!(
        "`{field}` is not text: tokens cannot be inspected here. Send strings, as a string or an array of them."
    );
    invalid(field, "tokens_refused", &what)
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    fn read(tree: Value) -> Result<EmbeddingsRequest, Invalid> {
        EmbeddingsRequest::from_json(tree)
    }

    fn with(field: &str, value: Value) -> Value {
        let mut tree = json!({"model": "embed", "input": "Hello"});
        tree[field] = value;
        tree
    }

    #[test]
    fn texts_are_read_and_the_rest_is_kept() {
        let one = read(with("user", json!("u"))).unwrap();
        assert_eq!((one.texts, one.base64, one.dimensions, one.opaque_parts), (1, false, None, false));
        let tree = json!({
            "model": "embed", "input": ["Hello there", "四四"], "encoding_format": "base64", "dimensions": 256, "x": [1],
        });
        let two = read(tree.clone()).unwrap();
        assert_eq!((two.texts, two.base64, two.dimensions), (2, true, Some(256)));
        assert_eq!(two.message_shapes().iter().map(|shape| shape.bytes).collect::<Vec<_>>(), [11, 6]);
        assert_eq!((two.estimated_tokens(), texts(two.body()).collect::<Vec<_>>()), (5, vec!["Hello there", "四四"]));
        assert_eq!(Value::Object(two.body().clone()), tree);
        assert!(read(with("input", json!(vec!["a"; MAX_TEXTS]))).is_ok());
        assert!(read(with("image", json!("x.png"))).unwrap().opaque_parts);
    }

    #[test]
    fn each_fault_is_named_with_its_field() {
        for (tree, param, code) in [
            (json!("x"), None, "invalid_type"),
            (json!({"input": "x"}), Some("model"), "missing_required_parameter"),
            (json!({"model": "embed"}), Some("input"), "missing_required_parameter"),
            (with("input", json!(null)), Some("input"), "invalid_type"),
            (with("input", json!({"text": "x"})), Some("input"), "invalid_type"),
            (with("input", json!("")), Some("input"), "invalid_value"),
            (with("input", json!([])), Some("input"), "empty_array"),
            (with("input", json!(["a", ""])), Some("input[1]"), "invalid_value"),
            (with("input", json!(["a", {"image": "x"}])), Some("input[1]"), "invalid_type"),
            (with("input", json!(["a", null])), Some("input[1]"), "invalid_type"),
            (with("input", json!(["a", ["b"]])), Some("input[1]"), "invalid_type"),
            (with("input", json!([1, 2, 3])), Some("input"), "tokens_refused"),
            (with("input", json!([[1, 2], [3]])), Some("input"), "tokens_refused"),
            (with("input", json!(["a", [3]])), Some("input"), "tokens_refused"),
            (with("input", json!(vec![7; 3000])), Some("input"), "tokens_refused"),
            (with("input", json!(vec!["a"; MAX_TEXTS + 1])), Some("input"), "array_above_max_length"),
            (with("encoding_format", json!("int8")), Some("encoding_format"), "invalid_value"),
            (with("encoding_format", json!(1)), Some("encoding_format"), "invalid_value"),
            (with("dimensions", json!(0)), Some("dimensions"), "invalid_type"),
            (with("dimensions", json!("256")), Some("dimensions"), "invalid_type"),
            (with("dimensions", json!(8193)), Some("dimensions"), "invalid_value"),
            (with("stream", json!(true)), Some("stream"), "invalid_value"),
            (with("store", json!(true)), Some("store"), "provider_state_refused"),
        ] {
            let fault = read(tree.clone()).unwrap_err();
            assert_eq!((fault.param.as_deref(), fault.code), (param, code), "{tree}");
        }
    }
}
