//! Answers that were given before, to the same tenant, for the same request under the same label.
//!
//! The cache holds masked text with placeholders of its own (see [`Suffix::Cache`](crate::redact::vault::Suffix)); a hit
//! is mapped onto the vault of the request that is being answered, so a value never comes out of it.

pub mod flight;
mod key;
mod memory;
pub mod redis;
pub mod semantic;
pub(crate) mod warm;

pub use key::{CacheKey, flight_key, key};
pub use memory::MemoryCache;

use std::sync::Arc;
use std::time::Duration;

use postern_wire::json::Value;

use redis::{Owner, SharedCache};

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

/// Answers in memory, and in a Redis where there is one.
#[derive(Debug)]
pub struct Tiers {
    /// The first.
    pub memory: MemoryCache,
    /// The second.
    pub redis: Option<SharedCache>,
}

/// The place of one answer.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Under which key.
    pub key: CacheKey,
    /// Whose it is in the second tier; `None`: it is not there.
    pub owner: Option<Owner>,
}

impl Tiers {
    /// What the second tier has; the first one has it as well then.
    pub async fn fetch(&self, slot: &Slot) -> Option<Entry> {
        let (redis, owner) = (self.redis.as_ref()?, slot.owner.as_ref()?);
        let (entry, left) = redis.get(&slot.key, owner).await?;
        self.memory.put(slot.key, entry.clone(), Some(left));
        Some(entry)
    }

    /// Keeps `entry` in both, for `ttl` if that is shorter than the configured life.
    pub fn put(&self, slot: Slot, entry: Entry, ttl: Option<Duration>) {
        let ttl = self.memory.life(ttl);
        if let (Some(redis), Some(owner)) = (&self.redis, slot.owner) {
            redis.put(slot.key, owner, entry.clone(), ttl);
        }
        self.memory.put(slot.key, entry, Some(ttl));
    }
}
