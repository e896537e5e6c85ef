//! `postern plugin pack`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use postern_plugins::{MAX_COMPONENT_BYTES, Package};

use super::file;
use crate::cli::say;

#[derive(Debug, Args)]
pub(crate) struct Pack {
    /// What the compiler made: a core module or a component.
    #[arg(value_name = "FILE")]
    wasm: PathBuf,
    /// Name, version, interfaces, grants that are asked for, metrics, schema of the configuration (YAML).
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// For a core module that does not say it itself (C, Zig): the world it is made for, such as routing-policy.
    #[arg(long, value_name = "WORLD")]
    world: Option<String>,
    /// The policy.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(command: &Pack) -> anyhow::Result<ExitCode> {
    let wasm = file::read(&command.wasm, MAX_COMPONENT_BYTES)?;
    let manifest = file::read_text(&command.manifest)?;
    let named = || format!("{} with {}", command.wasm.display(), command.manifest.display());
    let packed = postern_plugins::pack(&wasm, &manifest, command.world.as_deref()).with_context(named)?;
    let package = Package::read(packed).with_context(named)?;
    file::replace(&command.out, package.bytes())?;
    let name = package.manifest().map(|manifest| manifest.name.as_str()).unwrap_or_default();
    let (version, digest, size) = (package.version(), package.short_digest(), package.bytes().len());
    say(&format!("{}: {name} {version}, {size} bytes, digest {digest}", command.out.display()));
    Ok(ExitCode::SUCCESS)
}
