//! What PersistentVolume and PersistentVolumeClaim have in common: access modes, volume modes, classes.

use crate::field::{Fault, Faults, Path};
use crate::quantity::Quantity;
use crate::{Tree, meta, validate};

/// The access modes, in the order in which tables list them, with their short forms.
const ACCESS_MODES: [(&str, &str); 4] =
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
/// What a volume can be mounted as.
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// Where a class was named before it had a field.
pub(super) const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// `RWO,ROX`
pub(super) fn shown_modes(tree: &Tree, path: &str) -> String {
    let given = meta::list(tree, path);
    let has = |(mode, short): &(&str, &'static str)| given.iter().any(|one| one == mode).then_some(*short);
    ACCESS_MODES.iter().filter_map(has).collect::<Vec<_>>().join(",")
}

/// The phase, as tables show it.
pub(super) fn shown_phase(tree: &Tree) -> &str {
    if meta::is_deleting(tree) { "Terminating" } else { meta::text(tree, "status.phase") }
}

/// A field that tables show even if nobody has set it.
pub(super) fn or_unset<'a>(tree: &'a Tree, path: &str) -> &'a str {
    Some(meta::text(tree, path)).filter(|text| !text.is_empty()).unwrap_or("<unset>")
}

/// The name of the class.
pub(super) fn class(tree: &Tree) -> &str {
    meta::annotation(tree, OLD_CLASS).unwrap_or_else(|| meta::text(tree, "spec.storageClassName"))
}

/// Keeps an object that somebody uses until nobody does.
pub(super) fn protect(tree: &mut Tree, finalizer: &str) {
    let mut finalizers: Vec<Tree> = meta::list(tree, "metadata.finalizers").to_vec();
    if !finalizers.iter().any(|one| one == finalizer) {
        finalizers.push(finalizer.into());
        meta::set(tree, "metadata.finalizers", finalizers);
    }
}

/// The faults of `accessModes`, `volumeMode` and `storageClassName`.
pub(super) fn validate_modes(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let modes = meta::list(spec, "accessModes");
    let at = path.field("accessModes");
    if modes.is_empty() {
        faults.push(Fault::required(at, "at least 1 access mode is required"));
    }
    let supported = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for mode in modes {
        if !mode.as_str().is_some_and(|mode| supported.contains(&mode)) {
            faults.push(Fault::not_supported(at, mode.clone(), &supported));
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        faults.push(Fault::forbidden(at, "may not use ReadWriteOncePod with other access modes"));
    }
    validate::one_of(&path.field("volumeMode"), meta::text(spec, "volumeMode"), VOLUME_MODES, faults);
    let class = meta::text(spec, "storageClassName");
    if !class.is_empty() {
        let at = path.field("storageClassName");
        validate::push_all(&at, class, validate::dns1123_subdomain(class), faults);
    }
}

/// An amount of storage must be above zero.
pub(super) fn validate_size(path: &Path<'_>, size: &Tree, faults: &mut Faults) {
    let text = size.as_str().map_or_else(|| size.to_string(), str::to_owned);
    if !Quantity::parse(&text).is_ok_and(|size| !size.is_negative() && !size.is_zero()) {
        faults.push(Fault::invalid(path, text, "must be greater than zero"));
    }
}
