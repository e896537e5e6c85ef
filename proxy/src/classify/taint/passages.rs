//! Passages of a text, to recognise it by when only a part of it comes again.
//!
//! Every run of [`RUN`] letters and digits is a candidate; of each [`WINDOW`] candidates that follow each other, the one with the least hash is
//! chosen ("winnowing": Schleimer, Wilkerson, Aiken, SIGMOD 2003). Where two texts have [`SHARED`] letters and digits in a row in common, wherever
//! that is, the same candidate of it is chosen in both: they are found to have it in common, though of a text only one candidate in about
//! thirteen is kept. Spaces, punctuation, case and width do not count, so it does not help to break lines elsewhere.
//!
//! What is common to many texts that have nothing to do with each other (the frame of a prompt, say) is never chosen.

use std::collections::{HashSet, VecDeque};

use postern_text::plain;
use unicode_normalization::char::{decompose_compatible, is_combining_mark};

use crate::keys::Keys;

/// Letters and digits of a candidate.
const RUN: usize = 40;
/// Candidates of which one is chosen.
const WINDOW: usize = 25;
/// What two texts must have in common, in letters and digits in a row, to be found.
pub(in crate::classify) const SHARED: usize = RUN + WINDOW - 1;

/// How candidates are compared: by a hash with a key of the installation, so that nobody can write texts of which every candidate is chosen.
#[derive(Debug)]
pub(super) struct Passages {
    base: u64,
    /// `base` to the power of [`RUN`].
    power: u64,
    common: HashSet<u64>,
}

impl Passages {
    /// Those of the `common` texts are never chosen.
    pub(super) fn new(keys: &Keys, common: &[String]) -> Self {
        let base = keys.hash("taint:order", &[]).first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes)) | 1;
        let power = (0..RUN).fold(1, |power: u64, _| power.wrapping_mul(base));
        let mut passages = Self { base, power, common: HashSet::new() };
        let mut hashes = HashSet::new();
        for text in common {
            let (mut reading, mut letters) = (Reading::default(), Letters::default());
            for c in text.chars() {
                letters.read(c, &mut |letter| hashes.extend(reading.candidate(&passages, letter)));
            }
        }
        passages.common = hashes;
        passages
    }
}

/// The letters of a text that comes in pieces, each as it is compared: without accents and the difference of forms that read the same (NFKD; UAX #15),
/// in lower case. What a backslash stands for in JSON counts as what it means, however often it was escaped: a text that is JSON in one place
/// and plain in another is the same.
#[derive(Debug, Default)]
struct Letters(Escape);

#[derive(Debug, Default, Clone, Copy)]
enum Escape {
    #[default]
    None,
    /// After a backslash, or several.
    Begun,
    /// `\u` and so many digits, which make this.
    Digits(u8, u32),
}

impl Letters {
    fn read(&mut self, c: char, letter: &mut impl FnMut(char)) {
        match (self.0, c) {
            (Escape::None | Escape::Begun, '\\') => self.0 = Escape::Begun,
            (Escape::Begun, 'u') => self.0 = Escape::Digits(0, 0),
            // Line breaks and tabs.
            (Escape::Begun, 'n' | 'r' | 't' | 'b' | 'f') => self.0 = Escape::None,
            (Escape::Digits(count, value), c) => match c.to_digit(16) {
                Some(digit) if count == 3 => {
                    self.0 = Escape::None;
                    // Half of a pair, which few letters have, is none.
                    char::from_u32(value << 4 | digit).into_iter().for_each(|c| folded(c, letter));
                }
                Some(digit) => self.0 = Escape::Digits(count + 1, value << 4 | digit),
                None => {
                    self.0 = Escape::None;
                    self.read(c, letter);
                }
            },
            (Escape::None | Escape::Begun, c) => {
                self.0 = Escape::None;
                folded(c, letter);
            }
        }
    }
}

/// The letters and digits that `c` reads as.
fn folded(c: char, letter: &mut impl FnMut(char)) {
    if c.is_ascii() {
        if c.is_ascii_alphanumeric() {
            letter(c.to_ascii_lowercase());
        }
        return;
    }
    let mut lower = |c: char| {
        for c in c.to_lowercase() {
            match c {
                'ß' => ['s', 's'].into_iter().for_each(&mut *letter),
                c if c.is_alphanumeric() && !is_combining_mark(c) => letter(c),
                _ => {}
            }
        }
    };
    // Of letters that look like Latin ones, what they look like.
    plain(c).into_iter().for_each(|c| decompose_compatible(c, &mut lower));
}

/// How far a text has been read, which may come in pieces.
#[derive(Debug, Default)]
pub(super) struct Reading {
    escape: Letters,
    /// The last [`SHARED`] letters, which have all candidates that may be chosen yet.
    letters: VecDeque<char>,
    hash: u64,
    /// Of the letter to come.
    number: u64,
    /// Candidates that may be chosen yet, with rising hashes: hash, and number of the last letter.
    window: VecDeque<(u64, u64)>,
    /// The last that was chosen.
    chosen: Option<u64>,
}

impl Reading {
    /// Reads on, and gives each passage that is chosen: when so much of a text was read that it must be recognised by it, and not later.
    pub(super) fn read(&mut self, passages: &Passages, text: &str, mut chosen: impl FnMut(&str)) {
        let mut escape = std::mem::take(&mut self.escape);
        for c in text.chars() {
            escape.read(c, &mut |letter| self.letter(passages, letter, &mut chosen));
        }
        self.escape = escape;
    }

    fn letter(&mut self, passages: &Passages, c: char, chosen: &mut impl FnMut(&str)) {
        let Some(hash) = self.candidate(passages, c) else { return };
        let last = self.number - 1;
        if !passages.common.contains(&hash) {
            // Of equal ones, which are the same, the first: what repeats itself gives few.
            while self.window.back().is_some_and(|(before, _)| *before > hash) {
                self.window.pop_back();
            }
            self.window.push_back((hash, last));
        }
        while self.window.front().is_some_and(|(_, first)| first + WINDOW as u64 <= last) {
            self.window.pop_front();
        }
        let is_full = self.number >= SHARED as u64;
        let least = self.window.front().map(|(_, number)| *number).filter(|_| is_full);
        if let Some(least) = least.filter(|least| self.chosen != Some(*least)) {
            self.chosen = Some(least);
            chosen(&self.ending_with(least));
        }
    }

    /// The hash of the candidate that ends with the letter `c`, which comes next.
    fn candidate(&mut self, passages: &Passages, c: char) -> Option<u64> {
        self.number += 1;
        self.hash = self.hash.wrapping_mul(passages.base).wrapping_add(u64::from(c) + 1);
        self.letters.push_back(c);
        let gone = self.letters.len().checked_sub(RUN + 1).and_then(|gone| self.letters.get(gone));
        if let Some(gone) = gone {
            self.hash = self.hash.wrapping_sub((u64::from(*gone) + 1).wrapping_mul(passages.power));
        }
        if self.letters.len() > SHARED {
            self.letters.pop_front();
        }
        (self.letters.len() >= RUN).then(|| mixed(self.hash))
    }

    fn ending_with(&self, last: u64) -> String {
        let after = usize::try_from(self.number - 1 - last).unwrap_or(usize::MAX);
        let end = self.letters.len().saturating_sub(after);
        self.letters.range(end.saturating_sub(RUN)..end).collect()
    }
}

/// So that every bit of it counts (the finaliser of MurmurHash3).
fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(passages: &Passages, text: &str) -> HashSet<String> {
        let (mut found, mut reading) = (HashSet::new(), Reading::default());
        reading.read(passages, text, |passage| {
            found.insert(passage.to_owned());
        });
        found
    }

    fn passages() -> Passages {
        Passages::new(&Keys::random(), &[])
    }

    proptest! {
        #[test]
        fn what_two_texts_share_is_found(
            shared in "[a-zé机密,. \n]{64,90}[a-z]{64}", one in "[a-z ]{0,300}", two in "[a-zA-Z0-9 ]{0,300}",
        ) {
            let passages = passages();
            let (first, second) = (format!("{one}{shared}{two}"), format!("{two}{}{one}", shared.to_uppercase().replace(' ', "\n  ")));
            prop_assert!(!of(&passages, &first).is_disjoint(&of(&passages, &second)));
        }

        #[test]
        fn pieces_make_no_difference(text in "[a-z ]{0,400}", cut in 0usize..400) {
            let passages = passages();
            let (one, two) = text.split_at(cut.min(text.len()));
            let (mut found, mut reading) = (HashSet::new(), Reading::default());
            for piece in [one, two] {
                reading.read(&passages, piece, |passage| { found.insert(passage.to_owned()); });
            }
            prop_assert_eq!(found, of(&passages, &text));
        }

        #[test]
        fn it_is_known_as_soon_as_so_much_was_read(text in "[a-z]{200}", from in 0usize..130) {
            // Whoever has read so many letters in a row, wherever they begin, has read one that was chosen.
            let passages = passages();
            let (read, _) = text.split_at(from + SHARED);
            let (_, last) = read.split_at(from);
            prop_assert!(!of(&passages, read).is_disjoint(&of(&passages, last)));
        }
    }

    #[test]
    fn few_are_kept_and_short_texts_have_none() {
        let passages = passages();
        let text: String = (0..20_000u32).map(|n| char::from(b'a' + (mixed(n.into()) % 26) as u8)).collect();
        let kept = of(&passages, &text).len();
        assert!((1_200..2_000).contains(&kept), "{kept}");
        let first = |letters: usize| of(&passages, text.split_at(letters).0).len();
        assert_eq!((first(SHARED - 1), first(SHARED)), (0, 1));
        assert_eq!(of(&passages, &"ab".repeat(5_000)).len(), 1, "what repeats itself");
    }

    #[test]
    fn what_reads_the_same_is_the_same() {
        let passages = passages();
        let known = |text: &str| of(&passages, &text.repeat(6));
        for (one, other) in [
            ("Le préfet a signé l’accord en été", "Le pre\u{301}fet a signe\u{301} l’accord en e\u{301}te\u{301}"),
            (
                "한국어로 쓴 비밀 문서입니다",
                "\u{1112}\u{1161}\u{11ab}\u{1100}\u{116e}\u{11a8}\u{110b}\u{1165}로 쓴 비밀 문서입니다",
            ),
            ("the official office files", "the oﬃcial oﬃce ﬁles"),
            ("Straße und Fußball", "STRASSE UND FUSSBALL"),
            ("İstanbul iyi", "istanbul iyi"),
            ("机密文件不得外传任何人", "\\u673a\\u5bc6\\u6587\\u4ef6\\u4e0d\\u5f97\\u5916\\u4f20\\u4efb\\u4f55\\u4eba"),
            ("one\ntwo\nthree\tfour", "one\\ntwo\\nthree\\tfour"),
            ("one \"two\" three", "one \\\\\\\"two\\\\\\\" three"),
            ("all of it is the same", "a\u{345}l\u{345}l\u{345} of it is t\u{300}he same"),
        ] {
            assert!(!known(one).is_empty(), "{one}");
            assert_eq!(known(one), known(other), "{one}");
        }
    }

    #[test]
    fn what_is_common_is_not_known_and_the_rest_is() {
        let frame = "Summarise the following letter in three sentences, keep all names as they are, and answer in English please: ";
        let keys = Keys::random();
        let passages = Passages::new(&keys, &[frame.to_owned()]);
        assert!(of(&passages, frame).is_empty() && !of(&Passages::new(&keys, &[]), frame).is_empty());
        let [one, two] = [
            "the heron goes to the harbour in spring and nobody outside of the board may know of it before the year has ended",
            "minutes of the last meeting of the gardeners who would like to have more roses and fewer stones along the river",
        ];
        let [first, second] = [one, two].map(|letter| of(&passages, &format!("{frame}{letter}")));
        assert!(first.is_disjoint(&second));
        assert!(!of(&passages, &format!("Hello. {one}")).is_disjoint(&first));
    }
}
