//! The views of claims, volumes and their classes.

use super::read;
use crate::scheduler::Term;
use dhow_api::quantity::Quantity;
use dhow_api::selector::LabelSelector;
use dhow_api::{Tree, kinds, meta};
use dhow_state::{Key, Object};
use dhow_types::Time;
use serde::Deserialize;
use std::sync::Arc;

/// Who makes volumes that lie on one node's own disk. Their agents know them by it, too.
pub(crate) const LOCAL_DRIVER: &str = "dhow.dev/local";
/// Set on a claim when it has been bound once: what it had then is lost if it is gone.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Set on a claim and its volume if it was us who brought them together.
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Set on a claim by the scheduler: where its first consumer goes.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Where a class was named before it had a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// By which label a volume names its node.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";

/// What both a claim asks for and a volume offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Empty for none.
    pub(crate) class: String,
    pub(crate) bytes: i64,
    pub(crate) modes: Vec<String>,
    pub(crate) block: bool,
}

/// A claim.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) object: Arc<Object>,
    /// What it asks for.
    pub(crate) wanted: Storage,
    /// Whether nobody has said of which class it is, not even of none.
    pub(crate) classless: bool,
    pub(crate) selector: Option<LabelSelector>,
    pub(crate) volume: Option<String>,
    pub(crate) phase: String,
    pub(crate) bind_completed: bool,
    pub(crate) selected_node: Option<String>,
}

impl Claim {
    pub(crate) fn uid(&self) -> &str {
        &self.object.index.uid
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }

    /// Whether only one pod at a time may use it.
    pub(crate) fn is_for_one_pod(&self) -> bool {
        self.wanted.modes.iter().any(|mode| mode == "ReadWriteOncePod")
    }

    /// The name of the volume that is made for it.
    pub(crate) fn volume_to_make(&self) -> String {
        format!("pvc-{}", self.uid())
    }
}

/// The claim that a volume is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimRef {
    pub(crate) key: Key,
    /// Empty if the claim need not exist yet.
    pub(crate) uid: String,
}

/// A volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) object: Arc<Object>,
    /// What it offers.
    pub(crate) offered: Storage,
    pub(crate) claim: Option<ClaimRef>,
    pub(crate) phase: String,
    pub(crate) reclaim: String,
    /// It can be used from nodes that match one of these; from all if `None`.
    pub(crate) affinity: Option<Vec<Term>>,
    /// The node whose own disk holds it, if it is one of our driver.
    pub(crate) local_node: Option<String>,
    pub(crate) ours: bool,
}

impl Volume {
    pub(crate) fn name(&self) -> &str {
        &self.object.key.name
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }

    /// Whether it is bound to this very claim.
    pub(crate) fn is_of(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|of| of.key == claim.object.key && of.uid == claim.uid())
    }

    /// Whether somebody has set it aside for this claim, whose name may be all that he knew.
    pub(crate) fn is_kept_for(&self, claim: &Claim) -> bool {
        let same = |of: &ClaimRef| of.key == claim.object.key && (of.uid.is_empty() || of.uid == claim.uid());
        self.claim.as_ref().is_some_and(same)
    }

    /// Why it cannot be what the claim asks for, in upstream's words.
    pub(crate) fn misfit(&self, claim: &Claim) -> Option<&'static str> {
        let (offered, wanted) = (&self.offered, &claim.wanted);
        if offered.bytes < wanted.bytes {
            return Some("requested PV is too small");
        }
        if offered.class != wanted.class {
            return Some("storageClassName does not match");
        }
        if offered.block != wanted.block {
            return Some("incompatible volumeMode");
        }
        let has = |mode: &String| offered.modes.contains(mode);
        (!wanted.modes.iter().all(has)).then_some("incompatible accessMode")
    }

    /// Whether a claim that names no volume may get it.
    pub(crate) fn suits(&self, claim: &Claim) -> bool {
        let index = &self.object.index;
        !self.deleting()
            && self.misfit(claim).is_none()
            && (self.is_kept_for(claim)
                || (self.claim.is_none()
                    && self.phase == "Available"
                    && claim.selector.as_ref().is_none_or(|wanted| wanted.matches(|key| index.label(key)))))
    }
}

/// A class.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) object: Arc<Object>,
    pub(crate) provisioner: String,
    /// Whether a claim waits for a pod that needs it.
    pub(crate) waits: bool,
    pub(crate) reclaim: String,
    pub(crate) default: bool,
    pub(crate) created: Time,
}

impl Class {
    pub(crate) fn name(&self) -> &str {
        &self.object.key.name
    }
}

pub(super) fn claim(object: &Arc<Object>) -> Claim {
    let tree = object.tree();
    let text = |path: &str| Some(meta::text(&tree, path)).filter(|text| !text.is_empty()).map(str::to_owned);
    let old = meta::annotation(&tree, OLD_CLASS);
    let selector = meta::at(&tree, "spec.selector");
    Claim {
        object: Arc::clone(object),
        wanted: storage(&tree, "spec.resources.requests"),
        classless: old.is_none() && meta::at(&tree, "spec.storageClassName").is_none(),
        // One that cannot be read, which the API refuses, selects nothing.
        selector: selector.map(|tree| LabelSelector::from_tree(tree).unwrap_or_else(|_| LabelSelector::nothing())),
        volume: text("spec.volumeName"),
        phase: meta::text(&tree, "status.phase").to_owned(),
        bind_completed: meta::annotation(&tree, BIND_COMPLETED).is_some(),
        selected_node: meta::annotation(&tree, SELECTED_NODE).map(str::to_owned),
    }
}

pub(super) fn volume(object: &Arc<Object>) -> Volume {
    let tree = object.tree();
    let claim = meta::at(&tree, "spec.claimRef").map(|of| ClaimRef {
        key: Key::new(super::resource::CLAIMS, meta::text(of, "namespace"), meta::text(of, "name")),
        uid: meta::text(of, "uid").to_owned(),
    });
    let affinity = read::<VolumeJson>(object).spec.node_affinity.and_then(|affinity| affinity.required);
    let affinity = affinity.map(|required| required.node_selector_terms.unwrap_or_default());
    let ours = meta::text(&tree, "spec.csi.driver") == LOCAL_DRIVER;
    Volume {
        object: Arc::clone(object),
        offered: storage(&tree, "spec.capacity"),
        claim,
        phase: meta::text(&tree, "status.phase").to_owned(),
        reclaim: meta::text(&tree, "spec.persistentVolumeReclaimPolicy").to_owned(),
        local_node: affinity.as_deref().filter(|_| ours).and_then(|terms| match terms {
            [term] => term.only(HOSTNAME).map(str::to_owned),
            _ => None,
        }),
        affinity,
        ours,
    }
}

pub(super) fn class(object: &Arc<Object>) -> Class {
    let tree = object.tree();
    Class {
        object: Arc::clone(object),
        provisioner: meta::text(&tree, "provisioner").to_owned(),
        waits: meta::text(&tree, "volumeBindingMode") == "WaitForFirstConsumer",
        reclaim: meta::text(&tree, "reclaimPolicy").to_owned(),
        default: kinds::is_default_class(&tree),
        created: meta::creation_timestamp(&tree).unwrap_or_default(),
    }
}

fn storage(tree: &Tree, amounts: &str) -> Storage {
    let bytes = Quantity::parse(meta::text(tree, &format!("{amounts}.storage"))).map_or(0, |bytes| bytes.value());
    let modes = meta::list(tree, "spec.accessModes").iter().filter_map(Tree::as_str).map(str::to_owned).collect();
    let class = meta::annotation(tree, OLD_CLASS).unwrap_or_else(|| meta::text(tree, "spec.storageClassName"));
    Storage {
        class: class.to_owned(),
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        modes,
        block: meta::text(tree, "spec.volumeMode") == "Block",
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct VolumeJson {
    spec: VolumeSpecJson,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct VolumeSpecJson {
    node_affinity: Option<AffinityJson>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AffinityJson {
    required: Option<RequiredJson>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RequiredJson {
    node_selector_terms: Option<Vec<Term>>,
}
