//! The revocation lists of an authority: one for each key that has leaves in force.
//!
//! They are not kept on disk, since they follow from the ledger: each process signs its own.

use std::{cmp::Reverse, sync::Arc};

use rustls::pki_types::CertificateRevocationListDer;
use time::{Duration, OffsetDateTime};

use super::state::State;
use crate::{CertsError, Serial, Trust, clock, signer::Signer, trust::MAX_CRLS};

/// How long a revocation list is good for. A new one is made after half of that.
const CRL_LIFE: Duration = Duration::DAY;

/// A list, and what it was made of.
#[derive(Debug)]
pub(super) struct SignedCrl {
    issuer: String,
    serials: Vec<Serial>,
    number: u64,
    made: OffsetDateTime,
    next_update: OffsetDateTime,
    der: CertificateRevocationListDer<'static>,
}

impl State {
    /// Signs what revocation lists have to be signed, and makes another [`Trust`] if anything in it changed.
    pub(super) fn rebuild(&mut self, now: OffsetDateTime) -> Result<(), CertsError> {
        let mut changed = self.trust.roots() != self.roots.trusted() || self.trust.bans() != self.ledger.bans;
        let mut former = std::mem::take(&mut self.crls);
        let mut retired = self.retired.clone();
        // Should there ever be more than a bundle may have, leaves of the oldest are refused as unknown.
        retired.sort_by_key(|signer| Reverse(signer.not_before));
        let signers: Vec<_> = std::iter::once(Arc::clone(&self.intermediate)).chain(retired).take(MAX_CRLS).collect();
        for signer in signers {
            let name = signer.name();
            let old = former.iter().position(|crl| crl.issuer == name).map(|index| former.swap_remove(index));
            let serials: Vec<_> = self.revoked_by(&name).map(|(serial, _)| serial.clone()).collect();
            if let Some(old) = old {
                if old.serials == serials && old.is_fresh(now) {
                    self.crls.push(old);
                    continue;
                }
                self.crls.push(self.sign_crl(&signer, serials, now, old.number)?);
            } else {
                self.crls.push(self.sign_crl(&signer, serials, now, 0)?);
            }
            changed = true;
        }
        changed |= !former.is_empty();
        if changed {
            let lists: Vec<_> = self.crls.iter().map(|crl| crl.der.clone()).collect();
            let trust = Trust::from_roots(&self.roots.trusted())
                .and_then(|trust| trust.with_crls(&lists))
                .map(|trust| trust.with_bans(self.ledger.bans.clone()));
            if trust.is_err() {
                // So that the next call does not take what it finds for what is trusted.
                self.crls.clear();
            }
            self.trust = Arc::new(trust?);
        }
        Ok(())
    }

    fn revoked_by<'a>(&'a self, issuer: &'a str) -> impl Iterator<Item = (&'a Serial, OffsetDateTime)> {
        let ours = self.ledger.revoked.iter().filter(move |leaf| leaf.issuer == issuer);
        ours.filter_map(|leaf| Some((&leaf.serial, OffsetDateTime::from_unix_timestamp(leaf.at).ok()?)))
    }

    fn sign_crl(
        &self,
        signer: &Signer,
        serials: Vec<Serial>,
        now: OffsetDateTime,
        former: u64,
    ) -> Result<SignedCrl, CertsError> {
        let next_update = now.saturating_add(CRL_LIFE);
        // A moment is higher than every earlier one without anything being kept.
        let number = u64::try_from(now.unix_timestamp()).unwrap_or_default().max(former.saturating_add(1));
        let issuer = signer.name();
        let der = signer.sign_crl(self.revoked_by(&issuer), now, next_update, number)?;
        Ok(SignedCrl { issuer, serials, number, made: now, next_update, der })
    }
}

impl SignedCrl {
    fn is_fresh(&self, now: OffsetDateTime) -> bool {
        // After a clock that ran ahead it would stay for as long as that.
        now >= self.made.saturating_sub(clock::TOLERANCE)
            && now < self.made.saturating_add((self.next_update - self.made) / 2)
    }
}
