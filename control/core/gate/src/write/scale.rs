//! The `scale` sub-resource: `spec.replicas` of a workload behind an `autoscaling/v1` Scale.

use super::update::{apply, store_changed};
use super::{Context, Name, Patch, Plan, Reply, existing};
use dhow_api::Tree;
use dhow_api::decode;
use dhow_api::field::Fault;
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::selector::LabelSelector;
use dhow_api::status::ApiError;
use serde_json::json;

/// The type name of a Scale in the schema table.
pub const SCALE_SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The Scale of a Deployment or ReplicaSet.
pub fn scale_of(tree: &Tree) -> Tree {
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {"replicas": meta::int(tree, "spec.replicas").unwrap_or(1)},
        "status": {"replicas": meta::int(tree, "status.replicas").unwrap_or(0)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        let path = format!("metadata.{field}");
        if let Some(value) = meta::at(tree, &path) {
            meta::set(&mut scale, &path, value.clone());
        }
    }
    if let Some(Ok(selector)) = meta::at(tree, "spec.selector").map(LabelSelector::from_tree) {
        meta::set(&mut scale, "status.selector", selector.to_string());
    }
    scale
}

/// Plans a PUT of a Scale.
pub fn update_scale(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, scale: &Tree) -> Result<Plan, ApiError> {
    let old = existing(ctx, kind, name)?;
    let given = meta::name(scale);
    if !given.is_empty() && given != name.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            name.name
        )));
    }
    let version = meta::resource_version(scale);
    if !version.is_empty() && version != old.revision.to_string() {
        return Err(ApiError::modified(&kind.resource(), name.name));
    }
    let replicas = meta::int(scale, "spec.replicas").unwrap_or(0);
    if replicas < 0 {
        let fault = Fault::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid("Scale.autoscaling", name.name, &[fault]));
    }
    let mut new = old.tree();
    meta::set(&mut new, "spec.replicas", replicas);
    store_changed(ctx, kind, &old, new, Reply::StoredScale, 200)
}

/// Plans a patch of a Scale.
pub fn patch_scale(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, patch: Patch<'_>) -> Result<Plan, ApiError> {
    let old = existing(ctx, kind, name)?;
    let before = scale_of(&old.tree());
    let mut scale = apply(&patch, &before, SCALE_SCHEMA)?;
    decode::normalize(&mut scale, SCALE_SCHEMA);
    let warnings = decode::check_patched(&scale, &before, patch.body, SCALE_SCHEMA, patch.validation)?;
    let mut plan = update_scale(ctx, kind, name, &scale)?;
    plan.warnings = warnings;
    Ok(plan)
}
