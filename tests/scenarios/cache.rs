//! An answer is given again only to the same tenant, for the same request, under the same label.

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Client, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

async fn ask(client: &Client, body: &Value) -> Result<String> {
    let reply = client.post_json("/v1/chat/completions", body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok(reply.header("postern-cache").to_owned())
}

#[tokio::test]
async fn a_repeated_prompt_comes_from_the_cache_for_the_same_tenant_only() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let (amy, bo, guest) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?, postern.client("guest/x")?);
    let body = chat_body("What is our address?");
    assert_eq!(ask(&amy, &body).await?, "miss");
    assert_eq!(ask(&amy, &body).await?, "exact");
    assert_eq!(ask(&bo, &body).await?, "exact", "the same tenant");
    assert_eq!(ask(&guest, &body).await?, "miss", "another tenant");
    assert_eq!(ask(&amy.with_header("postern-label", "internal"), &body).await?, "miss", "another label");
    assert_eq!(cloud.stats().await?.requests, 3);
    let reply = amy.post_json("/v1/chat/completions", &body).await?;
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!((&record.outcome["cache"], record.outcome["attempts"].as_array().unwrap().len()), (&json!("exact"), 0));
    Ok(())
}

#[tokio::test]
async fn every_parameter_counts() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let plain = chat_body("Say something");
    assert_eq!(ask(&client, &plain).await?, "miss");
    for (field, value) in [
        ("seed", json!(1)),
        ("max_tokens", json!(50)),
        ("chat_template_kwargs", json!({"thinking": true})),
        ("user", json!("u")),
        ("model", json!("other")),
    ] {
        let mut body = plain.clone();
        body[field] = value;
        assert_eq!(ask(&client, &body).await?, "miss", "{field}");
        assert_eq!(ask(&client, &body).await?, "exact", "{field}");
    }
    let mut longer = plain.clone();
    longer["messages"] =
        json!([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Say something"}]);
    assert_eq!(ask(&client, &longer).await?, "miss", "not the last question only");
    Ok(())
}

#[tokio::test]
async fn a_policy_adds_to_the_key_and_the_placement_is_in_it() -> Result<()> {
    let (cloud, node) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let by_identity = json!({"key_by": ["identity"]});
    let config = config(&cloud).edge("node", &node, "internal").set("/policies/2/config", by_identity);
    let postern = Postern::start(&config).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let body = chat_body("What is our address?");
    assert_eq!((ask(&amy, &body).await?, ask(&amy, &body).await?), ("miss".to_owned(), "exact".to_owned()));
    assert_eq!(ask(&bo, &body).await?, "miss", "the same tenant, but the policy keeps people apart");
    let edge = amy.with_header("postern-placement", "edge-first");
    assert_eq!((ask(&edge, &body).await?, ask(&edge, &body).await?), ("miss".to_owned(), "exact".to_owned()));
    assert_eq!((cloud.stats().await?.requests, node.stats().await?.requests), (2, 1));
    Ok(())
}

#[tokio::test]
async fn a_hit_is_mapped_onto_the_values_of_the_request_that_is_answered() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let first = client.chat("Greet ann@example.org and call 13800138000").await?;
    let second = client.chat("Greet zoe@example.net and call 13900139000").await?;
    assert_eq!((first.header("postern-cache"), second.header("postern-cache")), ("miss", "exact"));
    assert!(second.answer().contains("zoe@example.net") && !second.answer().contains("ann@"), "{}", second.answer());
    assert!(second.answer().contains("13900139000"));
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_stream_is_cached_as_a_stream_and_broken_ones_are_not() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let body = |name: &str| chat_body(&format!("Stream to {name}@example.org"));
    let first = client.stream(&body("ann")).await?.rest().await?;
    let mut again = client.stream(&body("zoe")).await?;
    assert_eq!(again.header("postern-cache"), "exact");
    let again = again.rest().await?;
    assert_eq!(text(&again), text(&first).replace("ann@", "zoe@"));
    assert!(again.last().unwrap().is_done());

    cloud.switch(json!({"die_after_chunks": 5})).await?;
    for _ in 0..2 {
        let mut events = client.stream(&chat_body("This one will break off in the middle")).await?;
        assert_eq!(events.header("postern-cache"), "miss");
        assert_eq!(events.rest().await?.last().unwrap().error_code(), "stream_broken");
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_may_not_be_complete_is_not_cached() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"finish_reason": "content_filter"})).await?;
    for _ in 0..2 {
        let mut events = client.stream(&chat_body("Stream: a[0], [EMAIL_")).await?;
        assert_eq!(events.header("postern-cache"), "miss");
        let events = events.rest().await?;
        // What could have become a placeholder is not lost.
        assert!(text(&events).ends_with(": a[0], [EMAIL_"), "{events:?}");
        assert!(events.last().unwrap().is_done());
        assert_eq!(ask(&client, &chat_body("Whole")).await?, "miss");
    }
    // Without an end, and with one that is none, a stream was cut, whatever it says.
    for reason in ["", "error"] {
        cloud.switch(json!({"finish_reason": reason})).await?;
        for _ in 0..2 {
            let mut events = client.stream(&chat_body(&format!("Stream that ends with {reason:?}"))).await?;
            assert_eq!(events.header("postern-cache"), "miss", "{reason:?}");
            let events = events.rest().await?;
            assert_eq!(events.last().unwrap().error_code(), "stream_broken", "{reason:?}: {events:?}");
            assert!(!events.iter().any(postern_tests::Event::is_done));
        }
    }
    cloud.switch(json!({"finish_reason": ""})).await?;
    for _ in 0..2 {
        assert_eq!(ask(&client, &chat_body("Whole, without an end")).await?, "miss");
    }
    cloud.switch(json!({"finish_reason": "length"})).await?;
    let body = chat_body("This much and no more");
    assert_eq!((ask(&client, &body).await?, ask(&client, &body).await?), ("miss".to_owned(), "exact".to_owned()));
    Ok(())
}

#[tokio::test]
async fn tools_are_not_cached() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let mut body = chat_body("What is the time?");
    body["tools"] = json!([{"type": "function", "function": {"name": "clock", "parameters": {}}}]);
    for _ in 0..2 {
        assert_eq!(ask(&client, &body).await?, "bypass");
    }
    Ok(())
}
