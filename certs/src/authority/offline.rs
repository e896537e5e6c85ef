//! A root that is kept off line: what this machine asks of it, what it answers there, and what is installed here.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroize;

use super::{
    Authority, AuthorityOptions, RootPlace, Settings,
    disk::{Disk, INTERMEDIATE_FILE, LEDGER_FILE, ROOT_FILE, ROOTS_FILE, Roots, retired_file},
    state::check_root,
    whole_seconds,
};
use crate::{
    CertsError, PathPrefix, SpiffeId, Trust,
    csr::Request,
    issue, pem,
    signer::{Signer, new_key, subject},
    store::{self, Locked, Store},
    tls, verify,
};

const PENDING_KEY_FILE: &str = "pending-key.pem";
/// What a person takes to the root.
const REQUEST_FILE: &str = "intermediate.csr.pem";

/// The longest life of an intermediate that a person has to fetch, days. Whoever steals its key has it for as long, since
/// nobody revokes intermediates.
pub const MAX_INTERMEDIATE_DAYS: u16 = 90;

/// Begins a root in `dir`, on the machine that is kept off line: `root.pem` (key and certificate, 0600) and `ca.pem`
/// (the certificate, for everyone).
///
/// # Errors
/// [`CertsError::SpiffeId`] if `trust_domain` is not a name; [`CertsError::RootPlace`] if there is a root;
/// [`CertsError::Io`], [`CertsError::Locked`]; [`CertsError::ClockNeverSet`].
pub fn create_root(dir: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<CertificateDer<'static>, CertsError> {
    crate::clock::check(now, None)?;
    let trust_domain = SpiffeId::of_trust_domain(trust_domain)?;
    let store = Store::open(dir)?;
    let locked = store.lock()?;
    locked.sweep()?;
    if locked.read(ROOT_FILE)?.is_some() || locked.read(ROOTS_FILE)?.is_some() {
        let why = "there is a root already, and it is not replaced: everyone who pinned it would be locked out";
        return Err(CertsError::RootPlace { path: dir.to_owned(), why });
    }
    let root = Signer::create_root(&trust_domain, whole_seconds(now))?;
    locked.write(ROOT_FILE, root.to_pem().as_bytes())?;
    let public = pem::certificates(std::slice::from_ref(&root.certificate));
    store::write_atomic(dir, "ca.pem", public.as_bytes(), store::PUBLIC)?;
    Ok(root.certificate.clone())
}

/// Signs the request of a branch, on the machine with the root: an intermediate that speaks below `prefix` only and lives
/// for so many `days`, [`MAX_INTERMEDIATE_DAYS`] at most. `root_pem` is the text of `root.pem`, `csr_pem` that of `intermediate.csr.pem`; the answer is PEM as
/// well. Nothing is read or written.
///
/// # Errors
/// [`CertsError::Certificate`] if the root cannot be read; [`CertsError::Csr`] if the request cannot be signed or is
/// for another trust domain; [`CertsError::RootAhead`], [`CertsError::RootExpired`].
pub fn sign_intermediate(
    root_pem: &[u8],
    csr_pem: &[u8],
    prefix: &PathPrefix,
    days: u16,
    now: OffsetDateTime,
) -> Result<String, CertsError> {
    let now = whole_seconds(now);
    crate::clock::check(now, None)?;
    let root = Signer::from_pem(root_pem)?;
    check_root(&root, now)?;
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem);
    let request = Request::from_der(&der.map_err(|_| CertsError::Csr("it is not PEM"))?)?;
    request.check_name(&root.trust_domain)?;
    let params = root.intermediate_params(prefix, Duration::days(days.clamp(1, MAX_INTERMEDIATE_DAYS).into()), now)?;
    Ok(pem::certificates(&[root.sign(&params, &request.key)?]))
}

impl Authority {
    /// Puts an intermediate in place that the root has signed off line: `certificate_pem` is its answer, `roots_pem`
    /// all the roots that peers have to trust. For the request that waits, or, to change the roots only, the
    /// intermediate in use once more. Everything is checked first; a running gateway takes it over by itself.
    ///
    /// To switch roots, install the present intermediate with both roots, wait for one life of a leaf, then install
    /// an intermediate of the new root with both, and after another life with the new root only.
    ///
    /// # Errors
    /// [`CertsError::NotInstallable`], saying what does not fit; and those of [`Authority::open_or_create`].
    pub fn install(
        dir: &Path,
        options: AuthorityOptions,
        certificate_pem: &[u8],
        roots_pem: &[u8],
    ) -> Result<(), CertsError> {
        let settings = Settings::new(&options)?;
        let now = whole_seconds(options.clock.now());
        crate::clock::check(now, None)?;
        let store = Store::open(dir)?;
        let locked = store.lock()?;
        locked.sweep()?;
        if settings.root == RootPlace::Here {
            return Err(CertsError::NotInstallable("the root of this authority is not kept off line".to_owned()));
        }
        let disk = Disk::read(&settings, &store, &locked)?;
        let (intermediate, roots) = check_installable(&settings, &locked, &disk, certificate_pem, roots_pem, now)?;
        install(&locked, disk, &intermediate, &roots, now)
    }
}

/// Asks for an intermediate, and says how to go on.
pub(super) fn request(settings: &Settings, store: &Store, locked: &Locked<'_>) -> CertsError {
    match write_request(settings, store, locked) {
        Ok(()) => CertsError::AwaitingIntermediate { csr: store.path(REQUEST_FILE) },
        Err(error) => error,
    }
}

/// Writes a key and a request for it, unless they wait already.
pub(super) fn write_request(settings: &Settings, store: &Store, locked: &Locked<'_>) -> Result<(), CertsError> {
    let key = match pending_key(locked)? {
        Some(_) if locked.read(REQUEST_FILE)?.is_some() => return Ok(()),
        Some(key) => key,
        None => {
            let key = new_key()?;
            let mut der = key.serialize_der();
            let text = pem::encode(pem::PRIVATE_KEY, &der);
            der.zeroize();
            locked.write(PENDING_KEY_FILE, text.as_bytes())?;
            key
        }
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("Postern intermediate");
    params.subject_alt_names = vec![SanType::URI(settings.trust_domain.to_string().try_into()?)];
    let request = params.serialize_request(&key)?;
    locked.write(REQUEST_FILE, pem::encode(pem::REQUEST, request.der()).as_bytes())?;
    tracing::warn!(request = %store.path(REQUEST_FILE).display(), "a new intermediate has to be signed by the root");
    Ok(())
}

fn pending_key(locked: &Locked<'_>) -> Result<Option<KeyPair>, CertsError> {
    let Some(text) = locked.read(PENDING_KEY_FILE)? else { return Ok(None) };
    let refuse = || CertsError::NotInstallable(format!("{PENDING_KEY_FILE} is damaged: remove it to make a new one"));
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| refuse())?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
    der.zeroize();
    key.map(Some).map_err(|_| refuse())
}

fn check_installable(
    settings: &Settings,
    locked: &Locked<'_>,
    disk: &Disk,
    certificate_pem: &[u8],
    roots_pem: &[u8],
    now: OffsetDateTime,
) -> Result<(Signer, Vec<CertificateDer<'static>>), CertsError> {
    let refuse = |why: &str| Err(CertsError::NotInstallable(why.to_owned()));
    let unreadable = |what: &str| CertsError::NotInstallable(format!("{what} is not a certificate in PEM"));
    let certificate = CertificateDer::from_pem_slice(certificate_pem).map_err(|_| unreadable("the answer"))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(roots_pem).collect();
    let roots = roots.ok().filter(|roots| !roots.is_empty()).ok_or_else(|| unreadable("the file of roots"))?;
    let words = |error: CertsError| CertsError::NotInstallable(error.to_string());
    let facts = verify::authority(&certificate).map_err(words)?;
    if facts.trust_domain != settings.trust_domain {
        return refuse("it is for another trust domain");
    }
    if facts.prefix != settings.prefix {
        return Err(CertsError::NotInstallable(format!(
            "its prefix is {:?}, the configuration says {:?}",
            facts.prefix, settings.prefix
        )));
    }
    if facts.path_length != Some(0) {
        return refuse("its path length is not 0, so others could sign in its name");
    }
    let key = match (pending_key(locked)?, &disk.intermediate) {
        (Some(key), _) if key.public_key_raw() == facts.public_key => key,
        (_, Some(present)) if present.has_key(&facts.public_key) => present.copy_key()?,
        _ => return refuse("it is not for the key of this machine: was it signed for an older request?"),
    };
    let signer = Signer::new(certificate, key).map_err(words)?;
    if !(signer.not_before..signer.not_after).contains(&now) {
        return refuse("it is not valid now");
    }
    let id = settings.gateway_id.clone();
    let probe = crate::LeafRequest { id, role: crate::Role::Gateway { names: Vec::new() } };
    let leaf = issue::issue(probe, &signer, now, settings.leaf_ttl)?;
    let trust = Trust::from_roots(&roots).map_err(words)?;
    // The leaf of a gateway, as a workstation would judge it: never handed out.
    tls::check_chain(&leaf.chain, &trust, settings.trust_domain.trust_domain(), now)
        .map_err(|error| CertsError::NotInstallable(format!("its chain does not hold: {error}")))?;
    Ok((signer, roots))
}

fn install(
    locked: &Locked<'_>,
    disk: Disk,
    intermediate: &Signer,
    roots: &[CertificateDer<'static>],
    now: OffsetDateTime,
) -> Result<(), CertsError> {
    let mut ledger = disk.ledger.unwrap_or_default();
    let replaced = disk.intermediate.filter(|old| old.key_id != intermediate.key_id);
    if let Some(old) = &replaced {
        ledger.retired.insert(old.name(), now.unix_timestamp());
        locked.write(&retired_file(old), old.to_pem().as_bytes())?;
    }
    ledger.count_bundle(roots, now);
    locked.write(LEDGER_FILE, &ledger.to_json()?)?;
    // Until the new intermediate is in place the roots have to go with the old one as well.
    let mut both = roots.to_vec();
    if let (Some(_), Some(Roots::Offline(old))) = (&replaced, disk.roots) {
        both.extend(old.into_iter().filter(|root| !roots.contains(root)));
    }
    locked.write(ROOTS_FILE, pem::certificates(&both).as_bytes())?;
    locked.write(INTERMEDIATE_FILE, intermediate.to_pem().as_bytes())?;
    if both.len() != roots.len() {
        locked.write(ROOTS_FILE, pem::certificates(roots).as_bytes())?;
    }
    locked.remove(REQUEST_FILE)?;
    locked.remove(PENDING_KEY_FILE)
}
