//! Who a node is, and whom it lets in: files that `postern certs enrol` or `certs issue` wrote, read anew when they change,
//! and replaced by the node itself where it knows its gateway.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use postern_certs::rotate::{Action, Failures, Schedule};
use postern_certs::{
    CertsError, Clock as _, IssuedLeaf, Signatory, SpiffeId, SystemClock, Trust, clock, material, rfc3339,
};
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::workstation;
use crate::issuer::{Files, Material};
use crate::tls::Told;

/// How often it is looked whether a renewal is due; also the time that a sleeping machine needs after it woke.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For new files to be noticed; after that, what was renewed and not taken over is renewed again.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

/// What new handshakes use.
#[derive(Debug)]
pub(crate) struct Current {
    /// Fresh at each change, never a clone.
    pub(crate) tls: Arc<ServerConfig>,
    /// No connection outlives it.
    pub(crate) not_after: OffsetDateTime,
    /// Cancelled when another takes its place.
    pub(crate) replaced: CancellationToken,
    /// Signs with the leaf.
    pub(crate) signatory: Signatory,
    schedule: Schedule,
}

impl Current {
    fn new(leaf: &IssuedLeaf, trust: &Arc<Trust>, let_in: &[SpiffeId]) -> Result<Self, CertsError> {
        Ok(Self {
            tls: postern_certs::node_server_config(leaf, trust, let_in)?,
            not_after: leaf.not_after,
            replaced: CancellationToken::new(),
            signatory: Signatory::new(leaf)?,
            schedule: Schedule::new(leaf.not_before, leaf.not_after, rand::random()),
        })
    }

    /// False after its end.
    pub(crate) fn is_valid(&self) -> bool {
        clock::steady_now() <= self.not_after
    }
}

/// The node's leaf, whom it trusts, and whom it lets in.
#[derive(Debug)]
pub(crate) struct Identity {
    dir: PathBuf,
    own: SpiffeId,
    allowed: Vec<SpiffeId>,
    relays: Vec<SpiffeId>,
    current: ArcSwap<Current>,
    trust: watch::Sender<Arc<Trust>>,
}

impl Identity {
    /// Reads the folder. `allowed`: whom to let in; nobody: the gateway that the node was enrolled at. `relays`: who may carry what they seal.
    ///
    /// # Errors
    /// A file is missing, expired, or not that of a node; the message says which, and what to do.
    pub(crate) async fn open(
        dir: &Path,
        mut allowed: Vec<SpiffeId>,
        relays: Vec<SpiffeId>,
    ) -> anyhow::Result<(Self, Files)> {
        let read = async {
            IssuedLeaf::complete(dir)?;
            let mut files = Files::of_folder(dir);
            let material = files.next().await?;
            let own = material.leaf.id.clone();
            if allowed.is_empty() {
                allowed.push(workstation::gateway_id(dir, &own)?);
            }
            if let Some(both) = relays.iter().find(|relay| allowed.contains(relay)) {
                bail!(
                    "{both} may ask this node itself, so it cannot be its --relay too: the middlebox needs a name of its own"
                );
            }
            let (current, trust) = ready(&material, &own, &let_in(&allowed, &relays)).context(
                "an engine needs the certificate of a node, such as that of spiffe://DOMAIN/node/NAME; a workstation's cannot serve",
            )?;
            let (current, trust) = (ArcSwap::from_pointee(current), watch::Sender::new(trust));
            anyhow::Ok((Self { dir: dir.to_owned(), own, allowed, relays, current, trust }, files))
        };
        read.await.with_context(|| format!("the identity in {}", dir.display()))
    }

    /// Who may ask it.
    pub(crate) fn allowed(&self) -> &[SpiffeId] {
        &self.allowed
    }

    /// Whether it comes in to bring what others have sealed, and may ask nothing itself.
    pub(crate) fn is_relay(&self, id: &SpiffeId) -> bool {
        self.relays.contains(id)
    }

    /// Who it is.
    pub(crate) fn own(&self) -> &SpiffeId {
        &self.own
    }

    /// What the next handshake uses.
    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Whom to trust, and every change of it.
    pub(crate) fn trust(&self) -> watch::Receiver<Arc<Trust>> {
        self.trust.subscribe()
    }

    /// Keeps leaf and trust fresh, for as long as the node runs. `gateway`: where to renew; `None`: somebody else does.
    pub(crate) async fn keep(self: Arc<Self>, mut files: Files, gateway: Option<String>) {
        let follow = async {
            loop {
                match files.next().await.map_err(anyhow::Error::from).and_then(|material| self.adopt(&material)) {
                    Ok(until) => tracing::info!(
                        until = rfc3339(until),
                        "this node's new certificate, or new trust, was taken over"
                    ),
                    // Told once for each fault: the files are read every second.
                    Err(error) => {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "the new certificate of this node cannot be used; what was there stays in use until it ends"
                        );
                    }
                }
            }
        };
        tokio::join!(follow, self.renew_when_due(gateway));
    }

    fn adopt(&self, material: &Material) -> anyhow::Result<OffsetDateTime> {
        let (fresh, trust) = ready(material, &self.own, &let_in(&self.allowed, &self.relays))?;
        let until = fresh.not_after;
        let before = self.current.swap(Arc::new(fresh));
        if self.trust.borrow().roots() != trust.roots() {
            self.trust.send_replace(trust);
        }
        // Last: who is asked to connect anew finds the new leaf.
        before.replaced.cancel();
        Ok(until)
    }

    async fn renew_when_due(&self, gateway: Option<String>) {
        let mut told = Told::of("this node's certificate");
        let (mut failures, mut renewed): (_, Option<(Arc<Current>, Instant)>) = (Failures::default(), None);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (current, now) = (self.current(), SystemClock.now());
            told.tell(current.schedule.health(now), current.not_after, now);
            let Some(gateway) = &gateway else { continue };
            let is_noticed_soon =
                renewed.as_ref().is_some_and(|(from, at)| Arc::ptr_eq(from, &current) && at.elapsed() < NOTICED_WITHIN);
            if is_noticed_soon || current.schedule.next(now, failures) != Action::RenewNow {
                continue;
            }
            let (dir, at) = (self.dir.clone(), gateway.clone());
            // Waits for the network, and writes files.
            let renewal = tokio::task::spawn_blocking(move || workstation::renew_in(&dir, &at));
            match renewal.await.map_err(anyhow::Error::from).flatten() {
                Ok(_leaf) => {
                    failures = Failures::default();
                    renewed = Some((current, Instant::now()));
                }
                Err(error) => {
                    failures = failures.and_at(now);
                    tracing::error!(
                        error = format!("{error:#}"),
                        "this node's certificate could not be renewed; it will be tried again"
                    );
                }
            }
        }
    }
}

fn let_in(allowed: &[SpiffeId], relays: &[SpiffeId]) -> Vec<SpiffeId> {
    [allowed, relays].concat()
}

fn ready(material: &Material, own: &SpiffeId, let_in: &[SpiffeId]) -> Result<(Current, Arc<Trust>), CertsError> {
    material::check_node(&material.leaf, &material.roots, own, SystemClock.now())?;
    let trust = Arc::new(Trust::from_roots(&material.roots)?);
    Ok((Current::new(&material.leaf, &trust, let_in)?, trust))
}
