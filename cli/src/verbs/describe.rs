//! `dhow describe`: an object in full, without what only machines read, and its events.

use crate::kube::{Discovery, Global, items, targets};
use crate::output;
use serde_json::Value as Tree;

/// What to describe.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TYPE NAME…, or TYPE/NAME…; a TYPE alone means all of its objects
    #[arg(required = true)]
    what: Vec<String>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let discovery = Discovery::fetch(&session.client).await?;
    for (word, name) in targets(&args.what)? {
        let resource = discovery.find(&word)?;
        let answer = session.client.get(&resource.path(Some(&session.namespace), name.as_deref())).await?;
        let objects = if name.is_some() { std::slice::from_ref(&answer) } else { items(&answer) };
        for object in objects {
            let mut shown = object.clone();
            if let Some(metadata) = shown["metadata"].as_object_mut() {
                metadata.remove("managedFields");
                metadata.remove("resourceVersion");
            }
            output::write_all(output::yaml(&shown)?.as_bytes());
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
            let path = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.uid%3D{uid}");
            events(&session.client.get(&path).await?);
            output::line("");
        }
    }
    Ok(())
}

fn events(list: &Tree) {
    let events = items(list);
    if events.is_empty() {
        return output::line("Events:  <none>");
    }
    output::line("Events:");
    let mut rows = vec![["  Type", "Reason", "Count", "Last seen", "From", "Message"].map(str::to_owned).to_vec()];
    for event in events {
        let text = |value: &Tree| value.as_str().unwrap_or_default().to_owned();
        rows.push(vec![
            format!("  {}", text(&event["type"])),
            text(&event["reason"]),
            event["count"].as_u64().unwrap_or(1).to_string(),
            text(&event["lastTimestamp"]),
            text(&event["source"]["component"]),
            text(&event["message"]).trim().to_owned(),
        ]);
    }
    output::table(&rows);
}
