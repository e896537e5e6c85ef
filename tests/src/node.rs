//! An engine on a machine of its own, which is this one: `postern engine --listen` with the small real model.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use crate::postern::{binary, ends_with_us};
use crate::process::Process;
use crate::tls::Identity;
use crate::{Client, process};

/// The model is read and checked in this time.
const READY_WITHIN: Duration = Duration::from_secs(180);
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// What it loads.
pub const MODEL: &str = "smollm2-135m-instruct";

/// A running node. Dropping it kills it.
#[derive(Debug)]
pub struct Node {
    process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Node {
    /// Starts it with the certificate in a folder and waits for its ready line.
    ///
    /// # Errors
    /// It ends, or is not ready in time; the message has its last words.
    pub async fn start(identity: &Path, more: &[&str]) -> Result<Self> {
        Self::of(Path::new(MODEL), identity, more).await
    }

    /// Starts it with another model, a name or a path.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn of(model: &Path, identity: &Path, more: &[&str]) -> Result<Self> {
        let mut command = ends_with_us(&binary()?);
        command.arg("engine").arg("--model").arg(model).args(["--listen", "127.0.0.1:0", "--identity"]);
        command.arg(identity).args(more);
        let mut process = Process::start("node", command)?;
        let ready = |line: &str| line.strip_prefix("postern ready engine=")?.parse().ok();
        let address = process.line(READY_WITHIN, ready).await?;
        Ok(Self { process, address })
    }

    /// A client that shows this identity, or none.
    #[must_use]
    pub fn client(&self, identity: Option<Identity>) -> Client {
        Client::of_node(self.address, identity)
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Kills it as the kernel would.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(&self) -> Result<()> {
        process::send(self.process.pid(), Signal::KILL)
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// It is gone already.
    pub fn terminate(&self) -> Result<()> {
        process::send(self.process.pid(), Signal::TERM)
    }

    /// Waits until it has ended; whether it ended as asked.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn ended(&mut self) -> Result<bool> {
        Ok(self.process.ended(STOP_WITHIN).await?.success())
    }
}
