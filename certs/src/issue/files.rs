//! Leaves in files, and leaves that came over the network.

use std::path::Path;

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::IssuedLeaf;
use crate::{CertsError, SignedLeaf, Trust, pem, refusal, store, tls, verify};

/// A leaf with its chain, or a bundle of roots, is a few KiB; more than this was not written here.
const MAX_FILE_BYTES: u64 = 256 * 1024;

const CHAIN_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
const ROOTS_FILE: &str = "ca.pem";
/// Key and chain together, for as long as one of them may be new and the other one old.
const RENEWAL_FILE: &str = "renewal.pem";

/// Replaces a file that everyone may read, all at once; its folder is made if it is missing.
///
/// # Errors
/// [`CertsError::Io`] if it cannot be written.
pub fn write_beside(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), CertsError> {
    store::make_folder(dir)?;
    store::write_atomic(dir, name, bytes, store::PUBLIC)
}

impl IssuedLeaf {
    /// Writes `cert.pem` (the chain), `key.pem` (0600) and `ca.pem` (the roots) into a folder, for programs that read
    /// files; the folder is made if it is missing.
    ///
    /// Each file is replaced at once; the three are not. A program that reads them during a renewal and finds key and
    /// certificate apart should read again. A crash in between loses nothing: [`IssuedLeaf::complete`] goes on.
    ///
    /// # Errors
    /// [`CertsError::Io`] if the folder cannot be made or written; [`CertsError::Locked`] if somebody else writes there.
    pub fn write(&self, dir: &Path, bundle: &[CertificateDer<'_>]) -> Result<(), CertsError> {
        store::make_folder(dir)?;
        let _one_at_a_time = store::lock_folder(dir)?;
        // The new roots are those of whoever issued, so the former leaf is good with them as well.
        store::write_atomic(dir, ROOTS_FILE, pem::certificates(bundle).as_bytes(), store::PUBLIC)?;
        let key = pem::encode(pem::PRIVATE_KEY, self.key.secret_der());
        let both = Zeroizing::new([key.as_str(), &pem::certificates(&self.chain)].concat());
        store::write_atomic(dir, RENEWAL_FILE, both.as_bytes(), store::PRIVATE)?;
        put_in_place(dir)
    }

    /// Finishes what a crash broke off in [`IssuedLeaf::write`]: until then key and certificate may not belong together.
    /// Nothing, if nothing was.
    ///
    /// # Errors
    /// Those of [`IssuedLeaf::write`]; [`CertsError::KeyExposed`], [`CertsError::ForeignOwner`],
    /// [`CertsError::Damaged`].
    pub fn complete(dir: &Path) -> Result<(), CertsError> {
        let _one_at_a_time = store::lock_folder(dir)?;
        put_in_place(dir)
    }

    /// Reads what [`IssuedLeaf::write`] wrote, and the roots beside it. Checked is what anybody can get wrong with
    /// files: that they are there, belong together, and lead to the roots at `now`. An expired leaf is an error whose
    /// reason is [`crate::Reason::Expired`]: its owner has to be invited again.
    ///
    /// # Errors
    /// [`CertsError::Io`], [`CertsError::KeyExposed`], [`CertsError::ForeignOwner`]; [`CertsError::Damaged`];
    /// [`CertsError::Certificate`], [`CertsError::Tls`] as in [`IssuedLeaf::assemble`].
    pub fn read(dir: &Path, now: OffsetDateTime) -> Result<(Self, Trust), CertsError> {
        Self::complete(dir)?;
        let damaged = |name: &str, why: &str| CertsError::Damaged { path: dir.join(name), why: why.to_owned() };
        let certificates = |name: &str| {
            let text = store::read_public(&dir.join(name), MAX_FILE_BYTES)?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            read.ok().filter(|read| !read.is_empty()).ok_or_else(|| damaged(name, "it holds no certificates"))
        };
        let trust = Trust::from_roots(&certificates(ROOTS_FILE)?)?;
        let key = store::read_private(&dir.join(KEY_FILE), MAX_FILE_BYTES)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| damaged(KEY_FILE, "it holds no private key"))?;
        let leaf = Self::assemble(certificates(CHAIN_FILE)?, key, &trust, now)?;
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

/// Puts key and chain of [`RENEWAL_FILE`] in their places, if there is one.
fn put_in_place(dir: &Path) -> Result<(), CertsError> {
    store::sweep(dir, &[CHAIN_FILE, KEY_FILE, ROOTS_FILE, RENEWAL_FILE])?;
    let path = dir.join(RENEWAL_FILE);
    let both = match store::read_private(&path, MAX_FILE_BYTES) {
        Err(CertsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let damaged = || CertsError::Damaged { path: path.clone(), why: "it holds no key and chain".to_owned() };
    let key = PrivateKeyDer::from_pem_slice(&both).map_err(|_| damaged())?;
    let key = pem::encode(pem::PRIVATE_KEY, key.secret_der());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&both).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(damaged)?;
    store::write_atomic(dir, KEY_FILE, key.as_bytes(), store::PRIVATE)?;
    store::write_atomic(dir, CHAIN_FILE, pem::certificates(&chain).as_bytes(), store::PUBLIC)?;
    store::remove(dir, RENEWAL_FILE)
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
