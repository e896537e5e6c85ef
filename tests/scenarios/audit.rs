//! The records as evidence: what a third party finds in the log with its files and a public key, after kills, full disks and
//! somebody else's hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_tests::{BusyCloud, FakeTime, Postern, chat_body, postern};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::clients::target;
use crate::{SOON, config};

/// Checkpoints are signed within a second.
const SIGNED: Duration = Duration::from_millis(1500);

pub(crate) fn audit(arguments: &[&str]) -> Result<Output> {
    postern::run(&[&["audit"], arguments].concat())
}

pub(crate) fn folder(postern: &Postern) -> PathBuf {
    postern.state_dir().join("audit")
}

pub(crate) fn key(log: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(log.join("key.pub"))?.trim().to_owned())
}

/// What `postern audit verify` finds, and its exit code.
pub(crate) fn verify(log: &Path, more: &[&str]) -> Result<(Value, i32)> {
    let log = log.display().to_string();
    let output = audit(&[&["verify", "--log", &log, "--json"], more].concat())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).with_context(|| said)?;
    Ok((report, output.status.code().context("a code")?))
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) async fn signed(log: &Path) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while verify(log, &[])?.0["unsigned"] != 0 {
        ensure!(Instant::now() < deadline, "the newest records are not signed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").args(["-a", "--"]).arg(from).arg(to).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn anybody_with_the_files_and_the_key_finds_the_same_log() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let mut ids = Vec::new();
    for number in 0..140 {
        let answer = client.chat(&format!("Question {number}")).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        ids.push(answer.header("postern-record").to_owned());
    }
    let log = folder(&postern);
    signed(&log).await?;
    let key = key(&log)?;
    assert!(key.contains("/audit/"), "{key}");
    let (report, code) = verify(&log, &["--key", &key])?;
    assert_eq!((code, &report["good"], &report["complete_to"]), (0, &json!(true), &Value::Null), "{report}");
    assert_eq!((&report["kinds"]["intent"], &report["kinds"]["outcome"]), (&json!(140), &json!(140)));
    assert_eq!(report["without_outcome"], 0);

    // Another program, for the tree, the signature and the proofs.
    let dir = tempfile::tempdir()?;
    let log_name = log.display().to_string();
    let mut proofs = Vec::new();
    for id in [&ids[0], &ids[100], &ids[139]] {
        let out = dir.path().join(format!("{id}.proof"));
        let made = audit(&["prove", id, "--log", &log_name, "--out", &out.display().to_string()])?;
        assert!(made.status.success(), "{}", text(&made));
        let files: Vec<PathBuf> = std::fs::read_dir(dir.path())?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        proofs.extend(files.into_iter().filter(|path| path.display().to_string().contains(id.as_str())));
    }
    assert_eq!(proofs.len(), 6, "an intent and an outcome each");
    let mut python = Command::new(target("venv/bin/python"));
    python.args(["-c", include_str!("../clients/audit.py")]).arg(&log).arg(&key).args(&proofs);
    let checked = python.output()?;
    assert!(checked.status.success(), "{}", text(&checked));

    // Whoever has a proof needs nothing else; changed, it is none.
    let proof = proofs[0].display().to_string();
    let good = audit(&["check-proof", &proof, "--key", &key])?;
    assert!(good.status.success() && text(&good).contains(&ids[0]), "{}", text(&good));
    let changed = std::fs::read_to_string(&proof)?.replace("index ", "index 1");
    std::fs::write(dir.path().join("changed"), changed)?;
    let bad = audit(&["check-proof", &dir.path().join("changed").display().to_string(), "--key", &key])?;
    assert!(!bad.status.success() && text(&bad).contains("does not hold"), "{}", text(&bad));
    for (arguments, words) in [
        (["prove", "100000", "--log", &log_name], "there is no record 100000"),
        (["prove", "0123", "--log", "/nowhere"], "there is no such folder"),
        (["prove", "word", "--log", &log_name], "neither the number of a record nor an ID"),
        (["prove", "0123456789abcdef0123456789abcdef", "--log", &log_name], "there is no record of the request"),
    ] {
        let refused = audit(&arguments)?;
        assert!(!refused.status.success() && text(&refused).contains(words), "{}", text(&refused));
    }

    // Read again: all, of a day, as a table, the newest.
    let exported = audit(&["export", "--log", &log_name])?;
    let lines: Vec<Value> =
        String::from_utf8(exported.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), usize::try_from(report["checked"].as_u64().unwrap())?);
    assert_eq!(lines, postern.records().lines()?);
    let none = audit(&["export", "--log", &log_name, "--from", "2020-01-01", "--to", "2020-12-31"])?;
    assert_eq!(text(&none), "");
    let table = String::from_utf8(audit(&["export", "--log", &log_name, "--format", "csv"])?.stdout)?;
    assert!(table.starts_with("number,time,kind,record,identity,") && table.lines().count() == lines.len() + 1);
    let tail = String::from_utf8(audit(&["tail", "-n", "2", "--log", &log_name])?.stdout)?;
    assert_eq!(tail.lines().count(), 2);
    assert!(tail.contains(&ids[139]), "{tail}");
    Ok(())
}

#[tokio::test]
async fn whatever_somebody_does_to_the_files_is_found() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let mut postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    for number in 0..150 {
        ensure!(client.chat(&format!("Question {number}")).await?.status == 200);
    }
    let log = folder(&postern);
    signed(&log).await?;
    let dir = tempfile::tempdir()?;
    let earlier = dir.path().join("earlier");
    copy(&log, &earlier)?;
    for number in 0..20 {
        ensure!(client.chat(&format!("More {number}")).await?.status == 200);
    }
    assert!(postern.stop().await?.success());
    let key = key(&log)?;
    let checkpoint = log.join("checkpoint").display().to_string();
    let (report, code) = verify(&log, &["--key", &key])?;
    assert_eq!((code, &report["kinds"]["stop"]), (0, &json!(1)), "{report}");

    type Hand = fn(&Path) -> Result<()>;
    let bundle = "tile/entries/000";
    assert!(log.join(bundle).exists());
    let hands: [(&str, Hand, &str); 8] = [
        (
            "a word is changed",
            |log| {
                let path = log.join("tile/entries/000");
                let mut bytes = std::fs::read(&path)?;
                let at = bytes.windows(7).position(|word| word == b"clerk/a").context("an identity")?;
                bytes[at + 6] = b'b';
                Ok(std::fs::write(path, bytes)?)
            },
            "record ",
        ),
        (
            "records are deleted",
            |log| {
                let path = log.join("tile/entries/000");
                let bytes = std::fs::read(&path)?;
                Ok(std::fs::write(path, &bytes[..bytes.len() / 2])?)
            },
            "tile/entries/000",
        ),
        ("a bundle is deleted", |log| Ok(std::fs::remove_file(log.join("tile/entries/000"))?), "records 0 to"),
        (
            "a tile is changed",
            |log| {
                let path = log.join("tile/0/000");
                let mut bytes = std::fs::read(&path)?;
                bytes[700] ^= 1;
                Ok(std::fs::write(path, bytes)?)
            },
            "record 21",
        ),
        (
            "a checkpoint is made up",
            |log| {
                let text = std::fs::read_to_string(log.join("checkpoint"))?;
                let mut lines: Vec<&str> = text.lines().collect();
                lines[1] = "200";
                Ok(std::fs::write(log.join("checkpoint"), lines.join("\n") + "\n")?)
            },
            "not signed by",
        ),
        (
            "the checkpoint is deleted",
            |log| Ok(std::fs::remove_file(log.join("checkpoint"))?),
            "at least its checkpoint",
        ),
        (
            "the newest records are cut off",
            |log| {
                std::fs::remove_dir_all(log.join("journal"))?;
                Ok(std::fs::remove_dir_all(log.join("tile/entries/001.p"))?)
            },
            "records from 256 on",
        ),
        (
            "everything is replaced by a log of another key",
            |log| {
                let other = log.with_extension("other");
                let text = std::fs::read_to_string(log.join("key.pub"))?;
                std::fs::write(other, &text)?;
                let line = text.replace("/audit/", "/audit/x");
                std::fs::write(log.join("key.pub"), line)?;
                let note = std::fs::read_to_string(log.join("checkpoint"))?;
                Ok(std::fs::write(log.join("checkpoint"), note.replace("/audit/", "/audit/x"))?)
            },
            "not signed by",
        ),
    ];
    for (number, (what, hand, words)) in hands.into_iter().enumerate() {
        let changed = dir.path().join(format!("changed-{number}"));
        copy(&log, &changed)?;
        // The journal still has them all; a thief takes it along.
        if !what.contains("cut off") {
            std::fs::remove_dir_all(changed.join("journal"))?;
        }
        hand(&changed)?;
        let output = audit(&["verify", "--log", &changed.display().to_string(), "--key", &key])?;
        assert_eq!(output.status.code(), Some(1), "{what}: {}", text(&output));
        assert!(text(&output).contains(words), "{what}: {}", text(&output));
    }

    // Set back to what was once signed: nobody can see that from the folder, and it says so; whoever has a later checkpoint can.
    let (report, code) = verify(&earlier, &["--key", &key])?;
    assert_eq!((code, &report["complete_to"]), (0, &Value::Null), "{report}");
    let said = text(&audit(&["verify", "--log", &earlier.display().to_string(), "--key", &key])?);
    assert!(said.contains("consistent, completeness unproven"), "{said}");
    let (report, code) = verify(&earlier, &["--key", &key, "--later", &checkpoint])?;
    assert_eq!(code, 1);
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("the log was set back"), "{report}");
    let earlier_checkpoint = earlier.join("checkpoint").display().to_string();
    let (report, code) = verify(&log, &["--key", &key, "--later", &earlier_checkpoint])?;
    assert_eq!((code, report["complete_to"].is_u64()), (0, true), "{report}");
    Ok(())
}

/// A kill at any moment: whoever was answered has an intent, what was under way says so, and the log is whole.
#[tokio::test]
async fn a_kill_at_any_moment_loses_nothing_that_was_told() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // An answer takes longer than a slow disk does, so that some are under way at any moment.
    cloud.switch(json!({"answer": "And so on, and on. ".repeat(6), "token_ms": 8})).await?;
    for sync in ["each", "interval"] {
        let postern = Postern::start(&config(&cloud).set("/audit/sync", json!(sync))).await?;
        let client = postern.client("clerk/amy")?;
        let mut told = Vec::new();
        for round in 0..6u64 {
            let answered = Arc::new(AtomicUsize::new(0));
            let asking: Vec<_> = (0..8)
                .map(|place| {
                    let (client, answered) = (client.clone(), answered.clone());
                    tokio::spawn(async move {
                        let mut told = Vec::new();
                        for number in 0..200 {
                            let Ok(mut events) = client.stream(&chat_body(&format!("{round} {place} {number}"))).await
                            else {
                                break;
                            };
                            // A status is sent after the intent is written.
                            told.push(events.header("postern-record").to_owned());
                            answered.fetch_add(1, Ordering::Relaxed);
                            if events.rest().await.is_err() {
                                break;
                            }
                        }
                        told
                    })
                })
                .collect();
            let deadline = Instant::now() + SOON;
            while answered.load(Ordering::Relaxed) < 8 {
                ensure!(Instant::now() < deadline, "nobody is answered: {}", postern.log());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(130 * round)).await;
            let gateway = postern.child("gateway").context("a gateway")?;
            postern.signal_child("gateway", Signal::KILL)?;
            for asked in asking {
                told.extend(asked.await?);
            }
            let deadline = Instant::now() + SOON;
            while postern.child("gateway").is_none_or(|pid| pid == gateway) || client.chat("Again").await.is_err() {
                ensure!(Instant::now() < deadline, "no new gateway: {}", postern.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        told.retain(|id| !id.is_empty());
        assert!(told.len() > 30, "{}", told.len());
        signed(&folder(&postern)).await?;
        let (report, code) = verify(&folder(&postern), &[])?;
        assert_eq!((code, &report["unreadable"]), (0, &json!(0)), "{report}");
        assert_eq!(report["kinds"]["start"], 7, "{report}");
        let records = postern.records().all()?;
        for id in &told {
            let record =
                records.iter().find(|record| record.id == *id).with_context(|| format!("{id} has no record"))?;
            assert!(!record.intent.is_null(), "{id} has no intent");
            assert!(!record.outcome.is_null(), "{id} has no outcome");
        }
        let interrupted = records.iter().filter(|record| record.outcome["result"] == "interrupted").count();
        assert!(interrupted > 0, "none was under way");
    }
    Ok(())
}

/// A disk that is full in the middle of things, in a file system of its own.
pub(crate) struct SmallDisk {
    pub(crate) dir: tempfile::TempDir,
}

impl SmallDisk {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("disk"))?;
        Ok(Self { dir })
    }

    /// What `postern` is started with: it lives in a namespace in which `disk` is small, and somebody there fills and frees it.
    pub(crate) fn command(&self) -> Vec<String> {
        let script = r#"
mount -t tmpfs -o size=4m none "$0/disk" || exit 90
( while sleep 0.05; do
    [ -e "$0/fill" ] && rm "$0/fill" && { cat /dev/zero > "$0/disk/filler" 2>/dev/null; touch "$0/full"; }
    [ -e "$0/free" ] && rm "$0/free" && rm -f "$0/disk/filler" && touch "$0/freed"
    [ -d "$0" ] || exit
  done ) &
exec "$@""#;
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, &self.dir.path().display().to_string()]
            .map(str::to_owned)
            .to_vec()
    }

    /// Whether such a namespace can be made here.
    pub(crate) fn is_possible() -> bool {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]);
        unshare.output().is_ok_and(|output| output.status.success())
    }

    pub(crate) async fn told(&self, what: &str, done: &str) -> Result<()> {
        std::fs::write(self.dir.path().join(what), "")?;
        let deadline = Instant::now() + SOON;
        while std::fs::remove_file(self.dir.path().join(done)).is_err() {
            ensure!(Instant::now() < deadline, "nobody does {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_full_disk_stops_what_must_be_recorded_and_nothing_is_lost() -> Result<()> {
    if !SmallDisk::is_possible() {
        eprintln!("NOT TESTED: this machine lets nobody make a mount namespace, so no disk can be full");
        return Ok(());
    }
    let cloud = BusyCloud::start().await?;
    for unwritable in ["refuse", "public"] {
        let disk = SmallDisk::new()?;
        let log = disk.dir.path().join("disk/audit");
        let config = config(&cloud).set("/audit", json!({"dir": log, "unwritable": unwritable}));
        let postern = Postern::start_under(&disk.command(), &config).await?;
        let client = postern.client("clerk/amy")?;
        // A conversation keeps its label and a question its answer, so each has one of its own.
        let asked = std::sync::atomic::AtomicU64::new(0);
        let ask = async |label: &str| {
            let number = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            client.with_header("postern-label", label).chat(&format!("{number}: a question, {label}")).await
        };
        assert_eq!(ask("public").await?.status, 200);
        disk.told("fill", "full").await?;
        let before = cloud.stats().await?.requests;
        // The one that finds out waits as long as a record may take; those after it are told at once.
        let deadline = Instant::now() + SOON;
        while postern.metrics().await?.value("postern_audit_writable", &[]) != Some(0.0) {
            ensure!(Instant::now() < deadline, "the disk is not full");
            let _finds_out = ask("internal").await?;
        }
        let sent = cloud.stats().await?.requests - before;
        let refused = ask("internal").await?;
        assert_eq!((refused.status, refused.error_code().as_str()), (503, "record_unavailable"), "{}", refused.text());
        assert!(refused.text().contains("record"), "{}", refused.text());
        let spared = ask("public").await?;
        assert_eq!(spared.status, if unwritable == "public" { 200 } else { 503 }, "{}", spared.text());
        assert_eq!(cloud.stats().await?.requests - before - sent, u64::from(unwritable == "public"));
        assert_eq!(postern.admin("/readyz").await?.status, if unwritable == "public" { 200 } else { 503 });
        disk.told("free", "freed").await?;
        let deadline = Instant::now() + SOON;
        while ask("internal").await?.status != 200 {
            ensure!(Instant::now() < deadline, "it did not recover: {}", postern.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(postern.admin("/readyz").await?.status, 200);
        tokio::time::sleep(SIGNED).await;
        // The log is where only they are.
        let inside = format!("/proc/{}/root{}", postern.child("gateway").context("a gateway")?, log.display());
        let (report, code) = verify(Path::new(&inside), &[])?;
        assert_eq!(code, 0, "{report}");
        let exported = audit(&["export", "--log", &inside, "--format", "jsonl"])?;
        let said = |what: &str| text(&exported).matches(&format!("\"what\":\"{what}\"")).count();
        assert!(said("unwritable") > 0, "{}", text(&exported));
        // Answers without a record there are only where they may be.
        assert_eq!(said("unrecorded"), usize::from(unwritable == "public"), "{}", text(&exported));
    }
    Ok(())
}

#[tokio::test]
async fn records_past_their_time_are_deleted_by_days_and_the_rest_is_proved() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let time = FakeTime::start()?;
    let config = time.applied_to(config(&cloud).set("/audit/retention", json!("3d")));
    let mut postern = Postern::start(&config).await?;
    let log = folder(&postern);
    // Two records each, and no certificate that a jump of the clock could end.
    let record = async |times| -> Result<()> {
        for _ in 0..times {
            ensure!(postern.admin_post("/api/policies/none/release").await?.status == 404);
        }
        Ok(())
    };
    record(140).await?;
    time.advance(24.0)?;
    let deadline = Instant::now() + SOON;
    while std::fs::read_dir(log.join("checkpoints"))?.count() < 1 {
        ensure!(Instant::now() < deadline, "the day did not end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    record(300).await?;
    assert!(log.join("tile/entries/000").exists(), "its time is not over");
    for _ in 0..3 {
        time.advance(24.0)?;
        tokio::time::sleep(SIGNED).await;
    }
    let deadline = Instant::now() + SOON;
    while log.join("tile/entries/000").exists() {
        ensure!(Instant::now() < deadline, "nothing was deleted: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    signed(&log).await?;
    let (report, code) = verify(&log, &[])?;
    assert_eq!((code, &report["first"]), (0, &json!(256)), "{report}");
    assert!(report["kept_checkpoints"].as_u64().unwrap() >= 2, "{report}");
    let log_name = log.display().to_string();
    let gone = audit(&["prove", "3", "--log", &log_name])?;
    assert!(text(&gone).contains("past its retention"), "{}", text(&gone));
    assert!(audit(&["prove", "300", "--log", &log_name])?.status.success());
    assert!(postern.stop().await?.success());
    // A bundle that went before its time is no matter of retention, whoever writes that it is.
    std::fs::remove_file(log.join("tile/entries/001"))?;
    let mut journals: Vec<PathBuf> =
        std::fs::read_dir(log.join("journal"))?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    journals.sort();
    let newest = journals.last().context("a journal")?;
    let forged = "{\"record\":\"x\",\"kind\":\"notice\",\"what\":\"retention\",\"before\":512}\n";
    std::fs::write(newest, std::fs::read_to_string(newest)? + forged)?;
    let (report, code) = verify(&log, &[])?;
    assert_eq!(code, 1, "{report}");
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("past their time"), "{report}");
    Ok(())
}

#[test]
fn a_folder_of_somebody_else_holds_nobody_up_whatever_lies_in_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().display().to_string();
    for name in ["key.pub", "checkpoint", "roster"] {
        let path = dir.path().join(name);
        ensure!(Command::new("mkfifo").arg(&path).status()?.success());
        for command in [["key", "--log"], ["verify", "--log"], ["roster", "--log"]] {
            let said = audit(&[&command[..], &[&log]].concat())?;
            assert!(!said.status.success(), "{name} {command:?}: {}", text(&said));
            assert!(String::from_utf8_lossy(&said.stderr).contains(&log), "{name} {command:?}: {said:?}");
        }
        std::fs::remove_file(&path)?;
    }
    // Far too large, and of no use to anybody.
    std::fs::File::create(dir.path().join("key.pub"))?.set_len(1 << 40)?;
    let said = audit(&["key", "--log", &log])?;
    assert!(String::from_utf8_lossy(&said.stderr).contains("it is longer than"), "{said:?}");
    Ok(())
}
