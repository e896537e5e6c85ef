//! How long what we are sent may go on coming: until the certificate of either side ends, or the other side's is revoked.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use postern_certs::Trust;
use postern_certs::verify::Peer;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::connection::session::{NODE, Session};

/// Of a connection, or of an answer.
pub(super) struct Lifetime {
    session: Arc<Session>,
    over: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    ended: Option<&'static str>,
}

impl Lifetime {
    /// `own_end` is the end of our own leaf. Subscribe to `trust` before the peer is judged, so that no change is missed.
    pub(super) fn new(peer: Peer, own_end: OffsetDateTime, mut trust: watch::Receiver<Arc<Trust>>) -> Self {
        let session = Arc::new(Session::with(peer, own_end, NODE));
        let watched = session.clone();
        let over = Box::pin(async move { watched.over(&mut trust).await });
        Self { session, over, ended: None }
    }

    /// When nothing new should begin within it any more.
    pub(super) fn soft_end(&self) -> Instant {
        self.session.soft_end()
    }

    /// Wakes whoever asks when it is over.
    pub(super) fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.ended.is_none()
            && let Poll::Ready(code) = self.over.as_mut().poll(context)
        {
            self.ended = Some(code);
        }
        self.check_now()
    }

    /// Without waking anybody.
    pub(super) fn check_now(&self) -> io::Result<()> {
        // By the clock of the wall as well: timers stand still while a machine sleeps.
        match self.ended {
            Some(code) => Err(io::Error::other(code)),
            None if !self.session.is_current() => Err(io::Error::other("connection_expired")),
            None => Ok(()),
        }
    }

    /// Waits until it is over. Cancel-safe.
    pub(super) async fn over(&mut self) -> io::Error {
        poll_fn(|context| match self.check(context) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        })
        .await
    }
}

impl fmt::Debug for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifetime").field("session", &self.session).field("ended", &self.ended).finish_non_exhaustive()
    }
}
