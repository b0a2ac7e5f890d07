//! How fast something that only grows is growing now: over about the last fifteen seconds.

use std::collections::VecDeque;

use dhow_types::Time;

/// The length of time that a rate is taken over, as the metrics server of Kubernetes has it.
const WINDOW_MS: u64 = 15_000;
/// The least: over less, one tick of the scheduler would look like a burst.
const WINDOW_MIN_MS: u64 = 1_000;
/// How often samples are worth taking: often enough that the window is never much longer than it should be.
pub const SAMPLE_EVERY_MS: u64 = 5_000;
/// Samples that are kept: those of one window, and one before it.
const SAMPLES_MAX: usize = (WINDOW_MS / SAMPLE_EVERY_MS) as usize + 1;

/// A counter at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was read.
    pub at: Time,
    /// What it said.
    pub count: u64,
}

/// How fast a counter grew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// By how much a second.
    pub per_s: u64,
    /// Over what time.
    pub window_ms: u64,
}

/// The last samples of one counter.
#[derive(Clone, Debug)]
pub struct Samples(VecDeque<Sample>);

impl Samples {
    /// A counter that began at 0 then.
    pub fn since(at: Time) -> Self {
        Self(VecDeque::from([Sample { at, count: 0 }]))
    }

    /// A counter that was first read then.
    pub fn beginning(sample: Sample) -> Self {
        Self(VecDeque::from([sample]))
    }

    /// Keeps one more.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// How fast the counter grew until this sample, which is not kept; `None` if it is too young to tell.
    pub fn rate(&self, now: Sample) -> Option<Rate> {
        let ages = self.0.iter().map(|sample| (now.at.ms_since(sample.at), sample));
        // The youngest that is old enough; else the oldest there is.
        let window = ages.clone().filter(|(age, _)| *age >= WINDOW_MS).min_by_key(|(age, _)| *age);
        let (window_ms, from) = window.or_else(|| ages.max_by_key(|(age, _)| *age))?;
        if window_ms < WINDOW_MIN_MS {
            return None;
        }
        let grown = u128::from(now.count.saturating_sub(from.count));
        Some(Rate { per_s: (grown * 1000 / u128::from(window_ms)) as u64, window_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: i64, count: u64) -> Sample {
        Sample { at: Time::from_ms(at_ms), count }
    }

    #[test]
    fn a_rate_is_taken_over_fifteen_seconds_or_what_there_is() {
        let mut samples = Samples::since(Time::from_ms(0));
        let rate =
            |samples: &Samples, at, count| samples.rate(sample(at, count)).map(|rate| (rate.per_s, rate.window_ms));
        assert_eq!(rate(&samples, 500, 50), None);
        assert_eq!(rate(&samples, 2_000, 200), Some((100, 2_000)));
        for turn in 1..=10 {
            samples.push(sample(turn * 5_000, turn as u64 * 500));
        }
        // At rest since 50 s.
        assert_eq!(rate(&samples, 50_000, 5_000), Some((100, 15_000)));
        assert_eq!(rate(&samples, 53_000, 5_000), Some((83, 18_000)));
        assert_eq!(rate(&samples, 65_000, 5_000), Some((0, 15_000)));
        // A counter that starts anew does not go backwards.
        assert_eq!(rate(&samples, 65_000, 10), Some((0, 15_000)));
    }
}
