//! What answers cost: the price of the target that gave them, times the coefficient of its placement.

use std::collections::HashMap;

use crate::classify::clearance::ENGINE;
use crate::config::Config;
use crate::config::file::{Price, TargetKind};

/// What tokens cost, in millionths of the currency for each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// One of a prompt.
    pub input: f64,
    /// One of an answer.
    pub output: f64,
}

impl Cost {
    /// At a price for a million tokens, times a coefficient.
    #[must_use]
    pub fn at(price: Price, coefficient: f64) -> Self {
        Self { input: price.input_per_million * coefficient, output: price.output_per_million * coefficient }
    }

    /// The dearer of both, kind by kind.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { input: self.input.max(other.input), output: self.output.max(other.output) }
    }

    /// Of so many tokens, in millionths, rounded up.
    #[must_use]
    pub fn of(self, input: u64, output: u64) -> u64 {
        let exact = (input as f64 * self.input + output as f64 * self.output).max(0.0);
        // 0.27 × 1.8 is a little more than 0.486 to a computer.
        (exact - 1e-3).ceil() as u64
    }
}

/// What each target costs.
#[derive(Debug, Default)]
pub struct Prices(HashMap<String, Cost>);

impl Prices {
    /// Of those that have a price.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let coefficient = |kind| match kind {
            TargetKind::Cloud => config.placements.cloud.cost.unwrap_or(1.0),
            TargetKind::Edge => config.placements.edge_first.cost.unwrap_or(1.8),
        };
        let remotes = config.targets.iter().filter_map(|target| {
            target.price.map(|price| (target.name.clone(), Cost::at(price, coefficient(target.kind))))
        });
        let engine = config.engine.as_ref().and_then(|engine| engine.price);
        let local = config.placements.local.cost.unwrap_or(3.5);
        Self(remotes.chain(engine.map(|price| (ENGINE.to_owned(), Cost::at(price, local)))).collect())
    }

    /// Of one target; `None`: it has no price.
    #[must_use]
    pub fn of_target(&self, name: &str) -> Option<Cost> {
        self.0.get(name).copied()
    }

    /// Of the dearest of them.
    #[must_use]
    pub fn dearest<'a>(&self, names: impl Iterator<Item = &'a str>) -> Cost {
        names.filter_map(|name| self.of_target(name)).fold(Cost::default(), Cost::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_price_times_coefficient_rounded_up() {
        let cost = Cost::at(Price { input_per_million: 0.27, output_per_million: 1.10 }, 1.8);
        assert_eq!((cost.of(1_000_000, 0), cost.of(0, 1_000_000), cost.of(1, 0)), (486_000, 1_980_000, 1));
        let dearest = cost.max(Cost { input: 9.0, output: 0.0 });
        assert_eq!((dearest.input, dearest.output), (9.0, cost.output));
    }
}
