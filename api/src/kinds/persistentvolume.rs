//! PersistentVolume: storage that outlives pods.

use serde_json::json;

use super::pod::defaults;
use super::{Column, Kind, Subresource, plain, volumes};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// Keeps a volume that a claim is bound to.
const FINALIZER: &str = "kubernetes.io/pv-protection";

/// The fields of the spec that name where the volume lies: exactly one of them is set.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// PersistentVolume.
pub static PERSISTENT_VOLUME: Kind = Kind {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.PersistentVolume",
    subresources: &[Subresource::Status],
    returns_deleted: true,
    default: |tree| {
        let spec = meta::map_of(tree).entry("spec").or_insert(Tree::Null);
        meta::map_of(spec);
        defaults::set_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        defaults::set_text(spec, "volumeMode", "Filesystem");
        defaults::canonical(spec, "capacity");
        if let Some(path) = meta::at_mut(spec, "hostPath") {
            meta::set_default(path, "type", "");
        }
        defaults::set_text(tree, "status.phase", "Pending");
    },
    prepare_create: |tree| {
        meta::set(tree, "status", json!({"phase": "Pending"}));
        volumes::protect(tree, FINALIZER);
    },
    prepare_update: |new, old| super::restore(new, old, "status"),
    validate: validate_spec,
    validate_update,
    columns: &[
        Column::name(),
        Column::new("Capacity", "How much the volume holds."),
        Column::new("Access Modes", "Who may use the volume at the same time, and how."),
        Column::new("Reclaim Policy", "What becomes of the volume when its claim is gone."),
        Column::new("Status", "Whether the volume is free, bound to a claim, or left by one."),
        Column::new("Claim", "The claim that the volume is bound to."),
        Column::new("StorageClass", "The class that the volume is of."),
        Column::new("VolumeAttributesClass", "The class of the volume's attributes."),
        Column::new("Reason", "Why the volume has failed, if it has."),
        Column::age(),
        Column::new("VolumeMode", "What the volume is mounted as.").wide(),
    ],
    cells: |tree, now| {
        let claim = match meta::at(tree, "spec.claimRef") {
            Some(claim) => format!("{}/{}", meta::text(claim, "namespace"), meta::text(claim, "name")),
            None => String::new(),
        };
        let capacity = meta::text(tree, "spec.capacity.storage");
        vec![
            meta::name(tree).into(),
            if capacity.is_empty() { "0" } else { capacity }.into(),
            volumes::shown_modes(tree, "spec.accessModes").into(),
            meta::text(tree, "spec.persistentVolumeReclaimPolicy").into(),
            volumes::shown_phase(tree).into(),
            claim.into(),
            volumes::class(tree).into(),
            volumes::or_unset(tree, "spec.volumeAttributesClassName").into(),
            meta::text(tree, "status.reason").into(),
            crate::table::age(tree, now),
            volumes::or_unset(tree, "spec.volumeMode").into(),
        ]
    },
    ..plain()
};

fn validate_spec(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    let spec = meta::at(tree, "spec").unwrap_or(&Tree::Null);
    volumes::validate_modes(&path, spec, faults);
    capacity(&path.field("capacity"), spec, faults);
    let policy = meta::text(spec, "persistentVolumeReclaimPolicy");
    let at = path.field("persistentVolumeReclaimPolicy");
    validate::one_of(&at, policy, &["Delete", "Recycle", "Retain"], faults);
    source(&path, spec, faults);
    let affinity = path.field("nodeAffinity");
    match meta::at(spec, "nodeAffinity") {
        Some(given) => node_affinity(&affinity, given, faults),
        None if meta::at(spec, "local").is_some() => {
            faults.push(Fault::required(affinity, "Local volume requires node affinity"));
        }
        None => {}
    }
    if policy == "Recycle" && meta::text(spec, "hostPath.path") == "/" {
        faults.push(Fault::forbidden(at, "may not be 'recycle' for a hostPath mount of '/'"));
    }
}

fn capacity(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let Some(given) = meta::map(spec, "capacity").filter(|given| !given.is_empty()) else {
        faults.push(Fault::required(path, ""));
        return;
    };
    if given.len() > 1 || !given.contains_key("storage") {
        faults.push(Fault::not_supported(path, given.clone(), &["storage"]));
    }
    for (name, size) in given {
        volumes::validate_size(&path.key(name), size, faults);
    }
}

fn source(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let given: Vec<&str> = SOURCES.iter().copied().filter(|name| meta::at(spec, name).is_some()).collect();
    let Some((first, more)) = given.split_first() else {
        faults.push(Fault::required(path, "must specify a volume type"));
        return;
    };
    for name in more {
        faults.push(Fault::forbidden(path.field(name), "may not specify more than 1 volume type"));
    }
    let at = path.field(first);
    let source = &spec[*first];
    match *first {
        "hostPath" => super::pod::host_path(&at, source, faults),
        "local" => {
            let local = meta::text(source, "path");
            if local.is_empty() {
                faults.push(Fault::required(at.field("path"), ""));
            } else if local.split('/').any(|part| part == "..") {
                faults.push(Fault::invalid(at.field("path"), local, "must not contain '..'"));
            }
        }
        "csi" => {
            for field in ["driver", "volumeHandle"] {
                if meta::text(source, field).is_empty() {
                    faults.push(Fault::required(at.field(field), ""));
                }
            }
        }
        _ => {}
    }
}

fn node_affinity(path: &Path<'_>, given: &Tree, faults: &mut Faults) {
    let required = path.field("required");
    if meta::at(given, "required").is_none() {
        faults.push(Fault::required(required, "must specify required node constraints"));
    } else if meta::list(given, "required.nodeSelectorTerms").is_empty() {
        let words = "must have at least one node selector term";
        faults.push(Fault::required(required.field("nodeSelectorTerms"), words));
    }
}

/// Where a volume lies cannot change: its content would be lost.
fn validate_update(new: &Tree, old: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    let field = |tree, name: &str| meta::at(tree, &format!("spec.{name}")).cloned();
    if SOURCES.iter().any(|name| field(new, name) != field(old, name)) {
        let words = "spec.persistentvolumesource is immutable after creation";
        faults.push(Fault::forbidden(path.field("persistentvolumesource"), words));
    }
    let (mode, was) = (field(new, "volumeMode"), field(old, "volumeMode"));
    validate::immutable(&path.field("volumeMode"), mode.as_ref(), was.as_ref(), faults);
    let was = field(old, "nodeAffinity");
    if was.is_some() {
        validate::immutable(&path.field("nodeAffinity"), field(new, "nodeAffinity").as_ref(), was.as_ref(), faults);
    }
}
