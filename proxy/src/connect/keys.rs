//! The keys that requests are sealed for, believed only if whom they are for has signed them.
//!
//! The signature leads to the roots that were pinned at enrolment, so that somebody who breaks TLS open cannot put keys of its own in
//! their place.

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use postern_certs::verify::Peer;
use postern_certs::{CertsError, SpiffeId, Trust};
use postern_sealed::config::MEDIA_TYPE;
use postern_sealed::signed::{self, KEYS_SENDER, KEYS_SIGNATURE, KEYS_UNTIL};
use postern_sealed::{PublicConfig, SealError};
use rustls::pki_types::CertificateDer;

/// Where keys are published, and where what is sealed goes (RFC 9540).
pub(crate) const PATH: &str = "/.well-known/ohttp-gateway";
/// Certificates beside a signature, at most: a leaf, and what leads from it to a root.
const MAX_CHAIN: usize = 4;
/// Bytes of a list of keys.
const MAX_LIST: usize = 16 << 10;
/// A key is not used for so many seconds before its end, so that what is under way arrives in time.
const MARGIN_SECONDS: u64 = 60;

/// A key that requests are sealed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealingKey {
    pub(crate) config: PublicConfig,
    /// Seconds since 1970.
    pub(crate) until: u64,
    /// Of whoever signed it, the leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// As that leaf says.
    pub(crate) owner: Peer,
}

impl SealingKey {
    /// Time for another one.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        now.saturating_add(MARGIN_SECONDS) >= self.until
    }
}

/// Why keys are not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// It publishes none.
    #[error("it publishes no keys for sealed payloads (status {0})")]
    Status(StatusCode),
    /// What came is no list of keys.
    #[error("what it publishes as its keys is no such list")]
    Form,
    /// A header beside them cannot be read.
    #[error("the header {0} beside its keys is missing, or cannot be read")]
    Header(&'static str),
    /// Somebody else has signed them.
    #[error("the signature of its keys is refused: {0}")]
    Signature(#[source] CertsError),
    /// They are of the past.
    #[error("its keys have ended; perhaps the clock of this machine is wrong")]
    Over,
    /// None can be used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The connection broke.
    #[error("its keys did not come")]
    Broken,
}

/// Reads keys of `owner` from the response to a request for them. `now`: seconds since 1970.
///
/// # Errors
/// See [`KeysError`].
pub(crate) async fn read<B>(
    response: Response<B>,
    trust: &Trust,
    owner: &SpiffeId,
    now: u64,
) -> Result<SealingKey, KeysError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = response.into_parts();
    if parts.status != StatusCode::OK {
        return Err(KeysError::Status(parts.status));
    }
    if parts.headers.get(http::header::CONTENT_TYPE).is_none_or(|kind| kind != MEDIA_TYPE) {
        return Err(KeysError::Form);
    }
    let list = Limited::new(body, MAX_LIST).collect().await.map_err(|_| KeysError::Broken)?.to_bytes();
    believe(&parts.headers, &list, trust, owner, now)
}

fn believe(
    headers: &HeaderMap,
    list: &[u8],
    trust: &Trust,
    owner: &SpiffeId,
    now: u64,
) -> Result<SealingKey, KeysError> {
    let text =
        |name: &'static str| headers.get(name).and_then(|value| value.to_str().ok()).ok_or(KeysError::Header(name));
    let until: u64 = text(KEYS_UNTIL)?.parse().map_err(|_| KeysError::Header(KEYS_UNTIL))?;
    let chain = chain_of_text(text(KEYS_SENDER)?).ok_or(KeysError::Header(KEYS_SENDER))?;
    let signature = BASE64.decode(text(KEYS_SIGNATURE)?.as_bytes());
    let signature = signature.map_err(|_| KeysError::Header(KEYS_SIGNATURE))?;
    let message = signed::keys(&owner.to_string(), until, list);
    let owner = trust.signed_by_server(&chain, owner, &message, &signature).map_err(KeysError::Signature)?;
    if now >= until {
        return Err(KeysError::Over);
    }
    Ok(SealingKey { config: PublicConfig::from_list(list)?, until, chain, owner })
}

/// Certificates in a header: DER in Base64, the leaf first, between commas.
pub(crate) fn chain_to_text(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|one| BASE64.encode(one)).collect::<Vec<_>>().join(",")
}

/// The same, read.
pub(crate) fn chain_of_text(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let one = |part: &str| BASE64.decode(part.trim().as_bytes()).ok().map(CertificateDer::from);
    let chain: Vec<_> = text.split(',').take(MAX_CHAIN + 1).map(one).collect::<Option<_>>()?;
    (chain.len() <= MAX_CHAIN).then_some(chain)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use postern_certs::{Authority, AuthorityOptions, LeafRequest, Role, Signatory};
    use postern_sealed::{Keys, SecretKey};

    use super::*;

    #[test]
    fn keys_are_believed_only_as_the_gateway_signed_them() {
        let folder = tempfile::tempdir().unwrap();
        let options = AuthorityOptions::new("b.example", Duration::from_secs(3600));
        let authority = Authority::open_or_create(folder.path(), options).unwrap();
        let (owner, trust) = (authority.gateway_id().clone(), authority.trust());
        let signatory =
            |id: SpiffeId, role| Signatory::new(&authority.issue(LeafRequest { id, role }).unwrap()).unwrap();
        let gateway = signatory(owner.clone(), Role::Gateway { names: vec![] });
        let clerk = signatory("spiffe://b.example/clerk/amy".parse().unwrap(), Role::Workload);
        let list = |id| Keys::new(vec![SecretKey::generate(id, &mut rand::rng())]).list();
        let published = |by: &Signatory, until: u64, list: &[u8]| {
            let signature = by.sign(&signed::keys(&owner.to_string(), until, list)).unwrap();
            let mut headers = HeaderMap::new();
            let mut put = |name, value: String| headers.insert(name, HeaderValue::try_from(value).unwrap());
            put(KEYS_SENDER, chain_to_text(by.chain()));
            put(KEYS_SIGNATURE, BASE64.encode(&signature));
            put(KEYS_UNTIL, until.to_string());
            headers
        };
        let ours = list(7);
        let headers = published(&gateway, 1000, &ours);
        let key = believe(&headers, &ours, &trust, &owner, 999).unwrap();
        assert_eq!((key.config.id(), key.until), (7, 1000));
        assert!(key.is_over(940) && !key.is_over(939));
        assert!(matches!(believe(&headers, &ours, &trust, &owner, 1000), Err(KeysError::Over)));
        let swapped = believe(&headers, &list(7), &trust, &owner, 999);
        assert!(matches!(swapped, Err(KeysError::Signature(_))), "somebody puts keys of its own there");
        let by_clerk = believe(&published(&clerk, 1000, &ours), &ours, &trust, &owner, 999);
        assert!(matches!(by_clerk, Err(KeysError::Signature(_))));
        let mut longer = headers.clone();
        longer.insert(KEYS_UNTIL, HeaderValue::from_static("2000"));
        assert!(matches!(believe(&longer, &ours, &trust, &owner, 999), Err(KeysError::Signature(_))));
        for name in [KEYS_SENDER, KEYS_SIGNATURE, KEYS_UNTIL] {
            let mut without = headers.clone();
            without.remove(name);
            let refused = believe(&without, &ours, &trust, &owner, 999);
            assert!(matches!(refused, Err(KeysError::Header(missing)) if missing == name));
        }
    }
}
