//! What votes do: order, weights, models, reasons; and that only what the configuration names can be voted for.

use std::collections::BTreeMap;

use anyhow::Result;
use postern_tests::{BusyCloud, Postern};
use serde_json::{Value, json};

use super::{Puppet, ask, config, record, said};

#[tokio::test]
async fn the_order_of_targets_is_that_of_the_vote() -> Result<()> {
    let (sun, moon, puppet) = (BusyCloud::start().await?, BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let vote = json!({"vote": {"targets": ["moon", "sun"]}});
    let postern = Postern::start(&config(&sun, puppet.policy(vote)).cloud("moon", &moon, "internal")).await?;
    let client = postern.client("clerk/amy")?;
    let reply = ask(&client, "chat", "Hello").await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "moon"));
    assert_eq!(record(&postern, &reply).await?.intent["targets"], json!(["moon", "sun"]));
    moon.switch(json!({"unavailable_share": 1.0})).await?;
    assert_eq!(ask(&client, "chat", "Hello again").await?.header("postern-target"), "sun");
    Ok(())
}

#[tokio::test]
async fn weights_spread_conversations_which_stay_where_they_are() -> Result<()> {
    let (sun, moon, puppet) = (BusyCloud::start().await?, BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let policy = puppet.policy(json!({"vote": {"weight": "canary"}}));
    let config = config(&sun, policy).cloud("moon", &moon, "internal");
    let postern = Postern::start(&config.set("/routing/weights", json!({"canary": {"sun": 3, "moon": 1}}))).await?;
    let client = postern.client("clerk/amy")?;
    let (mut targets, mut counts) = (BTreeMap::new(), BTreeMap::new());
    for round in 0..2 {
        for conversation in 0..60 {
            let client = client.with_header("postern-conversation", &conversation.to_string());
            let reply = ask(&client, "chat", &format!("Round {round}")).await?;
            let target = reply.header("postern-target").to_owned();
            if round == 0 {
                *counts.entry(target.clone()).or_insert(0) += 1;
                targets.insert(conversation, target);
            } else {
                assert_eq!(targets[&conversation], target, "conversation {conversation} has moved");
            }
        }
    }
    // 15 of 60 expected; beyond these bounds once in a hundred thousand runs.
    assert!((3..=31).contains(&counts["moon"]), "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn what_the_configuration_does_not_name_cannot_be_voted_for() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let large = ("model", json!("large"));
    for (routing, (key, value), failed) in [
        (json!({}), ("weight", json!("canary")), true),
        (json!({}), ("targets", json!(["mars"])), true),
        (json!({}), ("label", json!("secret")), true),
        // The target takes any name, so a name could be anything.
        (json!({}), large.clone(), true),
        (json!({"models": ["large"]}), large, false),
        (json!({}), ("model", json!("chat")), false),
    ] {
        let policy = puppet.policy(json!({"vote": {key: value}}));
        let postern = Postern::start(&config(&cloud, policy).set("/routing", routing)).await?;
        let reply = ask(&postern.client("clerk/amy")?, "chat", "Hello").await?;
        let said = said(&postern, &reply).await?;
        assert_eq!((said["said"] == "failed:output", reply.status != 200), (failed, failed), "{key}: {said}");
    }
    let models = cloud.stats().await?.bodies.into_iter().map(|body| body["model"].clone()).collect::<Vec<Value>>();
    assert_eq!(models, ["large", "chat"]);
    Ok(())
}

#[tokio::test]
async fn a_vote_for_a_model_has_the_label_of_that_model() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let config = config(&cloud, puppet.policy(json!({"vote": {"model": "hr-letters"}})))
        .set("/routing", json!({"models": ["hr-letters"]}))
        .set("/classification", json!({"models": {"hr-letters": "confidential"}}));
    let postern = Postern::start(&config).await?;
    let talk = |who: &str| Ok::<_, anyhow::Error>(postern.client(who)?.with_header("postern-conversation", "a"));
    let refused = ask(&talk("clerk/amy")?, "chat", "Hello").await?;
    assert_eq!((refused.status, refused.header("postern-label")), (403, "confidential"), "{}", refused.text());
    let outcome = record(&postern, &refused).await?.outcome;
    let route = json!({"source": "route", "label": "confidential"});
    assert!(outcome["label_sources"].as_array().is_some_and(|all| all.contains(&route)), "{outcome}");
    // It stays with the conversation, but for whoever may not have it: they are told so and nothing else changes.
    let refused = ask(&talk("guest/x")?, "chat", "Hello").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "label_refused"), "{}", refused.text());
    postern.configure(&config.clone().set("/policies", json!([])))?;
    postern_tests::process::send(postern.pid(), rustix::process::Signal::HUP)?;
    postern.logged("the policies were reloaded").await?;
    assert_eq!(ask(&talk("clerk/amy")?, "chat", "And now?").await?.header("postern-label"), "confidential");
    assert_eq!(ask(&talk("guest/x")?, "chat", "And now?").await?.status, 200);
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn no_vote_lowers_a_label() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let vote = json!({"vote": {"label": "public", "placement": "cloud", "targets": ["sun"]}});
    let postern = Postern::start(&config(&cloud, puppet.policy(vote))).await?;
    let client = postern.client("clerk/amy")?;
    for (marked, status, label) in [("internal", 200, "internal"), ("classified", 403, "classified")] {
        let reply = ask(&client.with_header("postern-label", marked), "chat", &format!("What is {marked}?")).await?;
        assert_eq!((reply.status, reply.header("postern-label")), (status, label), "{}", reply.text());
    }
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn a_refusal_has_its_reason_in_the_record_and_nowhere_else() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let vote = json!({"tell_version": true, "vote": {"deny": "after office hours"}});
    let postern = Postern::start(&config(&cloud, puppet.policy(vote))).await?;
    let reply = ask(&postern.client("clerk/amy")?, "chat", "Hello").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (403, "policy_denied"));
    assert!(!reply.text().contains("office hours"));
    let outcome = record(&postern, &reply).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["label"]), (&json!("refused"), &json!("public")));
    let said = said(&postern, &reply).await?;
    assert_eq!((&said["said"], &said["reason"]), (&json!("deny"), &json!("after office hours")));
    assert_eq!(
        (&said["version"], &said["annotations"]),
        (&json!("1.1.0"), &json!({"version": "puppet-version-000001"}))
    );
    assert_eq!(said["digest"].as_str().unwrap().len(), 16);
    Ok(())
}
