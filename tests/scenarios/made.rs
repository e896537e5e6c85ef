//! What a model made itself: masked, or the end of its answer, whoever gets it and however it comes.

use std::time::Duration;

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Client, Config, Event, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

/// Put together here, so that no scanner takes this file for a leak.
fn token() -> String {
    format!("sk-{}", "aB3dE".repeat(6))
}

fn key() -> String {
    format!("-----BEGIN {0}-----\n{1}-----END {0}-----", "PRIVATE KEY", "MIIEvQIBADANBgkqhkiG9w0B\n".repeat(40))
}

fn looking(cloud: &BusyCloud) -> Config {
    config(cloud)
        .set("/policies/1/config/words", json!({"customer": ["Blue Heron"]}))
        .set("/classification", json!({"markings": {"TOP SECRET": "classified"}}))
        .set("/answers", json!({"mask": ["secret", "private-key", "customer"], "stop": ["marking"]}))
}

fn body(n: u32, more: Value) -> Value {
    let mut body = chat_body(&format!("Please write something, number {n}"));
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

async fn streamed(client: &Client, body: &Value) -> Result<(String, Vec<Event>)> {
    let mut stream = client.stream(body).await?;
    let record = stream.header("postern-record").to_owned();
    Ok((record, stream.rest().await?))
}

fn nothing_leaked(postern: &Postern, events: &str) -> Result<()> {
    let (records, log) = (postern.records().text()?, postern.log());
    for text in [events, &records, &log] {
        assert!(!text.contains("aB3") && !text.contains("MIIE") && !text.contains("Blue"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_model_made_is_masked_wherever_a_stream_is_cut_and_in_whole_answers() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&looking(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let answer = format!("Use {} for Blue Heron.\n{}\nThat is all, a[0] and [EMAIL_", token(), key());
    let expected = "Use [SECRET] for [CUSTOMER].\n[PRIVATE-KEY]\nThat is all, a[0] and [EMAIL_";
    for (n, chunk_chars) in [1, 2, 7, 100, 10_000].into_iter().enumerate() {
        cloud.switch(json!({"answer": answer, "chunk_chars": chunk_chars})).await?;
        let (record, events) = streamed(&client, &body(n as u32, json!({"n": 2}))).await?;
        assert!(events.last().unwrap().is_done(), "{events:?}");
        for index in [0, 1] {
            let of_choice = |event: &Event| {
                let choices = event.json()["choices"].as_array().cloned().unwrap_or_default();
                let mine = choices.into_iter().filter(|choice| choice["index"] == index);
                mine.filter_map(|choice| choice["delta"]["content"].as_str().map(str::to_owned)).collect::<String>()
            };
            assert_eq!(events.iter().map(of_choice).collect::<String>(), expected, "{chunk_chars}");
        }
        nothing_leaked(&postern, &format!("{events:?}"))?;
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!(outcome["answer_masked"], json!({"customer": 2, "private-key": 2, "secret": 2}));
        assert_eq!(outcome["result"], "answered");
    }
    let reply = client.post_json("/v1/chat/completions", &body(50, json!({"n": 2, "logprobs": true}))).await?;
    let whole = reply.json()?;
    assert_eq!(
        (&whole["choices"][0]["message"]["content"], &whole["choices"][1]["message"]["content"]),
        (&json!(expected), &json!(expected))
    );
    nothing_leaked(&postern, &reply.text())?;
    let completion = json!({"model": "chat", "prompt": "Once upon a time", "stream": true});
    let events = client.stream_of("/v1/completions", &completion).await?.rest().await?;
    let said: String =
        events.iter().filter_map(|event| event.json()["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(said, expected);
    let metrics = postern.metrics().await?;
    assert_eq!(metrics.value("postern_answers_masked_total", &[("kind", "secret")]), Some(13.0));
    assert_eq!(metrics.value("postern_answers_masked_total", &[("kind", "other")]), Some(13.0), "the office's words");
    Ok(())
}

#[tokio::test]
async fn values_of_the_request_are_restored_all_the_same() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let answers = json!({"mask": ["email", "phone", "secret"]});
    let postern = Postern::start(&config(&cloud).set("/answers", answers)).await?;
    let client = postern.client("clerk/amy")?;
    // The cloud repeats it: placeholders, which are the client's own values.
    let prompt = "password: hunter22 of ann@example.org, call +86 138 0013 8000";
    for chunk_chars in [1, 1000] {
        cloud.switch(json!({"chunk_chars": chunk_chars})).await?;
        let (record, events) = streamed(&client, &chat_body(&format!("{prompt}, {chunk_chars}"))).await?;
        assert!(text(&events).contains(prompt), "{}", text(&events));
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!((&outcome["restored"], &outcome["answer_masked"]), (&json!(3), &Value::Null));
    }
    Ok(())
}

#[tokio::test]
async fn a_marking_ends_the_answer_and_the_work_on_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&looking(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let answer = format!("This paper is top secret. {}", "More of it. ".repeat(200));
    for (n, chunk_chars) in [1, 5, 10_000].into_iter().enumerate() {
        cloud.switch(json!({"answer": answer, "chunk_chars": chunk_chars, "token_ms": 5})).await?;
        cloud.reset().await?;
        for asked in 1..=2 {
            let (record, events) = streamed(&client, &body(n as u32, json!({}))).await?;
            assert_eq!(text(&events), "This paper is ");
            let last = events.last().unwrap();
            assert_eq!(last.error_code(), "answer_stopped");
            assert!(!events.iter().any(Event::is_done));
            let outcome = postern.records().of(&record, SOON).await?.outcome;
            assert_eq!((&outcome["result"], &outcome["code"]), (&json!("stopped"), &json!("answer_stopped")));
            assert_eq!((&outcome["answer_stopped"], &outcome["status"]), (&json!("marking"), &json!(200)));
            // It is not kept.
            let stats = cloud.stats_when(SOON, |stats| stats.open == 0).await?;
            assert_eq!(stats.requests, asked);
            assert!(chunk_chars > 10 || stats.cancelled == asked, "{stats:?}");
        }
    }
    cloud.switch(json!({"answer": answer})).await?;
    for _ in 0..2 {
        let reply = client.post_json("/v1/chat/completions", &body(9, json!({}))).await?;
        assert_eq!((reply.status, reply.error_code()), (403, "answer_stopped".to_owned()));
        assert!(!reply.text().contains("top secret"));
        let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
        assert_eq!((&outcome["result"], &outcome["status"]), (&json!("stopped"), &json!(403)));
        assert!(outcome["completion_tokens"].as_u64() > Some(0), "it was used: {outcome}");
    }
    let metrics = postern.metrics().await?;
    assert_eq!(metrics.value("postern_answers_stopped_total", &[("kind", "marking")]), Some(8.0));
    Ok(())
}

#[tokio::test]
async fn arguments_of_tools_are_looked_at_and_stay_json() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&looking(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let arguments =
        json!({"note": format!("a\n\"{}\" é", token()), "pem": key(), "n": [1, {"password": "hunter22"}]}).to_string();
    let expected = json!({"note": "a\n\"[SECRET]\" é", "pem": "[PRIVATE-KEY]", "n": [1, {"password": "[SECRET]"}]});
    let event = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        format!(
            "data: {}\n\n",
            json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})
        )
    };
    let call = |more: Value| json!({"tool_calls": [more]});
    for size in [1, 3, 50] {
        let mut ending = event(
            call(json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}})),
            Value::Null,
        );
        let characters: Vec<char> = arguments.chars().collect();
        for piece in characters.chunks(size) {
            let piece: String = piece.iter().collect();
            ending += &event(call(json!({"index": 0, "function": {"arguments": piece}})), Value::Null);
        }
        ending += &event(json!({}), json!("tool_calls"));
        ending += "data: [DONE]\n\n";
        cloud.switch(json!({"answer": "", "ending": ending})).await?;
        let (record, events) = streamed(&client, &body(size as u32, json!({}))).await?;
        assert!(events.last().unwrap().is_done(), "{events:?}");
        let deltas = events.iter().map(|event| event.json()["choices"][0]["delta"]["tool_calls"][0].clone());
        let pieces: Vec<Value> = deltas.filter(|call| !call.is_null()).collect();
        assert_eq!((&pieces[0]["id"], &pieces[0]["function"]["name"]), (&json!("call_1"), &json!("f")));
        let written: String = pieces.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
        assert_eq!(serde_json::from_str::<Value>(&written)?, expected, "{written}");
        nothing_leaked(&postern, &format!("{events:?}"))?;
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!(outcome["answer_masked"], json!({"private-key": 1, "secret": 2}));
    }
    let message = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}},
    ]});
    cloud.switch(json!({"choice": {"message": message}, "finish_reason": "tool_calls"})).await?;
    let whole = client.post_json("/v1/chat/completions", &body(90, json!({}))).await?.json()?;
    let written = whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap_or_default();
    assert_eq!(serde_json::from_str::<Value>(written)?, expected);
    Ok(())
}

#[tokio::test]
async fn the_cache_and_those_who_follow_get_no_more_than_who_asked_first() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&looking(&cloud)).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let answer = format!("It begins here. Use {}, and so on.", token());
    cloud.switch(json!({"answer": answer, "chunk_chars": 2, "token_ms": 20})).await?;
    let mut first = amy.stream(&body(1, json!({}))).await?;
    first.next().await?;
    let mut second = bo.stream(&body(1, json!({}))).await?;
    assert_eq!(second.header("postern-cache"), "shared");
    let (first, second) = tokio::try_join!(first.rest(), second.rest())?;
    assert!(text(&first).ends_with("Use [SECRET], and so on."), "{first:?}");
    assert!(text(&second).ends_with("It begins here. Use [SECRET], and so on."), "{second:?}");
    let mut hit = amy.stream(&body(1, json!({}))).await?;
    assert_eq!(hit.header("postern-cache"), "exact");
    assert_eq!(text(&hit.rest().await?), "It begins here. Use [SECRET], and so on.");

    cloud
        .switch(json!({"answer": "It begins here. This is TOP SECRET, and so on.", "chunk_chars": 2, "token_ms": 20}))
        .await?;
    let mut first = amy.stream(&body(2, json!({}))).await?;
    first.next().await?;
    let mut second = bo.stream(&body(2, json!({}))).await?;
    assert_eq!(second.header("postern-cache"), "shared");
    let record = second.header("postern-record").to_owned();
    let (first, second) = tokio::try_join!(first.rest(), second.rest())?;
    for events in [&first, &second] {
        assert!(text(events).ends_with("This is ") && !events.iter().any(Event::is_done), "{events:?}");
        assert_eq!(events.last().unwrap().error_code(), "answer_stopped");
    }
    assert_eq!(postern.records().of(&record, SOON).await?.outcome["code"], "answer_stopped");

    // Of a whole answer as well: who waits for it is told the same, and the cloud is asked once.
    cloud.switch(json!({"answer": "This is TOP SECRET.", "latency_ms": 3000})).await?;
    cloud.reset().await?;
    let path = "/v1/chat/completions";
    let asked = body(3, json!({}));
    let (first, second) = tokio::try_join!(amy.post_json(path, &asked), bo.post_json(path, &asked))?;
    assert_eq!((first.status, second.status), (403, 403), "{} {}", first.text(), second.text());
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn text_does_not_wait_for_what_it_cannot_become() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&looking(&cloud)).await?;
    let answer = "The report of the second quarter is ready; it has four pages and one table.";
    cloud.switch(json!({"answer": answer, "chunk_chars": 1, "hang_after_chunks": 60})).await?;
    let mut stream = postern.client("clerk/amy")?.stream(&body(1, json!({}))).await?;
    let mut said = String::new();
    // Nothing more comes from the cloud: what was said has to be here without.
    while said.len() < 60 - 4 {
        let event = tokio::time::timeout(Duration::from_secs(15), stream.next()).await??;
        said += &event.expect("the stream goes on").delta();
    }
    assert!(answer.starts_with(&said), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_reload_changes_what_is_looked_for_also_in_what_the_cache_has() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let plain = config(&cloud);
    let postern = Postern::start(&plain).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"answer": format!("Use {}.", token())})).await?;
    let asked = body(1, json!({}));
    let reply = client.post_json("/v1/chat/completions", &asked).await?;
    assert_eq!(reply.answer(), format!("Use {}.", token()), "nothing is configured");
    postern.configure(&plain.set("/answers", json!({"mask": ["secret"]})))?;
    assert_eq!(postern.admin_post("/api/reload").await?.status, 200);
    postern.logged("changes=\"answers\"").await?;
    let reply = client.post_json("/v1/chat/completions", &asked).await?;
    assert_eq!((reply.header("postern-cache"), reply.answer().as_str()), ("exact", "Use [SECRET]."));
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_gone_on_with_is_looked_at_over_the_seam() -> Result<()> {
    let (dying, well) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(
        &Config::new()
            .cloud("dying", &dying, "internal")
            .cloud("well", &well, "internal")
            .set("/targets/1/openai/continues", json!("message"))
            .set("/answers", json!({"mask": ["secret"]})),
    )
    .await?;
    let answer = format!("A good beginning, then {} and an end.", token());
    for (n, after) in [10, 30, 45].into_iter().enumerate() {
        dying.switch(json!({"answer": answer, "chunk_chars": 1, "die_after_chunks": after})).await?;
        well.switch(json!({"answer": answer, "chunk_chars": 1})).await?;
        let client = postern.client("clerk/amy")?;
        let (_, events) = streamed(&client, &body(n as u32, json!({}))).await?;
        assert_eq!(text(&events), "A good beginning, then [SECRET] and an end.", "{after}");
        assert!(events.last().unwrap().is_done());
    }
    Ok(())
}
