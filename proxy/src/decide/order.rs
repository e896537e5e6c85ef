//! In which order targets are tried: a pure function of their groups, the votes, and the conversation.

use std::cmp::Ordering;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::classify::Conversation;
use crate::classify::clearance::Destination;
use crate::config::Weights;

/// A target that may be tried.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) to: Destination,
    /// When its first token is expected.
    pub(super) ttft: Option<Duration>,
    pub(super) group: Group,
}

/// Targets of one group are tried before those of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// Close by, and expected in time.
    Quick,
    Cloud,
    Edge,
    Engine,
    /// Close by, and too late.
    Slow,
}

/// What is said about the order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preference<'a> {
    /// Targets in the order in which the votes name them.
    pub(super) named: Option<&'a [String]>,
    /// Shares of the requests.
    pub(super) weights: Option<&'a Weights>,
    /// What stays at its target.
    pub(super) conversation: Conversation,
    /// The named order counts over the borders of groups, unless there are weights.
    pub(super) over_groups: bool,
}

/// Sorts by group; within a group those with a share of the requests come first, spread by it, then the others as named, else
/// as they come (the quick ones: the quickest first).
pub(super) fn sort(candidates: &mut [Candidate], preference: &Preference<'_>) {
    let over_groups = preference.over_groups && preference.weights.is_none() && preference.named.is_some();
    candidates.sort_by(|a, b| {
        let groups = if over_groups { Ordering::Equal } else { a.group.cmp(&b.group) };
        groups.then_with(|| preference.compare(a, b))
    });
}

impl Preference<'_> {
    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering {
        let (share_a, share_b) = (self.share(a), self.share(b));
        let shares = match (share_a, share_b) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        shares.then_with(|| self.place(a).cmp(&self.place(b))).then_with(|| match self.named {
            None if a.group == Group::Quick => a.ttft.cmp(&b.ttft),
            _ => Ordering::Equal,
        })
    }

    /// Its place among those that are named.
    fn place(&self, candidate: &Candidate) -> Option<usize> {
        self.named?.iter().position(|name| name == candidate.to.name())
    }

    fn share(&self, candidate: &Candidate) -> Option<f64> {
        let weight = *self.weights?.get(candidate.to.name()).filter(|weight| **weight > 0)?;
        Some(score(self.conversation, candidate.to.name(), weight))
    }
}

/// Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005, logarithmic method):
/// the highest score wins with a probability that is its weight's share, always the same one for a conversation; and a target that
/// comes or goes moves no conversation between the others.
fn score(conversation: Conversation, target: &str, weight: u32) -> f64 {
    let hash = Sha256::new().chain_update(conversation.0).chain_update(target).finalize();
    let bits = hash.iter().take(8).fold(0, |bits: u64, byte| bits << 8 | u64::from(*byte));
    // Between 0 and 1, and neither of them.
    let uniform = ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(weight) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(conversation: u64, weights: &[(&str, u32)]) -> String {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&conversation.to_le_bytes());
        let scored = weights.iter().map(|(name, weight)| (score(Conversation(key), name, *weight), *name));
        scored.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1.to_owned()
    }

    #[test]
    fn conversations_are_spread_by_weight() {
        let weights = [("a", 1), ("b", 3), ("c", 6)];
        let count = |name: &str| (0..5_000).filter(|n| first(*n, &weights) == name).count();
        for (name, weight) in weights {
            let expected = 500 * weight as usize;
            assert!(count(name).abs_diff(expected) < 120, "{name}: {} of {expected}", count(name));
        }
    }

    proptest! {
        #[test]
        fn a_target_that_goes_moves_only_its_own_conversations(conversation: u64, gone in 0usize..3) {
            let weights = [("a", 2), ("b", 5), ("c", 1)];
            let before = first(conversation, &weights);
            prop_assert_eq!(&before, &first(conversation, &weights));
            if weights[gone].0 != before {
                let left: Vec<_> = weights.into_iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, w)| w).collect();
                prop_assert_eq!(before, first(conversation, &left));
            }
        }
    }
}
