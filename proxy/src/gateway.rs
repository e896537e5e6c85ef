//! Everything that requests share, put together from a configuration. Binds no port.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use postern_plugins::{HostOptions, PolicyHost};
use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::admission::account::Moment;
use crate::admission::kept::Kept;
use crate::audit::{AuditLog, Flushed};
use crate::cache::MemoryCache;
use crate::cache::flight::Flights;
use crate::cache::semantic::Semantic;
use crate::classify::Classifier;
use crate::config::Config;
use crate::cost::Prices;
use crate::dispatch::Dispatcher;
use crate::keys::Keys;
use crate::route::load::Loader;
use crate::route::reload::Live;
use crate::route::shadow::Places;
use crate::telemetry::metrics::Metrics;
use crate::tls::Certificate;
use crate::upstream::local;

/// Large answers at a time: each may take some hundreds of MB while it is read and written.
const LARGE_ANSWERS: usize = 4;

/// One running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Its configuration, as it was at the start. What concerns policies is in [`Gateway::live`].
    pub config: Config,
    /// For keyed hashes.
    pub keys: Keys,
    /// Who may come in.
    pub admission: Admission,
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
    pub cache: Option<Arc<MemoryCache>>,
    /// Questions that were asked before, to answer those that mean the same.
    pub semantic: Option<Arc<Semantic>>,
    /// Answers that are under way.
    pub flights: Arc<Flights>,
    /// For answers of which only a few should be in memory.
    pub large: Arc<Semaphore>,
    /// Who answers.
    pub dispatcher: Dispatcher,
    /// The records.
    pub audit: AuditLog,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Gateway {
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
        let keys = Keys::open(&config.state_dir).context("installation.key in state_dir")?;
        let options = HostOptions { cache_dir: Some(config.compiled_dir.clone()), ..HostOptions::default() };
        let host = PolicyHost::new(options).context("the sandbox of the policies")?;
        // Taken out, so that nobody reads there what may have changed since.
        let part = std::mem::take(&mut config.policy_part);
        let live = Live::start(Loader::new(host, metrics.clone()), (file, &config.state_dir), &part, metrics.clone())?;
        let (audit, flushed) = AuditLog::open(&config.audit_dir, config.audit_retention, metrics.clone())
            .with_context(|| format!("the records in {}", config.audit_dir.display()))?;
        let kept = Kept::below(&config.state_dir);
        let spent = kept.read(Moment::now()).context(
            "budgets.json in state_dir, which says what was spent of limits by day and month; if it is lost, remove it: they begin anew",
        )?;
        let dispatcher = Dispatcher::new(&config, engine, certificate, metrics.clone())?;
        let gateway = Self {
            keys,
            admission: Admission::new(config.limits.requests, config.limits.bodies.0, config.limits.body.0, spent),
            kept,
            prices: Arc::new(Prices::of(&config)),
            classifier: Classifier::new(&config),
            live: Arc::new(live),
            shadows: Places::default(),
            cache: config.cache.map(|cache| Arc::new(MemoryCache::new(cache))),
            semantic: config.semantic.as_ref().map(|semantic| Arc::new(Semantic::new(&config, semantic))),
            flights: Arc::default(),
            large: Arc::new(Semaphore::new(LARGE_ANSWERS)),
            dispatcher,
            audit,
            metrics,
            config,
        };
        Ok((gateway, flushed))
    }
}
