//! `postern engine`.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use clap::{Args, ValueEnum};
use postern_certs::SpiffeId;
use postern_engine::{DeviceChoice, Embedder, Engine, EngineError, EngineOptions, Progress, catalog};
use tokio::net::{TcpSocket, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::say;
use crate::config::units::Size;
use crate::confine::user::User;
use crate::confine::{self, Role, confine};
use crate::issuer::Files;
use crate::node::Node;
use crate::node::identity::Identity;
use crate::supervise::{self, pulse};
use crate::{config, egress};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

#[derive(Debug, Args)]
pub(super) struct EngineArguments {
    /// A name of `postern model list`, a GGUF file, or a folder with safetensors.
    #[arg(long)]
    model: String,
    #[command(flatten)]
    served: ServedArguments,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    device: Device,
    /// Sequences at a time.
    #[arg(long, default_value_t = 32)]
    max_batch_size: usize,
    /// How long an idle engine waits for more requests.
    #[arg(long, default_value_t = 50, value_name = "MS")]
    max_wait_ms: u64,
    /// Requests that may wait for a sequence.
    #[arg(long, default_value_t = 256)]
    max_queue: usize,
    /// Memory for keys and values: a number of bytes, or one with a unit, such as 256MiB.
    #[arg(long, default_value = "2GiB", value_name = "SIZE", value_parser = kv_bytes)]
    kv_bytes: usize,
    /// Keep keys and values in eight bits, not sixteen.
    #[arg(long)]
    kv_eight_bit: bool,
    /// How long a step of the model may take; an engine that needs longer hangs, and ends.
    #[arg(long, default_value_t = 120_000, value_name = "MS")]
    hung_after_ms: u64,
    /// End when the process that started this one ends, and tell it on standard output that this one does not hang.
    #[arg(long, hide = true)]
    supervised: bool,
    /// Be this user as soon as the gateway is dialled.
    #[arg(long, hide = true, requires = "connect")]
    user: Option<String>,
}

#[derive(Debug, Args)]
struct ServedArguments {
    /// The UNIX socket of a gateway on this machine.
    #[arg(long, value_name = "SOCKET", required_unless_present = "listen", conflicts_with = "listen")]
    connect: Option<PathBuf>,
    /// Serve gateways elsewhere, over TLS with client certificates, on this address, such as 0.0.0.0:8445.
    #[arg(long, value_name = "ADDRESS", requires = "identity", conflicts_with = "supervised")]
    listen: Option<SocketAddr>,
    /// With --listen: a folder that `postern certs enrol` or `certs issue` wrote for spiffe://DOMAIN/node/NAME. Its files are
    /// read again when they change.
    #[arg(long, value_name = "FOLDER", requires = "listen")]
    identity: Option<PathBuf>,
    /// With --listen: who may come in, as often as needed. If it is not given, the gateway that the folder names.
    #[arg(long, value_name = "SPIFFE-ID", requires = "listen")]
    allow: Vec<SpiffeId>,
    /// With --listen: a middlebox that breaks TLS open before this node, as often as needed. Over its connections comes what those have
    /// sealed and signed who may come in, and nothing of its own.
    #[arg(long, value_name = "SPIFFE-ID", requires = "listen")]
    relay: Vec<SpiffeId>,
    /// With --listen: the gateway's own address, such as ai.branch-17.example.org:8443, to renew the certificate there at half
    /// of its life. If it is not given, somebody else renews it.
    #[arg(long, value_name = "HOST:PORT", requires = "listen", value_parser = host_and_port)]
    gateway: Option<String>,
}

/// Reads `HOST:PORT`.
pub(crate) fn host_and_port(text: &str) -> Result<String, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    port.filter(|port| *port > 0 && !text.contains('/'))
        .map(|_| text.to_owned())
        .ok_or_else(|| "it has a host and a port, such as ai.example.org:8443".to_owned())
}

fn kv_bytes(text: &str) -> Result<usize, String> {
    let bytes = match text.parse::<u64>() {
        Ok(bytes) => bytes,
        Err(_) => text.parse::<Size>()?.0,
    };
    usize::try_from(bytes).map_err(|_| "it is more than there can be".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
}

/// What does not get better by itself: whoever supervises this process need not try again.
pub(super) fn is_wrong(error: &anyhow::Error) -> bool {
    let of_model = matches!(
        error.downcast_ref::<EngineError>(),
        Some(
            EngineError::Options(_)
                | EngineError::UnknownModel(_)
                | EngineError::NotPulled { .. }
                | EngineError::Cut { .. }
                | EngineError::Damaged { .. }
                | EngineError::Unsupported(_)
        )
    );
    of_model || error.is::<WrongIdentity>()
}

/// The folder of --identity is not that of a node; the message says why.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct WrongIdentity(anyhow::Error);

pub(super) fn run(arguments: EngineArguments) -> anyhow::Result<ExitCode> {
    let supervised = arguments.supervised;
    let ended = run_to_end(arguments);
    if let (true, Err(error)) = (supervised, &ended) {
        pulse::last_words(&error.to_string());
    }
    ended
}

fn run_to_end(arguments: EngineArguments) -> anyhow::Result<ExitCode> {
    // What is wrong with the model is said first; as another user, it has to be found by that one.
    let found = arguments.user.is_none().then(|| catalog::locate(&arguments.model)).transpose()?;
    let dialled = arguments.served.connect.as_deref().map(|socket| dial(socket, &arguments)).transpose()?;
    let file = found.map_or_else(|| catalog::locate(&arguments.model), Ok)?;
    let served = arguments.served;
    // What is wrong with certificates or the address is said before minutes are spent on the model.
    let opened = match (served.listen, &served.identity) {
        (Some(address), Some(dir)) => Some(Opened::new(address, dir, served.allow, served.relay)?),
        _ => None,
    };
    // Before the first thread is started.
    match (&dialled, &opened) {
        (Some(dialled), _) => {
            confine(Role::Engine, &confine::Files::of_model(&file), &[dialled.as_fd()])?;
        }
        (None, Some(opened)) if served.gateway.is_none() => {
            let mut files = confine::Files::of_model(&file);
            files.read.extend(served.identity.clone());
            confine(Role::Node, &files, &[opened.socket.as_fd()])?;
        }
        (None, Some(_)) => tracing::info!("not confined: with --gateway, this process renews its certificate there"),
        (None, None) => anyhow::bail!("say --connect or --listen"),
    }
    // Loading may take minutes, and no other thread of this process runs meanwhile.
    let loading = arguments.supervised.then(pulse::beat_from_a_thread).transpose()?;
    let mut options = EngineOptions::new(file, config::Engine::own_name(&arguments.model));
    options.device = if arguments.device == Device::Cpu { DeviceChoice::Cpu } else { DeviceChoice::Auto };
    options.max_batch_size = arguments.max_batch_size;
    options.max_wait = Duration::from_millis(arguments.max_wait_ms);
    options.max_queue = arguments.max_queue;
    options.kv_bytes = arguments.kv_bytes;
    options.kv_eight_bit = arguments.kv_eight_bit;
    options.hung_after = Duration::from_millis(arguments.hung_after_ms);
    let places = options.max_batch_size.saturating_add(options.max_queue);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let loaded = Loaded::load(&options)?;
    runtime.block_on(async {
        if arguments.supervised {
            tokio::spawn(pulse::beat());
        }
        drop(loading);
        let shutdown = CancellationToken::new();
        let ending = shutdown.clone();
        let mut term = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            term.recv().await;
            ending.cancel();
        });
        match (opened, dialled) {
            (Some(opened), _) => opened.serve(loaded, places, served.gateway, shutdown).await?,
            (None, Some(dialled)) => serve_gateway(loaded, UnixStream::from_std(dialled)?, shutdown).await?,
            (None, None) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The line to the gateway, the one connection of this process; then the user of its own, if it has one. Before anything is read
/// of the model.
fn dial(socket: &Path, arguments: &EngineArguments) -> anyhow::Result<std::os::unix::net::UnixStream> {
    let dialled = egress::dial_unix_at_once(socket)
        .with_context(|| format!("the gateway's socket {} cannot be dialled", socket.display()))?;
    if let Some(name) = &arguments.user {
        let user = User::named(name)?;
        user.become_it().with_context(|| format!("`engine.user`: this process may not become `{name}`"))?;
    }
    // Another user would make the kernel forget both.
    if arguments.supervised {
        supervise::die_with_parent(rustix::process::Signal::KILL)?;
    } else {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    }
    Ok(dialled)
}

async fn serve_gateway(loaded: Loaded, dialled: UnixStream, shutdown: CancellationToken) -> Result<(), EngineError> {
    let served = match loaded {
        Loaded::Chats(engine) => postern_engine::serve(engine, dialled, shutdown).await,
        Loaded::Vectors(embedder) => postern_engine::serve_embeddings(embedder, dialled, shutdown).await,
    };
    match served {
        // Not its own fault: the supervisor starts the next one, which dials the next gateway.
        Err(gone @ EngineError::GatewayGone) => {
            tracing::info!("{gone}");
            Ok(())
        }
        served => served,
    }
}

/// A node, before its model is loaded.
struct Opened {
    identity: Arc<Identity>,
    files: Files,
    socket: TcpSocket,
}

impl Opened {
    fn new(address: SocketAddr, dir: &Path, allow: Vec<SpiffeId>, relays: Vec<SpiffeId>) -> anyhow::Result<Self> {
        // Prompts are in the memory of this process, and belong in no core file.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        // On one thread, which is this one, and without sockets of its own for signals: the process may be confined yet.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (identity, files) = runtime.block_on(Identity::open(dir, allow, relays)).map_err(WrongIdentity)?;
        drop(runtime);
        // Bound, but not listening yet: until the model is there, the gateway is refused at once and asks another target.
        let bind = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = bind().with_context(|| format!("the address {address} of --listen"))?;
        Ok(Self { identity: Arc::new(identity), files, socket })
    }

    async fn serve(
        self,
        loaded: Loaded,
        places: usize,
        gateway: Option<String>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let listener = self.socket.listen(BACKLOG)?;
        // The line that scripts wait for.
        say(&format!("postern ready engine={}", listener.local_addr()?));
        let allowed = self.identity.allowed().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        tracing::info!(id = %self.identity.own(), allowed, "serving");
        let keeping = tokio::spawn(self.identity.clone().keep(self.files, gateway));
        let node = Node::new(self.identity, loaded.router(), places);
        let served = tokio::select! {
            () = node.serve(listener, shutdown) => Ok(()),
            () = loaded.stopped() => Err(EngineError::Stopped.into()),
        };
        keeping.abort();
        served
    }
}

/// A model that is ready.
enum Loaded {
    /// It answers chats.
    Chats(Arc<Engine>),
    /// It makes vectors of texts.
    Vectors(Arc<Embedder>),
}

impl Loaded {
    fn router(&self) -> Router {
        match self {
            Self::Chats(engine) => postern_engine::router(engine),
            Self::Vectors(embedder) => postern_engine::embeddings_router(embedder),
        }
    }

    /// Resolves when it can answer nothing any more.
    async fn stopped(&self) {
        match self {
            Self::Chats(engine) => postern_engine::stopped(engine).await,
            Self::Vectors(_) => std::future::pending().await,
        }
    }

    fn load(options: &EngineOptions) -> Result<Self, EngineError> {
        if postern_engine::makes_embeddings(&options.model)? {
            let embedder = Embedder::load(&options.model, &options.name, options.device)?;
            return Ok(Self::Vectors(Arc::new(embedder)));
        }
        let mut told = 0;
        let engine = Engine::load(options, &mut |progress| match progress {
            Progress::Weights(share) => {
                let quarter = (share * 4.0) as u32;
                if quarter > told {
                    told = quarter;
                    tracing::info!("loading the model: {} %", quarter * 25);
                }
            }
            Progress::WarmUp => tracing::info!("loading the model: first computation"),
        })?;
        Ok(Self::Chats(Arc::new(engine)))
    }
}

#[cfg(test)]
mod tests {
    use super::{host_and_port, kv_bytes};

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["ai.example.org:8443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        for wrong in ["ai.example.org", "ai.example.org:", ":8443", "ai.example.org:0", "ai.example.org:65536", ""] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_said_as_in_the_configuration_or_in_bytes() {
        assert_eq!((kv_bytes("1024"), kv_bytes("256MiB"), kv_bytes("2GiB")), (Ok(1024), Ok(256 << 20), Ok(2 << 30)));
        for wrong in ["", "MiB", "256MB", "-1", "1.5GiB", "99999999999GiB"] {
            assert!(kv_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
