//! What the engine does not take, or cannot finish: others do, as far as the label lets them, and the client reads why not.

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use postern_tests::{BusyCloud, Client, Config, Postern, Reply};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The engine first, and nobody races it: only what it does not take, or does not begin, comes to the cloud.
fn engine_first(cloud: &BusyCloud, engine: Value) -> Config {
    let patience = json!({"first_token": "8m", "idle": "8m", "total": "10m"});
    Config::new()
        .cloud("sun", cloud, "internal")
        .engine()
        .set("/engine/max_batch_size", engine["max_batch_size"].clone())
        .set("/engine/max_queue", engine["max_queue"].clone())
        .set("/placements/edge-first", json!({"ttft": "10m", "cost": 1.0}))
        .set("/timeouts", patience)
}

fn body(prompt: &str, max_tokens: usize) -> Value {
    json!({"model": "chat", "max_tokens": max_tokens, "temperature": 0, "messages": [{"role": "user", "content": prompt}]})
}

async fn ask(client: &Client, body: &Value) -> Result<Reply> {
    client.post_json("/v1/chat/completions", body).await
}

/// Waits until each of these metrics of the engine is at least so much.
async fn engine_has(postern: &Postern, wanted: &[(&str, f64)]) -> Result<()> {
    loop {
        let metrics = postern.metrics().await?;
        let has = |name: &str, least: f64| metrics.value(&format!("postern_engine_{name}"), &[]) >= Some(least);
        if wanted.iter().all(|(name, least)| has(name, *least)) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_the_engine_does_not_take_it_says_in_its_own_words_and_others_may() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&engine_first(&cloud, json!({"max_batch_size": 1, "max_queue": 1}))).await?;
    postern.engine_ready().await?;
    let clerk = postern.client("clerk/amy")?;
    let (local, first) =
        (clerk.with_header("postern-placement", "local"), clerk.with_header("postern-placement", "edge-first"));
    let words = |reply: &Reply| -> Result<Value> { Ok(reply.json()?["error"].clone()) };

    let mut unsupported = body("Hello", 4);
    unsupported["best_of"] = json!(2);
    let refused = ask(&local, &unsupported).await?;
    let error = words(&refused)?;
    assert_eq!(
        (refused.status, &error["code"], &error["param"]),
        (400, &json!("unsupported_parameter"), &json!("best_of"))
    );
    assert!(error["message"].as_str().is_some_and(|message| message.contains("`best_of`")), "{error}");
    assert_eq!(ask(&first, &unsupported).await?.header("postern-target"), "sun");

    let long = body(&"river stone paper ".repeat(4000), 4);
    let refused = ask(&local, &long).await?;
    let error = words(&refused)?;
    assert_eq!(
        (refused.status, &error["code"], &error["param"]),
        (400, &json!("context_length_exceeded"), &json!("messages"))
    );
    assert!(error["message"].as_str().is_some_and(|message| message.contains("8192 tokens")), "{error}");
    assert_eq!(ask(&first, &long).await?.header("postern-target"), "sun", "others may have more room");

    // One runs, one waits; whoever comes then reads how long it would take.
    let (running, waiting) = (local.stream(&body("Tell a story", 2000)).await?, local.clone());
    let waiting = tokio::spawn(async move { ask(&waiting, &body("Tell a story", 1)).await });
    engine_has(&postern, &[("running", 1.0), ("waiting", 1.0)]).await?;
    let officer = postern.client("officer/cy")?.with_header("postern-placement", "local");
    let refused = ask(&officer, &body("Hello", 1)).await?;
    let error = words(&refused)?;
    assert_eq!((refused.status, &error["code"]), (503, &json!("queue_full")), "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("would wait")), "{error}");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=60).contains(&seconds)));
    assert_eq!(ask(&first, &body("Hello", 1)).await?.header("postern-target"), "sun");
    drop(running);
    assert_eq!(waiting.await??.status, 200);
    // The cloud may take what the engine does not, once it is well again; what is wrong is wrong for it as well.
    cloud.switch(json!({"unavailable_share": 1.0})).await?;
    let later = ask(&clerk, &unsupported).await?;
    assert_eq!((later.status, later.error_code().as_str()), (503, "upstream_unavailable"));
    let mut wrong = body("Hello", 4);
    wrong["min_p"] = json!(9);
    let refused = ask(&clerk, &wrong).await?;
    let error = words(&refused)?;
    assert_eq!((refused.status, &error["code"], &error["param"]), (400, &json!("invalid_value"), &json!("min_p")));
    let records = postern.records().all()?;
    let said: Vec<_> = records.iter().map(|record| record.outcome["code"].clone()).collect();
    for code in ["unsupported_parameter", "context_length_exceeded", "queue_full"] {
        assert!(said.contains(&json!(code)), "{code} in {said:?}");
    }
    assert!(!postern.log().contains("best_of"), "what was refused is the client's business");
    Ok(())
}

/// How one of many answers ended.
#[derive(Debug, PartialEq)]
enum End {
    Engine,
    Cloud,
    /// An error of this code, before the answer began or in the stream.
    Error(String),
}

async fn end(client: &Client, body: &Value, stream: bool) -> Result<End> {
    let answered = |target: &str| if target == "sun" { End::Cloud } else { End::Engine };
    if !stream {
        let reply = ask(client, body).await?;
        return Ok(if reply.status == 200 {
            answered(reply.header("postern-target"))
        } else {
            End::Error(reply.error_code())
        });
    }
    let mut events = client.stream(body).await?;
    let target = events.header("postern-target").to_owned();
    if events.status != 200 {
        return Ok(End::Error(events.whole().await?.error_code()));
    }
    let all = events.rest().await?;
    let last = all.last().expect("a stream has events");
    ensure!(last.is_done() || !last.error_code().is_empty(), "a stream without an end or an error: {all:?}");
    Ok(if last.is_done() { answered(&target) } else { End::Error(last.error_code()) })
}

#[tokio::test]
async fn what_a_killed_engine_had_not_begun_others_answer_if_the_label_lets_them() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&engine_first(&cloud, json!({"max_batch_size": 4, "max_queue": 64}))).await?;
    postern.engine_ready().await?;
    let (clerk, officer) = (postern.client("clerk/amy")?, postern.client("officer/cy")?);
    let ends = tokio::spawn(async move {
        let asking = (0..32).map(|number| {
            let client = if number % 2 == 0 { &clerk } else { &officer };
            let client = client.with_header("postern-placement", "edge-first");
            let prompt = format!("Tell a long story of {}", if number % 2 == 0 { "a river" } else { "our secret" });
            async move { end(&client, &body(&prompt, 200), number % 4 < 2).await }
        });
        join_all(asking).await
    });
    // Four are being answered, the others wait.
    engine_has(&postern, &[("running", 4.0), ("waiting", 20.0), ("generated_tokens_total", 8.0)]).await?;
    postern.signal_child("engine", Signal::KILL)?;
    let ends = ends.await?.into_iter().collect::<Result<Vec<_>>>()?;
    let (internal, confidential): (Vec<_>, Vec<_>) = ends.iter().enumerate().partition(|(number, _)| number % 2 == 0);
    let count = |ends: &[(usize, &End)], wanted: fn(&End) -> bool| ends.iter().filter(|(_, end)| wanted(end)).count();
    let is_proper = |end: &End| matches!(end, End::Error(code) if ["stream_broken", "engine_starting", "upstream_unavailable"].contains(&code.as_str()));
    assert!(count(&internal, |end| *end == End::Cloud) >= 12, "{ends:?}");
    assert_eq!(count(&confidential, |end| *end == End::Cloud), 0, "{ends:?}");
    assert!(count(&confidential, is_proper) > 0, "{ends:?}");
    assert!(ends.iter().all(|end| matches!(end, End::Engine | End::Cloud) || is_proper(end)), "{ends:?}");
    assert!(cloud.stats().await?.raw_bodies.iter().all(|body| !body.contains("secret")));
    postern.engine_ready().await
}
