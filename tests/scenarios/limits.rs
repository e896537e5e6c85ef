//! What an identity and a tenant may use in a minute, a day and a month.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use postern_tests::client::{Events, Reply, text};
use postern_tests::{BusyCloud, Client, Postern, chat_body};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{SOON, config};

/// What was spent is written once a second.
const WRITTEN_WITHIN: Duration = Duration::from_millis(2500);

pub(crate) fn bounded(question: &str, tokens: u64) -> Value {
    let mut body = chat_body(question);
    body["max_tokens"] = json!(tokens);
    body
}

/// A thousand streams at once, of 20 tokens at most: how many had which status. Those that are answered are complete.
pub(crate) async fn a_thousand_streams(clients: [Client; 2]) -> Result<BTreeMap<u16, u64>> {
    let clients = Arc::new(clients);
    // So many handshakes at a time are accepted from one address.
    let handshakes = Arc::new(Semaphore::new(100));
    let streams = (0..1000).map(|n: usize| {
        let (clients, handshakes) = (clients.clone(), handshakes.clone());
        tokio::spawn(async move {
            let place = handshakes.acquire_owned().await?;
            let mut stream = clients[n % 2].stream(&bounded(&format!("Question number {n}"), 20)).await?;
            drop(place);
            let status = stream.status;
            if status == 200 {
                anyhow::ensure!(stream.rest().await?.last().is_some_and(|event| event.is_done()), "not complete");
            }
            Ok(status)
        })
    });
    let mut statuses = BTreeMap::new();
    for stream in streams.collect::<Vec<_>>() {
        *statuses.entry(stream.await??).or_insert(0) += 1;
    }
    Ok(statuses)
}

#[tokio::test]
async fn a_client_reads_what_is_left_and_whose_limit_it_is() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(
        &config(&cloud)
            .set("/identities/0/limits", json!({"requests_per_minute": 3, "tokens_per_minute": 50_000}))
            .set("/tenants", json!({"clerks": {"limits": {"requests_per_day": 4}}})),
    )
    .await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    for left in ["2", "1", "0"] {
        let reply = amy.chat(&format!("{left} are left")).await?;
        let headers = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-limit-tokens"];
        assert_eq!((reply.status, headers.map(|name| reply.header(name))), (200, ["3", left, "50000"]));
        assert!(reply.header("x-ratelimit-remaining-tokens").parse::<u64>()? > 48_000);
        assert!(reply.header("x-ratelimit-reset-requests").ends_with('s'));
    }
    let refused = amy.chat("One more").await?;
    assert_eq!((refused.status, refused.header("x-ratelimit-remaining-requests")), (429, "0"));
    assert!(refused.error_message().contains("requests a minute for your identity"), "{}", refused.text());
    assert!((1..=60).contains(&refused.header("retry-after").parse::<u64>()?));

    let reply = bo.chat("The fourth of all").await?;
    let left = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"].map(|name| reply.header(name));
    assert_eq!((reply.status, left), (200, ["4", "0"]), "the tenant's leaves fewer");
    let refused = bo.chat("The fifth").await?;
    assert!(refused.error_message().contains("requests a day for your tenant"), "{}", refused.text());
    assert_eq!(cloud.stats().await?.requests, 4);
    Ok(())
}

#[tokio::test]
async fn a_thousand_streams_at_once_do_not_overspend_by_a_token() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // 20 tokens, in a second.
    cloud.switch(json!({"answer": "abcd".repeat(20), "chunk_chars": 4, "token_ms": 50})).await?;
    let limits = json!({"clerks": {"limits": {"output_tokens_per_day": 1010}}});
    let postern = Postern::start(&config(&cloud).set("/tenants", limits)).await?;
    let clients = [postern.client("clerk/amy")?, postern.client("clerk/bo")?];
    assert_eq!(a_thousand_streams(clients).await?, [(200, 50), (429, 950)].into());
    assert_eq!(cloud.stats().await?.requests, 50);
    // The last records are written just after the last byte.
    let used = || -> Result<u64> {
        let records = postern.records().all()?;
        Ok(records.iter().filter_map(|each| each.outcome["completion_tokens"].as_u64()).sum())
    };
    let deadline = std::time::Instant::now() + SOON;
    while used()? < 1000 && std::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(used()?, 1000, "of 1010, and the next would need 20");
    Ok(())
}

#[tokio::test]
async fn an_answer_without_a_bound_ends_where_the_budget_does() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"answer": "abcd".repeat(2000), "chunk_chars": 4, "token_ms": 1})).await?;
    let limits = json!({"clerks": {"limits": {"output_tokens_per_day": 700}}});
    let postern = Postern::start(&config(&cloud).set("/tenants", limits)).await?;
    let client = postern.client("clerk/amy")?;
    let mut stream = client.stream(&chat_body("Tell me everything")).await?;
    let record = stream.header("postern-record").to_owned();
    let events = stream.rest().await?;
    let last = events.last().unwrap();
    assert_eq!((last.error_code().as_str(), last.is_done()), ("rate_limit_exceeded", false));
    assert_eq!(text(&events).len() / 4, 700, "to the last token, and no further");
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["code"]), (&json!("broken"), &json!("rate_limit_exceeded")));
    // What would never fit is told so, and not when to come again.
    let never = client.post_json("/v1/chat/completions", &bounded("A book", 701)).await?;
    assert_eq!((never.status, never.error_code().as_str(), never.header("retry-after")), (400, "over_limit", ""));
    assert!(never.error_message().contains("701, and 700 is the most"), "{}", never.text());
    let refused = client.chat("Anything more?").await?;
    assert!(refused.status == 429 && refused.error_message().contains("output tokens a day"), "{}", refused.text());
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_limit_of_the_minute_slows_a_stream_down_and_does_not_end_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // The bucket has 6000, and fills with 100 a second.
    cloud.switch(json!({"answer": "abcdabcdabcdabcd".repeat(1550), "chunk_chars": 16})).await?;
    let config = config(&cloud).set("/identities/0/limits", json!({"output_tokens_per_minute": 6000}));
    let postern = Postern::start(&config).await?;
    let began = std::time::Instant::now();
    let mut stream = postern.client("clerk/amy")?.stream(&chat_body("Tell me everything")).await?;
    let events = stream.rest().await?;
    assert!(events.last().is_some_and(|event| event.is_done()), "{:?}", events.last());
    assert_eq!(text(&events).len() / 4, 6200);
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn money_is_spent_by_price_and_coefficient_and_not_forgotten_when_the_gateway_dies() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"answer": "abcd".repeat(20), "chunk_chars": 4})).await?;
    // An answer costs 20 × 0.001 × 1.5.
    let config = config(&cloud)
        .set("/targets/0/price", json!({"input_per_million": 0, "output_per_million": 1000}))
        .set("/placements", json!({"cloud": {"cost": 1.5}}))
        .set("/identities/0/limits", json!({"cost_per_month": 0.07, "tokens_per_day": 100_000}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    let ask = async |n: u32| client.post_json("/v1/chat/completions", &bounded(&format!("Question {n}"), 20)).await;
    let reply = ask(0).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let outcome = postern.records().of(reply.header("postern-record"), SOON).await?.outcome;
    assert_eq!(outcome["cost"], 0.03);
    let left = ask(1).await?.header("x-ratelimit-remaining-tokens").parse::<u64>()?;
    assert_eq!(postern.metrics().await?.value("postern_cost_total", &[("target", "sun")]), Some(0.06));

    tokio::time::sleep(WRITTEN_WITHIN).await;
    postern.signal_child("gateway", Signal::KILL)?;
    let refused = ask(2).await?;
    assert!(refused.status == 429 && refused.error_message().contains("money a month"), "{}", refused.text());
    assert!(refused.header("x-ratelimit-remaining-tokens").parse::<u64>()? >= left, "given back, and not forgotten");
    assert!(refused.header("x-ratelimit-remaining-tokens").parse::<u64>()? < 100_000);
    assert_eq!(cloud.stats().await?.requests, 2);

    let file = postern.config_file();
    let report = postern_tests::postern::run(&["cost", "report", "--json", "--config", file.to_str().unwrap()])?;
    let report: Value = serde_json::from_slice(&report.stdout)?;
    for (group, name) in [("targets", "sun"), ("placements", "cloud")] {
        let sum = &report[group][name];
        assert_eq!([&sum["requests"], &sum["completion_tokens"], &sum["cost"]], [&json!(2), &json!(40), &json!(0.06)]);
    }
    assert_eq!(report["identities"]["spiffe://branch.test/clerk/amy"]["cost"], 0.06, "{report}");
    Ok(())
}

#[tokio::test]
async fn what_no_target_worked_for_is_not_spent_nor_what_it_cannot_have_used() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud)
        .set("/identities/0/limits", json!({"output_tokens_per_day": 600}))
        .set("/timeouts", json!({"queue": "1s"}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"unavailable_share": 1.0})).await?;
    for n in 0..2 {
        // Each reserves 512 of the 600.
        let reply = client.chat(&format!("Is anybody there, {n}?")).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"));
    }
    // It says that each answer had 400 tokens, though 20 were asked for at most.
    cloud.switch(json!({"answer": "abcd".repeat(100), "chunk_chars": 1})).await?;
    for n in 0..5 {
        let reply = client.post_json("/v1/chat/completions", &bounded(&format!("Are you, {n}?"), 20)).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    Ok(())
}

#[tokio::test]
async fn limits_of_nobody_are_a_mistake() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    for (limits, wanted) in [
        (json!({"clarks": {"limits": {"requests_per_day": 4}}}), "`tenants` names `clarks`"),
        (json!({"clerks": {"limits": {"requests_per_day": 0}}}), "a whole number from 1 to"),
        (json!({"clerks": {"limits": {"cost_per_month": -1}}}), "an amount of money above 0"),
        (json!({"clerks": {"limits": {"cost_per_month": 5}}}), "this target has no `price`"),
    ] {
        let checked = postern_tests::postern::check(&config(&cloud).set("/tenants", limits))?;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(checked.status.code() == Some(78) && said.contains(wanted), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limits = json!({"requests_per_minute": 1});
    let postern = Postern::start(&config(&cloud).set("/identities/0/limits", limits)).await?;
    let (amy, stranger) = (postern.issue("clerk/amy")?, postern.issue("nobody/x")?);
    assert_eq!(postern.client_of(&amy)?.chat("The only one").await?.status, 200);
    let dir = tempfile::tempdir()?;
    let body = dir.path().join("body.json");
    std::fs::write(&body, chat_body(&"x".repeat(200_000)).to_string())?;
    // As README does it: HTTP/2, and a body that takes a while.
    let ask = |who: &std::path::Path| -> Result<String> {
        let at = |name: &str| who.join(name).display().to_string();
        let output = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &at("ca.pem"), "--cert", &at("cert.pem")])
            .args(["--key", &at("key.pem"), "-H", "Content-Type: application/json", "--data-binary"])
            .arg(format!("@{}", body.display()))
            .arg(format!("https://{}/v1/chat/completions", postern.gateway))
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for _ in 0..10 {
        assert_eq!((ask(&amy)?, ask(&stranger)?), ("429".to_owned(), "403".to_owned()));
    }
    Ok(())
}

/// A stream that goes on for half a minute, if it was let in; else the status.
pub(crate) async fn held(client: &Client, question: &str) -> Result<std::result::Result<Events, Reply>> {
    let mut body = chat_body(question);
    body["stream"] = json!(true);
    let mut stream = client.stream(&body).await?;
    if stream.status == 200 {
        stream.next().await?;
        return Ok(Ok(stream));
    }
    Ok(Err(stream.whole().await?))
}

/// The cloud answers for half a minute.
pub(crate) async fn slow(cloud: &BusyCloud) -> Result<()> {
    cloud.switch(json!({"answer": "abcd".repeat(300), "chunk_chars": 4, "token_ms": 100})).await
}

/// Asks until there is a place.
pub(crate) async fn held_within(client: &Client, within: Duration) -> Result<Events> {
    let deadline = std::time::Instant::now() + within;
    loop {
        match held(client, "Is there a place?").await? {
            Ok(stream) => return Ok(stream),
            Err(reply) => anyhow::ensure!(std::time::Instant::now() < deadline, "{}", reply.text()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn requests_at_a_time_are_counted_until_they_have_ended() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    slow(&cloud).await?;
    let config = config(&cloud)
        .set("/cache", Value::Null)
        .set("/identities/0/limits", json!({"concurrency": 2}))
        .set("/tenants", json!({"clerks": {"limits": {"concurrency": 3, "requests_per_day": 5}}}));
    let postern = Postern::start(&config).await?;
    let (amy, bo) = (postern.client("clerk/amy")?, postern.client("clerk/bo")?);
    let refused = |reply: Reply, whose: &str| {
        assert_eq!((reply.status, reply.header("retry-after")), (429, "1"));
        let words = format!("requests at a time for {whose}");
        assert!(reply.error_message().contains(&words), "{}", reply.text());
    };
    let (first, _second) = (held(&amy, "1").await?.unwrap(), held(&amy, "2").await?.unwrap());
    refused(held(&amy, "3").await?.unwrap_err(), "your identity");
    let _third = held(&bo, "3").await?.unwrap();
    refused(held(&bo, "4").await?.unwrap_err(), "your tenant");
    drop(first);
    // What was refused took nothing of the day: this is the fourth.
    let _fourth = held_within(&amy, SOON).await?;
    assert_eq!(held(&bo, "5").await?.unwrap_err().status, 429);
    Ok(())
}
