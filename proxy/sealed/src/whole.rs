//! Messages that are sealed as a whole. Source: RFC 9458, 4.

use hpke::aead::AesGcm256;
use rand::CryptoRng;
use zeroize::Zeroizing;

use crate::SealError;
use crate::cipher::{Cipher, ENC, ResponseKey, exported};
use crate::config::{HEADER, Keys, PublicConfig};

/// The media type of a sealed request.
pub const REQUEST: &str = "message/ohttp-req";
/// The media type of a sealed response.
pub const RESPONSE: &str = "message/ohttp-res";

const REQUEST_LABEL: &str = "message/bhttp request";
const RESPONSE_LABEL: &str = "message/bhttp response";

/// What whoever sealed a request, or opened it, has of it for the response. Wiped when it is dropped.
pub struct Exchange {
    key: u8,
    enc: [u8; ENC],
    secret: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Exchange")
    }
}

impl Exchange {
    pub(crate) fn new(key: u8, enc: [u8; ENC], secret: Zeroizing<Vec<u8>>) -> Self {
        Self { key, enc, secret }
    }

    /// The number of the key that the request was sealed for.
    #[must_use]
    pub fn key_id(&self) -> u8 {
        self.key
    }

    /// The encapsulated key: no two requests that are sealed as they should be have the same.
    #[must_use]
    pub fn encapsulated(&self) -> &[u8; ENC] {
        &self.enc
    }

    pub(crate) fn key<A: Cipher>(&self, response_nonce: &[u8]) -> Result<ResponseKey<A>, SealError> {
        ResponseKey::new(&self.secret, &self.enc, response_nonce)
    }
}

/// Seals a request, in binary HTTP (RFC 9292), for whoever has the key.
///
/// # Errors
/// The key is none.
pub fn seal_request(
    config: &PublicConfig,
    request: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<(Vec<u8>, Exchange), SealError> {
    seal_request_with::<AesGcm256>(config, request, rng)
}

/// Opens a request.
///
/// # Errors
/// It is none, or for another key, or not authentic.
pub fn open_request(keys: &Keys, sealed: &[u8]) -> Result<(Vec<u8>, Exchange), SealError> {
    open_request_with::<AesGcm256>(keys, sealed)
}

/// Seals the response to a request.
///
/// # Errors
/// It is longer than a message can be.
pub fn seal_response(exchange: &Exchange, response: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, SealError> {
    seal_response_with::<AesGcm256>(exchange, response, rng)
}

/// Opens the response to a request.
///
/// # Errors
/// It is none, or not authentic.
pub fn open_response(exchange: &Exchange, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    open_response_with::<AesGcm256>(exchange, sealed)
}

fn seal_request_with<A: Cipher>(
    config: &PublicConfig,
    request: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<(Vec<u8>, Exchange), SealError> {
    let (begun, mut context) = config.sender::<A>(REQUEST_LABEL, rng)?;
    let sealed = context.seal(request, b"").map_err(|_| SealError::TooLarge)?;
    let secret = exported::<A>(|label, out| context.export(label, out), RESPONSE_LABEL)?;
    let (_, enc) = begun.split_last_chunk::<ENC>().ok_or(SealError::Config)?;
    Ok(([begun.as_slice(), &sealed].concat(), Exchange::new(config.id(), *enc, secret)))
}

fn open_request_with<A: Cipher>(keys: &Keys, sealed: &[u8]) -> Result<(Vec<u8>, Exchange), SealError> {
    let (begun, sealed) = sealed.split_first_chunk::<{ HEADER + ENC }>().ok_or(SealError::Cut)?;
    let (key, enc, mut context) = keys.receiver::<A>(REQUEST_LABEL, begun)?;
    let request = context.open(sealed, b"").map_err(|_| SealError::NotAuthentic)?;
    let secret = exported::<A>(|label, out| context.export(label, out), RESPONSE_LABEL)?;
    Ok((request, Exchange::new(key, enc, secret)))
}

fn seal_response_with<A: Cipher>(
    exchange: &Exchange,
    response: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let mut sealed = vec![0; A::KEY];
    rng.fill_bytes(&mut sealed);
    let body = exchange.key::<A>(&sealed)?.seal(response, b"")?;
    sealed.extend_from_slice(&body);
    Ok(sealed)
}

fn open_response_with<A: Cipher>(exchange: &Exchange, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let (nonce, sealed) = sealed.split_at_checked(A::KEY).ok_or(SealError::Cut)?;
    exchange.key::<A>(nonce)?.open(sealed, b"")
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use hpke::aead::AesGcm128;

    use super::*;
    use crate::SecretKey;

    impl Cipher for AesGcm128 {
        const KEY: usize = 16;
    }

    fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    /// RFC 9458, appendix A: everything but the bytes that its client drew, which no generator of keys would draw again.
    #[test]
    fn the_example_of_rfc_9458_is_opened_and_answered_as_it_is_there() {
        let key = hex("3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a");
        let keys = Keys::new(vec![SecretKey::from_bytes(1, &key).unwrap()]);
        let public = keys.list();
        let theirs = hex("01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003");
        assert_eq!(public[2..][..35], theirs[..35], "the same key under the same number");
        let sealed = hex(concat!(
            "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b4726374e469135906992e",
            "1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525"
        ));
        let (request, exchange) = open_request_with::<AesGcm128>(&keys, &sealed).unwrap();
        assert_eq!(request, hex("00034745540568747470730b6578616d706c652e636f6d012f"));
        assert_eq!(*exchange.secret, hex("62d87a6ba569ee81014c2641f52bea36"));
        let nonce = hex("c789e7151fcba46158ca84b04464910d");
        let body = exchange.key::<AesGcm128>(&nonce).unwrap().seal(&hex("0140c8"), b"").unwrap();
        let answered = hex("c789e7151fcba46158ca84b04464910d86f9013e404feea014e7be4a441f234f857fbd");
        assert_eq!([nonce, body].concat(), answered);
        assert_eq!(open_response_with::<AesGcm128>(&exchange, &answered).unwrap(), hex("0140c8"));
        // Ours has another cipher, and says so.
        assert_eq!(open_request(&keys, &sealed).unwrap_err(), SealError::Algorithms);
    }

    #[test]
    fn what_is_sealed_is_opened_and_nothing_else_is() {
        let mut rng = rand::rng();
        let keys = Keys::new(vec![SecretKey::generate(7, &mut rng), SecretKey::generate(6, &mut rng)]);
        let config = PublicConfig::from_list(&keys.list()).unwrap();
        assert_eq!((config.id(), config.public_key()), (7, keys_public(&keys)));
        let (sealed, asked) = seal_request(&config, b"a request", &mut rng).unwrap();
        let (request, answering) = open_request(&keys, &sealed).unwrap();
        assert_eq!((request.as_slice(), asked.encapsulated()), (b"a request".as_slice(), answering.encapsulated()));
        let response = seal_response(&answering, b"a response", &mut rng).unwrap();
        assert_eq!(open_response(&asked, &response).unwrap(), b"a response");
        assert_ne!(response, seal_response(&answering, b"a response", &mut rng).unwrap(), "another nonce each time");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open_request(&keys, &changed).is_err(), "byte {at}");
            assert!(open_request(&keys, &sealed[..at]).is_err(), "cut at {at}");
        }
        for at in 0..response.len() {
            let mut changed = response.clone();
            changed[at] ^= 1;
            assert!(open_response(&asked, &changed).is_err() && open_response(&asked, &response[..at]).is_err());
        }
        let (_, other) = seal_request(&config, b"a request", &mut rng).unwrap();
        assert_eq!(open_response(&other, &response).unwrap_err(), SealError::NotAuthentic, "another request's");
        let old = Keys::new(vec![SecretKey::generate(8, &mut rng)]);
        assert_eq!(open_request(&old, &sealed).unwrap_err(), SealError::UnknownKey(7));
        let same_number = Keys::new(vec![SecretKey::generate(7, &mut rng)]);
        assert_eq!(open_request(&same_number, &sealed).unwrap_err(), SealError::NotAuthentic);
        assert!(!format!("{keys:?} {asked:?}").contains("secret:"));
    }

    fn keys_public(keys: &Keys) -> [u8; 32] {
        PublicConfig::from_list(&keys.list()).unwrap().public_key()
    }

    #[test]
    fn configurations_of_others_are_passed_over_and_what_is_none_is_refused() {
        let ours = SecretKey::generate(3, &mut rand::rng()).public();
        // P-256, and X25519 with AES-128 and ChaCha alone.
        let p256 = [vec![0, 73, 9, 0, 16], vec![4; 65], vec![0, 0]].concat();
        let mut chacha = ours.to_bytes();
        chacha.truncate(chacha.len() - 6);
        chacha[1] += 4;
        chacha.extend_from_slice(&[0, 8, 0, 1, 0, 1, 0, 1, 0, 3]);
        let mut p256 = p256;
        p256[1] = u8::try_from(p256.len() - 2).unwrap();
        let list = [p256.clone(), chacha.clone(), ours.to_bytes()].concat();
        assert_eq!(PublicConfig::from_list(&list).unwrap(), ours);
        for wrong in [&[][..], &[0], &[0, 1], &[0, 0], &p256, &chacha, &list[..list.len() - 1]] {
            assert_eq!(PublicConfig::from_list(wrong).unwrap_err(), SealError::Config, "{wrong:?}");
        }
    }
}
