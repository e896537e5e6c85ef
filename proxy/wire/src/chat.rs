//! A chat completions request (`POST /v1/chat/completions`): checked where Postern acts on it, kept whole otherwise.
//!
//! Source: the OpenAI API reference, “Create chat completion”. Unknown fields stay in the tree and travel on.

pub(crate) mod provider;

use crate::json::{Map, Value};

pub use crate::fields::Invalid;
use crate::fields::{
    choices, estimated_tokens, invalid, model_name, optional_array, optional_bool, optional_count, optional_number,
    optional_object, the_object, wrong_type,
};

/// Roles that a message may have.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A request whose fields that matter here have the right types. The tree is private, so that it stays so.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    body: Map,
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
        let body = the_object(tree)?;
        let model = model_name(&body)?;
        let opaque_parts = check_messages(&body, max_messages)?;
        provider::refuse_state(&body)?;
        provider::refuse_state_of_chats(&body)?;
        let options = optional_object(&body, "stream_options")?;
        let tools = optional_array(&body, "tools")?.is_some_and(|tools| !tools.is_empty())
            || optional_array(&body, "functions")?.is_some_and(|functions| !functions.is_empty());
        Ok(Self {
            model,
            stream: optional_bool(&body, "stream")?.unwrap_or(false),
            include_usage: options.and_then(|o| o.get("include_usage")).and_then(Value::as_bool).unwrap_or(false),
            choices: choices(&body)?,
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
    pub fn body(&self) -> &Map {
        &self.body
    }

    /// Gives the tree back, for one who changes it and checks it anew.
    #[must_use]
    pub fn into_body(self) -> Map {
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

    /// What users wrote: each text of their messages, and of the parts of those.
    #[must_use]
    pub fn user_texts(&self) -> Vec<&str> {
        let messages = self.body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let of_users = messages.iter().filter(|message| role_of(message) == Some("user"));
        of_users.filter_map(|message| message.get("content")).flat_map(content_texts).collect()
    }

    /// Estimated tokens of the prompt: a quarter of the ASCII bytes, and one for each other character.
    #[must_use]
    pub fn estimated_prompt_tokens(&self) -> u64 {
        let fields = ["messages", "tools", "functions", "response_format"];
        estimated_tokens(fields.into_iter().filter_map(|field| self.body.get(field)))
    }
}

fn role_of(message: &Value) -> Option<&'static str> {
    let role = message.get("role")?.as_str()?;
    ROLES.into_iter().find(|known| *known == role)
}

fn content_texts(content: &Value) -> impl Iterator<Item = &str> {
    let parts = content.as_array().map_or(&[][..], Vec::as_slice);
    content.as_str().into_iter().chain(parts.iter().filter_map(|part| part.get("text")?.as_str()))
}

fn text_bytes(content: &Value) -> usize {
    content_texts(content).map(str::len).sum()
}

/// The text of each message of a body that has the shape of a request; parts are put together with line breaks.
#[must_use]
pub fn message_texts(body: &Map) -> Vec<String> {
    let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |message: &Value| {
        message.get("content").map_or_else(String::new, |content| content_texts(content).collect::<Vec<_>>().join("\n"))
    };
    messages.iter().map(text).collect()
}

/// Checks every message; true if one has parts that cannot be read as text.
fn check_messages(body: &Map, max: usize) -> Result<bool, Invalid> {
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
        if !message.is_object() {
            return Err(wrong_type(&format!("messages[{index}]"), "an object with `role` and `content`"));
        }
        if role_of(message).is_none() {
            let what = format!("one of {}", ROLES.join(", "));
            return Err(wrong_type(&format!("messages[{index}].role"), &what));
        }
        opaque |= check_content(index, message)?;
    }
    Ok(opaque)
}

fn check_content(index: usize, message: &Value) -> Result<bool, Invalid> {
    let at = || format!("messages[{index}].content");
    let parts = match message.get("content") {
        Some(Value::String(_)) => return Ok(false),
        None | Some(Value::Null) if message.get("role").and_then(Value::as_str) == Some("assistant") => {
            return Ok(false);
        }
        Some(Value::Array(parts)) if !parts.is_empty() => parts,
        None => return Err(invalid(&at(), "missing_required_parameter", &format!("`{}` is missing.", at()))),
        Some(_) => return Err(wrong_type(&at(), "a string or a non-empty array of parts")),
    };
    let mut opaque = false;
    for (index, part) in parts.iter().enumerate() {
        let at = || format!("{}[{index}]", at());
        match part.get("type") {
            Some(Value::String(kind)) if kind == "text" || kind == "refusal" => {
                if !part.get(kind.as_str()).is_some_and(Value::is_string) {
                    return Err(wrong_type(&format!("{}.{kind}", at()), "a string"));
                }
            }
            Some(Value::String(_)) => opaque = true,
            _ => return Err(wrong_type(&format!("{}.type", at()), "a string such as \"text\"")),
        }
    }
    Ok(opaque)
}

#[cfg(test)]
mod tests {
    use crate::json::json;

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
