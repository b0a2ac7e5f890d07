//! `dhow restore`: the data directory of a control node from a backup.

use crate::output;
use anyhow::Context as _;
use dhow_cli_core::members;
use std::path::PathBuf;

/// From what, and into what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file that `dhow backup` or a control node has written
    file: PathBuf,
    /// The data directory to make; it may be there if it is empty
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Args { file, data_dir } = args;
    let size = std::fs::metadata(&file).with_context(|| format!("reading `{}`", file.display()))?.len();
    let restored = tokio::task::block_in_place(|| dhow_server::restore(&file, &super::server::state_dir(&data_dir)))?;
    let what = format!("{} objects of revision {}", restored.objects, restored.snapshot.0);
    output::line(format!("restored: {what} from {}, {}", file.display(), members::bytes(size)));
    output::note(format!(
        "start it with `dhow server --data-dir {}`; further control nodes join it anew",
        data_dir.display()
    ));
    Ok(())
}
