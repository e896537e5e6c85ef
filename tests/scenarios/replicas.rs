//! Several gateways of one office, and the Redis that they share. Whatever happens to that, requests go on.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_tests::client::text;
use postern_tests::postern::check;
use postern_tests::{BusyCloud, Client, Config, Postern, Redis, chat_body};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::limits::{a_thousand_streams, bounded, held, held_within, slow};
use crate::{SOON, config};

const KEY: &str = "7f0c3f5a9d1e4b6a8c2d0e1f3a5b7c9d7f0c3f5a9d1e4b6a8c2d0e1f3a5b7c9d";

/// One of two gateways that keep answers in `redis`.
fn caching(cloud: &BusyCloud, redis: &Redis) -> Config {
    let replicas = json!({"count": 2, "key": {"env": "REPLICAS_KEY"}});
    config(cloud).set("/cache/redis", json!(redis.url())).set("/replicas", replicas).env("REPLICAS_KEY", KEY)
}

/// One of two gateways that count together in `redis`.
fn counting(cloud: &BusyCloud, redis: &str) -> Config {
    let replicas = json!({"count": 2, "redis": redis, "key": {"env": "REPLICAS_KEY"}});
    let config = config(cloud).set("/cache", Value::Null).set("/replicas", replicas).env("REPLICAS_KEY", KEY);
    // Limits go on while it is away; labels do where that is wanted.
    config.set("/classification/taint", json!({"unavailable": "own"}))
}

async fn connected(postern: &Postern, used_for: &str, is: f64) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while postern.metrics().await?.value("postern_redis_connected", &[("for", used_for)]) != Some(is) {
        anyhow::ensure!(Instant::now() < deadline, "the Redis for {used_for} is not {is}: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn ask(client: &Client, body: &Value) -> Result<(String, String)> {
    let reply = client.post_json("/v1/chat/completions", body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json()?["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    Ok((reply.header("postern-cache").to_owned(), answer))
}

#[tokio::test]
async fn an_answer_of_one_replica_is_given_by_the_other_with_its_own_values_and_nobody_else_can_read_it() -> Result<()>
{
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let (one, mut two) =
        (Postern::start(&caching(&cloud, &redis)).await?, Postern::start(&caching(&cloud, &redis)).await?);
    for postern in [&one, &two] {
        connected(postern, "cache", 1.0).await?;
    }
    let (amy, bo) = (one.client("clerk/amy")?, two.client("clerk/bo")?);
    let greeting = |to: &str| chat_body(&format!("Canary-prompt-4711: greet {to} warmly"));
    assert_eq!(ask(&amy, &greeting("ann@example.org")).await?.0, "miss");
    let keys = redis.has_keys("postern:2:answer:", 1, SOON).await?;
    let (how, answer) = ask(&bo, &greeting("zoe@example.net")).await?;
    assert_eq!(how, "exact", "{}", two.log());
    assert!(answer.contains("zoe@example.net") && !answer.contains("ann@"), "{answer}");
    // Of the memory now: a Redis that is gone is not missed.
    assert_eq!(ask(&bo, &greeting("kim@example.com")).await?.0, "exact");
    assert_eq!(ask(&two.client("guest/x")?, &greeting("zoe@example.net")).await?.0, "miss", "another tenant");
    assert_eq!(ask(&bo.with_header("postern-label", "internal"), &greeting("a@example.org")).await?.0, "miss");

    // A stream stays a stream.
    let mut streamed = chat_body("Canary-prompt-4711, streamed");
    streamed["stream"] = json!(true);
    let first = amy.stream(&streamed).await?.rest().await?;
    redis.has_keys("postern:2:answer:", keys.len() + 3, SOON).await?;
    let mut again = bo.stream(&streamed).await?;
    assert_eq!(again.header("postern-cache"), "exact");
    assert_eq!(text(&again.rest().await?), text(&first));

    // Over a restart.
    two.stop().await?;
    let three = Postern::start(&caching(&cloud, &redis)).await?;
    connected(&three, "cache", 1.0).await?;
    assert_eq!(ask(&three.client("clerk/cy")?, &greeting("ann@example.org")).await?.0, "exact");
    assert_eq!(cloud.stats().await?.requests, 4);

    let written = redis.written()?;
    for canary in [
        "Canary",
        "anary-prompt",
        "example.org",
        "example.net",
        "warmly",
        "clerk",
        "guest",
        "internal",
        "choices",
        "EMAIL",
        KEY,
    ] {
        assert!(!holds(&written, canary), "{canary} is in the Redis");
    }
    Ok(())
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

#[tokio::test]
async fn what_may_not_leave_and_what_was_changed_is_not_taken_from_a_redis() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let postern = Postern::start(&caching(&cloud, &redis).engine()).await?;
    postern.engine_ready().await?;
    connected(&postern, "cache", 1.0).await?;
    let client = postern.client("clerk/amy")?;
    let secret = client.with_header("postern-label", "classified");
    let body = bounded("Say a word", 2);
    assert_eq!((ask(&secret, &body).await?.0, ask(&secret, &body).await?.0), ("miss".to_owned(), "exact".to_owned()));
    let body = bounded("Say another word", 2);
    assert_eq!(ask(&client, &body).await?.0, "miss");
    let keys = redis.has_keys("postern:2:answer:", 1, SOON).await?;
    assert_eq!(keys.len(), 1, "of the public one only");

    // Another gateway finds what somebody has changed, or put under another key, and asks anew.
    let other = chat_body("Something else");
    ask(&client, &other).await?;
    let both = redis.has_keys("postern:2:answer:", 2, SOON).await?;
    let second = both.iter().find(|key| !keys.contains(key)).unwrap();
    redis.cli(&["COPY", &keys[0], second, "REPLACE"])?;
    redis.cli(&["SETRANGE", &keys[0], "40", "x"])?;
    let two = Postern::start(&caching(&cloud, &redis)).await?;
    connected(&two, "cache", 1.0).await?;
    let client = two.client("clerk/amy")?;
    assert_eq!((ask(&client, &body).await?.0, ask(&client, &other).await?.0), ("miss".to_owned(), "miss".to_owned()));
    // And one of another key finds nothing at all.
    let stranger = caching(&cloud, &redis).env("REPLICAS_KEY", &KEY.replace('7', "8"));
    let three = Postern::start(&stranger).await?;
    connected(&three, "cache", 1.0).await?;
    assert_eq!(ask(&three.client("clerk/amy")?, &other).await?.0, "miss");
    Ok(())
}

/// What is kept of a tenant is unreadable when its keys are destroyed, whoever has it, and nobody else loses anything.
#[tokio::test]
async fn what_is_kept_of_a_tenant_is_erased_with_its_keys() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let mut one = Postern::start(&caching(&cloud, &redis)).await?;
    connected(&one, "cache", 1.0).await?;
    let (amy, guest) = (one.client("clerk/amy")?, one.client("guest/x")?);
    let body = chat_body("What is to be forgotten");
    let hash = async |client: &Client| -> Result<String> {
        let reply = client.with_header("cache-control", "no-store").post_json("/v1/chat/completions", &body).await?;
        let record = one.records().of(reply.header("postern-record"), SOON).await?;
        Ok(record.intent["request_hash"].as_str().unwrap_or_default().to_owned())
    };
    let (clerks, guests) = (hash(&amy).await?, hash(&guest).await?);
    assert!(clerks.len() == 16 && clerks != guests && clerks == hash(&amy).await?, "{clerks} {guests}");
    ask(&amy, &body).await?;
    ask(&guest, &body).await?;
    redis.has_keys("postern:2:answer:", 2, SOON).await?;
    let keys = redis.has_keys("postern:2:key:", 2, SOON).await?;
    assert_eq!(keys.len(), 2, "one for each tenant and label");
    // Somebody keeps a copy of all of it, but for the keys.
    let answers = redis.has_keys("postern:2:answer:", 2, SOON).await?;
    for answer in &answers {
        redis.cli(&["COPY", answer, &format!("copy-of-{answer}")])?;
    }

    let config = one.config_file().display().to_string();
    let environment: Vec<(String, String)> = one.environment().collect();
    let erase = |tenant: &str| {
        let mut command = std::process::Command::new(postern_tests::postern::binary()?);
        command.envs(environment.iter().cloned()).args(["state", "erase", "--config", &config, "--tenant", tenant]);
        anyhow::Ok(command.output()?)
    };
    let erased = erase("clerks")?;
    assert!(erased.status.success(), "{erased:?}\n{}", one.log());
    assert!(String::from_utf8_lossy(&erased.stdout).contains("the keys of clerks are destroyed"));
    assert_eq!(redis.keys("postern:2:key:")?.len(), 1);
    assert_ne!(hash(&amy).await?, clerks, "what the hashes in the records are of can be tried by nobody");
    assert_eq!(hash(&guest).await?, guests);
    let actions: Vec<Value> = one.records().lines()?.into_iter().filter(|line| line["action"] == "erase").collect();
    let told: Vec<_> = actions.iter().map(|line| (&line["subject"], &line["result"])).collect();
    assert_eq!(told, [(&json!("clerks"), &json!("asked")), (&json!("clerks"), &json!("done"))]);

    // Another gateway reads what was erased no more, not even when it is put back; what is another tenant's it does.
    let two = Postern::start(&caching(&cloud, &redis)).await?;
    connected(&two, "cache", 1.0).await?;
    for answer in &answers {
        redis.cli(&["COPY", &format!("copy-of-{answer}"), answer, "REPLACE"])?;
    }
    assert_eq!(ask(&two.client("guest/x")?, &body).await?.0, "exact");
    assert_eq!(ask(&two.client("clerk/amy")?, &body).await?.0, "miss");

    // Without a gateway it waits, and says so.
    assert!(one.stop().await?.success());
    let waiting = erase("clerks")?;
    assert!(!waiting.status.success());
    assert!(String::from_utf8_lossy(&waiting.stderr).contains("no gateway runs"), "{waiting:?}");
    Ok(())
}

#[tokio::test]
async fn a_redis_that_hangs_lies_or_is_away_costs_no_request() -> Result<()> {
    let (cloud, mut redis) = (BusyCloud::start().await?, Redis::start().await?);
    let both = caching(&cloud, &redis)
        .set("/replicas/redis", json!(redis.url()))
        .set("/classification/taint", json!({"unavailable": "own"}))
        .set("/tenants", json!({"clerks": {"limits": {"tokens_per_minute": 4_000_000}}}));
    let postern = Postern::start(&both).await?;
    connected(&postern, "cache", 1.0).await?;
    connected(&postern, "limits", 1.0).await?;
    let client = postern.client("clerk/amy")?;
    ask(&client, &chat_body("Before")).await?;
    redis.signal(Signal::STOP)?;
    for n in 0..20 {
        ask(&client, &chat_body(&format!("While it hangs {n}"))).await?;
    }
    connected(&postern, "limits", 0.0).await?;
    redis.signal(Signal::CONT)?;
    connected(&postern, "limits", 1.0).await?;
    // What it cannot do is told to somebody who can mend it, and costs nobody anything.
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"])?;
    for n in 0..5 {
        ask(&client, &chat_body(&format!("While it is full {n}"))).await?;
    }
    postern.logged("OOM").await?;
    redis.kill();
    for n in 0..5 {
        ask(&client, &chat_body(&format!("While it is away {n}"))).await?;
    }
    // Somebody else at its address, who sends without end.
    let liar = TcpListener::bind(redis.address).await?;
    let lying = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = liar.accept().await else { continue };
            std::thread::spawn(move || {
                let Ok(mut stream) = stream.into_std() else { return };
                let _blocking = stream.set_nonblocking(false);
                let begun = stream.write_all(b"+OK\r\n+OK\r\n*1000000\r\n$500000000\r\n");
                let endless = [b'x'; 65_536];
                while begun.is_ok() && stream.write_all(&endless).is_ok() {}
            });
        }
    });
    for n in 0..40 {
        ask(&client, &chat_body(&format!("While it lies {n}"))).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lying.abort();
    let gateway = postern.child("gateway").unwrap_or_else(|| postern.pid());
    let resident = postern_tests::process::resident_bytes(gateway).unwrap_or_default();
    assert!(resident < 400 << 20, "{} MiB", resident >> 20);
    Ok(())
}

/// What a request is labelled.
async fn label(client: &Client, text: &str) -> Result<String> {
    Ok(client.chat(text).await?.header("postern-label").to_owned())
}

/// Waits until labels can be asked for again.
async fn knows(client: &Client) -> Result<()> {
    let deadline = Instant::now() + SOON;
    let mut number = 0;
    loop {
        number += 1;
        let reply = client.chat(&format!("{number}: is it known?")).await?;
        if reply.error_code() != "labels_unavailable" {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "labels are not known again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const HERON: &str =
    "The heron project moves its second site to the harbour in spring, and nobody outside of the board knows it yet.";
const LEDGER: &str = "Last year's ledger of the northern branch is short of four hundred thousand, and the auditors must not hear of it.";

#[tokio::test]
async fn labels_are_remembered_together_and_while_they_cannot_be_nothing_goes_to_the_cloud() -> Result<()> {
    let (cloud, mut redis) = (BusyCloud::start().await?, Redis::start().await?);
    let config = counting(&cloud, &redis.url()).set("/classification", json!({}));
    let config = config.set("/identities/2/tenant", json!("clerks"));
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    let both = async |is: f64| -> Result<()> {
        for postern in [&one, &two] {
            connected(postern, "labels", is).await?;
        }
        Ok(())
    };
    both(1.0).await?;
    let (amy, bo) = (one.client("clerk/amy")?, two.client("clerk/bo")?);
    knows(&amy).await?;
    knows(&bo).await?;
    assert_eq!(label(&amy.with_header("postern-label", "classified"), HERON).await?, "classified");
    let reply = bo.chat(&format!("Well. {}", &HERON[20..])).await?;
    assert_eq!((reply.status, reply.header("postern-label")), (403, "classified"), "{}", reply.text());
    assert_eq!(label(&two.client("officer/x")?, HERON).await?, "confidential", "another tenant");
    // An answer that is being read here is known there.
    cloud.switch(json!({"answer": LEDGER, "token_ms": 10, "chunk_chars": 9})).await?;
    let mut events = amy.with_header("postern-label", "internal").stream(&chat_body("What of the ledger?")).await?;
    let mut read = String::new();
    while read.len() < 85 {
        let event = events.next().await?.context("the rest")?;
        read.push_str(event.json()["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    assert_eq!(label(&bo, &read).await?, "internal");
    drop(events);
    cloud.switch(json!({})).await?;

    // Away: nobody knows what the other one knows.
    redis.kill();
    both(0.0).await?;
    let before = cloud.stats().await?.requests;
    for client in [&amy, &bo] {
        let refused = client.chat("Good morning").await?;
        assert_eq!((refused.status, refused.error_code().as_str()), (503, "labels_unavailable"), "{}", refused.text());
        assert!(!refused.header("retry-after").is_empty());
    }
    // Who may not have the highest label is told the same, and not that the label is refused.
    assert_eq!(one.client("guest/x")?.chat("Good morning").await?.error_code(), "labels_unavailable");
    // What is marked meanwhile is told later.
    let refused = amy.with_header("postern-label", "confidential").chat(LEDGER).await?;
    assert_eq!(refused.error_code(), "labels_unavailable");
    assert_eq!(cloud.stats().await?.requests, before);

    // It comes back empty: each tells what it knows before anything is looked up there.
    redis.restart().await?;
    both(1.0).await?;
    knows(&amy).await?;
    knows(&bo).await?;
    assert_eq!(label(&bo, &LEDGER[10..]).await?, "confidential");
    assert_eq!(label(&bo, HERON).await?, "classified");
    // Whatever it loses, and whoever comes first: what only the other one knows is never taken for free.
    let never_free = async |text: &str| -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let reply = bo.chat(&format!("Hear, {text}")).await?;
            if reply.error_code() == "labels_unavailable" && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            assert_eq!(reply.header("postern-label"), "classified", "{text}: {}", reply.text());
            return Ok(());
        }
    };
    let text = |number: u32| -> String {
        (0..40).map(|n| format!("{} ", (n + number * 77u32).wrapping_mul(2_654_435_761))).collect()
    };
    let secret = amy.with_header("postern-label", "classified");
    for number in 0..3 {
        assert_eq!(label(&secret, &text(number)).await?, "classified");
        redis.cli(&["FLUSHALL"])?;
        never_free(&text(number)).await?;
        knows(&amy).await?;
    }
    // It comes back with what it had some time ago.
    redis
        .falls_back_to(async || {
            assert_eq!(label(&secret, &text(8)).await?, "classified");
            Ok(())
        })
        .await?;
    never_free(&text(8)).await?;
    // Whoever asks and goes does not keep anybody from being told when it is there again.
    redis.signal(Signal::STOP)?;
    assert_eq!(secret.chat(&text(9)).await?.error_code(), "labels_unavailable");
    redis.signal(Signal::CONT)?;
    for _ in 0..40 {
        let _gone = tokio::time::timeout(Duration::from_millis(30), amy.chat("Is it there?")).await;
    }
    knows(&amy).await?;
    never_free(&text(9)).await?;

    let written = redis.cli(&["--scan"])?.into_bytes();
    for canary in ["heron", "harbour", "ledger", "clerk", "amy", KEY] {
        assert!(!holds(&written, canary), "{canary} is in the Redis");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_marks_too_much_at_any_replica_is_raised_at_all_of_them() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let config = counting(&cloud, &redis.url()).set("/classification", json!({"taint": {"per_identity": 400}}));
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    let (amy, bo) = (one.client("clerk/amy")?, two.client("clerk/bo")?);
    knows(&amy).await?;
    knows(&bo).await?;
    assert_eq!(label(&amy.with_header("postern-label", "classified"), HERON).await?, "classified");
    assert_eq!(label(&bo.with_header("postern-label", "classified"), LEDGER).await?, "classified");
    // Each has room for half of it.
    let flood =
        |from: u32| (from..from + 350).map(|n| format!("{} ", n.wrapping_mul(2_654_435_761))).collect::<String>();
    assert_eq!(label(&amy.with_header("postern-label", "internal"), &flood(0)).await?, "internal");
    let amy_there = two.client("clerk/amy")?;
    assert_eq!(label(&amy_there.with_header("postern-label", "internal"), &flood(5_000)).await?, "internal");
    for amy in [&amy, &amy_there] {
        assert_eq!(label(amy, "Good morning").await?, "classified");
    }
    assert_eq!(label(&bo, "Good morning").await?, "public");
    assert_eq!(label(&one.client("clerk/cy")?, LEDGER).await?, "classified", "of bo it is known still");
    Ok(())
}

#[tokio::test]
async fn a_password_and_tls_are_used_and_a_wrong_one_is_told() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (tls, ca) = Redis::start_tls().await?;
    let url = format!("rediss://localhost:{}", tls.address.port());
    let over_tls = config(&cloud).set("/cache/redis", json!({"url": url, "ca": ca}));
    let postern = Postern::start(&over_tls).await?;
    connected(&postern, "cache", 1.0).await?;
    let stranger = Postern::start(&config(&cloud).set("/cache/redis", json!({"url": url}))).await?;
    stranger.logged("UnknownIssuer").await.or(stranger.logged("authority").await)?;
    assert_eq!(ask(&stranger.client("clerk/amy")?, &chat_body("Go on")).await?.0, "miss");

    let redis = Redis::start_with(&["--requirepass", "pw-canary-1"]).await?;
    let with = |password: &str| {
        let redis = json!({"url": redis.url(), "password": {"env": "REDIS_PASSWORD"}});
        config(&cloud).set("/cache/redis", redis).env("REDIS_PASSWORD", password)
    };
    let postern = Postern::start(&with("pw-canary-1")).await?;
    connected(&postern, "cache", 1.0).await?;
    let wrong = Postern::start(&with("pw-canary-2")).await?;
    wrong.logged("authentication failed").await?;
    assert!(!wrong.log().contains("pw-canary") && !postern.log().contains("pw-canary"));
    assert_eq!(ask(&wrong.client("clerk/amy")?, &chat_body("Go on")).await?.0, "miss");
    Ok(())
}

#[tokio::test]
async fn a_thousand_streams_at_two_replicas_do_not_overspend_by_a_token() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    // 20 tokens, in a second.
    cloud.switch(json!({"answer": "abcd".repeat(20), "chunk_chars": 4, "token_ms": 50})).await?;
    let limits = json!({"clerks": {"limits": {"output_tokens_per_day": 1010}}});
    let config = counting(&cloud, &redis.url()).set("/tenants", limits);
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    let clients = [one.client("clerk/amy")?, two.client("clerk/bo")?];
    assert_eq!(a_thousand_streams(clients).await?, [(200, 50), (429, 950)].into());
    // Whoever is told of nothing yet does not begin anew: not with an empty Redis, and not after a restart.
    let three = Postern::start(&config).await?;
    connected(&three, "limits", 1.0).await?;
    let reply = three.client("clerk/cy")?.post_json("/v1/chat/completions", &bounded("One more", 20)).await?;
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!(holds(&redis.written()?, "postern:1:limit:") && !holds(&redis.written()?, "clerk"));
    Ok(())
}

/// Asks for as long as `until` lets it, and counts what was answered. Nothing but 200 and 429 may come.
async fn load(client: Client, name: &'static str, until: Arc<Semaphore>) -> Result<u64> {
    let mut answered = 0;
    for n in 0.. {
        let reply = client.post_json("/v1/chat/completions", &bounded(&format!("{name} {n}"), 1)).await?;
        match reply.status {
            200 => answered += 1,
            429 => tokio::time::sleep(Duration::from_millis(20)).await,
            other => anyhow::bail!("{other}: {}", reply.text()),
        }
        if until.is_closed() {
            break;
        }
    }
    Ok(answered)
}

#[tokio::test]
async fn a_redis_killed_under_load_fails_nobody_and_spends_no_more_than_the_bound() -> Result<()> {
    let (cloud, mut redis) = (BusyCloud::start().await?, Redis::start().await?);
    let limits = json!({"clerks": {"limits": {"requests_per_day": 600}}});
    let config = counting(&cloud, &redis.url()).set("/tenants", limits);
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    let over = Arc::new(Semaphore::new(0));
    let clients = [(one.client("clerk/amy")?, "amy"), (two.client("clerk/bo")?, "bo"), (two.client("clerk/cy")?, "cy")];
    let loads: Vec<_> =
        clients.into_iter().map(|(client, name)| tokio::spawn(load(client, name, over.clone()))).collect();
    let asked = |at_least: u64| {
        let cloud = &cloud;
        async move {
            while cloud.stats().await?.requests < at_least {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(())
        }
    };
    asked(100).await?;
    redis.kill();
    asked(150).await?;
    // It comes back, and has forgotten everything.
    redis.restart().await?;
    asked(300).await?;
    redis.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.restart().await?;
    asked(600).await?;
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    over.close();
    let mut answered = 0;
    for load in loads {
        answered += load.await??;
    }
    // While it was away, each may have used its part of what was left when it heard last of the others: they had asked just before.
    assert!((600..=600 + 10).contains(&answered), "{answered}");
    Ok(())
}

#[tokio::test]
async fn without_a_redis_each_replica_keeps_to_its_part() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limits =
        json!({"clerks": {"limits": {"requests_per_day": 10}}, "officers": {"limits": {"requests_per_minute": 10}}});
    let nowhere = "redis://127.0.0.1:1";
    for config in [counting(&cloud, nowhere), counting(&cloud, nowhere).set("/replicas/redis", Value::Null)] {
        let postern =
            Postern::start(&config.set("/tenants", limits.clone()).set("/targets/0/clearance", json!("confidential")))
                .await?;
        for who in ["clerk/amy", "officer/ada"] {
            let client = postern.client(who)?;
            let mut answered = 0;
            for n in 0..10 {
                let reply = client.chat(&format!("Number {n}")).await?;
                answered += u64::from(reply.status == 200);
            }
            assert_eq!(answered, 5, "{who}");
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_in_words_before_anything_starts() -> Result<()> {
    let told = |config: Config| -> Result<String> {
        let output = check(&config)?;
        anyhow::ensure!(output.status.code() == Some(78), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let cache = |redis: Value| Config::new().cache().set("/cache/redis", redis);
    assert!(told(cache(json!("redis://cache.example.org")))?.contains("write `rediss://…`"));
    assert!(told(cache(json!("redis://:secret@127.0.0.1")))?.contains("no user or password in the address"));
    assert!(told(cache(json!("http://127.0.0.1")))?.contains("expected `redis://HOST:PORT/DATABASE`"));
    assert!(told(cache(json!({"url": "redis://127.0.0.1", "pasword": "x"})))?.contains("pasword"));
    assert!(told(cache(json!(7)))?.contains("an address such as redis://127.0.0.1:6379"));
    let without_key = json!({"count": 2, "redis": "redis://127.0.0.1"});
    assert!(told(Config::new().set("/replicas", without_key))?.contains("needs `replicas.key`"));
    assert!(told(Config::new().set("/replicas", json!({"count": 0})))?.contains("from 1 to 65535"));
    Ok(())
}

#[tokio::test]
async fn who_asks_for_more_than_a_minute_has_is_given_back_no_more_than_was_taken() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let limits = json!({"clerks": {"limits": {"tokens_per_minute": 1000}}});
    let postern = Postern::start(&counting(&cloud, &redis.url()).set("/tenants", limits)).await?;
    connected(&postern, "limits", 1.0).await?;
    let client = postern.client("clerk/amy")?;
    let mut answered = 0;
    for n in 0..10 {
        let reply = client.post_json("/v1/chat/completions", &bounded(&format!("Number {n}"), 100_000)).await?;
        answered += u64::from(reply.status == 200);
    }
    assert_eq!(answered, 1, "a minute's debt is left, less what was not used");
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_stopped_leaves_no_reservation_behind() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    let limits = json!({"clerks": {"limits": {"output_tokens_per_day": 1000}}});
    let config = counting(&cloud, &redis.url()).set("/tenants", limits);
    let mut one = Postern::start(&config).await?;
    connected(&one, "limits", 1.0).await?;
    cloud.switch(json!({"answer": "abcd".repeat(10), "chunk_chars": 4})).await?;
    // 900 are reserved, 10 are used.
    let reply = one.client("clerk/amy")?.post_json("/v1/chat/completions", &bounded("Be brief", 900)).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    one.stop().await?;
    let two = Postern::start(&config).await?;
    connected(&two, "limits", 1.0).await?;
    let reply = two.client("clerk/bo")?.post_json("/v1/chat/completions", &bounded("And again", 900)).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn what_a_replica_that_is_gone_has_used_is_not_forgotten_with_the_redis() -> Result<()> {
    let (cloud, mut redis) = (BusyCloud::start().await?, Redis::start().await?);
    let limits = json!({"clerks": {"limits": {"requests_per_day": 30}}});
    let config = counting(&cloud, &redis.url()).set("/tenants", limits);
    let (one, mut two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    let (amy, bo) = (one.client("clerk/amy")?, two.client("clerk/bo")?);
    for n in 0..20 {
        assert_eq!(bo.chat(&format!("Number {n}")).await?.status, 200);
    }
    assert_eq!(amy.chat("One that hears of it").await?.header("x-ratelimit-remaining-requests"), "9");
    two.stop().await?;
    redis.restart().await?;
    connected(&one, "limits", 0.0).await?;
    connected(&one, "limits", 1.0).await?;
    let mut answered = 21;
    for n in 0..20 {
        answered += u64::from(amy.chat(&format!("Again {n}")).await?.status == 200);
    }
    assert!(answered <= 30, "{answered}");
    // When it comes back, it tells its own, and nothing counts twice.
    let three = Postern::start(&config).await?;
    connected(&three, "limits", 1.0).await?;
    assert_eq!(
        three.client("clerk/cy")?.chat("Is anything left?").await?.status,
        if answered == 30 { 429 } else { 200 }
    );
    Ok(())
}

#[tokio::test]
async fn requests_at_a_time_are_counted_together_and_those_of_the_dead_are_not() -> Result<()> {
    let (cloud, mut redis) = (BusyCloud::start().await?, Redis::start().await?);
    slow(&cloud).await?;
    let limits = json!({"clerks": {"limits": {"concurrency": 6}}});
    let config = counting(&cloud, &redis.url()).set("/tenants", limits);
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    let (amy, bo) = (one.client("clerk/amy")?, two.client("clerk/bo")?);
    // However they are spread: more than half of them at one.
    let mut streams = Vec::new();
    for client in [&amy, &amy, &amy, &amy, &bo, &bo] {
        streams.push(held(client, "Number").await?.unwrap());
    }
    for client in [&amy, &bo] {
        let refused = held(client, "One more").await?.unwrap_err();
        assert!(refused.error_message().contains("requests at a time for your tenant"), "{}", refused.text());
    }
    drop(streams.swap_remove(0));
    streams.push(held_within(&bo, SOON).await?);
    assert_eq!(held(&amy, "One more").await?.unwrap_err().status, 429);

    // A Redis that has lost it is told again; while it is away, each has its part.
    redis.kill();
    connected(&one, "limits", 0.0).await?;
    connected(&two, "limits", 0.0).await?;
    assert_eq!(held(&amy, "Three run here, and that is the half").await?.unwrap_err().status, 429);
    drop(streams.swap_remove(1));
    streams.push(held_within(&amy, SOON).await?);
    redis.restart().await?;
    connected(&one, "limits", 1.0).await?;
    connected(&two, "limits", 1.0).await?;
    // Each tells what it holds when it is connected, and the other one may have been quicker by a moment.
    for client in [&amy, &bo] {
        let until = Instant::now() + SOON;
        while let Ok(stream) = held(client, "One more").await? {
            ensure!(Instant::now() < until, "what the other one holds is not known");
            drop(stream);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // Who was killed gives nothing back, and is not heard of any more; it is another one that starts in its place.
    two.signal_child("gateway", Signal::KILL)?;
    let before = Instant::now();
    let deadline = Duration::from_secs(40);
    streams.push(held_within(&amy, deadline).await?);
    assert!(before.elapsed() > Duration::from_secs(5), "not as soon as it does not answer");
    Ok(())
}

#[tokio::test]
async fn a_place_that_a_slow_redis_took_for_nobody_is_given_back() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    slow(&cloud).await?;
    let config = counting(&cloud, &redis.url())
        .set("/identities/0/limits", json!({"concurrency": 1}))
        .set("/tenants", json!({"clerks": {"limits": {"concurrency": 2}}}));
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    let (amy, bo) = (one.client("clerk/amy")?, one.client("clerk/bo")?);
    drop(held(&amy, "One").await?.unwrap());
    let bos = held_within(&bo, SOON).await?;
    // It is told, and does it when nobody waits any more: here the half of the tenant's is in use.
    redis.signal(Signal::STOP)?;
    assert_eq!(held(&amy, "Two").await?.unwrap_err().status, 429);
    redis.signal(Signal::CONT)?;
    drop(bos);
    drop(held_within(&amy, SOON).await?);
    drop(held_within(&two.client("clerk/amy")?, SOON).await?);
    Ok(())
}

#[tokio::test]
async fn who_was_not_heard_of_for_long_tells_again_what_it_holds() -> Result<()> {
    let (cloud, redis) = (BusyCloud::start().await?, Redis::start().await?);
    cloud.switch(json!({"answer": "abcd".repeat(900), "chunk_chars": 4, "token_ms": 100})).await?;
    let config = counting(&cloud, &redis.url()).set("/tenants", json!({"clerks": {"limits": {"concurrency": 2}}}));
    let (one, two) = (Postern::start(&config).await?, Postern::start(&config).await?);
    for postern in [&one, &two] {
        connected(postern, "limits", 1.0).await?;
    }
    let (amy, bo) = (one.client("clerk/amy")?, two.client("clerk/bo")?);
    let _amys = (held(&amy, "One").await?.unwrap(), held(&amy, "Two").await?.unwrap());
    one.signal_child("gateway", Signal::STOP)?;
    let bos = (held_within(&bo, Duration::from_secs(30)).await?, held(&bo, "Four").await?.unwrap());
    one.signal_child("gateway", Signal::CONT)?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(bos);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(held(&bo, "Five").await?.unwrap_err().status, 429, "both are held by the other one");
    Ok(())
}
