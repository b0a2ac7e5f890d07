//! `dhow scale`: sets the number of replicas.

use crate::kube::{Discovery, Global, targets};
use crate::output;
use anyhow::Context as _;
use dhow_client::PatchType;
use serde_json::json;

/// What to scale, and to how many.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TYPE NAME…, or TYPE/NAME…
    #[arg(required = true)]
    what: Vec<String>,
    /// The number of replicas
    #[arg(long)]
    replicas: u32,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let discovery = Discovery::fetch(&session.client).await?;
    for (word, name) in targets(&args.what)? {
        let resource = discovery.find(&word)?;
        let name = name.with_context(|| format!("name the {} to scale", resource.plural))?;
        let path = format!("{}/scale", resource.path(Some(&session.namespace), Some(&name)));
        session.client.patch(&path, PatchType::Merge, &json!({"spec": {"replicas": args.replicas}})).await?;
        output::line(format!("{} scaled", resource.label(&name)));
    }
    Ok(())
}
