//! Material from a SPIFFE agent, over the SPIFFE Workload API on a UNIX socket.
//!
//! The gateway calls `FetchX509SVID` and keeps the stream open; the agent sends everything anew whenever something
//! changes. The first identity is the default one and is the gateway's (Workload API, section 5.3), with the bundle of
//! its own trust domain and the revocation lists. Federated bundles are passed over: clients of a gateway are of its
//! own trust domain. [`call`] is the gRPC part, [`message`] what a message means.
//!
//! The crate `spiffe` (0.19) is well kept, but passes over revocation lists, makes its own connections, and brings 35
//! packages; the one method that is needed is a POST over HTTP/2 and two message types.

mod call;
pub mod message;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use self::call::Call;
use super::{Fingerprint, IssuerError, Material};

/// The wait after the first failure in a row, doubled for each further one.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest wait between two attempts.
pub const LAST_RETRY: Duration = Duration::from_secs(30);
/// Bytes of one message. What SPIRE sends for one identity is some ten kilobytes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// To connect and shake hands; and again until the first message, which an agent has to send without delay (Workload
/// API, section 4.3).
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A stream that lived this long was a good one: waits begin anew.
const LIVED: Duration = Duration::from_secs(10);
/// More doublings than this are beyond `LAST_RETRY` in any case.
const MAX_DOUBLINGS: u32 = 16;

/// The agent, and what it sent last.
#[derive(Debug)]
pub struct Spiffe {
    socket: PathBuf,
    /// A field, so that tests need not wait so long.
    answer_within: Duration,
    open: Option<Open>,
    /// Failures in a row.
    failures: u32,
    /// No attempt before this time.
    retry_at: Instant,
    /// What the caller has.
    delivered: Option<Fingerprint>,
    /// Was the caller told of a fault since?
    told: bool,
}

#[derive(Debug)]
struct Open {
    call: Call,
    since: Instant,
    /// Did it bring anything that could be used?
    good: bool,
}

impl Spiffe {
    /// Connects to nothing yet. `socket` is a path, not a URI.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            answer_within: ANSWER_WITHIN,
            open: None,
            failures: 0,
            retry_at: Instant::now(),
            delivered: None,
            told: false,
        }
    }

    /// At first: what the agent sends. Later: waits until it sends something else, or until a fault is over that was
    /// told. A stream that ends is opened again; a fault is an error once for each attempt, and the next attempt
    /// waits: 100 ms at first, 30 s at last, shortened by up to half by chance. Whoever stops waiting loses nothing.
    ///
    /// # Errors
    /// See [`IssuerError`]: the agent cannot be reached, refuses, has no identity, or sent what cannot be used.
    pub async fn next(&mut self) -> Result<Material, IssuerError> {
        let outcome = self.changed().await;
        self.told = outcome.is_err();
        outcome
    }

    async fn changed(&mut self) -> Result<Material, IssuerError> {
        loop {
            if self.open.is_none() {
                tokio::time::sleep_until(self.retry_at).await;
                match Call::open(&self.socket, self.answer_within).await {
                    Ok(call) => self.open = Some(Open { call, since: Instant::now(), good: false }),
                    Err(error) => {
                        self.failed(&error);
                        return Err(error);
                    }
                }
            }
            let Some(open) = &mut self.open else { continue };
            match open.call.message(open.good).await {
                Ok(Some(bytes)) => {
                    // One that cannot be used is thrown away, and the next one awaited (Workload API, section 4.5).
                    let material = message::material(&bytes, &self.socket)?;
                    open.good = true;
                    let fingerprint = material.fingerprint();
                    if self.told || self.delivered != Some(fingerprint) {
                        self.delivered = Some(fingerprint);
                        return Ok(material);
                    }
                }
                Ok(None) if open.good => {
                    let socket = self.socket.display();
                    tracing::info!(%socket, "the SPIFFE agent closed its stream; it will be opened again");
                    self.closed();
                }
                Ok(None) => {
                    self.closed();
                    let what = "closed the stream before it sent anything".to_owned();
                    return Err(IssuerError::Agent { socket: self.socket.clone(), what });
                }
                Err(error) => {
                    self.closed();
                    if matches!(error, IssuerError::NotWorkloadApi { .. }) {
                        self.failed(&error);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The stream is over.
    fn closed(&mut self) {
        let lived = self.open.take().is_some_and(|open| open.good && open.since.elapsed() >= LIVED);
        self.failures = if lived { 1 } else { self.failures.saturating_add(1) };
        self.retry_at = Instant::now() + wait(self.failures, rand::random());
    }

    /// No stream was to be had.
    fn failed(&mut self, error: &IssuerError) {
        self.failures = self.failures.saturating_add(1);
        let in_vain = matches!(error, IssuerError::NotWorkloadApi { .. });
        let failures = if in_vain { u32::MAX } else { self.failures };
        self.retry_at = Instant::now() + wait(failures, rand::random());
    }
}

/// How long to wait after so many failures in a row. `chance` is between 0 and 1: a branch's gateways that lost their
/// agents in the same moment must not come back in the same moment.
fn wait(failures: u32, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
    let longest = FIRST_RETRY.saturating_mul(1 << doublings).min(LAST_RETRY);
    longest.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
