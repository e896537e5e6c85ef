//! `postern certs`: the authority from the command line. It shares the folder, and its lock, with a running gateway, which
//! notices changes within a second.

mod root;
pub(crate) mod workstation;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use postern_certs::{Authority, LeafRequest, Revocation, Serial, SpiffeId};
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::say;
use crate::config::Config;
use crate::{config, tls};

/// How long an invite may be used, unless it is said otherwise; also the longest time.
const INVITE_TTL: &str = "600";
const WITHOUT_ENROL: &str = "`enrol` is not configured, so there is no address to use this token at: add `enrol: 0.0.0.0:8444` to the configuration and restart the gateway";
/// The longest passphrase or token that is read.
const MAX_SECRET: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum CertsCommand {
    /// Issue a client certificate, for an operator on this machine.
    Issue {
        #[command(flatten)]
        config: ConfigArgument,
        /// Whom it is for, such as spiffe://branch.example.org/clerk/amy; .../node/gpu-1 for an engine on another machine.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: SpiffeId,
        /// Where to write cert.pem, key.pem and ca.pem.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Print a token with which one workstation may enrol, once.
    Invite {
        #[command(flatten)]
        config: ConfigArgument,
        /// Whom it is for, such as spiffe://branch.example.org/clerk/amy; .../node/gpu-1 for an engine on another machine.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: SpiffeId,
        /// Seconds for which it may be used; ten minutes at most.
        #[arg(long, value_name = "SECONDS", default_value = INVITE_TTL)]
        ttl: u64,
    },
    /// On a workstation: make a key, and get a certificate for it with a token.
    Enrol(workstation::Enrol),
    /// On a workstation: replace certificate and key by new ones, if half of their life is over.
    Renew(workstation::Renew),
    /// Show the authority: roots, intermediates, revocation, time.
    Status {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Take certificates back. A running gateway closes their connections within seconds.
    Revoke {
        #[command(flatten)]
        config: ConfigArgument,
        /// Every certificate of this identity.
        #[arg(long, value_name = "SPIFFE-ID", required_unless_present = "serial", conflicts_with = "serial")]
        id: Option<SpiffeId>,
        /// One certificate, by its number.
        #[arg(long, value_name = "HEX")]
        serial: Option<Serial>,
    },
    /// Print what peers have to trust.
    Bundle {
        #[command(flatten)]
        config: ConfigArgument,
        /// PEM certificates, or a SPIFFE bundle document.
        #[arg(long, value_enum, default_value_t = Format::Pem)]
        format: Format,
    },
    /// Write keys and registers of the authority into one encrypted file.
    Backup {
        #[command(flatten)]
        config: ConfigArgument,
        /// The file to write; it must not be there.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Where the passphrase is; `-` is the standard input.
        #[arg(long, value_name = "FILE")]
        passphrase_file: PathBuf,
    },
    /// Put an authority back from a backup; none may be there.
    Restore {
        #[command(flatten)]
        config: ConfigArgument,
        /// What `backup` wrote.
        #[arg(long = "from", value_name = "FILE")]
        from: PathBuf,
        /// Where the passphrase is; `-` is the standard input.
        #[arg(long, value_name = "FILE")]
        passphrase_file: PathBuf,
    },
    /// Accept the present time after a wrong, later one was seen.
    ResetClock {
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// The root: switch to a new one, or keep it on another machine.
    #[command(subcommand)]
    Root(root::RootCommand),
}

#[derive(Debug, Args)]
pub(super) struct ConfigArgument {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Certificates in PEM.
    Pem,
    /// A SPIFFE bundle document (JSON Web Key Set).
    Spiffe,
}

impl ConfigArgument {
    fn load(&self) -> anyhow::Result<Config> {
        let config = config::load(&self.config)?;
        if config.issuer != config::trust::Issuer::Embedded {
            bail!("this configuration has no authority of its own: `trust.issuer` is not `embedded`");
        }
        Ok(config)
    }

    /// The one that is there; looking at it must not make one, in a folder that was perhaps mistyped.
    fn load_existing(&self) -> anyhow::Result<Config> {
        let config = self.load()?;
        let dir = config.authority_dir();
        if !Authority::is_in(&dir) {
            bail!(
                "there is no authority in {}: `postern run`, `certs issue` and `certs invite` make one",
                dir.display()
            );
        }
        Ok(config)
    }

    fn existing(&self) -> anyhow::Result<Authority> {
        Ok(tls::authority(&self.load_existing()?)?)
    }

    fn authority(&self) -> anyhow::Result<(Config, Authority)> {
        let config = self.load()?;
        let authority = tls::authority(&config)?;
        Ok((config, authority))
    }
}

pub(super) fn run(command: CertsCommand) -> anyhow::Result<ExitCode> {
    match command {
        CertsCommand::Issue { config, id, out } => issue(&config, &id, &out)?,
        CertsCommand::Invite { config, id, ttl } => {
            let (config, authority) = config.authority()?;
            let token = authority.invite(&id, Duration::from_secs(ttl))?;
            say(&token.to_string());
            note_unmatched(&config, &id);
            if config.enrol.is_none() {
                note(WITHOUT_ENROL);
            }
        }
        CertsCommand::Enrol(arguments) => workstation::enrol(&arguments)?,
        CertsCommand::Renew(arguments) => workstation::renew(&arguments)?,
        CertsCommand::Status { config } => {
            let authority = config.existing()?;
            say(&serde_json::to_string_pretty(&authority.status())?);
        }
        CertsCommand::Revoke { config, id, serial } => revoke(&config, id, serial)?,
        CertsCommand::Bundle { config, format } => {
            let authority = config.existing()?;
            match format {
                Format::Pem => say(authority.bundle_pem().trim_end()),
                Format::Spiffe => say(&authority.bundle_document()?),
            }
        }
        CertsCommand::Backup { config, out, passphrase_file } => {
            let config = config.load()?;
            let sealed = Authority::backup(&config.authority_dir(), &passphrase(&passphrase_file)?)?;
            write_new(&out, &sealed).with_context(|| format!("writing {}", out.display()))?;
            say(&format!("{}: the authority of {}, encrypted", out.display(), config.trust_domain));
        }
        CertsCommand::Restore { config, from, passphrase_file } => {
            let config = config.load()?;
            let sealed = std::fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
            let passphrase = passphrase(&passphrase_file)?;
            Authority::restore(&config.authority_dir(), &sealed, &passphrase)?;
            let authority = tls::authority(&config)?;
            say(&format!("the authority of {} is back", authority.trust_domain()));
        }
        CertsCommand::ResetClock { config } => {
            let config = config.load_existing()?;
            Authority::reset_clock(&config.authority_dir(), tls::authority_options(&config))?;
            say("the present time is accepted; restart the gateway if it runs");
        }
        CertsCommand::Root(command) => root::run(command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn issue(config: &ConfigArgument, id: &SpiffeId, out: &Path) -> anyhow::Result<()> {
    let (config, authority) = config.authority()?;
    let leaf = authority.issue(LeafRequest::below(authority.prefix(), id.clone()))?;
    workstation::write_gateway(out, authority.gateway_id())
        .and_then(|()| leaf.write(out, &authority.trust_bundle()))
        .with_context(|| format!("writing to {}", out.display()))?;
    let until = leaf.not_after.format(&Rfc3339)?;
    say(&format!("{}: cert.pem, key.pem and ca.pem for {id}, valid until {until}", out.display()));
    note_unmatched(&config, id);
    Ok(())
}

fn revoke(config: &ConfigArgument, id: Option<SpiffeId>, serial: Option<Serial>) -> anyhow::Result<()> {
    let config = config.load_existing()?;
    let what = match (id, serial) {
        (Some(id), _) => Revocation::Id(id),
        (None, Some(serial)) => Revocation::Serial(serial),
        (None, None) => bail!("say --id or --serial"),
    };
    let known = Authority::revoke_in(&config.authority_dir(), &tls::authority_options(&config), &what)?;
    for serial in &known {
        say(&format!("revoked {serial}"));
    }
    if known.is_empty() {
        say("no such certificate is known here; should there be one, it is refused from now on");
    }
    Ok(())
}

fn note_unmatched(config: &Config, id: &SpiffeId) {
    let role = config.operators.iter().filter(|(pattern, _)| pattern.matches(id)).map(|(_, role)| *role).max();
    match role {
        _ if is_expected(config, id) => {}
        Some(role) => {
            let role = format!("{role:?}").to_lowercase();
            note(&format!(
                "`operators` lets it use the admin address, as {role}; no rule under `identities` lets it ask anything"
            ));
        }
        None => note("no rule under `identities` matches this ID, so the gateway will refuse it"),
    }
}

/// Whether this gateway has a use for somebody of this name: as a client, a node, or a middlebox.
fn is_expected(config: &Config, id: &SpiffeId) -> bool {
    let is_client = config.identities.iter().any(|rule| rule.pattern.matches(id));
    let is_relay = config.payload.relays.iter().any(|relay| relay.matches(id));
    is_client || is_relay || id.is_node_below(&config.prefix)
}

/// Beside the output, which a script reads.
#[expect(clippy::print_stderr, reason = "a note for the person at the terminal")]
fn note(text: &str) {
    eprintln!("note: {text}");
}

/// The first line of a file that holds a secret; `-` is the standard input.
fn secret(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_SECRET).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
    };
    read.with_context(|| format!("reading {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(Zeroizing::new(line.to_owned()))
}

fn passphrase(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    secret(path).context("the passphrase")
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_nodes_and_middleboxes_are_expected() {
        let text = "{listen: '127.0.0.1:0', admin: '127.0.0.1:0', state_dir: s, trust: {domain: b.example}, identities: [{match: 'spiffe://b.example/clerk/*'}], payload: {relays: ['spiffe://b.example/relay/*']}}";
        let config = config::parse(text, Path::new("/nowhere/postern.yaml")).unwrap();
        let is_expected = |path: &str| is_expected(&config, &format!("spiffe://b.example/{path}").parse().unwrap());
        assert!(["clerk/amy", "node/gpu-1", "relay/box"].into_iter().all(is_expected));
        assert!(!["clerks/amy", "relays/box", "guest/x"].into_iter().any(is_expected));
    }
}
