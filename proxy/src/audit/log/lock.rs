//! One gateway at a time writes a log.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// A gateway that was told to end finishes its requests first.
const LOCK_WITHIN: Duration = Duration::from_secs(45);
const LOCK_EVERY: Duration = Duration::from_millis(50);

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
