//! What pods need beyond their kind's file: the ServiceAccount that a new one names, and verbs of their own, binding and
//! eviction.

use super::{Context, Name, Plan, Reply, delete, existing, put};
use crate::options::{self, DeleteOptions};
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::status::{ApiError, Details, success};
use dhow_state::{Expect, Key};
use dhow_types::{Rng, Time};
use serde_json::json;

/// What every namespace has, or gets a moment after it was made: not waited for, so that a manifest may hold a namespace
/// and its pods.
const DEFAULT_ACCOUNT: &str = "default";

/// Where programs look for the token of their pod's account.
const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long such a token is good for, in seconds: upstream's figure, by which it tells these tokens from others.
const TOKEN_SECONDS: i64 = 3607;

/// Refuses a new pod that would speak for a ServiceAccount that is not there. One that names no pull secrets has its
/// account's.
pub(super) fn settle_account(ctx: &Context<'_>, kind: &Kind, tree: &mut Tree, rng: &mut Rng) -> Result<(), ApiError> {
    let name = meta::text(tree, "spec.serviceAccountName");
    if kind.resource() != "pods" || name.is_empty() {
        return Ok(());
    }
    let namespace = meta::namespace(tree);
    let account = ctx.view.get(&Key::new("serviceaccounts", namespace, name));
    if account.is_none() && name != DEFAULT_ACCOUNT {
        let quoted = dhow_api::field::quote(name);
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {quoted} not found");
        return Err(ApiError::refused("pods", meta::name(tree), &why));
    }
    let account = account.map(|account| account.tree()).unwrap_or_default();
    let secrets = meta::list(&account, "imagePullSecrets");
    if !secrets.is_empty() && meta::list(tree, "spec.imagePullSecrets").is_empty() {
        meta::set(tree, "spec.imagePullSecrets", secrets.to_vec());
    }
    let wish = |tree: &Tree, path: &str| meta::at(tree, path).and_then(Tree::as_bool);
    if wish(tree, "spec.automountServiceAccountToken").or(wish(&account, "automountServiceAccountToken")) == Some(true)
    {
        mount_token(tree, rng);
    }
    Ok(())
}

/// Shows a token of the account, the cluster's CA and the name of the namespace to every container that has nothing else
/// at that place. Upstream does so unless pod or account say no. Here they have to say yes: a node holds ten thousand
/// pods, each of these volumes is some files and a request an hour, and hardly a guest asks the API for anything.
fn mount_token(tree: &mut Tree, rng: &mut Rng) {
    let volume = format!("kube-api-access-{}", rng.name_suffix(5));
    let mut is_mounted = false;
    for containers in ["spec.initContainers", "spec.containers"] {
        let Some(Tree::Array(containers)) = meta::at_mut(tree, containers) else { continue };
        for container in containers {
            let mut mounts = meta::list(container, "volumeMounts").to_vec();
            if mounts.iter().any(|mount| meta::text(mount, "mountPath") == TOKEN_DIR) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_DIR}));
            meta::set(container, "volumeMounts", mounts);
            is_mounted = true;
        }
    }
    if !is_mounted {
        return;
    }
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]);
    let mut volumes = meta::list(tree, "spec.volumes").to_vec();
    volumes.push(json!({"name": volume, "projected": {"sources": sources, "defaultMode": 0o644}}));
    meta::set(tree, "spec.volumes", volumes);
}

/// Plans the binding of a pod to the node that a `Binding` names; a pod is bound once.
pub fn bind(ctx: &Context<'_>, kind: &Kind, name: Name<'_>, binding: &Tree) -> Result<Plan, ApiError> {
    let node = meta::text(binding, "target.name");
    let target_kind = meta::text(binding, "target.kind");
    if node.is_empty() {
        return Err(ApiError::bad_request("the target of a binding names a node"));
    }
    if !target_kind.is_empty() && target_kind != "Node" {
        return Err(ApiError::bad_request(format!("the target of a binding is a Node, not a {target_kind}")));
    }
    let old = existing(ctx, kind, name)?;
    let mut pod = old.tree();
    let refuse = |why: String| Err(ApiError::conflict("pods/binding", name.name, &why));
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(&pod) {
        return Err(ApiError::uid_mismatch(&kind.qualified(), name.name, uid, meta::uid(&pod)));
    }
    if meta::is_deleting(&pod) {
        return refuse(format!("pod {} is being deleted, cannot be assigned to a host", name.name));
    }
    match meta::text(&pod, "spec.nodeName") {
        "" => {}
        taken => return refuse(format!("pod {} is already assigned to node \"{taken}\"", name.name)),
    }
    meta::set(&mut pod, "spec.nodeName", node);
    for (key, value) in meta::annotations(binding) {
        meta::set_annotation(&mut pod, key, value);
    }
    set_scheduled(&mut pod, ctx.now);
    let reply = Reply::Tree(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    }));
    let plan = Plan::write(put(ctx, kind, old.key.clone(), &pod, Expect::At(old.revision))?, reply, 201);
    Ok(if ctx.dry_run { plan.dry(pod) } else { plan })
}

/// Makes the condition `PodScheduled` true, and keeps the others.
fn set_scheduled(pod: &mut Tree, now: Time) {
    let mut conditions = meta::list(pod, "status.conditions").to_vec();
    conditions.retain(|condition| meta::text(condition, "type") != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled", "status": "True", "lastTransitionTime": now.to_rfc3339(),
    }));
    meta::set(pod, "status.conditions", conditions);
}

/// Plans an eviction: a deletion that disruption budgets will have a say in.
pub fn evict(
    ctx: &Context<'_>,
    kind: &Kind,
    name: Name<'_>,
    eviction: &Tree,
    query: &crate::request::Query<'_>,
) -> Result<Plan, ApiError> {
    let given = meta::name(eviction);
    if !given.is_empty() && given != name.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let options: DeleteOptions = options::delete_options(query, meta::at(eviction, "deleteOptions"))?;
    let ctx = Context { dry_run: ctx.dry_run || options.dry_run, ..*ctx };
    let mut plan = delete(&ctx, kind, name, &options)?;
    plan.reply = Reply::Tree(success(&Details::default()));
    plan.code = 201;
    Ok(plan)
}
