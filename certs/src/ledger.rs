//! What the authority has to remember: who got which leaf, what was revoked, who is invited, how far a root switch is.
//!
//! One file, replaced whole, so that what belongs together changes together: an invitation is used up in the same
//! write that registers its leaf. Pure: reading and writing is [`crate::authority`]'s work.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::{Duration, OffsetDateTime};

use crate::{CertsError, Serial, SpiffeId, ban::Ban, refusal, signer::Signer, verify};

/// The most leaves in force: a leaf of 72 h is renewed at 36 h, so this is for five thousand workstations.
pub(crate) const MAX_LEAVES: usize = 10_000;
/// The most leaves of the gateway itself that are kept in mind.
const MAX_OWN_LEAVES: usize = 64;
/// The most leaves in force of a workload that renews: two are usual, some more after failures. Otherwise a single one
/// could fill the register.
pub(crate) const MAX_RENEWED_LEAVES: usize = 16;
/// The most invitations that wait at a time.
pub(crate) const MAX_INVITES: usize = 256;
/// The longest file, bytes: every identity at its longest would be more, and is refused.
pub(crate) const MAX_LEDGER_BYTES: u64 = 16 * 1024 * 1024;

/// The most leaves that are kept as revoked. They are not forgotten by the clock: one that ran ahead would bring them back.
const MAX_REVOKED: usize = 10_000;
/// What is over is forgotten this much later, in case the clock goes back a little.
const KEPT_AFTER_END: Duration = Duration::DAY;
const VERSION: u32 = 1;

/// Seconds since 1970: the unit of certificates.
pub(crate) type Seconds = i64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ledger {
    version: u32,
    /// The highest time seen when this was written.
    pub(crate) highest: Option<Seconds>,
    /// The oldest first.
    pub(crate) issued: Vec<Issued>,
    pub(crate) revoked: Vec<Revoked>,
    /// What is refused without being known here.
    #[serde(default)]
    pub(crate) bans: Vec<Ban>,
    invites: Vec<Invite>,
    /// Intermediates that issue no more, by the name of their key, and since when.
    pub(crate) retired: BTreeMap<String, Seconds>,
    pub(crate) switch: Option<Switch>,
    /// A number that grows with each change of the roots, and the digest of the present ones (SPIFFE Trust Domain and
    /// Bundle, section 4.1.1).
    pub(crate) bundle: Bundle,
}

/// A leaf that was handed out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Issued {
    pub(crate) serial: Serial,
    pub(crate) id: SpiffeId,
    pub(crate) not_after: Seconds,
    /// The name of the issuer's key.
    pub(crate) issuer: String,
    /// SHA-256 of the public key.
    pub(crate) key: String,
}

/// A leaf that is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revoked {
    pub(crate) serial: Serial,
    pub(crate) id: SpiffeId,
    pub(crate) not_after: Seconds,
    pub(crate) issuer: String,
    pub(crate) at: Seconds,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invite {
    /// SHA-256 of the secret, which is kept nowhere.
    hash: String,
    id: SpiffeId,
    expires: Seconds,
}

/// A switch to a new root.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switch {
    pub(crate) began: Seconds,
    /// The life of a leaf when it began: a shorter one that is configured later must not cut it short.
    pub(crate) leaf_ttl_s: Seconds,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bundle {
    pub(crate) sequence: u64,
    pub(crate) digest: String,
}

impl Issued {
    /// What the leaf of a chain says, which was signed by `issuer`.
    pub(crate) fn of(chain: &[CertificateDer<'_>], issuer: &Signer) -> Result<Self, CertsError> {
        let leaf = refusal::split(chain)?.0;
        let peer = verify::peer(leaf)?;
        let key = digest(verify::parse(leaf)?.public_key().raw);
        let (serial, id, not_after) = (peer.serial, peer.id, peer.not_after.unix_timestamp());
        Ok(Self { serial, id, not_after, issuer: issuer.name(), key })
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            version: VERSION,
            highest: None,
            issued: Vec::new(),
            revoked: Vec::new(),
            bans: Vec::new(),
            invites: Vec::new(),
            retired: BTreeMap::new(),
            switch: None,
            bundle: Bundle::default(),
        }
    }
}

impl Ledger {
    /// The reverse of [`Ledger::to_json`]; the error says what is wrong with the text.
    pub(crate) fn from_json(text: &[u8]) -> Result<Self, String> {
        let ledger: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if ledger.version == VERSION { Ok(ledger) } else { Err(format!("its version is {}", ledger.version)) }
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, CertsError> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let fits = u64::try_from(text.len()).is_ok_and(|bytes| (1..=MAX_LEDGER_BYTES).contains(&bytes));
        if fits { Ok(text) } else { Err(CertsError::RegisterFull { max: self.issued.len() }) }
    }

    /// Forgets what is over, which keeps everything here bounded.
    pub(crate) fn forget(&mut self, now: OffsetDateTime) {
        let over = now.saturating_sub(KEPT_AFTER_END).unix_timestamp();
        self.issued.retain(|leaf| leaf.not_after >= over);
        if self.revoked.len() > MAX_REVOKED {
            self.revoked.sort_by_key(|leaf| leaf.not_after);
            self.revoked.drain(..self.revoked.len() - MAX_REVOKED);
        }
        self.invites.retain(|invite| invite.expires >= now.unix_timestamp());
    }

    pub(crate) fn register(&mut self, leaf: Issued, now: OffsetDateTime) -> Result<(), CertsError> {
        self.forget(now);
        if self.issued.len() >= MAX_LEAVES {
            // The day that is kept in reserve goes first, the oldest of it.
            let now = now.unix_timestamp();
            let oldest = self.issued.iter().enumerate().filter(|(_, leaf)| leaf.not_after < now);
            let Some((oldest, _)) = oldest.min_by_key(|(_, leaf)| leaf.not_after) else {
                return Err(CertsError::RegisterFull { max: MAX_LEAVES });
            };
            self.issued.remove(oldest);
        }
        self.issued.push(leaf);
        Ok(())
    }

    /// Registers a leaf of the gateway itself, in place of its oldest one: each start makes one, and a gateway that
    /// starts over and over must not lock everyone out.
    pub(crate) fn register_own(&mut self, leaf: Issued, now: OffsetDateTime) -> Result<(), CertsError> {
        let own = |entry: &Issued| entry.id == leaf.id;
        if self.issued.iter().filter(|entry| own(entry)).count() >= MAX_OWN_LEAVES
            && let Some(oldest) = self.issued.iter().position(own)
        {
            self.issued.remove(oldest);
        }
        self.register(leaf, now)
    }

    /// How many leaves of this identity are in force.
    pub(crate) fn count_of(&self, id: &SpiffeId, now: OffsetDateTime) -> usize {
        self.in_force(now).filter(|leaf| leaf.id == *id).count()
    }

    /// Leaves in force.
    pub(crate) fn in_force(&self, now: OffsetDateTime) -> impl Iterator<Item = &Issued> {
        let now = now.unix_timestamp();
        self.issued.iter().filter(move |leaf| leaf.not_after >= now)
    }

    /// Whether a leaf with this public key is registered.
    pub(crate) fn knows_key(&self, key: &str) -> bool {
        self.issued.iter().any(|leaf| leaf.key == key)
    }

    pub(crate) fn is_revoked(&self, serial: &Serial, issuer: &str) -> bool {
        self.revoked.iter().any(|leaf| leaf.serial == *serial && leaf.issuer == issuer)
    }

    /// Revokes every registered leaf that is meant, also those that seem to be over. Returns their numbers, those that were
    /// revoked before among them.
    pub(crate) fn revoke(&mut self, meant: impl Fn(&Issued) -> bool, now: OffsetDateTime) -> Vec<Serial> {
        let leaves: Vec<_> = self.issued.iter().filter(|leaf| meant(leaf)).cloned().collect();
        for leaf in &leaves {
            if !self.is_revoked(&leaf.serial, &leaf.issuer) {
                let Issued { serial, id, not_after, issuer, .. } = leaf.clone();
                self.revoked.push(Revoked { serial, id, not_after, issuer, at: now.unix_timestamp() });
            }
        }
        leaves.into_iter().map(|leaf| leaf.serial).collect()
    }

    pub(crate) fn invite(
        &mut self,
        secret: &[u8],
        id: SpiffeId,
        expires: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        self.forget(now);
        if self.invites.len() >= MAX_INVITES {
            return Err(CertsError::NotInvitable("256 invitations wait already; they end within ten minutes"));
        }
        self.invites.push(Invite { hash: digest(secret), id, expires: expires.unix_timestamp() });
        Ok(())
    }

    pub(crate) fn withdraw_invites(&mut self, id: &SpiffeId) -> usize {
        let before = self.invites.len();
        self.invites.retain(|invite| invite.id != *id);
        before - self.invites.len()
    }

    pub(crate) fn withdraw_all_invites(&mut self) {
        self.invites.clear();
    }

    /// Uses up the invitation with this secret.
    pub(crate) fn accept(&mut self, secret: &[u8], now: OffsetDateTime) -> Result<SpiffeId, CertsError> {
        self.forget(now);
        let hash = digest(secret);
        // Every one is compared, whole: the time that this takes tells nothing about any of them.
        let mut found = None;
        for (index, invite) in self.invites.iter().enumerate() {
            if bool::from(invite.hash.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(index);
            }
        }
        found.map(|index| self.invites.swap_remove(index).id).ok_or(CertsError::InviteRefused)
    }

    pub(crate) fn invites(&self, now: OffsetDateTime) -> usize {
        self.invites.iter().filter(|invite| invite.expires >= now.unix_timestamp()).count()
    }

    /// Counts a change of the roots. The number is at least the time, so that it grows even if the ledger is an older
    /// one, from a backup.
    pub(crate) fn count_bundle(&mut self, roots: &[CertificateDer<'_>], now: OffsetDateTime) {
        let all: String = roots.iter().map(|root| digest(root)).collect();
        let digest = digest(all.as_bytes());
        if self.bundle.digest != digest {
            let time = u64::try_from(now.unix_timestamp()).unwrap_or_default();
            self.bundle = Bundle { sequence: time.max(self.bundle.sequence.saturating_add(1)), digest };
        }
    }
}

/// SHA-256, hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
