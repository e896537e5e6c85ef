//! Signatures of policies: who vouches for a file.
//!
//! The signature stands in the custom section `postern:signature`, which is the last one of the file, as JSON: `key_id` and
//! `signature` (base64). It is Ed25519 (RFC 8032) over [`CONTEXT`] and the SHA-256 of all bytes before that section, so over the
//! manifest as well. There is one way to write the section, byte for byte, so a signed file cannot be changed into another that
//! is also good.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64, HEXLOWER};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::PluginError;
use crate::section;

/// The custom section that it is in.
pub const SIGNATURE_SECTION: &str = "postern:signature";
/// What is signed begins with it, so that no signature made for something else fits.
pub const CONTEXT: &[u8] = b"postern:policy-signature:v1\n";
/// Keys that may be trusted at once.
pub const MAX_KEYS: usize = 32;
/// The longest file of a key.
pub const MAX_KEY_BYTES: usize = 16 << 10;

const SIGNATURE_BYTES: usize = 64;
const MAX_SECTION_BYTES: usize = 512;
/// Bytes of the SHA-256 that name a key.
const ID_BYTES: usize = 16;
/// What stands before the 32 bytes of a key in its SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const KEY_BYTES: usize = 32;

/// Names a key: the first 16 bytes of the SHA-256 of its SubjectPublicKeyInfo (DER), in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    fn of(spki: &[u8]) -> Self {
        let hash = digest(&SHA256, spki);
        Self(HEXLOWER.encode(hash.as_ref().get(..ID_BYTES).unwrap_or_default()))
    }

    /// The 32 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key whose signatures are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    key: [u8; KEY_BYTES],
}

impl PublicKey {
    /// From PEM (`PUBLIC KEY`, one), as `postern plugin keygen` and `openssl pkey -pubout` write it.
    ///
    /// # Errors
    /// [`PluginError::Key`]: it is another kind of file, or another kind of key.
    pub fn from_pem(text: &[u8]) -> Result<Self, PluginError> {
        if text.len() > MAX_KEY_BYTES {
            return Err(unusable("the file is too long for a key"));
        }
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(text);
        let spki = match keys.next() {
            Some(spki) => spki.map_err(|_| unusable("its PEM cannot be read"))?,
            None if PrivatePkcs8KeyDer::from_pem_slice(text).is_ok() => {
                return Err(unusable("it is a private key; name the public one, and keep this off the gateway"));
            }
            None => return Err(unusable("there is no PEM section `PUBLIC KEY` in it")),
        };
        if keys.next().is_some() {
            return Err(unusable("there is more than one key in it; give each a file of its own"));
        }
        let key = spki.as_ref().strip_prefix(&SPKI_HEAD).and_then(|key| key.try_into().ok());
        let key = key.ok_or_else(|| unusable("it is not an Ed25519 key"))?;
        Ok(Self { id: KeyId::of(&spki), key })
    }

    /// As PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut spki = SPKI_HEAD.to_vec();
        spki.extend_from_slice(&self.key);
        pem("PUBLIC KEY", &spki).to_string()
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }
}

/// A key that signs.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A new one.
    ///
    /// # Errors
    /// [`PluginError::Key`]: the machine gives no random numbers.
    pub fn generate() -> Result<Self, PluginError> {
        Self::of(Ed25519KeyPair::generate().map_err(|_| unusable("no key could be made"))?)
    }

    /// From PEM (`PRIVATE KEY`: PKCS #8, RFC 8410), as `postern plugin keygen` and `openssl genpkey -algorithm ed25519` write it.
    ///
    /// # Errors
    /// [`PluginError::Key`]: it is another kind of file, or another kind of key.
    pub fn from_pem(text: &[u8]) -> Result<Self, PluginError> {
        if text.len() > MAX_KEY_BYTES {
            return Err(unusable("the file is too long for a key"));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(text);
        let mut der = der.map_err(|_| unusable("there is no PEM section `PRIVATE KEY` (PKCS #8) in it"))?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        Self::of(pair.map_err(|_| unusable("it is not an Ed25519 key"))?)
    }

    fn of(pair: Ed25519KeyPair) -> Result<Self, PluginError> {
        let spki: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(|_| unusable("its public half cannot be written"))?;
        let key = pair.public_key().as_ref().try_into().map_err(|_| unusable("it is not an Ed25519 key"))?;
        Ok(Self { public: PublicKey { id: KeyId::of(spki.as_ref()), key }, pair })
    }

    /// As PEM, wiped when dropped.
    ///
    /// # Errors
    /// [`PluginError::Key`]: it cannot be written.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, PluginError> {
        let der = self.pair.to_pkcs8v1().map_err(|_| unusable("it cannot be written"))?;
        Ok(pem("PRIVATE KEY", der.as_ref()))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a component, with whatever manifest is in it, in the place of the signature that is there.
    ///
    /// # Errors
    /// [`PluginError::File`]: that is not a component.
    pub fn sign(&self, component: &[u8]) -> Result<Vec<u8>, PluginError> {
        let mut file = section::without(component, &[SIGNATURE_SECTION])?;
        let signature = self.pair.sign(&message(&file));
        let written = Written { key_id: self.public.id.0.clone(), signature: BASE64.encode(signature.as_ref()) };
        file.extend(written.section());
        Ok(file)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", self.public.id()).finish_non_exhaustive()
    }
}

/// The signature of a file, as it stands there: nothing is proven yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) key_id: KeyId,
    signature: Vec<u8>,
    /// It is over so many bytes from the beginning of the file.
    signed_bytes: usize,
}

/// The content of the section.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    key_id: String,
    signature: String,
}

impl Written {
    fn section(&self) -> Vec<u8> {
        // Two texts without anything to escape: it cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        section::encode(SIGNATURE_SECTION, &text)
    }
}

impl Signature {
    /// The signature of a file, if it has one.
    ///
    /// # Errors
    /// [`PluginError::Signature`]: there are two, it is not at the end, or it is not written as [`SigningKey::sign`] does.
    pub(crate) fn read(file: &[u8]) -> Result<Option<Self>, PluginError> {
        let mut found = None;
        for section in section::sections(file)? {
            let section = section?;
            if !section.is(SIGNATURE_SECTION) {
                continue;
            }
            if found.replace(section).is_some() {
                return Err(invalid("there are two sections `postern:signature`; sign the file again"));
            }
        }
        let Some(section) = found else { return Ok(None) };
        if section.end != file.len() {
            return Err(invalid("something was added behind it; sign the file again"));
        }
        let malformed = || invalid("its section cannot be read; sign the file again");
        let text = section.custom.map(|(_, text)| text).filter(|text| text.len() <= MAX_SECTION_BYTES);
        let written: Written = serde_json::from_slice(text.ok_or_else(malformed)?).map_err(|_| malformed())?;
        let signature = BASE64.decode(written.signature.as_bytes()).map_err(|_| malformed())?;
        let is_id = written.key_id.len() == 2 * ID_BYTES && HEXLOWER.decode(written.key_id.as_bytes()).is_ok();
        let is_canonical = file.get(section.start..) == Some(&written.section());
        if signature.len() != SIGNATURE_BYTES || !is_id || !is_canonical {
            return Err(malformed());
        }
        Ok(Some(Self { key_id: KeyId(written.key_id), signature, signed_bytes: section.start }))
    }

    /// Is it by this one of the keys?
    pub(crate) fn verify(&self, file: &[u8], keys: &[PublicKey]) -> Result<KeyId, PluginError> {
        let key = keys.iter().find(|key| key.id == self.key_id);
        let key = key.ok_or_else(|| PluginError::UnknownSigner(self.key_id.clone()))?;
        let signed = file.get(..self.signed_bytes).unwrap_or_default();
        UnparsedPublicKey::new(&ED25519, key.key)
            .verify(&message(signed), &self.signature)
            .map_err(|_| invalid("the file was changed after it was signed; get it again from its author"))?;
        Ok(key.id.clone())
    }
}

fn message(signed: &[u8]) -> Vec<u8> {
    [CONTEXT, digest(&SHA256, signed).as_ref()].concat()
}

/// RFC 7468, in one allocation: a string that grows leaves copies of the key behind in freed memory.
fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    const LINE_BYTES: usize = 48;
    let mut text = Zeroizing::new(String::with_capacity(2 * (label.len() + 20) + der.len().div_ceil(LINE_BYTES) * 65));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    for line in der.chunks(LINE_BYTES) {
        BASE64.encode_append(line, &mut text);
        text.push('\n');
    }
    for part in ["-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

fn invalid(what: &str) -> PluginError {
    PluginError::Signature(what.to_owned())
}

fn unusable(what: &str) -> PluginError {
    PluginError::Key(what.to_owned())
}
