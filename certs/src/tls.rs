//! TLS configurations that insist on identities.
//!
//! Make a fresh one for every change of leaf or trust, and never `clone()` a `ServerConfig`: clones share what the
//! original remembers. Nothing is remembered here (no session store, no tickets, no resumption), because a resumed
//! handshake shows the OLD identities and skips expiry: a client whose certificate ended two days ago would still
//! come in.

mod gateway_verifier;
mod peer_verifier;

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use time::OffsetDateTime;

use self::{gateway_verifier::GatewayVerifier, peer_verifier::PeerVerifier};
use crate::{
    CertsError, IssuedLeaf, SpiffeId,
    verify::{self, Purpose},
};

/// What is offered over one connection, best first (RFC 7301).
const ALPN_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The gateway's side: TLS 1.3 only; a client certificate is required, must lead to a root in `bundle`, must be for
/// clients, and must carry exactly one SPIFFE ID of the gateway's own trust domain. Roots that are expired, or not
/// yet valid, are left out.
///
/// The handshake proves WHO the peer is; read it with [`verify::peer_id`]. Whether that identity may do anything is
/// the caller's question.
///
/// # Errors
/// - [`CertsError::Certificate`], [`CertsError::SpiffeId`]: the leaf has no identity or may not serve, or a root is
///   not a certificate.
/// - [`CertsError::EmptyBundle`]: no root is valid now.
/// - [`CertsError::Tls`]: leaf and key do not belong together, or a root is of an unknown kind.
pub fn server_config(leaf: &IssuedLeaf, bundle: &[CertificateDer<'_>]) -> Result<Arc<ServerConfig>, CertsError> {
    let provider = provider();
    let own_leaf = end_entity(leaf)?;
    let own_id = verify::peer_id(own_leaf)?;
    verify::check_purpose(own_leaf, Purpose::Server)?;
    let chain_verifier = chain_verifier(bundle, OffsetDateTime::now_utc(), &provider)?;
    let verifier = PeerVerifier::new(chain_verifier, own_id.trust_domain());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // Half-RTT data would go out before the client has shown its certificate.
    config.send_half_rtt_data = false;
    config.alpn_protocols = alpn_protocols();
    Ok(Arc::new(config))
}

/// A workstation's side: TLS 1.3 only; presents `leaf`, and accepts a server only if its chain leads to a root in
/// `bundle`, it may serve, and its SPIFFE ID is exactly `gateway`. The host name in the address is sent as SNI and
/// means nothing beyond that.
///
/// # Errors
/// - [`CertsError::Certificate`]: a root is not a certificate.
/// - [`CertsError::EmptyBundle`]: no root is valid now.
/// - [`CertsError::Tls`]: leaf and key do not belong together, or a root is of an unknown kind.
pub fn client_config(
    leaf: &IssuedLeaf,
    bundle: &[CertificateDer<'_>],
    gateway: SpiffeId,
) -> Result<Arc<ClientConfig>, CertsError> {
    let provider = provider();
    let roots = valid_roots(bundle, OffsetDateTime::now_utc())?;
    let verifier = GatewayVerifier::new(roots, provider.signature_verification_algorithms, gateway);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn_protocols();
    Ok(Arc::new(config))
}

/// Whether a peer that trusts `bundle` would accept this chain as a client's at `now`. A gateway's leaf is a client's
/// as well.
pub(crate) fn check_chain(
    chain: &[CertificateDer<'_>],
    bundle: &[CertificateDer<'_>],
    now: OffsetDateTime,
) -> Result<(), CertsError> {
    let (leaf, intermediates) = chain.split_first().ok_or_else(|| CertsError::certificate("the chain is empty"))?;
    let since_epoch = now.unix_timestamp().try_into().map_err(|_| CertsError::EmptyBundle)?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(since_epoch));
    let _: ClientCertVerified =
        chain_verifier(bundle, now, &provider())?.verify_client_cert(leaf, intermediates, at)?;
    Ok(())
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

fn chain_verifier(
    bundle: &[CertificateDer<'_>],
    now: OffsetDateTime,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, CertsError> {
    let roots = valid_roots(bundle, now)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
    verifier.map_err(|error| rustls::Error::General(error.to_string()).into())
}

/// The roots that are valid at `now`: webpki never asks a trust anchor for its age, so an expired one would be
/// trusted for ever.
fn valid_roots(bundle: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<Arc<RootCertStore>, CertsError> {
    let mut roots = RootCertStore::empty();
    for root in bundle {
        let (not_before, not_after) = verify::validity(root)?;
        if (not_before..=not_after).contains(&now) {
            roots.add(root.clone().into_owned())?;
        } else {
            tracing::warn!(%not_before, %not_after, "a root in the trust bundle is not valid now and is left out");
        }
    }
    if roots.is_empty() { Err(CertsError::EmptyBundle) } else { Ok(Arc::new(roots)) }
}

fn end_entity(leaf: &IssuedLeaf) -> Result<&CertificateDer<'static>, CertsError> {
    leaf.chain.first().ok_or_else(|| CertsError::certificate("the chain is empty"))
}

fn alpn_protocols() -> Vec<Vec<u8>> {
    ALPN_PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect()
}

/// A refusal of ours in the words of rustls. The peer sees an alert; the text is for this side's log.
fn refusal(error: CertsError) -> rustls::Error {
    let why = rustls::OtherError(Arc::new(error));
    rustls::Error::InvalidCertificate(rustls::CertificateError::Other(why))
}

#[cfg(test)]
mod tests;
