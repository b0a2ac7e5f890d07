//! The one place where this crate reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use dhow_types::Time;

/// The wall-clock time. A clock that stands before 1970 counts as 1970.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The wall clock, except that it never goes back: the agent's promise to its deciding part. When the system's clock
/// is set back, this one goes on from where it was.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    last: Time,
    ahead_ms: u64,
}

impl Forward {
    /// The time now.
    pub(crate) fn now(&mut self) -> Time {
        self.read(now())
    }

    fn read(&mut self, wall: Time) -> Time {
        let time = wall + self.ahead_ms;
        self.ahead_ms += self.last.ms_since(time);
        self.last = self.last.max(time);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_goes_on() {
        let mut clock = Forward::default();
        let read: Vec<_> = [1000, 1005, 400, 410, 2000].map(|ms| clock.read(Time::from_ms(ms)).as_ms()).into();
        assert_eq!(read, [1000, 1005, 1005, 1015, 2605]);
    }
}
