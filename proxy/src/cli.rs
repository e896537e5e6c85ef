//! Arguments → command → exit code.

mod audit;
mod cache;
mod certs;
mod check;
mod cost;
mod engine;
mod model;
mod plugin;
mod state;

pub(crate) use certs::workstation;
pub(crate) use engine::host_and_port;
pub(crate) use model::pull;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::supervise::EXIT_CONFIG;
use crate::{config, connect, demo, doctor, serve, supervise, telemetry};

/// The AI egress point of a branch office: an mTLS gateway that decides for each request where a prompt may be answered.
#[derive(Debug, Parser)]
#[command(name = "postern", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: start the gateway and the engine, and start them again when they end.
    Run {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// The gateway process; `run` starts it.
    #[command(hide = true)]
    Gateway {
        #[arg(long)]
        config: PathBuf,
        /// Be offline, whatever the configuration says.
        #[arg(long)]
        offline: bool,
    },
    /// The language model server; `run` starts it, and with --listen it serves gateways on other machines.
    Engine(engine::EngineArguments),
    /// Is this configuration right? Binds no port and changes nothing.
    Check {
        /// The configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// What can the kernel of this machine enforce? Exits with 1 if something does not start here.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// About the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Certificates of the embedded authority.
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Write policies: begin, pack, check, try, measure and sign them.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Language models on this machine.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// What answers cost: a model of a month, and what was paid by the records.
    #[command(subcommand)]
    Cost(cost::CostCommand),
    /// The records of what happened: check them, prove one, read them.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// What a gateway keeps of a tenant.
    #[command(subcommand)]
    State(state::StateCommand),
    /// Fill the cache of a running gateway.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// On a workstation: let applications that speak the OpenAI API reach the gateway, sealed, at a loopback address.
    Connect(connect::ConnectArguments),
    /// A guided run of the real thing in a scratch folder.
    Demo(demo::DemoArguments),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of the configuration.
    Schema,
}

/// Runs what the arguments ask for.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start_logging();
    let serves_a_model = matches!(arguments.command, Command::Engine(_));
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            tell_error(&error);
            // A wrong configuration does not get better by itself: whoever supervises us need not try again.
            let wrong = error.is::<config::ConfigError>()
                || plugin::is_wrong(&error)
                || (serves_a_model && engine::is_wrong(&error));
            ExitCode::from(if wrong { EXIT_CONFIG } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config: path } => {
            let config = config::load(&path)?;
            for danger in check::dangers(&config) {
                tracing::warn!("{danger}");
            }
            // One thread: the kernel ties the life of the children to the thread that started them.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(supervise::run(&config, &path)).map(ExitCode::from)
        }
        Command::Gateway { config, offline } => Ok(match serve::run(&config, offline) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tell_error(&error);
                ExitCode::from(EXIT_CONFIG)
            }
        }),
        Command::Engine(arguments) => engine::run(arguments),
        Command::Check { config: path } => {
            check::run(&path)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor { json } => {
            let report = doctor::look();
            say(&if json { serde_json::to_string_pretty(&report)? } else { report.in_lines() });
            Ok(if report.good { ExitCode::SUCCESS } else { ExitCode::from(1) })
        }
        Command::Config(ConfigCommand::Schema) => {
            say(&serde_json::to_string_pretty(&schemars::schema_for!(config::file::File))?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Certs(command) => certs::run(command),
        Command::Plugin(command) => plugin::run(command),
        Command::Model(command) => model::run(command),
        Command::Cost(command) => {
            cost::run(&command)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Audit(command) => audit::run(command),
        Command::State(command) => state::run(&command),
        Command::Cache(command) => cache::run(command),
        Command::Connect(arguments) => connect::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
    }
}

/// The output that somebody asked for.
pub(crate) fn say(line: &str) {
    // Nobody may be reading any more, which is no reason to fail.
    let _unread = writeln!(std::io::stdout(), "{line}");
}

/// A note for the person at the terminal.
#[expect(clippy::print_stderr, reason = "standard output has what was asked for")]
fn warn(line: &str) {
    eprintln!("postern: {line}");
}

#[expect(clippy::print_stderr, reason = "the one message of a command that failed")]
fn tell_error(error: &anyhow::Error) {
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some say their cause themselves.
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    eprintln!("postern: {said}");
}
