//! The gateway process: takes the sockets that the supervisor bound, puts everything together, serves until SIGTERM.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use nix::sys::signal::SigSet;
use postern_certs::Trust;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::audit::{Action, Flushed, RecordId};
use crate::cache;
use crate::config::trust::Issuer;
use crate::config::{self, Config};
use crate::confine::{Confined, Files, Role, confine};
use crate::connection::Front;
use crate::enrol::{self, Registrar};
use crate::erase;
use crate::gateway::Gateway;
use crate::listener;
use crate::supervise::Control;
use crate::tls::Certificate;
use crate::upstream::local;
use crate::workers::{Crew, Workers};

/// For requests under way when the gateway is asked to end; one connection may take 30 s.
const DRAIN_WITHIN: Duration = Duration::from_secs(33);
/// For the last records.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The sockets that the supervisor passed on, in this order.
struct Inherited {
    gateway: std::net::TcpListener,
    admin: std::net::TcpListener,
    engine: UnixListener,
    control: UnixDatagram,
    probe: Option<std::net::TcpListener>,
    enrol: Option<std::net::TcpListener>,
    encoder: Option<UnixListener>,
}

/// `postern gateway`: serves until SIGTERM.
///
/// # Errors
/// Something that it needs is not to be had; the message says what.
pub fn run(config_path: &Path, offline: bool) -> anyhow::Result<()> {
    crate::supervise::die_with_parent(rustix::process::Signal::TERM)?;
    // Before anything that takes time: a hangup that nobody listens for would end this process. It waits until somebody does.
    let mut hangups = SigSet::empty();
    hangups.add(nix::sys::signal::Signal::SIGHUP);
    hangups.thread_block()?;
    let mut config = config::load(config_path)?;
    config.offline |= offline;
    let inherited =
        inherit(&config).context("`postern gateway` is started by `postern run`, which passes its sockets on")?;
    // Before the first thread is started.
    let confined = config.offline.then(|| inherited.confine(&reach(config_path, &config))).transpose()?;
    // What was used to compile policies, or when there was much to do, goes back to the system, also if nothing is asked any more.
    let _kept_a_while = tikv_jemalloc_ctl::background_thread::write(true);
    // What goes on beside requests; those are served by workers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let workers = Workers::start()?;
    let hangup = runtime.block_on(async { signal(SignalKind::hangup()) })?;
    hangups.thread_unblock()?;
    let engine = local::Engine::new(config.timeouts.idle);
    let certificate = Arc::new(runtime.block_on(Certificate::open(&config)).context("the certificates")?);
    let (mut gateway, flushed) = Gateway::new(config_path, config, engine.clone(), &certificate)?;
    gateway.metrics.offline(confined.is_some());
    gateway.confined = confined;
    let served = runtime.block_on(serve(Arc::new(gateway), (certificate, engine), inherited, hangup, workers.crew()));
    // Dropping the runtime drops what is still running, and with it closes its books.
    workers.end(Duration::from_secs(1));
    runtime.shutdown_timeout(Duration::from_secs(1));
    flush(flushed);
    served
}

/// What an offline gateway reads and writes. A policy that a reload adds must be in one of these folders.
fn reach(config_path: &Path, config: &Config) -> Files {
    let part = &config.policy_part;
    let mut write = vec![config.state_dir.clone(), config.audit.dir.clone(), config.compiled_dir.clone()];
    write.extend((!config.audit.copies.is_empty()).then(|| config::audit::copies_dir(&config.audit.dir)));
    write.extend(part.record.iter().filter_map(|record| Some(record.file.parent()?.to_owned())));
    for folder in &write {
        // What cannot be made is said by whoever needs it.
        let _made = std::fs::create_dir_all(folder);
    }
    let issuer = match &config.issuer {
        Issuer::Files(paths) => [&paths.cert, &paths.key, &paths.ca].into_iter().chain(&paths.crl).cloned().collect(),
        Issuer::Embedded | Issuer::Spiffe { .. } => Vec::new(),
    };
    let warm = config.cache.iter().filter_map(|cache| cache.warm.clone());
    let key = config.replicas.iter().filter_map(|replicas| replicas.key.as_ref()?.file().map(Path::to_owned));
    let named = part.policies.iter().map(|policy| policy.component.clone());
    let keys = part.keys.iter().map(|key| key.path.clone());
    let builtin = [config::builtin_component("routing")];
    let read = named.chain(keys).chain(builtin).chain(warm).chain(key).chain(issuer);
    Files { read: Files::beside(read.chain([config_path.to_owned()])), write, devices: Vec::new() }
}

fn flush(flushed: Flushed) {
    if !flushed.wait(FLUSH_WITHIN) {
        tracing::warn!("the last records may not have been written");
    }
}

impl Inherited {
    /// Lets the kernel confine this process to these sockets, and to who comes in on them.
    fn confine(&self, files: &Files) -> anyhow::Result<Confined> {
        let tcp = [&self.gateway, &self.admin].into_iter().chain([&self.probe, &self.enrol].into_iter().flatten());
        let unix = [&self.engine].into_iter().chain(&self.encoder).map(|socket| socket.as_fd());
        let sockets: Vec<_> = tcp.map(|socket| socket.as_fd()).chain(unix).chain([self.control.as_fd()]).collect();
        let confined = confine(Role::Gateway, files, &sockets);
        confined.context("this gateway is to be offline, and cannot be confined, so it does not start")
    }
}

fn inherit(config: &Config) -> anyhow::Result<Inherited> {
    let mut fds = listenfd::ListenFd::from_env();
    let missing = || anyhow!("a socket is missing");
    let inherited = Inherited {
        gateway: fds.take_tcp_listener(0)?.ok_or_else(missing)?,
        admin: fds.take_tcp_listener(1)?.ok_or_else(missing)?,
        engine: fds.take_unix_listener(2)?.ok_or_else(missing)?,
        control: fds.take_unix_datagram(3)?.ok_or_else(missing)?,
        probe: config.probe.map(|_| fds.take_tcp_listener(4)?.ok_or_else(missing)).transpose()?,
        enrol: config
            .enrol
            .map(|_| fds.take_tcp_listener(if config.probe.is_some() { 5 } else { 4 })?.ok_or_else(missing))
            .transpose()?,
        encoder: config
            .semantic
            .as_ref()
            .map(|_| {
                let others = usize::from(config.probe.is_some()) + usize::from(config.enrol.is_some());
                fds.take_unix_listener(4 + others)?.ok_or_else(missing)
            })
            .transpose()?,
    };
    let optional = [&inherited.probe, &inherited.enrol].into_iter().flatten();
    for socket in [&inherited.gateway, &inherited.admin].into_iter().chain(optional) {
        socket.set_nonblocking(true)?;
    }
    for socket in [&inherited.engine].into_iter().chain(&inherited.encoder) {
        socket.set_nonblocking(true)?;
    }
    Ok(inherited)
}

/// What is trusted may be changed on the command line as well as here; each change is on record.
async fn record_trust(gateway: Arc<Gateway>, mut trust: watch::Receiver<Arc<Trust>>) {
    while trust.changed().await.is_ok() {
        let action = Action { by: "authority".into(), action: "trust", subject: None, result: "done" };
        if gateway.audit.action(RecordId::new(), &action).await.is_err() {
            tracing::error!("a change of trust could not be recorded");
        }
    }
}

async fn serve(
    gateway: Arc<Gateway>,
    (certificate, engine): (Arc<Certificate>, Arc<local::Engine>),
    inherited: Inherited,
    hangup: Signal,
    workers: Arc<Crew>,
) -> anyhow::Result<()> {
    let metrics = gateway.metrics.clone();
    gateway.live.try_all().await;
    tokio::spawn(gateway.live.clone().keep(gateway.clone(), hangup));
    tokio::spawn(record_trust(gateway.clone(), certificate.trust()));
    tokio::spawn(erase::keep_up(gateway.clone()));
    keep_up(&gateway);
    engine.controlled_by(Control::new(inherited.control)?);
    tokio::spawn(engine.accept(tokio::net::UnixListener::from_std(inherited.engine)?, metrics.clone()));
    if let (Some(semantic), Some(socket)) = (&gateway.semantic, inherited.encoder) {
        let socket = tokio::net::UnixListener::from_std(socket)?;
        tokio::spawn(semantic.encoder().clone().accept(socket, metrics.clone()));
    }
    tokio::spawn(certificate.clone().keep(metrics.clone()));
    let (drain, connections) = (CancellationToken::new(), TaskTracker::new());
    // Before anybody is let in, or reads that it is ready and ends it at once: from here on it closes its books. A start that hangs is
    // ended without.
    let mut terminate = signal(SignalKind::terminate())?;

    let pages = Admin { gateway: gateway.clone(), certificate: certificate.clone(), pace: Arc::default() };
    let admin_listener = TcpListener::from_std(inherited.admin)?;
    let mut ready =
        format!("postern ready gateway={} admin={}", inherited.gateway.local_addr()?, admin_listener.local_addr()?);
    let routes = admin::admin(pages.clone());
    let mut operators = vec![if admin_listener.local_addr()?.ip().is_loopback() {
        tokio::spawn(admin::serve(admin_listener, routes))
    } else {
        tokio::spawn(admin::serve_tls(admin_listener, pages.clone(), routes, drain.clone()))
    }];
    if let Some(probe) = inherited.probe {
        let probe = TcpListener::from_std(probe)?;
        ready += &format!(" probe={}", probe.local_addr()?);
        operators.push(tokio::spawn(admin::serve(probe, admin::probe(pages))));
    }

    let registrar = Arc::new(Registrar::new(certificate.clone(), metrics));
    if let Some(enrol) = inherited.enrol {
        let enrol = TcpListener::from_std(enrol)?;
        ready += &format!(" enrol={}", enrol.local_addr()?);
        tokio::spawn(enrol::serve(registrar.clone(), enrol, drain.clone()));
    }
    let listener = TcpListener::from_std(inherited.gateway)?;
    let front = Arc::new(Front { gateway: gateway.clone(), registrar });
    let serving = listener::serve(front, certificate, listener, drain.clone(), (connections.clone(), workers));
    let serving = tokio::spawn(serving);
    announce(&ready, &gateway);

    let warming = tokio::spawn(cache::warm::at_start(gateway.clone()));

    terminate.recv().await;
    warming.abort();
    drain.cancel();
    // The supervisor was killed, and the next one wants these addresses now, not when the last request has ended.
    if crate::supervise::is_orphan() {
        operators.iter().for_each(tokio::task::JoinHandle::abort);
    }
    let _stopped = serving.await;
    connections.close();
    if tokio::time::timeout(DRAIN_WITHIN, connections.wait()).await.is_err() {
        tracing::warn!("some connections were cut: they had not ended in time");
    }
    gateway.admission.books().settled().await;
    gateway.kept.keep(gateway.admission.books());
    Ok(())
}

/// Starts what goes on beside requests.
fn keep_up(gateway: &Arc<Gateway>) {
    // None of these goes on once the gateway goes offline: its successor has no way to them.
    let offline = gateway.dispatcher.offline().clone();
    let (watching, until) = (gateway.clone(), offline.clone());
    tokio::spawn(async move { until.run_until_cancelled(watching.dispatcher.watch()).await });
    let keeping = gateway.clone();
    tokio::spawn(async move { keeping.kept.keep_up(keeping.admission.books()).await });
    let (counting, until) = (gateway.clone(), offline.clone());
    tokio::spawn(async move {
        if let Some(together) = &counting.together {
            until.run_until_cancelled(together.keep_up(counting.admission.books())).await;
        }
    });
    let (remembering, until) = (gateway.clone(), offline.clone());
    tokio::spawn(async move { until.run_until_cancelled(remembering.classifier.keep_up()).await });
    for number in 0..gateway.witnesses.len() {
        let (showing, until) = (gateway.clone(), offline.clone());
        tokio::spawn(async move {
            if let Some(witness) = showing.witnesses.get(number) {
                until.run_until_cancelled(witness.keep_up(&showing.audit, &showing.metrics)).await;
            }
        });
    }
    let (listing, until) = (gateway.clone(), offline.clone());
    tokio::spawn(async move { listing.roster.keep_up(&listing.audit, &until).await });
    let (copying, until) = (gateway.clone(), offline.clone());
    tokio::spawn(async move {
        if let Some(copier) = &copying.copier {
            until.run_until_cancelled(copier.keep_up(&copying.audit, &copying.metrics)).await;
        }
    });
    let sealing = gateway.clone();
    tokio::spawn(async move { sealing.payload_keys.keep_up().await });
    if let Some(cache) = gateway.cache.clone() {
        tokio::spawn(async move {
            if let Some(redis) = &cache.redis {
                offline.run_until_cancelled(redis.keep_up()).await;
            }
        });
    }
}

/// The ready line, which scripts wait for.
fn announce(ready: &str, gateway: &Gateway) {
    // Whoever waited for the line may be gone by the time a gateway is started again.
    let _unread = writeln!(std::io::stdout(), "{ready}");
    let config = &gateway.config;
    let (targets, policies) = (config.targets.len(), gateway.live.policies().all().len());
    tracing::info!(targets, policies, engine = config.engine.is_some(), offline = config.offline, "serving");
}
