//! Engines on other machines: who may ask them, whom the gateway believes to be one, and what happens when one goes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_tests::client::text;
use postern_tests::pki::Authority;
use postern_tests::sealed;
use postern_tests::tls::Identity;
use postern_tests::{
    BusyCloud, Client, Config, Draft, Event, Node, Postern, Records, Reply, Wire, Workstation, chat_body,
};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{SOON, config};

pub(crate) const NODE: &str = "spiffe://branch.test/node/gpu-1";
/// Of a machine that is busy with other scenarios.
const PATIENCE: [(&str, &str); 4] = [("connect", "60s"), ("first_token", "8m"), ("idle", "8m"), ("total", "10m")];

/// An office whose authority is there before its gateway, since the gateway's configuration names the node's port.
pub(crate) struct Office {
    dir: TempDir,
    pub(crate) config: Config,
}

impl Office {
    pub(crate) fn new(cloud: &BusyCloud) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pt").tempdir()?;
        let patience: Value = PATIENCE.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let config = config(cloud).set("/state_dir", json!(dir.path().join("s"))).set("/timeouts", patience);
        Ok(Self { dir, config })
    }

    /// Issues a certificate into a folder, in the place of the one that is there.
    pub(crate) fn issue(&self, id: &str, name: &str) -> Result<PathBuf> {
        let (file, out) = (self.dir.path().join("issue.yaml"), self.dir.path().join(name));
        std::fs::write(&file, self.config.render(self.dir.path()))?;
        let (file, shown) = (file.display().to_string(), out.display().to_string());
        let output = postern_tests::postern::run(&["certs", "issue", "--config", &file, "--id", id, "--out", &shown])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(out)
    }

    pub(crate) fn records(&self) -> Records {
        Records::in_folder(self.dir.path().join("s/audit"))
    }

    async fn node(&self) -> Result<Node> {
        Node::start(&self.issue(NODE, "gpu-1")?, &[]).await
    }

    /// The gateway, with a node that must prove to be `identity`. The clouds come first.
    async fn gateway(&self, node: &Node, identity: &str) -> Result<Postern> {
        let openai = json!({"base_url": format!("https://{}/v1", node.address), "identity": identity});
        let target = json!({
            "name": "gpu", "placement": "edge", "clearance": "confidential", "openai": openai, "models": {"chat": "engine"},
        });
        Postern::start(&self.config.clone().push("/targets", target)).await
    }
}

pub(crate) fn identity(dir: &Path) -> Result<Identity> {
    Identity::read(&dir.join("cert.pem"), &dir.join("key.pem"))
}

pub(crate) fn short(prompt: &str) -> Value {
    let mut body = chat_body(prompt);
    body["max_tokens"] = json!(6);
    body
}

/// It does not end by itself: the model's three tokens for that are never chosen.
pub(crate) fn long_story() -> Value {
    let mut body = chat_body("Write a long story.");
    (body["max_tokens"], body["temperature"]) = (json!(7000), json!(2.0));
    body["logit_bias"] = json!({"0": -100, "1": -100, "2": -100});
    body
}

/// Has a stream come to its end without an error?
pub(crate) fn is_whole(events: &[Event]) -> bool {
    events.last().is_some_and(Event::is_done)
}

/// The leaf that a new handshake shows; `None`: there was none.
async fn leaf(client: &Client) -> Result<Option<CertificateDer<'static>>> {
    let connection = client.raw().await?;
    Ok(connection.tls().get_ref().1.peer_certificates().and_then(<[_]>::first).cloned().map(CertificateDer::into_owned))
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !is_so().await? {
        ensure!(started.elapsed() < SOON * 6, "not so in time: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn what_the_cloud_may_not_see_is_answered_by_the_node() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let node = office.node().await?;
    let postern = office.gateway(&node, NODE).await?;
    let officer = postern.client("officer/cy")?;
    let reply = officer.post_json("/v1/chat/completions", &short("What is the river called?")).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "gpu"), "{} {}", reply.text(), postern.log());
    assert_eq!(reply.header("postern-label"), "confidential");
    assert!(!reply.answer().is_empty(), "{}", reply.text());
    for client in [officer.clone(), officer.http2()] {
        let mut stream = client.stream(&short("What is the mountain called?")).await?;
        assert_eq!((stream.status, stream.header("postern-target")), (200, "gpu"));
        let events = stream.rest().await?;
        assert!(is_whole(&events) && !text(&events).is_empty(), "{events:?}");
    }
    assert_eq!(cloud.stats().await?.requests, 0, "nothing of it went to the cloud");
    // What the cloud may see goes there as before.
    let reply = postern.client("clerk/amy")?.chat("Good morning").await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "sun"));
    // On whose behalf it was asked is nobody's concern but our own engines'.
    let stats = cloud.stats().await?;
    let told: Vec<_> = stats.headers.iter().flat_map(|headers| headers.keys()).collect();
    assert!(!told.is_empty() && !told.iter().any(|name| name.starts_with("postern-")), "{told:?}");
    // With the highest label nothing leaves this machine, not even to a node.
    let reply = officer.with_header("postern-label", "classified").chat("The vault").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (403, "no_permitted_target"));
    Ok(())
}

#[tokio::test]
async fn what_a_node_is_asked_is_sealed_and_another_in_its_place_has_keys_of_its_own() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let node = office.node().await?;
    let wire = Wire::to(node.address).await?;
    let with = |openai: Value| {
        let target = json!({
            "name": "gpu", "placement": "edge", "clearance": "confidential", "openai": openai, "models": {"chat": "engine"},
        });
        office.config.clone().push("/targets", target)
    };
    let base_url = format!("https://{}/v1", wire.address);
    let postern = Postern::start(&with(json!({"base_url": base_url, "identity": NODE}))).await?;
    let officer = postern.client("officer/cy")?.with_header("cache-control", "no-store");
    let asked = async || officer.post_json("/v1/chat/completions", &short("What is the river called?")).await;
    assert_eq!(asked().await?.status, 200, "{}", postern.log());
    let sealed = || postern.log().matches("what this node is asked is sealed").count();
    assert_eq!(sealed(), 1, "{}", postern.log());
    assert_eq!((asked().await?.status, sealed()), (200, 1), "with the same key");
    // The same machine, started anew: its payload keys are others, and no request is lost over that.
    let probe = "spiffe://branch.test/ops/probe";
    let allow = ["--allow", "spiffe://branch.test/gateway", "--allow", probe];
    let again = Node::start(&office.issue(NODE, "gpu-1")?, &allow).await?;
    wire.lead_to(again.address);
    drop(node);
    until("the other one answers", async || Ok(asked().await?.status == 200)).await?;
    assert_eq!(sealed(), 2, "{}", postern.log());
    // Who is not asked sealed is asked in clear, inside of TLS.
    drop(postern);
    let postern = Postern::start(&with(json!({"base_url": base_url, "identity": NODE, "sealed": false}))).await?;
    let reply = postern.client("officer/cy")?.post_json("/v1/chat/completions", &short("And the sea?")).await?;
    assert_eq!(reply.status, 200, "{}", postern.log());
    assert!(!postern.log().contains("what this node is asked is sealed"));
    // A node opens what was sealed by whoever's connection it is, and nobody else's.
    let direct = again.client(Some(identity(&office.issue(probe, "probe")?)?));
    assert_eq!(direct.get(sealed::PLACE).await?.status, 200);
    let other = Workstation::of(&direct, &office.issue("spiffe://branch.test/clerk/eve", "eve")?)?;
    let refused = other.ask(&Draft { gateway: NODE.into(), ..Draft::chat("Hello") }).await?;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "payload_sender_refused"));
    Ok(())
}

/// Tokens of the prompt that were computed before.
pub(crate) fn cached(reply: &Reply) -> Result<u64> {
    ensure!(reply.status == 200, "{}", reply.text());
    Ok(reply.json()?["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0))
}

#[tokio::test]
async fn a_node_shares_beginnings_within_a_tenant_and_label_and_believes_only_gateways() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let probe = "spiffe://branch.test/ops/probe";
    let allow = ["--allow", "spiffe://branch.test/gateway", "--allow", probe];
    let node = Node::start(&office.issue(NODE, "gpu-1")?, &allow).await?;
    let postern = office.gateway(&node, NODE).await?;
    let body = |question: usize| {
        let long = "the quick river runs past the old stone bridge and the winter garden ".repeat(20);
        let asked = format!("Question {question}: what runs?");
        json!({
            "model": "chat", "max_tokens": 1, "temperature": 0,
            "messages": [{"role": "system", "content": long}, {"role": "user", "content": asked}],
        })
    };
    let ask = async |client: &Client, question: usize| {
        cached(&client.post_json("/v1/chat/completions", &body(question)).await?)
    };
    let (cy, dan) = (postern.client("officer/cy")?, postern.client("officer/dan")?);
    let amy = postern.client("clerk/amy")?.with_header("postern-label", "confidential");
    assert_eq!(ask(&cy, 1).await?, 0);
    assert!(ask(&dan, 2).await? > 100, "the same tenant and label");
    assert_eq!(ask(&amy, 3).await?, 0, "another tenant");
    assert!(ask(&amy, 4).await? > 100, "its own, of the same label");
    // Whoever is let in beside gateways may say what he likes: nothing is shared on his word, not even with himself.
    let direct = node.client(Some(identity(&office.issue(probe, "probe")?)?));
    let claims = direct.with_header("postern-tenant", "officers").with_header("postern-label", "confidential");
    let mut own = body(5);
    own["model"] = json!("engine");
    for _ in 0..2 {
        assert_eq!(cached(&claims.post_json("/v1/chat/completions", &own).await?)?, 0);
    }
    for path in ["/livez", "/state", "/metrics", "/v1/models"] {
        assert_eq!(direct.get(path).await?.status, 200, "{path}");
    }
    assert_eq!(direct.http2().get("/livez").await?.text(), "ok\n");
    Ok(())
}

#[tokio::test]
async fn nobody_but_the_gateway_comes_in() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let node = office.node().await?;
    let foreign = Authority::new("foreign")?;
    let of_foreign = |id: &str| {
        let leaf = foreign.client(&[id])?;
        Identity::from_pem(&leaf.cert_pem, &leaf.key_pem)
    };
    let refused = [
        ("no_certificate", None),
        ("not_allowed", Some(identity(&office.issue("spiffe://branch.test/clerk/amy", "amy")?)?)),
        ("not_allowed", Some(identity(&office.issue("spiffe://branch.test/node/gpu-2", "gpu-2")?)?)),
        ("unknown_authority", Some(of_foreign("spiffe://other.test/gateway")?)),
        ("unknown_authority", Some(of_foreign("spiffe://branch.test/gateway")?)),
    ];
    for (reason, identity) in refused {
        let client = node.client(identity);
        assert!(client.get("/livez").await.is_err(), "{reason}");
        assert!(client.http2().post_json("/v1/chat/completions", &short("Hello")).await.is_err(), "{reason}");
        until(reason, async || Ok(node.log().contains(reason))).await?;
    }
    // A gateway of this very office comes in.
    let postern = office.gateway(&node, NODE).await?;
    let reply = postern.client("officer/cy")?.post_json("/v1/chat/completions", &short("Hello")).await?;
    assert_eq!((reply.status, reply.header("postern-target")), (200, "gpu"), "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn tls_of_a_node_is_1_3_without_resumption() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let dir = office.issue("spiffe://branch.test/ops/probe", "probe")?;
    let node = Node::start(&office.issue(NODE, "gpu-1")?, &["--allow", "spiffe://branch.test/ops/probe"]).await?;
    let s_client = |more: &[&str]| -> Result<String> {
        let mut command = std::process::Command::new("openssl");
        command.args(["s_client", "-connect", &node.address.to_string()]);
        for (option, file) in [("-CAfile", "ca.pem"), ("-cert", "cert.pem"), ("-key", "key.pem")] {
            command.arg(option).arg(dir.join(file));
        }
        let output = command.args(more).stdin(std::process::Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let good = s_client(&["-tls1_3"])?;
    assert!(good.contains("Verify return code: 0") && good.contains("TLSv1.3"), "{good}");
    assert!(!good.contains("New Session Ticket"), "{good}");
    // Clients that look for the name of a host do not find any in it, the gateway's included.
    for name in ["localhost", "127.0.0.1"] {
        let option = if name == "localhost" { "-verify_hostname" } else { "-verify_ip" };
        let said = s_client(&["-tls1_3", option, name])?;
        assert!(said.contains("mismatch"), "{said}");
    }
    let old = s_client(&["-tls1_2"])?;
    assert!(old.contains("alert protocol version") || old.contains("no protocols available"), "{old}");
    Ok(())
}

#[tokio::test]
async fn a_workstation_cannot_serve_and_it_is_said_before_the_model_is_loaded() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let dir = office.issue("spiffe://branch.test/clerk/amy", "amy")?.display().to_string();
    let ended = |code: i32, arguments: &[&str]| -> Result<String> {
        let output = postern_tests::postern::run(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{}: {said}", output.status);
        Ok(said)
    };
    // What is set up wrong ends as `postern run` does, and a wrong command line as all commands do.
    let (run, refused) = (|arguments: &[&str]| ended(78, arguments), |arguments: &[&str]| ended(2, arguments));
    let base = ["engine", "--model", postern_tests::node::MODEL, "--listen", "127.0.0.1:0"];
    let said = run(&[&base[..], &["--identity", &dir]].concat())?;
    assert!(said.contains("a workstation's cannot serve") && said.contains("/node/NAME"), "{said}");
    assert!(!said.contains("loading the model"), "{said}");
    let said = run(&[&base[..], &["--identity", "/no/such/folder"]].concat())?;
    assert!(said.contains("/no/such/folder"), "{said}");
    assert!(
        run(&["engine", "--model", "made-up", "--connect", "/tmp/x.sock"])?
            .contains("neither a file nor a known model")
    );
    assert!(refused(&base)?.contains("--identity"));
    let both = [&base[..], &["--identity", &dir, "--connect", "/tmp/x.sock"]].concat();
    assert!(refused(&both)?.contains("cannot be used with"));
    assert!(refused(&["engine", "--model", "x", "--connect", "y", "--kv-bytes", "256MB"])?.contains("such as 256MiB"));
    Ok(())
}

#[tokio::test]
async fn another_node_than_the_one_that_is_named_gets_nothing() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let node = office.node().await?;
    let postern = office.gateway(&node, "spiffe://branch.test/node/gpu-2").await?;
    let client = postern.client("officer/cy")?;
    let reply = client.chat("Hello").await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"), "{}", reply.text());
    assert!(!reply.text().contains("node/") && !reply.header("retry-after").is_empty(), "{}", reply.text());
    let stream = client.stream(&chat_body("And as a stream?")).await?;
    assert_eq!(stream.whole().await?.error_code(), "upstream_unavailable");
    let said = "the server is spiffe://branch.test/node/gpu-1, not spiffe://branch.test/node/gpu-2";
    assert!(postern.log().contains(said), "{}", postern.log());
    let outcome = office.records().of(reply.header("postern-record"), SOON).await?.outcome;
    assert_eq!(outcome["attempts"][0]["result"], "connect", "{outcome}");
    assert!(!node.log().contains("connected"), "{}", node.log());
    Ok(())
}

/// Asks again and again, whole and streamed, until told to end; how many were answered by the node.
async fn load(client: Client, ending: CancellationToken) -> Result<usize> {
    for number in 0.. {
        if ending.is_cancelled() {
            return Ok(number);
        }
        let body = short(&format!("Tell me about {number}"));
        if number % 2 == 0 {
            let reply = client.post_json("/v1/chat/completions", &body).await?;
            ensure!(reply.status == 200 && reply.header("postern-target") == "gpu", "{}", reply.text());
        } else {
            let mut stream = client.stream(&body).await?;
            ensure!(stream.status == 200 && stream.header("postern-target") == "gpu", "status {}", stream.status);
            let events = stream.rest().await?;
            ensure!(is_whole(&events), "{events:?}");
        }
    }
    Ok(0)
}

#[tokio::test]
async fn certificates_of_both_sides_are_replaced_under_load_and_no_request_fails() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let allow = ["--allow", "spiffe://branch.test/gateway", "--allow", "spiffe://branch.test/ops/probe"];
    let node = Node::start(&office.issue(NODE, "gpu-1")?, &allow).await?;
    let postern = office.gateway(&node, NODE).await?;
    let ending = CancellationToken::new();
    let users = (0..3).map(|at| Ok(tokio::spawn(load(postern.client(&format!("officer/{at}"))?, ending.clone()))));
    let users = users.collect::<Result<Vec<_>>>()?;
    let probe = node.client(Some(identity(&office.issue("spiffe://branch.test/ops/probe", "probe")?)?));
    let connected = || node.log().matches("id=spiffe://branch.test/gateway").count();
    until("the gateway has connected", async || Ok(connected() > 0)).await?;
    for _ in 0..3 {
        let (before, connections) = (leaf(&probe).await?, connected());
        assert!(before.is_some());
        office.issue(NODE, "gpu-1")?;
        until("a new leaf is shown", async || Ok(leaf(&probe).await? != before)).await?;
        until("the gateway has connected anew", async || Ok(connected() > connections)).await?;
        // The gateway's own: new connections show the new leaf, and none is kept that showed the old one.
        let connections = connected();
        assert_eq!(postern.admin_post("/api/certificates/rotate").await?.status, 200);
        until("the gateway has connected with its new leaf", async || Ok(connected() > connections)).await?;
    }
    // What is not of this node is not taken over, and changes nothing.
    let good = leaf(&probe).await?;
    office.issue("spiffe://branch.test/node/gpu-9", "gpu-1")?;
    until("it is said", async || Ok(node.log().contains("it is for spiffe://branch.test/node/gpu-9"))).await?;
    assert_eq!(leaf(&probe).await?, good);
    ending.cancel();
    for user in users {
        assert!(user.await?? > 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_was_enrolled_renews_itself() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // A life of 30 s is renewed after about 15: often enough, and long enough for a model to be loaded.
    let config = crate::enrolment::with_enrol(&cloud).set("/trust/leaf_ttl", json!("30s"));
    let postern = Postern::start(&config).await?;
    let dir = crate::enrolment::enrol(&postern, "node/gpu-1")?;
    let gateway = postern.gateway.to_string();
    let node = Node::start(&dir, &["--gateway", &gateway, "--allow", "spiffe://branch.test/ops/probe"]).await?;
    let probe = || Ok::<_, anyhow::Error>(node.client(Some(identity(&postern.issue("ops/probe")?)?)));
    let first = leaf(&probe()?).await?.context("no leaf")?;
    let key = std::fs::read(dir.join("key.pem"))?;
    until("a new leaf is shown", async || Ok(leaf(&probe()?).await?.is_some_and(|leaf| leaf != first))).await?;
    assert_ne!(std::fs::read(dir.join("key.pem"))?, key, "a new key each time");
    // It can still serve: a renewal does not make a workstation of it.
    assert_eq!(probe()?.get("/livez").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_revoked_is_asked_nothing_any_more() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let node = office.node().await?;
    let postern = office.gateway(&node, NODE).await?;
    let client = postern.client("officer/cy")?;
    let body = long_story();
    let mut stream = client.stream(&body).await?;
    assert_eq!((stream.status, stream.header("postern-target")), (200, "gpu"));
    stream.next().await?.context("no event")?;
    postern.certs(&["revoke", "--id", NODE])?;
    // What is under way is cut, and says so.
    let events = stream.rest().await?;
    assert_eq!(events.last().map(Event::error_code).as_deref(), Some("stream_broken"), "{events:?}");
    let reply = client.post_json("/v1/chat/completions", &short("Hello")).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"), "{}", reply.text());
    until("it is said", async || Ok(postern.log().to_lowercase().contains("revoked"))).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_killed_is_missed_aloud() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let mut node = office.node().await?;
    let postern = office.gateway(&node, NODE).await?;
    let client = postern.client("officer/cy")?;
    let body = long_story();
    let mut stream = client.stream(&body).await?;
    assert_eq!((stream.status, stream.header("postern-target")), (200, "gpu"));
    let record = stream.header("postern-record").to_owned();
    stream.next().await?.context("no event")?;
    node.kill()?;
    let events = stream.rest().await?;
    assert_eq!(events.last().map(Event::error_code).as_deref(), Some("stream_broken"), "{events:?}");
    assert!(!events.iter().any(Event::is_done), "{events:?}");
    assert_eq!(office.records().of(&record, SOON).await?.outcome["result"], "broken");
    assert!(!node.ended().await?);
    let reply = client.post_json("/v1/chat/completions", &short("Hello")).await?;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "upstream_unavailable"), "{}", reply.text());
    // What the cloud may see goes on.
    assert_eq!(postern.client("clerk/amy")?.chat("Good morning").await?.header("postern-target"), "sun");
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_told_to_end_finishes_what_it_began() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let office = Office::new(&cloud)?;
    let mut node = office.node().await?;
    let postern = office.gateway(&node, NODE).await?;
    let client = postern.client("officer/cy")?;
    let mut body = chat_body("Write a story.");
    body["max_tokens"] = json!(60);
    let mut stream = client.stream(&body).await?;
    assert_eq!(stream.header("postern-target"), "gpu");
    stream.next().await?.context("no event")?;
    node.terminate()?;
    let events = stream.rest().await?;
    assert!(is_whole(&events), "{events:?}");
    assert!(node.ended().await?, "{}", node.log());
    assert_eq!(client.post_json("/v1/chat/completions", &short("Hello")).await?.error_code(), "upstream_unavailable");
    Ok(())
}
