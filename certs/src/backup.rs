//! A copy of an authority that fits into a safe: one file, encrypted with a passphrase.
//!
//! ```text
//! bytes  0..14   "postern-backup"
//!       14       version, 1
//!       15       Argon2id (RFC 9106): lanes
//!       16..20   memory, KiB, big endian
//!       20..24   passes, big endian
//!       24..40   salt
//!       40..52   nonce
//!       52..     AES-256-GCM over the files, authenticated with everything before it; the tag is at its end
//! ```
//!
//! What is restored is the authority as it was: leaves that were issued and revocations that were made after the
//! backup are not known to it, so revoke again what was revoked since. Invitations are left out: one that was used up
//! since would be good again.

use std::{collections::BTreeMap, fs, path::Path};

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    CertsError,
    authority::{Authority, LEDGER_FILE},
    ledger::{Ledger, MAX_LEDGER_BYTES},
    store::{self, LOCK_FILE, Locked, Store},
};

/// The shortest passphrase, characters.
pub const MIN_PASSPHRASE_CHARS: usize = 12;
/// The longest backup, bytes.
pub const MAX_BACKUP_BYTES: usize = 64 * 1024 * 1024;

const MAGIC: &[u8; 14] = b"postern-backup";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 52;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;

/// The second choice of RFC 9106, section 4: for machines that have no 2 GiB to spare.
const LANES: u8 = 4;
const PASSES: u32 = 3;
#[cfg(not(test))]
const MEMORY_KIB: u32 = 64 * 1024;
/// Without optimisation the real figure takes seconds.
#[cfg(test)]
const MEMORY_KIB: u32 = 64;
/// A file from elsewhere must not make this machine work for hours, or run out of memory.
const MAX_LANES: u8 = 16;
const MAX_PASSES: u32 = 16;
const MAX_MEMORY_KIB: u32 = 1024 * 1024;

/// More files than an authority ever has.
const MAX_FILES: usize = 256;

/// What is in the clear at the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Header {
    lanes: u8,
    memory_kib: u32,
    passes: u32,
    salt: [u8; SALT_BYTES],
    nonce: [u8; NONCE_BYTES],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    /// By name; base64.
    files: BTreeMap<String, String>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.files.values_mut().for_each(Zeroize::zeroize);
    }
}

impl Authority {
    /// Everything in the folder of an authority, encrypted with a passphrase. The gateway may be running.
    ///
    /// # Errors
    /// [`CertsError::Backup`] if there is nothing, or the passphrase is too short; [`CertsError::Io`],
    /// [`CertsError::Locked`], [`CertsError::KeyExposed`], [`CertsError::ForeignOwner`], [`CertsError::Damaged`].
    pub fn backup(dir: &Path, passphrase: &str) -> Result<Vec<u8>, CertsError> {
        check_passphrase(passphrase)?;
        if !dir.is_dir() {
            return Err(CertsError::Backup("there is no such folder"));
        }
        let store = Store::open(dir)?;
        let contents = read(&store.lock()?)?;
        let text = serde_json::to_vec(&contents).map_err(|_| CertsError::Backup("it cannot be written"))?;
        let text = Zeroizing::new(text);
        let header = Header {
            lanes: LANES,
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            salt: rand::random(),
            nonce: rand::random(),
        };
        let mut bytes = header.to_bytes();
        let payload = Payload { msg: &text, aad: &bytes };
        let sealed = header.cipher(passphrase)?.encrypt(&header.nonce.into(), payload);
        bytes.extend(sealed.map_err(|_| CertsError::Backup("it cannot be encrypted"))?);
        if bytes.len() > MAX_BACKUP_BYTES {
            return Err(CertsError::Backup("it is longer than 64 MiB"));
        }
        Ok(bytes)
    }

    /// Puts the authority of a backup into `dir`, all of it at once or nothing. The folder has to be empty or absent.
    ///
    /// # Errors
    /// [`CertsError::Backup`] if there is an authority, the passphrase is wrong, or the file is no backup or was
    /// changed; [`CertsError::Io`].
    pub fn restore(dir: &Path, bytes: &[u8], passphrase: &str) -> Result<(), CertsError> {
        let contents = open(bytes, passphrase)?;
        check_empty(dir)?;
        let name = dir.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(CertsError::Backup("the folder has no name"))?;
        // Beside it, then moved in place: half an authority would look like a damaged one.
        let beside = dir.with_file_name(format!(".{name}.restoring"));
        if beside.exists() {
            fs::remove_dir_all(&beside).map_err(CertsError::io("remove", &beside))?;
        }
        let store = Store::open(&beside)?;
        let locked = store.lock()?;
        for (name, text) in &contents.files {
            let bytes = BASE64.decode(text.as_bytes());
            let bytes = Zeroizing::new(bytes.map_err(|_| CertsError::Backup("its contents are damaged"))?);
            locked.write(name, &bytes)?;
        }
        let lock = dir.join(LOCK_FILE);
        if lock.exists() {
            fs::remove_file(&lock).map_err(CertsError::io("remove", &lock))?;
        }
        store::move_folder(&beside, dir)
    }
}

fn read(locked: &Locked<'_>) -> Result<Contents, CertsError> {
    let mut files = BTreeMap::new();
    for name in locked.names("", "")? {
        if name == LOCK_FILE || !is_name(&name) {
            continue;
        }
        let limit = if name == LEDGER_FILE { MAX_LEDGER_BYTES } else { store::MAX_FILE_BYTES };
        let Some(mut bytes) = locked.read_up_to(&name, limit)? else { continue };
        if name == LEDGER_FILE {
            let mut ledger = Ledger::from_json(&bytes).map_err(|_| CertsError::Backup("ledger.json is damaged"))?;
            ledger.withdraw_all_invites();
            bytes = Zeroizing::new(ledger.to_json()?);
        }
        files.insert(name, BASE64.encode(&bytes));
    }
    if !files.contains_key(LEDGER_FILE) {
        return Err(CertsError::Backup("there is no authority in this folder"));
    }
    if files.len() > MAX_FILES {
        return Err(CertsError::Backup("there are more files than an authority has"));
    }
    Ok(Contents { files })
}

fn open(bytes: &[u8], passphrase: &str) -> Result<Contents, CertsError> {
    if bytes.len() > MAX_BACKUP_BYTES {
        return Err(CertsError::Backup("it is longer than 64 MiB"));
    }
    let (head, sealed) = bytes.split_at_checked(HEADER_BYTES).ok_or(CertsError::Backup("it is no backup"))?;
    let header = Header::from_bytes(head)?;
    let opened = header.cipher(passphrase)?.decrypt(&header.nonce.into(), Payload { msg: sealed, aad: head });
    let text = opened.map_err(|_| CertsError::Backup("the passphrase is wrong, or the file was changed"))?;
    let text = Zeroizing::new(text);
    let contents: Contents =
        serde_json::from_slice(&text).map_err(|_| CertsError::Backup("its contents are damaged"))?;
    let sound = contents.files.len() <= MAX_FILES && contents.files.keys().all(|name| is_name(name));
    if sound { Ok(contents) } else { Err(CertsError::Backup("it holds other files than those of an authority")) }
}

/// The names that an authority gives: nothing that leads out of the folder.
fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed)
}

fn check_empty(dir: &Path) -> Result<(), CertsError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(CertsError::io("list", dir))?,
    };
    for entry in entries {
        if entry.map_err(CertsError::io("list", dir))?.file_name() != LOCK_FILE {
            return Err(CertsError::Backup("the folder is not empty: an authority is never overwritten"));
        }
    }
    Ok(())
}

fn check_passphrase(passphrase: &str) -> Result<(), CertsError> {
    if passphrase.chars().count() >= MIN_PASSPHRASE_CHARS {
        return Ok(());
    }
    Err(CertsError::Backup("the passphrase has less than 12 characters"))
}

impl Header {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, self.lanes]);
        bytes.extend_from_slice(&self.memory_kib.to_be_bytes());
        bytes.extend_from_slice(&self.passes.to_be_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.nonce);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CertsError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(CertsError::Backup("it is no backup"))?;
        let (&[version, lanes], rest) = rest.split_first_chunk().ok_or(CertsError::Backup("it is no backup"))?;
        if version != VERSION {
            return Err(CertsError::Backup("a later version of this program made it"));
        }
        let read = || {
            let (memory, rest) = rest.split_first_chunk()?;
            let (passes, rest) = rest.split_first_chunk()?;
            let (salt, rest) = rest.split_first_chunk()?;
            let (nonce, rest) = rest.split_first_chunk()?;
            let (memory_kib, passes) = (u32::from_be_bytes(*memory), u32::from_be_bytes(*passes));
            rest.is_empty().then_some(Self { lanes, memory_kib, passes, salt: *salt, nonce: *nonce })
        };
        let header = read().ok_or(CertsError::Backup("it is no backup"))?;
        let bounded = (1..=MAX_LANES).contains(&header.lanes)
            && (1..=MAX_PASSES).contains(&header.passes)
            && header.memory_kib <= MAX_MEMORY_KIB;
        if bounded { Ok(header) } else { Err(CertsError::Backup("opening it would take too much time or memory")) }
    }

    fn cipher(&self, passphrase: &str) -> Result<Aes256Gcm, CertsError> {
        let refuse = |_| CertsError::Backup("its parameters make no sense");
        let mut key = Zeroizing::new([0_u8; 32]);
        let params =
            Params::new(self.memory_kib, self.passes, u32::from(self.lanes), Some(key.len())).map_err(refuse)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(passphrase.as_bytes(), &self.salt, key.as_mut_slice()).map_err(refuse)?;
        Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| CertsError::Backup("its key has the wrong length"))
    }
}

#[cfg(test)]
mod tests;
