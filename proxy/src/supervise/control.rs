//! How the gateway, which starts no process, asks its supervisor for another engine, or for a successor that is offline:
//! datagrams on a pair of sockets. Both ends belong to the supervisor, so a gateway that is started again has the same line.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixDatagram;
use tokio::sync::Mutex;

/// The most bytes of a message; a model's name or path is the longest part.
const MAX_MESSAGE: usize = 8 << 10;
/// The most bytes of a model's name.
const MAX_MODEL: usize = 4096;
/// How long a swap may take: the supervisor gives up on a model before this.
const SWAPPED_WITHIN: Duration = Duration::from_secs(330);

/// What the gateway tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// Another model is wanted.
    Swap {
        /// Names the wish.
        id: u64,
        /// The model.
        model: String,
    },
    /// The gateway is to be replaced by one that is offline.
    Offline,
    /// An engine has dialled, and its model is loaded.
    Connected {
        /// Its process.
        pid: u32,
    },
}

/// What became of a wish.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    id: u64,
    error: Option<String>,
}

/// Why a wish is not granted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The supervisor says why.
    #[error("{0}")]
    Refused(String),
    /// Another swap is under way.
    #[error("another model is being loaded; try again when it is there")]
    Busy,
    /// The line to the supervisor is of no use.
    #[error("the supervisor does not answer")]
    Silent,
}

/// Both ends.
///
/// # Errors
/// The system has no sockets left.
pub(super) fn pair() -> std::io::Result<(StdUnixDatagram, StdUnixDatagram)> {
    let pair = StdUnixDatagram::pair()?;
    pair.0.set_nonblocking(true)?;
    pair.1.set_nonblocking(true)?;
    Ok(pair)
}

/// The gateway's end.
#[derive(Debug)]
pub struct Control {
    socket: UnixDatagram,
    /// The same socket: the runtime would refuse to send before it has looked once whether it can.
    out: StdUnixDatagram,
    /// Held by the one swap at a time.
    swapping: Mutex<()>,
}

impl Control {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// It is no socket of the right kind.
    pub fn new(socket: StdUnixDatagram) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let out = socket.try_clone()?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, out, swapping: Mutex::default() })
    }

    /// The engine of this process has its model. Never waits: if the line is full, the supervisor only takes longer to trust a
    /// new engine.
    pub fn connected(&self, pid: u32) {
        if let Err(error) = send(&self.out, &Told::Connected { pid }) {
            tracing::warn!(%error, "the supervisor was not told of an engine");
        }
    }

    /// Asks for another model, and waits until its engine has it.
    ///
    /// # Errors
    /// See [`ControlError`]. The old engine goes on.
    pub async fn swap(&self, model: &str) -> Result<(), ControlError> {
        if model.is_empty() || model.len() > MAX_MODEL {
            return Err(ControlError::Refused(format!("a model's name has 1 to {MAX_MODEL} bytes")));
        }
        let Ok(_one_at_a_time) = self.swapping.try_lock() else { return Err(ControlError::Busy) };
        let id = rand::random();
        send(&self.out, &Told::Swap { id, model: model.to_owned() }).map_err(|_| ControlError::Silent)?;
        match tokio::time::timeout(SWAPPED_WITHIN, self.answer(id)).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(error))) => Err(ControlError::Refused(error)),
            Ok(Err(_)) | Err(_) => Err(ControlError::Silent),
        }
    }

    /// Asks for a successor that is offline: this process is about to be told to end, and no gateway of this supervisor will be
    /// online again. Waits for nothing, also while another model is being loaded.
    ///
    /// # Errors
    /// The line is full, or of no use.
    pub fn go_offline(&self) -> Result<(), ControlError> {
        send(&self.out, &Told::Offline).map_err(|_| ControlError::Silent)
    }

    async fn answer(&self, id: u64) -> std::io::Result<Option<String>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        loop {
            let length = self.socket.recv(&mut bytes).await?;
            // Answers to a gateway that is gone are still on the line.
            if let Ok(answer) = serde_json::from_slice::<Answer>(bytes.get(..length).unwrap_or_default())
                && answer.id == id
            {
                return Ok(answer.error);
            }
        }
    }
}

/// The supervisor's end.
#[derive(Debug)]
pub(super) struct Requests {
    socket: UnixDatagram,
    out: StdUnixDatagram,
}

impl Requests {
    pub(super) fn new(socket: StdUnixDatagram) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let out = socket.try_clone()?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, out })
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&self) -> std::io::Result<Told> {
        let mut bytes = vec![0; MAX_MESSAGE];
        loop {
            let length = self.socket.recv(&mut bytes).await?;
            match serde_json::from_slice(bytes.get(..length).unwrap_or_default()) {
                Ok(told) => return Ok(told),
                Err(_) => tracing::warn!("a message of the gateway is not understood"),
            }
        }
    }

    /// Answers a wish; if nobody reads that any more, nobody needs to know.
    pub(super) fn answer(&self, id: u64, error: Option<String>) {
        let _unread = send(&self.out, &Answer { id, error });
    }
}

/// Never waits.
fn send(socket: &StdUnixDatagram, message: &impl Serialize) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ErrorKind::InvalidInput.into());
    }
    socket.send(&bytes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn both() -> (std::sync::Arc<Control>, Requests) {
        let (ours, theirs) = pair().unwrap();
        (std::sync::Arc::new(Control::new(theirs).unwrap()), Requests::new(ours).unwrap())
    }

    #[tokio::test]
    async fn a_wish_is_answered_and_only_one_is_open() {
        let (control, requests) = both().await;
        control.connected(7);
        assert!(matches!(requests.next().await.unwrap(), Told::Connected { pid: 7 }));
        for error in [None, Some("no such model".to_owned())] {
            let wish = tokio::spawn({
                let control = control.clone();
                async move { control.swap("other").await }
            });
            let Told::Swap { id, model } = requests.next().await.unwrap() else { panic!("not a wish") };
            assert_eq!(model, "other");
            assert!(matches!(control.swap("third").await, Err(ControlError::Busy)));
            requests.answer(id.wrapping_add(1), Some("to another gateway".to_owned()));
            requests.answer(id, error.clone());
            match (wish.await.unwrap(), error) {
                (Ok(()), None) => {}
                (Err(ControlError::Refused(said)), Some(error)) => assert_eq!(said, error),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn nothing_is_waited_for_on_the_way_offline() {
        let (control, requests) = both().await;
        let _swapping = control.swapping.lock().await;
        control.go_offline().unwrap();
        assert!(matches!(requests.next().await.unwrap(), Told::Offline));
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_sent() {
        let (control, _requests) = both().await;
        for model in [String::new(), "x".repeat(MAX_MODEL + 1)] {
            assert!(matches!(control.swap(&model).await, Err(ControlError::Refused(_))));
        }
        // As JSON, each of these is six bytes.
        assert!(matches!(control.swap(&"\u{1}".repeat(MAX_MODEL)).await, Err(ControlError::Silent)));
    }
}
