//! Who this workstation is: files that `postern certs enrol` wrote, read anew when they change, and replaced by the connector itself
//! when half of the certificate's life is over. Renewal goes the way of every request, so it works through a middlebox as well.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use postern_certs::rotate::{Action, Failures, Schedule};
use postern_certs::{Clock as _, Csr, IssuedLeaf, Signatory, SpiffeId, SystemClock, Trust, clock, rfc3339};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::link::Link;
use crate::cli::workstation;
use crate::enrol::RENEW_PATH;
use crate::issuer::Files;
use crate::tls::Told;

/// How often it is looked whether a renewal is due; also the time that a sleeping machine needs after it woke.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For a whole renewal.
const RENEWED_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of an answer to one.
const MAX_ANSWER: usize = 256 << 10;

/// What new connections use.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) signatory: Signatory,
    pub(crate) trust: Arc<Trust>,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) schedule: Schedule,
    /// Cancelled when another takes its place.
    pub(crate) replaced: CancellationToken,
}

impl Current {
    /// False after its end.
    pub(crate) fn is_valid(&self) -> bool {
        clock::steady_now() <= self.not_after
    }
}

/// The workstation's leaf, the gateway that it is for, and whom it trusts.
#[derive(Debug)]
pub(crate) struct Identity {
    dir: PathBuf,
    own: SpiffeId,
    gateway: SpiffeId,
    middlebox: Option<Arc<RootCertStore>>,
    current: ArcSwap<Current>,
    last_error: Mutex<Option<String>>,
}

impl Identity {
    /// Whoever is at the other end of a connection has proved to be the gateway; a middlebox is let in nowhere.
    pub(crate) fn is_direct(&self) -> bool {
        self.middlebox.is_none()
    }

    /// Reads the folder, also if the certificate has ended: what applications are told then is better than silence.
    ///
    /// # Errors
    /// A file is missing, or not what it should be.
    pub(crate) fn open(dir: &Path, middlebox: Option<Arc<RootCertStore>>) -> anyhow::Result<Self> {
        let read = || {
            IssuedLeaf::complete(dir)?;
            let leaf = workstation::read_leaf(dir)?;
            let trust = Trust::from_roots(&workstation::certificates_of(&dir.join("ca.pem"))?)?;
            let gateway = workstation::gateway_id(dir, &leaf.id)?;
            let current = ready(&leaf, Arc::new(trust), &gateway, middlebox.clone())?;
            anyhow::Ok((leaf.id.clone(), gateway, current))
        };
        let (own, gateway, current) = read().with_context(|| format!("the identity in {}", dir.display()))?;
        let (current, last_error) = (ArcSwap::from_pointee(current), Mutex::default());
        Ok(Self { dir: dir.to_owned(), own, gateway, middlebox, current, last_error })
    }

    /// Who this is.
    pub(crate) fn own(&self) -> &SpiffeId {
        &self.own
    }

    /// Whom it talks to.
    pub(crate) fn gateway(&self) -> &SpiffeId {
        &self.gateway
    }

    /// What the next connection uses.
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Why the last renewal failed, if it did.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the leaf fresh, for as long as the connector runs.
    pub(crate) async fn keep(self: Arc<Self>, link: Arc<Link>) {
        tokio::join!(self.follow(), self.renew_when_due(&link));
    }

    async fn follow(&self) {
        let mut files = Files::of_folder(&self.dir);
        loop {
            let taken = files.next().await.map_err(anyhow::Error::from).and_then(|material| {
                let leaf = &material.leaf;
                ensure!(leaf.id == self.own, "it is for {}, and this workstation is {}", leaf.id, self.own);
                self.adopt(leaf, Trust::from_roots(&material.roots)?)
            });
            if let Err(error) = taken {
                // Told once for each fault: the files are read every second.
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "the files of this workstation cannot be used; what was there stays in use until it ends"
                );
            }
        }
    }

    /// Nothing, if it is in use already.
    fn adopt(&self, leaf: &IssuedLeaf, trust: Trust) -> anyhow::Result<()> {
        let before = self.current();
        if before.signatory.chain() == leaf.chain && before.trust.roots() == trust.roots() {
            return Ok(());
        }
        let fresh = ready(leaf, Arc::new(trust), &self.gateway, self.middlebox.clone())?;
        tracing::info!(until = rfc3339(fresh.not_after), "a new certificate, or new trust, was taken over");
        self.current.store(Arc::new(fresh));
        // Last: who is asked to connect anew finds the new leaf.
        before.replaced.cancel();
        Ok(())
    }

    async fn renew_when_due(&self, link: &Link) {
        let mut told = Told::of("this workstation's certificate");
        let mut failures = Failures::default();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (current, now) = (self.current(), SystemClock.now());
            told.tell(current.schedule.health(now), current.not_after, now);
            if !current.is_valid() || current.schedule.next(now, failures) != Action::RenewNow {
                continue;
            }
            let renewal = tokio::time::timeout(RENEWED_WITHIN, self.renew(link)).await;
            let ended = renewal.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long")));
            let failed = ended.err().map(|error| format!("{error:#}"));
            failures = if failed.is_some() { failures.and_at(now) } else { Failures::default() };
            if let Some(error) = &failed {
                tracing::error!(error, "this workstation's certificate could not be renewed; it will be tried again");
            }
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        }
    }

    /// Asks for a new leaf now, and writes it to the folder.
    ///
    /// # Errors
    /// The gateway is away or refuses, or the folder cannot be written.
    pub(crate) async fn renew(&self, link: &Link) -> anyhow::Result<()> {
        let csr = Csr::generate(&self.own)?;
        let mut asked = Request::new(());
        (*asked.method_mut(), *asked.uri_mut()) = (Method::POST, Uri::from_static(RENEW_PATH));
        asked.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = link.ask(&asked, Bytes::from(workstation::renewal(&csr).to_string())).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let answer = answer.map_err(anyhow::Error::from_boxed).context("the answer")?.to_bytes();
        let answer: Value = serde_json::from_slice(&answer).context("the answer")?;
        // It came sealed, so these are the gateway's own words.
        let why = answer.pointer("/error/message").and_then(Value::as_str).unwrap_or("it did not say why");
        ensure!(status == StatusCode::OK, "the gateway refused ({status}): {why}");
        let (dir, gateway) = (self.dir.clone(), self.gateway.clone());
        let written = tokio::task::spawn_blocking(move || workstation::take_up(&dir, &csr, &answer, &gateway));
        let leaf = written.await??;
        let trust = Trust::from_roots(&workstation::certificates_of(&self.dir.join("ca.pem"))?)?;
        self.adopt(&leaf, trust)
    }
}

fn ready(
    leaf: &IssuedLeaf,
    trust: Arc<Trust>,
    gateway: &SpiffeId,
    middlebox: Option<Arc<RootCertStore>>,
) -> anyhow::Result<Current> {
    let tls = match middlebox {
        None => postern_certs::client_config(leaf, &trust, gateway.clone())?,
        Some(authorities) => postern_certs::client_config_through(leaf, &trust, gateway.clone(), authorities)?,
    };
    let mut tls = ClientConfig::clone(&tls);
    // All requests go over one connection.
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Current {
        signatory: Signatory::new(leaf)?,
        trust,
        tls: Arc::new(tls),
        not_after: leaf.not_after,
        schedule: Schedule::new(leaf.not_before, leaf.not_after, rand::random()),
        replaced: CancellationToken::new(),
    })
}
