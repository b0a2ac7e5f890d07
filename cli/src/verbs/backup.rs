//! `dhow backup`: the whole cluster's state as one file.

use crate::kube::Global;
use crate::output;
use anyhow::{Context as _, bail};
use dhow_cli_core::members;
use dhow_files::{Access, NewFile};
use http::Method;
use http_body_util::BodyExt as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Where to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file; one that is there is replaced once the new one is complete
    file: PathBuf,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let path = &args.file;
    let response = session.client.stream(Method::GET, "/dhow/v1/backup", "application/octet-stream", None).await?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let bytes = body.collect().await.context("reading the server's answer")?.to_bytes();
        return Err(dhow_client::refusal(status.as_u16(), &bytes).into());
    }
    let writing = || format!("writing `{}`", path.display());
    // All secrets of the cluster are in it.
    let mut file = NewFile::create(path, Access::Private).with_context(writing)?;
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the backup broke off: nothing is kept of it, try again")?.into_data() else {
            continue;
        };
        size += u64::try_from(data.len())?;
        tokio::task::block_in_place(|| file.write_all(&data)).with_context(writing)?;
    }
    if size == 0 {
        bail!("the server sent an empty backup: nothing is kept of it");
    }
    tokio::task::block_in_place(|| file.commit()).with_context(writing)?;
    output::line(format!("backup: {}, {}", path.display(), members::bytes(size)));
    Ok(())
}
