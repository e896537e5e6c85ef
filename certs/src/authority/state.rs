//! What an open authority holds in memory, and what it does to it when something is due.

use std::sync::Arc;

use time::{Duration, OffsetDateTime};

use super::{
    MARK_EVERY, RootPlace, Settings, TRY_AGAIN_AFTER,
    crls::SignedCrl,
    disk::{CLOCK_FILE, Disk, INTERMEDIATE_FILE, LEDGER_FILE, NEXT_ROOT_FILE, ROOT_FILE, Roots, WATCHED, retired_file},
    offline,
};
use crate::{
    CertsError, Trust, clock,
    ledger::{Ledger, Switch},
    rfc3339,
    rotate::RootSwitch,
    signer::Signer,
    store::{Locked, Stamp, Store},
};

/// A root is replaced when so much of its life is over, out of a hundred.
const ROOT_SWITCH_PERCENT: i32 = 80;
/// For so long after a renewal workloads get leaves of the intermediate before: a gateway that runs elsewhere on this folder
/// refuses a leaf of an intermediate whose revocation list it does not have yet. It looks every second.
const PUBLISHED_WITHIN: Duration = Duration::MINUTE;

#[derive(Debug)]
pub(super) struct State {
    pub(super) roots: Roots,
    pub(super) intermediate: Arc<Signer>,
    /// Those that issued before, while a leaf of theirs may live.
    pub(super) retired: Vec<Arc<Signer>>,
    pub(super) ledger: Ledger,
    pub(super) trust: Arc<Trust>,
    /// What the last refresh told of.
    told: Arc<Trust>,
    /// The highest time seen.
    pub(super) highest: Option<OffsetDateTime>,
    /// The highest time that is on disk.
    marked: Option<OffsetDateTime>,
    /// Signed by those above, the present one's first.
    pub(super) crls: Vec<SignedCrl>,
    stamps: [Stamp; WATCHED.len()],
    try_again: Option<OffsetDateTime>,
    /// Root off line: the request for the next intermediate lies there.
    requested: bool,
}

impl State {
    pub(super) fn open(
        settings: &Settings,
        store: &Store,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<Self, CertsError> {
        let disk = Disk::read(settings, store, locked)?;
        let highest = highest_of(&disk);
        clock::check(now, highest)?;
        let Disk { roots, intermediate, retired, ledger, marked } = disk;
        let roots = match (roots, settings.root) {
            (Some(roots), _) => roots,
            (None, RootPlace::Here) => create_root(settings, locked, now)?,
            (None, RootPlace::Offline) => return Err(offline::request(settings, store, locked)),
        };
        let ledger = match ledger {
            Some(ledger) => ledger,
            None => {
                let ledger = Ledger::default();
                locked.write(LEDGER_FILE, &ledger.to_json()?)?;
                ledger
            }
        };
        let intermediate = match (intermediate, roots.issuing(&ledger, now)) {
            (Some(intermediate), _) => intermediate,
            (None, Some(root)) => create_intermediate(root, settings, locked, now)?,
            (None, None) => return Err(offline::request(settings, store, locked)),
        };
        let trust = Arc::new(Trust::from_roots(&roots.trusted())?);
        let mut state = Self {
            told: Arc::clone(&trust),
            trust,
            roots,
            intermediate: Arc::new(intermediate),
            retired: retired.into_iter().map(Arc::new).collect(),
            ledger,
            highest,
            marked,
            crls: Vec::new(),
            stamps: stamps(store),
            try_again: None,
            requested: false,
        };
        state.check_can_open(settings, store, locked, now)?;
        state.maintain(settings, store, locked, now)?;
        state.see(now);
        state.mark(locked, now)?;
        state.stamps = stamps(store);
        state.rebuild(now)?;
        state.told = Arc::clone(&state.trust);
        Ok(state)
    }

    /// Forgets the highest time seen, and retires an intermediate that begins in the future.
    pub(super) fn reset_clock(
        settings: &Settings,
        store: &Store,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        locked.remove(CLOCK_FILE)?;
        let Disk { roots, intermediate, ledger, .. } = Disk::read(settings, store, locked)?;
        let (Some(roots), Some(mut ledger)) = (roots, ledger) else { return Ok(()) };
        let highest = ledger.highest.take();
        if let Some(ahead) = intermediate.filter(|signer| signer.not_before > now) {
            let Some(root) = roots.issuing(&ledger, now) else {
                return Err(offline::request(settings, store, locked));
            };
            check_root(root, now)?;
            locked.write(&retired_file(&ahead), ahead.to_pem().as_bytes())?;
            create_intermediate(root, settings, locked, now)?;
            // Its leaves are dated by the clock that ran ahead: until they are over it has to sign their list.
            let last = highest.unwrap_or_else(|| ahead.not_after.unix_timestamp());
            ledger.retired.insert(ahead.name(), last);
        }
        locked.write(LEDGER_FILE, &ledger.to_json()?)
    }

    /// Takes over what another process wrote.
    pub(super) fn replace(&mut self, disk: Disk, store: &Store) -> Result<(), CertsError> {
        let replaced = || CertsError::Replaced { path: store.dir().to_owned() };
        let highest = highest_of(&disk);
        let (Some(roots), Some(intermediate), Some(ledger)) = (disk.roots, disk.intermediate, disk.ledger) else {
            return Err(replaced());
        };
        // An intermediate below another root than those known would lock out everyone who pinned ours.
        if let (Roots::Here { current, .. }, Roots::Here { .. }) = (&roots, &self.roots)
            && !self.roots.trusted().contains(&current.certificate)
        {
            return Err(replaced());
        }
        self.roots = roots;
        self.intermediate = Arc::new(intermediate);
        self.retired = disk.retired.into_iter().map(Arc::new).collect();
        self.ledger = ledger;
        self.marked = disk.marked;
        self.highest = highest;
        self.requested = false;
        self.stamps = stamps(store);
        Ok(())
    }

    /// Whether another process replaced a file.
    pub(super) fn is_outdated(&self, store: &Store) -> bool {
        self.stamps != stamps(store)
    }

    /// Whether [`State::maintain`] has anything to do.
    pub(super) fn is_due(&self, settings: &Settings, now: OffsetDateTime) -> bool {
        let next_step = match self.roots.phase(&self.ledger, now) {
            Some(RootSwitch::DropOld) => self.can_drop_old_root(now),
            Some(_) => false,
            None => self.should_switch(now),
        };
        let issuing = self.roots.issuing(&self.ledger, now);
        let foreign = issuing.is_some_and(|root| !root.issued(&self.intermediate));
        let old = self.intermediate.is_due(now) && !self.requested;
        next_step || foreign || old || self.retired.iter().any(|one| self.is_over(one, settings, now))
    }

    /// Renews the intermediate, moves a root switch forward, and removes keys that are not needed any more.
    pub(super) fn maintain(
        &mut self,
        settings: &Settings,
        store: &Store,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        let before = self.ledger.clone();
        self.maintain_parts(settings, store, locked, now, &before)?;
        // Not after a failure: what was half done is read again then.
        self.stamps = stamps(store);
        Ok(())
    }

    fn maintain_parts(
        &mut self,
        settings: &Settings,
        store: &Store,
        locked: &Locked<'_>,
        now: OffsetDateTime,
        before: &Ledger,
    ) -> Result<(), CertsError> {
        if self.roots.phase(&self.ledger, now).is_none() && self.should_switch(now) {
            self.begin_switch(settings, locked, now)?;
        }
        self.renew_intermediate(settings, store, locked, now)?;
        let is_last = self.roots.phase(&self.ledger, now) == Some(RootSwitch::DropOld);
        if is_last && self.can_drop_old_root(now) || self.is_switch_done() {
            self.drop_old_root(locked)?;
        }
        self.drop_retired(settings, locked, now)?;
        self.ledger.forget(now);
        self.ledger.count_bundle(&self.roots.trusted(), now);
        if self.ledger != *before {
            self.save(locked, now)?;
        }
        Ok(())
    }

    fn renew_intermediate(
        &mut self,
        settings: &Settings,
        store: &Store,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        check_begun(&self.intermediate, now)?;
        let Some(root) = self.roots.issuing(&self.ledger, now) else {
            if self.intermediate.is_due(now) {
                offline::write_request(settings, store, locked)?;
                self.requested = true;
            }
            return Ok(());
        };
        check_root(root, now)?;
        let good = root.issued(&self.intermediate)
            && self.intermediate.prefix == settings.prefix
            && !self.intermediate.is_due(now);
        if good {
            return Ok(());
        }
        let old = Arc::clone(&self.intermediate);
        // First the old one under its new name: at no moment may the only copy of a key be gone.
        locked.write(&retired_file(&old), old.to_pem().as_bytes())?;
        let fresh = create_intermediate(root, settings, locked, now)?;
        self.ledger.retired.insert(old.name(), now.unix_timestamp());
        self.retired.push(old);
        self.intermediate = Arc::new(fresh);
        Ok(())
    }

    fn drop_retired(
        &mut self,
        settings: &Settings,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        for signer in &self.retired {
            // A crash may have come between its renewal and the ledger.
            self.ledger.retired.entry(signer.name()).or_insert(now.unix_timestamp());
        }
        let over: Vec<_> = self.retired.iter().filter(|one| self.is_over(one, settings, now)).cloned().collect();
        for signer in over {
            locked.remove(&retired_file(&signer))?;
            self.retired.retain(|one| one.key_id != signer.key_id);
        }
        let names: Vec<_> = self.retired.iter().map(|signer| signer.name()).collect();
        self.ledger.retired.retain(|name, _| names.contains(name));
        Ok(())
    }

    /// Whether no leaf of a retired intermediate can be valid any more.
    fn is_over(&self, signer: &Signer, settings: &Settings, now: OffsetDateTime) -> bool {
        if now > signer.not_after {
            return true;
        }
        let name = signer.name();
        let since = self.ledger.retired.get(&name).copied().unwrap_or(now.unix_timestamp());
        let last = OffsetDateTime::from_unix_timestamp(since).unwrap_or(now).saturating_add(settings.leaf_ttl);
        now > last && !self.ledger.in_force(now).any(|leaf| leaf.issuer == name)
    }

    fn should_switch(&self, now: OffsetDateTime) -> bool {
        match &self.roots {
            Roots::Here { current, next: None } => {
                current.has_passed(ROOT_SWITCH_PERCENT, now) && now <= current.not_after
            }
            _ => false,
        }
    }

    pub(super) fn begin_switch(
        &mut self,
        settings: &Settings,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        let Roots::Here { next, .. } = &mut self.roots else {
            return Err(CertsError::NoRootSwitch(
                "the root is kept off line: install both roots with a new intermediate",
            ));
        };
        if next.is_some() {
            return Err(CertsError::NoRootSwitch("one is under way"));
        }
        let fresh = Signer::create_root(&settings.trust_domain, now)?;
        // Unknown to anybody until the ledger says that there is a switch.
        locked.write(NEXT_ROOT_FILE, fresh.to_pem().as_bytes())?;
        let switch = Switch { began: now.unix_timestamp(), leaf_ttl_s: settings.leaf_ttl.whole_seconds() };
        let mut ledger = self.ledger.clone();
        ledger.switch = Some(switch);
        *next = Some(Box::new(fresh));
        ledger.count_bundle(&self.roots.trusted(), now);
        let saved = ledger.to_json().and_then(|text| locked.write(LEDGER_FILE, &text));
        if let (Err(_), Roots::Here { next, .. }) = (&saved, &mut self.roots) {
            *next = None;
        }
        saved?;
        self.ledger = ledger;
        self.stamps = locked.stamps(WATCHED);
        tracing::info!("a switch to a new root begins");
        Ok(())
    }

    /// Whether nothing below the old root is valid any more: leaves that were issued right after the renewal of an intermediate
    /// ([`PUBLISHED_WITHIN`]) live a moment longer than those before it.
    fn can_drop_old_root(&self, now: OffsetDateTime) -> bool {
        let Roots::Here { current, .. } = &self.roots else { return false };
        let below = |name: &str| self.retired.iter().any(|one| current.issued(one) && one.name() == name);
        now > current.not_after || !self.ledger.in_force(now).any(|leaf| below(&leaf.issuer))
    }

    /// A crash came between the new root's taking the place and the ledger.
    fn is_switch_done(&self) -> bool {
        self.ledger.switch.is_some() && matches!(self.roots, Roots::Here { next: None, .. })
    }

    fn drop_old_root(&mut self, locked: &Locked<'_>) -> Result<(), CertsError> {
        if let Roots::Here { current, next } = &mut self.roots {
            if next.is_some() {
                locked.rename(NEXT_ROOT_FILE, ROOT_FILE)?;
            }
            if let Some(fresh) = next.take() {
                *current = fresh;
                tracing::info!("the switch to a new root is complete");
            }
        }
        self.ledger.switch = None;
        Ok(())
    }

    /// Changes the ledger, on disk and then here.
    pub(super) fn change<T>(
        &mut self,
        locked: &Locked<'_>,
        now: OffsetDateTime,
        change: impl FnOnce(&mut Ledger) -> Result<T, CertsError>,
    ) -> Result<T, CertsError> {
        let mut ledger = self.ledger.clone();
        let outcome = change(&mut ledger)?;
        let before = std::mem::replace(&mut self.ledger, ledger);
        if let Err(error) = self.save(locked, now) {
            self.ledger = before;
            return Err(error);
        }
        Ok(outcome)
    }

    fn save(&mut self, locked: &Locked<'_>, now: OffsetDateTime) -> Result<(), CertsError> {
        self.see(now);
        self.ledger.highest = self.highest.map(OffsetDateTime::unix_timestamp);
        locked.write(LEDGER_FILE, &self.ledger.to_json()?)?;
        self.stamps = locked.stamps(WATCHED);
        Ok(())
    }

    /// Notes a time that was believed.
    pub(super) fn see(&mut self, now: OffsetDateTime) {
        self.highest = Some(self.not_before_highest(now));
    }

    pub(super) fn not_before_highest(&self, now: OffsetDateTime) -> OffsetDateTime {
        self.highest.map_or(now, |highest| highest.max(now))
    }

    pub(super) fn is_mark_due(&self, now: OffsetDateTime) -> bool {
        self.marked.is_none_or(|marked| now >= marked.saturating_add(MARK_EVERY))
    }

    /// Writes the highest time seen, at most once a minute.
    pub(super) fn mark(&mut self, locked: &Locked<'_>, now: OffsetDateTime) -> Result<(), CertsError> {
        if !self.is_mark_due(now) {
            return Ok(());
        }
        let highest = self.not_before_highest(now);
        locked.write(CLOCK_FILE, format!("{}\n", highest.unix_timestamp()).as_bytes())?;
        (self.highest, self.marked) = (Some(highest), Some(highest));
        self.stamps = locked.stamps(WATCHED);
        Ok(())
    }

    /// Whether there is another trust than the one told of, which is told of by that.
    pub(super) fn is_news(&mut self) -> bool {
        let former = std::mem::replace(&mut self.told, Arc::clone(&self.trust));
        !Arc::ptr_eq(&former, &self.trust)
    }

    pub(super) fn pause(&mut self, failed: Option<OffsetDateTime>) {
        self.try_again = failed.map(|now| now.saturating_add(TRY_AGAIN_AFTER));
    }

    /// Whether it is too soon after a failure. A clock set back must not make that last.
    pub(super) fn is_pausing(&self, now: OffsetDateTime) -> bool {
        self.try_again.is_some_and(|again| now < again && now >= again.saturating_sub(TRY_AGAIN_AFTER))
    }

    /// Whether the intermediate is good for another whole leaf.
    pub(super) fn outlasts(&self, leaf_ttl: Duration, now: OffsetDateTime) -> bool {
        self.intermediate.not_before <= now && self.intermediate.not_after >= now.saturating_add(leaf_ttl)
    }

    /// Whose leaves workloads get: the present intermediate's, or for [`PUBLISHED_WITHIN`] those of the one before.
    pub(super) fn issuer_of_workloads(&self, settings: &Settings, now: OffsetDateTime) -> &Signer {
        let within = PUBLISHED_WITHIN.min(settings.leaf_ttl / 2);
        let is_fit = |one: &Signer| {
            let since = self.ledger.retired.get(&one.name()).copied();
            let since = since.and_then(|since| OffsetDateTime::from_unix_timestamp(since).ok());
            since.is_some_and(|since| now >= since && now < since.saturating_add(within))
                && one.not_before <= self.intermediate.not_before
                && one.not_after >= now.saturating_add(settings.leaf_ttl)
                && one.prefix == settings.prefix
                && self.roots.issued(one)
        };
        let before = self.retired.iter().filter(|one| is_fit(one)).max_by_key(|one| one.not_before);
        before.unwrap_or(&self.intermediate)
    }

    pub(super) fn check_can_issue(&self, now: OffsetDateTime) -> Result<(), CertsError> {
        check_begun(&self.intermediate, now)?;
        if let Some(root) = self.roots.issuing(&self.ledger, now) {
            check_root(root, now)?;
        }
        if now >= self.intermediate.not_after {
            return Err(CertsError::IntermediateExpired { not_after: self.intermediate.not_after });
        }
        Ok(())
    }

    /// What a person has to change, since nothing here can.
    fn check_can_open(
        &self,
        settings: &Settings,
        store: &Store,
        locked: &Locked<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CertsError> {
        settings.check_trust_domain(&self.intermediate, store.dir())?;
        let unfit = self.intermediate.prefix != settings.prefix || now > self.intermediate.not_after;
        if settings.root == RootPlace::Offline && unfit {
            return Err(offline::request(settings, store, locked));
        }
        Ok(())
    }
}

fn highest_of(disk: &Disk) -> Option<OffsetDateTime> {
    let seconds = disk.ledger.as_ref().and_then(|ledger| ledger.highest);
    let of_ledger = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    disk.marked.max(of_ledger)
}

fn stamps(store: &Store) -> [Stamp; WATCHED.len()] {
    WATCHED.map(|name| store.stamp(name))
}

fn create_root(settings: &Settings, locked: &Locked<'_>, now: OffsetDateTime) -> Result<Roots, CertsError> {
    let root = Signer::create_root(&settings.trust_domain, now)?;
    locked.write(ROOT_FILE, root.to_pem().as_bytes())?;
    let trust_domain = settings.trust_domain.trust_domain();
    tracing::info!(trust_domain, not_after = rfc3339(root.not_after), "a new authority begins");
    Ok(Roots::Here { current: Box::new(root), next: None })
}

fn create_intermediate(
    root: &Signer,
    settings: &Settings,
    locked: &Locked<'_>,
    now: OffsetDateTime,
) -> Result<Signer, CertsError> {
    check_root(root, now)?;
    let fresh = root.create_intermediate(&settings.prefix, settings.intermediate_life(), now)?;
    locked.write(INTERMEDIATE_FILE, fresh.to_pem().as_bytes())?;
    tracing::info!(not_after = rfc3339(fresh.not_after), "a new intermediate issues from now on");
    Ok(fresh)
}

pub(super) fn check_root(root: &Signer, now: OffsetDateTime) -> Result<(), CertsError> {
    if now < root.not_before {
        return Err(CertsError::RootAhead { now, not_before: root.not_before });
    }
    if now > root.not_after {
        return Err(CertsError::RootExpired { not_after: root.not_after });
    }
    Ok(())
}

/// Leaves dated before their issuer show a clock that was set back: with it, expired certificates would come to life
/// again.
fn check_begun(intermediate: &Signer, now: OffsetDateTime) -> Result<(), CertsError> {
    if now < intermediate.not_before {
        return Err(CertsError::ClockBehind { now, not_before: intermediate.not_before });
    }
    Ok(())
}
