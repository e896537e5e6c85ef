use http_body_util::Full;
use postern_sealed::chunked::{RequestOpener, ResponseSealer};
use postern_sealed::{Keys, SecretKey};
use proptest::prelude::*;

use super::*;

#[test]
fn only_what_is_from_end_to_end_goes_on() {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &'static str| {
        headers.append(name, HeaderValue::from_static(value));
    };
    put("connection", "keep-alive, X-Hop");
    put("x-hop", "of this hop");
    for name in HOP_BY_HOP.iter().skip(1).copied().chain([
        "host",
        "content-length",
        "authorization",
        "cookie",
        "accept-encoding",
        "expect",
        "date",
    ]) {
        put(name, "x");
    }
    put("postern-sender", "somebody else");
    put("postern-sender-2", "somebody else");
    put("postern-signature", "somebody else's");
    put("content-type", "application/json");
    put("postern-label", "internal");
    put("x-two", "1");
    put("x-two", "2");
    let sent = sent_on(&headers);
    let names: Vec<_> = sent.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    assert_eq!(names, ["content-type=application/json", "postern-label=internal", "x-two=1", "x-two=2"]);
}

/// A sealed answer, and what opens it.
fn sealed(head: &HeaderMap, pieces: &[&[u8]]) -> (Vec<u8>, ResponseOpener) {
    let secret = SecretKey::generate(1, &mut rand::rng());
    let mut request = Vec::new();
    let (sealer, opener) = RequestSealer::begin(&secret.public(), &mut rand::rng(), &mut request).unwrap();
    sealer.finish(&mut request).unwrap();
    let mut at_gateway = RequestOpener::new(Keys::new(vec![secret]));
    at_gateway.push(&request, &mut Vec::new()).unwrap();
    let exchange = at_gateway.finish(&mut Vec::new()).unwrap();
    let mut out = Vec::new();
    let mut sealer = ResponseSealer::begin(&exchange, &mut rand::rng(), &mut out).unwrap();
    let mut plain = Vec::new();
    binary::begin_response(http::StatusCode::OK, head, &mut plain);
    sealer.push(&plain, &mut out).unwrap();
    for piece in pieces {
        let mut plain = Vec::new();
        binary::put_content(piece, &mut plain);
        sealer.push(&plain, &mut out).unwrap();
    }
    let mut plain = Vec::new();
    binary::end_response(&mut plain);
    sealer.push(&plain, &mut out).unwrap();
    sealer.finish(&mut out).unwrap();
    (out, opener)
}

fn of_kind(kind: &'static str) -> HeaderMap {
    [(header::CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect()
}

/// What an application gets of `sealed`, and whether it ends cleanly. `None`: no answer begins.
async fn given(sealed: &[u8], opener: ResponseOpener) -> Option<(Vec<u8>, bool)> {
    let mut body = open(Full::new(Bytes::copy_from_slice(sealed)), opener).await.ok()?.into_body();
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => content.extend_from_slice(frame.data_ref().unwrap()),
            Err(Cut) => return Some((content, false)),
        }
    }
    Some((content, true))
}

#[tokio::test]
async fn an_answer_that_was_cut_anywhere_never_looks_complete() {
    let (whole, opener) = sealed(&of_kind("application/json"), &[b"{\"a\":", b"1}"]);
    assert_eq!(given(&whole, opener).await, Some((b"{\"a\":1}".to_vec(), true)));
    let (whole, _) = sealed(&of_kind("application/json"), &[b"{\"a\":", b"1}"]);
    for end in 0..whole.len() {
        let (whole, opener) = sealed(&of_kind("application/json"), &[b"{\"a\":", b"1}"]);
        let cut = given(&whole[..end], opener).await;
        assert!(cut.is_none_or(|(_, is_clean)| !is_clean), "{end}");
    }
    for at in 0..whole.len() {
        let (mut whole, opener) = sealed(&of_kind("application/json"), &[b"{\"a\":", b"1}"]);
        whole[at] ^= 1;
        assert!(given(&whole, opener).await.is_none_or(|(_, is_clean)| !is_clean), "{at}");
    }
}

#[tokio::test]
async fn an_event_stream_that_was_cut_ends_with_an_error_and_without_done() {
    let pieces: [&[u8]; 3] = [b"data: {\"n\":1}\n\n", b"data: {\"n\":2}\n\n", b"data: [DONE]\n\n"];
    let kind = "text/event-stream; charset=utf-8";
    let (whole, opener) = sealed(&of_kind(kind), &pieces);
    assert_eq!(given(&whole, opener).await, Some((pieces.concat(), true)));
    let mut begun = 0;
    for end in 0..whole.len() {
        let (whole, opener) = sealed(&of_kind(kind), &pieces);
        let Some((content, is_clean)) = given(&whole[..end], opener).await else { continue };
        begun += 1;
        assert!(is_clean);
        let text = String::from_utf8(content).unwrap();
        let (_, last) =
            text.trim_end().rsplit_once("data: ").unwrap_or(("", text.trim_start_matches("data: ").trim_end()));
        let last: serde_json::Value = serde_json::from_str(last).unwrap();
        assert_eq!(last["error"]["code"], "answer_incomplete", "{end}");
    }
    assert!(begun > 100);
}

#[test]
fn what_was_begun_before_the_error_is_ended_first() {
    assert!(incomplete(*b"\n\n").starts_with(b"data: {"));
    assert!(incomplete(*b"1}").starts_with(b"\n\ndata: {") && incomplete(*b"}\n").starts_with(b"\n\n"));
}

proptest! {
    #[test]
    fn an_answer_is_the_same_however_it_is_cut(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
        cuts in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let (whole, opener) = sealed(&of_kind("application/json"), &refs);
        let (mut opening, mut opened) = (Opening::new(opener), Opened::default());
        let (mut rest, mut cuts) = (whole.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, more) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            opening.push(piece, &mut opened).unwrap();
            rest = more;
        }
        opening.finish(&mut opened).unwrap();
        prop_assert_eq!(opened.content.to_vec(), pieces.concat());
        prop_assert_eq!(opened.head.unwrap().headers().clone(), of_kind("application/json"));
    }
}
