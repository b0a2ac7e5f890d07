//! The one place where this crate reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use dhow_types::Time;

/// The wall-clock time. A clock that stands before 1970 counts as 1970.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
