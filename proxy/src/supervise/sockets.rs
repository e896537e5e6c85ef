//! The sockets that outlive the gateway: while it restarts, clients wait in the queue of the kernel.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

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
        let mut given = Given::from_environment()?;
        let engine = unix(&config.engine_socket())?;
        let encoder = config.semantic.as_ref().map(|_| unix(&config.encoder_socket())).transpose()?;
        let sockets = Self {
            gateway: given.or_bound("listen", config.listen).await?,
            admin: given.or_bound("admin", config.admin).await?,
            engine,
            control: super::control::pair().context("a pair of sockets")?,
            probe: match config.probe {
                Some(address) => Some(given.or_bound("probe", address).await?),
                None => None,
            },
            enrol: match config.enrol {
                Some(address) => Some(given.or_bound("enrol", address).await?),
                None => None,
            },
            encoder,
        };
        given.all_taken()?;
        Ok(sockets)
    }
}

/// Sockets that systemd bound for this process, and keeps while it is started again (`sd_listen_fds(3)`): a process in a network
/// of its own is reached through them, and reaches nobody. `FileDescriptorName=` of each is the key of its address.
#[derive(Debug, Default)]
struct Given(Vec<(String, TcpListener)>);

impl Given {
    fn from_environment() -> anyhow::Result<Self> {
        let mut sockets = listenfd::ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<_> = names.split(':').collect();
        let mut given = Vec::new();
        for index in 0..sockets.len() {
            let name = names.get(index).copied().unwrap_or_default();
            let taken = sockets.take_tcp_listener(index).with_context(|| format!("the socket `{name}` of systemd"))?;
            // A copy is not handed on to every child, as the original would be.
            if let Some(socket) = taken {
                given.push((name.to_owned(), socket.try_clone()?));
            }
        }
        Ok(Self(given))
    }

    /// The one that was given for `what`, else one that is bound now.
    async fn or_bound(&mut self, what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
        let Some(index) = self.0.iter().position(|(name, _)| name == what) else { return tcp(what, address).await };
        let (_, socket) = self.0.swap_remove(index);
        let bound = socket.local_addr()?;
        ensure!(
            address.port() == 0 || address.port() == bound.port(),
            "systemd listens on {bound} for `{what}`, and the configuration says {address}: make both the same"
        );
        Ok(socket)
    }

    fn all_taken(&self) -> anyhow::Result<()> {
        let names: Vec<_> = self.0.iter().map(|(name, _)| format!("`{name}`")).collect();
        ensure!(
            names.is_empty(),
            "systemd listens for {}, and the configuration names no such address: FileDescriptorName= is one of listen, admin, probe and enrol",
            names.join(", ")
        );
        Ok(())
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
    async fn a_socket_that_was_given_is_used_in_place_of_one_that_is_bound() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = socket.local_addr().unwrap();
        let mut given =
            Given(vec![("listen".to_owned(), socket), ("lisen".to_owned(), TcpListener::bind("127.0.0.1:0").unwrap())]);
        let wrong = SocketAddr::from(([0, 0, 0, 0], bound.port() ^ 1));
        let other = given.or_bound("admin", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        assert_ne!(other.local_addr().unwrap(), bound);
        let any = SocketAddr::from(([0, 0, 0, 0], bound.port()));
        assert_eq!(given.or_bound("listen", any).await.unwrap().local_addr().unwrap(), bound);
        assert!(given.all_taken().unwrap_err().to_string().contains("`lisen`"));
        given.0.truncate(0);
        given.0.push(("listen".to_owned(), other));
        let said = given.or_bound("listen", wrong).await.unwrap_err().to_string();
        assert!(said.contains("make both the same"), "{said}");
        given.all_taken().unwrap();
    }

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
