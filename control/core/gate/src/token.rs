//! Tokens of service accounts: what one says, who may have it, and whom it speaks for as long as all of that is so.
//!
//! A token names its service account, and mostly an object that it is bound to, by name and UID. It is good until it is
//! over, and not longer than these objects are there: [`holder`] looks at the state each time. The claims are those of
//! Kubernetes, so that whoever reads tokens elsewhere understands them.

use crate::user::{SERVICE_ACCOUNT_PREFIX, SERVICE_ACCOUNTS, User};
use crate::write::{Name, View};
use dhow_api::field::{Fault, Faults, quote};
use dhow_api::status::ApiError;
use dhow_api::{Tree, meta};
use dhow_state::{Key, Object};
use dhow_types::{Rng, Time};
use serde_json::{Map, json};
use std::fmt;
use std::sync::Arc;

/// Who issues the tokens, and the audience that the API server takes itself for: the name that every pod knows it by.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// How long a token is good for that asks for no time, in seconds.
const SECONDS_USUAL: i64 = 3600;

/// How long it is good for at the least and at the most, in seconds: Kubernetes' bounds.
const SECONDS: (i64, i64) = (600, 1 << 32);

/// Clocks of two control nodes may differ by so much, in milliseconds; an object that was deleted is taken for there as
/// long.
const LEEWAY_MS: u64 = 60_000;

/// The claim that holds what only Kubernetes knows of.
const OWN_CLAIM: &str = "kubernetes.io";

/// The kinds that a token may be bound to, and their resources.
const BINDABLE: [(&str, &str); 3] = [("Pod", "pods"), ("Secret", "secrets"), ("Node", "nodes")];

/// What to sign, and what to answer then.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// What the token says.
    pub claims: Tree,
    answer: Tree,
}

impl Grant {
    /// The `TokenRequest` with the signed token in it.
    pub fn answer(self, token: &str) -> Tree {
        let mut answer = self.answer;
        meta::set(&mut answer, "status.token", token);
        answer
    }
}

/// Decides on a `TokenRequest` for the service account that the path names: what the token says, or why there is none.
/// `tree` is typed right already.
pub fn plan(
    view: &dyn View,
    user: &User,
    account: Name<'_>,
    mut tree: Tree,
    (now, seed): (Time, u64),
) -> Result<Grant, ApiError> {
    check_names(account, &tree)?;
    let found = view.get(&Key::new("serviceaccounts", account.namespace, account.name));
    let found = found.ok_or_else(|| ApiError::not_found("serviceaccounts", account.name))?;
    if meta::list(&tree, "spec.audiences").is_empty() {
        meta::set(&mut tree, "spec.audiences", vec![Tree::from(ISSUER)]);
    }
    meta::set_default(&mut tree, "spec.expirationSeconds", SECONDS_USUAL);
    let seconds = meta::int(&tree, "spec.expirationSeconds").unwrap_or(SECONDS_USUAL);
    check_seconds(seconds)?;
    if let Some(node) = user.node() {
        check_node(view, node, account, &tree)?;
    }
    let mut own = Map::from_iter([("namespace".to_owned(), Tree::from(account.namespace))]);
    if let Some(bound) = meta::at(&tree, "spec.boundObjectRef") {
        own.extend(bind(view, account, bound)?);
    }
    own.insert("serviceaccount".to_owned(), reference(&found));
    let issued = now.as_ms().div_euclid(1000);
    let ends = issued + seconds;
    let claims = json!({
        "aud": meta::list(&tree, "spec.audiences"),
        "exp": ends,
        "iat": issued,
        "iss": ISSUER,
        "jti": Rng::new(seed).uuid(),
        OWN_CLAIM: own,
        "nbf": issued,
        "sub": user_name(account.namespace, account.name),
    });
    let spec = tree.get("spec").cloned().unwrap_or_default();
    let answer = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": account.name, "namespace": account.namespace, "creationTimestamp": now.to_rfc3339(),
        },
        "spec": spec,
        "status": {"token": "", "expirationTimestamp": Time::from_secs(ends).to_rfc3339()},
    });
    Ok(Grant { claims, answer })
}

/// What the path names and what the body names must be one.
fn check_names(account: Name<'_>, tree: &Tree) -> Result<(), ApiError> {
    let given = [
        ("metadata.name", meta::name(tree), account.name, "must match the service account name if specified"),
        (
            "metadata.namespace",
            meta::namespace(tree),
            account.namespace,
            "must match the service account namespace if specified",
        ),
    ];
    for (path, given, wanted, words) in given {
        if !given.is_empty() && given != wanted {
            return Err(invalid(account.name, Fault::invalid(path, given, words)));
        }
    }
    Ok(())
}

fn invalid(name: &str, fault: Fault) -> ApiError {
    let faults: Faults = vec![fault];
    ApiError::invalid("TokenRequest.authentication.k8s.io", name, &faults)
}

fn check_seconds(seconds: i64) -> Result<(), ApiError> {
    let words = match seconds {
        _ if seconds < SECONDS.0 => "may not specify a duration less than 10 minutes",
        _ if seconds > SECONDS.1 => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    Err(invalid("", Fault::invalid("spec.expirationSeconds", seconds, words)))
}

/// A node gets tokens for its own pods alone: whoever has taken it over speaks for no other service account than those
/// whose tokens lie there anyway, and to nobody to whom the pods do not.
fn check_node(view: &dyn View, node: &str, account: Name<'_>, tree: &Tree) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(ApiError::refused("serviceaccounts", account.name, why));
    let bound = |field: &str| meta::text(tree, &format!("spec.boundObjectRef.{field}"));
    if bound("kind") != "Pod" || bound("name").is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if bound("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let pod = view.get(&Key::new("pods", account.namespace, bound("name")));
    let pod = pod.ok_or_else(|| ApiError::not_found("pods", bound("name")))?.tree();
    if meta::text(&pod, "spec.nodeName") != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    for audience in meta::list(tree, "spec.audiences").iter().filter_map(Tree::as_str) {
        if !audiences_of(&pod).any(|wanted| wanted == audience) {
            let why = format!("audience {} not found in the volumes of the pod", quote(audience));
            return refuse(&why);
        }
    }
    Ok(())
}

/// The audiences that a pod's volumes ask for.
fn audiences_of(pod: &Tree) -> impl Iterator<Item = &str> {
    let sources = meta::list(pod, "spec.volumes").iter().flat_map(|volume| meta::list(volume, "projected.sources"));
    sources.filter_map(|source| meta::at(source, "serviceAccountToken")).map(|source| {
        match meta::text(source, "audience") {
            "" => ISSUER,
            audience => audience,
        }
    })
}

/// The claims about the object that the token is bound to.
fn bind(view: &dyn View, account: Name<'_>, bound: &Tree) -> Result<Vec<(String, Tree)>, ApiError> {
    let (api_version, kind, name) =
        (meta::text(bound, "apiVersion"), meta::text(bound, "kind"), meta::text(bound, "name"));
    let resource = BINDABLE.iter().find(|(known, _)| *known == kind).map(|(_, resource)| *resource);
    let Some(resource) = resource.filter(|_| matches!(api_version, "" | "v1")) else {
        let of = match api_version {
            "" => format!("/, Kind={kind}"),
            version => format!("{version}, Kind={kind}"),
        };
        return Err(ApiError::bad_request(format!("cannot bind token to object of type {of}")));
    };
    let namespace = if resource == "nodes" { "" } else { account.namespace };
    let found = view.get(&Key::new(resource, namespace, name)).ok_or_else(|| ApiError::not_found(resource, name))?;
    let tree = found.tree();
    let mut claims = Vec::new();
    if resource == "pods" {
        if meta::text(&tree, "spec.serviceAccountName") != account.name {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                quote(account.name)
            )));
        }
        let node = meta::text(&tree, "spec.nodeName");
        if !node.is_empty() {
            let object = view.get(&Key::new("nodes", "", node));
            claims.push(("node".to_owned(), object.map_or_else(|| json!({"name": node}), |node| reference(&node))));
        }
    }
    let (wanted, uid) = (meta::text(bound, "uid"), meta::uid(&tree));
    if !wanted.is_empty() && wanted != uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        );
        return Err(ApiError::conflict(kind, name, &why));
    }
    claims.push((kind.to_ascii_lowercase(), reference(&found)));
    Ok(claims)
}

fn reference(object: &Arc<Object>) -> Tree {
    json!({"name": &*object.key.name, "uid": meta::uid(&object.tree())})
}

/// What the user of a service account is called.
fn user_name(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// Why a token that was signed here speaks for nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// It says something else than a service account's token does.
    #[error("the token is not one of a service account of this cluster")]
    Foreign,
    /// It is over.
    #[error("service account token has expired")]
    Expired,
    /// It is not good yet.
    #[error("service account token is not valid yet")]
    Early,
    /// It is meant for somebody else.
    #[error("token audiences {found} is invalid for the target audiences {wanted}")]
    Audience {
        /// For whom it is.
        found: List,
        /// Who asks.
        wanted: List,
    },
    /// What it is bound to is not there any more.
    #[error("the {what} `{name}` of the token has been deleted")]
    Gone {
        /// `service account`, `pod`, …
        what: &'static str,
        /// Its name.
        name: String,
    },
}

/// Texts as Go's `%q` writes a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List(Vec<String>);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(|text| quote(text)).collect();
        write!(f, "[{}]", texts.join(" "))
    }
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The service account, as a user.
    pub user: User,
    /// Those of the audiences that were asked for that the token is meant for.
    pub audiences: Vec<String>,
}

/// Whom a token speaks for towards these audiences, now. Its signature has been found good.
pub fn holder(claims: &Tree, audiences: &[String], view: &dyn View, now: Time) -> Result<Holder, TokenFault> {
    let own = claims.get(OWN_CLAIM).ok_or(TokenFault::Foreign)?;
    let namespace = meta::text(own, "namespace");
    let account = own.get("serviceaccount").ok_or(TokenFault::Foreign)?;
    let (name, uid) = (meta::text(account, "name"), meta::text(account, "uid"));
    if meta::text(claims, "iss") != ISSUER || meta::text(claims, "sub") != user_name(namespace, name) {
        return Err(TokenFault::Foreign);
    }
    let time = |claim: &str| claims.get(claim).and_then(Tree::as_i64).map(Time::from_secs).ok_or(TokenFault::Foreign);
    if time("exp")? + LEEWAY_MS < now {
        return Err(TokenFault::Expired);
    }
    if time("nbf")? > now + LEEWAY_MS {
        return Err(TokenFault::Early);
    }
    let meant: Vec<String> = meta::list(claims, "aud").iter().filter_map(Tree::as_str).map(str::to_owned).collect();
    let shared: Vec<String> = meant.iter().filter(|one| audiences.contains(one)).cloned().collect();
    if shared.is_empty() {
        return Err(TokenFault::Audience { found: List(meant), wanted: List(audiences.to_vec()) });
    }
    let there = Present { view, now };
    there.check("service account", "serviceaccounts", namespace, account)?;
    let mut user = User::authenticated(
        user_name(namespace, name),
        [SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")],
    );
    user.uid = uid.to_owned();
    let mut know = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    if let Some(secret) = own.get("secret") {
        there.check("secret", "secrets", namespace, secret)?;
    }
    if let Some(pod) = own.get("pod") {
        there.check("pod", "pods", namespace, pod)?;
        know("pod-name", meta::text(pod, "name"));
        know("pod-uid", meta::text(pod, "uid"));
    }
    if let Some(node) = own.get("node") {
        // Beside a pod it only says where that one is.
        if own.get("pod").is_none() {
            there.check("node", "nodes", "", node)?;
        }
        know("node-name", meta::text(node, "name"));
        know("node-uid", meta::text(node, "uid"));
    }
    let id = meta::text(claims, "jti");
    know("credential-id", &if id.is_empty() { String::new() } else { format!("JTI={id}") });
    Ok(Holder { user, audiences: shared })
}

/// Tells whether what a token names is still there.
struct Present<'a> {
    view: &'a dyn View,
    now: Time,
}

impl Present<'_> {
    fn check(&self, what: &'static str, resource: &str, namespace: &str, named: &Tree) -> Result<(), TokenFault> {
        let (name, uid) = (meta::text(named, "name"), meta::text(named, "uid"));
        let found = self.view.get(&Key::new(resource, namespace, name)).filter(|object| {
            let tree = object.tree();
            let ends = meta::deletion_timestamp(&tree);
            meta::uid(&tree) == uid && ends.is_none_or(|ends| ends + LEEWAY_MS >= self.now)
        });
        found.map(drop).ok_or_else(|| TokenFault::Gone { what, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests;
