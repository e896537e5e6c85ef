//! Every policy is replaced many times under load: no request notices, and the version in each record is the one that was asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use postern_tests::{BusyCloud, Config, Postern};
use serde_json::{Value, json};

use super::{Puppet, config};

/// Clients at a time.
const CLIENTS: usize = 8;

/// From the environment, for `make test-all`; else small enough for every run of the tests.
fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_replaced_under_load_and_no_request_notices() -> Result<()> {
    let requests = number("POSTERN_LOAD_REQUESTS", 500);
    let replacements = number("POSTERN_LOAD_REPLACEMENTS", 20);
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    // A version is a file of its own, so that it and the configuration that belongs to it are put in force as one.
    let all = |number: usize| -> Result<Config> {
        let file = puppet.version(u32::try_from(number)?, &[])?;
        // Each version of the first-party policies is told apart by its configuration; four of them are compiled, then they come again.
        let kinds =
            [json!(["email"]), json!(["email", "phone"]), json!(["phone"]), json!(["secret"])][number % 4].clone();
        let builtin = |name: &str, config: Value| json!({"name": name, "component": format!("builtin:{name}"), "config": config, "deadline": "5s"});
        let default = ["cloud", "edge-first"][number % 2];
        Ok(config(&cloud, puppet.policy_at(&file, json!({"tell_version": true})))
            .cache()
            .push("/policies", builtin("redaction", json!({"kinds": kinds})))
            .push("/policies", builtin("routing", json!({"default": default})))
            .push("/policies", builtin("caching", json!({"ttl_seconds": 60 + number % 4, "max_temperature": 0.5}))))
    };
    let postern = Postern::start(&all(1)?).await?;
    let client = postern.client("clerk/amy")?;
    let (asked, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, asked, done) = (client.pooled()?, asked.clone(), done.clone());
        clients.spawn(async move {
            // To the end of the requests, and of the replacements: each happens during the other.
            while asked.fetch_add(1, Ordering::Relaxed) < requests || !done.load(Ordering::Relaxed) {
                let reply = client.chat("Write to ann@example.org").await?;
                ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
            }
            anyhow::Ok(())
        });
    }
    for number in 2..replacements + 2 {
        postern.configure(&all(number)?)?;
        let reply = postern.admin_post("/api/reload").await?;
        let told = reply.json()?;
        let changes = told["changes"].as_array().map_or(0, Vec::len);
        // The watch may have been quicker; then nothing was left to change.
        ensure!(reply.status == 200 && (changes == 4 || changes == 0), "replacement {number}: {told}");
    }
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }

    let records = postern.records().all()?;
    let mut versions = std::collections::BTreeMap::new();
    for record in &records {
        let policies = record.intent["policies"].as_array().with_context(|| format!("{record:?}"))?;
        let of = |name: &str, step: &str| policies.iter().find(|said| said["policy"] == name && said["step"] == step);
        let said = of("puppet", "routing").context("the puppet")?;
        let number: usize = said["version"].as_str().unwrap().split('.').nth(1).unwrap().parse()?;
        // What its code says of itself is what the record says of it; at every step the same one was asked; and the others belong to the
        // same configuration.
        assert_eq!(said["annotations"]["version"], format!("puppet-version-{number:06}"), "{record:?}");
        assert!(["redaction", "caching"].iter().all(|step| of("puppet", step).unwrap()["digest"] == said["digest"]));
        assert_eq!(of("routing", "routing").unwrap()["said"], ["cloud", "edge-first"][number % 2], "{record:?}");
        let emails = u64::from(number % 4 < 2);
        assert_eq!(record.intent["redactions"]["email"].as_u64().unwrap_or(0), emails, "{record:?}");
        *versions.entry(number).or_insert(0) += 1;
    }
    assert!(records.len() >= requests && records.iter().all(|record| record.outcome["result"] == "answered"));
    assert_eq!(versions.keys().max(), Some(&(replacements + 1)));
    assert!(versions.len() * 2 > replacements, "requests went on meanwhile: {versions:?}");
    Ok(())
}
