//! Tokens of service accounts: the key that signs them, requests for them, reviews of them, and what verifiers elsewhere
//! read (OpenID Connect discovery).
//!
//! The key is a record of the state, so that every member and every backup has it. It is sealed by the CA's key: a witness
//! holds the end of the log, and must not be able to speak for anybody.

use crate::answer::{self, Answer};
use crate::app::{App, now, seed};
use crate::auth;
use crate::body::RequestBody;
use crate::member::CLUSTERS;
use crate::route::{Call, header, style};
use crate::write::{self, read_typed};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dhow_api::decode::Decoded;
use dhow_api::status::ApiError;
use dhow_api::{Tree, discovery, meta};
use dhow_gate::authorize::JWKS_PATH;
use dhow_gate::media::{self, Endpoint};
use dhow_gate::token::{self, ISSUER};
use dhow_gate::{Query, RequestInfo, ResourceRequest, User, Verb, options};
use dhow_pki::{Ca, PkiError, PublicKey, TokenKey};
use dhow_state::{Expect, Key, Object, Op, Txn};
use dhow_types::{Chain, Revision};
use http::Request;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::{info, warn};

/// What the key is sealed for.
const PURPOSE: &str = "service account tokens";

/// How long verifiers may keep the keys: as upstream says.
const KEYS_KEPT: &str = "public, max-age=3600";

const TOKEN_REQUEST: &str = "io.k8s.api.authentication.v1.TokenRequest";
const TOKEN_REVIEW: &str = "io.k8s.api.authentication.v1.TokenReview";
const SELF_REVIEW: &str = "io.k8s.api.authentication.v1.SelfSubjectReview";

/// The key as it was last read, and the revision of its record.
#[derive(Default)]
pub(crate) struct KnownKey(Mutex<Option<(Revision, Arc<TokenKey>)>>);

fn record() -> Key {
    Key::new(CLUSTERS, "", "service-accounts")
}

fn open(ca: &Ca, record: &Object) -> Result<TokenKey, PkiError> {
    let sealed = STANDARD.decode(meta::text(&record.tree(), "spec.sealedKey")).map_err(|_| PkiError::Sealed)?;
    let pem = String::from_utf8(ca.open(PURPOSE, &sealed)?).map_err(|_| PkiError::Sealed)?;
    TokenKey::from_pem(&pem)
}

/// The cluster's key. A cluster has one from its first moment; a member that has just joined may not know it yet.
pub(crate) fn key(app: &App) -> Result<Arc<TokenKey>, ApiError> {
    let record = app.replica.state().get(&record()).cloned();
    let record = record.ok_or_else(|| ApiError::unavailable("the key that signs tokens is not known here yet"))?;
    let mut known = app.token_key.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((revision, key)) = &*known
        && *revision == record.revision
    {
        return Ok(key.clone());
    }
    let key = open(&app.certs.ca, &record).map(Arc::new);
    let key = key.map_err(|error| ApiError::internal(format!("the key that signs tokens: {}", Chain(&error))))?;
    *known = Some((record.revision, key.clone()));
    Ok(key)
}

/// Makes the cluster's key if there is none, or none that the CA of this cluster can open.
pub(crate) async fn ensure_key(app: &App) -> Result<(), ApiError> {
    let found = app.replica.state().get(&record()).cloned();
    let expect = match found.as_ref().map(|found| (found.revision, open(&app.certs.ca, found))) {
        None => Expect::Absent,
        Some((_, Ok(_))) => return Ok(()),
        Some((revision, Err(error))) => {
            warn!(error = %Chain(&error), "the key that signs tokens is of another CA: tokens so far are void");
            Expect::At(revision)
        }
    };
    let failed = |error: PkiError| ApiError::internal(format!("making the key for tokens: {}", Chain(&error)));
    let pem = dhow_pki::new_key().map_err(failed)?;
    let sealed = app.certs.ca.seal(PURPOSE, pem.as_bytes()).map_err(failed)?;
    let value = json!({"metadata": {"name": "service-accounts"}, "spec": {"sealedKey": STANDARD.encode(sealed)}});
    let put = Op::Put { key: record(), value: value.to_string().into(), expect, expires: None };
    app.write_raw(Txn::one(put)).await?;
    info!("made the key that signs the tokens of service accounts");
    Ok(())
}

/// POST of a service account's `/token`.
pub(crate) async fn create_token(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Plain)?;
    let options = options::write_options("CreateOptions", call.query)?;
    let Decoded { tree, warnings } = read_typed(call.content_type(), body, TOKEN_REQUEST, options.validation).await?;
    // An agent may have heard of its pod from a member that is ahead of this one.
    call.app.barrier().await?;
    let grant = token::plan(&call.app.view(), call.user, write::name(call), tree, (now(), seed()?))?;
    let signed = key(call.app)?.sign(&grant.claims);
    let signed = signed.map_err(|error| ApiError::internal(Chain(&error).to_string()))?;
    let mut answer = answer::tree(201, &grant.answer(&signed), call.style(accepted));
    answer::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Answers a request of the group `authentication.k8s.io`: who the caller is, or whom a token speaks for.
pub(crate) async fn review(
    app: &App,
    user: &User,
    info: &RequestInfo,
    target: &ResourceRequest,
    query: &Query<'_>,
    request: Request<RequestBody>,
) -> Result<Answer, ApiError> {
    let is_token = match (target.version.as_str(), target.resource.as_str()) {
        (discovery::AUTHENTICATION_VERSION, "tokenreviews") => true,
        (discovery::AUTHENTICATION_VERSION, "selfsubjectreviews") => false,
        _ => return Err(ApiError::no_such_path()),
    };
    if !target.namespace.is_empty() || !target.subresource.is_empty() {
        return Err(ApiError::no_such_path());
    }
    if info.verb != Verb::Create || !target.name.is_empty() {
        return Err(ApiError::method_not_allowed_here());
    }
    let (head, body) = request.into_parts();
    let accepted = media::negotiate(header(&head.headers, ACCEPT), Endpoint::Plain)?;
    let options = options::write_options("CreateOptions", query)?;
    let schema = if is_token { TOKEN_REVIEW } else { SELF_REVIEW };
    let content_type = header(&head.headers, CONTENT_TYPE);
    let Decoded { mut tree, warnings } = read_typed(content_type, body, schema, options.validation).await?;
    let status = if is_token { token_status(app, &tree).await? } else { json!({"userInfo": user.info()}) };
    if !is_token {
        meta::set_creation_timestamp(&mut tree, now());
    }
    meta::set(&mut tree, "status", status);
    let mut answer = answer::tree(201, &tree, style(query, &head.headers, accepted));
    answer::warn(&mut answer, &warnings);
    Ok(answer)
}

async fn token_status(app: &App, review: &Tree) -> Result<Tree, ApiError> {
    let token = meta::text(review, "spec.token");
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let asked = meta::list(review, "spec.audiences").iter().filter_map(Tree::as_str).map(str::to_owned);
    let mut audiences: Vec<String> = asked.collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    app.barrier().await?;
    Ok(match auth::bearer(app, token, &audiences) {
        Ok(holder) => {
            json!({"authenticated": true, "user": holder.user.info(), "audiences": holder.audiences})
        }
        Err(fault) => json!({"user": {}, "error": fault.to_string()}),
    })
}

/// GET `/openid/v1/jwks`: the public keys that tokens are checked with.
pub(crate) fn jwks(app: &App) -> Result<Answer, ApiError> {
    let key = key(app)?;
    let PublicKey { id, x, y } = key.public();
    let key = json!({"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": x, "y": y});
    Ok(document("application/jwk-set+json", &json!({"keys": [key]})))
}

/// GET `/.well-known/openid-configuration`: who issues tokens, and where the keys are.
pub(crate) fn issuer(app: &App) -> Answer {
    let configuration = json!({
        "issuer": ISSUER,
        "jwks_uri": format!("{}{JWKS_PATH}", app.member.url()),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    document("application/json", &configuration)
}

fn document(content_type: &'static str, tree: &Tree) -> Answer {
    let mut answer = answer::answer(200, content_type, answer::full(tree.to_string()));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(KEYS_KEPT));
    answer
}
