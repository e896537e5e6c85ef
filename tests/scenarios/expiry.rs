//! What has ended is over: leaves on connections that go on, leaves on sessions that somebody kept, invitations, and all of
//! them once more after the clock was set back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use postern_tests::tls::{self, Http, Identity};
use postern_tests::{BusyCloud, Event, FakeTime, Postern, chat_body};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::enrolment::{enrol, enrol_with, invite, s_client, with_enrol};
use crate::{SOON, config};

/// HTTP/2 (RFC 9113): what a client begins with, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const GOAWAY: u8 = 7;

async fn connect(postern: &Postern, config: Arc<rustls::ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(postern.gateway).await?;
    let name = ServerName::try_from("localhost")?;
    Ok(tokio_rustls::TlsConnector::from(config).connect(name, stream).await?)
}

/// The type of the next frame; `None` at the end of the connection.
async fn next_frame(stream: &mut TlsStream<TcpStream>) -> Option<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut rest = vec![0; length as usize];
    stream.read_exact(&mut rest).await.ok()?;
    Some(head[3])
}

#[tokio::test]
async fn before_its_leaf_ends_a_connection_is_asked_to_end_and_what_is_under_way_ends_well() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/trust/leaf_ttl", json!("16s"))).await?;
    let dir = postern.issue("clerk/amy")?;
    let issued = Instant::now();
    let identity = Identity::read(&dir.join("cert.pem"), &dir.join("key.pem"))?;
    let mut idle = connect(&postern, tls::client(&dir.join("ca.pem"), Some(&identity), Http::Two)?).await?;
    idle.write_all(PREFACE).await?;
    cloud.switch(json!({"token_ms": 100})).await?;
    let client = postern.client_of(&dir)?.http2();
    let words = |count: usize| chat_body(&"word ".repeat(count));
    // One that is over before the leaf is, and one that would go on for long.
    let mut short = client.stream(&words(58)).await?;
    let mut long = client.stream(&words(400)).await?;
    let record = long.header("postern-record").to_owned();
    let watching = tokio::spawn(async move {
        let (mut asked, mut frames) = (None, Vec::new());
        while let Some(kind) = next_frame(&mut idle).await {
            frames.push(kind);
            if kind == GOAWAY && asked.is_none() {
                asked = Some(issued.elapsed());
            }
        }
        (asked, issued.elapsed(), frames)
    });
    short.next().await?.context("the short stream is empty")?;
    long.next().await?.context("the long stream is empty")?;
    let events = short.rest().await?;
    assert!(events.last().is_some_and(Event::is_done), "the short stream was cut");
    let took = issued.elapsed();
    assert!(took > Duration::from_millis(8200), "over after {took:?}: nothing was under way when it was asked to end");
    let rest = long.rest().await;
    let ended = issued.elapsed();
    assert!(rest.is_err() || !rest?.last().is_some_and(Event::is_done), "the long stream went on");
    assert!(ended < Duration::from_secs(18), "it outlived its leaf: {ended:?}");
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["code"]), (&json!("cut"), &json!("connection_expired")));
    let (asked, closed, frames) = tokio::time::timeout(SOON, watching).await??;
    let asked = asked.with_context(|| format!("no GOAWAY among {frames:?}"))?;
    assert!(asked < Duration::from_secs(9) && closed < Duration::from_secs(18), "{asked:?}, {closed:?}");
    Ok(())
}

#[tokio::test]
async fn an_expired_leaf_comes_in_on_no_session_that_was_kept() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/trust/leaf_ttl", json!("10s"))).await?;
    let dir = postern.issue("clerk/amy")?;
    let identity = Identity::read(&dir.join("cert.pem"), &dir.join("key.pem"))?;
    let mut eager = (*tls::client(&dir.join("ca.pem"), Some(&identity), Http::One)?).clone();
    eager.resumption = rustls::client::Resumption::in_memory_sessions(8);
    eager.enable_early_data = true;
    let eager = Arc::new(eager);
    let ask = async || -> Result<String> {
        let mut stream = connect(&postern, eager.clone()).await?;
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let kept = dir.join("session.pem");
    let kept = kept.to_str().context("a path")?;
    assert!(s_client(&postern, &dir, &["-sess_out", kept])?.contains("HTTP/1.1 200"));
    assert!(ask().await?.starts_with("HTTP/1.1 200"));
    assert!(ask().await?.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(ask().await.is_err(), "an expired leaf came in");
    // OpenSSL writes a session only if it was given one.
    let again: &[&str] = if std::path::Path::new(kept).exists() { &["-sess_in", kept] } else { &[] };
    let answer = s_client(&postern, &dir, again)?;
    assert!(answer.contains("certificate expired") && !answer.contains("HTTP/1.1"), "{answer}");
    assert!(postern.metrics().await?.sum("postern_handshakes_failed_total", &[("reason", "expired")]) >= 2.0);
    Ok(())
}

#[tokio::test]
async fn an_invitation_is_good_for_ten_minutes() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let time = FakeTime::start()?;
    let postern = Postern::start(&time.applied_to(with_enrol(&cloud))).await?;
    let (late, punctual) = (invite(&postern, "clerk/late")?, invite(&postern, "clerk/punctual")?);
    time.advance(9.5 / 60.0)?;
    let (good, said) = enrol_with(&postern, &punctual, &postern.folder("ws")?)?;
    assert!(good, "{said}");
    time.advance(1.0 / 60.0)?;
    let (good, said) = enrol_with(&postern, &late, &postern.folder("ws")?)?;
    assert!(!good && said.contains("unknown, used or too old"), "{said}");
    let status: Value = serde_json::from_str(&postern.certs(&["status"])?)?;
    assert_eq!(status["invited"], 0);
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_set_back_brings_nothing_back_to_life() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let time = FakeTime::start()?;
    let postern = Postern::start(&time.applied_to(with_enrol(&cloud))).await?;
    let over = enrol(&postern, "clerk/over")?;
    assert!(s_client(&postern, &over, &[])?.contains("HTTP/1.1 200"));
    let days = 24.0;
    time.advance(4.0 * days)?;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let good = postern.issue("clerk/good")?;
    assert!(s_client(&postern, &good, &[])?.contains("HTTP/1.1 200"));
    assert!(s_client(&postern, &over, &[])?.contains("certificate expired"));

    // By the clock the leaf has two days to live again. The gateway has seen more.
    time.advance(-3.0 * days)?;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let answer = s_client(&postern, &over, &[])?;
    assert!(answer.contains("certificate expired") && !answer.contains("HTTP/1.1"), "{answer}");
    assert!(s_client(&postern, &good, &[])?.contains("HTTP/1.1 200"), "whoever was in force stays so");
    let deadline = Instant::now() + SOON;
    while !postern.log().contains("the clock was set back") {
        assert!(Instant::now() < deadline, "{}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nor does a restart make it forget: with such a clock it does not start.
    postern.signal_child("gateway", rustix::process::Signal::KILL)?;
    let deadline = Instant::now() + SOON;
    while !postern.log().contains("reset-clock") {
        assert!(Instant::now() < deadline, "{}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!s_client(&postern, &good, &[])?.contains("HTTP/1.1"), "it serves with a clock that it cannot believe");
    time.advance(3.0 * days)?;
    let deadline = Instant::now() + 3 * SOON;
    while !s_client(&postern, &good, &[])?.contains("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "it does not come back with the right time: {}", postern.log());
    }
    Ok(())
}
