//! Notices that files have changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Files, and how each of them looks from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<PathBuf, Option<Mark>>);

/// A file as it looks from outside: whoever writes it changes one of these, and whoever puts another in its place does too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    size: u64,
    device_and_inode: (u64, u64),
}

impl Marks {
    /// How these files look now. Blocks, if briefly.
    #[must_use]
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(files.into_iter().map(|file| (file.to_owned(), Mark::of(file))).collect())
    }

    /// How the same files look now.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::of(self.0.keys().map(PathBuf::as_path))
    }

    /// Adds more files.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl Mark {
    /// `None`: it is not there.
    fn of(file: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.len(),
            device_and_inode: (metadata.dev(), metadata.ino()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_file_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&file, "one").unwrap();
        let mut before = Marks::of([file.as_path(), &dir.path().join("missing")]);
        assert_eq!(before, before.again());
        let changes: [&dyn Fn(); 4] = [
            &|| std::fs::write(&file, "longer").unwrap(),
            // The same bytes, by a copy that keeps the time: as a package does it.
            &|| {
                std::fs::write(&other, "longer").unwrap();
                let at = std::fs::metadata(&file).unwrap().modified().unwrap();
                std::fs::File::options().write(true).open(&other).unwrap().set_modified(at).unwrap();
                std::fs::rename(&other, &file).unwrap();
            },
            &|| std::fs::write(dir.path().join("missing"), "").unwrap(),
            &|| std::fs::remove_file(&file).unwrap(),
        ];
        for change in changes {
            change();
            let after = before.again();
            assert_ne!(before, after);
            before = after;
        }
    }
}
