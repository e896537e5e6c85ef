//! The keys of the answers in a Redis: one for each tenant and label, drawn at random, and kept wrapped in the Redis itself, so that all
//! replicas have the same one. Where it is destroyed, its answers are unreadable for everybody, whoever has a copy of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use postern_sealed::at_rest::{DataKey, KeyKey};

use super::FORM;
use crate::keys::Keys;
use crate::store::{Away, Line, Store};

/// How long a key is used before the Redis is asked whether it is still the one: so long an answer may be readable after it was destroyed elsewhere.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Longer than answers are kept; it begins anew whenever the key is asked for.
const LIFE: Duration = Duration::from_secs(32 * 24 * 3600);
/// Keys in memory. When there are as many, all are asked for again.
const HELD: usize = 4096;

/// Whose answers, and how secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Tenant.
    pub tenant: Arc<str>,
    /// Label.
    pub label: Arc<str>,
}

#[derive(Debug)]
pub(super) struct DataKeys {
    above: KeyKey,
    names: Keys,
    held: Mutex<HashMap<Owner, (DataKey, Instant)>>,
}

impl DataKeys {
    pub(super) fn new(keys: &Keys) -> Self {
        let above = KeyKey::new(keys.hash("wrap", &[]));
        Self { above, names: keys.derive("names", &[]), held: Mutex::default() }
    }

    /// The key of `owner`, as the Redis has it; drawn if it has none.
    pub(super) async fn of(&self, store: &Store, line: &Line, owner: &Owner, within: Duration) -> Option<DataKey> {
        if let Some((key, since)) = self.held().get(owner)
            && since.elapsed() < ASK_EVERY
        {
            return Some(key.clone());
        }
        let wrapped = {
            let mut rng = rand::rng();
            let new = DataKey::draw(&owner.tenant, &owner.label, &mut rng);
            self.above.wrap(&new, &mut rng).ok()?
        };
        let (name, life_ms) = (self.name(owner), u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX));
        let mut asked = redis::pipe();
        asked.cmd("SET").arg(&name).arg(wrapped).arg("NX").arg("PX").arg(life_ms).ignore();
        asked.get(&name).cmd("PEXPIRE").arg(&name).arg(life_ms).ignore();
        let (kept,): (Option<Vec<u8>>,) = store.ask(line, &asked, within).await.ok()?;
        let Ok(key) = self.above.unwrap(&owner.tenant, &owner.label, &kept?) else {
            tracing::warn!("a key in the Redis of the cache is none of ours; it is taken away, and another is drawn");
            let _next_time = store.ask::<()>(line, redis::pipe().del(&name).ignore(), within).await;
            return None;
        };
        let mut held = self.held();
        if held.len() >= HELD {
            held.clear();
        }
        held.insert(owner.clone(), (key.clone(), Instant::now()));
        Some(key)
    }

    /// Destroys the keys of `owners`.
    pub(super) async fn destroy(
        &self,
        store: &Store,
        line: &Line,
        owners: &[Owner],
        within: Duration,
    ) -> Result<(), Away> {
        let mut asked = redis::pipe();
        for owner in owners {
            asked.del(self.name(owner)).ignore();
        }
        let destroyed = store.ask(line, &asked, within).await;
        // Afterwards: whoever asked for one before has put it there by now.
        self.held().retain(|owner, _| !owners.contains(owner));
        destroyed
    }

    fn name(&self, owner: &Owner) -> String {
        let name = self.names.hash("key", &[owner.tenant.as_bytes(), owner.label.as_bytes()]);
        format!("postern:{FORM}:key:{}", HEXLOWER.encode(&name))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Owner, (DataKey, Instant)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
