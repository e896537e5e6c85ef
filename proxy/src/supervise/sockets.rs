//! The sockets that outlive the gateway: while it restarts, clients wait in the queue of the kernel.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::config::Config;

/// The longest path of a UNIX socket (`sun_path` of unix(7), less the end of the string).
pub const MAX_SOCKET_PATH: usize = 107;
/// For an address that is still in use: if the supervisor before was killed, its gateway needs a moment to let go.
const BIND_WITHIN: Duration = Duration::from_secs(5);
const BIND_AGAIN: Duration = Duration::from_millis(100);

/// All of them.
pub(super) struct Sockets {
    pub(super) gateway: TcpListener,
    pub(super) admin: TcpListener,
    pub(super) engine: UnixListener,
    /// The line between supervisor and gateway, in this order.
    pub(super) control: (UnixDatagram, UnixDatagram),
    pub(super) probe: Option<TcpListener>,
    pub(super) enrol: Option<TcpListener>,
    /// For what makes vectors of questions.
    pub(super) encoder: Option<UnixListener>,
}

impl Sockets {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// One cannot be bound; the message says which, and what may hold it.
    pub(super) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let engine = unix(&config.engine_socket())?;
        let encoder = config.semantic.as_ref().map(|_| unix(&config.encoder_socket())).transpose()?;
        Ok(Self {
            gateway: tcp("listen", config.listen).await?,
            admin: tcp("admin", config.admin).await?,
            engine,
            control: super::control::pair().context("a pair of sockets")?,
            probe: match config.probe {
                Some(address) => Some(tcp("probe", address).await?),
                None => None,
            },
            enrol: match config.enrol {
                Some(address) => Some(tcp("enrol", address).await?),
                None => None,
            },
            encoder,
        })
    }
}

fn unix(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("the old socket {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(path)
        .with_context(|| format!("the socket {} (a path of {MAX_SOCKET_PATH} bytes at most)", path.display()))
}

async fn tcp(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let deadline = Instant::now() + BIND_WITHIN;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(BIND_AGAIN).await;
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let port = address.port();
                return Err(error).with_context(|| {
                    format!("`{what}: {address}` is held by another process, which `ss -ltnp 'sport = :{port}'` names")
                });
            }
            bound => return bound.with_context(|| format!("`{what}: {address}` cannot be bound")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_let_go_is_waited_for_and_one_that_is_not_is_named() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let said = format!("{:#}", tcp("admin", address).await.unwrap_err());
        assert!(said.contains(&format!("`admin: {address}` is held by another process")), "{said}");
        let waiting = tokio::spawn(async move { tcp("admin", address).await });
        tokio::time::sleep(3 * BIND_AGAIN).await;
        drop(held);
        assert_eq!(waiting.await.unwrap().unwrap().local_addr().unwrap(), address);
    }
}
