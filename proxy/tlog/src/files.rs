//! Reading a log's folder, also while it is written: whatever is missing under one name is looked for under the next.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tlog_tiles::tile::Tile;
use tlog_tiles::tlog::{EMPTY_HASH, Error, HashReader, check_tree, prove_tree, record_hash};

use crate::layout::{self, HASH, Kind, LEVELS, WIDTH};
use crate::note::{MAX_NOTE, head};
use crate::tree::HEIGHT;
use crate::{Hash, Head, LogError, MAX_ENTRY, journal};

/// Bytes of a bundle at most.
pub(crate) const MAX_BUNDLE: u64 = WIDTH * (MAX_ENTRY as u64 + 2);
/// Folders in which a tile may be: a number of 64 bits has seven parts of three digits.
const DEPTH: usize = 6;
/// Witnesses whose signatures are read.
const MAX_WITNESSED: usize = 64;
/// How often what is moved while it is read is looked for again.
const AGAIN: u32 = 4;

/// A log's folder.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Names it.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub(crate) fn checkpoint_path(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }

    /// Where the checkpoint of a segment is kept.
    pub(crate) fn kept_path(&self, name: &str) -> PathBuf {
        self.dir.join("checkpoints").join(name)
    }

    /// Where it is kept what a witness signed last.
    pub(crate) fn witnessed_path(&self, name: &str) -> PathBuf {
        self.dir.join("witnessed").join(name)
    }

    /// The newest checkpoint, as it is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn checkpoint(&self) -> Result<Option<Vec<u8>>, LogError> {
        read(&self.checkpoint_path(), MAX_NOTE as u64)
    }

    /// The names of the checkpoints at the ends of segments, ascending.
    ///
    /// # Errors
    /// Their folder cannot be read.
    pub fn kept(&self) -> Result<Vec<String>, LogError> {
        names(&self.dir.join("checkpoints"), |name| !name.contains('.'), usize::MAX)
    }

    /// One of them, as it is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn kept_one(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        read(&self.kept_path(name), MAX_NOTE as u64)
    }

    /// What each witness signed last, by the name of its file.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn witnessed(&self) -> Result<BTreeMap<String, Vec<u8>>, LogError> {
        let dir = self.dir.join("witnessed");
        let mut notes = BTreeMap::new();
        for name in names(&dir, |name| !name.ends_with(".new"), MAX_WITNESSED)? {
            if let Some(bytes) = read(&dir.join(&name), MAX_NOTE as u64)? {
                notes.insert(name, bytes);
            }
        }
        Ok(notes)
    }

    /// The ends of segments by name: the number of the first entry after each. What is written there, whoever signed it.
    ///
    /// # Errors
    /// As for [`Files::kept`].
    pub fn ends(&self) -> Result<BTreeMap<String, u64>, LogError> {
        let mut ends = BTreeMap::new();
        for name in self.kept()? {
            if let Some(size) = self.kept_one(&name)?.and_then(|bytes| signed_size(&bytes)) {
                ends.insert(name, size);
            }
        }
        Ok(ends)
    }

    /// The number of the first entry that is kept.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn first(&self) -> Result<u64, LogError> {
        let bundle = lowest(&self.dir.join("tile/entries"))?;
        let journal = journal::segments(&self.journal())?.first().copied();
        let bundle = bundle.map(|index| index.saturating_mul(WIDTH));
        Ok(bundle.into_iter().chain(journal).min().unwrap_or(0))
    }

    /// The number of the entry after the last that is there, signed or not. What is signed is there, whatever became of the journal.
    ///
    /// # Errors
    /// Journal or checkpoint cannot be read.
    pub fn end(&self) -> Result<u64, LogError> {
        let signed = self.checkpoint()?.and_then(|bytes| signed_size(&bytes)).unwrap_or(0);
        Ok(self.journal_end()?.max(signed))
    }

    /// The names of tiles that no tree of `size` records has.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub(crate) fn tiles_beyond(&self, size: u64) -> Result<Vec<PathBuf>, LogError> {
        let mut beyond = Vec::new();
        for level in 0..=LEVELS {
            let kind = if level == LEVELS { Kind::Entries } else { Kind::Level(level) };
            let places = match kind {
                Kind::Entries => size,
                Kind::Level(level) => size >> (u32::from(HEIGHT) * u32::from(level)),
            };
            tiles(&self.dir, kind, &mut |index, width| {
                if index.saturating_mul(WIDTH).saturating_add(width) > places {
                    beyond.push(layout::tile(kind, index, width));
                }
            })?;
        }
        Ok(beyond)
    }

    fn journal_end(&self) -> Result<u64, LogError> {
        let dir = self.journal();
        for _ in 0..AGAIN {
            let Some(first) = journal::segments(&dir)?.pop() else { break };
            let mut end = first;
            let read = journal::read(&dir, first, |number, _| {
                end = number.saturating_add(1);
                Ok(true)
            });
            match read {
                Err(LogError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(end),
            }
        }
        Ok(0)
    }

    /// Entries from number `from` on, up to and without `to`.
    #[must_use]
    pub fn entries(&self, from: u64, to: u64) -> Entries<'_> {
        Entries { files: self, next: from, to, held: Vec::new().into_iter() }
    }

    /// One entry.
    ///
    /// # Errors
    /// It is not there.
    pub fn entry(&self, index: u64) -> Result<Vec<u8>, LogError> {
        self.entries(index, index.saturating_add(1)).next().unwrap_or(Err(LogError::NoEntry { index, size: index }))
    }

    /// The entries of the bundle `index`, from its place `from` on; not more than the place `to`.
    fn bundle(&self, index: u64, from: u64, to: u64) -> Result<Vec<Vec<u8>>, LogError> {
        let first = index.saturating_mul(WIDTH);
        for _ in 0..AGAIN {
            let path = self.dir.join(layout::tile(Kind::Entries, index, WIDTH));
            if let Some(bytes) = read(&path, MAX_BUNDLE)? {
                let all = layout::entries(&path, &bytes, WIDTH)?;
                return Ok(part(all, from, to));
            }
            if let Some(entries) = self.journaled(first + from, first + to)? {
                return Ok(entries);
            }
            if let Some((path, width, bytes)) = self.partial(Kind::Entries, index, to, MAX_BUNDLE)? {
                let all = layout::entries(&path, &bytes, width)?;
                return Ok(part(all, from, to));
            }
        }
        let first_kept = self.first()?;
        if first + from < first_kept {
            return Err(LogError::Forgotten { index: first + from, first: first_kept });
        }
        Err(LogError::Missing(format!("the bundle of records {} to {}", first + from, first + to - 1)))
    }

    /// Entries of the journal, if it has all of them.
    fn journaled(&self, from: u64, to: u64) -> Result<Option<Vec<Vec<u8>>>, LogError> {
        let dir = self.journal();
        let Some(first) = journal::segments(&dir)?.into_iter().rev().find(|first| *first <= from) else {
            return Ok(None);
        };
        let mut entries = Vec::new();
        let found = journal::read(&dir, first, |number, line| {
            if number >= from && number < to {
                entries.push(line);
            }
            Ok(number.saturating_add(1) < to)
        });
        match found {
            Err(LogError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok((entries.len() as u64 == to - from).then_some(entries)),
        }
    }

    /// A tile that is not full, and has at least `width` of its places.
    fn partial(
        &self,
        kind: Kind,
        index: u64,
        width: u64,
        max: u64,
    ) -> Result<Option<(PathBuf, u64, Vec<u8>)>, LogError> {
        let exact = self.dir.join(layout::tile(kind, index, width.min(WIDTH - 1)));
        let Some(dir) = exact.parent() else { return Ok(None) };
        let Ok(there) = std::fs::read_dir(dir) else { return Ok(None) };
        let widths = there.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let Some(widest) = widths.filter(|found| *found >= width && *found < WIDTH).max() else { return Ok(None) };
        let path = dir.join(widest.to_string());
        Ok(read(&path, max)?.map(|bytes| (path, widest, bytes)))
    }

    /// The first `width` hashes of a tile, one after the other.
    ///
    /// # Errors
    /// Neither the tile nor what it follows from is there.
    pub(crate) fn hashes(&self, level: u8, index: u64, width: u64) -> Result<Vec<u8>, LogError> {
        let bytes = width as usize * HASH;
        let path = self.dir.join(layout::tile(Kind::Level(level), index, WIDTH));
        // One of another length is what a failure of power leaves: it follows from what is below it.
        if let Some(mut hashes) = read(&path, WIDTH * HASH as u64)?
            && hashes.len() as u64 == WIDTH * HASH as u64
        {
            hashes.truncate(bytes);
            return Ok(hashes);
        }
        if level > 0 {
            let below = (0..width).map(|place| {
                let tile = self.hashes(level - 1, index * WIDTH + place, WIDTH)?;
                Ok(Tile::subtree_hash(&tile).0)
            });
            return Ok(below.collect::<Result<Vec<_>, LogError>>()?.concat());
        }
        // What is in the journal may have been changed since it was signed; that is found by comparing it, and not here.
        if let Some((_, wide, mut hashes)) = self.partial(Kind::Level(0), index, width, WIDTH * HASH as u64)?
            && hashes.len() as u64 == wide * HASH as u64
        {
            hashes.truncate(bytes);
            return Ok(hashes);
        }
        let entries = self.bundle(index, 0, width)?;
        Ok(entries.iter().map(|entry| record_hash(entry).0).collect::<Vec<_>>().concat())
    }

    /// Hashes of the tree of `size`, for proofs and roots.
    pub(crate) fn tree(&self, size: u64) -> Stored<'_> {
        Stored { files: self, size }
    }

    /// Whether the tree of `earlier` is the beginning of that of `head`, by a proof (RFC 6962, section 2.1.2). What the files say is believed
    /// only so far: whatever is planted among them, a proof that holds is right. One that does not may also be for want of the right files.
    ///
    /// # Errors
    /// What is needed for it is not there.
    pub(crate) fn is_beginning(&self, earlier: &Head, head: &Head) -> Result<bool, LogError> {
        if earlier.size == 0 || earlier.size >= head.size {
            let same = if earlier.size == 0 { EMPTY_HASH } else { head.root };
            return Ok(earlier.size <= head.size && earlier.root == same);
        }
        let proof = prove_tree(head.size, earlier.size, &self.tree(head.size));
        let proof = proof.map_err(|error| LogError::Missing(words(&error)))?;
        Ok(check_tree(&proof, head.size, head.root, earlier.size, earlier.root).is_ok())
    }

    /// The root of the first `size` entries, as the files have it.
    ///
    /// # Errors
    /// What is needed for it is not there.
    pub(crate) fn root(&self, size: u64) -> Result<Hash, LogError> {
        let reading = self.tree(size);
        tlog_tiles::tlog::tree_hash(size, &reading).map_err(|error| LogError::Missing(words(&error)))
    }
}

/// The hashes that a tree of one size has.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    files: &'a Files,
    size: u64,
}

impl HashReader for Stored<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        let mut held: Option<((u8, u64), Vec<u8>)> = None;
        let mut read = |index: &u64| {
            let tile = Tile::from_index(HEIGHT, *index);
            let (level, number) = (tile.level(), tile.level_index());
            // As wide as this tree has it: a wider one may not be there.
            let places = (self.size >> (u32::from(HEIGHT) * u32::from(level))).saturating_sub(number * WIDTH);
            let width = places.min(WIDTH);
            if width == 0 {
                return Err(Error::IndexesNotInTree);
            }
            let hashes = match held.take() {
                Some((which, hashes)) if which == (level, number) => hashes,
                _ => self.files.hashes(level, number, width).map_err(|error| Error::InvalidInput(error.to_string()))?,
            };
            let wide = Tile::new(HEIGHT, level, number, width as u32, false);
            let hash = wide.hash_at_index(&hashes, *index);
            held = Some(((level, number), hashes));
            hash
        };
        indexes.iter().map(&mut read).collect()
    }
}

/// The library's words, without its own in front of ours.
pub(crate) fn words(error: &Error) -> String {
    match error {
        Error::InvalidInput(why) => why.trim_end_matches(" is not there").to_owned(),
        other => other.to_string(),
    }
}

/// Entries, one after the other.
#[derive(Debug)]
pub struct Entries<'a> {
    files: &'a Files,
    next: u64,
    to: u64,
    held: std::vec::IntoIter<Vec<u8>>,
}

impl Iterator for Entries<'_> {
    type Item = Result<Vec<u8>, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.held.next() {
            self.next += 1;
            return Some(Ok(entry));
        }
        if self.next >= self.to {
            return None;
        }
        let (index, from) = (self.next / WIDTH, self.next % WIDTH);
        let to = (self.to - index * WIDTH).min(WIDTH);
        match self.files.bundle(index, from, to) {
            Ok(entries) => {
                self.held = entries.into_iter();
                self.next()
            }
            Err(error) => {
                self.next = self.to;
                Some(Err(error))
            }
        }
    }
}

/// How many entries a checkpoint has, whoever signed it.
fn signed_size(bytes: &[u8]) -> Option<u64> {
    let end = bytes.windows(2).position(|two| two == b"\n\n")?;
    Some(head(bytes.get(..=end)?).ok()?.size)
}

fn part(entries: Vec<Vec<u8>>, from: u64, to: u64) -> Vec<Vec<u8>> {
    entries.into_iter().skip(from as usize).take((to - from) as usize).collect()
}

/// The names of files in a folder that are `wanted`, ascending; `most` of them at most.
fn names(dir: &Path, wanted: impl Fn(&str) -> bool, most: usize) -> Result<Vec<String>, LogError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LogError::io(dir)(error)),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| wanted(name)).take(most).collect();
    names.sort_unstable();
    Ok(names)
}

/// A file of `max` bytes at most, which is a plain one; `None` if there is none.
///
/// # Errors
/// It is longer, or no plain file, or cannot be read.
pub fn read_file(path: &Path, max: u64) -> Result<Option<Vec<u8>>, LogError> {
    read(path, max)
}

/// A file of `max` bytes at most; `None` if there is none.
pub(crate) fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, LogError> {
    let file = match plain(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(LogError::io(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(LogError::io(path))?;
    if bytes.len() as u64 > max {
        return Err(LogError::malformed(path, format!("it is longer than {max} bytes")));
    }
    Ok(Some(bytes))
}

/// A plain file, opened. What waits for somebody at the other end (a pipe) is none, nor is what never ends (a device).
pub(crate) fn plain(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no plain file, and has no place here")),
    }
}

/// The lowest number of a full tile below `dir`. What has more parts has a larger number.
fn lowest(dir: &Path) -> Result<Option<u64>, LogError> {
    for depth in 0..=DEPTH {
        let mut least = None;
        let mut each = |index, width| {
            least = least.into_iter().chain((width == WIDTH).then_some(index)).min();
            // Those that come are larger.
            least.is_none()
        };
        numbers(dir, "", depth, &mut each)?;
        if least.is_some() {
            return Ok(least);
        }
    }
    Ok(None)
}

/// Every tile of a kind that is there, by its number and how many of its places it has.
fn tiles(dir: &Path, kind: Kind, each: &mut impl FnMut(u64, u64)) -> Result<(), LogError> {
    let dir = dir.join(layout::tiles(kind));
    for depth in 0..=DEPTH {
        numbers(&dir, "", depth, &mut |index, width| {
            each(index, width);
            true
        })?;
    }
    Ok(())
}

/// The tiles in the folders so deep below `dir`, which is `above` of its tiles' numbers. Links are not followed: they may lead back. Folders
/// are looked at in ascending order, as long as `each` says so.
fn numbers(dir: &Path, above: &str, depth: usize, each: &mut impl FnMut(u64, u64) -> bool) -> Result<bool, LogError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(true);
        }
        Err(error) => return Err(LogError::io(dir)(error)),
    };
    let is_inner = |name: &str, is_dir: bool| is_dir && name.starts_with('x') && !(above.is_empty() && name == "x000");
    let mut inner = Vec::new();
    let mut goes_on = true;
    for entry in entries.flatten() {
        let (Ok(name), Ok(what)) = (entry.file_name().into_string(), entry.file_type()) else { continue };
        if depth > 0 {
            if is_inner(&name, what.is_dir()) {
                inner.push(name);
            }
            continue;
        }
        let number = |last: &str| layout::parse_number(above.split_terminator('/').chain([last]));
        match (name.strip_suffix(".p"), what.is_dir()) {
            (Some(last), true) => {
                let Some(index) = number(last) else { continue };
                let widths = names(&dir.join(&name), |_| true, usize::MAX)?;
                let widths = widths.iter().filter_map(|name| name.parse::<u64>().ok().filter(|width| *width < WIDTH));
                widths.for_each(|width| goes_on &= each(index, width));
            }
            (None, false) if what.is_file() => {
                if let Some(index) = number(&name) {
                    goes_on &= each(index, WIDTH);
                }
            }
            _ => {}
        }
    }
    inner.sort_unstable();
    for name in inner {
        goes_on = goes_on && numbers(&dir.join(&name), &format!("{above}{name}/"), depth - 1, each)?;
    }
    Ok(goes_on)
}
