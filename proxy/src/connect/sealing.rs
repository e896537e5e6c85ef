//! Requests to the sealed ones that go out, and back: what comes is opened piece by piece, as it comes.
//!
//! Whoever has a leaf may seal, for anybody whose keys it has ([`super::keys`]). Nothing is given out that was not authentic in its
//! place, and an answer that ends before its authenticated end never looks like one that is complete.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::{Buf as _, Bytes, BytesMut};
use data_encoding::BASE64;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use postern_certs::{CertsError, Signatory, SpiffeId};
use postern_sealed::binary::{self, Decoder, MAX_HEAD, Part};
use postern_sealed::chunked::{self, RequestSealer, ResponseOpener};
use postern_sealed::signed::{SENDER, SIGNATURE, Sent};
use postern_sealed::{PublicConfig, SealError};
use postern_wire::error::ErrorBody;
use postern_wire::sse;

use super::keys::chain_to_text;

/// Bytes that are sealed at a time.
const PIECE: usize = 64 << 10;
/// The header in which an application names a label.
const LABEL: &str = "postern-label";

/// Of one hop alone (RFC 9110, 7.6.1), whatever `connection` names beside them.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What an application says to whom it connects, or what is said anew.
const NOT_SENT: [HeaderName; 7] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::AUTHORIZATION,
    header::COOKIE,
    header::ACCEPT_ENCODING,
    header::EXPECT,
    header::DATE,
];

/// Why a request cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealingError {
    /// Its headers are too many.
    #[error("its headers are larger than {MAX_HEAD} bytes")]
    Head,
    /// The leaf cannot sign, or the key is none.
    #[error(transparent)]
    Sign(#[from] CertsError),
    /// The key is none.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Who seals, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parties<'a> {
    /// Who signs.
    pub(crate) sender: &'a Signatory,
    /// Who opens it.
    pub(crate) recipient: &'a SpiffeId,
    /// One of its keys.
    pub(crate) key: &'a PublicConfig,
    /// Where it is, `HOST:PORT`.
    pub(crate) authority: &'a str,
}

impl Parties<'_> {
    /// Seals a request, which is sealed as it is sent. What opens its response, too.
    ///
    /// # Errors
    /// See [`SealingError`].
    pub(crate) fn seal(
        &self,
        asked: &Request<()>,
        content: Bytes,
        now: SystemTime,
    ) -> Result<(Sealed, ResponseOpener), SealingError> {
        let mut begun = Vec::with_capacity(4 << 10);
        let (mut sealer, opener) = RequestSealer::begin(self.key, &mut rand::rng(), &mut begun)?;
        let date = httpdate::fmt_http_date(now);
        let headers = sent_on(asked.headers());
        // One that stands there twice is no label; the gateway says so.
        let mut labels = headers.get_all(LABEL).iter();
        let label = match (labels.next(), labels.next()) {
            (Some(label), None) => label.to_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        let sent = Sent {
            encapsulated: opener.encapsulated(),
            key: self.key.id(),
            gateway: &self.recipient.to_string(),
            method: asked.method().as_str(),
            path: asked.uri().path_and_query().map_or("/", |path| path.as_str()),
            date: &date,
            label: &label,
            body: &content,
        };
        let signature = BASE64.encode(&self.sender.sign(&sent.to_bytes())?);
        let mut inner = Request::new(());
        (*inner.method_mut(), *inner.uri_mut()) = (asked.method().clone(), asked.uri().clone());
        *inner.headers_mut() = headers;
        let own = [(header::DATE.as_str(), date), (SENDER, chain_to_text(self.sender.chain())), (SIGNATURE, signature)];
        for (name, value) in own {
            let value = HeaderValue::try_from(value).map_err(|_| SealingError::Head)?;
            inner.headers_mut().insert(HeaderName::from_static(name), value);
        }
        let mut head = Vec::with_capacity(4 << 10);
        binary::put_request(&inner, self.authority, content.len(), &mut head);
        if head.len() > MAX_HEAD {
            return Err(SealingError::Head);
        }
        sealer.push(&head, &mut begun)?;
        Ok((Sealed { begun, sealer: Some(sealer), content }, opener))
    }
}

/// Of an application's headers, those that go on.
fn sent_on(headers: &HeaderMap) -> HeaderMap {
    let mut sent = headers.clone();
    drop_hop_by_hop(&mut sent);
    for name in NOT_SENT {
        sent.remove(name);
    }
    // Who sent it is said by us alone.
    let ours: Vec<_> = sent
        .keys()
        .filter(|name| [SENDER, SIGNATURE].iter().any(|own| name.as_str().starts_with(own)))
        .cloned()
        .collect();
    for name in ours {
        sent.remove(name);
    }
    sent
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

impl Sealed {
    /// All of it at once, for a body that may be sent in a frame.
    ///
    /// # Errors
    /// It has more pieces than can be counted.
    pub(crate) fn whole(mut self) -> Result<Bytes, SealError> {
        let mut all = BytesMut::with_capacity(self.content.len() + self.begun.len() + (4 << 10));
        while let Some(sealer) = self.sealer.take() {
            all.extend_from_slice(&self.piece(sealer)?);
        }
        Ok(all.freeze())
    }
}

/// The body of a sealed request. What was not sent yet is not sealed yet, so that it is in memory once.
pub(crate) struct Sealed {
    begun: Vec<u8>,
    sealer: Option<RequestSealer>,
    content: Bytes,
}

impl Sealed {
    /// The body of a request that has none.
    pub(crate) fn nothing() -> Self {
        Self { begun: Vec::new(), sealer: None, content: Bytes::new() }
    }

    fn piece(&mut self, mut sealer: RequestSealer) -> Result<Bytes, SealError> {
        let mut out = std::mem::take(&mut self.begun);
        let piece = self.content.split_to(PIECE.min(self.content.len()));
        sealer.push(&piece, &mut out)?;
        if self.content.is_empty() {
            sealer.finish(&mut out)?;
        } else {
            self.sealer = Some(sealer);
        }
        Ok(out.into())
    }
}

impl Body for Sealed {
    type Data = Bytes;
    type Error = SealError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SealError>>> {
        Poll::Ready(self.sealer.take().map(|sealer| self.piece(sealer).map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.sealer.is_none()
    }
}

/// An answer that came sealed and ended before its end: the application's connection is broken off, since a clean end would look like
/// a complete answer.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the answer ended before its end")]
pub(crate) struct Cut;

/// Why there is no answer that could be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unopened {
    /// The connection broke.
    #[error("the connection broke before the answer began")]
    Broken,
    /// It is not authentic, or was cut.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Opens one response.
#[derive(Debug)]
struct Opening {
    opener: ResponseOpener,
    decoder: Decoder,
    plain: Vec<u8>,
}

/// What was opened by now.
#[derive(Debug, Default)]
struct Opened {
    head: Option<Response<()>>,
    content: BytesMut,
}

impl Opening {
    fn new(opener: ResponseOpener) -> Self {
        Self { opener, decoder: Decoder::response(), plain: Vec::new() }
    }

    /// Takes the next bytes, cut anywhere.
    fn push(&mut self, sealed: &[u8], opened: &mut Opened) -> Result<(), SealError> {
        self.plain.clear();
        self.opener.push(sealed, &mut self.plain)?;
        decode(&mut self.decoder, &self.plain, opened)
    }

    /// No more comes.
    fn finish(mut self, opened: &mut Opened) -> Result<(), SealError> {
        self.plain.clear();
        self.opener.finish(&mut self.plain)?;
        decode(&mut self.decoder, &self.plain, opened)?;
        self.decoder.finish()
    }
}

fn decode(decoder: &mut Decoder, plain: &[u8], opened: &mut Opened) -> Result<(), SealError> {
    let Opened { head, content } = opened;
    decoder.push(plain, &mut |part| match part {
        Part::Response(response) => *head = Some(response),
        Part::Content(more) => content.extend_from_slice(more),
        Part::Request(_) => {}
    })
}

/// Whether this is a response that [`open`] can open.
pub(crate) fn is_sealed<B>(response: &Response<B>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    response.status() == http::StatusCode::OK && kind == Some(chunked::RESPONSE.as_bytes())
}

/// Waits for the head of what is sealed in `body`. The content comes as it comes.
///
/// # Errors
/// See [`Unopened`].
pub(crate) async fn open<B>(mut body: B, opener: ResponseOpener) -> Result<Response<OpenBody<B>>, Unopened>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (mut opening, mut opened) = (Some(Opening::new(opener)), Opened::default());
    while opened.head.is_none() {
        let Some(frame) = body.frame().await else {
            // Whole answers may come in one piece, the last.
            if let Some(opening) = opening.take() {
                opening.finish(&mut opened)?;
            }
            break;
        };
        let frame = frame.map_err(|_| Unopened::Broken)?;
        if let (Some(opening), Some(sealed)) = (&mut opening, frame.data_ref()) {
            opening.push(sealed, &mut opened)?;
        }
    }
    let (mut parts, ()) = opened.head.ok_or(SealError::Cut)?.into_parts();
    drop_hop_by_hop(&mut parts.headers);
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_events = kind.starts_with("text/event-stream");
    let body = OpenBody { body, opening, ready: opened.content, is_events, last: [b'\n'; 2], was_cut: false };
    Ok(Response::from_parts(parts, body))
}

/// The content of a response that came sealed.
#[derive(Debug)]
pub(crate) struct OpenBody<B> {
    body: B,
    /// `None`: it has ended.
    opening: Option<Opening>,
    /// What came with the head.
    ready: BytesMut,
    is_events: bool,
    /// What was given out last.
    last: [u8; 2],
    was_cut: bool,
}

/// What an application reads of it.
pub(crate) const INCOMPLETE: &str =
    "The answer broke off before its end: the connection to the gateway was lost, or somebody cut it.";

type Given = Poll<Option<Result<Frame<Bytes>, Cut>>>;

impl<B> OpenBody<B> {
    /// It ended before its end.
    pub(crate) fn was_cut(&self) -> bool {
        self.was_cut
    }

    fn give(&mut self, content: Bytes) -> Given {
        for byte in content.iter().skip(content.len().saturating_sub(2)) {
            let [_, before] = self.last;
            self.last = [before, *byte];
        }
        Poll::Ready(Some(Ok(Frame::data(content))))
    }

    /// An event stream says it in its last event, and without `[DONE]`; anything else breaks off.
    fn cut(&mut self) -> Given {
        (self.opening, self.was_cut) = (None, true);
        Poll::Ready(Some(if self.is_events { Ok(Frame::data(incomplete(self.last))) } else { Err(Cut) }))
    }
}

/// The event that says so. What was begun before it is ended first.
fn incomplete(last: [u8; 2]) -> Bytes {
    let error = ErrorBody {
        message: INCOMPLETE.to_owned(),
        kind: "server_error",
        param: None,
        code: Some("answer_incomplete"),
    };
    let event = sse::data(&error.to_json());
    if last == *b"\n\n" { event } else { Bytes::from([b"\n\n", event.as_ref()].concat()) }
}

impl<B: Body<Data = Bytes> + Unpin> OpenBody<B> {
    /// Reads up to `most` bytes of an answer that is no stream before any is given out: one that is cut by then is an error in words, and not
    /// a connection that breaks off. A frame more may come.
    ///
    /// # Errors
    /// It was cut.
    pub(crate) async fn hold(&mut self, most: usize) -> Result<(), Cut> {
        let mut held = BytesMut::new();
        while !self.is_events && held.len() < most {
            match self.frame().await.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => held.extend_from_slice(&data),
                Some(Err(_)) => {}
                None => break,
            }
        }
        if !held.is_empty() {
            self.ready = held;
        }
        Ok(())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for OpenBody<B> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Given {
        let this = &mut *self;
        loop {
            if this.ready.has_remaining() {
                let ready = this.ready.split().freeze();
                return this.give(ready);
            }
            let Some(opening) = &mut this.opening else { return Poll::Ready(None) };
            let mut opened = Opened::default();
            let taken = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => frame.data_ref().map_or(Ok(()), |sealed| opening.push(sealed, &mut opened)),
                Some(Err(_)) => Err(SealError::Cut),
                None => match this.opening.take() {
                    Some(opening) => opening.finish(&mut opened),
                    None => Ok(()),
                },
            };
            if taken.is_err() {
                return this.cut();
            }
            this.ready = opened.content;
        }
    }

    fn is_end_stream(&self) -> bool {
        self.opening.is_none() && self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests;
