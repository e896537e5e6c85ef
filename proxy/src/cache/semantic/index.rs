//! Where answers are whose question had this reading: a few vectors for each, bounded by bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::super::CacheKey;
use super::vector::Vector;

/// Questions of one group, at most: they have the same reading, so most are near each other.
const GROUP: usize = 16;
/// Bytes of a group and of a question beside its vector, about.
const OVERHEAD: usize = 256;

/// Of the bytes, one part in so many is for what was found before.
const FOUND_PART: u64 = 8;

/// All groups of one process.
#[derive(Debug)]
pub(super) struct Index {
    groups: Cache<CacheKey, Arc<[Known]>>,
    /// Key of a request → key of the answer that was found for it.
    found: Cache<CacheKey, CacheKey>,
}

#[derive(Debug, Clone)]
struct Known {
    vector: Arc<Vector>,
    /// Under which its answer is in the cache.
    key: CacheKey,
    until: Instant,
}

impl Index {
    pub(super) fn new(bytes: u64, ttl: Duration) -> Self {
        let groups = Cache::builder()
            .max_capacity(bytes - bytes / FOUND_PART)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, group: &Arc<[Known]>| {
                let each = |known: &Known| known.vector.bytes() + OVERHEAD;
                u32::try_from(group.iter().map(each).sum::<usize>() + OVERHEAD).unwrap_or(u32::MAX)
            })
            .time_to_live(ttl)
            .build();
        let found = Cache::builder()
            .max_capacity(bytes / FOUND_PART / OVERHEAD as u64)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(ttl)
            .build();
        Self { groups, found }
    }

    /// Under which key the answer is that was found for this request before.
    pub(super) fn found_before(&self, request: &CacheKey) -> Option<CacheKey> {
        self.found.get(request)
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        self.groups.invalidate_all();
        self.found.invalidate_all();
    }

    /// The answer of this request is under `key`: it need not be compared again.
    pub(super) fn note_found(&self, request: CacheKey, key: CacheKey) {
        self.found.insert(request, key);
    }

    /// What `fetch` has of the nearest question that is not below `threshold`. Questions whose answer is gone are forgotten.
    pub(super) fn nearest<T>(
        &self,
        group: &CacheKey,
        vector: &Vector,
        threshold: f32,
        fetch: impl Fn(&CacheKey) -> Option<T>,
    ) -> Option<T> {
        let all = self.groups.get(group)?;
        let now = Instant::now();
        let mut near: Vec<(f32, &Known)> = all
            .iter()
            .filter(|known| known.until > now)
            .map(|known| (known.vector.nearness(vector), known))
            .filter(|(nearness, _)| *nearness >= threshold)
            .collect();
        near.sort_by(|one, other| other.0.total_cmp(&one.0));
        let mut gone = Vec::new();
        let found = near.into_iter().find_map(|(_, known)| {
            let found = fetch(&known.key);
            if found.is_none() {
                gone.push(known.key);
            }
            found
        });
        if !gone.is_empty() {
            self.put(*group, all.iter().filter(|known| !gone.contains(&known.key)).cloned().collect());
        }
        found
    }

    /// One more question. What another request adds in the same moment may be lost, which costs a hit.
    pub(super) fn keep(&self, group: CacheKey, key: CacheKey, vector: Vector, ttl: Duration) {
        let now = Instant::now();
        let known = Known { vector: Arc::new(vector), key, until: now + ttl };
        let before = self.groups.get(&group);
        let others = before.iter().flat_map(|all| all.iter()).filter(|other| other.key != key && other.until > now);
        self.put(group, [known].into_iter().chain(others.cloned()).take(GROUP).collect());
    }

    fn put(&self, group: CacheKey, all: Vec<Known>) {
        match all.is_empty() {
            true => self.groups.invalidate(&group),
            false => self.groups.insert(group, all.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn vector(angle: f32) -> Vector {
        Vector::of(&[angle.cos(), angle.sin()])
    }

    #[test]
    fn the_nearest_that_still_has_an_answer_is_found_in_its_group_only() {
        let index = Index::new(1 << 20, LONG);
        for (n, angle) in [(1, 0.2), (2, 0.1), (3, 1.5)] {
            index.keep([0; 32], [n; 32], vector(angle), LONG);
        }
        let found = |group: u8, there: &[u8]| {
            index.nearest(&[group; 32], &vector(0.0), 0.95, |key| there.contains(&key[0]).then_some(key[0]))
        };
        assert_eq!((found(0, &[1, 2, 3]), found(1, &[1, 2, 3])), (Some(2), None));
        assert_eq!(found(0, &[1, 3]), Some(1), "its answer is gone");
        assert_eq!(found(0, &[2, 3]), None, "and it was forgotten with it, and the other one as well");
        assert_eq!(found(0, &[3]), None, "this one is too far");
        assert_eq!(index.nearest(&[0; 32], &vector(1.5), 0.95, |key| Some(key[0])), Some(3));
    }

    #[test]
    fn what_was_found_is_found_again_without_a_vector_up_to_a_bound() {
        let index = Index::new(FOUND_PART * OVERHEAD as u64 * 10, LONG);
        index.note_found([1; 32], [2; 32]);
        assert_eq!((index.found_before(&[1; 32]), index.found_before(&[2; 32])), (Some([2; 32]), None));
        (0..100).for_each(|n| index.note_found([n; 32], [n; 32]));
        index.found.run_pending_tasks();
        assert!(index.found.entry_count() <= 10);
    }

    #[test]
    fn it_lives_as_long_as_its_answer_and_the_bounds_hold() {
        let index = Index::new(20_000, LONG);
        index.keep([0; 32], [0; 32], vector(0.0), Duration::from_millis(10));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(index.nearest(&[0; 32], &vector(0.0), 0.95, |_| Some(())), None);
        for n in 0..100 {
            index.keep([0; 32], [n; 32], vector(0.0), LONG);
        }
        let group = index.groups.get(&[0; 32]).unwrap();
        assert_eq!((group.len(), group[0].key), (GROUP, [99; 32]));
        for n in 1..200 {
            index.keep([n; 32], [n; 32], vector(0.0), LONG);
        }
        index.groups.run_pending_tasks();
        assert!(index.groups.weighted_size() <= 20_000 && index.groups.entry_count() > 10);
    }
}
