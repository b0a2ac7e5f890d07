//! The waits between attempts, as a kubelet has them.

use dhow_types::Time;

/// A wait that doubles from attempt to attempt and starts over after a quiet time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first_ms: u64,
    max_ms: u64,
    current_ms: u64,
    attempted: Time,
}

impl Backoff {
    /// Crash loops and image pulls: 10 s doubling to 5 min.
    pub const fn containers() -> Self {
        Self::new(10_000, 300_000)
    }

    /// Volumes: 500 ms doubling to 2 min.
    pub const fn volumes() -> Self {
        Self::new(500, 122_000)
    }

    /// Writes to the API server: 500 ms doubling to 10 s.
    pub const fn writes() -> Self {
        Self::new(500, 10_000)
    }

    const fn new(first_ms: u64, max_ms: u64) -> Self {
        Self { first_ms, max_ms, current_ms: 0, attempted: Time::from_ms(0) }
    }

    /// How long to wait after something that was attempted before ended at `now`: nothing at first, and nothing again
    /// after twice the longest wait without an attempt.
    pub fn wait_after_end(&mut self, now: Time) -> u64 {
        if now.ms_since(self.attempted) > 2 * self.max_ms {
            self.current_ms = 0;
        }
        self.current_ms
    }

    /// Notes an attempt at `now`: the next wait is longer.
    pub fn attempt(&mut self, now: Time) {
        self.attempted = now;
        self.current_ms = if self.current_ms == 0 { self.first_ms } else { (self.current_ms * 2).min(self.max_ms) };
    }

    /// Notes a failure at `now` and says how long to wait for the next attempt.
    pub fn fail(&mut self, now: Time) -> u64 {
        self.wait_after_end(now);
        self.attempt(now);
        self.current_ms
    }

    /// Starts over: it worked.
    pub fn reset(&mut self) {
        self.current_ms = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_waits_as_a_kubelet_does() {
        let mut backoff = Backoff::containers();
        let mut now = Time::from_secs(1_000_000);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = backoff.wait_after_end(now);
            waits.push(wait / 1000);
            now = now + wait;
            backoff.attempt(now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.wait_after_end(now + 599_000), 300_000);
        assert_eq!(backoff.wait_after_end(now + 601_000), 0, "ten minutes of running start it over");
    }

    #[test]
    fn a_failing_pull_waits_from_the_first_failure_on() {
        let mut backoff = Backoff::containers();
        let now = Time::from_secs(1_000_000);
        assert_eq!(
            [backoff.fail(now), backoff.fail(now + 10_000), backoff.fail(now + 30_000)],
            [10_000, 20_000, 40_000]
        );
        backoff.reset();
        assert_eq!(backoff.fail(now + 40_000), 10_000);
    }
}
