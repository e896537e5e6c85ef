//! Offline, as the kernel has it: which processes are confined, how a gateway gets there, and that it stays there.

mod packets;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use postern_tests::postern::run;
use postern_tests::{BusyCloud, Postern, chat_body, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{SOON, config};

/// Says what was not shown, past the harness, which keeps what a test prints to itself.
fn not_shown(what: &str) {
    use std::io::Write as _;
    let _unread = writeln!(std::io::stderr(), "NOT SHOWN on this machine: {what}");
}

/// Of a process: filters of system calls (`Seccomp: 2`), and the promise that no program gets more rights.
fn is_confined(pid: u32) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let has = |line: &str| status.lines().any(|found| found.replace('\t', " ") == line);
    Ok(has("Seccomp: 2") && has("NoNewPrivs: 1"))
}

/// The user that a process is.
fn user(pid: u32) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no user")?;
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Waits until the gateway says that it is offline, in another process than `before`.
async fn offline(postern: &Postern, before: u32) -> Result<u32> {
    let deadline = Instant::now() + 3 * SOON;
    loop {
        let status = postern.admin("/api/status").await.and_then(|reply| reply.json()).unwrap_or_default();
        let now = postern.child("gateway").filter(|pid| *pid != before);
        if let (Some(pid), Value::Bool(true)) = (now, &status["offline"]) {
            return Ok(pid);
        }
        ensure!(Instant::now() < deadline, "it is not offline: {status}\n{}", postern.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn short(prompt: &str) -> Value {
    let mut body = chat_body(prompt);
    body["max_tokens"] = json!(2);
    body
}

#[tokio::test]
async fn a_gateway_goes_offline_in_a_successor_and_nothing_brings_it_back() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud).engine();
    let postern = Postern::start(&config).await?;
    postern.engine_ready().await?;
    let (first, engine) = (postern.child("gateway").unwrap(), postern.child("engine").unwrap());
    assert!(!is_confined(first)? && is_confined(engine)?, "the engine always is, the gateway not yet");
    assert_eq!(postern.admin("/api/status").await?.json()?["offline"], json!(false));
    let client = postern.client("clerk/amy")?;
    assert_eq!(client.chat("Who answers?").await?.header("postern-target"), "sun");
    cloud.switch(json!({"token_ms": 50})).await?;
    let mut events = client.stream(&chat_body(&"Talk for a long time. ".repeat(40))).await?;
    let record = events.header("postern-record").to_owned();
    events.next().await?;

    let asked = postern.admin_post("/api/offline").await?;
    assert_eq!((asked.status, &asked.json()?["offline"]), (202, &json!("ending")), "{}", asked.text());
    let rest = events.rest().await?;
    assert_eq!(rest.last().unwrap().error_code(), "offline", "{rest:?}");
    let outcome = postern.records().of(&record, SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["code"]), (&json!("broken"), &json!("offline")), "{outcome}");
    let second = offline(&postern, first).await?;
    assert!(is_confined(second)?);
    postern.engine_ready().await?;
    assert!(!postern.log().contains("ERROR"), "it went as it was asked to: {}", postern.log());
    let before = cloud.stats().await?.requests;
    let answered = client.post_json("/v1/chat/completions", &short("And now?")).await?;
    assert_eq!((answered.status, answered.header("postern-target")), (200, "engine"), "{}", answered.text());
    let reason = (answered.header("postern-placement"), answered.header("postern-reason"));
    assert_eq!(reason, ("local", "offline"));
    assert!(postern.admin("/readyz?verbose").await?.text().contains("offline: confined by the kernel"));
    assert_eq!(postern.metrics().await?.value("postern_offline", &[]), Some(1.0));
    assert_eq!(postern.admin_post("/api/offline").await?.status, 200, "it is there already");

    // Neither a reload of a configuration that says the opposite, nor a crash.
    postern.configure(&config.clone().set("/offline", json!(false)))?;
    process::send(postern.pid(), Signal::HUP)?;
    postern.logged("the policies were reloaded").await?;
    assert_eq!(postern.child("gateway"), Some(second));
    postern.signal_child("gateway", Signal::KILL)?;
    let third = offline(&postern, second).await?;
    assert!(is_confined(third)?);
    postern.engine_ready().await?;
    assert_eq!(client.post_json("/v1/chat/completions", &short("And then?")).await?.header("postern-target"), "engine");
    assert_eq!(cloud.stats().await?.requests, before);
    Ok(())
}

#[tokio::test]
async fn what_starts_offline_is_confined_and_serves_what_needs_no_line() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let config = config(&cloud).set("/offline", json!(true)).set("/enrol", json!("127.0.0.1:0"));
    let mut postern = Postern::start(&config).await?;
    let gateway = postern.child("gateway").unwrap();
    assert!(is_confined(gateway)?);
    let refused = postern.client("clerk/amy")?.chat("Who answers?").await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "offline"), "{}", refused.text());
    // Policies are compiled and exchanged, certificates renewed, workstations invited and let in.
    process::send(postern.pid(), Signal::HUP)?;
    postern.logged("the policies were reloaded").await?;
    assert_eq!(postern.admin_post("/api/certificates/rotate").await?.status, 200);
    let token = postern.certs(&["invite", "--id", "spiffe://branch.test/clerk/ben"])?;
    let dir = postern.folder("enrolled")?;
    let enrol = postern.enrol.unwrap().to_string();
    let file = dir.join("token");
    std::fs::write(&file, token)?;
    let out = dir.join("out").display().to_string();
    let enrolled =
        run(&["certs", "enrol", "--gateway", &enrol, "--token-file", file.to_str().unwrap(), "--out", &out])?;
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    assert_eq!((postern.child("gateway"), cloud.stats().await?.connections), (Some(gateway), 0));
    assert_eq!(postern.stop().await?.code(), Some(0), "{}", postern.log());
    Ok(())
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let sockets: Vec<_> = (0..N).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, socket) in ports.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    Ok(ports)
}

#[tokio::test]
async fn in_a_network_of_its_own_it_is_reached_through_the_sockets_of_systemd_and_reaches_nobody() -> Result<()> {
    let apart = ["unshare", "--user", "--map-root-user", "--net"];
    let tried = std::process::Command::new(apart[0]).args(&apart[1..]).arg("true").output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        not_shown("sockets of systemd: this machine lets nobody make a network namespace");
        return Ok(());
    }
    let cloud = BusyCloud::start().await?;
    for offline in [true, false] {
        let ports: [u16; 3] = free_ports()?;
        let config = config(&cloud).engine().set("/offline", json!(offline)).set("/enrol", json!("127.0.0.1:0"));
        // It hands on what it is told to.
        let own = ["POSTERN_CACHE", "POSTERN_PLUGINS"].into_iter().filter(|name| std::env::var_os(name).is_some());
        let names = config.environment().iter().map(|(name, _)| name.as_str()).chain(own);
        let mut wrapper = vec!["systemd-socket-activate".to_owned(), "--fdname=enrol:listen:admin".to_owned()];
        wrapper.extend(names.map(|name| format!("--setenv={name}")));
        wrapper.extend(ports.iter().map(|port| format!("--listen=127.0.0.1:{port}")));
        wrapper.extend(apart.map(str::to_owned));
        // It is started when somebody comes.
        let knock = tokio::spawn(async move {
            loop {
                let came = tokio::net::TcpStream::connect(("127.0.0.1", ports[0])).await;
                tokio::time::sleep(std::time::Duration::from_millis(if came.is_ok() { 2000 } else { 20 })).await;
            }
        });
        let postern = Postern::start_under(&wrapper, &config).await?;
        knock.abort();
        assert_eq!([postern.enrol.context("none")?, postern.gateway, postern.admin].map(|at| at.port()), ports);
        postern.engine_ready().await?;
        let network = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        for name in ["gateway", "engine"] {
            let pid = postern.child(name).context(name)?;
            assert_ne!(network(pid)?, network(std::process::id())?, "{name}");
            let lines = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
            assert!(lines.contains("lo:") && lines.lines().count() == 3, "loopback and nothing else: {lines}");
        }
        let client = postern.client("clerk/amy")?;
        // Also where nothing in the process would hold it back: there is no way to the cloud.
        for placement in ["local", "cloud"] {
            let asked = client.with_header("postern-placement", placement);
            let reply = asked.post_json("/v1/chat/completions", &short("Who is there?")).await?;
            assert_eq!(
                (reply.status, reply.header("postern-target")),
                (200, "engine"),
                "{placement}: {}",
                reply.text()
            );
        }
        // The sockets outlive the gateway.
        let before = postern.child("gateway").context("no gateway")?;
        postern.signal_child("gateway", Signal::KILL)?;
        let answered = client.with_header("postern-placement", "local").get("/v1/models").await;
        let answered = if answered.is_ok() { answered } else { client.get("/v1/models").await };
        assert_eq!(answered?.status, 200);
        assert_ne!(postern.child("gateway"), Some(before));
    }
    assert_eq!(cloud.stats().await?.connections, 0);
    Ok(())
}

#[test]
fn an_agent_that_has_to_be_asked_and_offline_exclude_each_other() -> Result<()> {
    let spiffe = json!({"domain": "branch.test", "issuer": "spiffe", "spiffe": {"socket": "/run/agent.sock"}});
    let config = postern_tests::Config::new().set("/trust", spiffe).set("/offline", json!(true));
    let checked = postern_tests::postern::check(&config)?;
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.code() == Some(78) && said.contains("connect to nobody"), "{said}");
    Ok(())
}

#[test]
fn the_doctor_says_what_this_kernel_can_do() -> Result<()> {
    let (lines, json) = (run(&["doctor"])?, run(&["doctor", "--json"])?);
    let report: Value = serde_json::from_slice(&json.stdout)?;
    let code = if report["good"] == true { 0 } else { 1 };
    assert_eq!((lines.status.code(), json.status.code()), (Some(code), Some(code)), "{report}");
    for finding in report["findings"].as_array().unwrap() {
        let name = finding["name"].as_str().unwrap();
        assert!(String::from_utf8_lossy(&lines.stdout).contains(name), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_engine_is_another_user_where_root_starts_it() -> Result<()> {
    let as_other = |config: postern_tests::Config| config.engine().set("/engine/user", json!("nobody"));
    if !rustix::process::geteuid().is_root() {
        let postern = Postern::start(&as_other(postern_tests::Config::new())).await;
        let said = format!("{:#}", postern.unwrap_err());
        assert!(said.contains("`engine.user` needs `postern run` to be started by root"), "{said}");
        not_shown("an engine that is another user: this is not root");
        return Ok(());
    }
    // Where that user can read it.
    let dir = tempfile::tempdir()?;
    let model = postern_engine::catalog::locate("smollm2-135m-instruct")?;
    let copy = dir.path().join("model.gguf");
    std::fs::copy(model, &copy)?;
    for path in [dir.path(), &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    }
    let postern = Postern::start(&as_other(postern_tests::Config::new()).set("/engine/model", json!(copy))).await?;
    postern.engine_ready().await?;
    let engine = postern.child("engine").unwrap();
    let (nobody, own) = (user(engine)?, user(postern.child("gateway").unwrap())?);
    assert_ne!(nobody, own);
    assert!(is_confined(engine)? && !nobody.split(' ').any(|id| id == "0"), "{nobody}");
    let client = postern.client("clerk/amy")?.with_header("postern-placement", "local");
    assert_eq!(client.post_json("/v1/chat/completions", &short("Who are you?")).await?.status, 200);
    Ok(())
}
