//! How a new control node gets into a cluster: it fetches the cluster's CA, compares it with the hash in its token, and
//! only then sends the token's secret. What it gets back, the key of the CA above all, it keeps; nothing is kept before
//! the cluster has taken it in.

use crate::member::{ClusterId, Member, MemberFile};
use crate::{ServerError, pki};
use bytes::Bytes;
use dhow_client::{Client, ClientError, Method};
use dhow_gate::authorize::MEMBER_JOIN_PATH;
use dhow_pki::Ca;
use dhow_pki::token::JoinToken;
use dhow_types::Chain;
use serde::Deserialize;
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;

/// Which cluster to join.
#[derive(Clone)]
pub struct Join {
    /// Any of its control nodes, `https://ip:port`.
    pub server: String,
    /// The token that `dhow member add` has printed.
    pub token: String,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("server", &self.server).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    id: u64,
    cluster: String,
    ca: String,
    ca_key: String,
    members: Vec<Member>,
}

/// Who wants to join.
pub(crate) struct Newcomer<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: SocketAddr,
    pub(crate) witness: bool,
}

/// Joins, and keeps what a member must have. From then on the data directory is that member's.
pub(crate) async fn join(join: &Join, who: &Newcomer<'_>, dir: &Path) -> Result<(MemberFile, Ca), ServerError> {
    let server = join.server.trim_end_matches('/');
    let lost = |error: ClientError| ServerError::Join { server: server.to_owned(), why: Chain(&error).to_string() };
    let refused = |why: &str| ServerError::Join { server: server.to_owned(), why: why.to_owned() };
    let token: JoinToken =
        join.token.trim().parse().map_err(|error: dhow_pki::token::TokenError| refused(&error.to_string()))?;
    let ca_pem = dhow_client::bootstrap_get(server, "/cacerts").await.map_err(lost)?;
    let other = "it has another CA than the one that the token was made for: use its own token, of `dhow member add`";
    let ca_pem = String::from_utf8(ca_pem.to_vec()).map_err(|_| refused(other))?;
    if !token.accepts(&ca_pem)? {
        return Err(refused(other));
    }
    pki::create_dir(dir)?;
    let key_pem = pki::server_key(dir)?;
    let csr = dhow_pki::csr_for(&key_pem, who.name)?;
    let config = dhow_client::Config {
        server: server.to_owned(),
        others: Vec::new(),
        ca_pem: Some(ca_pem),
        identity: None,
        token: Some(token.bearer()),
        namespace: "default".to_owned(),
    };
    let client = Client::new(config).map_err(lost)?;
    let body = json!({
        "name": who.name, "address": who.address, "csr": csr, "witness": who.witness, "version": env!("CARGO_PKG_VERSION"),
    });
    let body = Bytes::from(body.to_string());
    let answer = client.json(Method::POST, MEMBER_JOIN_PATH, Some(("application/json", body))).await;
    let answer = answer.map_err(|error| match error.status() {
        Some(status) if status.code == 401 => {
            refused("the token is not known or has expired: make another with `dhow member add`")
        }
        Some(status) if status.code == 403 => {
            refused("the token is one for agents: a control node needs its own, which `dhow member add` makes")
        }
        _ => lost(error),
    })?;
    let malformed = |error: &dyn std::fmt::Display| refused(&format!("its answer cannot be understood: {error}"));
    let answer: Answer = serde_json::from_value(answer).map_err(|error| malformed(&error))?;
    // What the server calls the CA must be what the token vouches for.
    if !token.accepts(&answer.ca)? {
        return Err(refused(other));
    }
    let ca = Ca::load(&answer.ca, &answer.ca_key)?;
    let cluster: ClusterId = answer.cluster.parse().map_err(|error: String| malformed(&error))?;
    let me = answer.members.iter().find(|member| member.id == answer.id).cloned();
    let me = me.ok_or_else(|| malformed(&"it does not name this member"))?;
    pki::keep_ca(dir, &ca)?;
    let file = MemberFile::new(cluster, &me, answer.members);
    file.save(dir)?;
    Ok((file, ca))
}
