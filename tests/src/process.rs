//! A child process: its output is kept, and it ends with this process, however that ends.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Lines of output that are kept of each stream.
const KEPT_LINES: usize = 10_000;
/// Between two looks at a child.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// For a child that was killed to be gone.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// A running child. Dropping it kills it and its own children.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// The program `name` that was built beside this test.
///
/// # Errors
/// It was not built; the message says how to.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests lie in deps/ below the folder of the programs.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("`{name}` is not built: `cargo build --release` first (looked near {})", own.display())
    })
}

impl Process {
    /// Starts it. Standard input is empty; standard output and error are kept.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (answer, started) = sync_channel(1);
        let spawner = SPAWNER.as_ref().context("no thread to start processes from")?;
        spawner.send((command, answer)).map_err(|_| anyhow!("the thread that starts processes ended"))?;
        let mut child = started.recv()?.with_context(|| format!("starting {name}"))?;
        let stdout = Lines::read(child.stdout.take())?;
        let stderr = Lines::read(child.stderr.take())?;
        Ok(Self { name, child, stdout, stderr })
    }

    /// Waits for the first line of standard output that `wanted` takes something from.
    ///
    /// # Errors
    /// The process ended before, or did not say it in time; the message has its last words.
    pub async fn line<T>(&mut self, within: Duration, wanted: impl Fn(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            // Asked first: what it said before it ended must still be seen.
            let ended = self.child.try_wait()?;
            if ended.is_some() {
                self.read_to_the_end().await;
            }
            if let Some(found) = self.stdout.find(&wanted) {
                return Ok(found);
            }
            if let Some(status) = ended {
                bail!("{} ended with {status}; it said:\n{}", self.name, self.log());
            }
            if Instant::now() > deadline {
                bail!("{} said nothing of the kind within {within:?}; it said:\n{}", self.name, self.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Its last words may still be in the pipe when it has ended. A child of its own may hold that open, so not for ever.
    async fn read_to_the_end(&self) {
        let deadline = Instant::now() + KILL_WITHIN;
        while !(self.stdout.is_complete() && self.stderr.is_complete()) && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output and then to standard error, at most the last 10,000 lines of each.
    #[must_use]
    pub fn log(&self) -> String {
        self.stdout.text() + &self.stderr.text()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        // It may have ended by itself.
        let _gone = self.signal(Signal::TERM);
        self.ended(within).await
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {within:?}; it said:\n{}", self.name, self.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let own = children(self.pid());
        // The parent first: a supervisor would start the others again.
        let _gone = self.child.kill();
        for child in own {
            let _gone = send(child, Signal::KILL);
        }
        let deadline = Instant::now() + KILL_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Sends a signal to one process.
///
/// # Errors
/// It is gone, or is not ours.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process ID")?;
    kill_process(pid, signal).with_context(|| format!("signal to process {pid:?}"))
}

/// The processes that `pid` started and that still run.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|child| parent(*child) == Some(pid)).collect()
}

/// The arguments of a process, separated by spaces; empty if it is gone.
#[must_use]
pub fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Resident memory of a process, in bytes; `None` if it is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// Of those, the ones that are no file's: what cannot be given up under pressure; `None` if the process is gone.
#[must_use]
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "RssAnon:")
}

fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let kib: u64 = status_field(pid, name)?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn parent(pid: u32) -> Option<u32> {
    status_field(pid, "PPid:")?.trim().parse().ok()
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

type Order = (Command, SyncSender<std::io::Result<Child>>);

/// The kernel ties a child's `PR_SET_PDEATHSIG` to the *thread* that started it. This one never ends, so children live as
/// long as the whole test process, and no longer.
static SPAWNER: LazyLock<Option<SyncSender<Order>>> = LazyLock::new(|| {
    let (sender, orders): (_, Receiver<Order>) = sync_channel(16);
    let run = move || {
        for (mut command, answer) in orders {
            let _nobody_waits = answer.send(command.spawn());
        }
    };
    std::thread::Builder::new().name("spawner".into()).spawn(run).ok().map(|_| sender)
});

/// The last lines of a stream, read by a thread of its own so that the child never waits for us.
#[derive(Debug, Clone)]
struct Lines(Arc<Mutex<VecDeque<String>>>);

impl Lines {
    fn read(stream: Option<impl Read + Send + 'static>) -> Result<Self> {
        let lines = Self(Arc::default());
        let stream = BufReader::new(stream.context("a stream of the child is missing")?);
        let kept = lines.0.clone();
        std::thread::Builder::new().name("output".into()).spawn(move || {
            for line in stream.split(b'\n').map_while(Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() >= KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(String::from_utf8_lossy(&line).into_owned());
            }
        })?;
        Ok(lines)
    }

    fn find<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(|line| wanted(line))
    }

    /// The thread that reads lets go of the lines at the end of the stream.
    fn is_complete(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}
