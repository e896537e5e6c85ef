//! The way to a Redis.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::complaints::{Complaints, in_words};
use super::{authority, machine_authorities};
use crate::config::shared::{Place, Redis};

/// For name, TCP, TLS and password together.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Commands on their way at a time.
const PIPELINE: usize = 256;
/// What a server may send that was not asked for, or while a connection begins.
const UNASKED: usize = 4 << 10;
/// What it may send in reply to all that is asked at the same time. What it becomes in memory may be several times that.
const REPLIES: usize = 32 << 20;

/// How one Redis is reached.
pub(crate) struct Way {
    redis: Redis,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    complaints: Complaints,
    /// What a reply to one question may have.
    reply: usize,
}

/// How much a server may still send.
#[derive(Debug)]
pub(crate) struct Allowance {
    reply: usize,
    left: Mutex<Left>,
}

#[derive(Debug, Clone, Copy)]
struct Left {
    bytes: usize,
    questions: usize,
}

/// A question that is open. When there is none, nothing may come.
pub(crate) struct Question<'a>(&'a Allowance);

impl Allowance {
    fn new(reply: usize) -> Self {
        Self { reply, left: Mutex::new(Left { bytes: UNASKED, questions: 0 }) }
    }

    /// Something is asked that has so many replies.
    pub(crate) fn ask(&self, replies: usize) -> Question<'_> {
        let mut left = self.left();
        left.bytes = left.bytes.saturating_add(self.reply.saturating_mul(replies)).min(REPLIES);
        left.questions += 1;
        Question(self)
    }

    fn came(&self, bytes: usize) -> io::Result<()> {
        let mut left = self.left();
        let rest = left.bytes.checked_sub(bytes);
        left.bytes =
            rest.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it sends more than was asked for"))?;
        Ok(())
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let mut left = self.0.left();
        left.questions = left.questions.saturating_sub(1);
        if left.questions == 0 {
            left.bytes = UNASKED;
        }
    }
}

impl std::fmt::Debug for Way {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Way({})", self.redis.place)
    }
}

/// What drives a connection; it ends when the connection does.
pub(crate) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection, what drives it, and how much it may bring.
pub(crate) type Connected = (MultiplexedConnection, Driver, Arc<Allowance>);

impl Way {
    /// Connects to nothing yet. `what` is lost while it is away, in words for the log; a reply has at most `reply` bytes.
    ///
    /// # Errors
    /// Password or authority are not to be had, or TLS cannot be set up.
    pub(crate) fn new(redis: &Redis, what: &str, reply: usize) -> Result<Self, String> {
        redis
            .password
            .as_ref()
            .map(|password| password.read())
            .transpose()
            .map_err(|what| format!("the password {what}"))?;
        let tls = match &redis.place {
            Place::Port { host, tls: true, .. } => {
                let roots = redis.ca.as_ref().map_or_else(machine_authorities, |path| authority(path))?;
                let name = ServerName::try_from(host.clone()).map_err(|error| format!("{host}: {error}"))?;
                Some((TlsConnector::from(client(roots).map_err(|error| format!("TLS: {error}"))?), name))
            }
            _ => None,
        };
        let complaints = Complaints::of(redis.place.to_string(), what.to_owned());
        Ok(Self { redis: redis.clone(), tls, complaints, reply })
    }

    /// A connection, and what drives it.
    ///
    /// # Errors
    /// There is none; why is in the log.
    pub(crate) async fn connect(&self) -> Result<Connected, Away> {
        let connecting = tokio::time::timeout(CONNECT_WITHIN, self.dial());
        connecting
            .await
            .unwrap_or_else(|_| Err("connecting took too long".to_owned()))
            .map_err(|why| self.complain(&why))
    }

    /// Says why it does not do what it should.
    pub(crate) fn complain(&self, why: &str) -> Away {
        self.complaints.tell(why);
        Away
    }

    async fn dial(&self) -> Result<Connected, String> {
        let in_words = |error: io::Error| in_words(&error);
        match &self.redis.place {
            Place::Socket(path) => self.begin(UnixStream::connect(path).await.map_err(in_words)?).await,
            Place::Port { host, port, .. } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(in_words)?;
                stream.set_nodelay(true).map_err(in_words)?;
                match &self.tls {
                    None => self.begin(stream).await,
                    Some((connector, name)) => {
                        self.begin(connector.connect(name.clone(), stream).await.map_err(in_words)?).await
                    }
                }
            }
        }
    }

    async fn begin(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connected, String> {
        let mut info = RedisConnectionInfo::default()
            .set_db(i64::from(self.redis.database))
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        if let Some(password) = &self.redis.password {
            // Read each time: it may have been changed.
            let password = password.read().map_err(|what| format!("the password {what}"))?;
            info = info.set_password(password.as_str());
        }
        if let Some(username) = &self.redis.username {
            info = info.set_username(username);
        }
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(PIPELINE);
        let allowance = Arc::new(Allowance::new(self.reply));
        let measured = Measured { stream, allowance: allowance.clone() };
        let begun = MultiplexedConnection::new_with_config(&info, measured, config).await;
        let (connection, driver) = begun.map_err(said)?;
        Ok((connection, Box::pin(driver), allowance))
    }
}

/// There is no Redis to be asked, or it does not do what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Away;

/// What went wrong, without what was sent: a server may repeat that in its error.
pub(crate) fn said(error: redis::RedisError) -> String {
    if error.is_io_error() {
        return in_words(&error);
    }
    let (kind, category) = (error.kind(), error.category().to_owned());
    let code = error.into_server_errors().and_then(|errors| Some(errors.first()?.1.code().to_owned()));
    match code {
        _ if kind == redis::ErrorKind::AuthenticationFailed => category,
        Some(code) => {
            let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
            format!("it answers {code}")
        }
        None => category,
    }
}

fn client(roots: rustls::RootCertStore) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A stream on which only as much comes as was asked for: a server that sends without end must not fill the memory.
struct Measured<S> {
    stream: S,
    allowance: Arc<Allowance>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Measured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len().saturating_sub(before);
        Poll::Ready(self.allowance.came(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Measured<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
