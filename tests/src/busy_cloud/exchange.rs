//! One request from its arrival to its end. However it ends, dropping it closes the books: hyper drops the handler or the
//! body as soon as the client is gone.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use hyper::body::Frame;
use tokio::sync::Notify;

use super::plan::Step;
use super::stats::Stats;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Refused,
    Cut,
    Cancelled,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Exchange {
    stats: Arc<Stats>,
    started: Instant,
    closed: bool,
}

impl Exchange {
    pub(super) fn begin(stats: Arc<Stats>) -> Self {
        let mut report = stats.report();
        report.requests += 1;
        report.open += 1;
        drop(report);
        Self { stats, started: Instant::now(), closed: false }
    }

    /// The bytes of a body. `ok`: its status is 200. `cut` ends the whole connection.
    pub(super) fn play(
        mut self,
        steps: VecDeque<Step>,
        ok: bool,
        cut: Arc<Notify>,
    ) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
        let good_end = if ok { End::Completed } else { End::Refused };
        if steps.iter().all(|step| matches!(step, Step::Send(bytes) if bytes.is_empty())) {
            // hyper does not ask for a body of no bytes.
            self.close(good_end);
        }
        unfold((self, steps, cut), move |(mut exchange, mut steps, cut)| async move {
            loop {
                match steps.pop_front()? {
                    Step::Send(bytes) => {
                        // Before the bytes leave: whoever has read the whole answer finds it in the statistics. Nor does
                        // hyper ask again after the last byte that `Content-Length` announces.
                        if steps.is_empty() {
                            exchange.close(good_end);
                        }
                        return Some((Ok(Frame::data(bytes)), (exchange, steps, cut)));
                    }
                    Step::Wait(span) => tokio::time::sleep(span).await,
                    Step::Cut => {
                        exchange.close(End::Cut);
                        cut.notify_one();
                        std::future::pending().await
                    }
                    Step::Hang => std::future::pending().await,
                }
            }
        })
    }

    fn close(&mut self, end: End) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let mut report = self.stats.report();
        report.open = report.open.saturating_sub(1);
        match end {
            End::Completed => report.completed += 1,
            End::Refused => report.refused += 1,
            End::Cut => report.cut += 1,
            End::Cancelled => {
                report.cancelled += 1;
                report.last_cancel_ms_after_start = u64::try_from(self.started.elapsed().as_millis()).ok();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                report.last_cancel_unix_ms = u64::try_from(now.as_millis()).ok();
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.close(End::Cancelled);
    }
}
