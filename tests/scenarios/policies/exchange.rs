//! Policies are exchanged while requests go on: what is good is put in force, what is broken is refused and the old stays.

use std::io::Write as _;

use anyhow::Result;
use postern_tests::process::send;
use postern_tests::{BusyCloud, Postern};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Puppet, ask, config, described, said, until, with};

#[tokio::test]
async fn a_new_version_counts_from_the_next_request_on_and_keeps_what_was_counted() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let policy = puppet.policy(json!({"tell_version": true, "at_most": 3}));
    let postern = Postern::start(&config(&cloud, policy)).await?;
    let client = postern.client("clerk/amy")?;
    for (number, status) in [(1, 200), (2, 200), (3, 200), (4, 403)] {
        if number > 1 {
            puppet.install(&puppet.version(number, &[])?)?;
            let reply = postern.admin_post("/api/reload").await?.json()?;
            let change = reply["changes"][0].as_str().unwrap_or_default();
            assert!(change.contains(&format!("version 1.{number}.0")) && change.contains("puppet"), "{reply}");
        }
        let reply = ask(&client, "chat", "Hello").await?;
        assert_eq!(reply.status, status, "version {number}: {}", reply.text());
        let said = said(&postern, &reply).await?;
        assert_eq!(said["version"], format!("1.{number}.0"));
        assert_eq!(said["annotations"]["version"], format!("puppet-version-{number:06}"));
        assert_eq!(said["digest"], described(&postern, "puppet").await?["digest"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_changes_is_noticed_and_a_half_written_one_is_refused() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let postern = Postern::start(&config(&cloud, puppet.policy(json!({})))).await?;
    let version = async || Ok::<_, anyhow::Error>(described(&postern, "puppet").await?["version"].clone());
    puppet.install(&puppet.version(2, &[])?)?;
    until(async || Ok((version().await? == "1.2.0").then_some(()))).await?;
    // Copied in place, and the copy stops half way: as slow a disk as there is.
    let whole = std::fs::read(puppet.version(3, &[])?)?;
    let mut file = std::fs::File::create(puppet.installed())?;
    file.write_all(&whole[..whole.len() / 2])?;
    file.sync_all()?;
    let refused = until(async || {
        let last = postern.admin("/api/policies").await?.json()?["last_reload"].clone();
        Ok((last["successful"] == false).then_some(last))
    })
    .await?;
    assert!(refused["error"].as_str().unwrap().contains("puppet"), "{refused}");
    assert_eq!(version().await?, "1.2.0");
    let client = postern.client("clerk/amy")?;
    assert_eq!(ask(&client, "chat", "Hello").await?.status, 200);
    assert!(postern.log().contains("those that were there stay"));
    file.write_all(&whole[whole.len() / 2..])?;
    drop(file);
    until(async || Ok((version().await? == "1.3.0").then_some(()))).await?;
    assert_eq!(postern.metrics().await?.value("postern_config_last_reload_successful", &[]), Some(1.0));
    Ok(())
}

#[tokio::test]
async fn sighup_and_a_changed_configuration_are_heard() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let first = config(&cloud, puppet.policy(json!({})));
    let postern = Postern::start(&first).await?;
    let client = postern.client("clerk/amy")?;
    let denies = config(&cloud, puppet.policy(json!({"vote": {"deny": "closed"}})));
    postern.configure(&denies)?;
    // The supervisor is who an operator finds.
    send(postern.pid(), Signal::HUP)?;
    until(async || Ok((ask(&client, "chat", "Hello").await?.status == 403).then_some(()))).await?;
    assert!(postern.log().contains("policy puppet: configured anew"), "{}", postern.log());
    // Without being told.
    postern.configure(&first)?;
    until(async || Ok((ask(&client, "chat", "Hello").await?.status == 200).then_some(()))).await?;

    // What takes a restart is said, and does not count; what concerns policies does.
    let more = first
        .set("/limits", json!({"messages": 1}))
        .set("/routing/default", json!("local"))
        .push("/policies", with(puppet.policy(json!({})), &[("name", json!("second"))]));
    postern.configure(&more)?;
    let reply = postern.admin_post("/api/reload").await?;
    let told = reply.json()?;
    assert_eq!((reply.status, &told["needs_restart"]), (200, &json!(["limits"])), "{told}");
    assert!(
        told["changes"].to_string().contains("policy second is new") && told["changes"].to_string().contains("routing"),
        "{told}"
    );
    assert_eq!(described(&postern, "second").await?["state"], "live");
    let mut body = postern_tests::chat_body("Hello");
    body["messages"] = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    let reply = client.post_json("/v1/chat/completions", &body).await?;
    assert_eq!(
        reply.error_code(),
        "no_permitted_target",
        "two messages are still allowed, and `local` counts: {}",
        reply.text()
    );

    // Nothing of a file that is wrong somewhere counts.
    std::fs::write(
        postern.config_file(),
        std::fs::read_to_string(postern.config_file())?.replace("\"limits\"", "\"limitz\""),
    )?;
    let reply = postern.admin_post("/api/reload").await?;
    assert!(
        reply.status == 422 && reply.text().contains("limitz") && reply.text().contains("line"),
        "{}",
        reply.text()
    );
    assert_eq!(described(&postern, "second").await?["state"], "live");
    Ok(())
}

#[tokio::test]
async fn a_version_that_fails_where_the_old_one_did_not_is_refused() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[])?;
    let with_trap = |model: Value| config(&cloud, puppet.policy(json!({"trap_on_model": model})));
    let postern = Postern::start(&with_trap(json!(null))).await?;
    let client = postern.client("clerk/amy")?;
    // Only requests that may leave are kept to try others on.
    let classified = client.with_header("postern-label", "classified");
    assert_eq!(ask(&classified, "secret-model", "Something else").await?.status, 403);
    assert_eq!(ask(&client, "small", "Hello").await?.status, 200);
    postern.configure(&with_trap(json!("small")))?;
    let refused = postern.admin_post("/api/reload").await?;
    assert_eq!(refused.status, 422);
    let why = refused.json()?["error"].as_str().unwrap().to_owned();
    assert!(why.contains("fails (routing, trap) on a request that was answered before"), "{why}");
    assert_eq!(ask(&client, "small", "Hello").await?.status, 200);
    postern.configure(&with_trap(json!("secret-model")))?;
    assert_eq!(postern.admin_post("/api/reload").await?.status, 200, "it was not kept");
    // What does not work at all is refused as well.
    postern.configure(&config(&cloud, puppet.policy(json!({"no_such_option": 1}))))?;
    let refused = postern.admin_post("/api/reload").await?;
    assert!(refused.status == 422 && refused.text().contains("no_such_option"), "{}", refused.text());
    Ok(())
}

#[tokio::test]
async fn what_policies_were_told_is_kept_if_that_is_wanted_and_never_text() -> Result<()> {
    let (cloud, puppet) = (BusyCloud::start().await?, Puppet::new()?);
    puppet.first(&[("grants", json!({"text": true}))])?;
    let policy = with(puppet.policy(json!({"vote": {"placement": "cloud"}})), &[("grants", json!({"text": true}))]);
    let config = config(&cloud, policy).cache().set("/plugins/record", json!({"file": "told.jsonl", "max": "1MiB"}));
    let postern = Postern::start(&config).await?;
    let client = postern.client("clerk/amy")?;
    let reply = ask(&client, "chat", "About heron42").await?;
    assert_eq!(ask(&client.with_header("postern-label", "classified"), "chat", "About heron43").await?.status, 403);
    assert_eq!(ask(&client, "chat", "About heron44").await?.status, 200);
    let file = postern.state_dir().join("told.jsonl");
    let text = until(async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Ok((text.lines().count() >= 2).then_some(text))
    })
    .await?;
    assert!(!text.contains("heron") && !text.contains("\"classified\",\"final"), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "what must stay here is not kept: {text}");
    let first = &lines[0];
    assert_eq!(first["record"], reply.header("postern-record"));
    assert_eq!((&first["request"]["model"], &first["final_label"]), (&json!("chat"), &json!("public")));
    assert_eq!(first["answers"][0]["answer"]["route"]["placement"], "cloud");
    assert_eq!(first["answers"][1]["answer"]["plan"]["mode"], "exact");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file)?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}
