//! What is looked for, and what becomes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_plugins::detectors::{self, Kind};
use postern_text::words::Words;
use postern_text::{Plain, Readings, unsettled};

/// What may be named beside the kinds of recognisers and words: private keys alone.
pub const PRIVATE_KEY: &str = "private-key";
/// And the markings of the classification.
pub const MARKING: &str = "marking";

/// What becomes of a find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// A mark stands in its place.
    Mask,
    /// The answer ends there.
    Stop,
}

/// What is looked for in answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    detectors: Vec<Kind>,
    words: Words,
    actions: BTreeMap<Arc<str>, Action>,
}

/// A find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: Arc<str>,
    pub(super) action: Action,
    /// A private key: to its last line, or to the end of the text.
    pub(super) is_key: bool,
}

/// What a text has, of which more may come.
#[derive(Debug)]
pub(super) struct Looked {
    /// In the order of the text; none overlap.
    pub(super) hits: Vec<Hit>,
    /// From here on, more text may change what is found.
    pub(super) open: usize,
}

impl Rules {
    /// Kind → what becomes of it; the markings; the words of the office, by kind, of which those count that are named.
    #[must_use]
    pub fn new(actions: &BTreeMap<String, Action>, markings: &[String], words: &BTreeMap<String, Vec<String>>) -> Self {
        let is_wanted = |kind: &Kind| {
            actions.contains_key(kind.name()) || (*kind == Kind::Secret && actions.contains_key(PRIVATE_KEY))
        };
        let words = words.iter().filter(|(kind, _)| actions.contains_key(*kind));
        let words: BTreeMap<_, _> = words.map(|(kind, words)| (kind.clone(), words.clone())).collect();
        let markings: BTreeMap<_, _> =
            actions.contains_key(MARKING).then(|| (MARKING.to_owned(), markings.to_vec())).into_iter().collect();
        Self {
            detectors: Kind::ALL.into_iter().filter(is_wanted).collect(),
            words: Words::and_anywhere(&words, &markings),
            actions: actions.iter().map(|(kind, action)| (kind.as_str().into(), *action)).collect(),
        }
    }

    /// What is found in `text` so far, however it is written.
    pub(super) fn look(&self, text: &str) -> Looked {
        let readings = Readings::of(text);
        let mut hits = Vec::new();
        let mut open = text.len();
        for (depth, reading) in readings.all_texts() {
            let written = |span: std::ops::Range<usize>| readings.original(depth, span);
            let plain = Plain::of(reading);
            let (found, detected) = detectors::find_begun(&self.detectors, &plain);
            let unsettled = unsettled(reading);
            let begun = match unsettled.and_then(|end| reading.get(..end)) {
                None => detected.into_iter().chain(self.worded(&plain)).min(),
                // What stands before it goes on with what it will be, not with what it looks like.
                Some(settled) => {
                    let plain = Plain::of(settled);
                    let (_, detected) = detectors::find_begun(&self.detectors, &plain);
                    detected.into_iter().chain(self.worded(&plain)).chain(unsettled).min()
                }
            };
            if let Some(at) = begun {
                open = open.min(written(at..at + character(reading, at)).start);
            }
            hits.extend(found.iter().filter_map(|found| {
                let value = reading.get(found.start..found.end)?;
                self.detected(found.kind, value, written(found.start..found.end))
            }));
            hits.extend(self.words.find(plain.text()).into_iter().filter_map(|found| {
                let span = written(plain.original(found.start as usize..found.end as usize));
                let (kind, action) = self.actions.get_key_value(found.kind.as_str())?;
                Some(Hit { start: span.start, end: span.end, kind: kind.clone(), action: *action, is_key: false })
            }));
        }
        let hits = disjoint(hits);
        // What is cut is not over.
        while let Some(cut) = hits.iter().find(|hit| hit.start < open && hit.end > open) {
            open = cut.start;
        }
        Looked { hits, open }
    }

    /// Where a word of the office may have begun that is not over.
    fn worded(&self, plain: &Plain<'_>) -> Option<usize> {
        let at = self.words.open(plain.text())?;
        Some(plain.original(at..at + character(plain.text(), at)).start)
    }

    fn detected(&self, kind: Kind, value: &str, span: std::ops::Range<usize>) -> Option<Hit> {
        let is_key = kind == Kind::Secret && detectors::is_private_key(value);
        let by_name = |name: &str| self.actions.get_key_value(name);
        let named = is_key.then(|| by_name(PRIVATE_KEY)).flatten().or_else(|| by_name(kind.name()));
        let (kind, action) = named?;
        Some(Hit { start: span.start, end: span.end, kind: kind.clone(), action: *action, is_key })
    }
}

/// How many bytes the character there has.
fn character(text: &str, at: usize) -> usize {
    text.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
}

/// Hits that overlap become one, named by the first, or by the first that ends the answer.
fn disjoint(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|hit| (hit.start, std::cmp::Reverse(hit.end)));
    let mut kept: Vec<Hit> = Vec::with_capacity(hits.len());
    for hit in hits {
        match kept.last_mut() {
            Some(last) if hit.start < last.end => {
                last.is_key |= hit.is_key;
                last.end = last.end.max(hit.end);
                if hit.action > last.action {
                    (last.kind, last.action) = (hit.kind, hit.action);
                }
            }
            _ => kept.push(hit),
        }
    }
    kept
}
