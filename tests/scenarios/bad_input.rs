//! Bad input gets the right status and code, through the real port, and the gateway goes on serving.

use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

async fn still_serves(client: &Client, what: &str) -> Result<()> {
    assert_eq!(client.chat(&format!("Still there after {what}?")).await?.status, 200, "after {what}");
    Ok(())
}

#[tokio::test]
async fn each_fault_has_its_status_and_code() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // Only named models, so that others are unknown.
    let postern = Postern::start(&config(&cloud).set("/targets/0/models", json!({"chat": "chat"}))).await?;
    let client = postern.client("clerk/amy")?;
    let with = |field: &str, value: Value| {
        let mut body = chat_body("Hello");
        body[field] = value;
        body.to_string()
    };
    let nested = format!("{{\"model\":\"chat\",\"messages\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    let many = json!({"model": "chat", "messages": vec![json!({"role": "user", "content": "x"}); 10_000]}).to_string();
    let twice = r#"{"model":"chat","messages":[{"role":"user","content":"a","content":"b"}]}"#.to_owned();
    let cases = [
        ("malformed JSON", "{\"model\":".to_owned(), 400, "invalid_json"),
        ("nothing", String::new(), 400, "invalid_json"),
        ("two documents", format!("{0}{0}", chat_body("x")), 400, "invalid_json"),
        ("no object", "[]".to_owned(), 400, "invalid_type"),
        ("duplicate keys", twice, 400, "duplicate_key"),
        ("a number beyond a double", with("seed", json!(7)).replace(":7", ":1e400"), 400, "number_out_of_range"),
        (
            "a number beyond 64 bits",
            with("seed", json!(7)).replace(":7", ":12345678901234567890123"),
            400,
            "number_out_of_range",
        ),
        ("wrong types", with("messages", json!("hello")), 400, "invalid_type"),
        ("a wrong role", with("messages", json!([{"role": "boss", "content": "x"}])), 400, "invalid_type"),
        ("a model that is a number", with("model", json!(7)), 400, "invalid_type"),
        ("an unknown model", with("model", json!("gpt-99")), 404, "model_not_found"),
        ("empty messages", with("messages", json!([])), 400, "empty_array"),
        ("10,000 messages", many, 400, "array_above_max_length"),
        ("JSON nested 1,000 deep", nested, 400, "json_too_deep"),
        ("state of the provider", with("previous_response_id", json!("r")), 400, "provider_state_refused"),
        ("a search of the provider", with("enable_search", json!(true)), 400, "provider_state_refused"),
        ("a stored prompt", with("prompt", json!({"id": "p"})), 400, "provider_state_refused"),
    ];
    for (what, body, status, code) in cases {
        let reply = client.post_bytes("/v1/chat/completions", body.into()).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{what}: {}", reply.text());
        let error = reply.json()?;
        assert_eq!(error["error"]["type"], "invalid_request_error", "{what}");
        assert!(error["error"].as_object().unwrap().contains_key("param"), "{what}");
        let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
        assert_eq!((&outcome["result"], &outcome["code"]), (&json!("refused"), &json!(code)), "{what}");
    }
    still_serves(&client, "bad bodies").await?;
    assert_eq!(cloud.stats().await?.requests, 1, "nothing of it left");
    Ok(())
}

#[tokio::test]
async fn paths_methods_and_media_types_are_checked() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let reply = client.post_json("/v1/responses", &json!({})).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (404, "unknown_endpoint"));
    assert_eq!(client.get("/v1/chat/completions").await?.status, 405);
    let send = async |media_type: &str| -> Result<_> {
        let body = bytes::Bytes::from(chat_body("Hi").to_string());
        let mut request = client.request(http::Method::POST, "/v1/chat/completions", body)?;
        request.headers_mut().insert("content-type", media_type.parse()?);
        client.send(request).await
    };
    let reply = send("text/plain").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (415, "unsupported_media_type"));
    assert_eq!(send("message/ohttp-req").await?.error_code(), "unsupported_media_type");
    assert_eq!(send("application/json; charset=utf-8").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn bodies_at_a_time_have_a_bound_and_nobody_holds_all_of_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limits = json!({"body": "64KiB", "bodies": "256KiB", "receive": "5s"});
    let postern = Postern::start(&config(&cloud).set("/limits", limits)).await?;
    let client = postern.client("clerk/amy")?;
    let mut slow = client.raw().await?;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    slow.send(format!("{head}content-length: 60000\r\n\r\n{}", " ".repeat(59_000)).as_bytes()).await?;
    let large = chat_body(&"x".repeat(30_000)).to_string();
    let deadline = Instant::now() + SOON;
    loop {
        let reply = client.post_bytes("/v1/chat/completions", large.clone().into()).await?;
        if reply.status == 503 {
            assert_eq!(reply.error_code(), "gateway_busy");
            break;
        }
        assert!(Instant::now() < deadline, "the slow body is not counted");
    }
    // Another identity has its own share, and everything is given back.
    let other = postern.client("officer/bea")?.with_header("postern-label", "confidential");
    assert_ne!(other.post_bytes("/v1/chat/completions", large.clone().into()).await?.status, 503);
    drop(slow);
    while client.post_bytes("/v1/chat/completions", large.clone().into()).await?.status != 200 {
        assert!(Instant::now() < deadline, "what the slow body held was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_short_body_of_many_values_counts_for_the_memory_that_it_takes() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limits = json!({"body": "1MiB", "bodies": "8MiB"});
    let postern = Postern::start(&config(&cloud).set("/limits", limits)).await?;
    let client = postern.client("clerk/amy")?;
    let mut body = chat_body("Hold this");
    body["metadata"] = json!({"values": vec!["v"; 20_000]});
    // Eighty thousand bytes of it are two thirds of what one identity may hold.
    cloud.switch(json!({"hang_before_headers": true})).await?;
    let held = tokio::spawn({
        let (client, body) = (client.clone(), body.clone());
        async move { client.post_json("/v1/chat/completions", &body).await }
    });
    cloud.stats_when(SOON, |stats| stats.open == 1).await?;
    let second = tokio::time::timeout(SOON, client.post_json("/v1/chat/completions", &body)).await??;
    assert_eq!((second.status, second.error_code().as_str()), (503, "gateway_busy"));
    held.abort();
    cloud.switch(json!({})).await?;
    let deadline = Instant::now() + SOON;
    while client.post_json("/v1/chat/completions", &body).await?.status != 200 {
        assert!(Instant::now() < deadline, "what it held was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_50_mb_body_is_refused_before_it_is_read() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    // Announced: refused at once, on either version of HTTP.
    let mut raw = client.raw().await?;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    raw.send(format!("{head}content-length: 50000000\r\n\r\n{{").as_bytes()).await?;
    let answer = raw.read_until("request_too_large", SOON).await?;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let refused = client.http2().post_bytes("/v1/chat/completions", vec![b'x'; 50_000_000].into()).await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (413, "request_too_large"));
    // Not announced: refused when the bound is reached.
    let mut raw = client.raw().await?;
    raw.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    for _ in 0..50 {
        if raw.send(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let answer = raw.read_to_end(SOON).await.unwrap_or_default();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    still_serves(&client, "50 MB").await?;
    let big = json!({"model": "chat", "messages": [{"role": "user", "content": "word ".repeat(600_000)}]});
    assert_eq!(client.post_json("/v1/chat/completions", &big).await?.status, 200, "3 MB are fine");
    Ok(())
}

#[tokio::test]
async fn a_slow_sender_is_given_up_and_nobody_else_notices() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/limits/receive", json!("1s"))).await?;
    let client = postern.client("clerk/amy")?;
    let mut slow_body = client.raw().await?;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n";
    slow_body.send(head.as_bytes()).await?;
    slow_body.send(b"{\"model\":").await?;
    let mut slow_head = client.raw().await?;
    slow_head.send(b"POST /v1/chat").await?;
    still_serves(&client, "slow senders").await?;
    let answer = slow_body.read_until("request_timeout", SOON).await?;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    slow_head.read_to_end(SOON).await?;
    Ok(())
}

/// The promise; and how often it is measured, since a machine that is busy with something else may be late once.
const CANCELLED_WITHIN: Duration = Duration::from_millis(100);
const TRIES: usize = 5;

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_upstream_within_100_ms_and_is_recorded() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    for (client, name) in [(client.clone(), "HTTP/1.1"), (client.http2(), "HTTP/2")] {
        let (mut in_stream, mut before_token) = (Duration::MAX, Duration::MAX);
        for n in 0..TRIES {
            in_stream = in_stream.min(gone_in_the_middle(&cloud, &postern, &client, n).await?);
            before_token = before_token.min(gone_before_the_first_token(&cloud, &postern, &client, n).await?);
            if in_stream.max(before_token) < CANCELLED_WITHIN {
                break;
            }
        }
        assert!(in_stream < CANCELLED_WITHIN, "{name}, in the middle of a stream: {in_stream:?}");
        assert!(before_token < CANCELLED_WITHIN, "{name}, before the first token: {before_token:?}");
    }
    cloud.switch(json!({})).await?;
    still_serves(&client, "clients that went away").await
}

/// How long after the client the upstream notices.
async fn gone_in_the_middle(cloud: &BusyCloud, postern: &Postern, client: &Client, n: usize) -> Result<Duration> {
    cloud.reset().await?;
    cloud.switch(json!({"token_ms": 20})).await?;
    let mut events = client.stream(&chat_body(&format!("{n}: {}", "Talk for a long time. ".repeat(60)))).await?;
    let record = events.header("postern-record").to_owned();
    while events.next().await?.unwrap().delta().is_empty() {}
    drop(events);
    let gone = Instant::now();
    cloud.stats_when(SOON, |stats| stats.cancelled == 1).await?;
    let after = gone.elapsed();
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["target"]), (&json!("client_gone"), &json!("sun")));
    Ok(after)
}

async fn gone_before_the_first_token(
    cloud: &BusyCloud,
    postern: &Postern,
    client: &Client,
    n: usize,
) -> Result<Duration> {
    cloud.reset().await?;
    cloud.switch(json!({"hang_before_headers": true})).await?;
    let abandoned = |all: &[postern_tests::Record]| {
        all.iter().filter(|one| one.outcome["attempts"][0]["result"] == "abandoned").count()
    };
    let before = abandoned(&postern.records().all()?);
    let waiting = tokio::spawn({
        let (client, body) = (client.clone(), chat_body(&format!("{n}: never answered")));
        async move { client.stream(&body).await.map(drop) }
    });
    cloud.stats_when(SOON, |stats| stats.open == 1).await?;
    waiting.abort();
    let _aborted = waiting.await;
    let gone = Instant::now();
    cloud.stats_when(SOON, |stats| stats.cancelled == 1 && stats.open == 0).await?;
    let after = gone.elapsed();
    postern.records().when(SOON, |all| (abandoned(all) > before).then_some(())).await?;
    Ok(after)
}
