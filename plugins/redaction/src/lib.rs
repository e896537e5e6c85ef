//! The first-party redaction policy: Postern's recognisers, and the office's own words.
//!
//! ```yaml
//! config:
//!   kinds: [email, phone, id-card, bank-card, secret]   # absent: all of them
//!   words:                                              # kind → words; ASCII letters match in either case
//!     project: [Blue Heron, 北风计划]
//!     customer: [Globex]
//! ```

mod words;

use std::collections::BTreeMap;

use postern_policy_sdk::redaction::{Policy, Span, TextSegment};
use postern_policy_sdk::{config, detectors, export_redaction};
use serde::Deserialize;
use words::Words;

struct Redaction;

impl Policy for Redaction {
    fn find(segments: Vec<TextSegment>) -> Result<Vec<Span>, String> {
        let config: Config = config()?;
        let words = Words::new(&config.words);
        let mut spans = Vec::new();
        for segment in segments {
            let mut found = words.find(&segment.text);
            if !config.kinds.is_empty() {
                let hits = detectors::find(&config.kinds, &segment.text)?;
                found.extend(hits.into_iter().map(|hit| Found { start: hit.start, end: hit.end, kind: hit.kind }));
            }
            spans.extend(disjoint(found).into_iter().map(|found| found.in_segment(segment.id)));
        }
        Ok(spans)
    }
}

export_redaction!(Redaction);

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    kinds: Vec<String>,
    words: BTreeMap<String, Vec<String>>,
}

impl Default for Config {
    fn default() -> Self {
        let kinds = ["email", "phone", "id-card", "bank-card", "secret"];
        Self { kinds: kinds.map(str::to_owned).into(), words: BTreeMap::new() }
    }
}

/// Bytes `start..end` of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    start: u32,
    end: u32,
    kind: String,
}

impl Found {
    fn in_segment(self, segment: u32) -> Span {
        Span { segment, start: self.start, end: self.end, kind: self.kind }
    }
}

/// Overlapping finds become one, which covers both and has the kind of the one that begins first.
fn disjoint(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by_key(|found| (found.start, std::cmp::Reverse(found.end)));
    let mut kept: Vec<Found> = Vec::with_capacity(found.len());
    for next in found {
        match kept.last_mut() {
            Some(last) if next.start < last.end => last.end = last.end.max(next.end),
            _ => kept.push(next),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_recognised_unless_the_office_says_otherwise() {
        let config: Config = postern_policy_sdk::parse("{}").unwrap();
        assert_eq!(config.kinds.len(), 5);
        let config: Config = postern_policy_sdk::parse(r#"{"kinds": ["phone"]}"#).unwrap();
        assert_eq!(config.kinds, ["phone"]);
        assert!(postern_policy_sdk::parse::<Config>(r#"{"kind": ["phone"]}"#).is_err());
    }

    #[test]
    fn overlapping_finds_become_one() {
        let found = |start, end, kind: &str| Found { start, end, kind: kind.into() };
        let joined =
            disjoint(vec![found(4, 9, "email"), found(0, 5, "project"), found(9, 12, "phone"), found(4, 6, "x")]);
        assert_eq!(joined, [found(0, 9, "project"), found(9, 12, "phone")]);
    }
}
