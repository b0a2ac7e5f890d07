//! `dhow describe`: an object in full, as people read it, with what stands around it.

use crate::kube::{Discovery, Global, Resource, Session, escape, items, name_of, targets};
use crate::{clock, output};
use dhow_cli_core::describe::{Around, describe, related};
use dhow_client::ClientError;
use serde_json::Value as Tree;

/// What to describe.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TYPE NAME…, or TYPE/NAME…; a TYPE alone means all of its objects
    #[arg(required = true)]
    what: Vec<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Tell the events as well; by default those of a single object
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    show_events: Option<bool>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let discovery = Discovery::fetch(&session.client).await?;
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    let mut found = Vec::new();
    for (word, name) in targets(&args.what)? {
        for resource in discovery.find_all(&word)? {
            let path = resource.path(namespace, name.as_deref());
            let objects = match &name {
                Some(_) => vec![session.client.get(&path).await?],
                None => list(&session, &format!("{path}?labelSelector={}", escape(&args.selector))).await?,
            };
            found.extend(objects.into_iter().map(|object| (resource, resource.typed(object))));
        }
    }
    let show_events = args.show_events.unwrap_or(found.len() == 1);
    for (index, (resource, object)) in found.iter().enumerate() {
        if index > 0 {
            output::write_all(b"\n\n");
        }
        let around = around(&session, resource, object, show_events).await?;
        output::write_all(describe(object, &around).as_bytes());
    }
    if found.is_empty() {
        output::note(format!("No resources found in {} namespace.", session.namespace));
    }
    Ok(())
}

async fn list(session: &Session, path: &str) -> Result<Vec<Tree>, ClientError> {
    Ok(items(&session.client.get(path).await?).to_vec())
}

async fn around(
    session: &Session,
    resource: &Resource,
    object: &Tree,
    show_events: bool,
) -> Result<Around, ClientError> {
    let mut lists = Vec::new();
    for path in related(object) {
        lists.push(list(session, &path).await?);
    }
    let events = if show_events { Some(events(session, resource, object).await?) } else { None };
    Ok(Around { related: lists, events, now: clock::now() })
}

async fn events(session: &Session, resource: &Resource, object: &Tree) -> Result<Vec<Tree>, ClientError> {
    let mut fields =
        vec![format!("involvedObject.name={}", name_of(object)), format!("involvedObject.kind={}", resource.kind)];
    let path = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => {
            // Not those of an earlier object of the name. What has no namespace, such as a node, is told of under other uids.
            fields.push(format!("involvedObject.uid={}", object["metadata"]["uid"].as_str().unwrap_or_default()));
            format!("/api/v1/namespaces/{namespace}/events")
        }
        None => "/api/v1/events".to_owned(),
    };
    list(session, &format!("{path}?fieldSelector={}", escape(&fields.join(",")))).await
}
