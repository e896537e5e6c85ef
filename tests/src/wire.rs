//! A network that can be cut: connections to one address go through here, until nothing does any more.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    passes: bool,
    to: SocketAddr,
    /// Connections of an earlier one are closed.
    generation: u64,
}

/// A stretch of network. Dropping it closes it.
#[derive(Debug)]
pub struct Wire {
    /// Where it begins.
    pub address: SocketAddr,
    state: watch::Sender<State>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.serving.abort();
        self.reset();
    }
}

impl Wire {
    /// One that ends at `to`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn to(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State { passes: true, to, generation: 0 });
        let serving = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(join(near, watched.clone()));
            }
        });
        Ok(Self { address, state, serving })
    }

    /// Nothing goes through any more, and nobody is told: a cable was pulled.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.passes = false);
    }

    /// Everything goes through again, also what waited.
    pub fn mend(&self) {
        self.state.send_modify(|state| state.passes = true);
    }

    /// It ends elsewhere from now on; connections that were are closed.
    pub fn lead_to(&self, to: SocketAddr) {
        self.state.send_modify(|state| (state.to, state.generation) = (to, state.generation + 1));
    }

    /// All connections are closed; new ones go through.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }
}

async fn join(near: TcpStream, mut state: watch::Receiver<State>) {
    let Ok(State { generation, to, .. }) = state.wait_for(|state| state.passes).await.map(|state| *state) else {
        return;
    };
    let Ok(far) = TcpStream::connect(to).await else { return };
    let _nodelay = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let (one, other) = (state.clone(), state.clone());
    tokio::select! {
        _ = state.wait_for(|state| state.generation != generation) => {}
        () = pass(near_in, far_out, one) => {}
        () = pass(far_in, near_out, other) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return };
        let passes = state.wait_for(|state| state.passes).await.is_ok();
        let Some(read) = bytes.get(..read).filter(|_| passes) else { return };
        if to.write_all(read).await.is_err() {
            return;
        }
    }
}
