//! What Deployment and ReplicaSet have in common: a number of replicas, a selector and a template.

use super::pod;
use crate::field::{Fault, Faults, Path};
use crate::selector::{self, LabelSelector};
use crate::{Tree, meta, validate};

/// Finds the faults of `spec.replicas` and `spec.selector`.
pub(super) fn replicas_and_selector(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    validate::not_negative(&path.field("replicas"), meta::int(tree, "spec.replicas"), faults);
    let at = path.field("selector");
    let Some(tree) = meta::at(tree, "spec.selector") else {
        faults.push(Fault::required(at, ""));
        return;
    };
    selector::validate(&at, tree, faults);
    if LabelSelector::from_tree(tree).is_ok_and(|selector| selector.is_everything()) {
        faults.push(Fault::invalid(at, tree.clone(), "empty selector is invalid for deployment"));
    }
}

/// Finds the faults of `spec.template`, which must make pods that the selector finds and that run for ever.
pub(super) fn template(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    let template = meta::at(tree, "spec.template").unwrap_or(&Tree::Null);
    let selector = meta::at(tree, "spec.selector").unwrap_or(&Tree::Null);
    if let Ok(selector) = LabelSelector::from_tree(selector)
        && !selector.is_everything()
        && !selector.matches_tree(template)
    {
        let labels = meta::at(template, "metadata.labels").cloned().unwrap_or(Tree::Null);
        let words = "`selector` does not match template `labels`";
        faults.push(Fault::invalid(path.field("metadata.labels"), labels, words));
    }
    pod::template(path, template, faults);
    let restart = meta::text(template, "spec.restartPolicy");
    if !restart.is_empty() && restart != "Always" {
        faults.push(Fault::not_supported(path.field("spec.restartPolicy"), restart, &["Always"]));
    }
    if meta::at(template, "spec.activeDeadlineSeconds").is_some() {
        let words = "activeDeadlineSeconds in ReplicaSet is not Supported";
        faults.push(Fault::forbidden(path.field("spec.activeDeadlineSeconds"), words));
    }
}

/// What to tell whoever writes the template.
pub(super) fn warnings(tree: &Tree) -> Vec<String> {
    let template = meta::at(tree, "spec.template").unwrap_or(&Tree::Null);
    pod::annotations::warnings(&Path::root("spec.template.metadata.annotations"), template)
}

/// The selector may not change: pods would be lost from sight.
pub(super) fn selector_is_kept(new: &Tree, old: &Tree, faults: &mut Faults) {
    let at = "spec.selector";
    validate::immutable(&Path::root(at), meta::at(new, at), meta::at(old, at), faults);
}

/// The wide cells: containers, images, selector.
pub(super) fn template_cells(tree: &Tree) -> [Tree; 3] {
    let containers = meta::list(tree, "spec.template.spec.containers");
    let join = |field| containers.iter().map(|entry| meta::text(entry, field)).collect::<Vec<_>>().join(",");
    let selector = match LabelSelector::from_tree(meta::at(tree, "spec.selector").unwrap_or(&Tree::Null)) {
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    };
    let selector = if selector.is_empty() { "<none>".to_owned() } else { selector };
    [join("name").into(), join("image").into(), selector.into()]
}
