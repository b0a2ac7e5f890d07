//! Volumes that pods claim: what they are on this node, and when the node lets go of them.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, Pod, Volume};

use super::Content;
use crate::env::{Claimed, Objects, Place};

/// The driver whose volumes are directories of one node.
pub const LOCAL_DRIVER: &str = "dhow.dev/local";
/// By which label a volume names its node.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// Keeps a volume until its node has let go of what it held.
pub const DATA_FINALIZER: &str = "dhow.dev/local-volume";
/// Keeps a volume that a claim is bound to.
const PROTECTION: &str = "kubernetes.io/pv-protection";

/// The claim that a volume is of; one that the pod brings along has a name that follows from the pod's.
pub(super) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
        (None, None) => None,
    }
}

/// What a claim's volume is here; `Ok(None)` if it is of a type that this node does not have.
pub(super) fn claimed(pod: &Pod, name: &str, place: &Place, objects: &Objects) -> Result<Option<Content>, String> {
    let Some(Claimed { claim, volume }) = objects.claims.get(name) else {
        return Err(format!("persistentvolumeclaim \"{name}\" not found"));
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
    }
    let own = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let brought =
        own.filter(|volume| volume.ephemeral.is_some()).any(|volume| claim_name(pod, volume).as_deref() == Some(name));
    let owners = claim.metadata.owner_references.iter().flatten();
    if brought && !owners.map(|owner| owner.uid.as_str()).any(|uid| Some(uid) == pod.metadata.uid.as_deref()) {
        return Err(format!("persistentvolumeclaim \"{name}\" was not created for this pod (pod is not owner)"));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let Some(spec) = volume.as_ref().and_then(|volume| volume.spec.as_ref()).filter(|_| phase == "Bound") else {
        return Err(format!("persistentvolumeclaim \"{name}\" has no volume: its phase is \"{phase}\""));
    };
    let of = spec.claim_ref.as_ref().and_then(|of| of.uid.as_deref());
    if of.is_none() || of != claim.metadata.uid.as_deref() {
        return Err(format!("the volume of persistentvolumeclaim \"{name}\" is bound to another claim"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes are not supported; use volumeMode Filesystem".to_owned());
    }
    Ok(if let Some(source) = spec.csi.as_ref().filter(|source| source.driver == LOCAL_DRIVER) {
        // What lies on another node's disk would be found empty here.
        if !lies_on(spec, &place.node_name) {
            return Err("the volume lies on another node".to_owned());
        }
        Some(Content::Local { handle: source.volume_handle.clone() })
    } else if let Some(source) = &spec.local {
        Some(Content::HostPath { path: source.path.clone(), kind: "Directory".to_owned() })
    } else {
        let host = spec.host_path.as_ref();
        host.map(|source| Content::HostPath {
            path: source.path.clone(),
            kind: source.type_.clone().unwrap_or_default(),
        })
    })
}

/// Whether a volume names this node as the only one where it can be used.
fn lies_on(spec: &PersistentVolumeSpec, node: &str) -> bool {
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let Some([term]) = required.map(|required| required.node_selector_terms.as_slice()) else { return false };
    term.match_expressions.iter().flatten().any(|one| {
        let values = one.values.as_deref().unwrap_or_default();
        one.key == HOSTNAME && one.operator == "In" && matches!(values, [only] if only == node)
    })
}

/// The handle of a deleted volume whose content this node has to let go, and whether it is to be removed: not before
/// its claim is gone, and only if the volume says so.
pub fn let_go(volume: &PersistentVolume, node: &str) -> Option<(String, bool)> {
    let (meta, spec) = (&volume.metadata, volume.spec.as_ref()?);
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    let has = |name: &str| finalizers.iter().any(|one| one == name);
    let source = spec.csi.as_ref().filter(|source| source.driver == LOCAL_DRIVER)?;
    let due = meta.deletion_timestamp.is_some() && has(DATA_FINALIZER) && !has(PROTECTION);
    let removed = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    (due && lies_on(spec, node)).then(|| (source.volume_handle.clone(), removed))
}
