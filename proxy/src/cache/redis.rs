//! The second tier: answers in a Redis, for other replicas and over a restart.
//!
//! A Redis belongs to somebody else, so it gets nothing that it could read: its keys are the keyed hashes that the cache has, its values
//! AES-256-GCM of the masked answers, with a key for each tenant and label. What is under a key is taken only if it was written for it,
//! and has not had its time. Answers of a label that no remote target may see are not there at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{CacheKey, Entry, MAX_ENTRY};
use crate::keys::Keys;
use crate::store::Store;

/// How long a request waits for what the Redis may have.
const READ_WITHIN: Duration = Duration::from_millis(50);
const WRITE_WITHIN: Duration = Duration::from_secs(1);
/// Answers that wait to be written; one more is not.
const QUEUE: usize = 64;
/// The form of the values, and of the keys.
const FORM: u8 = 1;
const NONCE: usize = 12;
/// The longest value.
const MAX_VALUE: usize = 2 * MAX_ENTRY;
/// Bytes of a reply.
pub const REPLY: usize = MAX_VALUE + 1024;

/// Answers in a Redis.
#[derive(Debug)]
pub struct SharedCache {
    store: Arc<Store>,
    keys: Keys,
    writes: mpsc::Sender<Write>,
    /// Until it is being written.
    waiting: Mutex<Option<mpsc::Receiver<Write>>>,
}

/// What encrypts the answers of one tenant under one label.
#[derive(Clone)]
pub struct Seal(Aes256Gcm);

impl std::fmt::Debug for Seal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Seal(…)")
    }
}

#[derive(Debug)]
struct Write {
    key: CacheKey,
    seal: Seal,
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
        Self { store, keys: keys.derive("redis:cache", &[]), writes, waiting: Mutex::new(Some(waiting)) }
    }

    /// Keeps a connection, and writes what is put in, for as long as it is polled.
    pub async fn keep_up(&self) {
        tokio::join!(self.store.keep_up(), self.write());
    }

    async fn write(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = waiting else { return };
        while let Some(Write { key, seal, entry, ttl }) = waiting.recv().await {
            let Ok(line) = self.store.line() else { continue };
            let Some(value) = sealed(&entry, ttl, &key, &seal, SystemTime::now()) else { continue };
            let mut command = redis::pipe();
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
            command.pset_ex(name(&key), value, ttl_ms).ignore();
            let _logged: Result<(), _> = self.store.ask(&line, &command, WRITE_WITHIN).await;
        }
    }

    /// For the answers of a tenant under a label.
    #[must_use]
    pub fn seal(&self, tenant: &str, label: &str) -> Seal {
        let key = zeroize::Zeroizing::new(self.keys.hash("seal", &[tenant.as_bytes(), label.as_bytes()]));
        Seal(Aes256Gcm::new(&(*key).into()))
    }

    /// What is there under `key`, and for how long it may be kept on. Nothing, if the Redis does not say so at once.
    pub async fn get(&self, key: &CacheKey, seal: &Seal) -> Option<(Entry, Duration)> {
        let line = self.store.line().ok()?;
        let mut asked = redis::pipe();
        asked.get(name(key));
        let (value,): (Option<Vec<u8>>,) = self.store.ask(&line, &asked, READ_WITHIN).await.ok()?;
        open(&value?, key, seal, SystemTime::now())
    }

    /// Writes an answer when there is time for it.
    pub fn put(&self, key: CacheKey, seal: Seal, entry: Entry, ttl: Duration) {
        if self.writes.try_send(Write { key, seal, entry, ttl }).is_err() {
            tracing::debug!("an answer is not written to Redis: too many wait");
        }
    }
}

fn name(key: &CacheKey) -> String {
    format!("postern:{FORM}:answer:{}", HEXLOWER.encode(key))
}

fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Form, nonce, ciphertext. Bound to its key, so that it is of no use under another.
fn sealed(entry: &Entry, ttl: Duration, key: &CacheKey, seal: &Seal, now: SystemTime) -> Option<Vec<u8>> {
    let kept: Kept<&str, &Value> = Kept {
        target: &*entry.target,
        prompt_tokens: entry.tokens.0,
        completion_tokens: entry.tokens.1,
        until_ms: milliseconds(now + ttl),
        bytes: entry.bytes,
        events: entry.events.iter().map(|event| &**event).collect(),
    };
    let plain = serde_json::to_vec(&kept).ok()?;
    let nonce: [u8; NONCE] = rand::random();
    let payload = Payload { msg: &plain, aad: &bound_to(key) };
    let ciphertext = seal.0.encrypt(&Nonce::from(nonce), payload).ok()?;
    let value: Vec<u8> = [&[FORM][..], &nonce, &ciphertext].concat();
    (value.len() <= MAX_VALUE).then_some(value)
}

fn open(value: &[u8], key: &CacheKey, seal: &Seal, now: SystemTime) -> Option<(Entry, Duration)> {
    let rest = value.strip_prefix(&[FORM]).filter(|_| value.len() <= MAX_VALUE)?;
    let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>()?;
    let payload = Payload { msg: ciphertext, aad: &bound_to(key) };
    let plain = seal.0.decrypt(&Nonce::from(*nonce), payload).ok()?;
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

fn bound_to(key: &CacheKey) -> Vec<u8> {
    [&[FORM][..], key].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seal_of(tenant: &str, label: &str) -> Seal {
        let key = Keys::random().hash("seal", &[tenant.as_bytes(), label.as_bytes()]);
        Seal(Aes256Gcm::new(&key.into()))
    }

    fn entry() -> Entry {
        let events: Arc<[Arc<Value>]> = [Arc::new(json!({"choices": [{"text": "canary"}]}))].into();
        Entry { target: "sun".into(), events, bytes: 40, tokens: (Some(3), None) }
    }

    #[test]
    fn what_was_sealed_is_opened_for_its_key_in_its_time_and_by_its_own() {
        let (now, ttl, key, seal) = (SystemTime::now(), Duration::from_secs(10), [7; 32], seal_of("t", "internal"));
        let value = sealed(&entry(), ttl, &key, &seal, now).unwrap();
        assert!(!value.windows(6).any(|part| part == b"canary"));
        let (read, left) = open(&value, &key, &seal, now + Duration::from_secs(4)).unwrap();
        assert_eq!((read.events, read.tokens, left), (entry().events, (Some(3), None), Duration::from_secs(6)));
        assert!(open(&value, &key, &seal, now + ttl).is_none(), "it has had its time");
        assert!(open(&value, &[8; 32], &seal, now).is_none(), "it is of another key");
        assert!(
            open(&value, &key, &seal_of("t", "internal"), now).is_none(),
            "of another installation, tenant or label"
        );
        for at in 0..value.len() {
            let mut other = value.clone();
            other[at] ^= 1;
            assert!(open(&other, &key, &seal, now).is_none(), "{at}");
        }
        for length in 0..value.len() {
            assert!(open(&value[..length], &key, &seal, now).is_none(), "{length}");
        }
    }

    #[test]
    fn the_same_answer_never_looks_the_same() {
        let (now, ttl, key, seal) = (SystemTime::now(), Duration::from_secs(10), [7; 32], seal_of("t", "internal"));
        let value = || sealed(&entry(), ttl, &key, &seal, now).unwrap();
        assert_ne!(value(), value());
    }
}
