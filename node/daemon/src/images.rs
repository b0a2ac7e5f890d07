//! Images and the programs made of them.

use std::collections::BTreeSet;

use dhow_agent::{PullFault, PulledImage, StartFault};
use dhow_client::Client;
use dhow_engine::{Engine, LoadError, Program};
use dhow_image::{Defaults, Image, Keyring, PullError, Registries, Sources, Store};
use dhow_runtime_contract::{ContainerSpec, PullPolicy};
use dhow_types::Chain;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::Semaphore;

use crate::flights::Flights;
use crate::objects::ObjectReader;
use crate::toolbox::Toolbox;
use crate::view::Located;

/// Different images that are fetched at the same time; more would share the same line.
const PULLS_MAX: usize = 4;
/// The keys of pull secrets: the form of today, and the one before it.
const CONFIG_JSON: &str = ".dockerconfigjson";
const CONFIG: &str = ".dockercfg";

/// What a pull found, to be shared by all who asked.
type Pulled = Result<(Image, u64), PullFault>;

/// Which pulls are one: the image, the policy, and whose secrets are used (a namespace and their names).
type Key = (String, u8, String, BTreeSet<String>);

/// Fetches images and loads programs; those who need the same one at the same time share the work.
pub(crate) struct Images {
    store: Store,
    client: Client,
    registries: Registries,
    engine: Engine,
    allow_files: bool,
    pulls: Flights<Key, Pulled>,
    pulling: Semaphore,
    toolbox: Toolbox,
}

/// One image for one container.
pub(crate) struct Wanted<'a> {
    pub(crate) image: &'a str,
    pub(crate) policy: PullPolicy,
    pub(crate) pod: &'a Pod,
}

impl Images {
    pub(crate) fn new(
        store: Store,
        client: Client,
        engine: Engine,
        (registries, allow_files): (Registries, bool),
    ) -> Self {
        let (pulls, pulling) = (Flights::new(), Semaphore::new(PULLS_MAX));
        let toolbox = Toolbox::new(store.dir());
        Self { store, client, registries, engine, allow_files, pulls, pulling, toolbox }
    }

    /// The node's store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// When images are removed.
    pub(crate) fn thresholds(&self) -> dhow_image::Thresholds {
        self.registries.thresholds()
    }

    /// Has the image on this node. Says so by `began` before a registry is asked.
    pub(crate) async fn pull(
        &self,
        objects: &ObjectReader,
        wanted: Wanted<'_>,
        began: impl Future<Output = ()> + Send,
    ) -> Result<(Image, PulledImage), PullFault> {
        let Wanted { image: name, policy, pod } = wanted;
        if dhow_toolbox::is_image(name) {
            return self.toolbox.pulled().await.map_err(|err| PullFault::Failed(err.to_string()));
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let names = secret_names(pod);
        let secrets = if names.is_empty() { Keyring::default() } else { keyring(objects, &namespace, &names).await };
        let asks = self.store.would_ask(name, policy, self.sources(&secrets)).await;
        if asks {
            began.await;
        }
        let key = (name.to_owned(), policy as u8, if names.is_empty() { String::new() } else { namespace }, names);
        let (image, took_ms) = self.pulls.get(&key, || self.pull_now(name, policy, &secrets, asks)).await?;
        let pulled = PulledImage {
            image_id: image_id(name, &image.manifest),
            size: image.size,
            already_present: image.already_present,
            took_ms,
        };
        Ok((image, pulled))
    }

    fn sources<'a>(&'a self, secrets: &'a Keyring) -> Sources<'a> {
        Sources { client: Some(&self.client), registries: &self.registries, secrets, allow_files: self.allow_files }
    }

    async fn pull_now(&self, name: &str, policy: PullPolicy, secrets: &Keyring, asks: bool) -> Pulled {
        let began = tokio::time::Instant::now();
        // What is here does not wait for what is being fetched.
        let _permit =
            if asks { Some(self.pulling.acquire().await.expect("the semaphore is never closed")) } else { None };
        match self.store.pull(name, policy, self.sources(secrets)).await {
            Ok(image) => Ok((image, u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))),
            Err(PullError::InvalidName { why, .. }) => Err(PullFault::InvalidName(why)),
            Err(PullError::NotPresent { .. }) => Err(PullFault::NotPresent),
            Err(err @ PullError::Unsigned { .. }) => Err(PullFault::Unsigned(Chain(&err).to_string())),
            Err(err) => Err(PullFault::Failed(Chain(&err).to_string())),
        }
    }

    /// The image that every node has.
    pub(crate) async fn toolbox(&self) -> Result<Image, String> {
        let image = self.toolbox.image().await;
        image.map_err(|err| format!("the toolbox cannot be written to the node's disk: {err}"))
    }

    /// A program that lies in a container's files.
    pub(crate) async fn in_container(&self, file: Located) -> Result<Image, String> {
        let path = tokio::task::spawn_blocking(move || file.real()).await.map_err(|err| err.to_string())?;
        let path = path.map_err(|err| format!("the program cannot be read: {err}"))?;
        let name = format!("file://{}", path.display());
        // What the container may do, its files may: they are no images, and no policy is for them.
        let (registries, secrets) = (Registries::default(), Keyring::default());
        let sources =
            Sources { client: Some(&self.client), registries: &registries, secrets: &secrets, allow_files: true };
        let pulled = self.store.pull(&name, PullPolicy::IfNotPresent, sources).await;
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

/// The pull secrets that a pod names; those of its ServiceAccount stand there since it was made.
fn secret_names(pod: &Pod) -> BTreeSet<String> {
    let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    named.map(|one| one.name.clone()).filter(|name| !name.is_empty()).collect()
}

/// What these secrets hold. One that is missing or malformed is as good as none: the registry may let anybody in.
async fn keyring(objects: &ObjectReader, namespace: &str, names: &BTreeSet<String>) -> Keyring {
    let mut keyring = Keyring::default();
    for name in names {
        let data = match objects.secret(namespace, name).await {
            Ok(Some(entries)) => entries,
            Ok(None) => {
                tracing::debug!(namespace, name, "a pull secret does not exist");
                continue;
            }
            Err(why) => {
                tracing::warn!(namespace, name, why, "a pull secret could not be read");
                continue;
            }
        };
        let added = match (data.data.get(CONFIG_JSON), data.data.get(CONFIG)) {
            (Some(text), _) => keyring.add_config_json(text),
            (None, Some(text)) => keyring.add_config(text),
            (None, None) => Ok(()),
        };
        if let Err(err) = added {
            tracing::warn!(namespace, name, %err, "a pull secret is of no use");
        }
    }
    keyring
}

/// What an image says about how it is started holds where the pod says nothing: as with every container runtime,
/// `command` replaces all of its words, and `args` those behind its entry point.
pub(crate) fn apply_defaults(defaults: &Defaults, container: &Container, spec: &mut ContainerSpec) {
    let given = |words: &Option<Vec<String>>| words.as_ref().is_some_and(|words| !words.is_empty());
    if !given(&container.command) {
        let own = if given(&container.args) { &[][..] } else { &defaults.args[..] };
        // Behind the program's name.
        let words = defaults.entrypoint.iter().cloned();
        let tail = spec.args.split_off(spec.args.len().min(1));
        spec.args.extend(words.chain(own.iter().cloned()).chain(tail));
    }
    let missing = defaults.env.iter().filter(|(name, _)| !spec.env.iter().any(|(given, _)| given == name));
    let missing: Vec<_> = missing.cloned().collect();
    spec.env.splice(0..0, missing);
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
    fn a_pod_says_more_than_its_image() {
        let defaults = Defaults {
            entrypoint: vec!["-e".to_owned()],
            args: vec!["a".to_owned()],
            env: vec![("A".to_owned(), "image".to_owned()), ("B".to_owned(), "image".to_owned())],
        };
        for (fields, expected) in [
            (serde_json::json!({}), &["hello", "-e", "a"][..]),
            (serde_json::json!({"args": ["x"]}), &["hello", "-e", "x"]),
            (serde_json::json!({"command": ["run"]}), &["run"]),
            (serde_json::json!({"command": ["run"], "args": ["x"]}), &["run", "x"]),
        ] {
            let mut tree = serde_json::json!({"name": "c", "image": "hello:1"});
            tree.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let container: Container = serde_json::from_value(tree).unwrap();
            let env = vec![("B".to_owned(), "pod".to_owned())];
            let pod = Pod::default();
            let mut spec = dhow_agent::spec::container_spec(&pod, &container, 0, env, Default::default());
            apply_defaults(&defaults, &container, &mut spec);
            assert_eq!(spec.args, expected);
            let env: Vec<_> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(env, ["A=image", "B=pod"]);
        }
    }

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
