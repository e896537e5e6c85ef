//! How the authority is, for the dashboard and the command line.

use serde::Serialize;
use time::OffsetDateTime;

use super::{Authority, RootPlace, disk::Roots, state::State};
use crate::{PathPrefix, Serial, rfc3339, rotate::RootSwitch, signer::Signer, verify};

/// With the root off line, an operator is woken this long before the intermediate ends.
const OFFLINE_ALARM_DAYS: i64 = 15;

/// How an authority is. Times are RFC 3339, by the second.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The trust domain, without scheme.
    pub trust_domain: String,
    /// The path below which it names workloads; empty for the whole trust domain.
    pub prefix: PathPrefix,
    /// Whether the root's key is kept off line.
    pub root_offline: bool,
    /// What peers have to trust.
    pub roots: Vec<CertificateStatus>,
    /// How far a switch to a new root is, if there is one.
    pub root_switch: Option<RootSwitch>,
    /// What issues now, and what did before.
    pub intermediates: Vec<CertificateStatus>,
    /// Whether an operator has to bring a new intermediate soon: the root is off line and cannot renew it.
    pub alarm: bool,
    /// The newest leaf of this authority's gateway; none before its first start.
    pub gateway: Option<LeafStatus>,
    /// Leaves that are not over yet, revoked ones among them.
    pub issued: usize,
    /// Revoked leaves that are not over yet.
    pub revoked: usize,
    /// Invitations that wait.
    pub invited: usize,
    /// When the first revocation list becomes outdated.
    pub crl_next_update: Option<String>,
    /// The highest time seen.
    pub highest_time: Option<String>,
    /// A number that grows with each change of the roots.
    pub bundle_sequence: u64,
}

/// One certificate of an authority.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CertificateStatus {
    /// The name of its key: its key identifier, hexadecimal. Empty if it names none.
    pub key_id: String,
    /// First moment.
    pub not_before: String,
    /// Last moment.
    pub not_after: String,
    /// What it is doing.
    pub stage: Stage,
}

/// A leaf that the register knows.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LeafStatus {
    /// Its number.
    pub serial: Serial,
    /// Last moment.
    pub not_after: String,
}

/// What a certificate of an authority is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Peers trust it, others issue.
    Trusted,
    /// It issues.
    Issuing,
    /// It issues no more, and signs the revocation of what it issued.
    Retired,
}

impl Authority {
    /// How it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let (state, now) = (self.state(), self.now());
        let issuing = state.roots.issuing(&state.ledger, now);
        let roots = match &state.roots {
            Roots::Here { current, next } => [Some(current), next.as_ref()]
                .into_iter()
                .flatten()
                .map(|root| {
                    let issues = issuing.is_some_and(|one| one.key_id == root.key_id);
                    of_signer(root, if issues { Stage::Issuing } else { Stage::Trusted })
                })
                .collect(),
            Roots::Offline(certificates) => certificates
                .iter()
                .filter_map(|root| {
                    let (not_before, not_after) = verify::validity(root).ok()?;
                    let key_id = verify::authority(root).map(|facts| hex(&facts.key_id)).unwrap_or_default();
                    Some(of(key_id, not_before, not_after, Stage::Trusted))
                })
                .collect(),
        };
        let mut intermediates = vec![of_signer(&state.intermediate, Stage::Issuing)];
        intermediates.extend(state.retired.iter().map(|signer| of_signer(signer, Stage::Retired)));
        let root_offline = self.settings.root == RootPlace::Offline;
        let alarm_from = state.intermediate.not_after.saturating_sub(time::Duration::days(OFFLINE_ALARM_DAYS));
        Status {
            trust_domain: self.trust_domain().to_owned(),
            prefix: self.settings.prefix.clone(),
            root_offline,
            roots,
            root_switch: state.roots.phase(&state.ledger, now),
            intermediates,
            alarm: root_offline && now >= alarm_from,
            gateway: self.newest_of_gateway(&state, now),
            issued: state.ledger.in_force(now).count(),
            revoked: state.ledger.revoked.iter().filter(|leaf| leaf.not_after >= now.unix_timestamp()).count(),
            invited: state.ledger.invites(now),
            crl_next_update: state.trust.next_update().map(rfc3339),
            highest_time: state.highest.map(rfc3339),
            bundle_sequence: state.ledger.bundle.sequence,
        }
    }
}

impl Authority {
    fn newest_of_gateway(&self, state: &State, now: OffsetDateTime) -> Option<LeafStatus> {
        let own = state.ledger.in_force(now).filter(|leaf| leaf.id == self.settings.gateway_id);
        let newest = own.max_by_key(|leaf| leaf.not_after)?;
        let not_after = OffsetDateTime::from_unix_timestamp(newest.not_after).ok()?;
        Some(LeafStatus { serial: newest.serial.clone(), not_after: rfc3339(not_after) })
    }
}

fn of_signer(signer: &Signer, stage: Stage) -> CertificateStatus {
    of(signer.name(), signer.not_before, signer.not_after, stage)
}

fn of(key_id: String, not_before: OffsetDateTime, not_after: OffsetDateTime, stage: Stage) -> CertificateStatus {
    CertificateStatus { key_id, not_before: rfc3339(not_before), not_after: rfc3339(not_after), stage }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
