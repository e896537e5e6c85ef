//! What somebody with a leaf has signed outside of TLS: that it sent a message, or that a key is its own.
//!
//! A signature stands behind the two bytes of its scheme (RFC 8446, section 4.2.3). Whoever checks one judges the whole chain as in a handshake.

use std::sync::Arc;

use rustls::{
    SignatureScheme, crypto::aws_lc_rs::sign::any_supported_type, pki_types::CertificateDer, sign::SigningKey,
};
use webpki::EndEntityCert;

use crate::{
    CertsError, IssuedLeaf, Peer, Reason, SpiffeId, Trust, clock,
    material::MAX_CHAIN,
    refusal::{self, from_webpki},
    trust::{ALGORITHMS, unix_time},
    verify::Purpose,
};

/// What is signed with, best first. Those of TLS 1.3.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Signs with the key of a leaf.
#[derive(Clone, Debug)]
pub struct Signatory {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

impl Signatory {
    /// With this leaf.
    ///
    /// # Errors
    /// [`CertsError::Tls`]: its key is of a kind that TLS cannot use.
    pub fn new(leaf: &IssuedLeaf) -> Result<Self, CertsError> {
        Ok(Self { chain: leaf.chain.clone(), key: any_supported_type(&leaf.key)? })
    }

    /// The leaf, then what leads to a root.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Its signature of `message`.
    ///
    /// # Errors
    /// [`CertsError::Tls`]: the key cannot sign so.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CertsError> {
        let signer = self.key.choose_scheme(&SCHEMES).ok_or_else(|| CertsError::certificate("its key cannot sign"))?;
        let scheme: [u8; 2] = u16::from(signer.scheme()).to_be_bytes();
        Ok([&scheme, signer.sign(message)?.as_slice()].concat())
    }
}

impl Trust {
    /// Whose chain this is: somebody who could connect as a client now. What they have signed is [`check`]'s question.
    ///
    /// # Errors
    /// [`CertsError::Refused`] and [`CertsError::Certificate`]: the chain leads to no root, has ended, was revoked, or is of another trust domain.
    pub fn client(&self, chain: &[CertificateDer<'_>], trust_domain: &str) -> Result<Peer, CertsError> {
        self.judged(chain, Purpose::Client, trust_domain)
    }

    /// Whether this chain is `server`'s, who could serve now. What it has signed is [`check`]'s question.
    ///
    /// # Errors
    /// As [`client`](Self::client), and that it is somebody else.
    pub fn server(&self, chain: &[CertificateDer<'_>], server: &SpiffeId) -> Result<Peer, CertsError> {
        let peer = self.judged(chain, Purpose::Server, server.trust_domain())?;
        if peer.id == *server {
            return Ok(peer);
        }
        Err(CertsError::refused(Reason::Purpose, format!("it is {}, not {server}", peer.id)))
    }

    /// Who signed `message`: somebody who could connect as a client now.
    ///
    /// # Errors
    /// [`CertsError::Refused`] and [`CertsError::Certificate`]: the chain leads to no root, has ended, was revoked, is of another trust domain, or
    /// signed something else.
    pub fn signed_by_client(
        &self,
        chain: &[CertificateDer<'_>],
        trust_domain: &str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Peer, CertsError> {
        let peer = self.client(chain, trust_domain)?;
        check(refusal::split(chain)?.0, message, signature)?;
        Ok(peer)
    }

    /// Whether it was `server` who signed `message`: who could serve now.
    ///
    /// # Errors
    /// As [`signed_by_client`](Self::signed_by_client), and that it is somebody else.
    pub fn signed_by_server(
        &self,
        chain: &[CertificateDer<'_>],
        server: &SpiffeId,
        message: &[u8],
        signature: &[u8],
    ) -> Result<Peer, CertsError> {
        let peer = self.server(chain, server)?;
        check(refusal::split(chain)?.0, message, signature)?;
        Ok(peer)
    }

    fn judged(&self, chain: &[CertificateDer<'_>], purpose: Purpose, trust_domain: &str) -> Result<Peer, CertsError> {
        if chain.len() > MAX_CHAIN {
            return Err(CertsError::certificate(format!("its chain is longer than {MAX_CHAIN}")));
        }
        let (leaf, intermediates) = refusal::split(chain)?;
        self.verify(leaf, intermediates, purpose, trust_domain, unix_time(clock::steady_now()))
    }
}

/// Whether the key of `leaf` has signed `message`.
///
/// # Errors
/// [`CertsError::Certificate`]: it has not, or in a way that nobody should.
pub fn check(leaf: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> Result<(), CertsError> {
    let refuse = || CertsError::certificate("the signature is not of its key");
    let (scheme, signature) = signature.split_first_chunk::<2>().ok_or_else(refuse)?;
    let scheme = SignatureScheme::from(u16::from_be_bytes(*scheme));
    let known = ALGORITHMS.mapping.iter().find(|(known, _)| *known == scheme && SCHEMES.contains(known));
    let (_, algorithms) = known.ok_or_else(refuse)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(from_webpki)?;
    let is_good = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
        leaf.verify_signature(*algorithm, message, signature).is_ok()
    };
    if algorithms.iter().any(is_good) { Ok(()) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Authority, AuthorityOptions, LeafRequest, Role};

    #[test]
    fn what_a_leaf_has_signed_is_known_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let options = AuthorityOptions::new("b.example", Duration::from_secs(3600));
        let authority = Authority::open_or_create(folder.path(), options).unwrap();
        let leaf = |role, id: &str| {
            let request = LeafRequest { id: id.parse().unwrap(), role };
            Signatory::new(&authority.issue(request).unwrap()).unwrap()
        };
        let gateway_id = authority.gateway_id().clone();
        let clerk = leaf(Role::Workload, "spiffe://b.example/clerk/amy");
        let gateway = leaf(Role::Gateway { names: vec![] }, &gateway_id.to_string());
        let trust = authority.trust();
        let signature = clerk.sign(b"message").unwrap();
        let by_client = |chain: &[CertificateDer<'_>], domain, message: &[u8], signature: &[u8]| {
            trust.signed_by_client(chain, domain, message, signature)
        };
        let peer = by_client(clerk.chain(), "b.example", b"message", &signature).unwrap();
        assert_eq!(peer.id.to_string(), "spiffe://b.example/clerk/amy");
        assert!(by_client(clerk.chain(), "b.example", b"massage", &signature).is_err());
        assert!(by_client(clerk.chain(), "c.example", b"message", &signature).is_err());
        assert!(by_client(gateway.chain(), "b.example", b"message", &signature).is_err(), "another's signature");
        assert!(by_client(&clerk.chain()[..1], "b.example", b"message", &signature).is_err());
        assert!(by_client(&[], "b.example", b"message", &signature).is_err());
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(by_client(clerk.chain(), "b.example", b"message", &changed).is_err(), "byte {at}");
            assert!(by_client(clerk.chain(), "b.example", b"message", &signature[..at]).is_err());
        }
        let signature = gateway.sign(b"keys").unwrap();
        assert!(trust.signed_by_server(gateway.chain(), &gateway_id, b"keys", &signature).is_ok());
        let clerks = clerk.sign(b"keys").unwrap();
        assert!(trust.signed_by_server(clerk.chain(), &gateway_id, b"keys", &clerks).is_err(), "a client cannot serve");
        let other = "spiffe://b.example/other/gateway".parse().unwrap();
        assert!(trust.signed_by_server(gateway.chain(), &other, b"keys", &signature).is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        let options = AuthorityOptions::new("b.example", Duration::from_secs(3600));
        let stranger = Authority::open_or_create(elsewhere.path(), options).unwrap();
        assert!(stranger.trust().signed_by_server(gateway.chain(), &gateway_id, b"keys", &signature).is_err());
    }
}
