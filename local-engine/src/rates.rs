//! Speeds, smoothed: what predictions are made from, and how many prompt tokens a step may take.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// Tokens of a step's prefill at most: a step is also how long a cancellation takes.
pub(crate) const PREFILL_TOKENS_MAX: usize = 64;
/// How much longer a step may be for the prefill in it, as a share of the step without it. Below 1, so that the time
/// between two tokens of an answer stays below twice what it is alone.
const PREFILL_SHARE: f64 = 0.8;
/// After so many mixed steps one is made without prefill, to measure what answers take alone.
const MIXED_STEPS_MAX: u32 = 32;

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

/// How long steps take.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    /// Seconds of one prompt token.
    prefill: Average,
    /// Tokens a second, of all answers together.
    decode: Average,
    /// For each number of answers: seconds of a step that works on nothing else.
    steps: Vec<Average>,
    mixed_steps: u32,
}

impl Pace {
    /// One step's rows and time.
    pub(crate) fn add_step(&mut self, prefill_tokens: usize, decoding: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        match (prefill_tokens, decoding) {
            (0, 0) => {}
            (tokens, 0) => self.prefill.add(seconds / tokens as f64),
            (0, decoding) => {
                self.mixed_steps = 0;
                self.decode.add(decoding as f64 / seconds);
                if self.steps.len() <= decoding {
                    self.steps.resize(decoding + 1, Average::default());
                }
                if let Some(step) = self.steps.get_mut(decoding) {
                    step.add(seconds);
                }
            }
            (tokens, decoding) => {
                self.mixed_steps += 1;
                let alone = self.step(decoding);
                if alone > 0.0 && seconds > alone {
                    self.prefill.add((seconds - alone) / tokens as f64);
                }
            }
        }
    }

    /// Prompt tokens that a step with so many answers may take; 0: this once, none.
    pub(crate) fn budget(&self, decoding: usize) -> usize {
        let (alone, each) = (self.step(decoding), self.prefill.value());
        if decoding == 0 || each <= 0.0 {
            return PREFILL_TOKENS_MAX;
        }
        if alone <= 0.0 || self.mixed_steps >= MIXED_STEPS_MAX {
            return 0;
        }
        ((PREFILL_SHARE * alone / each) as usize).clamp(1, PREFILL_TOKENS_MAX)
    }

    /// Prompt tokens a second beside so many answers.
    pub(crate) fn prefill_rate(&self, decoding: usize) -> f64 {
        let (alone, each) = (self.step(decoding), self.prefill.value());
        let tokens = self.budget(decoding).max(1) as f64;
        if each <= 0.0 { 0.0 } else { tokens / (tokens * each + alone) }
    }

    /// Tokens a second, of all answers together.
    pub(crate) fn decode_rate(&self) -> f64 {
        self.decode.value()
    }

    /// Seconds of a step with nothing but so many answers; 0: not measured.
    fn step(&self, decoding: usize) -> f64 {
        self.steps.get(decoding).map_or(0.0, |step| step.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

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
    fn a_prompt_takes_less_time_of_a_step_than_the_answers_in_it() {
        let mut pace = Pace::default();
        pace.add_step(64, 0, ms(640));
        assert_eq!(pace.budget(0), PREFILL_TOKENS_MAX);
        assert_eq!(pace.budget(8), 0, "what eight answers take is to be measured first");
        pace.add_step(0, 8, ms(100));
        assert_eq!(pace.budget(8), 8);
        assert_eq!(pace.budget(7), 0);
        // Tokens at the end of a long prompt take longer: three times as long from here on.
        for _ in 0..31 {
            let tokens = pace.budget(8);
            assert!(tokens > 0);
            pace.add_step(tokens, 8, ms(100 + 30 * tokens as u64));
        }
        assert_eq!(pace.budget(8), 2);
        pace.add_step(2, 8, ms(160));
        assert_eq!(pace.budget(8), 0, "from time to time, answers are measured alone");
        pace.add_step(0, 8, ms(100));
        assert_eq!(pace.budget(8), 2);
        pace.add_step(0, 1, ms(5));
        assert_eq!(pace.budget(1), 1, "never nothing for long");
    }

    #[test]
    fn rates_are_those_of_the_present_load() {
        let mut pace = Pace::default();
        assert_eq!((pace.prefill_rate(0), pace.decode_rate()), (0.0, 0.0));
        pace.add_step(50, 0, ms(500));
        pace.add_step(0, 8, ms(100));
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-6 * wanted, "{value} {wanted}");
        near(pace.prefill_rate(0), 100.0);
        near(pace.prefill_rate(8), 8.0 / 0.18);
        near(pace.decode_rate(), 80.0);
    }
}
