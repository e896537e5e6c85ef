//! Which server a workstation accepts: one gateway, by its SPIFFE ID. rustls has no server name of that kind. Or, where it is told to,
//! a middlebox that breaks TLS open, by its host name.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{CertsError, Reason, SpiffeId, Trust, refusal::to_rustls, verify::Purpose};

#[derive(Debug)]
pub(super) struct GatewayVerifier {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
    gateway: SpiffeId,
    middlebox: Option<Arc<WebPkiServerVerifier>>,
}

impl GatewayVerifier {
    pub(super) fn new(trust: Arc<Trust>, algorithms: WebPkiSupportedAlgorithms, gateway: SpiffeId) -> Self {
        Self { trust, algorithms, gateway, middlebox: None }
    }

    /// Whoever is not the gateway may be what this accepts.
    pub(super) fn or(self, middlebox: Arc<WebPkiServerVerifier>) -> Self {
        Self { middlebox: Some(middlebox), ..self }
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
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match (check_gateway(&self.trust, &self.gateway, end_entity, intermediates, now), &self.middlebox) {
            (Ok(()), _) => Ok(ServerCertVerified::assertion()),
            (Err(error), None) => Err(to_rustls(error)),
            (Err(_), Some(middlebox)) => {
                middlebox.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
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
