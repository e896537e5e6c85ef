//! What can go wrong with certificates. These messages are for the operator and the log: they name files and
//! identities, and never hold key material.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::{Reason, SpiffeId};

/// The error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertsError {
    /// A text is not a SPIFFE ID. Usually a typing error in the configuration, or a certificate from another system.
    #[error("not a SPIFFE ID: {0}")]
    SpiffeId(&'static str),
    /// A text is not a pattern over SPIFFE IDs. Usually a `*` somewhere other than as the whole last segment.
    #[error("not a SPIFFE ID pattern: {0}")]
    Pattern(&'static str),
    /// A text is not a path prefix: it is configured wrongly.
    #[error("not a path prefix: {0}")]
    Prefix(&'static str),
    /// A text is not the serial number of a certificate.
    #[error("not a serial number: up to 21 bytes in hexadecimal")]
    Serial,
    /// The configured life of a leaf is outside of what the authority can honour.
    #[error("leaf_ttl must be between {min_s} s and {max_s} s, not {asked_s} s")]
    LeafTtl {
        /// What was asked for, seconds.
        asked_s: u64,
        /// The least, seconds.
        min_s: u64,
        /// The most, seconds.
        max_s: u64,
    },
    /// The identity may not have such a leaf: another trust domain, no path, or the gateway's own ID for a workload.
    #[error("no certificate for {id}: {why}")]
    NotIssuable {
        /// The identity asked for.
        id: SpiffeId,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A name for the gateway's leaf is neither a DNS name nor an IP address.
    #[error("{name:?} cannot stand in the gateway's certificate: {why}")]
    Name {
        /// The name as given.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The file system refused. Likely a full disk, a read-only mount, or another user's folder.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder of the authority belongs to another user: what this process writes there the service could
    /// not read, and what it reads there somebody else could have written.
    #[error("{} belongs to another user: run this as that user, for example with `sudo -u`", path.display())]
    ForeignOwner {
        /// The file or folder.
        path: PathBuf,
    },
    /// Others can read a private key, so it may be known to others already.
    #[error("{} holds a private key and its mode is {mode:04o}: if nobody else can have read it, `chmod 600` it",
        path.display())]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process held the authority's lock for too long.
    #[error("{} is locked by another process since {waited_s} s", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long this process waited, seconds.
        waited_s: u64,
    },
    /// A file of the authority is not what this crate wrote. It is never replaced silently: restore it from a backup.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The root is gone though its intermediate is there. A new root would lock out everyone who pinned the old one.
    #[error(
        "{} is missing though the authority was used before: restore it, or remove the folder to begin a new authority",
        path.display()
    )]
    RootMissing {
        /// Where the root should be.
        path: PathBuf,
    },
    /// The root on disk is no longer the one that this process opened.
    #[error("the authority in {} was replaced while it was in use: restart to use the new one", path.display())]
    Replaced {
        /// The authority's folder.
        path: PathBuf,
    },
    /// The authority on disk speaks for another trust domain than the configured one.
    #[error("the authority in {} is for {found}, the configuration says {expected}", path.display())]
    TrustDomain {
        /// The authority's folder.
        path: PathBuf,
        /// The trust domain of the root on disk.
        found: String,
        /// The trust domain asked for.
        expected: String,
    },
    /// The clock reads a time before the intermediate: it was set back, or that was made while it ran ahead.
    #[error(
        "the clock says {now}, but the intermediate is valid only from {not_before}: correct the clock; if it is right \
         now and ran ahead before, run `postern certs reset-clock`"
    )]
    ClockBehind {
        /// The time read.
        now: OffsetDateTime,
        /// When it begins.
        not_before: OffsetDateTime,
    },
    /// The root itself begins in the future: the authority was begun while the clock ran ahead, or the clock is behind.
    #[error(
        "the clock says {now}, but the root is valid only from {not_before}: correct the clock; if it is right now, the \
         root was made while it ran ahead: remove the folder to begin a new authority, and enrol everyone again"
    )]
    RootAhead {
        /// The time read.
        now: OffsetDateTime,
        /// When the root begins.
        not_before: OffsetDateTime,
    },
    /// The clock reads a time before the highest one that this authority has seen: with it, expired certificates would
    /// come to life again.
    #[error(
        "the clock says {now}, but this authority has seen {highest}: correct the clock; if it is right now and ran \
         ahead before, run `postern certs reset-clock`"
    )]
    ClockSetBack {
        /// The time read.
        now: OffsetDateTime,
        /// The highest time seen.
        highest: OffsetDateTime,
    },
    /// The clock reads a time before this program was made, as on a machine without a clock battery.
    #[error("the clock says {now}, which is before this program was made ({released}): correct the clock")]
    ClockNeverSet {
        /// The time read.
        now: OffsetDateTime,
        /// When this program was made, or shortly before.
        released: OffsetDateTime,
    },
    /// As many leaves are in force as the register can hold.
    #[error("{max} certificates are in force, which is the limit: none is issued until one of them ends")]
    RegisterFull {
        /// The limit.
        max: usize,
    },
    /// An invitation cannot be given.
    #[error("no invitation: {0}")]
    NotInvitable(&'static str),
    /// A text is not a join token, or was cut when it was copied.
    #[error("not a join token: {0}")]
    JoinToken(&'static str),
    /// Nobody was invited with this token, or it was used before, or it is too old. Which of them is not told.
    #[error("the join token is unknown, used or too old: ask for a new one")]
    InviteRefused,
    /// A certificate request is not what can be signed.
    #[error("certificate request refused: {0}")]
    Csr(&'static str),
    /// A leaf cannot be renewed; its holder has to be invited again.
    #[error("no renewal for {id}: {why}")]
    NotRenewable {
        /// Whose leaf.
        id: SpiffeId,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The root is kept off line, and has to sign the intermediate of this machine.
    #[error(
        "{} waits to be signed: take it to the machine with the root, run `postern certs root sign` there, and \
         bring the answer back with `postern certs root install`", csr.display()
    )]
    AwaitingIntermediate {
        /// The request.
        csr: PathBuf,
    },
    /// The configuration says another place of the root's key than the folder.
    #[error("{}: {why}", path.display())]
    RootPlace {
        /// The authority's folder.
        path: PathBuf,
        /// What is found there.
        why: &'static str,
    },
    /// The intermediate has expired and its root is off line.
    #[error(
        "the intermediate expired at {not_after}: have intermediate.csr.pem signed (`postern certs root sign`), \
         then `postern certs root install`"
    )]
    IntermediateExpired {
        /// When it ended.
        not_after: OffsetDateTime,
    },
    /// An intermediate that was brought in cannot be used.
    #[error("the intermediate cannot be installed: {0}")]
    NotInstallable(String),
    /// A switch to a new root cannot begin.
    #[error("no switch to a new root: {0}")]
    NoRootSwitch(&'static str),
    /// A backup cannot be made, or not be read.
    #[error("backup: {0}")]
    Backup(&'static str),
    /// The root has expired; everyone needs a new one.
    #[error("the root expired at {not_after}: begin a new authority and enrol every workstation again")]
    RootExpired {
        /// When it ended.
        not_after: OffsetDateTime,
    },
    /// A certificate does not say what it has to say. From a peer: refuse it.
    #[error("certificate refused: {why}")]
    Certificate {
        /// In a word.
        reason: Reason,
        /// In a sentence.
        why: String,
    },
    /// No root in the trust bundle is valid now, so nobody could be trusted.
    #[error("the trust bundle has no root that is valid now")]
    EmptyBundle,
    /// A revocation list cannot be read, or there are too many.
    #[error("revocation list refused: {0}")]
    RevocationList(String),
    /// Making a key or signing a certificate failed.
    #[error("cannot make a certificate: {0}")]
    Signing(#[from] rcgen::Error),
    /// The TLS library refused a key, a chain or a root.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl CertsError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn certificate(why: impl Into<String>) -> Self {
        Self::refused(Reason::Malformed, why)
    }

    pub(crate) fn refused(reason: Reason, why: impl Into<String>) -> Self {
        Self::Certificate { reason, why: why.into() }
    }

    /// The same refusal once more: errors that hold others cannot be copied, and a judged chain is judged twice.
    pub(crate) fn restate(&self) -> Self {
        match self {
            Self::SpiffeId(why) => Self::SpiffeId(why),
            Self::Certificate { reason, why } => Self::refused(*reason, why.clone()),
            other => Self::refused(other.reason().unwrap_or(Reason::Malformed), other.to_string()),
        }
    }

    /// Whether the file system or another process stood in the way, so that it may go better later.
    pub(crate) fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Locked { .. })
    }

    /// Why a certificate was refused, if that is what happened.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Certificate { reason, .. } => Some(*reason),
            Self::Tls(error) => Reason::of_handshake(error),
            Self::SpiffeId(_) => Some(Reason::NoIdentity),
            Self::EmptyBundle => Some(Reason::UnknownAuthority),
            _ => None,
        }
    }
}
