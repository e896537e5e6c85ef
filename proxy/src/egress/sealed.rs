//! A node of our own is asked sealed: what goes there, and what comes back, is for the two alone, also where somebody breaks TLS open on the way.
//!
//! There TLS says nothing of the node. That it is who it should be, and still may be, follows from its signature of the keys that requests
//! are sealed for: its chain is judged again and again, and an answer ends when the leaf that signed is over or revoked.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame};
use postern_certs::{SpiffeId, Trust, clock};
use postern_sealed::chunked;
use serde_json::Value;
use time::OffsetDateTime;

use super::lifetime::Lifetime;
use super::pools::{Connector, Pools, Received, RequestError, Seat};
use crate::connect::keys::{self, KeysError, SealingKey};
use crate::connect::sealing::{self, OpenBody, Parties};
use crate::open::GATEWAY;
use crate::tls::{Certificate, Current};

/// How often a request is sealed, where the node's keys are new each time.
const ATTEMPTS: usize = 2;
/// Bytes of an error that are read for its code, and for how long.
const MAX_ERROR: usize = 16 << 10;
const ERROR_WITHIN: Duration = Duration::from_secs(2);
/// For how long a chain counts as judged: what leads from a leaf to a root may end, and lists of what is revoked have an age.
const JUDGED_FOR: Duration = Duration::from_secs(60);
/// How long before its leaf ends a key is replaced: about as long as an answer may take.
const BEFORE_THE_END: time::Duration = time::Duration::minutes(10);
/// Whoever is on the way passes pieces on as they come: draft-ietf-httpbis-incremental.
const INCREMENTAL: &str = "incremental";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// As it comes.
    Plain(Received),
    /// Opened as it comes.
    Sealed(Box<Opened>),
}

/// The body of an answer that came sealed.
#[derive(Debug)]
pub(crate) struct Opened {
    body: Box<OpenBody<Received>>,
    /// Where the connection is with somebody on the way, it does not end with whom the answer is from.
    lifetime: Option<Lifetime>,
}

impl Body for Opened {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(lifetime) = &mut self.lifetime {
            lifetime.check(context)?;
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Plain(body) => Pin::new(body).poll_frame(context),
            Self::Sealed(body) => Pin::new(body).poll_frame(context),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unsealed {
    /// What the connection says.
    Sending(RequestError),
    /// What only a person can mend.
    Refused(String),
}

/// The key of a node, as long as it is good.
#[derive(Debug, Default)]
pub(super) struct NodeKey(ArcSwapOption<Believed>);

/// A key that a node has signed.
#[derive(Debug)]
struct Believed {
    key: SealingKey,
    /// When the chain behind the signature was judged.
    at: OffsetDateTime,
    /// Then it is asked for again: what is under way should not end with a leaf that has been replaced long ago.
    fresh_until: OffsetDateTime,
}

impl Believed {
    fn new(key: SealingKey, at: OffsetDateTime) -> Self {
        let fresh_until = fresh_until(key.owner.not_after, at);
        Self { key, at, fresh_until }
    }
}

/// Too much to do, or broken: that costs a target this request and a moment. 501 would say that it does not have the model.
fn may_be_said_by_anybody(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

fn fresh_until(end: OffsetDateTime, now: OffsetDateTime) -> OffsetDateTime {
    let left: time::Duration = end - now;
    end - (left / 2_i32).min(BEFORE_THE_END)
}

/// Who asks whom.
#[derive(Debug)]
pub(super) struct Ends<'a, C: Connector> {
    pub(super) requests: &'a Pools<C>,
    pub(super) own: &'a Current,
    pub(super) node: &'a SpiffeId,
    pub(super) key: &'a NodeKey,
    /// Somebody may break TLS open on the way; this hears of what is revoked meanwhile.
    pub(super) through: Option<&'a Certificate>,
}

/// What came of one attempt.
enum Came {
    Opened(Response<Box<OpenBody<Received>>>),
    /// Not sealed, as whoever is too busy to open anything answers.
    Plain(Response<Received>),
    /// Refused, with this code.
    Refused(Option<String>),
}

impl<C: Connector> Ends<'_, C> {
    /// Seals a request, sends it, and opens the answer's beginning.
    ///
    /// # Errors
    /// See [`Unsealed`].
    pub(super) async fn ask(&self, request: Request<Bytes>) -> Result<Response<Answer>, Unsealed> {
        let (parts, content) = request.into_parts();
        let (mut code, mut before) = (None, None);
        for _ in 0..ATTEMPTS {
            // Before the key is looked at, so that no change of trust is missed.
            let trust = self.through.map(Certificate::trust);
            if let Some(trust) = &trust
                && self.has_lost_a_root(&trust.borrow())
            {
                return Err(refused("a root that was trusted is trusted no longer; it is asked anew"));
            }
            let known = self.key_at(&parts.uri).await?;
            // Whoever is on the way may say untruly that a key is unknown, to have a request answered twice. Keys he cannot make up.
            if before.as_ref() == Some(&known.key.config) {
                break;
            }
            let asking = self.attempt(&parts, &content, &known.key);
            let (came, lifetime) = match trust {
                None => (asking.await?, None),
                Some(trust) => {
                    let mut lifetime = Lifetime::new(known.key.owner.clone(), self.own.not_after, trust);
                    let came = tokio::select! {
                        biased;
                        why = lifetime.over() => return Err(refused(&why.to_string())),
                        came = asking => came?,
                    };
                    (came, Some(lifetime))
                }
            };
            code = match came {
                Came::Opened(response) => {
                    return Ok(response.map(|body| Answer::Sealed(Box::new(Opened { body, lifetime }))));
                }
                Came::Plain(response) => return Ok(response.map(Answer::Plain)),
                Came::Refused(code) => code,
            };
            // It has been started anew, or its key was too old.
            if !matches!(code.as_deref(), Some("payload_key_unknown" | "payload_not_authentic")) {
                break;
            }
            self.key.0.store(None);
            before = Some(known.key.config.clone());
        }
        Err(refused(&format!("it refuses what is sealed for it: {}", code.as_deref().unwrap_or("it does not say why"))))
    }

    async fn attempt(&self, parts: &Parts, content: &Bytes, key: &SealingKey) -> Result<Came, Unsealed> {
        let (sealed, opener) = self.seal(parts, content, key).map_err(|error| refused(&error.to_string()))?;
        let mut response = self.requests.request(sealed).await.map_err(Unsealed::Sending)?;
        if sealing::is_sealed(&response) {
            return opened(response, opener).await.map(Came::Opened);
        }
        match response.status() {
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => Ok(Came::Refused(code_of(response.into_body()).await)),
            status if status.is_success() => Err(refused("it answered in clear what was sealed")),
            // Outside of the seal nobody may say what would be wrong for every target, nor for how long: it need not be the node.
            status if self.through.is_some() && !may_be_said_by_anybody(status) => {
                Err(refused(&format!("status {} came outside of the seal", status.as_u16())))
            }
            _ => {
                if self.through.is_some() {
                    response.headers_mut().remove(RETRY_AFTER);
                }
                Ok(Came::Plain(response))
            }
        }
    }

    /// Whether what is trusted `now` lacks a root that this connection was made with.
    fn has_lost_a_root(&self, now: &Trust) -> bool {
        let roots = now.roots();
        self.own.trust().roots().iter().any(|root| !roots.contains(root))
    }

    fn seal(
        &self,
        parts: &Parts,
        content: &Bytes,
        key: &SealingKey,
    ) -> Result<(Request<Bytes>, chunked::ResponseOpener), AnyError> {
        let mut asked = Request::new(());
        (*asked.method_mut(), *asked.uri_mut()) = (parts.method.clone(), parts.uri.clone());
        *asked.headers_mut() = parts.headers.clone();
        let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
        let parties = Parties { sender: self.own.signatory(), recipient: self.node, key: &key.config, authority };
        let (sealed, opener) = parties.seal(&asked, content.clone(), SystemTime::now())?;
        let mut request = Request::new(sealed.whole()?);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = beside(&parts.uri).ok_or("it has no address")?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(chunked::REQUEST));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(chunked::RESPONSE));
        request.headers_mut().insert(INCREMENTAL, HeaderValue::from_static("?1"));
        Ok((request, opener))
    }

    async fn key_at(&self, uri: &Uri) -> Result<Arc<Believed>, Unsealed> {
        if let Some(known) = self.key.0.load_full().and_then(|known| self.still_good(known)) {
            return Ok(known);
        }
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = beside(uri).ok_or_else(|| refused("it has no address"))?;
        let response = self.requests.request(request).await.map_err(Unsealed::Sending)?;
        let at = clock::steady_now();
        let key = keys::read(response, self.own.trust(), self.node, seconds(at)).await;
        let key = key.map_err(|error| refused(&self.in_words(&error)))?;
        tracing::info!(node = %self.node, key = key.config.id(), "what this node is asked is sealed");
        let known = Arc::new(Believed::new(key, at));
        self.key.0.store(Some(known.clone()));
        Ok(known)
    }

    /// The key, if whoever signed it could sign it now.
    fn still_good(&self, known: Arc<Believed>) -> Option<Arc<Believed>> {
        let (now, key) = (clock::steady_now(), &known.key);
        if key.is_over(seconds(now)) || now > known.fresh_until {
            return None;
        }
        if now - known.at < JUDGED_FOR {
            return Some(known);
        }
        self.own.trust().server(&key.chain, self.node).ok()?;
        let again = Arc::new(Believed { key: key.clone(), at: now, fresh_until: known.fresh_until });
        self.key.0.store(Some(again.clone()));
        Some(again)
    }

    fn in_words(&self, error: &KeysError) -> String {
        match self.through {
            None => format!("{error} (`openai.sealed: false` asks it in clear)"),
            // What stands between the two says so itself where it cannot go on.
            Some(_) if matches!(error, KeysError::Status(status) if status.is_server_error()) => {
                format!("{error}: the middlebox does not reach the node, or the node does not let it in (`--relay`?)")
            }
            Some(_) => error.to_string(),
        }
    }
}

async fn opened(
    mut response: Response<Received>,
    opener: chunked::ResponseOpener,
) -> Result<Response<Box<OpenBody<Received>>>, Unsealed> {
    // Kept until the answer has been read.
    let seat = response.extensions_mut().remove::<Seat>();
    let opened = sealing::open(response.into_body(), opener).await;
    let mut opened = opened.map_err(|error| refused(&format!("its sealed answer cannot be opened: {error}")))?;
    if let Some(seat) = seat {
        opened.extensions_mut().insert(seat);
    }
    Ok(opened.map(Box::new))
}

fn seconds(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp()).unwrap_or(0)
}

fn refused(why: &str) -> Unsealed {
    Unsealed::Refused(why.to_owned())
}

/// Where sealed requests go at the same server.
fn beside(uri: &Uri) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(GATEWAY));
    Uri::from_parts(parts).ok()
}

async fn code_of(body: Received) -> Option<String> {
    let reading = tokio::time::timeout(ERROR_WITHIN, Limited::new(body, MAX_ERROR).collect());
    let error: Value = serde_json::from_slice(&reading.await.ok()?.ok()?.to_bytes()).ok()?;
    let code = error.pointer("/error/code")?.as_str()?;
    let is_word = code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_word.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn a_key_is_asked_for_again_long_enough_before_the_end_of_the_leaf_behind_it() {
        let now = clock::steady_now();
        for (left, fresh_for) in [(36 * 60, 36 * 60 - 10), (20, 10), (10, 5)] {
            let until = fresh_until(now + Duration::minutes(left), now);
            assert_eq!(until - now, Duration::minutes(fresh_for), "{left}");
        }
    }
}
