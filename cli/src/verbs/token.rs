//! `dhow token`: tokens with which agents join.

use crate::kube::Global;
use crate::output;
use anyhow::Context as _;
use clap::Subcommand;
use dhow_pki::token::JoinToken;
use dhow_types::Time;
use http::Method;
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

/// What to do with tokens.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a token and print it
    Create {
        /// How many hours the token is valid
        #[arg(long, default_value_t = 24)]
        hours: u32,
    },
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Action::Create { hours } = args.action;
    let session = global.session()?;
    let ca = session.client.request(Method::GET, "/cacerts", "*/*", None).await?;
    let ca = std::str::from_utf8(&ca.body).context("the cluster's CA certificate")?;
    let token = JoinToken::random(&dhow_pki::certificate_sha256_hex(ca)?)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expiration = Time::from_secs(i64::try_from(now)?) + u64::from(hours) * 3_600_000;
    // A bootstrap token in the form of kubeadm, so that other tools understand it.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": {
            "token-id": token.id, "token-secret": token.secret, "expiration": expiration.to_rfc3339(),
            "usage-bootstrap-authentication": "true",
        },
    });
    session.client.create("/api/v1/namespaces/kube-system/secrets", &secret).await?;
    output::line(token.to_string());
    Ok(())
}
