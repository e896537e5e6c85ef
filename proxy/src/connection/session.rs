//! Who is at the other end of a connection, for how long, and why it was ended if it did not end by itself.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use postern_certs::verify::Peer;
use postern_certs::{Clock as _, SpiffeId, SystemClock, Trust, clock};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long a connection may live, whatever the leaves say, and how long requests under way may take after it was asked to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    age: Duration,
    drain: Duration,
}

/// Of clients: load moves and rules take hold within the hour.
pub(crate) const CLIENT: Life = Life { age: Duration::from_secs(3600), drain: Duration::from_secs(30) };
/// Between the gateway and a node of its own: the streams of many clients are on it, and each may take as long as a request
/// may last.
pub(crate) const NODE: Life = Life { age: Duration::from_secs(7 * 86_400), drain: Duration::from_secs(600) };

/// Why a connection is cut whose requests did not end in time.
pub(crate) const DRAIN_TIMEOUT: &str = "drain_timeout";

/// One authenticated connection.
#[derive(Debug)]
pub struct Session {
    /// As its leaf says.
    pub peer: Peer,
    /// The end of the client's leaf or of ours, whichever is first. Nothing is served after it.
    until: OffsetDateTime,
    /// Asked to end from here on.
    soft_end: Instant,
    /// Cut here.
    hard_end: Instant,
    drain: Duration,
    /// A request came after `until`: the machine slept, or its clock was set.
    overdue: CancellationToken,
    /// Whoever is in the middle of an answer says so, and ends it.
    last_words: CancellationToken,
    cut: OnceLock<&'static str>,
    /// Whose connection it is, if it is somebody else's.
    over: Option<Arc<Session>>,
}

/// How a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// What is under way may finish.
    Soon,
    /// At once; the code for the records.
    Now(&'static str),
}

impl Session {
    /// Of a client; `own_end` is the end of our own leaf.
    #[must_use]
    pub fn new(peer: Peer, own_end: OffsetDateTime) -> Self {
        Self::with(peer, own_end, CLIENT)
    }

    /// With another life than a client's.
    #[must_use]
    pub(crate) fn with(peer: Peer, own_end: OffsetDateTime, life: Life) -> Self {
        let (until, soft, hard) = ends(peer.not_after, own_end, SystemClock.now(), life);
        let now = Instant::now();
        let (soft_end, hard_end) = (now + soft, now + hard);
        let drain = life.drain;
        let (overdue, last_words) = (CancellationToken::new(), CancellationToken::new());
        Self { peer, until, soft_end, hard_end, drain, overdue, last_words, cut: OnceLock::new(), over: None }
    }

    /// Of somebody whose signed request came over the connection of somebody else. It ends with that.
    #[must_use]
    pub(crate) fn carried(peer: Peer, over: &Arc<Self>) -> Self {
        Self {
            until: over.until.min(peer.not_after),
            peer,
            soft_end: over.soft_end,
            hard_end: over.hard_end,
            drain: over.drain,
            // The connection goes on without this one.
            overdue: CancellationToken::new(),
            last_words: over.last_words.clone(),
            cut: OnceLock::new(),
            over: Some(over.clone()),
        }
    }

    /// Over whose connection it came, if that is somebody else's.
    #[must_use]
    pub(crate) fn relay(&self) -> Option<&SpiffeId> {
        self.over.as_ref().map(|over| &over.peer.id)
    }

    /// When it is to be asked for nothing new any more, so that what is under way ends before a leaf does.
    #[must_use]
    pub(crate) fn soft_end(&self) -> Instant {
        self.soft_end
    }

    /// False if a leaf has ended meanwhile; the connection is then asked to end. By wall time, which goes on while a machine
    /// sleeps.
    pub fn is_current(&self) -> bool {
        let current = clock::steady_now() <= self.until;
        if !current {
            self.overdue.cancel();
        }
        current
    }

    /// Why it was cut; a code for the records.
    #[must_use]
    pub fn cut(&self) -> Option<&'static str> {
        self.cut.get().copied().or_else(|| self.over.as_ref()?.cut())
    }

    /// Notes why it is about to be cut. The first reason counts.
    pub(crate) fn set_cut(&self, code: &'static str) {
        let _first_counts = self.cut.set(code);
    }

    /// Asks for the last words on this connection, which is about to be cut.
    pub(crate) fn ask_last_words(&self) {
        self.last_words.cancel();
    }

    /// Waits until last words are asked for.
    pub(crate) async fn last_words(&self) {
        self.last_words.cancelled().await;
    }

    /// Waits until the connection has to end. Cancel-safe.
    pub(crate) async fn end(&self, trust: &mut watch::Receiver<Arc<Trust>>, drain: &CancellationToken) -> End {
        tokio::select! {
            biased;
            end = self.distrusted(trust) => end,
            () = drain.cancelled() => End::Soon,
            () = self.overdue.cancelled() => End::Soon,
            () = sleep_until(self.soft_end) => End::Soon,
        }
    }

    /// Waits, after it was asked to end, until it has to be cut.
    pub(crate) async fn end_now(&self, trust: &mut watch::Receiver<Arc<Trust>>) -> &'static str {
        let drained = Instant::now() + self.drain;
        let revoked = async {
            loop {
                if let End::Now(code) = self.distrusted(trust).await {
                    return code;
                }
            }
        };
        tokio::select! {
            code = revoked => code,
            () = sleep_until(drained) => DRAIN_TIMEOUT,
            () = sleep_until(self.hard_end) => "connection_expired",
        }
    }

    /// Waits until a connection has to be cut that is ours, so that the other side has to be asked by nobody to end it.
    pub(crate) async fn over(&self, trust: &mut watch::Receiver<Arc<Trust>>) -> &'static str {
        let end = tokio::select! {
            end = self.distrusted(trust) => end,
            () = sleep_until(self.hard_end) => End::Now("connection_expired"),
        };
        match end {
            End::Now(code) => code,
            End::Soon => self.end_now(trust).await,
        }
    }

    /// Waits for a change of trust that concerns this connection.
    async fn distrusted(&self, trust: &mut watch::Receiver<Arc<Trust>>) -> End {
        loop {
            let before = {
                let now = trust.borrow_and_update();
                if now.is_revoked(&self.peer) {
                    return End::Now("certificate_revoked");
                }
                Arc::clone(&now)
            };
            if trust.changed().await.is_err() {
                return std::future::pending().await;
            }
            // Who came in under a root that is trusted no longer is judged anew, by a new handshake.
            let roots = trust.borrow().roots();
            if before.roots().iter().any(|root| !roots.contains(root)) {
                return End::Soon;
            }
        }
    }
}

/// The end of the leaf that ends first; after how long the connection is asked to end, and cut.
fn ends(
    theirs: OffsetDateTime,
    ours: OffsetDateTime,
    now: OffsetDateTime,
    life: Life,
) -> (OffsetDateTime, Duration, Duration) {
    let until = theirs.min(ours);
    let left = Duration::try_from(until - now).unwrap_or_default();
    // Asked early enough that what is under way ends before the leaf does.
    let soft = left.saturating_sub(life.drain.min(left / 2)).min(life.age);
    (until, soft, left.min(soft + life.drain))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Response, Version};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;
    use postern_certs::{Authority, AuthorityOptions, LeafRequest, verify};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::connection::{Bounds, drive};

    #[test]
    fn the_earlier_end_of_the_two_leaves_counts() {
        let now = SystemClock.now();
        let at = |seconds: i64| now + time::Duration::seconds(seconds);
        for (first, soft, hard) in [(600, 570, 600), (10, 5, 10), (-1, 0, 0), (80_000, 3600, 3630)] {
            let expected = (at(first), Duration::from_secs(soft), Duration::from_secs(hard));
            assert_eq!(ends(at(first), at(86_400), now, CLIENT), expected, "theirs");
            assert_eq!(ends(at(86_400), at(first), now, CLIENT), expected, "ours");
        }
        // Nothing is cut on a node but by the end of a leaf, and what is under way has ten minutes before it.
        let expected = (at(80_000), Duration::from_secs(79_400), Duration::from_secs(80_000));
        assert_eq!(ends(at(80_000), at(86_400), now, NODE), expected);
    }

    #[tokio::test]
    async fn last_words_are_given_out_before_a_connection_is_cut_for_time() {
        let dir = tempfile::tempdir().unwrap();
        let options = AuthorityOptions::new("td", Duration::from_secs(3600));
        let authority = Authority::open_or_create(&dir.path().join("authority"), options).unwrap();
        let id = "spiffe://td/clerk/amy".parse().unwrap();
        let leaf = authority.issue(LeafRequest::below(authority.prefix(), id)).unwrap();
        let peer = verify::peer(leaf.chain.first().unwrap()).unwrap();
        let life = Life { age: Duration::from_secs(3600), drain: Duration::from_millis(100) };
        let session = Arc::new(Session::with(peer, SystemClock.now() + time::Duration::hours(1), life));
        let drain = CancellationToken::new();
        let (asked, drains) = (session.clone(), drain.clone());
        let service = service_fn(move |_| {
            let session = asked.clone();
            // The gateway is told to end when the request is there.
            drains.cancel();
            let words = async move {
                session.last_words().await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"last words")))
            };
            async move { Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::once(words)))) }
        });
        let (mut client, server) = tokio::io::duplex(1024);
        let (_trust, trusted) = watch::channel(authority.trust());
        let bounds = Bounds { receive: Duration::from_secs(10), streams: 1 };
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        drive(server, service, &session, (trusted, drain), Version::HTTP_11, bounds).await;
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        assert!(read.ends_with("last words\r\n0\r\n\r\n"), "{read}");
        assert_eq!(session.cut(), Some(DRAIN_TIMEOUT));
    }
}
