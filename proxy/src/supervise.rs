//! The supervisor: binds the listeners, starts gateway and engine, and starts them again when they end. It opens no
//! connection and reads no key, so that the gateway never needs to execute anything.

mod control;
mod engines;
pub(crate) mod folder;
pub mod pulse;
mod sockets;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use command_fds::{CommandFdExt as _, FdMapping};
use postern_engine::Serves;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, file::Device, file::KvFormat};
use crate::confine;
use crate::workers;
use control::Requests;
use control::Told;
pub use control::{Control, ControlError};
use engines::Engines;
use pulse::Pulse;
pub use sockets::MAX_SOCKET_PATH;
use sockets::Sockets;

/// The first descriptor that is passed on (`sd_listen_fds(3)`).
const FIRST_FD: i32 = 3;
/// The variable that names the supervisor's process to its children.
const SUPERVISOR: &str = "POSTERN_SUPERVISOR";
/// The variable that the allocator of a gateway reads when it starts. It is told to give memory back to the kernel 0.1 s after its
/// last use, in place of 10 s, to have a pool of it for each processor, in place of four, and to look at what its threads hold for
/// their next use every 512 KiB that they take, in place of 64.
const ALLOCATOR: &str = "_RJEM_MALLOC_CONF";
/// A child that lived this long was well; its next failure is its first again.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// Between two starts: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// For one that takes the place of another; not none, since it is not the first.
const AT_ONCE: Duration = Duration::from_millis(1);
/// For the gateway to let its requests end, and for the engine after it.
const GATEWAY_WITHIN: Duration = Duration::from_secs(40);
const ENGINE_WITHIN: Duration = Duration::from_secs(5);
/// For vectors of questions, which are short: more threads would wait for each other.
const ENCODER_THREADS: usize = 2;
/// An encoder that says nothing for so long hangs.
const ENCODER_HUNG_AFTER: Duration = Duration::from_secs(60);
/// What is set up wrong does not get better by itself (`EX_CONFIG` of sysexits.h): a gateway that ends with this code at
/// its first start is not started again.
pub const EXIT_CONFIG: u8 = 78;

/// `postern run`: serves until SIGTERM or SIGINT. Returns the exit code.
///
/// # Errors
/// A port, a folder or a program is not to be had.
pub async fn run(config: &Config, config_path: &Path) -> anyhow::Result<u8> {
    let _only_one = folder::take(&config.state_dir)?;
    let sockets = Sockets::bind(config).await?;
    let config_path = std::path::absolute(config_path)?;

    check_user(config)?;
    // Once it is true, no gateway of this supervisor is started that is not confined, whatever the configuration says by then.
    let offline = Cell::new(config.offline);
    let mut gateway = Service::new("gateway", || gateway_command(&config_path, &sockets, offline.get()));
    let mut encoder = encoder(config);
    let requests = Rc::new(Requests::new(sockets.control.0.try_clone()?)?);
    let mut engines = Engines::new(config, requests.clone());
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            ended = gateway.step() => {
                if let Some(code) = ended? {
                    return Ok(code);
                }
            }
            told = requests.next() => match told? {
                Told::Offline if offline.replace(true) => {}
                Told::Offline => {
                    tracing::warn!("going offline: the gateway ends, and its successor is confined by the kernel");
                    gateway.end_soon(GATEWAY_WITHIN);
                }
                Told::Swap { id, model } => match &mut engines {
                    Some(engines) => engines.swap(id, &model),
                    None => requests.answer(id, Some("no engine is configured".to_owned())),
                },
                Told::Connected { pid } => engines.iter_mut().for_each(|engines| engines.connected(pid)),
            },
            stepped = async { match &mut engines {
                Some(engines) => engines.step().await,
                None => std::future::pending().await,
            } } => stepped?,
            stepped = async { match &mut encoder {
                Some(encoder) => encoder.step().await,
                None => std::future::pending().await,
            } } => { stepped?; }
            // The policies are the gateway's: it reads the configuration anew and says what it makes of it.
            _ = hangup.recv() => gateway.tell(Signal::HUP),
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ending: requests under way may finish");
    let code = gateway.end(GATEWAY_WITHIN).await;
    if let Some(engines) = &mut engines {
        engines.end().await;
    }
    if let Some(encoder) = &mut encoder {
        encoder.end(ENGINE_WITHIN).await;
    }
    Ok(code)
}

/// Only root may start a process that is somebody else, and then there must be that user.
fn check_user(config: &Config) -> anyhow::Result<()> {
    let Some(name) = config.engine.as_ref().and_then(|engine| engine.user.as_deref()) else { return Ok(()) };
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "`engine.user` needs `postern run` to be started by root; take it out, and the engine is the user that Postern is"
    );
    confine::user::User::named(name).map(drop)
}

fn gateway_command(config_path: &Path, sockets: &Sockets, offline: bool) -> anyhow::Result<Command> {
    let mut fds: Vec<OwnedFd> = vec![
        sockets.gateway.try_clone()?.into(),
        sockets.admin.try_clone()?.into(),
        sockets.engine.try_clone()?.into(),
        sockets.control.1.try_clone()?.into(),
    ];
    // In the order in which the gateway takes those that its configuration names.
    for socket in [&sockets.probe, &sockets.enrol].into_iter().flatten() {
        fds.push(socket.try_clone()?.into());
    }
    if let Some(socket) = &sockets.encoder {
        fds.push(socket.try_clone()?.into());
    }
    let mut command = std::process::Command::new(own_program()?);
    command.arg("gateway").arg("--config").arg(config_path).stdin(Stdio::null());
    if offline {
        command.arg("--offline");
    }
    command.env("LISTEN_FDS", fds.len().to_string()).env_remove("LISTEN_PID").env_remove("LISTEN_FDNAMES");
    command.env(SUPERVISOR, std::process::id().to_string());
    if std::env::var_os(ALLOCATOR).is_none() {
        command.env(ALLOCATOR, format!("narenas:{},dirty_decay_ms:100,tcache_gc_incr_bytes:524288", workers::number()));
    }
    let mappings = fds.into_iter().zip(FIRST_FD..).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).context("passing the sockets on")?;
    Ok(command.into())
}

/// What makes vectors of questions for the cache, if that is configured: an engine of its own.
fn encoder(config: &Config) -> Option<Service<'_, impl FnMut() -> anyhow::Result<Command>>> {
    let semantic = config.semantic.as_ref()?;
    let start = || {
        let mut command = own_engine(config, &semantic.model, &config.encoder_socket(), Some(ENCODER_THREADS))?;
        command.arg("--device").arg("cpu");
        Ok(command.into())
    };
    let needs = || match engines::serves(&semantic.model)? {
        Serves::Vectors => Ok(()),
        Serves::Chats => Err(format!("the model `{}` of `cache.semantic` makes no vectors", semantic.model)),
    };
    Some(Service::new("encoder", start).hung_after(ENCODER_HUNG_AFTER).needs(needs))
}

fn engine_command(config: &Config, model: &str) -> anyhow::Result<Command> {
    let engine = config.engine.as_ref().context("no engine is configured")?;
    let mut command = own_engine(config, model, &config.engine_socket(), None)?;
    command.arg("--max-batch-size").arg(engine.max_batch_size.to_string());
    command.arg("--max-wait-ms").arg(engine.max_wait.as_millis().to_string());
    command.arg("--max-queue").arg(engine.max_queue.to_string());
    command.arg("--kv-bytes").arg(engine.kv_memory.to_string());
    if engine.kv_format == KvFormat::Q8 {
        command.arg("--kv-eight-bit");
    }
    command.arg("--hung-after-ms").arg(engine.hung_after.as_millis().to_string());
    command.arg("--device").arg(if engine.device == Device::Cpu { "cpu" } else { "auto" });
    Ok(command.into())
}

/// An engine gets no descriptor and none of the gateway's environment: no key of an upstream is in its memory.
fn own_engine(
    config: &Config,
    model: &str,
    socket: &Path,
    threads: Option<usize>,
) -> anyhow::Result<std::process::Command> {
    let mut command = std::process::Command::new(own_program()?);
    command.env_clear();
    for name in ["PATH", "HOME", "POSTERN_CACHE", "POSTERN_LOG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.arg("engine").arg("--model").arg(model).arg("--connect").arg(std::path::absolute(socket)?);
    if let Some(user) = config.engine.as_ref().and_then(|engine| engine.user.as_ref()) {
        command.arg("--user").arg(user);
    }
    command.arg("--supervised").env(SUPERVISOR, std::process::id().to_string());
    command.envs(postern_engine::thread_environment(threads));
    // On its standard output it says that it does not hang.
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

/// The file that is running, even if another was put in its place meanwhile: gateway and supervisor are one version.
fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("the own program")
}

/// What must be there for a process to be started; an error says what is missing.
type Needs<'a> = Box<dyn Fn() -> Result<(), String> + 'a>;

/// A process that is started again when it ends.
struct Service<'a, F> {
    name: &'static str,
    command: F,
    needs: Needs<'a>,
    /// What was missing when it was last looked for, so that it is said once.
    missing: Option<String>,
    hung_after: Option<Duration>,
    child: Option<Child>,
    pulse: Option<Pulse>,
    started: Instant,
    pause: Duration,
    /// It does what it is for: its end is not the next of a row of failures.
    is_well: bool,
    /// It was asked to end, so that another takes its place.
    is_asked_to_end: bool,
    /// Then it is killed.
    ends_by: Option<Instant>,
}

impl<'a, F: FnMut() -> anyhow::Result<Command>> Service<'a, F> {
    fn new(name: &'static str, command: F) -> Self {
        let needs = Box::new(|| Ok(()));
        Self {
            name,
            command,
            needs,
            missing: None,
            hung_after: None,
            child: None,
            pulse: None,
            started: Instant::now(),
            pause: Duration::ZERO,
            is_well: false,
            is_asked_to_end: false,
            ends_by: None,
        }
    }

    /// Is killed when its [`pulse`] is gone for so long.
    fn hung_after(self, silence: Duration) -> Self {
        Self { hung_after: Some(silence), ..self }
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its next failure is its first again.
    fn is_well(&mut self) {
        self.is_well = true;
    }

    /// Another process, which does what it is for, takes the place; gives the one before.
    fn replace(&mut self, child: Child, pulse: Option<Pulse>) -> Option<Child> {
        (self.started, self.is_well, self.pulse) = (Instant::now(), true, pulse);
        self.child.replace(child)
    }

    /// Is started only while `needs` has nothing to say.
    fn needs(self, needs: impl Fn() -> Result<(), String> + 'a) -> Self {
        Self { needs: Box::new(needs), ..self }
    }

    /// Starts the process, or waits until it ends. `Some` is an exit code with which it is of no use to go on.
    /// Cancel-safe: a cancelled wait is taken up by the next call.
    async fn step(&mut self) -> anyhow::Result<Option<u8>> {
        let Some(child) = &mut self.child else {
            tokio::time::sleep(self.pause).await;
            if let Err(missing) = (self.needs)() {
                if self.missing.as_ref() != Some(&missing) {
                    tracing::error!(process = self.name, "{missing}; it is started once that is done");
                    self.missing = Some(missing);
                }
                self.pause = LAST_PAUSE;
                return Ok(None);
            }
            self.missing = None;
            let mut child = (self.command)()?.spawn().with_context(|| format!("starting the {}", self.name))?;
            self.pulse = self.hung_after.map(|silence| Pulse::of(&mut child, silence));
            self.child = Some(child);
            (self.started, self.is_well) = (Instant::now(), false);
            return Ok(None);
        };
        let status = loop {
            let ends_by = self.ends_by;
            tokio::select! {
                biased;
                status = child.wait() => break status?,
                () = async { match ends_by {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                } } => {
                    tracing::warn!(process = self.name, "did not end in time and is killed");
                    self.ends_by = None;
                    child.start_kill()?;
                }
                silence = pulse::lost(&mut self.pulse) => {
                    let silent_ms = silence.as_millis() as u64;
                    tracing::error!(process = self.name, silent_ms, "a process hangs and is killed");
                    child.start_kill()?;
                }
            }
        };
        self.child = None;
        if std::mem::take(&mut self.is_asked_to_end) {
            (self.pause, self.ends_by) = (AT_ONCE, None);
            return Ok(None);
        }
        let first = self.pause == Duration::ZERO;
        if self.name == "gateway" && first && status.code() == Some(i32::from(EXIT_CONFIG)) {
            return Ok(Some(EXIT_CONFIG));
        }
        self.pause = if self.is_well || self.started.elapsed() > WELL_AFTER {
            FIRST_PAUSE
        } else {
            (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE)
        };
        let (name, again_in_ms) = (self.name, self.pause.as_millis() as u64);
        // As one does whose gateway has gone, and the next one asks it again.
        if name != "gateway" && self.is_well && status.success() {
            tracing::info!(process = name, again_in_ms, "a process ended by itself; it is started again");
        } else {
            tracing::error!(process = name, status = %status, again_in_ms, "a process ended; it is started again");
        }
        Ok(None)
    }

    /// Sends a signal to the process, if there is one.
    fn tell(&self, signal: Signal) {
        if let Some(child) = &self.child {
            tell(child, signal);
        }
    }

    /// Asks the process to end, so that [`step`](Self::step) starts another in its place; insists after a while.
    fn end_soon(&mut self, within: Duration) {
        (self.is_asked_to_end, self.ends_by) = (true, Some(Instant::now() + within));
        self.tell(Signal::TERM);
    }

    /// Asks the process to end, then insists. Returns its exit code.
    async fn end(&mut self, within: Duration) -> u8 {
        match self.child.take() {
            Some(child) => end_child(self.name, child, within).await,
            None => 0,
        }
    }
}

fn tell(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
        // It may have ended by itself meanwhile.
        let _gone = kill_process(pid, signal);
    }
}

/// Asks a process to end, then insists. Returns its exit code.
async fn end_child(name: &'static str, mut child: Child, within: Duration) -> u8 {
    tell(&child, Signal::TERM);
    match tokio::time::timeout(within, child.wait()).await {
        Ok(Ok(status)) => exit_code(status),
        _ => {
            tracing::warn!(process = name, "did not end in time and is killed");
            let _gone = child.kill().await;
            1
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Ends this process when the supervisor does, however that ends. For children, as the first thing they do. Also keeps
/// prompts out of core dumps, and other processes of the same user out of this one's memory.
///
/// # Errors
/// The kernel refuses, or the supervisor is gone already.
pub fn die_with_parent(signal: Signal) -> anyhow::Result<()> {
    let by_hand = std::env::var_os(SUPERVISOR).is_none();
    anyhow::ensure!(!by_hand, "this is a part of `postern run`, which starts it: use `postern run --config FILE`");
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    anyhow::ensure!(!is_orphan(), "the supervisor is gone");
    Ok(())
}

/// For children: is the supervisor gone?
#[must_use]
pub fn is_orphan() -> bool {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().to_string());
    parent.is_none() || parent != std::env::var(SUPERVISOR).ok()
}
