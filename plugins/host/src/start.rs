//! Runs the start of a policy once, when it is loaded, and keeps what it left in memory as the beginning of every instance.
//!
//! The component is rewritten so that its memories and globals can be read from outside, `startup.start` is called, and then
//! they become the initial memories and globals of the component (wasmtime's Wizer). Where that cannot be done, because a
//! component changes its tables or is put together in a way that Wizer does not know, its start runs in each instance.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::{ComponentNamedList, Instance, Lift, WasmList};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use crate::bindings::exports::postern::policy::startup;
use crate::call::{Call, Owner, TRIAL};
use crate::error::{MAX_DETAIL_BYTES, PluginError, PolicyFailure, printable};
use crate::host::{Room, block_on, mismatch};
use crate::policy::{failure, new_store};

/// How long a start may take.
pub(crate) const MAX_START: Duration = Duration::from_secs(10);

/// What is read of a memory at once: all of it.
const MAX_READ_BYTES: usize = crate::engine::MAX_MEMORY_BYTES;

const MAX_WHY_BYTES: usize = 300;

/// How a start ended.
pub(crate) enum Started {
    /// A component that begins where the start ended.
    Kept(Vec<u8>),
    /// Each instance has to start itself, and why.
    CannotBeKept(String),
}

/// Why a start failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It says so. It has seen nothing but its configuration, so its words may be shown.
    Itself(String),
    /// It did not come to an end.
    Otherwise(PolicyFailure),
}

impl From<Failed> for PluginError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Itself(text) => Self::Start(text),
            Failed::Otherwise(failure) => Self::Start(format!("{} ({})", failure.detail, failure.kind.name())),
        }
    }
}

/// Runs the start of a component. On a thread of its own: what a component is made of is for its author to choose, and
/// Wizer ends its thread where it meets something that it does not know.
///
/// # Errors
/// The start failed, or returned an error.
pub(crate) fn run(room: &Room, owner: &Arc<Owner>, component: &[u8]) -> Result<Started, PluginError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("policy-start".to_owned());
        let started = thread.spawn_scoped(scope, || keep(room, owner, component));
        let started = started.map_err(|error| PluginError::Sandbox(error.to_string()))?;
        started.join().unwrap_or_else(|_| {
            let what =
                "its start ran, but its memory could not be read; it is put together in a way that is not supported";
            Err(PluginError::Start(what.to_owned()))
        })
    })
}

fn keep(room: &Room, owner: &Arc<Owner>, component: &[u8]) -> Result<Started, PluginError> {
    let cannot = |why: wasmtime::Error| Ok(Started::CannotBeKept(printable(&format!("{why:#}"), MAX_WHY_BYTES)));
    let wizer = Wizer::new();
    let (context, readable) = match wizer.instrument_component(component) {
        Ok(readable) => readable,
        Err(why) => return cannot(why),
    };
    let readable = match room.sandbox.compile(&readable) {
        Ok(readable) => readable,
        Err(why) => return cannot(why),
    };
    let readable = room.link(&readable)?;
    let startup = startup::GuestIndices::new(&readable).map_err(mismatch)?;
    let kept = async {
        let _running = room.sandbox.ticker.run();
        let mut store = new_store(&room.sandbox, owner, &TRIAL, false);
        store.data_mut().start();
        store.data_mut().end_after(MAX_START);
        let instance = readable.instantiate_async(&mut store).await;
        let instance = instance.map_err(|error| Failed::Otherwise(failure(store.data(), &error)))?;
        call(&startup, &mut store, &instance).await?;
        if store.data().handles > 0 {
            return Ok(Started::CannotBeKept("it holds handles of the host after its start".to_owned()));
        }
        // What is read here belongs to the host from now on, and does not count as handed over by the guest.
        store.set_hostcall_fuel(MAX_READ_BYTES.saturating_mul(2));
        let mut state = State { store: &mut store, instance, failed: None };
        let kept = wizer.snapshot_component(&context, &mut state).await;
        match (state.failed, kept) {
            (None, Ok(kept)) => {
                store.into_data().into_effects().log_only();
                Ok(Started::Kept(kept))
            }
            (Some(why), _) | (None, Err(why)) => cannot(why),
        }
    };
    room.sandbox.one_by_one(|| block_on(kept))
}

/// Calls the start of an instance.
pub(crate) async fn call(
    startup: &startup::GuestIndices,
    store: &mut Store<Call>,
    instance: &Instance,
) -> Result<(), Failed> {
    let started = match startup.load(&mut *store, instance) {
        Ok(startup) => startup.call_start(&mut *store).await,
        Err(error) => Err(error),
    };
    match started {
        Ok(Ok(())) => Ok(()),
        Ok(Err(text)) => Err(Failed::Itself(printable(&text, MAX_DETAIL_BYTES))),
        Err(error) => Err(Failed::Otherwise(failure(store.data(), &error))),
    }
}

/// Reads what an instance holds, through the exports that Wizer added.
struct State<'a> {
    store: &'a mut Store<Call>,
    instance: Instance,
    /// Wizer cannot be told of a failure; what it was given since is not used.
    failed: Option<wasmtime::Error>,
}

impl State<'_> {
    async fn read<T>(&mut self, instance: &str, func: &str) -> T
    where
        T: Lift + Default + Send + Sync + 'static,
        (T,): ComponentNamedList + Lift,
    {
        match self.try_read(instance, func).await {
            Ok(value) => value,
            Err(error) => {
                self.failed.get_or_insert(error);
                T::default()
            }
        }
    }

    async fn try_read<T>(&mut self, instance: &str, func: &str) -> wasmtime::Result<T>
    where
        T: Lift + Send + Sync + 'static,
        (T,): ComponentNamedList + Lift,
    {
        let missing = || wasmtime::Error::msg("it does not export what was added to it");
        let inside = self.instance.get_export_index(&mut *self.store, None, instance).ok_or_else(missing)?;
        let func = self.instance.get_export_index(&mut *self.store, Some(&inside), func).ok_or_else(missing)?;
        let func = self.instance.get_typed_func::<(), (T,)>(&mut *self.store, func)?;
        Ok(func.call_async(&mut *self.store, ()).await?.0)
    }
}

impl ComponentInstanceState for State<'_> {
    async fn call_func_ret_list_u8(&mut self, instance: &str, func: &str, contents: impl FnOnce(&[u8]) + Send) {
        match self.try_read::<WasmList<u8>>(instance, func).await {
            Ok(list) => contents(list.as_le_slice(&*self.store)),
            Err(error) => {
                self.failed.get_or_insert(error);
                contents(&[]);
            }
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.read(instance, func).await
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.read(instance, func).await
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.read::<f32>(instance, func).await.to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.read::<f64>(instance, func).await.to_bits()
    }
}
