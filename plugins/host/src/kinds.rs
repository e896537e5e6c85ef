//! The kinds that a policy's finds may have.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::answer::MAX_KIND_BYTES;
use crate::detectors::Kind;
use crate::error::PluginError;

/// Kinds that the configuration of a policy may name.
pub const MAX_KINDS: usize = 64;

/// The kind of everything else.
pub(crate) const OTHER: &str = "data";

/// Those of the recognisers, and those that the operator wrote down: the elements of `kinds`, the keys of `words`.
pub(crate) fn allowed(config: &Value) -> Result<BTreeSet<String>, PluginError> {
    let listed = config.get("kinds").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let keys = config.get("words").and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key.as_str());
    let declared: BTreeSet<&str> = listed.chain(keys).filter(|kind| is_kind(kind)).collect();
    if declared.len() > MAX_KINDS {
        let count = declared.len();
        return Err(PluginError::Limits(format!(
            "`kinds` and `words` name {count} kinds, and {MAX_KINDS} is the most"
        )));
    }
    Ok(Kind::ALL.iter().map(|kind| kind.name()).chain(declared).map(str::to_owned).collect())
}

pub(crate) fn is_kind(kind: &str) -> bool {
    kind.len() <= MAX_KIND_BYTES
        && kind.starts_with(|c: char| c.is_ascii_lowercase())
        && kind.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_operator_names_kinds() {
        let config =
            json!({"kinds": ["email", "ticket", "No Kind", 7], "words": {"project": ["x"]}, "other": {"not": 1}});
        let kinds = allowed(&config).unwrap();
        assert!(
            ["email", "phone", "id-card", "bank-card", "secret", "ticket", "project"]
                .iter()
                .all(|kind| kinds.contains(*kind))
        );
        assert_eq!(kinds.len(), Kind::ALL.len() + 2);
        assert_eq!(allowed(&Value::Null).unwrap().len(), Kind::ALL.len());
    }

    /// The policy is a guest, so it has a list of its own.
    #[test]
    fn the_redaction_policy_knows_every_kind() {
        for (file, of) in [
            (include_str!("../../redaction/manifest.yaml"), "{}"),
            (include_str!("../../redaction/src/lib.rs"), "\"{}\""),
            (include_str!("../../wit/imports.wit"), "`{}`"),
        ] {
            for kind in Kind::ALL {
                assert!(file.contains(&of.replace("{}", kind.name())), "{}", kind.name());
                assert!(is_kind(kind.name()));
            }
        }
    }

    #[test]
    fn not_without_end() {
        let named = |count: usize| json!({"kinds": (0..count).map(|i| format!("k{i}")).collect::<Vec<_>>()});
        assert!(allowed(&named(MAX_KINDS)).is_ok());
        assert!(matches!(allowed(&named(MAX_KINDS + 1)), Err(PluginError::Limits(_))));
    }
}
