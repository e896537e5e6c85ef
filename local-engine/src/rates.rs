//! Speeds, smoothed: what the gateway predicts from.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;

/// An exponentially weighted moving average; 0 until the first measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Average(f64);

impl Average {
    pub(crate) fn add(&mut self, value: f64) {
        if value.is_finite() && value >= 0.0 {
            self.0 = if self.0 == 0.0 { value } else { self.0 + NEWEST * (value - self.0) };
        }
    }

    pub(crate) fn value(self) -> f64 {
        self.0
    }
}

/// Tokens a second, of prompts and of answers (all sequences together).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    pub(crate) prefill: Average,
    pub(crate) decode: Average,
}

impl Rates {
    /// One step's tokens and time. A mixed step measures neither: its time cannot be told apart.
    pub(crate) fn add_step(&mut self, prefill_tokens: usize, decode_tokens: usize, took: Duration) {
        let rate = |tokens: usize| tokens as f64 / took.as_secs_f64();
        match (prefill_tokens, decode_tokens) {
            (0, 0) => {}
            (prefill, 0) => self.prefill.add(rate(prefill)),
            (0, decode) => self.decode.add(rate(decode)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_begins_with_the_first_value_and_follows() {
        let mut average = Average::default();
        average.add(100.0);
        assert_eq!(average.value(), 100.0);
        average.add(200.0);
        assert_eq!(average.value(), 120.0);
        average.add(f64::INFINITY);
        assert_eq!(average.value(), 120.0);
    }

    #[test]
    fn mixed_steps_do_not_count() {
        let mut rates = Rates::default();
        rates.add_step(64, 0, Duration::from_secs(1));
        rates.add_step(0, 4, Duration::from_secs(1));
        rates.add_step(64, 4, Duration::from_millis(1));
        assert_eq!((rates.prefill.value(), rates.decode.value()), (64.0, 4.0));
    }
}
