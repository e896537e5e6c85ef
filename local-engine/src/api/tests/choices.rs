//! Several answers, probabilities, calls: how they are told, whole and piece by piece.

use super::*;
use crate::testing::SCRIPTED_CONTEXT_TOKENS;
use crate::tools::tests::two_tools_json;

/// The deltas of one choice, in order, without empty ones.
fn deltas(events: &[Value], index: usize) -> Vec<Value> {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
    let own = choices.filter(|choice| choice["index"] == index);
    own.map(|choice| choice["delta"].clone()).filter(|delta| *delta != json!({})).collect()
}

fn reasons(events: &[Value], index: usize) -> Vec<Value> {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
    let own = choices.filter(|choice| choice["index"] == index);
    own.map(|choice| choice["finish_reason"].clone()).filter(|reason| !reason.is_null()).collect()
}

#[tokio::test]
async fn several_choices_are_told_and_the_usage_counts_them_all() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let answer = json_of(client.chat(json!({"n": 3})).await).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("stop")));
        assert_eq!(choice["message"]["content"], "one two €!");
    }
    assert_eq!(answer["usage"]["prompt_tokens"], 21, "the prompt is one");
    assert_eq!(answer["usage"]["completion_tokens"], 18);
    assert_eq!(answer["usage"]["total_tokens"], 39);

    let body = json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}});
    let events = events_of(client.chat(body).await).await;
    for index in 0..3 {
        let deltas = deltas(&events, index);
        assert_eq!(deltas[0], json!({"role": "assistant", "content": ""}));
        let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!((text.as_str(), reasons(&events, index)), ("one two €!", vec![json!("stop")]));
    }
    let (usage, done) = (&events[events.len() - 2], &events[events.len() - 1]);
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"], done),
        (&json!([]), &json!(18), &json!("[DONE]"))
    );
    assert_eq!(events.iter().filter(|event| event["usage"].is_object()).count(), 1);
}

#[tokio::test]
async fn several_choices_need_as_many_places() {
    let options = |options: &mut EngineOptions| {
        options.max_batch_size = 2;
        options.max_queue = 1;
    };
    let mut client = Client::of(scripted_engine(PIECES, QUICK, options)).await;
    let refused = client.chat(json!({"n": 4})).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    client.wait_for(idle).await;
    assert_eq!(client.chat(json!({"n": 3})).await.status(), 200, "none of the places was kept");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_all_its_choices() {
    let step = Duration::from_millis(5);
    let mut client = Client::of(scripted_engine(&endless(), step, |_| {})).await;
    for stream in [true, false] {
        let mut second = Client(client.0.clone());
        let asking = tokio::spawn(async move {
            let mut body = second.chat(json!({"stream": stream, "n": 4})).await.into_body();
            while body.frame().await.is_some() {}
        });
        client.wait_for(|state| state["running"] == 4).await;
        asking.abort();
        assert!(client.wait_for(idle).await < Duration::from_secs(1), "of about 2 s");
    }
}

#[tokio::test]
async fn probabilities_are_told_for_every_token_that_is_shown() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let answer = json_of(client.chat(json!({"logprobs": true, "top_logprobs": 2})).await).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), PIECES.len(), "the token that ends the answer is not told");
    for (token, piece) in content.iter().zip(PIECES) {
        assert_eq!(token["bytes"], json!(piece));
        assert_eq!(token["token"], String::from_utf8_lossy(piece).as_ref());
        // The scripted model gives one token 50 and all others 0.
        assert!((-1e-6..=0.0).contains(&token["logprob"].as_f64().unwrap()));
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["bytes"]), (2, &json!(piece)));
        assert!((top[1]["logprob"].as_f64().unwrap() + 50.0).abs() < 1e-3);
    }
    let plain = json_of(client.chat(json!({"logprobs": true})).await).await;
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));

    let events = events_of(client.chat(json!({"logprobs": true, "stream": true})).await).await;
    let scored = |event: &Value| event["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    let bytes = |token: &Value| token["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect();
    let told: Vec<u8> = events.iter().flat_map(scored).flat_map(|token| -> Vec<u8> { bytes(&token) }).collect();
    assert_eq!(told, PIECES.concat());
}

#[tokio::test]
async fn probabilities_of_a_stop_string_are_not_told() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let answer = json_of(client.chat(json!({"logprobs": true, "stop": "two"})).await).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "one ");
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(told.iter().map(|token| token["token"].clone()).collect::<Vec<_>>(), [json!("one")]);
}

/// An answer with text and two calls, in pieces that cut the marks.
const CALLING: &[&[u8]] = &[
    b"Let me",
    b" see. <too",
    b"l_call>\n{\"name",
    b"\": \"weather\", \"arguments\": {\"ci",
    b"ty\": \"Ro",
    b"me\"}}\n</tool_call>",
    b"\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}",
    b"\n</tool_call>",
];

#[tokio::test]
async fn calls_are_told_by_their_index() {
    let long = |options: &mut EngineOptions| options.context = Some(SCRIPTED_CONTEXT_TOKENS);
    let mut client = Client::of(scripted_engine(CALLING, QUICK, long)).await;
    let answer = json_of(client.chat(json!({"tools": two_tools_json(), "stop": ["name"]})).await).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Let me see."))
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls[0]["function"], json!({"name": "weather", "arguments": "{\"city\": \"Rome\"}"}));
    assert_eq!(calls[1]["function"], json!({"name": "now", "arguments": "{}"}));
    assert!(calls.iter().all(|call| call["type"] == "function" && call["id"].as_str().unwrap().starts_with("call_")));
    assert_ne!(calls[0]["id"], calls[1]["id"]);

    let events = events_of(client.chat(json!({"tools": two_tools_json(), "stream": true})).await).await;
    let deltas = deltas(&events, 0);
    assert_eq!(deltas[0], json!({"role": "assistant", "content": null}));
    let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(text, "Let me see.");
    let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta["tool_calls"].get(0)).collect();
    for (index, name, arguments) in [(0, "weather", "{\"city\": \"Rome\"}"), (1, "now", "{}")] {
        let own: Vec<&&Value> = calls.iter().filter(|call| call["index"] == index).collect();
        assert_eq!((&own[0]["function"]["name"], &own[0]["type"]), (&json!(name), &json!("function")));
        assert!(own[1..].iter().all(|call| call.get("id").is_none() && call["function"].get("name").is_none()));
        let told: String = own.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
        assert_eq!(told, arguments);
    }
    assert!(
        calls.iter().filter(|call| call["index"] == 0).count() >= 3,
        "arguments come as they are written: {calls:?}"
    );
    assert_eq!(reasons(&events, 0), [json!("tool_calls")]);
    let plain = json_of(client.chat(json!({"tools": two_tools_json(), "tool_choice": "none"})).await).await;
    assert!(plain["choices"][0]["message"].get("tool_calls").is_none(), "nothing may be called, so all is text");
}

#[tokio::test]
async fn a_model_that_would_say_something_else_says_what_it_must() {
    let mut client = Client::of(scripted_engine(PIECES, QUICK, |_| {})).await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": [17]}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    for number in 0..8 {
        let answer = json_of(client.chat(json!({"response_format": format, "seed": number, "n": 2})).await).await;
        for choice in answer["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!({"a": 17}), "{text}");
            assert_eq!(choice["finish_reason"], "stop");
        }
    }
    let refused =
        client.chat(json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}));
    let refused = refused.await;
    assert_eq!(refused.status(), 400);
    assert_eq!(json_of(refused).await["error"]["param"], "response_format");
}
