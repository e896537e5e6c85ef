//! Counters that outlive a call: per policy, tenant and label, each with a life. They are what a policy can remember.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::effects::Add;

/// Counters of a policy for one tenant and label.
pub const MAX_COUNTERS_IN_SCOPE: usize = 10_000;
/// Tenant and label pairs of a policy that have counters; more are refused until some have ended.
const MAX_SCOPES: usize = 10_000;
/// Counters of a policy in all.
const MAX_COUNTERS_IN_ALL: usize = 200_000;
/// The longest life of a counter.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Looking for what has ended takes a while, and everybody waits for it.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Whose counters: no scope sees another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) tenant: String,
    pub(crate) label: String,
}

/// The counters of one policy. They outlive its versions.
#[derive(Debug, Default)]
pub struct Counters(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    scopes: HashMap<Scope, HashMap<String, Counter>>,
    count: usize,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Counter {
    value: i64,
    ends: Instant,
}

impl Counters {
    /// None of them.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What others have written; 0 if there is none.
    pub(crate) fn get(&self, scope: &Scope, key: &str) -> i64 {
        let inner = self.lock();
        let counter = inner.scopes.get(scope).and_then(|counters| counters.get(key));
        counter.filter(|counter| counter.ends > Instant::now()).map_or(0, |counter| counter.value)
    }

    /// Is there room for one more of this name?
    pub(crate) fn has_room(&self, scope: &Scope, key: &str) -> bool {
        let mut inner = self.lock();
        let has_room = |inner: &Inner| match inner.scopes.get(scope) {
            Some(counters) if counters.contains_key(key) => true,
            Some(counters) => counters.len() < MAX_COUNTERS_IN_SCOPE && inner.count < MAX_COUNTERS_IN_ALL,
            None => inner.scopes.len() < MAX_SCOPES && inner.count < MAX_COUNTERS_IN_ALL,
        };
        if has_room(&inner) {
            return true;
        }
        let now = Instant::now();
        if inner.swept.is_some_and(|swept| now.duration_since(swept) < SWEEP_EVERY) {
            return false;
        }
        inner.sweep(now);
        has_room(&inner)
    }

    /// All additions of one call at once. What found no room in the meantime is left out.
    pub(crate) fn add(&self, scope: &Scope, adds: &[Add]) {
        if adds.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let in_all = inner.count;
        if !inner.scopes.contains_key(scope) && inner.scopes.len() >= MAX_SCOPES {
            return;
        }
        let counters = inner.scopes.entry(scope.clone()).or_default();
        let before = counters.len();
        for add in adds {
            let full =
                counters.len() >= MAX_COUNTERS_IN_SCOPE || in_all + counters.len() - before >= MAX_COUNTERS_IN_ALL;
            match counters.get_mut(&add.key) {
                Some(counter) if counter.ends > now => counter.value = counter.value.saturating_add(add.by),
                Some(counter) => *counter = Counter { value: add.by, ends: now + add.ttl },
                None if full => {}
                None => {
                    counters.insert(add.key.clone(), Counter { value: add.by, ends: now + add.ttl });
                }
            }
        }
        inner.count = in_all + counters.len() - before;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn sweep(&mut self, now: Instant) {
        self.swept = Some(now);
        self.scopes.retain(|_, counters| {
            counters.retain(|_, counter| counter.ends > now);
            !counters.is_empty()
        });
        self.count = self.scopes.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(tenant: &str, label: &str) -> Scope {
        Scope { tenant: tenant.into(), label: label.into() }
    }

    fn add(key: &str, by: i64, ttl: Duration) -> Add {
        Add { key: key.into(), by, ttl }
    }

    #[test]
    fn a_scope_sees_its_own_only_and_a_life_ends() {
        let counters = Counters::new();
        let (mine, life) = (scope("a", "public"), Duration::from_secs(60));
        counters.add(&mine, &[add("n", 2, life), add("n", 3, life), add("short", 1, Duration::ZERO)]);
        assert_eq!(counters.get(&mine, "n"), 5);
        assert_eq!(counters.get(&mine, "short"), 0);
        assert_eq!(counters.get(&scope("a", "internal"), "n"), 0);
        assert_eq!(counters.get(&scope("b", "public"), "n"), 0);
        counters.add(&mine, &[add("n", i64::MAX, life)]);
        assert_eq!(counters.get(&mine, "n"), i64::MAX);
    }

    #[test]
    fn there_is_a_bound_and_what_has_ended_makes_room() {
        let counters = Counters::new();
        let mine = scope("a", "public");
        let flood: Vec<_> = (0..MAX_COUNTERS_IN_SCOPE + 5).map(|i| add(&i.to_string(), 1, Duration::ZERO)).collect();
        counters.add(&mine, &flood);
        assert_eq!(counters.lock().count, MAX_COUNTERS_IN_SCOPE);
        assert!(counters.has_room(&mine, "new"), "all of them have ended");
        assert_eq!(counters.lock().count, 0);
        let flood: Vec<_> = flood.iter().map(|add| Add { ttl: MAX_TTL, ..add.clone() }).collect();
        counters.add(&mine, &flood);
        assert!(!counters.has_room(&mine, "new") && counters.has_room(&mine, "3"));
        assert!(counters.has_room(&scope("b", "public"), "new"), "another tenant has room of its own");
    }
}
