//! A node of our own is asked sealed: what goes there, and what comes back, is for the two alone, also where somebody breaks TLS open on the way.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::client::legacy::Error;
use hyper_util::client::legacy::connect::Connect;
use postern_certs::{SpiffeId, clock};
use postern_sealed::chunked;
use serde_json::Value;

use super::pools::{Pools, Seat};
use crate::connect::keys::{self, SealingKey};
use crate::connect::sealing::{self, OpenBody, Parties};
use crate::open::GATEWAY;
use crate::tls::Current;

/// How often a request is sealed, where the node's keys are new each time.
const ATTEMPTS: usize = 2;
/// Bytes of an error that are read for its code, and for how long.
const MAX_ERROR: usize = 16 << 10;
const ERROR_WITHIN: Duration = Duration::from_secs(2);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// As it comes.
    Plain(Incoming),
    /// Opened as it comes.
    Sealed(Box<OpenBody<Incoming>>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Plain(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Sealed(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unsealed {
    /// What the connection says.
    Sending(Error),
    /// What only a person can mend.
    Refused(String),
}

/// The key of a node, as long as it is good.
#[derive(Debug, Default)]
pub(super) struct NodeKey(ArcSwapOption<SealingKey>);

/// Who asks whom.
#[derive(Debug)]
pub(super) struct Ends<'a, C> {
    pub(super) requests: &'a Pools<C>,
    pub(super) own: &'a Current,
    pub(super) node: &'a SpiffeId,
    pub(super) key: &'a NodeKey,
}

impl<C: Connect + Clone + Send + Sync + 'static> Ends<'_, C> {
    /// Seals a request, sends it, and opens the answer's beginning.
    ///
    /// # Errors
    /// See [`Unsealed`].
    pub(super) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Response<Answer>, Unsealed> {
        let (parts, body) = request.into_parts();
        let Ok(content) = body.collect().await.map(|body| body.to_bytes());
        let mut code = None;
        for _ in 0..ATTEMPTS {
            let key = self.key_at(&parts.uri).await?;
            let (sealed, opener) = self.seal(&parts, &content, &key).map_err(|error| refused(&error.to_string()))?;
            let response = self.requests.request(sealed).await.map_err(Unsealed::Sending)?;
            if sealing::is_sealed(&response) {
                return opened(response, opener).await;
            }
            match response.status() {
                StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => code = code_of(response.into_body()).await,
                status if status.is_success() => return Err(refused("it answered in clear what was sealed")),
                _ => return Ok(response.map(Answer::Plain)),
            }
            // It has been started anew, or its key was too old.
            if !matches!(code.as_deref(), Some("payload_key_unknown" | "payload_not_authentic")) {
                break;
            }
            self.key.0.store(None);
        }
        Err(refused(&format!("it refuses what is sealed for it: {}", code.as_deref().unwrap_or("it does not say why"))))
    }

    fn seal(
        &self,
        parts: &Parts,
        content: &Bytes,
        key: &SealingKey,
    ) -> Result<(Request<Full<Bytes>>, chunked::ResponseOpener), AnyError> {
        let mut asked = Request::new(());
        (*asked.method_mut(), *asked.uri_mut()) = (parts.method.clone(), parts.uri.clone());
        *asked.headers_mut() = parts.headers.clone();
        let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
        let parties = Parties { sender: self.own.signatory(), recipient: self.node, key: &key.config, authority };
        let (sealed, opener) = parties.seal(&asked, content.clone(), SystemTime::now())?;
        let mut request = Request::new(Full::new(sealed.whole()?));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = beside(&parts.uri).ok_or("it has no address")?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(chunked::REQUEST));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(chunked::RESPONSE));
        Ok((request, opener))
    }

    async fn key_at(&self, uri: &Uri) -> Result<SealingKey, Unsealed> {
        let now = u64::try_from(clock::steady_now().unix_timestamp()).unwrap_or(0);
        if let Some(key) = self.key.0.load_full().filter(|key| !key.is_over(now)) {
            return Ok(SealingKey::clone(&key));
        }
        let mut request = Request::new(Full::default());
        *request.uri_mut() = beside(uri).ok_or_else(|| refused("it has no address"))?;
        let response = self.requests.request(request).await.map_err(Unsealed::Sending)?;
        let key = keys::read(response, self.own.trust(), self.node, now).await;
        let key = key.map_err(|error| refused(&format!("{error} (`openai.sealed: false` asks it in clear)")))?;
        tracing::info!(node = %self.node, key = key.config.id(), "what this node is asked is sealed");
        self.key.0.store(Some(key.clone().into()));
        Ok(key)
    }
}

async fn opened(
    mut response: Response<Incoming>,
    opener: chunked::ResponseOpener,
) -> Result<Response<Answer>, Unsealed> {
    // Kept until the answer has been read.
    let seat = response.extensions_mut().remove::<Seat>();
    let opened = sealing::open(response.into_body(), opener).await;
    let opened = opened.map_err(|error| refused(&format!("its sealed answer cannot be opened: {error}")))?;
    let mut opened = opened.map(|body| Answer::Sealed(Box::new(body)));
    if let Some(seat) = seat {
        opened.extensions_mut().insert(seat);
    }
    Ok(opened)
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

async fn code_of(body: Incoming) -> Option<String> {
    let reading = tokio::time::timeout(ERROR_WITHIN, Limited::new(body, MAX_ERROR).collect());
    let error: Value = serde_json::from_slice(&reading.await.ok()?.ok()?.to_bytes()).ok()?;
    let code = error.pointer("/error/code")?.as_str()?;
    let is_word = code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_word.then(|| code.to_owned())
}
