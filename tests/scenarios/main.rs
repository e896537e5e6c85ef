//! Scenarios through real processes and real sockets: one binary, because linking is what takes time.
//!
//! `busy_cloud` and `load` show that the instruments are right; everything else is about the gateway.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    reason = "a test says what it expects by failing"
)]

mod answers;
mod at_rest;
mod audit;
mod audit_copy;
mod audit_roster;
mod audit_witness;
mod bad_input;
mod branches;
mod busy_cloud;
mod cache;
mod canaries;
mod clients;
mod compile_fail;
mod completions;
mod connect;
mod connections;
mod day;
mod demo;
mod dispatch;
mod embeddings;
mod engine;
mod engine_away;
mod enrolment;
mod examples;
mod expiry;
mod identity;
mod labels;
mod limits;
mod load;
mod made;
mod memory;
mod models;
mod nodes;
mod nodes_relayed;
mod offline;
mod path;
mod plugins;
mod policies;
mod processes;
mod readme;
mod redaction;
mod replicas;
mod rotation;
mod sealed;
mod semantic;
mod tools;
mod upstreams;
mod workbench;

use std::time::Duration;

use postern_tests::{BusyCloud, Config};
use serde_json::json;

/// For what should have happened by now. Generous: the machine may be busy, and nothing passes by waiting longer.
const SOON: Duration = Duration::from_secs(20);

/// A gateway with one cloud, `sun` (clearance `internal`), the three first-party policies and a cache.
fn config(cloud: &BusyCloud) -> Config {
    // Compiled policies are shared by all scenarios: compiling takes seconds.
    let compiled = concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled");
    Config::new().cloud("sun", cloud, "internal").builtin_policies().cache().set("/plugins/compiled", json!(compiled))
}
