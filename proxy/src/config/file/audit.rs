//! The records, and who else has them.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Placed;
use crate::config::units::{Size, Span};

/// The records of what happened.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Their folder, below state_dir unless absolute.
    #[serde(default = "default_audit_dir")]
    pub dir: PathBuf,
    /// How long records are kept. Of the days that are older, the oldest is deleted when a day begins: one a day is what comes
    /// in, and a clock that is wrong by years cannot delete everything at once. What proves the rest stays.
    #[serde(default = "default_retention")]
    pub retention: Span,
    /// When the disk must have a record.
    #[serde(default)]
    pub sync: Sync,
    /// What is done with requests while nothing can be recorded.
    #[serde(default)]
    pub unwritable: Unwritable,
    /// Who is given each checkpoint, and signs that the log only grew since (C2SP tlog-witness); 8 at most.
    #[serde(default)]
    pub witnesses: Vec<Witness>,
    /// Another gateway that is given a copy of all records.
    #[serde(default)]
    pub copy: Option<CopyTo>,
    /// Whose records are kept here as well, in the folder beside the log whose name ends with `-copies`.
    #[serde(default)]
    pub copies: Copies,
    /// Logs that the roster names as retired: whoever checks all logs of the roster need not have them. By name, such as
    /// branch.example.org/audit/0123abcd.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub retired: Vec<Placed>,
}

/// Somebody who looks on: a witness of C2SP tlog-witness.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Where it is: https://…, to which `/add-checkpoint` is added.
    #[schemars(with = "String")]
    pub url: Placed,
    /// Its public key, `NAME+HASH+KEY`, as it publishes it.
    #[schemars(with = "String")]
    pub key: Placed,
    /// A private authority to trust for its certificate, in PEM; absent: the machine's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// Where a copy goes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyTo {
    /// The `listen` address of the other gateway: https://HOST:PORT.
    #[schemars(with = "String")]
    pub to: Placed,
    /// The SPIFFE ID that its certificate must have.
    #[schemars(with = "String")]
    pub identity: Placed,
}

/// Whose records are kept here.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Copies {
    /// One for each log; 16 at most.
    pub from: Vec<CopyFrom>,
}

/// A log of another gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyFrom {
    /// The SPIFFE ID of the gateway that may send it.
    #[schemars(with = "String")]
    pub identity: Placed,
    /// The public key of its log, as `postern audit key` prints it there.
    #[schemars(with = "String")]
    pub key: Placed,
    /// Bytes that its copy may take here. Beyond it nothing more is taken, and nothing is deleted.
    #[serde(default = "default_copy_size")]
    pub max_size: Size,
}

/// When the disk must have a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// Before what it records leaves the machine: a failure of power loses nothing that was done.
    #[default]
    Each,
    /// Once a second. What is recorded has left the process, so that its end, however it comes, loses nothing; a failure of power loses
    /// a second.
    Interval,
}

/// What is done with requests while nothing can be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unwritable {
    /// All are refused.
    #[default]
    Refuse,
    /// Those with the lowest label are answered; how many is recorded when something can be.
    Public,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            dir: default_audit_dir(),
            retention: default_retention(),
            sync: Sync::default(),
            unwritable: Unwritable::default(),
            witnesses: Vec::new(),
            copy: None,
            copies: Copies::default(),
            retired: Vec::new(),
        }
    }
}

fn default_audit_dir() -> PathBuf {
    "audit".into()
}

fn default_retention() -> Span {
    Span(Duration::from_secs(180 * 86_400))
}

fn default_copy_size() -> Size {
    Size(16 << 30)
}
