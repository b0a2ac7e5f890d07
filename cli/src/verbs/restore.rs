//! `dhow restore`: the data directory of a control node from a backup.

use crate::output;
use anyhow::{Context as _, bail};
use dhow_cli_core::members;
use std::path::{Path, PathBuf};

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
    check_empty(&data_dir)?;
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

/// Refuses a directory with anything in it: an agent's part beside a restored one would belong to another cluster.
fn check_empty(data_dir: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(data_dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("`{}` is not empty: name a new directory, or move what is there away", data_dir.display()),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err).with_context(|| format!("reading the directory `{}`", data_dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_or_a_new_directory_will_do() {
        let dir = tempfile::tempdir().unwrap();
        check_empty(dir.path()).unwrap();
        check_empty(&dir.path().join("new")).unwrap();
        std::fs::create_dir(dir.path().join("agent")).unwrap();
        let err = check_empty(dir.path()).unwrap_err().to_string();
        assert!(err.contains("is not empty"), "{err}");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(check_empty(&file).is_err());
    }
}
