//! What an issuer outside of the gateway hands over: a leaf that serves and calls, roots, revocation lists.

use anyhow::Result;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};

use super::{Authority, Leaf};

/// A leaf to ask for.
#[derive(Debug, Clone, Copy)]
pub struct GatewayLeaf<'a> {
    /// Its SPIFFE ID.
    pub id: &'a str,
    /// From when it is valid, seconds from now.
    pub from_s: i64,
    /// Until when, seconds from now.
    pub until_s: i64,
    /// RSA with 2048 bits instead of P-256.
    pub rsa: bool,
}

impl<'a> GatewayLeaf<'a> {
    /// One for an hour, with a P-256 key.
    #[must_use]
    pub fn of(id: &'a str) -> Self {
        Self { id, from_s: -60, until_s: 3600, rsa: false }
    }
}

impl Authority {
    /// A certificate that may serve and call.
    ///
    /// # Errors
    /// The ID is not ASCII, or the key cannot be made.
    pub fn gateway(&self, asked: GatewayLeaf<'_>) -> Result<Leaf> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.not_before = now + Duration::seconds(asked.from_s);
        params.not_after = now + Duration::seconds(asked.until_s);
        let loopback = SanType::IpAddress([127, 0, 0, 1].into());
        let names = [SanType::URI(asked.id.try_into()?), SanType::DnsName("localhost".try_into()?), loopback];
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(if asked.rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 })?;
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Leaf { cert_pem, key_pem: key.serialize_pem() })
    }

    /// An empty revocation list for an hour, in PEM.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn revocation_list(&self) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now - Duration::MINUTE,
            next_update: now + Duration::HOUR,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}
