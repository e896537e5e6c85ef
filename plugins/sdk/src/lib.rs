//! Write a Postern policy in Rust.
//!
//! A policy is a type with one function, and a line that exports it. It is asked at one or more of three steps.
//!
//! # Where may a request be answered? [`routing`]
//!
//! ```
//! use postern_policy_sdk::export_routing;
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
//! export_routing!(LongPromptsStay);
//! # fn main() {}
//! ```
//!
//! # May its answer be cached? [`caching`]
//!
//! ```
//! use postern_policy_sdk::caching::{CachePlan, Policy, RequestFacts};
//! use postern_policy_sdk::export_caching;
//!
//! struct NotForNightShifts;
//!
//! impl Policy for NotForNightShifts {
//!     fn plan(request: RequestFacts) -> Result<CachePlan, String> {
//!         Ok(if request.tenant == "night" { CachePlan::bypass() } else { CachePlan::exact() })
//!     }
//! }
//!
//! export_caching!(NotForNightShifts);
//! # fn main() {}
//! ```
//!
//! # What must not leave? [`redaction`]
//!
//! Placeholders stand where a policy finds something; the answer has the text again.
//!
//! ```
//! use postern_policy_sdk::export_redaction;
//! use postern_policy_sdk::redaction::{Policy, Span, TextSegment};
//!
//! struct Tickets;
//!
//! impl Policy for Tickets {
//!     fn find(segments: Vec<TextSegment>) -> Result<Vec<Span>, String> {
//!         let tickets = |segment: &TextSegment| -> Vec<Span> {
//!             let found = segment.text.match_indices("TICKET-");
//!             found.map(|(at, word)| Span::mask(segment.id, at..at + word.len(), "ticket")).collect()
//!         };
//!         Ok(segments.iter().flat_map(tickets).collect())
//!     }
//! }
//!
//! export_redaction!(Tickets);
//! # fn main() {}
//! ```
//!
//! # What it may ask for
//!
//! [`config`], [`log`], [`detectors`], [`counters`], [`metrics`], [`clock`] and [`random`], and nothing else: no file, no
//! network, no environment. A policy imports only what it uses.
//!
//! # Ready before the first call
//!
//! Every call gets a fresh instance. What [`startup`] left in statics when the policy was loaded is there in each of them;
//! nothing else is remembered from call to call but [`counters`].
//!
//! ```
//! use postern_policy_sdk::routing::{FleetFacts, Placement, Policy, RequestFacts, Verdict};
//! use postern_policy_sdk::startup::{Prepared, Startup};
//! use postern_policy_sdk::{config, counters, export_routing, export_startup, log};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Config {
//!     requests_an_hour: i64,
//! }
//!
//! static CONFIG: Prepared<Config> = Prepared::new(config);
//!
//! struct Fair;
//!
//! impl Startup for Fair {
//!     fn start() -> Result<(), String> {
//!         CONFIG.get().map(drop)
//!     }
//! }
//!
//! impl Policy for Fair {
//!     fn route(request: RequestFacts, _fleet: FleetFacts) -> Result<Verdict, String> {
//!         let requests = counters::add("requests", 1, 3600)?;
//!         let many = requests > CONFIG.get()?.requests_an_hour;
//!         if many {
//!             log::info(&format!("request {requests} of {} stays here", request.tenant));
//!         }
//!         Ok(Verdict { placement: many.then_some(Placement::Local), ..Verdict::default() })
//!     }
//! }
//!
//! export_startup!(Fair);
//! export_routing!(Fair);
//! # fn main() {}
//! ```
//!
//! # Building
//!
//! `postern plugin new --lang rust NAME` writes a project that compiles. By hand: the crate is a `cdylib`, compiled for
//! `wasm32-unknown-unknown`; `postern plugin pack` makes it a component and adds its manifest. For `wasm32-wasip2` the compiler
//! itself makes a component.
//!
//! Compiled natively, a policy can be unit-tested. Only the imports panic there, so keep the decision in a function that is
//! given what they say. Every field, unit and bound is documented in `wit/`.

#[doc(hidden)]
pub mod bindings;
// Elsewhere the C library has an allocator of its own in the same memory.
#[cfg(all(feature = "memory", target_arch = "wasm32", target_os = "unknown"))]
mod memory;

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
    pub use crate::types::{Span, SpanAction, TextSegment};
}

/// Postern's own recognisers.
pub mod detectors {
    pub use crate::offered::detectors::{Hit, find};
}

/// Made ready once, when the policy is loaded.
pub mod startup {
    use std::sync::OnceLock;

    pub use crate::bindings::startup::exports::postern::policy::startup::Guest as Startup;

    /// A static that is made once: by [`Startup::start`], if that asks for it, so that each call begins with it; otherwise when
    /// a call first asks for it.
    #[derive(Debug)]
    pub struct Prepared<T> {
        made: OnceLock<T>,
        make: fn() -> Result<T, String>,
    }

    impl<T> Prepared<T> {
        /// To be made by `make`.
        #[must_use]
        pub const fn new(make: fn() -> Result<T, String>) -> Self {
            Self { made: OnceLock::new(), make }
        }

        /// What was made.
        ///
        /// # Errors
        /// Those of `make`.
        pub fn get(&self) -> Result<&T, String> {
            match self.made.get() {
                Some(made) => Ok(made),
                None => (self.make)().map(|made| self.made.get_or_init(|| made)),
            }
        }
    }
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

impl types::Span {
    /// A find to be masked: bytes `place` of the text of `segment`. Places behind 4 GiB do not exist.
    #[must_use]
    pub fn mask(segment: u32, place: std::ops::Range<usize>, kind: &str) -> Self {
        let byte = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let (start, end) = (byte(place.start), byte(place.end));
        Self { segment, start, end, kind: kind.to_owned(), action: types::SpanAction::Mask }
    }

    /// A find to be counted.
    #[must_use]
    pub fn flag(segment: u32, place: std::ops::Range<usize>, kind: &str) -> Self {
        Self { action: types::SpanAction::Flag, ..Self::mask(segment, place, kind) }
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

/// Exports a [`startup::Startup`]; once in a crate, beside what the policy does.
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
