//! The certificates of a witness, which holds no key to make any: it was given them when it joined, and asks the other
//! control nodes for fresh ones.
//!
//! A witness stands where a site is trusted less or has little room. It holds the end of the log, and neither the objects
//! nor the CA's key; its own certificate opens nothing but the list of members. Its kubeconfig is an administrator's all the
//! same, as every control node's: who does not want one there deletes it together with `pki/admin.*` and takes another's.

use crate::ServerError;
use crate::app::App;
use crate::pki::{self, Given};
use bytes::Bytes;
use dhow_api::{Tree, meta};
use dhow_client::{Client, Method};
use dhow_gate::authorize::RENEW_PATH;
use dhow_pki::Identity;
use dhow_types::Chain;
use serde_json::json;
use std::sync::PoisonError;
use std::time::Duration;

/// How long another control node may take to answer before the next one is asked.
const ASK: Duration = Duration::from_secs(5);

/// This member's own certificate, fresh and kept.
pub(crate) async fn renew_own(app: &App) -> Result<Identity, ServerError> {
    let identity = renewed(app, app.certs.identity()).await?;
    keep(app, |given| given.identity = identity.clone())?;
    Ok(identity)
}

/// The administrator's, fresh and kept. It is asked for by itself: this member's own certificate gives no right to it.
pub(crate) async fn renew_admin(app: &App, admin: &Identity) -> Result<Identity, ServerError> {
    let admin = renewed(app, admin.clone()).await?;
    keep(app, |given| given.admin = given.admin.as_ref().map(|_| admin.clone()))?;
    Ok(admin)
}

fn keep(app: &App, change: impl FnOnce(&mut Given)) -> Result<(), ServerError> {
    let dir = app.file.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
    let Some(mut given) = pki::load(&dir, true)?.and_then(|kept| kept.given) else { return Ok(()) };
    change(&mut given);
    pki::keep_given(&dir, &given)
}

/// Who keeps an administrator's certificate, by the request for it.
pub(crate) fn holder_of(request: &Tree) -> &str {
    meta::text(request, "holder")
}

/// Asks one full member after the other for a fresh certificate of the same key.
async fn renewed(app: &App, identity: Identity) -> Result<Identity, ServerError> {
    let refused = |why: String| ServerError::Refused(why);
    let csr = dhow_pki::csr_for(&identity.key_pem, "")?;
    let request = Bytes::from(json!({"csr": csr, "holder": app.member.name}).to_string());
    let mut last = "no control node that holds the key of the CA is known".to_owned();
    for member in app.known_members().into_iter().filter(|member| !member.witness) {
        let config = dhow_client::Config {
            server: member.url(),
            others: Vec::new(),
            ca_pem: Some(app.certs.ca.cert_pem().to_owned()),
            identity: Some(identity.clone()),
            token: None,
            namespace: "default".to_owned(),
        };
        let client = Client::new(config).map_err(|error| refused(Chain(&error).to_string()))?;
        let asked = client.json(Method::POST, RENEW_PATH, Some(("application/json", request.clone())));
        match tokio::time::timeout(ASK, asked).await {
            Ok(Ok(answer)) => {
                let cert_pem = meta::text(&answer, "certificate").to_owned();
                dhow_pki::facts_of_pem(&cert_pem)?;
                return Ok(Identity { cert_pem, key_pem: identity.key_pem });
            }
            Ok(Err(error)) => last = format!("`{}` refuses: {}", member.name, Chain(&error)),
            Err(_) => last = format!("`{}` does not answer", member.name),
        }
    }
    Err(refused(last))
}
