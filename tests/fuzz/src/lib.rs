//! Every parser of bytes that somebody else wrote, and what has to be true of whatever it accepts.
//!
//! A [`Target`] is a function of bytes that panics when a promise is broken. `make fuzz` gives each to libFuzzer for a while;
//! `cargo test` runs each over its seeds and simple changes of them, so that no target rots and none begins with inputs that are
//! refused at the first byte.
//!
//! Only our own crates are instrumented (`run.sh`), so that nothing else is compiled a second time: libFuzzer sees which
//! branches of ours an input takes, and explores those.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a target says what it expects by failing"
)]

mod certificates;
mod configuration;
mod policies;
mod requests;
mod sealed;
mod streams;
mod texts;

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Inputs to begin with: good ones, and some that are nearly so.
    pub seeds: fn() -> anyhow::Result<Vec<Vec<u8>>>,
    /// Reads an input. True if it was accepted. Panics if anything is not as promised.
    pub read: fn(&[u8]) -> bool,
}

/// All parsers.
pub const TARGETS: [Target; 21] = [
    Target { name: "spiffe", seeds: certificates::id_seeds, read: certificates::id },
    Target { name: "certificate", seeds: certificates::certificate_seeds, read: certificates::certificate },
    Target { name: "revocation-list", seeds: certificates::list_seeds, read: certificates::list },
    Target { name: "csr", seeds: certificates::csr_seeds, read: certificates::csr },
    Target { name: "join-token", seeds: certificates::token_seeds, read: certificates::token },
    Target { name: "schedule", seeds: certificates::schedule_seeds, read: certificates::schedule },
    Target { name: "workload-api", seeds: certificates::message_seeds, read: certificates::message },
    Target { name: "issuer-files", seeds: certificates::pem_seeds, read: certificates::pem },
    Target { name: "config", seeds: configuration::seeds, read: configuration::config },
    Target { name: "json", seeds: requests::json_seeds, read: requests::json },
    Target { name: "request", seeds: requests::call_seeds, read: requests::call },
    Target { name: "admin-origin", seeds: requests::origin_seeds, read: requests::origin },
    Target { name: "sse", seeds: streams::sse_seeds, read: streams::sse },
    Target { name: "answer", seeds: streams::answer_seeds, read: streams::answer },
    Target { name: "vectors", seeds: streams::vectors_seeds, read: streams::vectors },
    Target { name: "restore", seeds: streams::restore_seeds, read: streams::restore },
    Target { name: "sealed", seeds: sealed::sealed_seeds, read: sealed::sealed },
    Target { name: "text", seeds: texts::seeds, read: texts::text },
    Target { name: "component", seeds: policies::component_seeds, read: policies::component },
    Target { name: "policy-answer", seeds: policies::answer_seeds, read: policies::answer },
    Target { name: "gguf", seeds: configuration::gguf_seeds, read: configuration::gguf },
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes of one seed: shorter, one byte another one, one byte twice, two swapped.
    fn changed(seed: &[u8], most: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
        let step = (seed.len() / most).max(1);
        (0..seed.len()).step_by(step).flat_map(move |at| {
            let other = |to: u8| {
                let mut bytes = seed.to_vec();
                bytes[at] = to;
                bytes
            };
            let mut twice = seed.to_vec();
            twice.insert(at, seed[at]);
            let mut swapped = seed.to_vec();
            swapped.swap(at, seed.len() - 1 - at);
            [seed[..at].to_vec(), other(seed[at] ^ 1), other(0xff), other(b'/'), twice, swapped]
        })
    }

    #[test]
    fn every_target_takes_its_seeds_and_stands_changes_of_them() {
        for target in TARGETS {
            let seeds = (target.seeds)().unwrap();
            let accepted = seeds.iter().filter(|seed| (target.read)(seed)).count();
            assert!(accepted > 0, "{}: none of its {} seeds is accepted", target.name, seeds.len());
            let changed = seeds.iter().flat_map(|seed| changed(seed, 25));
            let refused = changed.filter(|bytes| !(target.read)(bytes)).count();
            assert!(refused > 0, "{}: accepts anything", target.name);
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for (at, one) in TARGETS.iter().enumerate() {
            let position = TARGETS.iter().position(|other| other.name == one.name);
            assert_eq!(position, Some(at));
            assert_eq!(target(one.name).unwrap().name, one.name);
        }
        assert!(target("none").is_none());
    }
}
