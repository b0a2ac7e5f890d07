//! Deployments and replica sets.

use super::Object;
use super::common::{NONE, annotations, controller, labels, list, names, scalar, text, time};
use super::page::Page;
use super::pod;
use crate::selector;
use dhow_api::{Tree, meta};

const REVISION: &str = "deployment.kubernetes.io/revision";

/// Where a deployment's replica sets are, with those of others.
pub(super) fn replica_sets(deployment: &Tree) -> Vec<String> {
    vec![format!("/apis/apps/v1/namespaces/{}/replicasets", meta::namespace(deployment))]
}

/// Where a replica set's pods are, with those of others.
pub(super) fn pods(set: &Tree) -> Vec<String> {
    vec![format!("/api/v1/namespaces/{}/pods", meta::namespace(set))]
}

fn is_controlled_by(object: &Tree, owner: &Tree) -> bool {
    meta::controller_of(object).is_some_and(|reference| reference.uid == meta::uid(owner))
}

fn number(tree: &Tree) -> i64 {
    tree.as_i64().unwrap_or(0)
}

fn pod_selector(object: &Tree) -> String {
    selector::of_pods(object).map_or(NONE.to_owned(), |selector| selector.to_string())
}

pub(super) fn deployment(page: &mut Page, object: &Object<'_>) {
    let tree = object.tree;
    let (spec, status) = (&tree["spec"], &tree["status"]);
    names(page, tree);
    page.line(0, format!("CreationTimestamp:\t{}", time(&tree["metadata"]["creationTimestamp"])));
    labels(page, "Labels", &tree["metadata"]["labels"]);
    annotations(page, "Annotations", &tree["metadata"]["annotations"]);
    page.line(0, format!("Selector:\t{}", pod_selector(tree)));
    let [updated, total, available, unavailable] =
        ["updatedReplicas", "replicas", "availableReplicas", "unavailableReplicas"].map(|field| number(&status[field]));
    page.line(
        0,
        format!(
            "Replicas:\t{} desired | {updated} updated | {total} total | {available} available | {unavailable} unavailable",
            number(&spec["replicas"])
        ),
    );
    page.line(0, format!("StrategyType:\t{}", text(&spec["strategy"]["type"])));
    page.line(0, format!("MinReadySeconds:\t{}", number(&spec["minReadySeconds"])));
    let rolling = &spec["strategy"]["rollingUpdate"];
    if rolling.is_object() {
        let (unavailable, surge) = (scalar(&rolling["maxUnavailable"]), scalar(&rolling["maxSurge"]));
        page.line(0, format!("RollingUpdateStrategy:\t{unavailable} max unavailable, {surge} max surge"));
    }
    pod::template(page, &spec["template"]);
    conditions(page, status);
    let mut owned: Vec<&Tree> = object.related(0).iter().filter(|set| is_controlled_by(set, tree)).collect();
    owned.sort_by_key(|set| meta::creation_timestamp(set));
    let revision = |tree: &Tree| meta::annotation(tree, REVISION).map(str::to_owned);
    let (new, old): (Vec<&Tree>, Vec<&Tree>) = owned.into_iter().partition(|set| revision(set) == revision(tree));
    page.line(0, format!("OldReplicaSets:\t{}", named_sets(&old)));
    page.line(0, format!("NewReplicaSet:\t{}", named_sets(&new)));
}

fn named_sets(sets: &[&Tree]) -> String {
    let named = |set: &&Tree| {
        let (made, wanted) = (number(&set["status"]["replicas"]), number(&set["spec"]["replicas"]));
        format!("{} ({made}/{wanted} replicas created)", meta::name(set))
    };
    if sets.is_empty() { NONE.to_owned() } else { sets.iter().map(named).collect::<Vec<_>>().join(", ") }
}

fn conditions(page: &mut Page, status: &Tree) {
    let conditions = list(&status["conditions"]);
    if conditions.is_empty() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tReason");
    page.line(1, "----\t------\t------");
    for condition in conditions {
        let [ty, status, reason] = ["type", "status", "reason"].map(|field| text(&condition[field]));
        page.line(1, format!("{ty} \t{status}\t{reason}"));
    }
}

pub(super) fn replica_set(page: &mut Page, object: &Object<'_>) {
    let tree = object.tree;
    names(page, tree);
    page.line(0, format!("Selector:\t{}", pod_selector(tree)));
    labels(page, "Labels", &tree["metadata"]["labels"]);
    annotations(page, "Annotations", &tree["metadata"]["annotations"]);
    controller(page, tree);
    let (current, desired) = (number(&tree["status"]["replicas"]), number(&tree["spec"]["replicas"]));
    page.line(0, format!("Replicas:\t{current} current / {desired} desired"));
    let pods: Vec<&Tree> = object.related(0).iter().filter(|pod| is_controlled_by(pod, tree)).collect();
    let [running, waiting, succeeded, failed] = ["Running", "Pending", "Succeeded", "Failed"]
        .map(|phase| pods.iter().filter(|pod| pod["status"]["phase"] == phase).count());
    page.line(
        0,
        format!("Pods Status:\t{running} Running / {waiting} Waiting / {succeeded} Succeeded / {failed} Failed"),
    );
    pod::template(page, &tree["spec"]["template"]);
    conditions(page, &tree["status"]);
}
