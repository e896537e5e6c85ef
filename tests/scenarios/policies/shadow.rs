//! A policy that is only watched changes nothing, and what it would have changed is recorded.

use anyhow::Result;
use postern_tests::{BusyCloud, Postern, Reply};
use serde_json::{Value, json};

use super::{Puppet, ask, config, described, until, with};

async fn shadows(postern: &Postern, reply: &Reply) -> Result<Vec<Value>> {
    let id = reply.header("postern-record");
    let all = postern.records().all()?;
    Ok(all.into_iter().find(|record| record.id == id).map(|record| record.shadows).unwrap_or_default())
}

async fn count(postern: &Postern, policy: &str, result: &str) -> Result<f64> {
    Ok(postern.metrics().await?.sum("postern_policy_shadow_total", &[("policy", policy), ("result", result)]))
}

#[tokio::test]
async fn a_shadow_changes_nothing_and_its_differences_are_recorded() -> Result<()> {
    let (sun, moon, puppet) = (BusyCloud::start().await?, BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let live = puppet.policy(json!({"vote": {"targets": ["sun", "moon"]}}));
    let shadow = |name: &str, replaces: Value, config: Value| {
        let more = [("name", json!(name)), ("shadow", json!(true)), ("replaces", replaces)];
        with(puppet.policy(config), &more)
    };
    let redact = |name: &str, kinds: Value, more: &[(&str, Value)]| {
        let policy =
            json!({"name": name, "component": "builtin:redaction", "config": {"kinds": kinds}, "deadline": "5s"});
        with(policy, more)
    };
    let config = config(&sun, live)
        .cloud("moon", &moon, "internal")
        .cache()
        .push("/policies", redact("redact", json!(["email"]), &[]))
        // In its place, so the other order of the live one does not count.
        .push("/policies", shadow("turned", json!("puppet"), json!({"vote": {"targets": ["moon", "sun"]}})))
        // Beside all others.
        .push("/policies", shadow("beside", json!(null), json!({"vote": {"only_model": "other", "deny": "no"}})))
        .push("/policies", shadow("broken", json!(null), json!({"trap_on_model": "other"})))
        .push(
            "/policies",
            redact("more", json!(["email", "phone"]), &[("shadow", json!(true)), ("replaces", json!("redact"))]),
        );
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    let reply = ask(&client, "chat", "Write to ann@example.org or call +86 138 0013 8000").await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "sun"));
    assert!(sun.stats().await?.raw_bodies[0].contains("138 0013 8000"), "a shadow masks nothing");
    let told = until(async || {
        let told = shadows(&postern, &reply).await?;
        Ok((count(&postern, "more", "different").await? == 1.0 && told.len() >= 2).then_some(told))
    })
    .await?;
    let of = |name: &str| told.iter().find(|line| line["policy"] == name).cloned().unwrap_or_default();
    let turned = of("turned");
    assert_eq!(
        (&turned["now"], &turned["would"]),
        (&json!({"targets": ["sun", "moon"]}), &json!({"targets": ["moon", "sun"]}))
    );
    assert_eq!(
        (&turned["replaces"], &turned["step"], &turned["version"]),
        (&json!("puppet"), &json!("routing"), &json!("1.1.0"))
    );
    let more = of("more");
    assert_eq!(more["would"], json!({"masked": {"email": 1, "phone": 1}, "spans_added": 1, "spans_missing": 0}));
    assert!(of("beside").is_null() && of("broken").is_null(), "what is the same is not recorded: {told:?}");
    for (name, result) in [("turned", "different"), ("beside", "same"), ("broken", "same"), ("more", "different")] {
        until(async || Ok((count(&postern, name, result).await? == 1.0).then_some(()))).await?;
        assert_eq!(described(&postern, name).await?["state"], "shadow");
    }
    let reply = ask(&client, "other", "Hello").await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "sun"));
    let told = until(async || {
        let told = shadows(&postern, &reply).await?;
        Ok((told.len() >= 3).then_some(told))
    })
    .await?;
    let of = |name: &str| told.iter().find(|line| line["policy"] == name).cloned().unwrap_or_default();
    assert_eq!(of("beside")["would"]["refused"], "policy_denied");
    assert_eq!(of("broken")["result"], "failed:trap");
    assert!(!postern.records().text()?.contains("ann@") && !postern.records().text()?.contains("138 0013"));
    Ok(())
}

#[tokio::test]
async fn a_shadow_that_would_choose_a_labelled_model_is_judged_by_that_label() -> Result<()> {
    let (sun, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let shadow = |name: &str, model: &str| {
        with(puppet.policy(json!({"vote": {"model": model}})), &[("name", json!(name)), ("shadow", json!(true))])
    };
    let config = config(&sun, puppet.policy(json!({})))
        .set("/routing", json!({"models": ["hr-letters", "hr-pay"]}))
        .set("/classification", json!({"models": {"hr-letters": "internal", "hr-pay": "confidential"}}))
        .push("/policies", shadow("letters", "hr-letters"))
        .push("/policies", shadow("pay", "hr-pay"));
    let postern = Postern::start(&config).await?;
    let reply = ask(&postern.client("clerk/amy")?, "chat", "Hello").await?;
    assert_eq!((reply.status, reply.header("postern-label")), (200, "public"), "{}", reply.text());
    let told = until(async || {
        let told = shadows(&postern, &reply).await?;
        Ok((told.len() == 2).then_some(told))
    })
    .await?;
    let of = |name: &str| told.iter().find(|line| line["policy"] == name).cloned().unwrap_or_default();
    assert_eq!(of("letters")["would"], json!({"label": "internal", "model": "hr-letters"}), "{told:?}");
    assert_eq!(of("pay")["would"]["refused"], "no_permitted_target", "{told:?}");
    assert_eq!(of("pay")["would"]["label"], "confidential", "{told:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_shadow_writes_is_its_own_and_it_is_quarantined_like_others() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[("metrics", json!(["requests", "last"]))])?;
    let live = puppet.policy(json!({"at_most": 100}));
    let more = [("name", json!("shadow")), ("shadow", json!(true)), ("quarantine_after", json!(2))];
    let shadow = with(puppet.policy(json!({"at_most": 100, "trap_on_model": "bad"})), &more);
    let postern = Postern::start(&config(&cloud, live).push("/policies", shadow)).await?;
    let client = postern.client("clerk/amy")?;
    let events = async |policy: &str| -> Result<f64> {
        Ok(postern.metrics().await?.sum("postern_policy_events_total", &[("policy", policy)]))
    };
    for _ in 0..3 {
        assert_eq!(ask(&client, "good", "Hello").await?.status, 200);
    }
    let classified = client.with_header("postern-label", "classified");
    assert_eq!(ask(&classified, "good", "Something else").await?.status, 403);
    until(async || Ok((count(&postern, "shadow", "same").await? == 4.0).then_some(()))).await?;
    assert_eq!(
        (events("puppet").await?, events("shadow").await?),
        (3.0, 3.0),
        "each its own, and none of what must stay"
    );
    for _ in 0..2 {
        assert_eq!(ask(&client, "bad", "Hello").await?.status, 200);
    }
    until(async || Ok((described(&postern, "shadow").await?["state"] == "quarantined").then_some(()))).await?;
    assert_eq!(ask(&client, "good", "Hello").await?.status, 200);
    until(async || Ok((count(&postern, "shadow", "quarantined").await? == 1.0).then_some(()))).await
}
