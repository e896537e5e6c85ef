//! A real Redis (Debian's `redis-server`) on a scratch folder, to be killed and started again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::pki::Authority;
use crate::process::Process;

/// How many ports are tried.
const PORTS: u32 = 5;
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running Redis. It writes everything that it is told to a file, for tests that look for what must not be there; but begins empty
/// when it is started again, unless that is asked for.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    dir: TempDir,
    options: Vec<String>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Redis {
    /// On a loopback port, without password or TLS.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// With options as on its command line, such as `["--requirepass", "…"]`.
    ///
    /// # Errors
    /// See [`Redis::start`].
    pub async fn start_with(options: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pr").tempdir()?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut redis = Self { process: None, dir, options, address: free_port()? };
        let mut tries = 1;
        // Somebody else may have taken the port since.
        while let Err(error) = redis.restart().await {
            if tries == PORTS {
                return Err(error);
            }
            redis.address = free_port()?;
            tries += 1;
        }
        Ok(redis)
    }

    /// With TLS only. Returns the file with its authority as well.
    ///
    /// # Errors
    /// See [`Redis::start`].
    pub async fn start_tls() -> Result<(Self, PathBuf)> {
        let dir = tempfile::Builder::new().prefix("pr").tempdir()?;
        let authority = Authority::new("Redis")?;
        let leaf = authority.server()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("ca.pem"), authority.pem())?;
        std::fs::write(at("cert.pem"), leaf.cert_pem)?;
        std::fs::write(at("key.pem"), leaf.key_pem)?;
        let files = [("--tls-cert-file", "cert.pem"), ("--tls-key-file", "key.pem"), ("--tls-ca-cert-file", "ca.pem")];
        let mut options: Vec<String> = files.iter().flat_map(|(name, file)| [(*name).to_owned(), at(file)]).collect();
        let address = free_port()?;
        let tls = ["--tls-auth-clients", "no", "--tls-port", &address.port().to_string()].map(str::to_owned);
        options.extend(tls);
        let ca = dir.path().join("ca.pem");
        let mut redis = Self { process: None, dir, options, address };
        redis.restart().await?;
        Ok((redis, ca))
    }

    /// `redis://…`, as a configuration has it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Kills it with SIGKILL: what it had is lost.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it at the same address, empty.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        let _none = std::fs::remove_dir_all(self.dir.path().join("appendonlydir"));
        let mut command = Command::new("redis-server");
        let port = self.address.port().to_string();
        let port = if self.options.iter().any(|option| option == "--tls-port") { "0" } else { port.as_str() };
        command.args(["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "yes"]);
        command.args(["--appendfsync", "always", "--daemonize", "no"]).arg("--dir").arg(self.dir.path());
        command.args(&self.options);
        let started = Process::start("redis-server", command);
        let mut process =
            started.context("Redis is not installed: apt-get install redis-server (`make test` does it)")?;
        process.line(READY_WITHIN, |line| line.contains("Ready to accept connections").then_some(())).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Killed, it begins again with what `SAVE` wrote, and not with what came after.
    ///
    /// # Errors
    /// It cannot save, or does not start.
    pub async fn falls_back_to(&mut self, then: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        self.cli(&["SAVE"])?;
        then().await?;
        self.kill();
        self.options.extend(["--appendonly", "no"].map(str::to_owned));
        self.restart().await
    }

    /// Sends it a signal, such as STOP: then it answers nothing, and keeps its connections.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("it does not run")?.signal(signal)
    }

    /// What `redis-cli` says to a command.
    ///
    /// # Errors
    /// It does not run, or refuses.
    pub fn cli(&self, command: &[&str]) -> Result<String> {
        let port = self.address.port().to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || text.starts_with("ERR") {
            bail!("redis-cli {command:?}: {text}");
        }
        Ok(text)
    }

    /// The names of its keys that begin so.
    ///
    /// # Errors
    /// It does not run.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let text = self.cli(&["KEYS", &format!("{prefix}*")])?;
        Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Waits until it has so many keys that begin so, and returns them.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn has_keys(&self, prefix: &str, count: usize, within: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + within;
        loop {
            let keys = self.keys(prefix)?;
            if keys.len() >= count {
                return Ok(keys);
            }
            if Instant::now() > deadline {
                bail!("it has {} keys {prefix}*, not {count}", keys.len());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every byte that it was told to write, since it was started.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn written(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for entry in std::fs::read_dir(self.dir.path().join("appendonlydir"))? {
            bytes.extend(std::fs::read(entry?.path())?);
        }
        Ok(bytes)
    }
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
