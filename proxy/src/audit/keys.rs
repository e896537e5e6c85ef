//! The key of each log. A log that begins anew, in an empty folder, is another log with another name and key: so nobody, the
//! gateway included, can give a second history out for the first.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use postern_tlog::{Key, SecretKey, read_file};

use crate::keys::write_once;

/// Logs of one gateway that a roster names.
const MAX_OWN: usize = 32;
/// Bytes of a public key at most.
const MAX_PUBLIC: u64 = 4096;

/// Where keys are: the secret ones in `state_dir`, the public one beside the log's files.
#[derive(Debug, Clone)]
pub(crate) struct LogKeys {
    secrets: PathBuf,
    public: PathBuf,
}

impl LogKeys {
    pub(crate) fn of(state_dir: &Path, log: &Path) -> Self {
        Self { secrets: state_dir.join("audit-keys"), public: log.join("key.pub") }
    }

    /// The public key of the log; `None` if there is none yet.
    pub(crate) fn public(&self) -> anyhow::Result<Option<Key>> {
        // Of a copy somebody else made it: it may be a pipe, or without end.
        let Some(bytes) = read_file(&self.public, MAX_PUBLIC)? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        Ok(Some(Key::parse(&text).with_context(|| self.public.display().to_string())?))
    }

    /// The key that signs; made for a log that begins. `domain` is whose log it is.
    pub(super) fn open(&self, domain: &str) -> anyhow::Result<SecretKey> {
        let Some(public) = self.public()? else {
            if ["checkpoint", "journal", "tile"].iter().any(|name| self.public.with_file_name(name).exists()) {
                bail!("{} is not there, and the log is: put it back", self.public.display());
            }
            return self.make(domain);
        };
        let path = self.secret(public.name())?;
        if path.with_extension("begun").exists() && !self.public.with_file_name("checkpoint").exists() {
            bail!(
                "the log {} was begun, and its checkpoint is not there: put it back from a copy, or name another folder for `audit.dir`, where a new log begins",
                public.name()
            );
        }
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "{}, the key that signs the log {}. If it is lost, keep the folder as it is, and name another one for `audit.dir`: a new log begins there",
                path.display(),
                public.name()
            )
        })?;
        let key = SecretKey::parse(&text).with_context(|| path.display().to_string())?;
        if key.public().to_string() != public.to_string() {
            bail!("{} is not the key of {}", path.display(), self.public.display());
        }
        Ok(key)
    }

    /// The keys of all logs that this gateway has begun, as far as they are there.
    pub(super) fn secrets(&self) -> Vec<SecretKey> {
        let keys = std::fs::read_dir(&self.secrets).into_iter().flatten().flatten().map(|entry| entry.path());
        let keys = keys.filter(|path| path.extension().is_some_and(|extension| extension == "key"));
        let read = |path: PathBuf| {
            let key = std::fs::read_to_string(&path).ok().and_then(|text| SecretKey::parse(&text).ok());
            if key.is_none() {
                tracing::warn!(path = %path.display(), "this is no key of a log; the roster cannot be signed with it");
            }
            key
        };
        keys.take(MAX_OWN).filter_map(read).collect()
    }

    /// How many logs this gateway has begun.
    pub(super) fn count(&self) -> usize {
        let keys = std::fs::read_dir(&self.secrets).into_iter().flatten().flatten();
        keys.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "key")).count()
    }

    /// Remembers beside the secret key that there is a log: one that is taken away is not begun anew under the same name.
    pub(super) fn has_begun(&self, size: u64) -> anyhow::Result<()> {
        let Some(public) = self.public()? else { return Ok(()) };
        let mark = self.secret(public.name())?.with_extension("begun");
        if mark.exists() {
            return Ok(());
        }
        write_once(&mark, size.to_string().as_bytes()).with_context(|| mark.display().to_string())
    }

    fn make(&self, domain: &str) -> anyhow::Result<SecretKey> {
        let id = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 4]>());
        let text = SecretKey::generate(&format!("{domain}/audit/{id}"))?;
        let key = SecretKey::parse(&text)?;
        std::fs::create_dir_all(&self.secrets).with_context(|| self.secrets.display().to_string())?;
        // The secret one first: with the public one there the log has begun.
        let path = self.secret(key.public().name())?;
        write_once(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
        let public = format!("{}\n", key.public());
        write_once(&self.public, public.as_bytes()).with_context(|| self.public.display().to_string())?;
        Ok(key)
    }

    fn secret(&self, name: &str) -> anyhow::Result<PathBuf> {
        let id = name.rsplit('/').next().filter(|id| id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let id = id.with_context(|| format!("{}: {name} is no log of a gateway", self.public.display()))?;
        Ok(self.secrets.join(format!("{id}.key")))
    }
}
