//! The newest entries, a line each, in the order in which they came: written and synced before anybody is told.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::{LogError, MAX_ENTRY, files};

/// A file of the journal, which is being written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    /// Number of its first entry.
    pub(crate) first: u64,
    file: File,
    /// Device and number of the file: another one at its path has others.
    id: (u64, u64),
    /// Bytes that are whole lines of ours.
    good: u64,
}

impl Segment {
    /// Makes a file with `entries`, from number `first` on. It is there as a whole, and on the disk, or not at all.
    pub(crate) fn make<E: AsRef<[u8]>>(dir: &Path, first: u64, entries: &[E]) -> Result<Self, LogError> {
        let path = dir.join(name(first));
        let new = path.with_extension("new");
        let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&new);
        let mut file = open().map_err(LogError::io(&new))?;
        let lines = lines(entries);
        file.set_len(0)
            .and_then(|()| file.write_all(&lines))
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&new, &path))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(LogError::io(&path))?;
        let id = id(&file).map_err(LogError::io(&path))?;
        Ok(Self { path, first, file, id, good: lines.len() as u64 })
    }

    /// Opens what was there, without a line that a crash cut short: nobody was told of that one.
    pub(crate) fn reopen(dir: &Path, first: u64) -> Result<Self, LogError> {
        let path = dir.join(name(first));
        let mut file = OpenOptions::new().read(true).append(true).open(&path).map_err(LogError::io(&path))?;
        let good = whole_lines(&mut file).map_err(LogError::io(&path))?;
        let is_longer = file.metadata().map_err(LogError::io(&path))?.len() > good;
        if is_longer {
            file.set_len(good).map_err(LogError::io(&path))?;
        }
        let id = id(&file).map_err(LogError::io(&path))?;
        Ok(Self { path, first, file, id, good })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.good
    }

    /// Appends lines; if that fails, there is none of them.
    pub(crate) fn append<E: AsRef<[u8]>>(&mut self, entries: &[E], durable: bool) -> Result<(), LogError> {
        let lines = lines(entries);
        let written = self.file.write_all(&lines).and_then(|()| if durable { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.good += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line must not stand in front of the next one. What is at the path may have been mended meanwhile.
                let _cut = self.file.set_len(self.good);
                if let Ok(file) = OpenOptions::new().read(true).append(true).open(&self.path)
                    && let Ok(id) = id(&file)
                {
                    (self.file, self.id) = (file, id);
                }
                Err(LogError::io(&self.path)(error))
            }
        }
    }

    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(LogError::io(&self.path))
    }

    /// How the file differs from what was written here: a fixed word, and how many bytes it has.
    pub(crate) fn difference(&self) -> Option<(&'static str, u64)> {
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(("removed", 0)),
            // What cannot be looked at cannot be written either, and that is reported.
            Err(_) => None,
            Ok(there) if (there.dev(), there.ino()) != self.id => Some(("replaced", there.len())),
            Ok(there) if there.len() < self.good => Some(("cut", there.len())),
            Ok(there) if there.len() > self.good => Some(("extended", there.len())),
            Ok(_) => None,
        }
    }
}

fn id(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|file| (file.dev(), file.ino()))
}

/// The segments of a folder: the numbers of their first entries, ascending.
pub(crate) fn segments(dir: &Path) -> Result<Vec<u64>, LogError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LogError::io(dir)(error)),
    };
    let first = |file: &str| file.strip_suffix(".jsonl")?.parse().ok().filter(|first| name(*first) == file);
    let mut found: Vec<u64> = entries.flatten().filter_map(|entry| first(entry.file_name().to_str()?)).collect();
    found.sort_unstable();
    Ok(found)
}

/// Reads the whole lines of a segment, one after the other, until `each` has enough (false).
pub(crate) fn read(
    dir: &Path,
    first: u64,
    mut each: impl FnMut(u64, Vec<u8>) -> Result<bool, LogError>,
) -> Result<(), LogError> {
    let path = dir.join(name(first));
    let mut lines = BufReader::new(files::plain(&path).map_err(LogError::io(&path))?);
    for number in (0u64..).map(|place| first.checked_add(place)) {
        let number = number.ok_or_else(|| LogError::malformed(&path, "no log has records of such numbers"))?;
        let mut line = Vec::new();
        let limit = MAX_ENTRY as u64 + 1;
        lines.by_ref().take(limit).read_until(b'\n', &mut line).map_err(LogError::io(&path))?;
        if line.pop() != Some(b'\n') {
            if line.len() >= MAX_ENTRY {
                return Err(LogError::malformed(&path, "a line is longer than a record may be"));
            }
            break;
        }
        if !each(number, line)? {
            break;
        }
    }
    Ok(())
}

pub(crate) fn name(first: u64) -> String {
    format!("{first:020}.jsonl")
}

fn lines<E: AsRef<[u8]>>(entries: &[E]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(entries.iter().map(|entry| entry.as_ref().len() + 1).sum());
    for entry in entries {
        lines.extend_from_slice(entry.as_ref());
        lines.push(b'\n');
    }
    lines
}

/// Bytes up to and with the last line break.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 64 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        let mut piece = Vec::new();
        io::Read::by_ref(file).take(end - start).read_to_end(&mut piece)?;
        if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
