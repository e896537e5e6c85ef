use super::*;

/// The machine with the root, and the gateway's.
struct Two {
    gateway: Scratch,
    vault: PathBuf,
}

const PREFIX: &str = "/branch-1";

impl Two {
    fn new() -> Self {
        let gateway = Scratch::new();
        let vault = gateway.dir.join("../vault");
        create_root(&vault, TRUST_DOMAIN, START).unwrap();
        Self { gateway, vault }
    }

    fn options(&self) -> AuthorityOptions {
        AuthorityOptions { root: RootPlace::Offline, prefix: PREFIX.parse().unwrap(), ..self.gateway.options() }
    }

    fn open(&self) -> Result<Authority, CertsError> {
        Authority::open_or_create(&self.gateway.dir, self.options())
    }

    fn in_vault(&self, name: &str) -> Vec<u8> {
        fs::read(self.vault.join(name)).unwrap()
    }

    fn sign(&self, prefix: &str) -> Result<String, CertsError> {
        self.sign_for(prefix, 30)
    }

    fn sign_for(&self, prefix: &str, days: u16) -> Result<String, CertsError> {
        let csr = self.gateway.file("intermediate.csr.pem");
        sign_intermediate(&self.in_vault("root.pem"), &csr, &prefix.parse().unwrap(), days, self.gateway.clock.now())
    }

    fn install(&self, certificate: &str, roots: &[u8]) -> Result<(), CertsError> {
        Authority::install(&self.gateway.dir, self.options(), certificate.as_bytes(), roots)
    }

    fn ready() -> (Self, Authority) {
        Self::ready_for(30)
    }

    fn ready_for(days: u16) -> (Self, Authority) {
        let two = Self::new();
        assert!(matches!(two.open(), Err(CertsError::AwaitingIntermediate { .. })));
        two.install(&two.sign_for(PREFIX, days).unwrap(), &two.in_vault("ca.pem")).unwrap();
        let authority = two.open().unwrap();
        (two, authority)
    }
}

fn bob() -> LeafRequest {
    LeafRequest { id: format!("spiffe://{TRUST_DOMAIN}{PREFIX}/bob").parse().unwrap(), role: Role::Workload }
}

#[test]
fn the_first_start_asks_and_the_answer_is_installed() {
    let two = Two::new();
    let error = two.open().unwrap_err();
    let words = error.to_string();
    for word in ["intermediate.csr.pem", "postern certs root sign", "postern certs root install"] {
        assert!(words.contains(word), "{words}");
    }
    let asked = two.gateway.file("intermediate.csr.pem");
    assert!(matches!(two.open(), Err(CertsError::AwaitingIntermediate { .. })));
    assert_eq!(two.gateway.file("intermediate.csr.pem"), asked, "the same request until it is answered");

    two.install(&two.sign(PREFIX).unwrap(), &two.in_vault("ca.pem")).unwrap();
    let authority = two.open().unwrap();
    let leaf = authority.issue(bob()).unwrap();
    tls::check_chain(&leaf.chain, &authority.trust(), TRUST_DOMAIN, START).unwrap();
    assert_eq!(authority.trust_bundle().len(), 1);
    assert!(!two.gateway.dir.join("pending-key.pem").exists() && !two.gateway.dir.join(ROOT_FILE).exists());
    assert!(matches!(authority.begin_root_switch(), Err(CertsError::NoRootSwitch(_))));
    let status = authority.status();
    assert!(status.root_offline && !status.alarm);
    assert_eq!(status.roots.len(), 1);
}

#[test]
fn what_does_not_fit_is_not_installed() {
    let two = Two::new();
    two.open().unwrap_err();
    let (good, roots) = (two.sign(PREFIX).unwrap(), two.in_vault("ca.pem"));
    let root = Signer::from_pem(&two.in_vault("root.pem")).unwrap();
    let foreign = Two::new();
    let key = {
        let text = two.gateway.file("pending-key.pem");
        rcgen::KeyPair::from_pem(std::str::from_utf8(&text).unwrap()).unwrap()
    };
    let odd = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = root.intermediate_params(&PREFIX.parse().unwrap(), Duration::days(30), START).unwrap();
        change(&mut params);
        crate::pem::certificates(&[root.sign(&params, &key).unwrap()])
    };
    let path_length = odd(&|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1)));
    let over = odd(&|params| params.not_after = START - Duration::SECOND);
    let other_domain =
        odd(&|params| params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://td".try_into().unwrap())]);
    let key_of_root = String::from_utf8(roots.clone()).unwrap();
    for (certificate, roots, word) in [
        (two.sign("/branch-2").unwrap(), roots.clone(), "prefix"),
        (two.sign("").unwrap(), roots.clone(), "prefix"),
        (good.clone(), foreign.in_vault("ca.pem"), "chain does not hold"),
        (good.clone(), b"junk".to_vec(), "roots"),
        ("junk".to_owned(), roots.clone(), "PEM"),
        (path_length, roots.clone(), "path length"),
        (over, roots.clone(), "not valid now"),
        (other_domain, roots.clone(), "trust domain"),
        (key_of_root, roots.clone(), "prefix"),
    ] {
        let error = two.install(&certificate, &roots).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
        assert!(matches!(two.open(), Err(CertsError::AwaitingIntermediate { .. })), "nothing was changed");
    }
    fs::remove_file(two.gateway.dir.join("pending-key.pem")).unwrap();
    two.open().unwrap_err();
    assert!(two.install(&good, &roots).unwrap_err().to_string().contains("older request"));
}

#[test]
fn after_half_of_thirty_days_it_asks_and_worries() {
    let (two, authority) = Two::ready();
    assert_eq!(authority.intermediate_validity().1, START + Duration::days(30));
    two.gateway.clock.advance(Duration::days(15) - Duration::minutes(10));
    authority.refresh().unwrap();
    scratch_has(&two, false);
    assert!(!authority.status().alarm);
    two.gateway.clock.advance(Duration::minutes(10));
    authority.refresh().unwrap();
    scratch_has(&two, true);
    assert!(authority.status().alarm);
}

#[test]
fn no_intermediate_lives_longer_than_ninety_days() {
    for (days, lives) in [(0, 1), (90, 90), (91, 90), (u16::MAX, 90)] {
        assert_eq!(Two::ready_for(days).1.intermediate_validity().1, START + Duration::days(lives), "{days}");
    }
}

#[test]
fn asks_again_at_half_life_and_worries_before_the_end() {
    let (two, authority) = Two::ready_for(90);
    let old = authority.issue(bob()).unwrap().chain[1].clone();
    scratch_has(&two, false);
    two.gateway.clock.advance(Duration::days(45));
    authority.refresh().unwrap();
    scratch_has(&two, true);
    assert!(!authority.status().alarm);
    two.gateway.clock.advance(Duration::days(30));
    authority.refresh().unwrap();
    assert!(authority.status().alarm);
    assert_eq!(authority.issue(bob()).unwrap().chain[1], old, "it goes on until the end");

    two.install(&two.sign(PREFIX).unwrap(), &two.in_vault("ca.pem")).unwrap();
    assert!(authority.refresh().unwrap(), "a running gateway takes it over");
    assert!(!authority.status().alarm);
    two.gateway.clock.advance(Duration::MINUTE);
    assert_ne!(authority.issue(bob()).unwrap().chain[1], old);
    assert_eq!(authority.status().intermediates.len(), 2);
    scratch_has(&two, false);
}

fn scratch_has(two: &Two, expected: bool) {
    assert_eq!(two.gateway.dir.join("intermediate.csr.pem").exists(), expected);
}

#[test]
fn after_the_end_of_the_intermediate_it_says_what_to_do() {
    let (two, authority) = Two::ready();
    two.gateway.clock.advance(Duration::days(91));
    assert!(matches!(authority.issue(bob()), Err(CertsError::IntermediateExpired { .. })));
    assert!(matches!(two.open(), Err(CertsError::AwaitingIntermediate { .. })));
    two.install(&two.sign(PREFIX).unwrap(), &two.in_vault("ca.pem")).unwrap();
    authority.issue(bob()).unwrap();
    two.open().unwrap();
}

#[test]
fn roots_are_switched_by_hand() {
    let (two, authority) = Two::ready();
    let second = two.gateway.dir.join("../vault-2");
    create_root(&second, TRUST_DOMAIN, START).unwrap();
    let both = [two.in_vault("ca.pem"), fs::read(second.join("ca.pem")).unwrap()].concat();
    let present = crate::pem::certificates(&[authority.issue(bob()).unwrap().chain[1].clone()]);
    two.install(&present, &both).unwrap();
    assert!(authority.refresh().unwrap());
    assert_eq!(authority.trust_bundle().len(), 2);
    assert_eq!(authority.status().intermediates.len(), 1);
}

#[test]
fn the_place_of_the_root_does_not_change_silently() {
    let here = Scratch::new();
    here.open().unwrap();
    let options = AuthorityOptions { root: RootPlace::Offline, ..here.options() };
    assert!(matches!(Authority::open_or_create(&here.dir, options), Err(CertsError::RootPlace { .. })));
    let (two, _) = Two::ready();
    assert!(matches!(two.gateway.open(), Err(CertsError::RootMissing { .. } | CertsError::RootPlace { .. })));
    assert!(matches!(create_root(&two.vault, TRUST_DOMAIN, START), Err(CertsError::RootPlace { .. })));
    let wrong = Authority::install(&here.dir, here.options(), b"", b"");
    assert!(matches!(wrong, Err(CertsError::NotInstallable(_))));
}

#[test]
fn the_root_signs_requests_of_its_own_domain_and_within_its_life() {
    let two = Two::new();
    two.open().unwrap_err();
    let (root, csr) = (two.in_vault("root.pem"), two.gateway.file("intermediate.csr.pem"));
    let sign = |root: &[u8], csr: &[u8], now| sign_intermediate(root, csr, &PathPrefix::whole_domain(), 30, now);
    assert!(matches!(sign(&root, &csr, START + Duration::days(4000)), Err(CertsError::RootExpired { .. })));
    assert!(matches!(sign(&root, &csr, START - Duration::HOUR), Err(CertsError::RootAhead { .. })));
    assert!(matches!(sign(&root, b"junk", START), Err(CertsError::Csr(_))));
    assert!(sign(b"junk", &csr, START).is_err());
    let other = two.gateway.dir.join("../vault-3");
    create_root(&other, "other.example.org", START).unwrap();
    assert!(matches!(sign(&fs::read(other.join("root.pem")).unwrap(), &csr, START), Err(CertsError::Csr(_))));
}
