//! How a workstation comes by its certificate, keeps it, and loses it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::client::plain;
use postern_tests::{BusyCloud, Client, Config, Postern, chat_body};
use serde_json::{Value, json};

use crate::{SOON, config};

pub(crate) fn with_enrol(cloud: &BusyCloud) -> Config {
    config(cloud).set("/enrol", json!("127.0.0.1:0"))
}

/// Invites `path` and enrols with the token, as the README says. Returns the folder.
pub(crate) fn enrol(postern: &Postern, path: &str) -> Result<std::path::PathBuf> {
    let token = invite(postern, path)?;
    let dir = postern.folder("ws")?;
    let (status, said) = enrol_with(postern, &token, &dir)?;
    anyhow::ensure!(status, "{said}");
    Ok(dir)
}

pub(crate) fn invite(postern: &Postern, path: &str) -> Result<String> {
    let id = format!("spiffe://branch.test/{path}");
    Ok(postern.certs(&["invite", "--id", &id])?.trim().to_owned())
}

pub(crate) fn enrol_with(postern: &Postern, token: &str, dir: &Path) -> Result<(bool, String)> {
    enrol_at(&postern.enrol.unwrap().to_string(), token, dir)
}

fn enrol_at(gateway: &str, token: &str, dir: &Path) -> Result<(bool, String)> {
    let file = dir.with_extension("token");
    std::fs::write(&file, token)?;
    let (file, dir) = (file.display().to_string(), dir.display().to_string());
    let output =
        postern_tests::postern::run(&["certs", "enrol", "--gateway", gateway, "--token-file", &file, "--out", &dir])?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn renew(postern: &Postern, dir: &Path, more: &[&str]) -> Result<(bool, String)> {
    let (gateway, dir) = (postern.gateway.to_string(), dir.display().to_string());
    let mut arguments = vec!["certs", "renew", "--gateway", &gateway, "--dir", &dir];
    arguments.extend(more);
    let output = postern_tests::postern::run(&arguments)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test]
async fn a_workstation_enrols_once_and_renews_with_what_it_has() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&with_enrol(&cloud)).await?;
    let token = invite(&postern, "clerk/amy")?;
    let dir = postern.folder("ws")?;
    // At another address it is said which one is meant.
    for (wrong, expected) in [
        (postern.gateway.to_string(), "it has to be the gateway's `enrol` address"),
        ("127.0.0.1:1".into(), "is `enrol` in the gateway's"),
    ] {
        let (good, said) = enrol_at(&wrong, &token, &dir)?;
        assert!(!good && said.contains(expected) && !said.contains("Other("), "{said}");
    }
    let (good, said) = enrol_with(&postern, &token, &dir)?;
    assert!(good, "{said}");
    assert_eq!(postern.client_of(&dir)?.chat("I am new").await?.status, 200);

    let (again, said) = enrol_with(&postern, &token, &postern.folder("ws")?)?;
    assert!(!again && said.contains("unknown, used or too old"), "{said}");
    let known = std::fs::read_dir(postern.state_dir().join("authority"))?.flatten();
    let secret = token.rsplit('.').next().unwrap();
    for file in known.filter(|entry| entry.path().is_file()) {
        let text = String::from_utf8_lossy(&std::fs::read(file.path())?).into_owned();
        assert!(!text.contains(secret), "{:?} holds the token", file.path());
    }

    let before = std::fs::read(dir.join("cert.pem"))?;
    let (good, said) = renew(&postern, &dir, &[])?;
    assert!(good && said.contains("not due before"), "{said}");
    assert_eq!(std::fs::read(dir.join("cert.pem"))?, before);
    let key = std::fs::read(dir.join("key.pem"))?;
    let (good, said) = renew(&postern, &dir, &["--now"])?;
    assert!(good && said.contains("valid until"), "{said}");
    assert_ne!(std::fs::read(dir.join("key.pem"))?, key, "a new key each time");
    assert_eq!(postern.client_of(&dir)?.chat("I am renewed").await?.status, 200);
    // Ten in a minute are enough for anybody.
    let mut refused = None;
    for _ in 0..10 {
        let (good, said) = renew(&postern, &dir, &["--now"])?;
        refused = (!good).then_some(said);
        if refused.is_some() {
            break;
        }
    }
    assert!(refused.as_ref().is_some_and(|said| said.contains("429")), "{refused:?}");
    assert_eq!(postern.client_of(&dir)?.chat("It is still good").await?.status, 200);
    let status: Value = serde_json::from_str(&postern.certs(&["status"])?)?;
    assert_eq!(status["gateway"]["serial"], postern.admin("/api/certificates").await?.json()?["serial"]);
    Ok(())
}

#[test]
fn an_invite_that_can_be_used_nowhere_says_what_to_add() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("postern.yaml");
    std::fs::write(&file, Config::new().render(dir.path()))?;
    let (file, id) = (file.display().to_string(), "spiffe://branch.test/clerk/amy");
    let output = postern_tests::postern::run(&["certs", "invite", "--config", &file, "--id", id])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("add `enrol: 0.0.0.0:8444`"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_enrol_address_gives_certificates_to_the_invited_and_nothing_else() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&with_enrol(&cloud)).await?;
    let dir = postern.issue("clerk/amy")?;
    let address = postern.enrol.unwrap();
    let stranger = Client::new(address, &dir.join("ca.pem"), None);
    let member = postern.client_of(&dir)?;
    assert!(Client::new(postern.gateway, &dir.join("ca.pem"), None).chat("Without").await.is_err());

    let refused = stranger.chat("May I?").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (404, "unknown_endpoint"));
    assert_eq!(stranger.get("/enrol").await?.status, 405);
    let token = invite(&postern, "clerk/bea")?;
    let garbage = [
        json!({}),
        json!({"token": token}),
        json!({"token": token, "csr": "none"}),
        json!({"token": "postern-join-1.AAAA", "csr": "none"}),
        json!({"token": token, "csr": "none", "id": "spiffe://branch.test/officer/eve"}),
        json!("x".repeat(20_000)),
    ];
    for body in garbage {
        let reply = stranger.post_json("/enrol", &body).await?;
        assert!(matches!(reply.status, 400 | 413), "{body}: {} {}", reply.status, reply.text());
        assert!(!reply.text().contains(&token), "the token is not repeated");
    }
    // A request with a key that is not the sender's, or for somebody else, is refused by the authority; the invite stays.
    for (csr, code) in
        [(csr("clerk/eve", &postern.folder("csr")?)?, "invalid_csr"), (tampered(&postern)?, "invalid_csr")]
    {
        let reply = stranger.post_json("/enrol", &json!({"token": token, "csr": csr})).await?;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, code), "{}", reply.text());
    }
    let own = csr("clerk/bea", &postern.folder("csr")?)?;
    let reply = stranger.post_json("/enrol", &json!({"token": token, "csr": own})).await?;
    assert_eq!((reply.status, reply.json()?["id"].as_str()), (200, Some("spiffe://branch.test/clerk/bea")));
    assert_eq!(reply.json()?["gateway"], "spiffe://branch.test/gateway");

    // Renewal is for the identity of the connection, whatever the request says.
    let stolen = json!({"csr": csr("officer/eve", &postern.folder("csr")?)?});
    let reply = member.post_json("/.well-known/postern/renew", &stolen).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "invalid_csr"));
    // Guessing is slow.
    let mut last = 0;
    for _ in 0..30 {
        last = stranger.post_json("/enrol", &json!({})).await?.status;
    }
    assert_eq!(last, 429);
    Ok(())
}

/// A certificate request made by OpenSSL, as somebody without our client would.
fn csr(path: &str, dir: &Path) -> Result<String> {
    let (key, out) = (dir.join("key.pem"), dir.join("csr.pem"));
    let san = format!("subjectAltName=URI:spiffe://branch.test/{path}");
    let output = std::process::Command::new("openssl")
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"])
        .args(["-addext", &san, "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&out)
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(std::fs::read_to_string(out)?)
}

/// The same with a signature that does not fit.
fn tampered(postern: &Postern) -> Result<String> {
    let text = csr("clerk/bea", &postern.folder("csr")?)?;
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let last = lines.len() - 2;
    // The last bytes belong to the signature.
    let swapped: String = lines[last]
        .chars()
        .map(|c| {
            if c == 'A' {
                'B'
            } else if c.is_ascii_lowercase() {
                'a'
            } else {
                c
            }
        })
        .collect();
    assert_ne!(lines[last], swapped);
    lines[last] = swapped;
    Ok(lines.join("\n") + "\n")
}

#[tokio::test]
async fn a_revoked_workstation_is_cut_off_in_mid_stream_and_nobody_else_notices() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&with_enrol(&cloud)).await?;
    let (amy_dir, bea_dir) = (enrol(&postern, "clerk/amy")?, enrol(&postern, "clerk/bea")?);
    let (amy, bea) = (postern.client_of(&amy_dir)?, postern.client_of(&bea_dir)?);
    cloud.switch(json!({"token_ms": 50})).await?;
    let long = chat_body(&"Tell me a very long story about the sea. ".repeat(60));
    // Not the same: whoever follows an answer keeps it under way, and its record open.
    let lake = chat_body(&"Tell me a very long story about a lake. ".repeat(60));
    let (mut hers, mut other) = (amy.http2().stream(&long).await?, bea.stream(&lake).await?);
    let record = hers.header("postern-record").to_owned();
    hers.next().await?.unwrap();
    other.next().await?.unwrap();

    let said = postern.certs(&["revoke", "--id", "spiffe://branch.test/clerk/amy"])?;
    assert!(said.starts_with("revoked "), "{said}");
    let revoked_at = Instant::now();
    let rest = hers.rest().await;
    assert!(revoked_at.elapsed() < Duration::from_secs(5), "its stream went on for {:?}", revoked_at.elapsed());
    assert!(rest.is_err() || !rest.unwrap().last().is_some_and(postern_tests::client::Event::is_done));
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["code"]), (&json!("cut"), &json!("certificate_revoked")));

    assert!(amy.chat("Am I still in?").await.is_err(), "its reconnect is refused");
    let (good, said) = renew(&postern, &amy_dir, &["--now"])?;
    assert!(!good, "its renewal is refused: {said}");
    let metrics = postern.metrics().await?;
    assert!(metrics.sum("postern_handshakes_failed_total", &[("reason", "revoked")]) >= 1.0);
    // The other one reads on to the end, and comes again.
    cloud.switch(json!({"token_ms": 0})).await?;
    assert!(other.rest().await?.last().unwrap().is_done());
    assert_eq!(bea.chat("And I?").await?.status, 200);
    // Who was revoked may be invited again.
    let again = enrol(&postern, "clerk/amy")?;
    assert_eq!(postern.client_of(&again)?.chat("I am back").await?.status, 200);
    // A revocation outlives the gateway.
    postern.signal_child("gateway", rustix::process::Signal::KILL)?;
    assert_eq!(bea.chat("After a restart?").await?.status, 200);
    assert!(amy.chat("And now?").await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_workstation_cannot_pose_as_the_gateway() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&with_enrol(&cloud)).await?;
    let (amy, eve) = (enrol(&postern, "clerk/amy")?, enrol(&postern, "clerk/eve")?);
    // Everything is as the gateway would have it but the certificate: of the same authority, and good, for a workstation.
    let identity = postern_tests::tls::Identity::read(&eve.join("cert.pem"), &eve.join("key.pem"))?;
    let acceptor = tokio_rustls::TlsAcceptor::from(postern_tests::tls::server(&identity, None)?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let posing = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        acceptor.accept(stream).await.map(drop)
    });
    let dir = amy.display().to_string();
    let key = std::fs::read(amy.join("key.pem"))?;
    let renewing = tokio::task::spawn_blocking(move || {
        postern_tests::postern::run(&["certs", "renew", "--now", "--gateway", &address, "--dir", &dir])
    });
    let output = renewing.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("did not prove to be the gateway"), "{said}");
    assert!(posing.await?.is_err(), "the handshake went through");
    assert_eq!(std::fs::read(amy.join("key.pem"))?, key, "nothing was replaced");
    Ok(())
}

#[tokio::test]
async fn openssl_sees_who_is_refused_and_why() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&with_enrol(&cloud).set("/trust/leaf_ttl", json!("10s"))).await?;
    let good = postern.issue("clerk/amy")?;
    let says = |dir: &Path, more: &[&str]| -> Result<String> { s_client(&postern, dir, more) };
    let answer = says(&good, &["-tls1_3"])?;
    assert!(answer.contains("HTTP/1.1 200") && answer.contains("Verify return code: 0"), "{answer}");
    assert!(!answer.contains("New Session Ticket"), "{answer}");
    let old = says(&good, &["-tls1_2"])?;
    assert!(old.contains("protocol version") || old.contains("no protocols available"), "{old}");
    let without = s_client_without(&postern, &good)?;
    assert!(without.contains("certificate required"), "{without}");

    let revoked = postern.issue("clerk/rex")?;
    postern.certs(&["revoke", "--id", "spiffe://branch.test/clerk/rex"])?;
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut answer = says(&revoked, &[])?;
    while !answer.contains("certificate revoked") {
        assert!(Instant::now() < deadline, "{answer}");
        answer = says(&revoked, &[])?;
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    let expired = says(&good, &[])?;
    assert!(expired.contains("certificate expired"), "{expired}");
    let metrics = postern.metrics().await?;
    for reason in ["no_certificate", "revoked", "expired"] {
        assert!(metrics.sum("postern_handshakes_failed_total", &[("reason", reason)]) >= 1.0, "{reason}");
    }
    Ok(())
}

/// What OpenSSL says about a request with the certificate in `dir`.
pub(crate) fn s_client(postern: &Postern, dir: &Path, more: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new("timeout");
    // It ends when the gateway closes, however long that takes on a busy machine.
    command.args(["20", "openssl", "s_client", "-ign_eof", "-connect", &postern.gateway.to_string()]);
    command.args(["-servername", "localhost", "-CAfile"]).arg(dir.join("ca.pem"));
    command.arg("-cert").arg(dir.join("cert.pem")).arg("-key").arg(dir.join("key.pem"));
    command.arg("-cert_chain").arg(dir.join("cert.pem"));
    command.args(more);
    say_hello(command)
}

fn s_client_without(postern: &Postern, dir: &Path) -> Result<String> {
    let mut command = std::process::Command::new("timeout");
    // It ends when the gateway closes, however long that takes on a busy machine.
    command.args(["20", "openssl", "s_client", "-ign_eof", "-connect", &postern.gateway.to_string(), "-CAfile"]);
    command.arg(dir.join("ca.pem"));
    say_hello(command)
}

fn say_hello(mut command: std::process::Command) -> Result<String> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended already.
    let _refused = stdin.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    drop(stdin);
    let output = child.wait_with_output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test]
async fn the_admin_address_off_loopback_needs_a_certificate_and_a_role() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let id = |path: &str| format!("spiffe://branch.test/{path}");
    let operators = json!([
        {"match": id("staff/audit"), "role": "auditor"},
        {"match": id("staff/ops"), "role": "operator"},
        {"match": id("staff/sec"), "role": "security"},
    ]);
    let plain_config = config(&cloud).set("/admin", json!("0.0.0.0:0"));
    let refused = postern_tests::postern::check(&plain_config)?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("operators"));
    let postern = Postern::start(&plain_config.set("/operators", operators)).await?;
    assert!(
        plain(http::Method::GET, &format!("http://{}/livez", postern.admin), "").await.is_err(),
        "not in the clear"
    );
    let as_one = |path: &str| -> Result<Client> {
        let dir = postern.issue(path)?;
        let identity = postern_tests::tls::Identity::read(&dir.join("cert.pem"), &dir.join("key.pem"))?;
        let admin = std::net::SocketAddr::from(([127, 0, 0, 1], postern.admin.port()));
        Ok(Client::new(admin, &dir.join("ca.pem"), Some(identity)))
    };
    let (auditor, operator, security) = (as_one("staff/audit")?, as_one("staff/ops")?, as_one("staff/sec")?);
    assert!(as_one("clerk/amy")?.get("/livez").await.is_err(), "a certificate without a role");
    let empty = Value::Null;
    for client in [&auditor, &operator, &security] {
        assert_eq!(client.get("/api/certificates").await?.status, 200);
    }
    assert_eq!(auditor.post_json("/api/certificates/rotate", &empty).await?.status, 403);
    assert_eq!(operator.post_json("/api/certificates/rotate", &empty).await?.status, 200);
    assert_eq!(auditor.get("/api/policies").await?.status, 200);
    for action in ["/api/reload", "/api/policies/route/release"] {
        assert_eq!(auditor.post_json(action, &empty).await?.status, 403, "{action}");
        assert_eq!(operator.post_json(action, &empty).await?.status, 200, "{action}");
    }
    let target = json!({"id": id("staff/audit")});
    assert_eq!(operator.post_json("/api/certificates/revoke", &target).await?.status, 403);
    assert_eq!(security.post_json("/api/certificates/revoke", &target).await?.status, 200);
    let deadline = Instant::now() + Duration::from_secs(5);
    while auditor.get("/api/certificates").await.is_ok() {
        assert!(Instant::now() < deadline, "the revoked auditor is still in");
    }
    let foreign = security.with_header("origin", "https://evil.example");
    assert_eq!(foreign.post_json("/api/certificates/rotate", &empty).await?.status, 403);
    Ok(())
}
