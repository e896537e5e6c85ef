//! Keys and signed notes (C2SP signed-note), and the checkpoints in them (C2SP tlog-checkpoint).

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::BASE64;
use signed_note::{Note, Signer as _, StandardSigner, StandardVerifier, Verifier, VerifierList};
use tlog_tiles::checkpoint::Checkpoint;
use zeroize::Zeroizing;

use crate::{Hash, LogError};

/// Ed25519, as signed-note numbers it.
const ED25519: u8 = 1;
/// Bytes of a note at most.
pub(crate) const MAX_NOTE: usize = 64 << 10;

/// Letters of a key's name that are in the names of its files.
const MAX_FILE_NAME: usize = 120;

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Whose log.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// The root of their tree.
    pub root: Hash,
}

/// A checkpoint whose signature was good, and its bytes.
#[derive(Debug, Clone)]
pub struct Signed {
    /// What it says.
    pub head: Head,
    /// The note, with all its signatures.
    pub bytes: Vec<u8>,
}

/// Who may have signed: `NAME+HASH+KEY`, as signed-note writes it.
#[derive(Clone)]
pub struct Key {
    verifier: StandardVerifier,
    text: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.text)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.text)
    }
}

impl Key {
    /// Reads it.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let text = text.trim();
        let verifier = StandardVerifier::new(text).map_err(|error| {
            LogError::Note(format!("not the public key of a log, which is written NAME+8 HEX DIGITS+BASE64: {error}"))
        })?;
        Ok(Self { verifier, text: text.to_owned() })
    }

    /// Its name: the origin of the log.
    #[must_use]
    pub fn name(&self) -> &str {
        self.verifier.name()
    }

    /// Its hash, as eight hexadecimal digits: what tells it from other keys of the same name.
    #[must_use]
    pub fn hash(&self) -> String {
        format!("{:08x}", self.verifier.key_id())
    }

    /// A name for files of this log that no other log's have.
    #[must_use]
    pub fn file(&self) -> String {
        file_name(self.name(), self.verifier.key_id())
    }

    /// The text of a note that it signed.
    ///
    /// # Errors
    /// It is no note, or not signed by this key.
    pub fn text_of(&self, bytes: &[u8]) -> Result<Vec<u8>, LogError> {
        if bytes.len() > MAX_NOTE {
            return Err(LogError::Note("it is too long for a signed note".into()));
        }
        let note = Note::from_bytes(bytes).map_err(|_| LogError::Note("it is not a signed note".into()))?;
        note.verify(&VerifierList::new(vec![Box::new(self.verifier.clone())]))
            .map_err(|_| LogError::Note(format!("it is not signed by {}", self.text)))?;
        Ok(note.text().to_vec())
    }

    /// The checkpoint of the log that has this key.
    ///
    /// # Errors
    /// It is none, of another log, or not signed by this key.
    pub fn checkpoint(&self, bytes: &[u8]) -> Result<Signed, LogError> {
        let head = head(&self.text_of(bytes)?)?;
        if head.origin != self.name() {
            return Err(LogError::Note(format!("it is a checkpoint of {}, not of {}", head.origin, self.name())));
        }
        Ok(Signed { head, bytes: bytes.to_vec() })
    }
}

/// A name of a key that may be the name of a file.
pub(crate) fn file_name(name: &str, id: u32) -> String {
    let kept = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '.';
    let name: String = name.chars().take(MAX_FILE_NAME).map(|letter| if kept(letter) { letter } else { '_' }).collect();
    format!("{}-{id:08x}", name.trim_start_matches('.'))
}

/// What the text of a checkpoint says.
pub(crate) fn head(text: &[u8]) -> Result<Head, LogError> {
    let none = |_| LogError::Note("it is not a checkpoint".into());
    let checkpoint = Checkpoint::from_bytes(text).map_err(none)?;
    Ok(Head { origin: checkpoint.origin().to_owned(), size: checkpoint.size(), root: *checkpoint.hash() })
}

/// Who signs.
#[derive(Clone)]
pub struct SecretKey {
    signer: StandardSigner,
    key: Key,
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "SecretKey({}, …)", self.key)
    }
}

impl SecretKey {
    /// A new one for `name`, as text: `PRIVATE+KEY+NAME+HASH+KEY`, as `golang.org/x/mod/sumdb/note` writes it.
    ///
    /// # Errors
    /// The name is empty, or has spaces or a plus in it.
    pub fn generate(name: &str) -> Result<Zeroizing<String>, LogError> {
        if !signed_note::is_key_name_valid(name) {
            return Err(LogError::Note(format!("{name:?} cannot be the name of a log: no spaces, no plus")));
        }
        let seed = Zeroizing::new(rand::random::<[u8; 32]>());
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice())
            .map_err(|_| LogError::Note("no key can be made".into()))?;
        let id = signed_note::key_id(name, &[&[ED25519], pair.public_key().as_ref()].concat());
        let secret = Zeroizing::new([&[ED25519], seed.as_slice()].concat());
        let secret = Zeroizing::new(BASE64.encode(&secret));
        Ok(Zeroizing::new(format!("PRIVATE+KEY+{name}+{id:08x}+{}", secret.as_str())))
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let none = || LogError::Note("not the secret key of a log".into());
        let text = text.trim();
        let signer = StandardSigner::new(text).map_err(|_| none())?;
        // There may be a plus in the key, as there may not be in the name.
        let seed = text.splitn(5, '+').nth(4).and_then(|key| BASE64.decode(key.as_bytes()).ok()).map(Zeroizing::new);
        let seed = seed.as_ref().and_then(|bytes| bytes.get(1..)).ok_or_else(none)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| none())?;
        let public = [&[ED25519], pair.public_key().as_ref()].concat();
        let key = Key::parse(&format!("{}+{:08x}+{}", signer.name(), signer.key_id(), BASE64.encode(&public)))?;
        Ok(Self { signer, key })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &Key {
        &self.key
    }

    /// Signs a text: whole lines, the last with its end.
    ///
    /// # Errors
    /// It has characters that a note cannot have.
    pub fn sign(&self, text: &[u8]) -> Result<Vec<u8>, LogError> {
        let failed = |error| LogError::Note(format!("it cannot be signed: {error}"));
        let mut note = Note::new(text, &[]).map_err(failed)?;
        note.add_sigs(&[&self.signer]).map_err(failed)?;
        Ok(note.to_bytes())
    }

    /// Signs a tree of this log.
    ///
    /// # Errors
    /// As for [`SecretKey::sign`].
    pub(crate) fn checkpoint(&self, size: u64, root: Hash) -> Result<Vec<u8>, LogError> {
        let checkpoint =
            Checkpoint::new(self.key.name(), size, root, "").map_err(|_| LogError::Note("its name is none".into()))?;
        self.sign(&checkpoint.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_and_the_log_that_it_names_count() {
        let one = SecretKey::parse(&SecretKey::generate("branch.example.org/audit").unwrap()).unwrap();
        let two = SecretKey::parse(&SecretKey::generate("branch.example.org/audit").unwrap()).unwrap();
        let bytes = one.checkpoint(7, Hash([3; 32])).unwrap();
        let signed = one.public().checkpoint(&bytes).unwrap();
        assert_eq!((signed.head.size, signed.head.root), (7, Hash([3; 32])));
        assert!(two.public().checkpoint(&bytes).unwrap_err().to_string().contains("not signed by"));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(one.public().checkpoint(&changed).is_err(), "{at}");
        }
        let other = one.sign(b"another.example.org\n7\nAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n").unwrap();
        assert!(one.public().checkpoint(&other).unwrap_err().to_string().contains("checkpoint of another.example.org"));
        assert!(SecretKey::generate("with space").is_err());
        let debug = format!("{one:?}");
        assert!(debug.ends_with(", …)"), "{debug}");
    }
}
