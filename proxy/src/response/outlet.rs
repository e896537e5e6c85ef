//! What was made for a client and its connection has not taken yet: bounded in bytes, and with a deadline that holds although
//! nobody polls the body of a client that does not read.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use postern_wire::sse;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep};

use super::{Body, Cut};

/// Bytes that wait for a connection, at most.
const AHEAD: u32 = 256 << 10;
/// The most bytes of one frame. What is larger goes in several, so that no answer waits as a whole.
pub(super) const FRAME: usize = 64 << 10;
/// What the smallest frame counts: so no more than four wait, and a slow reader is not far behind.
const LEAST: u32 = AHEAD / 4;

/// The end of a body at which bytes are put in. Dropping it ends the body.
#[derive(Debug)]
pub(super) struct Outlet {
    frames: mpsc::UnboundedSender<Waiting>,
    room: Arc<Semaphore>,
}

struct Waiting {
    bytes: Result<Bytes, Cut>,
    /// Given back when the connection takes it.
    _room: Option<OwnedSemaphorePermit>,
}

impl Outlet {
    /// And the body that it fills.
    pub(super) fn new() -> (Self, Body) {
        // Bounded all the same: what is put in has room, but for what comes last.
        let (frames, waiting) = mpsc::unbounded_channel();
        let taken = futures_util::stream::unfold(waiting, |mut waiting| async move {
            let frame: Waiting = waiting.recv().await?;
            Some((frame.bytes.map(Frame::data), waiting))
        });
        let room = Arc::new(Semaphore::new(AHEAD as usize));
        (Self { frames, room }, StreamBody::new(taken).boxed_unsync())
    }

    /// Puts bytes in when there is room for them. False: the client has gone.
    pub(super) async fn send(&self, mut bytes: Bytes) -> bool {
        while bytes.len() > FRAME {
            // A copy: a slice would keep all of it in memory until its last piece is taken.
            let piece = Bytes::copy_from_slice(&bytes.split_to(FRAME));
            if !self.send_one(piece).await {
                return false;
            }
        }
        self.send_one(bytes).await
    }

    async fn send_one(&self, bytes: Bytes) -> bool {
        let counts = u32::try_from(bytes.len()).unwrap_or(AHEAD).clamp(LEAST, AHEAD);
        let room = self.room.clone().acquire_many_owned(counts).await.ok();
        room.is_some() && self.frames.send(Waiting { bytes: Ok(bytes), _room: room }).is_ok()
    }

    /// A comment, if the client has read all that came before.
    pub(super) fn comment(&self) {
        if let Ok(room) = self.room.clone().try_acquire_many_owned(AHEAD) {
            let bytes = Ok(Bytes::from_static(sse::COMMENT.as_bytes()));
            let _gone = self.frames.send(Waiting { bytes, _room: Some(room) });
        }
    }

    /// Waits until the connection has taken everything. False: the client has gone.
    pub(super) async fn taken(&self) -> bool {
        let all = self.room.acquire_many(AHEAD).await;
        all.is_ok() && !self.frames.is_closed()
    }

    /// Waits until the client has gone.
    pub(super) async fn closed(&self) {
        self.frames.closed().await;
    }

    /// Puts in what comes last, whatever else waits.
    pub(super) fn last(self, bytes: Bytes) {
        let _gone = self.frames.send(Waiting { bytes: Ok(bytes), _room: None });
    }

    /// Says that the body was cut, whatever else waits.
    pub(super) fn cut(self) {
        let _gone = self.frames.send(Waiting { bytes: Err(Cut), _room: None });
    }
}

/// How long nothing was put into an outlet. One timer for a whole stream: it is not set anew for each event.
pub(super) struct Silence {
    bound: Duration,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    pub(super) fn new(bound: Duration) -> Self {
        Self { bound, since: Instant::now(), timer: Box::pin(sleep(bound)) }
    }

    /// Waits for what comes next. As long as it does not come, comments do: they keep the connection open while a target thinks, or
    /// another one is sought.
    pub(super) async fn filled<T>(&mut self, mut next: Pin<&mut impl Future<Output = T>>, outlet: &Outlet) -> T {
        self.since = Instant::now();
        loop {
            tokio::select! {
                biased;
                next = &mut next => return next,
                () = &mut self.timer => {
                    if self.since.elapsed() >= self.bound {
                        outlet.comment();
                        self.since = Instant::now();
                    }
                    self.timer.as_mut().reset(self.since + self.bound);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does it come to its end without anybody who reads?
    async fn at_once(sending: impl Future<Output = bool>) -> bool {
        tokio::time::timeout(Duration::from_millis(20), sending).await.is_ok()
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_number_and_bytes() {
        let (outlet, mut body) = Outlet::new();
        for _ in 0..4 {
            assert!(at_once(outlet.send(Bytes::from_static(b"small"))).await);
        }
        assert!(!at_once(outlet.send(Bytes::from_static(b"one too many"))).await);
        for _ in 0..4 {
            body.frame().await.unwrap().unwrap();
        }
        assert!(!at_once(outlet.send(vec![b'x'; 1 << 20].into())).await, "a large one has no room as a whole");
        assert_eq!(outlet.frames.strong_count(), 1);
        let mut waited = 0;
        while outlet.room.available_permits() < AHEAD as usize {
            waited += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        assert_eq!(waited, AHEAD as usize);
    }

    #[tokio::test]
    async fn a_large_one_arrives_whole_and_is_known_to_be_taken() {
        let (outlet, body) = Outlet::new();
        let sent: Bytes = (0..1_000_000_u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move { outlet.send(sent).await && outlet.taken().await });
        assert_eq!(body.collect().await.unwrap().to_bytes(), expected);
        assert!(sending.await.unwrap());
        let (outlet, body) = Outlet::new();
        assert!(outlet.send(Bytes::from_static(b"a")).await);
        assert!(!at_once(outlet.taken()).await, "nobody has taken it");
        drop(body);
        assert!(!outlet.taken().await && !outlet.send(Bytes::from_static(b"b")).await);
    }

    #[tokio::test]
    async fn a_cut_is_told_after_what_waits() {
        let (outlet, mut body) = Outlet::new();
        outlet.comment();
        outlet.comment();
        outlet.cut();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), sse::COMMENT);
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_and_what_is_awaited_goes_on() {
        let (outlet, mut body) = Outlet::new();
        let mut silence = Silence::new(Duration::from_secs(10));
        let awaited = async |seconds: u64, silence: &mut Silence| {
            let next = std::pin::pin!(async {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                seconds
            });
            assert_eq!(silence.filled(next, &outlet).await, seconds);
        };
        awaited(9, &mut silence).await;
        awaited(9, &mut silence).await;
        assert!(outlet.taken().await, "not silent for long enough");
        let reading = tokio::spawn(async move {
            let mut comments = 0;
            while body.frame().await.is_some() {
                comments += 1;
            }
            comments
        });
        awaited(35, &mut silence).await;
        drop(outlet);
        assert_eq!(reading.await.unwrap(), 3);
    }
}
