//! Event: something that happened to an object.

use dhow_types::Time;

use super::{Column, Kind, plain};
use crate::field::{Fault, Faults};
use crate::table::since;
use crate::{Tree, meta};

/// Event of the core group.
pub static EVENT: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    allow_create_on_update: true,
    validate: validate_event,
    columns: &[
        Column::new("Last Seen", "When it happened last."),
        Column::new("Type", "Normal or Warning."),
        Column::new("Reason", "What happened, in one word."),
        Column::new("Object", "What it happened to."),
        Column::new("Subobject", "The part of the object that it happened to.").wide(),
        Column::new("Source", "Who says so.").wide(),
        Column::new("Message", "What happened, in words."),
        Column::new("First Seen", "When it happened first.").wide(),
        Column::new("Count", "How often it happened.").integer().wide(),
        Column { format: "name", ..Column::new("Name", "The name of the event.").wide() },
    ],
    cells,
    field_labels: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    fields,
    ..plain()
};

fn validate_event(tree: &Tree, faults: &mut Faults) {
    let (own, involved) = (meta::namespace(tree), meta::text(tree, "involvedObject.namespace"));
    // Events about objects at cluster scope are kept in the namespace `default`.
    let right = if involved.is_empty() { own == "default" || own == "kube-system" } else { own == involved };
    if !right {
        faults.push(Fault::invalid("involvedObject.namespace", involved, "does not match event.namespace"));
    }
}

fn cells(tree: &Tree, now: Time) -> Vec<Tree> {
    let first = meta::time(tree, "firstTimestamp").or_else(|| meta::time(tree, "eventTime"));
    let mut last = meta::time(tree, "lastTimestamp").or(first);
    let mut count = meta::int(tree, "count").filter(|count| *count != 0).unwrap_or(1);
    if let Some(series) = meta::at(tree, "series") {
        last = meta::time(series, "lastObservedTime");
        count = meta::int(series, "count").unwrap_or(0);
    }
    let kind = meta::text(tree, "involvedObject.kind").to_ascii_lowercase();
    let object = match meta::text(tree, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        since(last, now).into(),
        meta::text(tree, "type").into(),
        meta::text(tree, "reason").into(),
        object.into(),
        meta::text(tree, "involvedObject.fieldPath").into(),
        source(tree).into(),
        meta::text(tree, "message").trim().into(),
        since(first, now).into(),
        count.into(),
        meta::name(tree).into(),
    ]
}

fn source(tree: &Tree) -> String {
    let first_of = |a: &str, b: &str| {
        let text = meta::text(tree, a);
        if text.is_empty() { meta::text(tree, b).to_owned() } else { text.to_owned() }
    };
    let component = first_of("source.component", "reportingComponent");
    match first_of("source.host", "reportingInstance") {
        host if host.is_empty() => component,
        host => format!("{component}, {host}"),
    }
}

fn fields(tree: &Tree) -> Vec<(&'static str, String)> {
    let plain = EVENT.field_labels.iter().filter(|label| **label != "source" && **label != "reportingComponent");
    let mut fields: Vec<(&'static str, String)> =
        plain.map(|label| (*label, meta::text(tree, label).to_owned())).collect();
    let source = match meta::text(tree, "source.component") {
        "" => meta::text(tree, "reportingComponent"),
        source => source,
    };
    fields.push(("source", source.to_owned()));
    fields.push(("reportingComponent", meta::text(tree, "reportingComponent").to_owned()));
    fields
}
