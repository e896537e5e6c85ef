//! Files that hold keys: private to their owner, and either whole or absent.
//!
//! A file is written beside its place under another name, made durable, and moved over it; then the folder is made
//! durable. A crash at any moment leaves the old file or the new one. What it may leave beside them is a temporary
//! file, which no reader looks at, and which the next holder of the lock removes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use crate::CertsError;

/// Permissions of what holds a private key.
pub(crate) const PRIVATE: u32 = 0o600;
/// Permissions of what everyone may read.
pub(crate) const PUBLIC: u32 = 0o644;

const PRIVATE_FOLDER: u32 = 0o700;
/// Permission bits of anyone but the owner.
const OTHERS: u32 = 0o077;
/// A key and a certificate are under 4 KiB; more than this was not written here.
pub(crate) const MAX_FILE_BYTES: u64 = 64 * 1024;
pub(crate) const LOCK_FILE: &str = "lock";
const TEMPORARY: &str = ".tmp";
/// Another process holds the lock for a few milliseconds, once in fifteen days.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// What changes whenever a file is replaced, since each new one is another inode; `None` where there is none.
pub(crate) type Stamp = Option<(u64, i64, i64, u64)>;

/// A folder of private files, shared with other processes of the same user.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the folder, or makes it. A folder that others could enter is closed to them.
    pub(crate) fn open(dir: &Path) -> Result<Self, CertsError> {
        make_folder(dir)?;
        let metadata = fs::metadata(dir).map_err(CertsError::io("look at", dir))?;
        check_owner(&metadata, dir)?;
        if metadata.mode() & OTHERS != 0 {
            let private = fs::Permissions::from_mode(PRIVATE_FOLDER);
            fs::set_permissions(dir, private).map_err(CertsError::io("close to others", dir))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Tells whether a file was replaced since: by another process, since this one looks again after it wrote.
    pub(crate) fn stamp(&self, name: &str) -> Stamp {
        let metadata = fs::metadata(self.path(name)).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    }

    /// Waits until no other process reads or writes here. The kernel releases the lock of a process that dies.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, CertsError> {
        self.lock_within(LOCK_WAIT)
    }

    fn lock_within(&self, wait: Duration) -> Result<Locked<'_>, CertsError> {
        let path = self.path(LOCK_FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(&path);
        let lock = lock_file(file.map_err(CertsError::io("open", &path))?, &path, wait)?;
        Ok(Locked { store: self, _lock: lock })
    }
}

/// Waits until no other process has this file or folder locked.
fn lock_file(file: File, path: &Path, wait: Duration) -> Result<File, CertsError> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < wait => thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(CertsError::Locked { path: path.to_owned(), waited_s: wait.as_secs() });
            }
            Err(TryLockError::Error(source)) => return Err(CertsError::io("lock", path)(source)),
        }
    }
}

/// The lock of a folder without a file in it: for one that is not ours alone. `None` where its file system has no such
/// locks, as some of a network.
pub(crate) fn lock_folder(dir: &Path) -> Result<Option<File>, CertsError> {
    let folder = File::open(dir).map_err(CertsError::io("open", dir))?;
    match lock_file(folder, dir, LOCK_WAIT) {
        Err(CertsError::Io { .. }) => Ok(None),
        locked => locked.map(Some),
    }
}

/// Removes what a crash left behind of these files: such a file may hold half of a key.
pub(crate) fn sweep(dir: &Path, names: &[&str]) -> Result<(), CertsError> {
    for entry in fs::read_dir(dir).map_err(CertsError::io("list", dir))? {
        let entry = entry.map_err(CertsError::io("list", dir))?;
        let name = entry.file_name();
        let written = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(TEMPORARY)?.rsplit_once('.'));
        if written.is_some_and(|(name, _)| names.contains(&name)) {
            let path = entry.path();
            fs::remove_file(&path).map_err(CertsError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The store while its lock is held: only so are files read and written.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    store: &'a Store,
    _lock: File,
}

impl Locked<'_> {
    /// Removes what a crash left behind: such a file may hold half of a key.
    pub(crate) fn sweep(&self) -> Result<(), CertsError> {
        let dir = self.store.dir();
        for entry in fs::read_dir(dir).map_err(CertsError::io("list", dir))? {
            let entry = entry.map_err(CertsError::io("list", dir))?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(TEMPORARY)) {
                let path = entry.path();
                fs::remove_file(&path).map_err(CertsError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The stamps of these files, to be compared later.
    pub(crate) fn stamps<const N: usize>(&self, names: [&str; N]) -> [Stamp; N] {
        names.map(|name| self.store.stamp(name))
    }

    /// The names of the files that begin and end so, in order.
    pub(crate) fn names(&self, begin: &str, end: &str) -> Result<Vec<String>, CertsError> {
        let dir = self.store.dir();
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(CertsError::io("list", dir))? {
            let name = entry.map_err(CertsError::io("list", dir))?.file_name();
            names
                .extend(name.to_str().filter(|name| name.starts_with(begin) && name.ends_with(end)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// The bytes of a private file, or `None` where there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CertsError> {
        self.read_up_to(name, MAX_FILE_BYTES)
    }

    /// The same for a file that may be longer than a key.
    pub(crate) fn read_up_to(&self, name: &str, limit: u64) -> Result<Option<Zeroizing<Vec<u8>>>, CertsError> {
        let path = self.store.path(name);
        match read_private(&path, limit) {
            Err(CertsError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Puts a private file in place of the former one, all at once.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CertsError> {
        write_atomic(self.store.dir(), name, bytes, PRIVATE)
    }

    /// Gives a file another name, over whatever had it.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), CertsError> {
        let path = self.store.path(from);
        fs::rename(&path, self.store.path(to)).map_err(CertsError::io("put in place", &path))?;
        step();
        sync_folder(self.store.dir())
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), CertsError> {
        remove(self.store.dir(), name)
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove(dir: &Path, name: &str) -> Result<(), CertsError> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(CertsError::io("remove", &path))?,
    }
    step();
    sync_folder(dir)
}

/// The bytes of a file that nobody else may read or have written.
pub(crate) fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, CertsError> {
    let file = File::open(path).map_err(CertsError::io("open", path))?;
    // Asked of the open file, so that nobody can exchange it between the look and the read.
    let metadata = file.metadata().map_err(CertsError::io("look at", path))?;
    check_owner(&metadata, path)?;
    if metadata.mode() & OTHERS != 0 {
        return Err(CertsError::KeyExposed { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    read_file(file, path, limit)
}

/// The bytes of a file that everyone may read.
pub(crate) fn read_public(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, CertsError> {
    read_file(File::open(path).map_err(CertsError::io("open", path))?, path, limit)
}

fn read_file(file: File, path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, CertsError> {
    let metadata = file.metadata().map_err(CertsError::io("look at", path))?;
    if metadata.len() > limit {
        let why = format!("it is longer than {limit} bytes");
        return Err(CertsError::Damaged { path: path.to_owned(), why });
    }
    // With room to spare: a buffer that grows leaves copies of the key behind in freed memory.
    let capacity = usize::try_from(metadata.len()).unwrap_or_default().saturating_add(64);
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(limit).read_to_end(&mut bytes).map_err(CertsError::io("read", path))?;
    Ok(bytes)
}

/// Makes a folder that only its owner can enter, and whatever is missing above it; an existing one stays as it is.
pub(crate) fn make_folder(dir: &Path) -> Result<(), CertsError> {
    if dir.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(dir);
    made.map_err(CertsError::io("make the folder", dir))?;
    match dir.parent() {
        // The parent of a bare relative name is the empty path: the current folder.
        Some(parent) if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Moves a folder to a place where there is none, or an empty one.
pub(crate) fn move_folder(from: &Path, to: &Path) -> Result<(), CertsError> {
    fs::rename(from, to).map_err(CertsError::io("put in place", to))?;
    step();
    match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Writes `dir/name` so that a reader, or a crash, finds the old file or the new one and never a part.
pub(crate) fn write_atomic(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), CertsError> {
    let temporary = dir.join(format!(".{name}.{:016x}{TEMPORARY}", rand::random::<u64>()));
    let path = dir.join(name);
    let written = write_durably(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, &path).map_err(CertsError::io("put in place", &path)));
    step();
    if let Err(error) = written {
        // Best effort: the error to report is the first one, and a leftover is swept later.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_folder(dir)
}

fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertsError> {
    // The mode is given at creation: a file that is made first and closed to others after can be opened in between.
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(CertsError::io("make", path))?;
    step();
    file.write_all(bytes).map_err(CertsError::io("write", path))?;
    step();
    file.sync_all().map_err(CertsError::io("write", path))?;
    step();
    Ok(())
}

fn sync_folder(dir: &Path) -> Result<(), CertsError> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(CertsError::io("make durable", dir))?;
    step();
    Ok(())
}

/// Every moment at which a crash leaves another state on disk; tests die at each of them in turn.
#[cfg(not(test))]
fn step() {}
#[cfg(test)]
use crate::crash::step;

fn check_owner(metadata: &fs::Metadata, path: &Path) -> Result<(), CertsError> {
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(CertsError::ForeignOwner { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("deep/authority")).unwrap();
        (scratch, store)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names(store: &Store) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(store.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn keeps_others_out() {
        let (_scratch, store) = store();
        store.lock().unwrap().write("a.pem", b"key").unwrap();
        assert_eq!(mode(store.dir()), 0o700);
        assert_eq!(mode(&store.path("a.pem")), 0o600);

        fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        Store::open(store.dir()).unwrap();
        assert_eq!(mode(store.dir()), 0o700, "a folder open to others is closed");
    }

    #[test]
    fn refuses_a_key_that_others_could_read() {
        let (_scratch, store) = store();
        let locked = store.lock().unwrap();
        locked.write("a.pem", b"key").unwrap();
        fs::set_permissions(store.path("a.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(locked.read("a.pem"), Err(CertsError::KeyExposed { mode: 0o640, .. })));
    }

    #[test]
    fn refuses_what_belongs_to_another_user() {
        let (_scratch, store) = store();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(store.dir(), Some(65534), None).unwrap();
            assert!(matches!(Store::open(store.dir()), Err(CertsError::ForeignOwner { .. })));
        } else {
            assert!(matches!(Store::open(Path::new("/")), Err(CertsError::ForeignOwner { .. })));
        }
    }

    #[test]
    fn refuses_a_file_that_is_too_long() {
        let (_scratch, store) = store();
        let locked = store.lock().unwrap();
        locked.write("a.pem", &vec![0; MAX_FILE_BYTES as usize]).unwrap();
        assert_eq!(locked.read("a.pem").unwrap().unwrap().len() as u64, MAX_FILE_BYTES);
        locked.write("a.pem", &vec![0; MAX_FILE_BYTES as usize + 1]).unwrap();
        assert!(matches!(locked.read("a.pem"), Err(CertsError::Damaged { .. })));
    }

    #[test]
    fn a_half_written_file_is_ignored_and_swept() {
        let (_scratch, store) = store();
        let locked = store.lock().unwrap();
        locked.write("a.pem", b"whole").unwrap();
        // What a crash leaves between the write and the rename.
        fs::write(store.path(".a.pem.00000000deadbeef.tmp"), b"ha").unwrap();
        fs::write(store.path("notes.tmp"), b"not ours").unwrap();
        assert_eq!(**locked.read("a.pem").unwrap().unwrap(), *b"whole");
        assert!(locked.read("b.pem").unwrap().is_none());
        locked.sweep().unwrap();
        assert_eq!(names(&store), ["a.pem", "lock", "notes.tmp"]);
    }

    #[test]
    fn a_write_that_fails_changes_nothing() {
        let (_scratch, store) = store();
        // A folder in the way makes the last step, the rename, fail.
        fs::create_dir(store.path("a.pem")).unwrap();
        assert!(matches!(store.lock().unwrap().write("a.pem", b"key"), Err(CertsError::Io { .. })));
        assert_eq!(names(&store), ["a.pem", "lock"], "no temporary file stays behind");
    }

    #[test]
    fn replaces_a_link_rather_than_what_it_points_to() {
        let (scratch, store) = store();
        let elsewhere = scratch.path().join("elsewhere");
        fs::write(&elsewhere, b"precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, store.path("a.pem")).unwrap();
        store.lock().unwrap().write("a.pem", b"key").unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    }

    #[test]
    fn one_at_a_time_and_the_wait_ends() {
        let (_scratch, store) = store();
        let held = store.lock().unwrap();
        assert!(matches!(store.lock_within(Duration::from_millis(50)), Err(CertsError::Locked { .. })));
        drop(held);
        assert!(store.lock_within(Duration::ZERO).is_ok());
    }
}
