//! The folder of the records: names, whose it is, and what a crash or somebody else left in it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use time::Date;

/// A gateway that was told to end finishes its requests first.
const LOCK_WITHIN: Duration = Duration::from_secs(45);
const LOCK_EVERY: Duration = Duration::from_millis(50);
/// Bytes at the end of the records in which requests without an outcome are looked for. No request lives longer than this is
/// written full, by far.
const LOOK_BACK: u64 = 32 << 20;
/// The last file, and the one before it if midnight has just passed.
const LOOK_BACK_FILES: usize = 2;

/// Held while records are written. The kernel gives it back, however the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Waits for a gateway that is ending.
    pub(super) fn take(dir: &Path) -> io::Result<Self> {
        Self::take_within(dir, LOCK_WITHIN)
    }

    pub(super) fn take_within(dir: &Path, within: Duration) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600).open(dir.join("lock"))?;
        let until = Instant::now() + within;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    return Err(io::Error::other("another gateway still writes records there"));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if !std::mem::replace(&mut said, true) {
                tracing::info!("waiting for the last gateway to end: it still writes its records");
            }
            std::thread::sleep(LOCK_EVERY);
        }
    }
}

pub(crate) fn file_name(day: Date) -> String {
    format!("records-{:04}-{:02}-{:02}.jsonl", day.year(), u8::from(day.month()), day.day())
}

pub(super) fn open_day(dir: &Path, day: Date) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = dir.join(file_name(day));
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
    let good = whole_lines(&mut file)?;
    let len = file.metadata()?.len();
    if good < len {
        tracing::warn!(bytes = len - good, "a record that a crash cut short is removed; it was never acknowledged");
        file.set_len(good)?;
    }
    Ok((file, good))
}

/// Bytes up to and with the last line break.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 64 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        let mut piece = Vec::new();
        Read::by_ref(file).take(end - start).read_to_end(&mut piece)?;
        if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// How the file of `day` differs from `good` bytes written by us: a fixed word, and the bytes that are there.
pub(super) fn difference(dir: &Path, day: Date, ours: &File, good: u64) -> Option<(&'static str, u64)> {
    let own = ours.metadata().ok()?;
    match std::fs::metadata(dir.join(file_name(day))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(("removed", 0)),
        // What cannot be looked at cannot be written either, and that is reported.
        Err(_) => None,
        Ok(there) if (there.dev(), there.ino()) != (own.dev(), own.ino()) => Some(("replaced", there.len())),
        Ok(there) if there.len() < good => Some(("cut", there.len())),
        Ok(there) if there.len() > good => Some(("extended", there.len())),
        Ok(_) => None,
    }
}

/// Requests that were planned and have no outcome: ID and identity.
pub(super) fn without_outcome(dir: &Path) -> io::Result<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Line {
        record: String,
        kind: String,
        #[serde(default)]
        identity: String,
    }
    let mut names: Vec<_> = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| name.to_str().is_some_and(|name| name.starts_with("records-") && name.ends_with(".jsonl")));
    names.sort();
    let mut open = HashMap::new();
    let last = names.len().saturating_sub(LOOK_BACK_FILES);
    for name in names.iter().skip(last) {
        let mut file = File::open(dir.join(name))?;
        let skipped = file.metadata()?.len().saturating_sub(LOOK_BACK);
        file.seek(SeekFrom::Start(skipped))?;
        let lines = BufReader::new(file.take(LOOK_BACK)).split(b'\n');
        // The first line may be a part of one, the last may be torn.
        for line in lines.map_while(Result::ok).filter_map(|line| serde_json::from_slice::<Line>(&line).ok()) {
            match line.kind.as_str() {
                "intent" => drop(open.insert(line.record, line.identity)),
                "outcome" => drop(open.remove(&line.record)),
                _ => {}
            }
        }
    }
    let mut open: Vec<_> = open.into_iter().collect();
    open.sort();
    Ok(open)
}
