//! What the client verbs share: the connection, kinds of resources as people write them, manifests.

use crate::{output, paths};
use anyhow::{Context as _, bail};
use clap::Args;
use dhow_cli_core::selector;
use dhow_cli_core::words::Scope;
pub(crate) use dhow_cli_core::words::{checked_name, targets};
pub(crate) use dhow_client::escape;
use dhow_client::{Client, Config, resource_path};
use serde::Deserialize as _;
use serde_json::Value as Tree;
use std::io::Read as _;
use std::path::{Path, PathBuf};

const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// Options that every verb takes.
#[derive(Args)]
pub(crate) struct Global {
    /// The kubeconfig file; default: $KUBECONFIG, else the one that `dhow up` wrote
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The namespace; default: that of the kubeconfig
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
}

/// A connected client and the namespace that the user means.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// The same, and whether the command line says so.
    pub(crate) scope: Scope,
}

impl Global {
    /// Reads the kubeconfig; nothing is sent yet.
    pub(crate) fn session(&self) -> anyhow::Result<Session> {
        let config = match &self.kubeconfig {
            Some(path) => Config::from_kubeconfig(path)?,
            None => Config::from_env(&paths::kubeconfig(&paths::data_dir()?))?,
        };
        let scope = match self.namespace.as_ref().filter(|name| !name.is_empty()) {
            Some(given) => Scope::Given(checked_name("namespace", given.clone())?),
            None => Scope::Default(checked_name("namespace", config.namespace.clone())?),
        };
        Ok(Session { client: Client::new(config)?, namespace: scope.name().to_owned(), scope })
    }
}

/// A kind of object as the server announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    names: Vec<String>,
    categories: Vec<String>,
}

impl Resource {
    /// `pods`, `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the collection, or of one object; `None` for the namespace means all namespaces.
    pub(crate) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let namespace = namespace.filter(|_| self.namespaced);
        resource_path(&self.group, &self.version, &self.plural, namespace, name)
    }

    /// `deployment.apps/web`, as `kubectl` names objects in its messages.
    pub(crate) fn label(&self, name: &str) -> String {
        let singular = self.kind.to_lowercase();
        if self.group.is_empty() { format!("{singular}/{name}") } else { format!("{singular}.{}/{name}", self.group) }
    }

    /// An object with the kind that its list says of all items, in the usual place at the front.
    pub(crate) fn typed(&self, item: Tree) -> Tree {
        let mut tree = serde_json::json!({"apiVersion": self.api_version(), "kind": self.kind});
        if let (Some(target), Tree::Object(fields)) = (tree.as_object_mut(), item) {
            target.extend(fields);
        }
        tree
    }

    fn answers_to(&self, word: &str) -> bool {
        let (name, group) = match word.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (word, None),
        };
        let group_fits =
            group.is_none_or(|group| group == self.group || group == format!("{}.{}", self.version, self.group));
        group_fits && self.names.iter().any(|own| own == name)
    }
}

/// All kinds that the server offers.
pub(crate) struct Discovery(Vec<Resource>);

impl Discovery {
    /// Asks the server.
    pub(crate) async fn fetch(client: &Client) -> anyhow::Result<Self> {
        let mut resources = Vec::new();
        for path in ["/api", "/apis"] {
            let tree = client.get_as(path, DISCOVERY).await.context("asking the server what it offers")?;
            for group in items(&tree) {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                // The first version is the preferred one.
                if let Some(version) = group["versions"].as_array().and_then(|versions| versions.first()) {
                    resources.extend(read_version(name, version));
                }
            }
        }
        Ok(Self(resources))
    }

    /// The kind that a word such as `po`, `pods`, `deployment.apps` means.
    pub(crate) fn find(&self, word: &str) -> anyhow::Result<&Resource> {
        let lower = word.to_lowercase();
        self.0
            .iter()
            .find(|resource| resource.answers_to(&lower))
            .with_context(|| format!("the server has no resource type `{word}`"))
    }

    /// The kinds that a word means: those of a category such as `all`, or a comma-separated list.
    pub(crate) fn find_all(&self, words: &str) -> anyhow::Result<Vec<&Resource>> {
        let mut found = Vec::new();
        for word in words.split(',') {
            let members: Vec<&Resource> =
                self.0.iter().filter(|resource| resource.categories.iter().any(|own| own == word)).collect();
            if members.is_empty() {
                found.push(self.find(word)?);
            } else {
                found.extend(members);
            }
        }
        Ok(found)
    }

    /// The kind of a manifest.
    pub(crate) fn of(&self, tree: &Tree) -> anyhow::Result<&Resource> {
        let text = |field: &str| {
            tree[field].as_str().filter(|text| !text.is_empty()).with_context(|| format!("a manifest has no `{field}`"))
        };
        let (api_version, kind) = (text("apiVersion")?, text("kind")?);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.0
            .iter()
            .find(|own| own.group == group && own.version == version && own.kind == kind)
            .with_context(|| format!("the server has no kind `{kind}` in `{api_version}`"))
    }
}

fn read_version(group: &str, version: &Tree) -> Vec<Resource> {
    let list = |tree: &Tree| -> Vec<String> {
        tree.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let name = version["version"].as_str().unwrap_or_default();
    version["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|resource| {
            let plural = resource["resource"].as_str().unwrap_or_default().to_owned();
            let kind = resource["responseKind"]["kind"].as_str().unwrap_or_default().to_owned();
            let mut names = list(&resource["shortNames"]);
            names.extend([plural.clone(), kind.to_lowercase()]);
            names.extend(resource["singularResource"].as_str().map(str::to_owned));
            Resource {
                group: group.to_owned(),
                version: name.to_owned(),
                kind,
                plural,
                namespaced: resource["scope"] == "Namespaced",
                names,
                categories: list(&resource["categories"]),
            }
        })
        .collect()
}

/// The items of a list.
pub(crate) fn items(list: &Tree) -> &[Tree] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// An object's name.
pub(crate) fn name_of(tree: &Tree) -> &str {
    tree["metadata"]["name"].as_str().unwrap_or_default()
}

/// A pod's name as given, or the first pod that an object's selector selects.
pub(crate) async fn pod_name(session: &Session, word: &str) -> anyhow::Result<String> {
    let Some((kind, name)) = word.split_once('/') else { return Ok(checked_name("resource", word.to_owned())?) };
    let name = &checked_name("resource", name.to_owned())?;
    let discovery = Discovery::fetch(&session.client).await?;
    let resource = discovery.find(kind)?;
    if resource.plural == "pods" {
        return Ok(name.clone());
    }
    let owner = session.client.get(&resource.path(Some(&session.namespace), Some(name))).await?;
    let Some(selector) = selector::of_pods(&owner) else { bail!("{} selects no pods", resource.label(name)) };
    let selector = escape(&selector.to_string());
    let pods = resource_path("", "v1", "pods", Some(&session.namespace), None);
    let path = format!("{pods}?labelSelector={selector}");
    let pods = session.client.get(&path).await?;
    let running = items(&pods).iter().find(|pod| pod["status"]["phase"] == "Running");
    let pod = running.or(items(&pods).first()).with_context(|| format!("{} has no pods", resource.label(name)))?;
    if items(&pods).len() > 1 {
        output::note(format!("Found {} pods, using pod/{}", items(&pods).len(), name_of(pod)));
    }
    Ok(name_of(pod).to_owned())
}

/// Reads the manifests of files, directories (their `.yaml`, `.yml` and `.json` files, by name) or `-`.
pub(crate) fn manifests(paths: &[PathBuf]) -> anyhow::Result<Vec<Tree>> {
    let mut trees = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading manifests from standard input")?;
            documents(&text, "standard input", &mut trees)?;
            continue;
        }
        for file in files(path)? {
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("reading the manifest `{}`", file.display()))?;
            documents(&text, &file.display().to_string(), &mut trees)?;
        }
    }
    Ok(trees)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_manifest =
        |file: &PathBuf| file.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("reading the directory `{}`", path.display()))? {
        found.push(entry.with_context(|| format!("reading the directory `{}`", path.display()))?.path());
    }
    found.retain(is_manifest);
    found.sort();
    if found.is_empty() {
        bail!("the directory `{}` holds no .yaml, .yml or .json file", path.display());
    }
    Ok(found)
}

fn documents(text: &str, origin: &str, trees: &mut Vec<Tree>) -> anyhow::Result<()> {
    let is_json = text.trim_start().starts_with('{');
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let place = || format!("document {} of {origin}", index + 1);
        let value = serde_yaml::Value::deserialize(document).with_context(place)?;
        let tree = serde_json::to_value(&value).with_context(place)?;
        let first = trees.len();
        match tree {
            Tree::Null => {} // an empty document, as after a trailing `---`
            Tree::Object(_) if tree["kind"] == "List" => trees.extend(items(&tree).iter().cloned()),
            Tree::Object(_) => trees.push(tree),
            _ => bail!("{}: a manifest is a map with `apiVersion` and `kind`", place()),
        }
        if !is_json {
            trees[first..].iter_mut().for_each(read_octals);
        }
    }
    Ok(())
}

/// YAML's octal numbers, by the type that the manifest names.
fn read_octals(tree: &mut Tree) {
    let text = |field: &str| tree[field].as_str().unwrap_or_default();
    if let Some(known) = dhow_api::schema::table().by_kind(text("apiVersion"), text("kind")) {
        dhow_api::decode::read_octals(tree, known.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_and_lists_unpacked() {
        let mut trees = Vec::new();
        documents("---\nkind: A\n---\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n", "x", &mut trees).unwrap();
        let kinds: Vec<_> = trees.iter().map(|tree| tree["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        let octal = "apiVersion: v1\nkind: Pod\nspec: {volumes: [{name: '07', configMap: {defaultMode: 0644}}]}\n";
        documents(octal, "x", &mut trees).unwrap();
        let volume = serde_json::json!({"name": "07", "configMap": {"defaultMode": 420}});
        assert_eq!(trees.last().unwrap()["spec"]["volumes"][0], volume);
        let err = documents("kind: A\n---\n- b\n", "web.yaml", &mut trees).unwrap_err();
        assert!(err.to_string().starts_with("document 2 of web.yaml"), "{err}");
    }
}
