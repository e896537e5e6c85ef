//! Supervisor, gateway and engine: what happens when one of them dies.

use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::{BusyCloud, Postern, chat_body};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{SOON, config};

fn short(prompt: &str) -> Value {
    let mut body = chat_body(prompt);
    body["max_tokens"] = json!(6);
    body["temperature"] = json!(0);
    body
}

#[tokio::test]
async fn the_engine_answers_with_a_real_model_and_comes_back_when_it_is_killed() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).engine()).await?;
    let client = postern.client("clerk/amy")?.with_header("postern-placement", "local");
    let early = client.post_json("/v1/chat/completions", &short("Too early?")).await?;
    if early.status != 200 {
        assert_eq!((early.status, early.error_code().as_str()), (503, "engine_starting"));
        assert!(early.header("retry-after").parse::<u64>()? > 0);
    }
    postern.engine_ready().await?;
    let messages = json!([
        {"role": "system", "content": "You answer in one short sentence."}, {"role": "user", "content": "Why is the sky blue?"},
    ]);
    let body = json!({"model": "chat", "max_tokens": 12, "temperature": 0, "messages": messages});
    let reply = client.post_json("/v1/chat/completions", &body).await?;
    assert!(reply.answer().starts_with("The sky is"), "{}", reply.text());
    assert_eq!((reply.header("postern-target"), reply.json()?["model"].as_str()), ("engine", Some("chat")));

    let mut long = short("Write a long story about the sea.");
    long["max_tokens"] = json!(400);
    let mut events = client.stream(&long).await?;
    let record = events.header("postern-record").to_owned();
    while events.next().await?.unwrap().delta().is_empty() {}
    postern.signal_child("engine", Signal::KILL)?;
    let rest = events.rest().await?;
    let last = rest.last().unwrap();
    // It is told; unless the next engine was there soon enough to go on with it.
    if last.error_code() != "stream_broken" {
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert!(last.is_done() && outcome["continued"].as_u64() >= Some(1), "{last:?} {outcome}");
    }
    // The gateway answers meanwhile, in the cloud what may go there.
    assert_eq!(postern.client("clerk/amy")?.chat("And meanwhile?").await?.header("postern-target"), "sun");
    postern.engine_ready().await?;
    let again = client.post_json("/v1/chat/completions", &short("Are you back?")).await?;
    assert_eq!((again.status, again.header("postern-target")), (200, "engine"));
    Ok(())
}

#[tokio::test]
async fn an_engine_that_hangs_is_killed_and_started_again() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).engine().set("/engine/hung_after", json!("12s"))).await?;
    postern.engine_ready().await?;
    let client = postern.client("clerk/amy")?.with_header("postern-placement", "local");
    assert_eq!(client.post_json("/v1/chat/completions", &short("Are you well?")).await?.status, 200);
    let hung = postern.child("engine").unwrap();
    // A stopped process neither answers nor ends: its sockets stay open.
    postern.signal_child("engine", Signal::STOP)?;
    let deadline = Instant::now() + 3 * SOON;
    while postern.child("engine").is_none_or(|engine| engine == hung) {
        assert!(Instant::now() < deadline, "it still hangs: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(postern.log().contains("a process hangs and is killed"), "{}", postern.log());
    postern.engine_ready().await?;
    assert_eq!(client.post_json("/v1/chat/completions", &short("Are you back?")).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_engine() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).engine()).await?;
    postern.engine_ready().await?;
    let client = postern.client("clerk/amy")?.with_header("postern-placement", "local");
    let mut long = short("Write a long story about the sea.");
    long["max_tokens"] = json!(4000);
    let mut events = client.stream(&long).await?;
    while events.next().await?.unwrap().delta().is_empty() {}
    let record = events.header("postern-record").to_owned();
    drop(events);
    assert_eq!(postern.records().of(&record, SOON).await?.outcome["result"], "client_gone");
    let deadline = Instant::now() + SOON;
    while postern.metrics().await?.value("queue_depth", &[]) != Some(0.0) {
        assert!(Instant::now() < deadline, "the request is still counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_gateway_is_started_again_on_the_same_port_and_its_records_stay_whole() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    cloud.switch(json!({"token_ms": 20})).await?;
    let mut events = client.stream(&chat_body(&"Talk for a long time. ".repeat(40))).await?;
    let record = events.header("postern-record").to_owned();
    events.next().await?;
    postern.signal_child("gateway", Signal::KILL)?;
    // The socket belongs to the supervisor: a new connection waits for the new gateway instead of being refused.
    let reply = client.chat("Are you back?").await?;
    assert_eq!(reply.status, 200);
    let all = postern.records().all()?;
    let cut = all.iter().find(|one| one.id == record).unwrap();
    assert!(!cut.intent.is_null(), "the intent was durable before anything left");
    // It could not write its outcome; the next one did so in its place.
    assert_eq!(cut.outcome["result"], "interrupted");
    assert_eq!(cut.outcome["identity"], cut.intent["identity"]);
    Ok(())
}

#[tokio::test]
async fn what_was_refused_is_on_record_although_the_gateway_is_killed_right_after() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?.pooled()?;
    let mut refused = Vec::new();
    for _ in 0..8 {
        let reply = client.post_json("/v1/chat/completions", &json!({"model": 7})).await?;
        assert_eq!(reply.status, 400);
        refused.push(reply.header("postern-record").to_owned());
    }
    postern.kill_gateway(Duration::from_secs(20)).await?;
    let all = postern.records().all()?;
    for id in refused {
        let record = all.iter().find(|record| record.id == id).expect("a refusal is on record");
        assert_eq!(record.outcome["result"], "refused");
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_supervisor_leaves_its_addresses_to_the_next_one_at_once() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let free = || Ok::<_, std::io::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
    let mut config = config(&cloud);
    for address in ["listen", "admin", "probe"] {
        config = config.set(&format!("/{address}"), json!(free()?));
    }
    let first = Postern::start(&config).await?;
    cloud.switch(json!({"token_ms": 100})).await?;
    let mut events = first.client("clerk/amy")?.stream(&chat_body(&"Talk for a long time. ".repeat(40))).await?;
    events.next().await?;
    postern_tests::process::send(first.pid(), Signal::KILL)?;
    let killed = Instant::now();
    let second = Postern::start(&config).await?;
    assert_eq!((second.admin("/livez").await?.status, second.admin), (200, first.admin));
    cloud.switch(json!({})).await?;
    assert_eq!(second.client("clerk/amy")?.chat("Who are you?").await?.status, 200);
    // The old gateway lets its request end meanwhile.
    events.next().await?;
    assert_eq!(cloud.stats().await?.open, 1, "after {:?}", killed.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_model_that_is_missing_or_damaged_is_named_once() -> Result<()> {
    let (cloud, cache) = (BusyCloud::start().await?, tempfile::tempdir()?);
    let folder = cache.path().display().to_string();
    let postern = Postern::start(&config(&cloud).engine().env("POSTERN_CACHE", &folder)).await?;
    let said = |words: &str| postern.log().matches(words).count();
    let deadline = Instant::now() + SOON;
    while said("postern model pull smollm2-135m-instruct") == 0 {
        assert!(Instant::now() < deadline, "{}", postern.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((said("model pull"), postern.child("engine")), (1, None), "{}", postern.log());
    let file = cache.path().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::create_dir(cache.path().join("models"))?;
    std::fs::write(file, "GGUF")?;
    let list = std::process::Command::new(postern_tests::postern::binary()?)
        .args(["model", "list"])
        .env("POSTERN_CACHE", &folder)
        .output()?;
    assert!(String::from_utf8_lossy(&list.stdout).contains("damaged; `postern model pull"), "{list:?}");
    Ok(())
}

#[tokio::test]
async fn sighup_reloads_and_interrupts_nothing() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let gateway = postern.child("gateway");
    postern_tests::process::send(postern.pid(), Signal::HUP)?;
    let deadline = Instant::now() + SOON;
    while !postern.log().contains("the policies were reloaded") {
        assert!(Instant::now() < deadline, "{}", postern.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(postern.client("clerk/amy")?.chat("Still there?").await?.status, 200);
    assert_eq!(postern.child("gateway"), gateway);
    Ok(())
}

/// Killed when it is dropped, and its children with it.
struct Ending(std::process::Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[tokio::test]
async fn nobody_need_read_standard_output() -> Result<()> {
    use std::io::BufRead as _;
    let (cloud, dir) = (BusyCloud::start().await?, tempfile::Builder::new().prefix("pt").tempdir()?);
    let (config, file) = (config(&cloud), dir.path().join("postern.yaml"));
    std::fs::write(&file, config.render(&dir.path().join("state")))?;
    let mut command = std::process::Command::new(postern_tests::postern::binary()?);
    command.args(["run", "--config", file.to_str().unwrap()]).envs(config.environment().iter().cloned());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut postern = Ending(command.spawn()?);
    let mut ready = String::new();
    // Whoever waited for the ready line reads no further, and the gateway says it again when it is started again.
    std::io::BufReader::new(postern.0.stdout.take().unwrap()).read_line(&mut ready)?;
    let admin = ready.split_once("admin=").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap().to_owned();
    let gateway = |not: Option<u32>| {
        let mut children = postern_tests::process::children(postern.0.id()).into_iter();
        children.find(|pid| Some(*pid) != not)
    };
    let first = gateway(None).unwrap();
    postern_tests::process::send(first, Signal::KILL)?;
    // It is well for longer than one that ends for want of a reader would be.
    let mut same_since = (None, Instant::now());
    let deadline = Instant::now() + SOON;
    while same_since.0.is_none() || same_since.1.elapsed() < Duration::from_secs(2) {
        assert!(Instant::now() < deadline, "it does not stay");
        let alive = postern_tests::client::plain(http::Method::GET, &format!("http://{admin}/livez"), "").await;
        let now = gateway(Some(first)).filter(|_| alive.is_ok_and(|reply| reply.status == 200));
        if now.is_none() || now != same_since.0 {
            same_since = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    postern_tests::process::send(postern.0.id(), Signal::TERM)?;
    assert_eq!(postern.0.wait()?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn sigterm_lets_streams_finish() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let mut postern = Postern::start(&config(&cloud)).await?;
    cloud.switch(json!({"token_ms": 25})).await?;
    let mut events =
        postern.client("clerk/amy")?.stream(&chat_body("A stream that is under way when the end comes")).await?;
    let record = events.header("postern-record").to_owned();
    events.next().await?;
    let stopping = tokio::spawn(async move {
        let status = postern.stop().await;
        (postern, status)
    });
    assert!(events.rest().await?.last().unwrap().is_done());
    drop(events);
    let (postern, status) = stopping.await?;
    assert_eq!(status?.code(), Some(0), "{}", postern.log());
    assert_eq!(postern.records().of(&record, SOON).await?.outcome["result"], "answered");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_does_not_finish_in_time_says_why_it_ends() -> Result<()> {
    // Half a minute, and nothing makes it shorter.
    if std::env::var_os("POSTERN_TEST_ALL").is_none() {
        return Ok(());
    }
    let cloud = BusyCloud::start().await?;
    let mut postern = Postern::start(&config(&cloud)).await?;
    cloud.switch(json!({"hang_after_chunks": 3})).await?;
    let client = postern.client("clerk/amy")?;
    let mut one = client.stream(&chat_body("A stream that never ends")).await?;
    let mut two = client.http2().stream(&chat_body("Another one that never ends")).await?;
    let records = [one.header("postern-record").to_owned(), two.header("postern-record").to_owned()];
    let (stopped, one, two) = tokio::join!(postern.stop(), one.rest(), two.rest());
    assert!(stopped?.success());
    for events in [one?, two?] {
        assert_eq!(events.last().unwrap().error_code(), "drain_timeout", "{events:?}");
    }
    for record in records {
        let outcome = postern.records().of(&record, SOON).await?.outcome;
        assert_eq!((&outcome["result"], &outcome["code"]), (&json!("cut"), &json!("drain_timeout")));
    }
    Ok(())
}

#[tokio::test]
async fn whoever_is_ended_as_soon_as_it_is_ready_ends_well() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud);
    for _ in 0..5 {
        let mut postern = Postern::start(&config).await?;
        let status = postern.stop().await?;
        assert!(status.success(), "{status}: {}", postern.log());
    }
    Ok(())
}
