//! A copy of a log that somebody else writes, in a folder of the same form. Nothing gets there that its writer did not sign: each step
//! brings entries together with a checkpoint of just the tree that they make, and is compared before anything is written.

use tlog_tiles::tlog::record_hash;

use crate::layout;
use crate::log::{self, Log};
use crate::{Files, Hash, Head, Key, LogError, MAX_ENTRY, SecretKey, Signed};

use std::path::Path;

/// Bytes of a step at most, as it is sent.
pub const MAX_PUSH: usize = 2 << 20;
/// Bytes of the entries of a step after which no other is added.
const ENOUGH: usize = 1 << 20;
/// Entries of a step at most.
const MAX_ENTRIES: usize = 4096;
/// Bytes of a checkpoint at most: it has few signatures, and each day one is kept.
const MAX_CHECKPOINT: u64 = 4096;
const FIRST_WORD: &str = "postern-copy/v1";

/// A log of somebody else, as it is kept here.
#[derive(Debug)]
pub struct Mirror {
    log: Log,
    key: Key,
}

/// Entries of a log from one number on, with the checkpoint of the tree that they make. Without entries: a checkpoint alone, to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The number of the first.
    pub from: u64,
    /// The entries.
    pub entries: Vec<Vec<u8>>,
    /// Signed by the log's writer.
    pub checkpoint: Vec<u8>,
}

/// Why a step is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It begins somewhere else than this copy ends.
    #[error("this copy has {size} records, and what came does not go on from there")]
    Elsewhere {
        /// How many records this copy has.
        size: u64,
    },
    /// It is not what it must be.
    #[error("it is not written as a step of a copy: {0}")]
    Malformed(&'static str),
    /// Not signed by the log's key.
    #[error("its checkpoint is not good: {0}")]
    NotSigned(String),
    /// Its writer signed that it has less than it has given.
    #[error("this copy has {has} records, and the log says by its signature that it has {shown}: it was set back")]
    SetBack {
        /// Records of this copy.
        has: u64,
        /// Records by the checkpoint that came.
        shown: u64,
    },
    /// Its writer signed another history.
    #[error(
        "the first {size} records are, by the signature of the log, others than it signed before: it was rewritten"
    )]
    Rewritten {
        /// Records by the checkpoint that came.
        size: u64,
    },
    /// The disk says no. What is there is as it was when it is opened again.
    #[error(transparent)]
    Disk(LogError),
}

impl Push {
    /// What comes after the first `from` entries of a log, up to its checkpoint `newest`, or as much of it as is sent at a time; then the
    /// tree of that size is signed by itself. `until`: no further than this number of entries.
    ///
    /// # Errors
    /// What is needed of the log is not there.
    pub fn of(files: &Files, key: &SecretKey, newest: &Signed, from: u64, until: u64) -> Result<Self, LogError> {
        let end = newest.head.size.min(until);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in files.entries(from, end.max(from)) {
            let entry = entry?;
            bytes += entry.len() + 2;
            entries.push(entry);
            if bytes >= ENOUGH || entries.len() >= MAX_ENTRIES {
                break;
            }
        }
        let size = from + entries.len() as u64;
        let checkpoint = match size {
            size if size == newest.head.size => newest.bytes.clone(),
            size => {
                let head = Head { origin: newest.head.origin.clone(), size, root: files.root(size)? };
                // Whoever can write the files must not be able to have another history signed.
                if !files.is_beginning(&head, &newest.head)? {
                    return Err(LogError::Changed { size });
                }
                key.checkpoint(size, head.root)?
            }
        };
        Ok(Self { from, entries, checkpoint })
    }

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let first = format!("{FIRST_WORD} {} {} {}\n", self.from, self.entries.len(), self.checkpoint.len());
        [first.as_bytes(), &self.checkpoint, &layout::bundle(&self.entries)].concat()
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let bad = Refusal::Malformed;
        if bytes.len() > MAX_PUSH {
            return Err(bad("it is too long"));
        }
        let end = bytes.iter().take(128).position(|byte| *byte == b'\n').ok_or(bad("its first line is none"))?;
        let (first, rest) = bytes.split_at(end);
        let first = std::str::from_utf8(first).map_err(|_| bad("its first line is none"))?;
        let mut words = first.split(' ');
        if words.next() != Some(FIRST_WORD) {
            return Err(bad("its first line is another"));
        }
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(from), Some(count), Some(length)) = (number(), number(), number()) else {
            return Err(bad("its first line has not three numbers"));
        };
        if count > MAX_ENTRIES as u64 || length > MAX_CHECKPOINT || words.next().is_some() {
            return Err(bad("its first line has not three numbers that can be"));
        }
        let rest = rest.get(1..).unwrap_or_default();
        let (checkpoint, bundle) =
            rest.split_at_checked(length as usize).ok_or(bad("it ends in the middle of its checkpoint"))?;
        let entries = layout::entries(Path::new(""), bundle, count)
            .map_err(|_| bad("it has not as many records as its first line says"))?;
        Ok(Self { from, entries, checkpoint: checkpoint.to_vec() })
    }
}

impl Mirror {
    /// Opens the copy of the log of `key` in `dir`, or begins it in an empty folder. What is there beyond the newest checkpoint goes: it
    /// comes again.
    ///
    /// # Errors
    /// The folder cannot be read or written, holds another log, or less, or something else than what was signed.
    pub fn open(dir: &Path, key: &Key) -> Result<Self, LogError> {
        let (log, _) = Log::recover(dir, (key.clone(), None), |_, signed| signed)?;
        Ok(Self { log, key: key.clone() })
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.log.size()
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &Files {
        self.log.files()
    }

    /// Takes a step, all or nothing of it, and returns how many entries there are then. Entries are on the disk before their checkpoint is.
    /// Where a segment `ended` before this step, the checkpoint that is here is kept under its name, once the step is found good.
    ///
    /// # Errors
    /// See [`Refusal`]. After [`Refusal::Disk`] it must be opened anew.
    pub fn accept(&mut self, push: &Push, ended: Option<&str>) -> Result<u64, Refusal> {
        let (size, count) = (self.size(), push.entries.len() as u64);
        let signed = self.key.checkpoint(&push.checkpoint).map_err(|error| Refusal::NotSigned(error.to_string()))?;
        if push.entries.is_empty() {
            return self.compare(&signed.head);
        }
        if push.from != size {
            return Err(Refusal::Elsewhere { size });
        }
        if signed.head.size != size + count {
            return Err(Refusal::Malformed("its checkpoint is not of the tree that its records make"));
        }
        if push.entries.iter().any(|entry| entry.len() > MAX_ENTRY || entry.contains(&b'\n')) {
            return Err(Refusal::Malformed("a record is too long, or has a line break in it"));
        }
        if self.root_with(&push.entries)? != signed.head.root {
            return Err(Refusal::Rewritten { size: signed.head.size });
        }
        if let Some(name) = ended {
            self.keep(name).map_err(Refusal::Disk)?;
        }
        self.log.append(&push.entries, true).map_err(Refusal::Disk)?;
        self.log.put_theirs(&signed).map_err(Refusal::Disk)?;
        Ok(self.size())
    }

    /// Keeps the newest checkpoint under a name: a segment ends here. What is kept is never another; and names ascend as their ends do, so one
    /// that is not larger than those that are there is left out.
    fn keep(&self, name: &str) -> Result<(), LogError> {
        let Some(bytes) = self.files().checkpoint()? else { return Ok(()) };
        if self.files().kept()?.last().is_some_and(|newest| newest.as_str() >= name) {
            return Ok(());
        }
        log::write(&self.files().kept_path(name), &bytes, true)
    }

    /// The root that the tree would have with these.
    fn root_with(&self, entries: &[Vec<u8>]) -> Result<Hash, Refusal> {
        let mut tree = self.log.tree().clone();
        for entry in entries {
            tree.push(record_hash(entry), |_| {});
        }
        tree.root().map_err(|error| Refusal::Disk(LogError::Note(error.to_string())))
    }

    fn compare(&self, shown: &Head) -> Result<u64, Refusal> {
        let has = self.size();
        if shown.size > has {
            return Err(Refusal::Elsewhere { size: has });
        }
        let root = self.files().root(shown.size).map_err(Refusal::Disk)?;
        match (root == shown.root, shown.size == has) {
            (true, true) => Ok(has),
            (true, false) => Err(Refusal::SetBack { has, shown: shown.size }),
            (false, _) => Err(Refusal::Rewritten { size: shown.size }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SecretKey {
        SecretKey::parse(&SecretKey::generate("branch.example.org/audit/0123abcd").unwrap()).unwrap()
    }

    fn entry(number: u64, long: usize) -> Vec<u8> {
        format!("{{\"record\":\"{number}\",\"x\":\"{}\"}}", "x".repeat(long)).into_bytes()
    }

    /// Sends everything that the mirror lacks, as a sender does.
    fn follow(log: &mut Log, key: &SecretKey, mirror: &mut Mirror) -> Result<usize, Refusal> {
        let (newest, mut steps) = (log.checkpoint().unwrap(), 0);
        while mirror.size() < newest.head.size {
            let push = Push::of(log.files(), key, &newest, mirror.size(), u64::MAX).unwrap();
            mirror.accept(&Push::parse(&push.to_bytes()).unwrap(), None)?;
            steps += 1;
        }
        Ok(steps)
    }

    fn is_good(mirror: &Mirror, key: &SecretKey) -> crate::Report {
        let trusted = crate::Trusted { key: key.public(), later: &[], witnesses: &[] };
        let report = crate::verify(mirror.files(), &trusted, |_, _| {}).unwrap();
        assert!(report.is_good(), "{report:?}");
        report
    }

    #[test]
    fn a_copy_is_the_same_log_in_every_step_and_over_kills() {
        let (dir, secret) = (tempfile::tempdir().unwrap(), key());
        let mut log = Log::open(&dir.path().join("log"), secret.clone(), |_| false).unwrap();
        let at = dir.path().join("copy");
        let mut mirror = Mirror::open(&at, secret.public()).unwrap();
        for round in 0..30u64 {
            let entries: Vec<Vec<u8>> = (0..=round * 40).map(|number| entry(number, 900)).collect();
            log.append(&entries, false).unwrap();
            assert!(follow(&mut log, &secret, &mut mirror).unwrap() >= 1);
            if round % 7 == 3 {
                mirror = Mirror::open(&at, secret.public()).unwrap();
            }
        }
        assert_eq!(mirror.size(), log.size());
        let report = is_good(&mirror, &secret);
        assert_eq!((report.size, report.checked), (log.size(), log.size()));
        // A kill between the records and their checkpoint: they go, and come again.
        log.append(&[entry(1, 10), entry(2, 10)], true).unwrap();
        let newest = log.checkpoint().unwrap();
        let push = Push::of(log.files(), &secret, &newest, mirror.size(), u64::MAX).unwrap();
        mirror.log.append(&push.entries, true).unwrap();
        let mut mirror = Mirror::open(&at, secret.public()).unwrap();
        assert_eq!(mirror.size(), log.size() - 2);
        follow(&mut log, &secret, &mut mirror).unwrap();
        is_good(&mirror, &secret);
        assert!(std::fs::read_dir(at.join("journal")).unwrap().count() <= 3);
    }

    #[test]
    fn the_first_step_may_be_cut_off_as_well() {
        let (dir, secret) = (tempfile::tempdir().unwrap(), key());
        let mut mirror = Mirror::open(dir.path(), secret.public()).unwrap();
        mirror.log.append(&[entry(0, 1)], true).unwrap();
        drop(mirror);
        assert_eq!(Mirror::open(dir.path(), secret.public()).unwrap().size(), 0);
    }

    #[test]
    fn nothing_is_taken_that_is_not_the_next_of_the_same_history() {
        let (dir, secret) = (tempfile::tempdir().unwrap(), key());
        let mut log = Log::open(&dir.path().join("log"), secret.clone(), |_| false).unwrap();
        let mut mirror = Mirror::open(&dir.path().join("copy"), secret.public()).unwrap();
        log.append(&[entry(0, 1), entry(1, 1), entry(2, 1)], false).unwrap();
        let early = log.checkpoint().unwrap();
        log.append(&[entry(3, 1)], false).unwrap();
        follow(&mut log, &secret, &mut mirror).unwrap();
        let newest = log.checkpoint().unwrap();
        let shown = |checkpoint: &[u8]| Push { from: 0, entries: Vec::new(), checkpoint: checkpoint.to_vec() };
        assert_eq!(mirror.accept(&shown(&newest.bytes), None).unwrap(), 4);
        // Set back: by its own signature.
        assert!(matches!(mirror.accept(&shown(&early.bytes), None), Err(Refusal::SetBack { has: 4, shown: 3 })));
        // Rewritten, and longer, or not.
        let other = dir.path().join("other");
        let mut rewritten = Log::open(&other, secret.clone(), |_| false).unwrap();
        rewritten.append(&[entry(0, 1), entry(9, 9), entry(2, 1)], false).unwrap();
        let short = rewritten.checkpoint().unwrap();
        assert!(matches!(mirror.accept(&shown(&short.bytes), None), Err(Refusal::Rewritten { size: 3 })));
        rewritten.append(&[entry(3, 1), entry(4, 1)], false).unwrap();
        let long = rewritten.checkpoint().unwrap();
        let push = Push::of(rewritten.files(), &secret, &long, 4, u64::MAX).unwrap();
        assert!(matches!(mirror.accept(&push, None), Err(Refusal::Rewritten { size: 5 })));
        // Gaps, repeats, somebody else's key, a line break, a checkpoint of something else.
        for from in [0, 3, 5, u64::MAX] {
            let push = Push { from, ..push.clone() };
            assert!(matches!(mirror.accept(&push, None), Err(Refusal::Elsewhere { size: 4 })), "{from}");
        }
        let mut stranger = Log::open(&dir.path().join("stranger"), key(), |_| false).unwrap();
        let strange = Push { checkpoint: stranger.checkpoint().unwrap().bytes, ..push.clone() };
        assert!(matches!(mirror.accept(&strange, None), Err(Refusal::NotSigned(_))));
        let broken = Push { entries: vec![b"a\nb".to_vec()], ..push.clone() };
        assert!(matches!(mirror.accept(&broken, None), Err(Refusal::Malformed(_))));
        let short = Push { entries: vec![entry(4, 1), entry(5, 1)], ..push };
        assert!(matches!(mirror.accept(&short, None), Err(Refusal::Malformed(_))));
        assert_eq!(is_good(&mirror, &secret).size, 4);
    }

    #[test]
    fn what_is_kept_of_a_segment_is_never_another_and_nothing_is_kept_for_what_is_not_good() {
        let (dir, secret) = (tempfile::tempdir().unwrap(), key());
        let mut log = Log::open(&dir.path().join("log"), secret.clone(), |_| false).unwrap();
        let mut mirror = Mirror::open(&dir.path().join("copy"), secret.public()).unwrap();
        let mut step = |mirror: &mut Mirror, name: Option<&str>| {
            log.append(&[entry(1, 1)], false).unwrap();
            let newest = log.checkpoint().unwrap();
            let push = Push::of(log.files(), &secret, &newest, mirror.size(), u64::MAX).unwrap();
            let unsigned = Push { checkpoint: b"nobody's\n".to_vec(), ..push.clone() };
            assert!(matches!(mirror.accept(&unsigned, Some("2026-11-09")), Err(Refusal::NotSigned(_))));
            mirror.accept(&push, name).unwrap();
        };
        step(&mut mirror, None);
        step(&mut mirror, Some("2026-11-04"));
        let kept = mirror.files().kept_one("2026-11-04").unwrap().unwrap();
        // The clock of the writer was set back, and the copy opened again.
        for name in ["2026-11-03", "2026-11-04"] {
            step(&mut mirror, Some(name));
        }
        assert_eq!(mirror.files().kept().unwrap(), ["2026-11-04"]);
        assert_eq!(mirror.files().kept_one("2026-11-04").unwrap().unwrap(), kept);
        is_good(&mirror, &secret);
        let long = Push { from: 0, entries: vec![], checkpoint: vec![b'x'; 4097] };
        assert!(matches!(Push::parse(&long.to_bytes()), Err(Refusal::Malformed(_))), "each day one is kept");
    }

    proptest! {
        #[test]
        fn a_step_comes_back(from in any::<u64>(), entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..20), checkpoint in prop::collection::vec(any::<u8>(), 0..90)) {
            let push = Push { from, entries, checkpoint };
            prop_assert_eq!(&Push::parse(&push.to_bytes()).unwrap(), &push);
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), from in any::<u64>(), count in any::<u64>(), length in any::<u64>()) {
            let _any = Push::parse(&bytes);
            let _any = Push::parse(&[format!("{FIRST_WORD} {from} {count} {length}\n").as_bytes(), &bytes].concat());
        }
    }
}
