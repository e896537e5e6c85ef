//! A chat completions request (`POST /v1/chat/completions`): checked where Postern acts on it, kept whole otherwise.
//!
//! Source: the OpenAI API reference, “Create chat completion”. Unknown fields stay in the tree and travel on.

mod provider;

use serde_json::{Map, Value};

use crate::error::ErrorBody;

/// Roles that a message may have.
/// Tokens of an answer that has no bound of its own, for limits.
const ASSUMED_ANSWER_TOKENS: u64 = 512;
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
/// The most choices of one request.
const MAX_CHOICES: u64 = 16;
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

/// A request whose fields that matter here have the right types. The tree is private, so that it stays so.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    body: Map<String, Value>,
    /// The model asked for.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// `stream_options.include_usage`: the client wants the usage chunk.
    pub include_usage: bool,
    /// `n`, 1 if absent.
    pub choices: u64,
    /// `logprobs` were asked for.
    pub logprobs: bool,
    /// Tools are offered.
    pub tools: bool,
    /// Something in it cannot be read as text: images, audio, files, as parts of a message or anywhere else.
    pub opaque_parts: bool,
    /// `temperature`, if given.
    pub temperature: Option<f64>,
    /// The bound on new tokens, if given.
    pub max_tokens: Option<u64>,
}

/// One message, as far as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageShape {
    /// One of the API's roles.
    pub role: &'static str,
    /// Bytes of its text.
    pub bytes: usize,
}

impl ChatRequest {
    /// Checks a tree.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is missing, has a wrong type or a value that cannot be served.
    pub fn from_json(tree: Value, max_messages: usize) -> Result<Self, Invalid> {
        let Value::Object(body) = tree else {
            return Err(invalid("", "invalid_type", "The body must be a JSON object."));
        };
        let model = match body.get("model") {
            Some(Value::String(model)) if is_model_name(model) => model.clone(),
            Some(Value::String(_)) => {
                let what = "`model` has 1 to 128 of the characters a-z A-Z 0-9 . _ : / + -; see GET /v1/models.";
                return Err(invalid("model", "invalid_value", what));
            }
            Some(_) => return Err(invalid("model", "invalid_type", "`model` must be a string.")),
            None => {
                return Err(invalid("model", "missing_required_parameter", "`model` is missing; see GET /v1/models."));
            }
        };
        let opaque_parts = check_messages(&body, max_messages)?;
        provider::refuse_state(&body)?;
        let options = optional_object(&body, "stream_options")?;
        let tools = optional_array(&body, "tools")?.is_some_and(|tools| !tools.is_empty())
            || optional_array(&body, "functions")?.is_some_and(|functions| !functions.is_empty());
        let choices = optional_count(&body, "n")?.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&choices) {
            return Err(invalid("n", "invalid_value", &format!("`n` must be 1 to {MAX_CHOICES}.")));
        }
        Ok(Self {
            model,
            stream: optional_bool(&body, "stream")?.unwrap_or(false),
            include_usage: options.and_then(|o| o.get("include_usage")).and_then(Value::as_bool).unwrap_or(false),
            choices,
            logprobs: optional_bool(&body, "logprobs")?.unwrap_or(false),
            tools,
            opaque_parts: opaque_parts || provider::holds_opaque(&body),
            temperature: optional_number(&body, "temperature")?,
            max_tokens: optional_count(&body, "max_completion_tokens")?.or(optional_count(&body, "max_tokens")?),
            body,
        })
    }

    /// The whole request.
    #[must_use]
    pub fn body(&self) -> &Map<String, Value> {
        &self.body
    }

    /// Values in the tree, keys included: what it costs in memory, beside its text.
    #[must_use]
    pub fn values(&self) -> u64 {
        fn of(value: &Value) -> u64 {
            match value {
                Value::Array(items) => 1 + items.iter().map(of).sum::<u64>(),
                Value::Object(members) => 1 + members.values().map(|value| 1 + of(value)).sum::<u64>(),
                _ => 1,
            }
        }
        self.body.values().map(|value| 1 + of(value)).sum()
    }

    /// Gives the tree back, for one who changes it and checks it anew.
    #[must_use]
    pub fn into_body(self) -> Map<String, Value> {
        self.body
    }

    /// Role and size of each message.
    #[must_use]
    pub fn message_shapes(&self) -> Vec<MessageShape> {
        let messages = self.body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        messages
            .iter()
            .map(|message| MessageShape {
                role: role_of(message).unwrap_or("user"),
                bytes: message.get("content").map_or(0, text_bytes),
            })
            .collect()
    }

    /// Does it go on with a conversation, in which there are answers already?
    #[must_use]
    pub fn goes_on(&self) -> bool {
        let messages = self.body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        messages.iter().any(|message| role_of(message) == Some("assistant"))
    }

    /// Tokens of all its answers, at most; where it names no bound, as many as answers usually have.
    #[must_use]
    pub fn max_answer_tokens(&self) -> u64 {
        self.max_tokens.unwrap_or(ASSUMED_ANSWER_TOKENS).saturating_mul(self.choices)
    }

    /// Estimated tokens of the prompt: a quarter of the ASCII bytes, and one for each other character.
    #[must_use]
    pub fn estimated_prompt_tokens(&self) -> u64 {
        fn of(value: &Value) -> (u64, u64) {
            match value {
                Value::String(text) => {
                    let wide = text.chars().filter(|c| !c.is_ascii()).count();
                    let ascii = text.bytes().filter(u8::is_ascii).count();
                    (ascii as u64, wide as u64)
                }
                Value::Array(items) => items.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
                Value::Object(members) => members.values().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
                _ => (0, 0),
            }
        }
        ["messages", "tools", "functions", "response_format"]
            .into_iter()
            .filter_map(|field| self.body.get(field))
            .map(of)
            .fold(0, |sum, (ascii, wide)| sum + ascii.div_ceil(4) + wide)
    }
}

fn invalid(param: &str, code: &'static str, message: &str) -> Invalid {
    let param = (!param.is_empty()).then(|| param.to_owned());
    Invalid { message: message.to_owned(), param, code }
}

/// A name travels to targets and into records as it is: it must not be able to hold a sentence or an address.
fn is_model_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/+-".contains(&b);
    (1..=128).contains(&name.len()) && name.bytes().all(plain)
}

fn wrong_type(param: &str, wanted: &str) -> Invalid {
    invalid(param, "invalid_type", &format!("`{param}` must be {wanted}."))
}

fn role_of(message: &Value) -> Option<&'static str> {
    let role = message.get("role")?.as_str()?;
    ROLES.into_iter().find(|known| *known == role)
}

fn text_bytes(content: &Value) -> usize {
    match content {
        Value::String(text) => text.len(),
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).map(str::len).sum(),
        _ => 0,
    }
}

/// The text of each message of a body that has the shape of a request; parts are put together with line breaks.
#[must_use]
pub fn message_texts(body: &Map<String, Value>) -> Vec<String> {
    let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |message: &Value| match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    };
    messages.iter().map(text).collect()
}

/// Checks every message; true if one has parts that cannot be read as text.
fn check_messages(body: &Map<String, Value>, max: usize) -> Result<bool, Invalid> {
    let messages = match body.get("messages") {
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(wrong_type("messages", "an array of messages")),
        None => return Err(invalid("messages", "missing_required_parameter", "`messages` is missing.")),
    };
    if messages.is_empty() {
        return Err(invalid("messages", "empty_array", "`messages` is empty; send at least one message."));
    }
    if messages.len() > max {
        let what = format!("`messages` has {} entries, more than the {max} that are accepted.", messages.len());
        return Err(invalid("messages", "array_above_max_length", &what));
    }
    let mut opaque = false;
    for (index, message) in messages.iter().enumerate() {
        let at = format!("messages[{index}]");
        if !message.is_object() {
            return Err(wrong_type(&at, "an object with `role` and `content`"));
        }
        if role_of(message).is_none() {
            let (param, what) = (format!("{at}.role"), format!("one of {}", ROLES.join(", ")));
            return Err(wrong_type(&param, &what));
        }
        opaque |= check_content(&format!("{at}.content"), message)?;
    }
    Ok(opaque)
}

fn check_content(at: &str, message: &Value) -> Result<bool, Invalid> {
    let parts = match message.get("content") {
        Some(Value::String(_)) => return Ok(false),
        None | Some(Value::Null) if message.get("role").and_then(Value::as_str) == Some("assistant") => {
            return Ok(false);
        }
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        None => return Err(invalid(at, "missing_required_parameter", &format!("`{at}` is missing."))),
        Some(_) => return Err(wrong_type(at, "a string or a non-empty array of parts")),
    };
    let mut opaque = false;
    for (index, part) in parts.iter().enumerate() {
        let at = format!("{at}[{index}]");
        match part.get("type") {
            Some(Value::String(kind)) if kind == "text" || kind == "refusal" => {
                if !part.get(kind).is_some_and(Value::is_string) {
                    return Err(wrong_type(&format!("{at}.{kind}"), "a string"));
                }
            }
            Some(Value::String(_)) => opaque = true,
            _ => return Err(wrong_type(&format!("{at}.type"), "a string such as \"text\"")),
        }
    }
    Ok(opaque)
}

fn optional_bool(body: &Map<String, Value>, field: &str) -> Result<Option<bool>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(wrong_type(field, "true or false")),
    }
}

fn optional_number(body: &Map<String, Value>, field: &str) -> Result<Option<f64>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong_type(field, "a number")),
    }
}

fn optional_count(body: &Map<String, Value>, field: &str) -> Result<Option<u64>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let count = value.as_u64().filter(|count| (1..=10_000_000).contains(count));
            count.map(Some).ok_or_else(|| wrong_type(field, "a whole number above 0"))
        }
    }
}

fn optional_object<'a>(body: &'a Map<String, Value>, field: &str) -> Result<Option<&'a Map<String, Value>>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(wrong_type(field, "an object")),
    }
}

fn optional_array<'a>(body: &'a Map<String, Value>, field: &str) -> Result<Option<&'a Vec<Value>>, Invalid> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(wrong_type(field, "an array")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(super) fn read(tree: Value) -> Result<ChatRequest, Invalid> {
        ChatRequest::from_json(tree, 3)
    }

    pub(super) fn with(field: &str, value: Value) -> Value {
        let mut tree = json!({"model": "chat", "messages": [{"role": "user", "content": "Hello"}]});
        tree[field] = value;
        tree
    }

    #[test]
    fn what_matters_is_read_and_the_rest_is_kept() {
        let tree = json!({
            "model": "chat", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5, "new": {"x": 1},
            "messages": [{"role": "user", "content": [{"type": "text", "text": "四 word"}, {"type": "image_url"}]}],
        });
        let request = read(tree.clone()).unwrap();
        assert!(request.stream && request.include_usage && request.opaque_parts && !request.tools);
        assert_eq!(request.message_shapes(), [MessageShape { role: "user", bytes: 8 }]);
        // 6 keys with 3 plain values, 2 objects of 1 member, and messages: 2 arrays, 3 objects, 5 members, 4 texts.
        assert_eq!(request.values(), 6 + 3 + 2 * 3 + (2 + 3 + 5 + 4));
        assert_eq!(message_texts(request.body()), ["四 word"]);
        assert_eq!(Value::Object(request.into_body()), tree);
    }

    #[test]
    fn each_fault_is_named_with_its_field() {
        let user = json!({"role": "user", "content": "Hello"});
        for (tree, param, code) in [
            (json!([]), None, "invalid_type"),
            (json!({"messages": [user]}), Some("model"), "missing_required_parameter"),
            (with("model", json!(7)), Some("model"), "invalid_type"),
            (with("model", json!("")), Some("model"), "invalid_value"),
            (with("model", json!("ann@example.org")), Some("model"), "invalid_value"),
            (json!({"model": "chat"}), Some("messages"), "missing_required_parameter"),
            (with("messages", json!([])), Some("messages"), "empty_array"),
            (with("messages", json!("x")), Some("messages"), "invalid_type"),
            (with("messages", json!([user, user, user, user])), Some("messages"), "array_above_max_length"),
            (with("messages", json!([user, 7])), Some("messages[1]"), "invalid_type"),
            (with("messages", json!([{"role": "boss", "content": "x"}])), Some("messages[0].role"), "invalid_type"),
            (with("messages", json!([{"role": "user"}])), Some("messages[0].content"), "missing_required_parameter"),
            (with("messages", json!([{"role": "user", "content": 7}])), Some("messages[0].content"), "invalid_type"),
            (with("stream", json!("yes")), Some("stream"), "invalid_type"),
            (with("n", json!(0)), Some("n"), "invalid_type"),
            (with("n", json!(17)), Some("n"), "invalid_value"),
            (with("max_tokens", json!(-1)), Some("max_tokens"), "invalid_type"),
            (with("temperature", json!("hot")), Some("temperature"), "invalid_type"),
            (with("store", json!(true)), Some("store"), "provider_state_refused"),
            (with("previous_response_id", json!("r")), Some("previous_response_id"), "provider_state_refused"),
            (with("tools", json!([{"type": "web_search"}])), Some("tools[0].type"), "provider_state_refused"),
            (
                with("extra_body", json!({"enable_search": true})),
                Some("extra_body.enable_search"),
                "provider_state_refused",
            ),
            (with("prompt", json!({"id": "p"})), Some("prompt"), "provider_state_refused"),
            (
                with("messages", json!([user, {"role": "assistant", "content": null, "audio": {"id": "a"}}])),
                Some("messages[1].audio"),
                "provider_state_refused",
            ),
        ] {
            let fault = read(tree.clone()).unwrap_err();
            assert_eq!((fault.param.as_deref(), fault.code), (param, code), "{tree}");
        }
        let assistant = json!([{"role": "assistant", "content": null, "tool_calls": []}]);
        assert!(read(with("messages", assistant)).is_ok());
    }

    #[test]
    fn tokens_are_estimated_for_wide_and_narrow_text() {
        let text = |content: &str| json!([{"role": "user", "content": content}]);
        let tokens = |content: &str| read(with("messages", text(content))).unwrap().estimated_prompt_tokens();
        assert_eq!(tokens("abcdefgh") + 5, tokens("abcdefgh四四四四四"));
        assert!(tokens(&"word ".repeat(100)) > 100);
    }
}
