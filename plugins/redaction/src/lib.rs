//! The first-party redaction policy: Postern's recognisers, and the office's own words.
//!
//! ```yaml
//! config:
//!   kinds: [email, phone, id-card, bank-card, secret]   # absent: all of them, these and iban, passport, plate, ip, mac,
//!                                                       # url-credentials
//!   words:                                              # kind → words; letters match in either case
//!     project: [Blue Heron, 北风计划]
//!     customer: [Globex]
//!   flag: [customer]                                    # kinds that the record counts, and that are not masked
//!   decode: [base64, url]                               # what is looked into; absent: nothing
//!   allow: [support@branch-17.example.org, "*@example.org"]   # finds that are left alone; `*` at either end: anything
//! ```
//! Where several finds overlap they are one; where one of them is to be masked, it is masked.

mod allowed;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use allowed::Allowed;
use postern_policy_sdk::redaction::{Policy, Span, SpanAction, TextSegment};
use postern_policy_sdk::startup::{Prepared, Startup};
use postern_policy_sdk::{config, detectors, export_redaction, export_startup};
use postern_text::Plain;
use postern_text::encoded::{Decoded, Encodings};
use postern_text::words::{Found, Words};
use serde::Deserialize;

static FINDER: Prepared<Finder> = Prepared::new(|| Finder::new(config()?));

struct Redaction;

impl Startup for Redaction {
    fn start() -> Result<(), String> {
        FINDER.get().map(drop)
    }
}

impl Policy for Redaction {
    fn find(segments: Vec<TextSegment>) -> Result<Vec<Span>, String> {
        let finder = FINDER.get()?;
        let mut spans = Vec::new();
        for segment in segments {
            let mut found = finder.words(&segment.text);
            if !finder.kinds.is_empty() {
                let hits = detectors::find(&finder.kinds, &segment.text)?;
                found.extend(hits.into_iter().map(|hit| Found { start: hit.start, end: hit.end, kind: hit.kind }));
            }
            for run in finder.decode.decoded(&segment.text) {
                found.extend(finder.of_run(&segment.text, &run)?);
            }
            spans.extend(finder.spans(segment.id, &segment.text, found));
        }
        Ok(spans)
    }
}

export_startup!(Redaction);
export_redaction!(Redaction);

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    kinds: Vec<String>,
    words: BTreeMap<String, Vec<String>>,
    flag: BTreeSet<String>,
    decode: Vec<Encoding>,
    allow: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Encoding {
    Base64,
    Url,
}

impl Default for Config {
    fn default() -> Self {
        let kinds = [
            "email",
            "phone",
            "id-card",
            "bank-card",
            "iban",
            "passport",
            "plate",
            "ip",
            "mac",
            "url-credentials",
            "secret",
        ];
        let (words, flag, decode, allow) = (BTreeMap::new(), BTreeSet::new(), Vec::new(), Vec::new());
        Self { kinds: kinds.map(str::to_owned).into(), words, flag, decode, allow }
    }
}

/// The configuration, ready to be used.
#[derive(Debug)]
struct Finder {
    kinds: Vec<String>,
    words: Words,
    flag: BTreeSet<String>,
    decode: Encodings,
    allowed: Allowed,
}

impl Finder {
    fn new(config: Config) -> Result<Self, String> {
        let known = |kind: &&String| config.kinds.contains(kind) || config.words.contains_key(kind.as_str());
        if let Some(kind) = config.flag.iter().find(|kind| !known(kind)) {
            return Err(format!("config: `flag` has {kind}, which is neither in `kinds` nor in `words`"));
        }
        let (words, allowed) = (Words::new(&config.words), Allowed::new(&config.allow)?);
        let has = |encoding| config.decode.contains(&encoding);
        let decode = Encodings { base64: has(Encoding::Base64), url: has(Encoding::Url) };
        Ok(Self { kinds: config.kinds, words, flag: config.flag, decode, allowed })
    }

    /// An encoded run is found as a whole, if there is anything in it that is not allowed.
    fn of_run(&self, text: &str, run: &Decoded) -> Result<Option<Found>, String> {
        let mut found = self.words(&run.text);
        if !self.kinds.is_empty() {
            let hits = detectors::find(&self.kinds, &run.text)?;
            found.extend(hits.into_iter().map(|hit| Found { start: hit.start, end: hit.end, kind: hit.kind }));
        }
        found.retain(|found| {
            let span = found.start as usize..found.end as usize;
            let written = run.text.get(span.clone());
            run.has(span) && !written.is_some_and(|written| self.allowed.has(written))
        });
        // One that is to be masked counts for all of it.
        found.sort_by_key(|found| self.flag.contains(&found.kind));
        let place = |at: usize| u32::try_from(at).ok().filter(|_| at <= text.len());
        let span = place(run.span.start).zip(place(run.span.end));
        Ok(found.into_iter().next().zip(span).map(|(found, (start, end))| Found { start, end, kind: found.kind }))
    }

    /// The office's own words, also where letters of another alphabet stand among Latin ones.
    fn words(&self, text: &str) -> Vec<Found> {
        if self.words.is_empty() {
            return Vec::new();
        }
        let plain = Plain::of(text);
        let written = |found: Found| {
            let span = plain.original(found.start as usize..found.end as usize);
            Some(Found { start: u32::try_from(span.start).ok()?, end: u32::try_from(span.end).ok()?, kind: found.kind })
        };
        self.words.find(plain.text()).into_iter().filter_map(written).collect()
    }

    fn spans(&self, segment: u32, text: &str, mut found: Vec<Found>) -> Vec<Span> {
        found.retain(|found| {
            let written = text.get(found.start as usize..found.end as usize);
            !written.is_some_and(|written| self.allowed.has(written))
        });
        let (flagged, masked) = found.into_iter().partition(|found| self.flag.contains(&found.kind));
        let masked = disjoint(masked);
        let apart = |flagged: &Found| {
            let next = masked.get(masked.partition_point(|mask| mask.end <= flagged.start));
            next.is_none_or(|mask| mask.start >= flagged.end)
        };
        let flagged: Vec<Found> = disjoint(flagged).into_iter().filter(apart).collect();
        let span = |action| move |Found { start, end, kind }| Span { segment, start, end, kind, action };
        let masked = masked.into_iter().map(span(SpanAction::Mask));
        masked.chain(flagged.into_iter().map(span(SpanAction::Flag))).collect()
    }
}

/// Overlapping finds become one, which covers both and has the kind of the one that begins first.
fn disjoint(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by_key(|found| (found.start, Reverse(found.end)));
    found.dedup_by(|next, last| {
        let overlap = next.start < last.end;
        if overlap {
            last.end = last.end.max(next.end);
        }
        overlap
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(config: &str) -> Result<Finder, String> {
        Finder::new(postern_policy_sdk::parse(config)?)
    }

    fn found(start: u32, end: u32, kind: &str) -> Found {
        Found { start, end, kind: kind.into() }
    }

    #[test]
    fn everything_is_recognised_unless_the_office_says_otherwise() {
        assert_eq!(finder("{}").unwrap().kinds.len(), 11);
        assert_eq!(finder(r#"{"kinds": ["phone"]}"#).unwrap().kinds, ["phone"]);
        assert!(finder(r#"{"kind": ["phone"]}"#).is_err());
    }

    #[test]
    fn overlapping_finds_become_one() {
        let all = vec![found(4, 9, "email"), found(0, 5, "project"), found(9, 12, "phone"), found(4, 6, "x")];
        assert_eq!(disjoint(all), [found(0, 9, "project"), found(9, 12, "phone")]);
    }

    #[test]
    fn words_are_found_as_they_are_written() {
        let finder = finder(r#"{"words": {"customer": ["Globex", "北风计划"]}}"#).unwrap();
        for written in ["Globex", "GLOBEX", "Ｇｌｏｂｅｘ", "Glоbех", "Glo\u{200b}bex", "北\u{200b}风计划"]
        {
            let text = format!("给{written}.");
            let (start, len) = (3, u32::try_from(written.len()).unwrap());
            assert_eq!(finder.words(&text), [found(start, start + len, "customer")], "{written}");
        }
        assert_eq!(finder.words("nothing, Глобекс"), []);
    }

    #[test]
    fn some_kinds_are_only_flagged() {
        let finder = finder(r#"{"words": {"customer": ["x"]}, "flag": ["customer", "phone"]}"#).unwrap();
        let all = vec![found(0, 3, "customer"), found(2, 5, "phone"), found(6, 9, "email"), found(8, 12, "phone")];
        let spans = finder.spans(7, "0123456789abcdef", all);
        let spans: Vec<_> = spans.iter().map(|span| (span.segment, span.start, span.end, span.action)).collect();
        assert_eq!(spans, [(7, 6, 9, SpanAction::Mask), (7, 0, 5, SpanAction::Flag)]);
        assert!(self::finder(r#"{"flag": ["fax"]}"#).unwrap_err().contains("fax"));
    }

    #[test]
    fn what_is_allowed_is_left_alone() {
        let finder = finder(r#"{"allow": ["help@office.example"]}"#).unwrap();
        let text = "help@office.example, li@office.example";
        let spans = finder.spans(0, text, vec![found(0, 19, "email"), found(21, 38, "email")]);
        assert_eq!(spans.iter().map(|span| (span.start, span.end)).collect::<Vec<_>>(), [(21, 38)]);
    }
}
