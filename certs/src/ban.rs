//! Refusals that need no register: of an identity's leaves up to a moment, or of one number.
//!
//! A revocation list names numbers, and numbers are known from the register. After a restore from a backup, or after a
//! clock that ran ahead for some days, leaves are in force that the register does not know; what is revoked has to be
//! refused all the same.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::{Serial, SpiffeId, issue::BACKDATE, ledger::Seconds, verify::Peer};

/// The most of them. Beyond it the oldest goes: leaves that old are over, whatever the clock said meanwhile.
pub(crate) const MAX_BANS: usize = 10_000;
/// A leaf's first moment is rounded, and backdated by a twelfth of a life that is itself rounded.
const ROUNDING: Duration = Duration::seconds(2);
/// The backdating of a short life, as a part of the time from its first moment to its last.
const BACKDATE_PER_WHOLE_LIFE: i32 = 13;

/// One refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ban {
    what: What,
    /// Leaves that were issued before this are refused.
    before: Seconds,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Id(SpiffeId),
    Serial(Serial),
}

impl Ban {
    pub(crate) fn of_id(id: &SpiffeId, now: OffsetDateTime) -> Self {
        Self { what: What::Id(id.clone()), before: now.unix_timestamp() }
    }

    pub(crate) fn of_serial(serial: &Serial, now: OffsetDateTime) -> Self {
        Self { what: What::Serial(serial.clone()), before: now.unix_timestamp() }
    }

    /// Whether it refuses this peer. Who was invited again right after has a leaf that is newer.
    pub(crate) fn hits(&self, peer: &Peer) -> bool {
        match &self.what {
            What::Serial(serial) => *serial == peer.serial,
            What::Id(id) => *id == peer.id && issued_at(peer).saturating_add(ROUNDING).unix_timestamp() < self.before,
        }
    }
}

/// Adds one, in place of an earlier one about the same.
pub(crate) fn add(bans: &mut Vec<Ban>, ban: Ban) {
    bans.retain(|earlier| earlier.what != ban.what);
    if bans.len() >= MAX_BANS
        && let Some((oldest, _)) = bans.iter().enumerate().min_by_key(|(_, ban)| ban.before)
    {
        bans.remove(oldest);
    }
    bans.push(ban);
}

/// When a leaf was made, from what stands in it: see [`crate::issue::BACKDATE`].
fn issued_at(peer: &Peer) -> OffsetDateTime {
    let life = peer.not_after - peer.not_before;
    peer.not_before.saturating_add(BACKDATE.min(life / BACKDATE_PER_WHOLE_LIFE))
}
