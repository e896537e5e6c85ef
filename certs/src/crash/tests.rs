use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration as StdDuration,
};

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime, macros::datetime};

use super::DIE_AT;
use crate::{
    Authority, AuthorityOptions, CertsError, Csr, IssuedLeaf, JoinToken, LeafRequest, Reason, Role, RootPlace,
    SpiffeId, Trust,
    authority::{create_root, sign_intermediate},
    clock::fake::FakeClock,
    tls, verify,
};

const SCENARIO: &str = "POSTERN_CERTS_SCENARIO";
const FOLDER: &str = "POSTERN_CERTS_FOLDER";
const START: OffsetDateTime = datetime!(2026-11-01 08:00 UTC);
const DOMAIN: &str = "branch-17.example.org";
/// No scenario has more moments than this; one that had would never end.
const MAX_STEPS: u32 = 200;

/// What a child works on: the authority, and beside it what a user would have in hand.
struct Place {
    folder: PathBuf,
    clock: FakeClock,
}

impl Place {
    fn at(folder: &Path, now: OffsetDateTime) -> Self {
        Self { folder: folder.to_owned(), clock: FakeClock::at(now) }
    }

    fn authority(&self) -> PathBuf {
        self.folder.join("authority")
    }

    fn options(&self) -> AuthorityOptions {
        let clock = Arc::new(self.clock.clone());
        AuthorityOptions { clock, ..AuthorityOptions::new(DOMAIN, StdDuration::from_secs(72 * 3600)) }
    }

    fn open(&self) -> Authority {
        Authority::open_or_create(&self.authority(), self.options()).unwrap()
    }

    fn keep(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.join(name), bytes).unwrap();
    }

    fn kept(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.folder.join(name)).ok()
    }
}

fn ada() -> SpiffeId {
    format!("spiffe://{DOMAIN}/clerk/ada").parse().unwrap()
}

fn workload() -> LeafRequest {
    LeafRequest { id: ada(), role: Role::Workload }
}

fn judge(authority: &Authority, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Option<Reason> {
    tls::check_chain(chain, &authority.trust(), DOMAIN, now).err().map(|error| error.reason().unwrap())
}

/// What a scenario prepares, does and promises.
struct Scenario {
    name: &'static str,
    prepare: fn(&Place),
    act: fn(&Place),
    check: fn(&Place),
}

const SCENARIOS: [Scenario; 9] = [
    Scenario { name: "first-start", prepare: |_| {}, act: first_start, check: check_first_start },
    Scenario { name: "renewal", prepare: prepare_leaf, act: renew, check: check_renewal },
    Scenario { name: "enrolment", prepare: prepare_leaf, act: enrol, check: check_enrolment },
    Scenario { name: "revocation", prepare: prepare_leaf, act: revoke, check: check_revocation },
    Scenario { name: "root-switch", prepare: prepare_leaf, act: switch_root, check: check_root_switch },
    Scenario { name: "install", prepare: prepare_offline, act: install, check: check_install },
    Scenario { name: "reset-clock", prepare: prepare_future, act: reset_clock, check: check_reset_clock },
    Scenario { name: "restore", prepare: prepare_backup, act: restore, check: check_restore },
    Scenario { name: "workstation", prepare: prepare_workstation, act: replace_leaf, check: check_workstation },
];

fn first_start(place: &Place) {
    let authority = place.open();
    place.keep("bundle", &authority.trust_bundle()[0]);
}

fn check_first_start(place: &Place) {
    let root = fs::read(place.authority().join("root.pem")).ok();
    let authority = place.open();
    authority.issue(workload()).unwrap();
    if let Some(root) = root {
        assert_eq!(fs::read(place.authority().join("root.pem")).unwrap(), root, "a root that was there stays");
    }
    if let Some(bundle) = place.kept("bundle") {
        assert_eq!(authority.trust_bundle()[0].to_vec(), bundle);
    }
    assert_eq!(fs::metadata(place.authority()).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A leaf issued shortly before the intermediate is due.
fn prepare_leaf(place: &Place) {
    let authority = place.open();
    place.clock.advance(Duration::days(14));
    let leaf = authority.issue(workload()).unwrap();
    place.keep("leaf", &leaf.chain[0]);
    place.keep("intermediate", &leaf.chain[1]);
    place.keep("bundle", &authority.trust_bundle()[0]);
}

fn kept_chain(place: &Place) -> Vec<CertificateDer<'static>> {
    ["leaf", "intermediate"].map(|name| place.kept(name).unwrap().into()).to_vec()
}

fn renew(place: &Place) {
    place.clock.advance(Duration::days(15));
    place.open().issue(workload()).unwrap();
}

fn check_renewal(place: &Place) {
    place.clock.advance(Duration::days(15));
    let now = START + Duration::days(15);
    let authority = place.open();
    assert_eq!(authority.trust_bundle()[0].to_vec(), place.kept("bundle").unwrap());
    assert_eq!(judge(&authority, &kept_chain(place), now), None, "leaves of the old one are good");
    authority.revoke_id(&ada()).unwrap();
    assert_eq!(judge(&authority, &kept_chain(place), now), Some(Reason::Revoked), "and can be revoked");
    authority.refresh().unwrap();
    place.clock.advance(Duration::MINUTE);
    let fresh = authority.issue(workload()).unwrap();
    assert_ne!(fresh.chain[1], kept_chain(place)[1]);
    assert_eq!(judge(&authority, &fresh.chain, now + Duration::MINUTE), None);
}

fn enrol(place: &Place) {
    place.clock.advance(Duration::days(14));
    let authority = place.open();
    let token = authority.invite(&ada(), StdDuration::from_secs(600)).unwrap();
    place.keep("token", token.to_string().as_bytes());
    let leaf = authority.enrol(token.secret(), &Csr::generate(&ada()).unwrap().der).unwrap();
    place.keep("enrolled", &leaf.chain[0]);
}

fn check_enrolment(place: &Place) {
    place.clock.advance(Duration::days(14));
    let authority = place.open();
    assert_eq!(judge(&authority, &kept_chain(place), place_now()), None);
    let Some(token) = place.kept("token") else { return };
    let token = JoinToken::parse(std::str::from_utf8(&token).unwrap()).unwrap();
    let mut handed_out = usize::from(place.kept("enrolled").is_some());
    for _ in 0..2 {
        match authority.enrol(token.secret(), &Csr::generate(&ada()).unwrap().der) {
            Ok(_) => handed_out += 1,
            Err(CertsError::InviteRefused) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(handed_out <= 1, "an invitation was used twice");
    if let Some(enrolled) = place.kept("enrolled") {
        let serial = verify::peer(&enrolled.into()).unwrap().serial;
        assert_eq!(authority.revoke_serial(&serial).unwrap(), [serial], "what was handed out is registered");
    }
}

fn place_now() -> OffsetDateTime {
    START + Duration::days(14)
}

fn revoke(place: &Place) {
    place.clock.advance(Duration::days(14));
    place.open().revoke_id(&ada()).unwrap();
    place.keep("revoked", b"");
}

fn check_revocation(place: &Place) {
    place.clock.advance(Duration::days(14));
    let authority = place.open();
    if place.kept("revoked").is_some() {
        assert_eq!(judge(&authority, &kept_chain(place), place_now()), Some(Reason::Revoked), "revoked is revoked");
    }
    authority.revoke_id(&ada()).unwrap();
    assert_eq!(judge(&authority, &kept_chain(place), place_now()), Some(Reason::Revoked));
}

fn switch_root(place: &Place) {
    place.clock.advance(Duration::days(14));
    let authority = place.open();
    authority.begin_root_switch().unwrap();
    for step in 0..4 {
        let bundle: Vec<u8> = crate::pem::certificates(&authority.trust_bundle()).into_bytes();
        place.keep("told", &bundle);
        place.keep("step", &[step]);
        place.clock.advance(Duration::hours(36 + i64::from(step)));
        authority.refresh().unwrap();
    }
    assert_eq!(authority.trust_bundle().len(), 1);
}

fn check_root_switch(place: &Place) {
    let hours = place.kept("step").map_or(0, |step| (0..=step[0]).map(|step| 36 + i64::from(step)).sum());
    place.clock.advance(Duration::days(14) + Duration::hours(hours));
    let authority = place.open();
    let leaf = authority.issue(workload()).unwrap();
    let now = START + Duration::days(14) + Duration::hours(hours);
    assert_eq!(judge(&authority, &leaf.chain, now), None);
    if let Some(told) = place.kept("told") {
        use rustls::pki_types::pem::PemObject;
        let told: Vec<_> = CertificateDer::pem_slice_iter(&told).map(Result::unwrap).collect();
        let trust = Trust::from_roots(&told).unwrap();
        let verdict = tls::check_chain(&leaf.chain, &trust, DOMAIN, now);
        assert!(verdict.is_ok(), "whoever was told last is locked out: {verdict:?}");
    }
}

fn offline(place: &Place) -> AuthorityOptions {
    AuthorityOptions { root: RootPlace::Offline, ..place.options() }
}

fn prepare_offline(place: &Place) {
    let vault = place.folder.join("vault");
    create_root(&vault, DOMAIN, START).unwrap();
    let error = Authority::open_or_create(&place.authority(), offline(place)).unwrap_err();
    assert!(matches!(error, CertsError::AwaitingIntermediate { .. }));
    let csr = fs::read(place.authority().join("intermediate.csr.pem")).unwrap();
    let root = fs::read(vault.join("root.pem")).unwrap();
    let answer = sign_intermediate(&root, &csr, &crate::PathPrefix::whole_domain(), 30, START).unwrap();
    place.keep("answer", answer.as_bytes());
}

fn install(place: &Place) {
    let roots = fs::read(place.folder.join("vault/ca.pem")).unwrap();
    Authority::install(&place.authority(), offline(place), &place.kept("answer").unwrap(), &roots).unwrap();
}

fn check_install(place: &Place) {
    match Authority::open_or_create(&place.authority(), offline(place)) {
        Ok(_) => {}
        // Not yet, and then the same answer still fits.
        Err(CertsError::AwaitingIntermediate { .. }) => install(place),
        Err(error) => panic!("{error}"),
    }
    let authority = Authority::open_or_create(&place.authority(), offline(place)).unwrap();
    authority.issue(workload()).unwrap();
}

fn prepare_future(place: &Place) {
    let authority = place.open();
    place.clock.advance(Duration::days(100));
    authority.issue(workload()).unwrap();
    place.keep("bundle", &authority.trust_bundle()[0]);
}

fn reset_clock(place: &Place) {
    Authority::reset_clock(&place.authority(), place.options()).unwrap();
}

fn check_reset_clock(place: &Place) {
    reset_clock(place);
    let authority = place.open();
    authority.issue(workload()).unwrap();
    assert_eq!(authority.trust_bundle()[0].to_vec(), place.kept("bundle").unwrap());
}

fn prepare_backup(place: &Place) {
    let authority = place.open();
    place.keep("bundle", &authority.trust_bundle()[0]);
    place.keep("backup", &Authority::backup(&place.authority(), "correct horse battery").unwrap());
    fs::remove_dir_all(place.authority()).unwrap();
}

fn restore(place: &Place) {
    Authority::restore(&place.authority(), &place.kept("backup").unwrap(), "correct horse battery").unwrap();
}

fn check_restore(place: &Place) {
    if !place.authority().exists() {
        restore(place);
    }
    assert_eq!(place.open().trust_bundle()[0].to_vec(), place.kept("bundle").unwrap(), "all of it, or nothing");
}

/// The folder of a workstation, with the leaf that it has, and the one that it is about to write.
fn prepare_workstation(place: &Place) {
    let authority = place.open();
    let (former, next) = (authority.issue(workload()).unwrap(), authority.issue(workload()).unwrap());
    former.write(&place.folder.join("ws"), &authority.trust_bundle()).unwrap();
    next.write(&place.folder.join("next"), &authority.trust_bundle()).unwrap();
}

fn replace_leaf(place: &Place) {
    let (next, trust) = IssuedLeaf::read(&place.folder.join("next"), START).unwrap();
    next.write(&place.folder.join("ws"), &trust.roots()).unwrap();
    place.keep("written", b"");
}

fn check_workstation(place: &Place) {
    let dir = place.folder.join("ws");
    let (leaf, _) = IssuedLeaf::read(&dir, START).expect("neither the former leaf nor the next one can be used");
    let (next, _) = IssuedLeaf::read(&place.folder.join("next"), START).unwrap();
    assert!(place.kept("written").is_none() || leaf.chain == next.chain);
    let names: std::collections::BTreeSet<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().eq(["ca.pem", "cert.pem", "key.pem"]), "{names:?}");
}

/// Does one scenario in a process of its own, which dies at a given step. Nothing, when run as a test.
#[test]
fn child() {
    let (Ok(name), Ok(folder)) = (std::env::var(SCENARIO), std::env::var(FOLDER)) else { return };
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
    (scenario.act)(&Place::at(Path::new(&folder), START));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

fn die_everywhere(name: &str) {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
    let prepared = crate::crash::scratch();
    (scenario.prepare)(&Place::at(prepared.path(), START));
    for step in 1..=MAX_STEPS {
        let scratch = crate::crash::scratch();
        copy(prepared.path(), scratch.path());
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::tests::child", "--test-threads=1"])
            .env(SCENARIO, name)
            .env(FOLDER, scratch.path())
            .env(DIE_AT, step.to_string())
            .output()
            .unwrap();
        let status = output.status;
        assert!(status.success() || status.signal() == Some(9), "{name}, step {step}: {output:?}");
        (scenario.check)(&Place::at(scratch.path(), START));
        if status.success() {
            assert!(step > 5, "{name} has {step} steps only: does it die at all?");
            return;
        }
    }
    panic!("{name} has more than {MAX_STEPS} steps");
}

#[test]
fn dies_everywhere_in_its_first_start() {
    die_everywhere("first-start");
}

#[test]
fn dies_everywhere_while_it_renews_its_intermediate() {
    die_everywhere("renewal");
}

#[test]
fn dies_everywhere_between_invitation_and_leaf() {
    die_everywhere("enrolment");
}

#[test]
fn dies_everywhere_while_it_revokes() {
    die_everywhere("revocation");
}

#[test]
fn dies_everywhere_in_a_root_switch() {
    die_everywhere("root-switch");
}

#[test]
fn dies_everywhere_while_an_intermediate_is_installed() {
    die_everywhere("install");
}

#[test]
fn dies_everywhere_while_its_clock_is_reset() {
    die_everywhere("reset-clock");
}

#[test]
fn dies_everywhere_while_a_workstation_replaces_its_leaf() {
    die_everywhere("workstation");
}

#[test]
fn dies_everywhere_while_a_backup_is_restored() {
    die_everywhere("restore");
}
