//! What a person reads: lines, tables, errors with a hint.

use dhow_client::ClientError;
use std::io::Write as _;

/// Prints one line to standard output. A closed pipe ends the program quietly, as for any Unix tool.
pub(crate) fn line(text: impl AsRef<str>) {
    write_all(text.as_ref().as_bytes());
    write_all(b"\n");
}

/// Prints one line to standard error: what a script should not take for an answer.
pub(crate) fn note(text: impl AsRef<str>) {
    // With standard error gone there is nobody left to tell.
    let _told = std::io::stderr().write_all(format!("{}\n", text.as_ref()).as_bytes());
}

/// Writes bytes to standard output as they are.
pub(crate) fn write_all(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints an error with its causes, and what to do about it where we know.
pub(crate) fn error(err: &anyhow::Error) {
    let mut text = format!("error: {err:#}\n");
    if let Some(hint) = err.chain().find_map(|cause| cause.downcast_ref::<ClientError>()).and_then(hint) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // With standard error gone there is nobody left to tell.
    let _told = std::io::stderr().write_all(text.as_bytes());
}

fn hint(err: &ClientError) -> Option<&'static str> {
    match err {
        ClientError::Connect { .. } => Some("is the cluster running? start one with `dhow up`"),
        ClientError::Api(status) if status.code == 401 => {
            Some("the kubeconfig belongs to another cluster, or its certificate has expired: set KUBECONFIG")
        }
        ClientError::Unanswered(_) => Some("look with `dhow get`, or repeat it: `dhow apply` may always be repeated"),
        // A witness says itself whom to ask.
        ClientError::Api(status) if status.code == 503 && !status.message.contains("is a witness") => {
            Some("more than half of the control nodes must run and reach each other: see `dhow status`")
        }
        _ => None,
    }
}

/// The narrowest column, with the blanks behind it: `kubectl`'s.
const COLUMN_WIDTH_MIN: usize = 6;

/// The blanks between two columns.
const PADDING: usize = 3;

/// Prints rows in columns, three spaces apart, as `kubectl` does.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let widest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        (widest + PADDING).max(COLUMN_WIDTH_MIN)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}"));
        }
        line(text.trim_end());
    }
}
