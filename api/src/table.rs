//! `meta.k8s.io/v1` tables, which is what `kubectl get` asks for, and objects reduced to their metadata.

use dhow_types::Time;
use serde_json::{Map, json};

use crate::Tree;
use crate::kinds::Kind;
use crate::meta;

/// What a row carries of its object (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// A `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the query parameter; empty means metadata.
    pub fn parse(text: &str) -> Option<Include> {
        match text {
            "None" => Some(Include::None),
            "" | "Metadata" => Some(Include::Metadata),
            "Object" => Some(Include::Object),
            _ => None,
        }
    }
}

/// A table of objects. `list_meta` becomes its metadata (`resourceVersion`, `continue`, …); a watch sends the columns
/// with its first event only.
pub fn table(kind: &Kind, items: &[&Tree], list_meta: &Tree, include: Include, now: Time, with_columns: bool) -> Tree {
    let rows: Vec<Tree> = items.iter().map(|item| row(kind, item, include, now)).collect();
    let columns = if with_columns { columns(kind) } else { Tree::Null };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn columns(kind: &Kind) -> Tree {
    let column = |column: &crate::kinds::Column| {
        json!({
            "name": column.name,
            "type": column.ty,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        })
    };
    kind.columns.iter().map(column).collect()
}

fn row(kind: &Kind, item: &Tree, include: Include, now: Time) -> Tree {
    let object = match include {
        Include::None => Tree::Null,
        Include::Metadata => partial_metadata(item),
        Include::Object => item.clone(),
    };
    json!({"cells": (kind.cells)(item, now), "object": object})
}

/// The object reduced to its metadata.
pub fn partial_metadata(tree: &Tree) -> Tree {
    let metadata = tree.get("metadata").cloned().unwrap_or_else(|| Tree::Object(Map::new()));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// The cell of an object's age.
pub fn age(tree: &Tree, now: Time) -> Tree {
    since(meta::creation_timestamp(tree), now).into()
}

/// How long ago something was, as columns show it.
pub fn since(then: Option<Time>, now: Time) -> String {
    match then {
        Some(then) => human_duration(now.as_ms() - then.as_ms()),
        None => "<unknown>".to_owned(),
    }
}

/// A duration in two or three significant digits, as all of Kubernetes' tools write it: `90s`, `5m30s`, `3h`, `12d`.
pub fn human_duration(ms: i64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days, years) = (seconds / 60, seconds / 3600, seconds / 86_400, seconds / (86_400 * 365));
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two_units(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two_units(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two_units(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => two_units(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

fn two_units(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_shows_them() {
        let (minute, hour, day) = (60, 3600, 86_400);
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (9 * minute + 59, "9m59s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (7 * hour + 59 * minute, "7h59m"),
            (8 * hour + minute, "8h"),
            (47 * hour, "47h"),
            (2 * day, "2d"),
            (7 * day + 23 * hour, "7d23h"),
            (8 * day, "8d"),
            (729 * day, "729d"),
            (730 * day, "2y"),
            (731 * day, "2y1d"),
            (8 * 365 * day, "8y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds * 1000), text, "{seconds}");
        }
    }
}
