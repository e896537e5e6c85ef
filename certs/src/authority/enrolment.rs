//! How workstations get their first leaf, and every further one.

use std::time::Duration as StdDuration;

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::{Authority, state::State};
use crate::{
    CertsError, JoinToken, LeafRequest, Serial, SpiffeId,
    csr::Request,
    issue,
    ledger::{Issued, Ledger, MAX_RENEWED_LEAVES},
    refusal,
    verify::{self, Peer},
};

/// The longest life of a join token: it is meant to be used while somebody sits there.
pub const MAX_INVITE_TTL: StdDuration = StdDuration::from_secs(600);

/// A leaf for a key that stays with its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedLeaf {
    /// Whom it is for.
    pub id: SpiffeId,
    /// The leaf, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// What its owner has to trust from now on; during a root switch the new root is among them.
    pub roots: Vec<CertificateDer<'static>>,
    /// Its number.
    pub serial: Serial,
    /// The first moment at which it is valid.
    pub not_before: OffsetDateTime,
    /// The last moment at which it is valid.
    pub not_after: OffsetDateTime,
}

impl Authority {
    /// Invites a workload: whoever brings the token within `ttl` gets a leaf for `id`, once. The secret in it is kept
    /// nowhere here, only its digest.
    ///
    /// # Errors
    /// - [`CertsError::NotIssuable`]: the identity may not have a leaf of a workload from this authority.
    /// - [`CertsError::NotInvitable`]: `ttl` is nothing or over [`MAX_INVITE_TTL`], or too many invitations wait.
    /// - [`CertsError::ClockSetBack`], [`CertsError::Io`], [`CertsError::Locked`], [`CertsError::Replaced`].
    pub fn invite(&self, id: &SpiffeId, ttl: StdDuration) -> Result<JoinToken, CertsError> {
        issue::check(&self.wanted(id), &self.settings.trust_domain, &self.settings.prefix)?;
        if ttl.is_zero() || ttl > MAX_INVITE_TTL {
            return Err(CertsError::NotInvitable("a join token is good for ten minutes at most"));
        }
        let mut state = self.state();
        let now = self.time(&state)?;
        let locked = self.store.lock()?;
        self.prepare(&mut state, &locked, now)?;
        let expires = now.saturating_add(Duration::try_from(ttl).unwrap_or_default());
        let token = JoinToken::new(id.clone(), expires, &state.roots.trusted(), self.settings.gateway_id.clone());
        state.change(&locked, now, |ledger| ledger.invite(token.secret(), id.clone(), expires, now))?;
        Ok(token)
    }

    /// Lets in whoever brings the secret of an invitation, and uses it up: that is durable before the leaf is handed
    /// out, so nobody else gets one, whatever happens. A request that is refused does not use it up.
    ///
    /// # Errors
    /// - [`CertsError::InviteRefused`]: not invited, or not any more.
    /// - [`CertsError::Csr`]: the request cannot be signed, or its key has a leaf already.
    /// - those of [`Authority::issue`].
    pub fn enrol(&self, secret: &[u8], csr_der: &[u8]) -> Result<SignedLeaf, CertsError> {
        let request = Request::from_der(csr_der)?;
        self.sign(&request, |_, ledger, now| ledger.accept(secret, now))
    }

    /// A further leaf with the same identity for a peer that has a valid one, as the handshake showed it
    /// ([`verify::peer`]). The request must be for a new key.
    ///
    /// # Errors
    /// - [`CertsError::NotRenewable`]: its leaf is revoked, over, of another authority, or a gateway's.
    /// - [`CertsError::Csr`]: the request cannot be signed, or its key has a leaf already.
    /// - those of [`Authority::issue`].
    pub fn renew(&self, peer: &Peer, csr_der: &[u8]) -> Result<SignedLeaf, CertsError> {
        let request = Request::from_der(csr_der)?;
        self.sign(&request, |state, ledger, now| {
            let refuse = |why| Err(CertsError::NotRenewable { id: peer.id.clone(), why });
            let Some(issuer) = state.issuer_of(peer) else {
                return refuse("another authority issued its certificate");
            };
            if ledger.is_revoked(&peer.serial, &issuer) || ledger.bans.iter().any(|ban| ban.hits(peer)) {
                return refuse("its certificate is revoked");
            }
            if now > peer.not_after {
                return refuse("its certificate has expired");
            }
            if ledger.count_of(&peer.id, now) >= MAX_RENEWED_LEAVES {
                return refuse("it has 16 certificates in force");
            }
            Ok(peer.id.clone())
        })
    }

    fn wanted(&self, id: &SpiffeId) -> LeafRequest {
        LeafRequest::below(&self.settings.prefix, id.clone())
    }

    /// Signs a workload's leaf, and registers it in the same write that `admit` changes the ledger by.
    fn sign(
        &self,
        request: &Request,
        admit: impl FnOnce(&State, &mut Ledger, OffsetDateTime) -> Result<SpiffeId, CertsError>,
    ) -> Result<SignedLeaf, CertsError> {
        let mut state = self.state();
        let now = self.time(&state)?;
        let locked = self.store.lock()?;
        self.prepare(&mut state, &locked, now)?;
        state.check_can_issue(now)?;
        let mut ledger = state.ledger.clone();
        let id = admit(&state, &mut ledger, now)?;
        request.check_name(&id)?;
        if ledger.knows_key(&request.key_digest()) {
            return Err(CertsError::Csr("its key has a certificate already: make a new one each time"));
        }
        let wanted = self.wanted(&id);
        issue::check(&wanted, &self.settings.trust_domain, &self.settings.prefix)?;
        let signer = state.issuer_of_workloads(&self.settings, now);
        let chain = issue::sign(&wanted, &request.key, signer, now, self.settings.leaf_ttl)?;
        self.check_chain(&state, &chain, now)?;
        let entry = Issued::of(&chain, signer)?;
        let serial = entry.serial.clone();
        ledger.register(entry, now)?;
        state.change(&locked, now, |present| {
            *present = ledger;
            Ok(())
        })?;
        let (not_before, not_after) = verify::validity(refusal::split(&chain)?.0)?;
        Ok(SignedLeaf { id, chain, roots: state.roots.trusted(), serial, not_before, not_after })
    }
}

impl State {
    /// The name of the key that issued this peer's leaf, if it is one of ours.
    fn issuer_of(&self, peer: &Peer) -> Option<String> {
        let ours = std::iter::once(&self.intermediate).chain(&self.retired);
        ours.filter(|signer| signer.key_id == peer.issuer_key_id).map(|signer| signer.name()).next()
    }
}
