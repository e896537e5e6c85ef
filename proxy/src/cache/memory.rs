//! Least-recently-used entries of this process, bounded by bytes.

use std::time::{Duration, Instant};

use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::{CacheKey, Entry};
use crate::config;

/// The cache of one process.
#[derive(Debug)]
pub struct MemoryCache {
    entries: Cache<CacheKey, (Entry, Duration)>,
    ttl: Duration,
}

struct PerEntry;

impl Expiry<CacheKey, (Entry, Duration)> for PerEntry {
    fn expire_after_create(&self, _: &CacheKey, value: &(Entry, Duration), _: Instant) -> Option<Duration> {
        Some(value.1)
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        value: &(Entry, Duration),
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(value.1)
    }
}

impl MemoryCache {
    /// Bounded by a configuration.
    #[must_use]
    pub fn new(config: &config::Cache) -> Self {
        let entries = Cache::builder()
            .max_capacity(config.memory)
            // Not by how often as well: then what is new would not get in where the old was asked for often.
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, value: &(Entry, Duration)| u32::try_from(value.0.bytes + 256).unwrap_or(u32::MAX))
            .expire_after(PerEntry)
            .build();
        Self { entries, ttl: config.ttl }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.entries.invalidate_all();
    }

    /// What was kept under `key`.
    #[must_use]
    pub fn get(&self, key: &CacheKey) -> Option<Entry> {
        self.entries.get(key).map(|(entry, _)| entry)
    }

    /// Keeps `entry`, for `ttl` if that is shorter than the configured life.
    pub fn put(&self, key: CacheKey, entry: Entry, ttl: Option<Duration>) {
        let ttl = self.life(ttl);
        self.entries.insert(key, (entry, ttl));
    }

    /// How long an entry is kept that is worth `ttl`.
    #[must_use]
    pub fn life(&self, ttl: Option<Duration>) -> Duration {
        ttl.unwrap_or(self.ttl).min(self.ttl)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn entries_end_with_their_life_and_the_bound_holds() {
        let cache =
            MemoryCache::new(&config::Cache { memory: 10_000, ttl: Duration::from_secs(60), redis: None, warm: None });
        let entry = |bytes| Entry { target: "t".into(), events: Arc::new([]), bytes, tokens: (None, None) };
        cache.put([1; 32], entry(10), Some(Duration::from_millis(20)));
        cache.put([2; 32], entry(10), Some(Duration::from_secs(600)));
        assert!(cache.get(&[1; 32]).is_some());
        std::thread::sleep(Duration::from_millis(40));
        assert!(cache.get(&[1; 32]).is_none() && cache.get(&[2; 32]).is_some());
        // What takes the place of another has its own life.
        cache.put([2; 32], entry(10), Some(Duration::from_millis(20)));
        cache.put([3; 32], entry(10), Some(Duration::from_millis(20)));
        cache.put([3; 32], entry(10), Some(Duration::from_secs(600)));
        std::thread::sleep(Duration::from_millis(40));
        assert!(cache.get(&[2; 32]).is_none() && cache.get(&[3; 32]).is_some());
        for n in 10..60 {
            cache.put([n; 32], entry(1000), None);
        }
        cache.entries.run_pending_tasks();
        assert!(cache.entries.weighted_size() <= 10_000);
    }
}
