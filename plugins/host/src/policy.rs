//! Loads components and asks them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Instance, InstancePre, Linker};
use wasmtime::{Store, Trap};

use crate::answer::MAX_SPANS;
use crate::bindings::exports::postern::policy::{caching, redaction, routing};
use crate::bindings::{FullPolicy, postern::policy::types as wit};
use crate::counters::Counters;
use crate::effects::Effects;
use crate::engine::{HostOptions, MAX_MEMORY_BYTES, Sandbox};
use crate::error::{FailureKind, PluginError, PolicyFailure};
use crate::facts::{CachePlan, FleetFacts, RequestFacts, Span, Steps, TextSegment, Verdict};
use crate::imports::{Call, CallContext, Limits, MAX_HANDED_BYTES, Owner};
use crate::metrics::PolicyMetrics;
use crate::read::Read;
use crate::{answer, convert, kinds};

/// The longest deadline.
pub const MAX_DEADLINE: Duration = Duration::from_secs(10);
/// The longest configuration of a policy, as JSON text.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// The largest component.
pub const MAX_COMPONENT_BYTES: usize = 64 << 20;

const PACKAGE: &str = "postern:policy/";
const VERSION: &str = "@1.0.0";
const OFFERED: [&str; 8] = ["types", "log", "config", "detectors", "counters", "metrics", "clock", "random"];

/// Compiles policies and gives them a place to run.
pub struct PolicyHost {
    sandbox: Arc<Sandbox>,
    linker: Linker<Call>,
}

/// A policy as configured.
#[derive(Debug, Clone)]
pub struct PolicySpec {
    /// Its name, for logs and metrics.
    pub name: String,
    /// The component, in binary form.
    pub component: Vec<u8>,
    /// Its own section of the configuration. The elements of its `kinds` and the keys of its `words` are kinds of its finds.
    pub config: serde_json::Value,
    /// How long a call may run, and how long it may wait for a place to run; at most [`MAX_DEADLINE`].
    pub deadline: Duration,
    /// How much memory a call may have, in bytes; at most [`MAX_MEMORY_BYTES`].
    pub memory_bytes: usize,
    /// What it may see of the content of requests.
    pub grants: Grants,
    /// Where it counts. Hand the same to its next version.
    pub counters: Arc<Counters>,
    /// Where its numbers for operators go. Hand the same to its next version, if that has the same names.
    pub metrics: Arc<PolicyMetrics>,
}

/// What a policy may see of the content of requests: what its manifest asks for and the operator granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Headers of requests, in lower case.
    pub headers: BTreeSet<String>,
    /// The text of messages, masked. Then nothing that it writes is shown to anybody.
    pub text: bool,
}

/// What a policy answered, and what it wrote meanwhile.
#[derive(Debug)]
pub struct Reply<T> {
    /// The answer, checked; or why there is none.
    pub answer: Result<T, PolicyFailure>,
    /// To be committed when the label of the request is final, or dropped. None if no instance ever ran.
    pub effects: Option<Effects>,
}

impl<T> Reply<T> {
    fn failed(failure: PolicyFailure) -> Self {
        Self { answer: Err(failure), effects: None }
    }

    fn and_then<U>(self, check: impl FnOnce(T) -> Result<U, PolicyFailure>) -> Reply<U> {
        Reply { answer: self.answer.and_then(check), effects: self.effects }
    }
}

/// A policy that can be asked. Cloning is cheap.
#[derive(Clone)]
pub struct Policy {
    inner: Arc<Inner>,
}

struct Inner {
    owner: Arc<Owner>,
    kinds: BTreeSet<String>,
    grants: Grants,
    component: InstancePre<Call>,
    routing: Option<routing::GuestIndices>,
    caching: Option<caching::GuestIndices>,
    redaction: Option<redaction::GuestIndices>,
    sandbox: Arc<Sandbox>,
}

impl PolicyHost {
    /// Sets up the sandbox; reserves addresses, starts a thread.
    ///
    /// # Errors
    /// [`PluginError::Sandbox`], [`PluginError::Limits`].
    pub fn new(options: HostOptions) -> Result<Self, PluginError> {
        let sandbox = Sandbox::new(&options)?;
        let mut linker = Linker::new(&sandbox.engine);
        FullPolicy::add_to_linker::<Call, HasSelf<Call>>(&mut linker, |call| call)
            .map_err(|error| PluginError::Sandbox(format!("{error:#}")))?;
        Ok(Self { sandbox, linker })
    }

    /// Compiles a component (seconds, on all cores; milliseconds if it is in the cache), links it, and instantiates it once
    /// to see that it fits. Blocks: not for a worker thread of an async runtime.
    ///
    /// # Errors
    /// All of [`PluginError`].
    pub fn load(&self, spec: PolicySpec) -> Result<Policy, PluginError> {
        let config = check(&spec)?;
        let engine = &self.sandbox.engine;
        let component = Component::new(engine, &spec.component)
            .map_err(|error| PluginError::NotAComponent(format!("{error:#}")))?;
        let ty = component.component_type();
        if let Some((import, _)) = ty.imports(engine).find(|(import, _)| !is_offered(import)) {
            return Err(PluginError::UnknownImport(import.to_owned()));
        }
        let exports = |step: &str| component.get_export_index(None, format!("{PACKAGE}{step}{VERSION}")).is_some();
        let steps = Steps { routing: exports("routing"), caching: exports("caching"), redaction: exports("redaction") };
        if steps == Steps::default() {
            return Err(PluginError::NoSteps);
        }
        let component = self.linker.instantiate_pre(&component).map_err(mismatch)?;
        let inner = Inner {
            owner: Arc::new(Owner {
                name: spec.name.into(),
                config: config.into(),
                limits: Limits { deadline: spec.deadline, memory_bytes: spec.memory_bytes },
                counters: spec.counters,
                metrics: spec.metrics,
            }),
            kinds: kinds::allowed(&spec.config)?,
            grants: spec.grants,
            routing: steps.routing.then(|| routing::GuestIndices::new(&component)).transpose().map_err(mismatch)?,
            caching: steps.caching.then(|| caching::GuestIndices::new(&component)).transpose().map_err(mismatch)?,
            redaction: steps
                .redaction
                .then(|| redaction::GuestIndices::new(&component))
                .transpose()
                .map_err(mismatch)?,
            component,
            sandbox: Arc::clone(&self.sandbox),
        };
        self.sandbox.one_by_one(|| block_on(inner.try_out()))?;
        Ok(Policy { inner: Arc::new(inner) })
    }
}

impl Policy {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.owner.name
    }

    /// The steps at which it is asked.
    #[must_use]
    pub fn steps(&self) -> Steps {
        let inner = &self.inner;
        Steps {
            routing: inner.routing.is_some(),
            caching: inner.caching.is_some(),
            redaction: inner.redaction.is_some(),
        }
    }

    /// What it may see of the content of requests.
    #[must_use]
    pub fn grants(&self) -> &Grants {
        &self.inner.grants
    }

    /// Its numbers for operators.
    #[must_use]
    pub fn metrics(&self) -> &PolicyMetrics {
        &self.inner.owner.metrics
    }

    /// Asks where a request may be answered. Needs a tokio runtime with time, as all three do. It fails if `routing` is not
    /// exported.
    pub async fn route(&self, context: &CallContext<'_>, request: &RequestFacts, fleet: &FleetFacts) -> Reply<Verdict> {
        let Some(indices) = &self.inner.routing else { return Reply::failed(no_such_step("routing")) };
        let lists = convert::RequestLists::of(request, &self.inner.grants);
        let facts = lists.facts(request);
        let targets = convert::targets(fleet);
        let fleet = wit::FleetFacts { targets: &targets };
        let sees_text = self.inner.grants.text;
        let vote = self.inner.call(context, sees_text, async |store, instance| {
            indices.load(&mut *store, instance)?.call_route(store, facts, fleet).await
        });
        vote.await.and_then(|vote| {
            let vote = vote.map_err(|error| own_error(&error, sees_text))?;
            let mut vote = answer::verdict(convert::verdict(vote))?;
            if sees_text {
                // Its words could quote a prompt.
                vote.deny = vote.deny.map(|_| String::new());
                vote.annotations.clear();
            }
            Ok(vote)
        })
    }

    /// Asks whether the answer to a request may be cached. It fails if `caching` is not exported.
    pub async fn plan(&self, context: &CallContext<'_>, request: &RequestFacts) -> Reply<CachePlan> {
        let Some(indices) = &self.inner.caching else { return Reply::failed(no_such_step("caching")) };
        let lists = convert::RequestLists::of(request, &self.inner.grants);
        let facts = lists.facts(request);
        let sees_text = self.inner.grants.text;
        let plan = self.inner.call(context, sees_text, async |store, instance| {
            indices.load(&mut *store, instance)?.call_plan(store, facts).await
        });
        plan.await.and_then(|plan| answer::plan(convert::plan(plan.map_err(|error| own_error(&error, sees_text))?)))
    }

    /// Asks what must not leave, in all texts of a request at once, and as they read without escapes. The spans are in order,
    /// on character boundaries, and do not overlap. A kind that is neither one of [`crate::detectors`] nor named in the
    /// configuration of the policy is `data`. It fails if `redaction` is not exported.
    pub async fn find(&self, context: &CallContext<'_>, segments: &[TextSegment]) -> Reply<Vec<Span>> {
        let Some(indices) = &self.inner.redaction else { return Reply::failed(no_such_step("redaction")) };
        let read = match Read::of(segments).await {
            Ok(read) => read,
            Err(failure) => return Reply::failed(failure),
        };
        let texts = convert::segments(read.segments());
        // It sees prompts, so neither its log lines nor the text of its error may go anywhere.
        let found = self.inner.call(context, true, async |store, instance| {
            indices.load(&mut *store, instance)?.call_find(store, &texts).await
        });
        found.await.and_then(|found| {
            let found = convert::spans(found.map_err(|error| own_error(&error, true))?);
            let found = answer::spans(read.segments(), found, read.max_spans())?;
            answer::named(read.written(found)?, &self.inner.kinds)
        })
    }

    /// Asks what must not leave in a text that nobody wrote. Unlike [`find`](Self::find) it may tell the policy's own error,
    /// which is most often about its configuration.
    ///
    /// # Errors
    /// It does not export `redaction`, or the call failed.
    pub async fn try_find(&self) -> Result<(), PolicyFailure> {
        let indices = self.inner.redaction.as_ref().ok_or_else(|| no_such_step("redaction"))?;
        let segments = [TextSegment { id: 0, role: "user".to_owned(), text: "probe".to_owned() }];
        let texts = convert::segments(&segments);
        let found = self.inner.call(&TRIAL, false, async |store, instance| {
            indices.load(&mut *store, instance)?.call_find(store, &texts).await
        });
        let found = found.await.answer?.map_err(|error| own_error(&error, false))?;
        answer::spans(&segments, convert::spans(found), MAX_SPANS).map(drop)
    }
}

/// For calls about no request.
const TRIAL: CallContext<'static> = CallContext { tenant: "", label: "", seed: 0 };

/// What the plugin says went wrong.
fn own_error(error: &str, sees_text: bool) -> PolicyFailure {
    let detail =
        if sees_text { "an error of its own, whose text is not kept since it could quote a prompt" } else { error };
    PolicyFailure::new(FailureKind::Refused, detail)
}

impl Inner {
    /// One call in a fresh instance.
    async fn call<T>(
        &self,
        context: &CallContext<'_>,
        sees_text: bool,
        ask: impl AsyncFnOnce(&mut Store<Call>, &Instance) -> wasmtime::Result<T>,
    ) -> Reply<T> {
        let _place = match self.sandbox.place(self.owner.limits.deadline).await {
            Ok(place) => place,
            Err(failure) => return Reply::failed(failure),
        };
        let _running = self.sandbox.ticker.run();
        let mut store = self.store(context, sees_text);
        let answer = match self.component.instantiate_async(&mut store).await {
            Ok(instance) => ask(&mut store, &instance).await,
            Err(error) => Err(error),
        };
        let answer = answer.map_err(|error| failure(store.data(), &error));
        Reply { answer, effects: Some(store.into_data().into_effects()) }
    }

    fn store(&self, context: &CallContext<'_>, sees_text: bool) -> Store<Call> {
        let call = Call::new(Arc::clone(&self.owner), context, Arc::clone(&self.sandbox.searches), sees_text);
        let mut store = Store::new(&self.sandbox.engine, call);
        store.limiter(|call| call.limiter());
        store.set_hostcall_fuel(MAX_HANDED_BYTES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().at_tick()));
        store
    }

    /// Are the exports of the right types, and does it start within its limits?
    async fn try_out(&self) -> Result<(), PluginError> {
        let _running = self.sandbox.ticker.run();
        let mut store = self.store(&TRIAL, false);
        let instance = self.component.instantiate_async(&mut store).await.map_err(|error| {
            let failure = failure(store.data(), &error);
            PluginError::Mismatch(format!("it does not start ({}): {error:#}", failure.kind.name()))
        })?;
        if let Some(indices) = &self.routing {
            indices.load(&mut store, &instance).map_err(mismatch)?;
        }
        if let Some(indices) = &self.caching {
            indices.load(&mut store, &instance).map_err(mismatch)?;
        }
        if let Some(indices) = &self.redaction {
            indices.load(&mut store, &instance).map_err(mismatch)?;
        }
        Ok(())
    }
}

impl fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyHost").finish_non_exhaustive()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name()).field("steps", &self.steps()).finish_non_exhaustive()
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

fn is_offered(import: &str) -> bool {
    import
        .strip_prefix(PACKAGE)
        .and_then(|import| import.strip_suffix(VERSION))
        .is_some_and(|interface| OFFERED.contains(&interface))
}

fn mismatch(error: wasmtime::Error) -> PluginError {
    PluginError::Mismatch(format!("{error:#}"))
}

fn no_such_step(step: &str) -> PolicyFailure {
    PolicyFailure::new(FailureKind::Refused, format!("it does not export {step}"))
}

/// What wasmtime reports, in our terms. Its texts name places in the component, never data.
fn failure(call: &Call, error: &wasmtime::Error) -> PolicyFailure {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => PolicyFailure::new(FailureKind::Deadline, "it took longer than its deadline"),
        _ if call.wanted_too_much_memory() => {
            PolicyFailure::new(FailureKind::Memory, "it wanted more memory than its limit")
        }
        Some(trap) => PolicyFailure::new(FailureKind::Trap, trap.to_string()),
        None => PolicyFailure::output(error.root_cause().to_string()),
    }
}

/// Guests at their start wait for nothing but their next turn, so no runtime is needed.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(done) => return done,
            std::task::Poll::Pending => std::thread::yield_now(),
        }
    }
}
