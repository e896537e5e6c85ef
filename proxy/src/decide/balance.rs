//! Who of a pool of nodes is asked first: a pure function of what is known of them and of a number that spreads requests.
//!
//! | `routing.balance` | first |
//! | --- | --- |
//! | `federated` | each node as often as its weight's share: 1 / (0.7·base + 0.2·latency + 0.1·queue) |
//! | `peak-ewma` | of two nodes by chance, the one with the smaller latency × (queue + 1) |
//! | `least-queue` | the shortest queue; of equals, one by chance |
//!
//! *base* is the lowest time to first token of late, *latency* the smoothed one, in which peaks count at once, *queue* the requests
//! that wait; each is divided by the highest of the pool. What is not known of a node is taken to be as for the others, on average.
//!
//! An example with three nodes:
//!
//! | node | base | latency | queue | 0.7·base | 0.2·latency | 0.1·queue | weight | share |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | oak | 100 ms | 120 ms | 0 | 0.7 × 0.5 | 0.2 × 0.3 | 0.1 × 0 | 1/0.41 = 2.44 | 53 % |
//! | elm | 200 ms | 200 ms | 2 | 0.7 × 1 | 0.2 × 0.5 | 0.1 × 0.5 | 1/0.85 = 1.18 | 26 % |
//! | ash | 200 ms | 400 ms | 4 | 0.7 × 1 | 0.2 × 1 | 0.1 × 1 | 1/1 = 1 | 22 % |
//!
//! Sources: the formula is the mission's; two choices: Mitzenmacher, "The power of two choices in randomized load balancing" (IEEE
//! TPDS 2001); peak EWMA: Twitter's Finagle.

use sha2::{Digest as _, Sha256};

use crate::config::Balance;

/// No weight is more than so many times the smallest possible one.
const COST_MIN: f64 = 0.02;

/// What is known of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Milliseconds to the first token when it has nothing else to do.
    pub base_ms: Option<f64>,
    /// Milliseconds to the first token, of late.
    pub latency_ms: Option<f64>,
    /// Requests that wait there.
    pub queue: f64,
}

/// For each node of a pool a score: they are asked in falling order. `spread` is another one for each request, or the same one for
/// those that should go to the same node.
#[must_use]
pub fn scores(balance: Balance, pool: &[(&str, Load)], spread: u64) -> Vec<f64> {
    let chance = |name: &str| uniform(&spread.to_le_bytes(), name);
    match balance {
        Balance::Federated => {
            let weights = weights(pool.iter().map(|(_, load)| *load));
            pool.iter().zip(weights).map(|((name, _), weight)| weighted(chance(name), weight)).collect()
        }
        Balance::PeakEwma => {
            let latency = filled(pool.iter().map(|(_, load)| load.latency_ms));
            let mut two: Vec<f64> = pool.iter().map(|(name, _)| chance(name)).collect();
            two.sort_by(|a, b| b.total_cmp(a));
            let drawn = two.get(1).copied().unwrap_or(0.0);
            // Smaller is better, and all that were not drawn come after both.
            let cost = |load: &Load, latency: f64| latency.max(0.001) * (load.queue.max(0.0) + 1.0);
            let each = pool.iter().zip(latency);
            each.map(|((name, load), latency)| {
                let behind = if chance(name) >= drawn { 0.0 } else { 1e12 };
                -cost(load, latency).min(1e11) - behind
            })
            .collect()
        }
        Balance::LeastQueue => {
            pool.iter().map(|(name, load)| -load.queue.clamp(0.0, 1e9).floor() + chance(name) / 2.0).collect()
        }
    }
}

/// The weights of the nodes of a pool, by the formula.
#[must_use]
pub fn weights(pool: impl Iterator<Item = Load> + Clone) -> Vec<f64> {
    let base = normalised(&filled(pool.clone().map(|load| load.base_ms)));
    let latency = normalised(&filled(pool.clone().map(|load| load.latency_ms)));
    let queue = normalised(&pool.map(|load| load.queue.max(0.0)).collect::<Vec<_>>());
    let terms = base.into_iter().zip(latency).zip(queue);
    terms.map(|((base, latency), queue)| 1.0 / (0.7 * base + 0.2 * latency + 0.1 * queue).max(COST_MIN)).collect()
}

/// What is missing is as the others are on average.
fn filled(values: impl Iterator<Item = Option<f64>> + Clone) -> Vec<f64> {
    let known: Vec<f64> = values.clone().flatten().filter(|value| value.is_finite()).collect();
    let mean = if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    values.map(|value| value.filter(|value| value.is_finite()).unwrap_or(mean)).collect()
}

fn normalised(values: &[f64]) -> Vec<f64> {
    let highest = values.iter().copied().fold(0.0, f64::max);
    values.iter().map(|value| if highest > 0.0 { value / highest } else { 0.0 }).collect()
}

/// Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005, logarithmic method):
/// the highest score wins with a probability that is its weight's share, always the same one for the same key; and a node that
/// comes or goes moves nothing between the others.
#[must_use]
pub(super) fn weighted(uniform: f64, weight: f64) -> f64 {
    weight / -uniform.ln()
}

/// Between 0 and 1, and neither of them; another one for each key and name.
#[must_use]
pub(super) fn uniform(key: &[u8], name: &str) -> f64 {
    let hash = Sha256::new().chain_update(key).chain_update(name).finalize();
    let bits = hash.iter().take(8).fold(0, |bits: u64, byte| bits << 8 | u64::from(*byte));
    ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(base: f64, latency: f64, queue: f64) -> Load {
        Load { base_ms: Some(base), latency_ms: Some(latency), queue }
    }

    fn first(balance: Balance, pool: &[(&str, Load)], spread: u64) -> usize {
        let scores = scores(balance, pool, spread);
        (0..pool.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
    }

    fn shares(balance: Balance, pool: &[(&str, Load)]) -> Vec<f64> {
        let mut counts = vec![0.0; pool.len()];
        (0..10_000).for_each(|spread| counts[first(balance, pool, spread)] += 1.0 / 10_000.0);
        counts
    }

    #[test]
    fn the_worked_example() {
        let pool =
            [("oak", load(100.0, 120.0, 0.0)), ("elm", load(200.0, 200.0, 2.0)), ("ash", load(200.0, 400.0, 4.0))];
        let weights = weights(pool.iter().map(|(_, load)| *load));
        for (weight, wanted) in weights.iter().zip([2.439, 1.176, 1.0]) {
            assert!((weight - wanted).abs() < 0.001, "{weights:?}");
        }
        for (share, wanted) in shares(Balance::Federated, &pool).into_iter().zip([0.528, 0.255, 0.217]) {
            assert!((share - wanted).abs() < 0.02, "{share} {wanted}");
        }
    }

    #[test]
    fn peak_ewma_takes_the_better_of_two() {
        let pool = [("a", load(1.0, 10.0, 0.0)), ("b", load(1.0, 20.0, 0.0)), ("c", load(1.0, 10.0, 9.0))];
        let shares = shares(Balance::PeakEwma, &pool);
        // Of three pairs `a` wins both that it is in, `b` the one with `c`.
        assert!((shares[0] - 2.0 / 3.0).abs() < 0.03 && shares[2] == 0.0, "{shares:?}");
        let all: Vec<_> = (0..3).map(|_| ("n", load(1.0, 1.0, 1.0))).collect();
        assert!(scores(Balance::PeakEwma, &all, 1).iter().all(|score| score.is_finite()));
    }

    #[test]
    fn least_queue_is_just_that() {
        let pool = [("a", load(1.0, 1.0, 3.0)), ("b", load(9.0, 9.0, 1.0)), ("c", load(9.0, 9.0, 1.0))];
        let shares = shares(Balance::LeastQueue, &pool);
        assert!(shares[0] == 0.0 && (shares[1] - 0.5).abs() < 0.03, "{shares:?}");
    }

    #[test]
    fn a_node_of_which_nothing_is_known_gets_its_share() {
        let unknown = Load { queue: 1.0, ..Load::default() };
        let pool = [("a", load(100.0, 100.0, 1.0)), ("b", unknown), ("c", load(100.0, 100.0, 1.0))];
        for share in shares(Balance::Federated, &pool) {
            assert!((share - 1.0 / 3.0).abs() < 0.03, "{share}");
        }
        let nobody = [("a", Load::default()), ("b", Load::default())];
        assert!((shares(Balance::Federated, &nobody)[0] - 0.5).abs() < 0.03);
    }

    fn any_load() -> impl Strategy<Value = Load> {
        let ms = || proptest::option::of(0.0..1e6);
        (ms(), ms(), 0.0..1e4).prop_map(|(base_ms, latency_ms, queue)| Load { base_ms, latency_ms, queue })
    }

    proptest! {
        #[test]
        fn scores_are_numbers_and_weights_are_bounded(pool in prop::collection::vec(any_load(), 1..8), spread: u64) {
            let names: Vec<String> = (0..pool.len()).map(|at| format!("n{at}")).collect();
            let named: Vec<_> = names.iter().map(String::as_str).zip(pool.iter().copied()).collect();
            for balance in [Balance::Federated, Balance::PeakEwma, Balance::LeastQueue] {
                let scores = scores(balance, &named, spread);
                prop_assert!(scores.len() == pool.len() && scores.iter().all(|score| score.is_finite()));
            }
            for weight in weights(pool.iter().copied()) {
                prop_assert!((0.99..=1.0 / COST_MIN).contains(&weight), "{weight}");
            }
        }

        #[test]
        fn to_be_slower_or_fuller_never_gives_more_weight(
            pool in prop::collection::vec((1.0..1e4, 1.0..1e4, 0.0..1e2), 2..6), at in any::<prop::sample::Index>(), more in 1.0..1e3,
        ) {
            let pool: Vec<_> = pool.into_iter().map(|(base, latency, queue)| load(base, latency, queue)).collect();
            let at = at.index(pool.len());
            let share = |pool: &[Load]| {
                let weights = weights(pool.iter().copied());
                weights[at] / weights.iter().sum::<f64>()
            };
            let before = share(&pool);
            for worse in [load(more, 0.0, 0.0), load(0.0, more, 0.0), load(0.0, 0.0, more)] {
                let mut pool = pool.clone();
                let Load { base_ms, latency_ms, queue } = pool[at];
                let plus = |a: Option<f64>, b: Option<f64>| Some(a.unwrap() + b.unwrap());
                pool[at] = Load {
                    base_ms: plus(base_ms, worse.base_ms),
                    latency_ms: plus(latency_ms, worse.latency_ms),
                    queue: queue + worse.queue,
                };
                prop_assert!(share(&pool) <= before + 1e-9);
            }
        }
    }
}
