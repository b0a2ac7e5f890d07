//! Certificates: who gets which, when they are renewed, and the list of them.
//!
//! A control node holds the CA and makes its own certificate at every start and after two thirds of its life; what it
//! serves with and dials with is exchanged while it runs. Agents ask for theirs (`POST /dhow/v1/renew`), and so does a
//! witness, which does not hold the CA's key (`witness`). Every one that
//! is made is written down, so that `dhow certificate list` can tell which end when.

use crate::answer::{self, Answer, Style};
use crate::app::{App, now, seed};
use crate::body::RequestBody;
use crate::{ServerError, pki, witness, write};
use dhow_api::status::ApiError;
use dhow_api::{Tree, meta};
use dhow_gate::User;
use dhow_gate::user::MASTERS;
use dhow_pki::{Ca, Facts, Identity, PkiError, San, ServerCert, Subject, Usage};
use dhow_quic::{Endpoint, Tls};
use dhow_state::{Expect, Key, Op, Txn};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// The resource of the records. No kind has it.
const CERTIFICATES: &str = "certificates.dhow.dev";

/// How long a renewal waits at the longest before it looks at the clock again: a machine may have slept.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Not all members renew at the same moment: each comes up to a tenth of the remaining time earlier.
const JITTER_PARTS: u64 = 10;

/// The shortest time between two renewals, whatever the clock says.
const REST: Duration = Duration::from_secs(60);

/// What issues certificates, and what this member shows.
pub(crate) struct Certs {
    pub(crate) ca: Ca,
    key_pem: String,
    subject: Subject,
    names: Vec<San>,
    valid_ms: u64,
    shown: ServerCert,
    endpoint: Endpoint,
    /// The one that is shown now.
    current: std::sync::RwLock<Identity>,
}

/// What a member's own certificate is made of.
pub(crate) struct Own {
    pub(crate) key_pem: String,
    pub(crate) subject: Subject,
    pub(crate) names: Vec<San>,
    pub(crate) valid_ms: u64,
}

impl Own {
    /// Makes it.
    pub(crate) fn issue(&self, ca: &Ca) -> Result<Identity, PkiError> {
        ca.issue_for(&self.key_pem, &self.subject, &self.names, Usage::Both, now(), self.valid_ms)
    }
}

/// As QUIC wants it.
pub(crate) fn quic_tls(ca: &Ca, identity: &Identity) -> Tls {
    Tls { ca_pem: ca.cert_pem().to_owned(), cert_pem: identity.cert_pem.clone(), key_pem: identity.key_pem.clone() }
}

impl Certs {
    pub(crate) fn new(
        ca: Ca,
        own: Own,
        identity: Identity,
        endpoint: Endpoint,
    ) -> Result<(Certs, ServerCert), PkiError> {
        let shown = ServerCert::new(&identity)?;
        let Own { key_pem, subject, names, valid_ms } = own;
        let current = std::sync::RwLock::new(identity);
        let certs = Certs { ca, key_pem, subject, names, valid_ms, shown: shown.clone(), endpoint, current };
        Ok((certs, shown))
    }

    /// What this member shows, for its own calls to others.
    pub(crate) fn identity(&self) -> Identity {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// A certificate with a new key.
    pub(crate) fn issue(&self, subject: &Subject, names: &[San], usage: Usage) -> Result<Identity, PkiError> {
        self.ca.issue(subject, names, usage, now(), self.valid_ms)
    }

    /// A node's certificate for a key that only the node knows.
    pub(crate) fn sign_node(&self, name: &str, csr_pem: &str) -> Result<String, PkiError> {
        let (subject, names) = (pki::node_subject(name), [San::Dns(name.to_owned())]);
        self.ca.sign_csr(csr_pem, &subject, &names, Usage::Both, now(), self.valid_ms)
    }

    /// An administrator's certificate for a key that only they know.
    fn sign_admin(&self, csr_pem: &str) -> Result<String, PkiError> {
        self.ca.sign_csr(csr_pem, &pki::admin_subject(), &[], Usage::Client, now(), self.valid_ms)
    }

    /// A control node's certificate for a key that only it knows.
    pub(crate) fn sign_member(&self, id: u64, names: &[San], csr_pem: &str) -> Result<String, PkiError> {
        self.ca.sign_csr(csr_pem, &pki::member_subject(id), names, Usage::Both, now(), self.valid_ms)
    }

    /// Makes this member's certificate anew.
    fn make(&self) -> Result<Identity, PkiError> {
        self.ca.issue_for(&self.key_pem, &self.subject, &self.names, Usage::Both, now(), self.valid_ms)
    }

    /// Shows a certificate of this member from now on.
    fn show(&self, identity: Identity) -> Result<(), ServerError> {
        self.shown.replace(&identity)?;
        let renewed = self.endpoint.renew(&quic_tls(&self.ca, &identity));
        renewed.map_err(|error| ServerError::Refused(error.to_string()))?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = identity;
        Ok(())
    }

    /// The longest time between two looks at certificates: a third of the life of those that are made here. Only a test's
    /// is so short that it matters.
    pub(crate) fn pause(&self) -> Duration {
        Duration::from_millis(self.valid_ms / 3)
    }

    /// How long this member's certificate needs no renewal.
    fn rest(&self) -> Duration {
        let Ok(facts) = dhow_pki::facts_of_pem(&self.identity().cert_pem) else { return Duration::ZERO };
        let left_ms = facts.renew_after().ms_since(now());
        let jitter_ms = seed().map_or(0, |seed| seed % (left_ms / JITTER_PARTS + 1));
        Duration::from_millis(left_ms - jitter_ms)
    }
}

/// Renews this member's certificate for as long as it runs.
pub(crate) async fn keep_fresh(app: Arc<App>) {
    record(&app, &app.certs.identity().cert_pem, &app.member.name).await;
    // A witness that was off for long begins with a certificate that is over.
    let mut least = Duration::ZERO;
    loop {
        let rest = app.certs.rest().max(std::mem::replace(&mut least, REST.min(app.certs.pause())));
        let look = rest.min(LOOK_EVERY);
        if app.stop.or(tokio::time::sleep(look)).await.is_none() {
            return;
        }
        if look < rest {
            continue;
        }
        match renew_own(&app).await {
            Ok(()) => {
                info!("renewed this control node's certificate");
                record(&app, &app.certs.identity().cert_pem, &app.member.name).await;
            }
            Err(error) => warn!(error = %dhow_types::Chain(&error), "a certificate could not be renewed, tried again"),
        }
    }
}

async fn renew_own(app: &App) -> Result<(), ServerError> {
    let identity = match app.certs.ca.key_pem() {
        Some(_) => app.certs.make()?,
        None => witness::renew_own(app).await?,
    };
    app.certs.show(identity)
}

/// Writes down that a certificate was made. The list is for people: a member that cannot write now goes without.
pub(crate) async fn record(app: &App, cert_pem: &str, holder: &str) {
    let facts = match dhow_pki::facts_of_pem(cert_pem) {
        Ok(facts) => facts,
        Err(error) => return warn!(%error, "a certificate of our own cannot be read"),
    };
    let key = key_of(&facts.subject.common_name, holder);
    let record = json!({"metadata": {"name": &*key.name}, "spec": describe(&facts, holder)});
    let put = Op::Put { key, value: record.to_string().into(), expect: Expect::Any, expires: Some(facts.not_after) };
    if let Some(Err(error)) = app.stop.or(app.replica.write(Txn::one(put))).await {
        tracing::debug!(%error, "a certificate is not written down");
    }
}

/// Each control node has a certificate of the same administrator.
fn key_of(common_name: &str, holder: &str) -> Key {
    Key::new(CERTIFICATES, "", format!("{common_name}@{holder}"))
}

/// The records of what a control node holds.
pub(crate) fn keys_of_member(id: u64, name: &str) -> [Key; 2] {
    [key_of(&pki::member_subject(id).common_name, name), key_of(&pki::admin_subject().common_name, name)]
}

fn describe(facts: &Facts, holder: &str) -> Tree {
    let usage = match facts.usage {
        Some(Usage::Server) => "server",
        Some(Usage::Client) => "client",
        Some(Usage::Both) => "server, client",
        None => "authority",
    };
    let organizations: String = facts.subject.organizations.iter().map(|group| format!("O={group}, ")).collect();
    json!({
        "name": facts.subject.common_name,
        "subject": format!("{organizations}CN={}", facts.subject.common_name),
        "usage": usage,
        "notBefore": facts.not_before.to_rfc3339(),
        "notAfter": facts.not_after.to_rfc3339(),
        "renewAfter": facts.renew_after().to_rfc3339(),
        "holder": holder,
    })
}

/// GET `/dhow/v1/certificates`: the CA, then all that were written down and are not over.
pub(crate) fn list(app: &App) -> Result<Answer, ApiError> {
    let ca = dhow_pki::facts_of_pem(app.certs.ca.cert_pem()).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut certificates = vec![describe(&ca, "all control nodes")];
    let state = app.replica.state();
    certificates.extend(state.list(CERTIFICATES, None).filter_map(|record| record.tree().get("spec").cloned()));
    drop(state);
    Ok(answer::tree(200, &json!({"certificates": certificates}), Style::PLAIN))
}

/// POST `/dhow/v1/renew`: a fresh certificate for whoever shows a good one, or one that was.
pub(crate) async fn renew(app: &App, user: &User, body: RequestBody) -> Result<Answer, ApiError> {
    let body = write::read_body(body).await?;
    let request: Tree = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    let csr = meta::text(&request, "csr");
    let bad = |error: PkiError| {
        ApiError::bad_request(format!("the signing request cannot be read: {}", dhow_types::Chain(&error)))
    };
    let (certificate, holder) = match (user.node().or(user.expired_node()), user.member().or(user.expired_member())) {
        (Some(node), _) => (app.certs.sign_node(node, csr).map_err(bad)?, node.to_owned()),
        (None, Some(id)) => {
            let member = crate::member::all(&app.replica.state()).into_iter().find(|member| member.id == id);
            let member = member.ok_or_else(|| {
                ApiError::bad_request(format!("member {id} was removed: join anew with an empty data directory"))
            })?;
            let names = pki::member_names(member.address, &app.services);
            (app.certs.sign_member(id, &names, csr).map_err(bad)?, member.name)
        }
        (None, None) if user.name == pki::admin_subject().common_name && user.is_in(MASTERS) => {
            (app.certs.sign_admin(csr).map_err(bad)?, witness::holder_of(&request).to_owned())
        }
        (None, None) => {
            return Err(ApiError::bad_request(format!(
                "`{}` is neither a node nor a control node nor their administrator: only their certificates are renewed here",
                user.name
            )));
        }
    };
    info!(user = user.name, "renewed a certificate");
    record(app, &certificate, &holder).await;
    Ok(answer::tree(200, &json!({"certificate": certificate, "ca": app.certs.ca.cert_pem()}), Style::PLAIN))
}
