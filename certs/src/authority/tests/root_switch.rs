use super::*;
use crate::rotate::RootSwitch;

/// Whether somebody who trusts only these roots accepts the chain.
fn accepts(roots: &[CertificateDer<'_>], chain: &[CertificateDer<'_>], now: OffsetDateTime) -> bool {
    tls::check_chain(chain, &Trust::from_roots(roots).unwrap(), TRUST_DOMAIN, now).is_ok()
}

#[test]
fn goes_through_its_phases_and_locks_nobody_out() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let old = authority.trust_bundle();
    let sequence = authority.status().bundle_sequence;
    authority.begin_root_switch().unwrap();
    assert!(matches!(authority.begin_root_switch(), Err(CertsError::NoRootSwitch(_))));
    let both = authority.trust_bundle();
    assert_eq!((both.len(), &both[0]), (2, &old[0]));
    assert_eq!(authority.status().root_switch, Some(RootSwitch::TrustBoth));
    let told = authority.status().bundle_sequence;
    assert!(told > sequence);

    // Whoever got a leaf just before knows the old root only, for as long as that leaf lives.
    scratch.clock.advance(Duration::hours(71));
    authority.refresh().unwrap();
    assert!(accepts(&old, &authority.issue(gateway()).unwrap().chain, scratch.clock.now()));
    let last_of_old = authority.issue(ada()).unwrap();

    scratch.clock.advance(Duration::HOUR);
    assert!(authority.refresh().unwrap(), "another intermediate has another list");
    assert_eq!(authority.status().root_switch, Some(RootSwitch::IssueNew));
    let chain = authority.issue(gateway()).unwrap().chain.clone();
    assert!(!accepts(&old, &chain, scratch.clock.now()) && accepts(&both[1..], &chain, scratch.clock.now()));
    let verdict = tls::check_chain(&last_of_old.chain, &authority.trust(), TRUST_DOMAIN, scratch.clock.now());
    assert!(verdict.is_ok(), "leaves below the old root are good until they end: {verdict:?}");

    scratch.clock.advance(Duration::hours(72));
    assert!(authority.refresh().unwrap());
    assert_eq!(authority.trust_bundle(), both[1..]);
    assert_eq!(authority.status().root_switch, None);
    assert!(authority.status().bundle_sequence > told);
    assert_eq!(scratch.open().unwrap().trust_bundle(), both[1..]);
    assert!(accepts(&both[1..], &authority.issue(ada()).unwrap().chain, scratch.clock.now()));
}

#[test]
fn the_old_root_stays_for_the_last_leaf_below_it() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    authority.begin_root_switch().unwrap();
    scratch.clock.advance(Duration::hours(72));
    authority.refresh().unwrap();
    assert_eq!(authority.status().root_switch, Some(RootSwitch::IssueNew));
    // For a minute workloads still get leaves below the old one.
    scratch.clock.advance(Duration::seconds(50));
    let last = authority.issue(ada()).unwrap();
    let accepted = |roots: &[_]| accepts(roots, &last.chain, scratch.clock.now());
    assert!(accepted(&authority.trust_bundle()[..1]) && !accepted(&authority.trust_bundle()[1..]));
    for advance in [Duration::hours(72) - Duration::seconds(50), Duration::seconds(50)] {
        scratch.clock.advance(advance);
        authority.refresh().unwrap();
        let verdict = tls::check_chain(&last.chain, &authority.trust(), TRUST_DOMAIN, scratch.clock.now());
        assert!(verdict.is_ok(), "it was cut off before its end: {verdict:?}");
    }
    scratch.clock.advance(Duration::SECOND);
    authority.refresh().unwrap();
    assert_eq!((authority.trust_bundle().len(), authority.status().root_switch), (1, None));
}

#[test]
fn begins_by_itself_at_four_fifths_of_the_roots_life() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    scratch.clock.advance(ROOT_LIFE / 5 * 4 - Duration::DAY);
    authority.refresh().unwrap();
    assert_eq!(authority.trust_bundle().len(), 1);
    scratch.clock.advance(Duration::days(2));
    assert!(authority.refresh().unwrap());
    assert_eq!(authority.trust_bundle().len(), 2);
}

#[test]
fn goes_on_where_it_was_after_a_restart_and_while_switched_off() {
    let scratch = Scratch::new();
    let gateway_process = scratch.open().unwrap();
    let command_line = scratch.open().unwrap();
    command_line.begin_root_switch().unwrap();
    assert!(gateway_process.refresh().unwrap(), "another process began it");
    let both = gateway_process.trust_bundle();
    assert_eq!(both, command_line.trust_bundle());
    assert_eq!(scratch.open().unwrap().trust_bundle(), both);
    scratch.clock.advance(Duration::days(200));
    let late = scratch.open().unwrap();
    assert_eq!(late.trust_bundle(), both[1..]);
    assert!(accepts(&both[1..], &late.issue(ada()).unwrap().chain, scratch.clock.now()));
    // The one that slept knows the new root as well, so for it the folder is not a stranger's.
    gateway_process.refresh().unwrap();
    assert_eq!(gateway_process.trust_bundle(), both[1..]);
}

#[test]
fn a_shorter_leaf_ttl_in_between_does_not_cut_it_short() {
    let scratch = Scratch::new();
    scratch.open().unwrap().begin_root_switch().unwrap();
    scratch.clock.advance(Duration::hours(2));
    let options = AuthorityOptions { leaf_ttl: StdDuration::from_secs(600), ..scratch.options() };
    let authority = Authority::open_or_create(&scratch.dir, options).unwrap();
    assert_eq!(authority.status().root_switch, Some(RootSwitch::TrustBoth));
}

#[test]
fn an_orphaned_new_root_is_nobodys() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let root = scratch.file(ROOT_FILE);
    // The process died before the ledger said that there is a switch.
    scratch.put("next-root.pem", &root);
    assert_eq!(scratch.open().unwrap().trust_bundle().len(), 1);
    authority.begin_root_switch().unwrap();
    let both = authority.trust_bundle();
    assert_ne!(both[0], both[1]);
}
