//! `dhow apply`: makes the cluster's objects what the manifests say.
//!
//! Client-side apply as `kubectl` does it, to the byte of the annotation, so that both can take turns on one object:
//! the manifest is kept with the object, a field or list entry that a later manifest leaves out is removed, and what
//! others set stays.

use crate::kube::{Discovery, Global, Resource, Session, manifests, name_of};
use crate::output;
use anyhow::bail;
use dhow_api::patch::{Versions, three_way};
use dhow_api::schema::table;
use dhow_cli_core::goform;
use dhow_client::{ClientError, PatchType};
use serde_json::{Map, Value as Tree};
use std::path::PathBuf;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// How often a patch is made anew when somebody else was faster.
const ATTEMPTS_MAX: u32 = 5;

/// Which manifests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A manifest file, a directory of them, or `-` for standard input
    #[arg(short = 'f', long = "filename", required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only tell what would be done; `server` lets the server check it as well
    #[arg(long, value_enum, default_value_t = DryRun::None)]
    dry_run: DryRun,
}

/// How much is done.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DryRun {
    /// All of it.
    None,
    /// Nothing is sent.
    Client,
    /// Everything is sent, and the server keeps nothing.
    Server,
}

impl DryRun {
    fn query(self) -> String {
        format!("fieldManager=dhow&fieldValidation=Strict{}", if self == Self::Server { "&dryRun=All" } else { "" })
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    apply(&session, &args.paths, args.dry_run).await
}

/// Applies all manifests, goes on after a refused one, and fails at the end if there was any.
pub(crate) async fn apply(session: &Session, paths: &[PathBuf], dry_run: DryRun) -> anyhow::Result<()> {
    let trees = manifests(paths)?;
    if trees.is_empty() {
        bail!("no objects passed to apply");
    }
    let discovery = Discovery::fetch(&session.client).await?;
    let mut failed = 0;
    for tree in &trees {
        match apply_one(session, &discovery, tree, dry_run).await {
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

async fn apply_one(
    session: &Session,
    discovery: &Discovery,
    manifest: &Tree,
    dry_run: DryRun,
) -> anyhow::Result<String> {
    let resource = discovery.of(manifest)?;
    let name = name_of(manifest);
    if name.is_empty() {
        bail!("`metadata.name` is missing");
    }
    let namespace = match manifest["metadata"]["namespace"].as_str() {
        named if resource.namespaced => session.scope.of(named)?,
        _ => &session.namespace,
    };
    let path = resource.path(Some(namespace), Some(name));
    let wanted = with_last_applied(manifest, resource.namespaced.then_some(namespace));
    let done = |what: &str| Ok(format!("{} {what}{}", resource.label(name), dry_run.suffix()));
    let mut attempt = 1;
    loop {
        let answer = match session.client.get(&path).await {
            Err(err) if err.is(404) && dry_run == DryRun::Client => Ok("created"),
            Err(err) if err.is(404) => {
                let path = format!("{}?{}", resource.path(Some(namespace), None), dry_run.query());
                session.client.create(&path, &wanted).await.map(|_| "created")
            }
            Err(err) => Err(err),
            Ok(current) => update(session, resource, &path, Wish { wanted: &wanted, dry_run }, &current).await,
        };
        match answer {
            // Somebody was faster: created it (409 AlreadyExists) or changed it (409 Conflict).
            Err(err) if err.is(409) && attempt < ATTEMPTS_MAX => attempt += 1,
            answer => return done(answer?),
        }
    }
}

/// What an object is to become.
#[derive(Clone, Copy)]
struct Wish<'a> {
    wanted: &'a Tree,
    dry_run: DryRun,
}

/// Patches an object to what is wanted, and says what became of it.
async fn update(
    session: &Session,
    resource: &Resource,
    path: &str,
    Wish { wanted, dry_run }: Wish<'_>,
    current: &Tree,
) -> Result<&'static str, ClientError> {
    let last_applied = current["metadata"]["annotations"][LAST_APPLIED].as_str();
    if last_applied.is_none() {
        output::note(format!(
            "warning: {} was not made by apply: what its manifest leaves out stays this time",
            resource.label(name_of(current))
        ));
    }
    let original = last_applied.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Tree::Null);
    // A kind that the schema table does not have takes JSON merge patches only, as upstream's custom resources do.
    let known = table().by_kind(&resource.api_version(), &resource.kind);
    let kind = if known.is_some() { PatchType::Strategic } else { PatchType::Merge };
    let patch = three_way(Versions { original: &original, wanted, current }, known.map(|of| of.name));
    if patch.as_object().is_none_or(Map::is_empty) {
        return Ok("unchanged");
    }
    if dry_run == DryRun::Client {
        return Ok("configured");
    }
    let new = session.client.patch(&format!("{path}?{}", dry_run.query()), kind, &patch).await?;
    // Some patches come to nothing, as one that takes a default away.
    Ok(if new == *current { "unchanged" } else { "configured" })
}

/// The manifest in its namespace, with its own text in an annotation.
fn with_last_applied(manifest: &Tree, namespace: Option<&str>) -> Tree {
    let mut wanted = manifest.clone();
    if let Some(namespace) = namespace {
        wanted["metadata"]["namespace"] = Tree::from(namespace);
    }
    if !wanted["metadata"]["annotations"].is_object() {
        wanted["metadata"]["annotations"] = Tree::Object(Map::new());
    }
    // A manifest that was read back from a server carries an older text, which would grow with each turn.
    if let Some(annotations) = wanted["metadata"]["annotations"].as_object_mut() {
        annotations.shift_remove(LAST_APPLIED);
    }
    let text = goform::json(&wanted);
    wanted["metadata"]["annotations"][LAST_APPLIED] = Tree::String(text + "\n");
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_annotation_is_what_kubectl_writes() {
        let manifest =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}, "data": {"a": "<b>"}});
        let wanted = with_last_applied(&manifest, Some("shop"));
        let text = wanted["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
        let expected = r#"{"apiVersion":"v1","data":{"a":"\u003cb\u003e"},"kind":"ConfigMap","metadata":{"annotations":{},"name":"c","namespace":"shop"}}"#;
        assert_eq!(text, format!("{expected}\n"));
        assert_eq!(with_last_applied(&wanted, Some("shop")), wanted);
    }
}
