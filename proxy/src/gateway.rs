//! Everything that requests share, put together from a configuration. Binds no port.

use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use postern_plugins::{HostOptions, PolicyHost};
use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::admission::account::Moment;
use crate::admission::kept::Kept;
use crate::admission::together::{self, Counter, Together};
use crate::audit::{AuditLog, Copier, Copies, Flushed, RosterKeeper, Witness};
use crate::cache;
use crate::cache::flight::Flights;
use crate::cache::redis::SharedCache;
use crate::cache::semantic::Semantic;
use crate::cache::{MemoryCache, Tiers};
use crate::classify::Classifier;
use crate::classify::taint::shared;
use crate::config::Config;
use crate::config::read::bounded;
use crate::confine::Confined;
use crate::cost::Prices;
use crate::dispatch::Dispatcher;
use crate::keys::tenants::TenantKeys;
use crate::keys::{Keys, write_once};
use crate::open::keys::PayloadKeys;
use crate::route::load::Loader;
use crate::route::reload::{Live, digest};
use crate::route::shadow::Places;
use crate::store::Store;
use crate::telemetry::metrics::Metrics;
use crate::tls::Certificate;
use crate::upstream::local;

/// Large answers at a time: each may take some hundreds of MB while it is read and written.
const LARGE_ANSWERS: usize = 4;

/// The part of all requests at a time that relays may be bringing.
const CARRIED_SHARE: usize = 4;
/// Answers at a time that are sealed as a whole, each of which is in memory until it has been sent.
const SEALED_WHOLE: usize = 8;
/// Whoever was reading from a Redis, or writing to it, has ended then.
const ERASED_WITHIN: std::time::Duration = std::time::Duration::from_millis(1100);
/// Bytes of the name of a replica.
const MAX_ID: usize = 64;

/// One running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Its configuration, as it was at the start. What concerns policies is in [`Gateway::live`].
    pub config: Config,
    /// For keyed hashes.
    pub keys: Keys,
    /// Who may come in.
    pub admission: Admission,
    /// Where limits are kept together with other gateways.
    pub together: Option<Together>,
    /// Where it is kept what was spent.
    pub kept: Kept,
    /// What answers cost.
    pub prices: Arc<Prices>,
    /// What a request may reveal.
    pub classifier: Classifier,
    /// The office's own rules, exchanged while requests go on.
    pub live: Arc<Live>,
    /// For rules that are only watched.
    pub shadows: Places,
    /// Answers given before.
    pub cache: Option<Arc<Tiers>>,
    /// Questions that were asked before, to answer those that mean the same.
    pub semantic: Option<Arc<Semantic>>,
    /// Answers that are under way.
    pub flights: Arc<Flights>,
    /// For answers of which only a few should be in memory.
    pub large: Arc<Semaphore>,
    /// Who answers.
    pub dispatcher: Dispatcher,
    /// For sealed requests that relays bring, while they are being read: whose they are is not known yet, and others have places left.
    pub carried: Arc<Semaphore>,
    /// For answers that are sealed as a whole.
    pub sealed_whole: Arc<Semaphore>,
    /// What payloads are sealed for.
    pub payload_keys: PayloadKeys,
    /// The keys of hashes that stay.
    pub tenant_keys: Arc<TenantKeys>,
    /// The records.
    pub audit: AuditLog,
    /// Who is given each checkpoint of the records.
    pub(crate) witnesses: Vec<Witness>,
    /// Gives another gateway a copy of the records.
    pub(crate) copier: Option<Copier>,
    /// Which logs belong together.
    pub(crate) roster: RosterKeeper,
    /// Copies of other gateways' records.
    pub(crate) copies: Copies,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// How the kernel confines this process; `None`: it does not.
    pub confined: Option<Confined>,
}

impl Gateway {
    /// Destroys what is kept of a tenant: the key of its hashes, and its cached answers. What is in memory of all tenants goes, since nothing there
    /// says whose it is; what is remembered of its labels stays until the process ends, or it would protect less.
    ///
    /// # Errors
    /// Why it is not done: it has to be asked for again.
    pub async fn erase(&self, tenant: &str) -> Result<(), &'static str> {
        let (keys, name) = (self.tenant_keys.clone(), tenant.to_owned());
        let erased = tokio::task::spawn_blocking(move || keys.erase(&name)).await;
        erased.ok().and_then(Result::ok).ok_or("its key in state_dir cannot be removed")?;
        let Some(cache) = &self.cache else { return Ok(()) };
        let labels = || self.config.labels.names().iter().map(|name| Arc::from(name.as_str()));
        if let Some(redis) = &cache.redis {
            redis.erase(&tenant.into(), labels()).await.map_err(|_| "the Redis of the cache is away")?;
            // Whoever was reading or writing with a key of before has ended then.
            tokio::time::sleep(ERASED_WITHIN).await;
            redis.erase(&tenant.into(), labels()).await.map_err(|_| "the Redis of the cache is away")?;
        } else if self.config.cache.as_ref().is_some_and(|cache| cache.redis.is_some()) {
            return Err("a gateway that is offline cannot ask the Redis of the cache");
        }
        // Last, so that nothing of before is read into it any more.
        if let Some(semantic) = &self.semantic {
            semantic.clear();
        }
        cache.memory.clear();
        Ok(())
    }

    /// Opens keys and records, compiles the policies. Takes seconds at first start: never call it on a worker thread of
    /// the runtime. `file` is where the configuration was read; `certificate` is what nodes of our own are shown.
    ///
    /// # Errors
    /// Says which part cannot be had, and why.
    pub fn new(
        file: &Path,
        mut config: Config,
        engine: Arc<local::Engine>,
        certificate: &Arc<Certificate>,
    ) -> anyhow::Result<(Self, Flushed)> {
        let metrics = Arc::new(Metrics::default());
        let shared = config.replicas.as_ref().and_then(|replicas| replicas.key.as_ref());
        let keys = match shared {
            Some(key) => Keys::shared(key).map_err(|what| anyhow::anyhow!("`replicas.key` {what}"))?,
            None => Keys::open(&config.state_dir).context("installation.key in state_dir")?,
        };
        let options = HostOptions { cache_dir: Some(config.compiled_dir.clone()), ..HostOptions::default() };
        let host = PolicyHost::new(options).context("the sandbox of the policies")?;
        // Taken out, so that nobody reads there what may have changed since.
        let part = std::mem::take(&mut config.policy_part);
        let live = Live::start(Loader::new(host, metrics.clone()), (file, &config.state_dir), &part, metrics.clone())?;
        let (audit, flushed) =
            AuditLog::open(&config.audit, (&config.trust_domain, digest(file), config.offline), metrics.clone())
                .context("the records")?;
        let witnesses = Witness::all(&config.audit.witnesses, config.offline);
        let copier = Copier::of(&config.audit, &audit, certificate, config.offline);
        let roster = RosterKeeper::of(&config, &keys, &audit, &metrics).context("the roster of the records")?;
        let tenant_keys = TenantKeys::open(&config.state_dir, &keys).context("tenant-keys in state_dir")?;
        let kept = Kept::below(&config.state_dir);
        let spent = kept.read(Moment::now()).context(
            "budgets.json in state_dir, which says what was spent of limits by day and month; if it is lost, remove it: they begin anew",
        )?;
        let parts = config.replicas.as_ref().map_or(NonZeroU16::MIN, |replicas| replicas.count);
        let (together, counter) = counting(&config, &keys, &metrics)?.unzip();
        let cache = tiers(&config, &keys, &metrics)?;
        let classifier = Classifier::new(&config, &keys, labels(&config, &metrics)?);
        let dispatcher = Dispatcher::new(&config, engine, certificate, metrics.clone())?;
        let gateway = Self {
            keys,
            admission: Admission::new(&config.limits, spent, parts, counter),
            together,
            kept,
            prices: Arc::new(Prices::of(&config)),
            classifier,
            live: Arc::new(live),
            shadows: Places::default(),
            cache,
            semantic: config.semantic.as_ref().map(|semantic| Arc::new(Semantic::new(&config, semantic))),
            flights: Arc::default(),
            large: Arc::new(Semaphore::new(LARGE_ANSWERS)),
            dispatcher,
            carried: Arc::new(Semaphore::new((config.limits.requests / CARRIED_SHARE).max(1))),
            sealed_whole: Arc::new(Semaphore::new(SEALED_WHOLE)),
            payload_keys: PayloadKeys::default(),
            tenant_keys: Arc::new(tenant_keys),
            audit,
            witnesses,
            copier,
            roster,
            copies: Copies::of(&config.audit),
            metrics,
            confined: None,
            config,
        };
        Ok((gateway, flushed))
    }
}

fn counting(config: &Config, keys: &Keys, metrics: &Arc<Metrics>) -> anyhow::Result<Option<(Together, Counter)>> {
    let redis = config.replicas.as_ref().and_then(|replicas| replicas.redis.as_ref()).filter(|_| !config.offline);
    let Some(redis) = redis else { return Ok(None) };
    let loss = "this gateway keeps to its part of every limit: the Redis of `replicas` cannot be used";
    let store = Store::new(redis, ("limits", loss), together::REPLY, metrics.clone())?;
    let me = replica_id(&config.state_dir).context("replica.id in state_dir")?;
    Ok(Some(Together::new(store, keys, me)))
}

/// Where labels are remembered together.
fn labels(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Arc<Store>>> {
    let redis = config.replicas.as_ref().and_then(|replicas| replicas.redis.as_ref()).filter(|_| !config.offline);
    let loss = "what other gateways know of labels cannot be asked: only the engine on this machine may answer";
    redis.map(|redis| Store::new(redis, ("labels", loss), shared::REPLY, metrics.clone())).transpose()
}

/// What tells this gateway from the others, also after a restart.
fn replica_id(state_dir: &Path) -> std::io::Result<String> {
    let path = state_dir.join("replica.id");
    match bounded(&path, MAX_ID) {
        Ok(bytes) => {
            let id = String::from_utf8_lossy(&bytes).trim().to_owned();
            let is_one = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let what = format!("{} is no name of a replica; remove it, and another is made", path.display());
            if is_one { Ok(id) } else { Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what)) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = HEXLOWER.encode(&rand::random::<[u8; 8]>());
            write_once(&path, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

fn tiers(config: &Config, keys: &Keys, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Arc<Tiers>>> {
    let Some(cache) = &config.cache else { return Ok(None) };
    let loss = "answers are kept in memory only: the Redis of the cache cannot be used";
    let redis = cache.redis.as_ref().filter(|_| !config.offline);
    let redis =
        redis.map(|redis| Store::new(redis, ("cache", loss), cache::redis::REPLY, metrics.clone())).transpose()?;
    let redis = redis.map(|store| SharedCache::new(store, keys));
    Ok(Some(Arc::new(Tiers { memory: MemoryCache::new(cache), redis })))
}
