//! Images and the programs made of them.

use dhow_agent::{PullFault, PulledImage, StartFault};
use dhow_client::Client;
use dhow_engine::{Engine, LoadError, Program};
use dhow_image::{Image, PullError, Store};
use dhow_runtime_contract::PullPolicy;
use dhow_types::Chain;
use tokio::sync::Semaphore;

use crate::flights::Flights;
use crate::view::Located;

/// Different images that are fetched at the same time; more would share the same line.
const PULLS_MAX: usize = 4;

/// What a pull found, to be shared by all who asked.
type Pulled = Result<(Image, u64), PullFault>;

/// Fetches images and loads programs; those who need the same one at the same time share the work.
pub(crate) struct Images {
    store: Store,
    client: Client,
    engine: Engine,
    allow_files: bool,
    pulls: Flights<(String, u8), Pulled>,
    pulling: Semaphore,
}

impl Images {
    pub(crate) fn new(store: Store, client: Client, engine: Engine, allow_files: bool) -> Self {
        Self { store, client, engine, allow_files, pulls: Flights::new(), pulling: Semaphore::new(PULLS_MAX) }
    }

    /// Has the image on this node.
    pub(crate) async fn pull(&self, name: &str, policy: PullPolicy) -> Result<(Image, PulledImage), PullFault> {
        let key = (name.to_owned(), policy as u8);
        let (image, took_ms) = self.pulls.get(&key, || self.pull_now(name, policy)).await?;
        let pulled = PulledImage {
            image_id: image_id(name, &image.digest),
            size: image.size,
            already_present: image.already_present,
            took_ms,
        };
        Ok((image, pulled))
    }

    async fn pull_now(&self, name: &str, policy: PullPolicy) -> Pulled {
        let began = tokio::time::Instant::now();
        let _permit = self.pulling.acquire().await.expect("the semaphore is never closed");
        match self.store.pull(name, policy, &self.client, self.allow_files).await {
            Ok(image) => Ok((image, u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))),
            Err(PullError::InvalidName { why, .. }) => Err(PullFault::InvalidName(why)),
            Err(PullError::NotPresent { .. }) => Err(PullFault::NotPresent),
            Err(err) => Err(PullFault::Failed(Chain(&err).to_string())),
        }
    }

    /// A program that lies in a container's files.
    pub(crate) async fn in_container(&self, file: Located) -> Result<Image, String> {
        let path = tokio::task::spawn_blocking(move || file.real()).await.map_err(|err| err.to_string())?;
        let path = path.map_err(|err| format!("the program cannot be read: {err}"))?;
        let name = format!("file://{}", path.display());
        let pulled = self.store.pull(&name, PullPolicy::IfNotPresent, &self.client, true).await;
        pulled.map_err(|err| {
            // Where it lies on the node is not for the pod's owner to know.
            tracing::debug!(path = %path.display(), err = %Chain(&err), "a program in a container cannot be read");
            "the program cannot be read".to_owned()
        })
    }

    /// The program of an image. The engine sees to it that those who use the same one share it.
    pub(crate) async fn program(&self, image: &Image) -> Result<Program, StartFault> {
        self.engine.load(&image.path, &image.digest).await.map_err(|err| match err {
            LoadError::Io { .. } => StartFault::Run(Chain(&err).to_string()),
            _ => StartFault::Create(Chain(&err).to_string()),
        })
    }
}

/// `imageID`: the image's name without its tag, and its digest.
fn image_id(name: &str, digest: &str) -> String {
    let name = name.split('@').next().unwrap_or_default();
    let tag_at = name.rfind(':').filter(|at| *at > name.rfind('/').unwrap_or(0));
    format!("{}@{digest}", &name[..tag_at.unwrap_or(name.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_id_has_no_tag() {
        for (name, expected) in [
            ("hello:1.0", "hello@sha256:a"),
            ("r:5000/team/hello", "r:5000/team/hello@sha256:a"),
            ("r:5000/hello:1@sha256:b", "r:5000/hello@sha256:a"),
            ("file:///a/x.wasm", "file:///a/x.wasm@sha256:a"),
        ] {
            assert_eq!(image_id(name, "sha256:a"), expected);
        }
    }
}
