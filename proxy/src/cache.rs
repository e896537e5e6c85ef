//! Answers that were given before, to the same tenant, for the same request under the same label.
//!
//! The cache holds masked text with placeholders of its own (see [`Suffix::Cache`](crate::redact::vault::Suffix)); a hit
//! is mapped onto the vault of the request that is being answered, so a value never comes out of it.

pub mod flight;
mod key;
mod memory;
pub mod semantic;

pub use key::{CacheKey, flight_key, key};
pub use memory::MemoryCache;

use std::sync::Arc;

use serde_json::Value;

/// The most bytes of one entry; a longer answer is not kept.
pub const MAX_ENTRY: usize = 1 << 20;

/// One answer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Who made it.
    pub target: Arc<str>,
    /// The response, or the events of the stream; masked.
    pub events: Arc<[Arc<Value>]>,
    /// Bytes, about.
    pub bytes: usize,
    /// Tokens, as the target counted them.
    pub tokens: (Option<u64>, Option<u64>),
}
