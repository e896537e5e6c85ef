//! Bodies that are sealed, while everything around them is not: what the clients `ehbp` (npm) and `tinfoil-ehbp` (PyPI) speak. Source: the
//! specification of the Encrypted HTTP Body Protocol, sections 3 to 5 (github.com/tinfoilsh/encrypted-http-body-protocol).
//!
//! It is less than [`chunked`](crate::chunked): method, path, headers and status are not authentic, and neither is the end, so whoever breaks TLS
//! open can cut a message between two pieces and nobody notices. A request does not name its key, so each one in use is tried.

use hpke::aead::AesGcm256;
use rand::CryptoRng;

use crate::SealError;
use crate::cipher::{ENC, Receiver, ResponseKey, TAG, exported};
use crate::config::Keys;
use crate::whole::Exchange;

/// A request's header: the encapsulated key, in hexadecimal digits.
pub const ENCAPSULATED_KEY: &str = "ehbp-encapsulated-key";
/// A response's header: the nonce, in hexadecimal digits.
pub const RESPONSE_NONCE: &str = "ehbp-response-nonce";
/// What a client is told whose key is not in use, so that it asks for the new one.
pub const UNKNOWN_KEY: &str = "urn:ietf:params:ehbp:error:key-config";

const INFO: &[u8] = b"ehbp request";
const RESPONSE_LABEL: &str = "ehbp response";
const NONCE: usize = 32;
/// Bytes of a piece's length.
const LENGTH: usize = 4;

/// Opens a request's body, from bytes that are cut anywhere.
pub struct RequestOpener {
    enc: [u8; ENC],
    /// The keys that may be meant, with their numbers; one, when a piece has been opened.
    meant: Vec<(u8, Receiver<AesGcm256>)>,
    /// The most bytes of a piece, sealed: some clients send all in one.
    most: usize,
    begun: Vec<u8>,
    pieces: u64,
}

/// Seals a response's body, piece by piece.
#[derive(Debug)]
pub struct ResponseSealer {
    key: ResponseKey<AesGcm256>,
}

impl std::fmt::Debug for RequestOpener {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RequestOpener")
    }
}

impl RequestOpener {
    /// With these keys; a piece has `most` bytes at most, in clear.
    ///
    /// # Errors
    /// What stands in the header is no encapsulated key.
    pub fn new(keys: &Keys, enc: [u8; ENC], most: usize) -> Result<Self, SealError> {
        let meant = keys.receivers::<AesGcm256>(INFO, &enc)?;
        Ok(Self { enc, meant, most: most.saturating_add(TAG), begun: Vec::new(), pieces: 0 })
    }

    /// Takes the next bytes; what is certain by now goes to `out`.
    ///
    /// # Errors
    /// It was sealed for none of the keys, or is not authentic, or a piece is too large. Nothing more of it may be used then.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        while !bytes.is_empty() {
            let missing = self.wanted()?.saturating_sub(self.begun.len());
            let (more, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
            self.begun.extend_from_slice(more);
            bytes = rest;
            // Once more: with the length the rest of the piece is wanted.
            if self.begun.len() >= LENGTH && self.begun.len() == self.wanted()? {
                let begun = std::mem::take(&mut self.begun);
                if let Some(piece) = begun.get(LENGTH..).filter(|piece| !piece.is_empty()) {
                    out.extend_from_slice(&self.open(piece)?);
                }
            }
        }
        Ok(())
    }

    /// No more comes. What seals the response.
    ///
    /// # Errors
    /// It was cut within a piece, or has none.
    pub fn finish(mut self) -> Result<Exchange, SealError> {
        let certain = self.meant.pop().filter(|_| self.pieces > 0 && self.begun.is_empty());
        let (id, context) = certain.ok_or(SealError::Cut)?;
        let secret = exported::<AesGcm256>(|label, out| context.export(label, out), RESPONSE_LABEL)?;
        Ok(Exchange::new(id, self.enc, secret))
    }

    /// Bytes up to the end of what is begun.
    fn wanted(&self) -> Result<usize, SealError> {
        let Some(length) = self.begun.first_chunk::<LENGTH>() else { return Ok(LENGTH) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.most { Err(SealError::TooLarge) } else { Ok(LENGTH + length) }
    }

    fn open(&mut self, piece: &[u8]) -> Result<Vec<u8>, SealError> {
        let is_first = self.pieces == 0;
        self.pieces += 1;
        for at in 0..self.meant.len() {
            let Some((_, context)) = self.meant.get_mut(at) else { break };
            if let Ok(plain) = context.open(piece, b"") {
                self.meant.swap(0, at);
                self.meant.truncate(1);
                return Ok(plain);
            }
        }
        Err(if is_first { SealError::NoKey } else { SealError::NotAuthentic })
    }
}

impl ResponseSealer {
    /// Begins the response to a request; its nonce, for the header.
    ///
    /// # Errors
    /// Never, with a request of ours.
    pub fn begin(exchange: &Exchange, rng: &mut impl CryptoRng) -> Result<(Self, [u8; NONCE]), SealError> {
        let mut nonce = [0; NONCE];
        rng.fill_bytes(&mut nonce);
        Ok((Self { key: exchange.key(&nonce)? }, nonce))
    }

    /// More of it.
    ///
    /// # Errors
    /// It has more pieces than can be counted.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        for piece in plain.chunks(crate::chunked::SENT_CHUNK) {
            let sealed = self.key.seal(piece, b"")?;
            let length = u32::try_from(sealed.len()).map_err(|_| SealError::TooLarge)?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&sealed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hpke::{OpModeS, Serializable as _, setup_sender_with_rng};
    use proptest::prelude::*;

    use super::*;
    use crate::SecretKey;
    use crate::cipher::{Kdf, Kem, Sender};

    fn sealed(key: &SecretKey, parts: &[&[u8]]) -> ([u8; ENC], Vec<u8>, Sender<AesGcm256>) {
        let public = key.public_key();
        let (enc, mut context) =
            setup_sender_with_rng::<AesGcm256, Kdf, Kem>(&OpModeS::Base, &public, INFO, &mut rand::rng()).unwrap();
        let mut body = Vec::new();
        for part in parts {
            let piece = context.seal(part, b"").unwrap();
            body.extend_from_slice(&(piece.len() as u32).to_be_bytes());
            body.extend_from_slice(&piece);
        }
        (enc.to_bytes().into(), body, context)
    }

    fn opened(keys: &Keys, enc: [u8; ENC], body: &[u8], cut: usize) -> Result<(Vec<u8>, u8, Exchange), SealError> {
        let (mut opener, mut plain) = (RequestOpener::new(keys, enc, 1000)?, Vec::new());
        for piece in body.chunks(cut) {
            opener.push(piece, &mut plain)?;
        }
        let exchange = opener.finish()?;
        Ok((plain, exchange.key_id(), exchange))
    }

    #[test]
    fn both_keys_open_and_the_response_is_sealed_for_whoever_asked() {
        let mut rng = rand::rng();
        let (old, new) = (SecretKey::generate(4, &mut rng), SecretKey::generate(5, &mut rng));
        let keys = Keys::new(vec![new.clone(), old.clone()]);
        for key in [&new, &old] {
            let (enc, mut body, context) = sealed(key, &[b"one ", b"two"]);
            body.splice(0..0, [0; 4]);
            let (plain, id, exchange) = opened(&keys, enc, &body, 5).unwrap();
            assert_eq!((plain.as_slice(), id), (&b"one two"[..], key.id()));
            let (mut sealer, nonce) = ResponseSealer::begin(&exchange, &mut rng).unwrap();
            let mut out = Vec::new();
            sealer.push(b"data", &mut out).unwrap();
            let secret = exported::<AesGcm256>(|label, out| context.export(label, out), RESPONSE_LABEL).unwrap();
            let mut theirs = ResponseKey::<AesGcm256>::new(&secret, &enc, &nonce).unwrap();
            assert_eq!(out[..4], 20_u32.to_be_bytes());
            assert_eq!(theirs.open(&out[4..], b"").unwrap(), b"data");
        }
    }

    #[test]
    fn what_is_changed_cut_too_large_or_for_somebody_else_is_refused() {
        let mut rng = rand::rng();
        let key = SecretKey::generate(4, &mut rng);
        let keys = Keys::new(vec![key.clone(), SecretKey::generate(3, &mut rng)]);
        let (enc, body, _) = sealed(&key, &[b"one", b"two"]);
        let why = |body: &[u8]| opened(&keys, enc, body, 1000).unwrap_err();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            why(&changed);
            // Between two pieces the wire does not show it; there is no less than one.
            assert!(at == body.len() / 2 || why(&body[..at]) == SealError::Cut, "{at}");
        }
        let (stranger, others, _) = sealed(&SecretKey::generate(4, &mut rng), &[b"one"]);
        assert_eq!(opened(&keys, stranger, &others, 9).unwrap_err(), SealError::NoKey);
        let (first, second) = body.split_at(body.len() / 2);
        assert_eq!(why(&[first, first].concat()), SealError::NotAuthentic);
        assert_eq!(why(&[second, first].concat()), SealError::NoKey);
        assert_eq!(why(&[0, 1, 0, 0]), SealError::TooLarge);
        assert_eq!(why(&[0, 0, 0, 0]), SealError::Cut);
    }

    proptest! {
        #[test]
        fn anything_may_come(body in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..50) {
            let keys = Keys::new(vec![SecretKey::generate(1, &mut rand::rng())]);
            prop_assert!(opened(&keys, [9; ENC], &body, cut).is_err());
        }
    }
}
