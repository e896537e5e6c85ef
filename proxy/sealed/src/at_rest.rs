//! What is kept, encrypted: a key that encrypts keys → one of a tenant and a label → one of each entry (AES-256-GCM).
//!
//! The key of a tenant and a label is drawn, and kept wrapped; where it has been destroyed, nobody can read its entries any more, whoever has a copy of
//! them and of the key above. What an entry is (tenant, label, kind, id) is authenticated with it, so one that was moved does not open.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use rand::CryptoRng;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::signed::parts;

/// Bytes of every key.
const KEY: usize = 32;
/// What each entry draws: of it its key and nonce are made.
const SALT: usize = 32;
const NONCE: usize = 12;
/// Bytes that an entry takes more than what is in it: the form, the salt, the tag.
pub const OVERHEAD: usize = 1 + SALT + 16;
/// The form of what is kept, for the day when there is another.
const FORM: u8 = 1;

/// It does not open: it was changed, is another entry, or its key was destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was kept cannot be opened")]
pub struct NotOpened;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// How secret.
    pub label: &'a str,
    /// What it is of, such as `cache`.
    pub kind: &'a str,
    /// Which of them.
    pub id: &'a [u8],
}

/// Encrypts keys. Wiped when it is dropped.
#[derive(Clone)]
pub struct KeyKey(Zeroizing<[u8; KEY]>);

/// Encrypts what is kept of one tenant under one label. Wiped when it is dropped.
#[derive(Clone)]
pub struct DataKey {
    key: Zeroizing<[u8; KEY]>,
    tenant: String,
    label: String,
}

impl std::fmt::Debug for KeyKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("KeyKey")
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "DataKey({}, {})", self.tenant, self.label)
    }
}

impl KeyKey {
    /// From its bytes.
    #[must_use]
    pub fn new(key: [u8; KEY]) -> Self {
        Self(Zeroizing::new(key))
    }

    /// A key as it is kept.
    ///
    /// # Errors
    /// Never, with a key of ours.
    pub fn wrap(&self, key: &DataKey, rng: &mut impl CryptoRng) -> Result<Vec<u8>, NotOpened> {
        seal(&self.0, &wrapping(&key.tenant, &key.label), key.key.as_slice(), rng)
    }

    /// A key that was kept.
    ///
    /// # Errors
    /// It was changed, is of another tenant or label, or was wrapped by another key.
    pub fn unwrap(&self, tenant: &str, label: &str, wrapped: &[u8]) -> Result<DataKey, NotOpened> {
        let plain = Zeroizing::new(open(&self.0, &wrapping(tenant, label), wrapped)?);
        let key = Zeroizing::new(plain.as_slice().try_into().map_err(|_| NotOpened)?);
        Ok(DataKey { key, tenant: tenant.to_owned(), label: label.to_owned() })
    }
}

impl DataKey {
    /// A new one, of a tenant and a label.
    #[must_use]
    pub fn draw(tenant: &str, label: &str, rng: &mut impl CryptoRng) -> Self {
        let mut key = Zeroizing::new([0; KEY]);
        rng.fill_bytes(key.as_mut_slice());
        Self { key, tenant: tenant.to_owned(), label: label.to_owned() }
    }

    /// A key of its own for another purpose.
    ///
    /// # Errors
    /// Never, with a length of ours.
    pub fn derive(&self, purpose: &[u8]) -> Result<Zeroizing<[u8; KEY]>, NotOpened> {
        let mut derived = Zeroizing::new([0; KEY]);
        let info = parts(&[b"derived", purpose, self.tenant.as_bytes(), self.label.as_bytes()]);
        Hkdf::<Sha256>::new(None, self.key.as_slice()).expand(&info, derived.as_mut_slice()).map_err(|_| NotOpened)?;
        Ok(derived)
    }

    /// An entry as it is kept.
    ///
    /// # Errors
    /// It is one of another tenant or label, or larger than AES-GCM can seal (64 GiB).
    pub fn seal(&self, entry: Entry<'_>, plain: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, NotOpened> {
        seal(&self.key, &self.bound(entry)?, plain, rng)
    }

    /// An entry that was kept.
    ///
    /// # Errors
    /// It was changed, or is another one.
    pub fn open(&self, entry: Entry<'_>, kept: &[u8]) -> Result<Vec<u8>, NotOpened> {
        open(&self.key, &self.bound(entry)?, kept)
    }

    /// What an entry is, so that no two are the same; of ours alone.
    fn bound(&self, entry: Entry<'_>) -> Result<Vec<u8>, NotOpened> {
        if (entry.tenant, entry.label) != (&self.tenant, &self.label) {
            return Err(NotOpened);
        }
        Ok(parts(&[b"entry", entry.tenant.as_bytes(), entry.label.as_bytes(), entry.kind.as_bytes(), entry.id]))
    }
}

fn wrapping(tenant: &str, label: &str) -> Vec<u8> {
    parts(&[b"key", tenant.as_bytes(), label.as_bytes()])
}

fn seal(key: &[u8; KEY], aad: &[u8], plain: &[u8], rng: &mut impl CryptoRng) -> Result<Vec<u8>, NotOpened> {
    let mut salt = [0; SALT];
    rng.fill_bytes(&mut salt);
    let (cipher, nonce) = entry_key(key, &salt)?;
    let sealed = cipher.encrypt(&nonce, Payload { msg: plain, aad }).map_err(|_| NotOpened)?;
    let mut kept = Vec::with_capacity(1 + SALT + sealed.len());
    kept.push(FORM);
    kept.extend_from_slice(&salt);
    kept.extend_from_slice(&sealed);
    Ok(kept)
}

fn open(key: &[u8; KEY], aad: &[u8], kept: &[u8]) -> Result<Vec<u8>, NotOpened> {
    let (form, rest) = kept.split_first().ok_or(NotOpened)?;
    let (salt, sealed) = rest.split_first_chunk::<SALT>().filter(|_| *form == FORM).ok_or(NotOpened)?;
    let (cipher, nonce) = entry_key(key, salt)?;
    cipher.decrypt(&nonce, Payload { msg: sealed, aad }).map_err(|_| NotOpened)
}

/// Key and nonce of one entry. Both are made of what it drew, so none is used for two, however many there are of a tenant.
fn entry_key(key: &[u8; KEY], salt: &[u8; SALT]) -> Result<(Aes256Gcm, Nonce<aes_gcm::aead::consts::U12>), NotOpened> {
    let derived = Hkdf::<Sha256>::new(Some(salt), key);
    let mut both = Zeroizing::new([0; KEY + NONCE]);
    derived.expand(b"postern at rest", both.as_mut_slice()).map_err(|_| NotOpened)?;
    let (key, nonce) = both.split_at_checked(KEY).ok_or(NotOpened)?;
    let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| NotOpened)?;
    Ok((Aes256Gcm::new_from_slice(key).map_err(|_| NotOpened)?, nonce.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry<'static> = Entry { tenant: "clerks", label: "internal", kind: "cache", id: b"7" };

    #[test]
    fn an_entry_opens_as_itself_and_as_nothing_else() {
        let mut rng = rand::rng();
        let key = DataKey::draw("clerks", "internal", &mut rng);
        let kept = key.seal(ENTRY, b"the answer", &mut rng).unwrap();
        assert_eq!(kept.len(), b"the answer".len() + OVERHEAD);
        assert_eq!(key.open(ENTRY, &kept).unwrap(), b"the answer");
        assert_ne!(kept, key.seal(ENTRY, b"the answer", &mut rng).unwrap());
        for other in [
            Entry { tenant: "guests", ..ENTRY },
            Entry { label: "public", ..ENTRY },
            Entry { kind: "vault", ..ENTRY },
            Entry { kind: "cach", id: b"e7", ..ENTRY },
            Entry { id: b"8", ..ENTRY },
        ] {
            assert_eq!(key.open(other, &kept), Err(NotOpened), "{other:?}");
        }
        for at in 0..kept.len() {
            let mut changed = kept.clone();
            changed[at] ^= 1;
            assert!(key.open(ENTRY, &changed).is_err() && key.open(ENTRY, &kept[..at]).is_err());
        }
        let stranger = DataKey::draw("clerks", "internal", &mut rng);
        assert_eq!(stranger.open(ENTRY, &kept), Err(NotOpened), "the key that was destroyed had no copy");
    }

    #[test]
    fn a_key_is_kept_for_its_tenant_and_label() {
        let mut rng = rand::rng();
        let above = KeyKey::new([7; KEY]);
        let key = DataKey::draw("clerks", "internal", &mut rng);
        let kept = key.seal(ENTRY, b"the answer", &mut rng).unwrap();
        let wrapped = above.wrap(&key, &mut rng).unwrap();
        assert_eq!(above.unwrap("clerks", "internal", &wrapped).unwrap().open(ENTRY, &kept).unwrap(), b"the answer");
        assert!(above.unwrap("clerks", "public", &wrapped).is_err());
        assert!(KeyKey::new([8; KEY]).unwrap("clerks", "internal", &wrapped).is_err());
        // A wrapped key is no entry, and the other way round.
        assert!(key.open(ENTRY, &wrapped).is_err() && above.unwrap("clerks", "internal", &kept).is_err());
        assert!(!format!("{above:?} {key:?}").contains('7'));
    }
}
