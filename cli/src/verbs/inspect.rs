//! `dhow inspect`: what a program is and what a Pod of it needs, without running it.

use crate::kube::Global;
use crate::output;
use anyhow::{Context as _, bail};
use dhow_engine::Description;
use dhow_image::{Keyring, Registries, Sources, Store};
use dhow_runtime_contract::{EntryPoint, HTTP_PORT_DEFAULT, PullPolicy};
use serde_json::{Value as Tree, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Which program.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A Wasm file, or an image: of the cluster's registry, or of any other
    program: String,
    /// Mirrors, authorities, credentials and keys of registries, as for `dhow agent`
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// Pull secrets in the form of Docker's `config.json`
    #[arg(long, value_name = "FILE")]
    auth_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where the program is from.
struct Found {
    bytes: Vec<u8>,
    /// The image's name and its manifest's digest.
    image: Option<(String, String)>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Found { bytes, image } = match source(&args.program) {
        Source::File(path) if path.is_dir() => {
            bail!("`{}` is a directory: name a Wasm file in it, or an image", path.display());
        }
        Source::File(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
            Found { bytes, image: None }
        }
        Source::Toolbox => {
            let image = (dhow_toolbox::IMAGE.to_owned(), dhow_toolbox::digest());
            Found { bytes: dhow_toolbox::WASM.to_vec(), image: Some(image) }
        }
        Source::Image => pull(&args, global).await?,
    };
    let description = dhow_engine::describe(&bytes).with_context(|| format!("`{}`", args.program))?;
    if args.json {
        output::line(document(&description, image.as_ref()).to_string());
    } else {
        output::write_all(page(&args.program, &description, image.as_ref()).as_bytes());
    }
    Ok(())
}

/// What a word names.
enum Source<'a> {
    File(&'a Path),
    /// What every node has, and no registry.
    Toolbox,
    Image,
}

/// What is there is meant; what is not there and looks like a file was meant to be one.
fn source(program: &str) -> Source<'_> {
    let path = Path::new(program);
    let is_path = ["/", "./", "../"].iter().any(|start| program.starts_with(start)) || program.ends_with(".wasm");
    if path.exists() || is_path {
        Source::File(path)
    } else if dhow_toolbox::is_image(program) {
        Source::Toolbox
    } else {
        Source::Image
    }
}

/// Fetches an image for the time of this call.
async fn pull(args: &Args, global: &Global) -> anyhow::Result<Found> {
    let reference: dhow_image::Reference =
        args.program.parse().with_context(|| format!("`{}` is no file, and no image", args.program))?;
    // For another registry the cluster is not asked, and need not be there.
    let client = if reference.registry.is_none() { Some(global.session()?.client) } else { None };
    let registries = args.registry_config.as_deref().map(Registries::load).transpose()?.unwrap_or_default();
    let mut secrets = Keyring::default();
    if let Some(path) = &args.auth_file {
        let text = std::fs::read(path).with_context(|| format!("reading `{}`", path.display()))?;
        secrets.add_config_json(&text).with_context(|| format!("`{}`", path.display()))?;
    }
    let dir = tempfile::tempdir().context("making a directory for the image")?;
    let sources = Sources { client: client.as_ref(), registries: &registries, secrets: &secrets, allow_files: false };
    let image = Store::open(dir.path())?.pull(&args.program, PullPolicy::Always, sources).await?;
    let bytes = std::fs::read(&image.path).with_context(|| format!("reading `{}`", image.path.display()))?;
    Ok(Found { bytes, image: Some((image.reference, image.manifest)) })
}

fn document(description: &Description, image: Option<&(String, String)>) -> Tree {
    let mut tree = json!(description);
    if let Some((name, digest)) = image {
        tree["image"] = json!({"name": name, "digest": digest});
    }
    tree
}

/// What a person reads.
fn page(program: &str, found: &Description, image: Option<&(String, String)>) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        // Writing to a text does not fail.
        let _written = writeln!(text, "{:<13}{value}", format!("{name}:"));
    };
    match image {
        None => field("File", program),
        Some((name, digest)) => {
            field("Image", name);
            field("Digest", digest);
        }
    }
    field("Kind", found.kind);
    field("Size", &format!("{} bytes", found.size));
    field("Entry point", entry(found.entry));
    let backtraces = match (found.has_dwarf, found.has_names) {
        (true, _) => "with functions and lines",
        (false, true) => "with functions",
        (false, false) => "with numbers of functions: it was stripped",
    };
    field("Backtraces", backtraces);
    list(&mut text, "Producers", &found.producers);
    list(&mut text, "Imports", &found.imports);
    list(&mut text, "Exports", &found.exports);
    list(&mut text, "A Pod needs", &needs(found));
    if !found.missing.is_empty() {
        list(&mut text, "No node offers", &found.missing);
    }
    text
}

fn list(text: &mut String, name: &str, lines: &[String]) {
    let head = if lines.is_empty() { " none" } else { "" };
    // Writing to a text does not fail.
    let _written = writeln!(text, "{name}:{head}");
    for line in lines {
        let _written = writeln!(text, "  {line}");
    }
}

fn entry(entry: Option<EntryPoint>) -> &'static str {
    match entry {
        Some(EntryPoint::Http) => "HTTP: called for each request",
        Some(EntryPoint::Command) => "command: runs once, to its end",
        None => "none: it cannot run, it was built as a library",
    }
}

/// What a Pod has to say, or to know.
fn needs(found: &Description) -> Vec<String> {
    let mut lines = Vec::new();
    match found.entry {
        Some(EntryPoint::Http) => lines
            .push(format!("ports: the containerPorts that it is served on; {HTTP_PORT_DEFAULT} if the Pod names none")),
        Some(EntryPoint::Command) => {
            let serves = found.imports.iter().any(|name| name.starts_with("wasi:sockets/tcp"));
            lines.push("restartPolicy: OnFailure or Never, unless it is meant to run for ever".to_owned());
            if serves {
                lines.push("ports: those that it listens on, if it does; it may use sockets".to_owned());
            }
        }
        None => {}
    }
    let mib = found.memory_min.div_ceil(1 << 20).max(1);
    lines.push(format!("resources.limits.memory: at least {mib}Mi, or none; it begins with that much"));
    if found.imports.iter().any(|name| name.starts_with("wasi:filesystem/") || name.ends_with(".path_open")) {
        lines.push("volumeMounts: for the files that it is to see; without them it sees its own few only".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_a_pod_has_to_give_and_what_nobody_can() {
        let module = r#"(module (import "wasi_snapshot_preview1" "path_open" (func)) (import "env" "magic" (func))
            (memory 17) (func (export "_start")))"#;
        let found = dhow_engine::describe(&wat::parse_str(module).unwrap()).unwrap();
        let text = page("app.wasm", &found, None);
        for part in [
            "File:        app.wasm\nKind:        module\n",
            "Entry point: command: runs once, to its end\n",
            "Backtraces:  with numbers of functions: it was stripped\nProducers: none\n",
            "Imports:\n  env.magic\n  wasi_snapshot_preview1.path_open\n",
            "at least 2Mi",
            "volumeMounts",
            "No node offers:\n  env.magic\n",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let http = r#"(component (instance $i) (export "wasi:http/incoming-handler@0.2.0" (instance $i)))"#;
        let found = dhow_engine::describe(&wat::parse_str(http).unwrap()).unwrap();
        let image = ("hello:1.0".to_owned(), "sha256:ab".to_owned());
        let text = page("hello", &found, Some(&image));
        assert!(text.starts_with("Image:       hello:1.0\nDigest:      sha256:ab\nKind:        component\n"), "{text}");
        assert!(text.contains("8080 if the Pod names none") && !text.contains("No node offers"), "{text}");
        assert_eq!(document(&found, Some(&image))["image"]["digest"], "sha256:ab");
        assert_eq!(document(&found, None)["entry"], "Http");
    }
}
