//! A legacy completions request (`POST /v1/completions`), and its answers.
//!
//! Source: the OpenAI API reference, “Create completion”. One prompt a request, as text. Inside of the gateway an answer has
//! the shape of a chat completion ([`to_chat`], [`from_chat`]), so that there is one way back for both.

use crate::json::{Map, Value};

use crate::chat::{MessageShape, provider};
use crate::embeddings::{is_token, strings, tokens};
use crate::fields::{
    Invalid, choices, estimated_tokens, invalid, model_name, optional_bool, optional_count, optional_number,
    optional_object, the_object, wrong_type,
};

/// A request whose fields that matter here have the right types. The tree is private, so that it stays so.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    body: Map,
    /// The model asked for.
    pub model: String,
    /// Answer as server-sent events.
    pub stream: bool,
    /// `stream_options.include_usage`: the client wants the usage chunk.
    pub include_usage: bool,
    /// `n`, 1 if absent.
    pub choices: u64,
    /// Something in it cannot be read as text.
    pub opaque_parts: bool,
    /// `temperature`, if given.
    pub temperature: Option<f64>,
    /// The bound on new tokens, if given.
    pub max_tokens: Option<u64>,
}

impl CompletionRequest {
    /// Checks a tree.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is missing, has a wrong type or a value that cannot be served.
    pub fn from_json(tree: Value) -> Result<Self, Invalid> {
        let body = the_object(tree)?;
        let model = model_name(&body)?;
        provider::refuse_state(&body)?;
        check_prompt(&body)?;
        let options = optional_object(&body, "stream_options")?;
        Ok(Self {
            model,
            stream: optional_bool(&body, "stream")?.unwrap_or(false),
            include_usage: options.and_then(|o| o.get("include_usage")).and_then(Value::as_bool).unwrap_or(false),
            choices: choices(&body)?,
            opaque_parts: provider::holds_opaque(&body),
            temperature: optional_number(&body, "temperature")?,
            max_tokens: optional_count(&body, "max_tokens")?,
            body,
        })
    }

    /// The whole request.
    #[must_use]
    pub fn body(&self) -> &Map {
        &self.body
    }

    /// The prompt as what a user wrote.
    #[must_use]
    pub fn message_shapes(&self) -> Vec<MessageShape> {
        prompt(&self.body).map(|text| MessageShape { role: "user", bytes: text.len() }).collect()
    }

    /// Estimated tokens of the prompt, and of what comes behind it.
    #[must_use]
    pub fn estimated_prompt_tokens(&self) -> u64 {
        estimated_tokens(["prompt", "suffix"].into_iter().filter_map(|field| self.body.get(field)))
    }
}

/// What was written in a body that has the shape of a request: the prompt, and what is to come behind its answer.
pub fn prompt(body: &Map) -> impl Iterator<Item = &str> {
    strings(body.get("prompt")).chain(strings(body.get("suffix")))
}

fn check_prompt(body: &Map) -> Result<(), Invalid> {
    match body.get("prompt") {
        None => Err(invalid("prompt", "missing_required_parameter", "`prompt` is missing.")),
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(_)] => Ok(()),
            [first, ..] if is_token(Some(first)) => Err(tokens("prompt")),
            [_, _, ..] if list.iter().all(Value::is_string) => {
                let what = "`prompt` has several texts; send a request for each.";
                Err(invalid("prompt", "array_above_max_length", what))
            }
            _ => Err(wrong_type("prompt", "a string, or an array of one")),
        },
        Some(_) => Err(wrong_type("prompt", "a string, or an array of one")),
    }
}

/// An answer that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Which part of a choice has the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Of an event of a stream.
    Delta,
    /// Of a whole answer.
    Message,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Message => "message",
        }
    }
}

/// `choices[].text` → `choices[].delta.content` or `choices[].message.content`.
///
/// # Errors
/// [`Malformed`]: a choice is none of a completion.
pub fn to_chat(answer: &mut Value, part: Part) -> Result<(), Malformed> {
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut).ok_or(Malformed)?;
    for choice in choices {
        let choice = choice.as_object_mut().ok_or(Malformed)?;
        let text = match choice.remove("text") {
            Some(text @ Value::String(_)) => text,
            // The last event of some servers only says why it ended.
            None | Some(Value::Null) if part == Part::Delta => Value::from(""),
            _ => return Err(Malformed),
        };
        choice.insert(part.name().to_owned(), Value::Object(Map::from_iter([("content".to_owned(), text)])));
    }
    Ok(())
}

/// The other way round; nothing but the text of a message is left.
pub fn from_chat(answer: &mut Value, part: Part) {
    let Some(members) = answer.as_object_mut() else { return };
    members.insert("object".to_owned(), Value::from("text_completion"));
    for choice in members.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(choice) = choice.as_object_mut() else { continue };
        let said = choice.remove(part.name());
        let text = said.as_ref().and_then(|said| said.get("content")?.as_str()).unwrap_or_default();
        choice.insert("text".to_owned(), Value::from(text));
    }
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    fn with(field: &str, value: Value) -> Value {
        let mut tree = json!({"model": "chat", "prompt": "Once"});
        tree[field] = value;
        tree
    }

    #[test]
    fn a_prompt_is_read_and_the_rest_is_kept() {
        let tree = json!({
            "model": "chat", "prompt": ["Once upon"], "suffix": "end.", "stream": true, "n": 2, "max_tokens": 9,
            "stream_options": {"include_usage": true}, "logprobs": 3, "new": {"x": 1},
        });
        let read = CompletionRequest::from_json(tree.clone()).unwrap();
        assert!(read.stream && read.include_usage && !read.opaque_parts);
        assert_eq!((read.choices, read.max_tokens, read.estimated_prompt_tokens()), (2, Some(9), 4));
        assert_eq!(read.message_shapes(), [9, 4].map(|bytes| MessageShape { role: "user", bytes }));
        assert_eq!((prompt(read.body()).collect::<Vec<_>>(), read.model.as_str()), (vec!["Once upon", "end."], "chat"));
        assert_eq!(Value::Object(read.body().clone()), tree);
    }

    #[test]
    fn each_fault_is_named_with_its_field() {
        for (tree, param, code) in [
            (json!([]), None, "invalid_type"),
            (json!({"prompt": "x"}), Some("model"), "missing_required_parameter"),
            (json!({"model": "chat"}), Some("prompt"), "missing_required_parameter"),
            (with("prompt", json!(null)), Some("prompt"), "invalid_type"),
            (with("prompt", json!([])), Some("prompt"), "invalid_type"),
            (with("prompt", json!([null])), Some("prompt"), "invalid_type"),
            (with("prompt", json!({"id": "p"})), Some("prompt"), "provider_state_refused"),
            (with("prompt", json!(["a", "b"])), Some("prompt"), "array_above_max_length"),
            (with("prompt", json!([1, 2])), Some("prompt"), "tokens_refused"),
            (with("prompt", json!([[1, 2]])), Some("prompt"), "tokens_refused"),
            (with("stream", json!("yes")), Some("stream"), "invalid_type"),
            (with("n", json!(17)), Some("n"), "invalid_value"),
            (with("max_tokens", json!(0)), Some("max_tokens"), "invalid_type"),
        ] {
            let fault = CompletionRequest::from_json(tree.clone()).unwrap_err();
            assert_eq!((fault.param.as_deref(), fault.code), (param, code), "{tree}");
        }
    }

    #[test]
    fn an_answer_goes_through_the_shape_of_a_chat_and_comes_back() {
        let answer = json!({
            "id": "cmpl-1", "object": "text_completion",
            "choices": [{"index": 0, "text": "Hi", "logprobs": null, "finish_reason": "stop"}, {"index": 1, "text": ""}],
        });
        for part in [Part::Delta, Part::Message] {
            let mut turned = answer.clone();
            to_chat(&mut turned, part).unwrap();
            assert_eq!(turned["choices"][0][part.name()], json!({"content": "Hi"}));
            assert_eq!(turned["choices"][0].get("text"), None);
            from_chat(&mut turned, part);
            assert_eq!(turned, answer);
        }
        for wrong in [json!({}), json!({"choices": [1]}), json!({"choices": [{"text": 7}]}), json!({"choices": [{}]})] {
            assert_eq!(to_chat(&mut wrong.clone(), Part::Message), Err(Malformed), "{wrong}");
        }
    }
}
