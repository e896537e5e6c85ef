//! How the cloud misbehaves.

use std::num::{NonZeroU32, NonZeroUsize};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Characters of one piece of a streamed answer: fewer than any placeholder has, so that each is split.
const CHUNK_CHARS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
/// The longest wait, in ms: longer ones are mistakes of a test.
const MAX_WAIT_MS: u64 = 600_000;

/// `PUT /switches`. Every one is optional; a new set replaces the former one as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switches {
    /// Share of requests that get a 503, from 0 to 1, spread evenly: with 0.5 every second one.
    pub unavailable_share: f64,
    /// More than this in any 60 s from one client address get a 429 with `Retry-After`.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Before the headers of an answer, in ms.
    pub latency_ms: u64,
    /// Before each piece of an answer, in ms; a plain answer waits for all its pieces at once.
    pub token_ms: u64,
    /// Characters of a piece.
    pub chunk_chars: NonZeroUsize,
    /// The TCP connection is cut after this many pieces (plain: in the middle of the body).
    pub die_after_chunks: Option<usize>,
    /// The request is taken and nothing ever comes back.
    pub hang_before_headers: bool,
    /// Nothing comes after this many pieces (plain: after half of the body), but the connection stays open.
    pub hang_after_chunks: Option<usize>,
    /// Answers that are wrong in form.
    pub malformed: Option<Malformed>,
    /// Says this instead of repeating the question.
    pub answer: Option<String>,
    /// Says this about the end instead of `stop`; empty: nothing.
    pub finish_reason: Option<String>,
    /// Ends streams with these bytes instead of the ends of their choices and `[DONE]`.
    pub ending: Option<String>,
    /// While nothing comes after `hang_after_chunks`, a comment does each so many ms; for a thousand times.
    pub comment_ms: Option<u64>,
    /// Members that each choice has as well.
    pub choice: Map<String, Value>,
    /// Numbers the choices from here on instead of 0.
    pub first_choice: u64,
    /// Gives so many vectors instead of one for each text.
    pub vectors: Option<usize>,
    /// Answers 307 with this `Location`.
    pub redirect: Option<String>,
    /// Adds headers that must not reach a client: `Set-Cookie`, `Alt-Svc`, `Postern-Label`, `X-Upstream`.
    pub set_cookie: bool,
    /// Answers 500 with this as the error's message.
    pub error_text: Option<String>,
    /// The page of metrics at `/metrics`; there is none otherwise.
    pub metrics: Option<String>,
}

/// Ways to be wrong in form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// JSON that ends in the middle; streamed: after one good event, an event with such JSON, then `[DONE]`.
    Json,
    /// A stream that ends cleanly inside an event and never says `[DONE]`; plain: as `json`.
    Sse,
    /// The status code 999, which does not exist.
    Status,
    /// A web page with status 200, such as a captive portal shows.
    ContentType,
    /// 64 MiB: a plain answer with one long string, or one event that does not end.
    Huge,
    /// Many large events in a stream before the first token.
    Preamble,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            unavailable_share: 0.0,
            requests_per_minute: None,
            latency_ms: 0,
            token_ms: 0,
            chunk_chars: CHUNK_CHARS,
            die_after_chunks: None,
            hang_before_headers: false,
            hang_after_chunks: None,
            malformed: None,
            answer: None,
            finish_reason: None,
            ending: None,
            comment_ms: None,
            choice: Map::new(),
            first_choice: 0,
            vectors: None,
            redirect: None,
            set_cookie: false,
            error_text: None,
            metrics: None,
        }
    }
}

impl Switches {
    /// Reads what was put.
    ///
    /// # Errors
    /// An unknown switch, a wrong type, a share that is none, a wait beyond ten minutes.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let switches: Self = serde_json::from_slice(json)?;
        let share = switches.unavailable_share;
        ensure!((0.0..=1.0).contains(&share), "unavailable_share is from 0 to 1, not {share}");
        let longest = switches.latency_ms.max(switches.token_ms);
        ensure!(longest <= MAX_WAIT_MS, "waits are at most {MAX_WAIT_MS} ms, not {longest}");
        Ok(switches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_off_and_mistakes_are_refused() {
        assert_eq!(Switches::parse(b"{}").unwrap(), Switches::default());
        let some = Switches::parse(br#"{"malformed":"content_type","chunk_chars":7}"#).unwrap();
        assert_eq!((some.malformed, some.chunk_chars.get()), (Some(Malformed::ContentType), 7));
        for wrong in [
            r#"{"unavailable_shares":0.5}"#,
            r#"{"unavailable_share":1.5}"#,
            r#"{"chunk_chars":0}"#,
            r#"{"requests_per_minute":0}"#,
            r#"{"latency_ms":600001}"#,
            r#"{"malformed":"xml"}"#,
        ] {
            assert!(Switches::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
