//! A policy that fails too often in a row is not called any more, visibly, and goes on counting as failing.

use anyhow::Result;
use postern_tests::{BusyCloud, Postern};
use serde_json::json;

use super::{Puppet, ask, config, described, said, until, with};

/// Crashes for one model; after three crashes in a row it is quarantined.
fn crashes(puppet: &Puppet, model: &str) -> serde_json::Value {
    with(puppet.policy(json!({"trap_on_model": model})), &[("quarantine_after", json!(3))])
}

#[tokio::test]
async fn a_policy_that_fails_in_a_row_is_quarantined_and_released() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let postern = Postern::start(&config(&cloud, crashes(&puppet, "bad"))).await?;
    let client = postern.client("clerk/amy")?;
    // Two, and one that goes well: not in a row.
    for model in ["bad", "bad", "good", "bad", "bad"] {
        let status = if model == "good" { 200 } else { 403 };
        assert_eq!(ask(&client, model, "Hello").await?.status, status, "{model}");
    }
    assert_eq!(described(&postern, "puppet").await?["state"], "live");
    assert!(postern.admin("/readyz?verbose").await?.text().contains("policy puppet: failing (routing)"));
    assert_eq!(ask(&client, "bad", "Hello").await?.status, 403);

    let puppet_is = described(&postern, "puppet").await?;
    assert_eq!((&puppet_is["state"], &puppet_is["last_failure"]["kind"]), (&json!("quarantined"), &json!("trap")));
    assert!(postern.admin("/readyz?verbose").await?.text().contains("policy puppet: quarantined (routing)\n"));
    let quarantined = [("policy", "puppet")];
    assert_eq!(postern.metrics().await?.value("postern_policy_quarantined", &quarantined), Some(1.0));
    postern.logged("not called any more").await?;
    postern.logged("release").await?;
    // What it would have let through stays here, because nobody asked it. It is not called: its calls do not become more.
    let calls = puppet_is["calls"].clone();
    let refused = ask(&client, "good", "Hello").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "no_permitted_target"));
    assert_eq!(said(&postern, &refused).await?["said"], "quarantined");
    assert_eq!(described(&postern, "puppet").await?["calls"], calls);
    // To read the same again does not make it better.
    assert_eq!(postern.admin_post("/api/reload").await?.status, 200);
    assert_eq!(described(&postern, "puppet").await?["state"], "quarantined");

    let released = postern.admin_post("/api/policies/puppet/release").await?;
    assert_eq!((released.status, &released.json()?["released"]), (200, &json!(true)));
    assert_eq!(ask(&client, "good", "Hello").await?.status, 200);
    assert_eq!(postern.metrics().await?.value("postern_policy_quarantined", &quarantined), Some(0.0));
    assert_eq!(postern.admin_post("/api/policies/nobody/release").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_changed_policy_is_given_another_chance() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let postern = Postern::start(&config(&cloud, crashes(&puppet, "bad"))).await?;
    let client = postern.client("clerk/amy")?;
    for _ in 0..3 {
        assert_eq!(ask(&client, "bad", "Hello").await?.status, 403);
    }
    assert_eq!(described(&postern, "puppet").await?["state"], "quarantined");
    postern.configure(&config(&cloud, crashes(&puppet, "other")))?;
    assert_eq!(postern.admin_post("/api/reload").await?.status, 200);
    assert_eq!(described(&postern, "puppet").await?["state"], "live");
    assert_eq!(ask(&client, "bad", "Hello").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn failures_of_requests_that_must_stay_do_not_count() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let postern = Postern::start(&config(&cloud, crashes(&puppet, "bad"))).await?;
    let client = postern.client("clerk/amy")?;
    let classified = client.with_header("postern-label", "classified");
    for _ in 0..5 {
        let refused = ask(&classified, "bad", "Something else").await?;
        assert_eq!(refused.status, 403);
        assert_eq!(said(&postern, &refused).await?["said"], "failed:withheld");
    }
    let puppet_is = described(&postern, "puppet").await?;
    assert_eq!((&puppet_is["state"], &puppet_is["failing"]), (&json!("live"), &json!([])));
    // Operators hear that it fails, and neither how nor in which words.
    let failed = async |kind: &str| -> Result<f64> {
        let failed = [("policy", "puppet"), ("kind", kind)];
        Ok(postern.metrics().await?.sum("postern_policy_failures_total", &failed))
    };
    assert_eq!((failed("withheld").await?, failed("trap").await?), (5.0, 0.0), "how it failed is of its choosing");
    assert!(postern.log().contains("not shown, since the request must stay here"), "{}", postern.log());
    // Nor do those that go well make up for others.
    for model in ["bad", "bad"] {
        assert_eq!(ask(&client, model, "Hello").await?.status, 403);
    }
    assert_eq!(ask(&classified, "good", "Something else").await?.status, 403);
    assert_eq!(ask(&client, "bad", "Hello").await?.status, 403);
    until(async || Ok((described(&postern, "puppet").await?["state"] == "quarantined").then_some(()))).await
}

#[tokio::test]
async fn with_reject_a_quarantined_policy_refuses() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    // Already the redaction step fails, so that the label is never made final.
    let policy = with(
        puppet.policy(json!({"trap_on_text": "crash"})),
        &[("on_failure", json!("reject")), ("quarantine_after", json!(2))],
    );
    let postern = Postern::start(&config(&cloud, policy)).await?;
    let client = postern.client("clerk/amy")?;
    for _ in 0..2 {
        assert_eq!(ask(&client, "chat", "crash").await?.error_code(), "policy_denied");
    }
    assert_eq!(described(&postern, "puppet").await?["state"], "quarantined");
    let refused = ask(&client, "chat", "Hello").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "policy_denied"));
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}
