//! How a new control node gets into a cluster: it fetches the cluster's CA, compares it with the hash in its token, and
//! only then sends the token's secret. One that lost its data may show the certificate that it still has instead. What it
//! gets back, the key of the CA above all, it keeps; nothing is kept, and nothing moved away, before the cluster has taken
//! it in.

use crate::admit::Settings;
use crate::member::{ClusterId, Member, MemberFile};
use crate::pki::{Given, Kept};
use crate::{Config, ServerError, pki, rebuild};
use bytes::Bytes;
use dhow_client::{Client, ClientError, Method};
use dhow_gate::authorize::MEMBER_JOIN_PATH;
use dhow_pki::token::JoinToken;
use dhow_pki::{Ca, Identity};
use dhow_types::Chain;
use serde::Deserialize;
use serde_json::{Value as Tree, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Which cluster to join.
#[derive(Clone)]
pub struct Join {
    /// Any of its control nodes, `https://ip:port`.
    pub server: String,
    /// The token that `dhow member add` has printed. Empty for a member that lost its data and still has its certificate.
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
    certificate: String,
    ca: String,
    /// A witness gets none.
    ca_key: Option<String>,
    admin: Option<Admin>,
    members: Vec<Member>,
}

/// What a witness cannot make by itself.
#[derive(Deserialize)]
struct Admin {
    certificate: String,
    key: String,
}

/// Who wants to join.
pub(crate) struct Newcomer<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: SocketAddr,
    pub(crate) witness: bool,
    pub(crate) settings: Settings,
    /// What it shows if it has no token: it was a member.
    pub(crate) former: Option<Former>,
}

impl Newcomer<'_> {
    fn request(&self, key_pem: &str) -> Result<Bytes, ServerError> {
        let mut request = json!(self.settings);
        request["name"] = self.name.into();
        request["address"] = self.address.to_string().into();
        request["csr"] = dhow_pki::csr_for(key_pem, self.name)?.into();
        request["witness"] = self.witness.into();
        Ok(request.to_string().into())
    }
}

/// What is left of a member that lost its data.
pub(crate) struct Former {
    pub(crate) ca_pem: String,
    pub(crate) identity: Identity,
}

/// What a cluster is told with a request to join.
enum Credential {
    Token(JoinToken),
    Former(Former),
}

/// A member that was taken in.
pub(crate) struct Joined {
    pub(crate) file: MemberFile,
    pub(crate) kept: Kept,
    /// Where what was in the data directory before is now.
    pub(crate) set_aside: Option<PathBuf>,
}

/// The ranges and the version of a control node that is started so.
pub(crate) fn settings(config: &Config) -> Settings {
    Settings {
        service_cidr: config.service_cidr.clone(),
        cluster_cidr: config.cluster_cidr.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Joins, and keeps what a member must have. From then on the data directory is that member's.
pub(crate) async fn join(join: &Join, who: Newcomer<'_>, dir: &Path) -> Result<Joined, ServerError> {
    let server = join.server.trim_end_matches('/');
    let refused = |why: &str| ServerError::Join { server: server.to_owned(), why: why.to_owned() };
    let key_pem = dhow_pki::new_key()?;
    let (request, witness) = (who.request(&key_pem)?, who.witness);
    let credential = match who.former {
        Some(former) if join.token.trim().is_empty() => Credential::Former(former),
        None if join.token.trim().is_empty() => {
            let why = format!("no token: add `--token TOKEN`; `dhow member add {}` prints one there", who.name);
            return Err(refused(&why));
        }
        _ => Credential::Token(
            join.token.trim().parse().map_err(|error: dhow_pki::token::TokenError| refused(&error.to_string()))?,
        ),
    };
    let (answer, credential) = ask(server, credential, request).await?;
    let malformed = |error: &dyn std::fmt::Display| refused(&format!("its answer cannot be understood: {error}"));
    let answer: Answer = serde_json::from_value(answer).map_err(|error| malformed(&error))?;
    // What the server calls the CA must be what is trusted already.
    let is_trusted = match &credential {
        Credential::Token(token) => token.accepts(&answer.ca)?,
        Credential::Former(former) => former.ca_pem == answer.ca,
    };
    if !is_trusted {
        return Err(refused(OTHER_CA));
    }
    let ca = match (&answer.ca_key, witness) {
        (Some(key), _) => Ca::load(&answer.ca, key)?,
        (None, true) => Ca::without_key(&answer.ca)?,
        (None, false) => return Err(malformed(&"it lacks the CA's key")),
    };
    let cluster: ClusterId = answer.cluster.parse().map_err(|error: String| malformed(&error))?;
    let me = answer.members.iter().find(|member| member.id == answer.id).cloned();
    let me = me.ok_or_else(|| malformed(&"it does not name this member"))?;
    let identity = Identity { cert_pem: answer.certificate, key_pem: key_pem.clone() };
    let given = match (witness, answer.admin) {
        (false, _) => None,
        (true, Some(Admin { certificate, key })) => {
            Some(Given { identity, admin: Some(Identity { cert_pem: certificate, key_pem: key }) })
        }
        (true, None) => return Err(malformed(&"it lacks the administrator's certificate")),
    };
    let set_aside = rebuild::set_aside(dir)?;
    let kept = Kept { ca, given };
    pki::keep(dir, &key_pem, &kept)?;
    let file = MemberFile::new(cluster, &me, answer.members);
    file.save(dir)?;
    Ok(Joined { file, kept, set_aside })
}

const OTHER_CA: &str =
    "it has another CA than the one that the token was made for: use its own token, of `dhow member add`";

/// How long a cluster without a leader is asked again: an election of a busy machine, and another one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts.
const REST: Duration = Duration::from_millis(250);

/// Whether the cluster may say something else in a moment. A witness says itself who can be asked instead of it.
fn is_passing(error: &ClientError) -> bool {
    error.status().is_some_and(|status| status.code == 503 && !status.message.contains("is a witness"))
}

/// Asks to be taken in, once it is certain who is asked.
async fn ask(server: &str, credential: Credential, request: Bytes) -> Result<(Tree, Credential), ServerError> {
    let lost = |error: ClientError| ServerError::Join { server: server.to_owned(), why: Chain(&error).to_string() };
    let refused = |why: &str| ServerError::Join { server: server.to_owned(), why: why.to_owned() };
    let (ca_pem, identity, token) = match &credential {
        Credential::Former(former) => (former.ca_pem.clone(), Some(former.identity.clone()), None),
        Credential::Token(token) => {
            let ca_pem = dhow_client::bootstrap_get(server, "/cacerts").await.map_err(lost)?;
            let ca_pem = String::from_utf8(ca_pem.to_vec()).map_err(|_| refused(OTHER_CA))?;
            if !token.accepts(&ca_pem)? {
                return Err(refused(OTHER_CA));
            }
            (ca_pem, None, Some(token.bearer()))
        }
    };
    let by_token = token.is_some();
    let config = dhow_client::Config {
        server: server.to_owned(),
        others: Vec::new(),
        ca_pem: Some(ca_pem),
        identity,
        token,
        namespace: "default".to_owned(),
    };
    let client = Client::new(config).map_err(lost)?;
    let end = Instant::now() + PATIENCE;
    let answer = loop {
        let body = Some(("application/json", request.clone()));
        match client.json(Method::POST, MEMBER_JOIN_PATH, body).await {
            // The same once more does no harm: whoever is taken in twice takes its own place.
            Err(error) if is_passing(&error) && Instant::now() < end => tokio::time::sleep(REST).await,
            answer => break answer,
        }
    };
    let answer = answer.map_err(|error| match error.status() {
        Some(status) if status.code == 401 && by_token => {
            refused("the token is not known or has expired: make another with `dhow member add`")
        }
        Some(status) if status.code == 401 => {
            refused("this control node's certificate is not good any more: join with a token of `dhow member add`")
        }
        Some(status) if status.code == 403 && by_token => {
            refused("the token is one for agents: a control node needs its own, which `dhow member add` makes")
        }
        _ => lost(error),
    })?;
    Ok((answer, credential))
}
