//! `state_dir`: made, looked at, and taken for one supervisor.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::config::ConfigError;

/// Locked by whoever runs with the folder.
const LOCK_FILE: &str = "running.lock";

/// Makes the folder if it is not there, and locks it for as long as what is given back lives: two gateways on one folder would
/// overwrite each other's keys and records.
///
/// # Errors
/// [`ConfigError::StateDir`]: it cannot be made, or others can write to it. Any other: another supervisor has it.
pub(super) fn take(state_dir: &Path) -> anyhow::Result<File> {
    let wrong = |what: String| ConfigError::StateDir { path: state_dir.to_owned(), what };
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(|error| wrong(error.to_string()))?;
    check(state_dir).map_err(|error| wrong(format!("{error:#}")))?;
    lock(state_dir)
}

/// Whether a supervisor runs with this folder; `None` if that cannot be seen. Looks for a moment only, since whoever starts meanwhile would be refused.
pub(crate) fn is_taken(state_dir: &Path) -> Option<bool> {
    match File::open(state_dir.join(LOCK_FILE)) {
        Ok(file) => Some(flock(&file, FlockOperation::NonBlockingLockShared).is_err()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

/// Whoever can write there can exchange keys and compiled policies, and so run code here.
fn check(state_dir: &Path) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(state_dir)?;
    let mode = metadata.mode() & 0o7777;
    // A volume of Kubernetes belongs to root, and to our group by `fsGroup`.
    let own_group = metadata.gid() == rustix::process::getegid().as_raw();
    let others = mode & 0o002 != 0 || (mode & 0o020 != 0 && !own_group);
    ensure!(
        !others,
        "others may write to it (its mode is {mode:04o}), and so replace keys and policies; `chmod 700` it"
    );
    Ok(())
}

fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = match options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
            bail!("{} is a symbolic link, which Postern never makes; remove it", path.display());
        }
        opened => opened.with_context(|| path.display().to_string())?,
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another postern runs with the state_dir {}", state_dir.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_is_taken_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");
        let taken = take(&state).unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        assert!(format!("{:#}", take(&state).unwrap_err()).contains("another postern runs"));
        assert_eq!((is_taken(&state), is_taken(dir.path())), (Some(true), Some(false)));
        drop(taken);
        assert_eq!(is_taken(&state), Some(false));
        take(&state).unwrap();
    }

    #[test]
    fn a_folder_that_others_may_write_to_and_a_link_for_a_lock_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, good) in [(0o777, false), (0o702, false), (0o755, true), (0o700, true)] {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let taken = take(dir.path());
            assert_eq!(taken.is_ok(), good, "{mode:o}");
            if let Err(error) = taken {
                let said = format!("{error:#}");
                assert!(said.contains(&dir.path().display().to_string()) && said.contains("chmod 700"), "{said}");
            }
        }
        let elsewhere = dir.path().join("elsewhere");
        std::fs::remove_file(dir.path().join("running.lock")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("running.lock")).unwrap();
        let said = take(dir.path()).unwrap_err().to_string();
        assert!(said.contains("running.lock is a symbolic link") && !elsewhere.exists(), "{said}");
    }
}
