//! rustls configurations of clients and of the busy cloud. Resumption is off everywhere, so that every connection shows
//! who it is.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// HTTP versions that are offered, the preferred one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1 only.
    One,
    /// HTTP/2 only.
    Two,
    /// HTTP/2, else HTTP/1.1.
    Any,
}

impl Http {
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::One => vec![b"http/1.1".to_vec()],
            Self::Two => vec![b"h2".to_vec()],
            Self::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// What a client shows of itself: a chain, the leaf first, and its key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads it from two PEM files.
    ///
    /// # Errors
    /// A file cannot be read or is not PEM.
    pub fn read(cert: &Path, key: &Path) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("the key {}", key.display()))?;
        Ok(Self { chain: certificates(cert)?, key })
    }

    /// Takes it from PEM text.
    ///
    /// # Errors
    /// The text is not PEM.
    pub fn from_pem(cert: &str, key: &str) -> Result<Self> {
        let chain =
            CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().context("the certificate")?;
        Ok(Self { chain, key: PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the key")? })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// A client that trusts the authorities in the PEM file `ca` only.
///
/// # Errors
/// A certificate or key is of no use.
pub fn client(ca: &Path, identity: Option<&Identity>, http: Http) -> Result<Arc<ClientConfig>> {
    client_of(provider(), Arc::new(DefaultTimeProvider), ca, identity, http)
}

/// The same at another time.
///
/// # Errors
/// A certificate or key is of no use.
pub fn client_at(
    time: Arc<dyn TimeProvider>,
    ca: &Path,
    identity: Option<&Identity>,
    http: Http,
) -> Result<Arc<ClientConfig>> {
    client_of(provider(), time, ca, identity, http)
}

/// The same with X25519 as the only key exchange: what a peer without ML-KEM does.
///
/// # Errors
/// A certificate or key is of no use.
pub fn classical_client(ca: &Path, identity: Option<&Identity>, http: Http) -> Result<Arc<ClientConfig>> {
    let groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let provider = CryptoProvider { kx_groups: groups, ..rustls::crypto::aws_lc_rs::default_provider() };
    client_of(Arc::new(provider), Arc::new(DefaultTimeProvider), ca, identity, http)
}

/// A client that takes whatever server is there: what matters is what the server says to it.
///
/// # Errors
/// A certificate or key is of no use.
pub fn client_of_any(identity: Option<&Identity>, http: Http) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = http.alpn();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client_of(
    provider: Arc<CryptoProvider>,
    time: Arc<dyn TimeProvider>,
    ca: &Path,
    identity: Option<&Identity>,
    http: Http,
) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = http.alpn();
    Ok(Arc::new(config))
}

/// A server; with `client_ca` it takes only clients with a certificate of that authority.
///
/// # Errors
/// A certificate or key is of no use.
pub fn server(identity: &Identity, client_ca: Option<&Path>) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = Http::Any.alpn();
    Ok(Arc::new(config))
}

fn roots(ca: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root)?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>();
    read().with_context(|| format!("the certificates {}", path.display()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
