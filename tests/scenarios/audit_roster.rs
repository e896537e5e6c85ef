//! Which logs belong together: a roster that each of them signs, so that one that is not shown is missed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_tests::{BusyCloud, Config, Postern, Records, Redis};
use serde_json::{Value, json};

use crate::audit::{audit, copy, folder, key, signed, text};
use crate::{SOON, config};

fn replica(cloud: &BusyCloud, redis: &Redis) -> Config {
    let key = "7f0c3f5a9d1e4b6a8c2d0e1f3a5b7c9d7f0c3f5a9d1e4b6a8c2d0e1f3a5b7c9d";
    let replicas = json!({"count": 3, "redis": redis.url(), "key": {"env": "REPLICAS_KEY"}});
    config(cloud).set("/cache", Value::Null).set("/replicas", replicas).env("REPLICAS_KEY", key)
}

/// Waits until the roster there names so many logs, and all have signed.
async fn complete(log: &Path, logs: usize) -> Result<String> {
    let deadline = Instant::now() + SOON;
    loop {
        let printed = audit(&["roster", "--log", &log.display().to_string()])?;
        let roster = String::from_utf8(printed.stdout)?;
        let names = roster.lines().filter(|line| line.starts_with("log ")).count();
        if names == logs && printed.stderr.is_empty() {
            return Ok(roster);
        }
        ensure!(Instant::now() < deadline, "{roster}{}", String::from_utf8_lossy(&printed.stderr));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What `verify --roster` says, and its exit code.
fn verify(roster: &Path, more: &[&str]) -> Result<(Value, i32)> {
    let roster = roster.display().to_string();
    let output = audit(&[&["verify", "--json", "--roster", &roster], more].concat())?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    Ok((report, output.status.code().context("a code")?))
}

#[tokio::test]
async fn a_log_that_is_not_shown_is_missed_and_a_changed_roster_is_nobodys() -> Result<()> {
    let (cloud, mut redis) = (BusyCloud::start().await?, Redis::start().await?);
    let one = Postern::start(&replica(&cloud, &redis)).await?;
    complete(&folder(&one), 1).await?;
    let first = std::fs::read(folder(&one).join("roster"))?;
    let two = Postern::start(&replica(&cloud, &redis)).await?;
    for postern in [&one, &two] {
        complete(&folder(postern), 2).await?;
    }
    // What a Redis loses is told again; what somebody writes there is not believed.
    redis.restart().await?;
    let name = redis.has_keys("postern:roster:", 1, SOON).await?.remove(0);
    redis.cli(&["SET", &name, "0000postern-roster/v1 branch.test\ngeneration 9\n\n"])?;
    let deadline = Instant::now() + SOON;
    while redis.cli(&["GET", &name])?.contains("generation 9") {
        ensure!(Instant::now() < deadline, "what somebody wrote is left there");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let roster = complete(&folder(&one), 2).await?;
    assert_eq!(complete(&folder(&two), 2).await?, roster, "all have the same");
    assert!(roster.contains("\ngeneration 2\n"), "{roster}");
    let lines = one.records().lines()?;
    let told: Vec<_> = lines.iter().filter(|line| line["what"] == "roster").map(|line| &line["generation"]).collect();
    assert_eq!(told, [&json!(1), &json!(2)]);

    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("roster"), &roster)?;
    std::fs::create_dir(at("logs"))?;
    for (name, postern) in [("one", &one), ("two", &two)] {
        signed(&folder(postern)).await?;
        copy(&folder(postern), &at("logs").join(name))?;
    }
    let logs = at("logs").display().to_string();
    let (log_one, log_two) = (format!("{logs}/one"), format!("{logs}/two"));
    let key = key(&folder(&one))?;
    let (report, code) = verify(&at("roster"), &["--logs", &logs, "--key", &key])?;
    assert_eq!((code, &report["good"], report["logs"].as_array().unwrap().len()), (0, &json!(true), 2), "{report}");
    assert_eq!(verify(&at("roster"), &["--log", &log_one, "--log", &log_two])?.1, 0);

    // One is withheld.
    let (report, code) = verify(&at("roster"), &["--log", &log_one, "--key", &key])?;
    assert_eq!(code, 1);
    assert!(report["logs"][1]["findings"][0].as_str().unwrap().contains("it is not there"), "{report}");
    let said = text(&audit(&["verify", "--roster", &at("roster").display().to_string(), "--log", &log_one])?);
    assert!(said.contains("NOT GOOD") && said.contains("not given"), "{said}");

    // The roster is cut down to what is shown: nobody has signed that; the older one, which was signed, is known to be old.
    let withheld = crate::audit::key(&folder(&two))?;
    let cut: String = roster.lines().filter(|line| !line.contains(&withheld)).map(|line| format!("{line}\n")).collect();
    std::fs::write(at("cut"), cut)?;
    let (report, code) = verify(&at("cut"), &["--log", &log_one, "--key", &key])?;
    assert_eq!((code, report["unsigned"].as_array().unwrap().len()), (1, 1), "{report}");
    std::fs::write(at("old"), &first)?;
    let (report, code) = verify(&at("old"), &["--log", &log_one, "--key", &key])?;
    assert_eq!(code, 1);
    assert!(report["findings"][0].as_str().unwrap().contains("of generation 2"), "{report}");

    // A log that is not good, or is none of these.
    std::fs::write(at("logs/two/checkpoint"), "nothing")?;
    assert_eq!(verify(&at("roster"), &["--logs", &logs])?.1, 1);
    let stranger = Postern::start(&config(&cloud)).await?;
    let (report, code) =
        verify(&at("roster"), &["--log", &log_one, "--log", &folder(&stranger).display().to_string()])?;
    assert_eq!(code, 1);
    assert!(report.to_string().contains("does not name this log"), "{report}");
    Ok(())
}

#[tokio::test]
async fn a_gateway_alone_lists_the_logs_that_it_has_begun_and_who_is_retired_stays_named() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let dir = tempfile::Builder::new().prefix("pr").tempdir()?;
    let state = dir.path().join("state");
    let config = config(&cloud).set("/state_dir", json!(state));
    let mut postern = Postern::start(&config).await?;
    complete(&state.join("audit"), 1).await?;
    assert!(postern.stop().await?.success());
    let name = key(&state.join("audit"))?.split('+').next().context("a name")?.to_owned();
    // Another folder: another log, and the roster names both.
    let config = config.set("/audit/dir", json!("audit-2"));
    let mut postern = Postern::start(&config).await?;
    let roster = complete(&state.join("audit-2"), 2).await?;
    assert!(roster.contains(&format!("log {name}+")), "{roster}");
    assert!(postern.stop().await?.success());
    std::fs::write(dir.path().join("roster"), &roster)?;
    let (first, second) = (state.join("audit").display().to_string(), state.join("audit-2").display().to_string());
    assert_eq!(verify(&dir.path().join("roster"), &["--log", &first, "--log", &second])?.1, 0);
    assert_eq!(verify(&dir.path().join("roster"), &["--log", &second])?.1, 1);

    // Somebody changes the file; it is noticed and written anew. And an operator lets the first one go.
    std::fs::write(state.join("audit-2/roster"), roster.replace("generation", "generation "))?;
    let postern = Postern::start(&config.set("/audit/retired", json!([name]))).await?;
    postern.logged("is not what this gateway signed").await?;
    let deadline = Instant::now() + SOON;
    let roster = loop {
        let roster = complete(&state.join("audit-2"), 2).await.unwrap_or_default();
        if roster.contains(&format!("\nretired {name}\n")) {
            break roster;
        }
        ensure!(Instant::now() < deadline, "{roster}");
    };
    std::fs::write(dir.path().join("roster"), &roster)?;
    signed(&state.join("audit-2")).await?;
    let (report, code) = verify(&dir.path().join("roster"), &["--log", &second])?;
    assert_eq!(code, 0, "{report}");
    let retired = report["logs"].as_array().unwrap().iter().find(|log| log["log"] == name.as_str()).unwrap();
    assert_eq!((&retired["retired"], &retired["folder"]), (&json!(true), &Value::Null));
    Ok(())
}

#[tokio::test]
async fn a_roster_is_on_record_before_it_is_in_its_file() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let dir = tempfile::Builder::new().prefix("pr").tempdir()?;
    // Nothing can be written in the place of a folder that is not empty.
    let (state, in_the_way) = (dir.path().join("state"), dir.path().join("state/audit/roster/full"));
    std::fs::create_dir_all(&in_the_way)?;
    let postern = Postern::start(&config(&cloud).set("/state_dir", json!(state))).await?;
    let records = Records::in_folder(state.join("audit"));
    let told = || -> Result<usize> { Ok(records.lines()?.iter().filter(|line| line["what"] == "roster").count()) };
    let deadline = Instant::now() + SOON;
    while told().unwrap_or_default() == 0 {
        ensure!(Instant::now() < deadline, "it is not on record: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    postern.logged("the roster of the logs is not as it must be yet").await?;
    assert!(in_the_way.exists());
    std::fs::remove_dir_all(state.join("audit/roster"))?;
    complete(&state.join("audit"), 1).await?;
    assert_eq!(told()?, 1, "once");
    Ok(())
}

#[tokio::test]
async fn whoever_goes_offline_asks_the_redis_nothing_any_more() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let postern = Postern::start(&replica(&cloud, &redis)).await?;
    complete(&folder(&postern), 1).await?;
    let theirs = || -> Result<usize> {
        Ok(redis.cli(&["CLIENT", "LIST"])?.lines().filter(|line| !line.contains("cmd=client")).count())
    };
    ensure!(theirs()? > 0, "it is not there before");
    assert_eq!(postern.admin_post("/api/offline").await?.status, 202);
    let deadline = Instant::now() + SOON * 2;
    while postern.admin("/api/status").await.and_then(|reply| reply.json()).unwrap_or_default()["offline"] != true {
        ensure!(Instant::now() < deadline, "{}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    redis.cli(&["CONFIG", "RESETSTAT"])?;
    // The roster is looked after each five seconds.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(theirs()?, 0);
    let connections = redis.cli(&["INFO", "stats"])?;
    let since = connections.lines().find_map(|line| line.trim().strip_prefix("total_connections_received:"));
    // Those of this test.
    assert!(since.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count <= 2), "{connections}");
    complete(&folder(&postern), 1).await?;
    Ok(())
}
