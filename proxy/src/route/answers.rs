//! The answers of redaction and caching policies, and how they become one. Pure.
//!
//! | what policies say | merged |
//! | --- | --- |
//! | spans | all of them; where they overlap, as one |
//! | cache mode | `bypass` if one says so or fails; `semantic` if all say so |
//! | life | the shortest |
//! | key parts | all of them, each set apart by its policy |

use std::time::Duration;

use postern_plugins::{CacheMode, CachePlan, Joined, Span};

/// What one policy found.
#[derive(Debug, Clone)]
pub struct Finds {
    /// Who.
    pub policy: String,
    /// What; `None`: it failed.
    pub spans: Option<Vec<Span>>,
}

/// What one policy says about the cache.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Who.
    pub policy: String,
    /// Its plan; `None`: it failed.
    pub plan: Option<CachePlan>,
}

/// Whether to use the cache, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheChoice {
    /// Use it at all?
    pub exact: bool,
    /// Use it also for what means the same?
    pub semantic: bool,
    /// Shorter life than the configured one.
    pub ttl: Option<Duration>,
    /// To be added to the key.
    pub key_parts: Vec<String>,
}

/// Several policies may find the same or overlapping spans: what any of them wants masked is masked, as one.
#[must_use]
pub fn joined<'a>(finds: impl IntoIterator<Item = &'a Finds>) -> Joined {
    Joined::of(finds.into_iter().filter_map(|finds| finds.spans.clone()).flatten().collect())
}

/// Merges plans; see the table above.
#[must_use]
pub fn merged_plans<'a>(plans: impl IntoIterator<Item = &'a Planned>) -> CacheChoice {
    let mut choice = CacheChoice { exact: true, semantic: true, ttl: None, key_parts: Vec::new() };
    for Planned { policy, plan } in plans {
        let Some(plan) = plan else {
            (choice.exact, choice.semantic) = (false, false);
            continue;
        };
        choice.exact &= is_exact(plan);
        choice.semantic &= plan.mode == CacheMode::Semantic;
        let ttl = plan.ttl_seconds.map(|seconds| Duration::from_secs(u64::from(seconds)));
        choice.ttl = match (choice.ttl, ttl) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if !plan.key_parts.is_empty() {
            choice.key_parts.push(policy.clone());
            choice.key_parts.push(plan.key_parts.len().to_string());
            choice.key_parts.extend(plan.key_parts.iter().cloned());
        }
    }
    choice
}

/// May the answer be kept at all? `semantic` allows `exact` as well.
#[must_use]
pub fn is_exact(plan: &CachePlan) -> bool {
    matches!(plan.mode, CacheMode::Exact | CacheMode::Semantic)
}

#[cfg(test)]
mod tests {
    use postern_plugins::SpanAction;

    use super::*;

    fn finds(spans: &[(u32, u32, u32)]) -> Finds {
        let span = |(segment, start, end): &(u32, u32, u32)| Span {
            segment: *segment,
            start: *start,
            end: *end,
            kind: "email".into(),
            action: SpanAction::Mask,
        };
        Finds { policy: "p".into(), spans: Some(spans.iter().map(span).collect()) }
    }

    #[test]
    fn overlapping_finds_become_one() {
        let all = [finds(&[(1, 5, 9), (2, 1, 1)]), finds(&[(1, 0, 6), (1, 9, 12), (2, 0, 3)])];
        let ends: Vec<_> = joined(&all).masked.iter().map(|s| (s.segment, s.start, s.end)).collect();
        assert_eq!(ends, [(1, 0, 9), (1, 9, 12), (2, 0, 3)]);
    }

    fn plan(policy: &str, mode: CacheMode, ttl_seconds: Option<u32>, parts: &[&str]) -> Planned {
        let key_parts = parts.iter().map(ToString::to_string).collect();
        Planned { policy: policy.into(), plan: Some(CachePlan { mode, ttl_seconds, key_parts }) }
    }

    #[test]
    fn plans_only_narrow() {
        use CacheMode::{Bypass, Exact, Semantic};
        let all =
            [plan("a", Exact, Some(60), &["x"]), plan("b", Semantic, None, &[]), plan("c", Exact, Some(7), &["x"])];
        let choice = merged_plans(&all);
        assert_eq!((choice.exact, choice.ttl), (true, Some(Duration::from_secs(7))));
        assert_eq!(choice.key_parts, ["a", "1", "x", "c", "1", "x"]);
        assert!(!merged_plans(&[plan("a", Exact, None, &[]), plan("b", Bypass, None, &[])]).exact);
        assert!(!merged_plans(&[plan("a", Exact, None, &[]), Planned { policy: "b".into(), plan: None }]).exact);
        assert!(merged_plans(&[]).exact);
        let semantic = |plans: &[Planned]| merged_plans(plans).semantic;
        assert!(semantic(&[]) && semantic(&[plan("a", Semantic, None, &[]), plan("b", Semantic, None, &[])]));
        assert!(!semantic(&all) && !semantic(&[plan("a", Bypass, None, &[])]));
        assert!(!semantic(&[plan("a", Semantic, None, &[]), Planned { policy: "b".into(), plan: None }]));
    }

    #[test]
    fn parts_of_different_policies_do_not_run_together() {
        use CacheMode::Exact;
        let one = merged_plans(&[plan("a", Exact, None, &["x", "y"]), plan("b", Exact, None, &["z"])]);
        let other = merged_plans(&[plan("a", Exact, None, &["x"]), plan("b", Exact, None, &["y", "z"])]);
        assert_ne!(one.key_parts, other.key_parts);
    }
}
