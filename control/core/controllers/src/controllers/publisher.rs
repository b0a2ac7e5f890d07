//! What every namespace gets: the ServiceAccount `default` and the ConfigMap with the cluster's CA.

use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan};
use crate::views::resource;
use crate::wish::Write;
use dhow_api::{Tree, meta};
use dhow_state::Key;
use serde_json::json;
use std::sync::Arc;

const DEFAULT_ACCOUNT: &str = "default";
const ROOT_CA_MAP: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";

pub(crate) const SERVICE_ACCOUNTS: Controller =
    Controller { name: "service-account-controller", wakes: wakes_of_account, reconcile: account };

pub(crate) const ROOT_CA: Controller =
    Controller { name: "root-ca-certificate-publisher", wakes: wakes_of_ca, reconcile: root_ca };

fn wakes_of_account(_: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    wakes_for(seen, resource::SERVICE_ACCOUNTS, DEFAULT_ACCOUNT, wake);
}

fn wakes_of_ca(_: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    wakes_for(seen, resource::CONFIG_MAPS, ROOT_CA_MAP, wake);
}

fn wakes_for(seen: &Seen, resource: &str, name: &str, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::NAMESPACES) {
        wake(seen.key.clone());
    } else if seen.is(resource) && &*seen.key.name == name {
        wake(Key::new(resource::NAMESPACES, "", Arc::clone(&seen.key.namespace)));
    }
}

fn is_open(ctx: &Ctx<'_>, namespace: &Key) -> bool {
    ctx.cache.object(namespace).is_some_and(|object| !object.index.deleting)
}

fn account(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let own = Key::new(resource::SERVICE_ACCOUNTS, Arc::clone(&key.name), DEFAULT_ACCOUNT);
    if is_open(ctx, key) && ctx.cache.object(&own).is_none() {
        let metadata = json!({"name": DEFAULT_ACCOUNT, "namespace": &*key.name});
        plan.write(Write::Create { tree: json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}) });
    }
    plan
}

fn root_ca(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pem) = ctx.config.ca_pem.as_deref().filter(|_| is_open(ctx, key)) else { return plan };
    let own = Key::new(resource::CONFIG_MAPS, Arc::clone(&key.name), ROOT_CA_MAP);
    let Some(present) = ctx.cache.object(&own) else {
        let about = "Contains a CA bundle that can be used to verify the API server of this cluster.";
        let metadata = json!({"name": ROOT_CA_MAP, "namespace": &*key.name,
            "annotations": {"kubernetes.io/description": about}});
        let tree = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {ROOT_CA_KEY: pem}});
        plan.write(Write::Create { tree });
        return plan;
    };
    let mut tree = present.tree();
    let held = meta::map(&tree, "data").and_then(|data| data.get(ROOT_CA_KEY)).and_then(Tree::as_str);
    if held != Some(pem) && !present.index.deleting {
        tree["data"] = json!({ROOT_CA_KEY: pem});
        plan.write(Write::Update { tree });
    }
    plan
}
