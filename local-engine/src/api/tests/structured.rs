//! Answers of the real model under schemas, checked by another library than the one that enforces them.

use super::*;
use crate::grammar::tests::costly_schema;

const CONCURRENT: usize = 16;

/// What is asked, and the schema of the answer. Everything is bounded, so every answer ends.
fn schemas() -> Vec<(&'static str, Value)> {
    let object = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let text = json!({"type": "string", "minLength": 1, "maxLength": 20});
    vec![
        (
            "Describe a person.",
            object(
                json!({"name": text, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "married": {"type": "boolean"}}),
                json!(["name", "age", "married"]),
            ),
        ),
        (
            "Name a colour and some numbers.",
            object(
                json!({
                    "colour": {"enum": ["red", "green", "blue", null]},
                    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1.5, "maximum": 99}, "minItems": 1, "maxItems": 3},
                }),
                json!(["colour", "numbers"]),
            ),
        ),
        (
            "When and where do we meet?",
            object(
                json!({
                    "day": {"type": "string", "format": "date"},
                    "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                    "place": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
                }),
                json!(["day", "code", "place"]),
            ),
        ),
        ("Is the sky blue? Say why.", json!({"type": "array", "prefixItems": [{"type": "boolean"}, text], "items": false, "minItems": 2})),
    ]
    .into_iter()
    .map(|(question, mut schema)| {
        schema["$defs"] = json!({"place": object(json!({"city": text, "floor": {"type": "integer", "minimum": -3, "maximum": 9}}), json!(["city"]))});
        (question, schema)
    })
    .collect()
}

fn tool_schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["city", "unit"],
        "properties": {"city": {"type": "string", "minLength": 1, "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    })
}

/// A request whose answer must match a schema: as the whole answer, or as the arguments of a call.
fn request(number: usize) -> (Value, Value) {
    let schemas = schemas();
    let mut body = json!({"model": "smollm2-135m-instruct", "max_tokens": 220, "temperature": 1.0, "seed": number});
    let question = |text: &str| json!([{"role": "user", "content": format!("{text} ({number})")}]);
    match schemas.get(number % (schemas.len() + 1)) {
        Some((text, schema)) => {
            body["messages"] = question(text);
            body["response_format"] =
                json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
            (body, schema.clone())
        }
        None => {
            body["messages"] = question("What is the weather in Rome?");
            let function = json!({"name": "weather", "description": "Tells the weather.", "parameters": tool_schema()});
            body["tools"] = json!([{"type": "function", "function": function}]);
            body["tool_choice"] = json!("required");
            body["parallel_tool_calls"] = json!(number.is_multiple_of(2));
            (body, tool_schema())
        }
    }
}

/// As the gateway asks: so the beginning of a prompt is computed once.
async fn ask(mut client: Client, body: Value) -> Value {
    let request = Request::builder().method(Method::POST).uri("http://engine/v1/chat/completions");
    let request = request.header("postern-tenant", "a").header("postern-label", "b").header("postern-identity", "c");
    let response = client.0.send_request(request.body(Full::new(body.to_string().into())).unwrap()).await.unwrap();
    let status = response.status();
    let answer = json_of(response).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The JSON texts of an answer that must match.
fn texts(answer: &Value) -> Vec<String> {
    let choice = &answer["choices"][0];
    let message = &choice["message"];
    match message["tool_calls"].as_array() {
        None => {
            assert_eq!(choice["finish_reason"], "stop", "{answer}");
            vec![message["content"].as_str().unwrap().to_owned()]
        }
        Some(calls) => {
            assert!(calls.iter().all(|call| call["function"]["name"] == "weather"), "{answer}");
            // So small a model may not come to an end where it may call as often as it likes: the last call may be cut then.
            let whole = match choice["finish_reason"].as_str() {
                Some("length") if calls.len() > 1 => calls.split_last().map_or(&[][..], |(_, whole)| whole),
                Some("tool_calls") => calls,
                _ => panic!("{answer}"),
            };
            whole.iter().map(|call| call["function"]["arguments"].as_str().unwrap().to_owned()).collect()
        }
    }
}

#[tokio::test]
async fn every_answer_under_a_schema_is_valid() {
    let count = if std::env::var_os("POSTERN_TEST_ALL").is_some() { 200 } else { 20 };
    let client = Client::of(tokio::task::spawn_blocking(real_engine).await.unwrap()).await;
    let (mut valid, mut different) = (0, std::collections::HashSet::new());
    for first in (0..count).step_by(CONCURRENT) {
        let asked = (first..count.min(first + CONCURRENT)).map(|number| {
            let (body, schema) = request(number);
            let client = Client(client.0.clone());
            async move { (number, schema, ask(client, body).await) }
        });
        // Of a format the shape is sure; that a day is in the calendar is not (in JSON Schema 2020-12 a format is a note).
        for (number, schema, answer) in futures_util::future::join_all(asked).await {
            let validator = jsonschema::validator_for(&schema).unwrap();
            let texts = texts(&answer);
            assert!(!texts.is_empty(), "{answer}");
            for text in texts {
                let value: Value =
                    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{number}: {error}: {text}"));
                assert!(validator.is_valid(&value), "{number}: {text}");
                different.insert(text);
            }
            valid += 1;
        }
    }
    assert_eq!(valid, count);
    assert!(different.len() > count / 2, "{} different ones of {count}", different.len());
}

/// The same seed, alone and beside others under other schemas.
#[tokio::test]
async fn an_answer_under_a_schema_does_not_depend_on_its_company() {
    let client = Client::of(tokio::task::spawn_blocking(real_engine).await.unwrap()).await;
    let text = |answer: &Value| texts(answer).concat();
    let alone = text(&ask(Client(client.0.clone()), request(3).0).await);
    let together =
        futures_util::future::join_all((0..6).map(|number| ask(Client(client.0.clone()), request(number).0)));
    assert_eq!(text(&together.await[3]), alone);
}

/// As many references as a schema may have, each deep within the one before: what the compiler follows by recursion.
#[test]
fn the_deepest_schema_that_is_taken_does_not_break_the_engine() {
    use crate::grammar::{Constraint, check};
    let engine = crate::engine::tests::real_engine();
    for (part, depth) in [("items", 22), ("anyOf", 11), ("properties", 7)] {
        let nested = |target: usize| {
            let target = json!({"$ref": format!("#/$defs/a{target}")});
            (0..depth).fold(target, |inner, _| match part {
                "items" => json!({"type": "array", "items": inner}),
                "anyOf" => json!({"anyOf": [{"type": "null"}, inner]}),
                _ => json!({"type": "object", "properties": {"p": inner}, "required": ["p"]}),
            })
        };
        let mut links: serde_json::Map<String, Value> = (0..62).map(|at| (format!("a{at}"), nested(at + 1))).collect();
        links.insert("a62".to_owned(), json!({"type": "null"}));
        let schema = json!({"$defs": links, "$ref": "#/$defs/a0"});
        check(&schema, "p").unwrap();
        // Whether it can be enforced is the compiler's to say.
        let _ = engine.grammar(&Constraint::json(&schema));
    }
}

/// Distinct texts of `a` and `b`, one longer than the other: what the scripted model says of a costly pattern.
const COSTLY: &[&[u8]] =
    &[b"\"a", b"ab", b"aab", b"abab", b"baaba", b"abaaba", b"bbabaab", b"aabababb", b"babbababa", b"abbabaabab"];

/// The fault is what the request asks for, not the engine's: so it is told, and in words that help.
#[tokio::test]
async fn an_answer_that_cannot_be_held_to_its_schema_is_the_requests_fault() {
    let mut client = Client::of(scripted_engine(COSTLY, QUICK, |_| {})).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": costly_schema()}});
    let told = |error: &Value| {
        assert_eq!((&error["code"], &error["param"]), (&json!("unsupported_parameter"), &json!("response_format")));
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains("ask for something simpler"), "{error}");
    };
    let whole = client.chat(json!({"response_format": format, "temperature": 0})).await;
    assert_eq!(whole.status(), 400);
    told(&json_of(whole).await["error"]);
    let asked = json!({"response_format": format, "temperature": 0, "stream": true, "n": 2});
    let events = events_of(client.chat(asked).await).await;
    assert!(events.len() > 2 && events[0]["choices"][0]["delta"]["role"] == "assistant", "{events:?}");
    told(&events.last().unwrap()["error"]);
    client.wait_for(idle).await;
    assert_eq!(client.chat(json!({})).await.status(), 200, "it goes on serving");
}
