//! Names and forms of the files (C2SP tlog-tiles).

use std::path::{Path, PathBuf};

use crate::LogError;

/// Hashes in a full tile, entries in a full bundle.
pub(crate) const WIDTH: u64 = 256;
/// Bytes of a hash.
pub(crate) const HASH: usize = 32;
/// Levels of tiles that 2⁶⁴ entries could need.
pub(crate) const LEVELS: u8 = 8;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Hashes of a level.
    Level(u8),
    /// Entries.
    Entries,
}

/// The folder of all tiles of a kind.
pub(crate) fn tiles(kind: Kind) -> PathBuf {
    match kind {
        Kind::Level(level) => Path::new("tile").join(level.to_string()),
        Kind::Entries => PathBuf::from("tile/entries"),
    }
}

/// The path of a tile with `width` of its [`WIDTH`] places taken.
pub(crate) fn tile(kind: Kind, index: u64, width: u64) -> PathBuf {
    let mut path = tiles(kind);
    path.push(number(index));
    if width < WIDTH {
        path.as_mut_os_string().push(".p");
        path.push(width.to_string());
    }
    path
}

/// `1234067` → `x001/x234/067`.
fn number(index: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    text
}

/// The other way round; `None` if it is no such name.
pub(crate) fn parse_number<'a>(parts: impl Iterator<Item = &'a str>) -> Option<u64> {
    let mut index = 0u64;
    let mut ended = false;
    for part in parts {
        if ended {
            return None;
        }
        let digits = match part.strip_prefix('x') {
            Some(digits) => digits,
            None => {
                ended = true;
                part
            }
        };
        if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
    }
    ended.then_some(index)
}

/// Entries as a bundle has them: each after its length in two bytes.
pub(crate) fn bundle<E: AsRef<[u8]>>(entries: &[E]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.iter().map(|entry| entry.as_ref().len() + 2).sum());
    for entry in entries {
        let entry = entry.as_ref();
        // Longer ones are refused before they get here.
        let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(entry.get(..usize::from(length)).unwrap_or_default());
    }
    bytes
}

/// What a bundle of `width` entries has.
///
/// # Errors
/// It has fewer, or more, or is cut.
pub(crate) fn entries(path: &Path, bytes: &[u8], width: u64) -> Result<Vec<Vec<u8>>, LogError> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let Some((entry, after)) = after.split_at_checked(length) else {
            return Err(LogError::malformed(path, "it is cut in the middle of a record"));
        };
        entries.push(entry.to_vec());
        rest = after;
    }
    if !rest.is_empty() || entries.len() as u64 != width {
        return Err(LogError::malformed(path, format!("it has {} records, and must have {width}", entries.len())));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(tile(Kind::Level(0), 1_234_067, WIDTH), Path::new("tile/0/x001/x234/067"));
        assert_eq!(tile(Kind::Level(3), 0, 8), Path::new("tile/3/000.p/8"));
        assert_eq!(tile(Kind::Entries, 1000, 255), Path::new("tile/entries/x001/000.p/255"));
    }

    proptest! {
        #[test]
        fn numbers_come_back(index in any::<u64>()) {
            prop_assert_eq!(parse_number(number(index).split('/')), Some(index));
        }

        #[test]
        fn entries_come_back(list in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..20)) {
            let bytes = bundle(&list);
            let path = Path::new("b");
            prop_assert_eq!(&entries(path, &bytes, list.len() as u64).unwrap(), &list);
            prop_assert!(entries(path, &bytes, list.len() as u64 + 1).is_err());
            if !bytes.is_empty() {
                prop_assert!(entries(path, &bytes[..bytes.len() - 1], list.len() as u64).is_err());
            }
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..600), width in 0u64..300) {
            let _any = entries(Path::new("b"), &bytes, width);
        }
    }
}
