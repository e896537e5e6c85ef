//! A client of the gateway, as a workstation has it; and plain HTTP towards the busy cloud's control and the admin page.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use postern_wire::sse::Decoder;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::egress::dial;

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) first_token: Duration,
    pub(crate) pieces: usize,
    /// A stream that came to its end, or a whole answer.
    pub(crate) complete: bool,
}

impl Answer {
    /// A response header, empty if it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// Connects anew for each request, with one client certificate.
pub(crate) struct Client {
    gateway: SocketAddr,
    tls: TlsConnector,
}

impl Client {
    pub(crate) fn new(gateway: SocketAddr, identity: &Path) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(identity.join("ca.pem"))? {
            roots.add(root?)?;
        }
        let chain = CertificateDer::pem_file_iter(identity.join("cert.pem"))?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(identity.join("key.pem"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Self { gateway, tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Asks the model called `model`.
    pub(super) async fn ask(
        &self,
        model: &str,
        prompt: &str,
        stream: bool,
        headers: &[(&'static str, &'static str)],
    ) -> anyhow::Result<Answer> {
        self.post("/v1/chat/completions", question(model, prompt, stream), headers).await
    }

    /// Sends a request as it is.
    pub(crate) async fn post(
        &self,
        path: &'static str,
        body: String,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut request = Request::post(path).body(Full::new(Bytes::from(body)))?;
        request.headers_mut().insert("host", "localhost".parse()?);
        request.headers_mut().insert("content-type", "application/json".parse()?);
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse()?);
        }
        let socket = dial(self.gateway).await?;
        let stream = self.tls.connect(ServerName::try_from("localhost")?, socket).await?;
        exchange(stream, request).await
    }
}

/// Asks as an application does that has no certificate: over plain HTTP on this machine, with a key.
pub(super) async fn ask_with_key(to: SocketAddr, key: &str, model: &str, prompt: &str) -> anyhow::Result<Answer> {
    let request = Request::post("/v1/chat/completions").header("host", to.to_string());
    let request = request.header("content-type", "application/json").header("authorization", format!("Bearer {key}"));
    exchange(dial(to).await?, request.body(Full::new(question(model, prompt, false).into()))?).await
}

fn question(model: &str, prompt: &str, stream: bool) -> String {
    let messages = json!([{"role": "user", "content": prompt}]);
    json!({"model": model, "stream": stream, "max_tokens": 24, "temperature": 0, "messages": messages}).to_string()
}

/// Plain HTTP/1.1 on a loopback address: status and text.
pub(super) async fn plain(to: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let request = Request::builder().method(method).uri(path).header("host", to.to_string());
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
    let answer = exchange(dial(to).await?, request).await?;
    Ok((answer.status, answer.text))
}

/// Sends one request over a connection, and reads the answer to its end.
pub(crate) async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (head, mut body) = sender.send_request(request).await?.into_parts();
    let streamed =
        head.headers.get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let (mut decoder, mut events, mut raw) = (Decoder::new(1 << 20), Vec::new(), Vec::new());
    let (mut text, mut pieces, mut first_token, mut done) = (String::new(), 0, Duration::ZERO, false);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if first_token.is_zero() {
            first_token = started.elapsed();
        }
        if !streamed {
            raw.extend_from_slice(&data);
            continue;
        }
        decoder.push(&data, &mut events)?;
        for event in events.drain(..) {
            if event.data == b"[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_slice(&event.data)?;
            text.push_str(event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or(""));
            pieces += 1;
        }
    }
    if !streamed {
        let whole = String::from_utf8(raw).context("an answer that is not text")?;
        let answer: Option<Value> = serde_json::from_str(&whole).ok();
        let content =
            answer.as_ref().and_then(|answer| answer.pointer("/choices/0/message/content")).and_then(Value::as_str);
        text = content.map(str::to_owned).unwrap_or(whole);
    }
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        text,
        first_token,
        pieces,
        complete: done || !streamed,
    })
}
