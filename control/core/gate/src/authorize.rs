//! Who may do what. Each [`Rule`] looks at a request and either allows it or has no opinion; nobody's opinion means
//! no. RBAC will be one more rule in the list.

use crate::request::{RequestInfo, ResourceRequest, Target, Verb};
use crate::user::{AUTHENTICATED, BOOTSTRAPPERS, MASTERS, User};
use dhow_api::status::{Access, ApiError};

/// One authoriser: `true` allows, `false` has no opinion.
pub type Rule = fn(&User, &RequestInfo) -> bool;

/// The rules, asked in this order.
pub const RULES: [Rule; 5] = [masters, public_paths, discovery, bootstrappers, nodes];

/// Allows the request or says, in Kubernetes' words, who may not do what.
pub fn authorize(user: &User, info: &RequestInfo) -> Result<(), ApiError> {
    if RULES.iter().any(|rule| rule(user, info)) { Ok(()) } else { Err(refusal(user, info)) }
}

fn masters(user: &User, _: &RequestInfo) -> bool {
    user.is_in(MASTERS)
}

/// Paths that tell nothing secret and that a client needs before it has a credential.
const PUBLIC_PATHS: [&str; 5] = ["/version", "/healthz", "/livez", "/readyz", "/cacerts"];

fn public_paths(_: &User, info: &RequestInfo) -> bool {
    let Target::Path(path) = &info.target else { return false };
    info.verb == Verb::Get
        && PUBLIC_PATHS
            .iter()
            .any(|public| path.strip_prefix(public).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn discovery(user: &User, info: &RequestInfo) -> bool {
    let Target::Path(path) = &info.target else { return false };
    user.is_in(AUTHENTICATED)
        && info.verb == Verb::Get
        && (path == "/"
            || ["/api", "/apis", "/openapi"]
                .iter()
                .any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))))
}

/// A join token opens the one door to a certificate, and nothing else.
fn bootstrappers(user: &User, info: &RequestInfo) -> bool {
    user.is_in(BOOTSTRAPPERS) && info.target == Target::Path("/dhow/v1/join".to_owned()) && info.method == "post"
}

/// What an agent needs: to read what pods refer to, and to write its own node, its own lease, pods' status, events.
fn nodes(user: &User, info: &RequestInfo) -> bool {
    let Some(node) = user.node() else { return false };
    match &info.target {
        Target::Path(path) => info.verb == Verb::Get && (path == "/v2" || path.starts_with("/v2/")),
        Target::Resource(resource) => node_may(node, info.verb, resource),
    }
}

fn node_may(node: &str, verb: Verb, request: &ResourceRequest) -> bool {
    let resource = (request.group.as_str(), request.resource.as_str());
    let sub = request.subresource.as_str();
    if verb.is_read() && sub.is_empty() {
        return matches!(
            resource,
            (
                "",
                "pods"
                    | "services"
                    | "nodes"
                    | "configmaps"
                    | "secrets"
                    | "endpoints"
                    | "namespaces"
                    | "serviceaccounts"
            ) | ("discovery.k8s.io", "endpointslices")
        ) || (resource == ("coordination.k8s.io", "leases") && request.namespace == NODE_LEASES);
    }
    match (resource, sub, verb) {
        (("", "nodes"), "", Verb::Create) => true,
        (("", "nodes"), "" | "status", Verb::Update | Verb::Patch) => request.name == node,
        (("", "nodes"), "status", Verb::Get) => request.name == node,
        (("", "pods"), "status", Verb::Get | Verb::Update | Verb::Patch) => true,
        // The last step of a graceful deletion is the agent's.
        (("", "pods"), "", Verb::Delete) => true,
        (("" | "events.k8s.io", "events"), "", Verb::Create | Verb::Update | Verb::Patch) => true,
        (("coordination.k8s.io", "leases"), "", Verb::Create) => request.namespace == NODE_LEASES,
        (("coordination.k8s.io", "leases"), "", Verb::Update | Verb::Patch | Verb::Delete) => {
            request.namespace == NODE_LEASES && request.name == node
        }
        _ => false,
    }
}

/// Where the heartbeats of nodes live.
const NODE_LEASES: &str = "kube-node-lease";

fn refusal(user: &User, info: &RequestInfo) -> ApiError {
    match &info.target {
        Target::Path(path) => ApiError::forbidden_path(&user.name, &info.method, path),
        Target::Resource(r) => {
            let resource =
                if r.subresource.is_empty() { r.resource.clone() } else { format!("{}/{}", r.resource, r.subresource) };
            // A rule about a namespace object is a rule in that namespace.
            let is_namespace = r.resource == "namespaces" && r.group.is_empty();
            ApiError::forbidden(&Access {
                user: &user.name,
                verb: info.verb.as_str(),
                group: &r.group,
                resource: &resource,
                namespace: if is_namespace { &r.name } else { &r.namespace },
                name: &r.name,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use crate::user::NODES;

    fn may(user: &User, method: &str, path: &str) -> bool {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        authorize(user, &RequestInfo::parse(method, path, &Query::parse(query))).is_ok()
    }

    #[test]
    fn who_may_do_what() {
        let admin = User::authenticated("kubernetes-admin", [MASTERS.to_owned()]);
        let node = User::authenticated("system:node:n1", [NODES.to_owned()]);
        let joiner = User::authenticated("system:bootstrap:abcdef", [BOOTSTRAPPERS.to_owned()]);
        let nobody = User::anonymous();
        let plain = User::authenticated("jane", []);
        for (user, method, path, want) in [
            (&admin, "DELETE", "/api/v1/namespaces/a/secrets", true),
            (&node, "GET", "/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dn1", true),
            (&node, "PUT", "/api/v1/nodes/n1/status", true),
            (&node, "PUT", "/api/v1/nodes/n2/status", false),
            (&node, "PATCH", "/api/v1/namespaces/a/pods/p/status", true),
            (&node, "PATCH", "/api/v1/namespaces/a/pods/p", false),
            (&node, "POST", "/api/v1/namespaces/a/pods", false),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", true),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2", false),
            (&node, "PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/n1", false),
            (&node, "GET", "/v2/hello/manifests/1.0", true),
            (&node, "PUT", "/v2/hello/manifests/1.0", false),
            (&node, "POST", "/dhow/v1/join", false),
            (&joiner, "POST", "/dhow/v1/join", true),
            (&joiner, "GET", "/api/v1/secrets", false),
            (&nobody, "GET", "/version", true),
            (&nobody, "GET", "/readyz/ping", true),
            (&nobody, "GET", "/cacerts", true),
            (&nobody, "GET", "/api", false),
            (&nobody, "GET", "/versions", false),
            (&plain, "GET", "/apis/apps/v1", true),
            (&plain, "GET", "/openapi/v3", true),
            (&plain, "GET", "/api/v1/pods", false),
            (&plain, "GET", "/v2/", false),
        ] {
            assert_eq!(may(user, method, path), want, "{} {method} {path}", user.name);
        }
    }

    #[test]
    fn refusals_are_worded_as_clients_know_them() {
        let user = User::authenticated("jane", []);
        for (method, path, want) in [
            (
                "GET",
                "/api/v1/namespaces/a/pods",
                "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\"",
            ),
            (
                "PUT",
                "/apis/apps/v1/namespaces/a/deployments/d/status",
                "deployments.apps \"d\" is forbidden: User \"jane\" cannot update resource \"deployments/status\" in API \
                 group \"apps\" in the namespace \"a\"",
            ),
            (
                "GET",
                "/api/v1/nodes/n",
                "nodes \"n\" is forbidden: User \"jane\" cannot get resource \"nodes\" in API group \"\" at the cluster scope",
            ),
            ("POST", "/logs", "forbidden: User \"jane\" cannot post path \"/logs\""),
        ] {
            let info = RequestInfo::parse(method, path, &Query::default());
            assert_eq!(authorize(&user, &info).unwrap_err().message, want);
        }
    }
}
