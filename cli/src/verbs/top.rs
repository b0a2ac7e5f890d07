//! `dhow top`: what nodes and pods use now.

use crate::kube::{Global, Session, checked_name, escape, items};
use crate::output;
use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use dhow_cli_core::usage::{NODE_HEADING, Order, PodTable, nodes};
use dhow_client::resource_path;
use serde_json::Value as Tree;

/// Of what.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What nodes use, and how much that is of what pods may have
    #[command(visible_aliases = ["nodes", "no"])]
    Node(Common),
    /// What pods use
    #[command(visible_aliases = ["pods", "po"])]
    Pod(PodArgs),
}

#[derive(clap::Args)]
struct Common {
    /// Only this one
    name: Option<String>,
    /// Only those with these labels
    #[arg(short = 'l', long, default_value = "", conflicts_with = "name")]
    selector: String,
    /// What comes first
    #[arg(long, value_enum)]
    sort_by: Option<SortBy>,
    /// No heading
    #[arg(long)]
    no_headers: bool,
}

#[derive(clap::Args)]
struct PodArgs {
    #[command(flatten)]
    common: Common,
    /// Pods of all namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
    /// Each container by itself
    #[arg(long)]
    containers: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum SortBy {
    Cpu,
    Memory,
}

impl Common {
    fn order(&self) -> Order {
        match self.sort_by {
            None => Order::Name,
            Some(SortBy::Cpu) => Order::Cpu,
            Some(SortBy::Memory) => Order::Memory,
        }
    }

    /// What there is of a resource: the one that is named, or all that are selected.
    async fn fetch(
        &self,
        session: &Session,
        (group, version, plural): (&str, &str, &str),
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Tree>> {
        if let Some(name) = &self.name {
            let name = checked_name("resource", name.clone())?;
            return Ok(vec![session.client.get(&resource_path(group, version, plural, namespace, Some(&name))).await?]);
        }
        let mut path = resource_path(group, version, plural, namespace, None);
        if !self.selector.is_empty() {
            path.push_str(&format!("?labelSelector={}", escape(&self.selector)));
        }
        Ok(items(&session.client.get(&path).await?).to_vec())
    }

    fn show(&self, heading: Vec<String>, rows: Vec<Vec<String>>) {
        let heading = (!self.no_headers).then_some(heading);
        output::table(&heading.into_iter().chain(rows).collect::<Vec<_>>());
    }
}

const METRICS: (&str, &str) = ("metrics.k8s.io", "v1beta1");

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    match args.what {
        What::Node(args) => of_nodes(&args, &session).await,
        What::Pod(args) => of_pods(&args, &session).await,
    }
}

async fn of_nodes(args: &Common, session: &Session) -> anyhow::Result<()> {
    let all = args.fetch(session, ("", "v1", "nodes"), None).await?;
    let metrics = args.fetch(session, (METRICS.0, METRICS.1, "nodes"), None).await?;
    if all.is_empty() {
        output::note("No resources found");
        return Ok(());
    }
    let heading = NODE_HEADING.map(str::to_owned).to_vec();
    args.show(heading, nodes(&metrics, &all, args.order()));
    Ok(())
}

async fn of_pods(args: &PodArgs, session: &Session) -> anyhow::Result<()> {
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    let table = PodTable { namespaces: args.all_namespaces, containers: args.containers, order: args.common.order() };
    let metrics = args.common.fetch(session, (METRICS.0, METRICS.1, "pods"), namespace).await?;
    if !metrics.is_empty() {
        args.common.show(table.heading(), table.rows(&metrics));
        return Ok(());
    }
    if !args.common.fetch(session, ("", "v1", "pods"), namespace).await?.is_empty() {
        bail!("metrics not available yet: a node knows what a pod uses some seconds after its start");
    }
    match namespace {
        Some(namespace) => output::note(format!("No resources found in {namespace} namespace.")),
        None => output::note("No resources found"),
    }
    Ok(())
}
