//! The values behind the placeholders of one request. Lives as long as the request, and is wiped with it.
//!
//! A placeholder looks like `[EMAIL_1_k3f9q2ab]`: kind, number by first appearance, and a suffix keyed by tenant and
//! conversation, so that nobody can guess one or make one collide, and a model can still tell two people apart.

use std::collections::HashMap;

use zeroize::Zeroize;

use crate::classify::Conversation;
use crate::keys::Keys;

/// Characters of a suffix: 40 bits.
pub(super) const SUFFIX_LEN: usize = 8;
/// Characters of a kind, at most.
pub(super) const KIND_LEN: usize = 16;
/// Digits of a number, at most.
pub(super) const NUMBER_LEN: usize = 6;

/// Which suffix a placeholder ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suffix {
    /// What a model sees: different in every conversation.
    Wire,
    /// What the cache holds: the same for all conversations of a tenant, and never shown to anybody.
    Cache,
}

/// Placeholder ↔ value.
pub struct Vault {
    wire: String,
    cache: String,
    entries: Vec<Entry>,
    by_value: HashMap<Value, usize>,
    by_stem: HashMap<String, usize>,
    numbers: HashMap<String, u32>,
}

struct Entry {
    /// `EMAIL_1_`
    stem: String,
    value: Value,
}

/// Wiped when it is dropped.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Value(String);

impl std::borrow::Borrow<str> for Value {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Vault({} values)", self.entries.len())
    }
}

impl Vault {
    /// An empty vault of one conversation.
    #[must_use]
    pub fn new(keys: &Keys, tenant: &str, conversation: Conversation) -> Self {
        let suffix = |purpose, parts: &[&[u8]]| {
            let hash = keys.hash(purpose, parts);
            let text = data_encoding::BASE32_NOPAD.encode(&hash);
            text.chars().take(SUFFIX_LEN).collect::<String>().to_ascii_lowercase()
        };
        Self {
            wire: suffix("placeholder:wire", &[tenant.as_bytes(), &conversation.0]),
            cache: suffix("placeholder:cache", &[tenant.as_bytes()]),
            entries: Vec::new(),
            by_value: HashMap::new(),
            by_stem: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// Keeps `value`; one that is kept already keeps its number.
    pub fn keep(&mut self, kind: &str, value: &str) {
        if self.by_value.contains_key(value) {
            return;
        }
        let value = Value(value.to_owned());
        let kind: String = kind.chars().filter(char::is_ascii_alphabetic).take(KIND_LEN).collect();
        let kind = if kind.is_empty() { "DATA".to_owned() } else { kind.to_ascii_uppercase() };
        let number = self.numbers.entry(kind.clone()).and_modify(|number| *number += 1).or_insert(1);
        let stem = format!("{kind}_{number}_");
        let index = self.entries.len();
        self.by_value.insert(value.clone(), index);
        self.by_stem.insert(stem.clone(), index);
        self.entries.push(Entry { stem, value });
    }

    /// What stands for `value`, which was kept.
    #[must_use]
    pub fn placeholder(&self, kind: &str, value: &str, suffix: Suffix) -> String {
        let entry = self.by_value.get(value).and_then(|index| self.entries.get(*index));
        match entry {
            Some(entry) => format!("[{}{}]", entry.stem, self.suffix(suffix)),
            // Not kept: cannot happen, and must not leak if it does.
            None => format!("[{}_0_{}]", kind.to_ascii_uppercase(), self.suffix(suffix)),
        }
    }

    /// The value behind a placeholder, and its form in the cache. `text` is `[STEM_SUFFIX]`.
    pub(super) fn look_up(&self, text: &str, suffix: Suffix) -> Option<(&str, String)> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        let stem = inner.strip_suffix(self.suffix(suffix))?;
        let entry = self.entries.get(*self.by_stem.get(stem)?)?;
        Some((entry.value.0.as_str(), format!("[{stem}{}]", self.cache)))
    }

    /// True if nothing was masked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn suffix(&self, suffix: Suffix) -> &str {
        match suffix {
            Suffix::Wire => &self.wire,
            Suffix::Cache => &self.cache,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_numbered_by_kind_and_keyed_by_conversation() {
        let keys = Keys::random();
        let mut vault = Vault::new(&keys, "t", Conversation([1; 32]));
        for (kind, value) in [("email", "a@b.c"), ("id-card", "11"), ("email", "d@e.f"), ("email", "a@b.c"), ("", "x")]
        {
            vault.keep(kind, value);
        }
        let wire = |value| vault.placeholder("email", value, Suffix::Wire);
        assert!(wire("a@b.c").starts_with("[EMAIL_1_") && wire("d@e.f").starts_with("[EMAIL_2_"));
        assert!(wire("11").starts_with("[IDCARD_1_") && wire("x").starts_with("[DATA_1_"));
        assert_eq!(vault.look_up(&wire("d@e.f"), Suffix::Wire).unwrap().0, "d@e.f");
        assert_eq!(vault.look_up(&wire("d@e.f"), Suffix::Cache), None);
        let mut other = Vault::new(&keys, "t", Conversation([2; 32]));
        other.keep("email", "a@b.c");
        assert_ne!(wire("a@b.c"), other.placeholder("email", "a@b.c", Suffix::Wire));
        let cached = vault.placeholder("email", "a@b.c", Suffix::Cache);
        assert_eq!(cached, other.placeholder("email", "a@b.c", Suffix::Cache));
        assert_eq!(other.look_up(&cached, Suffix::Cache).unwrap().0, "a@b.c");
    }

    #[test]
    fn debug_output_holds_no_value() {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "a@b.c");
        assert!(!format!("{vault:?}").contains("a@b.c"));
    }
}
