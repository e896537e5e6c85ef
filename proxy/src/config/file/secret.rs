//! Keys and passwords: a file of ours names where they are.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::read::bounded;

/// Bytes of a file with a secret.
const MAX_FILE: usize = 64 << 10;
/// The longest secret.
const MAX_SECRET: usize = 8192;

/// Where a secret comes from; never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub enum Secret {
    /// The name of an environment variable.
    Env(String),
    /// A file whose first line it is.
    File(PathBuf),
}

impl Secret {
    /// A file is named from the folder of the configuration.
    #[must_use]
    pub fn below(self, base: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(base.join(path)),
            env @ Self::Env(_) => env,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// Says where it was looked for, and what is wrong there; never the secret.
    pub fn read(&self) -> Result<Zeroizing<String>, String> {
        let from = self.place();
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|_| format!("{from} is not set"))?,
            Self::File(path) => {
                let cannot = |error: &dyn std::fmt::Display| format!("{from} cannot be read: {error}");
                let bytes = bounded(path, MAX_FILE).map_err(|error| cannot(&error))?;
                String::from_utf8(bytes).map_err(|_| cannot(&"it is not text"))?
            }
        };
        let text = Zeroizing::new(text);
        let secret = text.lines().next().unwrap_or_default().trim();
        if secret.is_empty() || secret.len() > MAX_SECRET {
            return Err(format!("{from} is empty or longer than {MAX_SECRET} bytes"));
        }
        Ok(Zeroizing::new(secret.to_owned()))
    }

    /// The file that it is in.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Env(_) => None,
            Self::File(path) => Some(path),
        }
    }

    /// Where it is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Env(name) => format!("in the environment variable {name}"),
            Self::File(path) => format!("in the file {}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// By hand, so that a key that somebody wrote where its name belongs is not repeated in the error.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;
        impl<'de> serde::de::Visitor<'de> for Source {
            type Value = Secret;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("{env: NAME} or {file: PATH}; a key itself is never written here")
            }

            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Secret, E> {
                Err(E::custom("expected {env: NAME} or {file: PATH}; a key itself is never written here"))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                let wrong = || serde::de::Error::custom("expected exactly one of {env: NAME} and {file: PATH}");
                let secret = match map.next_key::<String>()?.as_deref() {
                    Some("env") => Secret::Env(map.next_value()?),
                    Some("file") => Secret::File(map.next_value()?),
                    _ => return Err(wrong()),
                };
                if map.next_key::<String>()?.is_some() { Err(wrong()) } else { Ok(secret) }
            }
        }
        deserializer.deserialize_any(Source)
    }
}
