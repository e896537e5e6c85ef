//! TLS configurations that insist on identities.
//!
//! Make a fresh one for every change of leaf or trust, and never `clone()` a `ServerConfig`: clones share what the
//! original remembers. Nothing is remembered here (no session store, no tickets, no resumption), because a resumed
//! handshake shows the OLD identities and skips expiry: a client whose certificate ended two days ago would still
//! come in.

mod gateway_verifier;
mod peer_verifier;
mod pinned_verifier;

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, UnixTime},
    server::NoServerSessionStorage,
    time_provider::TimeProvider,
    version::TLS13,
};
use time::OffsetDateTime;

use self::{gateway_verifier::GatewayVerifier, peer_verifier::PeerVerifier, pinned_verifier::PinnedVerifier};
use crate::{
    CertsError, IssuedLeaf, JoinToken, SpiffeId, Trust, clock, refusal,
    trust::unix_time,
    verify::{self, Purpose},
};

/// What is offered over one connection, best first (RFC 7301).
const ALPN_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The gateway's side: TLS 1.3 only; a client certificate is required, must lead to a root in `trust` that is valid at
/// that moment, must be for clients, not be revoked, and must carry exactly one SPIFFE ID of the gateway's own trust
/// domain, below the prefix of whoever issued it.
///
/// Times are judged by [`clock::steady_now`]: a clock that is set back lets nobody in whose certificate had ended.
///
/// The handshake proves WHO the peer is; read it with [`verify::peer`]. Whether that identity may do anything is the
/// caller's question.
///
/// # Errors
/// - [`CertsError::Certificate`], [`CertsError::SpiffeId`]: the leaf has no identity or may not serve.
/// - [`CertsError::EmptyBundle`]: no root is valid now.
/// - [`CertsError::Tls`]: leaf and key do not belong together.
pub fn server_config(leaf: &IssuedLeaf, trust: &Arc<Trust>) -> Result<Arc<ServerConfig>, CertsError> {
    server_config_for(leaf, trust, None)
}

/// A node's side: as [`server_config`], and nobody comes in but who is `allowed`. Whoever else has a certificate of the
/// same trust domain, as every workstation has, is refused in the handshake.
///
/// # Errors
/// Those of [`server_config`].
pub fn node_server_config(
    leaf: &IssuedLeaf,
    trust: &Arc<Trust>,
    allowed: &[SpiffeId],
) -> Result<Arc<ServerConfig>, CertsError> {
    server_config_for(leaf, trust, Some(allowed))
}

fn server_config_for(
    leaf: &IssuedLeaf,
    trust: &Arc<Trust>,
    allowed: Option<&[SpiffeId]>,
) -> Result<Arc<ServerConfig>, CertsError> {
    let provider = provider();
    let own_id = verify::leaf_for(refusal::split(&leaf.chain)?.0, Purpose::Server)?.id;
    trust.check_not_empty(clock::steady_now())?;
    let algorithms = provider.signature_verification_algorithms;
    let verifier = PeerVerifier::new(Arc::clone(trust), algorithms, own_id.trust_domain(), allowed);
    let config = ServerConfig::builder_with_details(provider, Arc::new(SteadyTime))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    Ok(Arc::new(without_memory(config)))
}

/// The side of a workstation, and of a gateway towards its nodes: TLS 1.3 only; presents `leaf`, and accepts a server only
/// if its chain leads to a root in `trust`, it may serve, is not revoked, and its SPIFFE ID is exactly `server`. The host
/// name in the address is sent as SNI and means nothing beyond that.
///
/// # Errors
/// - [`CertsError::EmptyBundle`]: no root is valid now.
/// - [`CertsError::Tls`]: leaf and key do not belong together.
pub fn client_config(leaf: &IssuedLeaf, trust: &Arc<Trust>, server: SpiffeId) -> Result<Arc<ClientConfig>, CertsError> {
    client_config_with(leaf, trust, |algorithms| Ok(GatewayVerifier::new(Arc::clone(trust), algorithms, server)))
}

/// As [`client_config`], where somebody on the way breaks TLS open: a server is accepted too that has a certificate of one of these
/// `authorities` for the host name that is connected to. It is not the gateway, so nothing that it says is the gateway's word.
///
/// # Errors
/// Those of [`client_config`], and that there are no `authorities`.
pub fn client_config_through(
    leaf: &IssuedLeaf,
    trust: &Arc<Trust>,
    server: SpiffeId,
    authorities: Arc<RootCertStore>,
) -> Result<Arc<ClientConfig>, CertsError> {
    client_config_with(leaf, trust, |algorithms| {
        let middlebox = WebPkiServerVerifier::builder_with_provider(authorities, provider()).build();
        let middlebox = middlebox.map_err(|error| CertsError::certificate(error.to_string()))?;
        Ok(GatewayVerifier::new(Arc::clone(trust), algorithms, server).or(middlebox))
    })
}

fn client_config_with(
    leaf: &IssuedLeaf,
    trust: &Arc<Trust>,
    verifier: impl FnOnce(WebPkiSupportedAlgorithms) -> Result<GatewayVerifier, CertsError>,
) -> Result<Arc<ClientConfig>, CertsError> {
    let provider = provider();
    trust.check_not_empty(clock::steady_now())?;
    let verifier = verifier(provider.signature_verification_algorithms)?;
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(SteadyTime))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn_protocols();
    Ok(Arc::new(config))
}

/// The side of a gateway where new workstations enrol: TLS 1.3 without client certificates. `roots` go out behind the
/// chain, since whoever comes here has nothing but pins to know them by ([`JoinToken::client_config`]).
///
/// # Errors
/// - [`CertsError::Certificate`], [`CertsError::SpiffeId`]: the leaf has no identity or may not serve.
/// - [`CertsError::Tls`]: leaf and key do not belong together.
pub fn enrol_server_config(
    leaf: &IssuedLeaf,
    roots: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, CertsError> {
    verify::leaf_for(refusal::split(&leaf.chain)?.0, Purpose::Server)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert([&leaf.chain[..], roots].concat(), leaf.key.clone_key())?;
    let mut config = without_memory(config);
    // One request and one answer, for which there is one version.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl JoinToken {
    /// The side of a workstation that enrols: TLS 1.3 without a certificate of its own; accepts a server only if it
    /// shows a root that is pinned in this token, a chain that leads to it, and exactly the gateway's identity.
    ///
    /// # Errors
    /// [`CertsError::Tls`] if the library cannot do TLS 1.3.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, CertsError> {
        let provider = provider();
        let verifier = PinnedVerifier::new(self.clone(), provider.signature_verification_algorithms);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.alpn_protocols = alpn_protocols();
        Ok(Arc::new(config))
    }
}

/// Whether a peer with this trust would accept this chain as a client's at `now`. A gateway's leaf is a client's as
/// well.
pub(crate) fn check_chain(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    trust_domain: &str,
    now: OffsetDateTime,
) -> Result<(), CertsError> {
    let (leaf, intermediates) = refusal::split(chain)?;
    trust.verify(leaf, intermediates, Purpose::Client, trust_domain, unix_time(now)).map(drop)
}

/// Wall time for handshakes that does not go back.
#[derive(Debug)]
struct SteadyTime;

impl TimeProvider for SteadyTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(clock::steady_now()))
    }
}

fn without_memory(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // Half-RTT data would go out before the client has shown its certificate.
    config.send_half_rtt_data = false;
    config.alpn_protocols = alpn_protocols();
    config
}

/// AWS-LC with the groups named here, not those of a default that may change. The client's order decides; ours puts
/// the hybrid first. X25519 alone stays for clients without ML-KEM, such as OpenSSL 3.0.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    Arc::new(CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
        ..aws_lc_rs::default_provider()
    })
}

fn alpn_protocols() -> Vec<Vec<u8>> {
    ALPN_PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect()
}

#[cfg(test)]
mod tests;
