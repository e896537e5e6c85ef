//! A copy of the records at another gateway: two gateways with certificates of one authority, each of which knows whom it expects.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use postern_tests::pki::Authority;
use postern_tests::pki::gateway::GatewayLeaf;
use postern_tests::tls::Identity;
use postern_tests::{BusyCloud, Client, Config, Postern, Reply};
use serde_json::json;

use crate::audit::{SmallDisk, audit, copy, key, signed, text, verify};
use crate::{SOON, config};

const ONE: &str = "spiffe://branch.test/one/gateway";
const TWO: &str = "spiffe://branch.test/two/gateway";

/// Two gateways of one authority, of which one keeps a copy of the other's records.
struct Office {
    dir: tempfile::TempDir,
    authority: Authority,
    cloud: BusyCloud,
}

impl Office {
    async fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("po").tempdir()?;
        Ok(Self { dir, authority: Authority::new("Office")?, cloud: BusyCloud::start().await? })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.at(name).join("audit")
    }

    /// A gateway's configuration with its certificate, and a state that outlives it.
    fn config(&self, name: &str) -> Result<Config> {
        let files = self.at(&format!("{name}-files"));
        std::fs::create_dir_all(&files)?;
        let leaf = self.authority.gateway(GatewayLeaf::of(&format!("spiffe://branch.test/{name}/gateway")))?;
        std::fs::write(files.join("key.pem"), &leaf.key_pem)?;
        std::fs::set_permissions(files.join("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::write(files.join("ca.pem"), self.authority.pem())?;
        std::fs::write(files.join("cert.pem"), &leaf.cert_pem)?;
        let of = |file: &str| files.join(file).display().to_string();
        let trust = json!({
            "domain": "branch.test", "prefix": format!("/{name}"), "issuer": "files",
            "files": {"cert": of("cert.pem"), "key": of("key.pem"), "ca": of("ca.pem")},
        });
        Ok(config(&self.cloud).set("/trust", trust).set("/state_dir", json!(self.at(name))))
    }

    fn client(&self, to: &Postern, id: &str) -> Result<Client> {
        let leaf = self.authority.client(&[id])?;
        Ok(Client::new(
            to.gateway,
            &self.at("one-files/ca.pem"),
            Some(Identity::from_pem(&leaf.cert_pem, &leaf.key_pem)?),
        ))
    }

    async fn ask(&self, postern: &Postern, times: usize) -> Result<()> {
        let amy = self.client(postern, "spiffe://branch.test/clerk/amy")?;
        for number in 0..times {
            let reply = amy.chat(&format!("Question {number}")).await?;
            ensure!(reply.status == 200, "{}", reply.text());
        }
        Ok(())
    }

    /// The key of the first one's log: it begins before the other one can be told of it.
    async fn key(&self) -> Result<String> {
        let mut first = Postern::start(&self.config("one")?).await?;
        let key = key(&self.log("one"))?;
        assert!(first.stop().await?.success());
        Ok(key)
    }

    /// The one that keeps a copy, of so many bytes at most.
    fn keeping(&self, key: &str, most: &str) -> Result<Config> {
        let from = json!([{"identity": ONE, "key": key, "max_size": most}]);
        Ok(self.config("two")?.set("/audit/copies", json!({"from": from})).set("/limits/receive", json!("2s")))
    }

    /// The one that is copied, to `two`.
    fn copied(&self, two: &Postern) -> Result<Config> {
        let to = json!({"to": format!("https://{}", two.gateway), "identity": TWO});
        Ok(self.config("one")?.set("/audit/copy", to))
    }

    fn copy(&self) -> Result<PathBuf> {
        let mut copies = std::fs::read_dir(self.at("two").join("audit-copies"))?;
        Ok(copies.next().context("a copy")??.path())
    }

    /// Waits until all that is there now is in the copy, and returns how much that is.
    async fn all_copied(&self, one: &Postern) -> Result<u64> {
        let log = self.log("one");
        signed(&log).await?;
        let size = verify(&log, &[])?.0["records"].as_u64().context("a size")?;
        until(one, |there| there >= size as f64, "postern_audit_copied_records", &[]).await?;
        Ok(size)
    }
}

async fn until(postern: &Postern, is: impl Fn(f64) -> bool, name: &str, labels: &[(&str, &str)]) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !postern.metrics().await.is_ok_and(|now| now.value(name, labels).is_some_and(&is)) {
        ensure!(Instant::now() < deadline, "{name} is not so: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn export(log: &Path) -> Result<String> {
    let exported = audit(&["export", "--log", &log.display().to_string()])?;
    ensure!(exported.status.success(), "{}", text(&exported));
    Ok(String::from_utf8(exported.stdout)?)
}

#[tokio::test]
async fn a_copy_at_another_gateway_is_the_same_log_over_kills_of_both() -> Result<()> {
    let office = Office::new().await?;
    let key = office.key().await?;
    let two = Postern::start(&office.keeping(&key, "1GiB")?).await?;
    let one = Postern::start(&office.copied(&two)?).await?;
    office.ask(&one, 150).await?;
    office.all_copied(&one).await?;
    two.kill_gateway(SOON).await?;
    office.ask(&one, 10).await?;
    one.kill_gateway(SOON).await?;
    office.ask(&one, 10).await?;
    let size = office.all_copied(&one).await?;
    let (log, copy) = (office.log("one"), office.copy()?);
    let (report, code) = verify(&copy, &["--key", &key])?;
    assert_eq!((code, &report["first"], &report["findings"]), (0, &json!(0), &json!([])), "{report}");
    assert!(report["records"].as_u64().unwrap() >= size && report["kinds"]["intent"] == 170, "{report}");
    let (ours, theirs) = (export(&log)?, export(&copy)?);
    assert!(ours.starts_with(&theirs), "record for record");
    let proved = audit(&["prove", "7", "--log", &copy.display().to_string()])?;
    assert!(proved.status.success(), "{}", text(&proved));
    // What the other has vouches for what is here.
    let later = copy.join("checkpoint").display().to_string();
    let (report, code) = verify(&log, &["--key", &key, "--later", &later])?;
    assert!(code == 0 && report["complete_to"].as_u64().unwrap() >= size, "{report}");
    let records = two.metrics().await?.sum("postern_audit_copies_records", &[]);
    assert!(records >= size as f64, "{records}");
    Ok(())
}

#[tokio::test]
async fn a_log_that_was_set_back_is_refused_by_who_has_its_copy_and_both_say_so() -> Result<()> {
    let office = Office::new().await?;
    let key = office.key().await?;
    let two = Postern::start(&office.keeping(&key, "1GiB")?).await?;
    let config = office.copied(&two)?;
    let log = office.log("one");
    let mut one = Postern::start(&config).await?;
    office.ask(&one, 5).await?;
    office.all_copied(&one).await?;
    assert!(one.stop().await?.success());
    copy(&log, &office.at("earlier"))?;
    let mut one = Postern::start(&config).await?;
    office.ask(&one, 30).await?;
    let size = office.all_copied(&one).await?;
    assert!(one.stop().await?.success());
    std::fs::rename(&log, office.at("later"))?;
    copy(&office.at("earlier"), &log)?;

    let one = Postern::start(&config).await?;
    until(&one, |there| there == 1.0, "postern_audit_copied_contradicts", &[]).await?;
    let name = key.split('+').next().context("a name")?;
    until(&two, |there| there == 1.0, "postern_audit_copies_contradict", &[("log", name)]).await?;
    one.logged("ALARM: the copy of the records").await?;
    two.logged("ALARM: this log signs another history").await?;
    // On record at both, and nothing of the copy is lost: it shows the difference to anybody.
    for (log, what) in [(office.log("one"), "copy"), (office.log("two"), "copied")] {
        let deadline = Instant::now() + SOON;
        while !export(&log)?.contains(&format!("\"what\":\"{what}\"")) {
            ensure!(Instant::now() < deadline, "{what} is not on record");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    office.ask(&one, 40).await?;
    let copy = office.copy()?;
    let (report, code) = verify(&copy, &["--key", &key])?;
    assert!(code == 0 && report["records"].as_u64().unwrap() >= size, "{report}");
    let shown = copy.join("contradicted").display().to_string();
    let (report, code) = verify(&copy, &["--key", &key, "--later", &shown])?;
    assert!(code == 1 && report.to_string().contains("of another history"), "{report}");
    let later = copy.join("checkpoint").display().to_string();
    assert_eq!(verify(&office.log("one"), &["--key", &key, "--later", &later])?.1, 1);
    Ok(())
}

fn step(first: &str, checkpoint: &[u8], rest: &[u8]) -> Bytes {
    [first.as_bytes(), b"\n", checkpoint, rest].concat().into()
}

#[tokio::test]
async fn whoever_sends_what_the_copy_stays_what_was_signed_and_nobody_else_notices() -> Result<()> {
    let office = Office::new().await?;
    let key = office.key().await?;
    let two = Postern::start(&office.keeping(&key, "1GiB")?).await?;
    let mut one = Postern::start(&office.copied(&two)?).await?;
    office.ask(&one, 3).await?;
    let size = office.all_copied(&one).await?;
    assert!(one.stop().await?.success());
    let checkpoint = std::fs::read(office.copy()?.join("checkpoint"))?;
    let (has, length) = (size, checkpoint.len());
    let path = format!("/.well-known/postern/copies/{}", key.split('+').nth(1).context("a hash")?);
    let refused = |reply: &Reply, status: u16, code: &str| {
        assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{}", reply.text());
        assert!(reply.error_message().len() > 20, "{}", reply.text());
    };

    // For anybody else it is not there.
    for id in ["spiffe://branch.test/clerk/amy", "spiffe://branch.test/three/gateway", TWO] {
        let (other, known) = (office.client(&two, id)?, id.contains("clerk"));
        let (status, code) = if known { (404, "unknown_endpoint") } else { (403, "identity_unknown") };
        refused(&other.get(&path).await?, status, code);
        refused(&other.post_bytes(&path, step("x", b"", b"")).await?, status, code);
    }
    let sender = office.client(&two, ONE)?;
    let reply = sender.get(&path).await?;
    assert_eq!((reply.status, &reply.json()?["records"]), (200, &json!(has)), "{}", reply.text());
    refused(&sender.get(&format!("{path}0")).await?, 403, "identity_unknown");

    let bundle = |records: &[&[u8]]| -> Vec<u8> {
        records.iter().flat_map(|record| [&(record.len() as u16).to_be_bytes()[..], record].concat()).collect()
    };
    let good = |from: u64, count: usize| format!("postern-copy/v1 {from} {count} {length}");
    let record = b"{\"kind\":\"outcome\"}";
    let tries: Vec<(Bytes, u16, &str)> = vec![
        (step("", b"", b""), 400, "copy_malformed"),
        (step("postern-copy/v2 0 0 0", b"", b""), 400, "copy_malformed"),
        (step("postern-copy/v1 0 18446744073709551615 0", b"", b""), 400, "copy_malformed"),
        (step("postern-copy/v1 0 0 99999999", b"", b""), 400, "copy_malformed"),
        (step(&good(has, 2), &checkpoint, &bundle(&[record])), 400, "copy_malformed"),
        (step(&good(has, 1), &checkpoint, &bundle(&[record])), 400, "copy_malformed"),
        (step(&good(has, 1), &checkpoint, b"\xff\xffshort"), 400, "copy_malformed"),
        (step(&good(0, 1), &checkpoint, &bundle(&[record])), 409, "copy_elsewhere"),
        (step(&good(u64::MAX, 1), &checkpoint, &bundle(&[record])), 409, "copy_elsewhere"),
        (step(&good(has, 0), &[&checkpoint[..length - 9], b"AAAAAAAA\n"].concat(), b""), 403, "copy_not_signed"),
        (Bytes::from(vec![b'x'; (2 << 20) + 100_000]), 413, "request_too_large"),
    ];
    for (body, status, code) in tries {
        refused(&sender.post_bytes(&path, body).await?, status, code);
    }
    // Endless: cut off in time, and meanwhile nobody else is kept from it.
    let mut slow = sender.raw().await?;
    slow.send(format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\npostern-copy").as_bytes())
        .await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sender.get(&path).await?.status, 200);
    office.ask(&two, 3).await?;
    assert!(slow.read_until("request_timeout", SOON).await?.contains("408"));
    let deadline = Instant::now() + SOON;
    while sender.get(&path).await?.status != 200 {
        ensure!(Instant::now() < deadline, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (report, code) = verify(&office.copy()?, &["--key", &key])?;
    assert_eq!((code, &report["records"]), (0, &json!(has)), "{report}");
    assert_eq!(verify(&office.log("two"), &[])?.1, 0);
    assert!(two.metrics().await?.sum("postern_audit_copies_refused_total", &[]) > 10.0);

    // And a copy that has all its bytes takes no more; requests at both go on.
    drop(two);
    let two = Postern::start(&office.keeping(&key, "64KiB")?).await?;
    let one = Postern::start(&office.copied(&two)?).await?;
    office.ask(&one, 60).await?;
    one.logged("507 copy_full").await?;
    until(&one, |there| there >= 1.0, "postern_audit_copy_failures_total", &[("reason", "refused")]).await?;
    office.ask(&one, 2).await?;
    office.ask(&two, 2).await?;
    assert_eq!(verify(&office.copy()?, &["--key", &key])?.1, 0);
    Ok(())
}

#[tokio::test]
async fn while_the_disk_of_who_keeps_the_copy_is_full_the_other_goes_on_and_all_comes_later() -> Result<()> {
    if !SmallDisk::is_possible() {
        eprintln!("NOT TESTED: this machine lets nobody make a mount namespace, so no disk can be full");
        return Ok(());
    }
    let (office, disk) = (Office::new().await?, SmallDisk::new()?);
    let key = office.key().await?;
    let keeping = office.keeping(&key, "1GiB")?.set("/audit/dir", json!(disk.dir.path().join("disk/audit")));
    let two = Postern::start_under(&disk.command(), &keeping).await?;
    let one = Postern::start(&office.copied(&two)?).await?;
    office.ask(&one, 3).await?;
    office.all_copied(&one).await?;
    disk.told("fill", "full").await?;
    office.ask(&one, 3).await?;
    one.logged("507 copy_full").await?;
    // A copy that cannot be kept is nobody's reason to refuse what can be recorded.
    office.ask(&one, 3).await?;
    disk.told("free", "freed").await?;
    office.all_copied(&one).await?;
    let inside = format!("/proc/{}/root{}", two.child("gateway").context("a gateway")?, disk.dir.path().display());
    let mut copies = std::fs::read_dir(format!("{inside}/disk/audit-copies"))?;
    let copy = copies.next().context("a copy")??.path();
    let (report, code) = verify(&copy, &["--key", &key])?;
    assert_eq!((code, &report["kinds"]["intent"]), (0, &json!(9)), "{report}");
    assert!(export(&office.log("one"))?.starts_with(&export(&copy)?), "record for record");
    Ok(())
}
