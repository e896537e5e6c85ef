//! Labels that stick. A long text that was once marked stays marked for its tenant, wherever it is sent again; a short
//! one marks its conversation only, since “yes” would otherwise taint everybody.
//!
//! A conversation is known by its beginning, and clients change that: they leave out old messages, or give the model another
//! system prompt. So it is also known by its links, which are two turns that follow each other. One that had a single turn so
//! far has none; with another beginning it is another conversation, unless its text is long.
//!
//! Only keyed hashes are kept. Bounded: when full, the entry that was not seen for longest is forgotten.

use std::hash::Hash;
use std::time::Duration;

use moka::Entry;
use moka::sync::Cache;
use postern_wire::json;
use serde_json::Value;

use super::Conversation;
use super::label::Label;
use crate::keys::Keys;
use crate::request::ParsedRequest;

/// Characters from which a text is remembered by itself.
const LONG_TEXT: usize = 80;
/// The last links of a request that are looked at: the next request still has them, and a long one cannot push out what is known
/// of others.
const LINKS: usize = 64;
/// Texts, conversations and links, of each, that are remembered.
const CAPACITY: u64 = 200_000;
/// How long after it was last seen.
const REMEMBERED_FOR: Duration = Duration::from_secs(7 * 86_400);

#[derive(Debug)]
pub(super) struct Taint {
    texts: Cache<[u8; 32], Label>,
    conversations: Cache<Conversation, Label>,
    links: Cache<[u8; 32], Label>,
}

/// What a request is known by, as keyed hashes.
#[derive(Debug)]
pub(super) struct Traces {
    /// Long texts of users.
    texts: Vec<[u8; 32]>,
    conversation: Conversation,
    links: Vec<[u8; 32]>,
}

impl Default for Taint {
    fn default() -> Self {
        Self {
            texts: Cache::builder().max_capacity(CAPACITY).time_to_idle(REMEMBERED_FOR).build(),
            conversations: Cache::builder().max_capacity(CAPACITY).time_to_idle(REMEMBERED_FOR).build(),
            links: Cache::builder().max_capacity(CAPACITY).time_to_idle(REMEMBERED_FOR).build(),
        }
    }
}

impl Taint {
    pub(super) fn of_texts(&self, traces: &Traces) -> Option<Label> {
        traces.texts.iter().filter_map(|text| self.texts.get(text)).max()
    }

    pub(super) fn of_conversation(&self, traces: &Traces) -> Option<Label> {
        let links = traces.links.iter().filter_map(|link| self.links.get(link));
        links.chain(self.conversations.get(&traces.conversation)).max()
    }

    /// Remembers `label` for the texts and for the conversation.
    pub(super) fn remember(&self, traces: &Traces, label: Label) {
        traces.texts.iter().for_each(|text| raise(&self.texts, *text, label));
        self.remember_conversation(traces, label);
    }

    /// Remembers `label` for the conversation only, by its links as they are now.
    pub(super) fn remember_conversation(&self, traces: &Traces, label: Label) {
        traces.links.iter().for_each(|link| raise(&self.links, *link, label));
        raise(&self.conversations, traces.conversation, label);
    }
}

/// At once, not read and then written: of two labels at the same time the higher one stays.
fn raise<K: Hash + Eq + Send + Sync + 'static>(cache: &Cache<K, Label>, key: K, label: Label) {
    let join = |before: Option<Entry<K, Label>>| before.map_or(label, |before| before.into_value().join(label));
    cache.entry(key).and_upsert_with(join);
}

/// What `request` is known by.
pub(super) fn traces(keys: &Keys, request: &ParsedRequest, conversation: Conversation) -> Traces {
    let tenant = &request.peer.tenant;
    Traces { texts: long_user_texts(keys, tenant, request), conversation, links: links(keys, request) }
}

/// Each two turns that follow each other, for this identity. Instructions are no turn: they are the same in many conversations.
fn links(keys: &Keys, request: &ParsedRequest) -> Vec<[u8; 32]> {
    let (tenant, identity) = (request.peer.tenant.as_bytes(), request.peer.id.to_string());
    let turn = |message: &&Value| !matches!(message.get("role").and_then(Value::as_str), Some("system" | "developer"));
    let messages = request.call.body().get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let turns: Vec<&Value> = messages.iter().rev().filter(turn).take(LINKS + 1).collect();
    if turns.len() < 2 {
        return Vec::new();
    }
    let turns: Vec<Vec<u8>> = turns.into_iter().rev().map(json::written).collect();
    let link = |(one, next): (&Vec<u8>, &Vec<u8>)| keys.hash("taint:link", &[tenant, identity.as_bytes(), one, next]);
    turns.iter().zip(turns.iter().skip(1)).map(link).collect()
}

/// Keyed hashes of what users wrote, if it is long enough to be recognised again.
fn long_user_texts(keys: &Keys, tenant: &str, request: &ParsedRequest) -> Vec<[u8; 32]> {
    let long = request.call.user_texts().into_iter().filter(|text| text.chars().nth(LONG_TEXT - 1).is_some());
    long.map(|text| keys.hash("taint", &[tenant.as_bytes(), text.trim().as_bytes()])).collect()
}

#[cfg(test)]
mod tests {
    use postern_wire::call::{Call, Endpoint};
    use serde_json::json;

    use super::*;
    use crate::classify::label::Labels;
    use crate::config::file::IdentityLimits;
    use crate::request::{Marks, Peer};

    fn labels() -> [Label; 3] {
        let labels = Labels::new(["low", "middle", "high"].map(str::to_owned).to_vec()).unwrap();
        ["low", "middle", "high"].map(|name| labels.by_name(name).unwrap())
    }

    fn request(id: &str, messages: &Value) -> ParsedRequest {
        let [floor, _, ceiling] = labels();
        let limits = IdentityLimits::default();
        let peer = Peer { id: id.parse().unwrap(), tenant: "t".into(), floor, ceiling, limits, tenant_limits: limits };
        let tree = json!({"model": "m", "messages": messages});
        let call = Call::from_json(Endpoint::Chat, tree, 5_000).unwrap();
        ParsedRequest { prompt_tokens: call.estimated_prompt_tokens(), peer, call, marks: Marks::default() }
    }

    #[test]
    fn of_two_labels_at_the_same_time_the_higher_one_stays() {
        let (taint, keys) = (Taint::default(), Keys::random());
        let [low, middle, high] = labels();
        let said = json!([{"role": "user", "content": "x".repeat(LONG_TEXT)}, {"role": "assistant", "content": "y"}]);
        let traces = traces(&keys, &request("spiffe://b.example/one", &said), Conversation([0; 32]));
        let barrier = std::sync::Barrier::new(2);
        for _ in 0..200 {
            std::thread::scope(|threads| {
                for label in [middle, high] {
                    let (taint, traces, barrier) = (&taint, &traces, &barrier);
                    threads.spawn(move || {
                        barrier.wait();
                        taint.remember(traces, label);
                    });
                }
            });
            assert_eq!((taint.of_texts(&traces), taint.of_conversation(&traces)), (Some(high), Some(high)));
            taint.texts.invalidate_all();
            taint.conversations.invalidate_all();
            taint.links.invalidate_all();
        }
        taint.remember(&traces, high);
        taint.remember(&traces, low);
        assert_eq!(taint.of_texts(&traces), Some(high));
    }

    #[test]
    fn a_conversation_is_known_without_its_beginning() {
        let (taint, keys) = (Taint::default(), Keys::random());
        let [_, _, high] = labels();
        let says = |role: &str, content: &str| json!({"role": role, "content": content});
        let known = |id: &str, messages: &[Value]| {
            let traces = traces(&keys, &request(id, &json!(messages)), Conversation(rand::random()));
            taint.of_conversation(&traces)
        };
        let talk = [
            says("system", "Be brief."),
            says("user", "Where?"),
            says("assistant", "The harbour."),
            says("user", "When?"),
        ];
        let amy = "spiffe://b.example/amy";
        let seen = traces(&keys, &request(amy, &json!(talk)), Conversation([1; 32]));
        assert_eq!(seen.links.len(), 2);
        taint.remember(&seen, high);
        let goes_on = [says("assistant", "In spring."), says("user", "And then?")];
        assert_eq!(known(amy, &[&talk[2..], &goes_on].concat()), Some(high), "the beginning was left out");
        let other = [says("system", "Be brief. It is 12:04."), talk[1].clone(), talk[2].clone(), says("user", "Why?")];
        assert_eq!(known(amy, &other), Some(high), "another system prompt");
        assert_eq!(known("spiffe://b.example/bo", &talk), None, "somebody else's");
        assert_eq!(known(amy, &[&talk[..2], &goes_on].concat()), None, "the same question in another conversation");
        let split = [says("user", "Where?"), says("system", "Careful."), says("assistant", "The harbour.")];
        assert_eq!(known(amy, &split), Some(high), "instructions in between");
    }

    #[test]
    fn a_long_request_leaves_its_last_links_only() {
        let turns: Vec<Value> = (0..2_000).map(|n| json!({"role": "user", "content": n.to_string()})).collect();
        let (keys, id) = (Keys::random(), "spiffe://b.example/one");
        let of = |turns: &[Value]| traces(&keys, &request(id, &json!(turns)), Conversation([0; 32])).links;
        assert_eq!(of(&turns).len(), LINKS);
        assert_eq!(of(&turns), of(&turns[1_000..]));
        assert_eq!((of(&turns[..1]).len(), of(&turns[..2]).len()), (0, 1));
    }
}
