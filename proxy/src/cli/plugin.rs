//! `postern plugin`: the workbench of those who write policies. It needs no gateway, no network and no configuration.

mod bench;
mod case;
mod check;
mod file;
mod keys;
mod load;
mod new;
mod pack;
mod replay;
mod run;
mod table;

use std::process::ExitCode;

use clap::Subcommand;
use postern_plugins::PluginError;
use thiserror::Error;

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// Begin a policy: a project that compiles at once.
    New(new::New),
    /// Make one file of what a compiler made and of a manifest.
    Pack(pack::Pack),
    /// What is this policy, what does it ask for, who signed it, and would it load here?
    Check(check::Check),
    /// Ask a policy about one request, and show what it says.
    Run(run::Run),
    /// Ask a policy about recorded requests, and show which decisions change.
    Replay(replay::Replay),
    /// Measure a policy: time, instructions, memory.
    Bench(bench::Bench),
    /// Make a pair of keys for signing.
    Keygen(keys::Keygen),
    /// Sign a policy.
    Sign(keys::Sign),
    /// Was this policy signed by one of these keys, and not changed since?
    Verify(keys::Verify),
}

/// Something that was named is wrong, and trying again is of no use.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Wrong(String);

impl Wrong {
    fn because(what: impl Into<String>) -> anyhow::Error {
        Self(what.into()).into()
    }
}

pub(super) fn run(command: PluginCommand) -> anyhow::Result<ExitCode> {
    match command {
        PluginCommand::New(command) => new::run(&command),
        PluginCommand::Pack(command) => pack::run(&command),
        PluginCommand::Check(command) => check::run(&command),
        PluginCommand::Run(command) => run::run(&command),
        PluginCommand::Replay(command) => replay::run(&command),
        PluginCommand::Bench(command) => bench::run(&command),
        PluginCommand::Keygen(command) => keys::keygen(&command),
        PluginCommand::Sign(command) => keys::sign(&command),
        PluginCommand::Verify(command) => keys::verify(&command),
    }
}

/// Is what was named at fault, rather than this machine?
pub(super) fn is_wrong(error: &anyhow::Error) -> bool {
    let plugin = error.downcast_ref::<PluginError>();
    error.is::<Wrong>() || plugin.is_some_and(|plugin| !matches!(plugin, PluginError::Sandbox(_)))
}
