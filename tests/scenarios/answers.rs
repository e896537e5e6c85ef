//! What shapes an answer reaches the engine through the gateway, and the answer comes back as it was told.

use anyhow::Result;
use postern_tests::{Config, Postern};
use serde_json::{Value, json};

fn body(more: Value) -> Value {
    let mut body = json!({
        "model": "chat", "max_tokens": 60, "seed": 5,
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn parameters_reach_the_engine_and_their_answers_come_back() -> Result<()> {
    let postern = Postern::start(&Config::new().engine()).await?;
    postern.engine_ready().await?;
    let client = postern.client("clerk/amy")?;
    let ask = async |more: Value| {
        let reply = client.post_json("/v1/chat/completions", &body(more)).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    };

    let several = ask(json!({"n": 3, "max_tokens": 4, "logprobs": true, "top_logprobs": 2})).await?;
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let tokens = |choice: &Value| choice["logprobs"]["content"].as_array().map_or(0, Vec::len) as u64;
    let told: u64 = choices.iter().map(tokens).sum();
    assert!(told > 0 && several["usage"]["completion_tokens"].as_u64() >= Some(told), "{several}");

    let banned = json!({"max_tokens": 1, "temperature": 0, "logprobs": true, "top_logprobs": 1});
    let plain = ask(banned.clone()).await?;
    let mut other = banned;
    other["repetition_penalty"] = json!(2.0);
    other["top_k"] = json!(1);
    assert_eq!(
        ask(other).await?["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        "what is told is the model's own"
    );

    let schema = json!({"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}});
    let answer = ask(json!({"response_format": format})).await?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(serde_json::from_str::<Value>(&text)?["warm"].is_boolean(), "{text}");

    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": city}}]);
    let asked = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "stream": true});
    let mut stream = client.stream(&body(asked)).await?;
    let events = stream.rest().await?;
    assert!(events.last().is_some_and(|event| event.is_done()), "{events:?}");
    let deltas: Vec<Value> =
        events.iter().map(|event| event.json()["choices"][0]["delta"]["tool_calls"][0].clone()).collect();
    let name = deltas.iter().find_map(|delta| delta["function"]["name"].as_str());
    assert_eq!(name, Some("weather"));
    let arguments: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
    assert!(["Rome", "Oslo"].contains(&serde_json::from_str::<Value>(&arguments)?["city"].as_str().unwrap()));

    let refused = client.post_json("/v1/chat/completions", &body(json!({"best_of": 2}))).await?;
    assert_eq!(refused.status, 400, "{}", refused.text());
    Ok(())
}
