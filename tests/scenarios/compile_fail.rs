//! An unclassified or unmasked send does not compile. Each program here is compiled against the gateway's library by the
//! compiler that built it; the first one must compile, so that the others fail for the reason that is claimed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

const GOOD: &str = "
use postern::classify::clearance::{Clearance, Destination, EgressPermit, Refusal};
use postern::decide::PlannedRequest;
use postern::upstream::{AttemptError, Reply, Upstream};

pub async fn send(up: &dyn Upstream, gate: &Clearance, request: &PlannedRequest, to: &Destination) -> Result<Reply, AttemptError> {
    let permit: Result<EgressPermit, Refusal> = gate.permit(request, to, None);
    up.send(permit?).await
}
fn main() {}
";

/// Compiles `program`; the error codes of what the compiler says.
fn compile(program: &str, dir: &Path) -> Result<String> {
    let exe = std::env::current_exe()?;
    // …/target/release/deps/scenarios-HASH
    let deps = exe.parent().context("deps")?;
    let library = newest_library(deps)?;
    let source = dir.join("program.rs");
    std::fs::write(&source, program)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=bin", "--emit=metadata", "--error-format=short"])
        .arg("--extern")
        .arg(format!("postern={}", library.display()))
        .arg("-L")
        .arg(format!("dependency={}", deps.display()))
        .arg("--out-dir")
        .arg(dir)
        .arg(&source)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), !said.contains("error"), "{said}");
    Ok(said)
}

/// The gateway's library beside this test; cargo may have left older ones there.
fn newest_library(deps: &Path) -> Result<PathBuf> {
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(deps)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("libpostern-") && name.ends_with(".rlib") {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(found.into_iter().max().context("the gateway's library is not built")?.1)
}

#[test]
fn only_a_planned_request_gets_a_permit_and_only_a_permit_is_sent() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let said = compile(GOOD, dir.path())?;
    assert!(!said.contains("error"), "the control must compile: {said}");
    let cases = [
        (
            "a request that was only parsed",
            "request: &PlannedRequest",
            "request: &postern::request::ParsedRequest",
            "E0308",
        ),
        (
            "one that was classified",
            "request: &PlannedRequest",
            "request: &postern::classify::ClassifiedRequest",
            "E0308",
        ),
        (
            "one that was masked but not decided on",
            "request: &PlannedRequest",
            "request: &postern::redact::MaskedRequest",
            "E0308",
        ),
        ("no permit", "up.send(permit?)", "up.send(request)", "E0308"),
        (
            "the same permit twice",
            "up.send(permit?).await",
            "{ let p = permit?; let _a = up.send(p).await; up.send(p).await }",
            "E0382",
        ),
        (
            "a permit made by hand",
            "gate.permit(request, to, None);",
            "Ok(EgressPermit { destination: to.clone(), body: Default::default(), asks: postern::upstream::Asks::Chat { stream: false }, origin: None });",
            "E0451",
        ),
        ("a beginning that nobody looked at", "to, None)", "to, Some(&String::new()))", "E0308"),
        (
            "one that was only classified",
            "to, None)",
            "to, Some({ let begun: &postern::classify::ClassifiedBeginning = todo!(); begun }))",
            "E0308",
        ),
        (
            "one made by hand",
            "to, None)",
            "to, Some(&postern::redact::beginning::MaskedBeginning { text: String::new(), tokens: 0, label: todo!(), counts: Default::default(), complete: true }))",
            "E0451",
        ),
    ];
    for (what, from, to, code) in cases {
        assert!(GOOD.contains(from), "{what}");
        let said = compile(&GOOD.replace(from, to), dir.path())?;
        assert!(said.contains(&format!("error[{code}]")), "{what}: {said}");
    }
    Ok(())
}
