//! The demo checks its own claims; here it only has to end well, and to leave nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use postern_tests::postern::{binary, run};
use postern_tests::process::Process;

const WITHIN: Duration = Duration::from_secs(180);

#[test]
fn the_demo_shows_what_it_says() -> Result<()> {
    let output = run(&["demo"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for words in
        ["cloud", "edge-first", "local", "exact", "classified", "What the cloud received:", "sealed: ohttp-chunked"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("[EMAIL_") && said.contains("ann.lee@example.org"));
    assert!(!said.contains("FAILED"));
    Ok(())
}

#[tokio::test]
async fn what_is_kept_serves_as_it_says_and_ends_as_a_whole() -> Result<()> {
    let mut command = Command::new(binary()?);
    command.args(["demo", "--keep"]);
    let mut demo = Process::start("postern demo", command)?;
    demo.line(WITHIN, |line| line.starts_with("Ctrl-C").then_some(())).await?;
    let said = demo.log();
    let connect = said.lines().find(|line| line.starts_with("curl http://")).context("a line for the connector")?;
    let pasted = said.split_once(connect).and_then(|(_, rest)| rest.split_once("\n\n")).context("its rest")?.0;
    let ask = || Command::new("bash").arg("-c").arg(format!("{connect}{pasted}")).output();
    let output = ask()?;
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && answer.contains("You asked: Hello"), "{output:?}");
    let token = connect.split(['(', ')']).nth(1).and_then(|cat| cat.strip_prefix("cat ")).context("its file")?;
    assert!(Path::new(token).exists());
    assert_eq!(demo.stop(WITHIN).await?.code(), Some(0), "{}", demo.log());
    assert!(!Path::new(token).exists() && !ask()?.status.success(), "nothing is left");
    Ok(())
}

#[test]
fn a_demo_that_fails_leaves_nothing_behind() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    for cloud in ["/bin/false", "/no/such/program"] {
        let mut demo = Command::new(binary()?);
        let output = demo.args(["demo", "--busy-cloud", cloud]).env("TMPDIR", scratch.path()).output()?;
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read_dir(scratch.path())?.count(), 0, "{cloud}");
    }
    Ok(())
}
