//! A key of each tenant, for keyed hashes that stay on the disk: where it has been destroyed, nobody can try any more what they are of.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::HEXLOWER;
use postern_sealed::at_rest::{DataKey, KeyKey};

use super::{Keys, write_once};

/// Labels are not told apart: a hash is made before the label is known.
const ANY_LABEL: &str = "";
/// Keys in memory. When there are as many, all are read again.
const HELD: usize = 16_384;

/// Keys in a folder, each wrapped with the key of the installation.
#[derive(Debug)]
pub struct TenantKeys {
    dir: PathBuf,
    above: KeyKey,
    names: Keys,
    /// Only for as long as it takes to look: requests wait for it.
    held: Mutex<HashMap<String, Arc<Keys>>>,
    /// Held while a key is made or destroyed on the disk.
    changing: Mutex<()>,
}

impl TenantKeys {
    /// Below `state_dir`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(state_dir: &Path, keys: &Keys) -> io::Result<Self> {
        let dir = folder(state_dir);
        std::fs::create_dir_all(&dir)?;
        let above = KeyKey::new(keys.hash("tenant-keys:wrap", &[]));
        Ok(Self { dir, above, names: names(keys), held: Mutex::default(), changing: Mutex::default() })
    }

    /// Whether there is a key of `tenant`. Makes nothing.
    #[must_use]
    pub fn has(state_dir: &Path, keys: &Keys, tenant: &str) -> bool {
        place(&folder(state_dir), &names(keys), tenant).exists()
    }

    /// The key of `tenant`; made when it is asked for the first time.
    ///
    /// # Errors
    /// The disk says no, or what is there is none of ours.
    pub async fn of(self: &Arc<Self>, tenant: &str) -> io::Result<Arc<Keys>> {
        if let Some(keys) = self.held().get(tenant) {
            return Ok(keys.clone());
        }
        let (this, tenant) = (self.clone(), tenant.to_owned());
        let reading = tokio::task::spawn_blocking(move || this.read(tenant));
        reading.await.unwrap_or_else(|_| Err(io::Error::other("reading it broke off")))
    }

    /// Destroys the key of `tenant`.
    ///
    /// # Errors
    /// The disk says no.
    pub fn erase(&self, tenant: &str) -> io::Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.held().remove(tenant);
        let path = self.path(tenant);
        match std::fs::OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            // Written over first, for disks that write in place.
            Ok(file) => {
                let length = usize::try_from(file.metadata()?.len()).unwrap_or_default();
                io::Write::write_all(&mut &file, &vec![0; length])?;
                file.sync_all()?;
            }
        }
        std::fs::remove_file(&path)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }

    fn read(&self, tenant: String) -> io::Result<Arc<Keys>> {
        // So that two do not make two.
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = self.held().get(&tenant) {
            return Ok(keys.clone());
        }
        let path = self.path(&tenant);
        let key = match std::fs::read(&path) {
            Ok(wrapped) => self.above.unwrap(&tenant, ANY_LABEL, &wrapped).map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} is no key of this installation", path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut rng = rand::rng();
                let key = DataKey::draw(&tenant, ANY_LABEL, &mut rng);
                let wrapped = self.above.wrap(&key, &mut rng).map_err(io::Error::other)?;
                write_once(&path, &wrapped)?;
                key
            }
            Err(error) => return Err(error),
        };
        let keys = Arc::new(Keys::of(key.derive(b"keyed hashes").map_err(io::Error::other)?));
        let mut held = self.held();
        if held.len() >= HELD {
            held.clear();
        }
        held.insert(tenant, keys.clone());
        Ok(keys)
    }

    fn path(&self, tenant: &str) -> PathBuf {
        place(&self.dir, &self.names, tenant)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Arc<Keys>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("tenant-keys")
}

fn names(keys: &Keys) -> Keys {
    keys.derive("tenant-keys:names", &[])
}

fn place(dir: &Path, names: &Keys, tenant: &str) -> PathBuf {
    dir.join(HEXLOWER.encode(&names.hash("name", &[tenant.as_bytes()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tenants_hashes_are_its_own_until_its_key_is_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Keys::open(dir.path()).unwrap();
        let open = || Arc::new(TenantKeys::open(dir.path(), &installation).unwrap());
        let hash = async |keys: &Arc<TenantKeys>, tenant| keys.of(tenant).await.unwrap().hash("h", &[b"text"]);
        let keys = open();
        let (clerks, guests) = (hash(&keys, "clerks").await, hash(&keys, "guests").await);
        assert_ne!(clerks, guests);
        assert_eq!(hash(&open(), "clerks").await, clerks, "it outlives a restart");
        keys.erase("clerks").unwrap();
        keys.erase("nobody").unwrap();
        assert_ne!(hash(&keys, "clerks").await, clerks);
        assert_eq!(hash(&open(), "guests").await, guests);
        let other = Arc::new(TenantKeys::open(dir.path(), &Keys::random()).unwrap());
        assert_ne!(hash(&other, "guests").await, guests, "another installation has other names and keys");
    }
}
