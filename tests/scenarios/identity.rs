//! Who may speak at all: TLS 1.3, a client certificate, an identity that a rule names; and a leaf that is renewed.

use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::pki::Authority;
use postern_tests::tls::Identity;
use postern_tests::{BusyCloud, Postern};
use serde_json::json;

use crate::{SOON, config};

#[tokio::test]
async fn without_a_certificate_of_ours_nobody_speaks() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    assert!(postern.client_with(None)?.chat("Hello").await.is_err(), "no certificate");
    let foreign = Authority::new("foreign")?.client(&["spiffe://branch.test/clerk/amy"])?;
    let foreign = Identity::from_pem(&foreign.cert_pem, &foreign.key_pem)?;
    assert!(postern.client_with(Some(foreign))?.chat("Hello").await.is_err(), "another authority");
    let unknown = postern.client("stranger/eve")?.chat("Hello").await?;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (403, "identity_unknown"));
    let outcome = postern.records().of(unknown.header("postern-record"), SOON).await?.outcome;
    assert_eq!((&outcome["result"], &outcome["code"]), (&json!("refused"), &json!("identity_unknown")));
    assert_eq!(outcome["identity"], "spiffe://branch.test/stranger/eve");
    assert_eq!(postern.client("clerk/amy")?.chat("Hello").await?.status, 200);
    assert_eq!(cloud.stats().await?.requests, 1);
    let metrics = postern.metrics().await?;
    for reason in ["no_certificate", "unknown_authority"] {
        assert_eq!(metrics.sum("postern_handshakes_failed_total", &[("reason", reason)]), 1.0, "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn tls_is_1_3_without_resumption() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let dir = postern.issue("clerk/amy")?;
    let s_client = |more: &[&str]| -> Result<String> {
        let mut command = std::process::Command::new("openssl");
        command.args(["s_client", "-connect", &postern.gateway.to_string(), "-servername", "localhost"]);
        for (option, file) in [("-CAfile", "ca.pem"), ("-cert", "cert.pem"), ("-key", "key.pem")] {
            command.arg(option).arg(dir.join(file));
        }
        let output = command.args(more).stdin(std::process::Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let good = s_client(&["-tls1_3"])?;
    assert!(good.contains("Verify return code: 0") && good.contains("TLSv1.3"), "{good}");
    assert!(!good.contains("New Session Ticket"), "{good}");
    let old = s_client(&["-tls1_2"])?;
    assert!(old.contains("alert protocol version") || old.contains("no protocols available"), "{old}");
    Ok(())
}

#[tokio::test]
async fn the_leaf_is_renewed_while_requests_go_on() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    // A life of 12 s is renewed after about 6.
    let postern = Postern::start(&config(&cloud).set("/trust/leaf_ttl", json!("12s"))).await?;
    let until = async || -> Result<String> {
        Ok(postern.admin("/api/status").await?.json()?["certificate"]["not_after"].as_str().unwrap().to_owned())
    };
    let first = until().await?;
    let started = Instant::now();
    let mut asked = 0;
    while until().await? == first {
        assert!(started.elapsed() < Duration::from_secs(30), "not renewed");
        let client = postern.client("clerk/amy")?;
        assert_eq!(client.chat(&format!("Question {asked}")).await?.status, 200);
        asked += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(postern.client("clerk/amy")?.chat("And now?").await?.status, 200);
    assert_eq!(postern.metrics().await?.value("postern_certificate_rotations_total", &[("result", "ok")]), Some(1.0));
    Ok(())
}
