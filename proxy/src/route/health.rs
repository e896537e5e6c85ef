//! How well a policy does: what failed last, how often in a row, and whether it is called at all.
//!
//! Only requests that may leave this machine change anything here: whether a policy is called decides where later requests go,
//! and a policy that fails on purpose could tell them what it read in one that had to stay.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use postern_plugins::FailureKind;

/// A failing policy is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What a policy can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// What must not leave.
    Redaction,
    /// Where to answer.
    Routing,
    /// Whether to keep the answer.
    Caching,
}

impl Step {
    /// All of them, in the order of the request path.
    pub const ALL: [Self; 3] = [Self::Redaction, Self::Routing, Self::Caching];

    /// In records and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Redaction => "redaction",
            Self::Routing => "routing",
            Self::Caching => "caching",
        }
    }
}

/// A failure, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub step: Step,
    /// How.
    pub kind: FailureKind,
    /// When.
    pub at: SystemTime,
}

/// The health of one version of a policy.
#[derive(Debug)]
pub struct Health {
    quarantine_after: u32,
    /// Failures in a row, for each step: a step that does well does not make up for one that does not.
    in_a_row: [AtomicU32; 3],
    quarantined: AtomicBool,
    last: Mutex<Option<Failure>>,
    born: Instant,
    /// Seconds since it was born, plus one, of the last log line about a failure; 0: none yet.
    logged_at: AtomicU64,
}

impl Health {
    /// Of a policy that has not been called.
    #[must_use]
    pub fn new(quarantine_after: u32) -> Self {
        Self {
            quarantine_after,
            in_a_row: Default::default(),
            quarantined: AtomicBool::new(false),
            last: Mutex::new(None),
            born: Instant::now(),
            logged_at: AtomicU64::new(0),
        }
    }

    /// A call has ended. True if it was the failure too many.
    pub fn note(&self, step: Step, failed: Option<FailureKind>) -> bool {
        let in_a_row = self.of(step);
        let Some(kind) = failed else {
            in_a_row.store(0, Ordering::Relaxed);
            return false;
        };
        self.remember(step, kind);
        let failures = in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        failures >= self.quarantine_after && !self.quarantined.swap(true, Ordering::Relaxed)
    }

    /// A failure when it was tried, before any request: shown, not counted.
    pub fn tried(&self, step: Step, failed: Option<FailureKind>) {
        if let Some(kind) = failed {
            self.remember(step, kind);
        }
        self.of(step).store(u32::from(failed.is_some()), Ordering::Relaxed);
    }

    /// It is not called any more.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Calls it again, and counts from 0. False if it was called all the time.
    pub fn release(&self) -> bool {
        self.in_a_row.iter().for_each(|failures| failures.store(0, Ordering::Relaxed));
        self.quarantined.swap(false, Ordering::Relaxed)
    }

    /// The steps of which the last call failed.
    #[must_use]
    pub fn failing(&self) -> Vec<&'static str> {
        let failing = Step::ALL.into_iter().filter(|step| self.of(*step).load(Ordering::Relaxed) > 0);
        failing.map(Step::name).collect()
    }

    /// The last failure, if there was one.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is it time for another line in the log? Asking makes it so that it is not for a minute.
    #[must_use]
    pub fn is_log_due(&self) -> bool {
        let now = self.born.elapsed().as_secs() + 1;
        let last = self.logged_at.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= LOG_EVERY.as_secs();
        due && self.logged_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn remember(&self, step: Step, kind: FailureKind) {
        let failure = Failure { step, kind, at: SystemTime::now() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    fn of(&self, step: Step) -> &AtomicU32 {
        let [redaction, routing, caching] = &self.in_a_row;
        match step {
            Step::Redaction => redaction,
            Step::Routing => routing,
            Step::Caching => caching,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAP: Option<FailureKind> = Some(FailureKind::Trap);

    #[test]
    fn failures_in_a_row_end_in_quarantine_once() {
        let health = Health::new(3);
        assert!(!health.note(Step::Routing, TRAP) && !health.note(Step::Routing, TRAP));
        assert!(!health.note(Step::Routing, None), "one that goes well in between");
        assert!(!health.note(Step::Routing, TRAP) && !health.note(Step::Routing, TRAP) && !health.is_quarantined());
        assert!(!health.note(Step::Caching, None), "another step makes up for nothing");
        assert!(health.note(Step::Routing, TRAP) && health.is_quarantined());
        assert!(!health.note(Step::Routing, TRAP), "it is said once");
        assert_eq!(health.failing(), ["routing"]);
        assert_eq!(health.last_failure().unwrap().kind, FailureKind::Trap);
        assert!(health.release() && !health.is_quarantined() && !health.release());
        assert!(health.failing().is_empty() && !health.note(Step::Routing, TRAP));
    }

    #[test]
    fn a_failure_when_it_is_tried_does_not_count() {
        let health = Health::new(2);
        health.tried(Step::Caching, TRAP);
        health.tried(Step::Caching, TRAP);
        assert_eq!((health.failing(), health.is_quarantined()), (vec!["caching"], false));
        health.tried(Step::Caching, None);
        assert!(health.failing().is_empty());
    }

    #[test]
    fn the_log_is_not_flooded() {
        let health = Health::new(1);
        assert!(health.is_log_due() && !health.is_log_due());
    }
}
