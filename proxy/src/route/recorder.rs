//! Keeps requests as policies were told them in a file, for `postern plugin replay`. Only those that may leave this machine, and
//! never text. A thread writes; if it cannot keep up, requests are left out, and none waits.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use postern_plugins::{MAX_RECORDED_BYTES, Recorded};
use rustix::fs::OFlags;

use crate::config::policies::Record;

/// Requests that wait to be written.
const QUEUE: usize = 256;
/// A file that cannot be written is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Writes requests to a file. It ends, and the file is whole, when the last owner drops it.
#[derive(Debug)]
pub struct Recorder {
    settings: Record,
    queue: SyncSender<Arc<Recorded>>,
}

impl Recorder {
    /// Opens the file and starts to write.
    ///
    /// # Errors
    /// The file cannot be made or opened, or is not ours alone.
    pub fn start(settings: Record) -> io::Result<Self> {
        let mut writer = Writer::open(&settings)?;
        let (queue, requests) = sync_channel(QUEUE);
        std::thread::Builder::new().name("policy-recorder".into()).spawn(move || writer.run(&requests))?;
        Ok(Self { settings, queue })
    }

    /// As configured.
    #[must_use]
    pub fn settings(&self) -> &Record {
        &self.settings
    }

    /// Keeps one, if there is room in the queue.
    pub fn note(&self, request: Arc<Recorded>) {
        // Full, or the thread is gone: what policies were told is no record that anybody relies on.
        let _left_out = self.queue.try_send(request);
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Of one file; there are two.
    max: u64,
    complained_at: Option<Instant>,
}

impl Writer {
    fn open(settings: &Record) -> io::Result<Self> {
        let (file, bytes) = open(&settings.file)?;
        Ok(Self { path: settings.file.clone(), file, bytes, max: settings.max / 2, complained_at: None })
    }

    fn run(&mut self, requests: &Receiver<Arc<Recorded>>) {
        while let Ok(request) = requests.recv() {
            let Ok(mut line) = serde_json::to_vec(&*request) else { continue };
            line.push(b'\n');
            if line.len() > MAX_RECORDED_BYTES || line.len() as u64 > self.max {
                continue;
            }
            if let Err(error) = self.write(&line) {
                self.complain(&error);
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes + line.len() as u64 > self.max {
            let mut before = self.path.clone().into_os_string();
            before.push(".1");
            std::fs::rename(&self.path, before)?;
            (self.file, self.bytes) = open(&self.path)?;
        }
        let written = self.file.write_all(line);
        match written {
            Ok(()) => self.bytes += line.len() as u64,
            // Half a line must not stand in front of the next one.
            Err(_) => self.file.set_len(self.bytes)?,
        }
        written
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            self.complained_at = Some(Instant::now());
            let file = self.path.display();
            tracing::warn!(%file, %error, "what policies are told cannot be recorded; free the disk or mend the folder (logged once a minute)");
        }
    }
}

/// The file, to be appended to, and its length. Nobody else may read it: it says who asked what, if not in which words.
fn open(path: &Path) -> io::Result<(File, u64)> {
    // A pipe that nobody reads would be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use postern_plugins::{FleetFacts, RECORDED_VERSION, RequestFacts};

    use super::*;

    fn recorded(seed: u64) -> Arc<Recorded> {
        let (request, fleet) =
            (RequestFacts { model: "m".repeat(400), ..RequestFacts::default() }, FleetFacts::default());
        let (record, final_label) = (String::new(), String::new());
        Arc::new(Recorded { version: RECORDED_VERSION, record, seed, request, fleet, final_label, answers: Vec::new() })
    }

    fn seeds(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Recorded>(line).unwrap().seed).collect()
    }

    #[test]
    fn files_are_bounded_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("seen.jsonl");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut writer = Writer::open(&Record { file: file.clone(), max: 20_000 }).unwrap();
        let (queue, requests) = sync_channel(100);
        (0..40).for_each(|seed| queue.send(recorded(seed)).unwrap());
        drop(queue);
        writer.run(&requests);
        let before = dir.path().join("seen.jsonl.1");
        let (old, new) = (seeds(&before), seeds(&file));
        assert_eq!(new.last(), Some(&39));
        assert_eq!(old.last().unwrap() + 1, new[0], "nothing is lost in between");
        for path in [&file, &before] {
            let metadata = std::fs::metadata(path).unwrap();
            assert!(metadata.len() <= 10_000 && metadata.permissions().mode() & 0o777 == 0o600, "{metadata:?}");
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, elsewhere) = (dir.path().join("seen.jsonl"), dir.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(Recorder::start(Record { file, max: 1 << 20 }).is_err() && !elsewhere.exists());
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("seen.jsonl");
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        assert!(Recorder::start(Record { file, max: 1 << 20 }).is_err());
    }
}
