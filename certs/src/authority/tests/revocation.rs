use super::*;
use crate::{Reason, verify};

fn who(authority: &Authority, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Option<Reason> {
    tls::check_chain(chain, &authority.trust(), TRUST_DOMAIN, now).err().map(|error| error.reason().unwrap())
}

fn bob() -> LeafRequest {
    LeafRequest { id: format!("spiffe://{TRUST_DOMAIN}/clerk/bob").parse().unwrap(), role: Role::Workload }
}

#[test]
fn revoking_an_identity_takes_all_its_leaves_and_nothing_else() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let leaves = [authority.issue(ada()).unwrap(), authority.issue(ada()).unwrap(), authority.issue(bob()).unwrap()];
    let peer = verify::peer(&leaves[1].chain[0]).unwrap();
    assert!(leaves.iter().all(|leaf| who(&authority, &leaf.chain, START).is_none()));
    assert_eq!(authority.revoke_id(&ada().id).unwrap().len(), 2);
    let verdicts = leaves.each_ref().map(|leaf| who(&authority, &leaf.chain, START));
    assert_eq!(verdicts, [Some(Reason::Revoked), Some(Reason::Revoked), None]);
    assert!(authority.trust().is_revoked(&peer), "so that its connection is closed");
    // Whom an operator invites anew gets a leaf anew.
    assert_eq!(who(&authority, &authority.issue(ada()).unwrap().chain, START), None);
    let reopened = scratch.open().unwrap();
    assert_eq!(who(&reopened, &leaves[0].chain, START), Some(Reason::Revoked), "it is durable");
    assert_eq!((reopened.status().issued, reopened.status().revoked), (4, 2));
}

#[test]
fn revoking_a_number() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let (first, second) = (authority.issue(ada()).unwrap(), authority.issue(ada()).unwrap());
    let serial = verify::peer(&first.chain[0]).unwrap().serial;
    assert_eq!(authority.revoke_serial(&serial).unwrap(), [serial]);
    assert_eq!(who(&authority, &first.chain, START), Some(Reason::Revoked));
    assert_eq!(who(&authority, &second.chain, START), None);
}

/// After a restore, or after a clock that ran ahead, there are leaves that the register does not know.
#[test]
fn what_the_register_does_not_know_is_revoked_as_well() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let empty = std::fs::read(scratch.dir.join(LEDGER_FILE)).unwrap();
    let (one, two) = (authority.issue(ada()).unwrap(), authority.issue(bob()).unwrap());
    drop(authority);
    scratch.put(LEDGER_FILE, &empty);
    scratch.clock.advance(Duration::MINUTE);
    let authority = scratch.open().unwrap();
    let now = START + Duration::MINUTE;
    let peer = verify::peer(&one.chain[0]).unwrap();
    assert_eq!(authority.revoke_id(&ada().id).unwrap(), [], "none that is known");
    assert_eq!(who(&authority, &one.chain, now), Some(Reason::Revoked));
    assert!(authority.trust().is_revoked(&peer));
    assert!(matches!(
        authority.renew(&peer, &crate::Csr::generate(&ada().id).unwrap().der),
        Err(CertsError::NotRenewable { .. })
    ));
    assert_eq!(who(&authority, &two.chain, now), None);
    let serial = verify::peer(&two.chain[0]).unwrap().serial;
    authority.revoke_serial(&serial).unwrap();
    assert_eq!(who(&authority, &two.chain, now), Some(Reason::Revoked));
    // A new leaf for the same identity is not hit, not even one of the same second.
    let again = authority.issue(ada()).unwrap();
    assert_eq!(who(&authority, &again.chain, now), None);
    assert_eq!(who(&scratch.open().unwrap(), &one.chain, now), Some(Reason::Revoked), "it is durable");
}

/// A clock that ran ahead for ten days must not bring back what was revoked.
#[test]
fn a_clock_that_ran_ahead_forgets_no_revocation() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    let (stolen, live) = (authority.issue(ada()).unwrap(), authority.issue(bob()).unwrap());
    authority.revoke_id(&ada().id).unwrap();
    scratch.clock.advance(Duration::days(10));
    authority.refresh().unwrap();
    authority.issue(LeafRequest { id: authority.gateway_id().clone(), role: Role::Gateway { names: vec![] } }).unwrap();
    drop(authority);
    scratch.clock.advance(-Duration::days(10) + Duration::MINUTE);
    // While the clock is behind the highest time seen nothing is issued, but what was stolen is revoked.
    assert!(matches!(scratch.open(), Err(CertsError::ClockSetBack { .. })));
    Authority::revoke_in(&scratch.dir, &scratch.options(), &Revocation::Id(bob().id)).unwrap();
    Authority::reset_clock(&scratch.dir, scratch.options()).unwrap();
    let authority = scratch.open().unwrap();
    let now = START + Duration::MINUTE;
    assert_eq!(who(&authority, &stolen.chain, now), Some(Reason::Revoked));
    assert_eq!(who(&authority, &live.chain, now), Some(Reason::Revoked));
}

#[test]
fn what_the_command_line_revokes_the_gateway_hears_of() {
    let scratch = Scratch::new();
    let (gateway, command_line) = (scratch.open().unwrap(), scratch.open().unwrap());
    let leaf = gateway.issue(ada()).unwrap();
    assert!(!gateway.refresh().unwrap(), "nothing to do");
    command_line.revoke_id(&ada().id).unwrap();
    let before = gateway.trust();
    assert!(gateway.refresh().unwrap());
    assert!(!Arc::ptr_eq(&before, &gateway.trust()));
    assert_eq!(who(&gateway, &leaf.chain, START), Some(Reason::Revoked));
    assert!(!gateway.refresh().unwrap());
}

#[test]
fn what_this_process_changed_itself_is_told_too() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    authority.issue(ada()).unwrap();
    authority.revoke_id(&ada().id).unwrap();
    assert!(authority.refresh().unwrap());
    scratch.clock.advance(Duration::days(16));
    authority.issue(ada()).unwrap();
    assert!(authority.refresh().unwrap(), "issuing renewed the intermediate");
    assert!(!authority.refresh().unwrap());
}

#[test]
fn nobody_gets_a_leaf_whose_list_the_gateway_does_not_have_yet() {
    let scratch = Scratch::new();
    let (gateway, command_line) = (scratch.open().unwrap(), scratch.open().unwrap());
    // Renewed by the command line, which issues at once.
    scratch.clock.advance(Duration::days(15) - Duration::SECOND);
    gateway.refresh().unwrap();
    scratch.clock.advance(Duration::SECOND);
    let leaf = command_line.issue(ada()).unwrap();
    assert_eq!(command_line.status().intermediates.len(), 2);
    assert_eq!(who(&gateway, &leaf.chain, scratch.clock.now()), None);
    // A minute later the gateway has had time to look.
    gateway.refresh().unwrap();
    scratch.clock.advance(Duration::MINUTE);
    let next = command_line.issue(bob()).unwrap();
    assert_ne!(next.chain[1], leaf.chain[1]);
    assert_eq!(who(&gateway, &next.chain, scratch.clock.now()), None);
}

#[test]
fn a_clock_set_back_does_not_keep_anybody_in() {
    let scratch = Scratch::new();
    let (gateway, command_line) = (scratch.open().unwrap(), scratch.open().unwrap());
    let leaf = gateway.issue(ada()).unwrap();
    scratch.clock.advance(Duration::hours(2));
    gateway.refresh().unwrap();
    scratch.clock.advance(Duration::hours(-1));
    command_line.revoke_id(&ada().id).unwrap();
    assert!(gateway.refresh().is_err_and(|error| matches!(error, CertsError::ClockSetBack { .. })));
    assert_eq!(who(&gateway, &leaf.chain, scratch.clock.now()), Some(Reason::Revoked));
    // Also while it is quiet about the clock.
    let later = {
        scratch.clock.advance(Duration::HOUR);
        let leaf = command_line.issue(bob()).unwrap();
        scratch.clock.advance(Duration::hours(-1));
        leaf
    };
    command_line.revoke_id(&bob().id).unwrap();
    assert!(gateway.refresh().unwrap());
    assert_eq!(who(&gateway, &later.chain, START + Duration::hours(2)), Some(Reason::Revoked));
}

#[test]
fn more_retired_keys_than_lists_do_not_stop_it() {
    let scratch = Scratch::new();
    for number in 0..40 {
        let prefix = if number % 2 == 0 { PathPrefix::whole_domain() } else { "/clerk".parse().unwrap() };
        let options = AuthorityOptions { prefix, ..scratch.options() };
        let authority = Authority::open_or_create(&scratch.dir, options).unwrap();
        let leaf = authority.issue(ada()).unwrap();
        assert_eq!(who(&authority, &leaf.chain, START), None);
        scratch.clock.advance(Duration::SECOND);
    }
}

#[test]
fn lists_are_renewed_at_half_of_their_day() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    assert_eq!(authority.trust().next_update(), Some(START + Duration::DAY));
    scratch.clock.advance(Duration::hours(12) - Duration::SECOND);
    assert!(!authority.refresh().unwrap());
    scratch.clock.advance(Duration::SECOND);
    assert!(authority.refresh().unwrap());
    assert_eq!(authority.trust().next_update(), Some(START + Duration::hours(36)));
}

#[test]
fn a_retired_intermediate_is_kept_for_as_long_as_its_leaves_live() {
    let scratch = Scratch::new();
    let authority = scratch.open().unwrap();
    scratch.clock.advance(Duration::days(15) - Duration::HOUR);
    let old = authority.issue(ada()).unwrap();
    scratch.clock.advance(Duration::HOUR);
    assert!(authority.refresh().unwrap(), "a new list");
    assert_eq!(authority.status().intermediates.len(), 2);
    let now = scratch.clock.now();
    assert_eq!(who(&authority, &old.chain, now), None);
    authority.revoke_id(&ada().id).unwrap();
    assert_eq!(who(&authority, &old.chain, now), Some(Reason::Revoked), "its issuer signs its revocation");
    assert_eq!(who(&scratch.open().unwrap(), &old.chain, now), Some(Reason::Revoked));
    scratch.clock.advance(Duration::hours(72));
    authority.refresh().unwrap();
    assert_eq!(authority.status().intermediates.len(), 2);
    scratch.clock.advance(Duration::SECOND);
    authority.refresh().unwrap();
    assert_eq!(authority.status().intermediates.len(), 1);
    let names = fs::read_dir(&scratch.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with("retired-")), "the key is gone");
}
