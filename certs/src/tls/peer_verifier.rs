//! Which clients a gateway accepts.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::refusal;
use crate::{
    CertsError,
    verify::{self, Purpose},
};

/// webpki for the chain and the signatures; then what webpki does not know: SPIFFE IDs. DNS name constraints do not
/// bind them.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl PeerVerifier {
    pub(super) fn new(chain: Arc<dyn ClientCertVerifier>, trust_domain: &str) -> Self {
        Self { chain, trust_domain: trust_domain.to_owned() }
    }

    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), CertsError> {
        verify::check_purpose(leaf, Purpose::Client)?;
        let id = verify::peer_id(leaf)?;
        if id.trust_domain() == self.trust_domain {
            return Ok(());
        }
        // The bundle is that of one trust domain, so its authorities speak for no other (SPIFFE Trust Domain and
        // Bundle).
        Err(CertsError::certificate(format!("{id} is not of the trust domain {}", self.trust_domain)))
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity).map_err(refusal)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
