//! Sealed payloads through the real port: what is sealed is answered sealed, whoever wrote the client; and nothing that was changed, cut, sent twice,
//! or sent by somebody else is acted on.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Method;
use postern_sealed::{PublicConfig, chunked, ehbp};
use postern_tests::sealed::{self, PLACE};
use postern_tests::{BusyCloud, Client, Draft, FakeTime, Postern, Workstation, chat_body};
use serde_json::{Value, json};

use crate::clients::{node, target};
use crate::{SOON, config};

const RELAY: &str = "spiffe://branch.test/relay/*";

fn workstation(postern: &Postern, id: &str) -> Result<Workstation> {
    let dir = postern.issue(id)?;
    Workstation::of(&postern.client_of(&dir)?, &dir)
}

/// A client of somebody else, unmodified or of a few lines, against a gateway of its own.
async fn client_of_others(mut command: Command, scenes: &[&str]) -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/payload/required", json!(true))).await?;
    let identity = postern.issue("clerk/amy")?;
    command.env("POSTERN_ADDRESS", postern.gateway.to_string());
    command.env("POSTERN_GATEWAY_ID", "spiffe://branch.test/gateway");
    for (name, file) in [("POSTERN_CA", "ca.pem"), ("POSTERN_CERT", "cert.pem"), ("POSTERN_KEY", "key.pem")] {
        command.env(name, identity.join(file));
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("`make test` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), postern.log());
    for scene in scenes {
        assert!(said.contains(&format!("ok {scene}\n")), "{scene}: {said}");
    }
    Ok(())
}

fn python(script: &str) -> Command {
    let mut python = Command::new(target("venv/bin/python"));
    python.args(["-c", script]);
    python
}

#[tokio::test]
async fn the_published_ehbp_client_for_python_works_unmodified() -> Result<()> {
    let script = include_str!("../clients/ehbp_client.py");
    client_of_others(python(script), &["plain", "streamed", "pieces", "unknown key"]).await
}

#[tokio::test]
async fn the_published_ehbp_client_for_node_works_unmodified() -> Result<()> {
    client_of_others(node(include_str!("../clients/ehbp.mjs")), &["plain", "streamed", "unknown key"]).await
}

#[tokio::test]
async fn oblivious_http_over_pyhpke_is_understood() -> Result<()> {
    client_of_others(python(include_str!("../clients/ohttp.py")), &["in pieces", "whole", "old"]).await
}

#[tokio::test]
async fn oblivious_http_over_hpke_core_is_understood() -> Result<()> {
    client_of_others(node(include_str!("../clients/ohttp.mjs")), &["in pieces", "whole"]).await
}

#[tokio::test]
async fn what_is_sealed_is_answered_sealed_and_its_record_says_so() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    let draft = Draft { label: "internal".into(), ..Draft::chat("Good morning, harbour master") };
    let sealed = amy.seal(&amy.key().await?, &draft)?;
    assert!(!String::from_utf8_lossy(&sealed.bytes).contains("harbour"));
    let outer = amy.send(sealed.bytes.clone()).await?;
    assert_eq!((outer.status, outer.header("content-type")), (200, chunked::RESPONSE));
    // Nobody on the way learns more than that something was asked.
    let told: HashSet<&str> = outer.headers.keys().map(http::HeaderName::as_str).collect();
    let outside = ["content-type", "cache-control", "incremental", "transfer-encoding", "date"];
    assert!(told.is_subset(&outside.into()), "{told:?}");
    assert!(!String::from_utf8_lossy(&outer.body).contains("postern"));
    let answer = sealed.open(outer)?;
    assert_eq!((answer.status, answer.header("postern-label")), (200, "internal"));
    assert!(answer.answer().contains("harbour"), "{}", answer.text());
    let record = postern.records().of(answer.header("postern-record"), SOON).await?;
    assert_eq!(record.outcome["sealed"], "ohttp-chunked");
    assert_eq!(record.outcome["identity"], "spiffe://branch.test/clerk/amy");
    assert!(record.outcome.get("relay").is_none());
    // The whole API is there: what has no body as well.
    let models = Draft { method: Method::GET, path: "/v1/models".into(), body: Bytes::new(), ..Draft::chat("") };
    assert!(amy.ask(&models).await?.json()?["data"].is_array());
    for (path, status) in [(PLACE, 404), ("/v1/nothing", 404)] {
        let elsewhere = Draft { path: path.into(), ..Draft::chat("Hello") };
        assert_eq!(amy.ask(&elsewhere).await?.status, status, "{path}");
    }
    let metrics = postern.metrics().await?;
    let opened = [("form", "ohttp-chunked"), ("result", "opened")];
    assert_eq!(metrics.value("postern_payloads_total", &opened), Some(4.0));
    Ok(())
}

#[tokio::test]
async fn tokens_come_sealed_one_by_one_and_a_cut_is_seen() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    let mut body = chat_body("one two three four five six");
    body["stream"] = json!(true);
    let draft = Draft { body: body.to_string().into(), ..Draft::chat("") };
    let answer = amy.ask(&draft).await?;
    assert!(
        answer.text().ends_with("data: [DONE]\n\n") && answer.text().matches("\"delta\"").count() > 8,
        "{}",
        answer.text()
    );
    // The target breaks off: an error in the stream, whose sealed end is authentic.
    cloud.switch(json!({"die_after_chunks": 2})).await?;
    body["messages"][0]["content"] = json!("another one two three four five six");
    let broken = amy.ask(&Draft { body: body.to_string().into(), ..draft.clone() }).await?;
    assert!(
        broken.text().contains("\"code\":\"stream_broken\"") && !broken.text().contains("[DONE]"),
        "{}",
        broken.text()
    );
    // Whoever cuts the sealed answer on the way cannot make it look whole.
    cloud.switch(json!({})).await?;
    let sealed = amy.seal(&amy.key().await?, &draft)?;
    let mut outer = amy.send(sealed.bytes.clone()).await?;
    outer.body.truncate(outer.body.len() - 17);
    assert!(sealed::refusal(&sealed.open(outer).unwrap_err()).is_some());
    Ok(())
}

#[tokio::test]
async fn an_ehbp_stream_that_is_not_taken_to_its_end_is_recorded_as_that() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 30})).await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let amy = postern.client("clerk/amy")?;
    let mut body = chat_body(&"word ".repeat(200));
    body["stream"] = json!(true);
    let sealed = ehbp_body(&amy, &body).await?;
    // Whoever stands between can cut where a piece ends, and its client does not notice; the gateway does.
    let mut raw = amy.raw().await?;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{}: {}\r\ncontent-length: {}\r\n\r\n",
        ehbp::ENCAPSULATED_KEY,
        sealed.enc,
        sealed.bytes.len()
    );
    raw.send(&[head.as_bytes(), &sealed.bytes].concat()).await?;
    let begun = raw.read_until(ehbp::RESPONSE_NONCE, SOON).await?;
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    drop(raw);
    let record = postern.records().when(SOON, |all| all.last().filter(|one| !one.outcome.is_null()).cloned()).await?;
    assert_eq!((&record.outcome["result"], &record.outcome["sealed"]), (&json!("client_gone"), &json!("ehbp")));
    Ok(())
}

#[tokio::test]
async fn whatever_is_changed_on_the_way_is_refused_with_its_own_code() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    let key = amy.key().await?;
    let good = amy.seal(&key, &Draft::chat("Hello"))?.bytes;
    let refused = async |bytes: Vec<u8>| -> Result<String> {
        let reply = amy.send(bytes.into()).await?;
        assert!((400..500).contains(&reply.status), "{}", reply.status);
        assert_eq!(reply.json()?["error"]["type"], "invalid_request_error");
        Ok(reply.error_code())
    };
    let changed = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    assert_eq!(refused(changed(0)).await?, "payload_key_unknown");
    assert_eq!(refused(changed(6)).await?, "payload_algorithms");
    for at in [7, 20, 60, good.len() / 2, good.len() - 1] {
        assert_eq!(refused(changed(at)).await?, "payload_not_authentic", "byte {at}");
    }
    for length in [0, 5, 39, 60, good.len() / 2, good.len() - 17] {
        assert_eq!(refused(good[..length].to_vec()).await?, "payload_cut", "{length} bytes");
    }
    assert_eq!(refused([&good[..], b"more"].concat()).await?, "payload_not_authentic");
    assert_eq!(refused([&good[..39], &[0x9f, 0xff, 0xff, 0xff]].concat()).await?, "payload_piece_too_large");
    // A key that nobody here has, under the number of one that is here.
    let mut rng = rand::rng();
    let stranger = postern_sealed::SecretKey::generate(key.id(), &mut rng).public();
    assert_eq!(refused(amy.seal(&stranger, &Draft::chat("Hello"))?.bytes.to_vec()).await?, "payload_not_authentic");
    let stranger = postern_sealed::SecretKey::generate(key.id().wrapping_add(9), &mut rng).public();
    let reply = amy.send(amy.seal(&stranger, &Draft::chat("Hello"))?.bytes).await?;
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.json()?["type"], "https://iana.org/assignments/http-problem-types#ohttp-key");
    // What was sealed is no request.
    let mut nonsense = Vec::new();
    let (mut sealer, _) = chunked::RequestSealer::begin(&key, &mut rng, &mut nonsense)?;
    sealer.push(b"\x07nonsense", &mut nonsense)?;
    sealer.finish(&mut nonsense)?;
    assert_eq!(refused(nonsense).await?, "payload_malformed");
    // Nothing of all that was done, and all of it is on record.
    assert_eq!(cloud.stats().await?.requests, 0);
    let refusals = postern.records().all()?;
    assert!(refusals.iter().all(|record| record.outcome["sealed"] == "ohttp-chunked" && record.intent.is_null()));
    assert!(refusals.len() >= 18, "{}", refusals.len());
    assert_eq!(amy.send(good).await?.status, 200, "and the good one is still good");
    Ok(())
}

#[tokio::test]
async fn a_request_is_accepted_once_whenever_it_comes_again() -> Result<()> {
    let (cloud, time) = (BusyCloud::start().await?, FakeTime::start()?);
    let postern = Postern::start(&time.applied_to(config(&cloud))).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    let amy = amy.over(&amy.client.at(&time));
    let sealed = amy.seal(&amy.key().await?, &Draft::chat("Hello"))?.bytes;
    let body = ehbp_body(&amy.client, &chat_body("Hello")).await?;
    let again = async || -> Result<(String, String)> {
        Ok((amy.send(sealed.clone()).await?.error_code(), body.send(&amy.client).await?.error_code()))
    };
    assert_eq!(again().await?, (String::new(), String::new()));
    assert_eq!(again().await?, ("payload_replayed".into(), "payload_replayed".into()));
    time.advance(59.0 / 3600.0)?;
    assert_eq!(again().await?, ("payload_replayed".into(), "payload_replayed".into()));
    time.advance(2.0 / 3600.0)?;
    assert_eq!(again().await?, ("payload_expired".into(), "payload_replayed".into()));
    assert_eq!(cloud.stats().await?.requests, 1, "the second was answered from the cache");
    // The clock is set back: what was known by its date would be forgotten too early, so there are other keys.
    time.advance(-300.0 / 3600.0)?;
    let (mut code, until) = (String::new(), std::time::Instant::now() + SOON);
    while code != "payload_key_unknown" && std::time::Instant::now() < until {
        code = amy.send(sealed.clone()).await?.error_code();
    }
    assert_eq!(code, "payload_key_unknown");
    // Twice at the same moment: one of them.
    let now = Draft { date: time.now().into(), ..Draft::chat("Hello, all") };
    let sealed_now = amy.seal(&amy.key().await?, &now)?.bytes;
    let all = futures_util::future::join_all((0..16).map(|_| amy.send(sealed_now.clone()))).await;
    let statuses: Vec<u16> = all.into_iter().map(|reply| reply.map(|reply| reply.status)).collect::<Result<_>>()?;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    // After a restart there is another key. It has another number, or the same by chance.
    postern.signal_child("gateway", rustix::process::Signal::KILL)?;
    let (mut code, until) = (String::new(), std::time::Instant::now() + SOON);
    while code.is_empty() && std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        code = amy.send(sealed_now.clone()).await.map(|reply| reply.error_code()).unwrap_or_default();
    }
    assert!(["payload_key_unknown", "payload_not_authentic"].contains(&code.as_str()), "{code}");
    assert_eq!(body.send(&amy.client).await?.error_code(), "payload_key_unknown");
    Ok(())
}

/// A body that was sealed as the clients of EHBP do it.
struct EhbpBody {
    enc: String,
    bytes: Bytes,
}

impl EhbpBody {
    async fn send(&self, client: &Client) -> Result<postern_tests::Reply> {
        let mut request = client.request(Method::POST, "/v1/chat/completions", self.bytes.clone())?;
        request.headers_mut().insert(ehbp::ENCAPSULATED_KEY, self.enc.parse()?);
        client.send(request).await
    }
}

#[tokio::test]
async fn keys_change_each_day_and_open_for_two() -> Result<()> {
    let (cloud, time) = (BusyCloud::start().await?, FakeTime::start()?);
    let postern = Postern::start(&time.applied_to(config(&cloud))).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    let amy = amy.over(&amy.client.at(&time));
    let first = amy.key().await?;
    let code = async |key: &PublicConfig| -> Result<String> {
        let now = Draft { date: time.now().into(), ..Draft::chat("Hello") };
        Ok(amy.send(amy.seal(key, &now)?.bytes).await?.error_code())
    };
    let another_than = async |old: PublicConfig| -> Result<PublicConfig> {
        let until = std::time::Instant::now() + SOON;
        loop {
            // For a moment the gateway knows of no revocation list that is new enough.
            match amy.key().await {
                Ok(key) if key != old => return Ok(key),
                other if std::time::Instant::now() > until => return other,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(code(&first).await?, "");
    time.advance(24.1)?;
    let second = another_than(first.clone()).await?;
    assert_eq!(second.id(), first.id().wrapping_add(1));
    assert_eq!((code(&first).await?, code(&second).await?), (String::new(), String::new()));
    time.advance(24.1)?;
    let third = another_than(second.clone()).await?;
    assert_eq!(code(&first).await?, "payload_key_unknown");
    assert_eq!((code(&second).await?, code(&third).await?), (String::new(), String::new()));
    Ok(())
}

#[tokio::test]
async fn where_payloads_must_be_sealed_those_in_clear_are_refused() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud).set("/payload/required", json!(true))).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    for client in [amy.client.clone(), amy.client.http2()] {
        let reply = client.chat("Hello").await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "payload_not_sealed"));
        assert!(reply.error_message().contains("postern connect"), "{}", reply.error_message());
    }
    let record = postern.records().when(SOON, |all| all.first().cloned()).await?;
    assert_eq!(record.outcome["code"], "payload_not_sealed");
    assert_eq!(amy.client.get("/v1/models").await?.status, 200, "which has no payload");
    assert_eq!(amy.ask(&Draft::chat("Hello")).await?.status, 200);
    assert_eq!(cloud.stats().await?.requests, 1);
    Ok(())
}

#[tokio::test]
async fn who_sent_it_is_whoever_signed_it() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud).set("/payload/relays", json!([RELAY]));
    let postern = Postern::start(&config).await?;
    let (amy, bob) = (workstation(&postern, "clerk/amy")?, workstation(&postern, "guest/bob")?);
    let relay = postern.client("relay/box-1")?;
    let carried = amy.over(&relay);

    // A middlebox that breaks TLS open carries it, and the gateway knows whose it is.
    let answer = carried.ask(&Draft { label: "confidential".into(), ..Draft::chat("A secret") }).await?;
    assert_eq!(answer.status, 403, "no target may see it: {}", answer.text());
    let answer = carried.ask(&Draft::chat("Hello")).await?;
    assert_eq!(answer.status, 200);
    let record = postern.records().of(answer.header("postern-record"), SOON).await?;
    assert_eq!(record.outcome["identity"], "spiffe://branch.test/clerk/amy");
    assert_eq!(record.outcome["relay"], "spiffe://branch.test/relay/box-1");
    assert_eq!(record.intent["tenant"], "clerks");
    // What it carries is under the rules of whose it is: a guest's ceiling.
    let above = Draft { label: "confidential".into(), ..Draft::chat("Hello") };
    assert_eq!(bob.over(&relay).ask(&above).await?.error_code(), "label_refused");

    let code = async |workstation: &Workstation, draft: Draft| -> Result<String> {
        Ok(workstation.ask(&draft).await?.error_code())
    };
    let hello = || Draft::chat("Hello");
    // It may not speak for itself, nor seal anew what somebody signed.
    assert_eq!(relay.chat("Hello").await?.error_code(), "identity_unknown");
    let refused = "payload_sender_refused";
    assert_eq!(code(&carried, Draft { is_signed: false, ..hello() }).await?, refused);
    let lowered = Draft { label: "public".into(), signed_label: Some("confidential".into()), ..hello() };
    assert_eq!(code(&carried, lowered).await?, refused);
    let stripped = Draft { signed_label: Some("confidential".into()), ..hello() };
    assert_eq!(code(&carried, stripped).await?, refused);
    let moved = Draft { signed_path: Some("/v1/completions".into()), ..hello() };
    assert_eq!(code(&carried, moved).await?, refused);
    // What somebody else sends in vain is not used up.
    let sealed_once = amy.seal(&amy.key().await?, &hello())?;
    assert_eq!(amy.over(&bob.client).send(sealed_once.bytes.clone()).await?.error_code(), refused);
    assert_eq!(amy.send(sealed_once.bytes.clone()).await?.status, 200);
    // Nobody else is one: not with somebody's signed request, and not for somebody in its own name.
    assert_eq!(code(&amy.over(&bob.client), hello()).await?, refused);
    // On its own connection a workstation need not sign.
    assert_eq!(code(&amy, Draft { is_signed: false, ..hello() }).await?, "");
    // EHBP says nothing of who sent it.
    let body = ehbp_body(&relay, &chat_body("Hello")).await?;
    assert_eq!(body.send(&relay).await?.error_code(), refused);

    // Whose certificate was revoked sends nothing over anybody's connection, and an answer under way ends.
    cloud.switch(json!({"token_ms": 100})).await?;
    let mut long = chat_body(&"word ".repeat(200));
    long["stream"] = json!(true);
    let sealed = amy.seal(&amy.key().await?, &Draft { body: long.to_string().into(), ..hello() })?;
    let sending = {
        let (carried, bytes) = (carried.clone(), sealed.bytes.clone());
        tokio::spawn(async move { carried.send(bytes).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    postern.certs(&["revoke", "--id", "spiffe://branch.test/clerk/amy"])?;
    let cut = tokio::time::timeout(SOON, sending).await.context("it went on")??;
    assert!(cut.is_err(), "the answer was cut");
    let record = postern
        .records()
        .when(SOON, |all| all.iter().rev().find(|one| one.outcome["result"] == "cut").cloned())
        .await?;
    assert_eq!(record.outcome["code"], "certificate_revoked");
    assert_eq!(code(&carried, hello()).await?, refused);
    Ok(())
}

#[tokio::test]
async fn a_relay_is_under_the_limits_of_whom_it_carries_and_leaves_room_for_others() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let two = json!({"requests_per_minute": 2});
    let config = config(&cloud)
        .set("/payload/relays", json!([RELAY]))
        .set("/limits", json!({"requests": 8, "receive": "5s"}))
        .push("/identities", json!({"match": "spiffe://branch.test/relay/both", "limits": two}))
        .push("/identities", json!({"match": "spiffe://branch.test/few/*", "limits": two}));
    let postern = Postern::start(&config).await?;
    let (both, few) = (workstation(&postern, "relay/both")?, workstation(&postern, "few/fay")?);
    for (who, over) in [(&both, &both.client), (&few, &both.client)] {
        let mut statuses = Vec::new();
        for at in 0..3 {
            let reply = who.over(over).ask(&Draft::chat(&format!("Hello {at}"))).await?;
            statuses.push(reply.status);
            // Told under the seal, in the gateway's words.
            assert!(reply.status == 200 || reply.error_message().contains("your identity"), "{}", reply.text());
        }
        assert_eq!(statuses, [200, 200, 429]);
    }
    let record = postern.records().when(SOON, |all| all.last().filter(|one| !one.outcome.is_null()).cloned()).await?;
    assert_eq!(record.outcome["identity"], "spiffe://branch.test/few/fay");
    assert_eq!(record.outcome["relay"], "spiffe://branch.test/relay/both");
    // It begins as many as it can, and others are served all the same.
    let mut begun = Vec::new();
    for _ in 0..8 {
        let mut slow = both.client.raw().await?;
        let head = "POST /.well-known/ohttp-gateway HTTP/1.1\r\nhost: x\r\ncontent-type: message/ohttp-chunked-req\r\n";
        slow.send(format!("{head}content-length: 900\r\n\r\nab").as_bytes()).await?;
        begun.push(slow);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let amy = workstation(&postern, "clerk/amy")?;
    assert_eq!(amy.ask(&Draft::chat("Hello")).await?.status, 200);
    assert_eq!(few.over(&both.client).ask(&Draft::chat("Hello")).await?.error_code(), "gateway_busy");
    Ok(())
}

#[tokio::test]
async fn sealed_requests_have_the_bounds_of_all_others() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let limits = json!({"body": "64KiB", "receive": "2s"});
    let postern = Postern::start(&config(&cloud).set("/limits", limits)).await?;
    let amy = workstation(&postern, "clerk/amy")?;
    let large = Draft::chat(&"x".repeat(70 << 10));
    assert_eq!(amy.ask(&large).await?.error_code(), "request_too_large");
    assert_eq!(amy.ask(&Draft::chat(&"x".repeat(60 << 10))).await?.status, 200);
    // A head without end, and a body that never comes.
    let head = Draft { path: format!("/v1/{}", "x".repeat(40_000)), ..Draft::chat("") };
    assert_eq!(amy.ask(&head).await?.error_code(), "payload_malformed");
    let mut slow = amy.client.raw().await?;
    slow.send(
        format!(
            "POST {PLACE} HTTP/1.1\r\nhost: x\r\ncontent-type: {}\r\ncontent-length: 900\r\n\r\nab",
            chunked::REQUEST
        )
        .as_bytes(),
    )
    .await?;
    assert!(slow.read_to_end(SOON).await?.contains("request_timeout"));
    // Those who may not ask at all are refused before anything is opened.
    let stranger = workstation(&postern, "stranger/eve")?;
    assert_eq!(stranger.ask(&Draft::chat("Hello")).await?.error_code(), "identity_unknown");
    assert_eq!(amy.client.chat("Still there?").await?.status, 200);
    Ok(())
}

/// As the clients of EHBP seal: all in one piece.
async fn ehbp_body(client: &Client, body: &Value) -> Result<EhbpBody> {
    use hpke::aead::AesGcm256;
    use hpke::kdf::HkdfSha256;
    use hpke::kem::{Kem, X25519HkdfSha256};
    use hpke::{Deserializable as _, OpModeS, Serializable as _, setup_sender_with_rng};
    let listed = client.get("/.well-known/hpke-keys").await?;
    let key =
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&listed.body[3..35]).map_err(|_| anyhow::anyhow!("a key"))?;
    let (enc, mut context) = setup_sender_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &key,
        b"ehbp request",
        &mut rand::rng(),
    )
    .map_err(|_| anyhow::anyhow!("a sender"))?;
    let piece = context.seal(body.to_string().as_bytes(), b"").map_err(|_| anyhow::anyhow!("a piece"))?;
    let bytes = [&(piece.len() as u32).to_be_bytes()[..], &piece].concat().into();
    Ok(EhbpBody { enc: data_encoding::HEXLOWER.encode(&enc.to_bytes()), bytes })
}
