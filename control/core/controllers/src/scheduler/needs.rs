//! What a pod asks of its node, read from its spec when its turn comes.

use super::account::NodeInfo;
use super::volumes::VolumeNeeds;
use crate::views::{Node, Pod, Resources, Taint, read};
use dhow_state::Object;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What a pod asks of its node. Ordered, so that equal needs are found again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Needs {
    pub(super) requests: Resources,
    pub(super) selector: BTreeMap<String, String>,
    /// One of these must match; no restriction if `None`.
    pub(super) required: Option<Vec<Term>>,
    pub(super) preferred: Vec<(i64, Term)>,
    pub(super) tolerations: Vec<Toleration>,
    /// Filled in by whoever knows the claims.
    pub(super) volumes: VolumeNeeds,
}

/// A toleration of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
pub(crate) struct Toleration {
    key: Option<String>,
    operator: Option<String>,
    value: Option<String>,
    effect: Option<String>,
    #[serde(rename = "tolerationSeconds")]
    given_seconds: Option<i64>,
    /// Not part of the object: the seconds, none of them negative.
    #[serde(skip)]
    pub(crate) seconds: Option<u64>,
}

impl Toleration {
    /// Whether it lets a pod bear this taint.
    pub(crate) fn covers(&self, taint: &Taint) -> bool {
        fn text(field: &Option<String>) -> &str {
            field.as_deref().unwrap_or("")
        }
        let effect = text(&self.effect);
        let key = text(&self.key);
        let exists = text(&self.operator) == "Exists";
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || text(&self.value) == taint.value)
    }
}

/// A term of node affinity: all of its requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Term {
    match_expressions: Option<Vec<Requirement>>,
    match_fields: Option<Vec<Requirement>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
struct Requirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

impl Term {
    /// A term without requirements matches nothing.
    pub(super) fn matches(&self, node: &NodeInfo<'_>) -> bool {
        self.matches_node(node.node)
    }

    pub(super) fn matches_node(&self, node: &Node) -> bool {
        let expressions = self.match_expressions.as_deref().unwrap_or_default();
        let fields = self.match_fields.as_deref().unwrap_or_default();
        let field = |key: &str| (key == "metadata.name").then_some(&*node.object.key.name);
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|requirement| requirement.holds(node.object.index.label(&requirement.key)))
            && fields.iter().all(|requirement| requirement.holds(field(&requirement.key)))
    }
}

impl Term {
    /// The one value that the label must have, if that is all that the term asks for.
    pub(crate) fn only(&self, label: &str) -> Option<&str> {
        match (self.match_expressions.as_deref()?, self.match_fields.as_deref().unwrap_or_default()) {
            ([one], []) if one.key == label && one.operator == "In" => match one.values.as_deref()? {
                [value] => Some(value),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let values = self.values.as_deref().unwrap_or_default();
        let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = values.first().and_then(|text| number(text));
        match self.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value > bound),
            "Lt" => value.and_then(number).zip(bound).is_some_and(|(value, bound)| value < bound),
            _ => false,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodJson {
    spec: SpecJson,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecJson {
    node_selector: Option<BTreeMap<String, String>>,
    affinity: Option<AffinityJson>,
    tolerations: Option<Vec<Toleration>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AffinityJson {
    node_affinity: Option<NodeAffinityJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeAffinityJson {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<RequiredJson>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
    preferred: Option<Vec<PreferredJson>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RequiredJson {
    node_selector_terms: Option<Vec<Term>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PreferredJson {
    weight: i64,
    preference: Term,
}

impl Needs {
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = read::<PodJson>(&pod.object).spec;
        let affinity = spec.affinity.and_then(|affinity| affinity.node_affinity).unwrap_or_default();
        Self {
            requests: pod.requests.clone(),
            selector: spec.node_selector.unwrap_or_default(),
            required: affinity.required.map(|required| required.node_selector_terms.unwrap_or_default()),
            preferred: affinity.preferred.into_iter().flatten().map(|term| (term.weight, term.preference)).collect(),
            tolerations: normal(spec.tolerations),
            volumes: VolumeNeeds::default(),
        }
    }

    pub(super) fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.covers(taint))
    }
}

/// The tolerations of a pod.
pub(crate) fn tolerations(pod: &Object) -> Vec<Toleration> {
    normal(read::<PodJson>(pod).spec.tolerations)
}

fn normal(tolerations: Option<Vec<Toleration>>) -> Vec<Toleration> {
    let mut tolerations = tolerations.unwrap_or_default();
    for toleration in &mut tolerations {
        toleration.seconds = toleration.given_seconds.map(|seconds| u64::try_from(seconds).unwrap_or(0));
    }
    tolerations
}
