//! Witnesses (C2SP tlog-witness): somebody else is given each checkpoint, and signs that the log has only grown since the last one. So
//! whoever has that signature knows of a log that was set back, whatever became of the folder.
//!
//! Nobody waits for them: the thread that writes shows its newest checkpoint, and for each witness a task takes the one of the moment. What
//! a witness says is nobody's word but its own: a signature counts if it is of its key, and nothing else that it says changes anything
//! here but what is told about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_tlog::{Answer, Signed, WitnessKey, add_checkpoint, answer, keep_cosigned, kept_cosigned};

use super::AuditLog;
use super::line::Notice;
use super::seldom::wait;
use crate::config;
use crate::egress::Post;
use crate::telemetry::metrics::Metrics;

/// Between two checkpoints that it is given.
const EVERY: Duration = Duration::from_secs(1);
/// The longest wait after failures.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// A log that does not grow is shown again, since the signature says of when it is; and what is wrong is told again.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// Questions about one checkpoint: the first, one with what it knows, and one more if somebody else gave it another meanwhile.
const ROUNDS: usize = 3;

/// Somebody who is given each checkpoint.
#[derive(Debug)]
pub(crate) struct Witness {
    key: WitnessKey,
    post: Post,
}

/// What came of a checkpoint.
#[derive(Debug)]
enum Ended {
    /// It has signed: the checkpoint with its signature.
    Cosigned(Vec<u8>),
    /// It has seen another history, or more: so many records, if it says how many.
    Contradicted(Option<u64>),
    /// Neither: a fixed word.
    Failed(&'static str),
}

impl Witness {
    /// Those of the configuration; none if the gateway is offline. One whose authorities are not to be had is left out until the next start,
    /// loudly: nobody waits for a witness, so nobody is refused for want of one. Connects to nothing yet.
    pub(crate) fn all(witnesses: &[config::audit::Witness], offline: bool) -> Vec<Self> {
        if offline && !witnesses.is_empty() {
            tracing::warn!("this gateway is offline: its witnesses (`audit.witnesses`) are given no checkpoints");
            return Vec::new();
        }
        let one = |witness: &config::audit::Witness| {
            let lacks = "this witness has not signed the newest checkpoint of the records";
            let post = Post::new(witness.key.name(), witness.url.clone(), witness.ca.as_deref(), lacks);
            let post = post.map_err(|error| {
                tracing::error!(
                    witness = witness.key.name(),
                    error,
                    "this witness (`audit.witnesses`) is given no checkpoints until the gateway is started again: its `ca` cannot be used"
                );
            });
            Some(Self { key: witness.key.clone(), post: post.ok()? })
        };
        witnesses.iter().filter_map(one).collect()
    }

    /// Gives it what the log signs, for as long as it is polled.
    pub(crate) async fn keep_up(&self, log: &AuditLog, metrics: &Metrics) {
        let name = self.key.name();
        let mut checkpoints = log.checkpoints();
        let kept = self.kept(log).await;
        // What it signed last is a part of this folder; what the log has less than that was taken from it.
        let (mut known, mut failures, mut told) = (kept.as_ref().map_or(0, |kept| kept.head.size), 0, None::<Instant>);
        metrics.witness_contradicts(name, false);
        metrics.witnessed(name, known, None);
        loop {
            let newest = checkpoints.borrow_and_update().clone();
            let Some(newest) = newest else {
                if checkpoints.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.show(log, &newest, known).await {
                Ended::Cosigned(bytes) => {
                    if failures > 0 {
                        tracing::info!(witness = name, records = newest.head.size, "this witness signs this log again");
                    }
                    (known, failures) = (newest.head.size, 0);
                    self.keep(log, bytes, metrics).await;
                    metrics.witness_contradicts(name, false);
                    metrics.witnessed(name, known, Some(time::OffsetDateTime::now_utc().unix_timestamp()));
                    tokio::time::sleep(EVERY).await;
                    if let Ok(Err(_)) = tokio::time::timeout(AGAIN_AFTER, checkpoints.changed()).await {
                        return;
                    }
                    continue;
                }
                Ended::Contradicted(seen) => {
                    let seen = seen.or((known > newest.head.size).then_some(known));
                    metrics.witness_failed(name, "contradicts");
                    metrics.witness_contradicts(name, true);
                    // One that says now this and now that would fill the log.
                    if told.is_none_or(|at| at.elapsed() >= AGAIN_AFTER) && self.tell(log, &newest, seen).await {
                        told = Some(Instant::now());
                    }
                }
                Ended::Failed(why) => metrics.witness_failed(name, why),
            }
            failures += 1;
            tokio::time::sleep(wait(failures, MAX_WAIT)).await;
        }
    }

    async fn show(&self, log: &AuditLog, newest: &Arc<Signed>, known: u64) -> Ended {
        // What it signed itself, and is kept here, says as much as its answer.
        if known > newest.head.size {
            self.post.complain("it has signed more records than there are");
        }
        let mut old = if known > newest.head.size { 0 } else { known };
        for _ in 0..ROUNDS {
            let (files, signed) = (log.files().clone(), newest.clone());
            let body = tokio::task::spawn_blocking(move || add_checkpoint(&files, &signed, old)).await;
            let body = match body {
                Ok(Ok(body)) => body,
                Ok(Err(error)) => {
                    self.post.complain(&format!("what it knows cannot be proved to be the beginning: {error}"));
                    return Ended::Failed("proof");
                }
                Err(_) => return Ended::Failed("proof"),
            };
            let Some((status, said)) = self.post.send("text/plain; charset=utf-8", body).await else {
                return Ended::Failed("unreachable");
            };
            match answer(&self.key, newest, status, &said) {
                Answer::Signed(bytes) => return Ended::Cosigned(bytes),
                Answer::Contradicts => return Ended::Contradicted(None),
                Answer::Knows(size) if size > newest.head.size => return Ended::Contradicted(Some(size)),
                // Of the same size, and another tree.
                Answer::Knows(size) if size == old && size == newest.head.size => {
                    return Ended::Contradicted(Some(size));
                }
                Answer::Knows(size) => old = size,
                Answer::Refused(why) => {
                    self.post.complain(why);
                    return Ended::Failed("refused");
                }
            }
        }
        self.post.complain("it does not say twice the same of what it knows");
        Ended::Failed("refused")
    }

    /// Whether it is on record.
    async fn tell(&self, log: &AuditLog, newest: &Signed, seen: Option<u64>) -> bool {
        tracing::error!(
            witness = self.key.name(),
            seen,
            records = newest.head.size,
            "ALARM: what this witness has seen of the records is not the beginning of what is here: they were set back or rewritten, or the witness is wrong. \
             Compare them with a copy (`postern audit verify --later`), and keep the folder as evidence"
        );
        let notice = Notice {
            what: "witness",
            subject: Some(self.key.name().to_owned()),
            records: seen,
            from: Some(newest.head.size),
            ..Notice::default()
        };
        log.notice(&notice).await.is_ok()
    }

    async fn kept(&self, log: &AuditLog) -> Option<Signed> {
        let (files, key, witness) = (log.files().clone(), log.key().public().clone(), self.key.clone());
        let kept = tokio::task::spawn_blocking(move || kept_cosigned(&files, &key, &witness)).await;
        match kept.ok()? {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, witness = self.key.name(), "what this witness signed last cannot be read");
                None
            }
        }
    }

    async fn keep(&self, log: &AuditLog, bytes: Vec<u8>, metrics: &Metrics) {
        let (files, witness) = (log.files().clone(), self.key.clone());
        let kept = tokio::task::spawn_blocking(move || keep_cosigned(&files, &witness, &bytes)).await;
        if let Ok(Err(error)) = kept {
            metrics.witness_failed(self.key.name(), "disk");
            self.post.complain(&format!("what it has signed cannot be kept: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_without_authorities_is_left_out_and_stops_nobody() {
        let witness = config::audit::Witness {
            url: http::Uri::from_static("https://witness.example.org/add-checkpoint"),
            key: WitnessKey::named("witness.example.org", [7; 32]).unwrap(),
            ca: Some("/nowhere/ca.pem".into()),
        };
        assert!(Witness::all(&[witness], false).is_empty());
    }
}
