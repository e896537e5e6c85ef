//! Hostile and broken policies through the real gateway: the strictest vote, counted, and nobody else notices.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use postern_tests::process::program;
use postern_tests::{BusyCloud, Client, Config, Postern, chat_body};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::config;

/// A policy from text, as a component in a file.
fn hostile(name: &str, world: &str, dir: &TempDir) -> Result<PathBuf> {
    let text =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/host/tests/fixtures").join(name).with_extension("wat");
    let (core, component) = (dir.path().join("core.wasm"), dir.path().join(name).with_extension("wasm"));
    std::fs::write(&core, wat::parse_file(text)?)?;
    let output = Command::new(program("postern-componentize")?).arg(&core).arg(&component).arg(world).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(component)
}

fn with_policy(config: Config, component: &Path, more: &[(&str, Value)]) -> Config {
    let mut policy = json!({"name": "hostile", "component": component, "deadline": "200ms", "memory": "8MiB"});
    for (key, value) in more {
        policy[*key] = value.clone();
    }
    config.push("/policies", policy)
}

async fn local(client: &Client, prompt: &str) -> Result<postern_tests::Reply> {
    let mut body = chat_body(prompt);
    body["max_tokens"] = json!(2);
    client.post_json("/v1/chat/completions", &body).await
}

#[tokio::test]
async fn a_policy_that_fails_counts_as_the_strictest_vote() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, world, step, kind) in [
        ("trap", "full-policy", "routing", "trap"),
        ("loop", "full-policy", "routing", "deadline"),
        ("memory", "full-policy", "routing", "memory"),
        ("span-behind-end", "redaction-policy", "redaction", "output"),
        ("refuses", "redaction-policy", "redaction", "refused"),
        ("span-flood", "redaction-policy", "redaction", "output"),
    ] {
        let cloud = BusyCloud::start().await?;
        let component = hostile(name, world, &dir)?;
        let postern = Postern::start(&with_policy(config(&cloud), &component, &[])).await?;
        // Operators need not wait for the first user.
        let steps: &[&str] = if world == "full-policy" { &["redaction", "routing", "caching"] } else { &[step] };
        let (ready, status) = (postern.admin("/readyz?verbose").await?, postern.admin("/api/status").await?.json()?);
        let line = format!("policy hostile: failing ({})\n", steps.join(", "));
        assert!(ready.status == 200 && ready.text().contains(&line), "{ready:?}");
        assert_eq!(status["policies_failing"], json!([{"name": "hostile", "steps": steps}]));
        // There is no engine, so what may be answered on this machine only is not answered at all.
        let client = postern.client("clerk/amy")?;
        for prompt in ["A harmless prompt", "Another prompt with heron42 in it"] {
            let refused = local(&client, prompt).await?;
            assert_eq!(
                (refused.status, refused.error_code().as_str()),
                (403, "no_permitted_target"),
                "{name}: {}",
                refused.text()
            );
        }
        assert_eq!(cloud.stats().await?.requests, 0, "{name}");
        let failures =
            postern.metrics().await?.sum("postern_policy_failures_total", &[("policy", "hostile"), ("kind", kind)]);
        assert!(failures >= 2.0, "{name} ({step}): {failures} of {kind}");
        let log = postern.log();
        assert!(log.contains("a policy failed") && !log.contains("heron42"), "{log}");
        assert_eq!(postern.admin("/livez").await?.status, 200, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn with_an_engine_the_strictest_vote_is_answered_there_and_reject_refuses() -> Result<()> {
    let (dir, cloud) = (tempfile::tempdir()?, BusyCloud::start().await?);
    let component = hostile("trap", "full-policy", &dir)?;
    let postern = Postern::start(&with_policy(config(&cloud).engine(), &component, &[])).await?;
    postern.engine_ready().await?;
    let reply = local(&postern.client("clerk/amy")?, "Hello").await?;
    let told = (reply.status, reply.header("postern-target"), reply.header("postern-reason"));
    assert_eq!(told, (200, "engine", "policy_failed"), "{}", reply.text());
    drop(postern);
    let reject = [("on_failure", json!("reject"))];
    let postern = Postern::start(&with_policy(config(&cloud), &component, &reject)).await?;
    let refused = postern.client("clerk/amy")?.chat("Hello").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "policy_denied"));
    assert!(refused.error_message().contains("hostile"));
    assert_eq!(cloud.stats().await?.requests, 0);
    Ok(())
}

#[tokio::test]
async fn a_component_that_asks_for_more_than_it_may_have_is_refused_at_start() -> Result<()> {
    let (dir, cloud) = (tempfile::tempdir()?, BusyCloud::start().await?);
    let component = dir.path().join("wants-more.wasm");
    std::fs::write(&component, wat::parse_str(r#"(component (import "office:files/all@1.0.0" (instance)))"#)?)?;
    let error = Postern::start(&with_policy(config(&cloud), &component, &[])).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("hostile") && said.contains("office:files/all"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_rule_about_a_header_needs_that_header_to_be_granted() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let rules = json!({"rules": [{"headers": {"x-team": "blue"}, "deny": "not blue"}]});
    for (granted, denied) in [(json!({"headers": ["X-Team"]}), 403), (json!({}), 200)] {
        let policy = json!({"name": "rules", "component": "builtin:routing", "config": rules, "grants": granted});
        let postern = Postern::start(&config(&cloud).push("/policies", policy)).await?;
        let client = postern.client("clerk/amy")?;
        for (team, status) in [("blue", denied), ("red", 200)] {
            let reply = client.with_header("x-team", team).chat(&format!("Hello from {team}")).await?;
            assert_eq!(reply.status, status, "{granted} {team}: {}", reply.text());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_routing_policy_may_deny_and_raise() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let rules = json!({"rules": [{"model": "forbidden", "deny": "not in this office"}]});
    let postern = Postern::start(&config(&cloud).policy("rules", "builtin:routing", rules)).await?;
    let client = postern.client("clerk/amy")?;
    let mut body = chat_body("Hello");
    body["model"] = json!("forbidden");
    let refused = client.post_json("/v1/chat/completions", &body).await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "policy_denied"));
    assert!(!refused.text().contains("not in this office"), "a plugin's words do not reach a client");
    assert_eq!(client.chat("Hello").await?.status, 200);
    Ok(())
}
