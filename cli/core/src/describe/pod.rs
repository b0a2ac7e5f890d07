//! Pods, and the templates of pods.

use super::Object;
use super::common::{NONE, annotations, controller, labels, list, names, scalar, text, text_or_none, time};
use super::containers::{self, Place};
use super::page::Page;
use super::volumes;
use dhow_api::{Tree, meta};

pub(super) fn pod(page: &mut Page, object: &Object<'_>) {
    let tree = object.tree;
    let (spec, status) = (&tree["spec"], &tree["status"]);
    names(page, tree);
    for (title, value) in [
        ("Priority", &spec["priority"]),
        ("Priority Class Name", &spec["priorityClassName"]),
        ("Runtime Class Name", &spec["runtimeClassName"]),
        ("Service Account", &spec["serviceAccountName"]),
    ] {
        if !scalar(value).is_empty() {
            page.line(0, format!("{title}:\t{}", scalar(value)));
        }
    }
    match text(&spec["nodeName"]) {
        "" => page.line(0, format!("Node:\t{NONE}")),
        node => page.line(0, format!("Node:\t{node}/{}", text(&status["hostIP"]))),
    }
    if status["startTime"].is_string() {
        page.line(0, format!("Start Time:\t{}", time(&status["startTime"])));
    }
    labels(page, "Labels", &tree["metadata"]["labels"]);
    annotations(page, "Annotations", &tree["metadata"]["annotations"]);
    phase(page, object);
    page.line(0, format!("IP:\t{}", text(&status["podIP"])));
    let ips = list(&status["podIPs"]);
    page.line(0, if ips.is_empty() { format!("IPs:\t{NONE}") } else { "IPs:".to_owned() });
    ips.iter().for_each(|ip| page.line(1, format!("IP:\t{}", text(&ip["ip"]))));
    controller(page, tree);
    let place = Place::Pod(tree);
    if !list(&spec["initContainers"]).is_empty() {
        containers::write(page, "Init Containers", &spec["initContainers"], place);
    }
    containers::write(page, "Containers", &spec["containers"], place);
    let conditions = list(&status["conditions"]);
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus");
    }
    for condition in conditions {
        page.line(1, format!("{} \t{} ", text(&condition["type"]), text(&condition["status"])));
    }
    volumes::write(page, &spec["volumes"], "");
    page.line(0, format!("QoS Class:\t{}", text_or_none(&status["qosClass"])));
    labels(page, "Node-Selectors", &spec["nodeSelector"]);
    tolerations(page, "Tolerations", &spec["tolerations"]);
}

fn phase(page: &mut Page, object: &Object<'_>) {
    let tree = object.tree;
    let status = &tree["status"];
    match meta::deletion_timestamp(tree) {
        Some(end) => {
            let since = dhow_api::table::human_duration(object.now.as_ms() - end.as_ms());
            // Before its grace period is over the time lies ahead.
            let since = if since == "<invalid>" { "0s".to_owned() } else { since };
            page.line(0, format!("Status:\tTerminating (lasts {since})"));
            let grace = scalar(&tree["metadata"]["deletionGracePeriodSeconds"]);
            page.line(0, format!("Termination Grace Period:\t{grace}s"));
        }
        None => page.line(0, format!("Status:\t{}", text(&status["phase"]))),
    }
    for (title, field) in [("Reason", "reason"), ("Message", "message")] {
        if !text(&status[field]).is_empty() {
            page.line(0, format!("{title}:\t{}", text(&status[field])));
        }
    }
}

/// The template of a workload's pods.
pub(super) fn template(page: &mut Page, template: &Tree) {
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    page.line(0, "Pod Template:");
    labels(page, "  Labels", &metadata["labels"]);
    if metadata["annotations"].as_object().is_some_and(|annotations| !annotations.is_empty()) {
        annotations(page, "  Annotations", &metadata["annotations"]);
    }
    if !text(&spec["serviceAccountName"]).is_empty() {
        page.line(0, format!("  Service Account:\t{}", text(&spec["serviceAccountName"])));
    }
    if !list(&spec["initContainers"]).is_empty() {
        containers::write(page, "Init Containers", &spec["initContainers"], Place::Template);
    }
    containers::write(page, "Containers", &spec["containers"], Place::Template);
    volumes::write(page, &spec["volumes"], "  ");
    labels(page, "  Node-Selectors", &spec["nodeSelector"]);
    tolerations(page, "  Tolerations", &spec["tolerations"]);
}

fn tolerations(page: &mut Page, title: &str, tolerations: &Tree) {
    let mut tolerations: Vec<&Tree> = list(tolerations).iter().collect();
    tolerations.sort_by_key(|toleration| text(&toleration["key"]));
    if tolerations.is_empty() {
        page.line(0, format!("{title}:\t{NONE}"));
    }
    for (index, toleration) in tolerations.into_iter().enumerate() {
        let title = if index == 0 { format!("{title}:") } else { String::new() };
        page.line(0, format!("{title}\t{}", tolerated(toleration)));
    }
}

fn tolerated(toleration: &Tree) -> String {
    let [key, value, effect] = ["key", "value", "effect"].map(|field| text(&toleration[field]));
    let mut said = key.to_owned();
    if !value.is_empty() {
        said.push_str(&format!("={value}"));
    }
    if !effect.is_empty() {
        said.push_str(&format!(":{effect}"));
    }
    if toleration["operator"] == "Exists" && value.is_empty() {
        said.push_str(if said.is_empty() { "op=Exists" } else { " op=Exists" });
    }
    if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
        said.push_str(&format!(" for {seconds}s"));
    }
    said
}
