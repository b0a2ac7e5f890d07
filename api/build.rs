//! Collects the descriptions that `explain` shows from the sources of the crate `k8s-openapi`, so that no text of
//! others stands in our tree. The result is packed into one file that the `openapi` module includes.
//!
//! The sources are read where cargo unpacked them. A build where they cannot be found still succeeds, with a warning,
//! and its documents have no descriptions.

#![allow(clippy::print_stdout, reason = "cargo is spoken to through standard output")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::ZlibEncoder;

const CRATE: &str = "k8s-openapi";
const RELEASE: &str = "v1_36";
const TABLE: &str = "schema/table.txt";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={TABLE}");
    println!("cargo::rerun-if-env-changed=CARGO_HOME");
    let wanted = names(&fs::read_to_string(TABLE)?);
    let text = match find_sources() {
        Some(dir) => collect(&dir, &wanted)?,
        None => {
            println!("cargo::warning=the sources of `{CRATE}` were not found: `explain` will show no descriptions");
            String::new()
        }
    };
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptions.z");
    let mut packed = ZlibEncoder::new(fs::File::create(out)?, Compression::best());
    packed.write_all(text.as_bytes())?;
    packed.finish()?;
    Ok(())
}

/// The full names of the table's types, and of the leaves that the table has its own words for.
fn names(table: &str) -> BTreeSet<String> {
    let leaves = [
        "api.resource.Quantity",
        "util.intstr.IntOrString",
        "runtime.RawExtension",
        "apis.meta.v1.Time",
        "apis.meta.v1.MicroTime",
        "apis.meta.v1.Duration",
        "apis.meta.v1.FieldsV1",
        "apis.meta.v1.Patch",
    ];
    let mut names: BTreeSet<String> = leaves.iter().map(|name| format!("io.k8s.apimachinery.pkg.{name}")).collect();
    let mut package = "";
    for line in table.lines() {
        if let Some(name) = line.strip_prefix("package ") {
            package = name;
        } else if let Some(name) = line.strip_prefix("type ").and_then(|rest| rest.split(' ').next()) {
            names.insert(format!("{package}.{name}"));
        }
    }
    names
}

// ---------------------------------------------------------------------------------------------- where the sources are

fn find_sources() -> Option<PathBuf> {
    let with_release = |dir: PathBuf| Some(dir.join("src").join(RELEASE)).filter(|dir| dir.is_dir());
    in_registry().and_then(with_release).or_else(|| from_metadata().and_then(with_release))
}

/// Cargo's usual place, without running anything.
fn in_registry() -> Option<PathBuf> {
    let version = locked_version()?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry").join("src")).ok()?;
    registries.flatten().map(|dir| dir.path().join(format!("{CRATE}-{version}"))).find(|dir| dir.is_dir())
}

fn locked_version() -> Option<String> {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let lock = manifest.ancestors().map(|dir| dir.join("Cargo.lock")).find(|file| file.is_file())?;
    let text = fs::read_to_string(lock).ok()?;
    let entry = text.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{CRATE}\"\n")))?;
    Some(entry.split("version = \"").nth(1)?.split('"').next()?.to_owned())
}

/// What cargo says, for vendored sources and other arrangements.
fn from_metadata() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO")?;
    let mut command = Command::new(cargo);
    let output = command.args(["metadata", "--format-version", "1", "--offline", "--locked"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // The one path that we want is easier cut out than parsed.
    let tail = format!("{CRATE}-");
    let path = text.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next()).find(|path| {
        let dir = Path::new(path).parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or("");
        dir == CRATE || dir.starts_with(&tail)
    })?;
    Path::new(path).parent().map(Path::to_owned)
}

// ---------------------------------------------------------------------------------------------------- what they say

/// One block a type: its name, then `json-name<tab>description` lines, the type's own under an empty name.
fn collect(dir: &Path, wanted: &BTreeSet<String>) -> Result<String, Box<dyn Error>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)?;
                let name = text.lines().next().and_then(|line| line.strip_prefix("// Generated from definition "));
                if let Some(name) = name.filter(|name| wanted.contains(*name)) {
                    found.insert(name.to_owned(), describe(&text));
                }
            }
        }
    }
    let mut out = String::new();
    for (name, descriptions) in found {
        out.push_str(&format!("= {name}\n"));
        for (field, description) in descriptions {
            out.push_str(&format!("{field}\t{}\n", description.replace('\\', "\\\\").replace('\n', "\\n")));
        }
    }
    Ok(out)
}

fn describe(text: &str) -> Vec<(String, String)> {
    let mut json_names = BTreeMap::new();
    for line in text.lines() {
        if let Some((quoted, key)) = line.trim().split_once(" => Field::Key_") {
            json_names.insert(key.trim_end_matches(','), quoted.trim_matches('"'));
        }
    }
    let mut descriptions = Vec::new();
    let mut doc: Vec<String> = Vec::new();
    for line in text.lines().skip(1) {
        let trimmed = line.trim();
        if let Some(words) = trimmed.strip_prefix("///") {
            doc.push(plain(words.strip_prefix(' ').unwrap_or(words)));
        } else if trimmed.starts_with("pub struct ") || trimmed.starts_with("pub enum ") {
            descriptions.push((String::new(), take(&mut doc)));
            if !trimmed.ends_with('{') {
                break;
            }
        } else if let Some((ident, _)) = trimmed.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
            let words = take(&mut doc);
            if let Some(name) = json_names.get(ident.trim_start_matches("r#")) {
                descriptions.push(((*name).to_owned(), words));
            }
        } else if line == "}" {
            break;
        }
    }
    descriptions.retain(|(_, words)| !words.is_empty());
    descriptions
}

fn take(doc: &mut Vec<String>) -> String {
    let words = doc.join("\n").trim().to_owned();
    doc.clear();
    words
}

/// The text without the escapes that rustdoc needs.
fn plain(words: &str) -> String {
    let mut plain = String::with_capacity(words.len());
    let mut chars = words.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('[' | ']' | '<' | '>')) => {}
            _ => plain.push(c),
        }
    }
    plain
}
