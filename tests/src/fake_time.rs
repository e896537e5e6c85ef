//! Another wall time for the real binary, by libfaketime (Debian's package `faketime`), and for the clients that talk to it.
//! Only wall time is shifted: timers go on as they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::Config;

/// Wall time that a test moves.
#[derive(Debug, Clone)]
pub struct FakeTime {
    library: PathBuf,
    dir: Arc<TempDir>,
    offset_s: Arc<AtomicI64>,
}

impl FakeTime {
    /// Begins at the present time.
    ///
    /// # Errors
    /// libfaketime is not installed.
    pub fn start() -> Result<Self> {
        let library =
            library().context("libfaketime is not installed: apt-get install faketime (`make test` does it)")?;
        let fake = Self { library, dir: Arc::new(tempfile::tempdir()?), offset_s: Arc::default() };
        fake.write()?;
        Ok(fake)
    }

    /// A gateway with this configuration, and every `postern certs` for it, lives in this time.
    #[must_use]
    pub fn applied_to(&self, config: Config) -> Config {
        self.environment().into_iter().fold(config, |config, (name, value)| config.env(name, &value))
    }

    /// What a process has to be started with to live in this time.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Moves it.
    ///
    /// # Errors
    /// The file that libfaketime reads cannot be written.
    pub fn advance(&self, hours: f64) -> Result<()> {
        self.offset_s.fetch_add((hours * 3600.0) as i64, Ordering::Relaxed);
        self.write()
    }

    /// What the time is.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.offset_s.load(Ordering::Relaxed))
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("faketime")
    }

    fn write(&self) -> Result<()> {
        let next = self.dir.path().join("next");
        std::fs::write(&next, format!("{:+}s\n", self.offset_s.load(Ordering::Relaxed)))?;
        Ok(std::fs::rename(next, self.file())?)
    }
}

impl TimeProvider for FakeTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.now().unix_timestamp().try_into().ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

fn library() -> Option<PathBuf> {
    let name = "libfaketime.so.1";
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let mut candidates =
        folders.chain([Path::new("/usr/lib").to_owned(), "/usr/lib64".into(), "/usr/local/lib".into()]);
    candidates.find_map(|folder| Some(folder.join("faketime").join(name)).filter(|path| path.is_file()))
}
