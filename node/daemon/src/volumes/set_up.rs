//! Makes a pod's volumes hold what they should.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use dhow_agent::volumes::{self, Content};
use dhow_types::{Chain, Uid};
use k8s_openapi::api::core::v1::Pod;

use super::{DiskError, in_memory, write_files};
use crate::layout::Layout;
use crate::runner::Shared;
use crate::volumes::host_path::HostPaths;

/// Makes the pod's volumes hold what they should; gives where each lies.
pub(crate) async fn set_up(
    shared: &Shared,
    uid: &Uid,
    pod: &Pod,
    ip: IpAddr,
) -> Result<BTreeMap<String, PathBuf>, String> {
    if pod.spec.as_ref().is_none_or(|s| s.volumes.as_ref().is_none_or(Vec::is_empty)) {
        return Ok(BTreeMap::new());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let references = volumes::references(pod);
    let mut objects = shared.objects.fetch(namespace, &references).await?;
    objects.tokens = shared.tokens.of(uid, pod, references.tokens).await?;
    let plans = volumes::plan(pod, &shared.place(ip), &objects).map_err(|err| err.to_string())?;
    let node = Disk { layout: shared.layout.clone(), host_paths: shared.host_paths.clone() };
    let uid = uid.clone();
    let _permit = shared.disk.acquire().await.expect("the semaphore is never closed");
    let prepared = tokio::task::spawn_blocking(move || {
        let mut prepared = BTreeMap::new();
        for plan in plans {
            let path = node
                .prepare(&uid, &plan.name, &plan.content)
                .map_err(|err| format!("MountVolume.SetUp failed for volume \"{}\" : {}", plan.name, Chain(&err)))?;
            prepared.insert(plan.name, path);
        }
        Ok(prepared)
    });
    prepared.await.unwrap_or_else(|err| Err(format!("preparing volumes broke off: {err}")))
}

/// Where volumes may lie.
struct Disk {
    layout: Layout,
    host_paths: HostPaths,
}

impl Disk {
    /// Makes the volume's content be there; gives the directory (or file) to mount. An `emptyDir` is made only when it
    /// is mounted.
    fn prepare(&self, uid: &Uid, name: &str, content: &Content) -> Result<PathBuf, DiskError> {
        let own = || self.layout.volume(uid, name).ok_or_else(|| DiskError::BadName(name.to_owned()));
        match content {
            Content::Empty { in_memory: false } => own(),
            Content::Empty { in_memory: true } => {
                let (root, dir) = self.layout.memory_volume(uid, name).ok_or(DiskError::NoMemory)?;
                in_memory::make(&root, &dir).map_err(|_| DiskError::NoMemory)?;
                Ok(dir)
            }
            Content::Files(files) => {
                let dir = own()?;
                write_files(&dir, files)?;
                Ok(dir)
            }
            Content::Local { handle } => {
                self.layout.local_volume(handle).ok_or_else(|| DiskError::BadName(handle.clone()))
            }
            Content::HostPath { path, kind } => self.host_paths.open(path, kind),
        }
    }
}
