//! The terminal that a person sits at.

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{stdin, stdout};

/// Whether what is typed comes from a terminal.
pub(crate) fn is_there() -> bool {
    isatty(stdin())
}

/// Its size, columns and lines, if it has one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// A terminal that passes each key on as it is. Dropped, it is as it was before.
pub(crate) struct Raw(Termios);

impl Raw {
    /// Makes it so.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(stdin()).context("asking the terminal for its settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("changing the terminal's settings")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone has no settings.
        let _gone = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}
