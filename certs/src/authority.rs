//! The authority embedded in a gateway: everything needed to issue leaves with the line cut.
//!
//! Its folder holds `root.pem` and `intermediate.pem`, each a private key and its certificate (0600, in a folder
//! 0700), and a lock that the gateway and the command line share. The root signs nothing but intermediates; the
//! intermediate (path length 0) signs leaves, and is replaced by a new one, with a new key, at half of its thirty
//! days. Leaves carry their intermediate along, so peers need the root only.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration as StdDuration,
};

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::{
    CertsError, Clock, IssuedLeaf, LeafRequest, SpiffeId,
    issue::{self, MAX_LEAF_TTL, MIN_LEAF_TTL},
    signer::Signer,
    store::{Locked, Store},
    tls,
};

const ROOT_FILE: &str = "root.pem";
const INTERMEDIATE_FILE: &str = "intermediate.pem";

/// How an authority works.
#[derive(Clone, Debug)]
pub struct AuthorityOptions {
    /// The trust domain it speaks for, without scheme: `branch-17.example.org`.
    pub trust_domain: String,
    /// How long leaves live: [`MIN_LEAF_TTL`] to [`MAX_LEAF_TTL`]; 72 h is the default of the product.
    pub leaf_ttl: StdDuration,
    /// Where it reads the time.
    pub clock: Arc<dyn Clock>,
}

/// Issues leaves for one trust domain. Shared freely between threads.
#[derive(Debug)]
pub struct Authority {
    store: Store,
    clock: Arc<dyn Clock>,
    leaf_ttl: StdDuration,
    gateway_id: SpiffeId,
    root: Signer,
    intermediate: Mutex<Arc<Signer>>,
}

impl Authority {
    /// Opens the authority in `dir`, or begins a new one there. Waits up to ten seconds for another process that does
    /// the same.
    ///
    /// # Errors
    /// - [`CertsError::SpiffeId`], [`CertsError::LeafTtl`]: the options are wrong.
    /// - [`CertsError::TrustDomain`]: there is one, for another trust domain.
    /// - [`CertsError::RootMissing`], [`CertsError::Damaged`], [`CertsError::KeyExposed`],
    ///   [`CertsError::ForeignOwner`]: there is one, and it cannot be trusted as it is. It is never replaced
    ///   silently, since everyone who pinned its root would be locked out.
    /// - [`CertsError::ClockBehind`], [`CertsError::RootExpired`]: the time is outside of its life.
    /// - [`CertsError::Io`], [`CertsError::Locked`]: the folder cannot be read or written.
    pub fn open_or_create(dir: &Path, options: AuthorityOptions) -> Result<Self, CertsError> {
        let trust_domain = SpiffeId::of_trust_domain(&options.trust_domain)?;
        check_leaf_ttl(options.leaf_ttl)?;
        let now = whole_seconds(options.clock.now());
        let store = Store::open(dir)?;
        let (root, intermediate) = {
            let locked = store.lock()?;
            locked.sweep()?;
            let root = match read_root(&store, &locked)? {
                Some(root) => root,
                None => create_root(&locked, &trust_domain, now)?,
            };
            if root.trust_domain != trust_domain {
                return Err(CertsError::TrustDomain {
                    path: dir.to_owned(),
                    found: root.trust_domain.trust_domain().to_owned(),
                    expected: options.trust_domain,
                });
            }
            let intermediate = read_or_renew_intermediate(&store, &locked, &root, now)?;
            (root, intermediate)
        };
        Ok(Self {
            clock: options.clock,
            leaf_ttl: options.leaf_ttl,
            gateway_id: SpiffeId::gateway(&options.trust_domain)?,
            intermediate: Mutex::new(Arc::new(intermediate)),
            root,
            store,
        })
    }

    /// Issues a leaf with a new key. Renews the intermediate first if that is due, which writes a file: not for a
    /// thread that must not wait.
    ///
    /// # Errors
    /// - [`CertsError::NotIssuable`], [`CertsError::Name`]: the request breaks a rule.
    /// - [`CertsError::ClockBehind`], [`CertsError::RootExpired`]: the time is outside of the authority's life.
    /// - [`CertsError::Io`], [`CertsError::Locked`], [`CertsError::Replaced`]: the intermediate had to be renewed now
    ///   and could not be.
    /// - [`CertsError::Tls`]: peers would refuse what was issued; it is not handed out.
    pub fn issue(&self, request: LeafRequest) -> Result<IssuedLeaf, CertsError> {
        issue::check(&request, &self.root.trust_domain)?;
        let now = whole_seconds(self.clock.now());
        let intermediate = self.intermediate_at(now)?;
        let leaf = issue::issue(request, &intermediate, now, self.leaf_ttl)?;
        let trust = crate::Trust::from_roots(&self.trust_bundle())?;
        tls::check_chain(&leaf.chain, &trust, self.trust_domain(), now)?;
        Ok(leaf)
    }

    /// What peers have to trust: the root.
    #[must_use]
    pub fn trust_bundle(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.certificate.clone()]
    }

    /// The ID of this trust domain's gateway, `spiffe://<trust domain>/gateway`.
    #[must_use]
    pub fn gateway_id(&self) -> &SpiffeId {
        &self.gateway_id
    }

    /// The trust domain that it speaks for, without scheme.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.gateway_id.trust_domain()
    }

    /// First and last moment of the root, for the dashboard.
    #[must_use]
    pub fn root_validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.root.not_before, self.root.not_after)
    }

    /// First and last moment of the intermediate in use, for the dashboard.
    #[must_use]
    pub fn intermediate_validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        let current = self.intermediate.lock().unwrap_or_else(PoisonError::into_inner);
        (current.not_before, current.not_after)
    }

    fn intermediate_at(&self, now: OffsetDateTime) -> Result<Arc<Signer>, CertsError> {
        check_time(&self.root, now)?;
        // Whoever panicked while holding this left a whole `Arc` in it.
        let mut current = self.intermediate.lock().unwrap_or_else(PoisonError::into_inner);
        check_begun(&current, "intermediate", now)?;
        if !current.is_due(now) {
            return Ok(Arc::clone(&current));
        }
        match self.renew_intermediate(now) {
            Ok(fresh) => *current = Arc::new(fresh),
            // A full disk must not stop rotation while the old intermediate is good for another leaf.
            Err(error) if current.not_after >= now.saturating_add(as_duration(self.leaf_ttl)) => {
                let until = current.not_after;
                tracing::warn!(%error, %until, "the intermediate cannot be renewed; the old one still issues");
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::clone(&current))
    }

    fn renew_intermediate(&self, now: OffsetDateTime) -> Result<Signer, CertsError> {
        let locked = self.store.lock()?;
        // An intermediate below another root than the one on disk would not start the next time.
        let same = read_root(&self.store, &locked)?.is_some_and(|root| root.certificate == self.root.certificate);
        if !same {
            return Err(CertsError::Replaced { path: self.store.dir().to_owned() });
        }
        read_or_renew_intermediate(&self.store, &locked, &self.root, now)
    }
}

fn check_leaf_ttl(leaf_ttl: StdDuration) -> Result<(), CertsError> {
    if (MIN_LEAF_TTL..=MAX_LEAF_TTL).contains(&leaf_ttl) {
        return Ok(());
    }
    Err(CertsError::LeafTtl {
        asked_s: leaf_ttl.as_secs(),
        min_s: MIN_LEAF_TTL.as_secs(),
        max_s: MAX_LEAF_TTL.as_secs(),
    })
}

fn read_root(store: &Store, locked: &Locked<'_>) -> Result<Option<Signer>, CertsError> {
    let root = read_signer(store, locked, ROOT_FILE)?;
    if root.is_none() && locked.read(INTERMEDIATE_FILE)?.is_some() {
        return Err(CertsError::RootMissing { path: store.path(ROOT_FILE) });
    }
    Ok(root)
}

fn create_root(locked: &Locked<'_>, trust_domain: &SpiffeId, now: OffsetDateTime) -> Result<Signer, CertsError> {
    let root = Signer::create_root(trust_domain, now)?;
    locked.write(ROOT_FILE, root.to_pem().as_bytes())?;
    tracing::info!(trust_domain = trust_domain.trust_domain(), not_after = %root.not_after, "a new authority begins");
    Ok(root)
}

/// The intermediate on disk if it has half of its life ahead, else a new one. Another process may have renewed it
/// meanwhile.
fn read_or_renew_intermediate(
    store: &Store,
    locked: &Locked<'_>,
    root: &Signer,
    now: OffsetDateTime,
) -> Result<Signer, CertsError> {
    check_time(root, now)?;
    if let Some(stored) = read_signer(store, locked, INTERMEDIATE_FILE)? {
        if !root.issued(&stored) {
            let why = "its issuer is not the root beside it".to_owned();
            return Err(CertsError::Damaged { path: store.path(INTERMEDIATE_FILE), why });
        }
        check_begun(&stored, "intermediate", now)?;
        if !stored.is_due(now) {
            return Ok(stored);
        }
    }
    let fresh = root.create_intermediate(&crate::PathPrefix::whole_domain(), now)?;
    locked.write(INTERMEDIATE_FILE, fresh.to_pem().as_bytes())?;
    tracing::info!(not_after = %fresh.not_after, "a new intermediate issues from now on");
    Ok(fresh)
}

fn read_signer(store: &Store, locked: &Locked<'_>, name: &str) -> Result<Option<Signer>, CertsError> {
    let Some(text) = locked.read(name)? else { return Ok(None) };
    let damaged = |error: CertsError| CertsError::Damaged { path: store.path(name), why: error.to_string() };
    Signer::from_pem(&text).map(Some).map_err(damaged)
}

fn check_time(root: &Signer, now: OffsetDateTime) -> Result<(), CertsError> {
    check_begun(root, "root", now)?;
    if now > root.not_after {
        return Err(CertsError::RootExpired { not_after: root.not_after });
    }
    Ok(())
}

/// Leaves dated before their issuer show a clock that was set back: with it, expired certificates would come to life
/// again.
fn check_begun(signer: &Signer, what: &'static str, now: OffsetDateTime) -> Result<(), CertsError> {
    if now < signer.not_before {
        return Err(CertsError::ClockBehind { now, what, not_before: signer.not_before });
    }
    Ok(())
}

/// Certificates count in whole seconds; rounding once, here, keeps every comparison consistent.
fn whole_seconds(now: OffsetDateTime) -> OffsetDateTime {
    now.replace_nanosecond(0).unwrap_or(now)
}

fn as_duration(span: StdDuration) -> Duration {
    Duration::try_from(span).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests;
