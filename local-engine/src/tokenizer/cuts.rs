//! Places where a long text can be cut so that its parts, tokenised one by one, give the tokens of the whole: so a text
//! that is far too long is not tokenised to its end, and takes the memory of one part.

use std::collections::HashSet;

use serde_json::Value as Json;

use super::{WORDS_OF_LLAMA_3, WORDS_OF_QWEN};

/// Where a text can be cut.
pub(super) enum Cuts {
    /// Nothing is known of how words are found.
    Nowhere,
    /// Words are found as GPT-2, Llama 3, Qwen or SmolLM do it.
    BetweenWords,
}

impl Cuts {
    pub(super) fn between(&self, before: char, after: char) -> bool {
        match self {
            Self::Nowhere => false,
            Self::BetweenWords => is_between_words(before, after),
        }
    }

    /// Of a `tokenizer.json`.
    pub(super) fn of_program(program: &Json) -> Self {
        let is_known = is_nothing_or_nfc(program.get("normalizer"))
            && program.pointer("/model/type").is_none_or(|kind| kind == "BPE")
            && program.get("pre_tokenizer").is_some_and(finds_known_words);
        if is_known { Self::BetweenWords } else { Self::Nowhere }
    }
}

/// The parts of a text in order, each of at most `part_bytes` if there is a place to cut it, and else up to the first one.
pub(super) fn parts<'a>(
    text: &'a str,
    part_bytes: usize,
    is_cut: impl Fn(char, char) -> bool + Copy + 'a,
) -> impl Iterator<Item = &'a str> + 'a {
    let mut rest = text;
    std::iter::from_fn(move || {
        let at = first_cut(rest, part_bytes, is_cut);
        let (part, after) = rest.split_at_checked(at)?;
        rest = after;
        Some(part).filter(|part| !part.is_empty())
    })
}

fn first_cut(text: &str, part_bytes: usize, is_cut: impl Fn(char, char) -> bool) -> usize {
    if text.len() <= part_bytes {
        return text.len();
    }
    let (near, far) = text.split_at(text.floor_char_boundary(part_bytes));
    let mut after = far.chars().next();
    for (at, before) in near.char_indices().rev() {
        if after.is_some_and(|after| is_cut(before, after)) {
            return at + before.len_utf8();
        }
        after = Some(before);
    }
    let mut before = near.chars().next_back();
    for (at, after) in far.char_indices() {
        if before.is_some_and(|before| is_cut(before, after)) {
            return near.len() + at;
        }
        before = Some(after);
    }
    text.len()
}

/// A word ends between the two, whatever is around them: no alternative of the patterns spans them, none looks back, and
/// only white space is looked at from before it. So the text after the cut is read as if it stood alone, and the text
/// before it as well. None of the second characters composes with one before it, so NFC changes nothing across the cut.
fn is_between_words(before: char, after: char) -> bool {
    if after == ' ' {
        // A space begins a word, and white space ends only in more of it.
        return before.is_alphanumeric() || before.is_ascii_punctuation();
    }
    let ends = is_plain_letter(before) || before.is_ascii_digit();
    let is_sign = (after.is_ascii() && !after.is_ascii_alphanumeric()) || is_wide_sign(after);
    let letter_and_digit = (before.is_ascii_alphabetic() && after.is_ascii_digit())
        || (before.is_ascii_digit() && after.is_ascii_alphabetic());
    (ends && is_sign) || letter_and_digit
}

/// Letters that all versions of Unicode, and all regular expressions, agree on.
fn is_plain_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
        || matches!(c,
            // Latin, Greek, Cyrillic.
            '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{24f}' | '\u{3b1}'..='\u{3c9}' | '\u{410}'..='\u{44f}'
            // Hiragana, Katakana, Han, Hangul.
            | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7a3}')
}

/// The full stops and commas of Chinese and Japanese.
fn is_wide_sign(c: char) -> bool {
    matches!(c, '\u{3001}' | '\u{3002}' | '\u{ff01}' | '\u{ff0c}' | '\u{ff1a}' | '\u{ff1b}' | '\u{ff1f}')
}

fn is_nothing_or_nfc(normalizer: Option<&Json>) -> bool {
    normalizer.is_none_or(|one| one.is_null() || one.get("type").is_some_and(|kind| kind == "NFC"))
}

fn finds_known_words(pre_tokenizer: &Json) -> bool {
    let is = |one: &Json, kind: &str| one.get("type").and_then(Json::as_str) == Some(kind);
    let truth = |one: &Json, key: &str| one.get(key).and_then(Json::as_bool);
    let bytes = |one: &Json, finds_words: bool| {
        is(one, "ByteLevel")
            && truth(one, "add_prefix_space") == Some(false)
            && truth(one, "use_regex").unwrap_or(true) == finds_words
    };
    let digits = |one: &Json| is(one, "Digits");
    let known_split = |one: &Json| {
        let pattern = one.pointer("/pattern/Regex").and_then(Json::as_str);
        is(one, "Split")
            && pattern.is_some_and(|pattern| pattern == WORDS_OF_LLAMA_3 || pattern == WORDS_OF_QWEN)
            && one.get("behavior").and_then(Json::as_str) == Some("Isolated")
            && truth(one, "invert") != Some(true)
    };
    match pre_tokenizer.get("pretokenizers").and_then(Json::as_array).map(Vec::as_slice) {
        None => bytes(pre_tokenizer, true),
        Some([first, second]) => (digits(first) && bytes(second, true)) || (known_split(first) && bytes(second, false)),
        Some(_) => false,
    }
}

/// Neighbours within the pieces of a vocabulary. Where two characters are neighbours in no piece, none is made across
/// them: what is on either side is joined as if it stood alone.
pub(super) fn neighbours<'a>(pieces: impl Iterator<Item = &'a str>) -> HashSet<(char, char)> {
    pieces.flat_map(|piece| piece.chars().zip(piece.chars().skip(1))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    use tokenizers::{NormalizedString, Normalizer, PreTokenizerWrapper};

    use super::*;
    use crate::tokenizer::{NFC, pre_tokenizer};

    /// What the patterns treat in different ways, and what composes or looks like something else.
    const FRAGMENTS: &str = "a|B|word|é|e\u{301}|ж|中|日本語|カ|한|\u{1112}\u{1161}|\u{11ab}|कि|ß|1|23|4567|²|Ⅻ|Ⓐ|٣|'|'s|'LL|'x|.|...|!?|-|\
                             _|(|。|，|「| |  |\t|\n|\r\n|\n\n|\u{a0}|\u{3000}|\u{200b}|\u{1f600}";

    fn words(name: &str, finder: &PreTokenizerWrapper, text: &str) -> Vec<String> {
        let mut normalized = NormalizedString::from(text);
        if name.contains("qwen") {
            NFC.normalize(&mut normalized).unwrap();
        }
        let mut split = PreTokenizedString::from(normalized.get());
        finder.pre_tokenize(&mut split).unwrap();
        let words = split.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        words.into_iter().map(|(word, ..)| word.to_owned()).filter(|word| !word.is_empty()).collect()
    }

    static FINDERS: LazyLock<[(&str, PreTokenizerWrapper); 4]> = LazyLock::new(|| {
        ["smollm", "gpt-2", "qwen2", "llama-bpe"].map(|name| (name, pre_tokenizer(Some(name)).unwrap()))
    });

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_words_of_parts_are_those_of_the_whole(
            fragments in proptest::collection::vec(any::<prop::sample::Index>(), 0..40), part_bytes in 1usize..12,
        ) {
            let known: Vec<&str> = FRAGMENTS.split('|').collect();
            let text: String = fragments.iter().map(|at| known[at.index(known.len())]).collect();
            let cut: Vec<&str> = parts(&text, part_bytes, is_between_words).collect();
            prop_assert_eq!(cut.concat(), text.clone());
            for (name, finder) in FINDERS.iter() {
                let of_parts: Vec<String> = cut.iter().flat_map(|part| words(name, finder, part)).collect();
                prop_assert_eq!(of_parts, words(name, finder, &text), "{}: {:?}", name, cut);
            }
        }
    }

    #[test]
    fn ordinary_text_is_cut_into_small_parts() {
        let texts = [
            "The quick brown fox jumps over the lazy dog. ",
            "{\"name\": [1, 2.5, \"a_b\"]}\n",
            "aGVsbG8gd29ybGQ0NTY3ODkwYWJj",
            "Привет, мир! ",
            "夜の底が白くなった。信号所に汽車が止まった。",
        ];
        for text in texts {
            let long = text.repeat(40);
            assert!(parts(&long, 200, is_between_words).all(|part| part.len() <= 200), "{text}");
        }
        let word = "x".repeat(1000);
        assert_eq!(parts(&format!("{word} b"), 10, is_between_words).map(str::len).collect::<Vec<_>>(), [1000, 2]);
    }

    #[test]
    fn only_programs_whose_words_are_known_are_cut() {
        let bytes =
            |finds_words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": finds_words});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
        let sequence = |both: [Json; 2]| json!({"type": "Sequence", "pretokenizers": both});
        let program = |normalizer: Json, words: Json| json!({"normalizer": normalizer, "pre_tokenizer": words, "model": {"type": "BPE"}});
        let is_cut = |program: Json| matches!(Cuts::of_program(&program), Cuts::BetweenWords);
        assert!(is_cut(program(Json::Null, bytes(true))));
        assert!(is_cut(program(json!({"type": "NFC"}), sequence([split(WORDS_OF_QWEN), bytes(false)]))));
        assert!(is_cut(program(Json::Null, sequence([split(WORDS_OF_LLAMA_3), bytes(false)]))));
        assert!(is_cut(program(
            Json::Null,
            sequence([json!({"type": "Digits", "individual_digits": true}), bytes(true)])
        )));
        assert!(!is_cut(program(json!({"type": "Lowercase"}), bytes(true))));
        assert!(!is_cut(program(Json::Null, bytes(false))));
        assert!(!is_cut(program(Json::Null, sequence([split("x"), bytes(false)]))));
        assert!(!is_cut(program(Json::Null, Json::Null)));
        assert!(!is_cut(json!({"pre_tokenizer": bytes(true), "model": {"type": "WordPiece"}})));
    }
}
