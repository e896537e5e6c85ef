//! A question that was asked in other words is answered without asking again; one that means something else is not. With the real model,
//! which must have been pulled.

use std::time::Instant;

use anyhow::{Result, bail};
use postern_tests::client::text;
use postern_tests::postern::check;
use postern_tests::{BusyCloud, Client, Config, Postern, chat_body};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{SOON, config};

const FIRST: &str = "How do I reset my password?";
const SAME: &str = "Can you please tell me how I can reset my password?";
const NEARLY: &str = "How can I reset my password?";

/// A machine that is busy is no reason to fail: what the wait does has a test of its own.
fn semantic(cloud: &BusyCloud) -> Config {
    config(cloud)
        .set("/cache/semantic", json!({"model": "all-minilm-l6-v2", "threshold": 0.95, "wait": "10s"}))
        .set("/policies/2/config", json!({"semantic": [{}]}))
}

async fn start(config: &Config) -> Result<Postern> {
    let postern = Postern::start(config).await?;
    encoder_is(&postern, 1.0).await?;
    Ok(postern)
}

async fn encoder_is(postern: &Postern, wanted: f64) -> Result<()> {
    let begun = Instant::now();
    while postern.metrics().await?.value("postern_cache_encoder_connected", &[]) != Some(wanted) {
        if begun.elapsed() > 3 * SOON {
            bail!("the encoder is not {wanted} after {:?}:\n{}", begun.elapsed(), postern.log());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn ask(client: &Client, body: &Value) -> Result<(String, String)> {
    let reply = client.post_json("/v1/chat/completions", body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok((reply.header("postern-cache").to_owned(), reply.answer()))
}

async fn how(client: &Client, prompt: &str) -> Result<String> {
    Ok(ask(client, &chat_body(prompt)).await?.0)
}

#[tokio::test]
async fn a_paraphrase_is_answered_from_the_cache_and_a_near_miss_is_not() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = start(&semantic(&cloud)).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let (first, answer) = ask(&amy, &chat_body(FIRST)).await?;
    assert_eq!(first, "miss");
    for (client, prompt) in [(&amy, NEARLY), (&bo, NEARLY), (&amy, "how to reset my password")] {
        assert_eq!(ask(client, &chat_body(prompt)).await?, ("semantic".to_owned(), answer.clone()), "{prompt}");
    }
    assert_eq!(how(&amy, FIRST).await?, "exact");
    let reply = amy.chat(NEARLY).await?;
    let record = postern.records().of(reply.header("postern-record"), SOON).await?;
    assert_eq!((&record.outcome["cache"], &record.outcome["target"]), (&json!("semantic"), &json!("sun")));
    assert_eq!((record.outcome["attempts"].as_array().map(Vec::len), record.outcome["cost"].as_f64()), (Some(0), None));
    assert_eq!(cloud.stats().await?.requests, 1);

    assert_eq!(how(&amy, "What was our revenue in 2023?").await?, "miss");
    for near in [
        "What was our revenue in 2024?",
        "What was our profit in 2023?",
        "What was not our revenue in 2023?",
        "How do I reset my username?",
        "How do I not reset my password?",
    ] {
        assert_eq!(how(&amy, near).await?, "miss", "{near}");
    }
    assert_eq!(how(&amy, "Please, what was our revenue in 2023?").await?, "semantic");
    let metrics = postern.metrics().await?;
    assert_eq!(metrics.sum("postern_cache_requests_total", &[("result", "semantic")]), 5.0);
    let of_bo = [("identity", "spiffe://branch.test/clerk/bo"), ("result", "semantic")];
    assert_eq!(metrics.value("postern_cache_identity_requests_total", &of_bo), Some(1.0));
    assert_eq!(metrics.sum("postern_cache_vectors_missed_total", &[]), 0.0);
    // Neither words nor vectors are anywhere but in memory.
    assert!(!postern.log().contains("password") && !postern.records().text()?.contains("password"));
    Ok(())
}

#[tokio::test]
async fn everything_but_the_words_counts() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = semantic(&cloud).set("/targets/0/clearance", json!("confidential"));
    let postern = start(&config).await?;
    let amy = postern.client("clerk/amy")?;
    assert_eq!(how(&amy, FIRST).await?, "miss");
    for (field, value) in [
        ("temperature", json!(0.2)),
        ("seed", json!(1)),
        ("max_tokens", json!(50)),
        ("model", json!("other")),
        ("user", json!("u")),
        ("messages", json!([{"role": "system", "content": "Be brief"}, {"role": "user", "content": NEARLY}])),
        ("messages", json!([{"role": "assistant", "content": NEARLY}])),
        ("messages", json!([{"role": "user", "name": "n", "content": NEARLY}])),
    ] {
        let mut body = chat_body(NEARLY);
        body[field] = value;
        assert_eq!(ask(&amy, &body).await?.0, "miss", "{field}");
    }
    // What asks for chance gets another answer each time, and what refuses the cache gets none of it.
    for (field, value) in [("temperature", json!(1.5)), ("n", json!(2))] {
        for prompt in [FIRST, NEARLY] {
            let mut body = chat_body(prompt);
            body[field] = value.clone();
            assert_ne!(ask(&amy, &body).await?.0, "semantic", "{field}");
        }
    }
    assert_eq!(how(&amy.with_header("cache-control", "no-cache"), SAME).await?, "miss");
    assert_eq!(how(&amy.with_header("cache-control", "no-store"), SAME).await?, "bypass");
    assert_eq!(how(&amy, NEARLY).await?, "semantic", "all else is equal");
    // Labels come last: what was said under one stays there.
    assert_eq!(how(&postern.client("guest/x")?, NEARLY).await?, "miss", "another tenant");
    assert_eq!(how(&amy.with_header("postern-label", "internal"), NEARLY).await?, "miss", "another label");
    // Above `internal`, answers are cached by their words only.
    let secret = amy.with_header("postern-label", "confidential");
    let asked = cloud.stats().await?.requests;
    assert_eq!((how(&secret, FIRST).await?, how(&secret, NEARLY).await?), ("miss".to_owned(), "miss".to_owned()));
    assert_eq!(how(&secret, FIRST).await?, "exact");
    assert_eq!(cloud.stats().await?.requests, asked + 2);
    assert_eq!(how(&amy, "how can i reset my password").await?, "semantic");
    Ok(())
}

#[tokio::test]
async fn a_stream_is_given_again_as_a_stream_and_values_are_those_of_who_asks() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = start(&semantic(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let mail = |before: &str, who: &str| chat_body(&format!("{before} reminder to {who} that the invoice is late"));
    let first = client.stream(&mail("Write a", "ann@example.org")).await?.rest().await?;
    let mut again = client.stream(&mail("Write me a", "zoe@example.net")).await?;
    assert_eq!(again.header("postern-cache"), "semantic");
    let again = again.rest().await?;
    assert_eq!(text(&again), text(&first).replace("ann@example.org", "zoe@example.net"));
    assert!(text(&again).contains("zoe@example.net") && again.last().is_some_and(postern_tests::Event::is_done));
    // Two people are not one, and a telephone is not a mailbox.
    let two = chat_body("Write a reminder to ann@example.org and bo@example.org that the invoice is late");
    let phone = chat_body("Write a reminder to 13800138000 that the invoice is late");
    for body in [two, phone, chat_body("Write a reminder to Ann that the invoice is late")] {
        assert_eq!(client.stream(&body).await?.header("postern-cache"), "miss");
    }
    // Whole answers and streams are kept apart.
    assert_eq!(ask(&client, &mail("Write me a", "zoe@example.net")).await?.0, "miss");
    Ok(())
}

#[tokio::test]
async fn a_policy_may_want_the_same_words_for_some() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let only_amy = json!({"semantic": [{"identity": "spiffe://branch.test/clerk/amy"}]});
    let postern = start(&semantic(&cloud).set("/policies/2/config", only_amy)).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    assert_eq!((how(&amy, FIRST).await?, how(&amy, NEARLY).await?), ("miss".to_owned(), "semantic".to_owned()));
    assert_eq!((how(&bo, FIRST).await?, how(&bo, NEARLY).await?), ("exact".to_owned(), "miss".to_owned()));
    // Without a policy that says anything about caching, everybody may.
    let without = config(&cloud).set("/cache/semantic", json!({"model": "all-minilm-l6-v2", "wait": "10s"}));
    let postern = start(&without.set("/policies/2/component", json!("builtin:routing"))).await?;
    let amy = postern.client("clerk/amy")?;
    assert_eq!((how(&amy, FIRST).await?, how(&amy, NEARLY).await?), ("miss".to_owned(), "semantic".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_the_same_time_are_answered_by_one_call() -> Result<()> {
    const ALL: usize = 30;
    let cloud = BusyCloud::start().await?;
    let postern = start(&semantic(&cloud)).await?;
    let client = postern.client("clerk/amy")?.http2().pooled()?;
    assert_eq!(how(&postern.client("clerk/amy")?, FIRST).await?, "miss");
    let asking: Vec<_> = (0..ALL)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.post_json("/v1/chat/completions", &chat_body(NEARLY)).await })
        })
        .collect();
    for one in asking {
        let reply = one.await??;
        assert_eq!((reply.status, reply.header("postern-cache")), (200, "semantic"), "{}", reply.text());
        assert!(reply.answer().contains(FIRST), "{}", reply.answer());
    }
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn without_the_process_requests_go_on_and_it_comes_back() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = start(&semantic(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    assert_eq!(how(&client, FIRST).await?, "miss");
    assert_eq!(how(&client, NEARLY).await?, "semantic");
    postern.signal_child("engine", Signal::KILL)?;
    encoder_is(&postern, 0.0).await?;
    let begun = Instant::now();
    assert_eq!((how(&client, SAME).await?, how(&client, FIRST).await?), ("miss".to_owned(), "exact".to_owned()));
    assert_eq!(how(&client, NEARLY).await?, "semantic", "these words were compared before");
    assert!(begun.elapsed() < SOON / 2, "{:?}", begun.elapsed());
    encoder_is(&postern, 1.0).await?;
    assert_eq!(how(&client, "how can i reset my password").await?, "semantic", "what was known is still known");
    Ok(())
}

#[tokio::test]
async fn a_process_that_is_slow_holds_nobody_up() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = start(&semantic(&cloud).set("/cache/semantic/wait", json!("300ms"))).await?;
    let client = postern.client("clerk/amy")?;
    postern.signal_child("engine", Signal::STOP)?;
    let begun = Instant::now();
    for prompt in [FIRST, NEARLY] {
        assert_eq!(how(&client, prompt).await?, "miss");
    }
    let took = begun.elapsed();
    postern.signal_child("engine", Signal::CONT)?;
    assert!(took.as_millis() >= 600 && took < SOON / 4, "{took:?}");
    assert_eq!(postern.metrics().await?.sum("postern_cache_vectors_missed_total", &[]), 2.0);
    Ok(())
}

#[tokio::test]
async fn a_model_that_is_not_there_is_said_and_nothing_else_is_held_up() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let nothing = tempfile::tempdir()?;
    let config = semantic(&cloud).env("POSTERN_CACHE", &nothing.path().display().to_string());
    let checked = check(&config)?;
    let said = String::from_utf8(checked.stdout)?;
    assert!(checked.status.success() && said.contains("postern model pull all-minilm-l6-v2"), "{said}");
    let postern = Postern::start(&config).await?;
    postern.logged("postern model pull all-minilm-l6-v2").await?;
    let client = postern.client("clerk/amy")?;
    assert_eq!((how(&client, FIRST).await?, how(&client, NEARLY).await?), ("miss".to_owned(), "miss".to_owned()));
    assert_eq!(how(&client, FIRST).await?, "exact");
    Ok(())
}
