//! A service account with a pod and its node: what tokens may be had, and when they end.

use super::*;
use dhow_state::{Expect, HistoryMax, Op, State, Txn};

const NOW: i64 = 1_780_000_000;

struct World {
    state: State,
    index: u64,
}

impl World {
    /// The account `web` with a pod on the node `n1`, and another account with a pod on `n2`.
    fn new() -> World {
        let mut world = World { state: State::new(HistoryMax::default()), index: 0 };
        let sources = json!([{"serviceAccountToken": {"path": "t"}},
            {"serviceAccountToken": {"path": "v", "audience": "vault"}}]);
        let pod = |account: &str, node: &str| {
            json!({"serviceAccountName": account, "nodeName": node,
                "volumes": [{"name": "x", "projected": {"sources": sources}}]})
        };
        world.put("serviceaccounts", "a", "web", "sa-1", json!({}));
        world.put("serviceaccounts", "a", "other", "sa-2", json!({}));
        world.put("pods", "a", "p1", "pod-1", json!({"spec": pod("web", "n1")}));
        world.put("pods", "a", "p2", "pod-2", json!({"spec": pod("other", "n2")}));
        world.put("secrets", "a", "s", "secret-1", json!({}));
        world.put("nodes", "", "n1", "node-1", json!({}));
        world
    }

    fn put(&mut self, resource: &str, namespace: &str, name: &str, uid: &str, mut tree: Tree) {
        self.index += 1;
        let deletion = tree.get("ends").cloned();
        tree["metadata"] = json!({"name": name, "namespace": namespace, "uid": uid});
        if let Some(ends) = deletion {
            tree["metadata"]["deletionTimestamp"] = ends;
        }
        let key = Key::new(resource, namespace, name);
        let put = Op::Put { key, value: tree.to_string().into(), expect: Expect::Any, expires: None };
        self.state.apply(self.index, &Txn::one(put)).unwrap();
    }

    fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        self.index += 1;
        let delete = Op::Delete { key: Key::new(resource, namespace, name), expect: Expect::Present, last: None };
        self.state.apply(self.index, &Txn::one(delete)).unwrap();
    }

    fn ask_as(&self, user: &User, spec: Tree) -> Result<Grant, ApiError> {
        let request = json!({"metadata": {}, "spec": spec});
        plan(&self.state, user, Name { namespace: "a", name: "web" }, request, (Time::from_secs(NOW), 7))
    }

    fn ask(&self, spec: Tree) -> Result<Grant, ApiError> {
        self.ask_as(&User::system("admin"), spec)
    }

    fn holder(&self, grant: &Grant, after_s: i64) -> Result<Holder, TokenFault> {
        holder(&grant.claims, &[ISSUER.to_owned()], &self.state, Time::from_secs(NOW + after_s))
    }
}

fn bound(kind: &str, name: &str, uid: &str) -> Tree {
    json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}})
}

#[test]
fn a_token_says_what_kubernetes_says() {
    let world = World::new();
    let grant = world.ask(bound("Pod", "p1", "pod-1")).unwrap();
    let id = meta::text(&grant.claims, "jti").to_owned();
    assert_eq!(
        grant.claims,
        json!({
            "aud": [ISSUER], "exp": NOW + 3600, "iat": NOW, "iss": ISSUER, "jti": id, "nbf": NOW,
            "sub": "system:serviceaccount:a:web",
            "kubernetes.io": {
                "namespace": "a", "node": {"name": "n1", "uid": "node-1"}, "pod": {"name": "p1", "uid": "pod-1"},
                "serviceaccount": {"name": "web", "uid": "sa-1"},
            },
        })
    );
    let holder = world.holder(&grant, 0).unwrap();
    assert_eq!(
        holder.user.info(),
        json!({
            "username": "system:serviceaccount:a:web", "uid": "sa-1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": [format!("JTI={id}")],
                "authentication.kubernetes.io/node-name": ["n1"], "authentication.kubernetes.io/node-uid": ["node-1"],
                "authentication.kubernetes.io/pod-name": ["p1"], "authentication.kubernetes.io/pod-uid": ["pod-1"],
            },
        })
    );
    let answer = grant.answer("signed");
    assert_eq!(answer["status"], json!({"token": "signed", "expirationTimestamp": "2026-05-28T21:26:40Z"}));
    assert_eq!((&answer["spec"]["audiences"], &answer["spec"]["expirationSeconds"]), (&json!([ISSUER]), &json!(3600)));
    assert_eq!(answer["metadata"]["name"], "web");
}

#[test]
fn what_cannot_be_had_is_refused_in_kubernetes_words() {
    let world = World::new();
    for (spec, code, want) in [
        (json!({"expirationSeconds": 599}), 422, "may not specify a duration less than 10 minutes"),
        (json!({"expirationSeconds": (1_i64 << 32) + 1}), 422, "may not specify a duration larger than 2^32 seconds"),
        (bound("Pod", "p9", ""), 404, "pods \"p9\" not found"),
        (
            bound("Pod", "p2", ""),
            400,
            "cannot bind token for serviceaccount \"web\" to pod running with different serviceaccount name.",
        ),
        (bound("Pod", "p1", "pod-9"), 409, "the UID in the bound object reference (pod-9) does not match"),
        (bound("ConfigMap", "x", ""), 400, "cannot bind token to object of type v1, Kind=ConfigMap"),
    ] {
        let error = world.ask(spec).unwrap_err();
        assert!(error.code == code && error.message.contains(want), "{} {}", error.code, error.message);
    }
    for (metadata, want) in [
        (json!({"name": "default"}), "metadata.name: Invalid value: \"default\": must match the service account name"),
        (
            json!({"namespace": "b"}),
            "metadata.namespace: Invalid value: \"b\": must match the service account namespace",
        ),
    ] {
        let request = json!({"metadata": metadata, "spec": {}});
        let account = Name { namespace: "a", name: "web" };
        let error = plan(&world.state, &User::system("x"), account, request, (Time::from_secs(NOW), 7)).unwrap_err();
        assert!(error.message.contains(want), "{}", error.message);
    }
    let nobody = Name { namespace: "b", name: "web" };
    let error = plan(&world.state, &User::system("x"), nobody, json!({}), (Time::from_secs(NOW), 7)).unwrap_err();
    assert_eq!(error.message, "serviceaccounts \"web\" not found");
}

#[test]
fn a_node_gets_tokens_for_its_own_pods_alone() {
    let world = World::new();
    let node = |name: &str| User::authenticated(format!("system:node:{name}"), [crate::user::NODES.to_owned()]);
    let with = |mut spec: Tree, audience: &str| {
        spec["audiences"] = json!([audience]);
        spec
    };
    for (user, spec, want) in [
        (node("n1"), bound("Pod", "p1", "pod-1"), ""),
        (node("n1"), with(bound("Pod", "p1", "pod-1"), "vault"), ""),
        (
            node("n1"),
            with(bound("Pod", "p1", "pod-1"), "bank"),
            "audience \"bank\" not found in the volumes of the pod",
        ),
        (node("n2"), bound("Pod", "p1", "pod-1"), "bound to a pod scheduled on a different node"),
        (node("n1"), bound("Pod", "p1", ""), "a pod binding without a uid"),
        (node("n1"), bound("Pod", "p1", "pod-0"), "does not match the UID in record"),
        (node("n2"), bound("Pod", "p2", "pod-2"), "pod running with different serviceaccount name"),
        (node("n1"), bound("Node", "n1", "node-1"), "not bound to a pod"),
        (node("n1"), json!({}), "not bound to a pod"),
    ] {
        match world.ask_as(&user, spec) {
            Ok(_) => assert_eq!(want, "", "{}", user.name),
            Err(error) => assert!(!want.is_empty() && error.message.contains(want), "{}", error.message),
        }
    }
}

#[test]
fn a_token_ends_with_its_time_and_with_what_it_is_bound_to() {
    let mut world = World::new();
    let gone = |what, name: &str| Err(TokenFault::Gone { what, name: name.to_owned() });
    let plain = world.ask(json!({})).unwrap();
    for (after_s, want) in
        [(0, None), (-59, None), (-61, Some(TokenFault::Early)), (3659, None), (3661, Some(TokenFault::Expired))]
    {
        assert_eq!(world.holder(&plain, after_s).err(), want, "{after_s}");
    }
    let by_pod = world.ask(bound("Pod", "p1", "")).unwrap();
    let by_secret = world.ask(bound("Secret", "s", "")).unwrap();
    let by_node = world.ask(bound("Node", "n1", "")).unwrap();
    for grant in [&plain, &by_pod, &by_secret, &by_node] {
        assert!(world.holder(grant, 0).is_ok());
    }
    let drop_user = |found: Result<Holder, TokenFault>| found.map(drop);
    // A deletion with a grace period ends in the future.
    let ends = Time::from_secs(NOW + 30).to_rfc3339();
    world.put("pods", "a", "p1", "pod-1", json!({"ends": ends, "spec": {}}));
    assert!(world.holder(&by_pod, 89).is_ok());
    assert_eq!(drop_user(world.holder(&by_pod, 91)), gone("pod", "p1"));
    // A pod of the same name is another one, and a pod's token does not hang on its node.
    world.put("pods", "a", "p1", "pod-9", json!({"spec": {}}));
    assert_eq!(drop_user(world.holder(&by_pod, 0)), gone("pod", "p1"));
    world.put("pods", "a", "p1", "pod-1", json!({"spec": {}}));
    world.remove("nodes", "", "n1");
    assert!(world.holder(&by_pod, 0).is_ok());
    assert_eq!(drop_user(world.holder(&by_node, 0)), gone("node", "n1"));
    world.remove("secrets", "a", "s");
    assert_eq!(drop_user(world.holder(&by_secret, 0)), gone("secret", "s"));
    world.put("serviceaccounts", "a", "web", "sa-9", json!({}));
    assert_eq!(drop_user(world.holder(&plain, 0)), gone("service account", "web"));
}

#[test]
fn a_token_is_for_its_audiences() {
    let world = World::new();
    let grant = world.ask(json!({"audiences": ["vault", "bank"]})).unwrap();
    let fault = world.holder(&grant, 0).unwrap_err();
    assert_eq!(
        fault.to_string(),
        format!("token audiences [\"vault\" \"bank\"] is invalid for the target audiences [\"{ISSUER}\"]")
    );
    let now = Time::from_secs(NOW);
    let found = holder(&grant.claims, &["bank".to_owned(), "x".to_owned()], &world.state, now).unwrap();
    assert_eq!(found.audiences, ["bank"]);
}

#[test]
fn what_says_something_else_speaks_for_nobody() {
    let world = World::new();
    let claims = world.ask(json!({})).unwrap().claims;
    for (path, value) in [
        ("iss", json!("https://elsewhere")),
        ("sub", json!("system:serviceaccount:kube-system:web")),
        ("sub", json!("kubernetes-admin")),
        ("exp", Tree::Null),
        ("nbf", json!("soon")),
        ("kubernetes.io", Tree::Null),
    ] {
        let mut claims = claims.clone();
        claims[path] = value;
        let found = holder(&claims, &[ISSUER.to_owned()], &world.state, Time::from_secs(NOW));
        assert_eq!(found, Err(TokenFault::Foreign), "{path}");
    }
}
