//! Removes the content of volumes on this node's disk whose objects were deleted, then lets the objects go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dhow_agent::volumes::{DATA_FINALIZER, let_go};
use dhow_api::Tree;
use dhow_client::{Client, Event, PatchType, resource_path};
use dhow_tasks::Stop;
use dhow_types::Chain;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;

use crate::runner::Shared;

/// The rest before a volume that could not be let go is tried again: a pod still has it, or the disk or the API server
/// said no.
const RETRY: Duration = Duration::from_secs(5);

/// Watches volumes until told to stop.
pub(crate) async fn reclaim_volumes(shared: Arc<Shared>, stop: Stop) {
    let mut volumes = shared.client.watch("/api/v1/persistentvolumes");
    // Those that are still to be let go, by name.
    let mut due: BTreeMap<String, Tree> = BTreeMap::new();
    loop {
        let retry = async {
            match due.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(RETRY).await,
            }
        };
        let event = tokio::select! {
            () = stop.stopped() => return,
            event = volumes.next() => Some(event),
            () = retry => None,
        };
        match event {
            Some(Event::Restarted(list)) => {
                due = list.into_iter().map(|tree| (dhow_api::meta::name(&tree).to_owned(), tree)).collect();
            }
            Some(Event::Applied(tree)) => {
                due.insert(dhow_api::meta::name(&tree).to_owned(), tree);
            }
            Some(Event::Deleted(tree)) => {
                due.remove(dhow_api::meta::name(&tree));
            }
            None => {}
        }
        for (name, tree) in std::mem::take(&mut due) {
            let Some((handle, remove)) = wanted(&shared, &tree) else { continue };
            match stop.or(reclaim(&shared, &name, &tree, &handle, remove)).await {
                None => return,
                Some(Ok(())) => tracing::info!(volume = name, remove, "let a deleted volume go"),
                Some(Err(why)) => {
                    tracing::debug!(volume = name, why, "a deleted volume is not let go yet");
                    due.insert(name, tree);
                }
            }
        }
    }
}

/// The handle of a volume that is to be let go, and whether its content is to be removed.
fn wanted(shared: &Shared, tree: &Tree) -> Option<(String, bool)> {
    let volume = <PersistentVolume as serde::Deserialize>::deserialize(tree).ok()?;
    let_go(&volume, shared.node.as_str())
}

async fn reclaim(shared: &Shared, name: &str, tree: &Tree, handle: &str, remove: bool) -> Result<(), String> {
    if remove {
        let dir = shared.layout.local_volume(handle).ok_or_else(|| format!("bad volume handle `{handle}`"))?;
        if shared.sandboxes.uses(&dir) {
            return Err("a pod on this node still has it".to_owned());
        }
        let removed = tokio::task::spawn_blocking(move || remove_dir(&dir)).await;
        removed.map_err(|err| err.to_string())?.map_err(|err| err.to_string())?;
    }
    release(&shared.client, name, tree).await
}

/// Whatever links are in it are removed, not followed. It goes by another name first, so that no half of it is found.
fn remove_dir(dir: &Path) -> std::io::Result<()> {
    let going = PathBuf::from(format!("{}.deleted", dir.display()));
    // What an interrupted removal left.
    if_there(std::fs::remove_dir_all(&going))?;
    if_there(std::fs::rename(dir, &going))?;
    if_there(std::fs::remove_dir_all(&going))
}

fn if_there(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

async fn release(client: &Client, name: &str, tree: &Tree) -> Result<(), String> {
    let kept: Vec<&str> =
        dhow_api::meta::finalizers(tree).into_iter().filter(|finalizer| *finalizer != DATA_FINALIZER).collect();
    let version = dhow_api::meta::resource_version(tree);
    let patch = json!({"metadata": {"finalizers": kept, "resourceVersion": version}});
    let path = resource_path("", "v1", "persistentvolumes", None, Some(name));
    match client.patch(&path, PatchType::Merge, &patch).await {
        // It is gone, or its new form comes by the watch.
        Err(err) if err.is(404) || err.is(409) => Ok(()),
        result => result.map(drop).map_err(|err| Chain(&err).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_links_lead_to_stays_and_half_a_removal_is_done_again() {
        let root = tempfile::tempdir().unwrap();
        let (volume, other) = (root.path().join("v"), root.path().join("other"));
        for dir in [&volume, &other, &root.path().join("v.deleted")] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("file"), "x").unwrap();
        }
        std::os::unix::fs::symlink(&other, volume.join("link")).unwrap();
        remove_dir(&volume).unwrap();
        assert!(!volume.exists() && !root.path().join("v.deleted").exists());
        assert!(other.join("file").exists());
        std::fs::create_dir(root.path().join("v.deleted")).unwrap();
        remove_dir(&volume).unwrap();
        assert!(!root.path().join("v.deleted").exists());
        remove_dir(&volume).unwrap();
    }
}
