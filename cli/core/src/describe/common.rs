//! What several kinds have: names, labels, conditions, events, times.

use super::page::Page;
use dhow_api::table::human_duration;
use dhow_api::{Tree, meta};
use dhow_types::Time;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The longest annotation that stands on one line, with its key.
const ANNOTATION_MAX: usize = 140;

/// What stands for nothing.
pub(super) const NONE: &str = "<none>";

/// A text, or an empty one.
pub(super) fn text(tree: &Tree) -> &str {
    tree.as_str().unwrap_or_default()
}

/// A text, or the word for nothing.
pub(super) fn text_or_none(tree: &Tree) -> &str {
    match text(tree) {
        "" => NONE,
        text => text,
    }
}

/// A list's entries.
pub(super) fn list(tree: &Tree) -> &[Tree] {
    tree.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A map's fields, sorted by name.
pub(super) fn sorted(tree: &Tree) -> Vec<(&str, &Tree)> {
    let mut fields: Vec<(&str, &Tree)> =
        tree.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value)).collect();
    fields.sort_by_key(|(key, _)| *key);
    fields
}

/// A scalar as it is written: texts without quotes, nothing as nothing.
pub(super) fn scalar(tree: &Tree) -> String {
    match tree {
        Tree::Null => String::new(),
        other => crate::goform::print(other),
    }
}

/// `True`, `False`
pub(super) fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// A time of an object as people read it: `Sat, 21 Nov 2026 13:33:23 +0000`. In UTC: what the reader's own zone is can
/// only be found out from outside.
pub(super) fn time(tree: &Tree) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Ok(time) = Time::parse(text(tree)) else { return "<unset>".to_owned() };
    let days = time.as_ms().div_euclid(86_400_000).rem_euclid(7);
    let weekday = usize::try_from(days).ok().and_then(|day| DAYS.get(day)).unwrap_or(&"");
    let written = time.to_rfc3339();
    let part = |from: usize, to: usize| written.get(from..to).unwrap_or_default();
    let month = part(5, 7).parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1))).unwrap_or(&"");
    format!("{weekday}, {} {month} {} {} +0000", part(8, 10), part(0, 4), part(11, 19))
}

/// How long ago something was.
pub(super) fn age(time: &Tree, now: Time) -> String {
    match Time::parse(text(time)) {
        Ok(time) => human_duration(now.as_ms() - time.as_ms()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Name, and namespace if it lives in one.
pub(super) fn names(page: &mut Page, object: &Tree) {
    page.line(0, format!("Name:\t{}", meta::name(object)));
    if !meta::namespace(object).is_empty() {
        page.line(0, format!("Namespace:\t{}", meta::namespace(object)));
    }
}

/// `key=value` a line, under one title.
pub(super) fn labels(page: &mut Page, title: &str, labels: &Tree) {
    let pairs = sorted(labels);
    if pairs.is_empty() {
        page.line(0, format!("{title}:\t{NONE}"));
    }
    for (index, (key, value)) in pairs.into_iter().enumerate() {
        page.line(0, format!("{}\t{key}={}", first(title, index), text(value)));
    }
}

/// `key: value` a line, under one title; what is long or has several lines goes below its key.
pub(super) fn annotations(page: &mut Page, title: &str, annotations: &Tree) {
    let pairs: Vec<_> = sorted(annotations).into_iter().filter(|(key, _)| *key != LAST_APPLIED).collect();
    if pairs.is_empty() {
        page.line(0, format!("{title}:\t{NONE}"));
    }
    for (index, (key, value)) in pairs.into_iter().enumerate() {
        let value = text(value).trim_end_matches('\n');
        if key.len() + value.len() + 2 <= ANNOTATION_MAX && !value.contains('\n') {
            page.line(0, format!("{}\t{key}: {value}", first(title, index)));
            continue;
        }
        page.line(0, format!("{}\t{key}:", first(title, index)));
        for line in value.split('\n') {
            page.line(0, format!("\t  {}", shortened(line, ANNOTATION_MAX - 2)));
        }
    }
}

fn first(title: &str, index: usize) -> String {
    if index == 0 { format!("{title}:") } else { String::new() }
}

fn shortened(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Whose it is, if it is somebody's.
pub(super) fn controller(page: &mut Page, object: &Tree) {
    let owner = list(&object["metadata"]["ownerReferences"]).iter().find(|owner| owner["controller"] == true);
    if let Some(owner) = owner {
        page.line(0, format!("Controlled By:\t{}/{}", text(&owner["kind"]), text(&owner["name"])));
    }
}

/// The events of an object, oldest first.
pub(super) fn events(page: &mut Page, events: &[Tree], now: Time) {
    if events.is_empty() {
        return page.line(0, format!("Events:\t{NONE}"));
    }
    page.line(0, "Events:");
    page.line(1, "Type\tReason\tAge\tFrom\tMessage");
    page.line(1, "----\t------\t----\t----\t-------");
    let mut sorted: Vec<&Tree> = events.iter().collect();
    let at = |event: &Tree| Time::parse(text(&event["lastTimestamp"])).ok();
    sorted.sort_by_key(|event| at(event));
    for event in sorted {
        let component = match text(&event["source"]["component"]) {
            "" => text(&event["reportingComponent"]),
            component => component,
        };
        let part = match text(&event["involvedObject"]["fieldPath"]) {
            "" => String::new(),
            path => format!("{path}: "),
        };
        let row = [
            text(&event["type"]).to_owned(),
            text(&event["reason"]).to_owned(),
            interval(event, now),
            component.to_owned(),
            // A message of several lines would break the table.
            format!("{part}{}", text(&event["message"]).trim().replace(['\n', '\t'], " ")),
        ];
        page.line(1, row.join("\t"));
    }
}

/// When an event was, or how often since when.
fn interval(event: &Tree, now: Time) -> String {
    let first = if text(&event["firstTimestamp"]).is_empty() { &event["eventTime"] } else { &event["firstTimestamp"] };
    let (count, last) = match &event["series"] {
        series if series.is_object() => (series["count"].as_i64().unwrap_or(0), &series["lastObservedTime"]),
        _ => (event["count"].as_i64().unwrap_or(0), &event["lastTimestamp"]),
    };
    if count > 1 || event["series"].is_object() {
        return format!("{} (x{count} over {})", age(last, now), age(first, now));
    }
    age(first, now)
}
