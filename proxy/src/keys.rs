//! Keys of one installation: what is remembered or recorded of a text is a keyed hash of it, and each use has a key of
//! its own, so that no value from one place can be looked up in another.

pub mod tenants;

use std::io;
use std::path::Path;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// In `state_dir`.
const FILE: &str = "installation.key";

/// Makes keyed hashes. The key is made at first start and kept in `state_dir`.
pub struct Keys {
    key: Zeroizing<[u8; 32]>,
    /// The key of an installation has been read: it is used as long as the process lives. Others may be wiped before.
    read: Option<Hasher>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Keys(…)")
    }
}

impl Keys {
    /// Reads the key, or makes it.
    ///
    /// # Errors
    /// The file cannot be read or written, or is not a key.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        if let Some(keys) = Self::present(state_dir)? {
            return Ok(keys);
        }
        let (path, keys) = (state_dir.join(FILE), Self::of_installation(Zeroizing::new(rand::random())));
        write_once(&path, keys.key.as_slice()).map_err(|error| named(&path, &error))?;
        Ok(keys)
    }

    /// Reads the key; `None` if none was made yet.
    ///
    /// # Errors
    /// The file cannot be read, or is not a key.
    pub fn present(state_dir: &Path) -> io::Result<Option<Self>> {
        let path = state_dir.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let key: [u8; 32] = bytes.try_into().map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a key", path.display()))
                })?;
                Ok(Some(Self::of_installation(Zeroizing::new(key))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(&path, &error)),
        }
    }

    /// The key that all replicas have.
    ///
    /// # Errors
    /// It is not to be had, or is no key.
    pub fn shared(secret: &crate::config::Secret) -> Result<Self, String> {
        let text = secret.read()?;
        let key = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map(Zeroizing::new).ok();
        let key = key.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        let expected = "is not 64 hexadecimal digits, such as `openssl rand -hex 32` makes";
        key.map(|key| Self::of_installation(Zeroizing::new(key)))
            .ok_or_else(|| format!("{} {expected}", secret.place()))
    }

    /// This key.
    pub(crate) fn of(key: Zeroizing<[u8; 32]>) -> Self {
        Self { key, read: None }
    }

    fn of_installation(key: Zeroizing<[u8; 32]>) -> Self {
        let keys = Self::of(key);
        Self { read: Some(keys.hasher()), ..keys }
    }

    /// A key for this process only.
    #[must_use]
    pub fn random() -> Self {
        Self::of(Zeroizing::new(rand::random()))
    }

    /// Keys of their own for one purpose and these parts.
    #[must_use]
    pub fn derive(&self, purpose: &str, parts: &[&[u8]]) -> Self {
        Self::of(Zeroizing::new(self.hash(purpose, parts)))
    }

    /// HMAC-SHA256 (RFC 2104) of `parts`, each preceded by its length so that no two lists of parts coincide.
    /// `purpose` keeps the uses apart.
    #[must_use]
    pub fn hash(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        match &self.read {
            Some(hasher) => hasher.hash(purpose, parts),
            None => self.hasher().hash(purpose, parts),
        }
    }

    /// This key, ready to make many hashes.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        // A key shorter than a block is padded with zeros (RFC 2104, section 2).
        let mut block = Zeroizing::new([0; 64]);
        for (to, from) in block.iter_mut().zip(self.key.iter()) {
            *to = *from;
        }
        Hasher(Hmac::<Sha256>::new((&*block).into()))
    }

    /// [`hash`](Self::hash) as 16 lower-case hexadecimal digits, for records.
    #[must_use]
    pub fn short_hash(&self, purpose: &str, parts: &[&[u8]]) -> String {
        let hash = self.hash(purpose, parts);
        HEXLOWER.encode(hash.split_at(8).0)
    }
}

/// A key that has been read.
#[derive(Clone)]
pub struct Hasher(Hmac<Sha256>);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Hasher(…)")
    }
}

impl Hasher {
    /// See [`Keys::hash`].
    #[must_use]
    pub fn hash(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in std::iter::once(purpose.as_bytes()).chain(parts.iter().copied()) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// "Permission denied" alone helps nobody.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whole or absent, and readable by nobody else.
pub(crate) fn write_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_purposes_do_not_run_together() {
        let keys = Keys::random();
        let hash = |purpose, parts: &[&[u8]]| keys.hash(purpose, parts);
        assert_eq!(hash("a", &[b"bc"]), hash("a", &[b"bc"]));
        assert_ne!(hash("a", &[b"bc"]), hash("a", &[b"b", b"c"]));
        assert_ne!(hash("a", &[b"bc"]), hash("ab", &[b"c"]));
        assert_ne!(hash("a", &[b"bc"]), Keys::random().hash("a", &[b"bc"]));
    }

    #[test]
    fn the_key_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::open(dir.path()).unwrap().short_hash("p", &[b"x"]);
        assert_eq!(Keys::open(dir.path()).unwrap().short_hash("p", &[b"x"]), first);
        std::fs::write(dir.path().join("installation.key"), b"short").unwrap();
        assert!(Keys::open(dir.path()).is_err());
        let nowhere = Keys::open(&dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(nowhere.contains("nowhere/installation.key"), "{nowhere}");
    }
}
