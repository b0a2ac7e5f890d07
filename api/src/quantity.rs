//! Quantities such as `100m`, `1.5Gi`, `1e3`: exact, never through floating point.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};

/// Most digits in a text: upstream caps values at 2^63 and so do we, but a longer text is not even read.
const DIGITS_MAX: usize = 36;
/// Nothing is finer than a nano.
const NANO: i128 = 1_000_000_000;

/// How a quantity wants to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// An exact amount, kept in nanos.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has another form than a number with a known suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The number or its suffix cannot be read.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// The largest amount that is kept; more is cut off to it, as upstream does.
const NANOS_MAX: i128 = (i64::MAX as i128) * NANO;

impl Quantity {
    /// Zero.
    pub const ZERO: Quantity = Quantity { nanos: 0, form: Form::Decimal };

    /// So many thousandths.
    pub const fn from_milli(milli: i64) -> Quantity {
        Quantity { nanos: milli as i128 * (NANO / 1000), form: Form::Decimal }
    }

    /// A whole number that is written with binary suffixes.
    pub const fn from_bytes(bytes: i64) -> Quantity {
        Quantity { nanos: bytes as i128 * NANO, form: Form::Binary }
    }

    /// Reads any of the three forms. Digits finer than a nano are rounded up, away from zero.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError::Form);
        }
        let (scale, form) = suffix_scale(suffix)?;
        let nanos = scaled(whole, fraction, scale);
        let nanos = nanos.min(NANOS_MAX);
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, form })
    }

    /// The value as upstream writes it: `0.1` as `100m`, `1.5Gi` as `1536Mi`, `1500000000` as `1500M`.
    pub fn to_canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".to_owned();
        }
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.abs();
        // Binary suffixes are for whole numbers of 1024 and more; what is smaller or broken is written decimally.
        let form = match self.form {
            Form::Binary if nanos % NANO != 0 || nanos < 1024 * NANO => Form::Decimal,
            form => form,
        };
        match form {
            Form::Binary => {
                let (mut value, mut suffix) = (nanos / NANO, "");
                for (name, _) in BINARY {
                    if value % 1024 != 0 {
                        break;
                    }
                    (value, suffix) = (value / 1024, name);
                }
                format!("{sign}{value}{suffix}")
            }
            Form::Decimal | Form::Exponent => {
                let (mut value, mut exponent) = (nanos, -9);
                while value % 1000 == 0 && exponent < 18 {
                    (value, exponent) = (value / 1000, exponent + 3);
                }
                if form == Form::Exponent {
                    return if exponent == 0 { format!("{sign}{value}") } else { format!("{sign}{value}e{exponent}") };
                }
                let suffix = DECIMAL.iter().find(|(_, power)| *power == exponent).map_or("", |(name, _)| name);
                format!("{sign}{value}{suffix}")
            }
        }
    }

    /// The whole number, rounded up (away from zero).
    pub fn value(&self) -> i128 {
        round_up(self.nanos, NANO)
    }

    /// The thousandths, rounded up (away from zero).
    pub fn milli(&self) -> i128 {
        round_up(self.nanos, NANO / 1000)
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }
}

fn round_up(nanos: i128, unit: i128) -> i128 {
    let (whole, rest) = (nanos / unit, nanos % unit);
    whole + if rest == 0 { 0 } else { rest.signum() }
}

/// What a suffix multiplies with: a power of ten or of two.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn suffix_scale(suffix: &str) -> Result<(Scale, Form), QuantityError> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Scale::Two(*power), Form::Binary));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Scale::Ten(*power), Form::Decimal));
    }
    let Some(exponent) = suffix.strip_prefix(['e', 'E']) else {
        let known = |c: char| "eEinumkKMGTP+-0123456789".contains(c);
        return Err(if suffix.chars().all(known) { QuantityError::Suffix } else { QuantityError::Form });
    };
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QuantityError::Suffix);
    }
    // An exponent beyond these is beyond what is kept anyway.
    let power = exponent.parse::<i32>().unwrap_or(if exponent.starts_with('-') { -1000 } else { 1000 });
    Ok((Scale::Ten(power.clamp(-1000, 1000)), Form::Exponent))
}

/// The number in nanos, cut off at what is kept.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.len() > DIGITS_MAX {
        return NANOS_MAX;
    }
    // More digits than these cannot change the nanos of any suffix, except that something is left to round up.
    let kept = &fraction[..fraction.len().min(DIGITS_MAX - whole.len().min(DIGITS_MAX))];
    let digits = [whole, kept].concat();
    let mut value: i128 = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(i128::MAX) };
    let mut rest = kept.len() < fraction.len();
    let mut power = 9 - kept.len() as i32;
    match scale {
        Scale::Ten(exponent) => power += exponent,
        Scale::Two(bits) => match value.checked_mul(1 << bits) {
            Some(product) => value = product,
            None => return two_scaled_large(value, bits, power),
        },
    }
    while power > 0 && value != 0 {
        match value.checked_mul(10) {
            Some(product) if product <= NANOS_MAX.saturating_mul(10) => value = product,
            _ => return NANOS_MAX,
        }
        power -= 1;
    }
    while power < 0 && value != 0 {
        rest |= value % 10 != 0;
        value /= 10;
        power += 1;
    }
    value + i128::from(rest)
}

/// A binary suffix on a number of very many digits: its finest digits are given up before multiplying.
fn two_scaled_large(value: i128, bits: u32, power: i32) -> i128 {
    let (mut value, mut power) = (value, power);
    while value > (i128::MAX >> bits) {
        (value, power) = (value / 10, power + 1);
    }
    value <<= bits;
    while power < 0 {
        (value, power) = (value / 10, power + 1);
    }
    while power > 0 {
        value = value.saturating_mul(10);
        power -= 1;
    }
    value.saturating_add(1)
}

impl Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        let form = if self.is_zero() { other.form } else { self.form };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), form }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let form = if self.is_zero() { other.form } else { self.form };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), form }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_are_those_of_upstream() {
        let cases = [
            ("0", "0"),
            ("-0", "0"),
            ("0Gi", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("0.1", "100m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5u", "500n"),
            ("0.5n", "1n"),
            ("1500000000", "1500M"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1Ki", "1Ki"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1000e0", "1e3"),
            ("1e-3", "1e-3"),
            ("12e6", "12e6"),
            ("1.5e3", "1500"),
            ("-1.5Gi", "-1536Mi"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("64Mi", "64Mi"),
            ("128974848", "128974848"),
            ("129M", "129M"),
            (".5", "500m"),
            ("5.", "5"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("100000000000000000000", "9223372036854775807"),
            ("1e50", "9223372036854775807"),
            ("0.0000000001", "1n"),
            ("00012", "12"),
            ("1536Mi", "1536Mi"),
        ];
        for (text, canonical) in cases {
            assert_eq!(Quantity::parse(text).unwrap().to_canonical(), canonical, "{text}");
        }
    }

    #[test]
    fn canonical_forms_read_back_as_the_same_amount() {
        for text in ["0.1", "1.5Gi", "0.5u", "1e3", "1500000000", "-3.7Ki", "1.23456789", "7E", "3e-9"] {
            let quantity = Quantity::parse(text).unwrap();
            let again = Quantity::parse(&quantity.to_canonical()).unwrap();
            assert_eq!((again, again.to_canonical()), (quantity, quantity.to_canonical()), "{text}");
        }
    }

    #[test]
    fn broken_texts_are_refused() {
        for text in ["", "-", ".", "1.2.3", "abc", "1x", "1KI", "1ki", "1e", "1e1.5", "1 Gi", " 1", "1mm", "--1", "ä"]
        {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_compare_add_and_round() {
        let quantity = |text| Quantity::parse(text).unwrap();
        assert!(quantity("1Gi") > quantity("1G") && quantity("1000m") == quantity("1"));
        assert_eq!((quantity("1Gi") + quantity("512Mi")).to_canonical(), "1536Mi");
        assert_eq!((Quantity::ZERO + quantity("1Ki")).to_canonical(), "1Ki");
        assert_eq!((quantity("1") - quantity("100m")).to_canonical(), "900m");
        assert_eq!((quantity("1500m").value(), quantity("1u").milli(), quantity("-1500m").value()), (2, 1, -2));
        assert!(quantity("1.0000000000000000000000000000000000000001") > quantity("1"));
        assert_eq!(quantity("123456789012345678901234567890Gi").value(), i128::from(i64::MAX));
    }
}
