//! Write a Postern policy in Rust.
//!
//! A policy is a type with one function, and a line that exports it:
//!
//! ```
//! use postern_policy_sdk::routing::{FleetFacts, Placement, Policy, RequestFacts, Verdict};
//!
//! struct LongPromptsStay;
//!
//! impl Policy for LongPromptsStay {
//!     fn route(request: RequestFacts, _fleet: FleetFacts) -> Result<Verdict, String> {
//!         let placement = (request.prompt_tokens > 2_000).then_some(Placement::Local);
//!         Ok(Verdict { placement, ..Verdict::default() })
//!     }
//! }
//!
//! postern_policy_sdk::export_routing!(LongPromptsStay);
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib`. Compile it for `wasm32-unknown-unknown` and make it a component with `postern-componentize`:
//! the result imports nothing but what it uses of [`config`], [`log`], [`detectors`], [`counters`], [`metrics`], [`clock`] and
//! [`random`].
//!
//! A policy that reads its configuration once, when it is loaded, is quicker: see [`export_startup`].
//!
//! Compiled natively, the policy can be unit-tested; only the imports panic there, so keep the decision in a function
//! that takes what they give. Every field and bound is documented in `plugins/wit`.

#[doc(hidden)]
pub mod bindings;

use bindings::offered::postern::policy as offered;
use offered::types;
use serde::de::DeserializeOwned;

/// Where a request may be answered.
pub mod routing {
    pub use crate::bindings::routing::exports::postern::policy::routing::Guest as Policy;
    pub use crate::types::{
        Annotation, FleetFacts, Header, MessageFacts, Placement, Price, RequestFacts, TargetFacts, TargetPlacement,
        Verdict,
    };
}

/// Whether an answer may be cached.
pub mod caching {
    pub use crate::bindings::caching::exports::postern::policy::caching::Guest as Policy;
    pub use crate::types::{CacheMode, CachePlan, MessageFacts, Placement, RequestFacts};
}

/// What must not leave.
pub mod redaction {
    pub use crate::bindings::redaction::exports::postern::policy::redaction::Guest as Policy;
    pub use crate::types::{Span, TextSegment};
}

/// Postern's own recognisers.
pub mod detectors {
    pub use crate::offered::detectors::{Hit, find};
}

/// Made ready once, when the policy is loaded: see [`export_startup`].
pub mod startup {
    pub use crate::bindings::startup::exports::postern::policy::startup::Guest as Startup;
}

/// Numbers that outlive a call, for one tenant and label.
pub mod counters {
    pub use crate::offered::counters::{add, get};
}

/// Numbers for operators, under names that the manifest lists.
pub mod metrics {
    pub use crate::offered::metrics::{count, set};
}

/// Numbers that look random and are the same for the same request.
pub mod random {
    pub use crate::offered::random::next;
}

/// The time.
pub mod clock {
    pub use crate::offered::clock::now;
}

/// Lines for Postern's log; dropped while a redaction policy runs.
pub mod log {
    use crate::offered::log::{Level, write};

    /// For the author of the policy.
    pub fn debug(message: &str) {
        write(Level::Debug, message);
    }

    /// For the operator, nothing to do.
    pub fn info(message: &str) {
        write(Level::Info, message);
    }

    /// For the operator, something to look at.
    pub fn warn(message: &str) {
        write(Level::Warn, message);
    }

    /// For the operator, something to mend.
    pub fn error(message: &str) {
        write(Level::Error, message);
    }
}

/// The policy's own section of the configuration; nothing there reads as `{}`.
///
/// # Errors
/// It does not fit `T`; the text says where. Return it: the call then counts as the strictest vote, and the log shows why.
pub fn config<T: DeserializeOwned>() -> Result<T, String> {
    let text = offered::config::get();
    parse(if text == "null" { "{}" } else { &text })
}

/// As [`config`], from a text: for unit tests.
///
/// # Errors
/// It does not fit `T`.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("config: {error}"))
}

impl Default for types::Verdict {
    /// No opinion.
    fn default() -> Self {
        Self {
            placement: None,
            targets: Vec::new(),
            model: None,
            label: None,
            deny: None,
            weight: None,
            annotations: Vec::new(),
        }
    }
}

impl Default for types::RequestFacts {
    /// Nothing known: for unit tests of policies.
    fn default() -> Self {
        Self {
            identity: String::new(),
            tenant: String::new(),
            label: String::new(),
            labels: Vec::new(),
            label_sources: Vec::new(),
            model: String::new(),
            stream: false,
            prompt_tokens: 0,
            messages: Vec::new(),
            tools: false,
            images: false,
            temperature: None,
            placement_asked: None,
            conversation: String::new(),
            time: 0,
            utc_offset_minutes: 0,
            tokens_left: None,
            headers: Vec::new(),
        }
    }
}

impl types::CachePlan {
    /// Cache as configured.
    #[must_use]
    pub fn exact() -> Self {
        Self { mode: types::CacheMode::Exact, ttl_seconds: None, key_parts: Vec::new() }
    }

    /// Leave the cache alone.
    #[must_use]
    pub fn bypass() -> Self {
        Self { mode: types::CacheMode::Bypass, ..Self::exact() }
    }
}

/// Exports a [`startup::Startup`]; once in a crate, beside what the policy does. What `start` leaves in statics (a `OnceLock`, say)
/// is there in every call.
#[macro_export]
macro_rules! export_startup {
    ($policy:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::startup::export!($policy with_types_in $crate::bindings::startup);
        // A native build exports nothing, but checks the same and counts the policy as used.
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            let _ = <$policy as $crate::startup::Startup>::start;
        };
    };
}

/// Exports a [`routing::Policy`]; once in a crate.
#[macro_export]
macro_rules! export_routing {
    ($policy:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::routing::export!($policy with_types_in $crate::bindings::routing);
        // A native build exports nothing, but checks the same and counts the policy as used.
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            let _ = <$policy as $crate::routing::Policy>::route;
        };
    };
}

/// Exports a [`caching::Policy`]; once in a crate.
#[macro_export]
macro_rules! export_caching {
    ($policy:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::caching::export!($policy with_types_in $crate::bindings::caching);
        // A native build exports nothing, but checks the same and counts the policy as used.
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            let _ = <$policy as $crate::caching::Policy>::plan;
        };
    };
}

/// Exports a [`redaction::Policy`]; once in a crate.
#[macro_export]
macro_rules! export_redaction {
    ($policy:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::redaction::export!($policy with_types_in $crate::bindings::redaction);
        // A native build exports nothing, but checks the same and counts the policy as used.
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            let _ = <$policy as $crate::redaction::Policy>::find;
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_configuration_says_where() {
        let error = parse::<Vec<u32>>("[1, true]").unwrap_err();
        assert!(error.starts_with("config: ") && error.contains("line 1"), "{error}");
        assert_eq!(parse::<Vec<u32>>("[1]"), Ok(vec![1]));
    }

    #[test]
    fn a_plan_to_bypass_keeps_nothing() {
        assert_eq!(types::CachePlan::bypass().mode, types::CacheMode::Bypass);
        assert_eq!(types::CachePlan::exact().mode, types::CacheMode::Exact);
    }
}
