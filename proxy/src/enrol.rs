//! How workstations come by their certificates: with an invite on the `enrol` address, and from then on with the leaf they
//! have, on the gateway's own address.
//!
//! | request | where | who |
//! | --- | --- | --- |
//! | `POST /enrol {"token", "csr"}` | `enrol`, no client certificate | who holds an invite that was not used |
//! | `POST /.well-known/postern/renew {"csr"}` | `listen`, mTLS | who has a leaf that is valid and not revoked |
//!
//! Both answer `{"id", "gateway", "certificate", "ca", "not_after"}`; `certificate` and `ca` are PEM, and so is `csr`. The key
//! never leaves the workstation.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use moka::sync::Cache;
use postern_certs::{Authority, CertsError, JoinToken, SignedLeaf, rfc3339};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::connection::session::Session;
use crate::error::Error;
use crate::listener::anonymous_handshake;
use crate::listener::places::{Places, network};
use crate::open::Payload;
use crate::request::read_small;
use crate::response::{self, Body};
use crate::telemetry::metrics::Metrics;
use crate::tls::Certificate;

/// Where a leaf is renewed, on the gateway's own address.
pub(crate) const RENEW_PATH: &str = "/.well-known/postern/renew";
/// Where a workstation enrols, on the `enrol` address.
pub(crate) const ENROL_PATH: &str = "/enrol";

/// Bytes of a request: a token and a CSR are under 4 KiB.
const MAX_BODY: usize = 16 << 10;
/// From accept to the last byte.
const WITHIN: Duration = Duration::from_secs(15);
/// Connections at a time, in all and from one address.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_PER_ADDRESS: usize = 8;
/// Tries a minute from one address. A token of 256 bits is not guessed at any rate; this bounds the work.
const TRIES_PER_ADDRESS: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// Certificates that are being signed, which writes to the disk. More wait.
const SIGNING: usize = 4;
/// Renewals a minute of one identity. One in 36 hours is usual.
const RENEWALS: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
/// Those whose rates are kept.
const KEPT: u64 = 10_000;
const IDLE: Duration = Duration::from_secs(120);
/// After an error of accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Signs for those who may have a certificate.
#[derive(Debug)]
pub(crate) struct Registrar {
    certificate: Arc<Certificate>,
    metrics: Arc<Metrics>,
    signing: Arc<Semaphore>,
    tries_per_address: Cache<IpAddr, Arc<DefaultDirectRateLimiter>>,
    renewals: Cache<String, Arc<DefaultDirectRateLimiter>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enrolment {
    token: String,
    csr: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renewal {
    csr: String,
}

impl Registrar {
    /// Signs with the authority of `certificate`.
    #[must_use]
    pub(crate) fn new(certificate: Arc<Certificate>, metrics: Arc<Metrics>) -> Self {
        Self {
            certificate,
            metrics,
            signing: Arc::new(Semaphore::new(SIGNING)),
            tries_per_address: Cache::builder().max_capacity(KEPT).time_to_idle(IDLE).build(),
            renewals: Cache::builder().max_capacity(KEPT).time_to_idle(IDLE).build(),
        }
    }

    /// The gateway's own.
    pub(crate) fn certificate(&self) -> &Arc<Certificate> {
        &self.certificate
    }

    /// Answers `POST` [`RENEW_PATH`].
    pub(crate) async fn renew(&self, session: &Session, request: Request<Payload>) -> Response<Body> {
        let id = session.peer.id.to_string();
        let limiter = || Arc::new(RateLimiter::direct(Quota::per_minute(RENEWALS)));
        let limiter = self.renewals.get_with_by_ref(&id, limiter);
        let signed = async {
            check(&limiter, "renewals a minute")?;
            let Renewal { csr } = match request.into_body() {
                Payload::Plain(body) | Payload::Inside(body) => read(body).await?,
                Payload::Opened(unsealed) => parse(&unsealed.body)?,
            };
            let (authority, peer) = (self.certificate.clone(), session.peer.clone());
            let csr = der(&csr)?;
            self.sign(authority, move |authority| authority.renew(&peer, &csr)).await
        };
        self.reply("renew", signed.await)
    }

    async fn enrol(&self, address: IpAddr, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != ENROL_PATH {
            return response::error(&Error::EnrolOnly);
        }
        if request.method() != Method::POST {
            return response::error(&Error::Method("POST"));
        }
        let limiter = || Arc::new(RateLimiter::direct(Quota::per_minute(TRIES_PER_ADDRESS)));
        let limiter = self.tries_per_address.get_with(network(address), limiter);
        let signed = async {
            check(&limiter, "enrolments a minute")?;
            let Enrolment { token, csr } = read(request.into_body()).await?;
            let token = JoinToken::parse(token.trim()).map_err(|error| Error::from(&error))?;
            let csr = der(&csr)?;
            let authority = self.certificate.clone();
            self.sign(authority, move |authority| authority.enrol(token.secret(), &csr)).await
        };
        self.reply("enrol", signed.await)
    }

    /// Signing writes files.
    async fn sign(
        &self,
        certificate: Arc<Certificate>,
        sign: impl FnOnce(&Authority) -> Result<SignedLeaf, CertsError> + Send + 'static,
    ) -> Result<SignedLeaf, Error> {
        let waited = tokio::time::timeout(WITHIN, self.signing.clone().acquire_owned()).await;
        let place = waited.ok().and_then(Result::ok).ok_or(Error::AuthorityUnavailable)?;
        let signing = tokio::task::spawn_blocking(move || {
            let _place = place;
            certificate.authority().map(sign).ok_or(Error::NoAuthority)
        });
        let signed = signing.await.map_err(|_| Error::AuthorityUnavailable)??;
        signed.map_err(|error| {
            let shown = Error::from(&error);
            if matches!(shown, Error::AuthorityUnavailable) {
                tracing::error!(%error, "the authority cannot sign");
            }
            shown
        })
    }

    fn reply(&self, what: &'static str, signed: Result<SignedLeaf, Error>) -> Response<Body> {
        match signed {
            Ok(leaf) => {
                self.metrics.certificate_signed(what, "ok");
                tracing::info!(id = %leaf.id, serial = %leaf.serial, until = rfc3339(leaf.not_after), what, "a certificate was signed");
                answer(&described(&leaf, &self.certificate))
            }
            Err(error) => {
                self.metrics.certificate_signed(what, error.code());
                tracing::warn!(%error, what, "a certificate was not signed");
                response::error(&error)
            }
        }
    }
}

/// Serves the enrol address until `drain`.
pub(crate) async fn serve(registrar: Arc<Registrar>, listener: TcpListener, drain: CancellationToken) {
    let places = Places::new(CONNECTIONS, CONNECTIONS_PER_ADDRESS);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Some(place) = places.take(address.ip()) else { continue };
        let registrar = registrar.clone();
        tokio::spawn(async move {
            let serving = async {
                let Some(tls) = registrar.certificate.current().enrol.clone() else { return };
                let Some(stream) = anonymous_handshake(&registrar.metrics, tls, stream).await else { return };
                let service = service_fn(|request| {
                    let registrar = registrar.clone();
                    async move { Ok::<_, std::convert::Infallible>(registrar.enrol(address.ip(), request).await) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).keep_alive(false);
                // A client that breaks off is nobody's concern here.
                let _ended = http.serve_connection(TokioIo::new(stream), service).await;
            };
            let _in_time = tokio::time::timeout(WITHIN, serving).await;
            drop(place);
        });
    }
}

fn check(limiter: &DefaultDirectRateLimiter, what: &'static str) -> Result<(), Error> {
    limiter.check().map_err(|wait| {
        let retry_after = wait.wait_time_from(governor::clock::DefaultClock::default().now());
        Error::RateLimited { what, whose: "this address", retry_after }
    })
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Error> {
    parse(&read_small(body, MAX_BODY, WITHIN).await?)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    if body.len() > MAX_BODY {
        return Err(Error::TooLarge { limit: MAX_BODY as u64 });
    }
    serde_json::from_slice(body).map_err(|_| Error::EnrolBody)
}

fn der(csr: &str) -> Result<Vec<u8>, Error> {
    let csr = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(csr.as_bytes());
    csr.map(|csr| csr.as_ref().to_vec()).map_err(|_| Error::EnrolBody)
}

fn described(leaf: &SignedLeaf, certificate: &Certificate) -> Value {
    json!({
        "id": leaf.id.to_string(),
        "gateway": certificate.gateway_id().to_string(),
        "certificate": pem(&leaf.chain),
        "ca": pem(&leaf.roots),
        "not_after": rfc3339(leaf.not_after),
    })
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    postern_certs::pem::certificates(certificates)
}

fn answer(body: &Value) -> Response<Body> {
    let mut response = Response::new(response::full(Bytes::from(body.to_string())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
