//! Writing the log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tlog_tiles::tlog::record_hash;

use crate::journal::{self, Segment};
use crate::layout::{self, HASH, Kind, LEVELS, WIDTH};
use crate::note::{Key, SecretKey};
use crate::tree::{Full, Tree};
use crate::{Files, Head, LogError, MAX_ENTRY, Signed};

/// Bytes of a journal after which the next one is begun.
const JOURNAL: u64 = 8 << 20;
/// Tiles that may wait for the disk. Beyond it nothing is appended.
const DUE: usize = 256;
/// Tiles that may be missing among those that a failure of power left.
const GAPS: u32 = 64;

/// A log that this process writes. Whoever makes one sees to it that no other process does.
#[derive(Debug)]
pub struct Log {
    files: Files,
    key: Key,
    /// Of a copy somebody else has it.
    secret: Option<SecretKey>,
    tree: Tree,
    /// The entries of the bundle that is not full.
    pending: Vec<Vec<u8>>,
    segment: Segment,
    /// Tiles that are full and not written yet.
    due: VecDeque<(PathBuf, Vec<u8>)>,
    /// The tree of the newest checkpoint.
    signed: u64,
    /// The partial tiles of the newest checkpoint.
    partial: Vec<PathBuf>,
    settling: Option<JoinHandle<()>>,
    recovered: Recovery,
}

/// What stood in the journal after the newest checkpoint when the log was opened. It is not signed, so nobody can tell whether the
/// writer before wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// The number of the first entry that was taken over, and how many were.
    pub taken: (u64, u64),
    /// How many were set aside: the newest that is signed was the last of its writer.
    pub set_aside: u64,
}

/// How the journal differs from what was written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// `removed`, `replaced`, `cut` or `extended`.
    pub what: &'static str,
    /// Bytes that were written.
    pub bytes_expected: u64,
    /// Bytes that are there.
    pub bytes_found: u64,
}

impl Log {
    /// Opens the log of `key` in `dir`, or begins it in an empty folder. Whatever a crash left half done is done again or
    /// taken away, and what is there is compared with the newest checkpoint. `is_last` says of an entry whether its writer
    /// writes nothing after it: where that is signed, what follows is somebody else's, and is set aside. See [`Log::recovered`].
    ///
    /// # Errors
    /// The folder cannot be read or written, holds another log, or less, or something else than what was signed.
    pub fn open(dir: &Path, key: SecretKey, is_last: impl Fn(&[u8]) -> bool) -> Result<Self, LogError> {
        let limit = |files: &Files, signed: u64| {
            let newest = signed.checked_sub(1).and_then(|newest| files.entry(newest).ok());
            newest.filter(|newest| is_last(newest)).map_or(u64::MAX, |_| signed)
        };
        let (mut log, head) = Self::recover(dir, (key.public().clone(), Some(key)), limit)?;
        // Without one, a folder whose journal is lost could not be told from a new one.
        if head.is_none() {
            log.checkpoint()?;
        }
        Ok(log)
    }

    /// What is there of the log of `key`, up to the entry number that `limit` says, given how many are signed; and its newest checkpoint.
    pub(crate) fn recover(
        dir: &Path,
        (key, secret): (Key, Option<SecretKey>),
        limit: impl Fn(&Files, u64) -> u64,
    ) -> Result<(Self, Option<Head>), LogError> {
        let files = Files::new(dir);
        for inner in ["", "journal", "checkpoints", "tile/entries"] {
            let inner = dir.join(inner);
            std::fs::create_dir_all(&inner).map_err(LogError::io(&inner))?;
        }
        let path = files.checkpoint_path();
        let checkpoint = files.checkpoint()?.map(|bytes| key.checkpoint(&bytes)).transpose();
        let checkpoint = checkpoint.map_err(|error| LogError::malformed(&path, error.to_string()))?;
        let head = checkpoint.map(|signed| signed.head);
        let signed = head.as_ref().map_or(0, |head| head.size);
        let recovered = Recovered::of(&files, head.as_ref(), limit(&files, signed))?;
        let mut log = Self {
            files,
            key,
            secret,
            tree: recovered.tree,
            pending: recovered.pending,
            segment: recovered.segment,
            due: recovered.due,
            signed,
            partial: Vec::new(),
            settling: None,
            recovered: Recovery { taken: (signed, 0), set_aside: recovered.beyond },
        };
        log.recovered.taken.1 = log.size().saturating_sub(signed);
        log.partial = log.partial_tiles(log.signed);
        log.sweep();
        log.write_due()?;
        if log.recovered.set_aside > 0 {
            log.begin_journal()?;
        }
        // With the tiles on the disk, and not before.
        if let [older @ .., _] = recovered.segments.as_slice() {
            settle(
                log.files.dir(),
                older.iter().map(|first| log.files.journal().join(journal::name(*first))).collect(),
            );
        }
        Ok((log, head))
    }

    /// What was there that is not signed. Sign it by a [`Log::checkpoint`], and say of it in the log that it is.
    #[must_use]
    pub fn recovered(&self) -> Recovery {
        self.recovered
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// How many entries the newest checkpoint has.
    #[must_use]
    pub fn signed(&self) -> u64 {
        self.signed
    }

    /// The right edge of its tree.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Whose it is.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Appends entries, all or none, and returns the number of the first. With `durable` they are on the disk when it returns.
    ///
    /// # Errors
    /// The disk says no, or an entry has a line break or is longer than [`MAX_ENTRY`].
    pub fn append<E: AsRef<[u8]>>(&mut self, entries: &[E], durable: bool) -> Result<u64, LogError> {
        let is_one = |entry: &E| entry.as_ref().len() <= MAX_ENTRY && !entry.as_ref().contains(&b'\n');
        if !entries.iter().all(is_one) {
            return Err(LogError::malformed(&self.segment.path, "a record is too long, or has a line break in it"));
        }
        if self.due.len() >= DUE {
            self.write_due()?;
        }
        self.segment.append(entries, durable)?;
        let first = self.size();
        for entry in entries {
            self.take(entry.as_ref().to_vec());
        }
        // They follow from the journal, so nobody waits for them; if the disk is full, the next time.
        let _later = self.write_due();
        // In a copy nothing may be deleted that is not signed yet.
        if self.secret.is_some() {
            self.turn_journal();
        }
        Ok(first)
    }

    /// Puts everything that was appended on the disk.
    ///
    /// # Errors
    /// The disk says no.
    pub fn sync(&self) -> Result<(), LogError> {
        self.segment.sync()
    }

    /// Signs what there is. Everything in it is on the disk before the checkpoint is.
    ///
    /// # Errors
    /// The disk says no.
    pub fn checkpoint(&mut self) -> Result<Signed, LogError> {
        self.segment.sync()?;
        self.write_due()?;
        let root = self.tree.root().map_err(|error| LogError::Note(format!("the tree has no root: {error}")))?;
        let secret = self.secret.as_ref().ok_or_else(|| LogError::Note("a copy is signed by somebody else".into()))?;
        let bytes = secret.checkpoint(self.size(), root)?;
        let head = Head { origin: self.key.name().to_owned(), size: self.size(), root };
        let signed = Signed { head, bytes };
        self.put(&signed)?;
        Ok(signed)
    }

    /// Takes a checkpoint of just this tree that somebody else signed, and whom the caller believes.
    pub(crate) fn put_theirs(&mut self, signed: &Signed) -> Result<(), LogError> {
        self.segment.sync()?;
        self.write_due()?;
        self.put(signed)?;
        self.turn_journal();
        Ok(())
    }

    fn put(&mut self, signed: &Signed) -> Result<(), LogError> {
        let partial = self.partial_tiles(self.size());
        self.write_partial()?;
        write(&self.files.checkpoint_path(), &signed.bytes, true)?;
        self.signed = self.size();
        for path in std::mem::replace(&mut self.partial, partial) {
            if !self.partial.contains(&path) {
                let _gone = std::fs::remove_file(&path);
                if let Some(dir) = path.parent() {
                    // It may hold the next one.
                    let _empty = std::fs::remove_dir(dir);
                }
            }
        }
        Ok(())
    }

    /// Ends a segment: signs what there is, and keeps that checkpoint under `name`.
    ///
    /// # Errors
    /// The disk says no.
    pub fn end_segment(&mut self, name: &str) -> Result<Signed, LogError> {
        let signed = self.checkpoint()?;
        write(&self.files.kept_path(name), &signed.bytes, true)?;
        Ok(signed)
    }

    /// The number of the first entry that [`Log::forget`] would keep.
    ///
    /// # Errors
    /// There is no such checkpoint of this log.
    pub fn forgettable(&self, name: &str) -> Result<u64, LogError> {
        let path = self.files.kept_path(name);
        let missing = || LogError::Missing(path.display().to_string());
        let bytes = self.files.kept_one(name)?.ok_or_else(missing)?;
        let end = self.key.checkpoint(&bytes).map_err(|error| LogError::malformed(&path, error.to_string()))?;
        Ok(end.head.size.min(self.size()) / WIDTH * WIDTH)
    }

    /// Deletes the entries before the end of the segment `name`, and returns the number of the first that is kept. The
    /// bundle in which the next segment begins stays as a whole, as do all hashes that a kept checkpoint needs.
    ///
    /// # Errors
    /// There is no such checkpoint of this log, or the disk says no.
    pub fn forget(&mut self, name: &str) -> Result<u64, LogError> {
        let end = self.forgettable(name)? / WIDTH;
        // The journal may have them as well.
        self.next_segment()?;
        if let Some(thread) = self.settling.take() {
            let _ended = thread.join();
        }
        // A witness is given a proof that begins with what it has signed last.
        let size = |bytes: &[u8]| Some(self.key.checkpoint(bytes).ok()?.head.size);
        let mut sizes: Vec<u64> = self.files.witnessed()?.values().filter_map(|bytes| size(bytes)).collect();
        for name in self.files.kept()? {
            sizes.extend(self.files.kept_one(&name)?.and_then(|bytes| size(&bytes)));
        }
        let needed: Vec<u64> = sizes.into_iter().filter(|size| size % WIDTH > 0).map(|size| size / WIDTH).collect();
        for index in self.files.first()? / WIDTH..end {
            remove(&self.files.dir().join(layout::tile(Kind::Entries, index, WIDTH)))?;
            let is_covered = (index / WIDTH + 1) * WIDTH * WIDTH <= self.size();
            if is_covered && !needed.contains(&index) {
                remove(&self.files.dir().join(layout::tile(Kind::Level(0), index, WIDTH)))?;
            }
        }
        Ok(end * WIDTH)
    }

    /// Whether somebody else changed the journal, in which the newest entries are.
    #[must_use]
    pub fn changed(&self) -> Option<Changed> {
        let (what, bytes_found) = self.segment.difference()?;
        Some(Changed { what, bytes_expected: self.segment.bytes(), bytes_found })
    }

    /// Begins the journal anew with what it must hold, after somebody else changed it. What was there is kept beside it.
    ///
    /// # Errors
    /// The disk says no.
    pub fn mend(&mut self) -> Result<(), LogError> {
        self.begin_journal()
    }

    /// A journal of the entries that are held, in place of the one that is there, which is kept beside it. Everything before
    /// them is in tiles.
    fn begin_journal(&mut self) -> Result<(), LogError> {
        self.write_due()?;
        self.sync_tiles()?;
        let before = self.segment.path.clone();
        // It may be gone. A kill leaves one or the other under its name. Of a copy, what is not signed comes again.
        if self.secret.is_some() {
            let _kept = std::fs::hard_link(&before, before.with_extension(format!("changed-at-{}", self.size())));
        }
        self.segment = Segment::make(&self.files.journal(), self.size() - self.pending.len() as u64, &self.pending)?;
        if self.segment.path != before {
            remove(&before)?;
        }
        Ok(())
    }

    /// The entry becomes part of the tree.
    fn take(&mut self, entry: Vec<u8>) {
        let leaf = record_hash(&entry);
        self.pending.push(entry);
        let Self { tree, pending, due, files, .. } = self;
        tree.push(leaf, |full| fill(files.dir(), pending, due, full));
    }

    fn write_due(&mut self) -> Result<(), LogError> {
        while let Some((path, bytes)) = self.due.front() {
            write(path, bytes, false)?;
            self.due.pop_front();
        }
        Ok(())
    }

    fn turn_journal(&mut self) {
        if self.segment.bytes() >= JOURNAL && self.due.is_empty() && !self.is_settling() {
            let _later = self.next_segment();
        }
    }

    fn is_settling(&self) -> bool {
        self.settling.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The next journal begins with the bundle that is not full; the one before is deleted when the disk has its tiles.
    fn next_segment(&mut self) -> Result<(), LogError> {
        let first = self.size() - self.pending.len() as u64;
        if first == self.segment.first {
            return Ok(());
        }
        // So no checkpoint ever needs what is deleted.
        if self.secret.is_some() {
            self.checkpoint()?;
        } else if self.signed < self.size() {
            return Ok(());
        }
        let next = Segment::make(&self.files.journal(), first, &self.pending)?;
        let old = std::mem::replace(&mut self.segment, next);
        let dir = self.files.dir().to_owned();
        let thread = std::thread::Builder::new().name("audit-settle".into());
        self.settling = thread.spawn(move || settle(&dir, vec![old.path])).ok();
        Ok(())
    }

    /// Takes away what a crash left of tiles: partial ones of no checkpoint, and full ones whose entries were not on the disk.
    fn sweep(&self) {
        for level in 0..LEVELS {
            let mut gaps = 0;
            for index in (self.size() >> ((u32::from(level) + 1) * 8).min(63)).. {
                let tile = |kind| self.files.dir().join(layout::tile(kind, index, WIDTH));
                let is_gone = std::fs::remove_file(tile(Kind::Level(level))).is_err();
                let is_gone = is_gone & (level > 0 || std::fs::remove_file(tile(Kind::Entries)).is_err());
                gaps = if is_gone { gaps + 1 } else { 0 };
                if gaps > GAPS {
                    break;
                }
            }
        }
        for dir in self.partial_tiles(self.size()).iter().filter_map(|path| path.parent()) {
            for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if !self.partial.contains(&path) {
                    let _gone = std::fs::remove_file(path);
                }
            }
        }
    }

    fn sync_tiles(&self) -> Result<(), LogError> {
        let dir = self.files.dir();
        File::open(dir).and_then(|file| Ok(rustix::fs::syncfs(&file)?)).map_err(LogError::io(dir))
    }

    /// The partial tiles of a tree of `size`.
    fn partial_tiles(&self, size: u64) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for level in 0..LEVELS {
            let places = size >> (u32::from(level) * 8);
            let (index, width) = (places / WIDTH, places % WIDTH);
            if width > 0 {
                paths.push(self.files.dir().join(layout::tile(Kind::Level(level), index, width)));
                if level == 0 {
                    paths.push(self.files.dir().join(layout::tile(Kind::Entries, index, width)));
                }
            }
        }
        paths
    }

    fn write_partial(&self) -> Result<(), LogError> {
        let dir = self.files.dir();
        for level in 0..LEVELS {
            let hashes = self.tree.edge(level);
            let width = (hashes.len() / HASH) as u64;
            if width == 0 {
                continue;
            }
            let index = (self.size() >> (u32::from(level) * 8)) / WIDTH;
            write(&dir.join(layout::tile(Kind::Level(level), index, width)), hashes, false)?;
            if level == 0 {
                let path = dir.join(layout::tile(Kind::Entries, index, width));
                write(&path, &layout::bundle(&self.pending), false)?;
            }
        }
        Ok(())
    }
}

/// What became full: a tile, and at the lowest level its entries with it.
fn fill(dir: &Path, pending: &mut Vec<Vec<u8>>, due: &mut VecDeque<(PathBuf, Vec<u8>)>, full: Full) {
    if full.level == 0 {
        due.push_back((dir.join(layout::tile(Kind::Entries, full.index, WIDTH)), layout::bundle(pending)));
        pending.clear();
    }
    due.push_back((dir.join(layout::tile(Kind::Level(full.level), full.index, WIDTH)), full.hashes));
}

/// What a folder holds.
struct Recovered {
    tree: Tree,
    pending: Vec<Vec<u8>>,
    due: VecDeque<(PathBuf, Vec<u8>)>,
    segments: Vec<u64>,
    segment: Segment,
    /// Entries that are there beyond the limit.
    beyond: u64,
}

impl Recovered {
    /// Up to the entry number `limit`, without it.
    fn of(files: &Files, checkpoint: Option<&Head>, limit: u64) -> Result<Self, LogError> {
        let dir = files.journal();
        let mut segments = journal::segments(&dir)?;
        let signed = checkpoint.map_or(0, |head| head.size);
        if segments.is_empty() {
            if signed > 0 {
                return Err(LogError::Missing(format!(
                    "the journal with the newest of {signed} records, {}",
                    dir.display()
                )));
            }
            Segment::make::<&[u8]>(&dir, 0, &[])?;
            segments.push(0);
        }
        let (Some(first), Some(last)) = (segments.first().copied(), segments.last().copied()) else {
            return Err(LogError::Missing("the journal".into()));
        };
        let segment = Segment::reopen(&dir, last)?;
        let edge = edge(files, first)?;
        let (tree, pending, due) = (Tree::with_edge(first, edge), Vec::new(), VecDeque::new());
        let mut recovered = Self { tree, pending, due, segments, segment, beyond: 0 };
        let mut root = recovered.root_if(checkpoint)?;
        for start in recovered.segments.clone() {
            if start > recovered.tree.size() {
                return Err(LogError::Lost { signed: start.max(signed), found: recovered.tree.size() });
            }
            journal::read(&dir, start, |number, line| {
                // A journal begins with what the one before ended with.
                if number >= limit {
                    recovered.beyond += 1;
                } else if number == recovered.tree.size() {
                    let Self { tree, pending, due, .. } = &mut recovered;
                    let leaf = record_hash(&line);
                    pending.push(line);
                    tree.push(leaf, |full| fill(files.dir(), pending, due, full));
                    root = root.take().map_or_else(|| recovered.root_if(checkpoint), |root| Ok(Some(root)))?;
                }
                Ok(true)
            })?;
        }
        let found = recovered.tree.size();
        // It is written before the first entry is.
        if checkpoint.is_none() && found > 0 {
            return Err(LogError::Missing(files.checkpoint_path().display().to_string()));
        }
        if let Some(head) = checkpoint {
            if found < head.size {
                return Err(LogError::Lost { signed: head.size, found });
            }
            let root = root.map_or_else(|| files.root(head.size), Ok)?;
            if root != head.root {
                return Err(LogError::Changed { size: head.size });
            }
        }
        Ok(recovered)
    }

    /// The root, if the tree has just the size of the checkpoint.
    fn root_if(&self, checkpoint: Option<&Head>) -> Result<Option<crate::Hash>, LogError> {
        match checkpoint {
            Some(head) if head.size == self.tree.size() => {
                self.tree.root().map(Some).map_err(|error| LogError::Note(error.to_string()))
            }
            _ => Ok(None),
        }
    }
}

/// The right edge of the tree of `size`, from its tiles.
pub(crate) fn edge(files: &Files, size: u64) -> Result<Vec<Vec<u8>>, LogError> {
    let mut edge = Vec::new();
    for level in 0..LEVELS {
        let places = size >> (u32::from(level) * 8);
        if places == 0 {
            break;
        }
        let width = places % WIDTH;
        edge.push(if width == 0 { Vec::new() } else { files.hashes(level, places / WIDTH, width)? });
    }
    Ok(edge)
}

/// Deletes journals when the disk has everything that was written before.
fn settle(dir: &Path, journals: Vec<PathBuf>) {
    let synced = File::open(dir).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
    if synced.is_ok() {
        for path in journals {
            // It is looked at again at the next start.
            let _later = std::fs::remove_file(path);
        }
    }
}

/// A file that is there as a whole, or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8], durable: bool) -> Result<(), LogError> {
    let dir = path.parent().unwrap_or(path);
    let new = path.with_extension("new");
    let attempt = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_data()?;
        }
        std::fs::rename(&new, path)?;
        if durable { File::open(dir)?.sync_all() } else { Ok(()) }
    };
    let written = match attempt() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir).and_then(|()| attempt())
        }
        other => other,
    };
    written.map_err(LogError::io(path))
}

fn remove(path: &Path) -> Result<(), LogError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(LogError::io(path)(error)),
        _ => Ok(()),
    }
}
