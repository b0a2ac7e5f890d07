//! ConfigMaps and Secrets, fetched when a pod needs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_agent::env::{Claimed, Entries, Objects, References};
use dhow_api::Tree;
use dhow_client::{Client, resource_path};
use dhow_types::Chain;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::flights::Flights;

/// Requests that are under way at the same time; the others are pods that need other objects, and wait.
const READS_MAX: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    ConfigMap,
    Secret,
}

type Key = (Source, String, String);
pub(crate) type Found = Result<Option<Arc<Entries>>, String>;

/// Fetches ConfigMaps and Secrets; those who need the same one at the same time share a request.
pub(crate) struct ObjectReader {
    client: Client,
    flights: Flights<Key, Found>,
    reads: Semaphore,
}

impl ObjectReader {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, flights: Flights::new(), reads: Semaphore::new(READS_MAX) }
    }

    /// Those of the objects that exist; an error if the API server cannot be asked.
    pub(crate) async fn fetch(&self, namespace: &str, refs: &References) -> Result<Objects, String> {
        let mut objects = Objects::default();
        for name in &refs.config_maps {
            if let Some(entries) = self.one(Source::ConfigMap, namespace, name).await? {
                objects.config_maps.insert(name.clone(), entries);
            }
        }
        for name in &refs.secrets {
            if let Some(entries) = self.one(Source::Secret, namespace, name).await? {
                objects.secrets.insert(name.clone(), entries);
            }
        }
        for name in &refs.claims {
            if let Some(claimed) = self.claim(namespace, name).await? {
                objects.claims.insert(name.clone(), claimed);
            }
        }
        Ok(objects)
    }

    /// A claim and its volume. Hardly two pods have one in common: nothing is shared here.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Claimed>, String> {
        let path = resource_path("", "v1", "persistentvolumeclaims", Some(namespace), Some(name));
        let Some(claim): Option<PersistentVolumeClaim> = self.object(&path).await? else { return Ok(None) };
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let volume = match volume {
            Some(name) => self.object(&resource_path("", "v1", "persistentvolumes", None, Some(&name))).await?,
            None => None,
        };
        Ok(Some(Claimed { claim, volume }))
    }

    async fn object<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, String> {
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        match self.client.get(path).await {
            Ok(tree) => serde_json::from_value(tree).map(Some).map_err(|err| format!("reading `{path}`: {err}")),
            Err(err) if err.is(404) => Ok(None),
            Err(err) => Err(format!("reading `{path}`: {}", Chain(&err))),
        }
    }

    /// One secret, if it exists.
    pub(crate) async fn secret(&self, namespace: &str, name: &str) -> Found {
        self.one(Source::Secret, namespace, name).await
    }

    async fn one(&self, source: Source, namespace: &str, name: &str) -> Found {
        let key = (source, namespace.to_owned(), name.to_owned());
        self.flights.get(&key, || self.read(source, namespace, name)).await
    }

    async fn read(&self, source: Source, namespace: &str, name: &str) -> Found {
        let plural = match source {
            Source::ConfigMap => "configmaps",
            Source::Secret => "secrets",
        };
        let _permit = self.reads.acquire().await.expect("the semaphore is never closed");
        match self.client.get(&resource_path("", "v1", plural, Some(namespace), Some(name))).await {
            Ok(tree) => Ok(Some(Arc::new(entries(source, &tree)))),
            Err(err) if err.is(404) => Ok(None),
            Err(err) => Err(format!("reading {plural} \"{name}\": {}", Chain(&err))),
        }
    }
}

fn entries(source: Source, tree: &Tree) -> Entries {
    let texts = |field: &str| -> Vec<(String, String)> {
        let map = tree.get(field).and_then(Tree::as_object).into_iter().flatten();
        map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    let decoded = |field: &str| -> BTreeMap<String, Vec<u8>> {
        texts(field).into_iter().filter_map(|(key, value)| Some((key, STANDARD.decode(value).ok()?))).collect()
    };
    match source {
        Source::ConfigMap => Entries {
            data: texts("data").into_iter().map(|(key, value)| (key, value.into_bytes())).collect(),
            binary: decoded("binaryData"),
        },
        Source::Secret => Entries { data: decoded("data"), binary: BTreeMap::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_are_decoded() {
        let map = entries(Source::ConfigMap, &json!({"data": {"a": "1"}, "binaryData": {"b": "AAE="}}));
        assert_eq!((map.data["a"].as_slice(), map.binary["b"].as_slice()), (&b"1"[..], &[0, 1][..]));
        let secret = entries(Source::Secret, &json!({"data": {"word": "eA==", "bad": "?"}}));
        assert_eq!(secret.data.into_iter().collect::<Vec<_>>(), [("word".to_owned(), b"x".to_vec())]);
    }
}
