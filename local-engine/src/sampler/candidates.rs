//! Which tokens may be drawn, and how likely each is.

use super::greatest;
use crate::sequence::Sampling;

/// The tokens that may be drawn, with their weights; the likeliest token's weight is 1. First the `top_k` likeliest, of
/// those the fewest that together reach `top_p` of their probability, of those the ones with at least `min_p` of the
/// likeliest one's probability. Ties in order of token. Sources: Fan et al., "Hierarchical Neural Story Generation", 2018
/// (top-k); Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020 (top-p); Nguyen et al., "Turning Up the
/// Heat: Min-p Sampling", 2024.
pub(super) fn candidates(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let Some(greatest) = greatest(logits).and_then(|token| logits.get(token as usize).copied()) else {
        return Vec::new();
    };
    let weights = logits.iter().map(|logit| ((logit - greatest) / sampling.temperature).exp());
    let mut kept: Vec<(u32, f32)> = (0u32..).zip(weights).filter(|(_, weight)| *weight > 0.0).collect();
    keep_top_k(&mut kept, sampling.top_k as usize);
    keep_nucleus(&mut kept, sampling.top_p);
    if sampling.min_p > 0.0 {
        kept.retain(|(_, weight)| *weight >= sampling.min_p);
    }
    kept
}

fn likelier((a, x): &(u32, f32), (b, y): &(u32, f32)) -> std::cmp::Ordering {
    y.total_cmp(x).then(a.cmp(b))
}

fn keep_top_k(kept: &mut Vec<(u32, f32)>, top_k: usize) {
    if top_k == 0 || top_k >= kept.len() {
        return;
    }
    kept.select_nth_unstable_by(top_k - 1, likelier);
    kept.truncate(top_k);
    // What was selected has no order of its own.
    kept.sort_unstable_by(likelier);
}

fn keep_nucleus(kept: &mut Vec<(u32, f32)>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let total: f32 = kept.iter().map(|(_, weight)| weight).sum();
    // A token below this bound cannot be in the nucleus: all such tokens together have less than 1 - top_p.
    let floor = total * (1.0 - top_p) / kept.len() as f32;
    kept.retain(|(_, weight)| *weight >= floor);
    kept.sort_unstable_by(likelier);
    let mut reached = 0.0;
    let within = kept.iter().take_while(|(_, weight)| {
        let short = reached < top_p * total;
        reached += weight;
        short
    });
    let count = within.count().max(1);
    kept.truncate(count);
}

/// The candidate at `point` (0..1) of the sum of weights.
pub(super) fn pick(candidates: &[(u32, f32)], point: f32) -> Option<u32> {
    let total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = point * total;
    for (token, weight) in candidates {
        left -= weight;
        if left < 0.0 {
            return Some(*token);
        }
    }
    // Rounding may leave a rest: it belongs to the last.
    candidates.last().map(|(token, _)| *token)
}
