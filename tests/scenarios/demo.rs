//! The demo checks its own claims; here it only has to end well, and to leave nothing behind.

use std::process::Command;

use anyhow::Result;
use postern_tests::postern::{binary, run};

#[test]
fn the_demo_shows_what_it_says() -> Result<()> {
    let output = run(&["demo"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for words in ["cloud", "edge-first", "local", "exact", "classified", "What the cloud received:"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(said.contains("[EMAIL_") && said.contains("ann.lee@example.org"));
    assert!(!said.contains("FAILED"));
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
