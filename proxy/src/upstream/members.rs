//! What of an answer is passed on: the members that the API has, and no others. What a target says beside them is for nobody here: it may
//! be an error's text, the name of somebody behind it, or anything.
//!
//! Source: the OpenAI API reference, “Create chat completion” and “Create completion”; and for what a model thinks, `reasoning_content`
//! (DeepSeek, vLLM, llama.cpp) and `reasoning` (OpenRouter, vLLM).

use postern_wire::json::{Map, Value};

/// Members that hold one value, and those that may hold many.
struct Known {
    plain: &'static [&'static str],
    nested: &'static [&'static str],
}

const ANSWER: Known =
    Known { plain: &["id", "object", "created", "model", "system_fingerprint", "service_tier"], nested: &["choices"] };
const CHOICE: Known = Known { plain: &["index"], nested: &["delta", "message", "logprobs"] };
const MESSAGE: Known = Known {
    plain: &["role", "refusal", "reasoning_content", "reasoning"],
    nested: &["content", "tool_calls", "function_call", "annotations", "audio"],
};
/// Numbers of a usage, and the objects that have some of them.
const USAGE: [&str; 12] = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "cached_tokens",
    "audio_tokens",
    "reasoning_tokens",
    "accepted_prediction_tokens",
    "rejected_prediction_tokens",
    "prompt_cache_hit_tokens",
    "prompt_cache_miss_tokens",
];
/// Ends of a choice that are none: OpenRouter's, vLLM's and SGLang's, DeepSeek's.
const FAILED: [&str; 3] = ["error", "abort", "insufficient_system_resource"];
/// The longest word that says why a choice ended.
const MAX_REASON: usize = 32;

/// Does a chunk, or a whole answer, say that the target failed, in whatever place?
pub(super) fn says_error(answer: &Value) -> bool {
    let has_error = |of: &Value| of.get("error").is_some_and(|error| !error.is_null());
    let choices = answer.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    has_error(answer)
        || answer.get("object").is_some_and(|object| object == "error")
        || choices.iter().any(|choice| {
            let reason = choice.get("finish_reason").and_then(Value::as_str);
            has_error(choice) || reason.is_some_and(|reason| FAILED.contains(&reason))
        })
}

/// Leaves the members that are known in a chunk, or a whole answer.
pub(super) fn keep_known(answer: &mut Value) {
    let Some(answer) = answer.as_object_mut() else { return };
    let usage = answer.remove("usage").map(known_usage);
    ANSWER.keep(answer);
    answer.extend(usage.map(|usage| ("usage".to_owned(), usage)));
    for choice in answer.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(choice) = choice.as_object_mut() else { continue };
        let reason = choice.remove("finish_reason").map(known_reason);
        CHOICE.keep(choice);
        choice.extend(reason.map(|reason| ("finish_reason".to_owned(), reason)));
        for part in ["delta", "message"] {
            if let Some(message) = choice.get_mut(part).and_then(Value::as_object_mut) {
                MESSAGE.keep(message);
            }
        }
    }
}

impl Known {
    fn keep(&self, members: &mut Map) {
        members.retain(|name, value| {
            let is_plain = !value.is_array() && !value.is_object();
            self.nested.contains(&name) || (is_plain && self.plain.contains(&name))
        });
    }
}

/// A word. Some servers say with an empty one that a choice has not ended.
fn known_reason(reason: Value) -> Value {
    let is_word = |word: &str| {
        (1..=MAX_REASON).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if reason.as_str().is_some_and(is_word) { reason } else { Value::Null }
}

fn known_usage(usage: Value) -> Value {
    match usage {
        Value::Object(members) => {
            let known = members.into_iter().filter_map(|(name, value)| {
                let value = match value {
                    Value::Number(_) => value,
                    Value::Object(_) => known_usage(value),
                    _ => return None,
                };
                USAGE.contains(&name.as_str()).then_some((name, value))
            });
            Value::Object(known.collect())
        }
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    #[test]
    fn an_error_is_seen_wherever_it_is() {
        for failed in [
            json!({"error": {"message": "m"}}),
            json!({"object": "error", "message": "m", "choices": []}),
            json!({"choices": [{"delta": {}, "error": {"code": 502}}]}),
            json!({"choices": [{"delta": {}}, {"delta": {}, "finish_reason": "error"}]}),
            json!({"choices": [{"text": "a", "finish_reason": "insufficient_system_resource"}]}),
        ] {
            assert!(says_error(&failed), "{failed}");
        }
        for good in [
            json!({"error": null, "choices": [{"delta": {"content": "error"}, "error": null, "finish_reason": null}]}),
            json!({"object": "chat.completion", "choices": [{"finish_reason": "stop"}]}),
        ] {
            assert!(!says_error(&good), "{good}");
        }
    }

    #[test]
    fn members_of_the_api_are_kept_and_no_others() {
        let good = json!({
            "id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": null,
            "service_tier": "default",
            "choices": [{
                "index": 0, "logprobs": {"content": [{"token": "a"}]}, "finish_reason": "stop",
                "delta": {
                    "role": "assistant", "content": "a", "refusal": null, "reasoning_content": "b", "reasoning": "c",
                    "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}],
                    "annotations": [{"type": "url_citation"}], "audio": {"id": "x"}, "function_call": {"name": "f"},
                },
            }],
            "usage": {
                "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3,
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
        });
        let mut kept = good.clone();
        keep_known(&mut kept);
        assert_eq!(kept, good);
        kept["provider"] = json!("SECRET");
        kept["choices"][0]["native_finish_reason"] = json!("SECRET");
        kept["choices"][0]["delta"]["note"] = json!({"a": "SECRET"});
        for usage in ["cost", "SECRET"] {
            kept["usage"][usage] = json!(1);
        }
        kept["usage"]["completion_tokens_details"]["audio_tokens"] = json!("SECRET");
        keep_known(&mut kept);
        assert_eq!(kept, good);
        let mut odd = json!({
            "id": {"a": "SECRET"}, "usage": ["SECRET"],
            "choices": [{"message": {"role": ["SECRET"]}, "finish_reason": "a SECRET"}, 7],
        });
        keep_known(&mut odd);
        assert_eq!(odd, json!({"choices": [{"message": {}, "finish_reason": null}, 7], "usage": null}));
    }
}
