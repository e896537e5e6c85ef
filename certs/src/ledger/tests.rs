use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-11-01 08:00 UTC);

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn leaf(number: u32, not_after: OffsetDateTime) -> Issued {
    let serial = Serial::from_der(&number.to_be_bytes());
    let (issuer, key) = ("aa".to_owned(), number.to_string());
    Issued { serial, id: id("spiffe://td/ada"), not_after: not_after.unix_timestamp(), issuer, key }
}

#[test]
fn a_full_register_refuses_and_forgets_what_is_over() {
    let mut ledger = Ledger::default();
    for number in 0..u32::try_from(MAX_LEAVES).unwrap() {
        ledger.issued.push(leaf(number, NOW + Duration::hours(i64::from(number % 3) + 1)));
    }
    let next = leaf(u32::MAX, NOW + Duration::DAY);
    assert!(matches!(ledger.register(next.clone(), NOW), Err(CertsError::RegisterFull { .. })));
    // An hour later the oldest have ended, and give way one by one before the day of grace is over.
    ledger.register(next.clone(), NOW + Duration::hours(2)).unwrap();
    assert_eq!(ledger.issued.len(), MAX_LEAVES);
    assert!(ledger.knows_key(&next.key));
    ledger.forget(NOW + Duration::days(3));
    assert_eq!(ledger.issued, []);
}

#[test]
fn a_revocation_is_not_forgotten_by_the_clock() {
    let mut ledger = Ledger::default();
    let (first, second) = (leaf(1, NOW + Duration::HOUR), leaf(2, NOW + Duration::DAY));
    ledger.register(first.clone(), NOW).unwrap();
    ledger.register(second.clone(), NOW).unwrap();
    assert_eq!(ledger.revoke(|leaf| leaf.serial == first.serial, NOW), std::slice::from_ref(&first.serial));
    assert!(ledger.is_revoked(&first.serial, "aa") && !ledger.is_revoked(&first.serial, "bb"));
    assert!(!ledger.is_revoked(&second.serial, "aa"));
    assert_eq!(ledger.revoke(|_| true, NOW).len(), 2, "again does no harm");
    assert_eq!(ledger.revoked.len(), 2);
    assert_eq!(Ledger::from_json(&ledger.to_json().unwrap()).unwrap(), ledger);
    ledger.forget(NOW + Duration::days(4000));
    assert!(ledger.is_revoked(&first.serial, "aa") && ledger.is_revoked(&second.serial, "aa"));
}

#[test]
fn an_invitation_is_for_one_and_for_minutes() {
    let mut ledger = Ledger::default();
    let until = NOW + Duration::MINUTE;
    ledger.invite(b"one", id("spiffe://td/ada"), until, NOW).unwrap();
    ledger.invite(b"two", id("spiffe://td/bob"), until, NOW).unwrap();
    assert!(!String::from_utf8(ledger.to_json().unwrap()).unwrap().contains("one"), "the secret is not kept");
    assert!(matches!(ledger.accept(b"three", NOW), Err(CertsError::InviteRefused)));
    assert_eq!(ledger.accept(b"two", NOW).unwrap(), id("spiffe://td/bob"));
    assert!(matches!(ledger.accept(b"two", NOW), Err(CertsError::InviteRefused)));
    assert!(matches!(ledger.accept(b"one", until + Duration::SECOND), Err(CertsError::InviteRefused)));
    assert_eq!(ledger.invites.len(), 0);
}

#[test]
fn invitations_are_bounded() {
    let mut ledger = Ledger::default();
    let invite = |ledger: &mut Ledger, number: usize, now| {
        ledger.invite(&number.to_be_bytes(), id("spiffe://td/ada"), now + Duration::MINUTE, now)
    };
    for number in 0..MAX_INVITES {
        invite(&mut ledger, number, NOW).unwrap();
    }
    assert!(matches!(invite(&mut ledger, MAX_INVITES, NOW), Err(CertsError::NotInvitable(_))));
    invite(&mut ledger, MAX_INVITES, NOW + Duration::minutes(2)).unwrap();
    assert_eq!(ledger.invites.len(), 1, "those that are over make room");
}

#[test]
fn another_version_is_not_guessed_at() {
    let text = String::from_utf8(Ledger::default().to_json().unwrap()).unwrap();
    assert!(Ledger::from_json(text.replace("\"version\":1", "\"version\":2").as_bytes()).is_err());
    assert!(Ledger::from_json(text.replace("\"version\":1", "\"version\":1,\"new\":1").as_bytes()).is_err());
}
