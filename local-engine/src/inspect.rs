//! What a model's files say of themselves.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use crate::error::EngineError;
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

/// Reads the headers of a model's files, and whether their tensors are all there. Reads no weights.
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
        refusal: crate::model::check(&file).err().map(|error| error.to_string()),
        architecture,
    })
}

/// What an engine does with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// It answers chats.
    Chats,
    /// It makes vectors of texts.
    Vectors,
}

/// What the engine would do with the model of a file or folder. Reads its header.
///
/// # Errors
/// Why it can do nothing, in words; or the file cannot be read.
pub fn serves(path: &Path) -> Result<Serves, EngineError> {
    let file = WeightFile::open(path, &Device::Cpu)?;
    crate::model::check(&file)?;
    if file.header().text("general.architecture") == Some("bert") {
        return Ok(Serves::Vectors);
    }
    if file.chat_template().is_none() {
        let what = format!("the model in {} has no chat template, so it answers no chats", path.display());
        return Err(EngineError::Options(what));
    }
    Ok(Serves::Chats)
}

#[cfg(test)]
mod tests {
    use super::*;
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
