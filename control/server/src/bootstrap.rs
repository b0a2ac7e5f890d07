//! What every cluster has from its first moment: the key that signs tokens, the namespaces, the Service through which pods and agents find the
//! API servers, and a class of volumes.

use crate::accounts;
use crate::app::App;
use crate::member::Member;
use dhow_api::kinds;
use dhow_api::status::{ApiError, Reason};
use dhow_api::{Tree, meta};
use dhow_gate::options::DeleteOptions;
use dhow_gate::write::{self as plan, Name};
use serde_json::json;
use std::collections::BTreeMap;

/// The namespaces, in the order in which they are made.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
pub(crate) async fn ensure(app: &App) -> Result<(), ApiError> {
    accounts::ensure_key(app).await?;
    for namespace in NAMESPACES {
        create_missing(app, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).await?;
    }
    create_missing(app, api_service(app)).await?;
    create_missing(app, local_class()).await
}

/// Volumes on the disk of the node where their first pod runs, for whoever asks for no other class. Deleted, it comes
/// back with the next leader; without its annotation it is the default one no more.
fn local_class() -> Tree {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "dhow.dev/local",
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// Brings the endpoints of the API up to date: the members that serve it, and whether each can be reached now. One that
/// cannot stays listed as not ready: agents go on dialling it.
pub(crate) async fn publish(app: &App, members: &[(Member, bool)]) -> Result<(), ApiError> {
    if members.is_empty() {
        return Ok(());
    }
    put(app, api_endpoints(members)).await?;
    let slices = api_slices(members);
    for slice in &slices {
        put(app, slice.clone()).await?;
    }
    let Some(kind) = kinds::by_group_resource("endpointslices.discovery.k8s.io") else { return Ok(()) };
    let wanted = |name: &str| slices.iter().any(|slice| meta::name(slice) == name);
    let stale: Vec<String> = {
        let state = app.replica.state();
        let all = state.list("endpointslices.discovery.k8s.io", Some("default"));
        let ours = all.filter(|slice| slice.index.label(SERVICE_NAME) == Some("kubernetes"));
        ours.map(|slice| slice.key.name.to_string()).filter(|name| !wanted(name)).collect()
    };
    for name in stale {
        let name = Name { namespace: "default", name: &name };
        app.write(kind, false, |ctx| plan::delete(ctx, kind, name, &DeleteOptions::default())).await?;
    }
    Ok(())
}

/// By which label a slice says whose it is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

fn api_service(app: &App) -> Tree {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": app.services.api_address().to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    })
}

fn api_endpoints(members: &[(Member, bool)]) -> Tree {
    let mut by_port: BTreeMap<u16, (Vec<Tree>, Vec<Tree>)> = BTreeMap::new();
    for (member, ready) in members {
        let address = json!({"ip": member.address.ip().to_string()});
        let (good, bad) = by_port.entry(member.address.port()).or_default();
        if *ready { good.push(address) } else { bad.push(address) }
    }
    let subsets = by_port.into_iter().map(|(port, (good, bad))| {
        let mut subset = json!({});
        if !good.is_empty() {
            subset["addresses"] = good.into();
        }
        if !bad.is_empty() {
            subset["notReadyAddresses"] = bad.into();
        }
        subset["ports"] = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
        subset
    });
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets.collect::<Vec<_>>(),
    })
}

/// A slice has one family and one set of ports: members on other ports get slices of their own. The first one has the
/// name that clients look for.
fn api_slices(members: &[(Member, bool)]) -> Vec<Tree> {
    let mut slices: Vec<((bool, u16), Vec<Tree>)> = Vec::new();
    for (member, ready) in members {
        let kind = (member.address.is_ipv4(), member.address.port());
        let endpoint = json!({"addresses": [member.address.ip().to_string()], "conditions": {"ready": ready}});
        match slices.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => slices.push((kind, vec![endpoint])),
        }
    }
    let slices = slices.into_iter().enumerate().map(|(at, ((is_ipv4, port), endpoints))| {
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        let name = match at {
            0 => "kubernetes".to_owned(),
            _ => format!("kubernetes-{}-{port}", family.to_ascii_lowercase()),
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": {SERVICE_NAME: "kubernetes"}},
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        })
    });
    slices.collect()
}

async fn create_missing(app: &App, tree: Tree) -> Result<(), ApiError> {
    let Some(kind) = kinds::by_kind(meta::api_version(&tree), meta::kind(&tree)) else { return Ok(()) };
    match app.write(kind, false, |ctx| plan::create(ctx, kind, meta::namespace(&tree), tree.clone())).await {
        Err(error) if error.reason != Reason::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Creates or replaces; nothing is written when nothing has changed.
async fn put(app: &App, tree: Tree) -> Result<(), ApiError> {
    let Some(kind) = kinds::by_kind(meta::api_version(&tree), meta::kind(&tree)) else { return Ok(()) };
    create_missing(app, tree.clone()).await?;
    let name = Name { namespace: meta::namespace(&tree), name: meta::name(&tree) };
    app.write(kind, false, |ctx| plan::update(ctx, kind, name, tree.clone())).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_on_one_port_share_a_slice_and_the_first_has_the_services_name() {
        let member = |id: u64, address: &str, ready: bool| {
            let address = address.parse().unwrap();
            (Member { id, name: format!("m{id}"), address, witness: false, version: String::new() }, ready)
        };
        let members = [
            member(1, "192.0.2.1:6443", true),
            member(2, "192.0.2.2:6443", false),
            member(3, "192.0.2.2:7443", true),
            member(4, "[2001:db8::4]:6443", true),
        ];
        let slices = api_slices(&members);
        let names: Vec<&str> = slices.iter().map(meta::name).collect();
        assert_eq!(names, ["kubernetes", "kubernetes-ipv4-7443", "kubernetes-ipv6-6443"]);
        assert_eq!(slices[0]["endpoints"][1], json!({"addresses": ["192.0.2.2"], "conditions": {"ready": false}}));
        let endpoints = api_endpoints(&members[..3]);
        assert_eq!(
            endpoints["subsets"],
            json!([
                {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
                 "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]},
                {"addresses": [{"ip": "192.0.2.2"}], "ports": [{"name": "https", "port": 7443, "protocol": "TCP"}]},
            ])
        );
    }
}
