//! The way of a request: placement, headers, records.

use anyhow::Result;
use postern_tests::{BusyCloud, Postern, chat_body};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{SOON, config};

#[tokio::test]
async fn a_general_prompt_is_answered_in_the_cloud_and_recorded_twice() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let reply = postern.client("clerk/amy")?.chat("What is a postern?").await?;
    assert_eq!((reply.status, reply.answer().contains("What is a postern?")), (200, true), "{}", reply.text());
    let headers = ["postern-placement", "postern-target", "postern-label", "postern-cache", "postern-reason"];
    assert_eq!(headers.map(|name| reply.header(name)), ["cloud", "sun", "public", "miss", "default"]);
    assert_eq!(reply.header("x-request-id"), reply.header("postern-record"));
    assert!(reply.header("server-timing").starts_with("ttft;dur="));
    assert_eq!(reply.json()?["model"], "chat");

    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!(record.intent["identity"], "spiffe://branch.test/clerk/amy");
    assert_eq!((&record.intent["tenant"], &record.intent["form"]), (&json!("clerks"), &json!("plain")));
    assert_eq!((&record.outcome["result"], &record.outcome["target"]), (&json!("answered"), &json!("sun")));
    assert!(record.outcome["completion_tokens"].as_u64() > Some(0));
    assert!(!postern.records().text()?.contains("What is a postern?"));
    Ok(())
}

#[tokio::test]
async fn what_leaves_is_serialised_anew_with_a_key_and_no_header_of_the_client() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud).set("/targets/0/models", json!({"chat": "theirs"}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?.with_header("x-office", "secret-room").with_header("cookie", "a=b");
    let body = json!({"model": "chat", "seed": 9_007_199_254_740_993_i64, "new_field": {"x": [1]}, "messages": [{"role": "user", "content": "Hi"}]});
    let text = format!(" {} ", body.to_string().replace(':', " : "));
    assert_eq!(client.post_bytes("/v1/chat/completions", text.into()).await?.status, 200);
    let stats = serde_json::to_value(cloud.stats().await?)?;
    let (sent, headers) = (&stats["bodies"][0], &stats["headers"][0]);
    assert_eq!(
        (&sent["model"], &sent["seed"], &sent["new_field"]),
        (&json!("theirs"), &json!(9_007_199_254_740_993_i64), &json!({"x": [1]}))
    );
    let headers = headers.to_string();
    assert!(
        headers.contains("authorization") && !headers.contains("secret-room") && !headers.contains("cookie"),
        "{headers}"
    );
    Ok(())
}

#[tokio::test]
async fn a_cloud_that_answers_503_is_passed_over() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal")).await?;
    cloud.switch(json!({"unavailable_share": 1.0})).await?;
    let reply = postern.client("clerk/amy")?.chat("Anybody there?").await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "moon"));
    let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
    assert_eq!((&outcome["attempts"][0]["result"], &outcome["attempts"][1]["result"]), (&json!("busy"), &json!("ok")));
    assert_eq!(postern.metrics().await?.sum("postern_fallbacks_total", &[("from", "sun"), ("to", "moon")]), 1.0);
    Ok(())
}

#[tokio::test]
async fn a_stream_arrives_as_it_is_made_and_ends_with_done() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 30})).await?;
    let postern = Postern::start(&config(&cloud)).await?;
    for (client, word) in [(postern.client("clerk/amy")?, "ten"), (postern.client("clerk/amy")?.http2(), "twenty")] {
        let mut events = client.stream(&chat_body(&format!("Count to {word}, slowly please"))).await?;
        assert_eq!((events.status, events.header("content-type")), (200, "text/event-stream; charset=utf-8"));
        let events = events.rest().await?;
        let texts: Vec<_> = events.iter().filter(|event| !event.delta().is_empty()).collect();
        assert!(texts.len() > 5 && texts.last().unwrap().at - texts[0].at > std::time::Duration::from_millis(100));
        assert!(events.last().unwrap().is_done());
        assert!(events.iter().all(|event| event.json().get("usage").is_none()), "usage was not asked for");
        let last = events.iter().rev().nth(1).unwrap().json();
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
    }
    let body = json!({
        "model": "chat", "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": "How much?"}],
    });
    let events = postern.client("clerk/amy")?.stream(&body).await?.rest().await?;
    let usage = events.iter().rev().nth(1).unwrap().json();
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64() > Some(0));
    Ok(())
}

#[tokio::test]
async fn models_are_listed() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/targets/0/models", json!({"chat": "a", "draft": "b"}))).await?;
    let client = postern.client("clerk/amy")?;
    let list = client.get("/v1/models").await?.json()?;
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(names, [json!("chat"), json!("draft")]);
    assert_eq!(client.get("/v1/models/draft").await?.json()?["object"], "model");
    assert_eq!(client.get("/v1/models/other").await?.error_code(), "model_not_found");
    Ok(())
}

#[tokio::test]
async fn an_identity_has_its_limits() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limits = |limits: Value| json!({"match": "spiffe://branch.test/clerk/*", "limits": limits});
    let config = config(&cloud).push("/identities", limits(json!({"requests_per_minute": 3})));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    for n in 0..3 {
        assert_eq!(client.chat(&format!("Question {n}")).await?.status, 200);
    }
    let refused = client.chat("One more").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limit_exceeded"));
    assert!(refused.header("retry-after").parse::<u64>()? >= 1);
    assert_eq!(postern.client("clerk/bo")?.chat("My first").await?.status, 200);
    assert_eq!(cloud.stats().await?.requests, 4);
    Ok(())
}

#[tokio::test]
async fn health_metrics_and_status_are_on_the_admin_address() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/probe", json!("127.0.0.1:0"))).await?;
    assert_eq!(postern.admin("/livez").await?.status, 200);
    assert_eq!(postern.admin("/readyz").await?.status, 200);
    assert!(postern.admin("/readyz?verbose").await?.text().contains("records: ok"));
    postern.client("clerk/amy")?.chat("Measure this").await?;
    let metrics = postern.metrics().await?;
    assert!(metrics.value("inference_latency", &[]).unwrap() > 0.0);
    assert_eq!(metrics.value("queue_depth", &[]), Some(0.0));
    let words = [("placement", "cloud"), ("target", "sun"), ("outcome", "answered")];
    assert_eq!(metrics.value("postern_requests_total", &words), Some(1.0));
    assert_eq!(postern.admin("/api/status").await?.json()?["records_healthy"], true);
    let probe = postern.probe.unwrap();
    let get =
        async |path: &str| postern_tests::client::plain(http::Method::GET, &format!("http://{probe}{path}"), "").await;
    assert_eq!((get("/metrics").await?.status, get("/api/status").await?.status), (200, 404));
    assert!(
        postern.admin("/").await?.text().contains("/api/status") && !get("/").await?.text().contains("/api/status")
    );
    // A page in an operator's browser must not reach it under another name.
    for (hosts, status) in [
        (&["localhost"][..], "200"),
        (&["evil.example"], "421"),
        (&["]127.0.0.1["], "421"),
        (&["127.0.0.1", "evil.example"], "421"),
        (&[], "421"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(postern.admin).await?;
        let hosts: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
        let head = format!("GET /livez HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{hosts}: {answer}");
    }
    Ok(())
}
