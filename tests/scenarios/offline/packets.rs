//! What leaves, counted where it would arrive: the gateway in a network of its own, the only way out of which is a cable (a pair of
//! veth) to the test, whose end counts every packet. ARP is no packet of theirs, and IPv6, whose neighbour discovery would be, is
//! switched off.
//!
//! The scenario starts itself again in the network that is the other end of the cable.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use postern_tests::{BusyCloud, Config, Postern, chat_body, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{not_shown, short};
use crate::policies::Puppet;
use crate::{SOON, config};

/// The test's end of the cable, and the gateway's (RFC 5737).
const PEER: &str = "192.0.2.1";
const GATEWAY: &str = "192.0.2.2";
/// Where the cloud listens, and the gateway's addresses that clients reach.
const CLOUD_PORT: u16 = 4000;
const PORTS: (u16, u16) = (8443, 9080);
/// In every classified prompt, and in no other.
const SECRET: &str = "harpsichord";
const INSIDE: &str = "POSTERN_PACKETS_INSIDE";
const AT_A_TIME: usize = 24;

#[test]
fn nothing_leaves_that_is_not_a_public_requests_own_and_offline_nothing_but_answers() -> Result<()> {
    // Neither is installed by itself, so `make test` does; only rights can be missing.
    for program in ["nft", "ip", "nsenter"] {
        let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(there.is_ok(), "`{program}` is not installed: `make nftables` does that");
    }
    let tried = Command::new("unshare").args(["--net", "--", "nft", "add", "table", "ip", "tried"]).output()?;
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        not_shown(&format!("that no packet leaves: no networks of its own can be made here ({why})"));
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    // `postern` is started in the other network by whatever starts it.
    let (program, holder) = (dir.path().join("postern"), dir.path().join("holder"));
    let real = postern_tests::postern::binary()?;
    let script = format!(
        "#!/bin/sh\nexec nsenter --net=/proc/$(cat {})/ns/net -- {} \"$@\"\n",
        holder.display(),
        real.display()
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut again = Command::new("unshare");
    again.args(["--net", "--"]).arg(std::env::current_exe()?);
    again.args(["offline::packets::inside", "--exact", "--ignored", "--nocapture"]);
    let ended = again.env(INSIDE, dir.path()).env("POSTERN_BIN", &program).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success() && said.contains("1 passed"), "{said}");
    Ok(())
}

/// The two networks and the cable. The gateway's lives as long as its holder.
struct Cable {
    holder: std::process::Child,
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ended = self.holder.kill();
        let _status = self.holder.wait();
    }
}

impl Cable {
    fn lay(dir: &Path) -> Result<Self> {
        // Ends with this process, however that ends.
        let holding = ["--net", "--", "setpriv", "--pdeathsig", "KILL", "--", "sleep", "7200"];
        let holder = Command::new("unshare").args(holding).spawn()?;
        let cable = Self { holder };
        let pid = cable.holder.id().to_string();
        std::fs::write(dir.join("holder"), &pid)?;
        let deadline = Instant::now() + SOON;
        let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        while network(&pid)? == network("self")? {
            ensure!(Instant::now() < deadline, "no network of its own");
            std::thread::sleep(Duration::from_millis(10));
        }
        // Of the network in which it is written; a kernel without IPv6 has none.
        let without_ipv6 = "for one in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $one ] || echo 1 >$one; done";
        sh(without_ipv6)?;
        cable.inside(without_ipv6)?;
        sh(&format!("ip link set lo up; ip link add peer0 type veth peer name out0 netns {pid}"))?;
        sh(&format!("ip addr add {PEER}/30 dev peer0; ip link set peer0 up"))?;
        cable.inside(&format!(
            "ip link set lo up; ip addr add {GATEWAY}/30 dev out0; ip link set out0 up; ip route add default via {PEER}"
        ))?;
        let (tls, probe) = PORTS;
        sh(&format!(
            "nft 'table ip watch {{
               counter replies {{}}
               counter cloud {{}}
               counter others {{}}
               chain come {{
                 type filter hook prerouting priority -300;
                 iifname \"peer0\" ip saddr {GATEWAY} tcp sport {{ {tls}, {probe} }} counter name \"replies\" accept
                 iifname \"peer0\" ip saddr {GATEWAY} tcp dport {CLOUD_PORT} counter name \"cloud\" accept
                 iifname \"peer0\" counter name \"others\"
               }}
             }}'"
        ))?;
        Ok(cable)
    }

    /// Runs a script in the gateway's network.
    fn inside(&self, script: &str) -> Result<Output> {
        let network = format!("--net=/proc/{}/ns/net", self.holder.id());
        done(Command::new("nsenter").args([network.as_str(), "--", "sh", "-ec", script]))
    }

    /// The admin address is on loopback there.
    fn admin(&self, method: &str, path: &str) -> Result<Value> {
        let script = format!(
            "import urllib.request as u; print(u.urlopen(u.Request('http://127.0.0.1:9443{path}', method='{method}'), timeout=20).read().decode())"
        );
        let network = format!("--net=/proc/{}/ns/net", self.holder.id());
        let output = done(Command::new("nsenter").args([network.as_str(), "--", "python3", "-c", &script]))?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn sh(script: &str) -> Result<Output> {
    done(Command::new("sh").args(["-ec", script]))
}

fn done(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Packets that came over the cable, by what they are.
fn counted() -> Result<BTreeMap<String, u64>> {
    let listed: Value = serde_json::from_slice(&sh("nft -j list counters")?.stdout)?;
    let counters = listed["nftables"].as_array().context("nft")?.iter().filter_map(|item| item.get("counter"));
    Ok(counters.filter_map(|one| Some((one["name"].as_str()?.to_owned(), one["packets"].as_u64()?))).collect())
}

/// Waits until a gateway that answers says so.
async fn until(cable: &Cable, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + 6 * SOON;
    loop {
        let status = cable.admin("GET", "/api/status").unwrap_or_default();
        if wanted(&status) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what}: {status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What became of requests.
#[derive(Debug, Default)]
struct Sent {
    public: AtomicU64,
    by_cloud: AtomicU64,
    by_engine: AtomicU64,
    refused: AtomicU64,
}

/// Sends requests, every `classified`th of which says what must stay, and looks at every answer.
async fn send(postern: &Postern, count: u64, classified: u64) -> Result<Sent> {
    let public = postern.client("clerk/amy")?;
    let secret = public.with_header("postern-label", "classified").pooled()?;
    let (public, sent) = (Arc::new(public.pooled()?), Sent::default());
    let asked = futures_util::stream::iter(0..count).map(|number| {
        let (public, secret, sent) = (&public, &secret, &sent);
        async move {
            let is_secret = number % classified == 0;
            let (client, word) = if is_secret { (secret, SECRET) } else { (&**public, "violin") };
            let body = short(&format!("About the {word}, {number} of {count}, {}", rand::random::<u64>()));
            // While a gateway ends, a connection may.
            let Ok(reply) = client.post_json("/v1/chat/completions", &body).await else { return Ok(()) };
            let target = reply.header("postern-target");
            ensure!(!is_secret || target != "sun", "a classified request was answered by the cloud: {}", reply.text());
            sent.public.fetch_add(u64::from(!is_secret), Ordering::Relaxed);
            let counter = match target {
                "sun" => &sent.by_cloud,
                "engine" => &sent.by_engine,
                _ => &sent.refused,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    });
    let results: Vec<Result<()>> = asked.buffer_unordered(AT_A_TIME).collect().await;
    results.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(sent)
}

fn networked(cloud: &BusyCloud) -> Config {
    let (tls, probe) = PORTS;
    let queue = json!({"model": "smollm2-135m-instruct", "max_batch_size": 4, "max_queue": 4});
    config(cloud)
        .set("/listen", json!(format!("{GATEWAY}:{tls}")))
        .set("/probe", json!(format!("{GATEWAY}:{probe}")))
        .set("/admin", json!("127.0.0.1:9443"))
        .set("/names", json!([GATEWAY]))
        .set("/engine", queue)
        .set("/plugins/unsigned", json!("allow"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the scenario above, in a network of its own"]
async fn inside() -> Result<()> {
    let Some(dir) = std::env::var_os(INSIDE) else { return Ok(()) };
    let cable = Cable::lay(Path::new(&dir))?;
    let count = if std::env::var_os("POSTERN_TEST_ALL").is_some() { 10_000 } else { 300 };
    let cloud = BusyCloud::start_with(&["--listen", &format!("{PEER}:{CLOUD_PORT}")]).await?;
    let puppet = Puppet::new()?;
    puppet.first(&[])?;
    let config = networked(&cloud);
    let postern = Postern::start(&config).await?;
    until(&cable, "no engine", |status| status["engine"]["connected"] == true).await?;

    // Nothing but classified requests: not one packet to the cloud, not even to be ready for it.
    let sent = send(&postern, count / 3, 1).await?;
    let packets = counted()?;
    assert!(sent.by_engine.load(Ordering::Relaxed) > 0 && packets["replies"] > 0, "{sent:?} {packets:?}");
    assert_eq!((packets["cloud"], packets["others"]), (0, 0), "{packets:?} {sent:?}");

    // Mixed, while a policy wants everything in the cloud, the engine is killed, policies and certificates are exchanged.
    let hostile = puppet.policy(json!({"vote": {"placement": "cloud", "targets": ["sun"]}}));
    let troubles = async {
        for round in 0..6 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let next = if round % 2 == 0 { config.clone().push("/policies", hostile.clone()) } else { config.clone() };
            postern.configure(&next)?;
            process::send(postern.pid(), Signal::HUP)?;
            cable.admin("POST", "/api/certificates/rotate")?;
            if round == 2 {
                // It may be on its way back already.
                let _gone = postern.signal_child("engine", Signal::KILL);
            }
        }
        anyhow::Ok(())
    };
    let (sent, troubled) = tokio::join!(send(&postern, count, 2), troubles);
    troubled?;
    let (sent, stats, packets) = (sent?, cloud.stats().await?, counted()?);
    let (public, by_cloud) = (sent.public.load(Ordering::Relaxed), sent.by_cloud.load(Ordering::Relaxed));
    assert!(by_cloud > 0 && packets["cloud"] > 0, "{sent:?} {packets:?}");
    assert!(stats.requests >= by_cloud && stats.requests <= public, "{} at the cloud: {sent:?}", stats.requests);
    assert!(stats.raw_bodies.iter().all(|body| !body.contains(SECRET)), "{:?}", stats.raw_bodies);
    assert_eq!((packets["others"], stats.other_requests), (0, 0), "{packets:?}");

    go_offline(&postern, &cloud, &cable, count).await
}

async fn go_offline(postern: &Postern, cloud: &BusyCloud, cable: &Cable, count: u64) -> Result<()> {
    cloud.switch(json!({"token_ms": 50})).await?;
    let client = postern.client("clerk/amy")?;
    let mut events = client.stream(&chat_body(&"Talk for a long time. ".repeat(60))).await?;
    events.next().await?;
    assert_eq!(cable.admin("POST", "/api/offline")?["offline"], "ending");
    assert_eq!(events.rest().await?.last().unwrap().error_code(), "offline");
    until(cable, "not offline", |status| status["offline"] == true && status["engine"]["connected"] == true).await?;
    // The kernel ends what the process before had open.
    let deadline = Instant::now() + SOON;
    let mut before = counted()?;
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = counted()?;
        if now["cloud"] == before["cloud"] {
            before = now;
            break;
        }
        ensure!(Instant::now() < deadline, "the old connections do not end: {now:?}");
        before = now;
    }
    let sent = send(postern, count / 3, 2).await?;
    let after = counted()?;
    assert!(sent.by_engine.load(Ordering::Relaxed) > 0 && after["replies"] > before["replies"], "{sent:?}");
    assert_eq!(sent.by_cloud.load(Ordering::Relaxed), 0);
    assert_eq!((after["cloud"], after["others"]), (before["cloud"], 0), "{before:?} {after:?}");
    Ok(())
}
