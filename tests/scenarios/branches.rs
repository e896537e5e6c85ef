//! One root for several branches, and a root that is kept off line.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::{BusyCloud, Client, Config, FakeTime, Postern};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::{SOON, config};

#[tokio::test]
async fn two_branches_under_one_root_refuse_each_others_names() -> Result<()> {
    // One root, kept off line; two branches with intermediates for their own paths.
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    let certs = |arguments: &[&str]| -> Result<String> {
        let output = postern_tests::postern::run(&[&["certs"], arguments].concat())?;
        anyhow::ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    certs(&["root", "create", "--domain", "example.test", "--out", &at("root")])?;
    let cloud = BusyCloud::start().await?;
    let mut branches = Vec::new();
    for (name, prefix) in [("one", "/branch-1"), ("two", "/branch-17")] {
        let identities: Vec<_> = ["branch-1", "branch-17"]
            .iter()
            .map(|branch| json!({"match": format!("spiffe://example.test/{branch}/*")}))
            .collect();
        let config = config(&cloud)
            .set("/trust", json!({"domain": "example.test", "prefix": prefix, "root": "offline"}))
            .set("/identities", json!(identities))
            .set("/state_dir", json!(at(name)));
        // The first start asks for a signature, in words.
        let refused = Postern::start(&config).await.unwrap_err();
        assert!(format!("{refused:#}").contains("certs root sign"), "{refused:#}");
        let csr = format!("{}/authority/intermediate.csr.pem", at(name));
        let signed = at(&format!("{name}.pem"));
        certs(&["root", "sign", "--root", &at("root"), "--csr", &csr, "--prefix", prefix, "--out", &signed])?;
        let file = at(&format!("{name}.yaml"));
        std::fs::write(&file, config.render(Path::new(&at(name))))?;
        let roots = at("root/root-certificate.pem");
        certs(&["root", "install", "--config", &file, "--certificate", &signed, "--roots", &roots])?;
        let postern = Postern::start(&config).await?;
        branches.push((postern, file, prefix));
    }
    let issue = |file: &str, id: &str, out: &str| certs(&["issue", "--config", file, "--id", id, "--out", &at(out)]);
    let (one, one_file, _) = &branches[0];
    let (two, two_file, _) = &branches[1];
    issue(one_file, "spiffe://example.test/branch-1/clerk", "amy")?;
    issue(two_file, "spiffe://example.test/branch-17/clerk", "bea")?;
    let client = |postern: &Postern, dir: &str| -> Result<Client> { postern.client_of(Path::new(&at(dir))) };
    assert_eq!(client(one, "amy")?.chat("At home").await?.status, 200);
    assert_eq!(client(two, "bea")?.chat("At home").await?.status, 200);
    // The branch's own tool does not mint for the other, nor for a gateway.
    for id in [
        "spiffe://example.test/branch-17/clerk",
        "spiffe://example.test/branch-1/gateway",
        "spiffe://example.test/clerk",
    ] {
        assert!(issue(one_file, id, "bad").is_err(), "{id}");
    }
    // The keys can be used without our tool: what OpenSSL signs with them is refused by both.
    let signer = |branch: &str| at(&format!("{branch}/authority/intermediate.pem"));
    let forged = [
        ("one", "one-as-17", "spiffe://example.test/branch-17/clerk"),
        ("two", "two-as-1", "spiffe://example.test/branch-1/clerk"),
        ("one", "one-as-whole", "spiffe://example.test/boss"),
        ("two", "two-as-whole", "spiffe://example.test/boss"),
    ];
    let mut refused = 0.0;
    for (branch, name, id) in forged {
        forge(Path::new(&signer(branch)), id, Path::new(&at("amy/ca.pem")), Path::new(&at(name)))?;
        refused += 2.0;
        for postern in [one, two] {
            assert!(client(postern, name)?.chat("May I?").await.is_err(), "{id} by {branch}");
            let seen = crate::enrolment::s_client(postern, Path::new(&at(name)), &[])?;
            assert!(seen.contains("alert") && !seen.contains("HTTP/1.1"), "{id} by {branch}: {seen}");
            // The one who was refused knows it before it is counted.
            let counted = async || {
                let metrics = postern.metrics().await?;
                anyhow::Ok(metrics.sum("postern_handshakes_failed_total", &[("reason", "wrong_prefix")]))
            };
            crate::nodes::until("each refusal is counted", async || Ok(counted().await? >= refused)).await?;
            assert_eq!(counted().await?, refused, "{id} by {branch}");
        }
    }
    // Below its own prefix the forged one is known to nobody's register, but good: the key is the authority.
    for (branch, postern, name, path) in [("one", one, "hand-1", "branch-1"), ("two", two, "hand-17", "branch-17")] {
        let id = format!("spiffe://example.test/{path}/made-by-hand");
        forge(Path::new(&signer(branch)), &id, Path::new(&at("amy/ca.pem")), Path::new(&at(name)))?;
        assert_eq!(client(postern, name)?.chat("With the key of the branch").await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn with_the_root_off_line_somebody_is_woken_in_time() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let (dir, time) = (tempfile::tempdir()?, FakeTime::start()?);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let trust = json!({"domain": "branch.test", "root": "offline"});
    let config = config(&cloud).set("/trust", trust).set("/state_dir", json!(at("state")));
    let config: Config = time.applied_to(config);
    std::fs::write(at("postern.yaml"), config.render(dir.path()))?;
    let vault = |arguments: &[&str]| in_time(&time, arguments);
    vault(&["root", "create", "--domain", "branch.test", "--out", &at("root")])?;
    let refused = Postern::start(&config).await.unwrap_err();
    assert!(format!("{refused:#}").contains("certs root sign"), "{refused:#}");
    let (request, roots) = (at("state/authority/intermediate.csr.pem"), at("root/root-certificate.pem"));
    // What a person does: the request to the root, its answer to the gateway.
    let bring = |answer: &str| -> Result<()> {
        vault(&["root", "sign", "--root", &at("root"), "--csr", &request, "--out", answer])?;
        vault(&["root", "install", "--config", &at("postern.yaml"), "--certificate", answer, "--roots", &roots])?;
        Ok(())
    };
    bring(&at("first.pem"))?;
    let postern = Postern::start(&config).await?;
    let status = || -> Result<Value> { Ok(serde_json::from_str(&postern.certs(&["status"])?)?) };
    let issuing = |status: &Value| status["intermediates"][0].clone();
    let first = status()?;
    assert_eq!(first["alarm"], false);
    let moment = |of: &Value| time::OffsetDateTime::parse(of.as_str().unwrap(), &Rfc3339).unwrap();
    let life = |one: &Value| (moment(&one["not_after"]) - moment(&one["not_before"])).whole_seconds();
    assert_eq!(life(&issuing(&first)), 30 * 86_400 + 300, "thirty days, and backdated by five minutes");
    let shown = async || postern.admin("/api/certificates").await?.json();
    assert!(!Path::new(&request).exists());

    time.advance(15.0 * 24.0)?;
    let deadline = Instant::now() + SOON;
    loop {
        let now = shown().await?;
        // It goes on with what it has.
        if now["authority"]["alarm"] == true && now["health"] == "good" && Path::new(&request).exists() {
            break;
        }
        assert!(Instant::now() < deadline, "nobody is woken: {now}, {}", postern.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let amy = postern.issue("clerk/amy")?;
    assert_eq!(postern.client_of(&amy)?.at(&time).chat("Before").await?.status, 200);

    bring(&at("second.pem"))?;
    let deadline = Instant::now() + SOON;
    while shown().await?["authority"]["alarm"] != false {
        assert!(Instant::now() < deadline, "the new one is not taken over: {}", postern.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(issuing(&status()?)["key_id"], issuing(&first)["key_id"]);
    // Whoever has a leaf of the old one notices nothing.
    assert_eq!(postern.client_of(&amy)?.at(&time).chat("After").await?.status, 200);
    assert_eq!(postern.client_of(&postern.issue("clerk/bea")?)?.at(&time).chat("New").await?.status, 200);
    Ok(())
}

/// Runs `postern certs ARGUMENTS` in another time.
fn in_time(time: &FakeTime, arguments: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new(postern_tests::postern::binary()?);
    let output = command.arg("certs").args(arguments).envs(time.environment()).output()?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A client's leaf, signed with the key of an intermediate by OpenSSL.
fn forge(signer: &Path, id: &str, ca: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let run = |command: &mut std::process::Command| -> Result<Vec<u8>> {
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let openssl = || std::process::Command::new("openssl");
    run(openssl()
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"])
        .arg("-keyout")
        .arg(out.join("key.pem"))
        .arg("-out")
        .arg(out.join("csr.pem")))?;
    let extensions = format!(
        "subjectAltName=URI:{id}\nextendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\nauthorityKeyIdentifier=keyid\n"
    );
    std::fs::write(out.join("ext"), extensions)?;
    let leaf = run(openssl()
        .args(["x509", "-req", "-days", "1", "-set_serial", "77", "-in"])
        .arg(out.join("csr.pem"))
        .arg("-CA")
        .arg(signer)
        .arg("-CAkey")
        .arg(signer)
        .arg("-extfile")
        .arg(out.join("ext")))?;
    let intermediate = run(openssl().arg("x509").arg("-in").arg(signer))?;
    std::fs::write(out.join("cert.pem"), [leaf, intermediate].concat())?;
    std::fs::copy(ca, out.join("ca.pem"))?;
    Ok(())
}
