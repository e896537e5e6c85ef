//! Files that the gateway reads while it runs: whatever a name leads to, reading ends, and takes no more memory than it should.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Reads a regular file of at most `max` bytes. A pipe or a device has no end, or none that comes in time; so it is looked at what
/// was opened, not what has the name, and nothing is waited for.
///
/// # Errors
/// It cannot be opened or read, is no regular file, or is longer.
pub fn bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(without_waiting).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "12345").unwrap();
        assert_eq!(bounded(&at("file"), 5).unwrap(), b"12345");
        assert!(bounded(&at("file"), 4).unwrap_err().to_string().contains("longer than 4 bytes"));
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        for endless in [at("pipe"), "/dev/zero".into(), folder.path().into()] {
            let error = bounded(&endless, 5).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{}: {error}", endless.display());
        }
    }
}
