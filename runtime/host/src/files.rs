//! The directories that a guest sees. Those of volumes are opened before it starts, so that a bad one is noticed; those
//! that every container has and hardly any looks at, when it first asks what there is.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use dhow_runtime_contract::{Mount, Scratch};
use wasmtime::component::{HasData, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::guest::{Guest, SetupError};

/// The directories of one container, shared by its instances.
#[derive(Clone)]
pub(crate) struct Files {
    mounted: WasiFilesystemCtx,
    late: Option<Arc<Late>>,
}

/// What is opened when the first instance asks.
struct Late {
    mounts: Vec<Mount>,
    scratch: Vec<Scratch>,
    opened: OnceLock<WasiFilesystemCtx>,
}

impl Files {
    /// Opens the mounts.
    pub(crate) fn open(mounts: Vec<Mount>, scratch: Vec<Scratch>) -> Result<Self, SetupError> {
        let mounted = open(&mounts)?;
        let late = (!scratch.is_empty()).then(|| Arc::new(Late { mounts, scratch, opened: OnceLock::new() }));
        Ok(Self { mounted, late })
    }

    /// What an instance sees that has not asked yet.
    pub(crate) fn mounted(&self) -> WasiFilesystemCtx {
        self.mounted.clone()
    }

    /// What an instance sees.
    fn all(&self) -> WasiFilesystemCtx {
        let Some(late) = &self.late else { return self.mounted() };
        // A few small files, once a container: not worth the way to another thread and back.
        late.opened.get_or_init(|| late.open().unwrap_or_else(|| self.mounted())).clone()
    }
}

impl Late {
    /// `None` if the host's disk refuses: a program can do without these directories.
    fn open(&self) -> Option<WasiFilesystemCtx> {
        for scratch in &self.scratch {
            if let Err(error) = make(scratch) {
                tracing::warn!(path = %scratch.host.display(), %error, "a container goes without a directory");
                return None;
            }
        }
        let scratch = self.scratch.iter().map(|s| Mount {
            host: s.host.clone(),
            guest: s.guest.clone(),
            read_only: false,
            volume: None,
        });
        let all: Vec<_> = self.mounts.iter().cloned().chain(scratch).collect();
        match open(&all) {
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::warn!(%error, "a container goes without a directory");
                None
            }
        }
    }
}

/// Makes the directory and those of its files that are not there.
fn make(scratch: &Scratch) -> io::Result<()> {
    std::fs::create_dir_all(&scratch.host)?;
    for (name, content) in &scratch.files {
        match std::fs::File::create_new(scratch.host.join(name)) {
            Ok(mut file) => io::Write::write_all(&mut file, content.as_bytes())?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(mounts: &[Mount]) -> Result<WasiFilesystemCtx, SetupError> {
    let mut builder = WasiCtxBuilder::new();
    for mount in mounts {
        let failed = |detail: String| {
            tracing::debug!(host = %mount.host.display(), detail, "a mount cannot be opened");
            SetupError::Mount { guest: mount.guest.clone(), detail }
        };
        let is_dir = |host: &Path| std::fs::metadata(host).map(|found| found.is_dir());
        if !is_dir(&mount.host).map_err(|e| failed(e.to_string()))? {
            return Err(failed(io::Error::from(io::ErrorKind::NotADirectory).to_string()));
        }
        let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        builder.preopened_dir(&mount.host, &mount.guest, perms).map_err(|e| failed(e.root_cause().to_string()))?;
    }
    Ok(builder.build().filesystem().clone())
}

/// What the interface `preopens` acts on.
pub(crate) struct Preopens<'a>(&'a mut Guest);

impl Guest {
    pub(crate) fn preopens(&mut self) -> Preopens<'_> {
        Preopens(self)
    }
}

impl Preopens<'_> {
    /// The directories that the guest sees, each time with new handles.
    pub(crate) fn directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let all = self.0.files.all();
        let mut view = self.0.filesystem();
        *view.ctx = all;
        preopens::Host::get_directories(&mut view)
    }
}

impl preopens::Host for Preopens<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        self.directories()
    }
}

pub(crate) struct Directories;

impl HasData for Directories {
    type Data<'a> = Preopens<'a>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_must_be_a_directory_and_the_message_does_not_name_the_hosts_path() {
        let mount = |host: &str| Mount { host: host.into(), guest: "/x".into(), read_only: true, volume: None };
        assert!(open(&[mount("/")]).is_ok());
        for host in ["/does/not/exist", "/dev/null"] {
            let Err(error) = open(&[mount(host)]) else { panic!("{host} was mounted") };
            let message = error.to_string();
            assert!(message.contains("`/x`") && !message.contains(host), "{message}");
        }
    }

    #[test]
    fn scratch_directories_are_made_when_they_are_looked_for_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("a/b");
        let scratch = Scratch {
            host: host.clone(),
            guest: "/etc".into(),
            files: vec![("hosts".into(), "one".into()), ("hostname".into(), "two".into())],
        };
        let files = Files::open(Vec::new(), vec![scratch]).unwrap();
        files.mounted();
        assert!(!host.exists(), "nobody has looked");
        std::fs::create_dir_all(&host).unwrap();
        std::fs::write(host.join("hosts"), "kept").unwrap();
        files.all();
        let read = |name| std::fs::read_to_string(host.join(name)).unwrap();
        assert_eq!((read("hosts").as_str(), read("hostname").as_str()), ("kept", "two"));
    }
}
