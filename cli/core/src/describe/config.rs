//! Config maps, secrets, service accounts, namespaces.

use super::Object;
use super::common::{annotations, labels, list, names, sorted, text, text_or_none};
use super::page::Page;

fn head(page: &mut Page, object: &Object<'_>) {
    names(page, object.tree);
    labels(page, "Labels", &object.tree["metadata"]["labels"]);
    annotations(page, "Annotations", &object.tree["metadata"]["annotations"]);
}

pub(super) fn config_map(page: &mut Page, object: &Object<'_>) {
    head(page, object);
    ["", "Data", "===="].iter().for_each(|line| page.line(0, line));
    for (key, value) in sorted(&object.tree["data"]) {
        page.line(0, format!("{key}:"));
        page.line(0, "----");
        text(value).split('\n').for_each(|line| page.line(0, line));
        page.line(0, "");
    }
    ["", "BinaryData", "===="].iter().for_each(|line| page.line(0, line));
    for (key, value) in sorted(&object.tree["binaryData"]) {
        page.line(0, format!("{key}: {} bytes", decoded_len(text(value))));
    }
    page.line(0, "");
}

pub(super) fn secret(page: &mut Page, object: &Object<'_>) {
    head(page, object);
    page.line(0, "");
    page.line(0, format!("Type:\t{}", text(&object.tree["type"])));
    ["", "Data", "===="].iter().for_each(|line| page.line(0, line));
    for (key, value) in sorted(&object.tree["data"]) {
        page.line(0, format!("{key}:\t{} bytes", decoded_len(text(value))));
    }
}

/// How many bytes a base64 text stands for.
fn decoded_len(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

pub(super) fn service_account(page: &mut Page, object: &Object<'_>) {
    head(page, object);
    let secrets = list(&object.tree["imagePullSecrets"]);
    if secrets.is_empty() {
        page.line(0, "Image pull secrets:\t<none>");
    }
    for (index, secret) in secrets.iter().enumerate() {
        let title = if index == 0 { "Image pull secrets:" } else { "" };
        page.line(0, format!("{title}\t{}", text(&secret["name"])));
    }
}

pub(super) fn namespace(page: &mut Page, object: &Object<'_>) {
    head(page, object);
    page.line(0, format!("Status:\t{}", text_or_none(&object.tree["status"]["phase"])));
    let conditions = list(&object.tree["status"]["conditions"]);
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
        page.line(1, "----\t------\t------------------\t------\t-------");
    }
    for condition in conditions {
        let time = super::common::time(&condition["lastTransitionTime"]);
        let [ty, status, reason, message] =
            ["type", "status", "reason", "message"].map(|field| text(&condition[field]));
        page.line(1, format!("{ty}\t{status}\t{time}\t{reason}\t{message}"));
    }
}
