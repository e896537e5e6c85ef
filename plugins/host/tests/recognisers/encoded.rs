//! Values that are encoded, or split over texts that a model reads as one: found as the gateway finds them.

use std::fmt::Write as _;
use std::ops::Range;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use postern_plugins::Joint;
use postern_plugins::detectors::{self, Kind};
use postern_text::encoded::{Decoded, Encodings};

use crate::corpus::Labelled;
use crate::random::Random;

const BOTH: Encodings = Encodings { base64: true, url: true };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// In two texts, cut anywhere within the value.
    Split,
    /// The value in base64, with padding or URL-safe without.
    Base64,
    /// All of the text in base64.
    AllBase64,
    /// The value in percent-encoding: every sign and letter of another script, and some of the others.
    Url,
}

impl Written {
    pub(crate) const ALL: [Self; 4] = [Self::Split, Self::Base64, Self::AllBase64, Self::Url];
}

/// How many values there are, and of how many every byte is found.
pub(crate) fn recall(written: Written, texts: &[Labelled]) -> (usize, usize) {
    let mut random = Random(5);
    let found = texts.iter().filter(|Labelled { text, values }| {
        let Some((_, value)) = values.first() else { return false };
        let (before, it, after) = (&text[..value.start], &text[value.clone()], &text[value.end..]);
        match written {
            Written::Split => is_found_split(text, value, &mut random),
            Written::Base64 => {
                let encoded = if random.below(2) == 0 {
                    BASE64.encode(it.as_bytes())
                } else {
                    BASE64URL_NOPAD.encode(it.as_bytes())
                };
                is_found(&format!("{before}{encoded}{after}"), value.start..value.start + encoded.len())
            }
            Written::AllBase64 => {
                let encoded = BASE64.encode(text.as_bytes());
                is_found(&encoded, 0..encoded.len())
            }
            Written::Url => {
                let encoded = percent(it, &mut random);
                is_found(&format!("{before}{encoded}{after}"), value.start..value.start + encoded.len())
            }
        }
    });
    (texts.len(), found.count())
}

/// Finds that are made by decoding, or over the places where texts meet, in a text that has none.
pub(crate) fn false_finds(kind: Kind, text: &str) -> [usize; 2] {
    let decoded = BOTH.decoded(text).iter().map(|run| hits(run, &[kind])).sum();
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.ceil_char_boundary(300.min(rest.len())));
        parts.push(part);
        rest = after;
    }
    // Each with the next but one, which it has nothing to do with.
    let meet = |pair: &[&str]| {
        let joint = Joint::of(&[(0, pair[0]), (1, pair[2])]).remove(0);
        let crossing = |hit: &detectors::Match| joint.pieces(hit.start..hit.end).count() == 2;
        detectors::find(&[kind], joint.text()).iter().filter(|hit| crossing(hit)).count()
    };
    [decoded, parts.windows(3).map(meet).sum()]
}

/// Finds in what was decoded.
fn hits(run: &Decoded, kinds: &[Kind]) -> usize {
    detectors::find(kinds, &run.text).iter().filter(|hit| run.has(hit.start..hit.end)).count()
}

fn is_found(text: &str, value: Range<usize>) -> bool {
    let mut spans: Vec<Range<usize>> =
        detectors::find(&Kind::ALL, text).into_iter().map(|hit| hit.start..hit.end).collect();
    let runs = BOTH.decoded(text).into_iter();
    spans.extend(runs.filter(|run| hits(run, &Kind::ALL) > 0).map(|run| run.span));
    covers(&spans, value)
}

fn is_found_split(text: &str, value: &Range<usize>, random: &mut Random) -> bool {
    let inner: Vec<usize> = text[value.clone()].char_indices().skip(1).map(|(at, _)| value.start + at).collect();
    let Some(cut) = (!inner.is_empty()).then(|| inner[random.below(inner.len())]) else { return false };
    let (left, right) = text.split_at(cut);
    let mut spans = Vec::new();
    for (part, from) in [(left, 0), (right, cut)] {
        spans.extend(detectors::find(&Kind::ALL, part).into_iter().map(|hit| hit.start + from..hit.end + from));
    }
    for joint in Joint::of(&[(0, left), (1, right)]) {
        for hit in detectors::find(&Kind::ALL, joint.text()) {
            let own =
                |(id, piece): (u32, Range<usize>)| if id == 0 { piece } else { piece.start + cut..piece.end + cut };
            spans.extend(joint.pieces(hit.start..hit.end).map(own));
        }
    }
    covers(&spans, value.clone())
}

fn covers(spans: &[Range<usize>], mut value: Range<usize>) -> bool {
    value.all(|byte| spans.iter().any(|span| span.contains(&byte)))
}

fn percent(text: &str, random: &mut Random) -> String {
    let mut out = String::new();
    for (place, byte) in text.bytes().enumerate() {
        if !byte.is_ascii_alphanumeric() || place == 0 || random.below(4) == 0 {
            let _ = write!(out, "%{byte:02X}");
        } else {
            out.push(char::from(byte));
        }
    }
    out
}
