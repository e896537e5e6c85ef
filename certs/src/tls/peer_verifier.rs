//! Which clients a gateway, or a node, accepts.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::{CertsError, Reason, SpiffeId, Trust, refusal::to_rustls, verify::Purpose};

#[derive(Debug)]
pub(super) struct PeerVerifier {
    trust: Arc<Trust>,
    /// What a client may choose its certificate by.
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: String,
    /// `None`: whoever is of the trust domain; what they may do is asked later.
    allowed: Option<Vec<SpiffeId>>,
}

impl PeerVerifier {
    pub(super) fn new(
        trust: Arc<Trust>,
        algorithms: WebPkiSupportedAlgorithms,
        trust_domain: &str,
        allowed: Option<&[SpiffeId]>,
    ) -> Self {
        let hints = trust.anchors().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Self { trust, hints, algorithms, trust_domain: trust_domain.to_owned(), allowed: allowed.map(<[_]>::to_vec) }
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.trust.verify(end_entity, intermediates, Purpose::Client, &self.trust_domain, now);
        let peer = verified.map_err(to_rustls)?;
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(&peer.id)) {
            let why = format!("{} is not among those who may use this node", peer.id);
            return Err(to_rustls(CertsError::refused(Reason::NotAllowed, why)));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Never reached: the configuration speaks TLS 1.3 only. A refusal all the same, should that ever change.
        Err(Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
