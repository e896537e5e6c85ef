//! The gateway process: takes the sockets that the supervisor bound, puts everything together, serves until SIGTERM.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::audit::Flushed;
use crate::config::{self, Config};
use crate::gateway::Gateway;
use crate::listener;
use crate::tls::Certificate;
use crate::upstream::local;

/// For requests under way when the gateway is asked to end; one connection may take 30 s.
const DRAIN_WITHIN: Duration = Duration::from_secs(33);
/// For the last records.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// The sockets that the supervisor passed on, in this order.
struct Inherited {
    gateway: std::net::TcpListener,
    admin: std::net::TcpListener,
    engine: UnixListener,
    probe: Option<std::net::TcpListener>,
}

/// `postern gateway`: serves until SIGTERM.
///
/// # Errors
/// Something that it needs is not to be had; the message says what.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    crate::supervise::die_with_parent(rustix::process::Signal::TERM)?;
    let config = config::load(config_path)?;
    let inherited = inherit().context("`postern gateway` is started by `postern run`, which passes its sockets on")?;
    let certificate = Arc::new(Certificate::new(&config).context("the certificates")?);
    let engine = local::Engine::new(config.timeouts.idle);
    let (gateway, flushed) = Gateway::new(config, engine.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(Arc::new(gateway), certificate, engine, inherited));
    // Dropping the runtime drops what is still running, and with it closes its books.
    runtime.shutdown_timeout(Duration::from_secs(1));
    flush(flushed);
    served
}

fn flush(flushed: Flushed) {
    if !flushed.wait(FLUSH_WITHIN) {
        tracing::warn!("the last records may not have been written");
    }
}

fn inherit() -> anyhow::Result<Inherited> {
    let mut fds = listenfd::ListenFd::from_env();
    let missing = || anyhow!("a socket is missing");
    let inherited = Inherited {
        gateway: fds.take_tcp_listener(0)?.ok_or_else(missing)?,
        admin: fds.take_tcp_listener(1)?.ok_or_else(missing)?,
        engine: fds.take_unix_listener(2)?.ok_or_else(missing)?,
        probe: if fds.len() > 3 { fds.take_tcp_listener(3)? } else { None },
    };
    for socket in [Some(&inherited.gateway), Some(&inherited.admin), inherited.probe.as_ref()].into_iter().flatten() {
        socket.set_nonblocking(true)?;
    }
    inherited.engine.set_nonblocking(true)?;
    Ok(inherited)
}

async fn serve(
    gateway: Arc<Gateway>,
    certificate: Arc<Certificate>,
    engine: Arc<local::Engine>,
    inherited: Inherited,
) -> anyhow::Result<()> {
    let metrics = gateway.metrics.clone();
    for (policy, failure) in gateway.policies.probe().await {
        let kind = failure.kind.name();
        tracing::warn!(policy, kind, detail = %failure.detail, "a policy failed when it was tried: while it does, every request is treated as its `on_failure` says");
    }
    tokio::spawn(engine.accept(tokio::net::UnixListener::from_std(inherited.engine)?, metrics.clone()));
    tokio::spawn(certificate.clone().renew(metrics));

    let pages = Admin { gateway: gateway.clone(), certificate: certificate.clone() };
    let admin_listener = TcpListener::from_std(inherited.admin)?;
    let mut ready =
        format!("postern ready gateway={} admin={}", inherited.gateway.local_addr()?, admin_listener.local_addr()?);
    let mut operators = vec![tokio::spawn(admin::serve(admin_listener, admin::admin(pages.clone())))];
    if let Some(probe) = inherited.probe {
        let probe = TcpListener::from_std(probe)?;
        ready += &format!(" probe={}", probe.local_addr()?);
        operators.push(tokio::spawn(admin::serve(probe, admin::probe(pages))));
    }

    let (drain, connections) = (CancellationToken::new(), TaskTracker::new());
    let listener = TcpListener::from_std(inherited.gateway)?;
    let serving =
        tokio::spawn(listener::serve(gateway.clone(), certificate, listener, drain.clone(), connections.clone()));
    announce(&ready, &gateway.config);

    signal(SignalKind::terminate())?.recv().await;
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
    Ok(())
}

/// The ready line, which scripts wait for.
fn announce(ready: &str, config: &Config) {
    // Whoever waited for the line may be gone by the time a gateway is started again.
    let _unread = writeln!(std::io::stdout(), "{ready}");
    let (targets, policies) = (config.targets.len(), config.policies.len());
    tracing::info!(targets, policies, engine = config.engine.is_some(), offline = config.offline, "serving");
}
