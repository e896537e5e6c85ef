//! Certificates that are renewed, and what happens when they cannot be.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use postern_tests::pki::{self, gateway::GatewayLeaf};
use postern_tests::workload_api::X509SvidResponse;
use postern_tests::{BusyCloud, Client, FakeTime, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

/// What went through while everything was exchanged.
#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    plain: AtomicU64,
    streamed: AtomicU64,
}

/// Asks all the time, with a fresh certificate every few seconds, as a workstation has one.
async fn ask(postern: &Postern, load: &Load, name: &str) -> Result<()> {
    while !load.stop.load(Ordering::Relaxed) {
        let client = postern.client(&format!("clerk/{name}"))?;
        let kept = client.http2().pooled()?;
        let fresh_until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < fresh_until && !load.stop.load(Ordering::Relaxed) {
            let number = load.plain.fetch_add(1, Ordering::Relaxed);
            let prompt = format!("Question {number} of {name}");
            let reply = kept.chat(&prompt).await.with_context(|| format!("kept connection, {prompt}"))?;
            anyhow::ensure!(reply.status == 200, "{prompt}: {} {}", reply.status, reply.text());
            let reply = client.chat(&prompt).await.with_context(|| format!("new connection, {prompt}"))?;
            anyhow::ensure!(reply.status == 200, "{prompt}: {} {}", reply.status, reply.text());
        }
    }
    Ok(())
}

async fn stream(postern: &Postern, load: &Load) -> Result<()> {
    while !load.stop.load(Ordering::Relaxed) {
        let number = load.streamed.fetch_add(1, Ordering::Relaxed);
        let client = postern.client("clerk/stream")?;
        let prompt = format!("Stream {number}. {}", "Tell me more about the sea. ".repeat(8));
        let events = client.stream(&chat_body(&prompt)).await?.rest().await;
        let events = events.with_context(|| format!("stream {number}"))?;
        anyhow::ensure!(events.last().is_some_and(postern_tests::Event::is_done), "stream {number} has no end");
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_rotations_a_new_intermediate_and_a_new_root_cost_no_request() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 10})).await?;
    let postern = Postern::start(&config(&cloud).set("/trust/leaf_ttl", json!("10s"))).await?;
    let status = async || postern.admin("/api/certificates").await?.json();
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one["key_id"].as_str().unwrap().to_owned()).collect()
    };
    let first = status().await?["authority"].clone();
    let early_dir = postern.issue("clerk/early")?;
    let early = postern.client_of(&early_dir)?;
    let mut old_connection = early.http2().connection().await?;
    assert_eq!(old_connection.chat("Early").await?.status, 200);

    let load = Load::default();
    let work = async {
        let rotate = async {
            for number in 0..100 {
                let reply = postern.admin_post("/api/certificates/rotate").await?;
                anyhow::ensure!(reply.status == 200, "rotation {number}: {}", reply.text());
                tokio::time::sleep(Duration::from_millis(200)).await;
                if number == 10 {
                    postern.certs(&["root", "switch"])?;
                }
            }
            // The old root is dropped after two lives of a leaf. The new one's first intermediate is renewed at half of its ten.
            let deadline = Instant::now() + Duration::from_secs(180);
            let mut issued = std::collections::BTreeSet::from_iter(names(&first["intermediates"]));
            loop {
                let now = status().await?["authority"].clone();
                let roots = names(&now["roots"]);
                issued.extend(names(&now["intermediates"]));
                let new_root = roots.len() == 1 && !names(&first["roots"]).contains(&roots[0]);
                if new_root && issued.len() >= 3 && now["root_switch"].is_null() {
                    return Ok(());
                }
                anyhow::ensure!(Instant::now() < deadline, "the switch did not end: {now}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let done = rotate.await;
        load.stop.store(true, Ordering::Relaxed);
        done
    };
    tokio::try_join!(work, ask(&postern, &load, "amy"), ask(&postern, &load, "bea"), stream(&postern, &load))?;
    let rotations = postern.metrics().await?.value("postern_certificate_rotations_total", &[("result", "ok")]);
    assert!(rotations >= Some(100.0), "{rotations:?}");
    assert!(load.plain.load(Ordering::Relaxed) > 50 && load.streamed.load(Ordering::Relaxed) > 10, "{load:?}");

    // Nothing is served on a leaf that is over: not on an old connection, not on a new one.
    assert!(old_connection.chat("Still there?").await.is_err(), "a connection outlived its leaf");
    // It knows the new root by now, so it is the gateway that refuses.
    std::fs::write(early_dir.join("ca.pem"), postern.certs(&["bundle"])?)?;
    assert!(postern.client_of(&early_dir)?.chat("Once more?").await.is_err(), "an expired leaf came in");
    let refused = postern.metrics().await?.value("postern_handshakes_failed_total", &[("reason", "expired")]);
    assert!(refused >= Some(1.0), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_resumed_and_the_key_exchange_is_hybrid() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let dir = postern.issue("clerk/amy")?;
    let identity = postern_tests::tls::Identity::read(&dir.join("cert.pem"), &dir.join("key.pem"))?;
    let tls = postern_tests::tls::client(&dir.join("ca.pem"), Some(&identity), postern_tests::tls::Http::One)?;
    let mut tls = (*tls).clone();
    tls.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let tls = Arc::new(tls);
    for _ in 0..2 {
        let stream = tokio::net::TcpStream::connect(postern.gateway).await?;
        let mut stream = tokio_rustls::TlsConnector::from(tls.clone()).connect("localhost".try_into()?, stream).await?;
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let session = stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
    Ok(())
}

#[tokio::test]
async fn seven_days_without_the_wan_and_certificates_go_on() -> Result<()> {
    let (cloud, lan) = (BusyCloud::start().await?, BusyCloud::start().await?);
    let time = FakeTime::start()?;
    let config = config(&cloud).edge("lan", &lan, "internal").set("/enrol", json!("127.0.0.1:0"));
    let postern = Postern::start(&time.applied_to(config)).await?;
    let dir = postern.issue("clerk/amy")?;
    let ask = async |what: &str| -> Result<u16> { Ok(postern.client_of(&dir)?.at(&time).chat(what).await?.status) };
    assert_eq!(ask("While the line is there").await?, 200);
    // The line is cut: the cloud is not to be reached any more.
    drop(cloud);
    let (renew, dir_text) = (postern.gateway.to_string(), dir.display().to_string());
    for step in 1..=14 {
        time.advance(12.0)?;
        // Renewed by now, if it was due.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(ask(&format!("After {} hours", step * 12)).await?, 200, "{}", postern.log());
        let mut command = std::process::Command::new(postern_tests::postern::binary()?);
        command.args(["certs", "renew", "--gateway", &renew, "--dir", &dir_text]).envs(postern.environment());
        let output = command.output()?;
        assert!(output.status.success(), "step {step}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metrics = postern.metrics().await?;
    assert!(metrics.value("postern_certificate_rotations_total", &[("result", "ok")]) >= Some(3.0));
    assert_eq!(postern.admin("/readyz").await?.status, 200);

    // A clock that is set back is noticed: nothing is issued with it, and it is said what to do.
    time.advance(-48.0)?;
    let error = postern.certs(&["issue", "--id", "spiffe://branch.test/clerk/x", "--out", &dir_text]).unwrap_err();
    assert!(format!("{error:#}").contains("reset-clock"), "{error:#}");
    let reply = postern.admin_post("/api/certificates/rotate").await?;
    assert_eq!(reply.status, 503);
    assert!(postern.certs(&["reset-clock"])?.contains("accepted"));
    Ok(())
}

#[tokio::test]
async fn a_clock_before_the_release_stops_the_start_in_words() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let time = FakeTime::start()?;
    time.advance(-24.0 * 3650.0)?;
    let refused = Postern::start(&time.applied_to(config(&cloud))).await.unwrap_err();
    let said = format!("{refused:#}");
    assert!(said.contains("clock"), "{said}");
    Ok(())
}

/// Writes what cert-manager would: certificate, key, authority.
fn write_files(dir: &Path, authority: &pki::Authority, time: &FakeTime) -> Result<()> {
    let from_s = (time.now() - time::OffsetDateTime::now_utc()).whole_seconds();
    let leaf = GatewayLeaf { from_s, until_s: from_s + 72 * 3600, ..GatewayLeaf::of("spiffe://branch.test/gateway") };
    let leaf = authority.gateway(leaf)?;
    let key = dir.join("key.pem");
    std::fs::write(&key, &leaf.key_pem)?;
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    std::fs::write(dir.join("ca.pem"), authority.pem())?;
    Ok(std::fs::write(dir.join("cert.pem"), &leaf.cert_pem)?)
}

#[tokio::test]
async fn without_an_issuer_there_is_an_alarm_then_a_refusal_and_then_it_recovers_by_itself() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let time = FakeTime::start()?;
    let (files, authority) = (tempfile::tempdir()?, pki::Authority::new("outside")?);
    write_files(files.path(), &authority, &time)?;
    let path = |name: &str| files.path().join(name).display().to_string();
    let trust = json!({
        "domain": "branch.test", "issuer": "files",
        "files": {"cert": path("cert.pem"), "key": path("key.pem"), "ca": path("ca.pem")},
    });
    let postern = Postern::start(&time.applied_to(config(&cloud).set("/trust", trust))).await?;
    let client = authority.client(&["spiffe://branch.test/clerk/amy"])?;
    let identity = postern_tests::tls::Identity::from_pem(&client.cert_pem, &client.key_pem)?;
    let client = Client::new(postern.gateway, Path::new(&path("ca.pem")), Some(identity)).at(&time);
    assert_eq!(client.chat("With files").await?.status, 200);
    let health = async |wanted: &str| -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let now = postern.admin("/api/certificates").await?.json()?["health"].clone();
            if now == wanted {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "it is {now}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let logged = async |text: &str| {
        let deadline = Instant::now() + SOON;
        while !postern.log().contains(text) {
            assert!(Instant::now() < deadline, "it does not say {text:?}: {}", postern.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    health("good").await?;
    time.advance(49.0)?;
    health("warning").await?;
    assert_eq!(client.chat("After 49 hours").await?.status, 200);
    time.advance(12.0)?;
    health("alarm").await?;
    logged("ALARM").await;
    assert_eq!(client.chat("After 61 hours").await?.status, 200);
    time.advance(12.0)?;
    health("expired").await?;
    assert!(client.chat("After 73 hours").await.is_err());
    assert_eq!(postern.admin("/readyz").await?.status, 503);
    logged("no connection is accepted until it is renewed").await;

    write_files(files.path(), &authority, &time)?;
    health("good").await?;
    assert_eq!(client.chat("And it is back").await?.status, 200);
    assert_eq!(postern.admin("/readyz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_spiffe_agent_gives_rotates_and_withdraws() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let authority = pki::Authority::new("agent")?;
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("agent.sock");
    let agent = postern_tests::WorkloadApi::start(&socket)?;
    let svid = |id: &str| X509SvidResponse::of(id, &authority.gateway(GatewayLeaf::of(id))?, &[&authority]);
    agent.send(&svid("spiffe://branch.test/gateway")?);
    let trust = json!({"domain": "branch.test", "issuer": "spiffe", "spiffe": {"socket": socket}});
    let postern = Postern::start(&config(&cloud).set("/trust", trust)).await?;
    let client = authority.client(&["spiffe://branch.test/clerk/amy"])?;
    let identity = postern_tests::tls::Identity::from_pem(&client.cert_pem, &client.key_pem)?;
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.pem())?;
    let client = Client::new(postern.gateway, &ca, Some(identity));
    assert_eq!(client.chat("By the agent").await?.status, 200);
    let serial = async || Ok::<_, anyhow::Error>(postern.admin("/api/certificates").await?.json()?["serial"].clone());
    let first = serial().await?;
    agent.send(&svid("spiffe://branch.test/gateway")?);
    let deadline = Instant::now() + SOON;
    while serial().await? == first {
        assert!(Instant::now() < deadline, "the new one is not taken over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.chat("By the agent again").await?.status, 200);
    // Somebody else's identity is not used, whoever sends it.
    agent.send(&svid("spiffe://branch.test/other/gateway")?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.chat("Unmoved").await?.status, 200);
    // An agent that goes away changes nothing; an identity that it takes back is not used any more.
    agent.refuse(7, "no identity issued");
    agent.drop_connections();
    let deadline = Instant::now() + SOON;
    while client.chat("Withdrawn?").await.is_ok() {
        assert!(Instant::now() < deadline, "the withdrawn identity is still in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    agent.send(&svid("spiffe://branch.test/gateway")?);
    agent.drop_connections();
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.chat("Given again?").await.is_err() {
        assert!(Instant::now() < deadline, "the identity that was given again is not used: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = postern.certs(&["status"]).unwrap_err();
    assert!(format!("{refused:#}").contains("no authority of its own"), "{refused:#}");
    Ok(())
}
