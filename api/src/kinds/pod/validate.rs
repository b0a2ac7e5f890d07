//! The faults of a pod's spec, in upstream's words and order.

use super::{container, serving, volumes};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// A toleration's and a taint's effects.
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// The faults of a pod template; `path` is the template's.
pub(in crate::kinds) fn template(path: &Path<'_>, template: &Tree, faults: &mut Faults) {
    validate::template_meta(&path.field("metadata"), template, faults);
    serving::validate(&path.field("metadata").field("annotations"), template, faults);
    let (path, tree) = (path.field("spec"), template.get("spec").unwrap_or(&Tree::Null));
    spec(&path, tree, faults);
    if !meta::list(tree, "ephemeralContainers").is_empty() {
        let words = "ephemeral containers not allowed in pod template";
        faults.push(Fault::forbidden(path.field("ephemeralContainers"), words));
    }
}

/// The faults of a pod's spec.
pub(super) fn spec(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let volumes = volumes::validate(&path.field("volumes"), spec, faults);
    container::all(path, spec, &volumes, faults);
    policy(&path.field("restartPolicy"), spec, "restartPolicy", &["Always", "OnFailure", "Never"], faults);
    let dns = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    policy(&path.field("dnsPolicy"), spec, "dnsPolicy", dns, faults);
    validate::labels(&path.field("nodeSelector"), meta::at(spec, "nodeSelector"), faults);
    names(path, spec, faults);
    numbers(path, spec, faults);
    tolerations(&path.field("tolerations"), spec, faults);
    host_aliases(&path.field("hostAliases"), spec, faults);
    node_affinity(path, spec, faults);
}

fn policy(path: &Path<'_>, spec: &Tree, field: &str, supported: &[&str], faults: &mut Faults) {
    match meta::text(spec, field) {
        "" => faults.push(Fault::required(path, "")),
        value => validate::one_of(path, value, supported, faults),
    }
}

fn names(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 6] = [
        ("serviceAccountName", validate::dns1123_subdomain),
        ("nodeName", validate::dns1123_subdomain),
        ("hostname", validate::dns1123_label),
        ("subdomain", validate::dns1123_label),
        ("schedulerName", validate::qualified_name),
        ("priorityClassName", validate::dns1123_subdomain),
    ];
    for (field, rule) in rules {
        let value = meta::text(spec, field);
        if !value.is_empty() {
            validate::push_all(&path.field(field), value, rule(value), faults);
        }
    }
}

fn numbers(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let seconds = meta::int(spec, "activeDeadlineSeconds");
    if let Some(seconds) = seconds.filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds)) {
        let words = validate::range_fault(1, i64::from(i32::MAX));
        faults.push(Fault::invalid(path.field("activeDeadlineSeconds"), seconds, words));
    }
    let grace = meta::int(spec, "terminationGracePeriodSeconds");
    validate::not_negative(&path.field("terminationGracePeriodSeconds"), grace, faults);
}

fn tolerations(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    for (i, toleration) in meta::list(spec, "tolerations").iter().enumerate() {
        let path = path.index(i);
        let text = |field| meta::text(toleration, field);
        let (key, operator, value, effect) = (text("key"), text("operator"), text("value"), text("effect"));
        if !key.is_empty() {
            validate::push_all(&path.field("key"), key, validate::qualified_name(key), faults);
        }
        if key.is_empty() && operator != "Exists" {
            let words = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.push(Fault::invalid(path.field("operator"), operator, words));
        }
        if meta::at(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
            let words = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            faults.push(Fault::invalid(path.field("effect"), effect, words));
        }
        match operator {
            "" | "Equal" => {
                validate::push_all(&path.field("operator"), value, validate::label_value(value), faults);
            }
            "Exists" if !value.is_empty() => {
                let words = "value must be empty when `operator` is 'Exists'";
                faults.push(Fault::invalid(path.field("operator"), value, words));
            }
            "Exists" => {}
            _ => faults.push(Fault::not_supported(path.field("operator"), operator, &["Equal", "Exists"])),
        }
        validate::one_of(&path.field("effect"), effect, EFFECTS, faults);
    }
}

fn host_aliases(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    for (i, alias) in meta::list(spec, "hostAliases").iter().enumerate() {
        let path = path.index(i);
        let ip = meta::text(alias, "ip");
        validate::push_all(&path.field("ip"), ip, validate::ip(ip), faults);
        let hostnames = path.field("hostnames");
        for (j, hostname) in meta::list(alias, "hostnames").iter().filter_map(Tree::as_str).enumerate() {
            validate::push_all(&hostnames.index(j), hostname, validate::dns1123_subdomain(hostname), faults);
        }
    }
}

fn node_affinity(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    const REQUIRED: &str = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";
    let Some(required) = meta::at(spec, REQUIRED) else { return };
    let path = path.field(REQUIRED);
    let path = path.field("nodeSelectorTerms");
    let terms = meta::list(required, "nodeSelectorTerms");
    if terms.is_empty() {
        faults.push(Fault::required(path, "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        let path = path.index(i);
        let path = path.field("matchExpressions");
        for (j, expression) in meta::list(term, "matchExpressions").iter().enumerate() {
            node_requirement(&path.index(j), expression, faults);
        }
    }
}

fn node_requirement(path: &Path<'_>, expression: &Tree, faults: &mut Faults) {
    let values = meta::list(expression, "values");
    let values_path = path.field("values");
    match meta::text(expression, "operator") {
        "In" | "NotIn" if values.is_empty() => {
            faults.push(Fault::required(values_path, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let words = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            faults.push(Fault::forbidden(values_path, words));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let words = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            faults.push(Fault::required(values_path, words));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => faults.push(Fault::invalid(path.field("operator"), other, "not a valid selector operator")),
    }
    let key = meta::text(expression, "key");
    validate::push_all(&path.field("key"), key, validate::qualified_name(key), faults);
}
