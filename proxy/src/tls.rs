//! The gateway's own certificate and whom it trusts: renewed while running, swapped between handshakes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_certs::rotate::{Action, Failures, Health, Schedule};
use postern_certs::{
    Authority, AuthorityOptions, CertsError, Clock, IssuedLeaf, LeafRequest, Role, Serial, SpiffeId, SystemClock,
    Trust, verify,
};
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::config::Config;
use crate::telemetry::metrics::Metrics;

/// How often it is looked whether something is due: also the time that a revocation on the command line needs to be
/// noticed, and the time that a sleeping machine needs after it woke.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often an alarm is repeated in the log.
const ALARM_EVERY: time::Duration = time::Duration::HOUR;

/// How the embedded authority of a configuration works.
#[must_use]
pub fn authority_options(config: &Config) -> AuthorityOptions {
    AuthorityOptions {
        prefix: config.prefix.clone(),
        root: config.root,
        ..AuthorityOptions::new(config.trust_domain.clone(), config.leaf_ttl)
    }
}

/// Opens the embedded authority of a configuration; makes it at first start.
///
/// # Errors
/// Its files cannot be read or written, or are not what it wrote.
pub fn authority(config: &Config) -> Result<Authority, CertsError> {
    Authority::open_or_create(&config.authority_dir(), authority_options(config))
}

/// What new handshakes use.
#[derive(Debug)]
pub struct Current {
    /// Fresh at each change of leaf or trust, never a clone: clones share session storage.
    pub tls: Arc<ServerConfig>,
    /// For the enrol address: without client certificates. `None` if nobody enrols here.
    pub enrol: Option<Arc<ServerConfig>>,
    /// No connection outlives it.
    pub not_after: OffsetDateTime,
    leaf: Arc<IssuedLeaf>,
    schedule: Schedule,
}

impl Current {
    /// False after its end: nobody would accept it, and nothing is served with it.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        SystemClock.now() <= self.not_after
    }

    /// The number of its leaf.
    #[must_use]
    pub fn serial(&self) -> Option<Serial> {
        self.leaf.chain.first().and_then(|leaf| verify::peer(leaf).ok()).map(|own| own.serial)
    }

    fn new(leaf: Arc<IssuedLeaf>, schedule: Schedule, trust: &Arc<Trust>, enrols: bool) -> Result<Self, CertsError> {
        let tls = postern_certs::server_config(&leaf, trust)?;
        let enrol = enrols.then(|| postern_certs::enrol_server_config(&leaf, &trust.roots())).transpose()?;
        Ok(Self { tls, enrol, not_after: leaf.not_after, leaf, schedule })
    }
}

/// The gateway's leaf and its renewal.
#[derive(Debug)]
pub struct Certificate {
    authority: Authority,
    names: Vec<String>,
    enrols: bool,
    current: ArcSwap<Current>,
    trust: watch::Sender<Arc<Trust>>,
    failures: Mutex<Failures>,
    /// Never two renewals at once.
    renewing: tokio::sync::Mutex<()>,
}

impl Certificate {
    /// Issues the first leaf.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn new(config: &Config) -> Result<Self, CertsError> {
        let authority = authority(config)?;
        let trust = authority.trust();
        let (leaf, schedule) = issue(&authority, &config.names)?;
        let enrols = config.enrol.is_some();
        let current = Current::new(leaf, schedule, &trust, enrols)?;
        Ok(Self {
            enrols,
            authority,
            names: config.names.clone(),
            current: ArcSwap::from_pointee(current),
            trust: watch::Sender::new(trust),
            failures: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
        })
    }

    /// The authority, where this gateway has one.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        Some(&self.authority)
    }

    /// The gateway's own ID.
    #[must_use]
    pub fn gateway_id(&self) -> &SpiffeId {
        self.authority.gateway_id()
    }

    /// What the next handshake uses.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Whom to trust, and every change of it. Subscribe before a handshake, so that no change is missed.
    #[must_use]
    pub fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// How concerned to be about it.
    #[must_use]
    pub fn health(&self) -> Health {
        self.current.load().schedule.health(SystemClock.now())
    }

    /// Renews the leaf now, whether it is due or not. Returns the end of the new one.
    ///
    /// # Errors
    /// Nothing could be issued; the old leaf stays.
    pub async fn rotate(self: &Arc<Self>, metrics: &Metrics) -> Result<OffsetDateTime, CertsError> {
        let _one_at_a_time = self.renewing.lock().await;
        let result = self.renew().await;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(until) => {
                *failures = Failures::default();
                metrics.certificate_rotated("ok");
                tracing::info!(%until, "the gateway's certificate was renewed");
            }
            Err(error) => {
                *failures = failures.and_at(SystemClock.now());
                metrics.certificate_rotated("failed");
                tracing::error!(%error, "the gateway's certificate could not be renewed; it will be tried again");
            }
        }
        result
    }

    /// Keeps leaf and trust fresh, for as long as the gateway runs.
    pub async fn keep(self: Arc<Self>, metrics: Arc<Metrics>) {
        let mut told = Told::default();
        loop {
            self.measure(&metrics);
            self.follow_trust(&metrics).await;
            let now = SystemClock.now();
            let failures = *self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            if self.current.load().schedule.next(now, failures) == Action::RenewNow {
                // It has been said in the log, and is tried again on schedule.
                let _said = self.rotate(&metrics).await;
            }
            told.tell(self.health(), self.current.load().not_after, now);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn measure(&self, metrics: &Metrics) {
        let now = SystemClock.now();
        let (_, intermediate_end) = self.authority.intermediate_validity();
        let (_, root_end) = self.authority.root_validity();
        for (kind, end) in
            [("leaf", self.current.load().not_after), ("intermediate", intermediate_end), ("root", root_end)]
        {
            metrics.certificate_expires(kind, (end - now).whole_seconds());
        }
    }

    /// Takes up what changed in the authority: here, or on the command line.
    async fn follow_trust(self: &Arc<Self>, metrics: &Metrics) {
        let this = self.clone();
        let refreshed = tokio::task::spawn_blocking(move || this.refresh()).await;
        match refreshed {
            Ok(Ok(false)) | Err(_) => {}
            Ok(Ok(true)) => metrics.trust_changed(),
            Ok(Err(error)) => tracing::error!(%error, "the authority could not be refreshed; it will be tried again"),
        }
    }

    fn refresh(&self) -> Result<bool, CertsError> {
        if !self.authority.refresh()? {
            return Ok(false);
        }
        let trust = self.authority.trust();
        let current = self.current.load();
        let fresh = Current::new(current.leaf.clone(), current.schedule, &trust, self.enrols)?;
        self.current.store(Arc::new(fresh));
        // Last: who is told finds the new configuration in place.
        self.trust.send_replace(trust);
        Ok(true)
    }

    async fn renew(self: &Arc<Self>) -> Result<OffsetDateTime, CertsError> {
        let this = self.clone();
        // Issuing writes files.
        let issued = tokio::task::spawn_blocking(move || issue(&this.authority, &this.names)).await;
        let (leaf, schedule) = issued.map_err(|_| CertsError::SpiffeId("the issuing task ended"))??;
        let trust = self.trust.borrow().clone();
        let fresh = Current::new(leaf, schedule, &trust, self.enrols)?;
        let until = fresh.not_after;
        self.current.store(Arc::new(fresh));
        Ok(until)
    }
}

/// What the log was told last about the health of the leaf.
#[derive(Debug, Default)]
struct Told {
    last: Option<(Health, OffsetDateTime)>,
}

impl Told {
    fn tell(&mut self, health: Health, until: OffsetDateTime, now: OffsetDateTime) {
        let again = self.last.is_none_or(|(last, at)| last != health || now - at > ALARM_EVERY);
        if !again {
            return;
        }
        let before = self.last.replace((health, now)).map(|(health, _)| health);
        match health {
            Health::Good if before.is_some_and(|before| before != Health::Good) => {
                tracing::info!(%until, "the gateway's certificate is good again");
            }
            Health::Good => {}
            Health::Warning => tracing::warn!(%until, "the gateway's certificate should have been renewed long ago"),
            Health::Alarm => {
                tracing::error!(%until, "ALARM: the gateway's certificate ends soon and cannot be renewed")
            }
            Health::Expired => {
                tracing::error!(%until, "the gateway's certificate has ended: no connection is accepted until it is renewed");
            }
        }
    }
}

fn issue(authority: &Authority, names: &[String]) -> Result<(Arc<IssuedLeaf>, Schedule), CertsError> {
    let role = Role::Gateway { names: names.to_vec() };
    let leaf = authority.issue(LeafRequest { id: authority.gateway_id().clone(), role })?;
    let schedule = Schedule::new(leaf.not_before, leaf.not_after, rand::random());
    Ok((Arc::new(leaf), schedule))
}
