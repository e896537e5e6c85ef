//! Bytes as a test likes them, over TLS: slow senders, halves of requests, what no library would send.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;

/// A TLS connection on which HTTP/1.1 was agreed.
#[derive(Debug)]
pub struct RawConnection {
    stream: TlsStream<TcpStream>,
    read: Vec<u8>,
}

impl RawConnection {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// The TLS stream, to see what was agreed on.
    #[must_use]
    pub fn tls(&self) -> &TlsStream<TcpStream> {
        &self.stream
    }

    /// Sends bytes at once.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends bytes one by one, with a pause before each.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn send_slowly(&mut self, bytes: &[u8], pause: Duration) -> Result<()> {
        for byte in bytes {
            tokio::time::sleep(pause).await;
            self.send(std::slice::from_ref(byte)).await?;
        }
        Ok(())
    }

    /// Reads until what was read contains `mark`, and returns everything read so far.
    ///
    /// # Errors
    /// The connection was closed before, or it did not come in time.
    pub async fn read_until(&mut self, mark: &str, within: Duration) -> Result<String> {
        let reading = async {
            loop {
                let text = String::from_utf8_lossy(&self.read);
                if text.contains(mark) {
                    return Ok(text.into_owned());
                }
                if !self.read_some().await? {
                    bail!("closed after {:?}", String::from_utf8_lossy(&self.read));
                }
            }
        };
        tokio::time::timeout(within, reading)
            .await
            .with_context(|| format!("{mark:?} did not come within {within:?}"))?
    }

    /// Reads until the other side closes, and returns everything read so far. A reset counts as an end.
    ///
    /// # Errors
    /// It was not closed in time.
    pub async fn read_to_end(&mut self, within: Duration) -> Result<String> {
        let reading = async { while self.read_some().await.unwrap_or(false) {} };
        tokio::time::timeout(within, reading).await.with_context(|| format!("not closed within {within:?}"))?;
        Ok(String::from_utf8_lossy(&self.read).into_owned())
    }

    async fn read_some(&mut self) -> Result<bool> {
        let mut piece = vec![0; 16 << 10];
        let read = self.stream.read(&mut piece).await?;
        piece.truncate(read);
        self.read.extend(piece);
        anyhow::ensure!(self.read.len() <= MAX_ANSWER, "an answer of more than {MAX_ANSWER} bytes");
        Ok(read > 0)
    }
}
