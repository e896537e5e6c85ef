//! Certificates from outside: the gateway's leaf, roots and revocation lists, issued by somebody else and renewed by
//! them.
//!
//! [`files`] watches files that cert-manager, a Vault agent and the like write; [`spiffe`] speaks the SPIFFE Workload
//! API. Both hand over whole [`Material`], and only when it changed; what is handed over is well-formed and its key
//! fits, and [`Material::check`] asks whether it is this gateway's. An error never ends anything: the caller keeps
//! using what it has and asks again.

pub mod files;
pub mod spiffe;

use std::path::{Path, PathBuf};

use postern_certs::{CertsError, Clock as _, IssuedLeaf, SpiffeId, SystemClock, material};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest as _, Sha256};

pub use files::Files;
pub use spiffe::Spiffe;

/// Everything that a TLS configuration is made of.
#[derive(Debug)]
pub struct Material {
    /// The leaf with its chain and its key: PKCS #8, SEC 1 or PKCS #1, as it came.
    pub leaf: IssuedLeaf,
    /// Whom to trust; those that are not valid now are left out when they are used.
    pub roots: Vec<CertificateDer<'static>>,
    /// Who is not to be trusted any more; empty: nobody says.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
}

impl Material {
    /// Refuses what this gateway cannot use now: see [`material::check_gateway`].
    ///
    /// # Errors
    /// See [`material::check_gateway`].
    pub fn check(&self, gateway: &SpiffeId) -> Result<(), CertsError> {
        material::check_gateway(&self.leaf, &self.roots, gateway, SystemClock.now())
    }

    /// The same for the same content, however it was brought.
    fn fingerprint(&self) -> Fingerprint {
        let chain = self.leaf.chain.iter().map(AsRef::as_ref);
        let roots = self.roots.iter().map(AsRef::as_ref);
        let crls = self.crls.iter().map(AsRef::as_ref);
        fingerprint(&[
            &fingerprint_all(chain),
            self.leaf.key.secret_der(),
            &fingerprint_all(roots),
            &fingerprint_all(crls),
        ])
    }
}

/// Why there is no new material. The message names the key of the configuration or the socket, and never repeats what
/// a file or a message holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssuerError {
    /// A file cannot be used. Likely it is being replaced just now, or it has the wrong owner or mode.
    #[error("`{key}` ({}): {what}", path.display())]
    File {
        /// The key of the configuration that names the file, or its name in a folder.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The agent cannot be reached, or its stream broke. Likely it is not running, or starts just now.
    #[error("the SPIFFE agent at {} {what}", socket.display())]
    Agent {
        /// `trust.spiffe.socket`.
        socket: PathBuf,
        /// What happened.
        what: String,
    },
    /// The agent has no identity for this process. Before any material: it is not registered yet. After some: the
    /// identity was withdrawn, and SPIFFE asks to stop using it (Workload API, section 5.2.1).
    #[error("the SPIFFE agent at {} has no identity for this process: {what}", socket.display())]
    NoIdentity {
        /// `trust.spiffe.socket`.
        socket: PathBuf,
        /// In the words of the agent.
        what: String,
    },
    /// What listens on the socket is not a Workload API, or not of a kind that this version speaks. SPIFFE asks not to
    /// try again (Workload Endpoint, section 6); somebody who does waits for the longest time between two attempts.
    #[error("what listens on {} is no SPIFFE Workload API: {what}", socket.display())]
    NotWorkloadApi {
        /// `trust.spiffe.socket`.
        socket: PathBuf,
        /// How it showed.
        what: String,
    },
    /// The agent sent something that cannot be used; it was thrown away whole.
    #[error("the SPIFFE agent at {} sent what cannot be used: {what}", socket.display())]
    Message {
        /// `trust.spiffe.socket`.
        socket: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

impl IssuerError {
    fn file(key: &'static str, path: &Path, what: impl Into<String>) -> Self {
        Self::File { key, path: path.to_owned(), what: what.into() }
    }
}

/// SHA-256 over parts, so that the one that was handed over last is known again without keeping it.
type Fingerprint = [u8; 32];

fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    fingerprint_all(parts.iter().copied())
}

fn fingerprint_all<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        // With their lengths, so that bytes cannot wander from one part to the next.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
