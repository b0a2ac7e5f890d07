//! Who calls: the subject of the connection's client certificate, or the owner of a bearer token.

use crate::accounts;
use crate::app::{App, now};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dhow_api::Tree;
use dhow_api::meta;
use dhow_api::status::ApiError;
use dhow_gate::User;
use dhow_gate::token::{self, Holder, ISSUER, TokenFault};
use dhow_gate::user::{BOOTSTRAPPERS, CONTROL_BOOTSTRAPPERS};
use dhow_gate::write::View;
use dhow_state::Key;
use dhow_types::Time;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

/// What a caller has shown when it connected.
pub(crate) struct Shown {
    user: User,
    /// A connection may outlive its certificate, so every request is looked at.
    not_after: Time,
}

/// Why a bearer's token speaks for nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BearerFault {
    /// Nobody here has made it, or it is not there any more.
    #[error("invalid bearer token")]
    Unknown,
    /// It is a service account's, and does not count now or here.
    #[error("invalid bearer token: {0}")]
    Account(#[from] TokenFault),
}

/// The caller of a request. A bad credential is an error, no credential is nobody.
pub(crate) fn authenticate(app: &App, certificate: Option<&Shown>, headers: &HeaderMap) -> Result<User, ApiError> {
    if let Some(Shown { user, not_after }) = certificate {
        if now() <= *not_after {
            return Ok(user.clone());
        }
        return user.clone().expired().ok_or_else(ApiError::unauthorized);
    }
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
    let value = value.to_str().map_err(|_| ApiError::unauthorized())?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            let found = bearer(app, token.trim(), &[ISSUER.to_owned()]);
            found.map(|holder| holder.user).map_err(|fault| {
                tracing::debug!(%fault, "a request with a token is refused");
                ApiError::unauthorized()
            })
        }
        _ => Ok(User::anonymous()),
    }
}

/// Whom a token speaks for towards these audiences: a join token, which is for this server alone, or a service account's.
pub(crate) fn bearer(app: &App, token: &str, audiences: &[String]) -> Result<Holder, BearerFault> {
    let (view, now) = (app.view(), now());
    if let Some(user) = bootstrap_user(token, &view, now) {
        let shared = [ISSUER.to_owned()].into_iter().filter(|own| audiences.contains(own)).collect::<Vec<_>>();
        return if shared.is_empty() { Err(BearerFault::Unknown) } else { Ok(Holder { user, audiences: shared }) };
    }
    let key = accounts::key(app).map_err(|_| BearerFault::Unknown)?;
    let claims: Tree = key.verify(token).ok_or(BearerFault::Unknown)?;
    Ok(token::holder(&claims, audiences, &view, now)?)
}

/// Who a certificate speaks for that the TLS layer has verified, all but its age.
pub(crate) fn certificate_user(der: &[u8]) -> Option<Shown> {
    let facts = dhow_pki::facts_of(der).ok()?;
    let subject = facts.subject;
    let user = || User::authenticated(subject.common_name.clone(), subject.organizations.clone());
    (!subject.common_name.is_empty()).then(|| Shown { user: user(), not_after: facts.not_after })
}

/// The name of the Secret that holds a join token.
pub(crate) fn token_secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// Its type.
pub(crate) const TOKEN_SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// The key of a token's Secret that names further groups of its holder, with commas between.
pub(crate) const EXTRA_GROUPS: &str = "auth-extra-groups";

/// The user of a join token `<id>.<secret>` that exists, is meant for this, and has not expired.
fn bootstrap_user(token: &str, view: &dyn View, now: Time) -> Option<User> {
    let (id, secret) = token.split_once('.')?;
    let well_formed = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !well_formed(id, 6) || !well_formed(secret, 16) {
        return None;
    }
    let tree = view.get(&Key::new("secrets", "kube-system", token_secret_name(id)))?.tree();
    let value = |key: &str| secret_value(&tree, key);
    let valid = meta::text(&tree, "type") == TOKEN_SECRET_TYPE
        && !meta::is_deleting(&tree)
        && value("token-id")? == id
        && same(&value("token-secret")?, secret)
        && value("usage-bootstrap-authentication").is_some_and(|usage| usage == "true")
        && value("expiration").is_none_or(|at| Time::parse(&at).is_ok_and(|at| now < at));
    let extra = value(EXTRA_GROUPS).unwrap_or_default();
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    // No other group can be had by a token, whatever its Secret says.
    groups.extend(extra.split(',').map(str::trim).filter(|group| *group == CONTROL_BOOTSTRAPPERS).map(str::to_owned));
    valid.then(|| User::authenticated(format!("system:bootstrap:{id}"), groups))
}

/// The text under a key of a Secret.
pub(crate) fn secret_value(secret: &Tree, key: &str) -> Option<String> {
    let text = meta::map(secret, "data")?.get(key)?.as_str()?;
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

/// Compares secrets in a time that tells nothing: by their hashes, which an attacker cannot steer.
fn same(a: &str, b: &str) -> bool {
    let (a, b) = (Sha256::digest(a.as_bytes()), Sha256::digest(b.as_bytes()));
    a.iter().zip(b.iter()).fold(0u8, |difference, (a, b)| difference | (a ^ b)) == 0
}
