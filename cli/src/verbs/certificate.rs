//! `dhow certificate`: who holds certificates of the cluster, and until when.

use crate::kube::Global;
use crate::output;
use clap::Subcommand;
use dhow_cli_core::members;

/// What to do with certificates.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the certificates; they renew themselves
    List,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Action::List = args.action;
    let answer = global.session()?.client.get("/dhow/v1/certificates").await?;
    output::table(&members::certificate_rows(&answer, crate::clock::now()));
    Ok(())
}
