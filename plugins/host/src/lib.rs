//! Runs policy plugins: WebAssembly components of the package `postern:policy@1.0.0`, in a sandbox.
//!
//! [`PolicyHost`] compiles components, [`Policy`] asks one of them. Plugins find and vote; they act on nothing. Each call
//! gets a fresh instance with a deadline and a bound on memory, and every answer is checked before anybody sees it, so a
//! faulty plugin can be slow or wrong, but it cannot remember, leak, or take the gateway down with it.
//!
//! [`detectors`] recognises e-mail addresses, telephone numbers, card numbers and secrets; plugins may ask for it, and the
//! gateway uses it too.

mod answer;
mod bindings;
mod call;
mod compile;
mod componentize;
mod convert;
mod counters;
pub mod detectors;
mod effects;
mod engine;
mod error;
mod facts;
mod host;
mod imports;
mod inspect;
mod interface;
mod joined;
mod joints;
mod kinds;
mod manifest;
mod metrics;
mod pack;
mod package;
mod policy;
mod read;
mod recorded;
mod schema;
mod section;
mod signature;
mod start;
mod ticker;
mod wasi;

pub use answer::{MAX_KIND_BYTES, MAX_NAME_BYTES, MAX_PARTS, MAX_SPANS, MAX_TARGETS, MAX_TEXT_BYTES};
pub use call::CallContext;
pub use componentize::componentize;
pub use counters::{Counters, MAX_COUNTERS_IN_SCOPE};
pub use effects::{Effects, Written};
pub use engine::{HostOptions, MAX_MEMORY_BYTES};
pub use error::{FailureKind, MAX_DETAIL_BYTES, PluginError, PolicyFailure};
pub use facts::{
    Annotation, CacheMode, CachePlan, FleetFacts, Header, MessageFacts, Placement, Price, RequestFacts, Span,
    SpanAction, Steps, TargetFacts, TargetPlacement, TextSegment, Verdict,
};
pub use host::PolicyHost;
pub use inspect::{Contents, Inspection, Needs, inspect};
pub use joined::Joined;
pub use joints::Joint;
pub use kinds::MAX_KINDS;
pub use manifest::{ANY_HEADER, Asked, MANIFEST_SECTION, MAX_MANIFEST_BYTES, Manifest, is_policy_name, may_be_granted};
pub use metrics::{MAX_METRICS, PolicyMetrics, Value, is_metric_name};
pub use pack::pack;
pub use package::Package;
pub use policy::{
    Grants, MAX_CODE_BYTES, MAX_COMPONENT_BYTES, MAX_CONFIG_BYTES, MAX_DEADLINE, MAX_FUNCTION_BYTES, Policy,
    PolicySpec, Readiness, Reply, Usage,
};
pub use recorded::{Answer, Answered, MAX_RECORDED_BYTES, RECORDED_VERSION, Recorded};
pub use schema::{ConfigSchema, MAX_SCHEMA_BYTES};
pub use signature::{KeyId, MAX_KEY_BYTES, MAX_KEYS, PublicKey, SIGNATURE_CONTEXT, SIGNATURE_SECTION, SigningKey};
