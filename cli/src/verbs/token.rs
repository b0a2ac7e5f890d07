//! `dhow token`: tokens with which agents and control nodes join.

use crate::kube::Global;
use crate::output;
use anyhow::Context as _;
use clap::Subcommand;
use dhow_pki::token::JoinToken;
use http::Method;
use serde_json::json;

/// The group of those who may join as a control node, which holds the keys of the whole cluster.
const CONTROL_NODES: &str = "system:bootstrappers:dhow:control-nodes";

/// What to do with tokens.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a token for agents and control nodes, and print it
    Create {
        /// How many hours the token is valid
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
        hours: u32,
        /// The token is for agents only: no control node joins with it
        #[arg(long)]
        agent: bool,
    },
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Action::Create { hours, agent } = args.action;
    let session = global.session()?;
    let ca = session.client.request(Method::GET, "/cacerts", "*/*", None).await?;
    let ca = std::str::from_utf8(&ca.body).context("the cluster's CA certificate")?;
    let token = JoinToken::random(&dhow_pki::certificate_sha256_hex(ca)?)?;
    let expiration = crate::clock::now() + u64::from(hours) * 3_600_000;
    // A bootstrap token in the form of kubeadm, so that other tools understand it.
    let mut secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "expiration": expiration.to_rfc3339(),
            "usage-bootstrap-authentication": "true",
        },
    });
    if !agent {
        secret["stringData"]["auth-extra-groups"] = CONTROL_NODES.into();
    }
    session.client.create("/api/v1/namespaces/kube-system/secrets", &secret).await?;
    output::line(token.to_string());
    Ok(())
}
