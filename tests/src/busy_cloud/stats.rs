//! What the cloud saw.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Requests whose body and headers are kept.
const KEPT: usize = 64;
/// Bytes of a body that are kept as they came.
const MAX_RAW: usize = 64 << 10;

/// `GET /stats`. Of every request to `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`, exactly one of `completed`, `refused`, `cancelled`, `cut`
/// and `open` is true.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests to those, whatever became of them.
    pub requests: u64,
    /// Answered with 200, to the end.
    pub completed: u64,
    /// Answered with another status.
    pub refused: u64,
    /// The client went away before the end.
    pub cancelled: u64,
    /// Cut by the switch `die_after_chunks`.
    pub cut: u64,
    /// Under way.
    pub open: u64,
    /// Requests to anything else on the HTTPS port.
    pub other_requests: u64,
    /// TCP connections to the HTTPS port.
    pub connections: u64,
    /// Status → how often it was given, over all requests.
    pub statuses: BTreeMap<u16, u64>,
    /// From the beginning of the request that was cancelled last to its cancellation, in ms.
    pub last_cancel_ms_after_start: Option<u64>,
    /// When that was: ms since 1970, by the clock of this machine.
    pub last_cancel_unix_ms: Option<u64>,
    /// The last 64 request bodies; a string where one is not JSON.
    pub bodies: VecDeque<Value>,
    /// The same as they came, byte for byte if they are UTF-8; those of more than 64 KiB are cut.
    pub raw_bodies: VecDeque<String>,
    /// The last 64 header maps, names in lower case.
    pub headers: VecDeque<BTreeMap<String, String>>,
    /// The last 64 paths.
    pub paths: VecDeque<String>,
}

/// The report as it grows.
#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<Report>);

impl Stats {
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything but what is under way.
    pub(super) fn reset(&self) {
        let mut report = self.report();
        let open = report.open;
        *report = Report { open, requests: open, ..Report::default() };
    }
}

impl Report {
    pub(super) fn keep_body(&mut self, body: &[u8]) {
        let raw = body.get(..MAX_RAW).unwrap_or(body);
        keep(&mut self.raw_bodies, String::from_utf8_lossy(raw).into_owned());
        let body =
            serde_json::from_slice(body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()));
        keep(&mut self.bodies, body);
    }

    pub(super) fn keep_path(&mut self, path: &str) {
        keep(&mut self.paths, path.to_owned());
    }

    pub(super) fn keep_headers(&mut self, headers: &HeaderMap) {
        let mut map = BTreeMap::<String, String>::new();
        for (name, value) in headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            map.entry(name.to_string())
                .and_modify(|all| *all = format!("{all}, {value}"))
                .or_insert_with(|| value.to_string());
        }
        keep(&mut self.headers, map);
    }
}

fn keep<T>(kept: &mut VecDeque<T>, one: T) {
    if kept.len() >= KEPT {
        kept.pop_front();
    }
    kept.push_back(one);
}
