//! A certificate authority of a few lines, made afresh at each start: for the busy cloud, for nginx in the benchmark, and
//! for clients that the gateway must refuse.

pub mod gateway;

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;

/// An authority: its certificate is the trust anchor, there is no intermediate.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate alone.
    pub cert_pem: String,
    /// PKCS #8.
    pub key_pem: String,
}

impl Authority {
    /// A new one, with a P-256 key.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// The trust anchor, in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a server on this machine: localhost, 127.0.0.1, ::1.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn server(&self) -> Result<Leaf> {
        Self::signed(&self.issuer, Self::names()?, ExtendedKeyUsagePurpose::ServerAuth, None)
    }

    /// The same, which ends at a given time.
    ///
    /// # Errors
    /// The key cannot be made.
    pub fn server_until(&self, end: OffsetDateTime) -> Result<Leaf> {
        Self::signed(&self.issuer, Self::names()?, ExtendedKeyUsagePurpose::ServerAuth, Some(end))
    }

    fn names() -> Result<Vec<SanType>> {
        Ok(vec![
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(IpAddr::from([127, 0, 0, 1])),
            // Of the peer, in scenarios with networks of their own.
            SanType::IpAddress(IpAddr::from([192, 0, 2, 1])),
            SanType::IpAddress(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16])),
        ])
    }

    /// A certificate for a client, with these URIs as its names (for SPIFFE: exactly one).
    ///
    /// # Errors
    /// A URI is not ASCII, or the key cannot be made.
    pub fn client(&self, uris: &[&str]) -> Result<Leaf> {
        let names = uris.iter().map(|uri| Ok(SanType::URI((*uri).try_into()?))).collect::<Result<_>>()?;
        Self::signed(&self.issuer, names, ExtendedKeyUsagePurpose::ClientAuth, None)
    }

    fn signed(
        issuer: &Issuer<'static, KeyPair>,
        names: Vec<SanType>,
        purpose: ExtendedKeyUsagePurpose,
        end: Option<OffsetDateTime>,
    ) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.not_after = end.unwrap_or(params.not_after);
        params.subject_alt_names = names;
        params.extended_key_usages = vec![purpose];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert_pem = params.signed_by(&key, issuer)?.pem();
        Ok(Leaf { cert_pem, key_pem: key.serialize_pem() })
    }
}

impl Leaf {
    /// Writes `NAME-cert.pem` and, for its owner only, `NAME-key.pem`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<()> {
        let cert = dir.join(format!("{name}-cert.pem"));
        std::fs::write(&cert, &self.cert_pem).with_context(|| format!("writing {}", cert.display()))?;
        let key = dir.join(format!("{name}-key.pem"));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&key)?;
        file.write_all(self.key_pem.as_bytes()).with_context(|| format!("writing {}", key.display()))
    }
}
