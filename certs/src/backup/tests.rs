use std::{path::PathBuf, sync::Arc, time::Duration};

use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::{AuthorityOptions, LeafRequest, Role, clock::fake::FakeClock};

const PASSPHRASE: &str = "correct horse battery";

struct Place {
    _folder: tempfile::TempDir,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("authority");
        Self { _folder: folder, dir }
    }

    fn open(&self) -> Authority {
        let clock = Arc::new(FakeClock::at(datetime!(2026-11-01 08:00 UTC)));
        let options = AuthorityOptions { clock, ..AuthorityOptions::new("td", Duration::from_secs(3600)) };
        Authority::open_or_create(&self.dir, options).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn ada() -> crate::SpiffeId {
    "spiffe://td/ada".parse().unwrap()
}

/// A backup of an authority with a revoked leaf and an invitation.
fn backup() -> (Place, Vec<u8>, Vec<u8>) {
    let place = Place::new();
    let authority = place.open();
    authority.issue(LeafRequest { id: ada(), role: Role::Workload }).unwrap();
    authority.revoke_id(&ada()).unwrap();
    let token = authority.invite(&ada(), Duration::from_secs(60)).unwrap();
    let bytes = Authority::backup(&place.dir, PASSPHRASE).unwrap();
    (place, bytes, token.secret().to_vec())
}

#[test]
fn what_is_restored_is_what_was_there() {
    let (before, bytes, secret) = backup();
    let after = Place::new();
    Authority::restore(&after.dir, &bytes, PASSPHRASE).unwrap();
    assert_eq!(after.names(), before.names());
    for name in ["root.pem", "intermediate.pem"] {
        assert_eq!(fs::read(after.dir.join(name)).unwrap(), fs::read(before.dir.join(name)).unwrap());
    }
    let (old, new) = (before.open(), after.open());
    assert_eq!(old.trust_bundle(), new.trust_bundle());
    assert_eq!((new.status().revoked, new.status().invited), (1, 0));
    let csr = crate::Csr::generate(&ada()).unwrap();
    assert!(matches!(new.enrol(&secret, &csr.der), Err(CertsError::InviteRefused)), "invitations stay behind");
    assert_eq!(old.status().invited, 1);
}

#[test]
fn an_authority_is_never_overwritten() {
    let (place, bytes, _) = backup();
    let refused = Authority::restore(&place.dir, &bytes, PASSPHRASE).unwrap_err().to_string();
    assert!(refused.contains("not empty"), "{refused}");
    place.open();
    // An empty folder, or one that something else locked once, is none.
    let empty = Place::new();
    fs::create_dir(&empty.dir).unwrap();
    fs::write(empty.dir.join("lock"), b"").unwrap();
    // What a crash left behind.
    let beside = empty.dir.with_file_name(".authority.restoring");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("root.pem"), b"half").unwrap();
    Authority::restore(&empty.dir, &bytes, PASSPHRASE).unwrap();
    assert!(!beside.exists());
    empty.open();
}

#[test]
fn nothing_in_it_is_readable_and_none_is_like_another() {
    let (place, bytes, _) = backup();
    let find = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(!find(b"PRIVATE KEY") && !find(b"root.pem") && !find(b"spiffe"));
    let again = Authority::backup(&place.dir, PASSPHRASE).unwrap();
    assert_ne!(again[24..52], bytes[24..52], "salt and nonce are new");
}

#[test]
fn refuses_wrong_passphrases_and_odd_files() {
    let (place, bytes, _) = backup();
    let target = Place::new();
    let why = |bytes: &[u8], passphrase: &str| match Authority::restore(&target.dir, bytes, passphrase) {
        Err(CertsError::Backup(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(why(&bytes, "correct horse batterz").contains("passphrase is wrong"));
    assert!(why(b"", PASSPHRASE).contains("no backup"));
    assert!(why(&bytes[..HEADER_BYTES - 1], PASSPHRASE).contains("no backup"));
    assert!(why(&bytes[..HEADER_BYTES], PASSPHRASE).contains("wrong"));
    let with = |position: usize, value: &[u8]| {
        let mut changed = bytes.clone();
        changed[position..position + value.len()].copy_from_slice(value);
        changed
    };
    assert!(why(&with(14, &[2]), PASSPHRASE).contains("later version"));
    // Each of these alone would keep the machine busy for a long time, if it were believed.
    for (position, value) in [(15, &[17][..]), (15, &[0]), (16, &[0xff; 4]), (20, &[0xff; 4]), (20, &[0; 4])] {
        assert!(why(&with(position, value), PASSPHRASE).contains("too much"), "{position}");
    }
    assert!(!target.dir.exists(), "nothing was made");
    assert!(matches!(Authority::backup(&place.dir, "too short"), Err(CertsError::Backup(_))));
    assert!(matches!(Authority::backup(&target.dir, PASSPHRASE), Err(CertsError::Backup(_))));
    assert!(!target.dir.exists());
}

#[test]
fn a_name_leads_nowhere_else() {
    for name in ["root.pem", "retired-00ff.pem", "ledger.json"] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", ".", "..", "../root.pem", "a/b", ".hidden", "A", "a b", "a\0"] {
        assert!(!is_name(name), "{name}");
    }
    let header = Header { lanes: 1, memory_kib: 8, passes: 1, salt: [1; 16], nonce: [2; 12] };
    let mut bytes = header.to_bytes();
    assert_eq!(Header::from_bytes(&bytes).unwrap(), header);
    let files = BTreeMap::from([("../evil".to_owned(), "AQ==".to_owned())]);
    let text = serde_json::to_vec(&Contents { files }).unwrap();
    let payload = Payload { msg: &text, aad: &bytes };
    bytes.extend(header.cipher(PASSPHRASE).unwrap().encrypt(&header.nonce.into(), payload).unwrap());
    let target = Place::new();
    assert!(matches!(Authority::restore(&target.dir, &bytes, PASSPHRASE), Err(CertsError::Backup(_))));
    assert!(!target.dir.exists());
}

#[test]
fn any_changed_byte_is_noticed() {
    let (_place, bytes, _) = backup();
    proptest!(ProptestConfig::with_cases(60), |(position in any::<prop::sample::Index>(), change in 1_u8..)| {
        let mut changed = bytes.clone();
        changed[position.index(bytes.len())] ^= change;
        // Sixteen lanes or passes are allowed, and slow without optimisation.
        prop_assume!(changed[15..24] == bytes[15..24]);
        prop_assert!(open(&changed, PASSPHRASE).is_err());
    });
}
