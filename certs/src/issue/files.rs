//! Leaves in files, and leaves that came over the network.

use std::path::Path;

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use time::OffsetDateTime;

use super::IssuedLeaf;
use crate::{CertsError, SignedLeaf, Trust, pem, refusal, store, tls, verify};

/// A leaf with its chain, or a bundle of roots, is a few KiB; more than this was not written here.
const MAX_FILE_BYTES: u64 = 256 * 1024;

impl IssuedLeaf {
    /// Writes `cert.pem` (the chain), `key.pem` (0600) and `ca.pem` (the roots) into a folder, for programs that read
    /// files; the folder is made if it is missing.
    ///
    /// Each file is replaced at once; the three are not. A program that reads them during a renewal and finds key and
    /// certificate apart should read again.
    ///
    /// # Errors
    /// [`CertsError::Io`] if the folder cannot be made or written.
    pub fn write(&self, dir: &Path, bundle: &[CertificateDer<'_>]) -> Result<(), CertsError> {
        store::make_folder(dir)?;
        let key = pem::encode(pem::PRIVATE_KEY, self.key.secret_der());
        store::write_atomic(dir, "ca.pem", pem::certificates(bundle).as_bytes(), store::PUBLIC)?;
        store::write_atomic(dir, "key.pem", key.as_bytes(), store::PRIVATE)?;
        store::write_atomic(dir, "cert.pem", pem::certificates(&self.chain).as_bytes(), store::PUBLIC)
    }

    /// Reads what [`IssuedLeaf::write`] wrote, and the roots beside it. Checked is what anybody can get wrong with
    /// files: that they are there, belong together, and lead to the roots at `now`. An expired leaf is an error whose
    /// reason is [`crate::Reason::Expired`]: its owner has to be invited again.
    ///
    /// # Errors
    /// [`CertsError::Io`], [`CertsError::KeyExposed`], [`CertsError::ForeignOwner`]; [`CertsError::Damaged`];
    /// [`CertsError::Certificate`], [`CertsError::Tls`] as in [`IssuedLeaf::assemble`].
    pub fn read(dir: &Path, now: OffsetDateTime) -> Result<(Self, Trust), CertsError> {
        let damaged = |name: &str, why: &str| CertsError::Damaged { path: dir.join(name), why: why.to_owned() };
        let certificates = |name: &str| {
            let text = store::read_public(&dir.join(name), MAX_FILE_BYTES)?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            read.ok().filter(|read| !read.is_empty()).ok_or_else(|| damaged(name, "it holds no certificates"))
        };
        let trust = Trust::from_roots(&certificates("ca.pem")?)?;
        let key = store::read_private(&dir.join("key.pem"), MAX_FILE_BYTES)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| damaged("key.pem", "it holds no private key"))?;
        let leaf = Self::assemble(certificates("cert.pem")?, key, &trust, now)?;
        Ok((leaf, trust))
    }

    /// Puts a chain and the key together that it was asked for with.
    ///
    /// # Errors
    /// [`CertsError::Certificate`], [`CertsError::SpiffeId`], [`CertsError::Tls`]: the key belongs to another leaf, or
    /// the chain does not lead to `trust` at `now`.
    pub fn assemble(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        trust: &Trust,
        now: OffsetDateTime,
    ) -> Result<Self, CertsError> {
        let leaf = refusal::split(&chain)?.0;
        let id = verify::peer_id(leaf)?;
        let public_key = verify::parse(leaf)?.public_key().subject_public_key.data.to_vec();
        if KeyPair::try_from(&key)?.public_key_raw() != public_key {
            return Err(CertsError::certificate("its key belongs to another certificate"));
        }
        tls::check_chain(&chain, trust, id.trust_domain(), now)?;
        let (not_before, not_after) = verify::validity(leaf)?;
        Ok(Self { id, chain, key, not_before, not_after })
    }
}

impl SignedLeaf {
    /// The leaf with the key of the request ([`crate::Csr::key`]), as its owner uses it, and the roots that came
    /// along, which the owner has to trust from now on.
    ///
    /// # Errors
    /// Those of [`IssuedLeaf::assemble`].
    pub fn with_key(self, key: PrivateKeyDer<'static>, now: OffsetDateTime) -> Result<(IssuedLeaf, Trust), CertsError> {
        let trust = Trust::from_roots(&self.roots)?;
        Ok((IssuedLeaf::assemble(self.chain, key, &trust, now)?, trust))
    }
}
