//! A chat completions request, or a legacy one, checked. What the engine cannot do is refused, never silently left out.
//!
//! Source: the OpenAI API reference, "Create chat completion" and "Create completion"; `top_k`, `min_p` and `repetition_penalty` as other servers
//! name them.

use serde_json::{Value, json};

use super::fields::{Fields, missing, unsupported};
use super::messages::messages;
use crate::chat_template::Message;
use crate::error::EngineError;
use crate::grammar::{self, Constraint, Grammar};
use crate::origin::Origin;
use crate::sequence::{Generation, Sampling};
use crate::tools::Tools;

/// Stop strings of a request at most, and the bytes of one.
const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 1024;
/// Answers to one request at most.
const CHOICES_MAX: u64 = 16;
/// Likely tokens that are told beside each, at most.
const TOP_LOGPROBS_MAX: u64 = 20;
/// Tokens with a bias at most.
const BIASES_MAX: usize = 300;
/// Fields that would change the answer, of this API and of other servers, which this engine does not know how to obey.
const UNSUPPORTED: [&str; 26] = [
    "functions",
    "function_call",
    "audio",
    "prediction",
    "web_search_options",
    "best_of",
    "echo",
    "suffix",
    "use_beam_search",
    "length_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "bad_words",
    "allowed_token_ids",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "typical_p",
    "mirostat",
    "prompt_logprobs",
    "logits_processors",
];

/// Fields of chats, which mean nothing where a text is gone on with.
const ONLY_OF_CHATS: [&str; 7] = [
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "top_logprobs",
    "max_completion_tokens",
    "continue_final_message",
];
/// New tokens of a legacy completion that names no bound.
const COMPLETION_TOKENS: u64 = 16;

/// A request that can be served.
#[derive(Debug, Clone)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    /// A text that is gone on with as it stands, instead of messages.
    pub(super) text: Option<String>,
    /// The beginning of the answer, which the model goes on with (`continue_final_message`, as vLLM has it).
    pub(super) begun: Option<String>,
    /// `None`: as many as the context leaves.
    pub(super) max_tokens: Option<u64>,
    pub(super) stop: Vec<String>,
    /// Without the grammar.
    pub(super) sampling: Sampling,
    /// Answers to give.
    pub(super) choices: usize,
    /// Functions that an answer may call.
    pub(super) tools: Option<Tools>,
    /// The schema of an answer.
    pub(super) answer_schema: Option<Value>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl ChatRequest {
    pub(super) fn from_json(tree: &Value) -> Result<Self, EngineError> {
        let body = the_fields(tree)?;
        refuse_unsupported(&body)?;
        let model = body.text("model")?.ok_or_else(|| missing("model"))?.to_owned();
        let stream = body.truth("stream")?.unwrap_or(false);
        let parallel = body.truth("parallel_tool_calls")?;
        let tools = Tools::from_json(body.value("tools"), body.value("tool_choice"), parallel)?;
        let mut messages = messages(&body, tools.as_ref())?;
        let begun = if goes_on(&body)? { Some(beginning(&mut messages)?) } else { None };
        let request = Self {
            model,
            messages,
            text: None,
            begun,
            max_tokens: body.count("max_completion_tokens")?.or(body.count("max_tokens")?),
            stop: stop(&body)?,
            sampling: sampling(&body)?,
            choices: choices(&body)?,
            tools,
            answer_schema: answer_schema(&body)?,
            stream,
            include_usage: include_usage(&body, stream)?,
        };
        // What an answer must spell, it must spell from its beginning.
        if request.begun.is_some() && request.constraint().is_some() {
            return Err(unsupported("continue_final_message"));
        }
        Ok(request)
    }

    /// Of `POST /v1/completions`.
    pub(super) fn of_completion(tree: &Value) -> Result<Self, EngineError> {
        let body = the_fields(tree)?;
        refuse_unsupported(&body)?;
        // Beside the text, a completion tells them in another way than a chat does.
        let others = ONLY_OF_CHATS.into_iter().chain(["logprobs"]);
        if let Some(name) = others.into_iter().find(|name| body.value(name).is_some()) {
            return Err(unsupported(name));
        }
        let stream = body.truth("stream")?.unwrap_or(false);
        Ok(Self {
            model: body.text("model")?.ok_or_else(|| missing("model"))?.to_owned(),
            messages: Vec::new(),
            text: Some(prompt(&body)?),
            begun: None,
            max_tokens: body.count("max_tokens")?.or(Some(COMPLETION_TOKENS)),
            stop: stop(&body)?,
            sampling: sampling(&body)?,
            choices: choices(&body)?,
            tools: None,
            answer_schema: None,
            stream,
            include_usage: include_usage(&body, stream)?,
        })
    }

    /// What the answers must spell.
    pub(super) fn constraint(&self) -> Option<Constraint> {
        let schema = self.answer_schema.as_ref();
        let tools = self.tools.as_ref().map(|tools| tools.constraint(schema));
        tools.or_else(|| schema.map(Constraint::json))
    }

    pub(super) fn into_generation(self, prompt: Vec<u32>, grammar: Option<Grammar>, origin: Origin) -> Generation {
        let max_new_tokens = self.max_tokens.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
        let sampling = Sampling { grammar, ..self.sampling };
        Generation { prompt, max_new_tokens, stop: self.stop, sampling, origin }
    }
}

fn the_fields(tree: &Value) -> Result<Fields<'_>, EngineError> {
    let object = tree.as_object().ok_or_else(|| {
        let message = "The body must be a JSON object.".to_owned();
        EngineError::Invalid { message, param: None, code: None }
    })?;
    Ok(Fields(object))
}

/// Is the last message the beginning of the answer?
fn goes_on(body: &Fields<'_>) -> Result<bool, EngineError> {
    let goes_on = body.truth("continue_final_message")?.unwrap_or(false);
    if body.truth("add_generation_prompt")?.is_some_and(|begins| begins == goes_on) {
        let message = "`add_generation_prompt` must be the opposite of `continue_final_message`.";
        return Err(EngineError::invalid("add_generation_prompt", message));
    }
    Ok(goes_on)
}

/// Takes the beginning of the answer out of the messages.
fn beginning(messages: &mut Vec<Message>) -> Result<String, EngineError> {
    let last = messages.pop_if(|last| last.role == "assistant");
    match last.filter(|_| !messages.is_empty()) {
        Some(last) => Ok(last.content),
        None => {
            let message = "With `continue_final_message` the last of several messages must be the assistant's.";
            Err(EngineError::invalid("continue_final_message", message))
        }
    }
}

fn prompt(body: &Fields<'_>) -> Result<String, EngineError> {
    let text = |value: &Value| match value {
        Value::Array(list) => match list.as_slice() {
            [one] => one.as_str().map(str::to_owned),
            _ => None,
        },
        one => one.as_str().map(str::to_owned),
    };
    let text = body.typed("prompt", "a text, or an array of one", |value| text(value).filter(|text| !text.is_empty()));
    text?.ok_or_else(|| missing("prompt"))
}

fn refuse_unsupported(body: &Fields<'_>) -> Result<(), EngineError> {
    let filled = |value: &Value| match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    };
    if let Some(name) = UNSUPPORTED.into_iter().find(|name| body.value(name).is_some_and(filled)) {
        return Err(unsupported(name));
    }
    let only_text = |modes: &Value| modes.as_array().is_some_and(|modes| modes.iter().all(|mode| mode == "text"));
    if body.value("modalities").is_some_and(|modes| !only_text(modes)) {
        return Err(unsupported("modalities"));
    }
    Ok(())
}

fn choices(body: &Fields<'_>) -> Result<usize, EngineError> {
    let within = |value: &Value| value.as_u64().filter(|n| (1..=CHOICES_MAX).contains(n));
    let choices = body.typed("n", &format!("a whole number from 1 to {CHOICES_MAX}"), within)?;
    Ok(choices.and_then(|choices| usize::try_from(choices).ok()).unwrap_or(1))
}

fn answer_schema(body: &Fields<'_>) -> Result<Option<Value>, EngineError> {
    let Some(format) = body.typed("response_format", "an object", Value::as_object)? else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => {
            let param = "response_format.json_schema.schema";
            let schema = format.get("json_schema").and_then(|wanted| wanted.get("schema"));
            let schema = schema.filter(|schema| !schema.is_null()).ok_or_else(|| missing(param))?;
            grammar::check(schema, param)?;
            Ok(Some(schema.clone()))
        }
        Some(_) => Err(unsupported("response_format.type")),
        None => {
            let message = "`response_format.type` must be text, json_object or json_schema.";
            Err(EngineError::invalid("response_format.type", message))
        }
    }
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
    // Other servers' word for all is 0 or -1.
    let top_k = body.typed("top_k", "a whole number, or -1", |value| match value.as_i64()? {
        -1 => Some(0),
        top_k => u32::try_from(top_k).ok(),
    })?;
    let repetition_penalty = body.number("repetition_penalty", 0.01, 2.0)?;
    Ok(Sampling {
        temperature: body.number("temperature", 0.0, 2.0)?.unwrap_or(default.temperature),
        top_p,
        top_k: top_k.unwrap_or(default.top_k),
        min_p: body.number("min_p", 0.0, 1.0)?.unwrap_or(default.min_p),
        repetition_penalty: repetition_penalty.unwrap_or(default.repetition_penalty),
        logit_bias: logit_bias(body)?,
        logprobs: logprobs(body)?,
        grammar: None,
        frequency_penalty: body.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(default.frequency_penalty),
        presence_penalty: body.number("presence_penalty", -2.0, 2.0)?.unwrap_or(default.presence_penalty),
        seed,
    })
}

fn logit_bias(body: &Fields<'_>) -> Result<Vec<(u32, f32)>, EngineError> {
    let wanted = format!("an object of up to {BIASES_MAX} token ids, each with a number from -100 to 100");
    let read = |value: &Value| {
        let members = value.as_object().filter(|members| members.len() <= BIASES_MAX)?;
        let bias = |(token, bias): (&String, &Value)| {
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
            Some((token.parse::<u32>().ok()?, bias as f32))
        };
        members.iter().map(bias).collect::<Option<Vec<_>>>()
    };
    Ok(body.typed("logit_bias", &wanted, read)?.unwrap_or_default())
}

/// How many likely tokens are told beside each one; `None`: no probabilities at all.
fn logprobs(body: &Fields<'_>) -> Result<Option<usize>, EngineError> {
    let wanted = body.truth("logprobs")?.unwrap_or(false);
    let within = |value: &Value| value.as_u64().filter(|top| *top <= TOP_LOGPROBS_MAX);
    let top = body.typed("top_logprobs", &format!("a whole number from 0 to {TOP_LOGPROBS_MAX}"), within)?;
    match (wanted, top) {
        (false, Some(top)) if top > 0 => {
            Err(EngineError::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true."))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.and_then(|top| usize::try_from(top).ok()).unwrap_or(0))),
    }
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
    use crate::tools::tests::two_tools_json;

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
    fn a_legacy_completion_has_one_text_and_nothing_of_chats() {
        let of = |more: Value| {
            let mut body = json!({"model": "m", "prompt": "Once upon"});
            for (name, value) in more.as_object().unwrap() {
                body[name] = value.clone();
            }
            ChatRequest::of_completion(&body)
        };
        let plain = of(json!({})).unwrap();
        assert_eq!((plain.text.as_deref(), plain.max_tokens, plain.choices), (Some("Once upon"), Some(16), 1));
        let more = of(json!({"prompt": ["a"], "max_tokens": 7, "n": 2, "stop": "x", "logprobs": null})).unwrap();
        assert_eq!((more.text.as_deref(), more.max_tokens, more.choices), (Some("a"), Some(7), 2));
        for (wrong, param) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": [1, 2]}), "prompt"),
            (json!({"logprobs": 3}), "logprobs"),
            (json!({"echo": true}), "echo"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"tools": []}), "tools"),
        ] {
            let refused = of(wrong.clone()).unwrap_err();
            assert!(
                matches!(&refused, EngineError::Invalid { param: Some(at), .. } if at == param),
                "{wrong}: {refused}"
            );
        }
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
            (json!({"n": 17}), "n"),
            (json!({"top_k": 1.5}), "top_k"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"min_p": 1.1}), "min_p"),
            (json!({"repetition_penalty": 0}), "repetition_penalty"),
            (json!({"logit_bias": {"a": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"logit_bias": [1]}), "logit_bias"),
            (json!({"logprobs": 3}), "logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"tools": 7}), "tools"),
            (json!({"parallel_tool_calls": 7}), "parallel_tool_calls"),
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        ] {
            assert_eq!(refused(more).1.as_deref(), Some(wanted));
        }
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused() {
        for (more, param) in [
            (json!({"functions": [{"name": "a"}]}), "functions"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"guided_regex": "a+"}), "guided_regex"),
            (json!({"response_format": {"type": "grammar"}}), "response_format.type"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
        ] {
            let (message, at, code) = refused(more);
            assert_eq!((at.as_deref(), code), (Some(param), Some("unsupported_parameter")));
            assert!(message.contains("not supported by the local engine yet"), "{message}");
        }
        let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
        assert_eq!(refused(json!({"messages": [{"role": "user", "content": image}]})).2, Some("unsupported_parameter"));
        let function = json!([{"role": "function", "name": "a", "content": "x"}]);
        assert_eq!(refused(json!({"messages": function})).2, Some("unsupported_parameter"));
        let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}});
        assert_eq!(refused(json!({"response_format": schema})).2, Some("unsupported_parameter"));
    }

    #[test]
    fn what_shapes_an_answer_is_read() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let read = request(json!({
            "n": 3, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2, "logit_bias": {"5": -100, "7": 1.5},
            "logprobs": true, "top_logprobs": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema}},
        }));
        let read = read.unwrap();
        assert_eq!((read.choices, read.sampling.top_k, read.sampling.logprobs), (3, 0, Some(2)));
        assert_eq!((read.sampling.min_p, read.sampling.repetition_penalty), (0.1, 1.2));
        assert_eq!(read.sampling.logit_bias, [(5, -100.0), (7, 1.5)]);
        assert_eq!(read.answer_schema.as_ref(), Some(&schema));
        assert_eq!(read.constraint().unwrap().param, "response_format");
        let plain = request(json!({"tool_choice": "none", "tools": two_tools_json(), "logprobs": false})).unwrap();
        assert!(plain.tools.is_none() && plain.constraint().is_none() && plain.sampling.logprobs.is_none());
        assert_eq!(plain.messages.len(), 1, "what may not be called is not told");
        let tools = request(json!({"tools": two_tools_json()})).unwrap();
        assert_eq!(tools.constraint().unwrap().param, "tools");
        assert_eq!(tools.messages.len(), 2);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(ChatRequest::from_json(&json!([])).is_err());
        assert!(ChatRequest::from_json(&json!({})).is_err());
    }

    #[test]
    fn an_answer_that_was_begun_is_gone_on_with() {
        let turns = |last: &str| json!([{"role": "user", "content": "Hi"}, {"role": last, "content": "Hello, th"}]);
        let request = |more: Value| {
            let mut body = json!({"model": "m", "messages": turns("assistant"), "continue_final_message": true});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ChatRequest::from_json(&body)
        };
        let good = request(json!({"add_generation_prompt": false})).unwrap();
        assert_eq!((good.messages.len(), good.begun.as_deref()), (1, Some("Hello, th")));
        let plain = request(json!({"continue_final_message": false})).unwrap();
        assert_eq!((plain.messages.len(), plain.begun), (2, None));
        for wrong in [
            json!({"add_generation_prompt": true}),
            json!({"messages": turns("user")}),
            json!({"messages": [{"role": "assistant", "content": "Hello"}]}),
            json!({"response_format": {"type": "json_object"}}),
        ] {
            assert!(request(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
