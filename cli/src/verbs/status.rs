//! `dhow status`: how the cluster's control nodes are.

use crate::kube::Global;
use crate::output;
use dhow_cli_core::members;

/// Takes no more than the options of every verb.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(Args {}: Args, global: &Global) -> anyhow::Result<()> {
    let answer = global.session()?.client.get("/dhow/v1/status").await?;
    let (lines, rows) = members::status_lines(&answer, crate::clock::now());
    lines.iter().for_each(output::line);
    output::line("members:");
    output::table(&rows.into_iter().map(indented).collect::<Vec<_>>());
    Ok(())
}

fn indented(mut row: Vec<String>) -> Vec<String> {
    if let Some(first) = row.first_mut() {
        first.insert_str(0, "  ");
    }
    row
}
