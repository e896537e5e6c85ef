//! A chat completions request, checked. What the engine cannot do is refused, never silently left out.
//!
//! Source: the OpenAI API reference, "Create chat completion".

use serde_json::{Map, Value};

use crate::chat_template::Message;
use crate::error::EngineError;
use crate::origin::Origin;
use crate::sequence::{Generation, Sampling};

/// Messages of a request at most.
const MESSAGES_MAX: usize = 10_000;
/// Stop strings of a request at most, and the bytes of one.
const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 1024;

/// A request that can be served.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    /// `None`: as many as the context leaves.
    pub(super) max_tokens: Option<u64>,
    pub(super) stop: Vec<String>,
    pub(super) sampling: Sampling,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl ChatRequest {
    pub(super) fn from_json(tree: &Value) -> Result<Self, EngineError> {
        let Value::Object(object) = tree else {
            let message = "The body must be a JSON object.".to_owned();
            return Err(EngineError::Invalid { message, param: None, code: None });
        };
        let body = Fields(object);
        refuse_unsupported(&body)?;
        let model = body.text("model")?.ok_or_else(|| missing("model"))?.to_owned();
        let stream = body.truth("stream")?.unwrap_or(false);
        Ok(Self {
            model,
            messages: messages(&body)?,
            max_tokens: body.count("max_completion_tokens")?.or(body.count("max_tokens")?),
            stop: stop(&body)?,
            sampling: sampling(&body)?,
            stream,
            include_usage: include_usage(&body, stream)?,
        })
    }

    pub(super) fn into_generation(self, prompt: Vec<u32>, origin: Origin) -> Generation {
        let max_new_tokens = self.max_tokens.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
        Generation { prompt, max_new_tokens, stop: self.stop, sampling: self.sampling, origin }
    }
}

/// Typed access; `null` counts as absent, as the API has it.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn value(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let read = |value| read(value).ok_or_else(|| EngineError::invalid(name, format!("`{name}` must be {wanted}.")));
        self.value(name).map(read).transpose()
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, EngineError> {
        self.typed(name, "a string", Value::as_str)
    }

    fn truth(&self, name: &str) -> Result<Option<bool>, EngineError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    fn count(&self, name: &str) -> Result<Option<u64>, EngineError> {
        self.typed(name, "a whole number, 1 or more", |value| value.as_u64().filter(|count| *count > 0))
    }

    fn number(&self, name: &str, from: f64, to: f64) -> Result<Option<f32>, EngineError> {
        let within = |value: &Value| value.as_f64().filter(|number| (from..=to).contains(number));
        Ok(self.typed(name, &format!("a number from {from} to {to}"), within)?.map(|number| number as f32))
    }
}

fn missing(name: &str) -> EngineError {
    EngineError::invalid(name, format!("`{name}` is missing."))
}

fn refuse_unsupported(body: &Fields<'_>) -> Result<(), EngineError> {
    let filled = |value: &Value| match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    };
    for name in ["tools", "functions", "logprobs", "top_logprobs", "logit_bias", "audio", "prediction"] {
        if body.value(name).is_some_and(filled) {
            return Err(unsupported(name));
        }
    }
    let is_text = |format: &Value| format.get("type").and_then(Value::as_str) == Some("text");
    if body.value("response_format").is_some_and(|format| !is_text(format)) {
        return Err(unsupported("response_format"));
    }
    if body.count("n")?.is_some_and(|n| n != 1) {
        return Err(unsupported("n"));
    }
    let only_text = |modes: &Value| modes.as_array().is_some_and(|modes| modes.iter().all(|mode| mode == "text"));
    if body.value("modalities").is_some_and(|modes| !only_text(modes)) {
        return Err(unsupported("modalities"));
    }
    Ok(())
}

fn unsupported(name: &str) -> EngineError {
    let message = match name {
        "n" => "`n` other than 1 is not supported by the local engine yet.".to_owned(),
        _ => format!("`{name}` is not supported by the local engine yet."),
    };
    EngineError::Invalid { message, param: Some(name.to_owned()), code: Some("unsupported_parameter") }
}

fn messages(body: &Fields<'_>) -> Result<Vec<Message>, EngineError> {
    let list = body.typed("messages", "an array of messages", Value::as_array)?.ok_or_else(|| missing("messages"))?;
    if list.is_empty() {
        return Err(EngineError::invalid("messages", "`messages` is empty; send at least one message."));
    }
    if list.len() > MESSAGES_MAX {
        let message = format!("`messages` has {} entries; {MESSAGES_MAX} are accepted.", list.len());
        return Err(EngineError::invalid("messages", message));
    }
    list.iter().enumerate().map(|(at, value)| message(at, value)).collect()
}

fn message(at: usize, value: &Value) -> Result<Message, EngineError> {
    let param = |field: &str| format!("messages[{at}]{field}");
    let wrong = |field: &str, wanted: &str| {
        let param = param(field);
        EngineError::invalid(param.clone(), format!("`{param}` must be {wanted}."))
    };
    let object = value.as_object().ok_or_else(|| wrong("", "an object with `role` and `content`"))?;
    let fields = Fields(object);
    let role = match fields.value("role").and_then(Value::as_str) {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool" | "function") => return Err(unsupported(&param(".role (tool)"))),
        _ => return Err(wrong(".role", "system, developer, user or assistant")),
    };
    if fields.value("tool_calls").is_some() || fields.value("function_call").is_some() {
        return Err(unsupported(&param(".tool_calls")));
    }
    let content = match fields.value("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_of_parts(parts, &param(".content"))?,
        _ => return Err(wrong(".content", "a string or an array of text parts")),
    };
    Ok(Message { role, content })
}

fn text_of_parts(parts: &[Value], param: &str) -> Result<String, EngineError> {
    let mut content = String::new();
    for (at, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => content.push_str(text),
            (Some("text"), None) => {
                let param = format!("{param}[{at}].text");
                return Err(EngineError::invalid(param.clone(), format!("`{param}` must be a string.")));
            }
            _ => return Err(unsupported(&format!("{param}[{at}] (not text)"))),
        }
    }
    Ok(content)
}

fn stop(body: &Fields<'_>) -> Result<Vec<String>, EngineError> {
    let wanted = format!("a string, or up to {STOPS_MAX} strings, of 1 to {STOP_BYTES_MAX} bytes");
    let good = |value: &Value| {
        let text = value.as_str().filter(|text| (1..=STOP_BYTES_MAX).contains(&text.len()));
        text.map(str::to_owned)
    };
    let read = |value: &Value| match value {
        Value::Array(list) if list.len() <= STOPS_MAX => list.iter().map(good).collect(),
        Value::String(_) => good(value).map(|stop| vec![stop]),
        _ => None,
    };
    Ok(body.typed("stop", &wanted, read)?.unwrap_or_default())
}

fn sampling(body: &Fields<'_>) -> Result<Sampling, EngineError> {
    let default = Sampling::default();
    let top_p = body.number("top_p", 0.0, 1.0)?.unwrap_or(default.top_p);
    // Any 64-bit integer is a seed, also a negative one.
    let seed =
        body.typed("seed", "an integer", |value| value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)))?;
    Ok(Sampling {
        temperature: body.number("temperature", 0.0, 2.0)?.unwrap_or(default.temperature),
        top_p,
        frequency_penalty: body.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(default.frequency_penalty),
        presence_penalty: body.number("presence_penalty", -2.0, 2.0)?.unwrap_or(default.presence_penalty),
        seed,
    })
}

fn include_usage(body: &Fields<'_>, stream: bool) -> Result<bool, EngineError> {
    let Some(options) = body.typed("stream_options", "an object", Value::as_object)? else { return Ok(false) };
    if !stream {
        return Err(EngineError::invalid("stream_options", "`stream_options` needs `stream` to be true."));
    }
    match options.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(wanted)) => Ok(*wanted),
        Some(_) => {
            let param = "stream_options.include_usage";
            Err(EngineError::invalid(param, format!("`{param}` must be true or false.")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(more: Value) -> Result<ChatRequest, EngineError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        ChatRequest::from_json(&body)
    }

    fn refused(more: Value) -> (String, Option<String>, Option<&'static str>) {
        match request(more) {
            Err(EngineError::Invalid { message, param, code }) => (message, param, code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_that_is_accepted() {
        let request = request(json!({
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            "max_completion_tokens": 7, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": -1, "stop": "x",
            "stream": true, "stream_options": {"include_usage": true}, "n": 1, "user": "someone", "made_up": {"a": 1},
            "response_format": {"type": "text"}, "logprobs": false, "tools": [], "temperature_unit": null,
        }));
        let request = request.unwrap();
        assert_eq!(request.messages[0].role, "system");
        assert_eq!(request.messages[1].content, "ab");
        assert_eq!((request.max_tokens, request.stop), (Some(7), vec!["x".to_owned()]));
        assert_eq!((request.stream, request.include_usage), (true, true));
        assert_eq!((request.sampling.temperature, request.sampling.seed), (0.5, Some(u64::MAX)));
    }

    #[test]
    fn wrong_types_name_their_field() {
        for (more, wanted) in [
            (json!({"model": 3}), "model"),
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [1]}), "messages[0]"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "boss", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "messages[0].content[0].text"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"top_p": -0.1}), "top_p"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"stop": 7}), "stop"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
            (json!({"stop": ""}), "stop"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"n": 0}), "n"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        ] {
            assert_eq!(refused(more).1.as_deref(), Some(wanted));
        }
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused() {
        for (more, param) in [
            (json!({"n": 2}), "n"),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (json!({"logit_bias": {"5": 10}}), "logit_bias"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
        ] {
            let (message, at, code) = refused(more);
            assert_eq!((at.as_deref(), code), (Some(param), Some("unsupported_parameter")));
            assert!(message.contains("not supported by the local engine yet"), "{message}");
        }
        let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
        assert_eq!(refused(json!({"messages": [{"role": "user", "content": image}]})).2, Some("unsupported_parameter"));
        assert_eq!(refused(json!({"messages": [{"role": "tool", "content": "x"}]})).2, Some("unsupported_parameter"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(ChatRequest::from_json(&json!([])).is_err());
        assert!(ChatRequest::from_json(&json!({})).is_err());
    }
}
