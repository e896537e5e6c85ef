//! Grammars over the tiny model's tokens: every byte, and a few pieces.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing::TinyFile;
use crate::tools::tests::two_tools;
use crate::weights::WeightFile;

const END: u32 = 2;

fn tokenizer() -> Arc<Tokenizer> {
    let file = TinyFile::new(&[b"{\"", b"\": ", b"<tool_call>", b">\n{\"name", b"}}"]);
    let file = WeightFile::open(&file.path, &candle_core::Device::Cpu).unwrap();
    Arc::new(Tokenizer::load(&file).unwrap())
}

fn grammar(constraint: &Constraint) -> Grammar {
    Grammars::new(tokenizer()).compile(constraint).unwrap()
}

fn of_schema(schema: &Value) -> Grammar {
    grammar(&Constraint::json(schema))
}

/// Tokens of text: each byte its own.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| 3 + u32::from(byte)).collect()
}

fn allowed(grammar: &mut Grammar) -> Vec<u32> {
    let mut logits = vec![0.0; 300];
    grammar.constrain(&mut logits).unwrap();
    (0u32..).zip(&logits).filter(|(_, logit)| **logit == 0.0).map(|(token, _)| token).collect()
}

/// How many bytes of text a grammar takes, and whether the answer may end there.
fn takes(mut grammar: Grammar, text: &str) -> (usize, bool) {
    for (at, token) in bytes(text).into_iter().enumerate() {
        if !allowed(&mut grammar).contains(&token) {
            return (at, false);
        }
        grammar.advance(token).unwrap();
    }
    let ends = allowed(&mut grammar).contains(&END);
    (text.len(), ends)
}

fn spells(grammar: &Grammar, text: &str) -> bool {
    takes(grammar.separate(), text) == (text.len(), true)
}

#[test]
fn only_values_of_the_schema_can_be_spelled() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["a", "b"],
        "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 12}, "b": {"enum": ["x", "é"]}},
    });
    let grammar = of_schema(&schema);
    for good in [r#"{"a":3,"b":"x"}"#, r#"{"a": 12, "b": "é"}"#, "{\n  \"a\": 5,\n  \"b\": \"x\"\n}"] {
        assert!(spells(&grammar, good), "{good}");
    }
    for bad in [r#"{"a":13,"b":"x"}"#, r#"{"a":3}"#, r#"{"a":3,"b":"y"}"#, r#"{"a":3,"b":"x","c":1}"#, "[]", "x"] {
        assert!(!spells(&grammar, bad), "{bad}");
    }
    assert!(!spells(&grammar, "{  \"a\":3,\"b\":\"x\"}"), "white space without end");
}

#[test]
fn an_answer_is_complete_when_nothing_may_follow() {
    let mut grammar = of_schema(&json!({"const": "ab"}));
    for token in bytes("\"ab\"") {
        assert!(!grammar.is_complete());
        grammar.advance(token).unwrap();
    }
    assert!(grammar.is_complete());
    assert_eq!(allowed(&mut grammar), [0, END], "the tokens that end an answer");
    assert!(grammar.advance(END).is_some());
}

#[test]
fn what_may_not_come_is_refused_and_control_tokens_never_may() {
    let mut grammar = of_schema(&json!({"type": "string"}));
    assert!(grammar.separate().advance(bytes("x")[0]).is_none());
    grammar.advance(bytes("\"")[0]).unwrap();
    let allowed = allowed(&mut grammar);
    assert!(allowed.iter().all(|token| *token > 2), "within a string");
    assert!(allowed.contains(&bytes("é")[0]) && !allowed.contains(&bytes("\n")[0]));
    assert!(!allowed.contains(&299), "more logits than tokens");
}

#[test]
fn any_object_is_an_object() {
    let grammar = of_schema(&json!({"type": "object"}));
    assert!(spells(&grammar, r#"{"a": [1, {"b": null}], "c": "\n\u001f"}"#));
    assert!(!spells(&grammar, "[1]") && !spells(&grammar, "1"));
}

#[test]
fn references_within_the_schema_are_followed() {
    let schema = json!({
        "$ref": "#/$defs/tree",
        "$defs": {"tree": {
            "type": "object", "additionalProperties": false, "required": ["v"],
            "properties": {"v": {"type": "boolean"}, "next": {"$ref": "#/$defs/tree"}},
        }},
    });
    let grammar = of_schema(&schema);
    assert!(spells(&grammar, r#"{"v": true, "next": {"v": false}}"#));
    assert!(!spells(&grammar, r#"{"v": true, "next": {}}"#));
}

#[test]
fn schemas_that_cannot_be_enforced_are_refused_without_quoting_them() {
    let grammars = Grammars::new(tokenizer());
    for schema in [
        json!({"type": "secret"}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"type": "string", "pattern": "secret(?=x)"}),
        json!({"$ref": "#/$defs/secret"}),
        json!({"type": "string", "minLength": 3, "maxLength": 1}),
        json!({"enum": ["secret".repeat(GRAMMAR_BYTES_MAX / 6)]}),
    ] {
        let error = grammars.compile(&Constraint::json(&schema)).unwrap_err();
        assert!(matches!(&error, EngineError::Invalid { code: Some("unsupported_parameter"), .. }));
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn a_call_is_spelled_whole_or_not_begun() {
    let grammar = grammar(&two_tools(json!("auto"), true).constraint(None));
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    for good in ["", "Good day.", "a < b <tool", call, &format!("Wait.\n{call}"), &format!("{call}\n{call}")] {
        assert!(spells(&grammar, good), "{good}");
    }
    for bad in [
        "<tool_call>",
        "<tool_call>x",
        "x <tool_call>\n{\"name\": \"wether",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": 7",
        &format!("{call} and then"),
    ] {
        assert!(!spells(&grammar, bad), "{bad}");
    }
}

#[test]
fn a_call_can_be_required_of_one_function_and_only_once() {
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let required = grammar(&two_tools(json!("required"), false).constraint(None));
    assert!(spells(&required, &call("now", "{}")) && spells(&required, &call("weather", "{\"city\": \"Rome\"}")));
    assert!(!spells(&required, "") && !spells(&required, "It is late."));
    assert!(!spells(&required, &format!("{0}\n{0}", call("now", "{}"))));
    let named = json!({"type": "function", "function": {"name": "now"}});
    let named = grammar(&two_tools(named, true).constraint(None));
    assert!(spells(&named, &call("now", "{}")) && !spells(&named, &call("weather", "{\"city\": \"Rome\"}")));
    assert!(!spells(&named, &format!("{0}\n{0}", call("now", "{}"))), "one call, even if several are allowed");
}

#[test]
fn an_answer_beside_calls_may_have_a_schema_too() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false});
    let grammar = grammar(&two_tools(json!("auto"), true).constraint(Some(&schema)));
    assert!(spells(&grammar, "{\"a\": 1}"));
    assert!(spells(&grammar, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"));
    assert!(!spells(&grammar, "Good day."));
}

#[test]
fn a_token_across_the_borders_of_a_call_is_allowed() {
    let mut grammar = grammar(&two_tools(json!("required"), false).constraint(None));
    let piece = |at: u32| 3 + 256 + 1 + at;
    assert!(allowed(&mut grammar).contains(&piece(2)), "<tool_call>");
    for token in bytes("<tool_call") {
        grammar.advance(token).unwrap();
    }
    assert!(allowed(&mut grammar).contains(&piece(3)), ">\\n{{\"name");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is drawn, what is complete is valid.
    #[test]
    fn random_answers_are_valid(choices in proptest::collection::vec(any::<prop::sample::Index>(), 400)) {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["kind", "count", "tags"],
            "properties": {
                "kind": {"enum": ["a", "bc"]},
                "count": {"type": "integer", "minimum": -5, "maximum": 40},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
                "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
            },
        });
        let (mut grammar, tokenizer, mut text) = (of_schema(&schema), tokenizer(), Vec::new());
        for choice in choices {
            if grammar.is_complete() {
                break;
            }
            let allowed = allowed(&mut grammar);
            prop_assert!(!allowed.is_empty());
            let token = *choice.get(&allowed);
            grammar.advance(token).unwrap();
            text.extend_from_slice(tokenizer.bytes(token));
        }
        if grammar.is_complete() {
            let value: Value = serde_json::from_slice(&text).unwrap();
            let object = value.as_object().unwrap();
            prop_assert!(["a", "bc"].contains(&value["kind"].as_str().unwrap()));
            // As a number with a point: `-0` is an integer too.
            let count = value["count"].as_f64().unwrap();
            prop_assert!((-5.0..=40.0).contains(&count) && count.fract() == 0.0);
            let tags = value["tags"].as_array().unwrap();
            prop_assert!(tags.len() <= 2 && tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 3));
            prop_assert!(object.keys().all(|key| ["kind", "count", "tags", "more"].contains(&key.as_str())));
        }
    }
}

/// There are so many ways to read what came that the work on one token goes beyond its bound.
#[test]
fn a_grammar_that_needs_too_much_work_ends_and_says_whose_it_is() {
    let mut grammar = of_schema(&costly_schema());
    assert_eq!(grammar.param(), "response_format");
    grammar.advance(bytes("\"")[0]).unwrap();
    let mut random = 7u32;
    let stuck = (0..1000).position(|_| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let token = bytes(if random >> 31 == 0 { "a" } else { "b" })[0];
        grammar.constrain(&mut vec![0.0; 300]).is_none() || grammar.advance(token).is_none()
    });
    assert!(stuck.is_some_and(|at| at > 10), "{stuck:?}");
}

/// It compiles, and cannot be followed to its end.
pub(crate) fn costly_schema() -> Value {
    json!({"type": "string", "pattern": "^([ab]{0,90}a[ab]{0,90}){9}[ab]{300}$"})
}
