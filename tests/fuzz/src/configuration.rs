//! What an operator writes, and the model file that somebody made.

use std::path::Path;

use anyhow::Result;
use postern::config;

use crate::texts::as_text;

pub(crate) fn config(bytes: &[u8]) -> bool {
    let Some(text) = as_text(bytes) else { return false };
    match config::parse(text, Path::new("/etc/postern/postern.yaml")) {
        Ok(config) => {
            assert!(config.gateway_id().parse::<postern_certs::SpiffeId>().is_ok(), "a gateway without a name");
            assert!(config.identities.iter().all(|rule| rule.floor <= rule.ceiling), "a rule that nobody can keep");
            assert!(config.model_names(false).iter().all(|name| config.knows_model(name)));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

pub(crate) fn seeds() -> Result<Vec<Vec<u8>>> {
    let files = [
        include_str!("../../../deploy/config/postern.yaml"),
        include_str!("../../../deploy/config/minimal.yaml"),
        include_str!("../../../deploy/config/offline.yaml"),
        include_str!("../../../deploy/config/development.yaml"),
        "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nlabels: [*b, *b, *b]\n",
    ];
    Ok(files.map(|text| text.as_bytes().to_vec()).into())
}

pub(crate) fn gguf(bytes: &[u8]) -> bool {
    postern_engine::check_header(bytes, bytes.len() as u64).is_ok()
}

/// Headers as the GGUF specification has them: version 3, little endian.
pub(crate) fn gguf_seeds() -> Result<Vec<Vec<u8>>> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let head = |tensors: u64, entries: u64| {
        [b"GGUF", &3_u32.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    };
    let (texts, numbers) = (9_u32.to_le_bytes(), 4_u32.to_le_bytes());
    let entry = [text("general.alignment"), numbers.to_vec(), 32_u32.to_le_bytes().to_vec()].concat();
    let tokens = [text("tokens"), texts.to_vec(), 8_u32.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec()].concat();
    let tokens = [tokens, text("one"), text("two")].concat();
    let shape = [2_u32.to_le_bytes().to_vec(), 64_u64.to_le_bytes().to_vec(), 64_u64.to_le_bytes().to_vec()].concat();
    let tensor = [text("token_embd.weight"), shape, 3_u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    Ok(vec![head(0, 0), [head(1, 2), entry, tokens, tensor].concat()])
}
