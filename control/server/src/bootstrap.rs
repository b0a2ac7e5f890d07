//! What every cluster has from its first moment: the namespaces, and the Service through which pods find the API.

use crate::app::App;
use crate::pki;
use dhow_api::kinds;
use dhow_api::status::{ApiError, Reason};
use dhow_api::{Tree, meta};
use dhow_gate::write::{self as plan, Name};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

/// The namespaces, in the order in which they are made.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing, and brings the API's endpoints up to date.
pub(crate) async fn ensure(app: &App, address: SocketAddr) -> Result<(), ApiError> {
    for namespace in NAMESPACES {
        create_missing(app, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).await?;
    }
    create_missing(app, api_service(app)).await?;
    let ip = if address.ip().is_unspecified() { pki::host_ip().unwrap_or(address.ip()) } else { address.ip() };
    put(app, api_endpoints(ip, address.port())).await?;
    put(app, api_slice(ip, address.port())).await
}

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

fn api_endpoints(ip: IpAddr, port: u16) -> Tree {
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": ip.to_string()}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    })
}

fn api_slice(ip: IpAddr, port: u16) -> Tree {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
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
