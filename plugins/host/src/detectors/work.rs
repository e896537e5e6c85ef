//! Counts what a search costs, so that it can be given up.

use std::fmt;

/// Steps (of some nanoseconds each) between two looks at the clock.
const LOOK_EVERY: u64 = 1 << 16;

/// The work of one search.
pub(crate) struct Work<'a> {
    steps: u64,
    look_at: u64,
    over: bool,
    is_late: Option<&'a dyn Fn() -> bool>,
}

impl<'a> Work<'a> {
    /// As much as it takes.
    pub(crate) fn unbounded() -> Self {
        Self { steps: 0, look_at: u64::MAX, over: false, is_late: None }
    }

    /// Until `is_late`, which is asked now and then.
    pub(crate) fn until(is_late: &'a dyn Fn() -> bool) -> Self {
        Self { steps: 0, look_at: 0, over: false, is_late: Some(is_late) }
    }

    /// Counts `steps`; false: give up.
    pub(super) fn spend(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_add(steps as u64);
        if self.steps >= self.look_at {
            self.look_at = self.steps.saturating_add(LOOK_EVERY);
            self.over |= self.is_late.is_some_and(|is_late| is_late());
        }
        !self.over
    }

    /// Was it given up?
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    #[cfg(test)]
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("steps", &self.steps).finish_non_exhaustive()
    }
}
