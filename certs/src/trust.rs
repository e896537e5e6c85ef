//! Whom this side trusts: roots, revocation lists, and the one function that judges a chain.
//!
//! webpki builds the path from the leaf to a root and checks signatures, times and path lengths (RFC 5280, section 6).
//! What it does not know is checked here, over the very path that it found: SPIFFE IDs, prefixes, and the age of
//! roots.

mod crl;

use std::{cell::RefCell, sync::LazyLock, time::Duration as StdDuration};

use rustls::{
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime},
};
use time::OffsetDateTime;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath, anchor_from_trusted_cert,
};

use self::crl::Crl;
use crate::{
    CertsError, PathPrefix, Reason,
    ban::Ban,
    refusal::from_webpki,
    verify::{self, Peer, Purpose},
};

/// The most roots in a bundle. Each is compared with each certificate that a stranger sends.
pub const MAX_ROOTS: usize = 32;
/// The most revocation lists: one for each issuing key in use.
pub const MAX_CRLS: usize = 32;

/// Kept, since a provider is put together anew at each call.
pub(crate) static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> =
    LazyLock::new(|| aws_lc_rs::default_provider().signature_verification_algorithms);

/// The trust bundle of one trust domain and the revocation lists that go with it. Never changed: a change of either is
/// a new `Trust`, and a new TLS configuration.
///
/// Two policies about revocation: without lists nobody asks ([`Trust::from_roots`]: short lives are the only limit, as
/// with SPIRE); with them ([`Trust::with_crls`]) the issuer of every leaf must have one that is not outdated. An
/// intermediate is not looked up: its issuer may be a root that is kept off line.
#[derive(Debug)]
pub struct Trust {
    roots: Vec<Root>,
    crls: Option<Vec<Crl>>,
    bans: Vec<Ban>,
}

#[derive(Debug)]
struct Root {
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    prefix: PathPrefix,
}

impl Trust {
    /// Trust in these roots, without revocation lists. A root counts only within its own life, which is looked at
    /// anew for every chain: webpki never asks a trust anchor for its age.
    ///
    /// # Errors
    /// [`CertsError::Certificate`] if a root is not a certificate, says a malformed prefix, or there are more than
    /// [`MAX_ROOTS`]; [`CertsError::Tls`] if a root is of an unknown kind.
    pub fn from_roots(roots: &[CertificateDer<'_>]) -> Result<Self, CertsError> {
        if roots.len() > MAX_ROOTS {
            return Err(CertsError::certificate(format!("more than {MAX_ROOTS} roots in one bundle")));
        }
        let roots = roots.iter().map(Root::new).collect::<Result<_, _>>()?;
        Ok(Self { roots, crls: None, bans: Vec::new() })
    }

    /// The same roots, and from now on the issuer of every leaf needs one of these lists, not outdated. They must come
    /// from a place as trusted as the roots. None at all: every leaf is refused.
    ///
    /// # Errors
    /// [`CertsError::RevocationList`] if one cannot be read, names no next update, or there are more than
    /// [`MAX_CRLS`].
    pub fn with_crls(self, crls: &[CertificateRevocationListDer<'_>]) -> Result<Self, CertsError> {
        if crls.len() > MAX_CRLS {
            return Err(CertsError::RevocationList(format!("there are more than {MAX_CRLS}")));
        }
        let crls = crls.iter().map(Crl::new).collect::<Result<_, _>>()?;
        Ok(Self { crls: Some(crls), ..self })
    }

    /// The same, and leaves that these hit are refused as well.
    pub(crate) fn with_bans(self, bans: Vec<Ban>) -> Self {
        Self { bans, ..self }
    }

    pub(crate) fn bans(&self) -> &[Ban] {
        &self.bans
    }

    /// The roots, for peers that are to trust the same.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.iter().map(|root| root.certificate.clone()).collect()
    }

    /// The revocation lists; `None` if nobody asks for them.
    #[must_use]
    pub fn crls(&self) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        Some(self.crls.as_ref()?.iter().map(|crl| crl.der.clone()).collect())
    }

    /// When the first revocation list becomes outdated: there must be a new `Trust` before.
    #[must_use]
    pub fn next_update(&self) -> Option<OffsetDateTime> {
        self.crls.iter().flatten().map(|crl| crl.next_update).min()
    }

    /// Whether the leaf of a peer that is connected already has been revoked since: close its connection. A list that
    /// is missing or outdated says nothing here, so that a delay does not end what goes on.
    #[must_use]
    pub fn is_revoked(&self, peer: &Peer) -> bool {
        self.crls.iter().flatten().any(|crl| crl.lists(peer)) || self.bans.iter().any(|ban| ban.hits(peer))
    }

    /// Whether any root is valid at `at`.
    pub(crate) fn check_not_empty(&self, at: OffsetDateTime) -> Result<(), CertsError> {
        if self.roots.iter().any(|root| root.is_valid(at)) { Ok(()) } else { Err(CertsError::EmptyBundle) }
    }

    pub(crate) fn anchors(&self) -> impl Iterator<Item = &TrustAnchor<'static>> {
        self.roots.iter().map(|root| &root.anchor)
    }

    /// Judges a chain, and says who its leaf belongs to.
    ///
    /// The order decides what an operator reads first: path and times, what the leaf says, trust domain, revocation;
    /// prefixes are part of the path. Nothing that a stranger wrote is believed or shown before a root vouches for it.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        trust_domain: &str,
        at: UnixTime,
    ) -> Result<Peer, CertsError> {
        let time = offset_date_time(at)?;
        let anchors: Vec<_> =
            self.roots.iter().filter(|root| root.is_valid(time)).map(|root| root.anchor.clone()).collect();
        if anchors.is_empty() {
            return Err(CertsError::EmptyBundle);
        }
        let end_entity = EndEntityCert::try_from(leaf).map_err(from_webpki)?;
        let facts = verify::leaf_for(leaf, purpose);
        let path = |revocation: Option<RevocationOptions<'_>>| {
            let why = RefCell::new(None);
            let check_path = |path: &VerifiedPath<'_>| {
                let Ok(peer) = &facts else { return Ok(()) };
                self.check_path(path, peer).map_err(|error| {
                    why.replace(Some(error));
                    webpki::Error::NameConstraintViolation
                })
            };
            let usage = match purpose {
                Purpose::Client => KeyUsage::client_auth(),
                Purpose::Server => KeyUsage::server_auth(),
            };
            let found = end_entity.verify_for_usage(
                ALGORITHMS.all,
                &anchors,
                intermediates,
                at,
                usage,
                revocation,
                Some(&check_path),
            );
            match (found, why.take()) {
                (Ok(_), _) => Ok(()),
                (Err(webpki::Error::NameConstraintViolation), Some(error)) => Err(error),
                (Err(error), _) => Err(from_webpki(error)),
            }
        };
        let lists: Option<Vec<_>> = self.crls.as_ref().map(|crls| crls.iter().map(|crl| &crl.parsed).collect());
        let revocation = || lists.as_deref().map(revocation_by).transpose();
        // Mostly one walk is enough. Where it is not, a second one says what is wrong: webpki looks for revocation before it shows
        // us the path, and a certificate that is of another authority as well should be told so.
        let walked = revocation().and_then(&path);
        // Without lists it says the same again, before anything is said of a stranger's name.
        if walked.is_err() {
            path(None)?;
        }
        let peer = facts.as_ref().map_err(CertsError::restate)?;
        if peer.id.trust_domain() != trust_domain {
            // The bundle is that of one trust domain, so its authorities speak for no other (SPIFFE Trust Domain and
            // Bundle).
            let why = format!("{} is not of the trust domain {trust_domain}", peer.id);
            return Err(CertsError::refused(Reason::TrustDomain, why));
        }
        if self.bans.iter().any(|ban| ban.hits(peer)) {
            return Err(from_webpki(webpki::Error::CertRevoked));
        }
        walked?;
        Ok(peer.clone())
    }

    /// Whether every authority of the path may sign certificates, and may name this peer.
    fn check_path(&self, path: &VerifiedPath<'_>, peer: &Peer) -> Result<(), CertsError> {
        let anchor = path.anchor();
        for root in &self.roots {
            if root.anchor == *anchor {
                check_prefix(&root.prefix, peer)?;
            }
        }
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let authority = verify::parse(&der)?;
            if !verify::may_sign_certificates(&authority)? {
                let why = "an authority above it may not sign certificates";
                return Err(CertsError::refused(Reason::Purpose, why));
            }
            check_prefix(&PathPrefix::of(&authority)?, peer)?;
        }
        Ok(())
    }
}

impl Root {
    fn new(certificate: &CertificateDer<'_>) -> Result<Self, CertsError> {
        let certificate = certificate.clone().into_owned();
        let parsed = verify::parse(&certificate)?;
        let (prefix, validity) = (PathPrefix::of(&parsed)?, parsed.validity());
        let (not_before, not_after) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        let anchor = anchor_from_trusted_cert(&certificate).map_err(from_webpki)?.to_owned();
        Ok(Self { anchor, not_before, not_after, prefix, certificate })
    }

    fn is_valid(&self, at: OffsetDateTime) -> bool {
        (self.not_before..=self.not_after).contains(&at)
    }
}

fn revocation_by<'a>(lists: &'a [&'a CertRevocationList<'a>]) -> Result<RevocationOptions<'a>, CertsError> {
    let options = RevocationOptionsBuilder::new(lists);
    let options = options.map_err(|_| from_webpki(webpki::Error::UnknownRevocationStatus))?;
    Ok(options
        .with_depth(RevocationCheckDepth::EndEntity)
        .with_status_policy(UnknownStatusPolicy::Deny)
        .with_expiration_policy(ExpirationPolicy::Enforce)
        .build())
}

fn check_prefix(prefix: &PathPrefix, peer: &Peer) -> Result<(), CertsError> {
    if prefix.covers(&peer.id) {
        return Ok(());
    }
    let why = format!("its issuer speaks for {prefix}/* only, not for {}", peer.id);
    Err(CertsError::refused(Reason::Prefix, why))
}

pub(crate) fn unix_time(at: OffsetDateTime) -> UnixTime {
    // Before 1970 nothing is valid, whatever the exact moment.
    UnixTime::since_unix_epoch(StdDuration::from_secs(u64::try_from(at.unix_timestamp()).unwrap_or(0)))
}

fn offset_date_time(at: UnixTime) -> Result<OffsetDateTime, CertsError> {
    let seconds = i64::try_from(at.as_secs()).ok();
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.ok_or_else(|| CertsError::certificate("the time is beyond the year 9999"))
}

#[cfg(test)]
mod tests;
