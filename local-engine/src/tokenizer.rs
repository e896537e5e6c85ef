//! Text to token ids and back, as the model file says it: byte-level BPE, SentencePiece, or a `tokenizer.json`.
//!
//! Source: Radford et al., GPT-2 (bytes shown as printable characters); Sennrich et al., 2016 (BPE). Control tokens,
//! such as the one that begins a system message, are found only in what the chat template wrote. Where a message's own
//! text spells one, it is read as ordinary text: so nobody can forge a turn of the conversation.

mod json;
mod sentencepiece;

use std::collections::{HashMap, HashSet};

use regex::{Regex, RegexBuilder};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::EngineError;
use crate::weights::{Header, WeightFile};

/// Marks a control token's text that came from a message. Unicode promises that no text means anything by it.
const GUARD: char = '\u{10ffff}';
/// Merges of a vocabulary at most.
const MERGES_MAX: usize = 1 << 22;
/// Control tokens at most, and tokens found in text as they are: each becomes a part of one regular expression.
const SPECIALS_MAX: usize = 8192;
/// Bytes that such an expression may take when it is compiled.
const SPECIALS_BYTES_MAX: usize = 64 << 20;
/// Words of Llama 3: contractions, letters with what precedes them, up to three digits, signs, white space. Qwen's
/// digits stand alone. Sources: the `pre_tokenizer` of the models' tokenizer.json.
const WORDS_OF_LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const WORDS_OF_QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Control tokens that end an answer in the models' conventions, beside the ones that the file names.
const END_NAMES: [&str; 5] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>"];

/// The vocabulary of one model.
pub(crate) struct Tokenizer {
    words: Words,
    tokens: Vec<Token>,
    /// Matches any control token's text; `None` if there is none.
    controls: Option<Regex>,
    /// Matches any token that is found in all text as it is; `None` if there is none.
    fixed: Option<Regex>,
    control_ids: HashMap<String, u32>,
    fixed_ids: HashMap<String, u32>,
    ends: HashSet<u32>,
    /// Put before every prompt.
    begin: Option<u32>,
    longest_token_bytes: usize,
}

/// How ordinary text becomes tokens.
enum Words {
    /// As a program of the tokenizers crate: byte-level BPE of a GGUF file, or whatever `tokenizer.json` says.
    Crate(Box<tokenizers::Tokenizer>),
    SentencePiece(sentencepiece::Pieces),
}

struct Token {
    text: String,
    /// What it stands for in an answer; nothing for control tokens.
    bytes: Vec<u8>,
}

/// The tokens of a file, however it is written.
struct Vocabulary {
    words: Words,
    /// By id.
    texts: Vec<String>,
    /// GGUF's kinds, by id.
    kinds: Vec<i32>,
    alphabet: Alphabet,
}

/// How tokens' texts show their bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    ByteLevel,
    SentencePiece,
}

/// Kinds of tokens in GGUF files: they control the conversation, and text never becomes one; or they are found in text
/// before anything else.
const KIND_CONTROL: i32 = 3;
const KIND_FIXED: i32 = 4;

impl Tokenizer {
    pub(crate) fn load(file: &WeightFile) -> Result<Self, EngineError> {
        let header = file.header();
        let Vocabulary { words, texts, kinds, alphabet } = vocabulary(file)?;
        let kind = |id: usize| kinds.get(id).copied();
        let byte_of = byte_alphabet();
        let bytes = |id: usize, text: &str| match (kind(id), alphabet) {
            (Some(KIND_CONTROL), _) => Vec::new(),
            (Some(KIND_FIXED), Alphabet::ByteLevel) => text.as_bytes().to_vec(),
            (_, Alphabet::ByteLevel) => token_bytes(text, &byte_of),
            (kind, Alphabet::SentencePiece) => sentencepiece::token_bytes(text, kind),
        };
        let of_kind = |wanted: i32| -> HashMap<String, u32> {
            let numbered =
                (0u32..).zip(&texts).filter(|(id, text)| kind(*id as usize) == Some(wanted) && !text.is_empty());
            numbered.map(|(id, text)| (text.clone(), id)).collect()
        };
        let (control_ids, fixed_ids) = (of_kind(KIND_CONTROL), of_kind(KIND_FIXED));
        if control_ids.len().max(fixed_ids.len()) > SPECIALS_MAX {
            return Err(file.damaged(&format!("it has {} control tokens", control_ids.len().max(fixed_ids.len()))));
        }
        let tokens: Vec<Token> =
            texts.iter().enumerate().map(|(id, text)| Token { text: text.clone(), bytes: bytes(id, text) }).collect();
        Ok(Self {
            words,
            controls: alternatives(control_ids.keys())?,
            fixed: alternatives(fixed_ids.keys())?,
            ends: end_tokens(header, &control_ids),
            begin: begin_token(header).filter(|id| (*id as usize) < tokens.len()),
            longest_token_bytes: texts.iter().map(String::len).max().unwrap_or(1).max(1),
            control_ids,
            fixed_ids,
            tokens,
        })
    }

    /// A message's text, so that no control token is seen in it.
    pub(crate) fn guard(&self, text: &str) -> String {
        let text = text.replace(GUARD, "");
        let Some(controls) = &self.controls else { return text };
        let guarded = controls.replace_all(&text, |found: &regex::Captures<'_>| {
            let found = found.get(0).map_or("", |found| found.as_str());
            let mut characters = found.chars();
            let first: String = characters.next().into_iter().collect();
            format!("{first}{GUARD}{}", characters.as_str())
        });
        guarded.into_owned()
    }

    /// The ids of a rendered prompt.
    pub(crate) fn encode(&self, rendered: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids: Vec<u32> = self.begin.into_iter().collect();
        // A template that writes the first token itself does not want it twice.
        let begin = self.begin.and_then(|id| self.tokens.get(id as usize)).map_or("", |token| token.text.as_str());
        self.encode_into(rendered.strip_prefix(begin).unwrap_or(rendered), &mut ids)?;
        Ok(ids)
    }

    /// The ids of a text that is not a prompt's beginning.
    pub(crate) fn encode_without_begin(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    fn encode_into(&self, rendered: &str, ids: &mut Vec<u32>) -> Result<(), EngineError> {
        let mut at = 0;
        for found in self.controls.iter().flat_map(|controls| controls.find_iter(rendered)) {
            self.encode_plain(rendered.get(at..found.start()).unwrap_or_default(), ids)?;
            ids.extend(self.control_ids.get(found.as_str()));
            at = found.end();
        }
        self.encode_plain(rendered.get(at..).unwrap_or_default(), ids)
    }

    /// Tokens that a text of so many bytes has at least.
    pub(crate) fn fewest_tokens(&self, text_bytes: usize) -> usize {
        text_bytes / self.longest_token_bytes
    }

    /// What a token stands for in an answer.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |token| &token.bytes)
    }

    /// The text of a special token that the file names, such as `bos`.
    pub(crate) fn named(&self, header: &Header, name: &str) -> &str {
        let id = header.integer(&format!("tokenizer.ggml.{name}_token_id"));
        let id = id.and_then(|id| usize::try_from(id).ok());
        id.and_then(|id| self.tokens.get(id)).map_or("", |token| &token.text)
    }

    /// The token that controls the conversation under this name.
    pub(crate) fn control(&self, name: &str) -> Option<u32> {
        self.control_ids.get(name).copied()
    }

    /// Tokens that it has.
    pub(crate) fn vocabulary(&self) -> usize {
        self.tokens.len()
    }

    /// A token as the file names it.
    pub(crate) fn name(&self, id: u32) -> &str {
        self.tokens.get(id as usize).map_or("", |token| &token.text)
    }

    /// The tokens that end an answer, in order.
    pub(crate) fn ends(&self) -> Vec<u32> {
        let mut ends: Vec<u32> = self.ends.iter().copied().collect();
        ends.sort_unstable();
        ends
    }

    /// True if the token ends an answer.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EngineError> {
        let text = text.replace(GUARD, "");
        let mut at = 0;
        for found in self.fixed.iter().flat_map(|fixed| fixed.find_iter(&text)) {
            self.encode_words(text.get(at..found.start()).unwrap_or_default(), ids)?;
            ids.extend(self.fixed_ids.get(found.as_str()));
            at = found.end();
        }
        self.encode_words(text.get(at..).unwrap_or_default(), ids)
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EngineError> {
        if text.is_empty() {
            return Ok(());
        }
        match &self.words {
            Words::SentencePiece(pieces) => {
                let is_first = ids.iter().all(|id| Some(*id) == self.begin);
                pieces.encode(text, is_first, ids);
            }
            Words::Crate(tokenizer) => {
                let encoded = tokenizer.encode_fast(text, false);
                let refused = |_| EngineError::invalid("messages", "The messages could not be tokenised.");
                ids.extend_from_slice(encoded.map_err(refused)?.get_ids());
            }
        }
        Ok(())
    }
}

fn vocabulary(file: &WeightFile) -> Result<Vocabulary, EngineError> {
    if let Some(json) = file.tokenizer_json() {
        return json::vocabulary(file, json?);
    }
    let header = file.header();
    let texts = header.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let kinds = header.integers("tokenizer.ggml.token_type").unwrap_or_default();
    let (words, alphabet) = match header.text("tokenizer.ggml.model") {
        Some("gpt2") => (Words::Crate(Box::new(byte_pair_encoder(file, texts)?)), Alphabet::ByteLevel),
        Some("llama") => {
            (Words::SentencePiece(sentencepiece::Pieces::load(file, texts, kinds)?), Alphabet::SentencePiece)
        }
        Some(other) => return Err(EngineError::Unsupported(format!("the tokenizer `{other}`"))),
        None => return Err(file.damaged("it has no tokenizer")),
    };
    Ok(Vocabulary { words, texts: texts.to_vec(), kinds: kinds.to_vec(), alphabet })
}

fn byte_pair_encoder(file: &WeightFile, texts: &[String]) -> Result<tokenizers::Tokenizer, EngineError> {
    let header = file.header();
    let vocabulary: Vocab = texts.iter().cloned().zip(0u32..).collect();
    let lines = header.texts("tokenizer.ggml.merges").ok_or_else(|| file.damaged("it has no merges"))?;
    if lines.len() > MERGES_MAX {
        return Err(file.damaged(&format!("it has {} merges", lines.len())));
    }
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines {
        // The crate takes for granted that both parts and their sum are tokens, and panics otherwise.
        let known = |text: &str| vocabulary.contains_key(text);
        match line.split_once(' ') {
            Some((a, b)) if known(a) && known(b) && known(&format!("{a}{b}")) => {
                merges.push((a.to_owned(), b.to_owned()));
            }
            _ => return Err(file.damaged("one of its merges is not made of tokens")),
        }
    }
    // No cache of words: it would keep parts of prompts.
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).cache_capacity(0).build();
    let bpe = bpe.map_err(|error| file.damaged(&format!("its tokenizer does not fit together: {error}")))?;
    let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::from(bpe));
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer(header)?));
    if header.text("tokenizer.ggml.pre").is_some_and(|name| name.contains("qwen")) {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| file.damaged(&error.to_string()))?;
    }
    Ok(tokenizer)
}

/// How text is cut into words, by the name that GGUF files use; as `llm_tokenizer_bpe` of llama.cpp does it.
fn pre_tokenizer(header: &Header) -> Result<PreTokenizerWrapper, EngineError> {
    let digits_apart =
        |digits: Digits| Sequence::new(vec![digits.into(), ByteLevel::new(false, false, true).into()]).into();
    match header.text("tokenizer.ggml.pre") {
        Some("smollm" | "starcoder" | "refact" | "codeshell" | "command-r") => Ok(digits_apart(Digits::new(true))),
        Some("gpt-2") => Ok(ByteLevel::new(false, false, true).into()),
        Some("qwen2" | "deepseek-r1-qwen") => split_by(WORDS_OF_QWEN),
        Some("llama-bpe" | "llama3" | "llama-v3") => split_by(WORDS_OF_LLAMA_3),
        other => {
            let name = other.unwrap_or("(none)");
            Err(EngineError::Unsupported(format!("the pre-tokenizer `{name}`")))
        }
    }
}

fn split_by(pattern: &str) -> Result<PreTokenizerWrapper, EngineError> {
    let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false);
    let split = split.map_err(|error| EngineError::Unsupported(format!("its pre-tokenizer ({error})")))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
}

fn alternatives<'a>(names: impl Iterator<Item = &'a String>) -> Result<Option<Regex>, EngineError> {
    let mut names: Vec<&String> = names.collect();
    if names.is_empty() {
        return Ok(None);
    }
    // The first alternative that matches wins: so the longest comes first.
    names.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    let alternatives: Vec<String> = names.into_iter().map(|name| regex::escape(name)).collect();
    let pattern = RegexBuilder::new(&alternatives.join("|")).size_limit(SPECIALS_BYTES_MAX).build();
    pattern.map(Some).map_err(|_| EngineError::Unsupported("control tokens as large as these".to_owned()))
}

fn end_tokens(header: &Header, control_ids: &HashMap<String, u32>) -> HashSet<u32> {
    let named = ["eos", "eot"].iter().filter_map(|name| header.integer(&format!("tokenizer.ggml.{name}_token_id")));
    let named = named.filter_map(|id| u32::try_from(id).ok());
    named.chain(END_NAMES.iter().filter_map(|name| control_ids.get(*name).copied())).collect()
}

fn begin_token(header: &Header) -> Option<u32> {
    let wanted = header.bool("tokenizer.ggml.add_bos_token").unwrap_or(false);
    let id = header.integer("tokenizer.ggml.bos_token_id").filter(|_| wanted)?;
    u32::try_from(id).ok()
}

fn token_bytes(text: &str, byte_of: &HashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| byte_of.get(&c).copied()).collect();
    // A token outside the byte alphabet stands for itself.
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The characters that GPT-2 shows bytes as: printable Latin-1 as itself, the others from U+0100 on, in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(*byte)).zip('\u{100}'..);
    let own = (0..=255u8).filter(|byte| printable(*byte)).map(|byte| (char::from(byte), byte));
    own.chain(others.map(|(byte, shown)| (shown, byte))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_every_byte_once() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet.values().collect::<HashSet<_>>().len(), 256);
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'a']), (b' ', b'\n', b'a'));
        assert_eq!(token_bytes("ĠcafÃ©", &alphabet), " café".as_bytes());
    }

    #[test]
    fn the_longest_control_token_is_found() {
        let names = ["<|a|>".to_owned(), "<|a|>b".to_owned()];
        let pattern = alternatives(names.iter()).unwrap().unwrap();
        assert_eq!(pattern.find("x<|a|>b").unwrap().as_str(), "<|a|>b");
    }
}
