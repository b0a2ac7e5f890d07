//! What happened, in words: hashed always, kept if someone wants to read it.

use dhow_types::Time;
use std::fmt::{self, Write};

/// Two runs with the same trace did the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: keep.then(Vec::new) }
    }

    pub(crate) fn note(&mut self, now: Time, what: fmt::Arguments<'_>) {
        write!(Fnv(&mut self.hash), "{} {what}", now.as_ms()).expect("a hash takes everything");
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>6} {what}", now.as_ms()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

struct Fnv<'a>(&'a mut u64);

impl Write for Fnv<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            *self.0 = (*self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
