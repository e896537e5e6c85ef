//! `tokenizer.json`, as Hugging Face's tokenizers writes it.

use std::str::FromStr;

use serde_json::Value as Json;

use super::cuts::Cuts;
use super::{Alphabet, KIND_CONTROL, KIND_FIXED, Vocabulary, Words};
use crate::error::EngineError;
use crate::weights::WeightFile;

/// Tokens at most.
const TOKENS_MAX: usize = 1 << 21;
/// A token made of pieces of text.
const KIND_NORMAL: i32 = 1;
/// A token that stands for one byte.
const KIND_BYTE: i32 = 6;

/// The tokens of the file, and the program that finds them. Added tokens are taken out of that program: this process
/// looks for them itself, so that a message's text cannot become one that controls the conversation.
pub(super) fn vocabulary(file: &WeightFile, mut json: Json) -> Result<Vocabulary, EngineError> {
    let added = json.get_mut("added_tokens").map(Json::take);
    let added = added.as_ref().and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let mut entries: Vec<(usize, String, i32)> = Vec::new();
    let alphabet = if decodes_bytes(json.get("decoder")) { Alphabet::ByteLevel } else { Alphabet::SentencePiece };
    let pieces = json.pointer("/model/vocab").and_then(Json::as_object);
    for (text, id) in pieces.into_iter().flatten() {
        let is_byte = alphabet == Alphabet::SentencePiece && text.starts_with("<0x") && text.len() == 6;
        entries.push((id_of(id), text.clone(), if is_byte { KIND_BYTE } else { KIND_NORMAL }));
    }
    for token in added {
        let is_special = token.get("special").and_then(Json::as_bool) == Some(true);
        let text = token.get("content").and_then(Json::as_str).unwrap_or_default();
        let id = token.get("id").map_or(usize::MAX, id_of);
        entries.push((id, text.to_owned(), if is_special { KIND_CONTROL } else { KIND_FIXED }));
    }
    let tokens = entries.iter().map(|(id, ..)| id.saturating_add(1)).max().unwrap_or(0);
    if !(1..=TOKENS_MAX).contains(&tokens) {
        return Err(file.damaged("tokenizer.json has no tokens, or impossible ids"));
    }
    let (mut texts, mut kinds) = (vec![String::new(); tokens], vec![KIND_NORMAL; tokens]);
    for (id, text, kind) in entries {
        if let (Some(place), Some(of)) = (texts.get_mut(id), kinds.get_mut(id)) {
            (*place, *of) = (text, kind);
        }
    }
    if let Some(program) = json.as_object_mut() {
        program.insert("added_tokens".to_owned(), Json::Array(Vec::new()));
        // It would put begin and end tokens around every piece of text.
        program.insert("post_processor".to_owned(), Json::Null);
        program.insert("truncation".to_owned(), Json::Null);
        program.insert("padding".to_owned(), Json::Null);
    }
    let cuts = Cuts::of_program(&json);
    let program = tokenizers::Tokenizer::from_str(&json.to_string());
    let mut program =
        program.map_err(|error| file.damaged(&format!("its tokenizer.json does not fit together: {error}")))?;
    // No cache of words: it would keep parts of prompts.
    let mut model = program.get_model().clone();
    model.resize_cache(0);
    program.with_model(model);
    Ok(Vocabulary { words: Words::Crate(Box::new(program), cuts), texts, kinds, alphabet })
}

fn id_of(id: &Json) -> usize {
    id.as_u64().and_then(|id| usize::try_from(id).ok()).unwrap_or(usize::MAX)
}

/// True if tokens show bytes as GPT-2 does.
fn decodes_bytes(decoder: Option<&Json>) -> bool {
    let Some(decoder) = decoder else { return false };
    let kind = decoder.get("type").and_then(Json::as_str);
    let parts = decoder.get("decoders").and_then(Json::as_array);
    kind == Some("ByteLevel") || parts.is_some_and(|parts| parts.iter().any(|part| decodes_bytes(Some(part))))
}
