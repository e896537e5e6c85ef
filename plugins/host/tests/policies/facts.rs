//! What a policy is told: all of the shape of a request, and of its content what was granted.

use postern_plugins::{Grants, Header, MessageFacts, PolicySpec, RequestFacts};

use super::text::says;
use super::{CONTEXT, host, request, spec};

/// In the memory of a guest, request-facts begin with identity, tenant, label (8 bytes each), labels, label-sources, model (8
/// each), stream (1, to 56), prompt-tokens (8), messages (8), tools, images (1 each, to 80), temperature (16),
/// placement-asked (2, to 100), conversation (8, to 112), time (8), utc-offset (4, to 128), tokens-left (16), headers (8).
const MESSAGES: u32 = 64;
const HEADERS: u32 = 144;

/// Says something about the list of records of `size` bytes at `offset` of the facts.
fn asks(number: &str) -> Vec<u8> {
    let number = number.replace("$facts", "(local.get 0)");
    says("caching-policy", "", "", &number)
}

fn seen() -> RequestFacts {
    let header = |name: &str, value: &str| Header { name: name.into(), value: value.into() };
    let mut headers = vec![
        header("x-desk", "17"),
        header("x-secret", "4711"),
        header("authorization", "Bearer s3cret"),
        header("x-desk", &"long".repeat(300)),
    ];
    headers.extend((0..20).map(|_| header("x-many", "1")));
    let message = |text: &str| MessageFacts { role: "user".into(), bytes: 4, text: Some(text.into()) };
    RequestFacts { headers, messages: vec![message("text"), message("more")], ..request() }
}

async fn answer(component: &[u8], grants: Grants) -> Option<u32> {
    let policy = host().load(PolicySpec { grants, ..spec(component.to_vec()) }).unwrap();
    policy.plan(&CONTEXT, &seen()).await.answer.unwrap().ttl_seconds
}

fn granted(headers: &[&str], text: bool) -> Grants {
    Grants { headers: headers.iter().map(|&name| name.to_owned()).collect(), text }
}

#[tokio::test]
async fn headers_are_seen_where_they_were_granted() {
    let count = asks(&format!("(i32.load offset={} $facts)", HEADERS + 4));
    for (headers, seen) in [
        (&[][..], 0),
        (&["x-desk"], 1),
        (&["x-secret"], 1),
        (&["x-desk", "x-secret"], 2),
        (&["x-many"], 16),
        (&["x-none", "X-Desk"], 0),
    ] {
        assert_eq!(answer(&count, granted(headers, false)).await, Some(seen), "{headers:?}");
    }
    // Which one: the length of the value of the first.
    let bytes = asks(&format!("(i32.load offset=12 (i32.load offset={HEADERS} $facts))"));
    assert_eq!(answer(&bytes, granted(&["x-secret"], false)).await, Some(4));
}

#[tokio::test]
async fn text_is_seen_where_it_was_granted() {
    // Of the first message (role 8, bytes 8, option<string>): is there a text, and its first byte.
    let is_there = asks(&format!("(i32.load8_u offset=16 (i32.load offset={MESSAGES} $facts))"));
    assert_eq!(answer(&is_there, granted(&[], false)).await, Some(0));
    assert_eq!(answer(&is_there, granted(&[], true)).await, Some(1));
    let first = asks(&format!("(i32.load8_u (i32.load offset=20 (i32.load offset={MESSAGES} $facts)))"));
    assert_eq!(answer(&first, granted(&[], true)).await, Some(u32::from(b't')));
}
