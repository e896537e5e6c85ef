//! `POST /v1/completions`: one prompt, with the same care as a chat.

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Event, Postern};
use serde_json::{Value, json};

use crate::{SOON, config};

const PROMPT: &str = "Once ann.lee@example.org wrote to";

fn text(events: &[Event]) -> String {
    events.iter().map(|event| event.json()["choices"][0]["text"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn stream(client: &Client, more: &Value) -> Result<Vec<Event>> {
    let mut body = json!({"model": "chat", "prompt": PROMPT, "stream": true});
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    client.stream_of("/v1/completions", &body).await?.rest().await
}

#[tokio::test]
async fn a_prompt_is_masked_and_its_answer_restored_also_in_a_stream() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let reply =
        client.post_json("/v1/completions", &json!({"model": "chat", "prompt": [PROMPT], "max_tokens": 9})).await?;
    let answer = reply.json()?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "sun"), "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("chat")));
    assert!(answer["choices"][0]["text"].as_str().is_some_and(|text| text.contains(PROMPT)), "{answer}");
    assert!(answer["choices"][0].get("message").is_none() && answer["usage"]["prompt_tokens"].is_u64(), "{answer}");
    let stats = cloud.stats().await?;
    assert_eq!(stats.paths.back().map(String::as_str), Some("/v1/completions"));
    assert!(stats.bodies.iter().all(|body| body["prompt"][0].as_str().is_some_and(|text| text.contains("[EMAIL_"))));
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!((&record.intent["form"], &record.outcome["restored"]), (&json!("masked"), &json!(1)));

    for chunk_chars in [1, 5, 1000] {
        cloud.switch(json!({"chunk_chars": chunk_chars})).await?;
        // Another request each time, so that none comes from the cache; then the same once more, which does.
        let more = json!({"max_tokens": chunk_chars, "stream_options": {"include_usage": true}});
        let first = stream(&client, &more).await?;
        assert!(text(&first).contains(PROMPT) && first.last().is_some_and(Event::is_done), "{first:?}");
        let shaped = |event: &&Event| event.json()["object"] == "text_completion" && event.json()["model"] == "chat";
        assert_eq!(first.iter().filter(shaped).count() + 1, first.len(), "{first:?}");
        assert!(first.iter().any(|event| event.json()["usage"]["completion_tokens"].is_u64()), "{first:?}");
        let asked = cloud.stats().await?.requests;
        assert_eq!(text(&stream(&client, &more).await?), text(&first));
        assert_eq!(cloud.stats().await?.requests, asked, "the second came from the cache");
    }
    cloud.switch(json!({"die_after_chunks": 4})).await?;
    let broken = stream(&client, &json!({"max_tokens": 77})).await?;
    assert_eq!(broken.last().map(Event::error_code).as_deref(), Some("stream_broken"), "{broken:?}");
    assert!(!broken.iter().any(Event::is_done));
    Ok(())
}

#[tokio::test]
async fn a_completion_that_breaks_off_is_given_to_nobody_else() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let config = config(&cloud).cloud("moon", &other, "internal").set("/targets/1/openai/continues", json!("message"));
    let postern = Postern::start(&config).await?;
    cloud.switch(json!({"die_after_chunks": 4})).await?;
    let broken = stream(&postern.client("clerk/amy")?, &json!({})).await?;
    assert_eq!(broken.last().map(Event::error_code).as_deref(), Some("stream_broken"), "{broken:?}");
    assert_eq!(other.stats().await?.requests, 0);
    Ok(())
}

#[tokio::test]
async fn the_engine_goes_on_with_what_is_classified() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).engine()).await?;
    postern.engine_ready().await?;
    let client = postern.client("clerk/amy")?.with_header("postern-label", "classified");
    let body = json!({"model": "chat", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0});
    let reply = client.post_json("/v1/completions", &body).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "engine"), "{}", reply.text());
    let said = reply.json()?["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
    assert!(said.contains("Paris"), "{said}");
    let events = client.stream_of("/v1/completions", &body).await?.rest().await?;
    assert_eq!(text(&events), said);
    // What the engine does not do, it says; nobody else may be asked.
    let echo = json!({"model": "chat", "prompt": "The capital", "echo": true});
    let refused = client.post_json("/v1/completions", &echo).await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "unsupported_parameter"), "{}", refused.text());
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}

#[tokio::test]
async fn prompts_that_cannot_be_read_are_refused() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    for (prompt, code) in [
        (json!([1, 2]), "tokens_refused"),
        (json!([[1, 2]]), "tokens_refused"),
        (json!(["a", "b"]), "array_above_max_length"),
        (json!({"id": "p"}), "provider_state_refused"),
    ] {
        let reply = client.post_json("/v1/completions", &json!({"model": "chat", "prompt": prompt})).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, code), "{}", reply.text());
    }
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}
