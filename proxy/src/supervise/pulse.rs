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

/// Bytes of a child's last words at most, and how long the rest of them may take when it has ended.
const MAX_WORDS: usize = 1024;
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

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

/// For a child that ends: why, for whoever asked for it. Words of this program about its options and files, in one line.
pub fn last_words(words: &str) {
    let mut out = std::io::stdout();
    let line: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // A line of its own, so that beats are no part of it.
    let _unheard = out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush());
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
    /// Its last words so far, and whether they go on.
    words: Vec<u8>,
    is_speaking: bool,
}

impl Pulse {
    /// Listens to `child`, which may be silent for `silence`.
    pub(super) fn of(child: &mut Child, silence: Duration) -> Self {
        let beats = child.stdout.take();
        Self { beats, heard: Instant::now(), silence, words: Vec::new(), is_speaking: false }
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
                Ok(count @ 1..) => pulse.hear(bytes.get(..count).unwrap_or_default()),
                // Closed: it may be about to end.
                _ => pulse.beats = None,
            },
            () = sleep_until(pulse.heard + pulse.silence) => return pulse.told(),
        }
    }
}

impl Pulse {
    /// What a child that has ended said last, if it said anything.
    pub(super) async fn last_words(&mut self) -> Option<String> {
        let mut bytes = [0; 64];
        while let Some(beats) = &mut self.beats {
            match tokio::time::timeout(LAST_WORDS_WITHIN, beats.read(&mut bytes)).await {
                Ok(Ok(count @ 1..)) => self.hear(bytes.get(..count).unwrap_or_default()),
                _ => self.beats = None,
            }
        }
        let words = String::from_utf8_lossy(&self.words).into_owned();
        Some(words).filter(|words| !words.is_empty())
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.heard = Instant::now();
        for byte in bytes {
            match byte {
                b'\n' => self.is_speaking = !self.is_speaking,
                byte if self.is_speaking && self.words.len() < MAX_WORDS => self.words.push(*byte),
                _ => {}
            }
        }
    }

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

    #[tokio::test]
    async fn last_words_are_heard_among_beats_and_bounded() {
        for (script, words) in [
            ("printf ...; printf '\\nno such file.\\n'; printf .", Some("no such file.".to_owned())),
            ("printf ...", None),
            ("printf '\\n'; head -c 5000 /dev/zero | tr '\\0' x", Some("x".repeat(MAX_WORDS))),
        ] {
            let (mut child, pulse) = listen(script);
            child.wait().await.unwrap();
            assert_eq!(pulse.unwrap().last_words().await, words, "{script}");
        }
    }
}
