//! `dhow get`: the server's own tables, or objects as YAML, JSON, or names.

use crate::kube::{Discovery, Global, Resource, Session, items, name_of, targets};
use crate::output;
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use dhow_client::ClientError;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value as Tree;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// What to show and how.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TYPE, TYPE NAME…, or TYPE/NAME…
    #[arg(required = true)]
    what: Vec<String>,
    /// The form of the output; without it a table
    #[arg(short, long)]
    output: Option<Form>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// Only objects with these field values
    #[arg(long, default_value = "")]
    field_selector: String,
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
    /// No heading
    #[arg(long)]
    no_headers: bool,
    /// Show the labels as a last column
    #[arg(long)]
    show_labels: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Wide,
    Yaml,
    Json,
    Name,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let discovery = Discovery::fetch(&session.client).await?;
    let mut queries = Vec::new();
    for (word, name) in targets(&args.what)? {
        for resource in discovery.find_all(&word)? {
            queries.push((resource, name.clone()));
        }
    }
    match args.output {
        None | Some(Form::Wide) => tables(&args, &session, &queries).await,
        Some(form) => objects(form, &args, &session, &queries).await,
    }
}

fn path(args: &Args, session: &Session, resource: &Resource, name: Option<&str>) -> String {
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    // One object is asked for as a list of one when it is watched, so that both are the same request.
    let (name, by_name) = match name {
        Some(name) if args.watch => (None, Some(format!("metadata.name={name}"))),
        other => (other, None),
    };
    let fields = match (&args.field_selector, by_name) {
        (given, None) => given.clone(),
        (given, Some(name)) if given.is_empty() => name,
        (given, Some(name)) => format!("{given},{name}"),
    };
    let mut query = Vec::new();
    if !args.selector.is_empty() {
        query.push(format!("labelSelector={}", escape(&args.selector)));
    }
    if !fields.is_empty() {
        query.push(format!("fieldSelector={}", escape(&fields)));
    }
    let path = resource.path(namespace, name);
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

/// Percent-encodes what may not stand in a query value.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

async fn tables(args: &Args, session: &Session, queries: &[(&Resource, Option<String>)]) -> anyhow::Result<()> {
    if args.watch {
        let [(resource, name)] = queries else { bail!("only one type or object can be watched at a time") };
        return watch(args, session, resource, name.as_deref()).await;
    }
    let several = queries.windows(2).any(|pair| pair[0].0 != pair[1].0);
    let mut shown = 0;
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (index, (resource, name)) in queries.iter().enumerate() {
        let table = fetch_table(session, &path(args, session, resource, name.as_deref())).await?;
        let new_kind = index == 0 || queries[index - 1].0 != *resource;
        if new_kind {
            shown += flush(&mut rows, shown);
            if !args.no_headers && table["rows"].as_array().is_some_and(|rows| !rows.is_empty()) {
                rows.push(heading(args, resource, &table));
            }
        }
        let prefix = several.then(|| resource.label(""));
        rows.extend(cells(args, resource, &table, &table, prefix.as_deref()));
    }
    shown += flush(&mut rows, shown);
    if shown == 0 {
        let place = if args.all_namespaces || queries.iter().all(|(resource, _)| !resource.namespaced) {
            "No resources found".to_owned()
        } else {
            format!("No resources found in {} namespace.", session.namespace)
        };
        output::line(place);
    }
    Ok(())
}

fn flush(rows: &mut Vec<Vec<String>>, shown: usize) -> usize {
    let count = rows.len();
    if count > 0 && shown > 0 {
        output::line("");
    }
    output::table(rows);
    rows.clear();
    count
}

async fn fetch_table(session: &Session, path: &str) -> anyhow::Result<Tree> {
    let response = session.client.request(Method::GET, path, TABLE, None).await?;
    let tree: Tree = serde_json::from_slice(&response.body).context("reading the server's answer")?;
    if response.status.is_success() {
        return Ok(tree);
    }
    let message = tree["message"].as_str().unwrap_or("the server refused").to_owned();
    bail!("{message}")
}

fn is_shown(args: &Args, column: &Tree) -> bool {
    args.output == Some(Form::Wide) || column["priority"].as_i64().unwrap_or(0) == 0
}

fn columns(table: &Tree) -> &[Tree] {
    table["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn heading(args: &Args, resource: &Resource, table: &Tree) -> Vec<String> {
    let mut row = Vec::new();
    if args.all_namespaces && resource.namespaced {
        row.push("NAMESPACE".to_owned());
    }
    let shown = columns(table).iter().filter(|column| is_shown(args, column));
    row.extend(shown.map(|column| column["name"].as_str().unwrap_or_default().to_uppercase()));
    if args.show_labels {
        row.push("LABELS".to_owned());
    }
    row
}

fn cells(args: &Args, resource: &Resource, definitions: &Tree, table: &Tree, prefix: Option<&str>) -> Vec<Vec<String>> {
    let columns = columns(definitions);
    let row = |row: &Tree| {
        let mut out = Vec::new();
        let metadata = &row["object"]["metadata"];
        if args.all_namespaces && resource.namespaced {
            out.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
        }
        let cells = row["cells"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, (column, cell)) in columns.iter().zip(cells).enumerate() {
            if is_shown(args, column) {
                let text = match cell {
                    Tree::String(text) => text.clone(),
                    Tree::Null => "<none>".to_owned(),
                    other => other.to_string(),
                };
                out.push(if index == 0 { format!("{}{text}", prefix.unwrap_or_default()) } else { text });
            }
        }
        if args.show_labels {
            let labels: Vec<String> = metadata["labels"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            out.push(if labels.is_empty() { "<none>".to_owned() } else { labels.join(",") });
        }
        out
    };
    table["rows"].as_array().into_iter().flatten().map(row).collect()
}

async fn watch(args: &Args, session: &Session, resource: &Resource, name: Option<&str>) -> anyhow::Result<()> {
    let path = path(args, session, resource, name);
    let first = fetch_table(session, &path).await?;
    let mut rows = Vec::new();
    if !args.no_headers {
        rows.push(heading(args, resource, &first));
    }
    rows.extend(cells(args, resource, &first, &first, None));
    output::table(&rows);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}watch=true&resourceVersion={revision}");
    let mut body = session.client.stream(Method::GET, &path, TABLE, None).await?.into_body();
    let mut buffer = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the watch broke off")?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let event: Tree = serde_json::from_slice(&buffer[..end]).context("reading a watch event")?;
            buffer.drain(..=end);
            if event["type"] == "ERROR" {
                bail!("{}", event["object"]["message"].as_str().unwrap_or("the watch ended with an error"));
            }
            output::table(&cells(args, resource, &first, &event["object"], None));
        }
    }
    Ok(())
}

async fn objects(
    form: Form,
    args: &Args,
    session: &Session,
    queries: &[(&Resource, Option<String>)],
) -> Result<(), anyhow::Error> {
    let mut found = Vec::new();
    for (resource, name) in queries {
        let tree: Result<Tree, ClientError> = session.client.get(&path(args, session, resource, name.as_deref())).await;
        let tree = tree?;
        match name {
            Some(_) => found.push((*resource, tree)),
            None => found.extend(items(&tree).iter().map(|item| (*resource, typed(resource, item.clone())))),
        }
    }
    if form == Form::Name {
        for (resource, tree) in &found {
            output::line(resource.label(name_of(tree)));
        }
        return Ok(());
    }
    let one = queries.len() == 1 && queries[0].1.is_some();
    let mut trees: Vec<Tree> = found.into_iter().map(|(_, tree)| tree).collect();
    let whole = match trees.pop() {
        Some(tree) if one => tree,
        last => {
            trees.extend(last);
            serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": trees})
        }
    };
    match form {
        Form::Yaml => output::write_all(output::yaml(&whole)?.as_bytes()),
        _ => output::line(serde_json::to_string_pretty(&whole).context("writing JSON")?),
    }
    Ok(())
}

/// An item with the kind that its list says of all items, in the usual place at the front.
fn typed(resource: &Resource, item: Tree) -> Tree {
    let api_version = if resource.group.is_empty() {
        resource.version.clone()
    } else {
        format!("{}/{}", resource.group, resource.version)
    };
    let mut tree = serde_json::json!({"apiVersion": api_version, "kind": resource.kind});
    if let (Some(target), Tree::Object(fields)) = (tree.as_object_mut(), item) {
        target.extend(fields);
    }
    tree
}
