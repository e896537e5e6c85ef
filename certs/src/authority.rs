//! The authority embedded in a gateway: everything needed to issue leaves with the line cut.
//!
//! Its folder (0700, each file 0600) holds
//!
//! | file | what it is |
//! | --- | --- |
//! | `root.pem` | the root, key and certificate; with a root kept off line `roots.pem`, certificates only |
//! | `next-root.pem` | during a root switch: the new root |
//! | `intermediate.pem` | the key and certificate that issue |
//! | `retired-….pem` | those that issued before, for as long as a leaf of theirs may live: they sign its revocation |
//! | `ledger.json` | leaves, revocations, invitations, the state of a switch |
//! | `clock` | the highest time seen |
//! | `pending-key.pem`, `intermediate.csr.pem` | root off line: what waits to be signed |
//! | `lock` | shared by the gateway and the command line |
//!
//! The root signs nothing but intermediates; the intermediate (path length 0) signs leaves and revocation lists, and
//! is replaced by a new one, with a new key, at half of its thirty days. Leaves carry their intermediate along, so
//! peers need the root only.
//!
//! Nothing here has a thread: the gateway calls [`Authority::refresh`] every second or so, which looks whether a file
//! was replaced and whether anything is due.

mod crls;
mod disk;
mod enrolment;
mod offline;
mod state;
mod status;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration as StdDuration,
};

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

pub(crate) use self::disk::LEDGER_FILE;
use self::{disk::Disk, state::State};
pub use self::{
    enrolment::{MAX_INVITE_TTL, SignedLeaf},
    offline::{MAX_INTERMEDIATE_DAYS, create_root, sign_intermediate},
    status::{CertificateStatus, LeafStatus, Stage, Status},
};
use crate::{
    CertsError, Clock, IssuedLeaf, LeafRequest, PathPrefix, Role, Serial, SpiffeId, SystemClock, Trust,
    ban::{self, Ban},
    clock,
    issue::{self, MAX_LEAF_TTL, MIN_LEAF_TTL},
    ledger::{Issued, Ledger},
    signer::{INTERMEDIATE_LIFE, Signer},
    store::{Locked, Store},
    tls,
};

/// Lives of a leaf in one life of an intermediate, for short ones.
const LEAVES_PER_INTERMEDIATE: i32 = 10;
/// The highest time seen is written this often.
const MARK_EVERY: Duration = Duration::MINUTE;
/// After a failure to renew or to write, as with a full disk.
const TRY_AGAIN_AFTER: Duration = Duration::MINUTE;

/// How an authority works.
#[derive(Clone, Debug)]
pub struct AuthorityOptions {
    /// The trust domain it speaks for, without scheme: `branch-17.example.org`.
    pub trust_domain: String,
    /// The path below which it names workloads, and its gateway.
    pub prefix: PathPrefix,
    /// How long leaves live: [`MIN_LEAF_TTL`] to [`MAX_LEAF_TTL`]; 72 h is the default of the product.
    pub leaf_ttl: StdDuration,
    /// Where the root's key is.
    pub root: RootPlace,
    /// Where it reads the time.
    pub clock: Arc<dyn Clock>,
}

/// Where the root's key is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootPlace {
    /// In the authority's folder: intermediates renew by themselves.
    #[default]
    Here,
    /// On another machine, switched off: every intermediate is brought over by a person ([`Authority::install`]).
    Offline,
}

/// What is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Every leaf of an identity.
    Id(SpiffeId),
    /// One leaf.
    Serial(Serial),
}

impl Revocation {
    fn carry_out(&self, ledger: &mut Ledger, now: OffsetDateTime) -> Vec<Serial> {
        match self {
            Self::Id(id) => {
                ledger.withdraw_invites(id);
                ban::add(&mut ledger.bans, Ban::of_id(id, now));
                ledger.revoke(|leaf| leaf.id == *id, now)
            }
            Self::Serial(serial) => {
                let known = ledger.revoke(|leaf| leaf.serial == *serial, now);
                if known.is_empty() {
                    ban::add(&mut ledger.bans, Ban::of_serial(serial, now));
                }
                known
            }
        }
    }
}

impl AuthorityOptions {
    /// For a whole trust domain, with the root in the folder and the machine's clock.
    #[must_use]
    pub fn new(trust_domain: impl Into<String>, leaf_ttl: StdDuration) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            prefix: PathPrefix::whole_domain(),
            leaf_ttl,
            root: RootPlace::Here,
            clock: Arc::new(SystemClock),
        }
    }
}

/// The options, checked.
#[derive(Debug)]
struct Settings {
    trust_domain: SpiffeId,
    prefix: PathPrefix,
    leaf_ttl: Duration,
    root: RootPlace,
    gateway_id: SpiffeId,
}

/// Issues leaves for one trust domain, or for the part of it below a prefix. Shared freely between threads. Every
/// method may wait for the file system, and up to ten seconds for another process: not for a thread that must not.
#[derive(Debug)]
pub struct Authority {
    store: Store,
    clock: Arc<dyn Clock>,
    settings: Settings,
    state: Mutex<State>,
}

impl Authority {
    /// Opens the authority in `dir`, or begins a new one there. Waits up to ten seconds for another process that does
    /// the same.
    ///
    /// # Errors
    /// - [`CertsError::SpiffeId`], [`CertsError::LeafTtl`]: the options are wrong.
    /// - [`CertsError::TrustDomain`], [`CertsError::RootPlace`]: there is one, for another trust domain, or with its
    ///   root in another place.
    /// - [`CertsError::AwaitingIntermediate`]: the root is off line, and has to sign first.
    /// - [`CertsError::RootMissing`], [`CertsError::Damaged`], [`CertsError::KeyExposed`],
    ///   [`CertsError::ForeignOwner`]: there is one, and it cannot be trusted as it is. It is never replaced
    ///   silently, since everyone who pinned its root would be locked out.
    /// - [`CertsError::ClockNeverSet`], [`CertsError::ClockSetBack`], [`CertsError::ClockBehind`],
    ///   [`CertsError::RootAhead`], [`CertsError::RootExpired`]: the time is outside of its life.
    /// - [`CertsError::Io`], [`CertsError::Locked`]: the folder cannot be read or written.
    pub fn open_or_create(dir: &Path, options: AuthorityOptions) -> Result<Self, CertsError> {
        let settings = Settings::new(&options)?;
        let now = whole_seconds(options.clock.now());
        let store = Store::open(dir)?;
        let state = {
            let locked = store.lock()?;
            locked.sweep()?;
            State::open(&settings, &store, &locked, now)?
        };
        Ok(Self { clock: options.clock, settings, state: Mutex::new(state), store })
    }

    /// Issues a leaf with a new key, and registers it. Renews the intermediate first if that is due.
    ///
    /// A gateway's own leaf is issued even while the folder cannot be written: a full disk must not stop it from
    /// serving. A workload's is not: nobody could revoke it.
    ///
    /// # Errors
    /// - [`CertsError::NotIssuable`], [`CertsError::Name`]: the request breaks a rule.
    /// - [`CertsError::RegisterFull`]: too many leaves are in force.
    /// - [`CertsError::ClockSetBack`], [`CertsError::ClockBehind`], [`CertsError::RootExpired`],
    ///   [`CertsError::IntermediateExpired`]: the time is outside of the authority's life.
    /// - [`CertsError::Io`], [`CertsError::Locked`], [`CertsError::Replaced`]: the folder cannot be read or written,
    ///   or holds another authority now.
    /// - [`CertsError::Certificate`], [`CertsError::Tls`]: peers would refuse what was issued; it is not handed out.
    pub fn issue(&self, request: LeafRequest) -> Result<IssuedLeaf, CertsError> {
        issue::check(&request, &self.settings.trust_domain, &self.settings.prefix)?;
        let essential = matches!(request.role, Role::Gateway { .. });
        let mut state = self.state();
        let now = self.time(&state)?;
        let locked = match self.store.lock().and_then(|locked| {
            self.prepare(&mut state, &locked, now)?;
            Ok(locked)
        }) {
            Ok(locked) => Some(locked),
            Err(error) if essential && error.is_of_the_disk() && state.outlasts(self.settings.leaf_ttl, now) => {
                tracing::warn!(%error, "the authority's folder cannot be written; the gateway's leaf is issued anyway");
                None
            }
            Err(error) => return Err(error),
        };
        state.check_can_issue(now)?;
        // Nobody asks for a list of the gateway's.
        let signer = if essential { &*state.intermediate } else { state.issuer_of_workloads(&self.settings, now) };
        let leaf = issue::issue(request, signer, now, self.settings.leaf_ttl)?;
        self.check_chain(&state, &leaf.chain, now)?;
        let entry = Issued::of(&leaf.chain, signer)?;
        if let Some(locked) = locked {
            let registered = state.change(&locked, now, |ledger| {
                if essential { ledger.register_own(entry, now) } else { ledger.register(entry, now) }
            });
            match registered {
                Err(error) if !(essential && error.is_of_the_disk()) => return Err(error),
                Err(error) => tracing::warn!(%error, "the gateway's leaf could not be registered"),
                Ok(()) => {}
            }
        }
        Ok(leaf)
    }

    /// Revokes every leaf of this identity that was issued before, known here or not, and withdraws invitations for it.
    /// Peers notice with the next [`Authority::trust`]. Returns the numbers of those that are known.
    ///
    /// # Errors
    /// [`CertsError::Io`], [`CertsError::Locked`], [`CertsError::Replaced`]: nothing was revoked.
    pub fn revoke_id(&self, id: &SpiffeId) -> Result<Vec<Serial>, CertsError> {
        self.revoke(&Revocation::Id(id.clone()))
    }

    /// Revokes the leaf with this number, known here or not.
    ///
    /// # Errors
    /// Those of [`Authority::revoke_id`].
    pub fn revoke_serial(&self, serial: &Serial) -> Result<Vec<Serial>, CertsError> {
        self.revoke(&Revocation::Serial(serial.clone()))
    }

    /// The same in a folder, without opening the authority: whatever is wrong with its time, or its intermediate, what was
    /// stolen is revoked. A running gateway takes it over by itself.
    ///
    /// # Errors
    /// Those of [`Authority::revoke_id`], and what is wrong with the files.
    pub fn revoke_in(dir: &Path, options: &AuthorityOptions, what: &Revocation) -> Result<Vec<Serial>, CertsError> {
        let settings = Settings::new(options)?;
        let store = Store::open(dir)?;
        let locked = store.lock()?;
        let disk = Disk::read(&settings, &store, &locked)?;
        let now = whole_seconds(options.clock.now());
        let mut ledger = disk.ledger.ok_or_else(|| CertsError::Replaced { path: dir.to_owned() })?;
        let serials = what.carry_out(&mut ledger, now);
        locked.write(LEDGER_FILE, &ledger.to_json()?)?;
        Ok(serials)
    }

    fn revoke(&self, what: &Revocation) -> Result<Vec<Serial>, CertsError> {
        let mut state = self.state();
        // With the clock set back nothing is issued, but what was stolen must be revoked all the same.
        let now = state.not_before_highest(self.now());
        let locked = self.store.lock()?;
        self.take_over(&mut state, &locked)?;
        // By the clock as it is: a leaf that is issued from now on must not be hit.
        let moment = self.now();
        let serials = state.change(&locked, now, |ledger| Ok(what.carry_out(ledger, moment)))?;
        state.rebuild(now)?;
        tracing::info!(?what, known = serials.len(), "revoked");
        Ok(serials)
    }

    /// Looks whether another process changed anything, and does what is due: call it every second or so. Returns
    /// whether [`Authority::trust`] is another one than at the last call, whoever changed it.
    ///
    /// Mostly a few calls of `stat`; once a minute a small file is written, twice a day revocation lists are signed,
    /// every fifteen days an intermediate.
    ///
    /// # Errors
    /// Those of [`Authority::issue`]. What can be done without the disk and without the right time is done all the
    /// same: lists are signed, so that a full disk does not lock everyone out. The next attempt at the rest is made
    /// after a minute, and until then `Ok` is returned.
    pub fn refresh(&self) -> Result<bool, CertsError> {
        let mut state = self.state();
        let done = self.do_what_is_due(&mut state);
        let now = state.not_before_highest(self.now());
        state.rebuild(now)?;
        done?;
        Ok(state.is_news())
    }

    fn do_what_is_due(&self, state: &mut State) -> Result<(), CertsError> {
        let pausing = state.is_pausing(self.now());
        let done = self.take_over_if_outdated(state).and_then(|()| {
            let now = self.time(state)?;
            if !pausing && (state.is_due(&self.settings, now) || state.is_mark_due(now)) {
                let locked = self.store.lock()?;
                self.prepare(state, &locked, now)?;
                state.mark(&locked, now)?;
            }
            Ok(())
        });
        if pausing {
            // It was told within the last minute.
            return Ok(());
        }
        state.pause(if done.is_err() { Some(self.now()) } else { None });
        done
    }

    fn take_over_if_outdated(&self, state: &mut State) -> Result<(), CertsError> {
        if !state.is_outdated(&self.store) {
            return Ok(());
        }
        let locked = self.store.lock()?;
        self.take_over(state, &locked)
    }

    /// Begins to switch to a new root: everyone hears of it within one life of a leaf, it issues after that, and the
    /// old one is dropped after another. By itself that happens when four fifths of the root's life are over.
    ///
    /// # Errors
    /// [`CertsError::NoRootSwitch`] if one is under way or the root is kept off line (install the new roots there);
    /// and those of [`Authority::issue`].
    pub fn begin_root_switch(&self) -> Result<(), CertsError> {
        let mut state = self.state();
        let now = self.time(&state)?;
        let locked = self.store.lock()?;
        self.prepare(&mut state, &locked, now)?;
        state.begin_switch(&self.settings, &locked, now)?;
        state.rebuild(now)
    }

    /// An operator's word that the clock is right now, though it ran ahead before: forgets the highest time seen, and
    /// replaces an intermediate that begins in the future. Leaves that were issued meanwhile stay as they are; revoke
    /// them if that is a danger.
    ///
    /// # Errors
    /// Those of [`Authority::open_or_create`]; [`CertsError::RootAhead`] if the root itself begins in the future.
    pub fn reset_clock(dir: &Path, options: AuthorityOptions) -> Result<(), CertsError> {
        let settings = Settings::new(&options)?;
        let now = whole_seconds(options.clock.now());
        clock::check(now, None)?;
        let store = Store::open(dir)?;
        let locked = store.lock()?;
        locked.sweep()?;
        State::reset_clock(&settings, &store, &locked, now)
    }

    /// Whom a gateway has to trust now: its roots, and the revocation lists of its own issuing keys. Another one after
    /// each change; see [`Authority::refresh`].
    #[must_use]
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.state().trust)
    }

    /// What peers have to trust: the root, or both during a switch.
    #[must_use]
    pub fn trust_bundle(&self) -> Vec<CertificateDer<'static>> {
        self.state().roots.trusted()
    }

    /// The ID of this gateway, `spiffe://<trust domain><prefix>/gateway`.
    #[must_use]
    pub fn gateway_id(&self) -> &SpiffeId {
        &self.settings.gateway_id
    }

    /// The trust domain that it speaks for, without scheme.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.settings.trust_domain.trust_domain()
    }

    /// The path below which it names workloads.
    #[must_use]
    pub fn prefix(&self) -> &PathPrefix {
        &self.settings.prefix
    }

    /// First and last moment of the root, for the dashboard.
    #[must_use]
    pub fn root_validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        self.state().roots.validity()
    }

    /// First and last moment of the intermediate in use, for the dashboard.
    #[must_use]
    pub fn intermediate_validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        let state = self.state();
        (state.intermediate.not_before, state.intermediate.not_after)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every step leaves a whole state behind, also that of somebody who panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> OffsetDateTime {
        whole_seconds(self.clock.now())
    }

    /// The time, if it can be believed.
    fn time(&self, state: &State) -> Result<OffsetDateTime, CertsError> {
        let now = self.now();
        clock::check(now, state.highest)?;
        Ok(now)
    }

    /// Takes over what another process changed, then does what is due.
    fn prepare(&self, state: &mut State, locked: &Locked<'_>, now: OffsetDateTime) -> Result<(), CertsError> {
        self.take_over(state, locked)?;
        clock::check(now, state.highest)?;
        match state.maintain(&self.settings, &self.store, locked, now) {
            // A full disk must not stop rotation while the old intermediate is good for another leaf.
            Err(error) if error.is_of_the_disk() && state.outlasts(self.settings.leaf_ttl, now) => {
                let until = state.intermediate.not_after;
                tracing::warn!(%error, %until, "the intermediate cannot be renewed; the old one still issues");
            }
            done => done?,
        }
        state.see(now);
        state.rebuild(now)
    }

    fn take_over(&self, state: &mut State, locked: &Locked<'_>) -> Result<(), CertsError> {
        if state.is_outdated(&self.store) {
            state.replace(Disk::read(&self.settings, &self.store, locked)?, &self.store)?;
        }
        Ok(())
    }

    /// What peers would refuse is not handed out.
    fn check_chain(&self, state: &State, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<(), CertsError> {
        let trust = Trust::from_roots(&state.roots.trusted())?;
        tls::check_chain(chain, &trust, self.trust_domain(), now)
    }
}

impl Settings {
    fn new(options: &AuthorityOptions) -> Result<Self, CertsError> {
        let trust_domain = SpiffeId::of_trust_domain(&options.trust_domain)?;
        let leaf_ttl = options.leaf_ttl;
        if !(MIN_LEAF_TTL..=MAX_LEAF_TTL).contains(&leaf_ttl) {
            return Err(CertsError::LeafTtl {
                asked_s: leaf_ttl.as_secs(),
                min_s: MIN_LEAF_TTL.as_secs(),
                max_s: MAX_LEAF_TTL.as_secs(),
            });
        }
        Ok(Self {
            gateway_id: SpiffeId::gateway_below(&options.trust_domain, &options.prefix)?,
            prefix: options.prefix.clone(),
            leaf_ttl: Duration::try_from(leaf_ttl).unwrap_or(Duration::MAX),
            root: options.root,
            trust_domain,
        })
    }

    /// Ten lives of a leaf: 30 days, where a leaf lives for 72 h.
    fn intermediate_life(&self) -> Duration {
        self.leaf_ttl.saturating_mul(LEAVES_PER_INTERMEDIATE).min(INTERMEDIATE_LIFE)
    }

    fn check_trust_domain(&self, signer: &Signer, dir: &Path) -> Result<(), CertsError> {
        if signer.trust_domain == self.trust_domain {
            return Ok(());
        }
        Err(CertsError::TrustDomain {
            path: PathBuf::from(dir),
            found: signer.trust_domain.trust_domain().to_owned(),
            expected: self.trust_domain.trust_domain().to_owned(),
        })
    }
}

/// Certificates count in whole seconds; rounding once, here, keeps every comparison consistent.
fn whole_seconds(now: OffsetDateTime) -> OffsetDateTime {
    now.replace_nanosecond(0).unwrap_or(now)
}

#[cfg(test)]
mod tests;
