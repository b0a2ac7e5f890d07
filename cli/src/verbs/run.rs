//! `dhow run`: an image or a Wasm file as a Deployment with a Service.

use crate::kube::Global;
use crate::output;
use crate::verbs::push;
use anyhow::{Context as _, bail};
use dhow_client::{ClientError, resource_path};
use serde_json::{Value as Tree, json};
use sha2::{Digest as _, Sha256};
use std::path::Path;

/// The port on which an HTTP component serves when nothing else is said.
const DEFAULT_PORT: u16 = 8080;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name of the Deployment and the Service
    name: String,
    /// An image, or a path to a Wasm file such as `./hello.wasm`, which is pushed first
    #[arg(long)]
    image: String,
    /// The port that the program listens on, and the Service offers
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// The number of pods
    #[arg(long, default_value_t = 1)]
    replicas: u32,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    check_image(&args.image)?;
    let session = global.session()?;
    let file = Path::new(&args.image);
    let is_path = args.image.ends_with(".wasm") && !args.image.starts_with("file://");
    let image = if is_path {
        let bytes = std::fs::read(file).with_context(|| format!("reading `{}`", file.display()))?;
        // The tag is the content's hash: another content is another image, so that pods never run a stale one.
        let hash: String = Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let image = format!("{}:{hash}", args.name);
        push::push(&session, file, &image).await?;
        image
    } else {
        args.image.clone()
    };
    let labels = json!({"app": args.name});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": args.name, "labels": labels},
        "spec": {
            "replicas": args.replicas, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": args.name, "image": image, "ports": [{"containerPort": args.port}]}]},
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": args.name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"port": args.port, "targetPort": args.port}]},
    });
    let namespace = Some(session.namespace.as_str());
    for (path, tree) in [
        (resource_path("apps", "v1", "deployments", namespace, None), deployment),
        (resource_path("", "v1", "services", namespace, None), service),
    ] {
        let kind = tree["kind"].as_str().unwrap_or_default().to_lowercase();
        let created: Result<Tree, ClientError> = session.client.create(&path, &tree).await;
        match created {
            Ok(_) => output::line(format!("{kind}/{} created", args.name)),
            Err(err) if err.is(409) => {
                bail!("{err}\nhint: `dhow delete deployment/{0} service/{0}` first, or choose another name", args.name)
            }
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// Refuses what is a path, but not one that is pushed: no image begins so.
fn check_image(image: &str) -> anyhow::Result<()> {
    if image.starts_with(['.', '/']) && !image.ends_with(".wasm") {
        bail!("`{image}` is neither an image nor a path to a .wasm file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_wasm_file_is_refused() {
        for (image, good) in [
            ("./a.wasm", true),
            ("/a/b.wasm", true),
            ("a.wasm", true),
            ("hello:1.0", true),
            ("registry.example/a/b@sha256:0", true),
            ("file:///a/b.txt", true),
            ("./x.yaml", false),
            ("../x", false),
            ("/x/y", false),
            (".", false),
        ] {
            assert_eq!(check_image(image).is_ok(), good, "{image}");
        }
    }
}
