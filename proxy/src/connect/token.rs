//! The token that an application shows to the connector: another user of this machine, and a web page, has none.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use data_encoding::BASE64URL_NOPAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderValue};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// In the connector's folder.
const FILE: &str = "token";
const NEXT: &str = "token.new";
const BYTES: usize = 32;
/// The longest file; somebody may have chosen a token.
const MAX_FILE: u64 = 1 << 10;
const TOO_OPEN: u32 = 0o077;

/// A bearer token. Never shown.
pub(crate) struct Token(Zeroizing<String>);

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token")
    }
}

impl Token {
    /// The one in a folder; makes it if there is none.
    ///
    /// # Errors
    /// It cannot be read or written, is none, or others can read it.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        if path.exists() {
            return Self::read(&path);
        }
        // Whole, or not there: a disk may be full. One connector at a time has the folder.
        let (next, writing) = (dir.join(NEXT), || format!("writing {}", path.display()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next);
        let token = Self::make(file.with_context(writing)?).with_context(writing)?;
        std::fs::rename(&next, &path).with_context(writing)?;
        Ok(token)
    }

    /// The one in a folder, if there is one.
    ///
    /// # Errors
    /// It cannot be read, is none, or others can read it.
    pub(crate) fn present(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    fn make(mut file: File) -> anyhow::Result<Self> {
        let token = Zeroizing::new(BASE64URL_NOPAD.encode(Zeroizing::new(rand::random::<[u8; BYTES]>()).as_slice()));
        file.write_all(Zeroizing::new(format!("{}\n", token.as_str())).as_bytes())?;
        file.sync_all()?;
        Ok(Self(token))
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let read = || {
            let file = File::open(path)?;
            let mode = file.metadata()?.mode();
            let mut text = Zeroizing::new(String::new());
            file.take(MAX_FILE).read_to_string(&mut text)?;
            std::io::Result::Ok((mode, text))
        };
        let (mode, text) = read().with_context(|| format!("reading {}", path.display()))?;
        ensure!(
            mode & TOO_OPEN == 0,
            "{}: others can read it (mode {:04o}): make it 0600",
            path.display(),
            mode & 0o7777
        );
        let token = Zeroizing::new(text.trim().to_owned());
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(is_token, "{} holds no token: remove it, and a new one is made", path.display());
        Ok(Self(token))
    }

    /// Whether a request has it.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some((scheme, shown)) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case("bearer") && bool::from(shown.trim().as_bytes().ct_eq(self.0.as_bytes()))
    }

    /// As a request has it.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0.as_str())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Where it is.
    pub(crate) fn place(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_only_it_lets_in() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Token::present(folder.path()).unwrap().is_none());
        let token = Token::open(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.trim().len(), std::fs::metadata(&path).unwrap().mode() & 0o777), (43, 0o600));
        assert_eq!(*Token::open(folder.path()).unwrap().0, *token.0);
        let is_in = |value: &str| {
            let headers = [(AUTHORIZATION, HeaderValue::from_str(value).unwrap())].into_iter().collect();
            token.is_in(&headers)
        };
        let good = text.trim();
        assert!(is_in(&format!("Bearer {good}")) && is_in(&format!("bearer {good} ")));
        for wrong in [good, "Bearer", "Bearer ", &format!("Basic {good}"), &format!("Bearer {good}x"), "Bearer x"] {
            assert!(!is_in(wrong), "{wrong}");
        }
        assert!(!is_in(&format!("Bearer {}", good.get(..42).unwrap())) && !token.is_in(&HeaderMap::new()));
        assert!(!format!("{token:?}").contains(good));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = format!("{:#}", Token::open(folder.path()).unwrap_err());
        assert!(error.contains("0640") && !error.contains(good), "{error}");
    }
}
