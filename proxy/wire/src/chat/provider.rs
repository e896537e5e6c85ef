//! What of a request is not text: state and tools that a provider has of its own, other models than the one that is asked for, and
//! images and the like, wherever they are.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::json::{Map, Value};

use crate::embeddings::tokens;
use crate::fields::{Invalid, invalid};

/// The word for it.
const REFUSED: &str = "provider_state_refused";
/// Fields that make a provider remember, look up or do something by itself. Not only of OpenAI: whatever server the target is,
/// it may know them.
const PROVIDER_EXTRAS: [&str; 15] = [
    "store",
    "background",
    "previous_response_id",
    "conversation",
    "thread_id",
    "assistant_id",
    "web_search_options",
    "web_search",
    "enable_search",
    "search_parameters",
    "plugins",
    "data_sources",
    "tool_resources",
    "mcp_servers",
    "container",
];
/// Fields that have somebody else answer than the model that is asked for, at some servers: labels and targets go by that one.
const OTHER_MODELS: [&str; 7] = ["models", "fallbacks", "fallback_models", "model_id", "preset", "adapter_id", "lora"];
/// Fields that are read here, as they are written. Some servers take them in any case as well, and out of `extra_body`.
const READ_HERE: [&str; 19] = [
    "model",
    "messages",
    "prompt",
    "suffix",
    "input",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "tools",
    "functions",
    "tool_choice",
    "response_format",
    "logprobs",
    "encoding_format",
    "dimensions",
    "extra_body",
];
/// Fields that hold, or point at, what cannot be read as text.
const OPAQUE_FIELDS: [&str; 13] = [
    "image",
    "images",
    "image_url",
    "input_image",
    "input_audio",
    "video",
    "videos",
    "video_url",
    "file",
    "files",
    "file_id",
    "file_ids",
    "file_data",
];
/// Fields of servers that take tokens, or what stands behind them, in the place of text: nobody could look at those.
const TOKEN_FIELDS: [&str; 5] = ["prompt_token_ids", "input_ids", "prompt_embeds", "input_embeds", "inputs_embeds"];
/// Where such names are an application's own: those of a function's parameters, say.
const OWN_NAMES: [&str; 5] = ["tools", "functions", "tool_choice", "response_format", "metadata"];

/// Is there an image, or the like, at any place?
pub(crate) fn holds_opaque(members: &Map) -> bool {
    members.iter().any(|(key, value)| {
        let named = OPAQUE_FIELDS.contains(&folded(key).as_ref()) && is_on(value);
        named || if OWN_NAMES.contains(&key) { any_data_url(value) } else { is_opaque(value) }
    })
}

fn is_opaque(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(is_opaque),
        Value::Object(members) => holds_opaque(members),
        other => any_data_url(other),
    }
}

fn any_data_url(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with("data:") && text.contains(";base64,"),
        Value::Array(items) => items.iter().any(any_data_url),
        Value::Object(members) => members.values().any(any_data_url),
        _ => false,
    }
}

/// `{}` asks for something with nothing but defaults.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

/// State that lives with a provider cannot be bound to a tenant and a label here, and what a provider does by itself with a
/// prompt cannot be seen.
pub(crate) fn refuse_state(body: &Map) -> Result<(), Invalid> {
    // `extra_body` is a word of the SDK; some servers unpack it when it reaches them.
    let extra = body.get("extra_body").and_then(Value::as_object);
    for (prefix, members) in [("", Some(body)), ("extra_body.", extra)] {
        let Some(members) = members else { continue };
        for (key, value) in members {
            let name = folded(key);
            let name = name.as_ref();
            if READ_HERE.contains(&name) && (key != name || !prefix.is_empty()) {
                return Err(read_elsewhere(&format!("{prefix}{name}"), name));
            }
            if !is_on(value) {
                continue;
            }
            if PROVIDER_EXTRAS.contains(&name) {
                return Err(used(&format!("{prefix}{name}")));
            }
            if OTHER_MODELS.contains(&name) {
                return Err(other_model(&format!("{prefix}{name}")));
            }
            if TOKEN_FIELDS.contains(&name) {
                return Err(tokens(&format!("{prefix}{name}")));
            }
        }
    }
    // A prompt that is kept there; one that is text is an unknown field like others.
    if body.get("prompt").is_some_and(Value::is_object) {
        return Err(used("prompt"));
    }
    refuse_twins(body)
}

/// Names that differ in case alone are the same one to some servers, which take the last of them: what is looked at here would not be
/// what is read there.
fn refuse_twins(members: &Map) -> Result<(), Invalid> {
    if members.keys().any(|key| matches!(folded(key), Cow::Owned(_))) {
        let mut seen = HashSet::with_capacity(members.len());
        if let Some(name) = members.keys().map(|key| folded(key)).find(|name| !seen.insert(name.clone())) {
            // A name that is none of the API's may be anybody's words.
            let known = READ_HERE.into_iter().chain(["role", "content", "text", "type"]).find(|known| *known == name);
            return Err(read_elsewhere(known.unwrap_or_default(), known.unwrap_or("a field")));
        }
    }
    let inside = members.iter().filter(|(key, _)| !OWN_NAMES.contains(key));
    inside.map(|(_, value)| value).try_for_each(refuse_twins_in)
}

fn refuse_twins_in(value: &Value) -> Result<(), Invalid> {
    match value {
        Value::Array(items) => items.iter().try_for_each(refuse_twins_in),
        Value::Object(members) => refuse_twins(members),
        _ => Ok(()),
    }
}

/// As a server reads it that does not mind case: Go's `encoding/json`, to which a long s and the sign for kelvin are letters like others.
fn folded(key: &str) -> Cow<'_, str> {
    if key.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(key);
    }
    Cow::Owned(key.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect())
}

/// The same inside of messages, and among tools.
pub(super) fn refuse_state_of_chats(body: &Map) -> Result<(), Invalid> {
    let messages = body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, message) in messages.iter().enumerate() {
        if message.get("audio").is_some_and(is_on) {
            return Err(used(&format!("messages[{index}].audio")));
        }
    }
    let tools = body.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for (index, tool) in tools.iter().enumerate() {
        if !matches!(tool.get("type").and_then(Value::as_str), Some("function" | "custom")) {
            let what = "Only tools of type `function` or `custom` are allowed here.";
            return Err(invalid(&format!("tools[{index}].type"), REFUSED, what));
        }
    }
    Ok(())
}

fn used(field: &str) -> Invalid {
    let what = format!(
        "`{field}` uses state or tools of the provider, which is not allowed here. Send all of it in the request itself."
    );
    invalid(field, REFUSED, &what)
}

fn other_model(field: &str) -> Invalid {
    let what = format!(
        "`{field}` has another model answer than the one under `model`, which is not allowed here. Leave it out."
    );
    invalid(field, "other_model_refused", &what)
}

fn read_elsewhere(field: &str, name: &str) -> Invalid {
    let what = format!(
        "Some servers would read `{name}` from another place than it is read here: once is enough, in lower case, and not inside of `extra_body`."
    );
    invalid(field, "ambiguous_field", &what)
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::super::tests::{read, with};
    use super::*;

    #[test]
    fn what_stands_in_the_place_of_text_is_refused() {
        for field in TOKEN_FIELDS {
            for on in [json!([1, 2]), json!([[1]]), json!("gASV")] {
                let fault = read(with(field, on)).unwrap_err();
                assert_eq!((fault.param.as_deref(), fault.code), (Some(field), "tokens_refused"));
            }
            assert!(read(with(field, json!([]))).is_ok());
        }
        assert!(read(with("extra_body", json!({"prompt_embeds": "gASV"}))).is_err());
    }

    #[test]
    fn what_a_provider_would_do_by_itself_is_refused_and_what_is_off_is_not() {
        for field in PROVIDER_EXTRAS {
            for on in [json!(true), json!({}), json!([{"id": "web"}]), json!("id")] {
                let fault = read(with(field, on)).unwrap_err();
                assert_eq!((fault.param.as_deref(), fault.code), (Some(field), "provider_state_refused"));
            }
            for off in [json!(null), json!(false), json!([])] {
                assert!(read(with(field, off)).is_ok(), "{field}");
            }
        }
        assert!(read(with("prompt", json!("text"))).is_ok());
    }

    #[test]
    fn what_others_would_read_elsewhere_or_answer_with_another_model_is_refused() {
        for tree in [
            with("Model", json!("hr")),
            with("meſſages", json!([])),
            with("STREAM", json!(true)),
            with("extra_body", json!({"model": "hr"})),
            with("extra_body", json!({"Messages": []})),
            with("messages", json!([{"role": "user", "content": "a", "Content": "b"}])),
            with("messages", json!([{"role": "user", "content": [{"type": "text", "text": "a", "TEXT": "b"}]}])),
            with("options", json!({"seed": 1, "ſeed": 2})),
        ] {
            let fault = read(tree.clone()).unwrap_err();
            assert_eq!(fault.code, "ambiguous_field", "{tree}");
            assert!(!fault.message.contains("eed"), "{fault}");
        }
        for field in OTHER_MODELS.into_iter().chain(["Models", "fallbacKs"]) {
            assert_eq!(read(with(field, json!(["hr"]))).unwrap_err().code, "other_model_refused", "{field}");
        }
        assert_eq!(read(with("Store", json!(true))).unwrap_err().code, "provider_state_refused");
        let parameters = json!({"type": "object", "properties": {"id": {}, "ID": {}}});
        let tool = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
        for tree in [
            with("tools", tool),
            with("topK", json!(3)),
            with("metadata", json!({"a": "1", "A": "2"})),
            with("models", json!([])),
        ] {
            assert!(read(tree.clone()).is_ok(), "{tree}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_noticed_at_any_place() {
        let url = "data:image/png;base64,AAAA";
        let message = |more: Value| {
            let mut message = json!({"role": "user", "content": "What is this?"});
            message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            with("messages", json!([message]))
        };
        let part = json!({"type": "text", "text": "See", "image_url": {"url": "https://x/y.png"}});
        for tree in [
            message(json!({"images": ["AAAA"]})),
            message(json!({"content": url})),
            message(json!({"content": [part]})),
            with("images", json!(["AAAA"])),
            with("extra_body", json!({"files": ["f"]})),
            with("multi_modal", json!([[{"file_id": "f-1"}]])),
            with("metadata", json!({"thumb": url})),
        ] {
            assert!(read(tree.clone()).unwrap().opaque_parts, "{tree}");
        }
        let parameters = json!({"type": "object", "properties": {"image": {"type": "string"}, "file": {}}});
        let tool = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
        for tree in [
            with("tools", tool),
            with("metadata", json!({"file": "report.pdf"})),
            message(json!({"images": []})),
            message(json!({"content": "An image is a data:image/png;base64,… URL"})),
        ] {
            assert!(!read(tree.clone()).unwrap().opaque_parts, "{tree}");
        }
    }
}
