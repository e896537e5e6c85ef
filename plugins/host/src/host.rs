//! Loads policies: looks into a component, compiles it, lets it make itself ready, and tries it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::Cache;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use crate::bindings::Policies;
use crate::bindings::exports::postern::policy::startup;
use crate::call::{Call, Limits, Owner};
use crate::compile::{self, Compiler};
use crate::engine::{HostOptions, LARGE, MAX_MEMORY_BYTES, SMALL, Sandbox, Size, sandbox_error};
use crate::error::PluginError;
use crate::inspect::{Inspection, Needs, inspect};
use crate::kinds;
use crate::policy::{
    Asked, MAX_CODE_BYTES, MAX_COMPONENT_BYTES, MAX_CONFIG_BYTES, MAX_DEADLINE, MAX_FUNCTION_BYTES, Policy, PolicySpec,
    Readiness,
};
use crate::start::{self, Started};
use crate::wasi;

/// Compiles policies and gives them a place to run.
pub struct PolicyHost {
    options: HostOptions,
    cache: Option<Cache>,
    compiler: Arc<Compiler>,
    small: Arc<Room>,
    large: Mutex<Option<Arc<Room>>>,
}

/// A sandbox, and what policies in it may import.
pub(crate) struct Room {
    pub(crate) sandbox: Sandbox,
    linker: Linker<Call>,
}

impl PolicyHost {
    /// Sets up the sandbox; reserves addresses, starts threads.
    ///
    /// # Errors
    /// [`PluginError::Sandbox`], [`PluginError::Limits`].
    pub fn new(options: HostOptions) -> Result<Self, PluginError> {
        let cache = options.cache_dir.as_deref().map(compile::cache).transpose()?;
        let compiler = Arc::new(Compiler::new()?);
        let small = Room::new(SMALL, options.max_calls, &options, cache.clone(), Arc::clone(&compiler))?;
        Ok(Self { options, cache, compiler, small: Arc::new(small), large: Mutex::new(None) })
    }

    /// Looks into a component, compiles it (seconds; milliseconds if it is in the cache), lets it make itself ready if it
    /// exports `startup` (ten seconds at most), and instantiates it once to see that it fits. Blocks: not for a worker thread
    /// of an async runtime.
    ///
    /// # Errors
    /// All of [`PluginError`].
    pub fn load(&self, spec: PolicySpec) -> Result<Policy, PluginError> {
        let config = check(&spec)?;
        let kinds = kinds::allowed(&spec.config)?;
        let found = inspect(&spec.component)?;
        if found.needs.largest_function > MAX_FUNCTION_BYTES {
            return Err(PluginError::LongFunction(found.needs.largest_function));
        }
        if found.needs.code_bytes > MAX_CODE_BYTES {
            return Err(PluginError::MuchCode(found.needs.code_bytes));
        }
        let room = self.room(&found.needs)?;
        let limits = Limits {
            deadline: spec.deadline,
            memory_bytes: spec.memory_bytes,
            table_elements: room.sandbox.size.table_elements,
        };
        let owner = Arc::new(Owner {
            name: spec.name.into(),
            config: config.into(),
            limits,
            counters: spec.counters,
            metrics: spec.metrics,
        });
        let (component, readiness) = room.ready(&owner, &spec.component, &found)?;
        let asked = Asked::of(&component, found.steps)?;
        let starts = matches!(readiness, Readiness::EachCall(_));
        let startup = starts.then(|| startup::GuestIndices::new(&component)).transpose().map_err(mismatch)?;
        let policy = Policy::new(owner, kinds, spec.grants, component, asked, startup, readiness, Arc::clone(&room));
        room.sandbox.one_by_one(|| block_on(policy.try_out()))?;
        Ok(policy)
    }

    /// Where a component has its places.
    fn room(&self, needs: &Needs) -> Result<Arc<Room>, PluginError> {
        if SMALL.holds(needs) {
            return Ok(Arc::clone(&self.small));
        }
        if !LARGE.holds(needs) {
            return Err(PluginError::TooLarge(*needs));
        }
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = &*large {
            return Ok(Arc::clone(room));
        }
        let calls = self.options.max_large_calls;
        let room = Room::new(LARGE, calls, &self.options, self.cache.clone(), Arc::clone(&self.compiler))?;
        let room = Arc::new(room);
        *large = Some(Arc::clone(&room));
        Ok(room)
    }
}

impl Room {
    fn new(
        size: Size,
        calls: u32,
        options: &HostOptions,
        cache: Option<Cache>,
        compiler: Arc<Compiler>,
    ) -> Result<Self, PluginError> {
        let sandbox = Sandbox::new(size, calls, options, cache, compiler)?;
        let mut linker = Linker::new(&sandbox.engine);
        Policies::add_to_linker::<Call, HasSelf<Call>>(&mut linker, |call| call).map_err(sandbox_error)?;
        Ok(Self { sandbox, linker })
    }

    /// The component as it is instantiated for each call: with what its start left in memory, if it has one.
    fn ready(
        &self,
        owner: &Arc<Owner>,
        component: &[u8],
        found: &Inspection,
    ) -> Result<(InstancePre<Call>, Readiness), PluginError> {
        let mut readiness = Readiness::NoStart;
        if found.startup {
            match start::run(self, owner, component)? {
                Started::Kept(with_memory) => {
                    let kept = self.sandbox.compile(&with_memory).map_err(not_a_component)?;
                    return Ok((self.link(&kept)?, Readiness::Kept));
                }
                Started::CannotBeKept(why) => readiness = Readiness::EachCall(why),
            }
        }
        let component = self.sandbox.compile(component).map_err(not_a_component)?;
        Ok((self.link(&component)?, readiness))
    }

    /// Gives a component what it imports.
    pub(crate) fn link(&self, component: &Component) -> Result<InstancePre<Call>, PluginError> {
        let mut linker = self.linker.clone();
        wasi::define(&mut linker, component)?;
        linker.instantiate_pre(component).map_err(mismatch)
    }
}

impl fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyHost").finish_non_exhaustive()
    }
}

/// The configuration as text, if all bounds are kept.
fn check(spec: &PolicySpec) -> Result<String, PluginError> {
    let limits = |what: String| Err(PluginError::Limits(what));
    if spec.deadline.is_zero() || spec.deadline > MAX_DEADLINE {
        return limits(format!("a deadline is more than nothing and at most {} s", MAX_DEADLINE.as_secs()));
    }
    if spec.memory_bytes == 0 || spec.memory_bytes > MAX_MEMORY_BYTES {
        return limits(format!("the memory of a policy is at most {} MiB", MAX_MEMORY_BYTES >> 20));
    }
    if spec.component.len() > MAX_COMPONENT_BYTES {
        return limits(format!("a component is at most {} MiB", MAX_COMPONENT_BYTES >> 20));
    }
    let config = spec.config.to_string();
    if config.len() > MAX_CONFIG_BYTES {
        return limits(format!("the configuration of a policy is at most {} KiB", MAX_CONFIG_BYTES >> 10));
    }
    Ok(config)
}

pub(crate) fn not_a_component(error: wasmtime::Error) -> PluginError {
    PluginError::NotAComponent(format!("{error:#}"))
}

pub(crate) fn mismatch(error: wasmtime::Error) -> PluginError {
    PluginError::Mismatch(format!("{error:#}"))
}

/// Guests that are being loaded wait for nothing but their next turn, so no runtime is needed.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(done) => return done,
            std::task::Poll::Pending => std::thread::yield_now(),
        }
    }
}
