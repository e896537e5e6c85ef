//! Somebody else who has seen the log: a witness of C2SP tlog-witness, written with nothing of ours (`tests/clients/witness.py`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_tests::pki::Authority;
use postern_tests::process::Process;
use postern_tests::{BusyCloud, Config, Postern};
use serde_json::{Value, json};

use crate::audit::{audit, copy, folder, key, signed, text, verify};
use crate::clients::target;
use crate::{SOON, config};

const NAME: &str = "witness.example.org/w1";

struct Witness {
    process: Option<Process>,
    dir: tempfile::TempDir,
    port: u16,
    key: String,
}

impl Witness {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = Authority::new("Witness")?;
        let leaf = authority.server()?;
        for (name, text) in
            [("ca.pem", authority.pem()), ("cert.pem", &leaf.cert_pem), ("key.pem", &leaf.key_pem), ("logs", "")]
        {
            std::fs::write(dir.path().join(name), text)?;
        }
        let mut witness = Self { process: None, dir, port: 0, key: String::new() };
        witness.again().await?;
        Ok(witness)
    }

    fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it, with what it knew.
    async fn again(&mut self) -> Result<()> {
        let mut python = Command::new(target("venv/bin/python"));
        python.args(["-c", include_str!("../clients/witness.py")]).arg(self.dir.path()).arg(self.port.to_string());
        let mut process = Process::start("witness", python)?;
        let read = |line: &str| {
            let (port, key) = line.strip_prefix("witness listening ")?.split_once(' ')?;
            Some((port.parse().ok()?, key.to_owned()))
        };
        (self.port, self.key) = process.line(SOON, read).await?;
        self.process = Some(process);
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn knows(&self, log: &str) -> Result<()> {
        Ok(std::fs::write(self.at("logs"), format!("{log}\n"))?)
    }

    fn trick(&self, trick: &str) -> Result<()> {
        Ok(std::fs::write(self.at("trick"), trick)?)
    }

    fn asked(&self, trick: &str) -> usize {
        let asked = std::fs::read_to_string(self.at("asked")).unwrap_or_default();
        asked.split_inclusive('\n').filter(|line| line.starts_with(trick)).count()
    }

    fn of(&self, config: &Config) -> Config {
        let url = format!("https://127.0.0.1:{}/log/", self.port);
        config.clone().set("/audit/witnesses", json!([{"url": url, "key": self.key, "ca": self.at("ca.pem")}]))
    }
}

async fn number(postern: &Postern, name: &str) -> Result<f64> {
    Ok(postern.metrics().await?.value(name, &[("witness", NAME)]).unwrap_or(-1.0))
}

async fn failures(postern: &Postern) -> Result<f64> {
    Ok(postern.metrics().await?.sum("postern_audit_witness_failures_total", &[("witness", NAME)]))
}

/// Waits until it has signed at least all that is there now.
async fn cosigned(postern: &Postern) -> Result<u64> {
    let log = folder(postern);
    signed(&log).await?;
    let size = verify(&log, &[])?.0["records"].as_u64().context("a size")?;
    let deadline = Instant::now() + SOON;
    while number(postern, "postern_audit_witnessed_records").await? < size as f64 {
        ensure!(Instant::now() < deadline, "not signed by the witness: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(size)
}

async fn contradicts(postern: &Postern) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while number(postern, "postern_audit_witness_contradicts").await? != 1.0 {
        ensure!(Instant::now() < deadline, "nobody says that it was set back: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test]
async fn each_checkpoint_is_signed_by_a_witness_over_kills_and_while_it_is_away_nobody_waits() -> Result<()> {
    let (cloud, mut witness) = (BusyCloud::start().await?, Witness::start().await?);
    let postern = Postern::start(&witness.of(&config(&cloud))).await?;
    let (client, log) = (postern.client("clerk/amy")?, folder(&postern));
    // It does not know the log yet, which is said.
    postern.logged("give it the log's public key").await?;
    let key = key(&log)?;
    witness.knows(&key)?;
    for number in 0..20 {
        ensure!(client.chat(&format!("Question {number}")).await?.status == 200);
    }
    let first = cosigned(&postern).await?;
    let (report, code) = verify(&log, &["--key", &key, "--witness", &witness.key])?;
    assert_eq!((code, &report["witnessed"][0]["witness"]), (0, &json!(NAME)), "{report}");
    assert!(report["complete_to"].as_u64().unwrap() >= first, "{report}");
    let said = text(&audit(&["verify", "--log", &log.display().to_string(), "--key", &key])?);
    assert!(said.contains("completeness unproven") && said.contains("--witness KEY says"), "{said}");
    // Of another witness there is nothing, and that is not good.
    let other = witness.key.replace("/w1+", "/w2+");
    assert_ne!(verify(&log, &["--witness", &other]).map_or(1, |(_, code)| code), 0);

    // A kill: it goes on where it was, from what is kept.
    let from_nothing = witness.asked("- old 0\n");
    postern.kill_gateway(SOON).await?;
    for number in 0..5 {
        ensure!(client.chat(&format!("After the kill {number}")).await?.status == 200);
    }
    assert!(cosigned(&postern).await? > first);
    assert_eq!(witness.asked("- old 0\n"), from_nothing, "it knows what the witness knows");

    // Away: nobody waits for it. And it catches up.
    witness.kill();
    for number in 0..5 {
        let asked = Instant::now();
        ensure!(client.chat(&format!("Without it {number}")).await?.status == 200);
        assert!(asked.elapsed() < Duration::from_secs(3));
    }
    let deadline = Instant::now() + SOON;
    while failures(&postern).await? == 0.0 {
        ensure!(Instant::now() < deadline, "nobody notices that it is away");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    witness.again().await?;
    cosigned(&postern).await?;
    assert_eq!(number(&postern, "postern_audit_witness_contradicts").await?, 0.0);
    // Once a second at most, however many records there are.
    let (before, until) = (witness.asked("- "), Instant::now() + Duration::from_secs(4));
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        ensure!(client.chat(&format!("Many {number}")).await?.status == 200);
    }
    assert!(witness.asked("- ") - before <= 6, "{}", witness.asked("- ") - before);
    Ok(())
}

#[tokio::test]
async fn a_log_that_was_set_back_is_told_by_the_witness_when_the_gateway_starts() -> Result<()> {
    let (cloud, witness) = (BusyCloud::start().await?, Witness::start().await?);
    let dir = tempfile::Builder::new().prefix("pw").tempdir()?;
    let config = witness.of(&config(&cloud)).set("/state_dir", json!(dir.path().join("state")));
    let log = dir.path().join("state/audit");
    let mut postern = Postern::start(&config).await?;
    let key = key(&log)?;
    witness.knows(&key)?;
    let ask = async |postern: &Postern, times: usize| -> Result<()> {
        let client = client_of(postern, &dir.path().join("state"), &config)?;
        for number in 0..times {
            ensure!(client.chat(&format!("Question {number}")).await?.status == 200);
        }
        Ok(())
    };
    let all_cosigned = async |postern: &Postern| -> Result<()> {
        signed(&log).await?;
        let size = verify(&log, &[])?.0["records"].as_f64().context("a size")?;
        let deadline = Instant::now() + SOON;
        while number(postern, "postern_audit_witnessed_records").await? < size {
            ensure!(Instant::now() < deadline, "not signed by the witness: {}", postern.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    ask(&postern, 5).await?;
    all_cosigned(&postern).await?;
    assert!(postern.stop().await?.success());
    let earlier = dir.path().join("earlier");
    copy(&log, &earlier)?;

    let mut postern = Postern::start(&config).await?;
    ask(&postern, 20).await?;
    all_cosigned(&postern).await?;
    assert!(postern.stop().await?.success());
    let later = dir.path().join("later");
    std::fs::rename(&log, &later)?;
    copy(&earlier, &log)?;

    // What the witness signed finds it without the gateway: from anywhere, or where it was left in the folder.
    let witnessed = std::fs::read_dir(later.join("witnessed"))?.next().context("a cosigned checkpoint")??.path();
    let elsewhere = witnessed.display().to_string();
    let (report, code) = verify(&log, &["--key", &key, "--later", &elsewhere, "--witness", &witness.key])?;
    assert_eq!(code, 1);
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("the log was set back"), "{report}");
    let (report, code) = verify(&earlier, &["--key", &key, "--witness", &witness.key])?;
    assert_eq!(code, 0, "of its time it is good: {report}");
    let left = dir.path().join("left");
    copy(&earlier, &left)?;
    std::fs::copy(&witnessed, left.join("witnessed").join(witnessed.file_name().context("a name")?))?;
    let (report, code) = verify(&left, &["--key", &key])?;
    assert_eq!(code, 1);
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("a witness has seen"), "{report}");

    // The gateway that starts there is told so.
    let postern = Postern::start(&config).await?;
    contradicts(&postern).await?;
    postern.logged("ALARM: what this witness has seen").await?;
    let noticed = async || -> Result<Value> {
        let deadline = Instant::now() + SOON;
        loop {
            let exported = audit(&["export", "--log", &log.display().to_string()])?;
            let lines = String::from_utf8(exported.stdout)?;
            let found = lines.lines().find(|line| line.contains("\"what\":\"witness\"")).map(serde_json::from_str);
            if let Some(notice) = found.transpose()? {
                return Ok(notice);
            }
            ensure!(Instant::now() < deadline, "no notice");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let notice = noticed().await?;
    assert_eq!(notice["subject"], NAME);
    assert!(notice["records"].as_u64() > notice["from"].as_u64(), "{notice}");
    // It answers all the same; and when it has grown beyond what the witness has seen, the history is still another.
    ask(&postern, 40).await?;
    let before = failures(&postern).await?;
    let deadline = Instant::now() + SOON + Duration::from_secs(10);
    while failures(&postern).await? < before + 1.0 {
        ensure!(Instant::now() < deadline, "it is not asked again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    contradicts(&postern).await?;
    Ok(())
}

/// A client of a gateway whose state is elsewhere than usual.
fn client_of(postern: &Postern, state: &Path, config: &Config) -> Result<postern_tests::Client> {
    let dir = tempfile::tempdir_in(state.parent().context("a folder")?)?.keep();
    let file = dir.join("postern.yaml");
    std::fs::write(&file, config.render(state))?;
    let out = dir.join("amy");
    let (file, out_name) = (file.display().to_string(), out.display().to_string());
    let id = "spiffe://branch.test/clerk/amy";
    let mut issue = Command::new(postern_tests::postern::binary()?);
    issue.args(["certs", "issue", "--config", &file, "--id", id, "--out", &out_name]);
    let issued = issue.envs(config.environment().iter().cloned()).output()?;
    ensure!(issued.status.success(), "{}", text(&issued));
    postern.client_of(&out)
}

#[tokio::test]
async fn whatever_a_witness_does_harms_nothing() -> Result<()> {
    let (cloud, witness) = (BusyCloud::start().await?, Witness::start().await?);
    let postern = Postern::start(&witness.of(&config(&cloud))).await?;
    let (client, log) = (postern.client("clerk/amy")?, folder(&postern));
    let key = key(&log)?;
    witness.knows(&key)?;
    cosigned(&postern).await?;
    let kept = std::fs::read_dir(log.join("witnessed"))?.next().context("a cosigned checkpoint")??.path();
    let tricks = [
        "wrong-key",
        "other-text",
        "garbage",
        "huge",
        "close",
        "redirect",
        "knows 0",
        "knows x",
        "knows 18446744073709551615",
        "status 500",
        "status 422",
        "status 404",
        "hang",
    ];
    for trick in tricks {
        let (before, good) = (failures(&postern).await?, std::fs::read(&kept)?);
        witness.trick(trick)?;
        let asked = Instant::now();
        assert_eq!(client.chat(&format!("While it plays {trick}")).await?.status, 200, "{trick}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{trick}");
        let deadline = Instant::now() + SOON + SOON;
        while failures(&postern).await? == before {
            ensure!(Instant::now() < deadline, "{trick} is taken for good: {}", postern.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(std::fs::read(&kept)?, good, "{trick}");
        assert_eq!(verify(&log, &["--key", &key, "--witness", &witness.key])?.1, 0, "{trick}");
        witness.trick("")?;
        cosigned(&postern).await?;
        assert_eq!(number(&postern, "postern_audit_witness_contradicts").await?, 0.0, "{trick}");
    }
    // A liar is told as loudly as a witness who is right, and once each time.
    let lines = postern.records().lines()?;
    let told = lines.iter().filter(|line| line["what"] == "witness").count();
    assert!((1..=3).contains(&told), "{told}");
    Ok(())
}

#[test]
fn a_gateway_that_is_offline_gives_nobody_anything() -> Result<()> {
    let witness = "witness.example.org+";
    let config = Config::new()
        .set("/offline", json!(true))
        .set("/audit/copy", json!({"to": "https://127.0.0.1:1", "identity": "spiffe://branch.test/b/gateway"}));
    let output = postern_tests::postern::check(&config)?;
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("`audit.copy` is not used while the gateway is offline"),
        "{said}"
    );
    let config = Config::new().set("/audit/witnesses", json!([{"url": "https://w.example.org", "key": witness}]));
    assert!(text(&postern_tests::postern::check(&config)?).contains("public key of a witness"));
    Ok(())
}
