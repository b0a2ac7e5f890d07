//! The views of replica sets and deployments.

use super::template::Template;
use dhow_api::selector::LabelSelector;
use dhow_api::{Tree, meta};
use dhow_state::Object;
use dhow_types::Time;
use std::sync::Arc;

/// Written on replica sets by the deployment controller.
pub(crate) mod annotation {
    pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
    pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
    pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
    pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
}

/// A replica set.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaSet {
    pub(crate) object: Arc<Object>,
    pub(crate) controller: Option<String>,
    pub(crate) created: Time,
    pub(crate) generation: i64,
    pub(crate) replicas: i64,
    pub(crate) min_ready_s: i64,
    pub(crate) selector: Option<Arc<LabelSelector>>,
    pub(crate) template: Arc<Template>,
    pub(crate) revision: i64,
    pub(crate) desired: Option<i64>,
    pub(crate) max: Option<i64>,
    pub(crate) status: Counts,
}

impl ReplicaSet {
    pub(crate) fn name(&self) -> &str {
        &self.object.key.name
    }

    pub(crate) fn uid(&self) -> &str {
        &self.object.index.uid
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }
}

/// A deployment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) object: Arc<Object>,
    pub(crate) generation: i64,
    pub(crate) replicas: i64,
    pub(crate) paused: bool,
    pub(crate) recreate: bool,
    pub(crate) max_surge: i64,
    pub(crate) max_unavailable: i64,
    pub(crate) min_ready_s: i64,
    pub(crate) history_max: usize,
    /// `None` when the deployment has no deadline.
    pub(crate) deadline_s: Option<u64>,
    pub(crate) selector: Option<Arc<LabelSelector>>,
    /// A selector without terms, which would take every pod of the namespace.
    pub(crate) selects_all: bool,
    pub(crate) template: Arc<Template>,
    pub(crate) collisions: i64,
    pub(crate) status: Counts,
}

impl Deployment {
    pub(crate) fn uid(&self) -> &str {
        &self.object.index.uid
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }
}

/// The numbers in the status of a replica set or a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) observed: i64,
    pub(crate) replicas: i64,
    pub(crate) fully_labeled: i64,
    pub(crate) updated: i64,
    pub(crate) ready: i64,
    pub(crate) available: i64,
    pub(crate) unavailable: i64,
}

impl Counts {
    fn parse(tree: &Tree) -> Self {
        let number = |field: &str| meta::int(tree, field).unwrap_or(0);
        Self {
            observed: number("status.observedGeneration"),
            replicas: number("status.replicas"),
            fully_labeled: number("status.fullyLabeledReplicas"),
            updated: number("status.updatedReplicas"),
            ready: number("status.readyReplicas"),
            available: number("status.availableReplicas"),
            unavailable: number("status.unavailableReplicas"),
        }
    }
}

pub(super) fn replica_set(object: &Arc<Object>) -> ReplicaSet {
    let tree = object.tree();
    let number = |key: &str| meta::annotation(&tree, key).and_then(|text| text.parse::<i64>().ok());
    ReplicaSet {
        object: Arc::clone(object),
        controller: meta::controller_of(&tree).map(|owner| owner.uid),
        created: meta::creation_timestamp(&tree).unwrap_or_default(),
        generation: meta::generation(&tree),
        replicas: meta::int(&tree, "spec.replicas").unwrap_or(1),
        min_ready_s: meta::int(&tree, "spec.minReadySeconds").unwrap_or(0),
        selector: selector(&tree),
        template: Arc::new(Template::of(meta::at(&tree, "spec.template").unwrap_or(&Tree::Null))),
        revision: number(annotation::REVISION).unwrap_or(0),
        desired: number(annotation::DESIRED),
        max: number(annotation::MAX),
        status: Counts::parse(&tree),
    }
}

pub(super) fn deployment(object: &Arc<Object>) -> Deployment {
    let tree = object.tree();
    let replicas = meta::int(&tree, "spec.replicas").unwrap_or(1);
    let recreate = meta::text(&tree, "spec.strategy.type") == "Recreate";
    let rolling = |field: &str, round| {
        let value = meta::at(&tree, "spec.strategy.rollingUpdate").and_then(|rolling| meta::at(rolling, field));
        if recreate { 0 } else { share(value, replicas, round, "25%") }
    };
    let max_surge = rolling("maxSurge", Round::Up);
    let mut max_unavailable = rolling("maxUnavailable", Round::Down);
    // With neither, no pod could ever be replaced; Kubernetes lets one go.
    if !recreate && max_surge == 0 && max_unavailable == 0 {
        max_unavailable = 1;
    }
    let no_terms = |field: &str| {
        meta::at(&tree, field).is_none_or(|terms| terms == &serde_json::json!({}) || terms == &serde_json::json!([]))
    };
    Deployment {
        object: Arc::clone(object),
        generation: meta::generation(&tree),
        replicas,
        paused: meta::truth(&tree, "spec.paused"),
        recreate,
        max_surge,
        max_unavailable: max_unavailable.min(replicas),
        min_ready_s: meta::int(&tree, "spec.minReadySeconds").unwrap_or(0),
        history_max: meta::int(&tree, "spec.revisionHistoryLimit").map_or(10, |n| usize::try_from(n).unwrap_or(0)),
        deadline_s: match meta::int(&tree, "spec.progressDeadlineSeconds") {
            None => Some(600),
            Some(seconds) if seconds >= i64::from(i32::MAX) => None,
            Some(seconds) => Some(u64::try_from(seconds).unwrap_or(0)),
        },
        selector: selector(&tree),
        selects_all: no_terms("spec.selector.matchLabels") && no_terms("spec.selector.matchExpressions"),
        template: Arc::new(Template::of(meta::at(&tree, "spec.template").unwrap_or(&Tree::Null))),
        collisions: meta::int(&tree, "status.collisionCount").unwrap_or(0),
        status: Counts::parse(&tree),
    }
}

fn selector(tree: &Tree) -> Option<Arc<LabelSelector>> {
    meta::at(tree, "spec.selector").and_then(|selector| LabelSelector::from_tree(selector).ok()).map(Arc::new)
}

/// The rounding of a percentage of replicas.
#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

/// A number or a percentage of `total`; `default` where nothing usable is given.
fn share(value: Option<&Tree>, total: i64, round: Round, default: &str) -> i64 {
    let percent = |text: &str| -> Option<i64> {
        let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
        let product = percent.checked_mul(total)?;
        Some(match round {
            Round::Up => product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0),
            Round::Down => product.div_euclid(100),
        })
    };
    let given = match value {
        Some(Tree::Number(number)) => number.as_i64(),
        Some(Tree::String(text)) => percent(text).or_else(|| text.parse().ok()),
        _ => None,
    };
    given.or_else(|| percent(default)).unwrap_or(0).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_round_surge_up_and_unavailability_down() {
        for (value, total, up, down) in [
            (json!("25%"), 10, 3, 2),
            (json!("25%"), 3, 1, 0),
            (json!(2), 10, 2, 2),
            (json!("0%"), 10, 0, 0),
            (json!("100%"), 7, 7, 7),
            (json!("nonsense"), 8, 2, 2),
        ] {
            assert_eq!(share(Some(&value), total, Round::Up, "25%"), up, "{value} of {total} up");
            assert_eq!(share(Some(&value), total, Round::Down, "25%"), down, "{value} of {total} down");
        }
    }
}
