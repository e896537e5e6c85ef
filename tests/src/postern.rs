//! The real gateway: `postern run` in a scratch folder, on free ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http::Method;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::{Reply, plain};
use crate::config::{Config, TRUST_DOMAIN};
use crate::process::{self, Process, program};
use crate::tls::Identity;
use crate::{Client, Metrics, Records};

/// Policies are compiled in this time when they are not cached yet.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The engine reads and checks a model in this time.
const ENGINE_WITHIN: Duration = Duration::from_secs(180);
const STOP_WITHIN: Duration = Duration::from_secs(45);
const LOGGED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running gateway with its supervisor, and its engine if one is configured. Dropping it kills them all.
#[derive(Debug)]
pub struct Postern {
    process: Process,
    dir: TempDir,
    environment: Vec<(String, String)>,
    /// The TLS port.
    pub gateway: SocketAddr,
    /// The admin address.
    pub admin: SocketAddr,
    /// The probe address, where one is configured.
    pub probe: Option<SocketAddr>,
    /// The enrol address, where one is configured.
    pub enrol: Option<SocketAddr>,
}

/// The `postern` program: `$POSTERN_BIN`, else the one that was built beside this test.
///
/// # Errors
/// It was not built.
pub fn binary() -> Result<PathBuf> {
    std::env::var_os("POSTERN_BIN").map_or_else(|| program("postern"), |path| Ok(path.into()))
}

/// Runs `postern` with arguments to its end.
///
/// # Errors
/// It cannot be started.
pub fn run(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary()?).args(arguments).output()?)
}

/// Runs `postern check` on a configuration.
///
/// # Errors
/// It cannot be started.
pub fn check(config: &Config) -> Result<Output> {
    let dir = tempfile::tempdir()?;
    let file = write(config, dir.path())?;
    Ok(Command::new(binary()?)
        .arg("check")
        .arg("--config")
        .arg(file)
        .envs(config.environment().iter().cloned())
        .output()?)
}

impl Postern {
    /// Starts it and waits for its ready line. The engine may still be loading: see [`Postern::engine_ready`].
    ///
    /// # Errors
    /// It ends, or is not ready in time; the message has its last words.
    pub async fn start(config: &Config) -> Result<Self> {
        Self::start_under(&[], config).await
    }

    /// Starts it as the last arguments of another command, which becomes it.
    ///
    /// # Errors
    /// As for [`Postern::start`].
    pub async fn start_under(wrapper: &[String], config: &Config) -> Result<Self> {
        // Short, because the path of a UNIX socket has 107 bytes at most.
        let dir = tempfile::Builder::new().prefix("pt").tempdir()?;
        let file = write(config, dir.path())?;
        let mut command = match wrapper {
            [] => ends_with_us(&binary()?),
            [program, arguments @ ..] => {
                let mut command = ends_with_us(Path::new(program));
                command.args(arguments).arg(binary()?);
                command
            }
        };
        command.arg("run").arg("--config").arg(file).envs(config.environment().iter().cloned());
        let mut process = Process::start("postern", command)?;
        let ready = process.line(READY_WITHIN, Ready::parse).await?;
        let Ready { gateway, admin, probe, enrol } = ready;
        let environment = config.environment().to_vec();
        Ok(Self { process, dir, environment, gateway, admin, probe, enrol })
    }

    /// Waits until the engine has dialled the gateway.
    ///
    /// # Errors
    /// It did not in time, or is not configured.
    pub async fn engine_ready(&self) -> Result<()> {
        self.engine_is(true).await
    }

    /// Waits until the gateway has noticed that the engine is gone.
    ///
    /// # Errors
    /// It did not in time.
    pub async fn engine_lost(&self) -> Result<()> {
        self.engine_is(false).await
    }

    /// A client with a new certificate. `id` is a path below the trust domain, such as `clerk/amy`, or a whole SPIFFE ID.
    ///
    /// # Errors
    /// The authority does not issue it.
    pub fn client(&self, id: &str) -> Result<Client> {
        self.client_of(&self.issue(id)?)
    }

    /// A client that shows this identity, or none: for what must be refused.
    ///
    /// # Errors
    /// The authority's certificate cannot be had.
    pub fn client_with(&self, identity: Option<Identity>) -> Result<Client> {
        let dir = self.issue("clerk/only-for-the-authority")?;
        Ok(Client::new(self.gateway, &dir.join("ca.pem"), identity))
    }

    /// Issues a certificate with `postern certs issue`. Returns the folder with `cert.pem`, `key.pem` and `ca.pem`.
    ///
    /// # Errors
    /// The authority does not issue it.
    pub fn issue(&self, id: &str) -> Result<PathBuf> {
        let id = if id.starts_with("spiffe://") { id.to_owned() } else { format!("spiffe://{TRUST_DOMAIN}/{id}") };
        let out = self.folder("certs")?;
        self.certs(&["issue", "--id", &id, "--out", &out.display().to_string()])?;
        Ok(out)
    }

    /// A new folder beside the configuration, which goes when this does.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, prefix: &str) -> Result<PathBuf> {
        Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(self.dir.path())?.keep())
    }

    /// Runs `postern certs ARGUMENTS --config …` and returns what it printed.
    ///
    /// # Errors
    /// It failed; the message has what it said.
    pub fn certs(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary()?);
        command.envs(self.environment.iter().cloned()).arg("certs").args(arguments);
        let output = command.arg("--config").arg(self.config_file()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "postern certs {arguments:?}: {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A client with the certificate in a folder, which trusts the roots there.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn client_of(&self, dir: &Path) -> Result<Client> {
        let identity = Identity::read(&dir.join("cert.pem"), &dir.join("key.pem"))?;
        Ok(Client::new(self.gateway, &dir.join("ca.pem"), Some(identity)))
    }

    /// `POST` on the admin address, without a body.
    ///
    /// # Errors
    /// It is not to be reached.
    pub async fn admin_post(&self, path: &str) -> Result<Reply> {
        plain(Method::POST, &format!("http://{}{path}", self.admin), "").await
    }

    /// `POST` of JSON on the admin address.
    ///
    /// # Errors
    /// It is not to be reached.
    pub async fn admin_post_json(&self, path: &str, body: &serde_json::Value) -> Result<Reply> {
        plain(Method::POST, &format!("http://{}{path}", self.admin), &body.to_string()).await
    }

    /// `GET` on the admin address.
    ///
    /// # Errors
    /// It is not to be reached.
    pub async fn admin(&self, path: &str) -> Result<Reply> {
        plain(Method::GET, &format!("http://{}{path}", self.admin), "").await
    }

    /// The metrics as they are now.
    ///
    /// # Errors
    /// They cannot be read, or are not what Prometheus reads.
    pub async fn metrics(&self) -> Result<Metrics> {
        let reply = self.admin("/metrics").await?;
        ensure!(reply.status == 200, "/metrics: {}", reply.status);
        Metrics::parse(&reply.text())
    }

    /// The records.
    #[must_use]
    pub fn records(&self) -> Records {
        Records::in_folder(self.state_dir().join("audit"))
    }

    /// The scratch `state_dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.dir.path())
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        config_file(self.dir.path())
    }

    /// Puts another configuration in the place of the one that it was started with, as whole as an editor does it. The gateway
    /// notices by itself, or when it is told.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn configure(&self, config: &Config) -> Result<()> {
        let (file, beside) = (self.config_file(), self.dir.path().join("postern.yaml.new"));
        std::fs::write(&beside, config.render(&self.state_dir()))?;
        Ok(std::fs::rename(beside, file)?)
    }

    /// What it was started with, beside our own environment.
    pub fn environment(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.environment.iter().cloned()
    }

    /// What it and its children wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until it has logged these words: what it writes is read by a thread, which may be behind.
    ///
    /// # Errors
    /// It did not in time.
    pub async fn logged(&self, words: &str) -> Result<()> {
        let deadline = Instant::now() + LOGGED_WITHIN;
        while !self.log().contains(words) {
            if Instant::now() > deadline {
                bail!("`{words}` is not in the log after {LOGGED_WITHIN:?}:\n{}", self.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The supervisor's process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process ID of one of its children: `gateway` or `engine`.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<u32> {
        let mut children = process::children(self.pid()).into_iter();
        children.find(|pid| process::command_line(*pid).split(' ').nth(1) == Some(name))
    }

    /// Sends a signal to `gateway` or `engine`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn signal_child(&self, name: &str, signal: Signal) -> Result<()> {
        process::send(self.child(name).with_context(|| format!("no {name} runs"))?, signal)
    }

    /// Kills its gateway, and waits until another one answers.
    ///
    /// # Errors
    /// There is none, or none comes in time.
    pub async fn kill_gateway(&self, within: Duration) -> Result<()> {
        let before = self.child("gateway").context("no gateway runs")?;
        self.signal_child("gateway", Signal::KILL)?;
        let deadline = Instant::now() + within;
        while self.child("gateway").is_none_or(|pid| pid == before) || self.metrics().await.is_err() {
            ensure!(Instant::now() < deadline, "no new gateway: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Ends it as an operator would, with SIGTERM, and waits.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop(STOP_WITHIN).await
    }

    async fn engine_is(&self, wanted: bool) -> Result<()> {
        let deadline = Instant::now() + ENGINE_WITHIN;
        loop {
            let seen = self.admin("/readyz?verbose").await.map(|reply| reply.text()).unwrap_or_default();
            if seen.contains("engine: ") && seen.contains("engine: ok") == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("after {ENGINE_WITHIN:?} the gateway says {seen:?}; its log:\n{}", self.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// `postern ready gateway=ADDRESS admin=ADDRESS [probe=ADDRESS] [enrol=ADDRESS]`.
struct Ready {
    gateway: SocketAddr,
    admin: SocketAddr,
    probe: Option<SocketAddr>,
    enrol: Option<SocketAddr>,
}

impl Ready {
    fn parse(line: &str) -> Option<Self> {
        let fields = line.strip_prefix("postern ready ")?;
        let field = |name: &str| {
            let mut fields = fields.split_whitespace().filter_map(|field| field.split_once('='));
            fields.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok())
        };
        let (probe, enrol) = (field("probe"), field("enrol"));
        Some(Self { gateway: field("gateway")?, admin: field("admin")?, probe, enrol })
    }
}

/// `postern run` has no option for it, so `setpriv` (util-linux) asks the kernel to end it with us.
pub(crate) fn ends_with_us(program: &Path) -> Command {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&paths).map(|dir| dir.join("setpriv")).find(|path| path.is_file()) {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

fn write(config: &Config, dir: &Path) -> Result<PathBuf> {
    let file = config_file(dir);
    std::fs::write(&file, config.render(&state_dir(dir)))
        .map_err(|error| anyhow!("writing {}: {error}", file.display()))?;
    Ok(file)
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("postern.yaml")
}

fn state_dir(dir: &Path) -> PathBuf {
    dir.join("state")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_ready_line_and_nothing_else() {
        let ready = Ready::parse("postern ready gateway=127.0.0.1:1 admin=127.0.0.1:2 probe=0.0.0.0:3").unwrap();
        assert_eq!((ready.gateway.port(), ready.admin.port(), ready.probe.unwrap().port()), (1, 2, 3));
        assert!(Ready::parse("postern ready gateway=127.0.0.1:1 admin=127.0.0.1:2").unwrap().probe.is_none());
        assert!(Ready::parse("postern ready admin=127.0.0.1:2").is_none());
        assert!(Ready::parse("INFO serving").is_none());
    }
}
