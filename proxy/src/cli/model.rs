//! `postern model`.

mod fetch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use postern_engine::catalog::{self, HubModel, PullProgress};
use postern_engine::{DeviceChoice, EngineError};

use super::say;

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Fetch a model; does nothing if it is there already. What was broken off is gone on with.
    Pull {
        /// A name of `postern model list`, `hf:OWNER/REPOSITORY/FILE.gguf`, `hf:OWNER/REPOSITORY`, or a path.
        name: String,
    },
    /// The models that can be fetched by name, the ones of hubs that are here, and where.
    List,
    /// What a model's files say of themselves, and whether the engine can run it.
    Inspect {
        /// As for `pull`.
        name: String,
    },
    /// How fast a model is on this machine, without HTTP and sampling. Takes a minute or more.
    Bench {
        /// As for `pull`.
        name: String,
        /// Compute on the processor even if there is a GPU.
        #[arg(long)]
        cpu: bool,
    },
}

pub(super) fn run(command: ModelCommand) -> anyhow::Result<ExitCode> {
    match command {
        ModelCommand::Pull { name } => {
            let path = pull(&name)?;
            say(&format!("{name}: {}", path.display()));
            Ok(ExitCode::SUCCESS)
        }
        ModelCommand::List => {
            list(&catalog::default_cache());
            Ok(ExitCode::SUCCESS)
        }
        ModelCommand::Inspect { name } => inspect(&catalog::locate(&name)?),
        ModelCommand::Bench { name, cpu } => {
            let choice = if cpu { DeviceChoice::Cpu } else { DeviceChoice::Auto };
            postern_engine::measure(&catalog::locate(&name)?, choice, &mut |line| say(&line))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(cache: &Path) {
    for model in catalog::KNOWN {
        let place = match catalog::locate_in(model.name, cache) {
            Ok(path) => path.display().to_string(),
            Err(EngineError::Cut { .. }) => format!("damaged; `postern model pull {}` fetches it again", model.name),
            Err(error @ EngineError::Io { .. }) => error.to_string(),
            Err(_) => format!("not here; `postern model pull {}` fetches it", model.name),
        };
        let megabytes = model.bytes / 1_000_000;
        say(&format!("{}  {megabytes} MB  {}  ({})  {place}", model.name, model.license, model.purpose));
    }
    for (name, path) in catalog::hub_models(cache) {
        say(&format!("{name}  {}", path.display()));
    }
}

fn inspect(path: &Path) -> anyhow::Result<ExitCode> {
    let found = postern_engine::inspect(path)?;
    say(&format!("path: {}", path.display()));
    say(&format!("architecture: {}", found.architecture));
    if let Some(name) = &found.name {
        say(&format!("name: {name}"));
    }
    say(&format!("bytes: {}", found.bytes));
    say(&format!("parameters: {}", found.parameters));
    let types: Vec<String> = found.types.iter().map(|(kind, tensors)| format!("{kind} ({tensors})")).collect();
    say(&format!("weights: {}", types.join(", ")));
    for (key, number) in &found.numbers {
        say(&format!("{key}: {number}"));
    }
    if let Some(vocabulary) = found.vocabulary {
        say(&format!("vocabulary: {vocabulary}"));
    }
    say(&format!("chat template: {}", if found.has_chat_template { "yes" } else { "no" }));
    match found.refusal {
        None if found.architecture != "bert" && !found.has_chat_template => {
            say("the engine can compute it, but it has no chat template: it answers no chats");
            Ok(ExitCode::SUCCESS)
        }
        None => {
            say("the engine can run it");
            Ok(ExitCode::SUCCESS)
        }
        Some(refusal) => {
            say(&format!("the engine cannot run it: {refusal}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Fetches a model and shows how far it is.
pub(crate) fn pull(name: &str) -> anyhow::Result<PathBuf> {
    if catalog::known(name).is_none() && HubModel::parse(name).is_none() {
        // A path: it is here already, or it is wrong.
        return Ok(catalog::locate(name)?);
    }
    let bar = indicatif::ProgressBar::new_spinner().with_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    let path = match HubModel::parse(name) {
        Some(model) => fetch::fetch(&model, &catalog::default_cache(), &mut |line| bar.set_message(line))
            .with_context(|| format!("fetching the model {name}"))?,
        None => pull_known(name, &bar)?,
    };
    bar.finish_and_clear();
    Ok(path)
}

fn pull_known(name: &str, bar: &indicatif::ProgressBar) -> anyhow::Result<PathBuf> {
    catalog::pull(name, &mut |progress| match progress {
        PullProgress::Downloading { bytes, of_about } => {
            bar.set_message(format!("{name}: downloading {} of about {} MB", bytes / 1_000_000, of_about / 1_000_000));
        }
        PullProgress::Unpacking => bar.set_message(format!("{name}: unpacking")),
        PullProgress::Checking => bar.set_message(format!("{name}: checking size and SHA-256")),
    })
    .with_context(|| format!("fetching the model {name}"))
}
