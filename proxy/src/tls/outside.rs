//! Certificates that somebody else issues, checked before the gateway uses them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use postern_certs::rotate::Schedule;
use postern_certs::{CertsError, SpiffeId, Trust};

use super::Current;
use crate::config::trust;
use crate::issuer::{Files, IssuerError, Material, Spiffe};

/// How long the first certificate is waited for.
const FIRST_WITHIN: Duration = Duration::from_secs(300);
/// How often the same complaint is repeated in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// After something that was refused: it is not asked for again at once.
const PAUSE: Duration = Duration::from_secs(1);

/// An issuer outside of the gateway.
#[derive(Debug)]
pub(super) struct Outside {
    issuer: Kind,
    complained: Option<(String, Instant)>,
}

#[derive(Debug)]
enum Kind {
    Files(Files),
    Spiffe(Spiffe),
}

/// Why what the issuer has is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejected {
    /// It has nothing, or nothing that can be read.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// This gateway cannot use it.
    #[error("what the issuer has is not for this gateway: {0}")]
    Material(#[from] CertsError),
}

impl Outside {
    /// `None` for the embedded authority.
    pub(super) fn of(issuer: &trust::Issuer) -> Option<Self> {
        let issuer = match issuer {
            trust::Issuer::Embedded => return None,
            trust::Issuer::Files(paths) => Kind::Files(Files::new(paths.clone())),
            trust::Issuer::Spiffe { socket } => Kind::Spiffe(Spiffe::new(socket.clone())),
        };
        Some(Self { issuer, complained: None })
    }

    /// Waits for the first one that can be used.
    pub(super) async fn first(&mut self, gateway: &SpiffeId) -> anyhow::Result<(Current, Arc<Trust>)> {
        let until = Instant::now() + FIRST_WITHIN;
        loop {
            let rejected = match self.next(gateway).await {
                Ok(first) => return Ok(first),
                Err(rejected) => rejected,
            };
            if Instant::now() > until {
                return Err(rejected).with_context(|| format!("no certificate within {} s", FIRST_WITHIN.as_secs()));
            }
        }
    }

    /// Waits for the next one. What cannot be used is complained about, and then an error, at most once a second.
    pub(super) async fn next(&mut self, gateway: &SpiffeId) -> Result<(Current, Arc<Trust>), Rejected> {
        let material = match &mut self.issuer {
            Kind::Files(files) => files.next().await,
            Kind::Spiffe(spiffe) => spiffe.next().await,
        };
        let result = material.map_err(Rejected::from).and_then(|material| Ok(ready(material, gateway)?));
        match &result {
            Ok(_) => self.complained = None,
            Err(rejected) => {
                self.complain(rejected);
                tokio::time::sleep(PAUSE).await;
            }
        }
        result
    }

    fn complain(&mut self, rejected: &Rejected) {
        let text = rejected.to_string();
        let again = |(before, at): &(String, Instant)| *before != text || at.elapsed() > COMPLAIN_EVERY;
        if self.complained.as_ref().is_none_or(again) {
            tracing::error!(error = text, "there is no new certificate; what was there stays in use until it ends");
            self.complained = Some((text, Instant::now()));
        }
    }
}

fn ready(material: Material, gateway: &SpiffeId) -> Result<(Current, Arc<Trust>), CertsError> {
    material.check(gateway)?;
    let trust = Trust::from_roots(&material.roots)?;
    let trust = Arc::new(if material.crls.is_empty() { trust } else { trust.with_crls(&material.crls)? });
    // Renewal is somebody else's work; the schedule only says how concerned to be.
    let schedule = Schedule::new(material.leaf.not_before, material.leaf.not_after, 0.5);
    Ok((Current::new(Arc::new(material.leaf), schedule, &trust, false)?, trust))
}
