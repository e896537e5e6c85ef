//! A client of the gateway: whole answers, streams with arrival times, raw bytes.

mod connect;
mod events;
mod raw;
mod reply;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::FakeTime;
use crate::tls::{self, Http, Identity};
pub(crate) use connect::Connection;
pub use events::{Event, Events, text};
pub use raw::RawConnection;
pub use reply::Reply;

/// The longest wait for anything, so that what hangs fails at last. The model is slow on a busy processor.
pub const WITHIN: Duration = Duration::from_secs(600);
/// Bytes of one answer.
const MAX_ANSWER: usize = 256 << 20;

/// Asks one gateway, or any other server of the OpenAI kind, as one identity.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    ca: PathBuf,
    identity: Option<Identity>,
    http: Http,
    headers: Vec<(String, String)>,
    time: Option<FakeTime>,
    takes_any_server: bool,
}

/// `{"model": "chat", "messages": [{"role": "user", "content": PROMPT}]}`.
#[must_use]
pub fn chat_body(prompt: &str) -> Value {
    json!({"model": "chat", "messages": [{"role": "user", "content": prompt}]})
}

impl Client {
    /// Trusts the authority in the PEM file `ca` only.
    #[must_use]
    pub fn new(address: SocketAddr, ca: &Path, identity: Option<Identity>) -> Self {
        Self {
            address,
            ca: ca.to_owned(),
            identity,
            http: Http::One,
            headers: Vec::new(),
            time: None,
            takes_any_server: false,
        }
    }

    /// For a node, whose certificate has no name that others than SPIFFE know: takes whatever server is there.
    #[must_use]
    pub fn of_node(address: SocketAddr, identity: Option<Identity>) -> Self {
        Self { takes_any_server: true, ..Self::new(address, Path::new(""), identity) }
    }

    /// The same over HTTP/2.
    #[must_use]
    pub fn http2(&self) -> Self {
        Self { http: Http::Two, ..self.clone() }
    }

    /// The same in another time.
    #[must_use]
    pub fn at(&self, time: &FakeTime) -> Self {
        Self { time: Some(time.clone()), ..self.clone() }
    }

    /// The same with a header in every request.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// `POST /v1/chat/completions` with one user message, for the model `chat`.
    ///
    /// # Errors
    /// There is no answer; an answer of any status is none.
    pub async fn chat(&self, prompt: &str) -> Result<Reply> {
        self.post_json("/v1/chat/completions", &chat_body(prompt)).await
    }

    /// `POST`s JSON.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_json(&self, path: &str, body: &Value) -> Result<Reply> {
        self.post_bytes(path, body.to_string().into()).await
    }

    /// `POST`s bytes, as `application/json`.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<Reply> {
        self.send(self.request(Method::POST, path, body)?).await
    }

    /// `GET`s.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send(self.request(Method::GET, path, Bytes::new())?).await
    }

    /// Sends any request on a connection of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        let started = Instant::now();
        let exchange = async {
            let mut connection = self.connect().await?;
            let response = connection.send(request).await?;
            reply::collect(response, started).await
        };
        tokio::time::timeout(WITHIN, exchange).await.context("no answer in time")?
    }

    /// `POST`s to `/v1/chat/completions` and gives the events as they arrive. `body` gets `"stream": true`. Dropping the
    /// events closes the connection at once. An answer that is no stream has no events but a [`Events::whole`].
    ///
    /// # Errors
    /// There is no answer.
    pub async fn stream(&self, body: &Value) -> Result<Events> {
        self.stream_of("/v1/chat/completions", body).await
    }

    /// The same of another path.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn stream_of(&self, path: &str, body: &Value) -> Result<Events> {
        let mut body = body.clone();
        if let Some(body) = body.as_object_mut() {
            body.insert("stream".into(), true.into());
        }
        let request = self.request(Method::POST, path, body.to_string().into())?;
        let opened = async {
            let mut connection = self.connect().await?;
            let started = Instant::now();
            let response = connection.send(request).await?;
            Ok(Events::new(response, connection, started))
        };
        tokio::time::timeout(WITHIN, opened).await.context("no answer in time")?
    }

    /// A client that keeps its connections, for many requests.
    ///
    /// # Errors
    /// The certificates are of no use.
    pub fn pooled(&self) -> Result<PooledClient> {
        let mut tls = (*self.tls(self.http)?).clone();
        // The builder chooses what is offered by itself.
        tls.alpn_protocols.clear();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_only();
        let connector = match self.http {
            Http::One => builder.enable_http1().wrap_connector(http),
            Http::Two => builder.enable_http2().wrap_connector(http),
            Http::Any => builder.enable_all_versions().wrap_connector(http),
        };
        let pooled = Pooled::builder(TokioExecutor::new()).build(connector);
        Ok(PooledClient { client: self.clone(), pooled })
    }

    /// A TLS connection for bytes of one's own, with HTTP/1.1 agreed on.
    ///
    /// # Errors
    /// The handshake fails.
    pub async fn raw(&self) -> Result<RawConnection> {
        let stream = connect::tls(self.address, self.tls(Http::One)?).await?;
        Ok(RawConnection::new(stream))
    }

    /// A request to this server, with the headers of this client.
    ///
    /// # Errors
    /// A path or header is malformed.
    pub fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let uri: Uri = format!("https://{}{path}", self.address).parse()?;
        let mut request = Request::new(Full::new(body));
        let headers = request.headers_mut();
        if method == Method::POST {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in &self.headers {
            headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        Ok(request)
    }

    async fn connect(&self) -> Result<connect::Connection> {
        connect::Connection::open(self.address, self.tls(self.http)?).await
    }

    fn tls(&self, http: Http) -> Result<Arc<rustls::ClientConfig>> {
        match &self.time {
            _ if self.takes_any_server => tls::client_of_any(self.identity.as_ref(), http),
            Some(time) => tls::client_at(Arc::new(time.clone()), &self.ca, self.identity.as_ref(), http),
            None => tls::client(&self.ca, self.identity.as_ref(), http),
        }
    }

    /// A connection for several requests, one after the other, without a pool behind it.
    ///
    /// # Errors
    /// The handshake fails.
    pub async fn connection(&self) -> Result<OpenConnection> {
        Ok(OpenConnection { client: self.clone(), connection: self.connect().await? })
    }
}

/// One connection of a [`Client`].
#[derive(Debug)]
pub struct OpenConnection {
    client: Client,
    connection: Connection,
}

impl OpenConnection {
    /// `POST /v1/chat/completions` with one user message, for the model `chat`.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn chat(&mut self, prompt: &str) -> Result<Reply> {
        let started = Instant::now();
        let body = chat_body(prompt).to_string();
        let request = self.client.request(Method::POST, "/v1/chat/completions", body.into())?;
        let exchange = async { reply::collect(self.connection.send(request).await?, started).await };
        tokio::time::timeout(WITHIN, exchange).await.context("no answer in time")?
    }
}

/// A [`Client`] that keeps its connections.
#[derive(Debug, Clone)]
pub struct PooledClient {
    client: Client,
    pooled: Pooled<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl PooledClient {
    /// `POST`s JSON.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post_json(&self, path: &str, body: &Value) -> Result<Reply> {
        let started = Instant::now();
        let request = self.client.request(Method::POST, path, body.to_string().into())?;
        let exchange = async { reply::collect(self.pooled.request(request).await?, started).await };
        tokio::time::timeout(WITHIN, exchange).await.context("no answer in time")?
    }

    /// `POST /v1/chat/completions` with one user message, for the model `chat`.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn chat(&self, prompt: &str) -> Result<Reply> {
        self.post_json("/v1/chat/completions", &chat_body(prompt)).await
    }
}

/// One request without TLS, for ports on this machine.
///
/// # Errors
/// There is no answer.
pub async fn plain(method: Method, uri: &str, body: &str) -> Result<Reply> {
    let started = Instant::now();
    let mut request = Request::builder().method(method).uri(uri);
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned())))?;
    let pooled: Pooled<HttpConnector, Full<Bytes>> = Pooled::builder(TokioExecutor::new()).build_http();
    let exchange = async { reply::collect(pooled.request(request).await?, started).await };
    tokio::time::timeout(WITHIN, exchange).await.context("no answer in time")?
}

async fn whole(body: Incoming) -> Result<Bytes> {
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    Ok(body.map_err(anyhow::Error::from_boxed)?.to_bytes())
}
