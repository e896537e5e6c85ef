//! Sealed payload → plain. What is not authentic, was sent before, or is not from whom it says, goes no further, and nothing is done with it.
//!
//! | form | where | what is sealed | who sent it |
//! | --- | --- | --- | --- |
//! | Oblivious HTTP, in pieces | `POST` [`GATEWAY`], `message/ohttp-chunked-req` | the whole request and response, to their authentic ends | signed inside |
//! | Oblivious HTTP, whole | there, `message/ohttp-req` | the same, in one piece | signed inside |
//! | EHBP | any endpoint, `Ehbp-Encapsulated-Key` | the two bodies | mutual TLS |

pub mod keys;
mod sender;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use postern_certs::{SpiffeId, Trust, verify};
use postern_sealed::binary::{self, Decoder, Part};
use postern_sealed::whole::{self, Exchange};
use postern_sealed::{SealError, chunked, ehbp, signed};
use tokio::sync::OwnedSemaphorePermit;

use crate::admission::Admitted;
use crate::connection::session::Session;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::request::{Peer, discard};
use keys::PayloadKeys;

/// Where Oblivious HTTP is spoken, and its keys are (RFC 9540, section 4).
pub(crate) const GATEWAY: &str = "/.well-known/ohttp-gateway";
const SOMEBODY_ELSE: Error =
    Error::PayloadSender("it is signed by somebody else than the certificate of its connection is for");
const NOT_SIGNED: Error = Error::PayloadSender("it is not signed, and this connection carries others' requests");
/// Where EHBP's keys are.
pub(crate) const HPKE_KEYS: &str = "/.well-known/hpke-keys";

/// A request's body: as it comes, or opened.
#[derive(Debug)]
pub enum Payload {
    /// In clear, inside of TLS.
    Plain(Incoming),
    /// In clear, of the gateway itself: it leaves no machine.
    Inside(Incoming),
    /// It was sealed.
    Opened(Box<Unsealed>),
}

impl Payload {
    /// How it was sealed.
    #[must_use]
    pub fn form(&self) -> Option<&'static str> {
        match self {
            Self::Plain(_) | Self::Inside(_) => None,
            Self::Opened(unsealed) => Some(unsealed.form),
        }
    }
}

/// What was sealed.
#[derive(Debug)]
pub struct Unsealed {
    /// The whole body, in clear.
    pub body: Bytes,
    /// Whoever sent it was admitted before it was read.
    pub admitted: Admitted,
    /// In one word, for the record.
    pub form: &'static str,
}

/// A request whose payload is plain.
#[derive(Debug)]
pub struct OpenedRequest {
    /// The client's headers.
    pub headers: HeaderMap,
    /// The whole body, in clear.
    pub body: Bytes,
}

impl OpenedRequest {
    /// # Errors
    /// It is not announced as JSON.
    pub fn new(headers: HeaderMap, body: Bytes) -> Result<Self, Error> {
        let is_json = essence(&headers) == "application/json";
        if is_json { Ok(Self { headers, body }) } else { Err(Error::MediaType) }
    }
}

/// How a request is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Pieces,
    Whole,
    Bodies,
}

impl Form {
    /// `None`: it is not.
    ///
    /// # Errors
    /// It comes where only sealed requests come, and is none.
    pub(crate) fn of<B>(request: &Request<B>) -> Result<Option<Self>, Error> {
        if request.headers().contains_key(ehbp::ENCAPSULATED_KEY) {
            return Ok(Some(Self::Bodies));
        }
        if request.uri().path() != GATEWAY {
            return Ok(None);
        }
        match (request.method(), essence(request.headers()).as_str()) {
            (&Method::POST, chunked::REQUEST) => Ok(Some(Self::Pieces)),
            (&Method::POST, whole::REQUEST) => Ok(Some(Self::Whole)),
            (&Method::POST, _) => Err(Error::SealedMediaType),
            _ => Err(Error::Method("GET and POST")),
        }
    }

    /// For records and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pieces => "ohttp-chunked",
            Self::Whole => "ohttp",
            Self::Bodies => "ehbp",
        }
    }
}

/// A request, opened, and what its response is sealed with.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Or why it is refused, which is told sealed: whoever is on the way learns nothing of it.
    pub(crate) request: Result<Request<Payload>, Error>,
    /// Whose it is: of the connection, or carried over it.
    pub(crate) session: Arc<Session>,
    pub(crate) exchange: Exchange,
}

/// Opens a request that came over `session`.
///
/// # Errors
/// It is not authentic, not for a key of ours, was sent before or too long ago, or is from somebody who may not send it here.
pub(crate) async fn open(
    gateway: &Gateway,
    trust: &Arc<Trust>,
    session: &Arc<Session>,
    form: Form,
    request: Request<Incoming>,
) -> Result<Opened, Error> {
    let (mut parts, body) = request.into_parts();
    let entered = enter(gateway, session, form, &parts).await;
    let (place, mut admitted, opener) = match entered {
        Ok(entered) => entered,
        Err(error) => {
            discard(body).await;
            return Err(error);
        }
    };
    let limits = Limits { body: gateway.config.limits.body.0, receive: gateway.config.limits.receive.0 };
    let (plain, exchange) = read(body, opener, limits, &mut |bytes| admitted.charge(bytes)).await?;
    let carries = place.is_some();
    drop(place);
    if form == Form::Bodies {
        gateway.payload_keys.accept_undated(&exchange)?;
        [ehbp::ENCAPSULATED_KEY, header::CONTENT_LENGTH.as_str()].into_iter().for_each(|name| {
            parts.headers.remove(name);
        });
        let opened = Unsealed { body: plain.into(), admitted, form: form.word() };
        let request = Ok(Request::from_parts(parts, Payload::Opened(Box::new(opened))));
        return Ok(Opened { request, session: session.clone(), exchange });
    }

    let (request, body, sender) =
        said(plain, limits.body, &gateway.payload_keys, (trust, &gateway.config.gateway_id()), &exchange)?;
    let session = match sender {
        Some(sender) if sender.id == session.peer.id => session.clone(),
        Some(sender) if carries => Arc::new(Session::carried(sender, session)),
        Some(_) => return Err(SOMEBODY_ELSE),
        None if carries => return Err(NOT_SIGNED),
        None => session.clone(),
    };
    // Last of all, so that what is refused is not remembered.
    gateway.payload_keys.accept(&exchange)?;
    let admitted = if carries {
        match enter_carried(gateway, &session, body.len() as u64).await {
            Ok(own) => own,
            Err(error) => return Ok(Opened { request: Err(error), session, exchange }),
        }
    } else {
        admitted
    };
    let opened = Unsealed { body, admitted, form: form.word() };
    Ok(Opened { request: Ok(request.map(|()| Payload::Opened(Box::new(opened)))), session, exchange })
}

/// Admits whose request was carried, with what is in memory of it by now.
async fn enter_carried(gateway: &Gateway, session: &Session, body: u64) -> Result<Admitted, Error> {
    let mut own = gateway.admission.enter(&Peer::resolve(&gateway.config, &session.peer.id)?).await?;
    own.charge(body)?;
    Ok(own)
}

/// Who may have sent what comes over a connection to a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Senders<'a> {
    /// Whoever's connection it is, who need not sign.
    Peer(&'a SpiffeId),
    /// It is a relay's, so these, if they have signed.
    Carried(&'a [SpiffeId]),
}

/// A request that a node has opened.
#[derive(Debug)]
pub(crate) struct OpenedAtNode {
    pub(crate) request: Request<Bytes>,
    /// Who signed what a relay has carried.
    pub(crate) carried: Option<verify::Peer>,
    pub(crate) exchange: Exchange,
}

/// Opens a request at a node.
///
/// # Errors
/// As [`open`].
pub(crate) async fn open_at_node(
    keys: &PayloadKeys,
    (trust, own): (&Arc<Trust>, &SpiffeId),
    senders: Senders<'_>,
    form: Form,
    request: Request<Incoming>,
    limits: Limits,
) -> Result<OpenedAtNode, Error> {
    if form == Form::Bodies {
        return Err(Error::SealedMediaType);
    }
    let opener = Opener::new(keys, form, request.headers(), limits)?;
    let (plain, exchange) = read(request.into_body(), opener, limits, &mut |_| Ok(())).await?;
    let (request, body, sender) = said(plain, limits.body, keys, (trust, &own.to_string()), &exchange)?;
    let carried = match (senders, sender) {
        (Senders::Peer(_), None) => None,
        (Senders::Peer(peer), Some(sender)) if sender.id == *peer => None,
        (Senders::Peer(_), Some(_)) => return Err(SOMEBODY_ELSE),
        (Senders::Carried(allowed), Some(sender)) if allowed.contains(&sender.id) => Some(sender),
        (Senders::Carried(_), Some(_)) => {
            return Err(Error::PayloadSender("it is signed by somebody who may not use this node"));
        }
        (Senders::Carried(_), None) => return Err(NOT_SIGNED),
    };
    keys.accept(&exchange)?;
    Ok(OpenedAtNode { request: request.map(|()| body), carried, exchange })
}

/// What was sealed says of itself what it is, when, and from whom.
fn said(
    plain: Vec<u8>,
    limit: u64,
    keys: &PayloadKeys,
    (trust, own): (&Arc<Trust>, &str),
    exchange: &Exchange,
) -> Result<(Request<()>, Bytes, Option<verify::Peer>), Error> {
    let (mut request, body) = message(plain.into())?;
    if body.len() as u64 > limit {
        return Err(Error::TooLarge { limit });
    }
    sender::check_date(request.headers())?;
    let sender = sender::of(&keys.senders, trust, own, exchange, &request, &body)?;
    [signed::SENDER, signed::SIGNATURE].into_iter().for_each(|name| {
        request.headers_mut().remove(name);
    });
    Ok((request, body, sender))
}

/// Admits whoever's connection it is: what is read is held on their account. With a place among those that relays bring, if it is one.
async fn enter(
    gateway: &Gateway,
    session: &Session,
    form: Form,
    parts: &Parts,
) -> Result<(Option<OwnedSemaphorePermit>, Admitted, Opener), Error> {
    let config = &gateway.config;
    let carries = config.carries(&session.peer.id);
    if carries && form == Form::Bodies {
        return Err(Error::PayloadSender(
            "a body that is sealed alone does not say who sent it, and comes directly only",
        ));
    }
    let limits = Limits { body: config.limits.body.0, receive: config.limits.receive.0 };
    let opener = Opener::new(&gateway.payload_keys, form, &parts.headers, limits)?;
    if !carries {
        return Ok((None, gateway.admission.enter(&Peer::resolve(config, &session.peer.id)?).await?, opener));
    }
    let place = gateway.carried.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
    Ok((Some(place), gateway.admission.enter(&Peer::carrier(config, &session.peer.id)).await?, opener))
}

enum Opener {
    Pieces(Box<chunked::RequestOpener>),
    Whole(Arc<postern_sealed::Keys>, Vec<u8>),
    Bodies(ehbp::RequestOpener),
}

impl Opener {
    fn new(keys: &PayloadKeys, form: Form, headers: &HeaderMap, limits: Limits) -> Result<Self, Error> {
        let keys = keys.keys();
        Ok(match form {
            Form::Pieces => Self::Pieces(Box::new(chunked::RequestOpener::new(postern_sealed::Keys::clone(&keys)))),
            Form::Whole => Self::Whole(keys, Vec::new()),
            Form::Bodies => {
                let enc = headers.get(ehbp::ENCAPSULATED_KEY).map(http::HeaderValue::as_bytes).unwrap_or_default();
                let enc = data_encoding::HEXLOWER_PERMISSIVE.decode(enc).ok().and_then(|enc| enc.try_into().ok());
                let enc = enc.ok_or(SealError::NotAuthentic)?;
                let most = usize::try_from(limits.body).unwrap_or(usize::MAX);
                Self::Bodies(ehbp::RequestOpener::new(&keys, enc, most)?)
            }
        })
    }
}

/// Bounds of a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes, in clear.
    pub(crate) body: u64,
    /// For all of it to come.
    pub(crate) receive: Duration,
}

type Charge<'a> = &'a mut (dyn FnMut(u64) -> Result<(), Error> + Send);

/// Reads and opens a body, and charges it as it comes. What is sealed and what is clear are in memory at the same time where it comes in one
/// piece, so both are charged.
async fn read(
    body: Incoming,
    opener: Opener,
    limits: Limits,
    charge: Charge<'_>,
) -> Result<(Vec<u8>, Exchange), Error> {
    let reading = tokio::time::timeout(limits.receive, collect(body, opener, limits.body, charge)).await;
    reading.map_err(|_| Error::ReceiveTimeout(limits.receive))?
}

async fn collect(
    mut body: Incoming,
    mut opener: Opener,
    limit: u64,
    charge: Charge<'_>,
) -> Result<(Vec<u8>, Exchange), Error> {
    // Pieces of a few bytes are mostly tags.
    let limit_sealed = limit.saturating_mul(2).saturating_add(binary::MAX_HEAD as u64);
    if body.size_hint().lower() > limit_sealed {
        return Err(Error::TooLarge { limit });
    }
    let (mut plain, mut came) = (Vec::new(), 0_u64);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Error::ReceiveBroken)?.into_data() else { continue };
        came += data.len() as u64;
        if came > limit_sealed || plain.len() as u64 > limit + binary::MAX_HEAD as u64 {
            return Err(Error::TooLarge { limit });
        }
        charge(came)?;
        match &mut opener {
            Opener::Pieces(opener) => opener.push(&data, &mut plain)?,
            Opener::Bodies(opener) => opener.push(&data, &mut plain)?,
            Opener::Whole(_, sealed) => sealed.extend_from_slice(&data),
        }
    }
    let exchange = match opener {
        Opener::Pieces(opener) => opener.finish(&mut plain)?,
        Opener::Bodies(opener) => opener.finish()?,
        Opener::Whole(keys, sealed) => {
            charge(came.saturating_mul(2))?;
            let (request, exchange) = whole::open_request(&keys, &sealed)?;
            plain = request;
            exchange
        }
    };
    if plain.len() as u64 > limit + binary::MAX_HEAD as u64 {
        return Err(Error::TooLarge { limit });
    }
    Ok((plain, exchange))
}

/// Reads what was sealed. The content is a part of `plain`, unless it was cut into pieces.
fn message(plain: Bytes) -> Result<(Request<()>, Bytes), Error> {
    let (mut decoder, mut request) = (Decoder::request(), None);
    let (mut body, mut pieces) = (Bytes::new(), Vec::new());
    decoder.push(&plain, &mut |part| match part {
        Part::Request(asked) => request = Some(asked),
        Part::Content(content) if body.is_empty() => body = plain.slice_ref(content),
        Part::Content(content) => {
            if pieces.is_empty() {
                pieces.extend_from_slice(&body);
            }
            pieces.extend_from_slice(content);
        }
        Part::Response(_) => {}
    })?;
    decoder.finish()?;
    let request = request.ok_or(SealError::Message)?;
    Ok((request, if pieces.is_empty() { body } else { pieces.into() }))
}

/// What stands in `Content-Type`, without its parameters.
fn essence(headers: &HeaderMap) -> String {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_announced_json_passes() {
        let open = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            OpenedRequest::new(headers, Bytes::new()).map(|_| ())
        };
        assert!(open("content-type", "application/json; charset=utf-8").is_ok());
        assert!(matches!(open("content-type", "text/plain"), Err(Error::MediaType)));
        assert!(matches!(open("accept", "application/json"), Err(Error::MediaType)));
    }

    #[test]
    fn sealed_requests_are_known_by_where_they_come() {
        let form = |method: &str, path: &str, header: (&'static str, &str)| {
            let request = Request::builder().method(method).uri(path).header(header.0, header.1).body(()).unwrap();
            Form::of(&request)
        };
        let json = ("content-type", "application/json");
        assert_eq!(form("POST", "/v1/chat/completions", json).unwrap(), None);
        assert_eq!(form("POST", GATEWAY, ("content-type", "message/ohttp-req")).unwrap(), Some(Form::Whole));
        assert_eq!(form("POST", GATEWAY, ("content-type", "message/ohttp-chunked-req")).unwrap(), Some(Form::Pieces));
        assert!(matches!(form("POST", GATEWAY, json), Err(Error::SealedMediaType)));
        assert!(matches!(form("PUT", GATEWAY, ("content-type", "message/ohttp-req")), Err(Error::Method(_))));
        assert_eq!(form("POST", "/v1/embeddings", (ehbp::ENCAPSULATED_KEY, "00")).unwrap(), Some(Form::Bodies));
    }

    #[test]
    fn content_is_found_whether_it_is_in_one_piece_or_not() {
        let mut known = Vec::new();
        let request = Request::builder().method("POST").uri("/v1/x").body(()).unwrap();
        binary::put_request(&request, "", 4, &mut known);
        known.extend_from_slice(b"abcd");
        // The same, indeterminate: POST, https, no authority, the path, no fields, two pieces, no trailers.
        let pieces =
            [&[2, 4][..], b"POST", &[5], b"https", &[0, 5], b"/v1/x", &[0, 2], b"ab", &[2], b"cd", &[0, 0]].concat();
        for plain in [known, pieces] {
            let (request, body) = message(plain.into()).unwrap();
            assert_eq!((request.uri().path(), &body[..]), ("/v1/x", &b"abcd"[..]));
        }
    }
}
