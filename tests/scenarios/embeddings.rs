//! `POST /v1/embeddings`: looked at and masked like a chat, placed by its label, and always by the same model.

use std::path::PathBuf;

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Config, Node, Postern, Reply};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::encoder;
use crate::{SOON, config};

async fn embed(client: &Client, input: Value) -> Result<Reply> {
    client.post_json("/v1/embeddings", &json!({"model": "embed", "input": input})).await
}

/// The last body that a cloud was sent.
async fn sent(cloud: &BusyCloud) -> Result<Value> {
    Ok(cloud.stats().await?.bodies.back().cloned().unwrap_or_default())
}

fn vector(reply: &Reply, at: usize) -> Result<Vec<f64>> {
    Ok(serde_json::from_value(reply.json()?["data"][at]["embedding"].clone())?)
}

/// The tiny encoder, in a folder of its own: engines call it `tiny`.
fn tiny() -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::Builder::new().prefix("pt").tempdir()?;
    let tiny = folder.path().join("tiny");
    std::fs::create_dir(&tiny)?;
    encoder(&tiny)?;
    Ok((folder, tiny))
}

fn named(config: Config, target: usize, model: &str) -> Config {
    config.set(&format!("/targets/{target}/models"), json!({"embed": model, "chat": "busy-large"}))
}

#[tokio::test]
async fn texts_become_vectors_and_what_they_used_is_counted() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limited = json!({"match": "spiffe://branch.test/clerk/bo", "limits": {"tokens_per_minute": 40}});
    let config = named(config(&cloud), 0, "busy-embed").push("/identities", limited);
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    let reply = embed(&client, json!(["A harbour", "A garden"])).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "sun"), "{}", reply.text());
    let answer = reply.json()?;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("embed")));
    assert_eq!((&answer["data"][1]["object"], &answer["data"][1]["index"]), (&json!("embedding"), &json!(1)));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    assert!(vector(&reply, 0)?.len() == 8 && vector(&reply, 0)? != vector(&reply, 1)?);
    let stats = cloud.stats().await?;
    assert_eq!(
        (stats.paths.back().map(String::as_str), &sent(&cloud).await?["model"]),
        (Some("/v1/embeddings"), &json!("busy-embed"))
    );
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!((&record.intent["model"], &record.outcome["result"]), (&json!("embed"), &json!("answered")));
    assert_eq!((&record.outcome["prompt_tokens"], &record.outcome["completion_tokens"]), (&json!(5), &json!(0)));

    let more =
        json!({"model": "embed", "input": "A harbour", "encoding_format": "base64", "dimensions": 3, "user": "u"});
    let reply = client.post_json("/v1/embeddings", &more).await?;
    assert_eq!(reply.json()?["data"][0]["embedding"].as_str().map(str::len), Some(16), "{}", reply.text());
    assert_eq!(sent(&cloud).await?["dimensions"], 3);

    // Forty tokens a minute: what was used is gone, and the next text does not fit any more.
    let bo = postern.client("clerk/bo")?;
    assert_eq!(embed(&bo, json!("word ".repeat(24))).await?.status, 200);
    let refused = embed(&bo, json!("word ".repeat(24))).await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limit_exceeded"));
    Ok(())
}

#[tokio::test]
async fn the_cloud_gets_placeholders_which_are_the_same_for_the_same_value() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let mut seen = Vec::new();
    for (client, input) in [
        (&amy, json!("Mail of ann.lee@example.org")),
        (&bo, json!(["Who is bob@example.net?", "Mail of ann.lee@example.org"])),
        (&postern.client("guest/x")?, json!("Mail of ann.lee@example.org")),
    ] {
        let reply = embed(client, input).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let body = sent(&cloud).await?;
        assert!(!body.to_string().contains("example."), "{body}");
        seen.push(body["input"].clone());
        let record = postern.records().of(reply.header("postern-record"), SOON).await?;
        assert_eq!(record.intent["form"], "masked");
    }
    assert!(seen[0].as_str().is_some_and(|text| text.starts_with("Mail of [EMAIL_")), "{seen:?}");
    assert_eq!(seen[0], seen[1][1], "a value is called the same in all vectors of a tenant");
    assert_ne!(seen[0], seen[2], "and otherwise in those of others");
    assert!(!postern.records().text()?.contains("ann.lee") && !postern.log().contains("ann.lee"));
    Ok(())
}

#[tokio::test]
async fn what_is_classified_never_goes_to_the_cloud() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (_folder, tiny) = tiny()?;
    // The cloud serves the very model of the engine, and another one under another name.
    let models = json!({"embed": "tiny", "large": "busy-embed"});
    let marking = json!({"markings": {"TOP SECRET": "classified"}});
    let config = config(&cloud)
        .set("/targets/0/models", models)
        .set("/engine", json!({"model": tiny, "models": ["embed", "large"]}))
        .set("/classification", marking);
    let postern = Postern::start(&config).await?;
    postern.engine_ready().await?;
    let client = postern.client("clerk/amy")?;
    let classified = client.with_header("postern-label", "classified");
    let local = embed(&classified, json!("w5 w6")).await?;
    assert_eq!((local.status, local.header("postern-target")), (200, "engine"), "{}", local.text());
    assert_eq!((vector(&local, 0)?.len(), local.json()?["model"].clone()), (32, json!("embed")));
    // The same text stays here without the header, and so does a marked one.
    for (input, label) in [("w5 w6", "classified"), ("w7 TOP SECRET", "classified")] {
        let reply = embed(&client, json!([input])).await?;
        assert_eq!(
            (reply.header("postern-label"), reply.header("postern-target")),
            (label, "engine"),
            "{}",
            reply.text()
        );
    }
    // The engine answers to the name, but has another model: vectors that fit nothing are worse than none.
    let large = json!({"model": "large", "input": "w5"});
    let refused = classified.post_json("/v1/embeddings", &large).await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "no_permitted_target"));
    assert_eq!(cloud.stats().await?.requests, 0);
    // What is not classified goes out, and another text of the same client is not tainted.
    let reply = embed(&client, json!("w9")).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "sun"), "{}", reply.text());
    // An engine that makes vectors answers no chats, and says so at once.
    let chat = json!({"model": "embed", "messages": [{"role": "user", "content": "w5"}]});
    let reply = classified.post_json("/v1/chat/completions", &chat).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (403, "no_permitted_target"), "{}", reply.text());
    // Nor is a model that chats put in the place of one that does not.
    let swapped = postern.admin_post_json("/api/engine/model", &json!({"model": "smollm2-135m-instruct"})).await?;
    assert!(swapped.status == 422 && swapped.text().contains("makes vectors"), "{}", swapped.text());
    Ok(())
}

#[tokio::test]
async fn a_failover_never_changes_the_model() -> Result<()> {
    let (sun, moon, star) = (BusyCloud::start().await?, BusyCloud::start().await?, BusyCloud::start().await?);
    let config = config(&sun).cloud("moon", &moon, "internal").cloud("star", &star, "internal");
    // Nor does a policy, which was written for chats.
    let rules = json!({"rules": [{"model": "embed", "use_model": "chat"}]});
    let config = named(named(named(config, 0, "small"), 1, "large"), 2, "small");
    let postern = Postern::start(&config.set("/policies/0/config", rules)).await?;
    let client = postern.client("clerk/amy")?;
    sun.switch(json!({"error_text": "down"})).await?;
    let reply = embed(&client, json!("A harbour")).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "star"), "{}", reply.text());
    assert_eq!(sent(&star).await?["model"], "small");
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!(record.intent["targets"], json!(["sun", "star"]));
    star.switch(json!({"error_text": "down"})).await?;
    let reply = embed(&client, json!("A garden")).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"));
    assert_eq!(moon.stats().await?.requests, 0, "it would have answered, with vectors that fit nothing");
    // A chat may go there.
    assert_eq!(client.chat("A harbour?").await?.header("postern-target"), "moon");
    Ok(())
}

#[tokio::test]
async fn answers_that_nobody_asked_for_go_to_the_next_target() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal")).await?;
    let client = postern.client("clerk/amy")?;
    for (switches, result) in [
        (json!({"vectors": 1}), "malformed"),
        (json!({"vectors": 3}), "malformed"),
        (json!({"malformed": "json"}), "malformed"),
        (json!({"malformed": "huge"}), "malformed"),
        (json!({"malformed": "content_type"}), "malformed"),
        (json!({"redirect": "https://evil.example/"}), "status"),
    ] {
        cloud.switch(switches.clone()).await?;
        let reply = embed(&client, json!([switches.to_string(), "A garden"])).await?;
        assert_eq!((reply.status, reply.header("postern-target")), (200, "moon"), "{switches}: {}", reply.text());
        let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
        assert_eq!(outcome["attempts"][0]["result"], result, "{switches}: {outcome}");
    }
    Ok(())
}

#[tokio::test]
async fn equal_texts_come_from_the_cache_and_other_values_do_not() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let ann = embed(&client, json!("Mail of ann.lee@example.org")).await?;
    let again = embed(&client, json!("Mail of ann.lee@example.org")).await?;
    assert_eq!((ann.header("postern-cache"), again.header("postern-cache")), ("miss", "exact"));
    assert_eq!(ann.json()?, again.json()?);
    let bob = embed(&client, json!("Mail of bob@example.net")).await?;
    assert_eq!(bob.header("postern-cache"), "miss");
    assert_ne!(vector(&ann, 0)?, vector(&bob, 0)?, "a vector has the placeholder in it");
    assert_eq!(cloud.stats().await?.requests, 2);
    Ok(())
}

#[tokio::test]
async fn each_fault_has_its_status_and_code() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let body = |input: Value| json!({"model": "embed", "input": input}).to_string();
    for (body, status, code) in [
        ("{".to_owned(), 400, "invalid_json"),
        (r#"{"model":"embed","input":"a","input":"b"}"#.to_owned(), 400, "duplicate_key"),
        (body(json!([1, 2, 3])), 400, "tokens_refused"),
        (body(json!([[1], [2]])), 400, "tokens_refused"),
        (body(json!("")), 400, "invalid_value"),
        (body(json!([])), 400, "empty_array"),
        (body(json!(vec!["a"; 2049])), 400, "array_above_max_length"),
        (json!({"input": "a"}).to_string(), 400, "missing_required_parameter"),
        (json!({"model": "embed", "input": "a", "stream": true}).to_string(), 400, "invalid_value"),
    ] {
        let reply = client.post_bytes("/v1/embeddings", body.into()).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{}", reply.text());
    }
    assert_eq!(client.get("/v1/embeddings").await?.status, 405);
    assert_eq!(cloud.stats().await?.requests, 0);
    assert_eq!(embed(&client, json!(vec!["a"; 2048])).await?.json()?["data"].as_array().map(Vec::len), Some(2048));
    Ok(())
}

#[tokio::test]
async fn a_node_makes_vectors_of_what_the_cloud_may_not_see() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (folder, tiny) = tiny()?;
    let base = named(config(&cloud), 0, "tiny").set("/state_dir", json!(folder.path().join("s")));
    let (file, out) = (folder.path().join("issue.yaml"), folder.path().join("gpu"));
    std::fs::write(&file, base.render(folder.path()))?;
    let id = "spiffe://branch.test/node/gpu-1";
    let (file, shown) = (file.display().to_string(), out.display().to_string());
    let issued = postern_tests::postern::run(&["certs", "issue", "--config", &file, "--id", id, "--out", &shown])?;
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    let node = Node::of(&tiny, &out, &[]).await?;
    let openai = json!({"base_url": format!("https://{}/v1", node.address), "identity": id});
    let target = json!({
        "name": "gpu", "placement": "edge", "clearance": "confidential", "openai": openai, "models": {"embed": "tiny"},
    });
    let postern = Postern::start(&base.push("/targets", target)).await?;
    let reply = embed(&postern.client("officer/cy")?, json!(["w5 w6", "w7"])).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "gpu"), "{} {}", reply.text(), postern.log());
    assert_eq!((vector(&reply, 1)?.len(), cloud.stats().await?.requests), (32, 0));
    Ok(())
}

#[tokio::test]
async fn large_answers_that_nobody_reads_are_let_go_of_at_the_deadline() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = named(config(&cloud), 0, "busy-embed").set("/timeouts", json!({"total": "4s"}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    // As many as are held at a time, of about 10 MB.
    let mut unread = Vec::new();
    for n in 0..4 {
        let texts: Vec<String> = (0..1000).map(|text| format!("Text {text} of {n}")).collect();
        let body = json!({"model": "embed", "input": texts, "dimensions": 1024}).to_string();
        let request = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut raw = client.raw().await?;
        raw.send(request.as_bytes()).await?;
        let head = raw.read_until("\r\n\r\n", SOON).await?;
        let record = head.lines().find_map(|line| line.strip_prefix("postern-record: ")).unwrap_or_default().to_owned();
        unread.push((raw, record));
    }
    for (_, record) in &unread {
        let outcome = postern.records().of(record, SOON).await?.outcome;
        assert_eq!((&outcome["result"], &outcome["code"]), (&json!("broken"), &json!("deadline_exceeded")));
    }
    let texts: Vec<String> = (0..1000).map(|text| format!("Another text {text}")).collect();
    let body = json!({"model": "embed", "input": texts, "dimensions": 1024});
    let reply = client.post_json("/v1/embeddings", &body).await?;
    assert_eq!((reply.status, reply.json()?["data"].as_array().map(Vec::len)), (200, Some(1000)));
    let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
    assert_eq!(outcome["result"], "answered");
    // Who was cut sees that it was.
    for (mut raw, _) in unread {
        assert!(!raw.read_to_end(SOON).await?.ends_with("\r\n0\r\n\r\n"));
    }
    Ok(())
}
