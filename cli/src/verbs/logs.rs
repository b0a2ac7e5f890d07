//! `dhow logs`: prints what a container wrote.

use crate::kube::{Global, escape, pod_name};
use crate::output;
use anyhow::{Context as _, bail};
use dhow_client::resource_path;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value as Tree;

/// Whose log, and how much of it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A pod, or TYPE/NAME of what owns pods (`deployment/web`)
    pod: String,
    /// The container; needed when the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// The log of the container's previous run
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines
    #[arg(long)]
    tail: Option<u64>,
    /// Only lines of the last seconds
    #[arg(long, value_name = "SECONDS")]
    since_seconds: Option<u64>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let pod = pod_name(&session, &args.pod).await?;
    let mut query = Vec::new();
    query.extend(args.container.map(|name| format!("container={}", escape(&name))));
    query.extend(args.follow.then(|| "follow=true".to_owned()));
    query.extend(args.previous.then(|| "previous=true".to_owned()));
    query.extend(args.timestamps.then(|| "timestamps=true".to_owned()));
    query.extend(args.tail.map(|lines| format!("tailLines={lines}")));
    query.extend(args.since_seconds.map(|seconds| format!("sinceSeconds={seconds}")));
    let pod_path = resource_path("", "v1", "pods", Some(&session.namespace), Some(&pod));
    let path = format!("{pod_path}/log?{}", query.join("&"));
    let mut response = session.client.stream(Method::GET, &path, "*/*", None).await?;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        // The client goes on to the next control node: this one may be a witness.
        response = session.client.stream(Method::GET, &path, "*/*", None).await?;
    }
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let bytes = body.collect().await.context("reading the server's answer")?.to_bytes();
        let tree: Tree = serde_json::from_slice(&bytes).unwrap_or_default();
        bail!("{}", tree["message"].as_str().unwrap_or("the server refused"));
    }
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the log broke off")?.into_data() {
            output::write_all(&data);
        }
    }
    Ok(())
}
