//! A busy cloud as a test sees it: its own process, switches, statistics.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http::Method;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::busy_cloud::Report;
use crate::client::plain;
use crate::process::{Process, program};

const READY_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A running busy cloud.
#[derive(Debug)]
pub struct BusyCloud {
    process: Process,
    dir: TempDir,
    ready: Ready,
}

#[derive(Debug, Deserialize)]
struct Ready {
    base_url: String,
    control: String,
    ca: PathBuf,
}

impl BusyCloud {
    /// Starts one that behaves well and asks for no client certificate.
    ///
    /// # Errors
    /// It does not start; the message has its last words.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one with more arguments, such as `--client-certificates`.
    ///
    /// # Errors
    /// It does not start; the message has its last words.
    pub async fn start_with(arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = Command::new(program("busy-cloud")?);
        command.arg("--parent-death").arg("--out").arg(dir.path()).args(arguments);
        let mut process = Process::start("busy-cloud", command)?;
        let ready = process.line(READY_WITHIN, |line| serde_json::from_str(line).ok()).await?;
        Ok(Self { process, dir, ready })
    }

    /// Ends it at once, and starts it again at the same address after a while, with these switches; it has forgotten what it saw.
    ///
    /// # Errors
    /// It does not start.
    pub async fn dies_for(&mut self, away: Duration, switches: &Value) -> Result<()> {
        let address = |url: &str| url.split('/').nth(2).unwrap_or_default().to_owned();
        let (listen, control) = (address(&self.ready.base_url), address(&self.ready.control));
        self.process.signal(rustix::process::Signal::KILL)?;
        self.process.ended(READY_WITHIN).await?;
        tokio::time::sleep(away).await;
        let mut command = Command::new(program("busy-cloud")?);
        command.arg("--parent-death").arg("--again").arg("--out").arg(self.dir.path());
        command.args(["--listen", &listen, "--control", &control, "--switches", &switches.to_string()]);
        let mut process = Process::start("busy-cloud", command)?;
        self.ready = process.line(READY_WITHIN, |line| serde_json::from_str(line).ok()).await?;
        self.process = process;
        Ok(())
    }

    /// `https://127.0.0.1:PORT/v1`.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.ready.base_url
    }

    /// PEM file of its authority.
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.ready.ca
    }

    /// Folder with `ca.pem`, and `NAME-cert.pem` and `NAME-key.pem` of `server` and `client`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces all switches (see [`crate::busy_cloud::Switches`]); `json!({})` makes it behave well again.
    ///
    /// # Errors
    /// A switch does not exist or has a wrong value.
    pub async fn switch(&self, switches: Value) -> Result<()> {
        self.control(Method::PUT, "/switches", &switches.to_string()).await.map(drop)
    }

    /// What it saw since its start or the last [`BusyCloud::reset`].
    ///
    /// # Errors
    /// It is gone.
    pub async fn stats(&self) -> Result<Report> {
        Ok(serde_json::from_str(&self.control(Method::GET, "/stats", "").await?)?)
    }

    /// Waits for statistics of which `wanted` holds.
    ///
    /// # Errors
    /// They did not come in time; the message has the last ones.
    pub async fn stats_when(&self, within: Duration, wanted: impl Fn(&Report) -> bool) -> Result<Report> {
        let deadline = Instant::now() + within;
        loop {
            let stats = self.stats().await?;
            if wanted(&stats) {
                return Ok(stats);
            }
            if Instant::now() > deadline {
                bail!("after {within:?} the cloud still reports {stats:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Forgets what it saw.
    ///
    /// # Errors
    /// It is gone.
    pub async fn reset(&self) -> Result<()> {
        self.control(Method::DELETE, "/stats", "").await.map(drop)
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it at once: from now on connections to it are refused.
    pub fn kill(self) {
        drop(self);
    }

    async fn control(&self, method: Method, path: &str, body: &str) -> Result<String> {
        let uri = format!("{}{path}", self.ready.control);
        let reply = plain(method, &uri, body).await.context("the control port of the busy cloud")?;
        ensure!(reply.status < 300, "the busy cloud says {}: {}", reply.status, reply.text());
        Ok(reply.text())
    }
}
