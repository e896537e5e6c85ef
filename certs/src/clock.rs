//! Wall time, as a seam: a test cannot wait fifteen days for an intermediate to come due.

use std::fmt::Debug;

use time::OffsetDateTime;

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
