//! `dhow apply`: makes the cluster's objects what the manifests say.
//!
//! Client-side apply as `kubectl` does it: the manifest is kept in an annotation, so that a field which a later
//! manifest leaves out is removed, and fields that others set stay. The patch is a JSON merge patch (RFC 7386): a
//! list that differs is replaced as a whole.

use crate::kube::{Discovery, Global, Session, manifests, name_of};
use crate::output;
use anyhow::{Context as _, bail};
use dhow_client::PatchType;
use serde_json::{Map, Value as Tree};
use std::path::PathBuf;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Which manifests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A manifest file, a directory of them, or `-` for standard input
    #[arg(short = 'f', long = "filename", required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    apply(&session, &args.paths).await
}

/// Applies all manifests, goes on after a refused one, and fails at the end if there was any.
pub(crate) async fn apply(session: &Session, paths: &[PathBuf]) -> anyhow::Result<()> {
    let trees = manifests(paths)?;
    let discovery = Discovery::fetch(&session.client).await?;
    let mut failed = 0;
    for tree in &trees {
        match apply_one(session, &discovery, tree).await {
            Ok(line) => output::line(line),
            Err(err) => {
                failed += 1;
                output::error(&err.context(format!(
                    "applying {} `{}`",
                    tree["kind"].as_str().unwrap_or("a manifest"),
                    name_of(tree)
                )));
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} manifests were refused", trees.len());
    }
    Ok(())
}

async fn apply_one(session: &Session, discovery: &Discovery, manifest: &Tree) -> anyhow::Result<String> {
    let resource = discovery.of(manifest)?;
    let name = name_of(manifest);
    if name.is_empty() {
        bail!("`metadata.name` is missing");
    }
    let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or(&session.namespace);
    let collection = resource.path(Some(namespace), None);
    let path = resource.path(Some(namespace), Some(name));
    let wanted = with_last_applied(manifest)?;
    let current = match session.client.get(&path).await {
        Ok(current) => current,
        Err(err) if err.is(404) => {
            session.client.create(&format!("{collection}?fieldManager=dhow&fieldValidation=Strict"), &wanted).await?;
            return Ok(format!("{} created", resource.label(name)));
        }
        Err(err) => return Err(err.into()),
    };
    let original: Tree = current["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Tree::Null);
    let patch = three_way(&original, &wanted, &current);
    if patch.as_object().is_none_or(Map::is_empty) {
        return Ok(format!("{} unchanged", resource.label(name)));
    }
    let query = "fieldManager=dhow&fieldValidation=Strict";
    session.client.patch(&format!("{path}?{query}"), PatchType::Merge, &patch).await?;
    Ok(format!("{} configured", resource.label(name)))
}

fn with_last_applied(manifest: &Tree) -> anyhow::Result<Tree> {
    let text = serde_json::to_string(manifest).context("writing a manifest as JSON")?;
    let mut wanted = manifest.clone();
    if !wanted["metadata"]["annotations"].is_object() {
        wanted["metadata"]["annotations"] = Tree::Object(Map::new());
    }
    wanted["metadata"]["annotations"][LAST_APPLIED] = Tree::String(format!("{text}\n"));
    Ok(wanted)
}

/// The merge patch that brings `current` to what `wanted` says, and removes what `original` said and `wanted` no
/// longer does.
fn three_way(original: &Tree, wanted: &Tree, current: &Tree) -> Tree {
    let (Some(wanted), Some(current)) = (wanted.as_object(), current.as_object()) else { return wanted.clone() };
    let mut patch = Map::new();
    for (key, value) in wanted {
        let now = current.get(key).unwrap_or(&Tree::Null);
        if value.is_object() && now.is_object() {
            let nested = three_way(&original[key], value, now);
            if nested.as_object().is_some_and(|nested| !nested.is_empty()) {
                patch.insert(key.clone(), nested);
            }
        } else if !covers(now, value) {
            patch.insert(key.clone(), value.clone());
        }
    }
    for key in original.as_object().into_iter().flat_map(Map::keys) {
        if !wanted.contains_key(key) && current.contains_key(key) {
            patch.insert(key.clone(), Tree::Null);
        }
    }
    Tree::Object(patch)
}

/// Whether everything that `wanted` says already holds in `current`, which may say more (defaults).
fn covers(current: &Tree, wanted: &Tree) -> bool {
    match (current, wanted) {
        (Tree::Object(current), Tree::Object(wanted)) => {
            wanted.iter().all(|(key, value)| current.get(key).is_some_and(|current| covers(current, value)))
        }
        (Tree::Array(current), Tree::Array(wanted)) => {
            current.len() == wanted.len() && current.iter().zip(wanted).all(|(current, wanted)| covers(current, wanted))
        }
        _ => current == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_three_way_patch_removes_adds_and_leaves_alone() {
        let original = json!({"a": 1, "gone": 1, "nested": {"old": 1, "kept": 1}});
        let wanted = json!({"a": 2, "nested": {"kept": 1, "new": 1}, "list": [{"x": 1}]});
        let current = json!({"a": 1, "gone": 1, "others": 1, "nested": {"old": 1, "kept": 1}, "list": [{"x": 1, "defaulted": true}]});
        assert_eq!(
            three_way(&original, &wanted, &current),
            json!({"a": 2, "nested": {"new": 1, "old": null}, "gone": null})
        );
        assert_eq!(
            three_way(
                &wanted,
                &wanted,
                &json!({"a": 2, "nested": {"kept": 1, "new": 1}, "list": [{"x": 1}], "more": 1})
            ),
            json!({})
        );
    }
}
