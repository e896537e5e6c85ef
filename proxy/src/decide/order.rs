//! In which order targets are tried: a pure function of their groups, the votes, the conversation, and how they are.

use std::cmp::Ordering;
use std::time::Duration;

use super::balance::{self, Load};
use crate::classify::Conversation;
use crate::classify::clearance::Destination;
use crate::config::{Balance, Weights};

/// A target that may be tried.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) to: Destination,
    /// When its first token is expected.
    pub(super) ttft: Option<Duration>,
    pub(super) group: Group,
    /// It may be asked now.
    pub(super) available: bool,
    pub(super) load: Load,
}

/// Targets of one group are tried before those of the next. Nodes of one are balanced; clouds are tried as configured: the first is
/// what the office wants, the others stand in for it.
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
    /// How the nodes of a group are balanced, where nothing else says their order.
    pub(super) balance: Balance,
    /// Another number for each request, or for each conversation that should stay where it is.
    pub(super) spread: u64,
}

/// Sorts by group; within a group those that may be asked now come first, then those with a share of the requests, spread by it,
/// then the others as named, else balanced.
pub(super) fn sort(candidates: &mut [Candidate], preference: &Preference<'_>) {
    if candidates.len() < 2 {
        return;
    }
    let over_groups = preference.over_groups && preference.weights.is_none() && preference.named.is_some();
    let pool: Vec<_> = candidates.iter().map(|candidate| (candidate.to.name(), candidate.load)).collect();
    let scores = balance::scores(preference.balance, &pool, preference.spread);
    let mut scored: Vec<_> = candidates.iter().cloned().zip(scores).collect();
    scored.sort_by(|(a, score_a), (b, score_b)| {
        let groups = if over_groups { Ordering::Equal } else { a.group.cmp(&b.group) };
        let available = b.available.cmp(&a.available);
        groups.then(available).then_with(|| preference.compare(a, b)).then_with(|| match preference.named {
            None if a.group != Group::Cloud && a.group == b.group => score_b.total_cmp(score_a),
            _ => Ordering::Equal,
        })
    });
    for (place, (candidate, _)) in candidates.iter_mut().zip(scored) {
        *place = candidate;
    }
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
        shares.then_with(|| self.place(a).cmp(&self.place(b)))
    }

    /// Its place among those that are named.
    fn place(&self, candidate: &Candidate) -> Option<usize> {
        self.named?.iter().position(|name| name == candidate.to.name())
    }

    fn share(&self, candidate: &Candidate) -> Option<f64> {
        let weight = *self.weights?.get(candidate.to.name()).filter(|weight| **weight > 0)?;
        let uniform = balance::uniform(&self.conversation.0, candidate.to.name());
        Some(balance::weighted(uniform, f64::from(weight)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(conversation: u64, weights: &[(&str, u32)]) -> String {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&conversation.to_le_bytes());
        let score = |name: &str, weight: u32| balance::weighted(balance::uniform(&key, name), f64::from(weight));
        let scored = weights.iter().map(|(name, weight)| (score(name, *weight), *name));
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
