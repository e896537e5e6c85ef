//! The second tier: answers in a Redis, for other replicas and over a restart.
//!
//! A Redis belongs to somebody else, so it gets nothing that it could read: its keys are the keyed hashes that the cache has, its values
//! AES-256-GCM of the masked answers, with a key for each tenant and label, which can be destroyed. What is under a key is taken only if it
//! was written for it, and has not had its time. Answers of a label that no remote target may see are not there at all.

mod data_keys;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use postern_sealed::at_rest::{self, DataKey};
use postern_wire::json::Value;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::data_keys::DataKeys;
pub use self::data_keys::Owner;
use super::{CacheKey, Entry, MAX_ENTRY};
use crate::keys::Keys;
use crate::store::{Away, Store};

/// How long a request waits for what the Redis may have.
const READ_WITHIN: Duration = Duration::from_millis(50);
const WRITE_WITHIN: Duration = Duration::from_secs(1);
/// Answers that wait to be written; one more is not.
const QUEUE: usize = 64;
/// The form of what is there, in the names of all of it.
const FORM: u8 = 2;
/// The longest value.
const MAX_VALUE: usize = 2 * MAX_ENTRY;
/// Bytes of a reply.
pub const REPLY: usize = MAX_VALUE + 1024;

/// Answers in a Redis.
#[derive(Debug)]
pub struct SharedCache {
    store: Arc<Store>,
    keys: DataKeys,
    writes: mpsc::Sender<Write>,
    /// Until it is being written.
    waiting: Mutex<Option<mpsc::Receiver<Write>>>,
}

#[derive(Debug)]
struct Write {
    key: CacheKey,
    owner: Owner,
    entry: Entry,
    ttl: Duration,
}

/// An answer as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept<Text, Event> {
    target: Text,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    /// Milliseconds since 1970.
    until_ms: u64,
    /// As the memory counts them.
    bytes: usize,
    events: Vec<Event>,
}

impl SharedCache {
    /// Answers in `store`.
    #[must_use]
    pub fn new(store: Arc<Store>, keys: &Keys) -> Self {
        let (writes, waiting) = mpsc::channel(QUEUE);
        Self {
            store,
            keys: DataKeys::new(&keys.derive("redis:cache", &[])),
            writes,
            waiting: Mutex::new(Some(waiting)),
        }
    }

    /// Keeps a connection, and writes what is put in, for as long as it is polled.
    pub async fn keep_up(&self) {
        tokio::join!(self.store.keep_up(), self.write());
    }

    async fn write(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = waiting else { return };
        while let Some(Write { key, owner, entry, ttl }) = waiting.recv().await {
            let Ok(line) = self.store.line() else { continue };
            let Some(data_key) = self.keys.of(&self.store, &line, &owner, WRITE_WITHIN).await else { continue };
            let Some(value) = sealed(&entry, ttl, (&owner, &key), &data_key, SystemTime::now()) else { continue };
            let mut command = redis::pipe();
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
            command.pset_ex(name(&key), value, ttl_ms).ignore();
            let _logged: Result<(), _> = self.store.ask(&line, &command, WRITE_WITHIN).await;
        }
    }

    /// What is there under `key`, and for how long it may be kept on. Nothing, if the Redis does not say so at once.
    pub async fn get(&self, key: &CacheKey, owner: &Owner) -> Option<(Entry, Duration)> {
        let line = self.store.line().ok()?;
        let data_key = self.keys.of(&self.store, &line, owner, READ_WITHIN).await?;
        let mut asked = redis::pipe();
        asked.get(name(key));
        let (value,): (Option<Vec<u8>>,) = self.store.ask(&line, &asked, READ_WITHIN).await.ok()?;
        open(&value?, (owner, key), &data_key, SystemTime::now())
    }

    /// Writes an answer when there is time for it.
    pub fn put(&self, key: CacheKey, owner: Owner, entry: Entry, ttl: Duration) {
        if self.writes.try_send(Write { key, owner, entry, ttl }).is_err() {
            tracing::debug!("an answer is not written to Redis: too many wait");
        }
    }

    /// Destroys the keys of what is there of a tenant under these labels. Other replicas ask for them again within a minute.
    ///
    /// # Errors
    /// The Redis is away.
    pub async fn erase(&self, tenant: &Arc<str>, labels: impl Iterator<Item = Arc<str>>) -> Result<(), Away> {
        let owners: Vec<Owner> = labels.map(|label| Owner { tenant: tenant.clone(), label }).collect();
        self.keys.destroy(&self.store, &self.store.line()?, &owners, WRITE_WITHIN).await
    }
}

fn name(key: &CacheKey) -> String {
    format!("postern:{FORM}:answer:{}", HEXLOWER.encode(key))
}

fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// An answer as it is there. Bound to its key, so that it is of no use under another.
fn sealed(entry: &Entry, ttl: Duration, what: (&Owner, &CacheKey), key: &DataKey, now: SystemTime) -> Option<Vec<u8>> {
    let kept: Kept<&str, &Value> = Kept {
        target: &*entry.target,
        prompt_tokens: entry.tokens.0,
        completion_tokens: entry.tokens.1,
        until_ms: milliseconds(now + ttl),
        bytes: entry.bytes,
        events: entry.events.iter().map(|event| &**event).collect(),
    };
    let plain = serde_json::to_vec(&kept).ok()?;
    let value = key.seal(answer(what), &plain, &mut rand::rng()).ok()?;
    (value.len() <= MAX_VALUE).then_some(value)
}

fn open(value: &[u8], what: (&Owner, &CacheKey), key: &DataKey, now: SystemTime) -> Option<(Entry, Duration)> {
    let plain = key.open(answer(what), value.get(..MAX_VALUE.min(value.len()))?).ok()?;
    let kept: Kept<String, Value> = serde_json::from_slice(&plain).ok()?;
    let left_ms = kept.until_ms.checked_sub(milliseconds(now)).filter(|left| *left > 0)?;
    let entry = Entry {
        target: kept.target.into(),
        events: kept.events.into_iter().map(Arc::new).collect(),
        bytes: kept.bytes,
        tokens: (kept.prompt_tokens, kept.completion_tokens),
    };
    Some((entry, Duration::from_millis(left_ms)))
}

fn answer<'a>((owner, key): (&'a Owner, &'a CacheKey)) -> at_rest::Entry<'a> {
    at_rest::Entry { tenant: &owner.tenant, label: &owner.label, kind: "answer", id: key }
}

#[cfg(test)]
mod tests {
    use postern_wire::json::json;

    use super::*;

    fn owner(tenant: &str) -> Owner {
        Owner { tenant: tenant.into(), label: "internal".into() }
    }

    fn key_of(owner: &Owner) -> DataKey {
        DataKey::draw(&owner.tenant, &owner.label, &mut rand::rng())
    }

    fn entry() -> Entry {
        let events: Arc<[Arc<Value>]> = [Arc::new(json!({"choices": [{"text": "canary"}]}))].into();
        Entry { target: "sun".into(), events, bytes: 40, tokens: (Some(3), None) }
    }

    #[test]
    fn what_was_sealed_is_opened_for_its_key_in_its_time_and_by_its_own() {
        let (now, ttl, id, owner) = (SystemTime::now(), Duration::from_secs(10), [7; 32], owner("t"));
        let key = key_of(&owner);
        let value = sealed(&entry(), ttl, (&owner, &id), &key, now).unwrap();
        assert!(!value.windows(6).any(|part| part == b"canary"));
        let (read, left) = open(&value, (&owner, &id), &key, now + Duration::from_secs(4)).unwrap();
        assert_eq!((read.events, read.tokens, left), (entry().events, (Some(3), None), Duration::from_secs(6)));
        assert!(open(&value, (&owner, &id), &key, now + ttl).is_none(), "it has had its time");
        assert!(open(&value, (&owner, &[8; 32]), &key, now).is_none(), "it is of another key");
        let other = super::tests::owner("u");
        assert!(open(&value, (&other, &id), &key, now).is_none(), "of another tenant");
        assert!(open(&value, (&owner, &id), &key_of(&owner), now).is_none(), "its key was destroyed");
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 1;
            assert!(open(&changed, (&owner, &id), &key, now).is_none(), "{at}");
            assert!(open(&value[..at], (&owner, &id), &key, now).is_none(), "{at}");
        }
        assert_ne!(sealed(&entry(), ttl, (&owner, &id), &key, now).unwrap(), value, "never looks the same");
    }
}
