//! Where things are on this machine, and every environment variable that the binary reads.

use anyhow::Context as _;
use dhow_files::Access;
use std::path::{Path, PathBuf};

/// Filters the log: `info`, or `warn,dhow_node=debug`.
pub(crate) const LOG_ENV: &str = "DHOW_LOG";

/// The name of the kubeconfig in a data directory.
const KUBECONFIG: &str = "dhow.kubeconfig";

/// The default data directory: `$XDG_DATA_HOME/dhow`, or `~/.local/share/dhow`.
pub(crate) fn data_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("dhow"))
        .context("neither XDG_DATA_HOME nor HOME is set: name a directory with --data-dir")
}

/// The kubeconfig that belongs to a data directory.
pub(crate) fn kubeconfig(data_dir: &Path) -> PathBuf {
    data_dir.join(KUBECONFIG)
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("making the directory `{}`", dir.display()))?;
    dhow_files::write(path, text.as_bytes(), Access::Private).with_context(|| format!("writing `{}`", path.display()))
}
