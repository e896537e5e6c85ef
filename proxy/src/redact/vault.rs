//! The values behind the placeholders of one request. Lives as long as the request, and is wiped with it.
//!
//! A placeholder looks like `[EMAIL_17_k3f9q2ab]`: kind, number, suffix. What a model sees is a keyed hash of the value within its
//! conversation: so a value keeps its placeholder when a client leaves out old messages, one that stands in an old message
//! never means somebody else, and nobody can guess one. What the cache holds is numbered by first appearance, since two
//! requests that differ in nothing but the values are one to it.

use std::borrow::Cow;
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

/// Numbers of what a model sees. They only help to tell placeholders apart; the suffix makes the difference.
const NUMBERS: u32 = 99;

/// Which form a placeholder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suffix {
    /// What a model sees: different in every conversation.
    Wire,
    /// What the cache holds: the same for all conversations of a tenant, and never shown to anybody.
    Cache,
}

/// Placeholder ↔ value.
pub struct Vault {
    /// For what a model sees: of this tenant and conversation.
    keys: Keys,
    /// The suffix of everything that the cache holds of this tenant.
    cache: String,
    entries: Vec<Entry>,
    by_value: HashMap<Value, usize>,
    by_wire: HashMap<String, usize>,
    by_cache: HashMap<String, usize>,
    numbers: HashMap<String, u32>,
}

/// One value, and what stands for it.
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    wire: String,
    cache: String,
    value: Value,
    /// It was cut out of so many strings of JSON, one inside the other, with their escapes.
    depth: u8,
}

impl Entry {
    /// The value.
    pub(super) fn value(&self) -> &str {
        &self.value.0
    }

    /// The value as it stands in so many strings of JSON, one inside the other.
    pub(super) fn in_json(&self, depth: u8) -> Cow<'_, str> {
        let value = Cow::from(self.value());
        let (more, fewer) = (depth.saturating_sub(self.depth), self.depth.saturating_sub(depth));
        let value = (0..more).fold(value, |value, _| Cow::Owned(escaped(&value).into_owned()));
        (0..fewer).fold(value, |value, _| match meant(&value) {
            Some(meant) => Cow::Owned(meant),
            None => value,
        })
    }

    /// What stands for it.
    pub(super) fn placeholder(&self, suffix: Suffix) -> &str {
        match suffix {
            Suffix::Wire => &self.wire,
            Suffix::Cache => &self.cache,
        }
    }
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
        Self {
            keys: keys.derive("placeholder:wire", &[tenant.as_bytes(), &conversation.0]),
            cache: suffix(&keys.hash("placeholder:cache", &[tenant.as_bytes()])),
            entries: Vec::new(),
            by_value: HashMap::new(),
            by_wire: HashMap::new(),
            by_cache: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// Keeps `value`; one that is kept already keeps its placeholders.
    pub fn keep(&mut self, kind: &str, value: &str) {
        self.keep_as(kind, value, 0);
    }

    /// Keeps a value that was cut out of so many strings of JSON, one inside the other, as it was written there.
    pub fn keep_as(&mut self, kind: &str, value: &str, depth: u8) {
        // What is not written as such a string would be, is no part of one.
        let is_part = (0..depth).try_fold(value.to_owned(), |value, _| meant(&value)).is_some();
        let depth = if is_part { depth } else { 0 };
        if self.by_value.contains_key(value) {
            return;
        }
        let kind: String = kind.chars().filter(char::is_ascii_alphabetic).take(KIND_LEN).collect();
        let kind = if kind.is_empty() { "DATA".to_owned() } else { kind.to_ascii_uppercase() };
        let wire = self.wire(&kind, value);
        let number = self.numbers.entry(kind.clone()).and_modify(|number| *number += 1).or_insert(1);
        let cache = format!("[{kind}_{number}_{}]", self.cache);
        let (index, value) = (self.entries.len(), Value(value.to_owned()));
        self.by_value.insert(value.clone(), index);
        self.by_wire.insert(wire.clone(), index);
        self.by_cache.insert(cache.clone(), index);
        self.entries.push(Entry { wire, cache, value, depth });
    }

    /// By the value alone, unless another value of this request has the same hash: then by the next one.
    fn wire(&self, kind: &str, value: &str) -> String {
        let mut tried = 0_u64;
        loop {
            let hash = self.keys.hash("value", &[kind.as_bytes(), value.as_bytes(), &tried.to_le_bytes()]);
            let [.., a, b, c, d] = hash;
            let number = u32::from_le_bytes([a, b, c, d]) % NUMBERS + 1;
            let placeholder = format!("[{kind}_{number}_{}]", suffix(&hash));
            if !self.by_wire.contains_key(&placeholder) {
                return placeholder;
            }
            tried += 1;
        }
    }

    /// What stands for `value`, which was kept.
    #[must_use]
    pub fn placeholder(&self, kind: &str, value: &str, form: Suffix) -> String {
        let entry = self.by_value.get(value).and_then(|index| self.entries.get(*index));
        match entry {
            Some(entry) => entry.placeholder(form).to_owned(),
            // Not kept: cannot happen, and must not leak if it does.
            None => format!("[{}_0_{}]", kind.to_ascii_uppercase(), suffix(&self.keys.hash("unknown", &[]))),
        }
    }

    /// What is behind a placeholder of this form.
    pub(super) fn look_up(&self, placeholder: &str, form: Suffix) -> Option<&Entry> {
        let index = match form {
            Suffix::Wire => self.by_wire.get(placeholder),
            Suffix::Cache => self.by_cache.get(placeholder),
        };
        self.entries.get(*index?)
    }

    /// Is it what stands for a value of this request in the cache? What a client writes is not.
    #[must_use]
    pub fn is_in_cache(&self, placeholder: &str) -> bool {
        self.look_up(placeholder, Suffix::Cache).is_some()
    }

    /// The kinds of its values, in upper case.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &str> {
        self.numbers.keys().map(String::as_str)
    }

    /// True if nothing was masked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What a part of a string of JSON says; `None`: it is none.
fn meant(written: &str) -> Option<String> {
    if !written.contains(|c: char| c < ' ' || matches!(c, '"' | '\\')) {
        return Some(written.to_owned());
    }
    serde_json::from_str(&format!("\"{written}\"")).ok()
}

/// A text as it stands in a string of JSON. Source: RFC 8259, 7.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| c < ' ' || matches!(c, '"' | '\\')) {
        return text.into();
    }
    let quoted = serde_json::Value::from(text).to_string();
    quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default().to_owned().into()
}

fn suffix(hash: &[u8; 32]) -> String {
    let mut text = data_encoding::BASE32_NOPAD.encode(hash);
    text.truncate(SUFFIX_LEN);
    text.make_ascii_lowercase();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(keys: &Keys, conversation: u8, values: &[(&str, &str)]) -> Vault {
        let mut vault = Vault::new(keys, "t", Conversation([conversation; 32]));
        for (kind, value) in values {
            vault.keep(kind, value);
        }
        vault
    }

    #[test]
    fn a_value_has_one_placeholder_in_a_conversation_and_another_in_the_next() {
        let keys = Keys::random();
        let all = [("email", "a@b.c"), ("id-card", "11"), ("email", "d@e.f"), ("email", "a@b.c"), ("", "x")];
        let first = vault(&keys, 1, &all);
        let wire = |vault: &Vault, value| vault.placeholder("email", value, Suffix::Wire);
        assert!(wire(&first, "a@b.c").starts_with("[EMAIL_") && wire(&first, "11").starts_with("[IDCARD_"));
        assert!(wire(&first, "x").starts_with("[DATA_") && wire(&first, "a@b.c") != wire(&first, "d@e.f"));
        let found = first.look_up(&wire(&first, "d@e.f"), Suffix::Wire).unwrap();
        assert_eq!((found.value(), found.placeholder(Suffix::Wire)), ("d@e.f", wire(&first, "d@e.f").as_str()));
        assert!(first.look_up(&wire(&first, "d@e.f"), Suffix::Cache).is_none());

        // The client has left out what came before: what stands in old answers means the same, or nothing.
        let later = vault(&keys, 1, &[("email", "d@e.f"), ("email", "new@e.f")]);
        assert_eq!(wire(&later, "d@e.f"), wire(&first, "d@e.f"));
        assert!(later.look_up(&wire(&first, "a@b.c"), Suffix::Wire).is_none());
        assert_ne!(wire(&vault(&keys, 2, &all), "a@b.c"), wire(&first, "a@b.c"));
    }

    #[test]
    fn the_cache_numbers_by_first_appearance_whatever_the_values_are() {
        let keys = Keys::random();
        let one = vault(&keys, 1, &[("email", "a@b.c"), ("email", "d@e.f"), ("phone", "1")]);
        let other = vault(&keys, 2, &[("email", "x@y.z"), ("email", "u@v.w"), ("phone", "2")]);
        for (a, b, stem) in [("a@b.c", "x@y.z", "[EMAIL_1_"), ("d@e.f", "u@v.w", "[EMAIL_2_"), ("1", "2", "[PHONE_1_")]
        {
            let cached = one.placeholder("email", a, Suffix::Cache);
            assert_eq!(cached, other.placeholder("email", b, Suffix::Cache));
            assert!(cached.starts_with(stem));
            assert_eq!(other.look_up(&cached, Suffix::Cache).unwrap().value(), b);
            assert!(other.look_up(&cached, Suffix::Wire).is_none());
        }
    }

    #[test]
    fn debug_output_holds_no_value() {
        let mut vault = Vault::new(&Keys::random(), "t", Conversation([0; 32]));
        vault.keep("email", "a@b.c");
        assert!(!format!("{vault:?}").contains("a@b.c"));
    }
}
