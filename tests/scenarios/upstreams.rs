//! Upstreams that die, hang, lie or talk too much: a clean error, another target, and nothing of theirs for the client.

use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Postern, chat_body};
use serde_json::json;

use crate::dispatch::well_in_between;
use crate::{SOON, config};

#[tokio::test]
async fn a_stream_that_dies_ends_with_an_error_and_never_with_done() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    for switches in [json!({"die_after_chunks": 5}), json!({"malformed": "sse"}), json!({"malformed": "json"})] {
        cloud.switch(switches.clone()).await?;
        let mut events = client.stream(&chat_body(&format!("Tell me about {switches}"))).await?;
        if events.status != 200 {
            assert_eq!(events.whole().await?.error_code(), "upstream_unavailable", "{switches}");
            continue;
        }
        let record = events.header("postern-record").to_owned();
        let events = events.rest().await?;
        assert_eq!(events.last().unwrap().error_code(), "stream_broken", "{switches}: {events:?}");
        assert!(!events.iter().any(postern_tests::Event::is_done), "{switches}");
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!(outcome["result"], "broken", "{switches}");
    }
    Ok(())
}

#[tokio::test]
async fn malformed_answers_go_on_to_the_next_target() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal")).await?;
    let client = postern.client("clerk/amy")?;
    let wrong = [
        (json!({"malformed": "json"}), "malformed"),
        (json!({"malformed": "status"}), "status"),
        (json!({"malformed": "content_type"}), "malformed"),
        (json!({"malformed": "huge"}), "malformed"),
        (json!({"redirect": "https://evil.example/"}), "status"),
        (json!({"error_text": "Traceback: key sk-123 refused"}), "status"),
        (json!({"die_after_chunks": 2}), "died"),
        (json!({"first_choice": 1}), "malformed"),
    ];
    for (switches, result) in wrong {
        cloud.switch(switches.clone()).await?;
        let reply = client.chat(&format!("Answer me about {switches}")).await?;
        assert_eq!((reply.status, reply.header("postern-target")), (200, "moon"), "{switches}: {}", reply.text());
        let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
        assert_eq!(outcome["attempts"][0]["result"], result, "{switches}: {outcome}");
    }
    cloud.switch(json!({"malformed": "preamble"})).await?;
    let streamed = client.stream(&chat_body("A stream that does not come to the point")).await?;
    assert_eq!(streamed.header("postern-target"), "moon");
    // The same in a stream, as long as nothing was shown.
    cloud.switch(json!({"first_choice": 1})).await?;
    let mut events = client.stream(&chat_body("Whose choice is it?")).await?;
    assert_eq!((events.status, events.header("postern-target")), (200, "moon"));
    assert!(events.rest().await?.last().unwrap().is_done());
    // Nobody left: an error of ours, and no word of theirs.
    other.switch(json!({"unavailable_share": 1.0})).await?;
    cloud.switch(json!({"error_text": "Traceback: key sk-123 refused", "set_cookie": true})).await?;
    let reply = client.chat("Anybody?").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"));
    assert!(reply.header("retry-after").parse::<u64>()? > 0);
    assert!(!reply.text().contains("Traceback") && !postern.log().contains("sk-123"));
    Ok(())
}

#[tokio::test]
async fn headers_of_an_upstream_never_reach_a_client() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    cloud.switch(json!({"set_cookie": true})).await?;
    let reply = postern.client("clerk/amy")?.chat("Hello").await?;
    assert_eq!((reply.status, reply.header("postern-label")), (200, "public"));
    for name in ["set-cookie", "alt-svc", "x-upstream", "location"] {
        assert!(!reply.headers.contains_key(name), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_target_that_cannot_be_reached_is_named_in_the_log_with_the_reason() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let openai = json!({"base_url": "https://127.0.0.1:1/v1"});
    let gone = json!({"name": "gone", "placement": "edge", "clearance": "internal", "openai": openai});
    // A certificate of nobody we know: what a node shows whose `identity` was forgotten.
    let stranger = config(&cloud).set("/targets/0/openai/ca", json!(null)).set("/targets/0/placement", json!("edge"));
    let postern = Postern::start(&stranger.push("/targets", gone)).await?;
    let client = postern.client("clerk/amy")?;
    let reply = client.post_json("/v1/chat/completions", &chat_body("Anybody?")).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"));
    let log = postern.log();
    for (target, why) in [("gone", "Connection refused"), ("sun", "UnknownIssuer")] {
        let said = log.lines().find(|line| line.contains("cannot be reached") && line.contains(target));
        assert!(said.is_some_and(|line| line.contains(why) && line.contains("openai.identity")), "{target}: {log}");
    }
    assert!(!log.contains("Anybody?"));
    Ok(())
}

#[tokio::test]
async fn a_hanging_cloud_is_left_at_the_deadline() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let timeouts = json!({"first_token": "400ms", "idle": "400ms", "total": "5s"});
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal").set("/timeouts", timeouts)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"hang_before_headers": true})).await?;
    let mut events = client.stream(&chat_body("Who answers?")).await?;
    assert_eq!(events.header("postern-target"), "moon");
    assert!(text(&events.rest().await?).contains("Who answers?"));
    cloud.stats_when(SOON, |stats| stats.cancelled == 1).await?;

    // In the middle: an error in the stream, after the idle time.
    cloud.switch(json!({"hang_after_chunks": 4})).await?;
    let started = Instant::now();
    let events = client.stream(&chat_body("Say a few words about harbours")).await?.rest().await?;
    assert_eq!(events.last().unwrap().error_code(), "stream_broken");
    assert!(started.elapsed() < Duration::from_secs(3));
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_not_streamed_ends_at_the_total_deadline() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/timeouts", json!({"total": "1s"}))).await?;
    cloud.switch(json!({"hang_before_headers": true})).await?;
    let reply = postern.client("clerk/amy")?.chat("Hello?").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (504, "deadline_exceeded"));
    cloud.stats_when(SOON, |stats| stats.cancelled == 1).await?;
    Ok(())
}

#[tokio::test]
async fn edge_first_asks_the_edge_and_races_the_cloud() -> Result<()> {
    let (cloud, node) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let config = config(&cloud)
        .edge("node", &node, "confidential")
        .set("/placements/edge-first", json!({"ttft": "300ms", "cost": 1.8}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-placement", "edge-first");
    let events = client.stream(&chat_body("Quick question")).await?;
    assert_eq!((events.header("postern-target"), events.header("postern-placement")), ("node", "edge-first"));
    drop(events);

    // No token by the goal: the cloud is asked as well, its token wins, and the node is cancelled.
    node.reset().await?;
    node.switch(json!({"hang_before_headers": true})).await?;
    let mut events = client.stream(&chat_body("Quicker question")).await?;
    assert_eq!(events.header("postern-target"), "sun");
    let record = events.header("postern-record").to_owned();
    assert!(events.rest().await?.last().unwrap().is_done());
    node.stats_when(SOON, |stats| stats.cancelled == 1 && stats.open == 0).await?;
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!(
        (&outcome["attempts"][0]["result"], &outcome["attempts"][1]["result"]),
        (&json!("lost_race"), &json!("ok"))
    );

    // Confidential: the cloud may not be asked, however slow the node is.
    node.switch(json!({"latency_ms": 800})).await?;
    let asked = cloud.stats().await?.requests;
    let events =
        client.with_header("postern-label", "confidential").stream(&chat_body("A confidential question")).await?;
    assert_eq!((events.header("postern-target"), cloud.stats().await?.requests), ("node", asked));
    Ok(())
}

#[tokio::test]
async fn a_limit_of_ours_towards_a_target_is_never_exceeded() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let config =
        config(&cloud).cloud("moon", &other, "internal").set("/targets/0/limits", json!({"requests_per_minute": 5}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?.pooled()?;
    for n in 0..12 {
        assert_eq!(client.chat(&format!("Question number {n}")).await?.status, 200);
    }
    assert_eq!((cloud.stats().await?.requests, other.stats().await?.requests), (5, 7));
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_at_the_total_deadline() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // More than all buffers between cloud and client hold, so that the stream stands still.
    cloud.switch(json!({"answer": "word ".repeat(30_000), "chunk_chars": 1})).await?;
    let postern =
        Postern::start(&config(&cloud).set("/timeouts", json!({"total": "5s"})).set("/cache", json!(null))).await?;
    let events = postern.client("clerk/amy")?.stream(&chat_body("Tell me everything")).await?;
    let record = events.header("postern-record").to_owned();
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["code"]), (&json!("broken"), &json!("deadline_exceeded")));
    cloud.stats_when(SOON, |stats| stats.open == 0).await?;
    let mut events = events;
    let read = events.rest().await;
    assert!(read.is_err() || !read?.iter().any(postern_tests::Event::is_done), "a cut must not look like an end");
    Ok(())
}

#[tokio::test]
async fn a_failure_is_none_the_less_one_where_it_is_hidden() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let config = config(&cloud).cloud("moon", &other, "internal").set("/targets/1/openai/continues", json!("message"));
    let postern = Postern::start(&config.set("/cache", json!(null))).await?;
    let client = postern.client("clerk/amy")?;
    let secret = json!({"message": "SECRET of theirs", "code": 502});
    let chunk = |choice: serde_json::Value| format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [choice]}));
    let endings = [
        "data: [DONE]\n\n".to_owned(),
        chunk(json!({"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": secret})),
        chunk(json!({"index": 0, "delta": {}, "finish_reason": "error"})),
        format!("error: {secret}\n\ndata: [DONE]\n\n"),
        "event: error\ndata: {\"choices\":[],\"message\":\"SECRET\"}\n\ndata: [DONE]\n\n".to_owned(),
        format!("data: {}\n\ndata: [DONE]\n\n", json!({"object": "error", "message": "SECRET", "choices": []})),
    ];
    // As far as the first one got, the other goes on.
    let said = "You asked: Say something of some length".to_owned();
    for ending in &endings {
        well_in_between(&cloud, &client, json!({"answer": "You asked: Say some", "ending": ending})).await?;
        let mut events = client.stream(&chat_body("Say something of some length")).await?;
        let record = events.header("postern-record").to_owned();
        let events = events.rest().await?;
        assert!(events.last().unwrap().is_done() && text(&events) == said, "{ending}: {events:?}");
        assert!(!format!("{events:?}").contains("SECRET"), "{ending}: {events:?}");
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!((&outcome["target"], &outcome["attempts"][0]["result"]), (&json!("moon"), &json!("died")));
    }
    // The same of a whole answer, which the next target gives.
    well_in_between(&cloud, &client, json!({"choice": {"error": secret}})).await?;
    let reply = client.chat("And at once?").await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "moon"), "{}", reply.text());
    // Where nobody can go on, that is said.
    other.switch(json!({"unavailable_share": 1.0})).await?;
    for ending in &endings {
        well_in_between(&cloud, &client, json!({"ending": ending})).await?;
        let events = client.stream(&chat_body("Say something else")).await?.rest().await?;
        assert_eq!(events.last().unwrap().error_code(), "stream_broken", "{ending}");
        assert!(!events.iter().any(postern_tests::Event::is_done) && !format!("{events:?}").contains("SECRET"));
    }
    Ok(())
}

#[tokio::test]
async fn what_the_api_does_not_know_is_not_passed_on() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"choice": {"native_finish_reason": "SECRET", "error": null}})).await?;
    let reply = client.chat("Hello").await?;
    assert_eq!(reply.status, 200);
    assert!(!reply.text().contains("SECRET") && reply.json()?["system_fingerprint"] == "fp_busy", "{}", reply.text());
    assert!(reply.json()?["usage"]["total_tokens"].is_u64());
    let events = client.stream(&chat_body("Hello again")).await?.rest().await?;
    assert!(events.last().unwrap().is_done() && !format!("{events:?}").contains("SECRET"), "{events:?}");
    Ok(())
}

#[tokio::test]
async fn comments_do_not_break_a_silence_after_the_first_token() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let timeouts = json!({"first_token": "5s", "idle": "1s"});
    let postern = Postern::start(&config(&cloud).set("/timeouts", timeouts)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"hang_after_chunks": 3, "comment_ms": 100})).await?;
    let started = Instant::now();
    let mut events = client.stream(&chat_body("Say a few words about harbours")).await?;
    let record = events.header("postern-record").to_owned();
    assert_eq!(events.rest().await?.last().unwrap().error_code(), "stream_broken");
    assert!(started.elapsed() < Duration::from_secs(10));
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!(outcome["attempts"][0]["result"], "idle_timeout");
    // Before it, a model may think for as long as its first token may take.
    cloud.switch(json!({"hang_after_chunks": 0, "comment_ms": 100})).await?;
    let reply = client.stream(&chat_body("Think about harbours")).await?.whole().await?;
    assert_eq!(reply.error_code(), "deadline_exceeded", "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn what_only_a_person_can_mend_at_a_target_is_in_the_log() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/targets/0/openai/api_key", json!(null))).await?;
    let client = postern.client("clerk/amy")?;
    for n in 0..3 {
        let reply = client.chat(&format!("Question number {n}")).await?;
        assert_eq!(
            (reply.status, reply.error_code().as_str()),
            (502, "upstream_refuses_us"),
            "coming again would not help"
        );
        assert!(!reply.headers.contains_key("retry-after"));
    }
    let log = postern.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("status 401") && line.contains("api_key")).collect();
    assert!(said.len() == 1 && said[0].contains("sun"), "once a minute: {log}");
    Ok(())
}
