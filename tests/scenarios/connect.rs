//! `postern connect`: applications that know nothing of certificates and seals, on a workstation; and what may stand between it and the gateway.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request};
use http_body_util::Full;
use postern_tests::sealed::PLACE;
use postern_tests::tls::Identity;
use postern_tests::{BusyCloud, Config, Connector, FakeTime, Middlebox, Postern, Trick, Wire, Workstation, chat_body};
use rustix::process::Signal;
use serde_json::json;

use crate::clients::{SCENES, node, office_config, target};
use crate::{SOON, config};

/// A gateway that takes nothing in clear.
async fn gateway(config: Config) -> Result<Postern> {
    Postern::start(&config.set("/payload/required", json!(true))).await
}

/// An application, as it is published.
async fn run(connector: &Connector, mut command: Command) -> Result<String> {
    command.env("POSTERN_URL", format!("http://{}/v1", connector.address)).env("POSTERN_API_KEY", connector.token()?);
    command.env("OPENAI_API_KEY", connector.token()?);
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("`make test` installs it")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), connector.log());
    Ok(said)
}

#[tokio::test]
async fn sdks_curl_and_llm_need_a_base_url_and_a_key() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = gateway(office_config(&cloud)).await?;
    postern.engine_ready().await?;
    let connector = Connector::start(postern.gateway, &postern.issue("clerk/amy")?, &[]).await?;
    let mut python = Command::new(target("venv/bin/python"));
    python.args(["-c", include_str!("../clients/client.py")]);
    let said = run(&connector, python).await?;
    for scene in SCENES.into_iter().chain(["asynchronous"]) {
        assert!(said.contains(&format!("ok {scene}\n")), "{scene}: {said}");
    }
    let said = run(&connector, node(include_str!("../clients/client.mjs"))).await?;
    for scene in SCENES {
        assert!(said.contains(&format!("ok {scene}\n")), "{scene}: {said}");
    }
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail-with-body", "--max-time", "60", "-H", "content-type: application/json"]);
    curl.arg("-H").arg(format!("authorization: Bearer {}", connector.token()?));
    curl.args(["-d", &chat_body("Herons at the harbour").to_string()]);
    curl.arg(format!("http://{}/v1/chat/completions", connector.address));
    assert!(run(&connector, curl).await?.contains("harbour"));
    // As its documentation has it: a file, and a key.
    let folder = tempfile::tempdir()?;
    let models = format!(
        "- {{model_id: office, model_name: chat, api_base: 'http://{}/v1', api_key_name: office}}\n",
        connector.address
    );
    std::fs::write(folder.path().join("extra-openai-models.yaml"), models)?;
    std::fs::write(folder.path().join("keys.json"), json!({"office": connector.token()?}).to_string())?;
    let mut llm = Command::new(target("venv/bin/llm"));
    llm.env("LLM_USER_PATH", folder.path()).args(["-m", "office", "--no-log", "Herons at the harbour"]);
    assert!(run(&connector, llm).await?.contains("harbour"));
    // All of it was sealed, and is the workstation's own.
    let records = postern.records().all()?;
    assert!(records.len() > 15, "{}", records.len());
    for record in records {
        assert_eq!(record.outcome["sealed"], "ohttp-chunked", "{}", record.outcome);
        assert_eq!(record.outcome["identity"], "spiffe://branch.test/clerk/amy");
    }
    Ok(())
}

#[tokio::test]
async fn an_invite_is_all_that_a_workstation_needs() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = gateway(config(&cloud).set("/enrol", json!("127.0.0.1:0"))).await?;
    let folder = tempfile::tempdir()?;
    let token = postern.certs(&["invite", "--id", "spiffe://branch.test/clerk/amy"])?;
    let (file, own) = (folder.path().join("amy.token"), folder.path().join("own"));
    std::fs::write(&file, token)?;
    let enrol = postern.enrol.context("the enrol address")?.to_string();
    let more = ["--token-file", file.to_str().context("a path")?, "--enrol", &enrol];
    let connector = Connector::start(postern.gateway, &own, &more).await?;
    assert_eq!(connector.chat("Hello").await?.status, 200);
    let status = |json: &[&str]| {
        let said =
            postern_tests::postern::run(&[&["connect", "status", "--dir", own.to_str().unwrap()], json].concat());
        said.map(|said| (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned()))
    };
    let (code, said) = status(&[])?;
    assert!(code == Some(0) && said.contains("spiffe://branch.test/clerk/amy"), "{said}");
    let (_, said) = status(&["--json"])?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    assert!(said["connected"] == true && said["requests"]["total"] == 1, "{said}");
    // Another address of the gateway, or one that is taken here, is told as such.
    let other = postern.issue("clerk/bo")?;
    let astray = Connector::start(postern.enrol.context("the enrol address")?, &other, &[]).await?;
    let reply = astray.chat("Hello").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "gateway_unreachable"), "{}", reply.text());
    assert!(reply.error_message().contains("looks like the gateway's `enrol` address"), "{}", reply.text());
    drop(astray);
    let (gateway, taken, other) =
        (postern.gateway.to_string(), connector.address.to_string(), other.display().to_string());
    let taken = postern_tests::postern::run(&["connect", "--gateway", &gateway, "--dir", &other, "--listen", &taken])?;
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(!taken.status.success() && said.contains("choose another with --listen"), "{said}");
    // One for a folder; and after its end nothing answers.
    let second = Connector::start(postern.gateway, &own, &[]).await.unwrap_err();
    assert!(format!("{second:?}").contains("another `postern connect` is running"), "{second:?}");
    // Whoever listens in its place after it was killed is not shown the token.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(connector.pid().cast_signed()).context("a process")?,
        Signal::KILL,
    )?;
    let until = Instant::now() + SOON;
    let squatter = loop {
        match std::net::TcpListener::bind(connector.address) {
            Ok(listener) => break listener,
            Err(error) => ensure!(Instant::now() < until, "{error}"),
        }
    };
    squatter.set_nonblocking(true)?;
    assert_eq!(status(&[])?.0, Some(1));
    assert!(squatter.accept().is_err(), "nobody came");
    drop(squatter);
    let mut connector = Connector::start(postern.gateway, &own, &[]).await?;
    assert_eq!(connector.chat("Hello").await?.status, 200);
    assert_eq!(connector.stop().await?.code(), Some(0));
    assert_eq!(status(&[])?.0, Some(1));
    Ok(())
}

#[tokio::test]
async fn nobody_else_on_the_workstation_borrows_the_identity() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let cloud = BusyCloud::start().await?;
    let postern = gateway(config(&cloud)).await?;
    let socket = tempfile::tempdir()?;
    let path = socket.path().join("c.sock");
    let dir = postern.issue("clerk/amy")?;
    let connector = Connector::start(postern.gateway, &dir, &["--socket", path.to_str().context("a path")?]).await?;
    let bare = |headers: &[(&str, &str)]| {
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(Full::new(chat_body("Hello").to_string().into()))
    };
    for wrong in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "Basic x")]] {
        let reply = connector.reply(bare(wrong)?).await?;
        assert_eq!(reply.status, 401);
        assert!(!reply.text().contains(&connector.token()?) && reply.error_message().contains("token"));
    }
    for name in ["token", "key.pem"] {
        let mode = std::fs::metadata(dir.join(name))?.permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o077, 0);
    let output = Command::new("curl")
        .args(["--silent", "--unix-socket"])
        .arg(&path)
        .args(["-H", "content-type: application/json", "-d", &chat_body("By the socket").to_string()])
        .arg("http://localhost/v1/chat/completions")
        .output()?;
    assert!(String::from_utf8_lossy(&output.stdout).contains("By the socket"), "{output:?}");
    assert_eq!(cloud.stats().await?.requests, 1);
    // Without a token, pages of the web stay outside.
    let open = Connector::start(postern.gateway, &postern.issue("clerk/bo")?, &["--no-token"]).await?;
    assert_eq!(open.reply(bare(&[])?).await?.status, 200);
    assert_eq!(open.reply(bare(&[("origin", "https://evil.example")])?).await?.status, 403);
    assert_eq!(open.reply(bare(&[("host", "evil.example")])?).await?.status, 403);
    // Nor is anything told to the log.
    assert!(!connector.log().contains("By the socket") && !connector.log().contains(&connector.token()?));
    Ok(())
}

#[tokio::test]
async fn tokens_arrive_as_they_are_sent() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 20, "chunk_chars": 3})).await?;
    let postern = Postern::start(&config(&cloud).set("/policies", json!([]))).await?;
    let connector = Connector::start(postern.gateway, &postern.issue("clerk/amy")?, &[]).await?;
    let arrived = connector.stream(&chat_body(&"heron ".repeat(20))).await?;
    assert!(arrived.text().ends_with("data: [DONE]\n\n"), "{}", arrived.text());
    assert!(arrived.pieces.len() > 30, "one by one: {} pieces", arrived.pieces.len());
    let mut gaps: Vec<Duration> = arrived.pieces.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    gaps.sort_unstable();
    let median = gaps[gaps.len() / 2];
    // Generous, since machines of tests are busy; `make bench` has the figure.
    assert!((Duration::from_millis(12)..Duration::from_millis(40)).contains(&median), "{median:?}");
    Ok(())
}

#[tokio::test]
async fn whoever_goes_or_does_not_read_stops_the_target() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 20})).await?;
    let postern = Postern::start(&config(&cloud).set("/policies", json!([]))).await?;
    let connector = Connector::start(postern.gateway, &postern.issue("clerk/amy")?, &[]).await?;
    let mut body = chat_body(&"heron ".repeat(400));
    body["stream"] = json!(true);
    let asked = connector.send(connector.request(Method::POST, "/v1/chat/completions", body.to_string())?).await?;
    let left = Instant::now();
    drop(asked);
    cloud.stats_when(SOON, |stats| stats.cancelled == 1).await?;
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
    let record = postern.records().when(SOON, |all| all.first().filter(|one| !one.outcome.is_null()).cloned()).await?;
    assert_eq!(record.outcome["result"], "client_gone");
    // A large answer that nobody reads is not in the connector's memory.
    cloud.switch(json!({"answer": "heron ".repeat(10_000), "chunk_chars": 1})).await?;
    let before = postern_tests::process::resident_bytes(connector.pid()).context("its memory")?;
    let mut body = chat_body("A large one");
    body["stream"] = json!(true);
    let unread = connector.send(connector.request(Method::POST, "/v1/chat/completions", body.to_string())?).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = postern_tests::process::resident_bytes(connector.pid()).context("its memory")?;
    assert!(after < before + (4 << 20), "{before} → {after}");
    drop(unread);
    assert_eq!(connector.ask(Method::GET, "/v1/models", "").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn it_recovers_by_itself_and_says_what_it_could_not_do() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 50})).await?;
    let postern = Postern::start(&config(&cloud).set("/policies", json!([]))).await?;
    let wire = Wire::to(postern.gateway).await?;
    let own = postern.issue("clerk/amy")?;
    let connector = Connector::start(wire.address, &own, &[]).await?;
    let long = chat_body(&"heron ".repeat(300));
    assert_eq!(connector.chat("Hello").await?.status, 200);

    // The gateway is killed in the middle of an answer, and comes back with other keys.
    let under_way = connector.stream(&long);
    let killed = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        postern.signal_child("gateway", Signal::KILL)
    };
    let (arrived, killed) = tokio::join!(under_way, killed);
    killed?;
    let text = arrived?.text();
    assert!(
        text.contains("answer_incomplete") && !text.contains("[DONE]"),
        "{}",
        &text[text.len().saturating_sub(400)..]
    );
    answers_again(&connector).await?;

    // The gateway's certificate is replaced: what is under way goes on.
    let short = chat_body(&"heron ".repeat(40));
    let rotated = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        postern.admin_post("/api/certificates/rotate").await
    };
    let (arrived, rotated) = tokio::join!(connector.stream(&short), rotated);
    assert_eq!(rotated?.status, 200);
    assert!(arrived?.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(connector.chat("Hello with a new certificate").await?.status, 200);

    // The network is reset: what is under way is told so, the next one works.
    let under_way = connector.stream(&long);
    let reset = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        wire.reset();
    };
    let text = tokio::join!(under_way, reset).0?.text();
    assert!(text.contains("answer_incomplete"), "{}", &text[text.len().saturating_sub(400)..]);
    assert_eq!(connector.chat("Hello again").await?.status, 200);

    // It is gone for a while: an error in words, and afterwards everything is as it was.
    postern.signal_child("gateway", Signal::STOP)?;
    wire.cut();
    wire.reset();
    let own = own.to_str().context("a path")?;
    let until = Instant::now() + SOON;
    // What is asked before it has heard of that is told otherwise.
    while is_connected(own)? {
        ensure!(Instant::now() < until, "it has not heard that the connection is gone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let away = connector.chat("Is anybody there?").await?;
    assert_eq!((away.status, away.error_code().as_str()), (503, "gateway_unreachable"), "{}", away.text());
    assert!(!away.header("retry-after").is_empty() && !away.error_message().contains("anybody"));
    postern.signal_child("gateway", Signal::CONT)?;
    wire.mend();
    answers_again(&connector).await?;
    Ok(())
}

fn is_connected(dir: &str) -> Result<bool> {
    let said = postern_tests::postern::run(&["connect", "status", "--dir", dir, "--json"])?;
    let status: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    Ok(status["connected"] == true)
}

async fn answers_again(connector: &Connector) -> Result<()> {
    let until = Instant::now() + SOON;
    loop {
        let reply = connector.chat("Hello again").await?;
        if reply.status == 200 {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{}: {}", reply.status, reply.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_network_that_is_away_for_ten_seconds_is_survived() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    cloud.switch(json!({"token_ms": 50})).await?;
    let postern = Postern::start(&config(&cloud).set("/policies", json!([]))).await?;
    let wire = Wire::to(postern.gateway).await?;
    let connector = Connector::start(wire.address, &postern.issue("clerk/amy")?, &[]).await?;
    let (short, long) = (chat_body(&"heron ".repeat(60)), chat_body(&"heron ".repeat(300)));
    let under_way = connector.stream(&short);
    let cut = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        wire.cut();
        tokio::time::sleep(Duration::from_secs(10)).await;
        wire.mend();
    };
    // What was sent meanwhile waited, and nothing of it is lost.
    let arrived = tokio::join!(under_way, cut).0?;
    assert!(arrived.text().ends_with("data: [DONE]\n\n"), "{}", arrived.text());
    answers_again(&connector).await?;
    // Longer than that it is a broken connection, and whoever waits is told.
    let under_way = connector.stream(&long);
    let cut = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        wire.cut();
    };
    let begun = Instant::now();
    let text = tokio::join!(under_way, cut).0?.text();
    assert!(text.contains("answer_incomplete"), "{}", &text[text.len().saturating_sub(400)..]);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    wire.mend();
    answers_again(&connector).await
}

#[tokio::test]
async fn it_renews_its_certificate_and_follows_the_gateway_s_keys() -> Result<()> {
    let (cloud, time) = (BusyCloud::start().await?, FakeTime::start()?);
    let postern = Postern::start(&time.applied_to(config(&cloud))).await?;
    let dir = postern.issue("clerk/amy")?;
    let connector = Connector::start_with(postern.gateway, &dir, &[], &time.environment()).await?;
    assert_eq!(connector.chat("Hello").await?.status, 200);
    let before = std::fs::read_to_string(dir.join("cert.pem"))?;
    // Half of the certificate's life, and more than a key's.
    time.advance(40.0)?;
    let until = Instant::now() + SOON;
    while std::fs::read_to_string(dir.join("cert.pem"))? == before {
        ensure!(Instant::now() < until, "not renewed: {}", connector.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    answers_again(&connector).await?;
    // The first certificate would have ended by now, and so has the first key.
    time.advance(35.0)?;
    answers_again(&connector).await
}

/// A middlebox in front of a gateway, and a connector that has to go through it.
async fn through_a_middlebox(cloud: &BusyCloud) -> Result<(Postern, Middlebox, Connector)> {
    let relays = json!(["spiffe://branch.test/relay/*"]);
    let postern = gateway(config(cloud).set("/payload/relays", relays)).await?;
    let (relay, amy) = (postern.issue("relay/box")?, postern.issue("clerk/amy")?);
    let identity = Identity::read(&relay.join("cert.pem"), &relay.join("key.pem"))?;
    let middlebox = Middlebox::start(postern.gateway, &relay.join("ca.pem"), &identity).await?;
    let ca = middlebox.ca().display().to_string();
    let connector = Connector::start(middlebox.address, &amy, &["--middlebox-ca", &ca]).await?;
    Ok((postern, middlebox, connector))
}

#[tokio::test]
async fn a_middlebox_carries_everything_and_learns_nothing() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (postern, middlebox, connector) = through_a_middlebox(&cloud).await?;
    let mut request =
        connector.request(Method::POST, "/v1/chat/completions", chat_body("The heron flies at noon").to_string())?;
    request.headers_mut().insert("postern-label", "internal".parse()?);
    let answer = connector.reply(request).await?;
    assert!(answer.status == 200 && answer.answer().contains("heron"), "{}", answer.text());
    let streamed = connector.stream(&chat_body("The heron flies at noon, streamed")).await?;
    assert!(streamed.text().ends_with("data: [DONE]\n\n"), "{}", streamed.text());
    for word in ["heron", "internal", "chat/completions", "clerk", "postern-label", &connector.token()?] {
        assert!(!middlebox.has_read(word), "{word}");
    }
    let record = postern.records().of(answer.header("postern-record"), SOON).await?;
    assert_eq!(record.outcome["relay"], "spiffe://branch.test/relay/box");
    assert_eq!(
        (&record.outcome["identity"], &record.intent["label"]),
        (&json!("spiffe://branch.test/clerk/amy"), &json!("internal"))
    );
    // Whoever was not told of it refuses it.
    let strict = Connector::start(middlebox.address, &postern.issue("clerk/bo")?, &[]).await?;
    let reply = strict.chat("Hello").await?;
    assert!([502, 503].contains(&reply.status), "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn no_trick_of_a_middlebox_is_more_than_an_error() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (postern, middlebox, connector) = through_a_middlebox(&cloud).await?;
    assert_eq!(connector.chat("Hello").await?.status, 200);
    let asked = cloud.stats().await?.requests;
    let secret = "A heron of the second kind";
    let code = async |trick: Trick| -> Result<(u16, String)> {
        middlebox.plays(trick);
        let reply = connector.chat(secret).await?;
        assert!(!reply.text().contains("second kind") && !reply.text().contains("forged"), "{}", reply.text());
        Ok((reply.status, reply.error_code()))
    };
    assert_eq!(code(Trick::FlipRequest(3)).await?.1, "payload_not_authentic");
    let forged =
        json!({"error": {"message": "forged words", "type": "x", "param": null, "code": "rate_limit_exceeded"}});
    assert_eq!(code(Trick::Answer(429, forged.to_string())).await?.0, 429);
    assert_eq!(code(Trick::Answer(200, chat_body("forged").to_string())).await?.1, "answer_not_sealed");
    assert!(code(Trick::Elsewhere(Method::POST, "/v1/chat/completions".into())).await?.0 >= 400);
    assert!(code(Trick::Elsewhere(Method::PUT, PLACE.into())).await?.0 >= 400);
    assert_eq!(cloud.stats().await?.requests, asked, "nothing of all that was acted on");
    for trick in [Trick::FlipAnswer(70), Trick::CutAnswer(40), Trick::FlipAnswer(10)] {
        let (status, code) = code(trick.clone()).await?;
        assert!(
            status == 502 && ["answer_not_authentic", "answer_incomplete"].contains(&code.as_str()),
            "{trick:?}: {status} {code}"
        );
    }
    for trick in [Trick::CutAnswer(1200), Trick::DoubleAnswer, Trick::FlipAnswer(1200)] {
        middlebox.plays(trick.clone());
        let arrived = connector.stream(&chat_body(&format!("{secret} {}", "word ".repeat(40)))).await?;
        assert!(arrived.broken || arrived.text().contains("answer_incomplete"), "{trick:?}: {}", arrived.text());
        assert!(!arrived.text().contains("[DONE]"), "{trick:?}");
    }
    // Keys of its own: nothing is sealed for them.
    middlebox.plays(Trick::SwapKeys);
    postern.signal_child("gateway", Signal::KILL)?;
    let until = Instant::now() + SOON;
    loop {
        let reply = connector.chat(secret).await?;
        assert_ne!(reply.status, 200, "{}", reply.text());
        if reply.error_code() == "gateway_not_authentic" {
            break;
        }
        ensure!(Instant::now() < until, "{}", reply.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    middlebox.plays(Trick::None);
    answers_again(&connector).await?;

    // What it has recorded is good for nothing: here, at another replica, or with a certificate of its own.
    let recorded = middlebox.sealed();
    let replica = gateway(config(&cloud).set("/payload/relays", json!(["spiffe://branch.test/relay/*"]))).await?;
    let asked = cloud.stats().await?.requests;
    for (postern, relay) in [(&postern, postern.client("relay/box")?), (&replica, replica.client("relay/box")?)] {
        let dir = postern.issue("clerk/nobody")?;
        let resend = Workstation::of(&relay, &dir)?;
        for bytes in &recorded {
            let reply = resend.send(bytes.clone()).await?;
            assert!(reply.status >= 400 && reply.error_code().starts_with("payload_"), "{}", reply.text());
        }
    }
    assert_eq!(cloud.stats().await?.requests, asked);
    Ok(())
}

#[tokio::test]
async fn what_goes_wrong_behind_a_middlebox_is_told_with_what_to_do() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (postern, middlebox, connector) = through_a_middlebox(&cloud).await?;
    let status = |json: &[&str]| -> Result<String> {
        let dir = connector.dir.display().to_string();
        let said = postern_tests::postern::run(&[&["connect", "status", "--dir", &dir], json].concat())?;
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    };
    assert_eq!(connector.chat("Hello").await?.status, 200);
    assert!(!status(&[])?.contains("failed, at"));
    // Wherever an answer that is no stream is cut: an error in words, and a line in the log.
    let mut broken_off = 0;
    for after in (100..20_000).step_by(100) {
        middlebox.plays(Trick::CutAnswer(after));
        let reply = connector.chat("A heron of the third kind").await?;
        if reply.status == 200 {
            break;
        }
        assert_eq!(reply.status, 502, "{after}: {}", reply.text());
        broken_off += usize::from(reply.error_code() == "answer_incomplete");
    }
    assert!(broken_off > 0 && connector.log().contains("answer_incomplete"), "{broken_off} {}", connector.log());
    middlebox.plays(Trick::None);
    // Whoever seals nothing does not renew through it.
    let (address, dir) = (middlebox.address.to_string(), connector.dir.display().to_string());
    let renewing = tokio::task::spawn_blocking(move || {
        postern_tests::postern::run(&["certs", "renew", "--now", "--gateway", &address, "--dir", &dir])
    });
    let output = renewing.await??;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("renewal needs a direct way to the gateway"), "{said}");
    // A revoked workstation is connected with the middlebox as ever.
    postern.certs(&["revoke", "--id", "spiffe://branch.test/clerk/amy"])?;
    let until = Instant::now() + SOON;
    let reply = loop {
        let reply = connector.chat("A heron of the fourth kind").await?;
        if reply.status != 200 {
            break reply;
        }
        ensure!(Instant::now() < until, "{}", reply.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!((reply.status, reply.error_code().as_str()), (403, "payload_sender_refused"), "{}", reply.text());
    assert!(reply.error_message().contains("its certificate was revoked"), "{}", reply.text());
    assert_eq!(connector.chat("A heron of the fourth kind").await?.status, 403);
    let told: serde_json::Value = serde_json::from_str(&status(&["--json"])?)?;
    assert_eq!((&told["connected"], &told["last_failure"]["code"]), (&json!(true), &json!("payload_sender_refused")));
    let told = status(&[])?;
    assert!(told.contains("the last that failed, at ") && told.contains("403 payload_sender_refused"), "{told}");
    let log = connector.log();
    let lines = log.lines().filter(|line| line.contains("payload_sender_refused")).count();
    assert_eq!(lines, 1, "the same reason is told once: {log}");
    assert!(!told.contains("heron") && !log.contains("heron"), "{told} {log}");
    Ok(())
}

#[tokio::test]
async fn what_applications_send_has_bounds() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = gateway(config(&cloud)).await?;
    let connector = Connector::start(postern.gateway, &postern.issue("clerk/amy")?, &[]).await?;
    let large = connector.ask(Method::POST, "/v1/chat/completions", vec![b'x'; 33 << 20]).await;
    assert!(large.is_err() || large.is_ok_and(|reply| reply.error_code() == "request_too_large"));
    let reply =
        connector.ask(Method::POST, "/v1/chat/completions", chat_body(&"x".repeat(9 << 20)).to_string()).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (413, "request_too_large"), "the gateway's own bound");
    assert_eq!(connector.ask(Method::GET, "/elsewhere", "").await?.status, 404);
    assert_eq!(connector.ask(Method::POST, "/v1/chat/completions", "{").await?.error_code(), "invalid_json");
    // Many large ones at a time: some are told to come again, and its memory stays bounded.
    let all = futures_util::future::join_all((0..24).map(|at| {
        let connector = &connector;
        async move { connector.chat(&format!("{at} {}", "x".repeat(6 << 20))).await }
    }));
    for reply in all.await {
        let Ok(reply) = reply else { continue };
        assert!([200, 429, 503].contains(&reply.status), "{}: {}", reply.status, reply.text());
    }
    let resident = postern_tests::process::resident_bytes(connector.pid()).context("its memory")?;
    assert!(resident < 256 << 20, "{resident}");
    assert_eq!(connector.chat("Hello").await?.status, 200);
    Ok(())
}
