//! The suite, and what a response is sealed with.

use aes_gcm::aead::{Aead as _, KeyInit, Nonce, Payload};
use hkdf::Hkdf;
use hpke::aead::{Aead, AeadCtxR, AeadCtxS, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::SealError;

pub(crate) type Kem = X25519HkdfSha256;
pub(crate) type Kdf = HkdfSha256;
/// Contexts of whoever seals a request, and opens one. The cipher is another one only where RFC 9458's example is tested.
pub(crate) type Sender<A> = AeadCtxS<A, Kdf, Kem>;
pub(crate) type Receiver<A> = AeadCtxR<A, Kdf, Kem>;

/// Bytes that an AEAD of these adds.
pub(crate) const TAG: usize = 16;
/// Bytes of an encapsulated key.
pub(crate) const ENC: usize = 32;

/// A cipher that responses can be sealed with.
pub(crate) trait Cipher: Aead<AeadImpl: aes_gcm::aead::Aead> {
    /// Bytes of a key, which is also those of a response's nonce: max(Nn, Nk).
    const KEY: usize;
}

impl Cipher for AesGcm256 {
    const KEY: usize = 32;
}

/// Seals, or opens, the response to one request, piece by piece. Source: RFC 9458, 4.4; the chunked draft, 6.2.
pub(crate) struct ResponseKey<A: Cipher> {
    cipher: A::AeadImpl,
    nonce: Nonce<A::AeadImpl>,
    counter: u64,
}

impl<A: Cipher> std::fmt::Debug for ResponseKey<A> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "ResponseKey(piece {})", self.counter)
    }
}

impl<A: Cipher> ResponseKey<A> {
    /// From what both have exported, the request's encapsulated key, and the response's nonce.
    pub(crate) fn new(secret: &[u8], enc: &[u8; ENC], response_nonce: &[u8]) -> Result<Self, SealError> {
        let salt = [enc.as_slice(), response_nonce].concat();
        let derived = Hkdf::<Sha256>::new(Some(&salt), secret);
        let mut key = Zeroizing::new([0; 32]);
        let key = key.get_mut(..A::KEY).ok_or(SealError::Algorithms)?;
        let mut nonce = Nonce::<A::AeadImpl>::default();
        derived.expand(b"key", key).map_err(|_| SealError::Algorithms)?;
        derived.expand(b"nonce", &mut nonce).map_err(|_| SealError::Algorithms)?;
        let cipher = A::AeadImpl::new_from_slice(key).map_err(|_| SealError::Algorithms)?;
        Ok(Self { cipher, nonce, counter: 0 })
    }

    pub(crate) fn seal(&mut self, plain: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = self.next()?;
        self.cipher.encrypt(&nonce, Payload { msg: plain, aad }).map_err(|_| SealError::TooLarge)
    }

    pub(crate) fn open(&mut self, sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = self.next()?;
        self.cipher.decrypt(&nonce, Payload { msg: sealed, aad }).map_err(|_| SealError::NotAuthentic)
    }

    /// The nonce of the next piece; never one a second time.
    fn next(&mut self) -> Result<Nonce<A::AeadImpl>, SealError> {
        let mut nonce = self.nonce.clone();
        let counter = self.counter.to_be_bytes();
        nonce.iter_mut().rev().zip(counter.iter().rev()).for_each(|(byte, count)| *byte ^= count);
        self.counter = self.counter.checked_add(1).ok_or(SealError::Ended)?;
        Ok(nonce)
    }
}

/// What the response is sealed with, as both sides export it.
pub(crate) fn exported<A: Cipher>(
    export: impl FnOnce(&[u8], &mut [u8]) -> Result<(), hpke::HpkeError>,
    label: &str,
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let mut secret = Zeroizing::new(vec![0; A::KEY]);
    export(label.as_bytes(), &mut secret).map_err(|_| SealError::Algorithms)?;
    Ok(secret)
}
