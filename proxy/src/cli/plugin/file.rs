//! Files that people name: read with a bound, written whole.

use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use super::Wrong;
use crate::config::read::bounded;

/// Requests, manifests and configurations are shorter.
pub(super) const MAX_TEXT_BYTES: usize = 8 << 20;

/// Reads a file of at most `max` bytes.
pub(super) fn read(path: &Path, max: usize) -> anyhow::Result<Vec<u8>> {
    bounded(path, max).map_err(|error| {
        let what = match error.kind() {
            ErrorKind::NotFound => "there is no such file".to_owned(),
            ErrorKind::PermissionDenied => "it may not be read by this user".to_owned(),
            _ => error.to_string(),
        };
        Wrong::because(format!("{}: {what}", path.display()))
    })
}

/// Reads YAML, or JSON if the name ends so; both tell line and column of a fault.
pub(super) fn read_document<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = read_text(path)?;
    let wrong = |error: &dyn std::fmt::Display| Wrong::because(format!("{}: {error}", path.display()));
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&text).map_err(|error| wrong(&error));
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| wrong(&error))
}

pub(super) fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = read(path, MAX_TEXT_BYTES)?;
    String::from_utf8(bytes).map_err(|_| Wrong::because(format!("{}: not UTF-8 text", path.display())))
}

/// Puts a file in the place of one that may be there, at once: a gateway that watches it never sees a half.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let named = || format!("{} cannot be written", path.display());
    let mut beside = path.file_name().with_context(named)?.to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(beside);
    let written = std::fs::OpenOptions::new().write(true).create_new(true).open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&beside, path));
    if placed.is_err() {
        let _gone_already = std::fs::remove_file(&beside);
    }
    placed.with_context(named)
}

/// Writes a file that must not be there yet.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Wrong::because(format!("{} is there already; move it away, or name another", path.display())));
        }
        file => file.with_context(|| format!("{} cannot be written", path.display()))?,
    };
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("{} cannot be written", path.display()))
}
