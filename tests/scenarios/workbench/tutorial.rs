//! docs/plugins.md as it stands: its commands are run in their order, its files are written, and what it shows must come out.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use postern_tests::postern::binary;

const DOCUMENT: &str = include_str!("../../../docs/plugins.md");
/// A project of Rust compiles some 40 crates.
const WITHIN: Duration = Duration::from_secs(900);
/// What the document uses; scenarios run side by side, so each gets others.
const PORTS: [&str; 2] = ["8443", "9443"];
/// Between the outputs of blocks.
const MARK: &str = "@@ end of block";

/// A fenced block.
#[derive(Debug)]
struct Block {
    language: &'static str,
    text: &'static str,
}

/// The blocks between a heading of the second level and the next.
fn section(heading: &str) -> Result<Vec<Block>> {
    let from = DOCUMENT.split_once(&format!("\n## {heading}\n")).with_context(|| format!("a section {heading}"))?.1;
    let text = from.split_once("\n## ").map_or(from, |(section, _)| section);
    let fenced = text.split("\n```").skip(1).step_by(2);
    let block = |fenced: &'static str| {
        let (language, text) = fenced.split_once('\n').context("a block")?;
        Ok(Block { language, text })
    };
    fenced.map(block).collect()
}

impl Block {
    /// The file that it is, as its first line says in a comment.
    fn file(&self) -> Option<&'static str> {
        let first = self.text.lines().next()?;
        let name = first.strip_prefix("# ").or_else(|| first.strip_prefix("// "))?;
        let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"./-_".contains(&c));
        (is_name && name.contains('.')).then_some(name)
    }

    /// As a part of the script.
    fn script(&self) -> Result<String> {
        match (self.file(), self.language) {
            (Some(file), _) => Ok(format!("cat >{file} <<'END_OF_FILE'\n{}\nEND_OF_FILE\n", self.text)),
            (None, "sh") => Ok(format!("{}\n", self.text)),
            (None, "text") => Ok(String::new()),
            (None, language) => bail!("a block of {language} that is neither a command nor a file: {}", self.text),
        }
    }

    /// What it says must come out, piece by piece; `…` stands for anything.
    fn check(&self, output: &str) -> Result<()> {
        let mut rest = output;
        for piece in self.text.split(['…', '\n']).map(str::trim).filter(|piece| !piece.is_empty()) {
            let (_, after) =
                rest.split_once(piece).with_context(|| format!("`{piece}` is shown, but not said: {output}"))?;
            rest = after;
        }
        Ok(())
    }
}

/// Runs a section in a folder. Commands of a section share a shell, as the author's do.
fn play(heading: &str, folder: &Path) -> Result<()> {
    let blocks = section(heading)?;
    ensure!(blocks.iter().any(|block| block.language == "sh"), "{heading} has no commands");
    let mut script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n".to_owned();
    // The compiler is here already; rustup's server may not be.
    script.push_str("rustup() { :; }\nexport -f rustup\n");
    for block in &blocks {
        script.push_str(&block.script()?);
        script.push_str(&format!("echo; echo '{MARK}'\n"));
    }
    for port in PORTS {
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        script = script.replace(port, &free.to_string());
    }
    let output = run(&script, folder)?;
    let outputs: Vec<&str> = output.split(MARK).collect();
    for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "text") {
        let said =
            at.checked_sub(1).and_then(|before| outputs.get(before)).context("a command before what it shows")?;
        block.check(said)?;
    }
    Ok(())
}

fn run(script: &str, folder: &Path) -> Result<String> {
    let log = folder.join("tutorial.log");
    let file = std::fs::File::create(&log)?;
    let path =
        [binary()?.parent().context("a folder")?.as_os_str().to_owned(), std::env::var_os("PATH").unwrap_or_default()];
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(folder).stdin(Stdio::null());
    command.env("PATH", path.join(std::ffi::OsStr::new(":")));
    command.env("RUSTC", guest_rustc()?);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.stdout(file.try_clone()?).stderr(file).spawn()?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if started.elapsed() > WITHIN => {
                // With the gateway that it may have started.
                let group = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
                bail!("not done within {WITHIN:?}: {}", std::fs::read_to_string(&log)?);
            }
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    let said = std::fs::read_to_string(&log)?;
    ensure!(status.success(), "{status}: {said}");
    Ok(said)
}

/// A compiler for WebAssembly, wherever this machine has it.
fn guest_rustc() -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/guest-toolchain.sh");
    let output = Command::new(script).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Their compilers are large, so they are fetched in `make test-all` only.
fn play_if_all(heading: &str) -> Result<()> {
    if std::env::var_os("POSTERN_ALL_EXAMPLES").is_none() {
        eprintln!("{heading}: skipped, since its compiler is large; `make test-all` runs it");
        return Ok(());
    }
    play(heading, tempfile::tempdir()?.path())
}

#[test]
fn the_tutorial_works_as_it_stands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    play("From nothing to a running policy", folder.path())
}

#[test]
fn javascript_works_as_it_stands() -> Result<()> {
    play_if_all("In JavaScript")
}

#[test]
fn python_works_as_it_stands() -> Result<()> {
    play_if_all("In Python")
}

#[test]
fn c_works_as_it_stands() -> Result<()> {
    play_if_all("In C")
}

#[test]
fn zig_works_as_it_stands() -> Result<()> {
    play_if_all("In Zig")
}
