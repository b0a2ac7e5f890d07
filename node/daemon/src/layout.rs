//! Where things lie in the data directory.
//!
//! ```text
//! images/                                   what was pulled
//! compiled/                                 compiled code
//! identity/                                 this node's key and certificate, the cluster's CA
//! lock                                      the agent that the directory belongs to
//! servers                                   the addresses of the control nodes, one a line
//! pods/<uid>/volumes/<volume>/              volumes that end with their pod
//! volumes/<handle>/                         volumes that outlive pods
//! pods/<uid>/containers/<container>/<n>/     files of attempt n alone
//! logs/<ns>_<pod>_<uid>/<container>/<n>.log output of attempt n
//! logs/<ns>_<pod>_<uid>/<container>/<n>.core what attempt n left when it trapped, if its pod wants that
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::volumes::in_memory;
use dhow_types::Uid;
use k8s_openapi::api::core::v1::Pod;

/// The data directory of a node.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// Where the logs of a container are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogDir(pub(crate) PathBuf);

impl LogDir {
    /// The log file of an attempt.
    pub(crate) fn file(&self, attempt: u32) -> PathBuf {
        self.0.join(format!("{attempt}.log"))
    }

    /// The core dump of an attempt.
    pub(crate) fn core(&self, attempt: u32) -> PathBuf {
        self.0.join(format!("{attempt}.core"))
    }

    /// The latest core dump.
    pub(crate) fn latest_core(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.0).ok()?;
        let attempt = |name: &str| name.strip_suffix(".core")?.parse().ok();
        entries.flatten().filter_map(|entry| attempt(entry.file_name().to_str()?)).max().map(|of| self.core(of))
    }

    /// The latest attempt that left a log.
    pub(crate) fn latest(&self) -> Option<u32> {
        let entries = std::fs::read_dir(&self.0).ok()?;
        let attempt = |name: &str| name.split_once(".log")?.0.parse().ok();
        entries.flatten().filter_map(|entry| attempt(entry.file_name().to_str()?)).max()
    }

    /// Removes the logs and dumps of attempts before the previous one, as a kubelet does.
    pub(crate) fn prune(&self, attempt: u32) {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| {
                let number = name.split_once(".log").map(|(number, _)| number).or_else(|| name.strip_suffix(".core"));
                number?.parse::<u32>().ok()
            });
            if of.is_some_and(|of| of.saturating_add(1) < attempt) {
                remove(std::fs::remove_file(entry.path()), &entry.path());
            }
        }
    }
}

impl Layout {
    /// The layout under `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The data directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories that are always there.
    pub(crate) fn create(&self) -> io::Result<()> {
        for dir in [self.images(), self.compiled(), self.root.join("pods"), self.root.join("logs")] {
            std::fs::create_dir_all(dir)?;
        }
        Ok(())
    }

    /// The control nodes' addresses.
    pub(crate) fn servers(&self) -> PathBuf {
        self.root.join("servers")
    }

    /// What was pulled.
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Compiled code.
    pub(crate) fn compiled(&self) -> PathBuf {
        self.root.join("compiled")
    }

    /// A volume of a pod; `None` if a name could leave the directory.
    pub(crate) fn volume(&self, uid: &Uid, volume: &str) -> Option<PathBuf> {
        Some(self.root.join("pods").join(component(uid.as_str())?).join("volumes").join(component(volume)?))
    }

    /// A volume that outlives pods; `None` if a name could leave the directory.
    pub(crate) fn local_volume(&self, handle: &str) -> Option<PathBuf> {
        Some(self.root.join("volumes").join(component(handle)?))
    }

    /// A volume of a pod that is kept in memory, behind the directory of all that this agent keeps there; `None` if the
    /// host has no such memory, or a name could leave the directory.
    pub(crate) fn memory_volume(&self, uid: &Uid, volume: &str) -> Option<(PathBuf, PathBuf)> {
        let root = in_memory::root(&self.root)?;
        let dir = root.join(component(uid.as_str())?).join(component(volume)?);
        Some((root, dir))
    }

    /// Removes what a pod kept in memory.
    pub(crate) fn free_memory(&self, uid: &Uid) {
        if let (Some(root), Some(uid)) = (in_memory::root(&self.root), component(uid.as_str())) {
            let path = root.join(uid);
            remove(in_memory::free(&root, &path), &path);
        }
    }

    /// What is made for one attempt of a container alone; `None` if a name could leave the directory.
    pub(crate) fn private(&self, uid: &Uid, container: &str, attempt: u32) -> Option<PathBuf> {
        let pod = self.root.join("pods").join(component(uid.as_str())?);
        Some(pod.join("containers").join(component(container)?).join(attempt.to_string()))
    }

    /// The logs of a container; `None` if a name could leave the directory.
    pub(crate) fn logs(&self, pod: &Pod, container: &str) -> Option<LogDir> {
        let meta = &pod.metadata;
        let name = pod_log_name(meta.namespace.as_deref()?, meta.name.as_deref()?, meta.uid.as_deref()?);
        Some(LogDir(self.root.join("logs").join(component(&name)?).join(component(container)?)))
    }

    /// Removes everything of a pod.
    pub(crate) fn remove_pod(&self, namespace: &str, name: &str, uid: &Uid) {
        self.free_memory(uid);
        for (dir, entry) in [("pods", uid.as_str().to_owned()), ("logs", pod_log_name(namespace, name, uid.as_str()))] {
            if let Some(entry) = component(&entry) {
                let path = self.root.join(dir).join(entry);
                remove(std::fs::remove_dir_all(&path), &path);
            }
        }
    }

    /// What pods left that are not in `known`.
    pub(crate) fn orphans(&self, known: &BTreeSet<String>) -> Vec<PathBuf> {
        let mut orphans = Vec::new();
        for dir in ["pods", "logs"] {
            let Ok(entries) = std::fs::read_dir(self.root.join(dir)) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                // `<uid>`, and `<namespace>_<name>_<uid>`.
                let uid = name.to_str().and_then(|name| name.rsplit('_').next());
                if uid.is_some_and(|uid| !known.contains(uid)) {
                    orphans.push(entry.path());
                }
            }
        }
        let in_memory = in_memory::root(&self.root).and_then(|root| std::fs::read_dir(root).ok());
        let unknown = |name: &std::ffi::OsStr| name.to_str().is_some_and(|uid| !known.contains(uid));
        let entries = in_memory.into_iter().flatten().flatten();
        orphans.extend(entries.filter(|entry| unknown(&entry.file_name())).map(|entry| entry.path()));
        orphans
    }
}

/// Removes what [`Layout::orphans`] found.
pub(crate) fn remove_orphans(orphans: &[PathBuf]) {
    for path in orphans {
        tracing::info!(path = %path.display(), "removing what a deleted pod left");
        remove(std::fs::remove_dir_all(path), path);
    }
}

fn pod_log_name(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

/// The text, if it is one ordinary component of a path.
fn component(text: &str) -> Option<&str> {
    let plain = !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\\', '\0']);
    plain.then_some(text)
}

fn remove(result: io::Result<()>, path: &Path) {
    match result {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %err, "could not remove what a pod left");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        let layout = Layout::new(Path::new("/d"));
        for (uid, volume, ok) in [("u1", "v", true), ("..", "v", false), ("u1", "a/b", false), ("", "v", false)] {
            assert_eq!(layout.volume(&Uid::new(uid), volume).is_some(), ok, "{uid} {volume}");
        }
    }

    #[test]
    fn orphans_go_and_known_pods_stay() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        for path in ["pods/u1/volumes/v", "pods/u2", "logs/ns_web_u1/c", "logs/ns_web_u2/c"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        remove_orphans(&layout.orphans(&BTreeSet::from(["u1".to_owned()])));
        let left = |path: &str| dir.path().join(path).exists();
        assert!(left("pods/u1/volumes/v") && left("logs/ns_web_u1/c"));
        assert!(!left("pods/u2") && !left("logs/ns_web_u2"));
        layout.remove_pod("ns", "web", &Uid::new("u1"));
        assert!(!left("pods/u1") && !left("logs/ns_web_u1"));
    }

    #[test]
    fn the_logs_of_the_two_latest_attempts_stay() {
        let dir = tempfile::tempdir().unwrap();
        let logs = LogDir(dir.path().to_owned());
        for name in ["0.log", "1.log", "1.log.1", "1.core", "2.log", "2.core", "3.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        logs.prune(3);
        assert_eq!((logs.latest(), logs.latest_core()), (Some(3), Some(logs.core(2))));
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["2.core", "2.log", "3.log"]);
    }
}
