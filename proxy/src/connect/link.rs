//! The connection to the gateway: HTTP/2 over mutual TLS, one for all requests. Made anew when it ends, when the certificate is
//! replaced, and at once for a request that finds none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_certs::{Clock as _, SystemClock};
use postern_sealed::chunked::ResponseOpener;
use postern_sealed::{chunked, config};
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use tokio::io::AsyncBufReadExt as _;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::identity::{Current, Identity};
use super::keys::{self, KeysError, SealingKey};
use super::refusal::{Refusal, outside, wants_other_keys};
use super::sealing::{self, Cut, OpenBody, Parties, Sealed, Unopened};
use crate::egress;

/// For name, TCP, TLS and HTTP/2 together.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For the gateway's keys.
const KEYS_WITHIN: Duration = Duration::from_secs(5);
/// For a server to begin to speak. One that waits to be spoken to first costs a new connection this long.
const FIRST_WORDS_WITHIN: Duration = Duration::from_millis(500);
/// For a connection that ends to say why.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);
/// For an answer to begin; the gateway's own bounds are below it.
const BEGUN_WITHIN: Duration = Duration::from_secs(15 * 60);
/// For what is said outside of a sealed answer.
const OUTSIDE_WITHIN: Duration = Duration::from_secs(5);
const MAX_OUTSIDE: usize = 16 << 10;
/// How often a silent connection is asked whether somebody is there, and for how long.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Bytes of one answer that the gateway may send before the application has read what came before.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes of an answer that is no stream which are read before the application gets the first: a cut until then is told in words.
const MAX_HELD: usize = 256 << 10;
/// The same of all answers: one that nobody reads takes nothing from others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * super::front::CONNECTIONS as u32;
const MAX_HEADER_BYTES: u32 = 32 << 10;
const MAX_SEND_BUFFER: usize = 256 << 10;
/// Between two attempts that nobody waits for.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// How often it is looked whether the machine has slept, and for how long that counts.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const SLEPT: Duration = Duration::from_secs(5);
/// How often the same reason is told.
const TELL_EVERY: Duration = Duration::from_secs(60);

const INCREMENTAL: HeaderName = HeaderName::from_static("incremental");

/// Where the gateway is, and the connection to it.
#[derive(Debug)]
pub(crate) struct Link {
    /// `HOST:PORT`.
    address: String,
    name: ServerName<'static>,
    /// Where keys are, and where sealed requests go.
    uri: Uri,
    identity: Arc<Identity>,
    held: ArcSwapOption<Held>,
    /// Locked while somebody connects; who has waited meanwhile shares what came of it.
    connecting: Mutex<Option<(Instant, Refusal)>>,
    told: SyncMutex<Option<(Refusal, Instant)>>,
}

/// A connection, and the key that is sealed for on it.
#[derive(Debug)]
pub(crate) struct Held {
    with: Arc<Current>,
    requests: SendRequest<Sealed>,
    key: ArcSwap<SealingKey>,
    fetching: Mutex<()>,
    since: OffsetDateTime,
    /// No new request goes over it.
    given_up: AtomicBool,
    ended: CancellationToken,
}

impl Held {
    fn is_good(&self, current: &Arc<Current>) -> bool {
        let is_open = !self.requests.is_closed() && !self.ended.is_cancelled();
        is_open && !self.given_up.load(Ordering::Relaxed) && Arc::ptr_eq(&self.with, current)
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Since when there is this connection.
    pub(crate) fn since(&self) -> OffsetDateTime {
        self.since
    }

    /// What is sealed for on it.
    pub(crate) fn key(&self) -> Arc<SealingKey> {
        self.key.load_full()
    }
}

/// The end of a connection.
#[derive(Debug)]
struct Ended {
    token: CancellationToken,
    why: Arc<OnceLock<String>>,
}

/// Why a request has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// Nobody has looked at it.
    NotTaken,
    /// Perhaps somebody has.
    Broken,
    Slow,
}

impl Link {
    /// Connects to nothing yet. `address`: `HOST:PORT`.
    ///
    /// # Errors
    /// It is no address.
    pub(crate) fn new(address: String, identity: Arc<Identity>) -> anyhow::Result<Self> {
        let (host, _) = address.rsplit_once(':').unwrap_or((&address, ""));
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let uri = Uri::builder().scheme("https").authority(address.as_str()).path_and_query(keys::PATH).build()?;
        let (held, connecting, told) = (ArcSwapOption::empty(), Mutex::default(), SyncMutex::default());
        Ok(Self { address, name, uri, identity, held, connecting, told })
    }

    /// Where the gateway is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The connection that is there.
    pub(crate) fn present(&self) -> Option<Arc<Held>> {
        self.held.load_full().filter(|held| held.is_good(&self.identity.current()))
    }

    /// Why there is none, if that is so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.as_ref().map(|(refusal, _)| refusal.to_string())
    }

    /// Sends a request sealed, and opens the head of its answer.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub(crate) async fn ask(
        &self,
        asked: &Request<()>,
        content: Bytes,
    ) -> Result<Response<OpenBody<Incoming>>, Refusal> {
        let (mut sent, mut not_taken) = (0, false);
        loop {
            let held = self.connected().await?;
            let key = self.key_of(&held).await?;
            let parties = Parties {
                sender: &held.with.signatory,
                recipient: self.identity.gateway(),
                key: &key.config,
                authority: &self.address,
            };
            let (body, opener) = parties.seal(asked, content.clone(), SystemTime::now())?;
            let response = match self.send(&held.requests, Method::POST, body).await {
                Ok(response) => response,
                Err(Lost::NotTaken) if !not_taken => {
                    held.give_up();
                    not_taken = true;
                    continue;
                }
                Err(Lost::Slow) => return Err(self.slow()),
                Err(_) => return Err(self.broken()),
            };
            sent += 1;
            if sealing::is_sealed(&response) {
                let opened = timeout(BEGUN_WITHIN, self.opened(response.into_body(), opener)).await;
                return opened.unwrap_or_else(|_| Err(self.slow()));
            }
            let refusal = refusal_of(response, self.identity.is_direct()).await;
            if !wants_other_keys(&refusal, sent) {
                return Err(refusal);
            }
            self.fetch_other(&held, &key).await?;
            // A middlebox may say so to have a request answered twice. The keys that it passes on are signed, so with another one it may be true.
            if !self.identity.is_direct() && held.key().config == key.config {
                return Err(refusal);
            }
        }
    }

    /// The beginning of an answer that came sealed; of one that is no stream, mostly all of it.
    async fn opened(&self, body: Incoming, opener: ResponseOpener) -> Result<Response<OpenBody<Incoming>>, Refusal> {
        let mut response = sealing::open(body, opener).await.map_err(|error| match error {
            Unopened::Broken => self.broken(),
            Unopened::Seal(_) => Refusal::NotAuthentic,
        })?;
        response.body_mut().hold(MAX_HELD).await.map_err(|Cut| Refusal::Incomplete)?;
        Ok(response)
    }

    fn slow(&self) -> Refusal {
        Refusal::Slow { gateway: self.address.clone(), seconds: BEGUN_WITHIN.as_secs() }
    }

    fn broken(&self) -> Refusal {
        Refusal::Broken { gateway: self.address.clone() }
    }

    async fn send(
        &self,
        requests: &SendRequest<Sealed>,
        method: Method,
        body: Sealed,
    ) -> Result<Response<Incoming>, Lost> {
        let is_sealed = method == Method::POST;
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (method, self.uri.clone());
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("postern/", env!("CARGO_PKG_VERSION"))));
        if is_sealed {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(chunked::REQUEST));
            headers.insert(ACCEPT, HeaderValue::from_static(chunked::RESPONSE));
            // Whoever is on the way passes pieces on as they come: draft-ietf-httpbis-incremental.
            headers.insert(INCREMENTAL, HeaderValue::from_static("?1"));
        } else {
            headers.insert(ACCEPT, HeaderValue::from_static(config::MEDIA_TYPE));
        }
        match timeout(BEGUN_WITHIN, requests.clone().try_send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            // Behind a middlebox only what was not sent at all was certainly not looked at.
            Ok(Err(failed))
                if failed.message().is_some() || self.identity.is_direct() && was_not_taken(failed.error()) =>
            {
                Err(Lost::NotTaken)
            }
            Ok(Err(_)) => Err(Lost::Broken),
            Err(_) => Err(Lost::Slow),
        }
    }

    /// The connection; makes one if there is none.
    async fn connected(&self) -> Result<Arc<Held>, Refusal> {
        if let Some(held) = self.present() {
            return Ok(held);
        }
        let asked = Instant::now();
        let mut last = self.connecting.lock().await;
        if let Some(held) = self.present() {
            return Ok(held);
        }
        if let Some((at, refusal)) = last.as_ref().filter(|(at, _)| *at >= asked) {
            tracing::debug!(age = ?at.elapsed(), "shared a failed attempt");
            return Err(refusal.clone());
        }
        let connected = self.connect().await;
        match &connected {
            Ok(held) => {
                *last = None;
                self.held.store(Some(held.clone()));
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
                tracing::info!(gateway = self.address, id = %self.identity.gateway(), "connected");
            }
            Err(refusal) => {
                *last = Some((Instant::now(), refusal.clone()));
                self.held.store(None);
                self.tell(refusal);
            }
        }
        connected
    }

    async fn connect(&self) -> Result<Arc<Held>, Refusal> {
        let with = self.identity.current();
        if !with.is_valid() {
            return Err(Refusal::CertificateExpired { ended: with.not_after });
        }
        let connecting = timeout(CONNECT_WITHIN, self.shake_hands(&with)).await;
        let late = || self.unreachable(format!("no answer within {} s", CONNECT_WITHIN.as_secs()));
        let (requests, ended) = connecting.map_err(|_| late())??;
        let key = match self.fetch(&requests, &with).await {
            Ok(key) => ArcSwap::from_pointee(key),
            Err(refusal) => {
                // With TLS 1.3 it is only now that a gateway says whether it accepts a certificate.
                let _in_time = timeout(LAST_WORDS_WITHIN, ended.token.cancelled()).await;
                return Err(ended.why.get().map_or(refusal, |why| self.closed_at_once(why)));
            }
        };
        let (fetching, since, given_up) = (Mutex::default(), SystemClock.now(), AtomicBool::new(false));
        Ok(Arc::new(Held { with, requests, key, fetching, since, given_up, ended: ended.token }))
    }

    async fn shake_hands(&self, with: &Current) -> Result<(SendRequest<Sealed>, Ended), Refusal> {
        let stream = egress::dial_gateway(&self.address).await.map_err(|error| self.unreachable(brief(&error)))?;
        let stream = TlsConnector::from(with.tls.clone()).connect(self.name.clone(), stream).await;
        let mut stream = stream.map_err(|error| {
            let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            match tls {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    self.not_the_gateway(egress::in_words(&error), self.of_certificate())
                }
                Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => self.no_http2(),
                Some(_) => self.unreachable(egress::in_words(&error)),
                None => self.unreachable(brief(&error)),
            }
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(self.no_http2());
        }
        // A client of TLS 1.3 is through before the gateway has looked at its certificate. A gateway begins to speak when it has; read before anything is
        // written, an alert is not lost to the end of the connection.
        if let Ok(Err(error)) = timeout(FIRST_WORDS_WITHIN, stream.fill_buf()).await {
            return Err(self.closed_at_once(&egress::in_words(&error)));
        }
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_send_buf_size(MAX_SEND_BUFFER);
        let shaken = http.handshake(TokioIo::new(stream)).await;
        let (requests, connection) = shaken.map_err(|error| self.unreachable(egress::in_words(&error)))?;
        let ended = Ended { token: CancellationToken::new(), why: Arc::default() };
        let (over, why) = (ended.token.clone().drop_guard(), ended.why.clone());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                let error = egress::in_words(&error);
                tracing::info!(error, "the connection to the gateway ended");
                let _first = why.set(error);
            }
            drop(over);
        });
        Ok((requests, ended))
    }

    /// A key with some time left.
    async fn key_of(&self, held: &Held) -> Result<Arc<SealingKey>, Refusal> {
        let key = held.key();
        if !key.is_over(now()) {
            return Ok(key);
        }
        self.fetch_other(held, &key).await?;
        Ok(held.key())
    }

    /// Fetches keys anew, unless somebody else has since `than`.
    async fn fetch_other(&self, held: &Held, than: &Arc<SealingKey>) -> Result<(), Refusal> {
        let _one_at_a_time = held.fetching.lock().await;
        if Arc::ptr_eq(&held.key(), than) {
            held.key.store(Arc::new(self.fetch(&held.requests, &held.with).await?));
        }
        Ok(())
    }

    async fn fetch(&self, requests: &SendRequest<Sealed>, with: &Current) -> Result<SealingKey, Refusal> {
        let fetched = timeout(KEYS_WITHIN, async {
            let response = self.send(requests, Method::GET, Sealed::nothing()).await;
            let response = response.map_err(|_| KeysError::Broken)?;
            keys::read(response, &with.trust, self.identity.gateway(), now()).await
        });
        match fetched.await.unwrap_or(Err(KeysError::Broken)) {
            Ok(key) => Ok(key),
            Err(KeysError::Status(status)) => Err(Refusal::NoKeys { gateway: self.address.clone(), status }),
            Err(error @ KeysError::Broken) => Err(self.unreachable(error.to_string())),
            Err(error) => Err(self.not_the_gateway(error.to_string(), of_keys(&error))),
        }
    }

    fn unreachable(&self, why: String) -> Refusal {
        Refusal::Unreachable { gateway: self.address.clone(), why }
    }

    /// An alert about the certificate is the last word of a gateway, if it comes before the end of the connection is noticed.
    fn closed_at_once(&self, why: &str) -> Refusal {
        const ABOUT_CERTIFICATES: [&str; 8] = [
            "CertificateRevoked",
            "CertificateExpired",
            "CertificateUnknown",
            "CertificateRequired",
            "BadCertificate",
            "UnsupportedCertificate",
            "UnknownCA",
            "AccessDenied",
        ];
        if ABOUT_CERTIFICATES.iter().any(|alert| why.contains(&format!("alert: {alert}"))) {
            return Refusal::NotLetIn { gateway: self.address.clone(), why: why.to_owned() };
        }
        self.unreachable(format!("{why}; it closed the connection at once, as it does where it does not accept a certificate, or where --gateway is another of its addresses"))
    }

    fn not_the_gateway(&self, why: String, advice: &'static str) -> Refusal {
        Refusal::NotTheGateway { gateway: self.address.clone(), why, advice }
    }

    /// What to do about a certificate that is refused.
    fn of_certificate(&self) -> &'static str {
        match self.identity.is_direct() {
            true => "If a middlebox of your network breaks TLS open, name its authority with --middlebox-ca.",
            false => {
                "It is neither the gateway's own nor one of the authority in --middlebox-ca for the host name in --gateway. Tell the operator."
            }
        }
    }

    fn no_http2(&self) -> Refusal {
        Refusal::NoHttp2 { gateway: self.address.clone(), is_direct: self.identity.is_direct() }
    }

    /// Each reason once a minute.
    fn tell(&self, refusal: &Refusal) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref().is_none_or(|(before, at)| before != refusal || at.elapsed() > TELL_EVERY) {
            tracing::warn!(error = %refusal, "there is no connection to the gateway");
            *told = Some((refusal.clone(), Instant::now()));
        }
    }

    /// Keeps a connection, so that the first request after a pause does not wait for one.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.connected().await {
                Ok(held) => {
                    let begun = Instant::now();
                    tokio::select! {
                        () = held.ended.cancelled() => {}
                        () = held.with.replaced.cancelled() => {}
                        () = slept() => held.give_up(),
                    }
                    if begun.elapsed() > LAST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(_) => pause = (pause * 2).min(LAST_PAUSE),
            }
            // Many workstations lose the same gateway at a time.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }
}

/// What to do about keys that are refused.
fn of_keys(error: &KeysError) -> &'static str {
    match error {
        KeysError::Over => "Set the clock of this machine right, if it is wrong; else tell the operator.",
        KeysError::Signature(_) => {
            "Something on the way put other keys in place of the gateway's. Nothing was sent. Tell the operator."
        }
        _ => "Something on the way may have changed them. Nothing was sent. Tell the operator.",
    }
}

fn now() -> u64 {
    postern_certs::clock::steady_now().unix_timestamp().try_into().unwrap_or_default()
}

/// Resolves when the machine has slept: more time has passed by the clock of the wall than by the one that stands still meanwhile. The
/// gateway has mostly closed the connection by then, which the first request would notice only after [`PING_EVERY`].
async fn slept() {
    loop {
        let (wall, steady) = (SystemTime::now(), Instant::now());
        tokio::time::sleep(LOOK_EVERY).await;
        if wall.elapsed().unwrap_or_default() > steady.elapsed() + SLEPT {
            return;
        }
    }
}

/// Why there is no connection, in a few words.
fn brief(error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::ConnectionRefused => "connection refused".to_owned(),
        K::ConnectionReset | K::ConnectionAborted | K::UnexpectedEof | K::BrokenPipe => "connection closed".to_owned(),
        K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => "no way to it".to_owned(),
        K::TimedOut => "no answer".to_owned(),
        _ => egress::in_words(error),
    }
}

/// The gateway says that it has not looked at the request: it refused the stream, or the stream came after those that it still answers
/// when it ends (RFC 9113, 6.8 and 8.7).
fn was_not_taken(error: &hyper::Error) -> bool {
    let first: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut http2 = std::iter::successors(first, |error| error.source()).filter_map(|error| error.downcast_ref());
    http2.any(|error: &h2::Error| {
        let reason = error.reason();
        error.is_remote()
            && (reason == Some(h2::Reason::REFUSED_STREAM)
                || (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)))
    })
}

/// What an answer that is not sealed says, as far as it counts.
async fn refusal_of(response: Response<Incoming>, is_direct: bool) -> Refusal {
    let (parts, body) = response.into_parts();
    let body = timeout(OUTSIDE_WITHIN, Limited::new(body, MAX_OUTSIDE).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    outside(parts.status, parts.headers.get(RETRY_AFTER), &body, is_direct)
}
