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
    inline: "
        package postern:host;

        // All that a policy may export.
        world policies {
            include postern:policy/full-policy@1.0.0;
            include postern:policy/prepared@1.0.0;
        }
    ",
    world: "postern:host/policies",
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: { "postern:policy/detectors.find": async | trappable, default: trappable },
    exports: { default: async },
});
