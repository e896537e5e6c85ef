//! One connection, closed when it is dropped.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An HTTP connection, over TLS or without.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: Sender,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Self> {
        Self::over(tls(address, config).await?).await
    }

    pub(crate) async fn over(stream: TlsStream<TcpStream>) -> Result<Self> {
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Self::one(stream).await;
        }
        // How a connection ends is told to whoever waits for an answer on it.
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let task = tokio::spawn(async { drop(connection.await) });
        Ok(Self { sender: Sender::Two(sender), task })
    }

    /// HTTP/1.1, whatever is below.
    pub(crate) async fn one<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async { drop(connection.await) });
        Ok(Self { sender: Sender::One(sender), task })
    }

    pub(crate) async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        Ok(match &mut self.sender {
            Sender::One(sender) => {
                let host = request.uri().authority().context("a URI without a host")?.to_string();
                request.headers_mut().entry(header::HOST).or_insert(HeaderValue::try_from(host)?);
                if let Some(path) = request.uri().path_and_query().cloned() {
                    *request.uri_mut() = path.into();
                }
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Two(sender) => {
                *request.version_mut() = Version::HTTP_2;
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The task owns the socket.
        self.task.abort();
    }
}

pub(crate) async fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(config).connect(name, stream).await.with_context(|| format!("TLS with {address}"))
}
