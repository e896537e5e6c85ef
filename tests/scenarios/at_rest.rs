//! What lies on the disk, and what happens when the disk is lost.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use postern_tests::{BusyCloud, Postern};
use serde_json::Value;

use crate::config;
use crate::enrolment::{enrol, with_enrol};

#[tokio::test]
async fn an_authority_comes_back_from_its_backup_and_workstations_do_not_notice() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let mut postern = Postern::start(&config(&cloud)).await?;
    let amy = postern.issue("clerk/amy")?;
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("pass"), "correct horse battery staple\n")?;
    std::fs::write(at("wrong"), "incorrect horse\n")?;
    postern.certs(&["backup", "--out", &at("backup"), "--passphrase-file", &at("pass")])?;
    let sealed = std::fs::read(at("backup"))?;
    assert!(!String::from_utf8_lossy(&sealed).contains("PRIVATE KEY"));
    let again = postern.certs(&["backup", "--out", &at("backup"), "--passphrase-file", &at("pass")]);
    assert!(again.is_err(), "a backup is never overwritten");
    let bundle = postern.certs(&["bundle"])?;
    let spiffe: Value = serde_json::from_str(&postern.certs(&["bundle", "--format", "spiffe"])?)?;
    assert_eq!(spiffe["keys"][0]["use"], "x509-svid");
    assert!(bundle.contains(&spiffe["keys"][0]["x5c"][0].as_str().unwrap()[..48]));
    postern.stop().await?;

    // The disk is lost. What stands there is not overwritten, and a wrong passphrase says so.
    let restore = |pass: &str| postern.certs(&["restore", "--from", &at("backup"), "--passphrase-file", &at(pass)]);
    assert!(restore("pass").is_err(), "an authority was overwritten");
    std::fs::remove_dir_all(postern.state_dir())?;
    let refused = format!("{:#}", restore("wrong").unwrap_err());
    assert!(refused.contains("passphrase"), "{refused}");
    restore("pass")?;
    assert_eq!(postern.certs(&["bundle"])?, bundle);
    let file = postern.config_file();
    let text = std::fs::read_to_string(&file)?;
    let restarted = Postern::start(&postern_tests::Config::yaml(&text)).await?;
    assert_eq!(restarted.client_of(&amy)?.chat("Is it still you?").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn without_a_backup_a_lost_disk_costs_an_invitation_for_everyone() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let mut postern = Postern::start(&with_enrol(&cloud)).await?;
    let amy = enrol(&postern, "clerk/amy")?;
    assert_eq!(postern.client_of(&amy)?.chat("Before").await?.status, 200);
    let before = postern.certs(&["bundle"])?;
    postern.stop().await?;
    std::fs::remove_dir_all(postern.state_dir())?;
    let text = std::fs::read_to_string(postern.config_file())?;
    let again = Postern::start(&postern_tests::Config::yaml(&text)).await?;
    assert_ne!(again.certs(&["bundle"])?, before, "another root");
    assert!(again.client_of(&amy)?.chat("Is it still you?").await.is_err(), "neither side knows the other");
    let anew = enrol(&again, "clerk/amy")?;
    assert_eq!(again.client_of(&anew)?.chat("After").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn keys_lie_in_the_state_folder_and_nobody_else_may_read_them() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&with_enrol(&cloud)).await?;
    let token = postern.certs(&["invite", "--id", "spiffe://branch.test/clerk/amy"])?;
    postern.client("clerk/bea")?.chat("Leave traces").await?;
    let authority = postern.state_dir().join("authority");
    let mode = |path: &Path| -> Result<u32> { Ok(std::fs::metadata(path)?.permissions().mode() & 0o777) };
    assert_eq!(mode(&authority)?, 0o700);
    let mut keys = 0;
    let mut folders = vec![postern.state_dir()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                folders.push(path);
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            let bytes = std::fs::read(&path)?;
            let holds = |what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
            assert!(!holds(token.trim()), "{} has a token", path.display());
            if path.starts_with(&authority) {
                assert_eq!(mode(&path)?, 0o600, "{}", path.display());
            }
            if holds("PRIVATE KEY") {
                assert!(path.starts_with(&authority), "a key in {}", path.display());
                keys += 1;
            }
        }
    }
    assert_eq!(keys, 2, "root and intermediate; the gateway's own key is in its memory only");
    Ok(())
}

/// Runs `postern state erase` for a tenant: the exit code, and what it said.
fn erase(file: &Path, tenant: &str) -> Result<(Option<i32>, String)> {
    let file = file.display().to_string();
    let output = postern_tests::postern::run(&["state", "erase", "--config", &file, "--tenant", tenant])?;
    Ok((output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}

#[tokio::test]
async fn a_mistyped_tenant_is_not_said_to_be_erased() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let mut postern = Postern::start(&config(&cloud)).await?;
    assert_eq!(postern.client("clerk/amy")?.chat("Hello").await?.status, 200);
    let file = postern.config_file();
    let erasures = || -> Result<Vec<Value>> {
        Ok(postern.records().lines()?.into_iter().filter(|line| line["action"] == "erase").collect())
    };
    let (code, said) = erase(&file, "clerk")?;
    let expected = "nothing is kept under `clerk`; tenants in this file: clerks, officers, each SPIFFE ID of";
    assert!(code == Some(1) && said.contains(expected), "{said}");
    let (code, said) = erase(&file, "spiffe://branch.test/clerk/amy")?;
    assert!(code == Some(1) && said.contains("of the tenant `clerks`"), "{said}");
    assert!(erasures()?.is_empty() && !postern.state_dir().join("erase").exists());
    // A tenant that the configuration names no longer has its key still; and is nobody's when that is gone.
    let mut without: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    without["identities"].as_array_mut().unwrap().remove(0);
    let other = file.with_file_name("without.yaml");
    std::fs::write(&other, without.to_string())?;
    let (code, said) = erase(&other, "clerks")?;
    assert!(code == Some(0) && said.contains("the keys of clerks are destroyed"), "{said}");
    assert!(!said.contains("Redis") && !said.contains("replica"), "there is none: {said}");
    assert_eq!(erasures()?.len(), 2, "asked, and done");
    let (code, said) = erase(&other, "clerks")?;
    assert!(code == Some(1) && said.contains("nothing is kept under `clerks`"), "{said}");
    // Where no gateway runs, that is what is said.
    postern.stop().await?;
    let (code, said) = erase(&file, "clerks")?;
    assert!(
        code == Some(1) && said.contains("no gateway runs with this state_dir") && !said.contains("Redis"),
        "{said}"
    );
    Ok(())
}
