//! What goes over the wire, as it was written down once: other versions, and other people's programs, have to read it. A change of `golden.json`
//! is a change of the format; `POSTERN_WRITE_GOLDEN=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::convert::Infallible;
use std::path::Path;

use data_encoding::HEXLOWER;
use hpke::rand_core::{TryCryptoRng, TryRng};
use http::{HeaderMap, Request, StatusCode};
use postern_sealed::chunked::{RequestOpener, RequestSealer, ResponseSealer};
use postern_sealed::{Keys, PublicConfig, SecretKey, binary, ehbp, whole};
use serde_json::{Value, json};

/// Draws the same each time.
struct Counting(u8);

impl TryRng for Counting {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("keys are drawn as bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("keys are drawn as bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for byte in out {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        }
        Ok(())
    }
}

impl TryCryptoRng for Counting {}

fn keys() -> Keys {
    Keys::new(vec![SecretKey::from_bytes(7, &[9; 32]).unwrap(), SecretKey::from_bytes(6, &[8; 32]).unwrap()])
}

fn message() -> Vec<u8> {
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json").body(()).unwrap();
    let (mut message, body) = (Vec::new(), br#"{"model":"chat"}"#);
    binary::put_request(&request, "ai.example:8443", body.len(), &mut message);
    message.extend_from_slice(body);
    message
}

fn written() -> Value {
    let (keys, message) = (keys(), message());
    let config = PublicConfig::from_list(&keys.list()).unwrap();
    let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
    let (mut request, mut plain) = (Vec::new(), Vec::new());
    let (mut sealer, _) = RequestSealer::begin(&config, &mut Counting(1), &mut request).unwrap();
    sealer.push(&message, &mut request).unwrap();
    sealer.finish(&mut request).unwrap();
    let mut opener = RequestOpener::new(keys.clone());
    opener.push(&request, &mut plain).unwrap();
    let exchange = opener.finish(&mut plain).unwrap();
    assert_eq!(plain, message);
    let headers: HeaderMap = [("content-type", "text/event-stream")]
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .into_iter()
        .collect();
    let (mut response, mut head, mut end) = (Vec::new(), Vec::new(), Vec::new());
    let mut sealer = ResponseSealer::begin(&exchange, &mut Counting(2), &mut response).unwrap();
    binary::begin_response(StatusCode::OK, &headers, &mut head);
    binary::put_content(b"data: [DONE]\n\n", &mut head);
    sealer.push(&head, &mut response).unwrap();
    binary::end_response(&mut end);
    sealer.push(&end, &mut response).unwrap();
    sealer.finish(&mut response).unwrap();
    let (whole_request, exchange) = whole::seal_request(&config, &message, &mut Counting(3)).unwrap();
    let mut answer = Vec::new();
    binary::put_response(StatusCode::BAD_REQUEST, &headers, b"no", &mut answer);
    let whole_response = whole::seal_response(&exchange, &answer, &mut Counting(4)).unwrap();
    let (mut bodies, nonce) = ehbp::ResponseSealer::begin(&exchange, &mut Counting(5)).unwrap();
    let mut pieces = Vec::new();
    bodies.push(b"data: 1\n\n", &mut pieces).unwrap();
    json!({
        "secret_keys": {"7": hex(&[9; 32]), "6": hex(&[8; 32])},
        "list": hex(&keys.list()),
        "newest_alone": hex(&keys.newest()),
        "message": hex(&message),
        "request_in_pieces": hex(&request),
        "response_in_pieces": hex(&response),
        "request_whole": hex(&whole_request),
        "response_whole": hex(&whole_response),
        "bodies_nonce": hex(&nonce),
        "bodies_response": hex(&pieces),
    })
}

#[test]
fn the_wire_is_what_it_was() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.json"));
    let written = written();
    if std::env::var_os("POSTERN_WRITE_GOLDEN").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&written).unwrap() + "\n").unwrap();
    }
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(written, golden);
}
