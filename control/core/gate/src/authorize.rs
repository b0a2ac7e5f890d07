//! Who may do what. Each [`Rule`] looks at a request and either allows it or has no opinion; nobody's opinion means
//! no. RBAC will be one more rule in the list.

use crate::request::{RequestInfo, ResourceRequest, Target, Verb};
use crate::user::{AUTHENTICATED, BOOTSTRAPPERS, CONTROL_BOOTSTRAPPERS, MASTERS, SERVICE_ACCOUNTS, User};
use crate::write::View;
use dhow_api::Tree;
use dhow_api::meta;
use dhow_api::status::{Access, ApiError};
use dhow_state::Key;

/// One authoriser: `true` allows, `false` has no opinion. What depends on the stored objects asks the view.
pub type Rule = fn(&User, &RequestInfo, &dyn View) -> bool;

/// The rules, asked in this order.
///
/// Service accounts get what everybody gets, and the keys that their tokens are checked with: until there is RBAC to say
/// more, nothing else may come of a token that a guest holds.
pub const RULES: [Rule; 9] = [
    masters,
    control_nodes,
    public_paths,
    discovery,
    own_review,
    issuer_discovery,
    bootstrappers,
    nodes,
    expired_nodes,
];

/// Allows the request or says, in Kubernetes' words, who may not do what.
pub fn authorize(user: &User, info: &RequestInfo, view: &dyn View) -> Result<(), ApiError> {
    if RULES.iter().any(|rule| rule(user, info, view)) { Ok(()) } else { Err(refusal(user, info)) }
}

fn masters(user: &User, _: &RequestInfo, _: &dyn View) -> bool {
    user.is_in(MASTERS)
}

/// The resource under which the records of control nodes are kept, which no kind has.
pub const MEMBERS: &str = "members.dhow.dev";

/// A control node holds the key of the cluster's CA: to forbid it anything would only seem to. A witness does not, and
/// must not have it by asking for it.
fn control_nodes(user: &User, info: &RequestInfo, view: &dyn View) -> bool {
    user.member().is_some_and(|id| !is_witness(id, view) || witness_may(info))
}

fn is_witness(member: u64, view: &dyn View) -> bool {
    let record = view.get(&Key::new(MEMBERS, "", member.to_string()));
    record.is_some_and(|record| record.tree()["spec"]["witness"] == true)
}

/// What a witness needs: to know the other members, and to renew its certificate or join anew.
fn witness_may(info: &RequestInfo) -> bool {
    let Target::Path(path) = &info.target else { return false };
    let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match info.method.as_str() {
        "get" => below(MEMBERS_PATH) || below("/dhow/v1/status"),
        "post" => path == RENEW_PATH || path == MEMBER_JOIN_PATH,
        _ => false,
    }
}

/// Where control nodes are listed and changed.
const MEMBERS_PATH: &str = "/dhow/v1/members";

/// Paths that tell nothing secret and that a client needs before it has a credential.
const PUBLIC_PATHS: [&str; 5] = ["/version", "/healthz", "/livez", "/readyz", "/cacerts"];

fn public_paths(_: &User, info: &RequestInfo, _: &dyn View) -> bool {
    let Target::Path(path) = &info.target else { return false };
    info.verb == Verb::Get
        && PUBLIC_PATHS
            .iter()
            .any(|public| path.strip_prefix(public).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn discovery(user: &User, info: &RequestInfo, _: &dyn View) -> bool {
    let Target::Path(path) = &info.target else { return false };
    user.is_in(AUTHENTICATED)
        && info.verb == Verb::Get
        && (path == "/"
            || ["/api", "/apis", "/openapi"]
                .iter()
                .any(|root| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))))
}

/// Who has a credential may ask whom the server takes them for.
fn own_review(user: &User, info: &RequestInfo, _: &dyn View) -> bool {
    let Target::Resource(resource) = &info.target else { return false };
    let asked = (resource.group.as_str(), resource.resource.as_str(), resource.subresource.as_str());
    user.is_in(AUTHENTICATED)
        && info.verb == Verb::Create
        && asked == ("authentication.k8s.io", "selfsubjectreviews", "")
}

/// Where verifiers of tokens read which keys sign them.
pub const JWKS_PATH: &str = "/openid/v1/jwks";
/// Where they read who has issued them.
pub const ISSUER_PATH: &str = "/.well-known/openid-configuration";

/// Upstream's `system:service-account-issuer-discovery`.
fn issuer_discovery(user: &User, info: &RequestInfo, _: &dyn View) -> bool {
    let Target::Path(path) = &info.target else { return false };
    user.is_in(SERVICE_ACCOUNTS) && info.verb == Verb::Get && [JWKS_PATH, ISSUER_PATH].contains(&path.as_str())
}

/// Where agents trade a join token for a certificate.
pub const JOIN_PATH: &str = "/dhow/v1/join";
/// Where control nodes do.
pub const MEMBER_JOIN_PATH: &str = "/dhow/v1/members/join";
/// Where whoever has a certificate gets a fresh one.
pub const RENEW_PATH: &str = "/dhow/v1/renew";

/// Below it agents get programs compiled.
const COMPILED_PATH: &str = "/dhow/v1/compiled/";

/// A join token opens the one door to a certificate, and nothing else.
fn bootstrappers(user: &User, info: &RequestInfo, _: &dyn View) -> bool {
    let Target::Path(path) = &info.target else { return false };
    let door = match path.as_str() {
        JOIN_PATH => BOOTSTRAPPERS,
        MEMBER_JOIN_PATH => CONTROL_BOOTSTRAPPERS,
        _ => return false,
    };
    user.is_in(door) && info.method == "post"
}

/// What an agent needs: to read what pods refer to, and to write its own node, its own lease, pods' status, events.
fn nodes(user: &User, info: &RequestInfo, view: &dyn View) -> bool {
    let Some(node) = user.node() else { return false };
    match &info.target {
        Target::Path(path) if path == RENEW_PATH => info.method == "post",
        Target::Path(path) if path.starts_with(COMPILED_PATH) => matches!(info.method.as_str(), "get" | "post"),
        Target::Path(path) => info.verb == Verb::Get && (path == "/v2" || path.starts_with("/v2/")),
        Target::Resource(resource) if is_content(resource) => {
            info.verb.is_read() && resource.subresource.is_empty() && is_named_by_pods_of(node, resource, view)
        }
        Target::Resource(resource) if is_of_pod(info.verb, resource) => is_bound_to(node, resource, view),
        Target::Resource(resource) if is_of_volume(info.verb, resource) => holds_volume(node, resource, view),
        Target::Resource(resource) => node_may(node, info.verb, resource),
    }
}

/// Whether this is what an agent does to its own pods: it says how they are, and takes the last step of a graceful
/// deletion.
fn is_of_pod(verb: Verb, request: &ResourceRequest) -> bool {
    request.group.is_empty()
        && request.resource == "pods"
        && matches!(
            (request.subresource.as_str(), verb),
            ("status", Verb::Get | Verb::Update | Verb::Patch) | ("", Verb::Delete)
        )
}

/// Whether the pod is the node's; one that is gone is nobody's, and the request will find that out.
fn is_bound_to(node: &str, request: &ResourceRequest, view: &dyn View) -> bool {
    let pod = view.get(&Key::new("pods", request.namespace.as_str(), request.name.as_str()));
    pod.is_none_or(|pod| pod.index.field("spec.nodeName") == Some(node))
}

/// Whether this is what an agent does to the volumes of its disk: it lets go of those that are deleted.
fn is_of_volume(verb: Verb, request: &ResourceRequest) -> bool {
    let resource = (request.group.as_str(), request.resource.as_str(), request.subresource.as_str());
    resource == ("", "persistentvolumes", "") && matches!(verb, Verb::Update | Verb::Patch)
}

/// Whether the volume can be used on that node alone, and is on its way out.
fn holds_volume(node: &str, request: &ResourceRequest, view: &dyn View) -> bool {
    let Some(volume) = view.get(&Key::new("persistentvolumes", "", request.name.as_str())) else { return false };
    let tree = volume.tree();
    let here = match meta::list(&tree, "spec.nodeAffinity.required.nodeSelectorTerms") {
        [term] => meta::list(term, "matchExpressions").iter().any(|one| {
            let names_it = meta::list(one, "values") == [node];
            meta::text(one, "key") == "kubernetes.io/hostname" && meta::text(one, "operator") == "In" && names_it
        }),
        _ => false,
    };
    here && volume.index.deleting
}

/// A node or a witness that was off until its certificate was over gets a fresh one, unless it was taken out of the
/// cluster meanwhile.
fn expired_nodes(user: &User, info: &RequestInfo, view: &dyn View) -> bool {
    let record = match (user.expired_node(), user.expired_member()) {
        (Some(node), _) => Key::new("nodes", "", node),
        (None, Some(member)) => Key::new(MEMBERS, "", member.to_string()),
        (None, None) => return false,
    };
    info.target == Target::Path(RENEW_PATH.to_owned()) && info.method == "post" && view.get(&record).is_some()
}

/// Whether these are objects that hold what somebody may want to keep to themselves.
fn is_content(request: &ResourceRequest) -> bool {
    request.group.is_empty() && matches!(request.resource.as_str(), "configmaps" | "secrets" | "persistentvolumeclaims")
}

/// Whether a pod that is bound to the node names the one ConfigMap, Secret or claim that is asked for. A node that somebody has
/// taken over tells no more than what its own pods were given.
fn is_named_by_pods_of(node: &str, request: &ResourceRequest, view: &dyn View) -> bool {
    let name = if request.name.is_empty() { &request.selected } else { &request.name };
    if name.is_empty() || request.namespace.is_empty() {
        return false;
    }
    let quoted = Tree::from(name.as_str()).to_string();
    let mut pods = view.list_in("pods", &request.namespace).into_iter();
    pods.any(|pod| {
        pod.index.field("spec.nodeName") == Some(node)
            // The text is searched first: most pods do not have the name anywhere and need not be parsed.
            && (contains(pod.json(), quoted.as_bytes()) || contains(pod.json(), b"\"ephemeral\""))
            && pod_names(&pod.tree(), &request.resource, name)
    })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Whether a pod's spec refers to a ConfigMap, Secret or claim: in an environment, a volume, or as a pull secret.
fn pod_names(pod: &Tree, resource: &str, name: &str) -> bool {
    let is = |tree: &Tree, path: &str| meta::text(tree, path) == name;
    if resource == "persistentvolumeclaims" {
        let own = |volume: &Tree| format!("{}-{}", meta::name(pod), meta::text(volume, "name")) == name;
        return meta::list(pod, "spec.volumes").iter().any(|volume| {
            is(volume, "persistentVolumeClaim.claimName") || (meta::at(volume, "ephemeral").is_some() && own(volume))
        });
    }
    let (env_from, key_ref, volume, volume_name, projected) = match resource {
        "secrets" => ("secretRef.name", "valueFrom.secretKeyRef.name", "secret", "secretName", "secret.name"),
        _ => ("configMapRef.name", "valueFrom.configMapKeyRef.name", "configMap", "name", "configMap.name"),
    };
    let in_containers =
        ["spec.initContainers", "spec.containers", "spec.ephemeralContainers"].into_iter().any(|containers| {
            meta::list(pod, containers).iter().any(|container| {
                meta::list(container, "envFrom").iter().any(|source| is(source, env_from))
                    || meta::list(container, "env").iter().any(|variable| is(variable, key_ref))
            })
        });
    let in_volumes = meta::list(pod, "spec.volumes").iter().any(|one| {
        is(one, &format!("{volume}.{volume_name}"))
            || meta::list(one, "projected.sources").iter().any(|source| is(source, projected))
    });
    let pulls = resource == "secrets" && meta::list(pod, "spec.imagePullSecrets").iter().any(|one| is(one, "name"));
    in_containers || in_volumes || pulls
}

fn node_may(node: &str, verb: Verb, request: &ResourceRequest) -> bool {
    let resource = (request.group.as_str(), request.resource.as_str());
    let sub = request.subresource.as_str();
    if verb.is_read() && sub.is_empty() {
        return matches!(
            resource,
            ("", "pods" | "services" | "nodes" | "endpoints" | "namespaces" | "serviceaccounts" | "persistentvolumes")
                | ("discovery.k8s.io", "endpointslices")
        ) || (resource == ("coordination.k8s.io", "leases") && request.namespace == NODE_LEASES);
    }
    match (resource, sub, verb) {
        (("", "nodes"), "", Verb::Create) => true,
        (("", "nodes"), "" | "status", Verb::Update | Verb::Patch) => request.name == node,
        (("", "nodes"), "status", Verb::Get) => request.name == node,
        (("" | "events.k8s.io", "events"), "", Verb::Create | Verb::Update | Verb::Patch) => true,
        // Which ones depends on the pod that they are for: `token::plan` looks at it.
        (("", "serviceaccounts"), "token", Verb::Create) => true,
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
    use crate::user::{CONTROL_NODES, NODES};
    use dhow_state::{Expect, HistoryMax, Op, State, Txn};
    use serde_json::json;

    fn may_in(state: &State, user: &User, method: &str, path: &str) -> bool {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        authorize(user, &RequestInfo::parse(method, path, &Query::parse(query)), state).is_ok()
    }

    fn may(user: &User, method: &str, path: &str) -> bool {
        may_in(&State::new(HistoryMax::default()), user, method, path)
    }

    #[test]
    fn who_may_do_what() {
        let admin = User::authenticated("kubernetes-admin", [MASTERS.to_owned()]);
        let node = User::authenticated("system:node:n1", [NODES.to_owned()]);
        let joiner = User::authenticated("system:bootstrap:abcdef", [BOOTSTRAPPERS.to_owned()]);
        let control_joiner = User::authenticated("system:bootstrap:abcdef", [CONTROL_BOOTSTRAPPERS.to_owned()]);
        let member = User::authenticated("dhow:control:2", [CONTROL_NODES.to_owned()]);
        let nobody = User::anonymous();
        let plain = User::authenticated("jane", []);
        let account = User::authenticated("system:serviceaccount:a:default", [SERVICE_ACCOUNTS.to_owned()]);
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
            (&node, "POST", "/dhow/v1/renew", true),
            (&node, "POST", "/dhow/v1/compiled/sha256:a", true),
            (&node, "DELETE", "/dhow/v1/compiled/sha256:a", false),
            (&joiner, "POST", "/dhow/v1/compiled/sha256:a", false),
            (&plain, "GET", "/dhow/v1/compiled/sha256:a", false),
            (&node, "GET", "/api/v1/namespaces/a/secrets/s", false),
            (&node, "GET", "/dhow/v1/backup", false),
            (&member, "GET", "/api/v1/secrets", true),
            (&joiner, "POST", "/dhow/v1/join", true),
            (&joiner, "POST", "/dhow/v1/members/join", false),
            (&joiner, "POST", "/dhow/v1/renew", false),
            (&control_joiner, "POST", "/dhow/v1/members/join", true),
            (&control_joiner, "GET", "/dhow/v1/members", false),
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
            (&plain, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", true),
            (&plain, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", false),
            (&plain, "GET", "/openid/v1/jwks", false),
            (&node, "POST", "/api/v1/namespaces/a/serviceaccounts/default/token", true),
            (&node, "POST", "/api/v1/namespaces/a/serviceaccounts", false),
            (&account, "GET", "/api", true),
            (&account, "GET", "/version", true),
            (&account, "GET", "/openid/v1/jwks", true),
            (&account, "GET", "/.well-known/openid-configuration", true),
            (&account, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", true),
            (&account, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", false),
            (&account, "POST", "/api/v1/namespaces/a/serviceaccounts/default/token", false),
            (&account, "GET", "/api/v1/namespaces/a/pods", false),
            (&account, "GET", "/api/v1/namespaces/a/serviceaccounts/default", false),
            (&account, "GET", "/api/v1/namespaces/a/secrets", false),
            (&account, "GET", "/metrics", false),
            (&account, "GET", "/v2/", false),
            (&account, "GET", "/dhow/v1/backup", false),
            (&account, "POST", "/dhow/v1/renew", false),
            (&nobody, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", false),
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
            let state = State::new(HistoryMax::default());
            assert_eq!(authorize(&user, &info, &state).unwrap_err().message, want);
        }
    }

    #[test]
    fn a_node_reads_what_its_own_pods_name_and_no_more() {
        let pod = |node: &str| {
            json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "unnamed"}}, "spec": {
                "nodeName": node,
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {"name": "base"}}]}],
                "containers": [{"name": "c", "env": [
                    {"name": "X", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}},
                    {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "two", "key": "k"}}},
                ]}],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "files"}}, {"name": "w", "configMap": {"name": "conf"}},
                    {"name": "x", "projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "bit"}}]}},
                    {"name": "y", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "z", "ephemeral": {}},
                ],
            }})
        };
        let mut state = State::new(HistoryMax::default());
        for (index, (name, node)) in [("p1", "n1"), ("p2", "n2")].into_iter().enumerate() {
            let mut pod = pod(node);
            pod["metadata"]["name"] = name.into();
            if node == "n2" {
                pod["spec"]["imagePullSecrets"][0]["name"] = "other".into();
            }
            let put = Op::Put {
                key: Key::new("pods", "a", name),
                value: pod.to_string().into(),
                expect: Expect::Absent,
                expires: None,
            };
            state.apply(index as u64 + 1, &Txn::one(put)).unwrap();
        }
        let node = User::authenticated("system:node:n1", [NODES.to_owned()]);
        for name in ["pull", "all", "one", "files", "part"] {
            assert!(may_in(&state, &node, "GET", &format!("/api/v1/namespaces/a/secrets/{name}")), "{name}");
            assert!(!may_in(&state, &node, "GET", &format!("/api/v1/namespaces/a/configmaps/{name}")), "{name}");
            assert!(!may_in(&state, &node, "GET", &format!("/api/v1/namespaces/b/secrets/{name}")), "{name}");
            assert!(!may_in(&state, &node, "DELETE", &format!("/api/v1/namespaces/a/secrets/{name}")), "{name}");
        }
        for name in ["base", "two", "conf", "bit"] {
            assert!(may_in(&state, &node, "GET", &format!("/api/v1/namespaces/a/configmaps/{name}")), "{name}");
            let watch = format!("/api/v1/namespaces/a/configmaps?watch=1&fieldSelector=metadata.name%3D{name}");
            assert!(may_in(&state, &node, "GET", &watch), "{name}");
        }
        for (name, want) in [("data", true), ("p1-z", true), ("p1-y", false), ("other", false)] {
            let path = format!("/api/v1/namespaces/a/persistentvolumeclaims/{name}");
            assert_eq!(may_in(&state, &node, "GET", &path), want, "{name}");
            assert!(!may_in(&state, &node, "PATCH", &path), "{name}");
        }
        for (method, path, want) in [
            ("PATCH", "pods/p1/status", true),
            ("PUT", "pods/p2/status", false),
            ("GET", "pods/p2/status", false),
            ("DELETE", "pods/p1", true),
            ("DELETE", "pods/p2", false),
            ("DELETE", "pods/gone", true),
            ("DELETE", "pods", false),
            ("GET", "pods/p2", true),
            ("PATCH", "pods/p1", false),
        ] {
            assert_eq!(may_in(&state, &node, method, &format!("/api/v1/namespaces/a/{path}")), want, "{method} {path}");
        }
        for path in ["secrets/other", "secrets/unnamed", "secrets", "secrets?fieldSelector=metadata.name!%3Dpull"] {
            assert!(!may_in(&state, &node, "GET", &format!("/api/v1/namespaces/a/{path}")), "{path}");
        }
        assert!(!may_in(&state, &node, "GET", "/api/v1/secrets?fieldSelector=metadata.name%3Dpull"));
    }

    #[test]
    fn a_node_lets_go_of_the_deleted_volumes_of_its_own_disk() {
        let mut state = State::new(HistoryMax::default());
        let cases = [
            ("own", "n1", true, true),
            ("used", "n1", false, false),
            ("other", "n2", true, false),
            ("any", "", true, false),
        ];
        for (index, (name, node, deleting, _)) in cases.into_iter().enumerate() {
            let mut volume = json!({"metadata": {"name": name}, "spec": {}});
            if deleting {
                volume["metadata"]["deletionTimestamp"] = "2026-01-02T15:04:05Z".into();
            }
            if !node.is_empty() {
                volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
            }
            let key = Key::new("persistentvolumes", "", name);
            let put = Op::Put { key, value: volume.to_string().into(), expect: Expect::Absent, expires: None };
            state.apply(index as u64 + 1, &Txn::one(put)).unwrap();
        }
        let node = User::authenticated("system:node:n1", [NODES.to_owned()]);
        for (name, _, _, want) in cases {
            let path = format!("/api/v1/persistentvolumes/{name}");
            assert_eq!(may_in(&state, &node, "PATCH", &path), want, "{name}");
            assert!(may_in(&state, &node, "GET", &path) && !may_in(&state, &node, "DELETE", &path), "{name}");
        }
    }

    #[test]
    fn a_node_whose_certificate_is_over_may_renew_it_if_it_is_still_there() {
        let mut state = State::new(HistoryMax::default());
        let value = json!({"metadata": {"name": "n1"}}).to_string().into();
        let put = Op::Put { key: Key::new("nodes", "", "n1"), value, expect: Expect::Absent, expires: None };
        state.apply(1, &Txn::one(put)).unwrap();
        let expired = |name: &str| User::authenticated(name, [NODES.to_owned()]).expired();
        let (there, gone) = (expired("system:node:n1").unwrap(), expired("system:node:n2").unwrap());
        for (user, method, path, want) in [
            (&there, "POST", "/dhow/v1/renew", true),
            (&there, "GET", "/dhow/v1/renew", false),
            (&there, "GET", "/api/v1/pods", false),
            (&there, "GET", "/api", false),
            (&gone, "POST", "/dhow/v1/renew", false),
        ] {
            assert_eq!(may_in(&state, user, method, path), want, "{} {method} {path}", user.name);
        }
        assert_eq!(User::authenticated("kubernetes-admin", [MASTERS.to_owned()]).expired(), None);
    }

    #[test]
    fn a_witness_has_no_way_to_what_it_must_not_hold() {
        let mut state = State::new(HistoryMax::default());
        for (index, (id, witness)) in [(2, false), (3, true)].into_iter().enumerate() {
            let value = json!({"metadata": {"name": id.to_string()}, "spec": {"id": id, "witness": witness}});
            let key = Key::new(MEMBERS, "", id.to_string());
            let put = Op::Put { key, value: value.to_string().into(), expect: Expect::Absent, expires: None };
            state.apply(index as u64 + 1, &Txn::one(put)).unwrap();
        }
        let member = |id: u64| User::authenticated(format!("dhow:control:{id}"), [CONTROL_NODES.to_owned()]);
        let (full, witness) = (member(2), member(3));
        let (away, gone) = (witness.clone().expired().unwrap(), member(4).expired().unwrap());
        for (user, method, path, want) in [
            (&full, "GET", "/dhow/v1/backup", true),
            (&witness, "GET", "/dhow/v1/backup", false),
            (&witness, "GET", "/api/v1/secrets", false),
            (&witness, "POST", "/dhow/v1/members", false),
            (&witness, "DELETE", "/dhow/v1/members/m2", false),
            (&witness, "GET", "/dhow/v1/members", true),
            (&witness, "GET", "/dhow/v1/members/records", true),
            (&witness, "GET", "/dhow/v1/membership", false),
            (&witness, "GET", "/dhow/v1/status", true),
            (&witness, "POST", "/dhow/v1/members/join", true),
            (&witness, "POST", "/dhow/v1/renew", true),
            (&away, "POST", "/dhow/v1/renew", true),
            (&away, "GET", "/dhow/v1/members", false),
            (&gone, "POST", "/dhow/v1/renew", false),
        ] {
            assert_eq!(may_in(&state, user, method, path), want, "{} {method} {path}", user.name);
        }
    }
}
