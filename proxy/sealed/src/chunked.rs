//! Messages that are sealed piece by piece, as they come: what has come can be used at once, and its end is authentic.
//! Source: draft-ietf-ohai-chunked-ohttp-08.
//!
//! Each piece is authentic for itself and in its place, so one that is missing, changed, sent twice or in another order is an error; a message is
//! complete only when its last piece has been opened as such.

use hpke::aead::AesGcm256;
use rand::CryptoRng;

use crate::SealError;
use crate::cipher::{ENC, Receiver, ResponseKey, Sender, TAG, exported};
use crate::config::{HEADER, Keys, PublicConfig};
use crate::frames::{Frames, put_length};
use crate::whole::Exchange;

/// The media type of a sealed request.
pub const REQUEST: &str = "message/ohttp-chunked-req";
/// The media type of a sealed response.
pub const RESPONSE: &str = "message/ohttp-chunked-res";
/// The most bytes of a piece that is accepted, in clear.
pub const MAX_CHUNK: usize = 64 << 10;
/// The most bytes of a piece that is sent, in clear: what everybody must accept.
pub const SENT_CHUNK: usize = 16 << 10;

const REQUEST_LABEL: &str = "message/bhttp chunked request";
const RESPONSE_LABEL: &str = "message/bhttp chunked response";
const NONCE: usize = 32;
/// What the last piece is authenticated with.
const FINAL: &[u8] = b"final";

/// Seals a request, piece by piece.
pub struct RequestSealer {
    context: Sender<AesGcm256>,
}

/// Opens a request, from bytes that are cut anywhere.
pub struct RequestOpener {
    keys: Keys,
    /// Of the header, as long as it is not all there.
    begun: Vec<u8>,
    opening: Option<Opening>,
}

struct Opening {
    key: u8,
    enc: [u8; ENC],
    context: Receiver<AesGcm256>,
    frames: Frames,
}

/// Seals a response, piece by piece.
#[derive(Debug)]
pub struct ResponseSealer {
    key: ResponseKey<AesGcm256>,
}

/// Opens a response, from bytes that are cut anywhere.
#[derive(Debug)]
pub struct ResponseOpener {
    exchange: Exchange,
    /// Of the nonce, as long as it is not all there.
    begun: Vec<u8>,
    key: Option<ResponseKey<AesGcm256>>,
    frames: Frames,
}

impl std::fmt::Debug for RequestSealer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RequestSealer")
    }
}

impl std::fmt::Debug for RequestOpener {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RequestOpener")
    }
}

impl RequestSealer {
    /// Begins a request; its first bytes go to `out`. What opens the response, too.
    ///
    /// # Errors
    /// The key is none.
    pub fn begin(
        config: &PublicConfig,
        rng: &mut impl CryptoRng,
        out: &mut Vec<u8>,
    ) -> Result<(Self, ResponseOpener), SealError> {
        let (begun, context) = config.sender::<AesGcm256>(REQUEST_LABEL, rng)?;
        let (_, enc) = begun.split_last_chunk::<ENC>().ok_or(SealError::Config)?;
        let secret = exported::<AesGcm256>(|label, out| context.export(label, out), RESPONSE_LABEL)?;
        out.extend_from_slice(&begun);
        Ok((Self { context }, ResponseOpener::new(Exchange::new(config.id(), *enc, secret))))
    }

    /// More of it.
    ///
    /// # Errors
    /// It has more pieces than can be counted.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        pieces(plain, out, |piece| self.context.seal(piece, b"").map_err(|_| SealError::Ended))
    }

    /// Its end.
    ///
    /// # Errors
    /// It has more pieces than can be counted.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        put_length(0, out);
        out.extend_from_slice(&self.context.seal(b"", FINAL).map_err(|_| SealError::Ended)?);
        Ok(())
    }
}

impl RequestOpener {
    /// With these keys.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self { keys, begun: Vec::new(), opening: None }
    }

    /// Takes the next bytes; what is certain by now goes to `out`.
    ///
    /// # Errors
    /// It is not authentic, or for another key, or a piece is too large. Nothing more of it may be used then.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let opening = match &mut self.opening {
            Some(opening) => opening,
            none => {
                let missing = (HEADER + ENC).saturating_sub(self.begun.len());
                let (more, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
                self.begun.extend_from_slice(more);
                bytes = rest;
                let Some(begun) = self.begun.first_chunk::<{ HEADER + ENC }>() else { return Ok(()) };
                let (key, enc, context) = self.keys.receiver::<AesGcm256>(REQUEST_LABEL, begun)?;
                none.insert(Opening { key, enc, context, frames: Frames::default() })
            }
        };
        let Opening { context, frames, .. } = opening;
        frames.push(bytes, &mut |piece| {
            out.extend_from_slice(&context.open(piece, b"").map_err(|_| SealError::NotAuthentic)?);
            Ok(())
        })
    }

    /// No more comes: what its last piece says goes to `out`. What seals the response.
    ///
    /// # Errors
    /// It was cut, or is not authentic.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<Exchange, SealError> {
        let Opening { key, enc, mut context, frames } = self.opening.ok_or(SealError::Cut)?;
        let last = context.open(frames.last()?, FINAL).map_err(|_| SealError::NotAuthentic)?;
        out.extend_from_slice(&last);
        let secret = exported::<AesGcm256>(|label, out| context.export(label, out), RESPONSE_LABEL)?;
        Ok(Exchange::new(key, enc, secret))
    }
}

impl ResponseSealer {
    /// Begins the response to a request that was opened in pieces; its first bytes go to `out`.
    ///
    /// # Errors
    /// Never, with a request of ours.
    pub fn begin(exchange: &Exchange, rng: &mut impl CryptoRng, out: &mut Vec<u8>) -> Result<Self, SealError> {
        let mut nonce = [0; NONCE];
        rng.fill_bytes(&mut nonce);
        out.extend_from_slice(&nonce);
        Ok(Self { key: exchange.key(&nonce)? })
    }

    /// More of it.
    ///
    /// # Errors
    /// It has more pieces than can be counted.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        pieces(plain, out, |piece| self.key.seal(piece, b""))
    }

    /// Its end.
    ///
    /// # Errors
    /// It has more pieces than can be counted.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        put_length(0, out);
        out.extend_from_slice(&self.key.seal(b"", FINAL)?);
        Ok(())
    }
}

impl ResponseOpener {
    fn new(exchange: Exchange) -> Self {
        Self { exchange, begun: Vec::new(), key: None, frames: Frames::default() }
    }

    /// What the request encapsulates, for its sender's signature.
    #[must_use]
    pub fn encapsulated(&self) -> &[u8; ENC] {
        self.exchange.encapsulated()
    }

    /// Takes the next bytes; what is certain by now goes to `out`.
    ///
    /// # Errors
    /// It is not authentic, or a piece is too large. Nothing more of it may be used then.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let key = match &mut self.key {
            Some(key) => key,
            none => {
                let missing = NONCE.saturating_sub(self.begun.len());
                let (more, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
                self.begun.extend_from_slice(more);
                bytes = rest;
                if self.begun.len() < NONCE {
                    return Ok(());
                }
                none.insert(self.exchange.key(&self.begun)?)
            }
        };
        self.frames.push(bytes, &mut |piece| {
            out.extend_from_slice(&key.open(piece, b"")?);
            Ok(())
        })
    }

    /// No more comes: what its last piece says goes to `out`.
    ///
    /// # Errors
    /// It was cut, or is not authentic.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), SealError> {
        let last = self.key.ok_or(SealError::Cut)?.open(self.frames.last()?, FINAL)?;
        out.extend_from_slice(&last);
        Ok(())
    }
}

/// Writes `plain` in pieces that everybody accepts, sealed.
fn pieces(
    plain: &[u8],
    out: &mut Vec<u8>,
    mut seal: impl FnMut(&[u8]) -> Result<Vec<u8>, SealError>,
) -> Result<(), SealError> {
    out.reserve(plain.len() + plain.len().div_ceil(SENT_CHUNK) * (TAG + 4));
    for piece in plain.chunks(SENT_CHUNK) {
        let sealed = seal(piece)?;
        put_length(sealed.len(), out);
        out.extend_from_slice(&sealed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SecretKey;

    fn keys() -> Keys {
        Keys::new(vec![SecretKey::generate(1, &mut rand::rng())])
    }

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<(), SealError>) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        out
    }

    fn sealed_request(keys: &Keys, parts: &[&[u8]]) -> (Vec<Vec<u8>>, ResponseOpener) {
        let config = PublicConfig::from_list(&keys.list()).unwrap();
        let mut begun = Vec::new();
        let (mut sealer, response) = RequestSealer::begin(&config, &mut rand::rng(), &mut begun).unwrap();
        let pieces = parts.iter().map(|part| written(|out| sealer.push(part, out))).collect::<Vec<_>>();
        ([vec![begun], pieces, vec![written(|out| sealer.finish(out))]].concat(), response)
    }

    /// What comes of bytes that come so.
    fn opened<'a>(keys: &Keys, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<u8>, Exchange), SealError> {
        let (mut opener, mut plain) = (RequestOpener::new(keys.clone()), Vec::new());
        for piece in pieces {
            opener.push(piece, &mut plain)?;
        }
        let exchange = opener.finish(&mut plain)?;
        Ok((plain, exchange))
    }

    fn sealed_response(exchange: &Exchange, parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut begun = Vec::new();
        let mut sealer = ResponseSealer::begin(exchange, &mut rand::rng(), &mut begun).unwrap();
        let pieces = parts.iter().map(|part| written(|out| sealer.push(part, out))).collect::<Vec<_>>();
        [vec![begun], pieces, vec![written(|out| sealer.finish(out))]].concat()
    }

    fn response_of<'a>(
        mut opener: ResponseOpener,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<u8>, SealError> {
        let mut plain = Vec::new();
        for piece in pieces {
            opener.push(piece, &mut plain)?;
        }
        opener.finish(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn pieces_come_out_as_they_come_in_and_at_once() {
        let keys = keys();
        let (request, mut response) = sealed_request(&keys, &[b"POST", b" /v1"]);
        let (plain, exchange) = opened(&keys, request.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(plain, b"POST /v1");
        let large = vec![7; 3 * SENT_CHUNK + 5];
        let sealed = sealed_response(&exchange, &[b"data: 1\n\n", b"data: 2\n\n", &large]);
        assert!(sealed[1].len() < 40, "a token is not much more than itself: {}", sealed[1].len());
        let mut plain = Vec::new();
        response.push(&sealed[0], &mut plain).unwrap();
        response.push(&sealed[1], &mut plain).unwrap();
        assert_eq!(plain, b"data: 1\n\n");
        for piece in &sealed[2..] {
            response.push(piece, &mut plain).unwrap();
        }
        response.finish(&mut plain).unwrap();
        assert_eq!(plain, [b"data: 1\n\ndata: 2\n\n".as_slice(), &large].concat());
    }

    #[test]
    fn what_is_cut_changed_left_out_sent_twice_or_in_another_order_is_refused() {
        let keys = keys();
        let (request, _) = sealed_request(&keys, &[b"one", b"two", b"three"]);
        let parts: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        let (_, exchange) = opened(&keys, parts.iter().copied()).unwrap();
        let why = |order: &[usize]| opened(&keys, order.iter().map(|at| parts[*at])).unwrap_err();
        assert_eq!(why(&[0, 1, 2, 3]), SealError::Cut);
        for order in
            [&[0, 1, 3, 4][..], &[0, 1, 1, 2, 3, 4], &[0, 2, 1, 3, 4], &[0, 1, 2, 4], &[0, 4], &[0, 1, 2, 3, 4, 4]]
        {
            assert_eq!(why(order), SealError::NotAuthentic, "{order:?}");
        }
        let whole = request.concat();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            assert!(opened(&keys, [changed.as_slice()]).is_err(), "byte {at}");
            assert!(opened(&keys, [&whole[..at]]).is_err(), "cut at {at}");
        }
        let (_, other) = sealed_request(&keys, &[b"one"]);
        let response = sealed_response(&exchange, &[b"data"]);
        assert_eq!(response_of(other, response.iter().map(Vec::as_slice)).unwrap_err(), SealError::NotAuthentic);
        let mut endless = RequestOpener::new(keys.clone());
        let mut out = Vec::new();
        endless.push(parts[0], &mut out).unwrap();
        assert_eq!(endless.push(&[0xbf, 0xff, 0xff, 0xff], &mut out).unwrap_err(), SealError::TooLarge);
        let mut endless = RequestOpener::new(keys);
        endless.push(parts[0], &mut out).unwrap();
        endless.push(&[0], &mut out).unwrap();
        assert_eq!(endless.push(&vec![0; MAX_CHUNK + TAG + 1], &mut out).unwrap_err(), SealError::TooLarge);
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn wherever_it_is_cut_the_same_comes_out(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            flip in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let keys = keys();
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let (request, response) = sealed_request(&keys, &parts);
            let cut = |mut bytes: Vec<u8>, change: bool| {
                if let (Some(flip), true) = (&flip, change) {
                    let at = flip.index(bytes.len());
                    bytes[at] ^= 1;
                }
                let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                at.extend([0, bytes.len()]);
                at.sort_unstable();
                at.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect::<Vec<_>>()
            };
            let changed = cut(request.concat(), true);
            let came = opened(&keys, changed.iter().map(Vec::as_slice));
            prop_assert_eq!(came.is_err(), flip.is_some());
            let (plain, exchange) = opened(&keys, request.iter().map(Vec::as_slice)).unwrap();
            prop_assert_eq!(&plain, &parts.concat());
            let sealed = cut(sealed_response(&exchange, &parts).concat(), true);
            match response_of(response, sealed.iter().map(Vec::as_slice)) {
                Ok(plain) => prop_assert!(flip.is_none() && plain == parts.concat()),
                Err(_) => prop_assert!(flip.is_some()),
            }
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let keys = keys();
            prop_assert!(opened(&keys, [bytes.as_slice()]).is_err());
            let _none = PublicConfig::from_list(&bytes);
        }
    }
}
