//! Plain → sealed: the response, as it comes, for whoever sealed the request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Frame;
use postern_certs::Trust;
use postern_sealed::whole::{self, Exchange};
use postern_sealed::{SealError, binary, chunked, ehbp};
use tokio::sync::{Semaphore, watch};

use crate::connection::session::Session;
use crate::error::Error;
use crate::open::Form;
use crate::response::{self, Body, Cut};

/// Bytes of an answer that is sealed as a whole, so it is in memory three times. Larger ones are asked for in pieces.
const MAX_WHOLE: usize = 16 << 20;

/// Seals `response`; `sender` is whose it is, if it goes over somebody else's connection. `whole`: places for answers that are sealed as a whole.
pub(crate) async fn seal(
    form: Form,
    exchange: &Exchange,
    response: Response<Body>,
    sender: Option<Sender>,
    whole: &Arc<Semaphore>,
) -> Response<Body> {
    let sealed = match form {
        Form::Pieces => in_pieces(exchange, response, sender),
        Form::Bodies => bodies(exchange, response),
        Form::Whole => as_a_whole(exchange, response, sender, whole).await,
    };
    // Nothing of it has been sent.
    sealed.unwrap_or_else(|error| response::error(&error.into()))
}

/// Who gets a response over somebody else's connection. That connection is not cut when their certificate ends or is revoked, so this is.
pub(crate) struct Sender {
    pub(crate) session: Arc<Session>,
    pub(crate) trust: watch::Receiver<Arc<Trust>>,
}

impl Sender {
    /// Whether it has to end.
    fn is_over(&mut self) -> bool {
        let changed = self.trust.has_changed().unwrap_or(false);
        if changed && self.trust.borrow_and_update().is_revoked(&self.session.peer) {
            self.session.set_cut("certificate_revoked");
            return true;
        }
        let ended = !self.session.is_current();
        if ended {
            self.session.set_cut("connection_expired");
        }
        ended
    }
}

fn in_pieces(
    exchange: &Exchange,
    response: Response<Body>,
    sender: Option<Sender>,
) -> Result<Response<Body>, SealError> {
    let (parts, body) = response.into_parts();
    let (mut begun, mut head) = (Vec::with_capacity(1024), Vec::with_capacity(512));
    let mut sealer = chunked::ResponseSealer::begin(exchange, &mut rand::rng(), &mut begun)?;
    binary::begin_response(parts.status, &parts.headers, &mut head);
    sealer.push(&head, &mut begun)?;
    let body =
        Sealed { inner: body, begun: Some(begun), sealer: Some(Sealer::Pieces(sealer)), plain: Vec::new(), sender };
    let mut headers = outer(chunked::RESPONSE);
    // Whoever passes it on should not wait for all of it (draft-ietf-httpbis-incremental).
    headers.insert("incremental", HeaderValue::from_static("?1"));
    Ok(answered(StatusCode::OK, headers, body.boxed_unsync()))
}

fn bodies(exchange: &Exchange, response: Response<Body>) -> Result<Response<Body>, SealError> {
    let (mut parts, body) = response.into_parts();
    let (sealer, nonce) = ehbp::ResponseSealer::begin(exchange, &mut rand::rng())?;
    let nonce = HeaderValue::try_from(data_encoding::HEXLOWER.encode(&nonce)).map_err(|_| SealError::Ended)?;
    parts.headers.insert(ehbp::RESPONSE_NONCE, nonce);
    parts.headers.remove(header::CONTENT_LENGTH);
    let body =
        Sealed { inner: body, begun: None, sealer: Some(Sealer::Bodies(sealer)), plain: Vec::new(), sender: None };
    Ok(answered(parts.status, parts.headers, body.boxed_unsync()))
}

async fn as_a_whole(
    exchange: &Exchange,
    response: Response<Body>,
    mut sender: Option<Sender>,
    places: &Arc<Semaphore>,
) -> Result<Response<Body>, SealError> {
    // Never closed. Whoever waits holds no more of its answer than what waits for any client that does not read.
    let place = places.clone().acquire_owned().await.map_err(|_| SealError::Ended)?;
    let (mut parts, mut content) = collected(response).await;
    if sender.as_mut().is_some_and(Sender::is_over) {
        (parts, content) = said(&Error::ConnectionExpired);
    }
    let mut message = Vec::with_capacity(content.len() + 1024);
    binary::put_response(parts.status, &parts.headers, &content, &mut message);
    let sealed = whole::seal_response(exchange, &message, &mut rand::rng())?;
    // In memory until it has been sent, or dropped.
    let body = response::full(sealed.into()).map_frame(move |frame| {
        let _held = &place;
        frame
    });
    Ok(answered(StatusCode::OK, outer(whole::RESPONSE), body.boxed_unsync()))
}

/// A whole response; or that there is none, which is told in its place, under the seal.
async fn collected(response: Response<Body>) -> (Parts, Bytes) {
    let (parts, body) = response.into_parts();
    match Limited::new(body, MAX_WHOLE).collect().await {
        Ok(content) => (parts, content.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => said(&Error::SealedAnswerTooLarge),
        Err(_) => said(&Error::StreamBroken),
    }
}

fn said(error: &Error) -> (Parts, Bytes) {
    let (parts, _) = response::error(error).into_parts();
    (parts, error.reply().body.to_bytes())
}

/// All that anybody on the way is told.
fn outer(media_type: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

fn answered(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

/// Seals what comes, each frame when it comes.
struct Sealed {
    inner: Body,
    begun: Option<Vec<u8>>,
    /// `None`: the end has been sent, or there will be none.
    sealer: Option<Sealer>,
    plain: Vec<u8>,
    sender: Option<Sender>,
}

enum Sealer {
    Pieces(chunked::ResponseSealer),
    Bodies(ehbp::ResponseSealer),
}

impl Sealed {
    fn sealed(&mut self, data: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::new();
        match &mut self.sealer {
            Some(Sealer::Pieces(sealer)) => {
                self.plain.clear();
                binary::put_content(data, &mut self.plain);
                sealer.push(&self.plain, &mut out)?;
            }
            Some(Sealer::Bodies(sealer)) => sealer.push(data, &mut out)?,
            None => {}
        }
        Ok(out)
    }

    fn end(&mut self) -> Result<Option<Vec<u8>>, SealError> {
        let Some(Sealer::Pieces(mut sealer)) = self.sealer.take() else { return Ok(None) };
        let mut out = Vec::new();
        self.plain.clear();
        binary::end_response(&mut self.plain);
        sealer.push(&self.plain, &mut out)?;
        sealer.finish(&mut out)?;
        Ok(Some(out))
    }
}

impl http_body::Body for Sealed {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if let Some(begun) = this.begun.take() {
            return Poll::Ready(Some(Ok(Frame::data(begun.into()))));
        }
        if this.sealer.is_none() {
            return Poll::Ready(None);
        }
        loop {
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
            let frame = if this.sender.as_mut().is_some_and(Sender::is_over) { Some(Err(Cut)) } else { frame };
            let sealed = match frame {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    this.sealed(&data).map(Some)
                }
                // Without its end: whoever reads it sees that it was cut.
                Some(Err(cut)) => {
                    this.sealer = None;
                    return Poll::Ready(Some(Err(cut)));
                }
                None => this.end(),
            };
            return Poll::Ready(match sealed {
                Ok(Some(bytes)) if bytes.is_empty() => continue,
                Ok(bytes) => bytes.map(|bytes| Ok(Frame::data(bytes.into()))),
                Err(_) => {
                    this.sealer = None;
                    Some(Err(Cut))
                }
            });
        }
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        Self::Payload(error)
    }
}

#[cfg(test)]
mod tests {
    use postern_sealed::{Keys, PublicConfig, SecretKey};
    use serde_json::Value;

    use super::*;

    /// The status and the code of what is sealed as a whole.
    async fn whole_of(body: Body) -> (u16, String) {
        let mut rng = rand::rng();
        let keys = Keys::new(vec![SecretKey::generate(1, &mut rng)]);
        let config = PublicConfig::from_list(&keys.list()).unwrap();
        let (request, asked) = whole::seal_request(&config, b"a", &mut rng).unwrap();
        let (_, exchange) = whole::open_request(&keys, &request).unwrap();
        let places = Arc::new(Semaphore::new(1));
        let sealed = seal(Form::Whole, &exchange, Response::new(body), None, &places).await;
        assert_eq!(sealed.headers()["content-type"], whole::RESPONSE);
        let plain = whole::open_response(&asked, &sealed.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let (mut status, mut content) = (0, Vec::new());
        let mut decoder = binary::Decoder::response();
        decoder
            .push(&plain, &mut |part| match part {
                binary::Part::Response(response) => status = response.status().as_u16(),
                binary::Part::Content(more) => content.extend_from_slice(more),
                binary::Part::Request(_) => {}
            })
            .unwrap();
        let said: Value = serde_json::from_slice(&content).unwrap_or_default();
        (status, said.pointer("/error/code").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_or_too_large_is_told_as_that_under_the_seal() {
        assert_eq!(whole_of(response::full("{}".into())).await, (200, String::new()));
        let large = response::full(vec![b'x'; MAX_WHOLE + 1].into());
        assert_eq!(whole_of(large).await, (400, "payload_answer_too_large".to_owned()));
        let cut = futures_util::stream::iter([Ok(Frame::data(Bytes::from("{"))), Err(Cut)]);
        let (status, code) = whole_of(http_body_util::StreamBody::new(cut).boxed_unsync()).await;
        assert_eq!((status, code.as_str()), (502, "stream_broken"));
    }
}
