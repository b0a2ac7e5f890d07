//! Finds out which Wasmtime is built in: the crate does not tell its version to those who use it, the lock file does.

use std::path::Path;

fn main() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = std::fs::read_to_string(&lock).expect("the workspace has a lock file");
    let version = version_of(&text, "wasmtime").expect("the lock file names wasmtime");
    println!("cargo::rustc-env=DHOW_WASMTIME_VERSION={version}");
}

/// The version of a package: the line after its name.
fn version_of<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}
