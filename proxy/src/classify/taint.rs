//! Labels that stick. A long text that was once marked stays marked for its tenant, wherever it is sent again; a short
//! one marks its conversation only, since “yes” would otherwise taint everybody.
//!
//! Only keyed hashes are kept. Bounded: when full, the entry that was not seen for longest is forgotten.

use std::time::Duration;

use moka::Entry;
use moka::sync::Cache;
use serde_json::Value;

use super::Conversation;
use super::label::Label;
use crate::keys::Keys;
use crate::request::ParsedRequest;

/// Characters from which a text is remembered by itself.
const LONG_TEXT: usize = 80;
/// Texts, and conversations, that are remembered.
const CAPACITY: u64 = 200_000;
/// How long after it was last seen.
const REMEMBERED_FOR: Duration = Duration::from_secs(7 * 86_400);

#[derive(Debug)]
pub(super) struct Taint {
    texts: Cache<[u8; 32], Label>,
    conversations: Cache<Conversation, Label>,
}

impl Default for Taint {
    fn default() -> Self {
        Self {
            texts: Cache::builder().max_capacity(CAPACITY).time_to_idle(REMEMBERED_FOR).build(),
            conversations: Cache::builder().max_capacity(CAPACITY).time_to_idle(REMEMBERED_FOR).build(),
        }
    }
}

impl Taint {
    pub(super) fn of_texts(&self, texts: &[[u8; 32]]) -> Option<Label> {
        texts.iter().filter_map(|text| self.texts.get(text)).max()
    }

    pub(super) fn of_conversation(&self, conversation: Conversation) -> Option<Label> {
        self.conversations.get(&conversation)
    }

    pub(super) fn remember(&self, texts: &[[u8; 32]], conversation: Conversation, label: Label) {
        for text in texts {
            let raise =
                |before: Option<Entry<_, Label>>| before.map_or(label, |before| before.into_value().join(label));
            self.texts.entry(*text).and_upsert_with(raise);
        }
        // At once, not read and then written: of two labels at the same time the higher one stays.
        let raise = |before: Option<Entry<_, Label>>| before.map_or(label, |before| before.into_value().join(label));
        self.conversations.entry(conversation).and_upsert_with(raise);
    }
}

/// Keyed hashes of what users wrote, if it is long enough to be recognised again.
pub(super) fn long_user_texts(keys: &Keys, tenant: &str, request: &ParsedRequest) -> Vec<[u8; 32]> {
    let messages = request.chat.body().get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut hashes = Vec::new();
    for message in messages.iter().filter(|message| message.get("role").and_then(Value::as_str) == Some("user")) {
        let mut note = |text: &str| {
            if text.chars().nth(LONG_TEXT - 1).is_some() {
                hashes.push(keys.hash("taint", &[tenant.as_bytes(), text.trim().as_bytes()]));
            }
        };
        match message.get("content") {
            Some(Value::String(text)) => note(text),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).for_each(note);
            }
            _ => {}
        }
    }
    hashes
}
