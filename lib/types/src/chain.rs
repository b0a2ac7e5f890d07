//! An error with its causes on one line.

use std::error::Error;
use std::fmt;

/// Shows an error and, behind colons, each of its sources once. Our `Display`s never include their source, so that
/// the edge can print the chain exactly once: `Chain(&err)`.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
