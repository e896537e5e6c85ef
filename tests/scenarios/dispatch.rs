//! Whom a request is sent to, when again, and who goes on with an answer: through the real port, with clouds that misbehave.

mod beginnings;

use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Client, Event, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

/// Targets of a record's outcome, and how each ended.
fn attempts(outcome: &Value) -> Vec<(String, String)> {
    let attempts = outcome["attempts"].as_array().unwrap();
    attempts
        .iter()
        .map(|one| [&one["target"], &one["result"]].map(|word| word.as_str().unwrap().to_owned()).into())
        .collect()
}

fn pair(target: &str, result: &str) -> (String, String) {
    (target.to_owned(), result.to_owned())
}

/// Lets it answer once, so that its failures are not in a row, and switches it again.
pub(crate) async fn well_in_between(cloud: &BusyCloud, client: &Client, switches: Value) -> Result<()> {
    cloud.switch(json!({})).await?;
    let events =
        client.stream(&chat_body(&format!("Is all well again at {:?}?", Instant::now()))).await?.rest().await?;
    assert!(events.last().unwrap().is_done(), "{events:?}");
    cloud.switch(switches).await
}

#[tokio::test]
async fn an_answer_that_dies_is_gone_on_with_from_what_was_sent() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let config = config(&cloud).cloud("moon", &other, "internal").set("/targets/1/openai/continues", json!("message"));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    // The placeholder of the address is in pieces of three characters, and the cut comes in the middle of it.
    let prompt = "Write to ann.smith@example.org about the harbour, please, and soon";
    for die_after in [5, 6, 7, 8, 9, 10, 14] {
        well_in_between(&cloud, &client, json!({"die_after_chunks": die_after})).await?;
        let body = chat_body(&format!("{prompt} ({die_after})"));
        let mut events = client.stream(&body).await?;
        assert_eq!(events.header("postern-target"), "sun");
        let record = events.header("postern-record").to_owned();
        let events = events.rest().await?;
        assert_eq!(text(&events), format!("You asked: {prompt} ({die_after})"), "{die_after}: {events:?}");
        assert!(events.last().unwrap().is_done());
        let ids: std::collections::BTreeSet<_> = events
            .iter()
            .filter(|event| !event.is_done())
            .map(|event| event.json()["id"].clone().to_string())
            .collect();
        assert_eq!(ids.len(), 1, "one answer to the client");
        assert_eq!(
            events
                .iter()
                .filter(|event| !event.is_done() && !event.json()["choices"][0]["delta"]["role"].is_null())
                .count(),
            1
        );
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!(
            (&outcome["result"], &outcome["target"], &outcome["continued"]),
            (&json!("answered"), &json!("moon"), &json!(1))
        );
        assert_eq!(attempts(&outcome), [pair("sun", "died"), pair("moon", "ok")]);
        let sent = other.stats().await?.bodies.back().unwrap().clone();
        assert!(!sent.to_string().contains("ann.smith"), "masked, also what was answered already: {sent}");
        assert_eq!(sent["messages"].as_array().unwrap().last().unwrap()["role"], "assistant");
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_gone_on_with_ends_with_an_error_and_never_with_done() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let confidential = |config: postern_tests::Config| {
        config.cloud("moon", &other, "public").set("/targets/1/openai/continues", json!("message"))
    };
    let postern = Postern::start(&confidential(config(&cloud))).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"die_after_chunks": 5})).await?;
    let broken = |events: Vec<Event>, what: &str| {
        assert_eq!(events.last().unwrap().error_code(), "stream_broken", "{what}");
        assert!(!events.iter().any(Event::is_done), "{what}");
    };
    for more in [json!({"n": 2}), json!({"logprobs": true}), json!({"response_format": {"type": "json_object"}})] {
        let mut body = chat_body(&format!("Say something long about {more}"));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut stream = client.stream(&body).await?;
        let record = stream.header("postern-record").to_owned();
        broken(stream.rest().await?, &more.to_string());
        assert_eq!(postern.records().of(&record, SOON).await?.outcome["not_continued"], "unsuitable");
        well_in_between(&cloud, &client, json!({"die_after_chunks": 5})).await?;
    }
    // The label holds through it: `moon` may see nothing that is internal.
    let labelled = client.with_header("postern-label", "internal");
    broken(labelled.stream(&chat_body("Something internal and long")).await?.rest().await?, "label");
    well_in_between(&cloud, &client, json!({"die_after_chunks": 5})).await?;
    assert_eq!(other.stats().await?.requests, 0);
    // Public is gone on with.
    let events = client.stream(&chat_body("Something public and long")).await?.rest().await?;
    assert!(events.last().unwrap().is_done() && text(&events).ends_with("public and long"), "{events:?}");
    // And if the other one dies as well, that is said.
    other.switch(json!({"unavailable_share": 1.0})).await?;
    broken(client.stream(&chat_body("Something else that is long")).await?.rest().await?, "both");
    Ok(())
}

#[tokio::test]
async fn headers_of_a_slow_stream_go_out_in_time_and_comments_follow() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let timeouts = json!({"headers": "300ms", "first_token": "20s"});
    let postern = Postern::start(&config(&cloud).set("/timeouts", timeouts)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"latency_ms": 1500})).await?;
    let mut raw = client.raw().await?;
    let body = json!({"model": "chat", "stream": true, "messages": [{"role": "user", "content": "Slowly, please"}]})
        .to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    raw.send(request.as_bytes()).await?;
    let head = raw.read_until(": keep-alive", SOON).await?;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("postern-placement: cloud"), "{head}");
    assert!(head.contains("postern-record:") && head.contains("postern-label: public"), "{head}");
    let rest = raw.read_to_end(SOON).await?;
    assert!(rest.contains("keep-alive") && rest.contains("[DONE]"), "{rest}");
    // Whoever goes away meanwhile cancels it.
    cloud.switch(json!({"hang_before_headers": true})).await?;
    let events = client.stream(&chat_body("Never")).await?;
    assert_eq!(events.status, 200);
    drop(events);
    cloud.stats_when(SOON, |stats| stats.cancelled == 1 && stats.open == 0).await?;
    // What goes wrong after the headers is an event, and there is no end.
    let timeouts = json!({"headers": "300ms", "first_token": "3s"});
    let postern = Postern::start(&config(&cloud).set("/timeouts", timeouts)).await?;
    let mut events = postern.client("clerk/amy")?.stream(&chat_body("Never again")).await?;
    let record = events.header("postern-record").to_owned();
    assert_eq!(events.status, 200);
    let events = events.rest().await?;
    assert_eq!(events.last().unwrap().error_code(), "deadline_exceeded");
    assert!(!events.iter().any(Event::is_done));
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["status"], &outcome["result"]), (&json!(200), &json!("broken")), "what the client read");
    Ok(())
}

#[tokio::test]
async fn a_busy_cloud_is_asked_again_and_a_request_is_answered_once() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    cloud.switch(json!({"unavailable_share": 0.5})).await?;
    let client = postern.client("clerk/amy")?;
    for n in 0..6 {
        let reply = client.chat(&format!("Question number {n}")).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let asked = cloud.stats().await?.requests;
    assert!((11..=12).contains(&asked), "each was busy once: {asked}");
    assert!(postern.metrics().await?.sum("postern_retries_total", &[("target", "sun")]) >= 5.0);
    Ok(())
}

#[tokio::test]
async fn a_cloud_that_wants_less_is_left_alone_for_as_long_as_it_says() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal")).await?;
    cloud.switch(json!({"requests_per_minute": 2})).await?;
    let client = postern.client("clerk/amy")?.pooled()?;
    for n in 0..10 {
        assert_eq!(client.chat(&format!("Question number {n}")).await?.status, 200);
    }
    // It said 429 once, with a time, and was not asked meanwhile.
    assert_eq!((cloud.stats().await?.requests, other.stats().await?.requests), (3, 8));
    let status: Value = serde_json::from_str(&postern.admin("/api/status").await?.text())?;
    assert_eq!((&status["targets"][0]["available"], &status["targets"][1]["available"]), (&json!(false), &json!(true)));
    Ok(())
}

#[tokio::test]
async fn a_limit_that_leaves_no_room_in_time_is_told_at_once() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud)
        .set("/targets/0/limits", json!({"requests_per_minute": 3}))
        .set("/timeouts", json!({"queue": "20s"}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    for n in 0..3 {
        assert_eq!(client.chat(&format!("Question number {n}")).await?.status, 200);
    }
    let reply = client.chat("One too many").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"));
    assert!(reply.error_message().contains("limit"), "{}", reply.text());
    assert!(reply.header("retry-after").parse::<u64>()? >= 3);
    assert_eq!(cloud.stats().await?.requests, 3);
    Ok(())
}

#[tokio::test]
async fn a_dead_target_is_spared_and_comes_back() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let timeouts = json!({"first_token": "2s", "idle": "1s"});
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal").set("/timeouts", timeouts)).await?;
    let client = postern.client("clerk/amy")?.pooled()?;
    cloud.switch(json!({"hang_before_headers": true})).await?;
    for n in 0..12 {
        let reply = client.chat(&format!("Question number {n}")).await?;
        assert_eq!((reply.status, reply.header("postern-target")), (200, "moon"));
    }
    let asked = cloud.stats().await?.requests;
    assert!((3..=5).contains(&asked), "three failures, and the trials since: {asked}");
    let breaker = postern.metrics().await?.value("postern_target_breaker", &[("target", "sun")]);
    assert!(breaker.is_some_and(|state| state > 0.0), "{breaker:?}");
    let status: Value = serde_json::from_str(&postern.admin("/api/status").await?.text())?;
    assert!(status.to_string().contains("rests_ms"), "{status}");
    postern.logged("fails again and again").await?;
    cloud.switch(json!({})).await?;
    let back = async {
        loop {
            let reply = client.chat(&format!("Is it back at {:?}?", Instant::now())).await?;
            if reply.header("postern-target") == "sun" {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON * 2, back).await??;
    postern.logged("the target answers again").await
}

#[tokio::test]
async fn a_target_whose_answers_break_off_is_spared() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal")).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"die_after_chunks": 2})).await?;
    let mut broken = 0;
    for n in 0..12 {
        let mut stream = client.stream(&chat_body(&format!("Question number {n}, which is long"))).await?;
        let record = stream.header("postern-record").to_owned();
        if !stream.rest().await?.last().unwrap().is_done() {
            broken += 1;
            let outcome = postern.records().of(&record, SOON).await?.outcome;
            assert_eq!(outcome["not_continued"], "no_target_continues");
        }
    }
    let status: Value = serde_json::from_str(&postern.admin("/api/status").await?.text())?;
    let target = &status["targets"][0];
    assert!(target["breaker"] != "closed" && target["identities_kept_out"] == 1, "{status}");
    // That they begin well does not count.
    assert!((3..=7).contains(&broken), "three, and the trials since: {broken}");
    Ok(())
}

#[tokio::test]
async fn requests_that_fail_take_a_target_from_those_alone_who_send_them() -> Result<()> {
    let (cloud, other) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let postern = Postern::start(&config(&cloud).cloud("moon", &other, "internal")).await?;
    let (amy, eve) = (postern.client("clerk/amy")?.pooled()?, postern.client("clerk/eve")?.pooled()?);
    for n in 0..40 {
        // What she asks for, it cannot do.
        cloud.switch(json!({"error_text": "no"})).await?;
        assert_eq!(eve.chat(&format!("Question number {n}")).await?.header("postern-target"), "moon");
    }
    let asked = cloud.stats().await?.requests;
    assert!((10..20).contains(&asked), "it is spared: {asked}");
    cloud.switch(json!({})).await?;
    assert_eq!(amy.chat("Is it there for me?").await?.header("postern-target"), "sun");
    Ok(())
}

#[tokio::test]
async fn nodes_share_the_requests_by_what_their_pages_say() -> Result<()> {
    let (cloud, one, two) = (BusyCloud::start().await?, BusyCloud::start().await?, BusyCloud::start().await?);
    let health = json!({"metrics": "/metrics", "every": "500ms"});
    let config = config(&cloud)
        .edge("oak", &one, "confidential")
        .edge("elm", &two, "confidential")
        .set("/targets/1/health", health.clone())
        .set("/targets/2/health", health)
        .set("/routing/balance", json!("least-queue"))
        .set("/cache", json!(null));
    one.switch(json!({"metrics": "vllm:num_requests_waiting{model_name=\"m\"} 9\n"})).await?;
    two.switch(json!({"metrics": "# TYPE queue_depth gauge\nqueue_depth 1\n"})).await?;
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-placement", "edge-first").pooled()?;
    let queue = |status: &Value, at: usize| status["targets"][at]["queue"].as_f64();
    let seen = async {
        loop {
            let status: Value = serde_json::from_str(&postern.admin("/api/status").await?.text())?;
            if (queue(&status, 1), queue(&status, 2)) == (Some(9.0), Some(1.0)) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, seen).await??;
    for n in 0..6 {
        assert_eq!(client.chat(&format!("Question number {n}")).await?.header("postern-target"), "elm");
    }
    Ok(())
}

#[tokio::test]
async fn more_streams_than_one_connection_takes_all_begin() -> Result<()> {
    const STREAMS: u64 = 240;
    // It takes 200 on a connection, as hyper's servers do.
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/cache", json!(null))).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"hang_after_chunks": 5})).await?;
    let mut open = Vec::new();
    for n in 0..STREAMS {
        let mut stream = client.stream(&chat_body(&format!("Stream number {n}"))).await?;
        assert_eq!(stream.status, 200);
        assert!(stream.next().await?.is_some(), "stream number {n}");
        open.push(stream);
    }
    cloud.stats_when(SOON, |stats| stats.open == STREAMS).await?;
    drop(open);
    cloud.stats_when(SOON, |stats| stats.cancelled == STREAMS && stats.open == 0).await?;
    Ok(())
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody_else() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let timeouts = json!({"first_token": "5s", "idle": "5s"});
    let postern = Postern::start(&config(&cloud).set("/cache", json!(null)).set("/timeouts", timeouts)).await?;
    let client = postern.client("clerk/amy")?;
    // Over one connection, and each more than all buffers on the way hold.
    cloud.switch(json!({"answer": "word ".repeat(20_000), "chunk_chars": 1})).await?;
    let mut unread = Vec::new();
    for n in 0..6 {
        unread.push(client.stream(&chat_body(&format!("Stream number {n}"))).await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    cloud.switch(json!({})).await?;
    let events = client.stream(&chat_body("And me?")).await?.rest().await?;
    assert!(events.last().unwrap().is_done() && text(&events).ends_with("And me?"), "{events:?}");
    assert_eq!(cloud.stats().await?.open, 6);
    assert_eq!(client.chat("And me, at once?").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_target_that_gives_up_on_those_who_do_not_read_is_not_to_blame() -> Result<()> {
    let mut cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/cache", json!(null))).await?;
    let client = postern.client("clerk/amy")?;
    // More than all buffers on the way hold.
    cloud.switch(json!({"answer": "word ".repeat(20_000), "chunk_chars": 1})).await?;
    let mut unread = Vec::new();
    for n in 0..3 {
        unread.push(client.stream(&chat_body(&format!("Stream number {n}"))).await?);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    cloud.dies_for(Duration::ZERO, &json!({})).await?;
    for mut stream in unread {
        assert_eq!(stream.rest().await?.last().unwrap().error_code(), "stream_broken");
    }
    let status: Value = serde_json::from_str(&postern.admin("/api/status").await?.text())?;
    assert_eq!(status["targets"][0]["breaker"], "closed", "three answers broke off");
    Ok(())
}

#[tokio::test]
async fn comments_keep_a_stream_open_while_somebody_is_sought_who_goes_on() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud)
        .set("/targets/0/openai/continues", json!("message"))
        .set("/targets/0/limits", json!({"tokens_per_minute": 600}))
        .set("/timeouts", json!({"headers": "300ms", "queue": "2s"}));
    let postern = Postern::start(&config).await?;
    cloud.switch(json!({"die_after_chunks": 5})).await?;
    // An answer may have 512 tokens, so there is no room for two, and what the first one used it has not said.
    let events = postern.client("clerk/amy")?.stream(&chat_body("Tell me of the sea")).await?.rest().await?;
    let comments = events.iter().filter(|event| !event.comments.is_empty()).count();
    assert!((4..=7).contains(&comments), "one each 300 ms for 2 s: {events:?}");
    assert_eq!(events.last().unwrap().error_code(), "stream_broken");
    Ok(())
}
