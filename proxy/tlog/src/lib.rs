//! An append-only Merkle log in a folder, which somebody else can check with nothing but its files and a public key.
//!
//! ```text
//! checkpoint                the newest signed checkpoint (C2SP tlog-checkpoint, an Ed25519 signed-note)
//! checkpoints/NAME          the checkpoint at the end of each segment, kept when its entries are deleted
//! tile/L/N[.p/W]            hashes (C2SP tlog-tiles: 256 wide, `.p/W` while a tile is not full)
//! tile/entries/N[.p/W]      entries, 256 to a bundle
//! witnessed/NAME            the newest checkpoint that a witness signed as well
//! roster                    the keys of the logs that belong together, signed by each of them
//! journal/FIRST.jsonl       the newest entries, a line each, from number FIRST on
//! ```
//!
//! The tree is that of RFC 6962, section 2.1. What is *durable* is in the journal, which is written and synced before anybody
//! is told; everything under `tile/` follows from it and is made again after a crash. So a kill at any moment costs at most
//! entries that nobody was told of, and power that fails in the middle of a tile costs nothing. A journal is deleted when the
//! disk has all tiles that it covers.
//!
//! The arithmetic of trees and proofs is that of the crate `tlog_tiles`, notes are those of `signed_note`; what neither has is
//! here: the folder, its recovery, its bounds, and the whole check of it.

mod error;
mod files;
mod journal;
mod layout;
mod log;
mod mirror;
mod note;
mod proof;
mod roster;
#[cfg(test)]
mod tests;
mod tree;
mod verify;
mod witness;

pub use error::LogError;
pub use files::{Entries, Files, read_file};
pub use log::{Changed, Log, Recovery};
pub use mirror::{MAX_PUSH, Mirror, Push, Refusal};
pub use note::{Head, Key, SecretKey, Signed};
pub use proof::Proof;
pub use roster::{Roster, SignedRoster, agree, keep_roster, read_roster};
pub use tlog_tiles::tlog::Hash;
pub use verify::{Finding, Report, Trusted, verify};
pub use witness::{Answer, WitnessKey, add_checkpoint, answer, keep_cosigned, kept_cosigned};

/// Bytes of an entry at most: its length is two bytes in a bundle.
pub const MAX_ENTRY: usize = u16::MAX as usize;
