//! Who is who in a branch: SPIFFE identities, the authority that vouches for them, and TLS that insists on them.
//!
//! The order of work, module by module:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`spiffe`], [`prefix`] | identities, the patterns that configuration writes about them, the part of a trust domain that an authority speaks for; pure |
//! | [`authority`] | the embedded authority: a root for ten years, an intermediate for thirty days that renews itself, a ledger of what was issued and revoked |
//! | [`issue`] | leaves: short-lived, a new key each time, exactly one identity |
//! | [`material`] | certificates and keys that somebody else issued; pure |
//! | [`join`], [`csr`] | how a workstation gets its first leaf by a token, and every further one, without giving its key away |
//! | [`rotate`] | when to renew a leaf, when to worry, how far a root switch is; pure |
//! | [`trust`] | roots and revocation lists, and the one function that judges a chain |
//! | [`verify`], [`refusal`] | what a certificate says about its holder, read strictly; why one was refused, in a word |
//! | [`signature`] | what a leaf's holder has signed outside of TLS |
//! | [`tls`] | server and client configurations built from a leaf and a trust bundle |
//! | [`backup`], [`export`] | an authority in one encrypted file; its roots for others |
//!
//! There is no HTTP here, no thread and no timer: callers ask [`rotate::Schedule`] what to do and when, and call
//! [`Authority::refresh`] every second or so.
//!
//! What this crate promises about a TLS connection that it configured:
//! - TLS 1.3, both sides authenticated by a chain up to a root that is valid at that moment, X25519MLKEM768 preferred
//!   (hybrid post-quantum);
//! - no resumption of any kind: every handshake proves today's identities, today's expiry and today's revocations;
//! - a certificate issued to a workload cannot serve, one issued to a node (`…/node/…`) serves the gateway only, and
//!   nothing but the exact gateway ID is accepted as the gateway;
//! - an authority speaks for its own trust domain only, and below its own prefix only.
//!
//! What it promises about an authority: a crash at any moment loses nothing that was handed out and lets no invitation
//! be used twice; what was revoked stays revoked until it is over; with a clock that was set back nothing is issued.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//! use postern_certs::{Authority, AuthorityOptions, LeafRequest, Role, server_config};
//!
//! # fn main() -> Result<(), postern_certs::CertsError> {
//! let authority = Authority::open_or_create(
//!     Path::new("/var/lib/postern/authority"),
//!     AuthorityOptions::new("branch-17.example.org", Duration::from_secs(72 * 3600)),
//! )?;
//! let role = Role::Gateway { names: vec!["ai.branch-17.example.org".into()] };
//! let leaf = authority.issue(LeafRequest { id: authority.gateway_id().clone(), role })?;
//! let tls = server_config(&leaf, &authority.trust())?;
//! # Ok(()) }
//! ```

pub mod authority;
pub mod backup;
mod ban;
pub mod clock;
#[cfg(test)]
mod crash;
pub mod csr;
pub mod error;
pub mod export;
pub mod issue;
pub mod join;
mod ledger;
pub mod material;
pub mod pem;
pub mod prefix;
pub mod refusal;
pub mod rotate;
pub mod serial;
pub mod signature;
mod signer;
pub mod spiffe;
mod store;
pub mod tls;
pub mod trust;
pub mod verify;

pub use authority::{Authority, AuthorityOptions, Revocation, RootPlace, SignedLeaf, Status};
pub use clock::{Clock, SystemClock, rfc3339};
pub use csr::Csr;
pub use error::CertsError;
pub use issue::{IssuedLeaf, LeafRequest, Role};
pub use join::JoinToken;
pub use prefix::PathPrefix;
pub use refusal::Reason;
pub use serial::Serial;
pub use signature::Signatory;
pub use spiffe::SpiffeId;
pub use tls::{client_config, client_config_through, enrol_server_config, node_server_config, server_config};
pub use trust::Trust;
pub use verify::Peer;
