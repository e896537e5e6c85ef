//! Sealed payloads: whatever comes is refused unless it was sealed so, and what was sealed comes out however it is cut.

use std::sync::LazyLock;

use anyhow::Result;
use postern_sealed::binary::{Decoder, Part};
use postern_sealed::chunked::{RequestOpener, RequestSealer, ResponseSealer};
use postern_sealed::{Keys, PublicConfig, SecretKey, ehbp};

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new(vec![SecretKey::generate(1, &mut rand::rng())]));

/// The bytes in pieces of that many.
fn opened(bytes: &[u8], length: u8) -> Option<Vec<u8>> {
    let (mut opener, mut plain) = (RequestOpener::new(KEYS.clone()), Vec::new());
    for piece in bytes.chunks(usize::from(length).max(1)) {
        opener.push(piece, &mut plain).ok()?;
    }
    opener.finish(&mut plain).ok()?;
    Some(plain)
}

/// The length of pieces, which byte is changed, and what is sealed; or what comes as it is.
pub(crate) fn sealed(bytes: &[u8]) -> bool {
    assert_eq!(opened(bytes, u8::MAX), None, "nobody sealed this");
    let _none = PublicConfig::from_list(bytes);
    binary(bytes);
    bodies(bytes);
    let Some(([length, high, low], plain)) = bytes.split_first_chunk::<3>() else { return false };
    let config = PublicConfig::from_list(&KEYS.list()).expect("our own list");
    let (mut rng, mut sealed) = (rand::rng(), Vec::new());
    let (mut sealer, response) = RequestSealer::begin(&config, &mut rng, &mut sealed).expect("our own key");
    let (one, other) = plain.split_at(plain.len() / 2);
    for part in [one, other] {
        sealer.push(part, &mut sealed).expect("few pieces");
    }
    sealer.finish(&mut sealed).expect("few pieces");
    assert_eq!(opened(&sealed, *length).as_deref(), Some(plain));
    let at = usize::from(u16::from_be_bytes([*high, *low]));
    if let Some(changed) = sealed.get_mut(at) {
        *changed ^= 1;
        assert_eq!(opened(&sealed, *length), None, "a changed byte");
    }
    // The response to a request is no other's.
    let (mut opener, mut out) = (response, Vec::new());
    assert!(opener.push(bytes, &mut out).is_err() || opener.finish(&mut out).is_err());
    let exchange = {
        let mut sealed = Vec::new();
        let (sealer, _) = RequestSealer::begin(&config, &mut rng, &mut sealed).expect("our own key");
        sealer.finish(&mut sealed).expect("few pieces");
        let (mut opener, mut plain) = (RequestOpener::new(KEYS.clone()), Vec::new());
        opener.push(&sealed, &mut plain).expect("sealed by us");
        opener.finish(&mut plain).expect("sealed by us")
    };
    let mut answer = Vec::new();
    let mut sealer = ResponseSealer::begin(&exchange, &mut rng, &mut answer).expect("our own");
    sealer.push(plain, &mut answer).expect("few pieces");
    sealer.finish(&mut answer).expect("few pieces");
    answer.len() > plain.len()
}

/// The same comes of a message however it is cut, and never more than there is.
fn binary(bytes: &[u8]) {
    let Some((length, bytes)) = bytes.split_first() else { return };
    let read = |mut decoder: Decoder, cut: usize| {
        let mut content = 0;
        for piece in bytes.chunks(cut.max(1)) {
            decoder
                .push(piece, &mut |part| {
                    if let Part::Content(bytes) = part {
                        content += bytes.len();
                    }
                })
                .ok()?;
        }
        assert!(content <= bytes.len());
        decoder.finish().ok().map(|()| content)
    };
    for decoder in [Decoder::request, Decoder::response] {
        assert_eq!(read(decoder(), usize::from(*length)), read(decoder(), usize::MAX));
    }
}

/// Bodies that nobody sealed are opened by no key.
fn bodies(bytes: &[u8]) {
    let Some((enc, body)) = bytes.split_first_chunk::<32>() else { return };
    let Ok(mut opener) = ehbp::RequestOpener::new(&KEYS, *enc, 1 << 20) else { return };
    let mut plain = Vec::new();
    assert!(opener.push(body, &mut plain).is_err() || opener.finish().is_err());
    assert!(plain.is_empty());
}

pub(crate) fn sealed_seeds() -> Result<Vec<Vec<u8>>> {
    let list = KEYS.list();
    let mut request = Vec::new();
    let config = PublicConfig::from_list(&list)?;
    let (mut sealer, _) = RequestSealer::begin(&config, &mut rand::rng(), &mut request)?;
    sealer.push(b"a request", &mut request)?;
    sealer.finish(&mut request)?;
    request.truncate(request.len() - 1);
    let message = [&b"\x05\x02\x04POST\x05https\x00\x01/\x04date\x011\x00\x04abcd\x02ef\x00\x00"[..]].concat();
    Ok(vec![message, b"\x05\x00\x30POST /v1/chat/completions".to_vec(), list, request])
}
