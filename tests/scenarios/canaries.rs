//! What is secret is put in, and then every byte is searched that was written anywhere.

use std::path::{Path, PathBuf};

use anyhow::Result;
use postern_tests::client::text;
use postern_tests::{BusyCloud, Postern, Redis, chat_body};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;

use crate::{SOON, config};

const WORD: &str = "canaryprompt7Qx2";
const EMAIL: &str = "canary.person@example.org";
const CARD: &str = "4111111111111111";
const MADE: &str = "sk-canarymade0123456789abcdefABCDEF0123456789abcd";
const PASSWORD: &str = "canarypassword51aT";
const KEY: &str = "ca9a2700000000000000000000000000000000000000000000000000ca9a2799";

/// All files below a folder, sockets left out.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(found)
}

fn first_found(bytes: &[u8]) -> Option<&'static str> {
    let key = postern_tests::config::CLOUD_KEY.1;
    let all = [WORD, EMAIL, "canary.person", CARD, MADE, PASSWORD, KEY, key];
    all.into_iter().find(|word| bytes.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes())))
}

#[tokio::test]
async fn nothing_secret_is_written_anywhere() -> Result<()> {
    // A process that dies writes its memory, where it may.
    let limit = Rlimit { current: getrlimit(Resource::Core).maximum, ..getrlimit(Resource::Core) };
    setrlimit(Resource::Core, limit)?;
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start_with(&["--requirepass", PASSWORD]).await?);
    let place = json!({"url": redis.url(), "password": {"env": "REDIS_PASSWORD"}});
    let config = config(&cloud)
        .set("/cache/redis", place.clone())
        .set("/replicas", json!({"count": 2, "redis": place, "key": {"env": "REPLICAS_KEY"}}))
        .set("/answers", json!({"mask": ["secret"]}))
        .set("/tenants", json!({"clerks": {"limits": {"tokens_per_day": 1_000_000, "requests_per_minute": 1000}}}))
        .env("REDIS_PASSWORD", PASSWORD)
        .env("REPLICAS_KEY", KEY)
        .env("POSTERN_LOG", "trace");
    let mut postern = Postern::start(&config).await?;
    for used_for in ["cache", "limits"] {
        let deadline = std::time::Instant::now() + SOON;
        while postern.metrics().await?.value("postern_redis_connected", &[("for", used_for)]) != Some(1.0) {
            anyhow::ensure!(std::time::Instant::now() < deadline, "{}", postern.log());
        }
    }
    let client = postern.client("clerk/amy")?;
    // The first of several gateways waits for what the others may know.
    let deadline = std::time::Instant::now() + SOON;
    while client.chat("Hello?").await?.error_code() == "labels_unavailable" {
        anyhow::ensure!(std::time::Instant::now() < deadline, "{}", postern.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let question = format!("{WORD}: write to {EMAIL} about card {CARD}");
    for _ in 0..2 {
        let answer = client.post_json("/v1/chat/completions", &chat_body(&question)).await?;
        assert!(answer.status == 200 && answer.text().contains(EMAIL), "{}", answer.text());
    }
    let mut streamed = chat_body(&format!("{question} as a stream"));
    streamed["stream"] = json!(true);
    assert!(text(&client.stream(&streamed).await?.rest().await?).contains(CARD));
    // What is refused, and what a target makes and does wrong, is told without it.
    assert_eq!(
        client.with_header("postern-label", WORD).post_json("/v1/chat/completions", &chat_body(WORD)).await?.status,
        400
    );
    assert_eq!(
        client.post_json("/v1/chat/completions", &json!({"model": "chat", WORD: 1, "messages": WORD})).await?.status,
        400
    );
    cloud.switch(json!({"answer": format!("Take {MADE} for {WORD}")})).await?;
    let made = client.post_json("/v1/chat/completions", &chat_body(&format!("{WORD} makes one"))).await?;
    assert!(made.status == 200 && !made.text().contains(MADE), "{}", made.text());
    cloud.switch(json!({"unavailable_share": 1.0, "error_text": format!("{WORD} {MADE}")})).await?;
    let _failed = client.post_json("/v1/chat/completions", &chat_body(&format!("{WORD} fails"))).await?;
    redis.signal(Signal::STOP)?;
    let _away = client.post_json("/v1/chat/completions", &chat_body(&format!("{WORD} without Redis"))).await?;
    redis.signal(Signal::CONT)?;

    let pages = ["/metrics", "/api/status", "/api/policies", "/api/certificates", "/readyz?verbose"];
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    for page in pages {
        said.push((page.to_owned(), postern.admin(page).await?.text().into_bytes()));
    }
    said.push(("the Redis".to_owned(), redis.written()?));
    postern.signal_child("gateway", Signal::SEGV)?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let _ended = postern.stop().await;
    let log = postern.log();
    assert!(log.contains("TRACE"), "{log}");
    said.push(("the log".to_owned(), log.into_bytes()));
    let state = postern.state_dir();
    for file in files(&state)?.into_iter().chain(files(state.parent().unwrap_or(&state))?) {
        // The configuration names where keys are, and has none.
        said.push((file.display().to_string(), std::fs::read(&file)?));
    }
    let here = std::env::current_dir()?;
    let cores =
        std::fs::read_dir(&here)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("core"));
    assert_eq!(cores.count(), 0, "a core in {}", here.display());
    let names: Vec<&str> = said.iter().map(|(name, _)| name.as_str()).collect();
    assert!(
        names.iter().any(|name| name.contains("budgets.json")) && names.iter().any(|name| name.contains("audit")),
        "{names:?}"
    );
    assert!(said.iter().find(|(name, _)| name == "the Redis").is_some_and(|(_, bytes)| bytes.len() > 500));
    for (name, bytes) in &said {
        assert_eq!(first_found(bytes), None, "in {name}");
    }
    Ok(())
}
