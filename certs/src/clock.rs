//! Wall time, as a seam: a test cannot wait fifteen days for an intermediate to come due.

use std::fmt::Debug;

use time::{Duration, OffsetDateTime, macros::datetime};

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
