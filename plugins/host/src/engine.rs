//! The sandboxes that all policies share: wasmtime's engines, the clock of deadlines, and a bounded number of places to run.
//! There are two, since a place reserves what its largest guest could need: one for small guests, such as compilers of Rust,
//! C and Zig make, and one for those that bring a JavaScript or Python runtime, made when the first of them is loaded.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Component;
use wasmtime::{Cache, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::compile::Compiler;
use crate::error::{FailureKind, PluginError, PolicyFailure};
use crate::inspect::Needs;
use crate::ticker::Ticker;

/// The most memory that any policy may be given, in bytes; the pool reserves addresses for it.
pub const MAX_MEMORY_BYTES: usize = 256 << 20;

/// How the sandbox is set up.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Compiled components are kept here (mode 0700, nobody else may write to it: what is in it is run), so that the next
    /// start takes milliseconds; with what policies made of their configuration at their start. `None`: compile at each start.
    pub cache_dir: Option<PathBuf>,
    /// Calls of small guests that may run at once; more wait, for their deadline at most. Each reserves some 4 GiB of
    /// addresses, not of memory.
    pub max_calls: u32,
    /// The same for large guests, ten times as much each; nothing is reserved before one is loaded.
    pub max_large_calls: u32,
    /// Count the instructions of every call. It makes guests a quarter slower, so it is for measuring, not for serving.
    pub count_instructions: bool,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { cache_dir: None, max_calls: 256, max_large_calls: 32, count_instructions: false }
    }
}

/// What one place holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Core instances in a component: the guest, and the two that wit-component adds, with room for an adapter and its own,
    /// and for the one that looks into a policy after its start.
    core_instances: u32,
    memories: u32,
    tables: u32,
    /// Of all tables together, also when they have grown.
    pub(crate) table_elements: usize,
    /// What one instance keeps for itself: its globals, function references and the like.
    instance_bytes: usize,
    /// Memory of a place that is wiped by writing over it, rather than given back to the kernel and faulted in again. The
    /// first-party policies fit in here, which saves a fifth of a call (`examples/call-times.rs`).
    kept_bytes: usize,
    wasm_stack_bytes: usize,
    async_stack_bytes: usize,
    /// Initial values that are sums: libraries that are put together (Python's) have them.
    extended_const: bool,
}

pub(crate) const SMALL: Size = Size {
    core_instances: 8,
    memories: 1,
    tables: 4,
    table_elements: 20_000,
    instance_bytes: 1 << 20,
    kept_bytes: 256 << 10,
    wasm_stack_bytes: 512 << 10,
    async_stack_bytes: 1 << 20,
    extended_const: false,
};

pub(crate) const LARGE: Size = Size {
    core_instances: 44,
    memories: 10,
    tables: 20,
    table_elements: 60_000,
    instance_bytes: 4 << 20,
    kept_bytes: 256 << 10,
    wasm_stack_bytes: 2 << 20,
    async_stack_bytes: 4 << 20,
    extended_const: true,
};

impl Size {
    /// Is there a place for it here, with room for the instance that looks into it?
    pub(crate) fn holds(&self, needs: &Needs) -> bool {
        needs.instances < self.core_instances
            && needs.memories <= self.memories
            && needs.tables <= self.tables
            && needs.table_elements <= self.table_elements as u64
    }
}

/// Texts that are too long for a worker thread are searched on others, so many at once.
const MAX_SEARCHES: usize = 4;

/// Shared by all policies of one size.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) engine: Engine,
    pub(crate) size: Size,
    pub(crate) ticker: Ticker,
    /// Long searches of the host for guests.
    pub(crate) searches: Arc<Semaphore>,
    pub(crate) counts_instructions: bool,
    compiler: Arc<Compiler>,
    places: Semaphore,
    trial: Mutex<()>,
}

impl Sandbox {
    pub(crate) fn new(
        size: Size,
        calls: u32,
        options: &HostOptions,
        cache: Option<Cache>,
        compiler: Arc<Compiler>,
    ) -> Result<Self, PluginError> {
        if calls == 0 {
            return Err(PluginError::Limits("max_calls and max_large_calls must be at least 1".into()));
        }
        let mut config = Config::new();
        features(&mut config, size);
        config.epoch_interruption(true);
        config.consume_fuel(options.count_instructions);
        config.max_wasm_stack(size.wasm_stack_bytes);
        config.async_stack_size(size.async_stack_bytes);
        config.memory_init_cow(true);
        // A backtrace costs time with each trap, and names of functions are no use to an operator.
        config.wasm_backtrace_max_frames(None);
        // One more than calls, for components that are being loaded.
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(size, calls.saturating_add(1))));
        config.cache(cache);
        let engine = Engine::new(&config).map_err(sandbox_error)?;
        let ticker = Ticker::start(&engine).map_err(|error| PluginError::Sandbox(error.to_string()))?;
        Ok(Self {
            engine,
            size,
            ticker,
            searches: Arc::new(Semaphore::new(MAX_SEARCHES)),
            counts_instructions: options.count_instructions,
            compiler,
            places: Semaphore::new(calls as usize),
            trial: Mutex::new(()),
        })
    }

    /// Seconds; milliseconds if it is in the cache.
    pub(crate) fn compile(&self, component: &[u8]) -> wasmtime::Result<Component> {
        self.compiler.run(|| Component::new(&self.engine, component))
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
fn features(config: &mut Config, size: Size) {
    config.wasm_component_model(true);
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    config.wasm_tail_call(false);
    config.wasm_relaxed_simd(false);
    config.wasm_extended_const(size.extended_const);
    config.wasm_custom_page_sizes(false);
    config.wasm_wide_arithmetic(false);
    // Guests do not run concurrently with themselves; without this, a call need not set anything up for it.
    config.concurrency_support(false);
}

fn pool(size: Size, calls: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    // Not `pagemap_scan`, although it makes a call a sixth faster: it passes over pages that were written and then swapped out,
    // and the next call would read them (https://github.com/bytecodealliance/wasmtime/pull/14357).
    pool.total_component_instances(calls)
        .max_component_instance_size(size.instance_bytes)
        .total_core_instances(calls.saturating_mul(size.core_instances))
        .max_core_instances_per_component(size.core_instances)
        .max_core_instance_size(size.instance_bytes)
        .total_memories(calls.saturating_mul(size.memories))
        .max_memories_per_component(size.memories)
        .max_memories_per_module(1)
        .max_memory_size(MAX_MEMORY_BYTES)
        .total_tables(calls.saturating_mul(size.tables))
        .max_tables_per_component(size.tables)
        .max_tables_per_module(size.tables)
        .table_elements(size.table_elements)
        .total_stacks(calls)
        .linear_memory_keep_resident(size.kept_bytes)
        .table_keep_resident(size.kept_bytes);
    pool
}

pub(crate) fn sandbox_error(error: wasmtime::Error) -> PluginError {
    PluginError::Sandbox(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_goes_where_it_fits() {
        let rust = Needs { instances: 3, memories: 1, tables: 2, table_elements: 100, ..Needs::default() };
        let python = Needs { instances: 40, memories: 10, tables: 20, table_elements: 60_000, ..Needs::default() };
        assert!(SMALL.holds(&rust) && LARGE.holds(&rust));
        assert!(!SMALL.holds(&python) && LARGE.holds(&python));
        for more in [
            Needs { instances: 8, ..rust },
            Needs { memories: 2, ..rust },
            Needs { tables: 5, ..rust },
            Needs { table_elements: 20_001, ..rust },
        ] {
            assert!(!SMALL.holds(&more) && LARGE.holds(&more), "{more:?}");
        }
        assert!(!LARGE.holds(&Needs { table_elements: 60_001, ..python }));
    }
}
