//! Keys that requests are sealed for, and how they are published. Source: RFC 9458, 3.

use hpke::aead::AesGcm256;
use hpke::kem::Kem as _;
use hpke::{Deserializable as _, OpModeR, OpModeS, Serializable as _, setup_receiver, setup_sender_with_rng};
use rand::CryptoRng;

use crate::SealError;
use crate::cipher::{Cipher, ENC, Kdf, Kem, Receiver, Sender};

/// The media type of a list of configurations.
pub const MEDIA_TYPE: &str = "application/ohttp-keys";
/// Bytes of a request's header: key, KEM, KDF, AEAD.
pub(crate) const HEADER: usize = 7;

const KEM_ID: u16 = 0x0020;
const KDF_ID: u16 = 0x0001;
const KEY_BYTES: usize = 32;

type PublicKey = <Kem as hpke::Kem>::PublicKey;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;

/// What a client seals for: the number of a key, and its public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicConfig {
    id: u8,
    key: PublicKey,
}

/// A key that requests are opened with. Wiped when it is dropped.
#[derive(Clone)]
pub struct SecretKey {
    id: u8,
    key: PrivateKey,
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SecretKey({})", self.id)
    }
}

/// The keys in use, the newest first.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<SecretKey>);

impl PublicConfig {
    /// The number of the key.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// The public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; KEY_BYTES] {
        self.key.to_bytes().into()
    }

    /// As it stands in a list: with its length in front of it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let config = self.alone();
        let length = u16::try_from(config.len()).unwrap_or(u16::MAX);
        [length.to_be_bytes().as_slice(), &config].concat()
    }

    /// As it is published alone, for [`ehbp`](crate::ehbp).
    #[must_use]
    pub fn alone(&self) -> Vec<u8> {
        let mut config = vec![self.id];
        config.extend_from_slice(&KEM_ID.to_be_bytes());
        config.extend_from_slice(&self.public_key());
        config.extend_from_slice(&4_u16.to_be_bytes());
        config.extend_from_slice(&KDF_ID.to_be_bytes());
        config.extend_from_slice(&<AesGcm256 as hpke::aead::Aead>::AEAD_ID.to_be_bytes());
        config
    }

    /// The first of a published list that has our algorithms. Others are passed over, as the RFC asks for.
    ///
    /// # Errors
    /// It is no list of configurations, or none has them.
    pub fn from_list(mut list: &[u8]) -> Result<Self, SealError> {
        let mut found = None;
        while !list.is_empty() {
            let (length, rest) = u16_of(list)?;
            let (config, rest) = rest.split_at_checked(length.into()).ok_or(SealError::Config)?;
            if let (None, Some(ours)) = (&found, Self::read(config)?) {
                found = Some(ours);
            }
            list = rest;
        }
        found.ok_or(SealError::Config)
    }

    fn read(config: &[u8]) -> Result<Option<Self>, SealError> {
        let (id, rest) = config.split_first().ok_or(SealError::Config)?;
        let (kem, rest) = u16_of(rest)?;
        if kem != KEM_ID {
            return Ok(None);
        }
        let (key, rest) = rest.split_at_checked(KEY_BYTES).ok_or(SealError::Config)?;
        let (length, algorithms) = u16_of(rest)?;
        let (pairs, odd) = algorithms.as_chunks::<4>();
        if usize::from(length) != algorithms.len() || !odd.is_empty() || pairs.is_empty() {
            return Err(SealError::Config);
        }
        let ours = algorithm_ids::<AesGcm256>();
        let key = PublicKey::from_bytes(key).map_err(|_| SealError::Config)?;
        Ok(pairs.contains(&ours).then_some(Self { id: *id, key }))
    }

    pub(crate) fn sender<A: Cipher>(
        &self,
        label: &str,
        rng: &mut impl CryptoRng,
    ) -> Result<([u8; HEADER + ENC], Sender<A>), SealError> {
        let header = header::<A>(self.id);
        let (enc, context) = setup_sender_with_rng::<A, Kdf, Kem>(&OpModeS::Base, &self.key, &info(label, header), rng)
            .map_err(|_| SealError::Config)?;
        let enc: [u8; ENC] = enc.to_bytes().into();
        let mut begun = [0; HEADER + ENC];
        begun.iter_mut().zip(header.iter().chain(&enc)).for_each(|(to, from)| *to = *from);
        Ok((begun, context))
    }
}

impl SecretKey {
    /// A new one.
    #[must_use]
    pub fn generate(id: u8, rng: &mut impl CryptoRng) -> Self {
        Self { id, key: Kem::gen_keypair_with_rng(rng).0 }
    }

    /// From its bytes.
    ///
    /// # Errors
    /// They are no key.
    pub fn from_bytes(id: u8, key: &[u8]) -> Result<Self, SealError> {
        Ok(Self { id, key: PrivateKey::from_bytes(key).map_err(|_| SealError::Config)? })
    }

    /// What is published of it.
    #[must_use]
    pub fn public(&self) -> PublicConfig {
        PublicConfig { id: self.id, key: Kem::sk_to_pk(&self.key) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    #[cfg(test)]
    pub(crate) fn public_key(&self) -> PublicKey {
        Kem::sk_to_pk(&self.key)
    }
}

impl Keys {
    /// With these, the newest first.
    #[must_use]
    pub fn new(keys: Vec<SecretKey>) -> Self {
        Self(keys)
    }

    /// Is there one of this number?
    #[must_use]
    pub fn has(&self, id: u8) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// What is published of the newest, alone.
    #[must_use]
    pub fn newest(&self) -> Vec<u8> {
        self.0.first().map(|key| key.public().alone()).unwrap_or_default()
    }

    /// What is published: the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<u8> {
        self.0.iter().flat_map(|key| key.public().to_bytes()).collect()
    }

    /// For a request that does not say which key it means.
    pub(crate) fn receivers<A: Cipher>(
        &self,
        info: &[u8],
        enc: &[u8; ENC],
    ) -> Result<Vec<(u8, Receiver<A>)>, SealError> {
        let encapped = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).map_err(|_| SealError::NotAuthentic)?;
        let receiver = |key: &SecretKey| {
            let context = setup_receiver::<A, Kdf, Kem>(&OpModeR::Base, &key.key, &encapped, info);
            context.map(|context| (key.id, context)).map_err(|_| SealError::NotAuthentic)
        };
        self.0.iter().map(receiver).collect()
    }

    pub(crate) fn receiver<A: Cipher>(
        &self,
        label: &str,
        begun: &[u8; HEADER + ENC],
    ) -> Result<(u8, [u8; ENC], Receiver<A>), SealError> {
        let [id, rest @ ..] = begun;
        let (algorithms, enc) = rest.split_first_chunk::<{ HEADER - 1 }>().ok_or(SealError::Cut)?;
        let header = header::<A>(*id);
        if header.iter().skip(1).ne(algorithms) {
            return Err(SealError::Algorithms);
        }
        let key = self.0.iter().find(|key| key.id == *id).ok_or(SealError::UnknownKey(*id))?;
        let encapped = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).map_err(|_| SealError::NotAuthentic)?;
        let context = setup_receiver::<A, Kdf, Kem>(&OpModeR::Base, &key.key, &encapped, &info(label, header))
            .map_err(|_| SealError::NotAuthentic)?;
        Ok((*id, enc.try_into().map_err(|_| SealError::Cut)?, context))
    }
}

fn header<A: Cipher>(id: u8) -> [u8; HEADER] {
    let [kem_high, kem_low] = KEM_ID.to_be_bytes();
    let [kdf_high, kdf_low, aead_high, aead_low] = algorithm_ids::<A>();
    [id, kem_high, kem_low, kdf_high, kdf_low, aead_high, aead_low]
}

fn algorithm_ids<A: Cipher>() -> [u8; 4] {
    let ([kdf_high, kdf_low], [aead_high, aead_low]) = (KDF_ID.to_be_bytes(), A::AEAD_ID.to_be_bytes());
    [kdf_high, kdf_low, aead_high, aead_low]
}

fn info(label: &str, header: [u8; HEADER]) -> Vec<u8> {
    [label.as_bytes(), &[0], &header].concat()
}

fn u16_of(bytes: &[u8]) -> Result<(u16, &[u8]), SealError> {
    let (number, rest) = bytes.split_first_chunk::<2>().ok_or(SealError::Config)?;
    Ok((u16::from_be_bytes(*number), rest))
}
