//! `postern connect` as a workstation runs it, and an application beside it: plain HTTP with a key, nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::client::WITHIN;
use crate::postern::{binary, ends_with_us};
use crate::process::Process;
use crate::{Client, Reply};

const READY_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// A running connector. Dropping it kills it.
#[derive(Debug)]
pub struct Connector {
    process: Process,
    /// Where applications find it.
    pub address: SocketAddr,
    /// With the certificate and the token.
    pub dir: PathBuf,
}

/// What came of a stream, and when.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The status.
    pub status: u16,
    /// Pieces as they came.
    pub pieces: Vec<(Instant, Bytes)>,
    /// It was broken off.
    pub broken: bool,
}

impl Arrived {
    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        let all: Vec<u8> = self.pieces.iter().flat_map(|(_, piece)| piece.to_vec()).collect();
        String::from_utf8_lossy(&all).into_owned()
    }
}

impl Connector {
    /// Starts it towards `gateway` with the identity in a folder, and waits for its ready line.
    ///
    /// # Errors
    /// It ends, or is not ready in time; the message has its last words.
    pub async fn start(gateway: SocketAddr, dir: &Path, more: &[&str]) -> Result<Self> {
        Self::start_with(gateway, dir, more, &[]).await
    }

    /// The same with variables of the environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(
        gateway: SocketAddr,
        dir: &Path,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let mut command = ends_with_us(&binary()?);
        command.args(["connect", "--listen", "127.0.0.1:0", "--gateway", &gateway.to_string(), "--dir"]);
        command.arg(dir).args(more).envs(environment.iter().cloned());
        let mut process = Process::start("connector", command)?;
        let address =
            |line: &str| line.strip_prefix("postern connect ready url=http://")?.split('/').next()?.parse().ok();
        let address = process.line(READY_WITHIN, address).await?;
        Ok(Self { process, address, dir: dir.to_owned() })
    }

    /// The key that an application needs.
    ///
    /// # Errors
    /// There is none.
    pub fn token(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.join("token")).context("the token")?.trim().to_owned())
    }

    /// Sends a request of an application, on a connection of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let headers = request.headers_mut();
        if !headers.contains_key("host") {
            headers.insert("host", self.address.to_string().parse()?);
        }
        tokio::time::timeout(WITHIN, sender.send_request(request))
            .await
            .context("no answer in time")?
            .map_err(Into::into)
    }

    /// A request with the token.
    ///
    /// # Errors
    /// There is no token.
    pub fn request(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Request<Full<Bytes>>> {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        Ok(request.header("authorization", format!("Bearer {}", self.token()?)).body(Full::new(body.into()))?)
    }

    /// Asks, and waits for all of the answer.
    ///
    /// # Errors
    /// There is none.
    pub async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Reply> {
        self.reply(self.request(method, path, body)?).await
    }

    /// Sends a request, and waits for all of the answer.
    ///
    /// # Errors
    /// There is none.
    pub async fn reply(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        let started = Instant::now();
        let (parts, body) = self.send(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let (status, version, elapsed) = (parts.status.as_u16(), parts.version, started.elapsed());
        Ok(Reply { status, headers: parts.headers, body, version, elapsed })
    }

    /// `POST`s a chat.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn chat(&self, prompt: &str) -> Result<Reply> {
        self.ask(Method::POST, "/v1/chat/completions", crate::chat_body(prompt).to_string()).await
    }

    /// `POST`s a chat that is streamed, and gives what came by its end.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn stream(&self, body: &Value) -> Result<Arrived> {
        let mut body = body.clone();
        if let Some(body) = body.as_object_mut() {
            body.insert("stream".into(), true.into());
        }
        let response = self.send(self.request(Method::POST, "/v1/chat/completions", body.to_string())?).await?;
        let mut arrived = Arrived { status: response.status().as_u16(), pieces: Vec::new(), broken: false };
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(piece)) => arrived.pieces.push((Instant::now(), piece)),
                Ok(Err(_)) => {}
                Err(_) => arrived.broken = true,
            }
        }
        Ok(arrived)
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it wrote to its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// It did not in time.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.stop(STOP_WITHIN).await
    }

    /// The identity in its folder as a client of `postern`, to compare with.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn client_of(&self, postern: &crate::Postern) -> Result<Client> {
        postern.client_of(&self.dir)
    }
}
