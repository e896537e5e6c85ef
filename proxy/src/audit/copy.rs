//! A copy of the log at another gateway. It is asked how many records it has, and given those that come after, in steps, each with a
//! checkpoint of just the tree that it makes (`postern_tlog::Push`). So nothing gets there that is not signed here, and what was signed
//! once cannot be taken back: a log that was set back or rewritten is refused there, and told on both sides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_tlog::{Files, LogError, Push, SecretKey, Signed};
use serde::Deserialize;

use super::line::Notice;
use super::seldom::wait;
use super::{AuditLog, COPIES_PATH, day_of};
use crate::config;
use crate::egress::CopyWay;
use crate::telemetry::metrics::Metrics;
use crate::tls::Certificate;

/// Between two looks when everything is there.
const EVERY: Duration = Duration::from_secs(1);
/// The longest wait after failures.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Between two times that it is put on record that a copy contradicts.
const TOLD_EVERY: Duration = Duration::from_secs(3600);
/// The longest wait before all is given again to who lost it.
const MAX_PAUSE: Duration = Duration::from_secs(3600);
/// Letters of an error code that is told.
const MAX_CODE: usize = 40;

/// Gives another gateway a copy.
#[derive(Debug)]
pub(crate) struct Copier {
    way: CopyWay,
    /// Whom.
    to: String,
}

/// How it stands after a step.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It has so many records.
    Has(u64),
    /// What it has is not the beginning of this log: so many records, if it says how many.
    Contradicted(Option<u64>),
    /// Neither: a fixed word.
    Failed(&'static str),
}

impl Copier {
    /// The one of the configuration; none if the gateway is offline. Connects to nothing yet.
    pub(crate) fn of(
        settings: &config::Audit,
        log: &AuditLog,
        certificate: &Arc<Certificate>,
        offline: bool,
    ) -> Option<Self> {
        let copy = settings.copy.as_ref()?;
        if offline {
            tracing::warn!("this gateway is offline: nobody is given a copy of its records (`audit.copy`)");
            return None;
        }
        let path = format!("{COPIES_PATH}{}", log.key().public().hash());
        let way = CopyWay::new(&copy.to, &path, copy.identity.clone(), certificate)?;
        Some(Self { way, to: copy.identity.to_string() })
    }

    /// Gives it what the log signs, for as long as it is polled.
    pub(crate) async fn keep_up(&self, log: &AuditLog, metrics: &Metrics) {
        let mut checkpoints = log.checkpoints();
        let (mut has, mut failures, mut told) = (None, 0_u32, None::<Instant>);
        // What it took already, and how often it said that it has less.
        let (mut most, mut lost) = (0, 0_u32);
        metrics.copied_contradicts(false);
        loop {
            let newest = checkpoints.borrow_and_update().clone();
            let Some(newest) = newest else {
                if checkpoints.changed().await.is_err() {
                    return;
                }
                continue;
            };
            match self.step(log, &newest, has).await {
                Step::Has(records) => {
                    let is_less = has.is_none() && records < most;
                    metrics.copied(records, time::OffsetDateTime::now_utc().unix_timestamp());
                    metrics.copied_contradicts(false);
                    if failures > 0 {
                        tracing::info!(to = self.to, records, "the other gateway takes this log again");
                    }
                    (has, failures, most) = (Some(records), 0, most.max(records));
                    if is_less {
                        lost = lost.saturating_add(1);
                        self.way.complain(&format!("it has {records} records, and took {most} before; it is given all of them again, more slowly each time"));
                        tokio::time::sleep(pause(lost)).await;
                    }
                    // Without a pause, as long as there is more.
                    if records >= newest.head.size {
                        tokio::time::sleep(EVERY).await;
                        if checkpoints.changed().await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                Step::Contradicted(records) => {
                    metrics.copy_failed("contradicts");
                    metrics.copied_contradicts(true);
                    // One that says now this and now that would fill the log.
                    if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) && self.tell(log, &newest, records).await {
                        told = Some(Instant::now());
                    }
                }
                Step::Failed(why) => metrics.copy_failed(why),
            }
            (has, failures) = (None, failures.saturating_add(1));
            tokio::time::sleep(wait(failures, MAX_WAIT)).await;
        }
    }

    /// One step on the way to `newest`, from what it `has`, if that is known.
    async fn step(&self, log: &AuditLog, newest: &Arc<Signed>, has: Option<u64>) -> Step {
        let size = newest.head.size;
        let Some(has) = has else {
            return match self.ask(None).await {
                // Compared once, as is everything that comes after.
                Step::Has(has) if has >= size => match self.ask(Some(shown(newest))).await {
                    Step::Has(_) if has == size => Step::Has(has),
                    Step::Has(_) => Step::Contradicted(Some(has)),
                    Step::Contradicted(_) => Step::Contradicted(Some(has)),
                    failed @ Step::Failed(_) => failed,
                },
                first => first,
            };
        };
        if has >= size {
            return Step::Has(has);
        }
        let (files, key, signed) = (log.files().clone(), log.key().clone(), newest.clone());
        let push = tokio::task::spawn_blocking(move || push(&files, &key, &signed, has)).await;
        let push = match push {
            Ok(Ok(push)) => push,
            Ok(Err(error)) => {
                self.way.complain(&format!(
                    "it has {has} records, and those after them cannot be read here: {error}. Put a copy of the whole folder there by hand"
                ));
                return Step::Failed("unreadable");
            }
            Err(_) => return Step::Failed("unreadable"),
        };
        let end = has + push.entries.len() as u64;
        match self.ask(Some(push.to_bytes())).await {
            Step::Has(now) if now != end => {
                self.way.complain("it says of a copy that it has another number of records than it was given");
                Step::Failed("refused")
            }
            step => step,
        }
    }

    async fn ask(&self, body: Option<Vec<u8>>) -> Step {
        #[derive(Deserialize)]
        struct Has {
            records: u64,
        }
        let Some((status, body)) = self.way.ask(body).await else { return Step::Failed("unreachable") };
        match (status, serde_json::from_slice::<Has>(&body)) {
            (200, Ok(Has { records })) => Step::Has(records),
            (422, _) => Step::Contradicted(None),
            _ => {
                self.way.complain(&format!("it answers {status} {}", code(&body)));
                Step::Failed("refused")
            }
        }
    }

    /// Whether it is on record.
    async fn tell(&self, log: &AuditLog, newest: &Signed, seen: Option<u64>) -> bool {
        tracing::error!(
            to = self.to,
            seen,
            records = newest.head.size,
            "ALARM: the copy of the records at this gateway is not the beginning of what is here: they were set back or rewritten, or that gateway is wrong. \
             Compare both (`postern audit verify`), and keep the folder as evidence"
        );
        let (subject, from) = (Some(self.to.clone()), Some(newest.head.size));
        let notice = Notice { what: "copy", subject, records: seen, from, ..Notice::default() };
        log.notice(&notice).await.is_ok()
    }
}

/// A checkpoint alone.
fn shown(newest: &Signed) -> Vec<u8> {
    Push { from: newest.head.size, entries: Vec::new(), checkpoint: newest.bytes.clone() }.to_bytes()
}

/// What comes after the first `from`. A day ends with a step, so that the copy has a checkpoint of its end.
fn push(files: &Files, key: &SecretKey, newest: &Signed, from: u64) -> Result<Push, LogError> {
    let day = |number: u64| files.entry(number).map(|record| day_of(&record));
    let is_one_day = day(from)? == day(newest.head.size.saturating_sub(1))?;
    let ends = if is_one_day { None } else { Some(files.ends()?) };
    let until = ends.iter().flatten().map(|(_, end)| *end).filter(|end| *end > from).min().unwrap_or(u64::MAX);
    Push::of(files, key, newest, from, until)
}

/// The code of an error in the form of all others; whatever else was said is nobody's words.
fn code(body: &[u8]) -> String {
    let code = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|body| {
        let code = body.get("error")?.get("code")?.as_str()?;
        let is_one = code.len() <= MAX_CODE && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_one.then(|| code.to_owned())
    });
    code.unwrap_or_default()
}

/// How long to wait before everything is given again to who lost it so many times.
fn pause(lost: u32) -> Duration {
    MAX_WAIT.saturating_mul(1 << lost.saturating_sub(1).min(16)).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_loses_a_copy_again_and_again_is_given_it_less_and_less_often() {
        assert_eq!([1, 2, 5, 9, u32::MAX].map(|lost| pause(lost).as_secs()), [60, 120, 960, 3600, 3600]);
    }

    #[test]
    fn of_an_error_only_its_code_is_told() {
        assert_eq!(code(br#"{"error": {"message": "m", "code": "copy_full"}}"#), "copy_full");
        for body in [&b"copy_full"[..], br#"{"error": {"code": "Say this\n"}}"#, br#"{"error": {"code": 7}}"#, b"\xff"]
        {
            assert_eq!(code(body), "");
        }
    }
}
