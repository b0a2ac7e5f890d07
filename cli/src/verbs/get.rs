//! `dhow get`: the server's own tables, or objects in one of the forms of `-o`.

use crate::kube::{Discovery, Global, Resource, Session, escape, items, targets};
use crate::output;
use crate::print::{Form, Heading, ObjectForm, Whole};
use anyhow::{Context as _, bail};
use dhow_cli_core::jsonpath::{Template, TemplateError};
use dhow_cli_core::sort;
use dhow_client::{ClientError, Event};
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
    /// The form of the output; without it a table. One of wide, yaml, json, name, jsonpath=TEMPLATE,
    /// jsonpath-as-json=TEMPLATE, jsonpath-file=FILE, custom-columns=HEADER:PATH,…, custom-columns-file=FILE
    #[arg(short, long, value_name = "FORM", value_parser = form)]
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
    /// Sort by what this path leads to, such as .metadata.creationTimestamp
    #[arg(long, value_name = "PATH", value_parser = path_of)]
    sort_by: Option<Template>,
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
    /// No heading
    #[arg(long)]
    no_headers: bool,
    /// Say nothing, and succeed, if an object is not there
    #[arg(long)]
    ignore_not_found: bool,
    /// Show the labels as a last column
    #[arg(long)]
    show_labels: bool,
}

fn path_of(text: &str) -> Result<Template, TemplateError> {
    Template::parse_relaxed(text)
}

fn form(text: &str) -> Result<Form, String> {
    Form::parse(text).map_err(|err| format!("{err:#}"))
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
    match &args.output {
        None | Some(Form::Wide) => tables(&args, &session, &queries).await,
        Some(Form::Objects(form)) if args.watch => watch_objects(form, &args, &session, &queries).await,
        Some(Form::Objects(form)) => objects(form, &args, &session, &queries).await,
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
    // What a table's row shows is not all that it can be sorted by.
    query.extend(args.sort_by.as_ref().map(|_| "includeObject=Object".to_owned()));
    if !fields.is_empty() {
        query.push(format!("fieldSelector={}", escape(&fields)));
    }
    let path = resource.path(namespace, name);
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

async fn tables(args: &Args, session: &Session, queries: &[(&Resource, Option<String>)]) -> anyhow::Result<()> {
    if args.watch {
        let (resource, name) = watched(queries)?;
        return watch(args, session, resource, name).await;
    }
    let several = queries.windows(2).any(|pair| pair[0].0 != pair[1].0);
    let mut shown = 0;
    let mut refused = Vec::new();
    let mut last_kind: Option<&Resource> = None;
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (resource, name) in queries {
        let path = path(args, session, resource, name.as_deref());
        let Some(mut table) = found(args, fetch_table(session, &path).await, &mut refused) else { continue };
        if let (Some(path), Some(rows)) = (&args.sort_by, table["rows"].as_array_mut()) {
            let objects: Vec<&Tree> = rows.iter().map(|row| &row["object"]).collect();
            *rows = sort::order(&objects, path)?.into_iter().map(|place| rows[place].clone()).collect();
        }
        if last_kind.replace(*resource) != Some(*resource) {
            shown += flush(&mut rows, shown);
            if !args.no_headers && table["rows"].as_array().is_some_and(|rows| !rows.is_empty()) {
                rows.push(heading(args, resource, &table));
            }
        }
        let prefix = several.then(|| resource.label(""));
        rows.extend(cells(args, resource, &table, &table, prefix.as_deref()));
    }
    shown += flush(&mut rows, shown);
    if shown == 0 && refused.is_empty() && !args.ignore_not_found {
        let place = if args.all_namespaces || queries.iter().all(|(resource, _)| !resource.namespaced) {
            "No resources found".to_owned()
        } else {
            format!("No resources found in {} namespace.", session.namespace)
        };
        output::note(place);
    }
    tell(refused)
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

async fn fetch_table(session: &Session, path: &str) -> Result<Tree, ClientError> {
    session.client.get_as(path, TABLE).await
}

/// What was asked for, or nothing if it is not there; what went wrong is kept, so that the others are shown first.
fn found(args: &Args, answer: Result<Tree, ClientError>, refused: &mut Vec<ClientError>) -> Option<Tree> {
    match answer {
        Ok(tree) => return Some(tree),
        Err(err) if err.is(404) && args.ignore_not_found => {}
        Err(err) => refused.push(err),
    }
    None
}

/// Says what went wrong, the last of it as the verb's own error.
fn tell(mut refused: Vec<ClientError>) -> anyhow::Result<()> {
    let last = refused.pop();
    refused.into_iter().for_each(|err| output::error(&err.into()));
    last.map_or(Ok(()), |err| Err(err.into()))
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
    form: &ObjectForm,
    args: &Args,
    session: &Session,
    queries: &[(&Resource, Option<String>)],
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut refused = Vec::new();
    for (resource, name) in queries {
        let answer = session.client.get(&path(args, session, resource, name.as_deref())).await;
        let Some(tree) = found(args, answer, &mut refused) else { continue };
        match name {
            Some(_) => all.push((*resource, tree)),
            None => all.extend(items(&tree).iter().map(|item| (*resource, resource.typed(item.clone())))),
        }
    }
    let one = matches!(queries, [(_, Some(_))]);
    if one && all.is_empty() {
        return tell(refused);
    }
    if let Some(path) = &args.sort_by {
        let objects: Vec<&Tree> = all.iter().map(|(_, object)| object).collect();
        all = sort::order(&objects, path)?.into_iter().map(|place| all[place].clone()).collect();
    }
    form.show(&all, if one { Whole::Object } else { Whole::List }, heading_wish(args))?;
    tell(refused)
}

fn heading_wish(args: &Args) -> Heading {
    if args.no_headers { Heading::Hidden } else { Heading::Shown }
}

/// Shows each object as it is, and again after each change.
async fn watch_objects(
    form: &ObjectForm,
    args: &Args,
    session: &Session,
    queries: &[(&Resource, Option<String>)],
) -> anyhow::Result<()> {
    let (resource, name) = watched(queries)?;
    let mut watcher = session.client.watch(&path(args, session, resource, name));
    let mut heading = heading_wish(args);
    loop {
        let objects = match watcher.next().await {
            Event::Restarted(objects) => objects,
            Event::Applied(object) | Event::Deleted(object) => vec![object],
        };
        for object in objects {
            form.show(&[(resource, object)], Whole::Object, heading)?;
            heading = Heading::Hidden;
        }
    }
}

fn watched<'q>(queries: &'q [(&'q Resource, Option<String>)]) -> anyhow::Result<(&'q Resource, Option<&'q str>)> {
    let [(resource, name)] = queries else { bail!("only one type or object can be watched at a time") };
    Ok((resource, name.as_deref()))
}
