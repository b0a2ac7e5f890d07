//! The toolbox on this node: the image that no registry has, and what its `ps` and `top` show.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_agent::{ContainerRef, PulledImage};
use dhow_files::Access;
use dhow_image::{Defaults, Image};
use dhow_runtime_contract::Mount;
use k8s_openapi::api::core::v1::Pod;
use tokio::fs;
use tokio::sync::OnceCell;

use crate::runner::Shared;
use crate::sandbox::Sandbox;

/// How often the state of a pod's containers is written anew while somebody may look.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The program, as an image of the node. It is written to the disk when it is first asked for: compiled code is kept by
/// files and their digests.
pub(crate) struct Toolbox {
    file: PathBuf,
    image: OnceCell<Image>,
}

impl Toolbox {
    /// To be kept in this directory.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { file: dir.join("toolbox.wasm"), image: OnceCell::new() }
    }

    /// The image.
    pub(crate) async fn image(&self) -> io::Result<Image> {
        let image = self.image.get_or_try_init(|| async {
            let file = self.file.clone();
            let write = move || dhow_files::write(&file, dhow_toolbox::WASM, Access::Public);
            tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
            let digest = dhow_toolbox::digest();
            Ok::<_, io::Error>(Image {
                reference: dhow_toolbox::IMAGE.to_owned(),
                manifest: digest.clone(),
                digest,
                path: self.file.clone(),
                size: dhow_toolbox::WASM.len() as u64,
                already_present: true,
                defaults: Defaults::default(),
            })
        });
        image.await.cloned()
    }

    /// The image, as something that was pulled.
    pub(crate) async fn pulled(&self) -> io::Result<(Image, PulledImage)> {
        let image = self.image().await?;
        let name = dhow_toolbox::IMAGE.trim_end_matches(":latest");
        let pulled = PulledImage {
            image_id: format!("{name}@{}", image.digest),
            size: image.size,
            already_present: true,
            took_ms: 0,
        };
        Ok((image, pulled))
    }
}

/// Whether a container's program is the toolbox, which hears a terminal's keys as bytes.
pub(crate) fn runs_in(pod: &Pod, container: &str) -> bool {
    let image = dhow_agent::spec::container(pod, container).and_then(|spec| spec.image.as_deref());
    image.is_some_and(dhow_toolbox::is_image)
}

/// Writes what the containers of the pod do now; gives the directory to mount. Nothing of it is worth failing for.
pub(crate) async fn tell(shared: &Shared, at: &ContainerRef, attempt: u32) -> Option<Mount> {
    let dir = shared.layout.private(&at.uid, &at.container, attempt)?.join("state");
    let text = shared.sandboxes.with(&at.uid, |sandbox| state(sandbox))?;
    if let Err(err) = write(&dir, text).await {
        tracing::debug!(%err, "the state of a pod's containers cannot be written for its toolbox");
        return None;
    }
    Some(Mount { host: dir, guest: dhow_toolbox::STATE_DIR.to_owned(), read_only: true, volume: None })
}

/// By a new name each time: who reads sees the old state or the new one. Nobody misses it after a crash.
async fn write(dir: &Path, text: String) -> io::Result<()> {
    let (file, new) = (dir.join(dhow_toolbox::STATE_FILE), dir.join("next"));
    fs::create_dir_all(dir).await?;
    fs::write(&new, text).await?;
    fs::rename(new, file).await
}

fn state(sandbox: &Sandbox) -> String {
    let spec = sandbox.pod.spec.as_ref();
    let all = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let lines = all.map(|container| {
        let (name, image) = (&container.name, container.image.as_deref().unwrap_or_default());
        match sandbox.running.get(name.as_str()) {
            Some(running) => {
                let usage = running.container.usage();
                format!("{name}\trunning\t{}\t{}\t{image}\n", usage.cpu_ns / 1_000_000, usage.memory_bytes)
            }
            None => format!("{name}\tstopped\t0\t0\t{image}\n"),
        }
    });
    lines.collect()
}

/// Writes it again and again, until dropped.
pub(crate) async fn keep_telling(shared: &Shared, at: &ContainerRef) -> Infallible {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        match shared.sandboxes.running(&at.uid, &at.container) {
            Some(running) => drop(tell(shared, at, running.attempt).await),
            None => std::future::pending().await,
        }
    }
}
