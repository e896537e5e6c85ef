//! SentencePiece's BPE: of all neighbours that make a token together, the pair with the best score is joined first.
//!
//! Source: Kudo and Richardson, "SentencePiece", 2018; order and fall-back to bytes as llama.cpp does it. Spaces are
//! shown as `▁` (U+2581).

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::OnceLock;

use super::cuts;
use crate::error::EngineError;
use crate::weights::WeightFile;

/// How a space is shown.
const SPACE: char = '\u{2581}';
/// The file's kind of a token that stands for one byte.
const KIND_BYTE: i32 = 6;

/// The pieces that text is made of.
pub(super) struct Pieces {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// The tokens of single bytes; `None` where the file has none.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    begins_with_space: bool,
    /// Characters that are neighbours in a piece: found when a long text comes.
    neighbours: OnceLock<HashSet<(char, char)>>,
}

impl Pieces {
    pub(super) fn load(file: &WeightFile, texts: &[String], kinds: &[i32]) -> Result<Self, EngineError> {
        let header = file.header();
        let scores = header.floats("tokenizer.ggml.scores").unwrap_or_default();
        if scores.len() != texts.len() {
            return Err(file.damaged(&format!("it has {} tokens and {} scores", texts.len(), scores.len())));
        }
        let mut bytes = vec![None; 256];
        let mut ids = HashMap::with_capacity(texts.len());
        for ((id, text), kind) in (0u32..).zip(texts).zip(kinds.iter().chain(std::iter::repeat(&1))) {
            match (*kind, byte_of(text)) {
                (KIND_BYTE, Some(byte)) => {
                    if let Some(place) = bytes.get_mut(usize::from(byte)) {
                        *place = Some(id);
                    }
                }
                // Control tokens are found by their owner, never made of pieces; unused ones are never found.
                (1 | 4, _) => {
                    ids.entry(text.clone()).or_insert(id);
                }
                _ => {}
            }
        }
        let unknown = header.integer("tokenizer.ggml.unknown_token_id").and_then(|id| u32::try_from(id).ok());
        let begins_with_space = header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let neighbours = OnceLock::new();
        Ok(Self { ids, scores: scores.to_vec(), bytes, unknown, begins_with_space, neighbours })
    }

    /// `is_first`: nothing but control tokens was before this text.
    pub(super) fn encode(&self, text: &str, is_first: bool, out: &mut Vec<u32>) {
        let mut shown = String::with_capacity(text.len() + 8);
        if is_first && self.begins_with_space {
            shown.push(SPACE);
        }
        shown.extend(text.chars().map(shown_as));
        let mut work = Work::new(&shown);
        let mut heap = BinaryHeap::new();
        for left in 1..work.symbols.len() {
            heap.extend(self.pair(&work, left - 1, left));
        }
        while let Some(pair) = heap.pop() {
            let Some((before, after)) = work.join(&pair) else { continue };
            heap.extend(before.and_then(|before| self.pair(&work, before, pair.left)));
            heap.extend(after.and_then(|after| self.pair(&work, pair.left, after)));
        }
        for symbol in work.symbols.iter().filter(|symbol| symbol.begin < symbol.end) {
            let piece = shown.get(symbol.begin..symbol.end).unwrap_or_default();
            match self.ids.get(piece) {
                Some(id) => out.push(*id),
                None => out.extend(piece.bytes().filter_map(|byte| self.byte(byte))),
            }
        }
    }

    /// No piece has the two beside each other.
    pub(super) fn never_join(&self, before: char, after: char) -> bool {
        let neighbours = self.neighbours.get_or_init(|| cuts::neighbours(self.ids.keys().map(String::as_str)));
        !neighbours.contains(&(shown_as(before), shown_as(after)))
    }

    fn byte(&self, byte: u8) -> Option<u32> {
        self.bytes.get(usize::from(byte)).copied().flatten().or(self.unknown)
    }

    fn pair(&self, work: &Work<'_>, left: usize, right: usize) -> Option<Pair> {
        let (begin, end) = (work.symbols.get(left)?.begin, work.symbols.get(right)?.end);
        let id = *self.ids.get(work.text.get(begin..end)?)?;
        Some(Pair { score: *self.scores.get(id as usize)?, left, right, bytes: end - begin })
    }
}

/// What the token that ends up as `text` stands for.
pub(super) fn token_bytes(text: &str, kind: Option<i32>) -> Vec<u8> {
    match (kind, byte_of(text)) {
        (Some(KIND_BYTE), Some(byte)) => vec![byte],
        _ => text.replace(SPACE, " ").into_bytes(),
    }
}

fn shown_as(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

/// `<0x0A>` is 10.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// A run of characters on its way to a token; empty when its left neighbour has taken it.
#[derive(Clone, Copy)]
struct Symbol {
    begin: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

struct Work<'a> {
    text: &'a str,
    symbols: Vec<Symbol>,
}

/// Two neighbours that make a token.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Of both together, when they were found: a different sum now means that one of them has changed.
    bytes: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    /// The best score first; of equal ones, the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'a> Work<'a> {
    fn new(text: &'a str) -> Self {
        let begins: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let ends = begins.iter().skip(1).copied().chain(std::iter::once(text.len()));
        let count = begins.len();
        let symbols = begins.iter().copied().zip(ends).enumerate().map(|(at, (begin, end))| Symbol {
            begin,
            end,
            previous: at.checked_sub(1),
            next: Some(at + 1).filter(|next| *next < count),
        });
        Self { text, symbols: symbols.collect() }
    }

    /// Joins a pair, unless one of the two is not what it was; gives the new neighbours.
    fn join(&mut self, pair: &Pair) -> Option<(Option<usize>, Option<usize>)> {
        let (left, right) = (*self.symbols.get(pair.left)?, *self.symbols.get(pair.right)?);
        let is_empty = left.begin == left.end || right.begin == right.end;
        if is_empty || right.end - left.begin != pair.bytes || left.next != Some(pair.right) {
            return None;
        }
        *self.symbols.get_mut(pair.left)? = Symbol { end: right.end, next: right.next, ..left };
        *self.symbols.get_mut(pair.right)? = Symbol { begin: right.end, ..right };
        if let Some(next) = right.next.and_then(|next| self.symbols.get_mut(next)) {
            next.previous = Some(pair.left);
        }
        Some((left.previous, right.next))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(of: &[(&str, f32)]) -> Pieces {
        let ids = of.iter().enumerate().map(|(id, (text, _))| ((*text).to_owned(), id as u32)).collect();
        let bytes = (0..256).map(|byte| Some(1000 + byte)).collect();
        Pieces {
            ids,
            scores: of.iter().map(|(_, score)| *score).collect(),
            bytes,
            unknown: None,
            begins_with_space: false,
            neighbours: OnceLock::new(),
        }
    }

    fn encoded(pieces: &Pieces, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        pieces.encode(text, true, &mut ids);
        ids
    }

    #[test]
    fn the_best_pair_is_joined_first_and_the_leftmost_of_equals() {
        let pieces = pieces(&[("a", -9.0), ("b", -9.0), ("ab", -3.0), ("ba", -2.0), ("aba", -1.0), ("aa", -5.0)]);
        // `ba` is better than `ab`, then `a` + `ba`.
        assert_eq!(encoded(&pieces, "aba"), [4]);
        assert_eq!(encoded(&pieces, "abab"), [4, 1]);
        assert_eq!(encoded(&pieces, "aaa"), [5, 0]);
    }

    #[test]
    fn what_no_piece_has_becomes_bytes_and_spaces_are_shown() {
        let pieces = pieces(&[("a", -1.0), ("▁", -1.0), ("▁a", -0.5)]);
        assert_eq!(encoded(&pieces, "a a"), [0, 2]);
        assert_eq!(encoded(&pieces, "é"), [1195, 1169]);
        assert_eq!(token_bytes("▁a", Some(1)), b" a");
        assert_eq!(token_bytes("<0x0A>", Some(6)), b"\n");
        assert_eq!(token_bytes("<0x0A>", Some(1)), b"<0x0A>");
    }

    proptest! {
        #[test]
        fn the_pieces_of_parts_are_those_of_the_whole(
            text in "[abc é]{0,40}", part_bytes in 1usize..8, with_space in any::<bool>(),
        ) {
            let mut pieces = pieces(&[
                ("a", -9.0), ("b", -9.0), ("c", -9.0), ("▁", -9.0), ("ab", -3.0), ("ba", -2.0), ("aba", -1.0),
                ("▁a", -2.5), ("▁▁", -4.0), ("▁ab", -0.5), ("cc", -3.5),
            ]);
            pieces.begins_with_space = with_space;
            let mut ids = Vec::new();
            let parts = cuts::parts(&text, part_bytes, |before, after| pieces.never_join(before, after));
            for (at, part) in parts.enumerate() {
                pieces.encode(part, at == 0, &mut ids);
            }
            let whole = if text.is_empty() { Vec::new() } else { encoded(&pieces, &text) };
            prop_assert_eq!(ids, whole);
        }
    }

    #[test]
    fn a_long_text_is_cut_where_no_piece_goes_on() {
        let pieces = pieces(&[("a", -9.0), ("▁", -9.0), ("▁a", -2.5), ("aa", -1.0)]);
        let text = "aaa aa ".repeat(100);
        assert!(cuts::parts(&text, 20, |before, after| pieces.never_join(before, after)).all(|part| part.len() <= 20));
    }
}
