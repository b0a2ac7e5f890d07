//! Points in time, in the forms that Kubernetes writes them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};

/// A point in time: milliseconds since the Unix epoch, UTC. Deciding parts get it as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(i64);

/// A text that is not an RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time like `2026-01-02T15:04:05Z`")]
pub struct TimeError(pub String);

impl Time {
    /// From milliseconds since the Unix epoch.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// From whole seconds since the Unix epoch.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// How many milliseconds `self` is after `earlier`; zero if it is not after it.
    pub const fn ms_since(self, earlier: Time) -> u64 {
        if self.0 > earlier.0 { self.0.wrapping_sub(earlier.0) as u64 } else { 0 }
    }

    /// `metav1.Time`: whole seconds, `2026-01-02T15:04:05Z`.
    pub fn to_rfc3339(self) -> String {
        let c = Civil::of(self.0.div_euclid(1000));
        format!("{c}Z")
    }

    /// `metav1.MicroTime`: six digits, `2026-01-02T15:04:05.000000Z`.
    pub fn to_rfc3339_micro(self) -> String {
        let c = Civil::of(self.0.div_euclid(1000));
        format!("{c}.{:03}000Z", self.0.rem_euclid(1000))
    }

    /// Reads an RFC 3339 time with any number of fraction digits (those past milliseconds are dropped) and any
    /// offset.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        parse(text).ok_or_else(|| TimeError(text.to_owned()))
    }
}

impl Add<u64> for Time {
    type Output = Time;

    /// `self` plus `ms` milliseconds.
    fn add(self, ms: u64) -> Time {
        Time(self.0.saturating_add_unsigned(ms))
    }
}

impl Sub<u64> for Time {
    type Output = Time;

    /// `self` minus `ms` milliseconds.
    fn sub(self, ms: u64) -> Time {
        Time(self.0.saturating_sub_unsigned(ms))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339_micro())
    }
}

/// A date and a time of day in UTC (proleptic Gregorian calendar).
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    second_of_day: i64,
}

impl Civil {
    /// Days-to-date after Howard Hinnant's `civil_from_days`: eras of 400 years that begin in March.
    fn of(secs: i64) -> Self {
        let days = secs.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let doe = days.rem_euclid(146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Self {
            year: yoe + era * 400 + i64::from(month <= 2),
            month,
            day: doy - (153 * mp + 2) / 5 + 1,
            second_of_day: secs.rem_euclid(86_400),
        }
    }
}

impl fmt::Display for Civil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.second_of_day;
        write!(f, "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", self.year, self.month, self.day, s / 3600, s / 60 % 60, s % 60)
    }
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

fn parse(text: &str) -> Option<Time> {
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let sep = |at: usize, allowed: &str| text.get(at..=at).is_some_and(|c| allowed.contains(c));
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
    let shaped = sep(4, "-") && sep(7, "-") && sep(10, "Tt ") && sep(13, ":") && sep(16, ":");
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !shaped || !in_range {
        return None;
    }
    let mut rest = &text[19..];
    let mut ms = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if len == 0 {
            return None;
        }
        for place in 0..3 {
            ms = ms * 10 + fraction.as_bytes()[..len].get(place).map_or(0, |b| i64::from(b - b'0'));
        }
        rest = &fraction[len..];
    }
    let offset_min = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = match rest.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (h, m) = rest.get(1..)?.split_once(':')?;
            if h.len() != 2 || m.len() != 2 {
                return None;
            }
            sign * (h.parse::<i64>().ok()? * 60 + m.parse::<i64>().ok()?)
        }
    };
    let secs = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_min * 60;
    Some(Time(secs * 1000 + ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_back() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_767_366_245_000, "2026-01-02T15:04:05Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(Time::from_ms(ms).to_rfc3339(), text);
            assert_eq!(Time::parse(text), Ok(Time::from_ms(ms)));
        }
        assert_eq!(Time::parse("2026-01-02T16:04:05.1234567+01:00"), Ok(Time::from_ms(1_767_366_245_123)));
        assert_eq!(Time::from_ms(1_767_366_245_123).to_rfc3339_micro(), "2026-01-02T15:04:05.123000Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026-01-02",
            "2026-13-02T00:00:00Z",
            "2026-01-02T15:04:05",
            "2026-01-02T15:04:05.Z",
            "ü026-01-02T15:04:05Z",
        ] {
            assert_eq!(Time::parse(text), Err(TimeError(text.to_owned())));
        }
    }
}
