//! Material in files that somebody else writes and replaces.
//!
//! The content is read every [`POLL`] and compared: that works for every way of replacing a file (Kubernetes swaps one
//! symlink for all, editors and agents rename, scripts overwrite), on every file system, and four small files a second
//! cost nothing. Files that are replaced one after the other are apart for a moment; a fault is believed when it is
//! seen twice.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_certs::{Clock as _, SystemClock, material};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{Fingerprint, IssuerError, Material, fingerprint};

/// How often the files are read.
pub const POLL: Duration = Duration::from_secs(1);
/// The longest file of certificates.
const MAX_CERTIFICATES_BYTES: usize = 1 << 20;
/// The longest key file.
const MAX_KEY_BYTES: usize = 64 << 10;
/// The longest file of revocation lists: a large authority's.
const MAX_CRL_BYTES: usize = 4 << 20;

/// A key file may be its owner's to use, and its group's to read; see [`exposed`].
const TOO_OPEN: u32 = 0o037;
const GROUP_READS: u32 = 0o040;

/// Where the files are, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The leaf, then its intermediates.
    pub cert: PathBuf,
    /// Its key: PKCS #8, SEC 1 or PKCS #1, not encrypted. May be the same file as `cert`.
    pub key: PathBuf,
    /// The roots to trust.
    pub ca: PathBuf,
    /// Revocation lists; `None`: none are looked at.
    pub crl: Option<PathBuf>,
}

/// What names the files, for whoever reads an error.
#[derive(Debug, Clone, Copy)]
struct Keys {
    cert: &'static str,
    key: &'static str,
    ca: &'static str,
    crl: &'static str,
}

const OF_THE_CONFIGURATION: Keys =
    Keys { cert: "trust.files.cert", key: "trust.files.key", ca: "trust.files.ca", crl: "trust.files.crl" };
const OF_A_FOLDER: Keys = Keys { cert: "cert.pem", key: "key.pem", ca: "ca.pem", crl: "crl.pem" };

/// The files, and what was seen of them last.
#[derive(Debug)]
pub struct Files {
    paths: Paths,
    keys: Keys,
    /// When they are read next.
    due: Instant,
    /// What the caller has.
    delivered: Option<Fingerprint>,
    /// The fault that the caller was told last; `None`: none since the last delivery.
    told: Option<String>,
    /// A fault that was seen once.
    suspected: Option<String>,
}

impl Files {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(paths: Paths) -> Self {
        Self { paths, keys: OF_THE_CONFIGURATION, due: Instant::now(), delivered: None, told: None, suspected: None }
    }

    /// Those that `postern certs enrol` and `certs issue` write into a folder.
    #[must_use]
    pub fn of_folder(dir: &Path) -> Self {
        let [cert, key, ca] = [OF_A_FOLDER.cert, OF_A_FOLDER.key, OF_A_FOLDER.ca].map(|name| dir.join(name));
        Self { keys: OF_A_FOLDER, ..Self::new(Paths { cert, key, ca, crl: None }) }
    }

    /// At first: what is there now. Later: waits until the content changed, or until a fault is over that was told.
    /// Whoever stops waiting loses nothing.
    ///
    /// # Errors
    /// [`IssuerError::File`], once for each new fault: a file is missing, too long, half-written, or of a kind that
    /// it should not be; the key is not that of the certificate, or can be read by others; the leaf is not valid now.
    pub async fn next(&mut self) -> Result<Material, IssuerError> {
        loop {
            tokio::time::sleep_until(self.due).await;
            let (paths, keys) = (self.paths.clone(), self.keys);
            // After a fault that was told, the same content as before is news.
            let known = self.delivered.filter(|_| self.told.is_none());
            let read = tokio::task::spawn_blocking(move || read(&paths, keys, known)).await;
            self.due = Instant::now() + POLL;
            match read.map_err(|_| IssuerError::Stopping)? {
                Ok(None) => self.suspected = None,
                Ok(Some((fingerprint, material))) => {
                    self.delivered = Some(fingerprint);
                    (self.told, self.suspected) = (None, None);
                    return Ok(material);
                }
                Err(error) if self.is_news(&error) => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Nothing is there at start, so the first fault counts; later it has to be there twice in a row.
    fn is_news(&mut self, error: &IssuerError) -> bool {
        let fault = error.to_string();
        if self.told.as_ref() == Some(&fault) {
            return false;
        }
        if self.delivered.is_none() || self.suspected.as_ref() == Some(&fault) {
            self.suspected = None;
            self.told = Some(fault);
            return true;
        }
        self.suspected = Some(fault);
        false
    }
}

/// `None`: the content is that of `known`.
fn read(paths: &Paths, keys: Keys, known: Option<Fingerprint>) -> Result<Option<(Fingerprint, Material)>, IssuerError> {
    let cert = Source::open(keys.cert, &paths.cert)?.read(MAX_CERTIFICATES_BYTES)?;
    let key = Source::open(keys.key, &paths.key)?.not_exposed()?.read(MAX_KEY_BYTES)?;
    let ca = Source::open(keys.ca, &paths.ca)?.read(MAX_CERTIFICATES_BYTES)?;
    let crl = match &paths.crl {
        Some(path) => Some(Source::open(keys.crl, path)?.read(MAX_CRL_BYTES)?),
        None => None,
    };
    let crl_bytes = crl.as_ref().map(|crl| crl.bytes.as_slice()).unwrap_or_default();
    let seen = fingerprint(&[&cert.bytes, &key.bytes, &ca.bytes, crl_bytes]);
    if Some(seen) == known {
        return Ok(None);
    }
    Ok(Some((seen, parse(&cert, &key, &ca, crl.as_ref())?)))
}

fn parse(
    cert: &Content<'_>,
    key: &Content<'_>,
    ca: &Content<'_>,
    crl: Option<&Content<'_>>,
) -> Result<Material, IssuerError> {
    let chain: Vec<CertificateDer<'static>> = cert.sections("certificate", material::MAX_CHAIN)?;
    let private =
        PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| key.unreadable("unencrypted private key", &error))?;
    let leaf = material::leaf(chain, private).map_err(|error| cert.fault(error.to_string()))?;
    material::check_key(&leaf).map_err(|_| {
        key.fault(format!(
            "it cannot be used by TLS, or is not the key of the certificate in `{}`; perhaps one of the two was replaced \
             already and the other was not",
            cert.key
        ))
    })?;
    material::check_validity(&leaf, SystemClock.now()).map_err(|error| cert.fault(error.to_string()))?;
    let roots: Vec<CertificateDer<'static>> = ca.sections("certificate", material::MAX_ROOTS)?;
    for root in &roots {
        postern_certs::verify::validity(root).map_err(|error| ca.fault(error.to_string()))?;
    }
    let mut crls = Vec::new();
    if let Some(content) = crl {
        let sections: Vec<CertificateRevocationListDer<'static>> =
            content.sections("revocation list", material::MAX_CRLS)?;
        for list in sections {
            crls.push(material::revocation_list(list.to_vec()).map_err(|error| content.fault(error.to_string()))?);
        }
    }
    Ok(Material { leaf, roots, crls })
}

/// An open file and the key of the configuration that names it.
struct Source<'a> {
    key: &'static str,
    path: &'a Path,
    file: File,
}

impl<'a> Source<'a> {
    fn open(key: &'static str, path: &'a Path) -> Result<Self, IssuerError> {
        let fault = |error: std::io::Error| IssuerError::file(key, path, format!("cannot be opened: {error}"));
        // Without O_NONBLOCK, opening a pipe waits for somebody who writes.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(fault)?;
        if !file.metadata().map_err(fault)?.is_file() {
            return Err(IssuerError::file(key, path, "is not a file"));
        }
        Ok(Self { key, path, file })
    }

    /// Asks the open file, so what is checked is what is read, behind any symlink.
    fn not_exposed(self) -> Result<Self, IssuerError> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|error| IssuerError::file(self.key, self.path, error.to_string()))?;
        let mut own_groups = rustix::process::getgroups().unwrap_or_default();
        own_groups.push(rustix::process::getegid());
        let is_own = own_groups.iter().any(|group| group.as_raw() == metadata.gid());
        let mode = metadata.mode() & 0o7777;
        if exposed(mode, is_own) {
            let what = format!(
                "others can read or write it (mode {mode:04o}): make it 0600, or 0640 with a group of the gateway"
            );
            return Err(IssuerError::file(self.key, self.path, what));
        }
        Ok(self)
    }

    fn read(self, most: usize) -> Result<Content<'a>, IssuerError> {
        let fault = |what: String| IssuerError::file(self.key, self.path, what);
        // Large enough from the start: a buffer that grows leaves copies of the key behind in freed memory.
        let length = self.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let capacity = usize::try_from(length).unwrap_or(most).min(most) + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        let mut bounded = (&self.file).take(most as u64 + 1);
        bounded.read_to_end(&mut bytes).map_err(|error| fault(format!("cannot be read: {error}")))?;
        if bytes.len() > most {
            return Err(fault(format!("is longer than {most} bytes")));
        }
        Ok(Content { key: self.key, path: self.path, bytes })
    }
}

/// Others may do nothing, and the group may read only if it is one of our own. Kubernetes with `fsGroup` makes secrets
/// `root:<fsGroup> 0440`, and agents that run as somebody else share a key through a group; such a file could not be
/// read otherwise.
fn exposed(mode: u32, group_is_own: bool) -> bool {
    mode & TOO_OPEN != 0 || (mode & GROUP_READS != 0 && !group_is_own)
}

/// What a file holds.
struct Content<'a> {
    key: &'static str,
    path: &'a Path,
    bytes: Zeroizing<Vec<u8>>,
}

impl Content<'_> {
    /// All sections of one kind, at least one and at most so many.
    fn sections<T: PemObject>(&self, what: &str, most: usize) -> Result<Vec<T>, IssuerError> {
        let mut found = Vec::new();
        for section in T::pem_slice_iter(&self.bytes) {
            found.push(section.map_err(|error| self.unreadable(what, &error))?);
            if found.len() > most {
                return Err(self.fault(format!("holds more than {most} of: {what}")));
            }
        }
        if found.is_empty() { Err(self.unreadable(what, &PemError::NoItemsFound)) } else { Ok(found) }
    }

    /// In our own words: those of the library repeat the line at fault.
    fn unreadable(&self, wanted: &str, error: &PemError) -> IssuerError {
        self.fault(match error {
            PemError::NoItemsFound => format!("holds no {wanted} in PEM"),
            PemError::MissingSectionEnd { .. } => {
                "ends in the middle of a PEM section: is it being written?".to_owned()
            }
            _ => format!("is not well-formed PEM: no {wanted} can be read"),
        })
    }

    fn fault(&self, what: impl Into<String>) -> IssuerError {
        IssuerError::file(self.key, self.path, what)
    }
}

#[cfg(test)]
mod tests;
