//! `cache.semantic`: as it is written, and as it is meant.

use std::time::Duration;

use postern_engine::catalog;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::units::{Size, Span};

/// Below it, texts are not even about the same.
const MIN_THRESHOLD: f64 = 0.5;
/// A hit is to be quicker than an answer.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Answers to questions that were asked in other words.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SemanticPart {
    /// The model that makes vectors of questions, in an engine process of its own: a name of `postern model list`, or a folder.
    #[schemars(with = "String")]
    pub model: Spanned<String>,
    /// How near two vectors have to be, from 0.5 to 1 (the cosine of the angle between them).
    #[serde(default = "default_threshold")]
    #[schemars(with = "f64")]
    pub threshold: Spanned<f64>,
    /// How long a request waits for its vector; after that, a target is asked.
    #[serde(default = "default_wait")]
    #[schemars(with = "Span")]
    pub wait: Spanned<Span>,
    /// Bytes of all vectors; beside those of `cache.memory`.
    #[serde(default = "default_memory")]
    pub memory: Size,
}

/// Answers to questions that were asked in other words.
#[derive(Debug, Clone, PartialEq)]
pub struct Semantic {
    /// Name in the catalogue, or a folder.
    pub model: String,
    /// The least cosine.
    pub threshold: f32,
    /// For a vector.
    pub wait: Duration,
    /// Bytes of all vectors.
    pub memory: u64,
}

impl SemanticPart {
    /// `model` is the model with its path, if it has one.
    pub(super) fn resolve(&self, model: String) -> Result<Semantic, (Location, String)> {
        if !catalog::names_a_model(&model) {
            let what = format!(
                "`cache.semantic.model: {model}` is neither a name of `postern model list`, nor `hf:OWNER/REPOSITORY`, nor a folder"
            );
            return Err((self.model.referenced, what));
        }
        if !(MIN_THRESHOLD..=1.0).contains(&self.threshold.value) {
            return Err((self.threshold.referenced, "`threshold` must be between 0.5 and 1".to_owned()));
        }
        if self.wait.value.0.is_zero() || self.wait.value.0 > MAX_WAIT {
            return Err((self.wait.referenced, "`wait` must be between 1ms and 10s".to_owned()));
        }
        let threshold = self.threshold.value as f32;
        Ok(Semantic { model, threshold, wait: self.wait.value.0, memory: self.memory.0 })
    }
}

fn default_threshold() -> Spanned<f64> {
    super::file::unplaced(0.95)
}

fn default_wait() -> Spanned<Span> {
    super::file::unplaced(Span(Duration::from_millis(50)))
}

fn default_memory() -> Size {
    Size(32 << 20)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn read(semantic: &str) -> Result<Option<Semantic>, String> {
        let text = format!(
            "{{listen: '127.0.0.1:0', admin: '127.0.0.1:0', state_dir: s, trust: {{domain: b.example}}, identities: [{{match: 'spiffe://b.example/*'}}], cache: {{memory: 1MiB{semantic}}}}}"
        );
        config::parse(&text, Path::new("/etc/postern/postern.yaml"))
            .map(|config| config.semantic)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_off_unless_a_model_is_named() {
        assert_eq!(read(""), Ok(None));
        let known = read(", semantic: {model: all-minilm-l6-v2}").unwrap().unwrap();
        let wait = Duration::from_millis(50);
        assert_eq!(known, Semantic { model: "all-minilm-l6-v2".into(), threshold: 0.95, wait, memory: 32 << 20 });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let path = folder.path().display().to_string();
        let own = format!(", semantic: {{model: '{path}', threshold: 0.9, wait: 1s, memory: 1MiB}}");
        let own = read(&own).unwrap().unwrap();
        assert_eq!((own.model, own.threshold, own.memory), (path, 0.9, 1 << 20));
    }

    #[test]
    fn what_cannot_work_is_refused_at_its_place() {
        for (wrong, words) in [
            ("model: gpt-4", "neither a name of `postern model list`"),
            ("model: all-minilm-l6-v2, threshold: 0.2", "between 0.5 and 1"),
            ("model: all-minilm-l6-v2, threshold: .nan", "between 0.5 and 1"),
            ("model: all-minilm-l6-v2, wait: 11s", "between 1ms and 10s"),
            ("threshold: 0.9", "model"),
        ] {
            let said = read(&format!(", semantic: {{{wrong}}}")).unwrap_err();
            assert!(said.contains(words) && said.starts_with("/etc/postern/postern.yaml:"), "{said}");
        }
    }
}
