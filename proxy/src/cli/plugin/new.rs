//! `postern plugin new`: the examples of this repository, as projects of their own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use postern_plugins::is_policy_name;

use super::{Wrong, file};
use crate::cli::say;

#[derive(Debug, Args)]
pub(crate) struct New {
    /// What to write it in.
    #[arg(long, value_enum)]
    lang: Language,
    /// The name of the policy: a–z, 0–9 and `-`, the first a letter. Its last part names the policy, if it is a path.
    #[arg(value_name = "NAME")]
    name: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    Js,
    Python,
    C,
    Zig,
}

/// What the examples are called.
const EXAMPLE_NAME: &str = "office-hours";
/// From an example to what it shares with others; in a project of its own that is inside.
const SHARED: &str = "../../";
const EXECUTABLE: &str = "build.sh";

/// A file of a project: where it is, and its text.
type Template = (&'static str, &'static str);

macro_rules! example {
    ($language:literal: $($file:literal),+ $(,)?) => {
        &[$(($file, include_str!(concat!("../../../../plugins/examples/", $language, "/", $file)))),+]
    };
}

macro_rules! shared {
    ($($file:literal),+ $(,)?) => {
        &[$(($file, include_str!(concat!("../../../../plugins/", $file)))),+]
    };
}

const WIT: &[Template] = shared!("wit/types.wit", "wit/imports.wit", "wit/exports.wit", "wit/worlds.wit");
const SDK: &[Template] = shared!("sdk/Cargo.toml", "sdk/src/lib.rs", "sdk/src/bindings.rs", "sdk/src/memory.rs");
const BINDINGS: &[Template] = shared!("bindings/policy.h", "bindings/policy.c", "bindings/memory.c");

impl Language {
    /// The example, and what it needs beside the interface.
    fn templates(self) -> [&'static [Template]; 2] {
        match self {
            Self::Rust => [
                example!("rust": ".gitignore", "Cargo.toml", "Cargo.lock", "build.sh", "manifest.yaml", "src/lib.rs"),
                SDK,
            ],
            Self::Js => [example!("js": ".gitignore", "build.sh", "manifest.yaml", "package.json", "policy.js"), &[]],
            Self::Python => {
                [example!("python": ".gitignore", "app.py", "build.sh", "manifest.yaml", "requirements.txt"), &[]]
            }
            Self::C => [example!("c": ".gitignore", "build.sh", "manifest.yaml", "policy.c"), BINDINGS],
            Self::Zig => [example!("zig": ".gitignore", "build.sh", "manifest.yaml", "policy.zig"), BINDINGS],
        }
    }
}

pub(super) fn run(command: &New) -> anyhow::Result<ExitCode> {
    let folder = &command.name;
    let name = folder.file_name().and_then(|name| name.to_str()).filter(|name| is_policy_name(name));
    let Some(name) = name else {
        let what = "is no name for a policy: 1 to 64 of a-z, 0-9 and `-`, the first a letter";
        return Err(Wrong::because(format!("{} {what}", folder.display())));
    };
    if folder.exists() {
        return Err(Wrong::because(format!("{} is there already; name another", folder.display())));
    }
    let [example, more] = command.lang.templates();
    for (path, text) in example {
        write(&folder.join(path), &text.replace(EXAMPLE_NAME, name).replace(SHARED, ""))?;
    }
    for (path, text) in WIT.iter().chain(more) {
        write(&folder.join(path), text)?;
    }
    say(&format!(
        "{}: a routing policy. `{}/{EXECUTABLE}` makes policy.wasm of it; `postern plugin check` says what that is",
        folder.display(),
        folder.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let mode = if path.ends_with(EXECUTABLE) { 0o755 } else { 0o644 };
    file::write_new(path, text.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lies in the folder of an example or a part, without what a build leaves there.
    fn files(folder: &Path, below: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder.join(below)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            if ["build", "node_modules", "policy.wasm", "generate.sh", "wit.sha256"].contains(&name.as_str()) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() { files(folder, &path, found) } else { found.push(path) }
        }
    }

    #[test]
    fn every_file_of_an_example_is_in_a_project() {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins");
        let all = |folder: &str, below: &str| {
            let mut found = Vec::new();
            files(&plugins.join(folder), below, &mut found);
            found.sort();
            found
        };
        let named = |templates: &[Template]| {
            let mut names: Vec<_> = templates.iter().map(|(name, _)| (*name).to_owned()).collect();
            names.sort();
            names
        };
        for language in Language::value_variants() {
            let folder = format!("examples/{}", language.to_possible_value().unwrap().get_name());
            assert_eq!(named(language.templates()[0]), all(&folder, ""), "{folder}");
        }
        assert_eq!(named(WIT), all("", "wit"));
        assert_eq!(named(SDK), all("", "sdk"));
        assert_eq!(named(BINDINGS), all("", "bindings"));
    }
}
