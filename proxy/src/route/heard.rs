//! What the policies said and wrote in one request. It waits until the label of the request is final: what they wrote takes
//! effect then, or is dropped, so that nothing of a request that must stay here is carried over to another.

use std::sync::Arc;

use postern_plugins::{Effects, PolicyFailure};

use super::health::Step;
use super::loaded::{Loaded, Said, WITHHELD};

/// What was said where something was found; the number is before it.
pub(super) const SPANS: &str = " spans";
/// What was said where a policy failed; the kind follows.
pub(super) const FAILED: &str = "failed:";

/// What was heard in one request. Dropping it drops what waits.
#[derive(Debug, Default)]
pub struct Heard {
    said: Vec<Said>,
    calls: Vec<Call>,
}

/// A call that has ended.
#[derive(Debug)]
struct Call {
    policy: Arc<Loaded>,
    step: Step,
    failure: Option<PolicyFailure>,
    effects: Option<Effects>,
}

/// What becomes of what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate<'a> {
    /// Some remote target may see this label, which is final.
    Commit(&'a str),
    /// The request ends here, with a label that some remote target may see: failures count, and what was written is dropped.
    Count,
    /// No remote target may see the label, or the request ended before it was known: nothing is left but that a policy failed.
    Drop,
}

impl Heard {
    /// Notes a call and what to say about it.
    pub fn call(
        &mut self,
        policy: &Arc<Loaded>,
        step: Step,
        failure: Option<PolicyFailure>,
        effects: Option<Effects>,
        said: Said,
    ) {
        self.calls.push(Call { policy: policy.clone(), step, failure, effects });
        self.said.push(said);
    }

    /// Notes what is to be said of a policy that was not called.
    pub fn not_called(&mut self, said: Said) {
        self.said.push(said);
    }

    /// Decides about everything that waits.
    pub fn settle(&mut self, fate: Fate<'_>) {
        for Call { policy, step, failure, effects } in self.calls.drain(..) {
            match (fate, effects) {
                (Fate::Commit(label), Some(effects)) if failure.is_none() => effects.commit(label),
                // Its author needs the lines that led to the failure.
                (Fate::Commit(_), Some(effects)) => effects.log_only(),
                _ => {}
            }
            policy.note(step, failure.as_ref(), fate != Fate::Drop);
        }
        if !matches!(fate, Fate::Commit(_)) {
            for said in &mut self.said {
                (said.reason, said.annotations) = (None, serde_json::Map::new());
                if fate == Fate::Drop {
                    withhold(&mut said.said);
                }
            }
        }
    }

    /// What was said, for the record. What was not settled by now never will be.
    #[must_use]
    pub fn into_said(mut self) -> Vec<Said> {
        if !self.calls.is_empty() {
            self.settle(Fate::Drop);
        }
        std::mem::take(&mut self.said)
    }
}

/// Leaves of `failed:KIND` that it failed, and of `N spans` that it found: kind and number could spell what was read.
pub(super) fn withhold(said: &mut String) {
    if said.starts_with(FAILED) {
        *said = format!("{FAILED}{WITHHELD}");
    } else if said.ends_with(SPANS) {
        *said = WITHHELD.to_owned();
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.settle(Fate::Drop);
    }
}
