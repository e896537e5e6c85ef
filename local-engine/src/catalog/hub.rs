//! Models of Hugging Face's hub, by `hf:OWNER/REPOSITORY` (a folder with safetensors) or `hf:OWNER/REPOSITORY/FILE.gguf`.

use std::path::{Path, PathBuf};

/// Bytes of such a name at most.
const NAME_BYTES_MAX: usize = 400;

/// A model of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `OWNER/REPOSITORY`.
    pub repository: String,
    /// A GGUF file in it, perhaps in a folder; `None`: all that a safetensors model is made of.
    pub file: Option<String>,
}

impl HubModel {
    /// The model of a name that begins with `hf:`; `None` if it is no such name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let path = name.strip_prefix("hf:").filter(|path| path.len() <= NAME_BYTES_MAX)?;
        let parts: Vec<&str> = path.split('/').collect();
        let is_plain = |part: &&str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        if !parts.iter().all(is_plain) {
            return None;
        }
        let (owner, rest) = parts.split_first()?;
        let (repository, file) = rest.split_first()?;
        let file = Some(file.join("/")).filter(|file| !file.is_empty());
        if file.as_ref().is_some_and(|file| !file.ends_with(".gguf")) {
            return None;
        }
        Some(Self { repository: format!("{owner}/{repository}"), file })
    }

    /// Where it is kept, in a cache of models: a file or a folder.
    #[must_use]
    pub fn path_in(&self, cache: &Path) -> PathBuf {
        let folder = cache.join("hf").join(self.repository.replace('/', "--"));
        match &self.file {
            Some(file) => folder.join(file.replace('/', "--")),
            None => folder.join("model"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_lead_nowhere_else() {
        let parse = HubModel::parse;
        let whole = parse("hf:Qwen/Qwen3-0.6B").unwrap();
        assert_eq!((whole.repository.as_str(), &whole.file), ("Qwen/Qwen3-0.6B", &None));
        let one = parse("hf:unsloth/Qwen3-0.6B-GGUF/sub/Qwen3-0.6B-Q4_K_M.gguf").unwrap();
        assert_eq!(one.file.as_deref(), Some("sub/Qwen3-0.6B-Q4_K_M.gguf"));
        let cache = Path::new("/c");
        assert_eq!(one.path_in(cache), Path::new("/c/hf/unsloth--Qwen3-0.6B-GGUF/sub--Qwen3-0.6B-Q4_K_M.gguf"));
        for wrong in ["hf:", "hf:a", "hf:../x", "hf:a/../b.gguf", "hf:a/b/c.bin", "hf:a//b", "hf:a/b?x", "a/b"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
