//! What targets answer: server-sent events, chunks of an answer, and text with placeholders in it.

use std::sync::LazyLock;

use anyhow::Result;
use postern::classify::Conversation;
use postern::keys::Keys;
use postern::redact::json::{JsonRestorer, Values};
use postern::redact::restore::{Piece, Restorer};
use postern::redact::vault::{Suffix, Vault};
use postern::upstream::openai;
use postern_wire::call::Endpoint;
use postern_wire::sse::{Decoder, Event};
use postern_wire::vectors::Wanted;
use serde_json::Value;

use crate::texts::as_text;

/// Bytes of a line, and of an event.
const LIMIT: usize = 1024;

/// All events, where `bytes` come in pieces of these lengths; `None`: one was too large.
fn events(bytes: &[u8], lengths: &[u8]) -> Option<(Vec<Event>, bool)> {
    let (mut decoder, mut events) = (Decoder::new(LIMIT), Vec::new());
    let mut rest = bytes;
    for length in lengths.iter().cycle() {
        let (piece, after) = rest.split_at(usize::from(*length).clamp(1, rest.len().max(1)).min(rest.len()));
        decoder.push(piece, &mut events).ok()?;
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    Some((events, decoder.is_between_events()))
}

pub(crate) fn sse(bytes: &[u8]) -> bool {
    let whole = events(bytes, &[u8::MAX]);
    let lengths = bytes.get(..8).unwrap_or(&[3]);
    assert_eq!(whole, events(bytes, lengths), "events depend on where the stream is cut");
    assert_eq!(whole, events(bytes, &[1]));
    whole.is_some_and(|(events, _)| {
        assert!(events.iter().all(|event| event.data.len() <= LIMIT));
        !events.is_empty()
    })
}

pub(crate) fn sse_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        "data: {\"a\":1}\n\n: comment\r\ndata: one\r\ndata: two\r\n\r\ndata: [DONE]\n\n",
        "event: x\rdata:y\r\rdata\n\nid: 1\nretry: 5\n\n",
        "event: error\ndata: {}\n\nerror: no\n\n",
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}

pub(crate) fn answer(bytes: &[u8]) -> bool {
    let Some((events, _)) = events(bytes, &[u8::MAX]) else { return false };
    let mut read = 0;
    let chunks = |endpoint| events.iter().filter_map(move |event| openai::event(&event.data, endpoint).ok());
    for event in chunks(Endpoint::Chat).chain(chunks(Endpoint::Completions)) {
        let choices = event["choices"].as_array().expect("a chunk has choices");
        assert!(choices.iter().all(|choice| choice["delta"].is_object()));
        if openai::is_asked_for(&event, 2) {
            for (position, choice) in choices.iter().enumerate() {
                assert!(openai::choice_index(position, choice, 2).is_some_and(|index| index < 2));
            }
        }
        read += 1;
    }
    read > 0
}

pub(crate) fn answer_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Hi\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: {\"error\":{\"message\":\"no\"}}\n\ndata: [DONE]\n\n",
        "data: {\"choices\":[{\"index\":7,\"delta\":{}}]}\n\n",
        "data: {\"choices\":[{\"index\":0,\"text\":\"Hi\",\"finish_reason\":null}]}\n\n",
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}

/// Two vectors of two numbers were asked for.
pub(crate) fn vectors(bytes: &[u8]) -> bool {
    let wanted = Wanted { texts: 2, dimensions: Some(2) };
    let Ok(read) = wanted.read(bytes) else { return false };
    for base64 in [false, true] {
        let written = postern_wire::vectors::write(&read, "model", base64);
        assert_eq!(wanted.read(&written).as_ref(), Ok(&read), "what is written is what was read");
        let answer: Value = serde_json::from_slice(&written).expect("an answer is JSON");
        assert_eq!(answer["data"].as_array().map(Vec::len), Some(2));
    }
    true
}

pub(crate) fn vectors_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        r#"{"object":"list","data":[{"object":"embedding","index":1,"embedding":[0.5,-1e-3]},{"index":0,"embedding":[1,2]}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}}"#,
        r#"{"data":[{"embedding":"AACAPwAAAEA="},{"embedding":"AACAPwAAAEA="}]}"#,
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}

/// What JSON has to escape.
const QUOTED: &str = "a\"b\\c\n";

/// A request in which three values were masked.
static VAULT: LazyLock<Vault> = LazyLock::new(|| {
    let mut vault = Vault::new(&Keys::random(), "tenant", Conversation([7; 32]));
    vault.keep("email", "amy@example.org");
    vault.keep("phone", "+49 30 1234567");
    vault.keep("secret", QUOTED);
    vault
});

/// In pieces of these lengths, by turns.
fn cut<'a>(text: &'a str, lengths: &[u8]) -> Vec<&'a str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    for length in lengths.iter().cycle() {
        let end = (usize::from(*length)..).find(|end| *end >= rest.len() || (*end > 0 && rest.is_char_boundary(*end)));
        let (piece, after) = rest.split_at(end.unwrap_or(rest.len()).min(rest.len()));
        pieces.push(piece);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    pieces
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok()
}

/// Where the input says `{1}`, `{2}` or `{3}` stands the placeholder that the model was shown: it is another one in each run.
pub(crate) fn restore(bytes: &[u8]) -> bool {
    let Some((lengths, text)) = bytes.split_first_chunk::<4>() else { return false };
    let Some(text) = as_text(text) else { return false };
    let place = |kind, value| VAULT.placeholder(kind, value, Suffix::Wire);
    let values = [("{1}", "email", "amy@example.org"), ("{2}", "phone", "+49 30 1234567"), ("{3}", "secret", QUOTED)];
    let text = values.iter().fold(text.to_owned(), |text, (mark, kind, value)| text.replace(mark, &place(kind, value)));
    let cut = cut(&text, lengths);
    let mut at_once = Restorer::new(Suffix::Wire);
    let whole = at_once.whole(&VAULT, &text);
    let (mut piece_by_piece, mut pieces) = (Restorer::new(Suffix::Wire), Piece::default());
    cut.iter().for_each(|piece| pieces.append(piece_by_piece.push(&VAULT, piece)));
    pieces.append(piece_by_piece.finish());
    for values in [Values::Nowhere, Values::Strings, Values::Everywhere] {
        let whole = JsonRestorer::new(Suffix::Wire, values).whole(&VAULT, &text);
        let (mut piece_by_piece, mut pieces) = (JsonRestorer::new(Suffix::Wire, values), Piece::default());
        cut.iter().for_each(|piece| pieces.append(piece_by_piece.push(&VAULT, piece)));
        pieces.append(piece_by_piece.finish());
        assert_eq!(whole, pieces, "what is restored in JSON depends on where it is cut");
        assert!(values != Values::Strings || !is_json(&text) || is_json(&whole.restored), "JSON was broken");
    }
    assert_eq!(whole, pieces, "what is restored depends on where the answer is cut");
    assert_eq!(at_once.restored(), piece_by_piece.restored());
    assert!(!whole.cacheable.contains("amy@example.org") || text.contains("amy@example.org"), "a value in the cache");
    at_once.restored() > 0
}

pub(crate) fn restore_seeds() -> Result<Vec<Vec<u8>>> {
    let texts = [
        "\x01\x02\x03\x04Dear {1}, your number is {2}. {1}",
        "\x05\x01\x01\x01[EMAIL_1_abc] [[{2}] [EMAIL_99999999_zzzz",
        "\x02\x09\x01\x01{\"a{3}\": [\"{1} \\u005b\\\\\", \"{\\\"b\\\":\\\"{3}\\\"}\", 1]}",
        "\x03\x07\x01\x02<a href=\"http://x/{1}\">[x](http://y/{2})",
    ];
    Ok(texts.map(|text| text.as_bytes().to_vec()).into())
}
