//! Wall time, as a seam: a test cannot wait fifteen days for an intermediate to come due.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
};

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339, macros::datetime};

use crate::CertsError;

/// No machine that runs this program can honestly read an earlier time: one that does has lost its clock. A dated
/// constant, so that the same source gives the same binary; moved forward with each release.
pub const RELEASED: OffsetDateTime = datetime!(2026-11-01 00:00 UTC);
/// So much may the clock go back: what time servers correct by is less.
pub const TOLERANCE: Duration = Duration::minutes(5);

/// Where the authority reads the time of day.
pub trait Clock: Debug + Send + Sync {
    /// The present moment, UTC.
    fn now(&self) -> OffsetDateTime;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}

/// The time by which this process judges what may have ended: that of the machine, and after a clock that was set back by
/// more than [`TOLERANCE`] the latest one seen. What has ended does not come to life again.
#[must_use]
pub fn steady_now() -> OffsetDateTime {
    STEADY.judge(SystemClock.now())
}

static STEADY: Steady = Steady::new();

/// The latest time seen.
#[derive(Debug)]
struct Steady {
    /// Seconds since 1970.
    latest: AtomicI64,
    is_behind: AtomicBool,
}

impl Steady {
    const fn new() -> Self {
        Self { latest: AtomicI64::new(i64::MIN), is_behind: AtomicBool::new(false) }
    }

    fn judge(&self, now: OffsetDateTime) -> OffsetDateTime {
        let before = self.latest.fetch_max(now.unix_timestamp(), Ordering::Relaxed);
        let latest = OffsetDateTime::from_unix_timestamp(before).unwrap_or(now);
        let is_behind = now < latest.saturating_sub(TOLERANCE);
        if self.is_behind.swap(is_behind, Ordering::Relaxed) != is_behind {
            if is_behind {
                tracing::error!(%now, %latest, "the clock was set back: what had ended by the latest time seen stays refused");
            } else {
                tracing::info!(%now, "the clock is not behind the latest time seen any more");
            }
        }
        if is_behind { latest } else { now }
    }
}

/// Refuses a time that lies before this program, or further before the highest one seen than any correction does.
pub(crate) fn check(now: OffsetDateTime, highest: Option<OffsetDateTime>) -> Result<(), CertsError> {
    if now < RELEASED {
        return Err(CertsError::ClockNeverSet { now, released: RELEASED });
    }
    match highest {
        Some(highest) if now < highest.saturating_sub(TOLERANCE) => Err(CertsError::ClockSetBack { now, highest }),
        _ => Ok(()),
    }
}

/// A moment as RFC 3339 writes it, in whole seconds; empty for a year that it cannot write.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_does_not_come_back() {
        let steady = Steady::new();
        let noon = datetime!(2026-11-26 12:00 UTC);
        assert_eq!(steady.judge(noon), noon);
        let corrected = noon - TOLERANCE;
        assert_eq!(steady.judge(corrected), corrected, "what a time server corrects by is believed");
        assert_eq!(steady.judge(noon - Duration::hours(48)), noon);
        assert_eq!(steady.judge(corrected - Duration::SECOND), noon);
        let later = noon + Duration::SECOND;
        assert_eq!(steady.judge(later), later);
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::sync::{Arc, Mutex};

    use time::{Duration, OffsetDateTime};

    use super::Clock;

    /// A clock that moves only when it is told to.
    #[derive(Clone, Debug)]
    pub(crate) struct FakeClock(Arc<Mutex<OffsetDateTime>>);

    impl FakeClock {
        pub(crate) fn at(now: OffsetDateTime) -> Self {
            Self(Arc::new(Mutex::new(now)))
        }

        pub(crate) fn advance(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> OffsetDateTime {
            *self.0.lock().unwrap()
        }
    }
}
