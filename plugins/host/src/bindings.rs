//! Rust types and calls that wasmtime makes from the WIT package; nothing outside of this crate sees them.

#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated from plugins/wit by wasmtime's macro, which implements its unsafe traits of memory layout"
)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "postern:policy/full-policy",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: { "postern:policy/detectors.find": async | trappable, default: trappable },
    exports: { default: async },
});
