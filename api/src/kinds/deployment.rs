//! Deployment: a number of equal pods, changed step by step.

use serde_json::Map;

use super::pod::{self, defaults};
use super::{Column, Kind, Subresource, plain, workload};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// Deployment.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.Deployment",
    subresources: &[Subresource::Scale, Subresource::Status],
    has_generation: true,
    default,
    prepare_create: |tree| {
        super::begin(tree);
        meta::set(tree, "status", Map::new());
    },
    prepare_update,
    prepare_status: |new, old| {
        super::status_only(new, old);
        match meta::at(old, "metadata.labels") {
            Some(labels) => meta::set(new, "metadata.labels", labels.clone()),
            None => drop(meta::remove(new, "metadata.labels")),
        }
    },
    validate: validate_spec,
    warnings: workload::warnings,
    validate_update: workload::selector_is_kept,
    columns: &[
        Column::name(),
        Column::new("Ready", "How many pods are ready, of how many that are wanted."),
        Column::new("Up-to-date", "How many pods have the newest template.").integer(),
        Column::new("Available", "How many pods have been ready long enough.").integer(),
        Column::age(),
        Column::new("Containers", "The names of the containers in the template.").wide(),
        Column::new("Images", "The images in the template.").wide(),
        Column::new("Selector", "The labels by which the pods are found.").wide(),
    ],
    cells: |tree, now| {
        let count = |field: &str| meta::int(tree, field).unwrap_or(0);
        let ready = format!("{}/{}", count("status.readyReplicas"), count("spec.replicas"));
        let mut cells = vec![
            meta::name(tree).into(),
            ready.into(),
            count("status.updatedReplicas").into(),
            count("status.availableReplicas").into(),
            crate::table::age(tree, now),
        ];
        cells.extend(workload::template_cells(tree));
        cells
    },
    ..plain()
};

fn default(tree: &mut Tree) {
    let spec = meta::map_of(tree).entry("spec").or_insert(Tree::Null);
    meta::set_default(spec, "replicas", 1);
    defaults::set_text(spec, "strategy.type", "RollingUpdate");
    if meta::text(spec, "strategy.type") == "RollingUpdate" {
        meta::set_default(spec, "strategy.rollingUpdate.maxUnavailable", "25%");
        meta::set_default(spec, "strategy.rollingUpdate.maxSurge", "25%");
    }
    meta::set_default(spec, "revisionHistoryLimit", 10);
    meta::set_default(spec, "progressDeadlineSeconds", 600);
    pod::defaults::template(tree);
}

/// Besides the spec, annotations count as the owner's wish: they travel to the replica sets.
fn prepare_update(new: &mut Tree, old: &Tree) {
    super::keep_status(new, old);
    let annotations = |tree| meta::map(tree, "metadata.annotations").cloned().unwrap_or_default();
    if meta::generation(new) == meta::generation(old) && annotations(new) != annotations(old) {
        meta::set_generation(new, meta::generation(old) + 1);
    }
}

fn validate_spec(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    workload::replicas_and_selector(&path, tree, faults);
    workload::template(&path.field("template"), tree, faults);
    strategy(&path.field("strategy"), tree, faults);
    let min_ready = meta::int(tree, "spec.minReadySeconds");
    validate::not_negative(&path.field("minReadySeconds"), min_ready, faults);
    let history = meta::int(tree, "spec.revisionHistoryLimit");
    validate::not_negative(&path.field("revisionHistoryLimit"), history, faults);
    let Some(deadline) = meta::int(tree, "spec.progressDeadlineSeconds") else { return };
    let at = path.field("progressDeadlineSeconds");
    validate::not_negative(&at, Some(deadline), faults);
    if deadline <= min_ready.unwrap_or(0) {
        faults.push(Fault::invalid(at, deadline, "must be greater than minReadySeconds"));
    }
}

fn strategy(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    let Some(strategy) = meta::at(tree, "spec.strategy") else { return };
    let rolling = path.field("rollingUpdate");
    match meta::text(strategy, "type") {
        "Recreate" => {
            if meta::at(strategy, "rollingUpdate").is_some() {
                let words = "may not be specified when strategy `type` is 'Recreate'";
                faults.push(Fault::forbidden(rolling, words));
            }
        }
        "RollingUpdate" => {
            let Some(update) = meta::at(strategy, "rollingUpdate") else {
                faults.push(Fault::required(rolling, "this should be defaulted and never be nil"));
                return;
            };
            let unavailable = bound(&rolling.field("maxUnavailable"), update.get("maxUnavailable"), faults);
            let surge = bound(&rolling.field("maxSurge"), update.get("maxSurge"), faults);
            if unavailable == Some(0) && surge == Some(0) {
                let value = update.get("maxUnavailable").cloned().unwrap_or(Tree::Null);
                let words = "may not be 0 when `maxSurge` is 0";
                faults.push(Fault::invalid(rolling.field("maxUnavailable"), value, words));
            }
            let percent = update.get("maxUnavailable").and_then(Tree::as_str).is_some();
            if percent && unavailable.is_some_and(|unavailable| unavailable > 100) {
                let value = update["maxUnavailable"].clone();
                faults.push(Fault::invalid(rolling.field("maxUnavailable"), value, "must not be greater than 100%"));
            }
        }
        _ => faults.push(Fault::not_supported(path, strategy.clone(), &["Recreate", "RollingUpdate"])),
    }
}

/// A number or a percentage, without its unit.
fn bound(path: &Path<'_>, value: Option<&Tree>, faults: &mut Faults) -> Option<i64> {
    match value? {
        Tree::String(text) => {
            let percent = text.strip_suffix('%').filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let percent = percent.and_then(|text| text.parse().ok());
            if percent.is_none() {
                let words = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  \
                             or '93%', regex used for validation is '[0-9]+%')";
                faults.push(Fault::invalid(path, text.as_str(), words));
            }
            percent
        }
        value => {
            validate::not_negative(path, value.as_i64(), faults);
            value.as_i64()
        }
    }
}
