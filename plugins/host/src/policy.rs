//! Asks policies: one call each in a fresh instance, and a judgement of what comes back.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Instance, InstancePre};
use wasmtime::{Store, Trap};

use crate::answer::MAX_SPANS;
use crate::bindings::exports::postern::policy::{caching, redaction, routing, startup};
use crate::bindings::postern::policy::types as wit;
use crate::call::{Call, CallContext, MAX_HANDED_BYTES, Owner, TRIAL};
use crate::counters::Counters;
use crate::effects::Effects;
use crate::engine::Sandbox;
use crate::error::{FailureKind, PluginError, PolicyFailure};
use crate::facts::{CachePlan, FleetFacts, RequestFacts, Span, Steps, TextSegment, Verdict};
use crate::host::{Room, mismatch};
use crate::manifest::{ANY_HEADER, may_be_granted};
use crate::metrics::PolicyMetrics;
use crate::read::Read;
use crate::wasi::{MAX_HANDLES, NotHere};
use crate::{answer, convert, start};

/// The longest deadline.
pub const MAX_DEADLINE: Duration = Duration::from_secs(10);
/// The longest configuration of a policy, as JSON text.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// The largest component.
pub const MAX_COMPONENT_BYTES: usize = 64 << 20;
/// The longest function of a component: the longest of CPython takes most of it.
pub const MAX_FUNCTION_BYTES: usize = 512 << 10;
/// All functions of a component together; SpiderMonkey takes half of it.
pub const MAX_CODE_BYTES: usize = 16 << 20;

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
    /// Headers of requests, in lower case. [`ANY_HEADER`], which a gateway's configuration cannot grant: all that may be shown.
    pub headers: BTreeSet<String>,
    /// The text of messages, masked. Then nothing that it writes is shown to anybody.
    pub text: bool,
}

impl Grants {
    /// May it see this header, named in lower case?
    #[must_use]
    pub fn show(&self, header: &str) -> bool {
        self.headers.contains(header) || (self.headers.contains(ANY_HEADER) && may_be_granted(header))
    }
}

/// What a policy answered, and what it wrote meanwhile.
#[derive(Debug)]
pub struct Reply<T> {
    /// The answer, checked; or why there is none.
    pub answer: Result<T, PolicyFailure>,
    /// To be committed when the label of the request is final, or dropped. None if no instance ever ran.
    pub effects: Option<Effects>,
    /// What the call took.
    pub usage: Usage,
}

/// What a call took of the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all its memories at the end; they only grow.
    pub memory_bytes: usize,
    /// WebAssembly instructions, as wasmtime's fuel counts them; only where [`HostOptions::count_instructions`] says so.
    ///
    /// [`HostOptions::count_instructions`]: crate::HostOptions::count_instructions
    pub instructions: Option<u64>,
}

/// When a policy makes itself ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Never: it does not export `startup`.
    NoStart,
    /// When it was loaded; each instance begins with what it left in memory.
    Kept,
    /// Before each answer, since that cannot be done, for this reason.
    EachCall(String),
}

impl<T> Reply<T> {
    fn failed(failure: PolicyFailure) -> Self {
        Self { answer: Err(failure), effects: None, usage: Usage::default() }
    }

    fn and_then<U>(self, check: impl FnOnce(T) -> Result<U, PolicyFailure>) -> Reply<U> {
        Reply { answer: self.answer.and_then(check), effects: self.effects, usage: self.usage }
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
    asked: Asked,
    /// To be called in each instance.
    startup: Option<startup::GuestIndices>,
    readiness: Readiness,
    room: Arc<Room>,
}

/// The steps that a component exports.
pub(crate) struct Asked {
    routing: Option<routing::GuestIndices>,
    caching: Option<caching::GuestIndices>,
    redaction: Option<redaction::GuestIndices>,
}

impl Asked {
    /// Finds `steps` in a component.
    pub(crate) fn of(component: &InstancePre<Call>, steps: Steps) -> Result<Self, PluginError> {
        let routing = steps.routing.then(|| routing::GuestIndices::new(component)).transpose();
        let caching = steps.caching.then(|| caching::GuestIndices::new(component)).transpose();
        let redaction = steps.redaction.then(|| redaction::GuestIndices::new(component)).transpose();
        Ok(Self {
            routing: routing.map_err(mismatch)?,
            caching: caching.map_err(mismatch)?,
            redaction: redaction.map_err(mismatch)?,
        })
    }
}

impl Policy {
    #[allow(clippy::too_many_arguments, reason = "its parts, each made by another step of loading, and one caller")]
    pub(crate) fn new(
        owner: Arc<Owner>,
        kinds: BTreeSet<String>,
        grants: Grants,
        component: InstancePre<Call>,
        asked: Asked,
        startup: Option<startup::GuestIndices>,
        readiness: Readiness,
        room: Arc<Room>,
    ) -> Self {
        let inner = Inner { owner, kinds, grants, component, asked, startup, readiness, room };
        Self { inner: Arc::new(inner) }
    }

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
            routing: inner.asked.routing.is_some(),
            caching: inner.asked.caching.is_some(),
            redaction: inner.asked.redaction.is_some(),
        }
    }

    /// What it may see of the content of requests.
    #[must_use]
    pub fn grants(&self) -> &Grants {
        &self.inner.grants
    }

    /// When it makes itself ready.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.inner.readiness
    }

    /// Its numbers for operators.
    #[must_use]
    pub fn metrics(&self) -> &PolicyMetrics {
        &self.inner.owner.metrics
    }

    /// Asks where a request may be answered. Needs a tokio runtime with time, as all three do. It fails if `routing` is not
    /// exported.
    pub async fn route(&self, context: &CallContext<'_>, request: &RequestFacts, fleet: &FleetFacts) -> Reply<Verdict> {
        let Some(indices) = &self.inner.asked.routing else { return Reply::failed(no_such_step("routing")) };
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
        let Some(indices) = &self.inner.asked.caching else { return Reply::failed(no_such_step("caching")) };
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
        let Some(indices) = &self.inner.asked.redaction else { return Reply::failed(no_such_step("redaction")) };
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

    /// Are the exports of the right types, and does it start within its limits?
    pub(crate) async fn try_out(&self) -> Result<(), PluginError> {
        let inner = &*self.inner;
        let _running = inner.room.sandbox.ticker.run();
        let mut store = new_store(&inner.room.sandbox, &inner.owner, &TRIAL, false);
        let instance = inner.instance(&mut store, &TRIAL).await.map_err(|failure| match failure.kind {
            FailureKind::Refused => PluginError::Start(failure.detail),
            kind => PluginError::Mismatch(format!("it does not start ({}): {}", kind.name(), failure.detail)),
        })?;
        let Asked { routing, caching, redaction } = &inner.asked;
        if let Some(indices) = routing {
            indices.load(&mut store, &instance).map_err(mismatch)?;
        }
        if let Some(indices) = caching {
            indices.load(&mut store, &instance).map_err(mismatch)?;
        }
        if let Some(indices) = redaction {
            indices.load(&mut store, &instance).map_err(mismatch)?;
        }
        Ok(())
    }

    /// Asks what must not leave in a text that nobody wrote. Unlike [`find`](Self::find) it may tell the policy's own error,
    /// which is most often about its configuration.
    ///
    /// # Errors
    /// It does not export `redaction`, or the call failed.
    pub async fn try_find(&self) -> Result<(), PolicyFailure> {
        let indices = self.inner.asked.redaction.as_ref().ok_or_else(|| no_such_step("redaction"))?;
        let segments = [TextSegment { id: 0, role: "user".to_owned(), text: "probe".to_owned() }];
        let texts = convert::segments(&segments);
        let found = self.inner.call(&TRIAL, false, async |store, instance| {
            indices.load(&mut *store, instance)?.call_find(store, &texts).await
        });
        let found = found.await.answer?.map_err(|error| own_error(&error, false))?;
        answer::spans(&segments, convert::spans(found), MAX_SPANS).map(drop)
    }
}

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
        let sandbox = &self.room.sandbox;
        let _place = match sandbox.place(self.owner.limits.deadline).await {
            Ok(place) => place,
            Err(failure) => return Reply::failed(failure),
        };
        let _running = sandbox.ticker.run();
        let mut store = new_store(sandbox, &self.owner, context, sees_text);
        let answer = match self.instance(&mut store, context).await {
            Ok(instance) => ask(&mut store, &instance).await.map_err(|error| failure(store.data(), &error)),
            Err(failure) => Err(failure),
        };
        let instructions = sandbox.counts_instructions.then(|| store.get_fuel().map_or(0, |left| u64::MAX - left));
        let call = store.into_data();
        let usage = Usage { memory_bytes: call.memory_bytes(), instructions };
        Reply { answer, effects: Some(call.into_effects()), usage }
    }

    /// An instance that is ready to answer.
    async fn instance(&self, store: &mut Store<Call>, context: &CallContext<'_>) -> Result<Instance, PolicyFailure> {
        if self.startup.is_some() {
            store.data_mut().start();
        }
        let instance = self.component.instantiate_async(&mut *store).await;
        let instance = instance.map_err(|error| failure(store.data(), &error))?;
        if let Some(startup) = &self.startup {
            start::call(startup, store, &instance).await.map_err(|error| match error {
                start::Failed::Itself(text) => PolicyFailure::new(FailureKind::Refused, text),
                start::Failed::Otherwise(failure) => failure,
            })?;
            store.data_mut().answer(context);
        }
        Ok(instance)
    }
}

pub(crate) fn new_store(
    sandbox: &Sandbox,
    owner: &Arc<Owner>,
    context: &CallContext<'_>,
    sees_text: bool,
) -> Store<Call> {
    let call = Call::new(Arc::clone(owner), context, Arc::clone(&sandbox.searches), sees_text);
    let mut store = Store::new(&sandbox.engine, call);
    store.limiter(|call| call.limiter());
    store.set_hostcall_fuel(MAX_HANDED_BYTES);
    store.set_max_component_handles(MAX_HANDLES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| Ok(store.data_mut().at_tick()));
    if sandbox.counts_instructions {
        // It cannot fail: instructions are counted.
        let _filled = store.set_fuel(u64::MAX);
    }
    store
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name()).field("steps", &self.steps()).finish_non_exhaustive()
    }
}

fn no_such_step(step: &str) -> PolicyFailure {
    PolicyFailure::new(FailureKind::Refused, format!("it does not export {step}"))
}

/// What wasmtime reports, in our terms. Its texts name places in the component, never data.
pub(crate) fn failure(call: &Call, error: &wasmtime::Error) -> PolicyFailure {
    if let Some(not_here) = error.downcast_ref::<NotHere>() {
        return PolicyFailure::new(FailureKind::Trap, not_here.to_string());
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => PolicyFailure::new(FailureKind::Deadline, "it took longer than its deadline"),
        _ if call.wanted_too_much_memory() => {
            PolicyFailure::new(FailureKind::Memory, "it wanted more memory than its limit")
        }
        Some(trap) => PolicyFailure::new(FailureKind::Trap, trap.to_string()),
        None => PolicyFailure::output(error.root_cause().to_string()),
    }
}
