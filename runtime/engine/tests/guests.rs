//! The guests' committed programs belong to their committed sources.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use sha2::{Digest, Sha256};

#[test]
fn programs_are_built_from_the_sources_beside_them() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests");
    let record = std::fs::read_to_string(dir.join("built.txt")).unwrap();
    assert!(record.lines().any(|line| line.ends_with(".wasm")));
    for line in record.lines() {
        let (recorded, name) = line.split_once("  ").unwrap();
        let bytes = std::fs::read(dir.join(name)).unwrap();
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, recorded, "`tests/guests/{name}` has changed: run `tests/guests/build.sh`");
    }
}
