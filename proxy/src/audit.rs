//! Two records a request, in a Merkle log that a third party can check (`postern-tlog`). The *intent* is durable before the
//! first byte leaves the machine; the *outcome* is written when the stream has ended, also when the client went away. A record
//! is a line of JSON; never content.

mod copies;
mod copy;
mod intent;
mod keys;
mod line;
mod log;
mod outcome;
mod read;
mod roster;
mod seldom;
mod witness;

pub use copies::CopyRefusal;
pub(crate) use copies::{COPIES_PATH, Copies};
pub(crate) use copy::Copier;
pub use intent::Intent;
pub(crate) use keys::LogKeys;
pub(crate) use line::Action;
pub use log::{AuditLog, Flushed, Place};
pub use outcome::{Attempt, Outcome};
pub(crate) use read::{Records, day_of};
pub(crate) use roster::RosterKeeper;
pub(crate) use witness::Witness;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Names a request in both of its records and in `Postern-Record`: a UUID of version 7 (RFC 9562), so that they sort by
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordId(uuid::Uuid);

impl RecordId {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }

    /// A number that follows from it.
    #[must_use]
    pub fn seed(self) -> u64 {
        let (time, random) = self.0.as_u64_pair();
        time ^ random
    }
}

impl Default for RecordId {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.simple().fmt(out)
    }
}

impl serde::Serialize for RecordId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Now, in UTC (RFC 3339).
fn timestamp() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
