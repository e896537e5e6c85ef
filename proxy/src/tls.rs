//! The gateway's own certificate: issued by the embedded authority, renewed while running, swapped between handshakes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_certs::rotate::{Action, Failures, Health, Schedule};
use postern_certs::{Authority, AuthorityOptions, CertsError, Clock, LeafRequest, Role, SystemClock, Trust};
use rustls::ServerConfig;
use time::OffsetDateTime;

use crate::config::Config;
use crate::telemetry::metrics::Metrics;

/// The schedule is asked at least this often: the clock may have been set, or the machine may have slept.
const ASK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// Opens the embedded authority of a configuration; makes it at first start.
///
/// # Errors
/// Its files cannot be read or written, or are not what it wrote.
pub fn authority(config: &Config) -> Result<Authority, CertsError> {
    let options = AuthorityOptions::new(config.trust_domain.clone(), config.leaf_ttl);
    Authority::open_or_create(&config.authority_dir(), options)
}

/// What new handshakes use.
#[derive(Debug)]
pub struct Current {
    /// Fresh at each renewal, never a clone: clones share session storage.
    pub tls: Arc<ServerConfig>,
    /// No connection outlives it.
    pub not_after: OffsetDateTime,
    schedule: Schedule,
}

/// The gateway's leaf and its renewal.
#[derive(Debug)]
pub struct Certificate {
    authority: Authority,
    names: Vec<String>,
    current: ArcSwap<Current>,
}

impl Certificate {
    /// Issues the first leaf.
    ///
    /// # Errors
    /// See [`CertsError`].
    pub fn new(config: &Config) -> Result<Self, CertsError> {
        let authority = authority(config)?;
        let current = issue(&authority, &config.names)?;
        Ok(Self { authority, names: config.names.clone(), current: ArcSwap::from_pointee(current) })
    }

    /// What the next handshake uses.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// How concerned to be about it.
    #[must_use]
    pub fn health(&self) -> Health {
        self.current.load().schedule.health(SystemClock.now())
    }

    /// Renews the leaf on schedule, for as long as the gateway runs.
    pub async fn renew(self: Arc<Self>, metrics: Arc<Metrics>) {
        let mut failures = Failures::default();
        loop {
            let now = SystemClock.now();
            let current = self.current.load_full();
            let (_, authority_end) = self.authority.intermediate_validity();
            metrics.certificate_expires("leaf", (current.not_after - now).whole_seconds());
            metrics.certificate_expires("intermediate", (authority_end - now).whole_seconds());
            match current.schedule.next(now, failures) {
                Action::RenewNow => match self.renew_once().await {
                    Ok(()) => {
                        failures = Failures::default();
                        metrics.certificate_rotated("ok");
                        let until = self.current.load().not_after;
                        tracing::info!(%until, "the gateway's certificate was renewed");
                    }
                    Err(error) => {
                        failures = failures.and_at(now);
                        metrics.certificate_rotated("failed");
                        let health = self.health();
                        tracing::error!(%error, ?health, "the gateway's certificate could not be renewed; it will be tried again");
                    }
                },
                Action::WaitUntil(at) => {
                    let wait = Duration::try_from(at - now).unwrap_or_default();
                    tokio::time::sleep(wait.min(ASK_AT_LEAST_EVERY)).await;
                }
            }
        }
    }

    async fn renew_once(self: &Arc<Self>) -> Result<(), CertsError> {
        let this = self.clone();
        // Issuing may renew the intermediate, which writes files.
        let issued = tokio::task::spawn_blocking(move || issue(&this.authority, &this.names)).await;
        let fresh = issued.map_err(|_| CertsError::SpiffeId("the issuing task ended"))??;
        self.current.store(Arc::new(fresh));
        Ok(())
    }
}

fn issue(authority: &Authority, names: &[String]) -> Result<Current, CertsError> {
    let role = Role::Gateway { names: names.to_vec() };
    let leaf = authority.issue(LeafRequest { id: authority.gateway_id().clone(), role })?;
    let tls = postern_certs::server_config(&leaf, &Arc::new(Trust::from_roots(&authority.trust_bundle())?))?;
    let schedule = Schedule::new(leaf.not_before, leaf.not_after, rand::random());
    Ok(Current { tls, not_after: leaf.not_after, schedule })
}
