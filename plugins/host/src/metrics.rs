//! Numbers that policies give to operators, under names that their manifests list.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::effects::Number;

/// Names that a policy may use.
pub const MAX_METRICS: usize = 16;
/// Bytes of such a name.
const MAX_METRIC_NAME_BYTES: usize = 32;

/// The numbers of one policy.
#[derive(Debug, Default)]
pub struct PolicyMetrics(Mutex<BTreeMap<String, Value>>);

/// What stands under one name.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Value {
    /// Events that were counted; never goes down.
    pub count: u64,
    /// The last value that was set.
    pub value: Option<f64>,
}

impl PolicyMetrics {
    /// Numbers under these names, at most [`MAX_METRICS`] of them; all others are dropped.
    #[must_use]
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = names.into_iter().filter(|name| is_metric_name(name)).take(MAX_METRICS);
        Self(Mutex::new(names.map(|name| (name.to_owned(), Value::default())).collect()))
    }

    /// All names with their numbers.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Is this one of its names?
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    pub(crate) fn write(&self, numbers: &[(String, Number)]) {
        if numbers.is_empty() {
            return;
        }
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, number) in numbers {
            let Some(value) = values.get_mut(name) else { continue };
            match number {
                Number::Count(by) => value.count = value.count.saturating_add(u64::from(*by)),
                Number::Value(new) => value.value = Some(*new),
            }
        }
    }
}

/// 1 to 32 of a–z, 0–9 and `_`, the first a letter.
#[must_use]
pub fn is_metric_name(name: &str) -> bool {
    name.len() <= MAX_METRIC_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_were_listed() {
        let metrics = PolicyMetrics::new(["hits", "Bad Name", "level"]);
        metrics.write(&[
            ("hits".into(), Number::Count(2)),
            ("hits".into(), Number::Count(1)),
            ("made_up".into(), Number::Count(1)),
            ("level".into(), Number::Value(0.5)),
        ]);
        let all = metrics.read();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["hits", "level"]);
        assert_eq!(all["hits"], Value { count: 3, value: None });
        assert_eq!(all["level"], Value { count: 0, value: Some(0.5) });
    }
}
