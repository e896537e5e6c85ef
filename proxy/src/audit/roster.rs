//! The roster: which logs belong together, signed by each of them (`postern_tlog::roster`). Without others it lists the logs that this
//! gateway has begun; replicas with one key share it over their Redis. Whoever has it notices that a whole log is not shown.
//!
//! What is in the Redis counts as a replica's word if it has the keyed hash that only replicas can make. Names are only added, and one that
//! is retired stays named, so it does not matter who writes when, or what a Redis has lost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use postern_tlog::{Files, SecretKey, SignedRoster, agree, keep_roster, read_roster};
use tokio_util::sync::CancellationToken;

use super::line::Notice;
use super::seldom::Seldom;
use super::{AuditLog, LogKeys};
use crate::config::Config;
use crate::keys::Keys;
use crate::store::{Away, Store};
use crate::telemetry::metrics::Metrics;

/// How often it is looked at what others have written.
const EVERY: Duration = Duration::from_secs(5);
/// How long it waits for a connection at the start.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
/// How long the Redis may take.
const WITHIN: Duration = Duration::from_secs(1);
/// Bytes of a reply: a roster and its hash.
const REPLY: usize = 128 << 10;
const HASH_DIGITS: usize = 64;
/// Puts it there, if nobody else has meanwhile.
const PUT: &str = "local there = redis.call('GET', KEYS[1])
if (there or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1";

/// Keeps the roster of a gateway's logs.
#[derive(Debug)]
pub(crate) struct RosterKeeper {
    domain: String,
    own: Vec<SecretKey>,
    retired: Vec<String>,
    /// Another place for it, which goes on when a log begins anew: its generations never fall.
    beside: Files,
    shared: Option<Shared>,
    /// What is wrong with the file, or what is in the Redis; and why it is not as it must be.
    changed: Seldom,
    failing: Seldom,
}

/// How far it is.
#[derive(Debug, Default)]
struct Looked {
    known: Option<SignedRoster>,
    /// The generation that is on record.
    told: Option<u64>,
}

/// Where replicas write it.
#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    keys: Keys,
    key: String,
}

impl RosterKeeper {
    /// Of the logs that this gateway has begun. With `keys` of all replicas it is shared, unless the gateway is offline.
    ///
    /// # Errors
    /// The Redis is none that could be used.
    pub(crate) fn of(config: &Config, keys: &Keys, log: &AuditLog, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let audit = &config.audit;
        let mut own = LogKeys::of(&audit.state_dir, &audit.dir).secrets();
        if !own.iter().any(|key| key.public().to_string() == log.key().public().to_string()) {
            own.push(log.key().clone());
        }
        let replicas = config.replicas.as_ref().filter(|replicas| replicas.key.is_some() && !config.offline);
        let cache = config.cache.as_ref().and_then(|cache| cache.redis.as_ref());
        let redis = replicas.and_then(|replicas| replicas.redis.as_ref().or(cache));
        let loss = "the roster of the logs is not shared with other replicas: the Redis cannot be used";
        let store = redis.map(|redis| Store::new(redis, ("roster", loss), REPLY, metrics.clone())).transpose();
        let shared = store.context("the Redis of the roster")?.map(|store| {
            let keys = keys.derive("redis:roster", &[]);
            let key =
                format!("postern:roster:{}", HEXLOWER.encode(&keys.hash("name", &[config.trust_domain.as_bytes()])));
            Shared { store, keys, key }
        });
        let (retired, beside) = (audit.retired.clone(), Files::new(&audit.state_dir));
        let (changed, failing) = (Seldom::default(), Seldom::default());
        Ok(Self { domain: config.trust_domain.clone(), own, retired, beside, shared, changed, failing })
    }

    /// Keeps it as it must be, here and, until the gateway goes `offline`, with others, for as long as it is polled.
    pub(crate) async fn keep_up(&self, log: &AuditLog, offline: &CancellationToken) {
        let connection = async {
            if let Some(shared) = &self.shared {
                offline.run_until_cancelled(shared.store.keep_up()).await;
            }
        };
        let look = async {
            if let Some(shared) = &self.shared {
                // What others have written is better known first.
                let mut lines = shared.store.lines();
                let _not_yet = tokio::time::timeout(FIRST_WITHIN, lines.wait_for(Option::is_some)).await;
            }
            let mut looked = Looked::default();
            loop {
                if let Err(error) = self.look(log, &mut looked, offline).await
                    && self.failing.is_due()
                {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the roster of the logs is not as it must be yet; it is tried again"
                    );
                }
                tokio::time::sleep(EVERY).await;
            }
        };
        tokio::join!(connection, look);
    }

    async fn look(&self, log: &AuditLog, looked: &mut Looked, offline: &CancellationToken) -> anyhow::Result<()> {
        let Looked { known, told } = looked;
        let (files, beside) = (log.files().clone(), self.beside.clone());
        // What cannot be read is not what was written.
        let read = |files: &Files| read_roster(files).unwrap_or_else(|_| Some(Vec::new()));
        let (there, beside) = tokio::task::spawn_blocking(move || (read(&files), read(&beside))).await?;
        let here = there.as_ref().and_then(|bytes| self.own_word(bytes));
        if there.is_some() && here.is_none() && self.changed.is_due() {
            tracing::error!(
                "the file `roster` beside the records is not what this gateway signed: somebody changed it. It is written anew"
            );
        }
        let aside = beside.as_ref().and_then(|bytes| self.own_word(bytes));
        let before = known.clone().or_else(|| here.clone());
        let shared = offline.run_until_cancelled(self.read()).await.flatten();
        let theirs = shared.as_ref().and_then(|(_, roster)| roster.clone());
        let all: Vec<SignedRoster> = known.iter().cloned().chain(here).chain(aside).chain(theirs).collect();
        let agreed = agree(&self.domain, &all, &self.own, &self.retired)?;
        // On record first: a gateway that is killed after the files would find nothing new in them.
        let generation = Some(agreed.roster.generation);
        if *told != generation && before.is_none_or(|before| Some(before.roster.generation) != generation) {
            let (logs, sha256) = (Some(agreed.roster.logs.len() as u64), Some(agreed.digest()));
            log.notice(&Notice { what: "roster", generation, logs, sha256, ..Notice::default() }).await?;
            *told = generation;
        }
        for (kept, files) in [(there, log.files()), (beside, &self.beside)] {
            if kept.as_ref() != Some(&agreed.bytes) {
                let (files, bytes) = (files.clone(), agreed.bytes.clone());
                tokio::task::spawn_blocking(move || keep_roster(&files, &bytes)).await??;
            }
        }
        if let (Some(shared), Some((raw, roster))) = (&self.shared, shared)
            && roster.is_none_or(|roster| roster.bytes != agreed.bytes)
        {
            // If somebody else was quicker, the next look has it.
            let put = shared.put(&raw, &agreed.bytes);
            let _later: Option<Result<(), Away>> = offline.run_until_cancelled(put).await;
        }
        *known = Some(agreed);
        Ok(())
    }

    /// A roster that this gateway kept: signed by each of its own keys that it names.
    fn own_word(&self, bytes: &[u8]) -> Option<SignedRoster> {
        let roster = SignedRoster::parse(bytes).ok()?;
        let named: Vec<_> =
            self.own.iter().filter(|key| roster.roster.logs.contains_key(&key.public().to_string())).collect();
        (!named.is_empty() && named.iter().all(|key| roster.is_signed_by(key.public()))).then_some(roster)
    }

    /// What is in the Redis, as it is there, and what a replica wrote of it. `None`: there is no Redis just now.
    async fn read(&self) -> Option<(Vec<u8>, Option<SignedRoster>)> {
        let shared = self.shared.as_ref()?;
        let raw = shared.get().await.ok()?;
        let roster = shared.opened(&raw).and_then(|bytes| SignedRoster::parse(bytes).ok());
        if roster.is_none() && !raw.is_empty() && self.changed.is_due() {
            tracing::warn!("what the Redis has as the roster of the logs is of none of the replicas; it is replaced");
        }
        Some((raw, roster))
    }
}

impl Shared {
    async fn get(&self) -> Result<Vec<u8>, Away> {
        let line = self.store.line()?;
        let mut asked = redis::pipe();
        asked.get(&self.key);
        let (value,): (Option<Vec<u8>>,) = self.store.ask(&line, &asked, WITHIN).await?;
        Ok(value.unwrap_or_default())
    }

    async fn put(&self, before: &[u8], bytes: &[u8]) -> Result<(), Away> {
        let line = self.store.line()?;
        let mut asked = redis::pipe();
        asked.cmd("EVAL").arg(PUT).arg(1).arg(&self.key).arg(before).arg(self.closed(bytes));
        let (_done,): (i64,) = self.store.ask(&line, &asked, WITHIN).await?;
        Ok(())
    }

    fn closed(&self, bytes: &[u8]) -> Vec<u8> {
        [HEXLOWER.encode(&self.keys.hash("value", &[bytes])).as_bytes(), bytes].concat()
    }

    fn opened<'a>(&self, raw: &'a [u8]) -> Option<&'a [u8]> {
        let (_, bytes) = raw.split_at_checked(HASH_DIGITS)?;
        // Whoever can try often writes what it wants there anyway, so nothing is learnt from how long this takes.
        (self.closed(bytes) == raw).then_some(bytes)
    }
}
