//! What a model's files say of themselves.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use crate::chat_template::ChatTemplate;
use crate::error::EngineError;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightFile;

/// A model, as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Such as `llama`.
    pub architecture: String,
    /// The name that its makers gave it, if the file has one.
    pub name: Option<String>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Numbers of all tensors.
    pub parameters: u64,
    /// For each type of weights, how many tensors are of it.
    pub types: BTreeMap<String, usize>,
    /// Layers, width, context and so on: the header's numbers, by the names of GGUF files.
    pub numbers: BTreeMap<String, u64>,
    /// Tokens of the vocabulary, where the header has it.
    pub vocabulary: Option<usize>,
    /// It says how chats are written.
    pub has_chat_template: bool,
    /// Why this engine cannot run it, if it cannot.
    pub refusal: Option<String>,
}

/// Reads the headers of a model's files, and whether their tensors are all there; builds the tokenizer, and writes a short
/// conversation with the chat template. Reads no weights.
///
/// # Errors
/// [`EngineError::Io`], [`EngineError::Damaged`] if the header cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection, EngineError> {
    let file = WeightFile::open(path, &Device::Cpu)?;
    let header = file.header();
    let architecture = header.text("general.architecture").unwrap_or("(none)").to_owned();
    let mut types = BTreeMap::new();
    let mut parameters = 0u64;
    for (dtype, numbers) in file.tensors() {
        *types.entry(format!("{dtype:?}")).or_insert(0) += 1;
        parameters = parameters.saturating_add(numbers);
    }
    let wanted = [
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.sliding_window",
        "context_length",
    ];
    let numbers = wanted.iter().filter_map(|key| {
        let number = header.integer(&format!("{architecture}.{key}"))?;
        Some(((*key).to_owned(), number))
    });
    Ok(Inspection {
        name: header.text("general.name").map(str::to_owned),
        bytes: file.bytes(),
        parameters,
        types,
        numbers: numbers.collect(),
        vocabulary: header.texts("tokenizer.ggml.tokens").map(<[String]>::len),
        has_chat_template: file.chat_template().is_some(),
        refusal: refusal(&file).err().map(|error| error.to_string()),
        architecture,
    })
}

fn refusal(file: &WeightFile) -> Result<(), EngineError> {
    crate::model::check(file)?;
    let tokenizer = Tokenizer::load(file)?;
    match file.chat_template() {
        Some(source) => tokenizer.chat_template(file, &source).map(drop),
        None => Ok(()),
    }
}

/// What an engine does with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// It answers chats.
    Chats,
    /// It makes vectors of texts.
    Vectors,
}

/// What the engine would do with the model of a file or folder. Reads its header; runs nothing of what is in it, since what asks
/// must live on.
///
/// # Errors
/// Why it can do nothing, in words; or the file cannot be read.
pub fn serves(path: &Path) -> Result<Serves, EngineError> {
    let file = WeightFile::open(path, &Device::Cpu)?;
    crate::model::check(&file)?;
    if file.header().text("general.architecture") == Some("bert") {
        return Ok(Serves::Vectors);
    }
    let Some(template) = file.chat_template() else {
        let what = format!("the model in {} has no chat template, so it answers no chats", path.display());
        return Err(EngineError::Options(what));
    };
    crate::tokenizer::check(&file)?;
    ChatTemplate::check(&template)?;
    Ok(Serves::Chats)
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::Value;

    use super::*;
    use crate::engine::Engine;
    use crate::options::EngineOptions;
    use crate::testing::TinyFile;

    #[test]
    fn a_model_without_a_template_answers_no_chats() {
        assert_eq!(serves(&TinyFile::new(&[]).path).unwrap(), Serves::Chats);
        let bare = TinyFile::with(&[], |metadata| metadata.retain(|(key, _)| key != "tokenizer.chat_template"));
        let error = serves(&bare.path).unwrap_err().to_string();
        assert!(error.contains("no chat template"), "{error}");
        assert_eq!(inspect(&bare.path).unwrap().refusal, None, "it can be computed all the same");
    }

    #[test]
    fn what_would_fail_at_the_first_request_is_said() {
        let set = |key: &str, value: Value| {
            let key = key.to_owned();
            TinyFile::with(&[], move |metadata| {
                metadata.retain(|(other, _)| *other != key);
                metadata.push((key, value));
            })
        };
        let text = |text: &str| Value::String(text.to_owned());
        for (file, why, is_seen_in_the_header) in [
            (set("tokenizer.ggml.eos_token_id", Value::U32(70_000)), "its `eos` token is number 70000", true),
            (set("tokenizer.ggml.bos_token_id", Value::U32(260)), "its `bos` token is number 260", true),
            (set("tokenizer.ggml.pre", text("made-up")), "the pre-tokenizer `made-up`", true),
            (set("tokenizer.ggml.merges", Value::Array(vec![text("a c")])), "its merges is not made of tokens", false),
            (set("tokenizer.chat_template", text("{% if %}")), "a chat template of this kind (syntax error", true),
            (set("tokenizer.chat_template", text("{{ none() }}")), "fails on a short conversation", false),
            (set("tokenizer.chat_template", text("{{ 'x' * 99999999 }}")), "does not end within the work", false),
        ] {
            let found = inspect(&file.path).unwrap().refusal.unwrap();
            assert!(found.contains(why), "{found}");
            let checked = serves(&file.path);
            assert_eq!(checked.is_err(), is_seen_in_the_header, "{why}: {checked:?}");
            let loaded = Engine::load(&EngineOptions::new(file.path.clone(), "tiny"), &mut |_| {});
            assert!(loaded.err().unwrap().to_string().contains(why), "{why}");
        }
    }

    #[test]
    fn a_file_tells_what_it_is_and_a_cut_one_why_it_cannot_be_run() {
        let file = TinyFile::new(&[]);
        let found = inspect(&file.path).unwrap();
        assert_eq!((found.architecture.as_str(), found.numbers["block_count"]), ("llama", 2));
        assert_eq!((found.has_chat_template, &found.refusal), (true, &None));
        assert_eq!(found.types["Q4_1"], 14);
        let bytes = std::fs::read(&file.path).unwrap();
        std::fs::write(&file.path, &bytes[..bytes.len() - 400]).unwrap();
        let cut = inspect(&file.path).unwrap();
        assert!(cut.refusal.unwrap().contains("cut short"));
    }
}
