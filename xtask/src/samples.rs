//! The samples' `.wasm` files belong to their sources: a record of hashes, written by the build script, says so.
//!
//! Builds of the standard library are not bit-identical between machines, so rebuilt binaries are not compared;
//! the record holds what was hashed when the binaries were built.

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const RECORD: &str = "samples/built.txt";

/// What goes into a sample, and what comes out of it.
const KINDS: [&str; 4] = ["rs", "toml", "lock", "wasm"];

/// Writes the record; called by `samples/build.sh` after a build.
pub fn record() -> anyhow::Result<String> {
    let root = root()?;
    let text: String = hashes(&root)?.iter().map(|(path, hash)| format!("{hash}  {path}\n")).collect();
    fs::write(root.join(RECORD), text).with_context(|| format!("writing `{RECORD}`"))?;
    Ok(format!("{RECORD} written"))
}

/// Fails when a source or a binary is not the recorded one.
pub fn check() -> anyhow::Result<String> {
    let root = root()?;
    let text = fs::read_to_string(root.join(RECORD)).with_context(|| format!("reading `{RECORD}`"))?;
    let recorded: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(hash, path)| (path.to_owned(), hash.to_owned()))
        .collect();
    let drifted = drift(&recorded, &hashes(&root)?);
    if !drifted.is_empty() {
        bail!("these files changed since the samples were built: {}; run samples/build.sh", drifted.join(", "));
    }
    Ok("the samples' binaries belong to their sources".to_owned())
}

fn drift(recorded: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Vec<String> {
    let mut drifted: Vec<String> = recorded.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
    drifted.extend(found.iter().filter(|(path, hash)| recorded.get(*path) != Some(hash)).map(|(path, _)| path.clone()));
    drifted
}

fn root() -> anyhow::Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask lies in the workspace")?.to_owned())
}

/// Hashes of all files of a sample, by their path from the workspace's root.
fn hashes(root: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.join("samples")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading `{}`", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|ext| KINDS.iter().any(|kind| ext == *kind)) {
                let bytes = fs::read(&path).with_context(|| format!("reading `{}`", path.display()))?;
                let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                found.insert(path.strip_prefix(root)?.display().to_string(), hash);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_binaries_belong_to_their_sources() {
        check().unwrap();
    }

    #[test]
    fn every_kind_of_drift_is_seen() {
        let map = |entries: &[(&str, &str)]| entries.iter().map(|(p, h)| ((*p).to_owned(), (*h).to_owned())).collect();
        let recorded = map(&[("same", "1"), ("changed", "1"), ("gone", "1")]);
        let found = map(&[("same", "1"), ("changed", "2"), ("new", "1")]);
        assert_eq!(drift(&recorded, &found), ["gone", "changed", "new"]);
    }
}
