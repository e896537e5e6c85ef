use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn key() -> SecretKey {
    SecretKey::parse(&SecretKey::generate("branch-17.example.org/audit/0123abcd").unwrap()).unwrap()
}

/// The last of a writer is `end`.
fn open(dir: &Path, key: &SecretKey) -> Result<Log, LogError> {
    Log::open(dir, key.clone(), |entry| entry == b"end")
}

fn entry(number: u64) -> Vec<u8> {
    format!("{{\"record\":{number},\"text\":\"{}\"}}", "x".repeat((number % 37) as usize)).into_bytes()
}

fn fill(log: &mut Log, upto: u64) {
    while log.size() < upto {
        let batch: Vec<_> = (log.size()..upto.min(log.size() + 100)).map(entry).collect();
        log.append(&batch, false).unwrap();
    }
}

fn check(dir: &Path, key: &SecretKey) -> Report {
    checked(dir, key, &[])
}

fn named(later: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    later.iter().map(|bytes| ("safe".to_owned(), bytes.clone())).collect()
}

fn checked(dir: &Path, key: &SecretKey, later: &[Vec<u8>]) -> Report {
    let trusted = Trusted { key: key.public(), later: &named(later), witnesses: &[] };
    let mut next = None;
    verify(&Files::new(dir), &trusted, |number, _| {
        assert!(next.is_none_or(|next| next == number), "each once, in order");
        next = Some(number + 1);
    })
    .unwrap()
}

/// A log of `size` records in three segments.
fn log(dir: &Path, key: &SecretKey, size: u64) -> Log {
    let mut log = open(dir, key).unwrap();
    for (name, part) in [("2026-11-01", 3), ("2026-11-02", 2), ("2026-11-03", 1)] {
        fill(&mut log, size / part);
        log.end_segment(name).unwrap();
    }
    log
}

#[test]
fn what_is_written_is_found_good_at_any_size_and_after_any_restart() {
    for size in [0, 1, 2, 255, 256, 257, 511, 512, 700, 1300] {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        drop(log(dir.path(), &key, size));
        for _ in 0..2 {
            let report = check(dir.path(), &key);
            assert!(report.is_good(), "{size}: {report:?}");
            assert_eq!((report.size, report.checked, report.kept), (size, size, 3));
            let log = open(dir.path(), &key).unwrap();
            assert_eq!((log.size(), log.signed()), (size, size));
        }
        let files = Files::new(dir.path());
        let read: Vec<_> = files.entries(0, size).map(Result::unwrap).collect();
        assert_eq!(read, (0..size).map(entry).collect::<Vec<_>>());
    }
}

/// The files of the specification, without ours: what a reader of tlog-tiles needs.
#[test]
fn tiles_alone_are_the_whole_log() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    drop(log(dir.path(), &key, 66_000));
    std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
    let report = check(dir.path(), &key);
    assert!(report.is_good(), "{report:?}");
    assert_eq!(report.checked, 66_000);
    for path in ["tile/0/257.p/208", "tile/entries/257.p/208", "tile/1/000", "tile/1/001.p/1", "tile/2/000.p/1"] {
        assert!(dir.path().join(path).exists(), "{path}");
    }
}

#[test]
fn a_proof_needs_the_public_key_alone() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = log(dir.path(), &key, 700);
    fill(&mut log, 1000);
    let signed = log.checkpoint().unwrap();
    for index in [0, 1, 255, 256, 699, 767, 768, 999] {
        let proof = Proof::of(log.files(), &signed.bytes, &signed.head, index).unwrap();
        let text = proof.to_text();
        let again = Proof::parse(&text).unwrap();
        assert_eq!(again, proof);
        assert_eq!(again.check(key.public()).unwrap(), signed.head);
        assert_eq!(again.entry, entry(index));
        // Whatever is changed in it, it does not hold, or says the same.
        for at in (0..text.len()).step_by(7) {
            let mut changed = text.clone();
            changed[at] ^= 4;
            if let Ok(other) = Proof::parse(&changed).and_then(|proof| proof.check(key.public()).map(|_| proof)) {
                assert_eq!((&other.entry, other.index), (&proof.entry, proof.index), "{at}");
            }
        }
        let moved = Proof { index: (index + 1) % 1000, ..proof };
        assert!(moved.check(key.public()).is_err());
    }
    assert!(matches!(
        Proof::of(log.files(), &signed.bytes, &signed.head, 1000),
        Err(LogError::NoEntry { index: 1000, size: 1000 })
    ));
}

/// Every file of the log, by its path.
fn all_files(dir: &Path) -> BTreeSet<std::path::PathBuf> {
    let mut found = BTreeSet::new();
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.append(&mut all_files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

#[test]
fn whatever_is_changed_is_found() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut whole = log(dir.path(), &key, 1300);
    // Its tiles alone count, as they do when the journal has gone on.
    whole.forget("2026-11-01").unwrap();
    drop(whole);
    std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
    assert!(check(dir.path(), &key).is_good());
    let files = all_files(dir.path());
    assert!(files.len() >= 12, "{files:?}");
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let is_bad = |what: &str, how: &str| {
            let trusted = Trusted { key: key.public(), later: &[], witnesses: &[] };
            let report = verify(&Files::new(dir.path()), &trusted, |_, _| {});
            // Whether the first may be gone is for the log's owner to say: see `Report::first`.
            let is_found = report.as_ref().map_or(true, |report| !report.is_good() || report.first != 256);
            assert!(is_found, "{what} {how}: {report:?}");
        };
        let name = path.strip_prefix(dir.path()).unwrap().display().to_string();
        // Everywhere in small files, here and there in large ones.
        for at in (0..bytes.len()).step_by(1 + bytes.len() / 60) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&path, changed).unwrap();
            is_bad(&name, &format!("byte {at}"));
        }
        for part in [0, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..part]).unwrap();
            is_bad(&name, &format!("cut to {part}"));
        }
        std::fs::remove_file(&path).unwrap();
        if name.contains("entries") || name == "checkpoint" {
            is_bad(&name, "deleted");
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(check(dir.path(), &key).is_good());
}

#[test]
fn records_that_change_places_are_found_and_named() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    drop(log(dir.path(), &key, 600));
    std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
    let path = dir.path().join("tile/entries/000");
    let bytes = std::fs::read(&path).unwrap();
    let mut entries = layout::entries(&path, &bytes, 256).unwrap();
    entries.swap(17, 40);
    std::fs::write(&path, layout::bundle(&entries)).unwrap();
    let report = check(dir.path(), &key);
    assert!(report.findings.iter().any(|finding| finding.place == "record 17"), "{report:?}");
    assert!(report.findings.iter().any(|finding| finding.place == "checkpoint"), "{report:?}");
    // With a tree of one's own, that is not signed.
    std::fs::remove_file(dir.path().join("tile/0/000")).unwrap();
    let report = check(dir.path(), &key);
    assert!(report.findings.iter().any(|finding| finding.place == "checkpoint"), "{report:?}");
}

/// A folder as it was, with all it had.
fn copy(from: &Path, to: &Path) {
    for path in all_files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(path, target).unwrap();
    }
}

#[test]
fn a_log_that_is_set_back_is_found_by_a_later_checkpoint_and_by_nothing_else() {
    let (dir, old, key) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), key());
    let mut log = log(dir.path(), &key, 500);
    copy(dir.path(), old.path());
    fill(&mut log, 800);
    let later = log.checkpoint().unwrap().bytes;
    let earlier = std::fs::read(old.path().join("checkpoint")).unwrap();

    let report = checked(dir.path(), &key, &[earlier, later.clone()]);
    assert!(report.is_good(), "{report:?}");
    assert_eq!(report.vouched, Some(800));

    let unknowing = check(old.path(), &key);
    assert!(unknowing.is_good());
    assert_eq!(unknowing.vouched, None, "consistent, and nobody says that it is all");
    let report = checked(old.path(), &key, std::slice::from_ref(&later));
    assert!(report.findings[0].what.contains("300 records are missing"), "{report:?}");

    // The same key, another history.
    let other = tempfile::tempdir().unwrap();
    let mut forked = open(other.path(), &key).unwrap();
    fill(&mut forked, 900);
    forked.append(&[b"another"], false).unwrap();
    forked.checkpoint().unwrap();
    let report = checked(other.path(), &key, &[later]);
    assert!(report.is_good(), "the same records: {report:?}");
    let forked = forked.checkpoint().unwrap().bytes;
    let report = checked(dir.path(), &key, &[forked]);
    assert!(!report.is_good());
}

#[test]
fn what_a_crash_leaves_is_made_whole_and_what_somebody_took_is_told() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut whole = open(dir.path(), &key).unwrap();
    fill(&mut whole, 700);
    whole.checkpoint().unwrap();
    fill(&mut whole, 705);
    drop(whole);
    let journal = dir.path().join("journal/00000000000000000000.jsonl");
    let lines = std::fs::read(&journal).unwrap();
    let open = || super::tests::open(dir.path(), &key);

    // Half a line, and no tile: what a kill and a failure of power leave.
    std::fs::write(&journal, [lines.as_slice(), b"{\"torn"].concat()).unwrap();
    std::fs::remove_dir_all(dir.path().join("tile")).unwrap();
    let mut log = open().unwrap();
    assert_eq!((log.size(), log.signed()), (705, 700));
    assert_eq!(log.recovered(), Recovery { taken: (700, 5), set_aside: 0 });
    log.checkpoint().unwrap();
    drop(log);
    assert!(check(dir.path(), &key).is_good());

    // Less than was signed.
    std::fs::write(&journal, &lines[..lines.len() / 2]).unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, LogError::Lost { signed: 705, .. }), "{error}");
    assert!(error.to_string().contains("are missing"));
    // Something else than was signed.
    let mut changed = lines.clone();
    let at = changed.iter().position(|byte| *byte == b'x').unwrap();
    changed[at] = b'y';
    std::fs::write(&journal, &changed).unwrap();
    assert!(matches!(open().unwrap_err(), LogError::Changed { size: 705 }));
    std::fs::remove_file(&journal).unwrap();
    assert!(open().unwrap_err().to_string().contains("the journal"));
    std::fs::write(&journal, &lines).unwrap();
    let checkpoint = std::fs::read(dir.path().join("checkpoint")).unwrap();
    std::fs::remove_file(dir.path().join("checkpoint")).unwrap();
    assert!(open().unwrap_err().to_string().contains("checkpoint"));
    std::fs::write(dir.path().join("checkpoint"), checkpoint).unwrap();
    assert_eq!(open().unwrap().size(), 705);
    // Another key is another log.
    assert!(super::tests::open(dir.path(), &super::tests::key()).unwrap_err().to_string().contains("not signed by"));
}

#[test]
fn what_stands_after_the_end_of_a_writer_is_nobodys() {
    for size in [3, 255, 256, 600] {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let mut log = open(dir.path(), &key).unwrap();
        fill(&mut log, size - 1);
        log.append(&[b"end"], true).unwrap();
        log.checkpoint().unwrap();
        let journal = log.files().journal().join(journal::name(0));
        drop(log);
        let lines = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, [lines.as_slice(), b"forged\nand forged\n"].concat()).unwrap();
        let mut log = open(dir.path(), &key).unwrap();
        assert_eq!((log.size(), log.recovered()), (size, Recovery { taken: (size, 0), set_aside: 2 }), "{size}");
        fill(&mut log, size + 3);
        log.checkpoint().unwrap();
        drop(log);
        assert!(check(dir.path(), &key).is_good());
        let log = open(dir.path(), &key).unwrap();
        assert_eq!((log.size(), log.recovered().set_aside), (size + 3, 0));
        let aside = all_files(dir.path()).into_iter().find(|path| path.display().to_string().contains("changed-at"));
        assert!(std::fs::read_to_string(aside.unwrap()).unwrap().contains("and forged"), "kept as evidence");
    }
}

#[test]
fn what_is_no_file_is_told_and_nobody_waits_for_it() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    drop(log(dir.path(), &key, 600));
    std::os::unix::fs::symlink(".", dir.path().join("tile/entries/x000")).unwrap();
    std::fs::write(dir.path().join("journal/7777777.jsonl"), "none of ours\n").unwrap();
    assert!(check(dir.path(), &key).is_good(), "{:?}", check(dir.path(), &key));
    assert_eq!(Files::new(dir.path()).end().unwrap(), 600);
    let pipe = dir.path().join("checkpoints/2026-11-04");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let trusted = Trusted { key: key.public(), later: &[], witnesses: &[] };
    let error = verify(&Files::new(dir.path()), &trusted, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("2026-11-04") && error.contains("no plain file"), "{error}");
}

#[test]
fn the_journals_copy_of_a_record_is_compared_too() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    drop(log(dir.path(), &key, 600));
    let journal = dir.path().join("journal/00000000000000000000.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replacen("\"record\":7,", "\"record\":8,", 1)).unwrap();
    let report = check(dir.path(), &key);
    assert!(report.findings[0].what.contains("record 7 is another one"), "{report:?}");
}

#[test]
fn a_torn_tile_of_any_level_is_made_again() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    fill(&mut log, 65_000);
    log.end_segment("2026-11-01").unwrap();
    log.forget("2026-11-01").unwrap();
    fill(&mut log, 65_600);
    drop(log);
    std::fs::write(dir.path().join("tile/1/000"), "").unwrap();
    let log = open(dir.path(), &key).unwrap();
    assert_eq!(log.size(), 65_600);
    assert_eq!(std::fs::metadata(dir.path().join("tile/1/000")).unwrap().len(), 8192);
}

#[test]
fn somebody_elses_hand_in_the_journal_costs_nothing() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("cut", |path| std::fs::write(path, "").unwrap()),
        ("extended", |path| std::fs::write(path, [std::fs::read(path).unwrap(), b"{}\n".to_vec()].concat()).unwrap()),
        ("replaced", |path| {
            std::fs::copy(path, path.with_extension("other")).unwrap();
            std::fs::rename(path.with_extension("other"), path).unwrap();
        }),
    ];
    for (what, change) in changes {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let mut log = open(dir.path(), &key).unwrap();
        fill(&mut log, 300);
        assert_eq!(log.changed(), None);
        change(&dir.path().join("journal/00000000000000000000.jsonl"));
        assert_eq!(log.changed().unwrap().what, what);
        log.mend().unwrap();
        assert_eq!(log.changed(), None);
        fill(&mut log, 310);
        drop(log);
        let log = open(dir.path(), &key).unwrap();
        assert_eq!(log.size(), 310);
        drop(log);
        assert!(check(dir.path(), &key).is_good());
    }
}

#[test]
fn segments_past_their_time_are_deleted_and_the_rest_is_still_proved() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    for (name, upto) in [("2026-05-01", 66_000), ("2026-05-02", 66_500), ("2026-05-03", 67_000)] {
        fill(&mut log, upto);
        log.end_segment(name).unwrap();
    }
    assert_eq!(log.forget("2026-05-02").unwrap(), 66_304);
    fill(&mut log, 68_000);
    let signed = log.checkpoint().unwrap();
    let files = log.files();
    assert!(!dir.path().join("tile/entries/000").exists());
    assert!(!dir.path().join("tile/0/000").exists(), "a full tile above it has its hash");
    assert!(dir.path().join("tile/0/257").exists(), "a kept checkpoint ends in it");
    assert_eq!(files.first().unwrap(), 66_304);
    let report = check(dir.path(), &key);
    assert!(report.is_good(), "{report:?}");
    assert_eq!((report.first, report.checked, report.kept), (66_304, 1696, 3));
    assert!(matches!(files.entry(66_000), Err(LogError::Forgotten { index: 66_000, first: 66_304 })));
    Proof::of(files, &signed.bytes, &signed.head, 66_400).unwrap().check(key.public()).unwrap();
    drop(log);
    assert_eq!(open(dir.path(), &key).unwrap().size(), 68_000);
    // A bundle in the middle that is not there is no matter of time.
    std::fs::remove_file(dir.path().join("tile/entries/260")).unwrap();
    assert!(!check(dir.path(), &key).is_good());
}

#[test]
fn after_records_are_deleted_a_witness_is_given_a_proof_and_a_copy_of_the_folder_goes_on() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let at = dir.path().join("log");
    let mut log = open(&at, &key).unwrap();
    fill(&mut log, 100);
    let early = log.checkpoint().unwrap();
    let witness = WitnessKey::named("witness.example.org", [7; 32]).unwrap();
    crate::keep_cosigned(log.files(), &witness, &early.bytes).unwrap();
    assert!(crate::kept_cosigned(log.files(), key.public(), &witness).unwrap().is_none(), "it has not signed that");
    fill(&mut log, 70_000);
    log.end_segment("2026-05-01").unwrap();
    fill(&mut log, 70_300);
    log.forget("2026-05-01").unwrap();
    let newest = log.checkpoint().unwrap();
    assert!(log.files().first().unwrap() > 0);
    assert!(add_checkpoint(log.files(), &newest, 100).is_ok());
    assert!(!at.join("tile/0/001").exists(), "nobody needs that one");

    let copied = dir.path().join("copy");
    let done = std::process::Command::new("cp").arg("-a").arg(&at).arg(&copied).status().unwrap();
    assert!(done.success());
    let mut mirror = crate::Mirror::open(&copied, key.public()).unwrap();
    fill(&mut log, 70_900);
    let newest = log.checkpoint().unwrap();
    let push = crate::Push::of(log.files(), &key, &newest, mirror.size(), u64::MAX).unwrap();
    assert_eq!(mirror.accept(&push, None).unwrap(), 70_900);
    assert!(check(&copied, &key).is_good());
    let from_nothing = crate::Mirror::open(&dir.path().join("new"), key.public()).unwrap();
    assert!(crate::Push::of(log.files(), &key, &newest, from_nothing.size(), u64::MAX).is_err());
}

#[test]
fn journals_go_on_and_are_deleted_when_their_tiles_are_on_the_disk() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    let long = "y".repeat(40_000);
    let mut written = 0u64;
    for _ in 0..12 {
        let batch: Vec<String> = (0..50).map(|place| format!("{place}{long}")).collect();
        log.append(&batch, true).unwrap();
        written += 50;
    }
    let journals = || std::fs::read_dir(dir.path().join("journal")).unwrap().count();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while journals() > 1 && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(journals(), 1);
    assert_eq!(log.size(), written);
    log.checkpoint().unwrap();
    drop(log);
    assert_eq!(open(dir.path(), &key).unwrap().size(), written);
    assert!(check(dir.path(), &key).is_good());
}

#[test]
fn what_is_no_record_is_refused() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    assert!(log.append(&[b"two\nlines"], true).is_err());
    assert!(log.append(&[vec![b'x'; MAX_ENTRY + 1]], true).is_err());
    assert_eq!(log.append(&[vec![b'x'; MAX_ENTRY]], true).unwrap(), 0);
    assert_eq!(log.append(&["", "a"], true).unwrap(), 1);
    assert_eq!(log.size(), 3);
}

#[test]
fn a_witness_signs_what_goes_on_with_what_it_knows() {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use data_encoding::BASE64;
    use tlog_tiles::tlog::check_tree;
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    fill(&mut log, 300);
    let first = log.checkpoint().unwrap();
    fill(&mut log, 900);
    let second = log.checkpoint().unwrap();

    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = [&[4], pair.public_key().as_ref()].concat();
    let id = signed_note::key_id("witness.example.org", &public);
    let witness = WitnessKey::parse(&format!("witness.example.org+{id:08x}+{}", BASE64.encode(&public))).unwrap();
    assert!(WitnessKey::parse(&key.public().to_string()).is_err(), "a log is no witness");

    let body = String::from_utf8(add_checkpoint(log.files(), &second, 300).unwrap()).unwrap();
    let (asked, note) = body.split_once("\n\n").unwrap();
    let mut lines = asked.lines();
    assert_eq!(lines.next(), Some("old 300"));
    let proof: Vec<Hash> = lines.map(|line| Hash::parse_hash(line).unwrap()).collect();
    check_tree(&proof, 900, second.head.root, 300, first.head.root).unwrap();
    assert_eq!(note.as_bytes(), second.bytes);

    let time = 1_790_000_000u64;
    let text = key.public().text_of(&second.bytes).unwrap();
    let message = [format!("cosignature/v1\ntime {time}\n").as_bytes(), &text].concat();
    let signature = [&id.to_be_bytes()[..], &time.to_be_bytes(), pair.sign(&message).as_ref()].concat();
    let line = format!("\u{2014} witness.example.org {}\n", BASE64.encode(&signature));
    let Answer::Signed(both) = answer(&witness, &second, 200, line.as_bytes()) else { panic!("not signed") };
    assert_eq!(witness.time_of(&both).unwrap(), time);
    assert!(key.public().checkpoint(&both).is_ok(), "both signatures are good");
    assert!(matches!(answer(&witness, &first, 200, line.as_bytes()), Answer::Refused(_)), "of another checkpoint");
    assert_eq!(answer(&witness, &second, 409, b"300\n"), Answer::Knows(300));
    assert!(matches!(answer(&witness, &second, 422, b""), Answer::Contradicts));

    let files = Files::new(dir.path());
    let with = |later: &[Vec<u8>]| {
        let witnesses = std::slice::from_ref(&witness);
        verify(&files, &Trusted { key: key.public(), later: &named(later), witnesses }, |_, _| {}).unwrap()
    };
    let report = with(&[both]);
    assert!(report.is_good(), "{report:?}");
    assert_eq!((report.vouched, report.witnessed.len()), (Some(900), 1));
    assert!(!with(&[]).is_good(), "it has signed nothing of this");
}

/// A log of 400 records that its own key signed anew from record 256 on, and an honest checkpoint of the first 300 as they were.
fn rewritten(dir: &Path, key: &SecretKey) -> (Vec<u8>, Vec<u8>) {
    let honest = tempfile::tempdir().unwrap();
    let mut log = open(honest.path(), key).unwrap();
    fill(&mut log, 300);
    let later = log.checkpoint().unwrap().bytes;
    fill(&mut log, 600);
    log.checkpoint().unwrap();
    let tile = std::fs::read(honest.path().join("tile/0/001")).unwrap();
    let mut log = open(dir, key).unwrap();
    fill(&mut log, 256);
    let others: Vec<_> = (256..400).map(|number| entry(number + 1000)).collect();
    log.append(&others, false).unwrap();
    log.checkpoint().unwrap();
    (later, tile)
}

#[test]
fn a_planted_tile_makes_no_other_history_of_the_one_that_is_there() {
    for (name, hashes) in [("tile/0/001", 256), ("tile/0/001.p/200", 200)] {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let (later, tile) = rewritten(dir.path(), &key);
        let report = checked(dir.path(), &key, std::slice::from_ref(&later));
        let found: Vec<_> = report.findings.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!((found.as_slice(), report.vouched), (&["later checkpoint safe"][..], None), "{report:?}");
        assert!(report.findings[0].what.contains("of another history"), "{report:?}");
        std::fs::write(dir.path().join(name), &tile[..hashes * 32]).unwrap();
        std::fs::create_dir_all(dir.path().join("witnessed")).unwrap();
        std::fs::write(dir.path().join("witnessed/w"), &later).unwrap();
        let report = checked(dir.path(), &key, &[later]);
        let found = |place: &str| report.findings.iter().any(|finding| finding.place == place);
        assert!(found("later checkpoint safe") && found("witnessed/w") && found(name), "{report:?}");
        assert!(report.vouched.is_none() && report.cosigned.is_empty(), "{report:?}");
    }
}

#[test]
fn a_log_whose_journal_alone_was_changed_is_no_other_history() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    fill(&mut log, 300);
    let earlier = log.checkpoint().unwrap().bytes;
    fill(&mut log, 400);
    log.checkpoint().unwrap();
    drop(log);
    let journal = dir.path().join("journal/00000000000000000000.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replacen("\"record\":280,", "\"record\":281,", 1)).unwrap();
    let report = checked(dir.path(), &key, &[earlier]);
    assert!(!report.is_good());
    let places: Vec<_> = report.findings.iter().map(|finding| finding.place.as_str()).collect();
    assert!(!places.iter().any(|place| place.starts_with("later")), "{report:?}");
}

#[test]
fn no_tile_makes_a_copy_be_given_another_history_by_signature() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let mut log = open(dir.path(), &key).unwrap();
    fill(&mut log, 6000);
    let newest = log.checkpoint().unwrap();
    assert!(crate::Push::of(log.files(), &key, &newest, 0, 5000).is_ok());
    let tile = dir.path().join("tile/0/003");
    std::fs::write(&tile, vec![7; 8192]).unwrap();
    assert!(crate::Push::of(log.files(), &key, &newest, 0, 1000).is_err());
}

#[test]
fn a_segment_of_no_record_is_told_and_nothing_overflows() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    drop(log(dir.path(), &key, 600));
    std::fs::write(dir.path().join("journal/18446744073709551615.jsonl"), "a\nb\n").unwrap();
    let report = verify(&Files::new(dir.path()), &Trusted { key: key.public(), later: &[], witnesses: &[] }, |_, _| {});
    let is_told = |report: Report| report.findings.iter().any(|finding| finding.place.contains("18446744073709551615"));
    assert!(report.map_or_else(|error| error.to_string().contains("18446744073709551615"), is_told));
    let _either = open(dir.path(), &key);
}

#[test]
fn links_among_tiles_are_not_followed_and_the_first_of_many_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let entries = dir.path().join("tile/entries");
    std::fs::create_dir_all(entries.join("x001/x000")).unwrap();
    std::fs::create_dir_all(entries.join("x002")).unwrap();
    for number in 0..100 {
        std::os::unix::fs::symlink(".", entries.join(format!("x{number:03}"))).ok();
        std::os::unix::fs::symlink("..", entries.join(format!("x001/x{number:03}"))).ok();
    }
    for name in ["x001/x000/000", "x002/007", "x002/009"] {
        std::fs::write(entries.join(name), "").unwrap();
    }
    let began = std::time::Instant::now();
    assert_eq!(Files::new(dir.path()).first().unwrap(), 2007 * 256);
    assert!(began.elapsed().as_secs() < 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Killed at any byte of the journal and with any tiles: what was told to be durable is there.
    #[test]
    fn cut_anywhere_after_what_was_durable(durable in 0u64..600, more in 0u64..300, cut in any::<prop::sample::Index>(), without in any::<[bool; 4]>()) {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        let mut log = open(dir.path(), &key).unwrap();
        fill(&mut log, durable);
        log.sync().unwrap();
        let journal = dir.path().join("journal/00000000000000000000.jsonl");
        let kept = std::fs::metadata(&journal).unwrap().len();
        fill(&mut log, durable + more);
        drop(log);
        let mut bytes = std::fs::read(&journal).unwrap();
        bytes.truncate(kept as usize + cut.index(bytes.len() - kept as usize + 1));
        std::fs::write(&journal, bytes).unwrap();
        for (is_lost, tile) in without.into_iter().zip(["tile/0/000", "tile/entries/000", "tile/0/001", "tile/entries/001"]) {
            if is_lost && dir.path().join(tile).exists() {
                std::fs::write(dir.path().join(tile), "torn").unwrap();
            }
        }
        let log = open(dir.path(), &key).unwrap();
        prop_assert!(log.size() >= durable && log.size() <= durable + more);
        let read: Vec<_> = log.files().entries(0, log.size()).map(Result::unwrap).collect();
        prop_assert_eq!(read, (0..log.size()).map(entry).collect::<Vec<_>>());
        drop(log);
        prop_assert!(check(dir.path(), &key).is_good());
    }

    /// Whatever is in the folder: an error, never a panic, never without bound.
    #[test]
    fn no_bytes_do_harm(checkpoint in prop::collection::vec(any::<u8>(), 0..200), tile in prop::collection::vec(any::<u8>(), 0..9000), journal in prop::collection::vec(any::<u8>(), 0..900), first in 0u64..600) {
        let (dir, key) = (tempfile::tempdir().unwrap(), key());
        drop(super::tests::log(dir.path(), &key, 600));
        std::fs::write(dir.path().join("tile/entries/001"), &tile).unwrap();
        std::fs::write(dir.path().join("tile/0/001"), &tile).unwrap();
        std::fs::write(dir.path().join(format!("journal/{first:020}.jsonl")), &journal).unwrap();
        let later = named(&[checkpoint.clone(), journal]);
        let trusted = Trusted { key: key.public(), later: &later, witnesses: &[] };
        let report = verify(&Files::new(dir.path()), &trusted, |_, _| {});
        prop_assert!(report.map_or(true, |report| !report.is_good()));
        let _either = open(dir.path(), &key);
        std::fs::write(dir.path().join("checkpoint"), &checkpoint).unwrap();
        let unsigned = verify(&Files::new(dir.path()), &trusted, |_, _| {});
        prop_assert!(unsigned.is_err());
        let _not = Proof::parse(&tile);
    }
}
