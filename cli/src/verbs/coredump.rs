//! `dhow coredump`: what a container left in memory when it trapped, for a debugger.

use crate::kube::{Global, checked_name};
use crate::output;
use anyhow::{Context as _, bail};
use dhow_client::{escape, refusal, resource_path};
use http::Method;
use http_body_util::BodyExt as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Whose.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The pod, which has the annotation `dhow.dev/core-dump: "true"`
    pod: String,
    /// The container; the first one by default
    #[arg(short, long)]
    container: Option<String>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", default_value = "core.wasm")]
    output: PathBuf,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let name = checked_name("pod", args.pod)?;
    let pod = session.client.get(&resource_path("", "v1", "pods", Some(&session.namespace), Some(&name))).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        bail!("pod `{name}` has not been scheduled: it has left nothing");
    }
    let first = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default().to_owned();
    let container = args.container.unwrap_or(first);
    let node = resource_path("", "v1", "nodes", None, Some(node));
    let path = format!("{node}/proxy/coreDump/{}/{}/{}", session.namespace, escape(&name), escape(&container));
    let answer = session.client.stream(Method::GET, &path, "*/*", None).await?;
    let (head, mut body) = answer.into_parts();
    if !head.status.is_success() {
        let said = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(refusal(head.status.as_u16(), &said).into());
    }
    // Whoever may read the guest's memory is its owner.
    let failed = || format!("writing `{}`", args.output.display());
    let mut file = dhow_files::NewFile::create(&args.output, dhow_files::Access::Private).with_context(failed)?;
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the core dump broke off")?;
        if let Ok(piece) = frame.into_data() {
            bytes += piece.len();
            file.write_all(&piece).with_context(failed)?;
        }
    }
    file.commit().with_context(failed)?;
    output::line(format!("wrote {} ({bytes} bytes)", args.output.display()));
    Ok(())
}
