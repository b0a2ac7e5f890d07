//! `dhow push`: a Wasm file into the cluster's registry.

use crate::kube::{Global, Session};
use crate::output;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use dhow_engine::LoadError;
use dhow_image::Reference;
use std::path::{Path, PathBuf};

/// Which file, under which name.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Wasm component or module
    file: PathBuf,
    /// The image's name and tag, such as `hello:1.0`
    name: String,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    push(&global.session()?, &args.file, &args.name).await
}

/// Pushes a file and says what it became.
pub(crate) async fn push(session: &Session, file: &Path, name: &str) -> anyhow::Result<()> {
    let reference: Reference = name.parse().with_context(|| format!("the image name `{name}`"))?;
    let bytes = std::fs::read(file).with_context(|| format!("reading `{}`", file.display()))?;
    // What cannot run is said to whoever built it, not to whoever finds its pods waiting.
    match dhow_engine::check(&bytes) {
        Err(LoadError::NotWasm { detail }) => bail!("`{}` is not a Wasm program: {detail}", file.display()),
        checked => checked.with_context(|| format!("`{}`", file.display()))?,
    }
    let digest = dhow_image::push(&session.client, Bytes::from(bytes), &reference).await?;
    output::line(format!("pushed {name} {digest}"));
    Ok(())
}
