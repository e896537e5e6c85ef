//! A certificate that signs others, with its key: the root, or the intermediate.
//!
//! Both stand in ONE file, so that a crash cannot leave a new certificate beside an old key.

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    CertsError, PathPrefix, Serial, SpiffeId,
    issue::{BACKDATE, BACKDATE_PER_LIFE},
    pem, verify,
};

/// How long a root lives.
pub(crate) const ROOT_LIFE: Duration = Duration::days(3650);
/// How long an intermediate lives. It is renewed at half of that.
pub(crate) const INTERMEDIATE_LIFE: Duration = Duration::days(30);

/// Below the root stands one intermediate, below the intermediate stand leaves only.
const ROOT_PATH_LENGTH: u8 = 1;
const INTERMEDIATE_PATH_LENGTH: u8 = 0;

#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) trust_domain: SpiffeId,
    pub(crate) prefix: PathPrefix,
    pub(crate) key_id: Vec<u8>,
    issuer_key_id: Option<Vec<u8>>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    pub(crate) fn create_root(trust_domain: &SpiffeId, now: OffsetDateTime) -> Result<Self, CertsError> {
        let key = new_key()?;
        let params = params("root", trust_domain, ROOT_PATH_LENGTH, now, now.saturating_add(ROOT_LIFE))?;
        let certificate = params.self_signed(&key)?;
        Self::new(certificate.into(), key)
    }

    /// Signs a new intermediate for the workloads below `prefix`.
    pub(crate) fn create_intermediate(
        &self,
        prefix: &PathPrefix,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Self, CertsError> {
        let key = new_key()?;
        let params = self.intermediate_params(prefix, life, now)?;
        let certificate = self.sign(&params, &key)?;
        Self::new(certificate, key)
    }

    /// What stands in an intermediate. It never outlives its root.
    pub(crate) fn intermediate_params(
        &self,
        prefix: &PathPrefix,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<CertificateParams, CertsError> {
        let not_after = now.saturating_add(life).min(self.not_after);
        let mut params = params("intermediate", &self.trust_domain, INTERMEDIATE_PATH_LENGTH, now, not_after)?;
        params.custom_extensions.extend(prefix.extension());
        Ok(params)
    }

    /// Signs the list of what it revoked: serial numbers, each with its moment. A later list needs a higher `number`
    /// (RFC 5280, section 5.2.3).
    pub(crate) fn sign_crl<'a>(
        &self,
        revoked: impl Iterator<Item = (&'a Serial, OffsetDateTime)>,
        now: OffsetDateTime,
        next_update: OffsetDateTime,
        number: u64,
    ) -> Result<CertificateRevocationListDer<'static>, CertsError> {
        let revoked_certs = revoked
            .map(|(serial, revocation_time)| RevokedCertParams {
                serial_number: serial.as_bytes().to_vec().into(),
                revocation_time,
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: now.saturating_sub(BACKDATE),
            next_update,
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs,
            // As in the certificate: an off-line root may have chosen another one.
            key_identifier_method: KeyIdMethod::PreSpecified(self.key_id.clone()),
        };
        Ok(list.signed_by(&self.issuer)?.into())
    }

    /// The reverse of [`Signer::to_pem`]. The error says what is wrong with the text, not where the text came from.
    pub(crate) fn from_pem(text: &[u8]) -> Result<Self, CertsError> {
        let mut key_der = PrivatePkcs8KeyDer::from_pem_slice(text)
            .map_err(|error| CertsError::certificate(format!("no private key in it: {error}")))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key_der, &PKCS_ECDSA_P256_SHA256);
        key_der.zeroize();
        let certificate = CertificateDer::from_pem_slice(text)
            .map_err(|error| CertsError::certificate(format!("no certificate in it: {error}")))?;
        Self::new(certificate, key?)
    }

    /// Key, then certificate.
    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        let mut key_der = self.issuer.key().serialize_der();
        let mut text = pem::encode(pem::PRIVATE_KEY, &key_der);
        key_der.zeroize();
        let certificate = pem::encode(pem::CERTIFICATE, &self.certificate);
        // In one allocation: a string that grows leaves copies of the key behind in freed memory.
        let mut both = Zeroizing::new(String::with_capacity(text.len() + certificate.len()));
        both.push_str(&text);
        both.push_str(&certificate);
        text.zeroize();
        both
    }

    /// Signs a certificate for the holder of `key`.
    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<CertificateDer<'static>, CertsError> {
        Ok(params.signed_by(key, &self.issuer)?.into())
    }

    /// Whether `other` names this one as its issuer.
    pub(crate) fn issued(&self, other: &Self) -> bool {
        other.issuer_key_id.as_ref() == Some(&self.key_id) && other.trust_domain == self.trust_domain
    }

    /// Whether it names this key as its issuer's.
    pub(crate) fn is_below(&self, key_id: &[u8]) -> bool {
        self.issuer_key_id.as_deref() == Some(key_id)
    }

    /// The name of its key, for files and registers.
    pub(crate) fn name(&self) -> String {
        HEXLOWER.encode(&self.key_id)
    }

    /// Whether so much of its life is over, out of a hundred.
    pub(crate) fn has_passed(&self, percent: i32, now: OffsetDateTime) -> bool {
        now >= self.not_before.saturating_add((self.not_after - self.not_before) / 100 * percent)
    }

    /// Whether its key is the one with this public half.
    pub(crate) fn has_key(&self, public_key: &[u8]) -> bool {
        self.issuer.key().public_key_raw() == public_key
    }

    /// The key once more, for another certificate about it.
    pub(crate) fn copy_key(&self) -> Result<KeyPair, CertsError> {
        let mut der = PrivatePkcs8KeyDer::from(self.issuer.key().serialize_der());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        der.zeroize();
        Ok(key?)
    }

    /// Whether half of its life is over.
    pub(crate) fn is_due(&self, now: OffsetDateTime) -> bool {
        now >= self.not_before.saturating_add((self.not_after - self.not_before) / 2)
    }

    pub(crate) fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, CertsError> {
        let facts = verify::authority(&certificate)?;
        if facts.public_key != key.public_key_raw() {
            return Err(CertsError::certificate("its key belongs to another certificate"));
        }
        let (not_before, not_after) = verify::validity(&certificate)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self {
            not_before,
            not_after,
            trust_domain: facts.trust_domain,
            prefix: facts.prefix,
            key_id: facts.key_id,
            issuer_key_id: facts.issuer_key_id,
            issuer,
            certificate,
        })
    }
}

/// What no authority of ours would make, for tests that show that it is refused.
#[cfg(test)]
impl Signer {
    pub(crate) fn create_odd_intermediate(
        &self,
        now: OffsetDateTime,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = new_key().unwrap();
        let mut params = self.intermediate_params(&PathPrefix::whole_domain(), INTERMEDIATE_LIFE, now).unwrap();
        change(&mut params);
        let certificate = self.sign(&params, &key).unwrap();
        let key_id = params.key_identifier(&key);
        Self {
            not_before: params.not_before,
            not_after: params.not_after,
            trust_domain: self.trust_domain.clone(),
            prefix: PathPrefix::whole_domain(),
            key_id,
            issuer_key_id: Some(self.key_id.clone()),
            issuer: Issuer::from_ca_cert_der(&certificate, key).unwrap(),
            certificate,
        }
    }

    /// A list in the name of this one, signed with the key of another.
    pub(crate) fn forge_crl(
        &self,
        forger: &Self,
        now: OffsetDateTime,
        next_update: OffsetDateTime,
    ) -> CertificateRevocationListDer<'static> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate, forger.copy_key().unwrap()).unwrap();
        Self { issuer, ..self.create_odd_intermediate(now, |_| {}) }
            .sign_crl(std::iter::empty(), now, next_update, 1)
            .unwrap()
    }
}

/// A new P-256 key, from the system's random source.
pub(crate) fn new_key() -> Result<KeyPair, CertsError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// The subject of everything issued here. Identity is in the SPIFFE ID; this is for people who read certificates.
pub(crate) fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Postern");
    name.push(DnType::CommonName, common_name);
    name
}

/// A random serial number: positive, 16 bytes (RFC 5280, section 4.1.2.2, allows 20).
pub(crate) fn serial_number() -> rcgen::SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // A leading zero bit keeps the number positive, a leading one behind it keeps its length.
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    bytes.to_vec().into()
}

fn params(
    what: &str,
    trust_domain: &SpiffeId,
    path_length: u8,
    now: OffsetDateTime,
    not_after: OffsetDateTime,
) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::default();
    // Each generation has a name of its own: several roots in one bundle, and path building by name, stay unambiguous.
    params.distinguished_name = subject(&format!("Postern {what} {:08x}", rand::random::<u32>()));
    params.serial_number = Some(serial_number());
    params.not_before = now.saturating_sub(BACKDATE.min((not_after - now) / BACKDATE_PER_LIFE));
    params.not_after = not_after;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(trust_domain.to_string().try_into()?)];
    Ok(params)
}
