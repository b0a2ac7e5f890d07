//! The committed program belongs to the committed sources.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// More would be carried by every node for little.
const WASM_BYTES_MAX: usize = 1_200_000;

#[test]
fn the_program_is_built_from_the_sources_beside_it() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let record = fs::read_to_string(dir.join("built.txt")).unwrap();
    let recorded: BTreeMap<PathBuf, String> = record
        .lines()
        .map(|line| line.split_once("  ").unwrap())
        .map(|(hash, name)| (PathBuf::from(name), hash.to_owned()))
        .collect();
    let mut found = BTreeMap::new();
    let mut open = ["guest/src", "guest/Cargo.toml", "guest/Cargo.lock", "toolbox.wasm"].map(PathBuf::from).to_vec();
    while let Some(path) = open.pop() {
        if dir.join(&path).is_dir() {
            let entries = fs::read_dir(dir.join(&path)).unwrap();
            open.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
            continue;
        }
        let bytes = fs::read(dir.join(&path)).unwrap();
        found.insert(path, Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect());
    }
    assert_eq!(found, recorded, "run `runtime/toolbox/build.sh`");
    assert!(dhow_toolbox::WASM.len() < WASM_BYTES_MAX, "{} bytes", dhow_toolbox::WASM.len());
}
