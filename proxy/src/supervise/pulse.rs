//! Signs of life. A process that hangs neither ends nor says so: one that is well says it, by a byte on its standard output
//! every half a second, and one that does not is killed and started again.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, sleep_until};

/// Between two signs of life.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// Beats from its own thread until it is dropped, for a process whose other threads are all at work.
#[derive(Debug)]
pub struct Beating(Arc<AtomicBool>);

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// For a child: beats from a thread.
///
/// # Errors
/// There is no thread to be had.
pub fn beat_from_a_thread() -> std::io::Result<Beating> {
    let ended = Arc::new(AtomicBool::new(false));
    let is_ended = Arc::clone(&ended);
    std::thread::Builder::new().name("pulse".into()).spawn(move || {
        while !is_ended.load(Ordering::Relaxed) {
            say();
            std::thread::sleep(BEAT_EVERY);
        }
    })?;
    Ok(Beating(ended))
}

/// For a child: beats from its runtime, so that it stops when nothing there gets on any more. Never ends.
pub async fn beat() {
    loop {
        say();
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

fn say() {
    let mut out = std::io::stdout();
    // Who listened may be gone, and this process ends with it.
    let _unheard = out.write_all(b".").and_then(|()| out.flush());
}

/// What the supervisor hears of one child.
#[derive(Debug)]
pub(super) struct Pulse {
    beats: Option<ChildStdout>,
    heard: Instant,
    silence: Duration,
}

impl Pulse {
    /// Listens to `child`, which may be silent for `silence`.
    pub(super) fn of(child: &mut Child, silence: Duration) -> Self {
        Self { beats: child.stdout.take(), heard: Instant::now(), silence }
    }
}

/// Resolves when nothing was heard for too long, with the time that is; the next time after the same time again. Never
/// resolves without a pulse. Cancel-safe.
pub(super) async fn lost(pulse: &mut Option<Pulse>) -> Duration {
    let Some(pulse) = pulse else { return std::future::pending().await };
    let mut bytes = [0; 64];
    loop {
        let Some(beats) = &mut pulse.beats else {
            sleep_until(pulse.heard + pulse.silence).await;
            return pulse.told();
        };
        tokio::select! {
            // What was said while this process itself stood still counts.
            biased;
            read = beats.read(&mut bytes) => match read {
                Ok(1..) => pulse.heard = Instant::now(),
                // Closed: it may be about to end.
                _ => pulse.beats = None,
            },
            () = sleep_until(pulse.heard + pulse.silence) => return pulse.told(),
        }
    }
}

impl Pulse {
    fn told(&mut self) -> Duration {
        let silent = self.heard.elapsed();
        self.heard = Instant::now();
        silent
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;

    const SILENCE: Duration = Duration::from_millis(600);

    fn listen(script: &str) -> (Child, Option<Pulse>) {
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", script]).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let pulse = Pulse::of(&mut child, SILENCE);
        (child, Some(pulse))
    }

    #[tokio::test]
    async fn silence_is_noticed_and_life_is_not() {
        for script in ["sleep 60", "exec >&-; sleep 60", "printf .; sleep 60"] {
            let (_child, mut pulse) = listen(script);
            let silent = tokio::time::timeout(SILENCE * 10, lost(&mut pulse)).await.unwrap();
            assert!(silent >= SILENCE, "{script}: {silent:?}");
        }
        let (_child, mut pulse) = listen("while :; do printf .; sleep 0.1; done");
        assert!(tokio::time::timeout(SILENCE * 3, lost(&mut pulse)).await.is_err(), "it was well all the time");
        assert!(tokio::time::timeout(SILENCE * 2, lost(&mut None)).await.is_err(), "nobody listens");
    }
}
