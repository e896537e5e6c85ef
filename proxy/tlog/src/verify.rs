//! The whole check of a log, with its files and a public key.

use std::collections::BTreeMap;

use tlog_tiles::tlog::record_hash;

use crate::files::MAX_BUNDLE;
use crate::layout::{self, HASH, Kind, LEVELS, WIDTH};
use crate::log::edge;
use crate::tree::{Full, Tree};
use crate::{Files, Head, Key, LogError, WitnessKey, files, journal};

/// Findings that are told; there may be as many as records.
const MAX_FINDINGS: usize = 100;

/// What is believed beside the log's own files.
#[derive(Debug)]
pub struct Trusted<'a> {
    /// Whose log it is.
    pub key: &'a Key,
    /// Checkpoints of it that came another way: from a witness, a copy, a note in a safe. Each with where it is from.
    pub later: &'a [(String, Vec<u8>)],
    /// Witnesses that must have signed one of those, or the newest of the folder.
    pub witnesses: &'a [WitnessKey],
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: a file, or records.
    pub place: String,
    /// What.
    pub what: String,
}

/// What the check showed.
#[derive(Debug, Default)]
pub struct Report {
    /// Records of the newest checkpoint.
    pub size: u64,
    /// Its root.
    pub root: Option<crate::Hash>,
    /// The first record that is kept. Whether those before were past their time is for the caller to judge.
    pub first: u64,
    /// Records that are there and were read.
    pub checked: u64,
    /// Records after the newest checkpoint: written, not signed yet.
    pub unsigned: u64,
    /// Checkpoints of segments that were compared.
    pub kept: usize,
    /// The largest tree that somebody else vouches for, by a later checkpoint or a witness: up to there nothing is missing.
    pub vouched: Option<u64>,
    /// What is kept here as signed by witnesses: the name of the file, and the size. Whether they did is known of those that were asked for.
    pub cosigned: Vec<(String, u64)>,
    /// For each witness that was asked for and has signed: its name, the size, and when, in seconds since 1970.
    pub witnessed: Vec<(String, u64, u64)>,
    /// What is not as it must be.
    pub findings: Vec<Finding>,
}

impl Report {
    fn find(&mut self, place: impl Into<String>, what: impl Into<String>) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { place: place.into(), what: what.into() });
        }
    }

    /// Whether everything that is there is what was signed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Reads the whole log once, and compares: every record with the hash of its leaf, every tile with what it follows from, every
/// checkpoint with the tree of its size. `each` gets every record that is there, also those after the newest checkpoint, with
/// its number.
///
/// # Errors
/// A file cannot be read at all, or the folder has no checkpoint of this key. What is wrong with what can be read is in the report.
pub fn verify(files: &Files, trusted: &Trusted<'_>, mut each: impl FnMut(u64, &[u8])) -> Result<Report, LogError> {
    // Before the newest, so that none that is added meanwhile has more than that.
    let (kept, witnessed) = (kept_heads(files, trusted.key)?, files.witnessed()?);
    let bytes = files
        .checkpoint()?
        .ok_or_else(|| LogError::Missing(format!("a log in {}, at least its checkpoint,", files.dir().display())))?;
    let path = files.checkpoint_path();
    let newest = trusted.key.checkpoint(&bytes).map_err(|error| LogError::malformed(&path, error.to_string()))?;
    let head = newest.head;
    let mut report =
        Report { size: head.size, root: Some(head.root), first: files.first()?.min(head.size), ..Report::default() };
    let beside = beside(trusted, witnessed, &mut report);
    let mut heads = judged(kept, &mut report);
    heads.extend(beside.iter().map(|beside| (beside.place.clone(), beside.head.clone())));
    heads.push((NEWEST.into(), head.clone()));
    heads.sort_by_key(|(_, head)| head.size);
    let (tree, compared) = read_all(files, &head, &heads, &mut report, &mut each);
    if let Some(tree) = &tree {
        compare_partial(files, tree, &mut report);
    }
    compare_journal(files, tree.as_ref(), &mut report)?;
    compare_names(files, &mut report)?;
    report.unsigned = files.end()?.saturating_sub(head.size);
    for (number, entry) in (head.size..).zip(files.entries(head.size, head.size + report.unsigned)) {
        match entry {
            Ok(entry) => each(number, &entry),
            Err(error) => report.find("records after the checkpoint", error.to_string()),
        }
        report.checked += 1;
    }
    judge(files, &heads, &compared, &mut report);
    let good: Vec<&Beside> =
        beside.iter().filter(|one| !report.findings.iter().any(|finding| finding.place == one.place)).collect();
    vouch(trusted, &good, &bytes, &mut report);
    Ok(report)
}

/// The place of the newest checkpoint.
const NEWEST: &str = "checkpoint";

/// A checkpoint that is not one of the folder's own.
struct Beside {
    place: String,
    head: Head,
    bytes: Vec<u8>,
    /// The file in `witnessed`, if it is from there.
    witnessed: Option<String>,
}

/// What came another way, and what is kept as signed by witnesses, as far as it is of this log. More than there is shows that the log was
/// set back; whoever does that may forget what a witness signed, or not have it of that time.
fn beside(trusted: &Trusted<'_>, witnessed: BTreeMap<String, Vec<u8>>, report: &mut Report) -> Vec<Beside> {
    let later = trusted.later.iter().map(|(name, bytes)| (format!("later checkpoint {name}"), None, bytes.clone()));
    let witnessed = witnessed.into_iter().map(|(name, bytes)| (format!("witnessed/{name}"), Some(name), bytes));
    let mut good = Vec::new();
    for (place, witnessed, bytes) in later.chain(witnessed) {
        let head = match trusted.key.checkpoint(&bytes) {
            Ok(signed) => signed.head,
            Err(error) => {
                report.find(place, error.to_string());
                continue;
            }
        };
        if head.size > report.size {
            let what = if witnessed.is_some() { "a witness has seen" } else { "it has" };
            let (there, newest) = (head.size, report.size);
            report.find(
                place,
                format!(
                    "{what} {there} records, and the newest checkpoint of the folder {newest}: the log was set back, and {} records are missing",
                    there - newest
                ),
            );
            continue;
        }
        good.push(Beside { place, head, bytes, witnessed });
    }
    good
}

/// A checkpoint by the name of its file, or why it is none.
type NamedHead = (String, Result<Head, LogError>);

/// The checkpoints at the ends of segments, of which no more is held than what they say.
fn kept_heads(files: &Files, key: &Key) -> Result<Vec<NamedHead>, LogError> {
    let mut heads = Vec::new();
    for name in files.kept()? {
        if let Some(bytes) = files.kept_one(&name)? {
            heads.push((format!("checkpoints/{name}"), key.checkpoint(&bytes).map(|signed| signed.head)));
        }
    }
    Ok(heads)
}

fn judged(kept: Vec<(String, Result<Head, LogError>)>, report: &mut Report) -> Vec<(String, Head)> {
    let mut heads = Vec::new();
    for (place, head) in kept {
        match head {
            Ok(head) if head.size > report.size => report.find(
                place,
                format!(
                    "it is a checkpoint of {} records, and the newest has {}: the log was set back",
                    head.size, report.size
                ),
            ),
            Ok(head) => {
                report.kept += 1;
                heads.push((place, head));
            }
            Err(error) => report.find(place, error.to_string()),
        }
    }
    // The names of segments ascend, and so do their ends.
    let falls = heads.windows(2).find_map(|pair| match pair {
        [(_, earlier), (place, later)] if later.size < earlier.size => Some(place.clone()),
        _ => None,
    });
    if let Some(place) = falls {
        report.find(place, "it has fewer records than the segment before it: it was replaced by an older one");
    }
    heads
}

/// Which heads are those of the tree that is built from the records, by their places in the list; those that are not in it were not reached.
type Compared = BTreeMap<usize, bool>;

/// Builds the tree anew from what is there, and compares it with every head on the way. The tree, if all of it was there.
fn read_all(
    files: &Files,
    newest: &Head,
    heads: &[(String, Head)],
    report: &mut Report,
    each: &mut impl FnMut(u64, &[u8]),
) -> (Option<Tree>, Compared) {
    let first = report.first / WIDTH * WIDTH;
    let mut compared = Compared::new();
    // Their records are gone: a proof says it, towards what is signed and compared.
    for (at, (place, head)) in heads.iter().enumerate().filter(|(_, (_, head))| head.size < first) {
        match files.is_beginning(head, newest) {
            Ok(is_it) => drop(compared.insert(at, is_it)),
            Err(error) => report.find(place, format!("it cannot be compared: {error}")),
        }
    }
    let mut tree = match edge(files, first) {
        Ok(edge) => Tree::with_edge(first, edge),
        Err(error) => {
            report.find(format!("tiles before record {first}"), error.to_string());
            return (None, compared);
        }
    };
    let mut due = heads.iter().enumerate().filter(|(_, (_, head))| head.size >= first).peekable();
    let mut entries = files.entries(first, report.size);
    loop {
        while let Some((at, (_, head))) = due.next_if(|(_, (_, head))| head.size == tree.size()) {
            compared.insert(at, tree.root().is_ok_and(|root| root == head.root));
        }
        match entries.next() {
            None => return (Some(tree), compared),
            Some(Err(error)) => {
                report.find(format!("records from {} on", tree.size()), error.to_string());
                return (None, compared);
            }
            Some(Ok(entry)) => {
                each(tree.size(), &entry);
                report.checked += 1;
                let mut full = Vec::new();
                tree.push(record_hash(&entry), |tile| full.push(tile));
                for tile in full {
                    compare_tile(files, &tile, report);
                }
            }
        }
    }
}

/// Says of each head whether it is the beginning of what is here. Where the records are not those of the newest checkpoint, or not all there,
/// what is known of the others is what can be proved towards that one: a history is another one only by the signatures.
fn judge(files: &Files, heads: &[(String, Head)], compared: &Compared, report: &mut Report) {
    let newest = heads.iter().enumerate().find(|(_, (place, _))| place == NEWEST);
    let Some((at, (_, newest))) = newest else { return };
    let is_whole = compared.get(&at) == Some(&true);
    for (at, (place, head)) in heads.iter().enumerate() {
        let of = head.size;
        let is_own = place == NEWEST || place.starts_with("checkpoints/");
        match compared.get(&at) {
            Some(true) => {}
            Some(false) if is_own => report.find(
                place,
                format!("the first {of} records are not those that were signed: some were changed, moved or replaced"),
            ),
            Some(false) if is_whole => {
                report.find(place, "it is signed, and of another history than the one that is here");
            }
            Some(false) | None => match files.is_beginning(head, newest) {
                Ok(true) => {}
                Ok(false) | Err(_) if report.findings.iter().any(|finding| finding.place == *place) => {}
                Ok(false) => report.find(
                    place,
                    format!("it cannot be shown that its {of} records are the beginning of what is here: records or tiles were changed, or it is of another history"),
                ),
                Err(error) => report.find(place, format!("it cannot be compared: {error}")),
            },
        }
    }
}

/// Tiles beyond what is written: a failure of power leaves some, until the next start; whoever else puts one there wants it to be read.
fn compare_names(files: &Files, report: &mut Report) -> Result<(), LogError> {
    if files.tiles_beyond(report.size)?.is_empty() {
        return Ok(());
    }
    // It may have gone on meanwhile, and tiles are written before they are signed.
    let beyond = files.tiles_beyond(report.size)?;
    let end = files.end()?.max(report.size);
    let still = files.tiles_beyond(end)?;
    for name in beyond.into_iter().filter(|name| still.contains(name)) {
        report.find(
            name.display().to_string(),
            format!("there are {end} records, and no tile of so many has this name: it is no part of the log"),
        );
    }
    Ok(())
}

/// A tile as it follows from the records, and as it is there. A difference says where a record was changed.
fn compare_tile(files: &Files, tile: &Full, report: &mut Report) {
    let name = layout::tile(Kind::Level(tile.level), tile.index, WIDTH);
    let there = match files::read(&files.dir().join(&name), WIDTH * HASH as u64) {
        Ok(Some(there)) => there,
        // It is made again from its records.
        Ok(None) => return,
        Err(error) => return report.find(name.display().to_string(), error.to_string()),
    };
    let pairs = tile.hashes.chunks(HASH).zip(there.chunks(HASH));
    let different: Vec<u64> =
        (0u64..).zip(pairs).filter(|(_, (ours, theirs))| ours != theirs).map(|(place, _)| place).collect();
    let Some(at) = different.first() else {
        if there.len() != tile.hashes.len() {
            report.find(name.display().to_string(), "it is cut");
        }
        return;
    };
    let place = match tile.level {
        0 => format!("record {}", tile.index * WIDTH + at),
        _ => name.display().to_string(),
    };
    let what = "its hash is not the one that the tree has: the record or the tile was changed";
    report.find(
        place,
        if different.len() == 1 { what.to_owned() } else { format!("{what} ({} in this tile)", different.len()) },
    );
}

/// The tiles that are not full, for those who read nothing else. While the log is written they may be gone by now.
fn compare_partial(files: &Files, tree: &Tree, report: &mut Report) {
    for level in 0..LEVELS {
        let hashes = tree.edge(level);
        let (index, width) = (tree.size() >> (u32::from(level) * 8), (hashes.len() / HASH) as u64);
        if width == 0 {
            continue;
        }
        let mut same = |kind, expected: &[u8]| {
            let name = layout::tile(kind, index / WIDTH, width);
            match files::read(&files.dir().join(&name), MAX_BUNDLE) {
                Ok(None) => {}
                Ok(Some(there)) if there == expected => {}
                Ok(Some(_)) => report.find(name.display().to_string(), "it is not what the records are"),
                Err(error) => report.find(name.display().to_string(), error.to_string()),
            }
        };
        same(Kind::Level(level), hashes);
        if level == 0 {
            let from = tree.size() - width;
            if let Ok(entries) = files.entries(from, tree.size()).collect::<Result<Vec<_>, _>>() {
                same(Kind::Entries, &layout::bundle(&entries));
            }
        }
    }
}

/// The journal has copies of records that are signed, and the gateway begins with them; with the newest of them it ends, or goes on.
fn compare_journal(files: &Files, tree: Option<&Tree>, report: &mut Report) -> Result<(), LogError> {
    let dir = files.journal();
    let full = report.size / WIDTH * WIDTH;
    let size = if tree.is_some() { report.size } else { full };
    let newest = tree.map(|tree| tree.edge(0).to_vec()).unwrap_or_default();
    let mut end = None::<u64>;
    for first in journal::segments(&dir)? {
        // Those after the checkpoint may be in tiles.
        if end.unwrap_or(report.size).max(report.size) < first && files.entry(first - 1).is_err() {
            let what =
                format!("it begins with record {first}, and those before it are nowhere: it is no part of the log");
            report.find(format!("journal/{}", journal::name(first)), what);
            continue;
        }
        let mut tile: Option<(u64, Vec<u8>)> = None;
        let read = journal::read(&dir, first, |number, line| {
            end = end.max(Some(number.saturating_add(1)));
            if number >= size {
                return Ok(false);
            }
            let index = number / WIDTH;
            if tile.as_ref().is_none_or(|(held, _)| *held != index) {
                let hashes = if number >= full { newest.clone() } else { files.hashes(0, index, WIDTH)? };
                tile = Some((index, hashes));
            }
            let at = (number % WIDTH) as usize * HASH;
            let expected = tile.as_ref().and_then(|(_, hashes)| hashes.get(at..at + HASH));
            if expected != Some(&record_hash(&line).0[..]) {
                report.find(format!("journal/{}", journal::name(first)), format!("its record {number} is another one"));
            }
            Ok(true)
        });
        match read {
            // It was taken away meanwhile: the disk has its tiles, and the journal that came after it more than is signed.
            Err(LogError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => report.find(format!("journal/{}", journal::name(first)), error.to_string()),
            Ok(()) => end = end.max(Some(first)),
        }
    }
    if let Some(end) = end.filter(|end| *end < size) {
        report.find(
            "journal",
            format!("it ends before record {end}, and {size} records are signed: some were taken out of it"),
        );
    }
    Ok(())
}

/// What good checkpoints from elsewhere, and witnesses, say of how much there must be.
fn vouch(trusted: &Trusted<'_>, good: &[&Beside], newest: &[u8], report: &mut Report) {
    for one in good {
        match &one.witnessed {
            Some(name) => report.cosigned.push((name.clone(), one.head.size)),
            None => report.vouched = report.vouched.max(Some(one.head.size)),
        }
    }
    for witness in trusted.witnesses {
        let candidates = good.iter().map(|one| one.bytes.as_slice()).chain([newest]);
        let signed = candidates.filter_map(|bytes| {
            let time = witness.time_of(bytes).ok()?;
            Some((trusted.key.checkpoint(bytes).ok()?.head.size, time))
        });
        match signed.max() {
            Some((size, time)) => {
                report.witnessed.push((witness.name().to_owned(), size, time));
                report.vouched = report.vouched.max(Some(size));
            }
            None => report.find(format!("witness {}", witness.name()), "it has signed none of the good checkpoints"),
        }
    }
}
