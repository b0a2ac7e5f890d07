//! What a person reads: lines, tables, YAML, errors with a hint.

use anyhow::Context as _;
use dhow_client::ClientError;
use serde_json::Value as Tree;
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
        ClientError::Api(status) if status.code == 503 => {
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

/// An object or list as YAML, its keys sorted as `kubectl` has them.
pub(crate) fn yaml(tree: &Tree) -> anyhow::Result<String> {
    // serde_yaml writes serde_json's arbitrary-precision numbers as maps: it gets plain numbers instead.
    fn plain(tree: &Tree) -> serde_yaml::Value {
        use serde_yaml::Value as Yaml;
        match tree {
            Tree::Null => Yaml::Null,
            Tree::Bool(value) => Yaml::Bool(*value),
            Tree::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => Yaml::Number(value.into()),
                (_, Some(value), _) => Yaml::Number(value.into()),
                (_, _, Some(value)) => Yaml::Number(value.into()),
                _ => Yaml::String(number.to_string()),
            },
            Tree::String(text) => Yaml::String(text.clone()),
            Tree::Array(items) => Yaml::Sequence(items.iter().map(plain).collect()),
            Tree::Object(map) => {
                let mut fields: Vec<_> = map.iter().collect();
                fields.sort_by_key(|(key, _)| key.as_str());
                let fields = fields.into_iter().map(|(key, value)| (Yaml::String(key.clone()), plain(value)));
                Yaml::Mapping(fields.collect())
            }
        }
    }
    serde_yaml::to_string(&plain(tree)).context("writing YAML")
}
