//! Text to token ids and back, as the model file says it: byte-level BPE, SentencePiece, or a `tokenizer.json`.
//!
//! Source: Radford et al., GPT-2 (bytes shown as printable characters); Sennrich et al., 2016 (BPE). Control tokens,
//! such as the one that begins a system message, are found only in what the chat template wrote. Where a message's own
//! text spells one, it is read as ordinary text: so nobody can forge a turn of the conversation.

mod cuts;
mod json;
mod sentencepiece;

use std::collections::{HashMap, HashSet};

use regex::{Regex, RegexBuilder};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::chat_template::ChatTemplate;
use crate::error::EngineError;
use crate::weights::{Header, WeightFile};
use cuts::Cuts;

/// Marks a control token's text that came from a message. Unicode promises that no text means anything by it.
const GUARD: char = '\u{10ffff}';
/// Merges of a vocabulary at most.
const MERGES_MAX: usize = 1 << 22;
/// Control tokens at most, and tokens found in text as they are: each becomes a part of one regular expression.
const SPECIALS_MAX: usize = 8192;
/// Bytes that such an expression may take when it is compiled.
const SPECIALS_BYTES_MAX: usize = 64 << 20;
/// Text is tokenised in parts of so many bytes, where it can be cut: about 100 bytes of memory for each.
const PART_BYTES: usize = 64 << 10;
/// Bytes of a part that cannot be cut, at most.
const UNCUT_BYTES_MAX: usize = 1 << 20;
/// What NFC makes of a text has this part of its bytes at least: three jamo of Hangul become one syllable.
const COMPOSED_MIN: usize = 3;
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
    /// Rows of the model's embeddings: a token beyond them cannot be computed.
    rows: usize,
}

/// Why a text has no tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unencoded {
    /// It has so many or more, which is more than was asked for.
    TooMany { tokens: usize },
    /// It has more than [`UNCUT_BYTES_MAX`] in which no word is known to end.
    Uncut,
    /// Its tokens cannot be found, or not be computed.
    Impossible,
}

impl Unencoded {
    /// In words for the client, but for [`Self::TooMany`], whose words name the bound.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::TooMany { tokens } => format!("The text has {tokens} tokens or more."),
            Self::Uncut => format!(
                "The text has more than {UNCUT_BYTES_MAX} bytes without a place where a word certainly ends, such as a \
                 space between letters. Please divide or shorten it."
            ),
            Self::Impossible => "The text could not be tokenised.".to_owned(),
        }
    }
}

/// How ordinary text becomes tokens.
enum Words {
    /// As a program of the tokenizers crate: byte-level BPE of a GGUF file, or whatever `tokenizer.json` says.
    Crate(Box<tokenizers::Tokenizer>, Cuts),
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
        check_special(file, texts.len())?;
        let kind = |id: usize| kinds.get(id).copied();
        let byte_of = byte_alphabet();
        let bytes = |id: usize, text: &str| match (kind(id), alphabet) {
            (Some(KIND_CONTROL), _) => Vec::new(),
            (Some(KIND_FIXED), Alphabet::ByteLevel) => text.as_bytes().to_vec(),
            (_, Alphabet::ByteLevel) => token_bytes(text, &byte_of),
            (kind, Alphabet::SentencePiece) => sentencepiece::token_bytes(text, kind),
        };
        let rows = file.embedding_rows().unwrap_or(texts.len());
        // One that the model has no embedding of is never found in a text.
        let of_kind = |wanted: i32| -> HashMap<String, u32> {
            let numbered = (0u32..).zip(&texts).take(rows);
            let numbered = numbered.filter(|(id, text)| kind(*id as usize) == Some(wanted) && !text.is_empty());
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
            begin: begin_token(header),
            rows,
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

    /// The ids of a rendered prompt; not read to its end if it has more than `tokens_max`.
    pub(crate) fn encode(&self, rendered: &str, tokens_max: usize) -> Result<Vec<u32>, Unencoded> {
        // A template that writes the first token itself does not want it twice.
        let begin = self.begin.and_then(|id| self.tokens.get(id as usize)).map_or("", |token| token.text.as_str());
        let rendered = rendered.strip_prefix(begin).unwrap_or(rendered);
        self.encode_all(rendered, Encoded { ids: self.begin.into_iter().collect(), tokens_max, part_bytes: PART_BYTES })
    }

    /// The ids of a text that is not a prompt's beginning.
    pub(crate) fn encode_without_begin(&self, text: &str, tokens_max: usize) -> Result<Vec<u32>, Unencoded> {
        self.encode_all(text, Encoded { ids: Vec::new(), tokens_max, part_bytes: PART_BYTES })
    }

    fn encode_all(&self, rendered: &str, mut into: Encoded) -> Result<Vec<u32>, Unencoded> {
        let mut at = 0;
        for found in self.controls.iter().flat_map(|controls| controls.find_iter(rendered)) {
            self.encode_plain(rendered.get(at..found.start()).unwrap_or_default(), &mut into)?;
            into.add(self.control_ids.get(found.as_str()).into_iter().copied())?;
            at = found.end();
        }
        self.encode_plain(rendered.get(at..).unwrap_or_default(), &mut into)?;
        into.add(std::iter::empty())?;
        if into.ids.iter().any(|id| *id as usize >= self.rows) {
            return Err(Unencoded::Impossible);
        }
        Ok(into.ids)
    }

    /// What a token stands for in an answer.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |token| &token.bytes)
    }

    /// A template, with the texts of this vocabulary's first and last token.
    pub(crate) fn chat_template(&self, file: &WeightFile, source: &str) -> Result<ChatTemplate, EngineError> {
        ChatTemplate::new(source, self.named(file.header(), "bos"), self.named(file.header(), "eos"))
    }

    /// The text of a special token that the file names, such as `bos`.
    fn named(&self, header: &Header, name: &str) -> &str {
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

    fn encode_plain(&self, text: &str, into: &mut Encoded) -> Result<(), Unencoded> {
        let text = text.replace(GUARD, "");
        let mut at = 0;
        for found in self.fixed.iter().flat_map(|fixed| fixed.find_iter(&text)) {
            self.encode_words(text.get(at..found.start()).unwrap_or_default(), into)?;
            into.add(self.fixed_ids.get(found.as_str()).into_iter().copied())?;
            at = found.end();
        }
        self.encode_words(text.get(at..).unwrap_or_default(), into)
    }

    fn encode_words(&self, text: &str, into: &mut Encoded) -> Result<(), Unencoded> {
        let mut is_first = into.ids.iter().all(|id| Some(*id) == self.begin);
        let is_cut = |before, after| match &self.words {
            Words::Crate(_, cuts) => cuts.between(before, after),
            Words::SentencePiece(pieces) => pieces.never_join(before, after),
        };
        for part in cuts::parts(text, into.part_bytes, is_cut) {
            if part.len() > UNCUT_BYTES_MAX {
                return Err(self.too_long(part, into));
            }
            match &self.words {
                Words::SentencePiece(pieces) => pieces.encode(part, is_first, &mut into.ids),
                Words::Crate(tokenizer, _) => {
                    let encoded = tokenizer.encode_fast(part, false).map_err(|_| Unencoded::Impossible)?;
                    into.ids.extend_from_slice(encoded.get_ids());
                }
            }
            is_first = false;
            into.add(std::iter::empty())?;
        }
        Ok(())
    }

    /// A part that cannot be cut has no fewer tokens than the longest one of the vocabulary allows.
    fn too_long(&self, part: &str, into: &Encoded) -> Unencoded {
        let tokens = into.ids.len().saturating_add(part.len() / COMPOSED_MIN / self.longest_token_bytes);
        if tokens > into.tokens_max { Unencoded::TooMany { tokens } } else { Unencoded::Uncut }
    }
}

/// Ids on their way.
struct Encoded {
    ids: Vec<u32>,
    tokens_max: usize,
    part_bytes: usize,
}

impl Encoded {
    fn add(&mut self, ids: impl Iterator<Item = u32>) -> Result<(), Unencoded> {
        self.ids.extend(ids);
        let tokens = self.ids.len();
        if tokens > self.tokens_max { Err(Unencoded::TooMany { tokens }) } else { Ok(()) }
    }
}

/// What can be said of the tokenizer of a file without building it: whether it is of a kind that is known, and whether
/// the tokens that begin and end a text are among its tokens.
pub(crate) fn check(file: &WeightFile) -> Result<(), EngineError> {
    if file.has_tokenizer_json() {
        return Ok(());
    }
    let header = file.header();
    match header.text("tokenizer.ggml.model") {
        Some("gpt2") => drop(pre_tokenizer(header.text("tokenizer.ggml.pre"))?),
        Some("llama") => {}
        Some(other) => return Err(EngineError::Unsupported(format!("the tokenizer `{other}`"))),
        None => return Err(file.damaged("it has no tokenizer")),
    }
    check_special(file, header.texts("tokenizer.ggml.tokens").map_or(0, <[String]>::len))
}

/// A token that begins or ends texts must be one of the vocabulary, and of the embeddings: the first request would fail.
fn check_special(file: &WeightFile, tokens: usize) -> Result<(), EngineError> {
    let rows = file.embedding_rows().unwrap_or(tokens);
    for name in ["bos", "eos", "eot"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        if let Some(id) = file.header().integer(&key).filter(|id| *id >= tokens.min(rows) as u64) {
            return Err(file.damaged(&format!(
                "its `{name}` token is number {id}, and it has {tokens} tokens and {rows} embeddings"
            )));
        }
    }
    Ok(())
}

fn vocabulary(file: &WeightFile) -> Result<Vocabulary, EngineError> {
    if let Some(json) = file.tokenizer_json() {
        return json::vocabulary(file, json?);
    }
    let header = file.header();
    let texts = header.texts("tokenizer.ggml.tokens").unwrap_or_default();
    let kinds = header.integers("tokenizer.ggml.token_type").unwrap_or_default();
    let (words, alphabet) = match header.text("tokenizer.ggml.model") {
        Some("gpt2") => {
            let encoder = Box::new(byte_pair_encoder(file, texts)?);
            (Words::Crate(encoder, Cuts::BetweenWords), Alphabet::ByteLevel)
        }
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
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer(header.text("tokenizer.ggml.pre"))?));
    if header.text("tokenizer.ggml.pre").is_some_and(|name| name.contains("qwen")) {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| file.damaged(&error.to_string()))?;
    }
    Ok(tokenizer)
}

/// How text is cut into words, by the name that GGUF files use; as `llm_tokenizer_bpe` of llama.cpp does it.
fn pre_tokenizer(name: Option<&str>) -> Result<PreTokenizerWrapper, EngineError> {
    let digits_apart =
        |digits: Digits| Sequence::new(vec![digits.into(), ByteLevel::new(false, false, true).into()]).into();
    match name {
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
    use candle_core::Device;
    use candle_core::quantized::gguf_file::Value;

    use super::*;
    use crate::testing::TinyFile;

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

    /// Of a tiny model.
    fn tiny(change: impl FnOnce(&mut Vec<(String, Value)>)) -> Result<Tokenizer, EngineError> {
        let file = TinyFile::with(&[], change);
        Tokenizer::load(&WeightFile::open(&file.path, &Device::Cpu).unwrap())
    }

    #[test]
    fn a_text_that_is_too_long_is_not_read_to_its_end() {
        let tokenizer = tiny(|_| {}).unwrap();
        let text = "ab ".repeat(1 << 20);
        let Err(Unencoded::TooMany { tokens }) = tokenizer.encode(&text, 100) else { panic!("it was read") };
        assert!((101..=PART_BYTES).contains(&tokens), "{tokens}");
        assert_eq!(tokenizer.encode("ab ab", 3).unwrap().len(), 3);
        assert_eq!(tokenizer.encode("ab ab", 2), Err(Unencoded::TooMany { tokens: 3 }));
    }

    #[test]
    fn a_word_without_end_is_refused() {
        let tokenizer = tiny(|_| {}).unwrap();
        let word = "a".repeat(UNCUT_BYTES_MAX + 1);
        assert_eq!(tokenizer.encode(&word, usize::MAX), Err(Unencoded::Uncut));
        assert!(matches!(tokenizer.encode(&word, 1000), Err(Unencoded::TooMany { .. })));
        assert_eq!(tokenizer.encode(&"a".repeat(UNCUT_BYTES_MAX), usize::MAX).unwrap().len(), UNCUT_BYTES_MAX);
    }

    #[test]
    fn first_and_last_tokens_that_are_none_are_refused() {
        for (key, name) in [("bos", "`bos` token"), ("eos", "`eos` token"), ("eot", "`eot` token")] {
            let set = |metadata: &mut Vec<(String, Value)>| {
                let key = format!("tokenizer.ggml.{key}_token_id");
                metadata.retain(|(other, _)| *other != key);
                metadata.push((key, Value::U32(260)));
            };
            let error = tiny(set).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains("260 tokens"), "{error}");
        }
    }

    #[test]
    fn real_texts_cut_into_parts_have_the_tokens_of_the_whole() {
        let file = WeightFile::open(&crate::engine::tests::model_file(), &Device::Cpu).unwrap();
        let tokenizer = Tokenizer::load(&file).unwrap();
        let text = include_str!("../../README.md").to_owned()
            + include_str!("tokenizer.rs")
            + "naïve 日本語、中文。 Ünïcödé\t\n\n  x";
        let in_parts = |part_bytes| {
            let into = Encoded { ids: Vec::new(), tokens_max: usize::MAX, part_bytes };
            tokenizer.encode_all(&tokenizer.guard(&text), into).unwrap()
        };
        let whole = in_parts(usize::MAX);
        for part_bytes in [1, 7, 64, 1000] {
            assert!(in_parts(part_bytes) == whole, "{part_bytes}");
        }
    }
}
