use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, thread};

use rustls::pki_types::pem::PemObject;
use time::macros::datetime;

use super::{
    disk::{CLOCK_FILE, INTERMEDIATE_FILE, LEDGER_FILE, ROOT_FILE},
    *,
};
use crate::{
    Role,
    clock::fake::FakeClock,
    signer::{INTERMEDIATE_LIFE, ROOT_LIFE, new_key},
};

const START: OffsetDateTime = datetime!(2026-11-01 08:00 UTC);
const TRUST_DOMAIN: &str = "branch-17.example.org";

struct Scratch {
    _folder: tempfile::TempDir,
    dir: PathBuf,
    clock: FakeClock,
}

impl Scratch {
    fn new() -> Self {
        let folder = crate::crash::scratch();
        let dir = folder.path().join("state/authority");
        Self { _folder: folder, dir, clock: FakeClock::at(START) }
    }

    fn open(&self) -> Result<Authority, CertsError> {
        self.open_for(TRUST_DOMAIN)
    }

    fn open_for(&self, trust_domain: &str) -> Result<Authority, CertsError> {
        let options = AuthorityOptions { trust_domain: trust_domain.into(), ..self.options() };
        Authority::open_or_create(&self.dir, options)
    }

    fn options(&self) -> AuthorityOptions {
        let clock = Arc::new(self.clock.clone());
        AuthorityOptions { clock, ..AuthorityOptions::new(TRUST_DOMAIN, StdDuration::from_secs(72 * 3600)) }
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.join(name)).unwrap()
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn gateway() -> LeafRequest {
    let id = format!("spiffe://{TRUST_DOMAIN}/gateway").parse().unwrap();
    LeafRequest { id, role: Role::Gateway { names: Vec::new() } }
}

fn ada() -> LeafRequest {
    LeafRequest { id: format!("spiffe://{TRUST_DOMAIN}/clerk/ada").parse().unwrap(), role: Role::Workload }
}

#[test]
fn begins_with_private_files_and_a_chain_that_holds() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    assert_eq!(authority.gateway_id().to_string(), "spiffe://branch-17.example.org/gateway");
    assert_eq!(authority.trust_domain(), TRUST_DOMAIN);
    assert_eq!(authority.root_validity(), (START - Duration::minutes(5), START + ROOT_LIFE));
    assert_eq!(authority.intermediate_validity(), (START - Duration::minutes(5), START + INTERMEDIATE_LIFE));
    assert_eq!(authority.issue(ada()).unwrap().not_after, START + Duration::hours(72));
    for entry in fs::read_dir(&scratch.dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
    }
    assert_eq!(fs::metadata(&scratch.dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn opens_again_as_the_same_authority() {
    let scratch = Scratch::new();
    let first = scratch.open().unwrap();
    let (bundle, leaf) = (first.trust_bundle(), first.issue(ada()).unwrap());
    drop(first);
    scratch.clock.advance(Duration::days(3));
    let second = scratch.open().unwrap();
    assert_eq!(second.trust_bundle(), bundle);
    assert_eq!(second.issue(ada()).unwrap().chain[1], leaf.chain[1], "the intermediate is not due yet");
}

#[test]
fn a_crash_while_it_began_leaves_nothing_to_trip_over() {
    let whole = Scratch::new();
    whole.open().unwrap();
    let text = whole.file(ROOT_FILE);
    for cut in [0, 1, text.len() / 2, text.len()] {
        // The process died before the rename: no root yet, and a part of one under another name.
        let scratch = Scratch::new();
        fs::create_dir_all(&scratch.dir).unwrap();
        scratch.put(".root.pem.0123456789abcdef.tmp", &text[..cut]);
        let authority = scratch.open().unwrap();
        assert_ne!(scratch.file(ROOT_FILE), text);
        authority.issue(ada()).unwrap();
        assert!(!scratch.dir.join(".root.pem.0123456789abcdef.tmp").exists(), "half a key stays on disk");
    }
    // It died between root and intermediate.
    let scratch = Scratch::new();
    fs::create_dir_all(&scratch.dir).unwrap();
    scratch.put(ROOT_FILE, &text);
    assert_eq!(scratch.open().unwrap().trust_bundle(), whole.open().unwrap().trust_bundle());
}

#[test]
fn several_that_begin_at_once_agree_on_one_root() {
    let scratch = Scratch::new();
    let bundles: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| scratch.open().unwrap().trust_bundle())).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(bundles.iter().all(|bundle| *bundle == bundles[0]));
}

#[test]
fn the_intermediate_renews_itself_at_half_life() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let first = authority.issue(ada()).unwrap().chain[1].clone();
    scratch.clock.advance(Duration::days(14));
    assert_eq!(authority.issue(ada()).unwrap().chain[1], first);
    scratch.clock.advance(Duration::DAY);
    authority.refresh().unwrap();
    assert_eq!(authority.intermediate_validity().1, START + Duration::days(15) + INTERMEDIATE_LIFE);
    assert_ne!(authority.issue(gateway()).unwrap().chain[1], first);
    assert_eq!(authority.issue(ada()).unwrap().chain[1], first, "until its list is known everywhere");
    scratch.clock.advance(Duration::MINUTE);
    let renewed = authority.issue(ada()).unwrap();
    assert_ne!(renewed.chain[1], first);
    assert_eq!(scratch.open().unwrap().issue(ada()).unwrap().chain[1], renewed.chain[1], "it is on disk as well");
}

#[test]
fn an_intermediate_that_another_process_renewed_is_taken_over() {
    let scratch = Scratch::new();
    let (gateway, command_line) = (scratch.open().unwrap(), scratch.open().unwrap());
    scratch.clock.advance(Duration::days(16));
    let renewed = command_line.issue(ada()).unwrap().chain[1].clone();
    assert_eq!(gateway.issue(ada()).unwrap().chain[1], renewed);
}

#[test]
fn a_year_of_rotation_never_hands_out_a_leaf_that_ends_early() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let mut intermediates = std::collections::HashSet::new();
    for _ in 0..245 {
        let now = scratch.clock.now();
        let leaf = authority.issue(ada()).unwrap();
        assert_eq!(leaf.not_after, now + Duration::hours(72));
        intermediates.insert(leaf.chain[1].clone());
        scratch.clock.advance(Duration::hours(36));
    }
    assert!((24..=26).contains(&intermediates.len()), "{} intermediates in a year", intermediates.len());
}

#[test]
fn switched_off_for_two_months_it_starts_again() {
    let scratch = Scratch::new();
    let bundle = scratch.open().unwrap().trust_bundle();
    scratch.clock.advance(Duration::days(60));
    let authority = scratch.open().unwrap();
    assert_eq!(authority.trust_bundle(), bundle);
    authority.issue(ada()).unwrap();
}

#[test]
fn a_lost_disk_does_not_stop_the_gateways_rotation_before_it_must() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let first = authority.issue(gateway()).unwrap().chain[1].clone();
    fs::remove_dir_all(&scratch.dir).unwrap();
    scratch.clock.advance(Duration::days(26));
    assert_eq!(authority.issue(gateway()).unwrap().chain[1], first, "good for another 72 h");
    assert!(matches!(authority.issue(ada()), Err(CertsError::Io { .. })), "nobody could revoke this one");
    let leaf = authority.issue(gateway()).unwrap();
    assert!(authority.refresh().is_err(), "it is told");
    assert!(authority.refresh().unwrap(), "but not every second, and there are fresh lists");
    assert!(!authority.refresh().unwrap());
    let trust = authority.trust();
    let verdict = tls::check_chain(&leaf.chain, &trust, TRUST_DOMAIN, scratch.clock.now());
    assert!(verdict.is_ok(), "revocation lists stay fresh without a disk: {verdict:?}");
    scratch.clock.advance(Duration::days(2));
    assert!(matches!(authority.issue(gateway()), Err(CertsError::Io { .. })));
}

#[test]
fn does_not_work_beside_another_root() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    fs::remove_dir_all(&scratch.dir).unwrap();
    let other = scratch.open().unwrap();
    scratch.clock.advance(Duration::days(29));
    assert!(matches!(authority.issue(ada()), Err(CertsError::Replaced { .. })));
    other.issue(ada()).unwrap();
}

#[test]
fn switched_off_to_the_end_of_its_root_it_says_so() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    scratch.clock.advance(ROOT_LIFE + Duration::SECOND);
    assert!(matches!(authority.issue(ada()), Err(CertsError::RootExpired { .. })));
    assert!(matches!(scratch.open(), Err(CertsError::RootExpired { .. })));
}

#[test]
fn near_the_end_of_the_root_everything_ends_with_it_and_a_new_one_follows() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let end = authority.root_validity().1;
    scratch.clock.advance(ROOT_LIFE - Duration::DAY);
    let leaf = authority.issue(ada()).unwrap();
    assert_eq!((leaf.not_after, authority.intermediate_validity().1), (end, end));
    assert_eq!(authority.trust_bundle().len(), 2, "the switch began by itself");
    scratch.clock.advance(Duration::DAY + Duration::SECOND);
    assert_eq!(authority.issue(ada()).unwrap().not_after, scratch.clock.now() + Duration::hours(72));
    assert_eq!(authority.trust_bundle().len(), 1);
}

#[test]
fn a_clock_set_back_refuses() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    scratch.clock.advance(Duration::days(2));
    authority.issue(ada()).unwrap();
    scratch.clock.advance(-clock::TOLERANCE);
    authority.issue(ada()).unwrap();
    scratch.clock.advance(-Duration::SECOND);
    let told = |error: CertsError| {
        assert!(error.to_string().contains("postern certs reset-clock"), "{error}");
        matches!(error, CertsError::ClockSetBack { .. })
    };
    assert!(authority.issue(ada()).is_err_and(told));
    assert!(authority.refresh().is_err_and(told));
    assert!(scratch.open().is_err_and(told));
    scratch.clock.advance(clock::RELEASED - scratch.clock.now() - Duration::SECOND);
    assert!(matches!(authority.issue(ada()), Err(CertsError::ClockNeverSet { .. })));
}

#[test]
fn the_time_is_kept_without_a_leaf_being_issued() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let at_first = scratch.file(CLOCK_FILE);
    scratch.clock.advance(Duration::seconds(59));
    authority.refresh().unwrap();
    assert_eq!(scratch.file(CLOCK_FILE), at_first, "not more often than once a minute");
    scratch.clock.advance(Duration::SECOND);
    authority.refresh().unwrap();
    assert_ne!(scratch.file(CLOCK_FILE), at_first);
    drop(authority);
    scratch.clock.advance(Duration::minutes(-6));
    assert!(matches!(scratch.open(), Err(CertsError::ClockSetBack { .. })));
}

#[test]
fn a_clock_that_ran_ahead_is_reset_by_an_operator() {
    let scratch = Scratch::new();
    let first = scratch.open().unwrap();
    let bundle = first.trust_bundle();
    scratch.clock.advance(Duration::days(300));
    let gone_ahead = first.issue(ada()).unwrap();
    drop(first);
    scratch.clock.advance(Duration::days(-300));
    assert!(matches!(scratch.open(), Err(CertsError::ClockSetBack { .. })));
    Authority::reset_clock(&scratch.dir, scratch.options()).unwrap();
    let authority = scratch.open().unwrap();
    assert_eq!(authority.trust_bundle(), bundle, "the root stays");
    assert_eq!(authority.issue(ada()).unwrap().not_after, START + Duration::hours(72));
    // What was issued ahead of time can still be revoked, as long as that lasts.
    assert_eq!(authority.status().intermediates.len(), 2);
    let serials = authority.revoke_id(&ada().id).unwrap();
    assert!(serials.contains(&crate::verify::peer(&gone_ahead.chain[0]).unwrap().serial));
}

#[test]
fn an_intermediate_from_a_time_when_no_mark_was_kept_is_reset_too() {
    let scratch = Scratch::new();
    scratch.open().unwrap();
    scratch.clock.advance(Duration::days(40));
    scratch.open().unwrap();
    scratch.clock.advance(Duration::days(-30));
    fs::remove_file(scratch.dir.join(CLOCK_FILE)).unwrap();
    let ledger = String::from_utf8(scratch.file(LEDGER_FILE)).unwrap();
    let mark = ledger.split(',').find(|part| part.contains("highest")).unwrap().to_owned();
    scratch.put(LEDGER_FILE, ledger.replace(&mark, "\"highest\":null").as_bytes());
    let error = scratch.open().unwrap_err();
    assert!(matches!(error, CertsError::ClockBehind { .. }), "{error}");
    assert!(error.to_string().contains("reset-clock"), "{error}");
    Authority::reset_clock(&scratch.dir, scratch.options()).unwrap();
    scratch.open().unwrap().issue(ada()).unwrap();
}

#[test]
fn a_root_from_the_future_cannot_be_reset() {
    let scratch = Scratch::new();
    scratch.clock.advance(Duration::days(30));
    scratch.open().unwrap();
    scratch.clock.advance(Duration::days(-30));
    for _ in 0..2 {
        let error = Authority::reset_clock(&scratch.dir, scratch.options()).unwrap_err();
        assert!(
            matches!(error, CertsError::RootAhead { .. }) && error.to_string().contains("new authority"),
            "{error}"
        );
    }
    assert!(scratch.open().is_err());
}

#[test]
fn a_gateway_that_restarts_without_end_does_not_fill_the_register() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    authority.issue(ada()).unwrap();
    let last = (0..100).map(|_| authority.issue(gateway()).unwrap()).last().unwrap();
    assert_eq!(authority.status().issued, 1 + 64);
    let serial = crate::verify::peer(&last.chain[0]).unwrap().serial;
    assert_eq!(authority.revoke_serial(&serial).unwrap(), [serial], "the latest are those that are kept");
}

#[test]
fn a_lost_ledger_is_not_made_up() {
    let scratch = Scratch::new();
    scratch.open().unwrap();
    fs::remove_file(scratch.dir.join(LEDGER_FILE)).unwrap();
    assert!(matches!(scratch.open(), Err(CertsError::Damaged { path, .. }) if path.ends_with(LEDGER_FILE)));
}

#[test]
fn a_branch_issues_below_its_prefix() {
    let scratch = Scratch::new();
    let prefix: PathPrefix = "/branch-1".parse().unwrap();
    let options = AuthorityOptions { prefix: prefix.clone(), ..scratch.options() };
    let authority = Authority::open_or_create(&scratch.dir, options).unwrap();
    let id = |path: &str| -> SpiffeId { format!("spiffe://{TRUST_DOMAIN}{path}").parse().unwrap() };
    assert_eq!(*authority.gateway_id(), id("/branch-1/gateway"));
    let request = |path: &str, role| LeafRequest { id: id(path), role };
    let serving = || Role::Gateway { names: Vec::new() };
    let leaf = authority.issue(request("/branch-1/gateway", serving())).unwrap();
    authority.issue(request("/branch-1/clerk/ada", Role::Workload)).unwrap();
    for (path, role) in [
        ("/branch-17/clerk/ada", Role::Workload),
        ("/branch-1", Role::Workload),
        ("/branch-1/gateway", Role::Workload),
        ("/gateway", serving()),
    ] {
        assert!(matches!(authority.issue(request(path, role)), Err(CertsError::NotIssuable { .. })), "{path}");
    }
    let intermediate = crate::verify::authority(&leaf.chain[1]).unwrap();
    assert_eq!(intermediate.prefix, prefix);
    drop(authority);
    // Another prefix in the configuration takes hold at once, with a new intermediate.
    let wider = scratch.open().unwrap();
    wider.issue(ada()).unwrap();
}

#[test]
fn is_for_one_trust_domain() {
    let scratch = Scratch::new();
    scratch.open().unwrap();
    let error = scratch.open_for("branch-18.example.org").unwrap_err().to_string();
    assert!(error.contains("branch-17") && error.contains("branch-18"), "{error}");
    assert!(matches!(Scratch::new().open_for("Branch"), Err(CertsError::SpiffeId(_))));
}

#[test]
fn leaf_ttl_has_bounds() {
    let scratch = Scratch::new();
    let open = |leaf_ttl| {
        let clock = Arc::new(scratch.clock.clone());
        Authority::open_or_create(
            &scratch.dir,
            AuthorityOptions { clock, ..AuthorityOptions::new(TRUST_DOMAIN, leaf_ttl) },
        )
    };
    for good in [MIN_LEAF_TTL, MAX_LEAF_TTL] {
        open(good).unwrap().issue(ada()).unwrap();
    }
    for bad in [StdDuration::ZERO, MIN_LEAF_TTL / 2, MAX_LEAF_TTL + StdDuration::from_secs(1), StdDuration::MAX] {
        assert!(matches!(open(bad), Err(CertsError::LeafTtl { .. })), "{bad:?}");
    }
}

#[test]
fn what_is_damaged_is_named_and_left_alone() {
    let scratch = Scratch::new();
    scratch.open().unwrap();
    let other = Scratch::new();
    other.open().unwrap();
    let root = String::from_utf8(scratch.file(ROOT_FILE)).unwrap();
    let foreign_root = String::from_utf8(other.file(ROOT_FILE)).unwrap();
    let intermediate = scratch.file(INTERMEDIATE_FILE);
    let split = |text: &str| text.split_inclusive("-----END PRIVATE KEY-----\n").map(str::to_owned).collect::<Vec<_>>();
    let certificate = split(&root)[1].clone();
    let mixed = split(&root)[0].clone() + &split(&foreign_root)[1];
    let cases: [(&str, &[u8]); 7] = [
        (ROOT_FILE, b""),
        (ROOT_FILE, b"not PEM"),
        (ROOT_FILE, &root.as_bytes()[..root.len() / 2]),
        (ROOT_FILE, certificate.as_bytes()),
        (ROOT_FILE, mixed.as_bytes()),
        (INTERMEDIATE_FILE, &other.file(INTERMEDIATE_FILE)),
        (INTERMEDIATE_FILE, &intermediate[..100]),
    ];
    for (name, bytes) in cases {
        scratch.put(ROOT_FILE, root.as_bytes());
        scratch.put(INTERMEDIATE_FILE, &intermediate);
        scratch.put(name, bytes);
        let error = scratch.open().unwrap_err();
        assert!(matches!(&error, CertsError::Damaged { path, .. } if path.ends_with(name)), "{error}");
        assert!(!error.to_string().contains("BEGIN"), "{error}");
        assert_eq!(scratch.file(name), bytes, "the file is as it was");
    }
}

/// An intermediate that names our root as its issuer, but was signed with another key.
fn forged_intermediate(root: &CertificateDer<'_>) -> String {
    let (key, forger) = (new_key().unwrap(), new_key().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let trust_domain = format!("spiffe://{TRUST_DOMAIN}");
    params.subject_alt_names = vec![rcgen::SanType::URI(trust_domain.try_into().unwrap())];
    params.not_before = START;
    params.not_after = START + INTERMEDIATE_LIFE;
    let issuer = rcgen::Issuer::from_ca_cert_der(root, forger).unwrap();
    key.serialize_pem() + &params.signed_by(&key, &issuer).unwrap().pem()
}

#[test]
fn what_peers_would_refuse_is_not_handed_out() {
    let scratch = Scratch::new();
    let root = scratch.open().unwrap().trust_bundle();
    scratch.put(INTERMEDIATE_FILE, forged_intermediate(&root[0]).as_bytes());
    let error = scratch.open().unwrap().issue(ada()).unwrap_err();
    assert!(
        matches!(error, CertsError::Tls(rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature))),
        "{error}"
    );
}

#[test]
fn a_missing_root_is_not_made_up() {
    let scratch = Scratch::new();
    scratch.open().unwrap();
    fs::remove_file(scratch.dir.join(ROOT_FILE)).unwrap();
    assert!(matches!(scratch.open(), Err(CertsError::RootMissing { .. })));
    assert!(!scratch.dir.join(ROOT_FILE).exists());
}

#[test]
fn debug_shows_no_key() {
    let scratch = Scratch::new();
    let shown = format!("{:?}", scratch.open().unwrap());
    assert!(shown.contains("elided"), "{shown}");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(&scratch.file(ROOT_FILE)).unwrap();
    // The private scalar of P-256 in PKCS #8 begins at byte 36; `Debug` of bytes writes decimal numbers.
    let scalar = format!("{:?}", &key.secret_pkcs8_der()[36..68]);
    assert!(!shown.contains(scalar.trim_matches(['[', ']'])));
}

mod enrolment;
mod offline;
mod revocation;
mod root_switch;
mod simulation;
