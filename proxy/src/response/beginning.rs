//! An answer that breaks off half way, and what of it another target can go on from: the masked text whose restoration was sent.
//!
//! Not every answer can be gone on with: tool calls and answers that must spell something would not fit together, of several choices or
//! log probabilities a beginning says too little, what a model thought before it answered is not part of its answer, and an answer
//! that the client began itself has two beginnings.

use postern_wire::call::Call;
use postern_wire::json::{Map, Value};

/// The most bytes of an answer that is gone on with.
const MOST: usize = 256 << 10;
/// How often one answer is gone on with.
const TIMES: u32 = 3;
/// The field of a message that another model can go on from.
const TEXT: &str = "content";
/// Fields by which some server or other is told what an answer must spell, or to go on with one.
const CONSTRAINTS: [&str; 11] = [
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "regex",
    "ebnf",
    "logprobs",
    "continue_final_message",
];

/// What of an answer has come so far, as long as it can be gone on with.
#[derive(Debug)]
pub(super) struct Beginning {
    /// `None`: it cannot be.
    text: Option<String>,
    tokens: u64,
    times: u32,
}

impl Beginning {
    pub(super) fn new(call: &Call) -> Self {
        let body = call.body();
        let on = |field: &&str| body.get(field).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
        let last = body.get("messages").and_then(Value::as_array).and_then(|messages| messages.last());
        let begun = last.and_then(|last| last.get("role")).is_some_and(|role| role == "assistant");
        let format = body.get("response_format").and_then(|format| format.get("type")).and_then(Value::as_str);
        let is_chat = matches!(call, Call::Chat(_));
        let plain = is_chat
            && call.stream()
            && call.choices() == 1
            && !begun
            && !CONSTRAINTS.iter().any(on)
            && format.is_none_or(|format| format == "text");
        Self { text: plain.then(String::new), tokens: 0, times: 0 }
    }

    /// Notes a chunk as it came from a target.
    pub(super) fn note(&mut self, event: &Value) {
        let Some(text) = &mut self.text else { return };
        for choice in event.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice) {
            let delta = choice.get("delta").and_then(Value::as_object);
            for (field, value) in delta.into_iter().flatten() {
                match value {
                    Value::Null => {}
                    Value::Array(items) if items.is_empty() => {}
                    Value::String(piece) if field == TEXT => {
                        text.push_str(piece);
                        self.tokens += u64::from(!piece.is_empty());
                    }
                    Value::String(piece) if field == "role" || piece.is_empty() => {}
                    _ => return self.text = None,
                }
            }
            if choice.get("finish_reason").is_some_and(|reason| !reason.is_null()) {
                return self.text = None;
            }
        }
        if text.len() > MOST {
            self.text = None;
        }
    }

    /// What to go on from, without the last bytes, which were not given out. `None`: it cannot be gone on with.
    pub(super) fn cut(&mut self, held: usize) -> Option<(&str, u64)> {
        self.times += 1;
        if self.times > TIMES {
            self.text = None;
        }
        let text = self.text.as_mut()?;
        text.truncate(text.len().saturating_sub(held));
        if text.is_empty() {
            // It is begun anew: what was counted is no part of it.
            self.tokens = 0;
        }
        Some((text, self.tokens))
    }

    /// Makes a chunk of another target's stream go on with the first one: it has no role again, and counts what came before as
    /// answered, which that target was told as part of the prompt.
    pub(super) fn go_on(&self, event: &mut Value) {
        for choice in event.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) {
                delta.remove("role");
            }
        }
        let Some(usage) = event.get_mut("usage").and_then(Value::as_object_mut) else { return };
        let count = |field: &str, usage: &Map| usage.get(field).and_then(Value::as_u64);
        if let (Some(prompt), Some(answer)) = (count("prompt_tokens", usage), count("completion_tokens", usage)) {
            let before = self.tokens.saturating_sub(answer).min(prompt);
            usage.insert("prompt_tokens".to_owned(), (prompt - before).into());
            usage.insert("completion_tokens".to_owned(), answer.saturating_add(before).into());
        }
    }

    pub(super) fn was_gone_on_with(&self) -> bool {
        self.times > 0
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    fn beginning(more: Value) -> Beginning {
        let mut body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Beginning::new(&Call::from_json(postern_wire::call::Endpoint::Chat, body, 10).unwrap())
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    #[test]
    fn what_was_given_out_is_gone_on_from() {
        let mut beginning = beginning(json!({}));
        beginning.note(&delta(json!({"role": "assistant", "content": ""})));
        beginning.note(&delta(json!({"content": "Dear [EMA"})));
        assert_eq!(beginning.cut(4), Some(("Dear ", 1)));
        let mut event = delta(json!({"role": "assistant", "content": "Ann"}));
        beginning.note(&event);
        beginning.go_on(&mut event);
        assert_eq!(event, delta(json!({"content": "Ann"})));
        assert_eq!(beginning.cut(0), Some(("Dear Ann", 2)));
        assert!(beginning.cut(0).is_some() && beginning.cut(0).is_none(), "not for ever");
    }

    #[test]
    fn usage_counts_the_whole_answer_once() {
        let mut beginning = beginning(json!({}));
        (0..5).for_each(|_| beginning.note(&delta(json!({"content": "a"}))));
        let mut event =
            json!({"choices": [], "usage": {"prompt_tokens": 13, "completion_tokens": 2, "total_tokens": 15}});
        beginning.go_on(&mut event);
        assert_eq!(event["usage"], json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}));
    }

    #[test]
    fn an_answer_that_is_begun_anew_counts_from_nothing() {
        let mut beginning = beginning(json!({}));
        for piece in ["[", "EMAIL", "_"] {
            beginning.note(&delta(json!({"content": piece})));
        }
        assert_eq!(beginning.cut(7), Some(("", 0)));
        let mut event = json!({"choices": [], "usage": {"prompt_tokens": 13, "completion_tokens": 2}});
        beginning.go_on(&mut event);
        assert_eq!(event["usage"], json!({"prompt_tokens": 13, "completion_tokens": 2}));
    }

    #[test]
    fn what_would_not_fit_together_is_not_gone_on_with() {
        for more in [
            json!({"n": 2}),
            json!({"logprobs": true}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"stream": false}),
            json!({"guided_regex": "a+"}),
            json!({"continue_final_message": true}),
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]}),
        ] {
            assert_eq!(beginning(more.clone()).cut(0), None, "{more}");
        }
        for wrong in
            [json!({"tool_calls": [{"index": 0}]}), json!({"reasoning_content": "hm"}), json!({"refusal": "no"})]
        {
            let mut beginning = beginning(json!({}));
            beginning.note(&delta(wrong.clone()));
            assert_eq!(beginning.cut(0), None, "{wrong}");
        }
        let mut nothing = beginning(json!({}));
        nothing.note(&delta(json!({"content": "Hi", "tool_calls": [], "reasoning_content": "", "audio": null})));
        assert_eq!(nothing.cut(0), Some(("Hi", 1)));
        let mut ended = beginning(json!({"logprobs": false, "response_format": {"type": "text"}}));
        ended.note(&delta(json!({"content": "Hi"})));
        assert_eq!(ended.cut(0), Some(("Hi", 1)));
        ended.note(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
        assert_eq!(ended.cut(0), None, "nothing is missing but the end");
        let mut long = beginning(json!({}));
        long.note(&delta(json!({"content": "x".repeat(MOST + 1)})));
        assert_eq!(long.cut(0), None);
    }
}
