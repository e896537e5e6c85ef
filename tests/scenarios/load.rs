//! The load generator counts what the server saw, and measures the time that the server took.

use std::path::{Path, PathBuf};
use std::process::Command;

use postern_tests::process::program;
use postern_tests::{BusyCloud, Connector, Postern, chat_body};
use serde_json::{Value, json};

struct Load {
    cloud: BusyCloud,
    body: PathBuf,
}

impl Load {
    async fn on(arguments: &[&str], switches: Value, body: Value) -> Self {
        let cloud = BusyCloud::start_with(arguments).await.unwrap();
        cloud.switch(switches).await.unwrap();
        let file = cloud.dir().join("body.json");
        std::fs::write(&file, body.to_string()).unwrap();
        Self { cloud, body: file }
    }

    fn run(&self, arguments: &[&str]) -> Value {
        let (url, ca) = (format!("{}/chat/completions", self.cloud.base_url()), self.cloud.ca().display().to_string());
        let own = ["--url", &url, "--ca", &ca, "--header", "Authorization: Bearer k"];
        run(&[&own, arguments].concat(), &self.body)
    }
}

fn run(arguments: &[&str], body: &Path) -> Value {
    let mut command = Command::new(program("postern-load").unwrap());
    command.args(["--warmup", "0", "--json", "--body"]).arg(body).args(arguments);
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out:?} {err}"))
}

fn question(stream: bool) -> Value {
    json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}]})
}

#[tokio::test]
async fn counts_and_measures_what_the_server_did() {
    let load = Load::on(&[], json!({"latency_ms": 50}), question(false)).await;
    let report = load.run(&["--connections", "4", "--seconds", "1"]);
    let stats = load.cloud.stats().await.unwrap();
    let completed = report["completed"].as_u64().unwrap();
    // The last one of each connection may be under way when the time is over.
    assert!(completed <= stats.requests && stats.requests <= completed + 4, "{report} {stats:?}");
    assert!((40..=80).contains(&completed), "{report}");
    let p50 = report["p50_ms"].as_f64().unwrap();
    assert!((50.0..80.0).contains(&p50), "{report}");
    assert_eq!((stats.connections, &report["errors"]), (4, &json!(0)), "{report}");
}

#[tokio::test]
async fn measures_the_first_byte_of_a_stream_over_http2() {
    let load = Load::on(&[], json!({"token_ms": 20, "answer": "abcdef"}), question(true)).await;
    let report = load.run(&["--connections", "2", "--seconds", "0.6", "--stream", "--http2"]);
    let (first, whole) = (report["ttfb_p50_ms"].as_f64().unwrap(), report["p50_ms"].as_f64().unwrap());
    assert!(first < 20.0 && whole >= 40.0, "{report}");
    assert_eq!((&report["errors"], &report["statuses"]["200"]), (&json!(0), &report["completed"]), "{report}");
}

#[tokio::test]
async fn says_what_went_wrong() {
    let load = Load::on(&[], json!({"unavailable_share": 0.5}), question(false)).await;
    let report = load.run(&["--seconds", "0.3"]);
    let (good, refused) = (report["statuses"]["200"].as_u64().unwrap(), report["statuses"]["503"].as_u64().unwrap());
    assert!(good.abs_diff(refused) <= 1 && report["completed"] == good, "{report}");
    load.cloud.switch(json!({"die_after_chunks": 1})).await.unwrap();
    let report = load.run(&["--seconds", "0.3"]);
    assert_eq!(report["completed"], 0, "{report}");
    assert!(report["errors"].as_u64().unwrap() > 0 && report["first_error"].is_string(), "{report}");
}

#[tokio::test]
async fn shows_a_client_certificate() {
    let load = Load::on(&["--client-certificates"], json!({}), question(false)).await;
    let file = |name: &str| load.cloud.dir().join(name).display().to_string();
    let (cert, key) = (file("client-cert.pem"), file("client-key.pem"));
    let report = load.run(&["--seconds", "0.3", "--cert", &cert, "--key", &key]);
    assert!(report["completed"].as_u64().unwrap() > 10 && Path::new(&cert).exists(), "{report}");
    assert_eq!(load.run(&["--seconds", "0.3"])["completed"], 0);
}

#[tokio::test]
async fn asks_a_connector_over_plain_http() {
    let load = Load::on(&[], json!({}), chat_body("hello")).await;
    let postern = Postern::start(&crate::config(&load.cloud)).await.unwrap();
    let connector = Connector::start(postern.gateway, &postern.issue("clerk/amy").unwrap(), &[]).await.unwrap();
    let url = format!("http://{}/v1/chat/completions", connector.address);
    let key = format!("Authorization: Bearer {}", connector.token().unwrap());
    let report = run(&["--url", &url, "--seconds", "0.3", "--header", &key], &load.body);
    assert!(report["completed"].as_u64().unwrap() > 10 && report["errors"] == 0, "{report}");
    assert_eq!(run(&["--url", &url, "--seconds", "0.1"], &load.body)["statuses"]["200"], Value::Null);
}
