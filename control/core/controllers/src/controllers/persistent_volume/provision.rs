//! Makes volumes of our own driver: a directory on the disk of one node.

use super::claim::claim_ref;
use super::{DATA_FINALIZER, PROVISIONED_BY};
use crate::cache::Cache;
use crate::events::Note;
use crate::plan::{Ctx, Plan};
use crate::views::{Claim, Class, HOSTNAME, LOCAL_DRIVER, Node, SELECTED_NODE, Truth};
use crate::wish::Write;
use dhow_api::quantity::Quantity;
use dhow_api::{Tree, meta};
use serde_json::json;
use std::sync::Arc;

/// Makes a volume for a claim, or says why there is none.
pub(super) fn provide(ctx: &Ctx<'_>, claim: &Arc<Claim>, class: &Class, plan: &mut Plan) {
    if class.provisioner != LOCAL_DRIVER {
        plan.notes.push(waits_for_others(claim, &class.provisioner));
        return;
    }
    match place(ctx, claim) {
        Ok(node) => {
            let words = format!("Successfully provisioned volume {}", claim.volume_to_make());
            let done = Note::normal(&claim.object, "ProvisioningSucceeded", words);
            plan.write_noted(Write::Create { tree: volume(claim, class, node) }, done);
        }
        Err(why) => {
            let words = format!("failed to provision volume with StorageClass \"{}\": {why}", class.name());
            let note = Note::warning(&claim.object, "ProvisioningFailed", words);
            if claim.selected_node.is_none() {
                plan.notes.push(note);
                return;
            }
            // The scheduler is to look for another node.
            let mut tree = claim.object.tree();
            if let Some(annotations) = meta::at_mut(&mut tree, "metadata.annotations").and_then(Tree::as_object_mut) {
                annotations.remove(SELECTED_NODE);
            }
            plan.write_noted(Write::Update { tree }, note);
        }
    }
}

fn waits_for_others(claim: &Arc<Claim>, provisioner: &str) -> Note {
    if provisioner.starts_with("kubernetes.io/") {
        // Names of what is made by hand, or by code that was once a part of Kubernetes.
        let words = "no persistent volumes available for this claim, and its class makes none: create one";
        return Note::normal(&claim.object, "FailedBinding", words);
    }
    let words = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    Note::normal(&claim.object, "ExternalProvisioning", words)
}

/// The node that is to hold the claim's volume.
fn place<'a>(ctx: &Ctx<'a>, claim: &Claim) -> Result<&'a Arc<Node>, String> {
    let wanted = &claim.wanted;
    if wanted.block {
        return Err("block volumes are not supported; use volumeMode Filesystem".into());
    }
    if claim.selector.is_some() {
        return Err("claim.spec.selector is not supported".into());
    }
    if let Some(mode) = wanted.modes.iter().find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
    {
        return Err(format!("a volume on one node's disk cannot be {mode}; use ReadWriteOnce"));
    }
    let room = |node: &Node| free_bytes(ctx.cache, node) >= wanted.bytes;
    match &claim.selected_node {
        Some(name) => match ctx.cache.node(name) {
            None => Err(format!("node \"{name}\" not found")),
            Some(node) if !room(node) => Err(format!("node \"{name}\" has not enough free storage")),
            Some(node) => Ok(node),
        },
        // Of the nodes that could run a pod, the one with the most room.
        None => {
            let usable = |node: &&Arc<Node>| {
                !node.unschedulable && !node.object.index.deleting && node.ready == Some(Truth::True) && room(node)
            };
            let nodes = ctx.cache.nodes().filter(usable);
            let best = nodes.max_by_key(|node| (free_bytes(ctx.cache, node), std::cmp::Reverse(&node.object.key.name)));
            best.ok_or_else(|| "no node is ready and has enough free storage".into())
        }
    }
}

/// The bytes of a node's disk that are not promised to volumes; without end if the node does not say how large it is.
fn free_bytes(cache: &Cache, node: &Node) -> i64 {
    if node.allocatable.ephemeral == 0 {
        return i64::MAX;
    }
    let here = cache.volumes().filter(|volume| volume.local_node.as_deref() == Some(&*node.object.key.name));
    here.fold(node.allocatable.ephemeral, |free, volume| free.saturating_sub(volume.offered.bytes))
}

fn volume(claim: &Claim, class: &Class, node: &Node) -> Tree {
    let name = claim.volume_to_make();
    let asked = claim.object.tree();
    let asked = |path: &str| meta::at(&asked, path).cloned().unwrap_or(Tree::Null);
    let size = Quantity::from_bytes(claim.wanted.bytes).to_canonical();
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "annotations": {PROVISIONED_BY: LOCAL_DRIVER}, "finalizers": [DATA_FINALIZER],
        },
        "spec": {
            "capacity": {"storage": size},
            "accessModes": asked("spec.accessModes"),
            "claimRef": claim_ref(claim),
            "persistentVolumeReclaimPolicy": class.reclaim,
            "storageClassName": class.name(),
            "volumeMode": "Filesystem",
            "csi": {"driver": LOCAL_DRIVER, "volumeHandle": name},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": HOSTNAME, "operator": "In", "values": [&*node.object.key.name]}]}]}},
        },
    })
}
