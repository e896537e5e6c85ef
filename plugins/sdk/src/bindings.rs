//! What wit-bindgen makes from `plugins/wit`. The types are made once, in [`offered`]; the worlds share them.

#![allow(
    unsafe_code,
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "generated: the glue between Rust and the memory of a component"
)]

pub mod offered {
    wit_bindgen::generate!({
        path: "../wit",
        world: "postern:policy/offered",
        additional_derives: [PartialEq],
        generate_all,
    });
}

macro_rules! world {
    ($name:ident, $world:literal) => {
        pub mod $name {
            wit_bindgen::generate!({
                path: "../wit",
                world: $world,
                pub_export_macro: true,
                with: {
                    "postern:policy/types@1.0.0": crate::bindings::offered::postern::policy::types,
                    "postern:policy/log@1.0.0": crate::bindings::offered::postern::policy::log,
                    "postern:policy/config@1.0.0": crate::bindings::offered::postern::policy::config,
                    "postern:policy/detectors@1.0.0": crate::bindings::offered::postern::policy::detectors,
                    "postern:policy/counters@1.0.0": crate::bindings::offered::postern::policy::counters,
                    "postern:policy/metrics@1.0.0": crate::bindings::offered::postern::policy::metrics,
                    "postern:policy/clock@1.0.0": crate::bindings::offered::postern::policy::clock,
                    "postern:policy/random@1.0.0": crate::bindings::offered::postern::policy::random,
                },
            });
        }
    };
}

world!(startup, "postern:policy/prepared");
world!(routing, "postern:policy/routing-policy");
world!(caching, "postern:policy/caching-policy");
world!(redaction, "postern:policy/redaction-policy");
