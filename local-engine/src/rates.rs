//! Speeds, smoothed: what predictions are made from, and how many prompt tokens a step may take.

use std::time::Duration;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// Tokens of a step's prefill at most: a step is also how long a cancellation takes.
pub(crate) const PREFILL_TOKENS_MAX: usize = 64;
/// How much longer a step may be for the prefill in it, as a share of the step without it. Far enough below 1 that the
/// slowest steps, too, stay below twice what one is alone: one in a hundred takes a third longer than most.
const PREFILL_SHARE: f64 = 0.5;
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

/// A straight line through measurements, of which old ones are forgotten (least squares with exponential weights).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    /// What is left of a measurement's weight at the next one.
    const KEPT: f64 = 0.98;
    /// With a smaller spread (variance) of x, nothing is known of how y depends on it.
    const SPREAD_MIN: f64 = 0.02;

    fn add(&mut self, x: f64, y: f64) {
        for (sum, value) in [&mut self.weight, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy].into_iter().zip([
            1.0,
            x,
            y,
            x * x,
            x * y,
        ]) {
            *sum = *sum * Self::KEPT + value;
        }
    }

    /// Never falling, never below 0; level while nothing is known of its slope, 1 while nothing is known at all.
    fn at(self, x: f64) -> f64 {
        if self.weight == 0.0 {
            return 1.0;
        }
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let spread = self.xx / self.weight - mean_x * mean_x;
        let slope = if spread < Self::SPREAD_MIN { 0.0 } else { (self.xy / self.weight - mean_x * mean_y) / spread };
        // A line that would begin below 0 begins at 0.
        (mean_y + slope.clamp(0.0, mean_y / mean_x) * (x - mean_x)).max(0.0)
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
    /// Seconds of steps without prefill, by the number of their rows.
    rows: Line,
}

impl Pace {
    /// One step's rows and time. A row decodes if its logits are asked for: the last token of an answer, or a guess.
    pub(crate) fn add_step(&mut self, prefill_tokens: usize, decoding: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        match (prefill_tokens, decoding) {
            (0, 0) => {}
            (tokens, 0) => self.prefill.add(seconds / tokens as f64),
            (0, decoding) => {
                self.mixed_steps = 0;
                self.rows.add(decoding as f64, seconds);
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

    /// So many tokens of answers came out of a step that did nothing else.
    pub(crate) fn add_answered(&mut self, tokens: usize, took: Duration) {
        self.decode.add(tokens as f64 / took.as_secs_f64());
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

    /// Seconds of a step with so many decoding rows, for comparisons.
    pub(crate) fn expected_step(&self, rows: usize) -> f64 {
        self.rows.at(rows as f64)
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
        assert_eq!(pace.budget(8), 5);
        assert_eq!(pace.budget(7), 0);
        // Tokens at the end of a long prompt take longer: three times as long from here on.
        for _ in 0..31 {
            let tokens = pace.budget(8);
            assert!(tokens > 0);
            pace.add_step(tokens, 8, ms(100 + 30 * tokens as u64));
        }
        assert_eq!(pace.budget(8), 1);
        pace.add_step(1, 8, ms(130));
        assert_eq!(pace.budget(8), 0, "from time to time, answers are measured alone");
        pace.add_step(0, 8, ms(100));
        assert_eq!(pace.budget(8), 1);
        pace.add_step(0, 1, ms(5));
        assert_eq!(pace.budget(1), 1, "never nothing for long");
    }

    #[test]
    fn rates_are_those_of_the_present_load() {
        let mut pace = Pace::default();
        assert_eq!((pace.prefill_rate(0), pace.decode_rate()), (0.0, 0.0));
        pace.add_step(50, 0, ms(500));
        pace.add_step(0, 8, ms(100));
        pace.add_answered(8, ms(100));
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-6 * wanted, "{value} {wanted}");
        near(pace.prefill_rate(0), 100.0);
        near(pace.prefill_rate(8), 5.0 / 0.15);
        near(pace.decode_rate(), 80.0);
    }

    #[test]
    fn a_line_is_found_and_forgotten() {
        let mut line = Line::default();
        assert_eq!(line.at(3.0), 1.0);
        (0..10).for_each(|_| line.add(1.0, 0.3));
        assert_eq!(line.at(9.0), line.at(1.0), "as long as nothing else was measured");
        for at in 0..40 {
            let rows = f64::from(at % 5 + 1);
            line.add(rows, 0.2 + 0.1 * rows);
        }
        assert!((line.at(9.0) - 1.1).abs() < 1e-6, "{line:?}");
        (0..1000).for_each(|_| line.add(1.0, 0.3));
        assert!((line.at(9.0) - 0.3).abs() < 1e-6, "what more rows take may have changed since: {line:?}");
    }
}
