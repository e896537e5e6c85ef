//! What policies are told is true, and no more than they were granted.

use anyhow::Result;
use postern_tests::{BusyCloud, Postern};
use serde_json::json;

use super::{Puppet, ask, config, said, with};

#[tokio::test]
async fn policies_are_told_the_truth() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[("grants", json!({"headers": ["x-team", "x-asked"]}))])?;
    let policy =
        with(puppet.policy(json!({"tell_facts": true})), &[("grants", json!({"headers": ["X-Team", "x-given"]}))]);
    let config = config(&cloud, policy)
        .set("/targets/0/price", json!({"input_per_million": 1.5, "output_per_million": 6}))
        .set("/targets/0/limits", json!({"requests_per_minute": 60}))
        .set("/identities/0/limits", json!({"tokens_per_minute": 100_000}))
        // Half an hour off, so that it cannot be right by chance.
        .env("TZ", "IST-5:30");
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?.with_header("x-team", "blue").with_header("x-given", "no");
    let client = client.with_header("x-asked", "no").with_header("postern-label", "internal");
    let reply = ask(&client, "chat", "Hello, how are you?").await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let first = said(&postern, &reply).await?;
    let told = &first["annotations"];
    assert_eq!(told["label"], "internal of public internal confidential classified");
    assert_eq!(told["sources"], "floor header");
    assert_eq!(told["headers"], "x-team=blue", "asked for and granted, and no other");
    assert_eq!(told["offset"], "330");
    assert_eq!(told["messages"], "1 with text 0");
    assert_eq!(told["sun"], "clearance internal healthy true ttft None queue 0 price Some((1.5, 6.0)) left Some(60)");
    let tokens = told["tokens"].as_str().unwrap();
    let left = |told: &str| -> u64 { told.split_once("Some(").unwrap().1.trim_end_matches(')').parse().unwrap() };
    assert!(tokens.contains(" left Some(") && (90_000..100_000).contains(&left(tokens)), "{tokens}");
    // A stream makes its target's time to the first token known; one request less may be sent.
    let mut body = postern_tests::chat_body("Hello");
    body["stream"] = json!(true);
    client.stream(&body).await?.rest().await?;
    let reply = ask(&client, "chat", "Hello").await?;
    let told = said(&postern, &reply).await?;
    let sun = told["annotations"]["sun"].as_str().unwrap();
    assert!(sun.contains("ttft Some(") && sun.contains("left Some(58)"), "{sun}");
    Ok(())
}

#[tokio::test]
async fn a_target_that_fails_is_not_healthy() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let postern = Postern::start(&config(&cloud, puppet.policy(json!({"tell_facts": true})))).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"unavailable_share": 1.0})).await?;
    assert_eq!(ask(&client, "chat", "One").await?.status, 503);
    let told = said(&postern, &ask(&client, "chat", "Two").await?).await?;
    assert!(told["annotations"]["sun"].as_str().unwrap().contains("healthy false"), "{told}");
    Ok(())
}

#[tokio::test]
async fn text_is_seen_masked_by_those_who_were_granted_it_and_leaves_no_words() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    let deny = |if_text: &str| json!({"tell_facts": true, "if_text": if_text, "vote": {"deny": "because of the text"}});
    let redact =
        json!({"name": "redact", "component": "builtin:redaction", "config": {"kinds": ["email"]}, "deadline": "5s"});
    let prompt = "Write to ann@example.org about heron42";
    for (asks, granted, if_text, status) in [
        (true, true, "heron42", 403),
        // As it would leave: with a placeholder, and not what is behind it.
        (true, true, "[EMAIL_", 403),
        (true, true, "ann@example.org", 200),
        (true, false, "heron42", 200),
        (false, true, "heron42", 200),
    ] {
        puppet.first(&[("grants", json!({"text": asks}))])?;
        let policy = with(puppet.policy(deny(if_text)), &[("grants", json!({"text": granted}))]);
        let postern = Postern::start(&config(&cloud, redact.clone()).push("/policies", policy)).await?;
        let reply = ask(&postern.client("clerk/amy")?, "chat", prompt).await?;
        assert_eq!(reply.status, status, "asks {asks}, granted {granted}: {if_text}: {}", reply.text());
        let said = said(&postern, &reply).await?;
        let sees = asks && granted;
        assert_eq!(said["annotations"].is_object(), !sees, "who sees text leaves no words: {said}");
        assert!(said["reason"].is_null(), "{said}");
        assert!(!postern.records().text()?.contains("heron42"));
    }
    Ok(())
}
