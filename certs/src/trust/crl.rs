//! One revocation list (RFC 5280, section 5).

use rustls::pki_types::CertificateRevocationListDer;
use time::OffsetDateTime;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::{extensions::ParsedExtension, parse_x509_crl};

use crate::{CertsError, verify::Peer};

/// The longest list, bytes: room for some hundred thousand numbers.
const MAX_CRL_BYTES: usize = 8 * 1024 * 1024;

/// Parsed once, asked at every handshake.
#[derive(Debug)]
pub(super) struct Crl {
    pub(super) der: CertificateRevocationListDer<'static>,
    pub(super) parsed: CertRevocationList<'static>,
    pub(super) next_update: OffsetDateTime,
    issuer: Vec<u8>,
    issuer_key_id: Option<Vec<u8>>,
}

impl Crl {
    pub(super) fn new(der: &CertificateRevocationListDer<'_>) -> Result<Self, CertsError> {
        let refuse = |why: &str| CertsError::RevocationList(why.to_owned());
        if der.len() > MAX_CRL_BYTES {
            return Err(refuse("it is longer than 8 MiB"));
        }
        let parsed = OwnedCertRevocationList::from_der(der).map_err(|error| refuse(&error.to_string()))?;
        let (_, facts) = parse_x509_crl(der).map_err(|_| refuse("it is not an X.509 list"))?;
        // Without it nobody could tell a current list from one of last year.
        let next_update = facts.next_update().ok_or_else(|| refuse("it names no next update"))?.to_datetime();
        let issuer_key_id = facts.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
            _ => None,
        });
        let issuer = facts.issuer().as_raw().to_vec();
        Ok(Self { der: der.to_vec().into(), parsed: parsed.into(), next_update, issuer, issuer_key_id })
    }

    pub(super) fn lists(&self, peer: &Peer) -> bool {
        let same_key = match &self.issuer_key_id {
            Some(key_id) if !peer.issuer_key_id.is_empty() => *key_id == peer.issuer_key_id,
            _ => true,
        };
        // A list that cannot be searched lists everything: when in doubt, close.
        same_key && self.issuer == peer.issuer && !matches!(self.parsed.find_serial(peer.serial.as_bytes()), Ok(None))
    }
}
