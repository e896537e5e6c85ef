//! What can be wrong with a log.

use std::io;
use std::path::{Path, PathBuf};

/// Why a log cannot be opened, read or checked. The words are for whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk says no.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A file is not what it must be.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
    /// A key, note or checkpoint is not one, or not signed by whom it must be.
    #[error("{0}")]
    Note(String),
    /// The log ends before what its own checkpoint says.
    #[error(
        "the newest checkpoint says {signed} records, and {found} are there: the last {} are missing. Put them back from a copy, or keep this folder as \
         evidence and name another one, where a new log begins", signed - found
    )]
    Lost {
        /// Records by the checkpoint.
        signed: u64,
        /// Records that are there.
        found: u64,
    },
    /// What is there is not what was signed.
    #[error(
        "the first {size} records are not those of the checkpoint of that size: they were changed. Put them back from a copy, or keep this folder as \
         evidence and name another one, where a new log begins"
    )]
    Changed {
        /// Records of the checkpoint.
        size: u64,
    },
    /// Entries or tiles that are needed are not there.
    #[error("{0} is not there")]
    Missing(String),
    /// The entries were deleted after their time.
    #[error("record {index} is past its retention: the first that is kept is {first}")]
    Forgotten {
        /// Which was asked for.
        index: u64,
        /// The first that there is.
        first: u64,
    },
    /// More is asked of the log than it has.
    #[error("there is no record {index}: the checkpoint has {size}")]
    NoEntry {
        /// Which was asked for.
        index: u64,
        /// How many there are.
        size: u64,
    },
    /// A proof does not hold.
    #[error("the proof does not hold: {0}")]
    Proof(String),
}

impl LogError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), what: what.into() }
    }
}
