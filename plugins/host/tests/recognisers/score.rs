//! What was found of what is there, and what was found that is not.

use std::ops::Range;

use postern_plugins::detectors::{self, Kind};

use crate::corpus::Labelled;

/// Counts of one kind.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Score {
    /// Values.
    pub(crate) there: usize,
    /// Values that finds cover to the last byte: whatever the finds are called, nothing of these leaves.
    pub(crate) covered: usize,
    /// Finds of this kind.
    pub(crate) found: usize,
    /// Finds of this kind where there is a value of this kind.
    pub(crate) right: usize,
}

impl Score {
    pub(crate) fn recall(self) -> f64 {
        self.covered as f64 / self.there.max(1) as f64
    }

    pub(crate) fn precision(self) -> f64 {
        if self.found == 0 { 1.0 } else { self.right as f64 / self.found as f64 }
    }
}

/// Finds as the gateway makes them: all kinds at once, joined where they overlap.
fn finds(text: &str) -> Vec<(Kind, Range<usize>)> {
    let found = detectors::disjoint(detectors::find(&Kind::ALL, text));
    found.into_iter().map(|hit| (hit.kind, hit.start..hit.end)).collect()
}

pub(crate) fn score(kind: Kind, texts: &[Labelled]) -> Score {
    let mut score = Score::default();
    for Labelled { text, values } in texts {
        let found = finds(text);
        let covered =
            |value: &Range<usize>| value.clone().all(|byte| found.iter().any(|(_, find)| find.contains(&byte)));
        let of_kind = || values.iter().filter(|(of, _)| *of == kind).map(|(_, value)| value);
        score.there += of_kind().count();
        score.covered += of_kind().filter(|value| covered(value)).count();
        for (_, find) in found.iter().filter(|(of, _)| *of == kind) {
            score.found += 1;
            score.right += usize::from(of_kind().any(|value| value.start < find.end && find.start < value.end));
        }
    }
    score
}

/// Those of the texts whose values are all covered.
pub(crate) fn found_in(kind: Kind, texts: Vec<Labelled>) -> Vec<Labelled> {
    let is_found = |text: &Labelled| score(kind, std::slice::from_ref(text)).recall() >= 1.0;
    texts.into_iter().filter(is_found).collect()
}

/// How many finds of a kind there are in a text that has none.
pub(crate) fn false_finds(kind: Kind, text: &str) -> usize {
    finds(text).iter().filter(|(of, _)| *of == kind).count()
}

/// Values that were missed, and finds that are wrong, to be read by a person.
pub(crate) fn mistakes(texts: &[Labelled]) -> Vec<String> {
    let mut mistakes = Vec::new();
    for Labelled { text, values } in texts {
        let found = finds(text);
        for (kind, value) in values {
            if !value.clone().all(|byte| found.iter().any(|(_, find)| find.contains(&byte))) {
                mistakes.push(format!("missed {}: {:?} in {text:?}", kind.name(), &text[value.clone()]));
            }
        }
        for (kind, find) in &found {
            if !values.iter().any(|(of, value)| of == kind && value.start < find.end && find.start < value.end) {
                mistakes.push(format!("wrong {}: {:?} in {text:?}", kind.name(), &text[find.clone()]));
            }
        }
    }
    mistakes
}
