//! The demo checks its own claims; here it only has to end well, and to leave nothing behind.

use anyhow::Result;
use postern_tests::postern::run;

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
