//! The gateway's own certificate and whom it trusts: renewed while running, swapped between handshakes.

mod outside;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_certs::rotate::{Action, Failures, Health, Schedule};
use postern_certs::{
    Authority, AuthorityOptions, CertsError, Clock, IssuedLeaf, LeafRequest, Role, Serial, Signatory, SpiffeId,
    SystemClock, Trust, clock, rfc3339, verify,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::sync::watch;

use self::outside::{Outside, Rejected};
use crate::config::Config;
use crate::issuer::IssuerError;
use crate::telemetry::metrics::Metrics;

/// How often it is looked whether something is due: also the time that a revocation on the command line needs to be
/// noticed, and the time that a sleeping machine needs after it woke.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks between two alarms about the authority.
const LOOKS_PER_ALARM: u64 = 3600;
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
    signatory: Signatory,
    trust: Arc<Trust>,
    schedule: Schedule,
    withdrawn: AtomicBool,
}

impl Current {
    /// False after its end, or after its issuer took it back: nothing is served with it.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        clock::steady_now() <= self.not_after && !self.withdrawn.load(Ordering::Relaxed)
    }

    /// For a connection of ours to a node that must prove to be `server`: the gateway shows the same leaf as to its clients,
    /// and trusts the same roots and revocation lists.
    ///
    /// # Errors
    /// No root is valid now.
    pub(crate) fn towards(&self, server: SpiffeId) -> Result<Arc<ClientConfig>, CertsError> {
        postern_certs::client_config(&self.leaf, &self.trust, server)
    }

    /// The same where somebody on the way may break TLS open, with a certificate of `middlebox` for the host name: then nothing that is
    /// said inside of TLS alone is `server`'s word.
    ///
    /// # Errors
    /// No root is valid now.
    pub(crate) fn through(
        &self,
        middlebox: Arc<RootCertStore>,
        server: SpiffeId,
    ) -> Result<Arc<ClientConfig>, CertsError> {
        postern_certs::client_config_through(&self.leaf, &self.trust, server, middlebox)
    }

    /// Signs with the leaf, for those whose connection it does not secure.
    pub(crate) fn signatory(&self) -> &Signatory {
        &self.signatory
    }

    /// Whom the gateway trusts.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    fn withdraw(&self) {
        if !self.withdrawn.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the issuer took the gateway's identity back: no connection is accepted until it gives one again"
            );
        }
    }

    /// The number of its leaf.
    #[must_use]
    pub fn serial(&self) -> Option<Serial> {
        self.leaf.chain.first().and_then(|leaf| verify::peer(leaf).ok()).map(|own| own.serial)
    }

    pub(crate) fn new(
        leaf: Arc<IssuedLeaf>,
        schedule: Schedule,
        trust: &Arc<Trust>,
        enrols: bool,
    ) -> Result<Self, CertsError> {
        let tls = postern_certs::server_config(&leaf, trust)?;
        let enrol = enrols.then(|| postern_certs::enrol_server_config(&leaf, &trust.roots())).transpose()?;
        let withdrawn = AtomicBool::new(false);
        let (signatory, trust) = (Signatory::new(&leaf)?, Arc::clone(trust));
        Ok(Self { tls, enrol, not_after: leaf.not_after, leaf, signatory, trust, schedule, withdrawn })
    }
}

/// The gateway's leaf, whom it trusts, and where both come from.
#[derive(Debug)]
pub struct Certificate {
    gateway_id: SpiffeId,
    issuer: Issuer,
    names: Vec<String>,
    enrols: bool,
    current: ArcSwap<Current>,
    trust: watch::Sender<Arc<Trust>>,
    failures: Mutex<Failures>,
    /// Held from reading the authority to taking over what it says, so that nothing older takes the place of it.
    changing: Arc<tokio::sync::Mutex<()>>,
}

/// Where certificates come from.
#[derive(Debug)]
enum Issuer {
    Embedded(Box<Authority>),
    /// Renews by itself; what is new is handed over.
    Outside(Box<tokio::sync::Mutex<Outside>>),
}

impl Certificate {
    /// Takes the first leaf. An issuer outside of the gateway may be starting as well, so it is waited for.
    ///
    /// # Errors
    /// See [`CertsError`] and [`IssuerError`].
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let gateway_id: SpiffeId = config.gateway_id().parse()?;
        let enrols = config.enrol.is_some();
        let (issuer, current, trust) = match Outside::of(&config.issuer) {
            None => {
                // Reads and writes files, but nothing is served yet.
                let authority = authority(config)?;
                let (leaf, schedule) = issue(&authority, &config.names)?;
                let trust = authority.trust();
                (Issuer::Embedded(Box::new(authority)), Current::new(leaf, schedule, &trust, enrols)?, trust)
            }
            Some(mut outside) => {
                let (current, trust) = outside.first(&gateway_id).await?;
                (Issuer::Outside(Box::new(tokio::sync::Mutex::new(outside))), current, trust)
            }
        };
        Ok(Self {
            gateway_id,
            issuer,
            names: config.names.clone(),
            enrols,
            current: ArcSwap::from_pointee(current),
            trust: watch::Sender::new(trust),
            failures: Mutex::default(),
            changing: Arc::default(),
        })
    }

    /// The authority, where this gateway has one.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        match &self.issuer {
            Issuer::Embedded(authority) => Some(authority),
            Issuer::Outside(_) => None,
        }
    }

    /// The gateway's own ID.
    #[must_use]
    pub fn gateway_id(&self) -> &SpiffeId {
        &self.gateway_id
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
        let current = self.current.load();
        if current.is_valid() { current.schedule.health(SystemClock.now()) } else { Health::Expired }
    }

    /// Renews the leaf now, whether it is due or not. Returns the end of the new one.
    ///
    /// # Errors
    /// Nothing could be issued; the old leaf stays.
    pub async fn rotate(self: &Arc<Self>, metrics: &Metrics) -> Result<OffsetDateTime, CertsError> {
        let result = self.renew().await;
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(until) => {
                *failures = Failures::default();
                metrics.certificate_rotated("ok");
                tracing::info!(until = rfc3339(*until), "the gateway's certificate was renewed");
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
        let (mut told, mut ticks) = (Told::of("the gateway's certificate"), 0_u64);
        let follow = async {
            match &self.issuer {
                Issuer::Embedded(_) => std::future::pending().await,
                Issuer::Outside(outside) => self.follow(&mut *outside.lock().await, &metrics).await,
            }
        };
        let look = async {
            loop {
                self.measure(&metrics).await;
                if self.authority().is_some() {
                    self.follow_trust(&metrics).await;
                    self.renew_when_due(&metrics).await;
                    if ticks % LOOKS_PER_ALARM == 0 {
                        self.tell_authority().await;
                    }
                    ticks += 1;
                }
                told.tell(self.health(), self.current.load().not_after, SystemClock.now());
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::join!(follow, look);
    }

    /// With the root off line, somebody has to bring a new intermediate.
    async fn tell_authority(self: &Arc<Self>) {
        let this = self.clone();
        let alarm = tokio::task::spawn_blocking(move || this.authority().is_some_and(|own| own.status().alarm));
        if alarm.await.unwrap_or(false) {
            tracing::error!(
                "ALARM: the intermediate ends soon: have intermediate.csr.pem signed (`postern certs root sign`) and install the answer"
            );
        }
    }

    async fn measure(self: &Arc<Self>, metrics: &Metrics) {
        let now = SystemClock.now();
        let left = |end: OffsetDateTime| (end - now).whole_seconds();
        metrics.certificate_expires("leaf", left(self.current.load().not_after));
        // May wait for the command line, which shares the authority's lock.
        let this = self.clone();
        let ends = tokio::task::spawn_blocking(move || {
            this.authority().map(|own| (own.intermediate_validity().1, own.root_validity().1))
        });
        if let Ok(Some((intermediate, root))) = ends.await {
            metrics.certificate_expires("intermediate", left(intermediate));
            metrics.certificate_expires("root", left(root));
        }
    }

    async fn renew_when_due(self: &Arc<Self>, metrics: &Metrics) {
        let failures = *self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if self.current.load().schedule.next(SystemClock.now(), failures) == Action::RenewNow {
            // It has been said in the log, and is tried again on schedule.
            let _said = self.rotate(metrics).await;
        }
    }

    /// Takes up what changed in the authority: here, or on the command line.
    async fn follow_trust(self: &Arc<Self>, metrics: &Metrics) {
        let (this, one_at_a_time) = (self.clone(), self.changing.clone().lock_owned().await);
        let refreshed = tokio::task::spawn_blocking(move || {
            let _held_to_the_end = one_at_a_time;
            this.refresh()
        });
        match refreshed.await {
            Ok(Ok(false)) | Err(_) => {}
            Ok(Ok(true)) => metrics.trust_changed(),
            Ok(Err(error)) => tracing::error!(%error, "the authority could not be refreshed; it will be tried again"),
        }
    }

    fn refresh(&self) -> Result<bool, CertsError> {
        let Some(authority) = self.authority() else { return Ok(false) };
        if !authority.refresh()? {
            return Ok(false);
        }
        let current = self.current.load();
        let trust = authority.trust();
        let fresh = Current::new(current.leaf.clone(), current.schedule, &trust, self.enrols)?;
        self.adopt(fresh, trust);
        Ok(true)
    }

    async fn renew(self: &Arc<Self>) -> Result<OffsetDateTime, CertsError> {
        // With whoever gives up waiting the lock must not go: the task goes on.
        let (this, one_at_a_time) = (self.clone(), self.changing.clone().lock_owned().await);
        // Issuing writes files.
        let renewed = tokio::task::spawn_blocking(move || {
            let _held_to_the_end = one_at_a_time;
            let authority = this.authority().ok_or(CertsError::SpiffeId("certificates are issued by somebody else"))?;
            let (leaf, schedule) = issue(authority, &this.names)?;
            let trust = authority.trust();
            let fresh = Current::new(leaf, schedule, &trust, this.enrols)?;
            let until = fresh.not_after;
            this.adopt(fresh, trust);
            Ok(until)
        });
        renewed.await.map_err(|_| CertsError::SpiffeId("the issuing task ended"))?
    }

    /// Takes over whatever an issuer outside hands over.
    async fn follow(&self, outside: &mut Outside, metrics: &Metrics) {
        loop {
            match outside.next(&self.gateway_id).await {
                Ok((current, trust)) => {
                    let until = current.not_after;
                    self.adopt(current, trust);
                    metrics.certificate_rotated("ok");
                    tracing::info!(
                        until = rfc3339(until),
                        "a new certificate, or new trust, was taken over from the issuer"
                    );
                }
                Err(error) => {
                    metrics.certificate_rotated("failed");
                    if matches!(error, Rejected::Issuer(IssuerError::NoIdentity { .. })) {
                        // SPIFFE Workload API, section 5.2.1: an identity that was withdrawn must not be used.
                        self.current.load().withdraw();
                    }
                }
            }
        }
    }

    fn adopt(&self, fresh: Current, trust: Arc<Trust>) {
        self.current.store(Arc::new(fresh));
        // Last: who is told finds the new configuration in place.
        if !Arc::ptr_eq(&self.trust.borrow(), &trust) {
            self.trust.send_replace(trust);
        }
    }
}

/// What the log was told last about the health of a leaf.
#[derive(Debug)]
pub(crate) struct Told {
    what: &'static str,
    last: Option<(Health, OffsetDateTime)>,
}

impl Told {
    pub(crate) fn of(what: &'static str) -> Self {
        Self { what, last: None }
    }

    pub(crate) fn tell(&mut self, health: Health, until: OffsetDateTime, now: OffsetDateTime) {
        let again = self.last.is_none_or(|(last, at)| last != health || now - at > ALARM_EVERY);
        if !again {
            return;
        }
        let before = self.last.replace((health, now)).map(|(health, _)| health);
        let what = self.what;
        match health {
            Health::Good if before.is_some_and(|before| before != Health::Good) => {
                tracing::info!(until = rfc3339(until), "{what} is good again");
            }
            Health::Good => {}
            Health::Warning => tracing::warn!(until = rfc3339(until), "{what} should have been renewed long ago"),
            Health::Alarm => tracing::error!(until = rfc3339(until), "ALARM: {what} ends soon and cannot be renewed"),
            Health::Expired => {
                tracing::error!(
                    until = rfc3339(until),
                    "{what} has ended: no connection is accepted until it is renewed"
                );
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
