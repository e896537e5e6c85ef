//! Which server a workstation accepts: one gateway, by its SPIFFE ID. rustls has no server name of that kind.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{CertsError, Reason, SpiffeId, Trust, refusal::to_rustls, verify::Purpose};

#[derive(Debug)]
pub(super) struct GatewayVerifier {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
    gateway: SpiffeId,
}

impl GatewayVerifier {
    pub(super) fn new(trust: Arc<Trust>, algorithms: WebPkiSupportedAlgorithms, gateway: SpiffeId) -> Self {
        Self { trust, algorithms, gateway }
    }
}

/// Whether this chain is that of exactly this gateway.
pub(super) fn check_gateway(
    trust: &Trust,
    gateway: &SpiffeId,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), CertsError> {
    let peer = trust.verify(end_entity, intermediates, Purpose::Server, gateway.trust_domain(), now)?;
    if peer.id == *gateway {
        return Ok(());
    }
    Err(CertsError::refused(Reason::Gateway, format!("the server is {}, not {gateway}", peer.id)))
}

impl ServerCertVerifier for GatewayVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_gateway(&self.trust, &self.gateway, end_entity, intermediates, now).map_err(to_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Never reached: the configuration speaks TLS 1.3 only. A refusal all the same, should that ever change.
        Err(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
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
