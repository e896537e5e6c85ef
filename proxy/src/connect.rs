//! `postern connect`: the workstation's half of sealed payloads, for applications that know nothing of them.
//!
//! An application speaks plain HTTP with a loopback address ([`front`]). Each request is sealed for the gateway and signed with the
//! workstation's key ([`sealing`], [`keys`]), and goes over one connection with mutual TLS ([`link`]). The certificate is kept fresh
//! by [`identity`]. What can go wrong is told in the error of the OpenAI API ([`refusal`]).

pub(crate) mod front;
pub(crate) mod identity;
pub(crate) mod keys;
pub(crate) mod link;
pub(crate) mod refusal;
pub(crate) mod sealing;
mod status;
pub(crate) mod token;

use std::fs::{DirBuilder, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use postern_certs::{Clock as _, SystemClock, rfc3339};
use rustix::fs::{FlockOperation, Mode, flock};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::front::Front;
use self::identity::Identity;
use self::link::Link;
use self::status::{Place, StatusArguments};
use self::token::Token;
use crate::cli::{host_and_port, say, workstation};
use crate::egress;

/// For answers under way when it is asked to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// One connector for a folder.
const LOCK_FILE: &str = "connect.lock";

/// Arguments of `postern connect`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ConnectArguments {
    #[command(subcommand)]
    command: Option<ConnectCommand>,
    #[command(flatten)]
    start: Option<StartArguments>,
}

#[derive(Debug, Subcommand)]
enum ConnectCommand {
    /// How a running connector is.
    Status(StatusArguments),
}

#[derive(Debug, Args)]
struct StartArguments {
    /// The gateway's own address, such as ai.branch-17.example.org:8443.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    gateway: String,
    /// The folder with cert.pem, key.pem and ca.pem, as `postern certs enrol` writes it. Also for the connector's token.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Where applications connect, on this machine.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4141", value_parser = loopback)]
    listen: SocketAddr,
    /// Serve on this UNIX socket too, for this user only and without a token.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Ask applications for no token. Every user of this machine can ask in your name then.
    #[arg(long)]
    no_token: bool,
    /// If the folder has no certificate, or one that has ended: the token that `postern certs invite` printed; `-` is the standard input.
    #[arg(long, value_name = "FILE", requires = "enrol")]
    token_file: Option<PathBuf>,
    /// With --token-file: the gateway's `enrol` address, such as ai.branch-17.example.org:8444.
    #[arg(long, value_name = "HOST:PORT", requires = "token_file", value_parser = host_and_port)]
    enrol: Option<String>,
    /// The authority (PEM) of a middlebox of this network that breaks TLS open. Payloads stay sealed for the gateway.
    #[arg(long, value_name = "FILE")]
    middlebox_ca: Option<PathBuf>,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "it is an address and a port, such as 127.0.0.1:4141".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("it has to be a loopback address, such as 127.0.0.1: from another machine anybody could ask in your name"
        .to_owned())
}

/// Runs what the arguments ask for.
///
/// # Errors
/// Something that it needs is not to be had; the message says what.
pub fn run(arguments: ConnectArguments) -> anyhow::Result<ExitCode> {
    match (arguments.command, arguments.start) {
        (Some(ConnectCommand::Status(arguments)), _) => status::run(&arguments),
        (None, Some(arguments)) => start(arguments),
        (None, None) => bail!("say --gateway and --dir"),
    }
}

fn start(arguments: StartArguments) -> anyhow::Result<ExitCode> {
    // Prompts are in the memory of this process, and belong in no core file.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let dir = arguments.dir.as_path();
    let middlebox = arguments.middlebox_ca.as_deref().map(egress::authority).transpose().map_err(anyhow::Error::msg)?;
    let invite = invite(&arguments)?;
    let _one_at_a_time = lock(dir)?;
    if let Some((token_file, gateway)) = invite {
        match workstation::enrol_in(dir, gateway, token_file).context("enrolling") {
            Ok(leaf) => tracing::info!(id = %leaf.id, until = rfc3339(leaf.not_after), "enrolled"),
            // With a certificate that has ended, applications can at least be told so.
            Err(error) if dir.join("cert.pem").exists() => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the certificate has ended, and the invite could not be used"
                );
            }
            Err(error) => return Err(error),
        }
    }
    let identity = Arc::new(Identity::open(dir, middlebox.map(Arc::new))?);
    let token = if arguments.no_token { None } else { Some(Token::open(dir)?) };
    let link = Arc::new(Link::new(arguments.gateway.clone(), identity.clone()).context("--gateway")?);
    let front = Arc::new(Front::new(link, identity, token));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(front, &arguments));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map(|()| ExitCode::SUCCESS)
}

/// Where a workstation that has no certificate gets one; `None`: it has one. Makes the folder.
fn invite(arguments: &StartArguments) -> anyhow::Result<Option<(&Path, &str)>> {
    let dir = arguments.dir.as_path();
    if dir.join("cert.pem").exists() || dir.join("renewal.pem").exists() {
        let (Some(token_file), Some(gateway)) = (&arguments.token_file, &arguments.enrol) else { return Ok(None) };
        // An invite for a folder whose certificate has ended is meant to be used; where it has not, it is kept.
        match workstation::read_leaf(dir) {
            Ok(leaf) if leaf.not_after <= SystemClock.now() => return Ok(Some((token_file, gateway))),
            Ok(leaf) => {
                tracing::warn!(
                    until = rfc3339(leaf.not_after),
                    "there is a certificate, so the token of --token-file was not used"
                )
            }
            Err(_) => tracing::warn!("there is a certificate, so the token of --token-file was not used"),
        }
        return Ok(None);
    }
    let (Some(token_file), Some(gateway)) = (&arguments.token_file, &arguments.enrol) else {
        bail!(
            "{} holds no certificate: ask the operator for an invite, and say --token-file FILE --enrol HOST:PORT, or run `postern certs enrol` first",
            dir.display()
        );
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("making {}", dir.display()))?;
    Ok(Some((token_file, gateway)))
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!("another `postern connect` is running with {}", dir.display()),
        Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// Whether a connector runs with this folder.
fn is_locked(dir: &Path) -> anyhow::Result<bool> {
    match File::open(dir.join(LOCK_FILE)) {
        Ok(file) => Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| dir.join(LOCK_FILE).display().to_string()),
    }
}

async fn serve(front: Arc<Front>, arguments: &StartArguments) -> anyhow::Result<()> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // What could be read again is read every second; without somebody who listens it would end this process.
    let _hangup = signal(SignalKind::hangup())?;
    let listener = TcpListener::bind(arguments.listen).await;
    let listener = listener.map_err(|error| {
        let at = arguments.listen;
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                anyhow!("the address {at} is in use, by another connector perhaps: choose another with --listen")
            }
            _ => anyhow::Error::new(error).context(format!("the address {at} of --listen")),
        }
    })?;
    let socket = match &arguments.socket {
        Some(path) => Some(bind(path).await.with_context(|| format!("the socket {}", path.display()))?),
        None => None,
    };
    let url = format!("http://{}/v1", listener.local_addr()?);
    let place = Place {
        url: url.clone(),
        socket: arguments.socket.as_ref().map(|path| path.display().to_string()),
        pid: std::process::id(),
    };
    if let Err(error) = place.write(&arguments.dir) {
        tracing::warn!(%error, "where it serves cannot be noted, so `postern connect status` does not find it");
    }
    let keeping =
        [tokio::spawn(front.link.clone().keep()), tokio::spawn(front.identity.clone().keep(front.link.clone()))];
    announce(&front, &place, arguments);

    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let tcp = front.clone().serve(&listener, drain.clone(), tasks.clone());
    let unix = async {
        if let Some(socket) = &socket {
            front.clone().serve(socket, drain.clone(), tasks.clone()).await;
        }
    };
    let asked_to_end = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        drain.cancel();
    };
    tokio::join!(tcp, unix, asked_to_end);
    // Whoever comes now is refused, and `status` says that nothing runs.
    drop((listener, socket));
    Place::remove(&arguments.dir);
    if let Some(path) = &arguments.socket {
        let _gone_already = std::fs::remove_file(path);
    }
    tasks.close();
    if tokio::time::timeout(DRAIN_WITHIN, tasks.wait()).await.is_err() {
        tracing::warn!("answers were cut off, since the time to end is over");
    }
    keeping.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// The ready line, which scripts wait for.
fn announce(front: &Front, place: &Place, arguments: &StartArguments) {
    let socket = place.socket.as_ref().map(|path| format!(" socket={path}")).unwrap_or_default();
    say(&format!("postern connect ready url={} identity={}{socket}", place.url, front.identity.own()));
    let token = if arguments.no_token { None } else { Some(Token::place(&arguments.dir).display().to_string()) };
    tracing::info!(gateway = %front.identity.gateway(), address = arguments.gateway, token_file = token, "serving");
}

/// A socket that only this user can open. One that nobody serves any more is replaced, and nothing else is.
async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => {
            ensure!(found.file_type().is_socket(), "something else is there");
            ensure!(egress::dial_unix(path).await.is_err(), "somebody serves there already");
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // From the beginning: changed afterwards, there would be a moment for others.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    Ok(bound?)
}

#[cfg(test)]
mod tests;
