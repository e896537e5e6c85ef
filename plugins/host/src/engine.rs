//! The sandbox that all policies share: wasmtime's engine, the clock of deadlines, and a bounded number of places to run.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::{Cache, CacheConfig, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::error::{FailureKind, PluginError, PolicyFailure};
use crate::ticker::Ticker;

/// The most memory that any policy may be given, in bytes; the pool reserves addresses for it.
pub const MAX_MEMORY_BYTES: usize = 256 << 20;

/// How the sandbox is set up.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Compiled components are kept here (mode 0700, nobody else may write to it: what is in it is run), so that the next
    /// start takes milliseconds. `None`: compile at each start.
    pub cache_dir: Option<PathBuf>,
    /// Calls that may run at once; more wait, for their deadline at most. Each reserves some 4 GiB of addresses, not of memory.
    pub max_calls: u32,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { cache_dir: None, max_calls: 256 }
    }
}

/// Core instances in a component: the guest, and the two that wit-component adds, with room for an adapter and its own.
const CORE_INSTANCES: u32 = 6;
const TABLES: u32 = 4;
const TABLE_ELEMENTS: usize = 20_000;
/// What one instance keeps for itself, in bytes: its globals, function references and the like.
const INSTANCE_BYTES: usize = 1 << 20;
/// Memory of a place that is wiped by writing over it, rather than given back to the kernel and faulted in again. The
/// first-party policies fit in here, which saves a fifth of a call (`examples/call-times.rs`).
const KEPT_BYTES: usize = 256 << 10;
/// Texts that are too long for a worker thread are searched on others, so many at once.
const MAX_SEARCHES: usize = 4;
const WASM_STACK_BYTES: usize = 512 << 10;
const ASYNC_STACK_BYTES: usize = 1 << 20;

/// Shared by all policies of a host.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) engine: Engine,
    pub(crate) ticker: Ticker,
    /// Long searches of the host for guests.
    pub(crate) searches: Arc<Semaphore>,
    places: Semaphore,
    trial: Mutex<()>,
}

impl Sandbox {
    pub(crate) fn new(options: &HostOptions) -> Result<Arc<Self>, PluginError> {
        if options.max_calls == 0 {
            return Err(PluginError::Limits("max_calls must be at least 1".into()));
        }
        let mut config = Config::new();
        features(&mut config);
        config.epoch_interruption(true);
        config.max_wasm_stack(WASM_STACK_BYTES);
        config.async_stack_size(ASYNC_STACK_BYTES);
        config.memory_init_cow(true);
        // A backtrace costs time with each trap, and names of functions are no use to an operator.
        config.wasm_backtrace_max_frames(None);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(options.max_calls.saturating_add(1))));
        if let Some(dir) = &options.cache_dir {
            config.cache(Some(cache(dir)?));
        }
        let engine = Engine::new(&config).map_err(sandbox_error)?;
        let ticker = Ticker::start(&engine).map_err(|error| PluginError::Sandbox(error.to_string()))?;
        let searches = Arc::new(Semaphore::new(MAX_SEARCHES));
        let places = Semaphore::new(options.max_calls as usize);
        Ok(Arc::new(Self { engine, ticker, searches, places, trial: Mutex::new(()) }))
    }

    /// A place to run, free within `wait`.
    pub(crate) async fn place(&self, wait: Duration) -> Result<SemaphorePermit<'_>, PolicyFailure> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        match tokio::time::timeout(wait, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(PolicyFailure::new(FailureKind::Deadline, "too many calls at once: no place came free in time")),
        }
    }

    /// Runs something in the place that is kept for components that are being loaded.
    pub(crate) fn one_by_one<T>(&self, run: impl FnOnce() -> T) -> T {
        let _mine = self.trial.lock().unwrap_or_else(PoisonError::into_inner);
        run()
    }
}

/// Each proposal that is off is code of wasmtime that no plugin can reach. Garbage collection and threads are not compiled in.
fn features(config: &mut Config) {
    config.wasm_component_model(true);
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    config.wasm_tail_call(false);
    config.wasm_relaxed_simd(false);
    config.wasm_extended_const(false);
    config.wasm_custom_page_sizes(false);
    config.wasm_wide_arithmetic(false);
    // Guests do not run concurrently with themselves; without this, a call need not set anything up for it.
    config.concurrency_support(false);
}

fn pool(calls: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls)
        .max_component_instance_size(INSTANCE_BYTES)
        .total_core_instances(calls.saturating_mul(CORE_INSTANCES))
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_core_instance_size(INSTANCE_BYTES)
        .total_memories(calls)
        .max_memories_per_component(1)
        .max_memories_per_module(1)
        .max_memory_size(MAX_MEMORY_BYTES)
        .total_tables(calls.saturating_mul(TABLES))
        .max_tables_per_component(TABLES)
        .max_tables_per_module(TABLES)
        .table_elements(TABLE_ELEMENTS)
        .total_stacks(calls)
        .linear_memory_keep_resident(KEPT_BYTES)
        .table_keep_resident(KEPT_BYTES);
    pool
}

fn cache(dir: &Path) -> Result<Cache, PluginError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let io = |error: std::io::Error| PluginError::Sandbox(format!("cache folder {}: {error}", dir.display()));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    // What lies there is executed without another check.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(io)?;
    let mut config = CacheConfig::new();
    config.with_directory(dir.canonicalize().map_err(io)?);
    Cache::new(config).map_err(sandbox_error)
}

fn sandbox_error(error: wasmtime::Error) -> PluginError {
    PluginError::Sandbox(format!("{error:#}"))
}
