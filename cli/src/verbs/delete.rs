//! `dhow delete`: removes objects and waits until they are gone.

use crate::kube::{Discovery, Global, Resource, checked_name, escape, manifests, name_of, targets};
use crate::output;
use anyhow::bail;
use dhow_client::{ClientError, Event};
use serde_json::json;
use std::path::PathBuf;

/// What to delete.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TYPE NAME…, or TYPE/NAME…
    what: Vec<String>,
    /// Delete the objects of these manifests
    #[arg(short = 'f', long = "filename", value_name = "PATH", conflicts_with = "what")]
    paths: Vec<PathBuf>,
    /// Delete all objects of the type
    #[arg(long)]
    all: bool,
    /// Say nothing about objects that are not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Seconds that containers get to end; 0 does not wait for them
    #[arg(long)]
    grace_period: Option<i64>,
    /// Return before the objects are gone
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let discovery = Discovery::fetch(&session.client).await?;
    let mut doomed: Vec<(&Resource, String, String)> = Vec::new();
    for tree in &manifests(&args.paths)? {
        let name = checked_name("resource", name_of(tree).to_owned())?;
        let resource = discovery.of(tree)?;
        let namespace = match tree["metadata"]["namespace"].as_str() {
            named if resource.namespaced => session.scope.of(named)?,
            _ => &session.namespace,
        };
        doomed.push((resource, namespace.to_owned(), name));
    }
    if args.paths.is_empty() {
        for (word, name) in targets(&args.what)? {
            let resource = discovery.find(&word)?;
            match name {
                Some(name) => doomed.push((resource, session.namespace.clone(), name)),
                None if args.all => {
                    let list = session.client.get(&resource.path(Some(&session.namespace), None)).await?;
                    let names = crate::kube::items(&list).iter().map(|item| name_of(item).to_owned());
                    doomed.extend(names.map(|name| (resource, session.namespace.clone(), name)));
                }
                None => bail!("name the {} to delete, or say --all", resource.plural),
            }
        }
    }
    if doomed.is_empty() && !args.all {
        bail!("no objects passed to delete");
    }
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
    if let Some(seconds) = args.grace_period {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    let mut refused: Option<ClientError> = None;
    let mut pending = Vec::new();
    for (resource, namespace, name) in &doomed {
        let path = resource.path(Some(namespace), Some(name));
        match session.client.delete(&path, Some(&options)).await {
            Ok(_) => {
                output::line(format!("{} \"{name}\" deleted", resource.qualified()));
                pending.push((resource, namespace, name));
            }
            Err(err) if err.is(404) && args.ignore_not_found => {}
            Err(err) => {
                if let Some(earlier) = refused.replace(err) {
                    output::error(&earlier.into());
                }
            }
        }
    }
    if !args.no_wait {
        for (resource, namespace, name) in pending {
            gone(&session.client, resource, namespace, name).await;
        }
    }
    refused.map_or(Ok(()), |err| Err(err.into()))
}

/// Waits until no object of that name is there.
async fn gone(client: &dhow_client::Client, resource: &Resource, namespace: &str, name: &str) {
    let path = format!("{}?fieldSelector=metadata.name%3D{}", resource.path(Some(namespace), None), escape(name));
    let mut watcher = client.watch(&path);
    loop {
        match watcher.next().await {
            Event::Restarted(objects) if objects.is_empty() => return,
            Event::Deleted(_) => return,
            Event::Restarted(_) | Event::Applied(_) => {}
        }
    }
}
