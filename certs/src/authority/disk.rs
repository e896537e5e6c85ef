//! What the authority's folder holds, read under its lock.

use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{Duration, OffsetDateTime};

use super::{RootPlace, Settings};
use crate::{
    CertsError,
    ledger::{Ledger, MAX_LEDGER_BYTES},
    rotate::{RootSwitch, root_switch},
    signer::Signer,
    store::{Locked, Store},
};

pub(super) const ROOT_FILE: &str = "root.pem";
pub(super) const ROOTS_FILE: &str = "roots.pem";
pub(super) const NEXT_ROOT_FILE: &str = "next-root.pem";
pub(super) const INTERMEDIATE_FILE: &str = "intermediate.pem";
pub(crate) const LEDGER_FILE: &str = "ledger.json";
pub(super) const CLOCK_FILE: &str = "clock";
/// What a change by another process shows in.
pub(super) const WATCHED: [&str; 6] =
    [ROOT_FILE, ROOTS_FILE, NEXT_ROOT_FILE, INTERMEDIATE_FILE, LEDGER_FILE, CLOCK_FILE];

const RETIRED_BEGIN: &str = "retired-";
const RETIRED_END: &str = ".pem";

/// Everything in the folder; `None` for what is not there yet.
pub(super) struct Disk {
    pub(super) roots: Option<Roots>,
    pub(super) intermediate: Option<Signer>,
    pub(super) retired: Vec<Signer>,
    pub(super) ledger: Option<Ledger>,
    pub(super) marked: Option<OffsetDateTime>,
}

/// The roots, with their keys where those are here.
#[derive(Debug)]
pub(super) enum Roots {
    Here { current: Box<Signer>, next: Option<Box<Signer>> },
    Offline(Vec<CertificateDer<'static>>),
}

impl Disk {
    pub(super) fn read(settings: &Settings, store: &Store, locked: &Locked<'_>) -> Result<Self, CertsError> {
        let ledger = read_ledger(store, locked)?;
        let switching = ledger.as_ref().is_some_and(|ledger| ledger.switch.is_some());
        let intermediate = read_signer(store, locked, INTERMEDIATE_FILE)?;
        let roots = match settings.root {
            RootPlace::Here => read_roots_here(store, locked, switching)?,
            RootPlace::Offline => read_roots_offline(store, locked)?,
        };
        match &roots {
            None if intermediate.is_some() => {
                let name = if settings.root == RootPlace::Here { ROOT_FILE } else { ROOTS_FILE };
                return Err(CertsError::RootMissing { path: store.path(name) });
            }
            Some(Roots::Here { current, next }) => {
                settings.check_trust_domain(current, store.dir())?;
                let both = [Some(current), next.as_ref()];
                let issued = |stored: &Signer| both.iter().flatten().any(|root| root.issued(stored));
                if intermediate.as_ref().is_some_and(|stored| !issued(stored)) {
                    let why = "its issuer is not the root beside it".to_owned();
                    return Err(CertsError::Damaged { path: store.path(INTERMEDIATE_FILE), why });
                }
            }
            _ => {}
        }
        if let (Some(intermediate), None) = (&intermediate, &ledger) {
            settings.check_trust_domain(intermediate, store.dir())?;
            // An empty one would bring everything back that was revoked.
            let why = "it is missing though the authority was used before: restore it, or remove intermediate.pem as \
                       well, and then nothing that was issued so far is accepted any more";
            return Err(CertsError::Damaged { path: store.path(LEDGER_FILE), why: why.to_owned() });
        }
        let retired = read_retired(store, locked, intermediate.as_ref())?;
        Ok(Self { roots, intermediate, retired, ledger, marked: read_mark(store, locked)? })
    }
}

impl Roots {
    /// What peers have to trust.
    pub(super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        match self {
            Self::Here { current, next } => {
                let both = [Some(current), next.as_ref()];
                both.into_iter().flatten().map(|root| root.certificate.clone()).collect()
            }
            Self::Offline(certificates) => certificates.clone(),
        }
    }

    /// Whether one of them names itself as the issuer of this one.
    pub(super) fn issued(&self, signer: &Signer) -> bool {
        match self {
            Self::Here { current, next } => {
                [Some(current), next.as_ref()].into_iter().flatten().any(|root| root.issued(signer))
            }
            Self::Offline(certificates) => certificates
                .iter()
                .any(|root| crate::verify::authority(root).is_ok_and(|facts| signer.is_below(&facts.key_id))),
        }
    }

    /// First and last moment of the root in use, or from the first to the last of several that are kept off line.
    pub(super) fn validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        match self {
            Self::Here { current, .. } => (current.not_before, current.not_after),
            Self::Offline(certificates) => {
                let each = certificates.iter().filter_map(|root| crate::verify::validity(root).ok());
                let widest = each.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
                widest.unwrap_or((OffsetDateTime::UNIX_EPOCH, OffsetDateTime::UNIX_EPOCH))
            }
        }
    }

    /// How far a switch is.
    pub(super) fn phase(&self, ledger: &Ledger, now: OffsetDateTime) -> Option<RootSwitch> {
        let (Self::Here { current, next: Some(_) }, Some(switch)) = (self, ledger.switch) else { return None };
        let began = OffsetDateTime::from_unix_timestamp(switch.began).unwrap_or(now);
        Some(root_switch(began, Duration::seconds(switch.leaf_ttl_s), current.not_after, now))
    }

    /// The root that signs intermediates now, where its key is here.
    pub(super) fn issuing(&self, ledger: &Ledger, now: OffsetDateTime) -> Option<&Signer> {
        let Self::Here { current, next } = self else { return None };
        match (self.phase(ledger, now), next) {
            (Some(RootSwitch::IssueNew | RootSwitch::DropOld), Some(next)) => Some(next),
            _ => Some(current),
        }
    }
}

pub(super) fn retired_file(signer: &Signer) -> String {
    format!("{RETIRED_BEGIN}{}{RETIRED_END}", signer.name())
}

pub(super) fn read_signer(store: &Store, locked: &Locked<'_>, name: &str) -> Result<Option<Signer>, CertsError> {
    let Some(text) = locked.read(name)? else { return Ok(None) };
    Signer::from_pem(&text).map(Some).map_err(damaged(store, name))
}

fn damaged(store: &Store, name: &str) -> impl FnOnce(CertsError) -> CertsError {
    let path = store.path(name);
    move |error| CertsError::Damaged { path, why: error.to_string() }
}

fn read_roots_here(store: &Store, locked: &Locked<'_>, switching: bool) -> Result<Option<Roots>, CertsError> {
    let Some(current) = read_signer(store, locked, ROOT_FILE)? else {
        if locked.read(ROOTS_FILE)?.is_some() {
            let why = "the root of this authority is kept off line, and the configuration says otherwise";
            return Err(CertsError::RootPlace { path: store.dir().to_owned(), why });
        }
        return Ok(None);
    };
    // Without a switch in the ledger nobody was told of it: what lies there is of a crash.
    let next = if switching { read_signer(store, locked, NEXT_ROOT_FILE)? } else { None };
    Ok(Some(Roots::Here { current: Box::new(current), next: next.map(Box::new) }))
}

fn read_roots_offline(store: &Store, locked: &Locked<'_>) -> Result<Option<Roots>, CertsError> {
    if locked.read(ROOT_FILE)?.is_some() {
        let why = "the root's key is here, and the configuration says that it is kept off line";
        return Err(CertsError::RootPlace { path: store.dir().to_owned(), why });
    }
    let Some(text) = locked.read(ROOTS_FILE)? else { return Ok(None) };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match roots {
        Ok(roots) if !roots.is_empty() => Ok(Some(Roots::Offline(roots))),
        _ => {
            let why = "it holds no certificates".to_owned();
            Err(CertsError::Damaged { path: store.path(ROOTS_FILE), why })
        }
    }
}

fn read_retired(store: &Store, locked: &Locked<'_>, intermediate: Option<&Signer>) -> Result<Vec<Signer>, CertsError> {
    let mut retired = Vec::new();
    for name in locked.names(RETIRED_BEGIN, RETIRED_END)? {
        let signer = read_signer(store, locked, &name)?;
        // The one in use is among them after a crash in the middle of its renewal.
        retired.extend(signer.filter(|one| intermediate.is_none_or(|in_use| in_use.key_id != one.key_id)));
    }
    Ok(retired)
}

fn read_ledger(store: &Store, locked: &Locked<'_>) -> Result<Option<Ledger>, CertsError> {
    let Some(text) = locked.read_up_to(LEDGER_FILE, MAX_LEDGER_BYTES)? else { return Ok(None) };
    let damaged = |why| CertsError::Damaged { path: store.path(LEDGER_FILE), why };
    Ledger::from_json(&text).map(Some).map_err(damaged)
}

fn read_mark(store: &Store, locked: &Locked<'_>) -> Result<Option<OffsetDateTime>, CertsError> {
    let Some(text) = locked.read(CLOCK_FILE)? else { return Ok(None) };
    let seconds = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().parse().ok());
    let mark = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let why = "it is no time: `postern certs reset-clock` removes it";
    mark.map(Some).ok_or_else(|| CertsError::Damaged { path: store.path(CLOCK_FILE), why: why.to_owned() })
}
