//! Everything that requests share, put together from a configuration. Binds no port.

use std::sync::Arc;

use anyhow::Context as _;
use postern_plugins::{HostOptions, PolicyHost};

use crate::admission::Admission;
use crate::audit::{AuditLog, Flushed};
use crate::cache::MemoryCache;
use crate::classify::Classifier;
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::keys::Keys;
use crate::route::Policies;
use crate::telemetry::metrics::Metrics;
use crate::upstream::local;

/// One running gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Its configuration.
    pub config: Config,
    /// For keyed hashes.
    pub keys: Keys,
    /// Who may come in.
    pub admission: Admission,
    /// What a request may reveal.
    pub classifier: Classifier,
    /// The office's own rules.
    pub policies: Policies,
    /// Answers given before.
    pub cache: Option<Arc<MemoryCache>>,
    /// Who answers.
    pub dispatcher: Dispatcher,
    /// The records.
    pub audit: AuditLog,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Gateway {
    /// Opens keys and records, compiles the policies. Takes seconds at first start: never call it on a worker thread of
    /// the runtime.
    ///
    /// # Errors
    /// Says which part cannot be had, and why.
    pub fn new(config: Config, engine: Arc<local::Engine>) -> anyhow::Result<(Self, Flushed)> {
        let metrics = Arc::new(Metrics::default());
        let keys = Keys::open(&config.state_dir).context("installation.key in state_dir")?;
        let options = HostOptions { cache_dir: Some(config.compiled_dir.clone()), ..HostOptions::default() };
        let host = PolicyHost::new(options).context("the sandbox of the policies")?;
        let policies = Policies::load(&host, &config.policies, metrics.clone())?;
        let (audit, flushed) = AuditLog::open(&config.audit_dir, config.audit_retention, metrics.clone())
            .with_context(|| format!("the records in {}", config.audit_dir.display()))?;
        let dispatcher = Dispatcher::new(&config, engine, metrics.clone())?;
        let gateway = Self {
            keys,
            admission: Admission::new(config.limits.requests, config.limits.bodies.0, config.limits.body.0),
            classifier: Classifier::new(&config),
            policies,
            cache: config.cache.map(|cache| Arc::new(MemoryCache::new(cache))),
            dispatcher,
            audit,
            metrics,
            config,
        };
        Ok((gateway, flushed))
    }
}
