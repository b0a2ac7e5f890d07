//! A small cluster in memory: requests as tables, answers as they would be seen.

use super::*;
use crate::list::list;
use crate::media::PatchType;
use crate::options::{self, DeleteOptions, Propagation, delete_options};
use crate::request::Query;
use crate::watch::{EventType, event};
use dhow_api::decode::Validation;
use dhow_api::kinds;
use dhow_state::HistoryMax;
use serde_json::json;

mod accounts;

struct Cluster {
    state: State,
    index: u64,
    now: Time,
    seed: u64,
    dry_run: bool,
}

impl Cluster {
    fn new() -> Cluster {
        let now = Time::parse("2026-01-01T12:00:00Z").unwrap();
        let state = State::new(HistoryMax::default());
        let mut cluster = Cluster { state, index: 0, now, seed: 1, dry_run: false };
        cluster.create("namespaces", json!({"metadata": {"name": "default"}})).unwrap();
        cluster
    }

    fn run(&mut self, plan: impl FnOnce(&Context<'_>) -> Result<Plan, ApiError>) -> Result<Tree, ApiError> {
        self.seed += 1;
        let context = Context {
            view: &self.state,
            now: self.now,
            seed: self.seed,
            services: ServiceRanges::parse("10.43.0.0/16").unwrap(),
            dry_run: self.dry_run,
        };
        let plan = plan(&context)?;
        let mut stored = None;
        if let Some(txn) = plan.txn {
            self.index += 1;
            stored = self.state.apply(self.index, &txn).unwrap().objects.into_iter().next();
            if let (Some(index), Some(stored)) = (plan.index, &stored) {
                assert_eq!(index, stored.index, "what was planned and what the text says");
            }
        }
        Ok(match plan.reply {
            Reply::Stored => stored.unwrap().tree(),
            Reply::StoredScale => scale_of(&stored.unwrap().tree()),
            Reply::Object(object) => object.tree(),
            Reply::Tree(tree) => tree,
        })
    }

    fn create(&mut self, resource: &str, tree: Tree) -> Result<Tree, ApiError> {
        let kind = kinds::by_group_resource(resource).unwrap();
        let namespace = match meta::namespace(&tree) {
            "" if kind.namespaced => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        self.run(|ctx| super::create(ctx, kind, &namespace, tree))
    }

    fn update(&mut self, resource: &str, name: &str, tree: Tree) -> Result<Tree, ApiError> {
        let kind = kinds::by_group_resource(resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        self.run(|ctx| super::update(ctx, kind, Name { namespace, name }, tree))
    }

    fn patch(&mut self, resource: &str, name: &str, ty: PatchType, body: Tree) -> Result<Tree, ApiError> {
        let kind = kinds::by_group_resource(resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        let patch = Patch { ty, body: &body, validation: Validation::Strict, of: Part::Main };
        self.run(|ctx| super::patch(ctx, kind, Name { namespace, name }, patch))
    }

    fn merge(&mut self, resource: &str, name: &str, body: Tree) -> Result<Tree, ApiError> {
        self.patch(resource, name, PatchType::Merge, body)
    }

    fn delete(&mut self, resource: &str, name: &str, options: &DeleteOptions) -> Result<Tree, ApiError> {
        let kind = kinds::by_group_resource(resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        self.run(|ctx| super::delete(ctx, kind, Name { namespace, name }, options))
    }

    fn get(&self, resource: &str, name: &str) -> Option<Tree> {
        let kind = kinds::by_group_resource(resource).unwrap();
        let namespace = if kind.namespaced { "default" } else { "" };
        self.state.get(&Key::new(resource, namespace, name)).map(|object| object.tree())
    }
}

fn config_map(name: &str) -> Tree {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Tree {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "hello:1.0"}]}})
}

fn service(name: &str, spec: Tree) -> Tree {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

fn refusal(result: Result<Tree, ApiError>) -> String {
    let error = result.unwrap_err();
    format!("{} {} {}", error.code, error.reason.as_str(), error.message)
}

#[test]
fn a_new_object_gets_what_the_server_gives() {
    let mut cluster = Cluster::new();
    let tree = cluster.create("configmaps", config_map("a")).unwrap();
    assert_eq!(meta::api_version(&tree), "v1");
    assert_eq!(meta::kind(&tree), "ConfigMap");
    assert_eq!(meta::namespace(&tree), "default");
    assert_eq!(meta::resource_version(&tree), "2");
    assert_eq!(meta::text(&tree, "metadata.creationTimestamp"), "2026-01-01T12:00:00Z");
    assert_eq!(meta::uid(&tree).len(), 36);
    assert_eq!(tree.as_object().unwrap().keys().next().unwrap(), "apiVersion");
    let generated = cluster.create("configmaps", json!({"metadata": {"generateName": "x-"}})).unwrap();
    assert_eq!(meta::name(&generated).len(), 7);
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }, "status": {"replicas": 5}});
    let deployment = cluster.create("deployments.apps", deployment).unwrap();
    assert_eq!(meta::generation(&deployment), 1);
    assert_eq!(meta::int(&deployment, "status.replicas"), None);
}

#[test]
fn creation_is_refused_in_the_usual_words() {
    let mut cluster = Cluster::new();
    cluster.create("configmaps", config_map("a")).unwrap();
    cluster.create("namespaces", json!({"metadata": {"name": "going"}})).unwrap();
    let kind = kinds::by_group_resource("namespaces").unwrap();
    let name = Name { namespace: "", name: "going" };
    cluster.run(|ctx| super::delete(ctx, kind, name, &DeleteOptions::default())).unwrap();
    for (tree, want) in [
        (config_map("a"), "409 AlreadyExists configmaps \"a\" already exists"),
        (
            json!({"metadata": {"name": "b", "resourceVersion": "7"}}),
            "500  resourceVersion should not be set on objects to be created",
        ),
        (json!({"metadata": {"name": "b", "namespace": "nope"}}), "404 NotFound namespaces \"nope\" not found"),
        (
            json!({"metadata": {"name": "b", "namespace": "going"}}),
            "403 Forbidden configmaps \"b\" is forbidden: unable to create new content in namespace going because it \
             is being terminated",
        ),
        (
            json!({"metadata": {}}),
            "422 Invalid ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "b"}}),
            "400 BadRequest the API version in the data (v2) does not match the expected API version (v1)",
        ),
    ] {
        assert_eq!(refusal(cluster.create("configmaps", tree)), want);
    }
}

#[test]
fn an_update_knows_its_version() {
    let mut cluster = Cluster::new();
    let old = cluster.create("configmaps", config_map("a")).unwrap();
    let mut new = old.clone();
    new["data"]["a"] = "2".into();
    let updated = cluster.update("configmaps", "a", new.clone()).unwrap();
    assert_eq!(meta::resource_version(&updated), "3");
    assert_eq!(meta::uid(&updated), meta::uid(&old));
    // The same content again writes nothing.
    let again = cluster.update("configmaps", "a", updated.clone()).unwrap();
    assert_eq!(again, updated);
    assert_eq!(cluster.state.revision().0, 3);
    let blind = cluster.update("configmaps", "a", config_map("a")).unwrap();
    assert_eq!(meta::resource_version(&blind), "4");
    for (name, tree, want) in [
        (
            "a",
            new,
            "409 Conflict Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply \
             your changes to the latest version and try again",
        ),
        ("b", config_map("b"), "404 NotFound configmaps \"b\" not found"),
        ("b", config_map("a"), "400 BadRequest the name of the object (a) does not match the name on the URL (b)"),
    ] {
        assert_eq!(refusal(cluster.update("configmaps", name, tree)), want);
    }
}

#[test]
fn patches_of_all_three_kinds() {
    let mut cluster = Cluster::new();
    cluster.create("configmaps", config_map("a")).unwrap();
    let merged = cluster.merge("configmaps", "a", json!({"data": {"b": "2"}})).unwrap();
    assert_eq!(merged["data"], json!({"a": "1", "b": "2"}));
    let version = meta::resource_version(&merged).to_owned();
    let same = cluster.merge("configmaps", "a", json!({"data": {"b": "2"}})).unwrap();
    assert_eq!(meta::resource_version(&same), version);
    let ops = json!([{"op": "remove", "path": "/data/a"}]);
    let patched = cluster.patch("configmaps", "a", PatchType::Json, ops).unwrap();
    assert_eq!(patched["data"], json!({"b": "2"}));
    cluster.create("pods", pod("p")).unwrap();
    let body = json!({"metadata": {"labels": {"x": "1"}}});
    let labelled = cluster.patch("pods", "p", PatchType::Strategic, body).unwrap();
    assert_eq!(meta::label(&labelled, "x"), Some("1"));
    for (body, want) in [
        (
            json!({"metadata": {"name": "q"}}),
            "400 BadRequest the name of the object (q) does not match the name on the URL (a)",
        ),
        (
            json!({"metadata": {"uid": "q"}}),
            "422 Invalid ConfigMap \"a\" is invalid: metadata.uid: Invalid value: \"q\": field is immutable",
        ),
        (
            json!({"metadata": {"resourceVersion": "1"}, "data": {"c": "3"}}),
            "409 Conflict Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply \
             your changes to the latest version and try again",
        ),
    ] {
        assert_eq!(refusal(cluster.merge("configmaps", "a", body)), want);
    }
}

#[test]
fn a_status_and_the_rest_do_not_touch_each_other() {
    let mut cluster = Cluster::new();
    let created = cluster.create("pods", pod("p")).unwrap();
    let kind = kinds::by_group_resource("pods").unwrap();
    let name = Name { namespace: "default", name: "p" };
    let mut new = created.clone();
    new["status"] = json!({"phase": "Running"});
    new["spec"]["containers"][0]["image"] = "other".into();
    let updated = cluster.run(|ctx| update_status(ctx, kind, name, new)).unwrap();
    assert_eq!(meta::text(&updated, "status.phase"), "Running");
    assert_eq!(updated["spec"], created["spec"]);
    let mut new = updated.clone();
    new["status"] = json!({"phase": "Failed"});
    new["metadata"]["labels"] = json!({"a": "b"});
    let updated = cluster.update("pods", "p", new).unwrap();
    assert_eq!(meta::text(&updated, "status.phase"), "Running");
    assert_eq!(meta::label(&updated, "a"), Some("b"));
}

#[test]
fn a_running_pod_is_deleted_gracefully() {
    let mut cluster = Cluster::new();
    cluster.create("pods", pod("waiting")).unwrap();
    cluster.delete("pods", "waiting", &DeleteOptions::default()).unwrap();
    assert_eq!(cluster.get("pods", "waiting"), None, "a pod that no node has goes at once");

    cluster.create("pods", pod("p")).unwrap();
    let kind = kinds::by_group_resource("pods").unwrap();
    let name = Name { namespace: "default", name: "p" };
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    cluster.run(|ctx| bind(ctx, kind, name, &binding)).unwrap();
    assert_eq!(
        refusal(cluster.run(|ctx| bind(ctx, kind, name, &binding))),
        "409 Conflict Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
    let going = cluster.delete("pods", "p", &DeleteOptions::default()).unwrap();
    assert_eq!(meta::text(&going, "metadata.deletionTimestamp"), "2026-01-01T12:00:30Z");
    assert_eq!(meta::int(&going, "metadata.deletionGracePeriodSeconds"), Some(30));
    let again = cluster.delete("pods", "p", &DeleteOptions::default()).unwrap();
    assert_eq!(again, going, "a second wish changes nothing");
    let longer = DeleteOptions { grace_s: Some(60), ..DeleteOptions::default() };
    assert_eq!(cluster.delete("pods", "p", &longer).unwrap(), going, "time is never added");
    let shorter = DeleteOptions { grace_s: Some(5), ..DeleteOptions::default() };
    let going = cluster.delete("pods", "p", &shorter).unwrap();
    assert_eq!(meta::text(&going, "metadata.deletionTimestamp"), "2026-01-01T12:00:05Z");
    let now = DeleteOptions { grace_s: Some(0), ..DeleteOptions::default() };
    cluster.delete("pods", "p", &now).unwrap();
    assert_eq!(cluster.get("pods", "p"), None);

    cluster.create("pods", pod("p")).unwrap();
    cluster.run(|ctx| bind(ctx, kind, name, &binding)).unwrap();
    let never = DeleteOptions { grace_s: Some(i64::MAX), ..DeleteOptions::default() };
    let going = cluster.delete("pods", "p", &never).unwrap();
    assert!(meta::deletion_timestamp(&going).is_some(), "a time that clients can read");
}

#[test]
fn finalizers_keep_an_object() {
    let mut cluster = Cluster::new();
    cluster.create("configmaps", json!({"metadata": {"name": "a", "finalizers": ["ex.io/f"]}})).unwrap();
    let going = cluster.delete("configmaps", "a", &DeleteOptions::default()).unwrap();
    assert_eq!(meta::int(&going, "metadata.deletionGracePeriodSeconds"), Some(0));
    assert_eq!(
        refusal(cluster.merge("configmaps", "a", json!({"metadata": {"finalizers": ["ex.io/f", "ex.io/g"]}}))),
        "422 Invalid ConfigMap \"a\" is invalid: metadata.finalizers: Forbidden: no new finalizers can be added if the \
         object is being deleted, found new finalizers []string{\"ex.io/g\"}"
    );
    let last = cluster.merge("configmaps", "a", json!({"metadata": {"finalizers": null}})).unwrap();
    assert_eq!(meta::kind(&last), "ConfigMap");
    assert_eq!(meta::resource_version(&last), meta::resource_version(&going), "the last form keeps its version");
    assert_eq!(cluster.get("configmaps", "a"), None);

    cluster.create("configmaps", config_map("b")).unwrap();
    let foreground = DeleteOptions { propagation: Some(Propagation::Foreground), ..DeleteOptions::default() };
    let going = cluster.delete("configmaps", "b", &foreground).unwrap();
    assert_eq!(meta::finalizers(&going), ["foregroundDeletion"]);
    let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    let status = cluster.delete("configmaps", "b", &background).unwrap();
    assert_eq!(meta::kind(&status), "Status");
    assert_eq!(cluster.get("configmaps", "b"), None);
}

#[test]
fn deletions_know_their_preconditions() {
    let mut cluster = Cluster::new();
    let tree = cluster.create("configmaps", config_map("a")).unwrap();
    let uid = DeleteOptions { uid: Some("x".to_owned()), ..DeleteOptions::default() };
    assert_eq!(
        refusal(cluster.delete("configmaps", "a", &uid)),
        format!(
            "409 Conflict Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (x) does not \
             match the UID in record ({}). The object might have been deleted and then recreated",
            meta::uid(&tree)
        )
    );
    let version = DeleteOptions { resource_version: Some("1".to_owned()), ..DeleteOptions::default() };
    assert_eq!(
        refusal(cluster.delete("configmaps", "a", &version)),
        "409 Conflict Operation cannot be fulfilled on ConfigMap \"a\": the ResourceVersion in the precondition (1) \
         does not match the ResourceVersion in record (2). The object might have been modified"
    );
    let bad = delete_options(&Query::parse("propagationPolicy=Foo"), None).unwrap_err();
    assert_eq!(
        bad.message,
        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Foo\": supported values: \
         \"Foreground\", \"Background\", \"Orphan\", \"nil\""
    );
    cluster.dry_run = true;
    cluster.delete("configmaps", "a", &DeleteOptions::default()).unwrap();
    assert!(cluster.get("configmaps", "a").is_some(), "a dry run deletes nothing");
}

#[test]
fn a_namespace_goes_when_its_content_is_gone() {
    let mut cluster = Cluster::new();
    let kind = kinds::by_group_resource("namespaces").unwrap();
    assert_eq!(
        refusal(cluster.delete("namespaces", "default", &DeleteOptions::default())),
        "403 Forbidden namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
    cluster.create("namespaces", json!({"metadata": {"name": "harbour"}})).unwrap();
    let name = Name { namespace: "", name: "harbour" };
    let going = cluster.delete("namespaces", "harbour", &DeleteOptions::default()).unwrap();
    assert_eq!(meta::text(&going, "status.phase"), "Terminating");
    assert_eq!(meta::list(&going, "spec.finalizers"), [json!("kubernetes")]);
    let mut done = going.clone();
    done["spec"]["finalizers"] = json!([]);
    cluster.run(|ctx| finalize(ctx, kind, name, done)).unwrap();
    assert_eq!(cluster.get("namespaces", "harbour"), None);
}

#[test]
fn services_get_addresses_and_ports() {
    let mut cluster = Cluster::new();
    let first = cluster.create("services", service("a", json!({"clusterIP": "10.43.0.7"}))).unwrap();
    assert_eq!(first["spec"]["clusterIPs"], json!(["10.43.0.7"]));
    let second = cluster.create("services", service("b", json!({"type": "NodePort"}))).unwrap();
    let ip: Ipv4Addr = meta::text(&second, "spec.clusterIP").parse().unwrap();
    assert_eq!(ip.octets()[..2], [10, 43]);
    let port = second["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let same = cluster.create("services", service("a", json!({"clusterIP": "10.43.0.7"})));
    assert_eq!(refusal(same), "409 AlreadyExists services \"a\" already exists");
    let headless = cluster.create("services", service("c", json!({"clusterIP": "None"}))).unwrap();
    assert_eq!(headless["spec"]["clusterIP"], "None");
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    let external = cluster.create("services", service("d", external)).unwrap();
    assert_eq!(meta::at(&external, "spec.clusterIP"), None);
    let node_port = |port: i64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    for (spec, want) in [
        (
            json!({"clusterIP": "10.43.0.7"}),
            "422 Invalid Service \"e\" is invalid: spec.clusterIPs: Invalid value: [\"10.43.0.7\"]: failed to allocate \
             IP 10.43.0.7: provided IP is already allocated"
                .to_owned(),
        ),
        (
            json!({"clusterIP": "10.1.0.7"}),
            "422 Invalid Service \"e\" is invalid: spec.clusterIPs: Invalid value: [\"10.1.0.7\"]: failed to allocate \
             IP 10.1.0.7: the provided IP (10.1.0.7) is not in the valid range. The range of valid IPs is 10.43.0.0/16"
                .to_owned(),
        ),
        (
            node_port(port),
            format!(
                "422 Invalid Service \"e\" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is \
                 already allocated"
            ),
        ),
        (
            node_port(80),
            "422 Invalid Service \"e\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in \
             the valid range. The range of valid ports is 30000-32767"
                .to_owned(),
        ),
    ] {
        assert_eq!(refusal(cluster.create("services", service("e", spec))), want);
    }
    // What the server chose stays when a client leaves it out.
    let mut again = service("b", json!({"type": "NodePort"}));
    again["spec"]["selector"] = json!({"app": "b"});
    let updated = cluster.update("services", "b", again).unwrap();
    assert_eq!(updated["spec"]["clusterIP"], second["spec"]["clusterIP"]);
    assert_eq!(updated["spec"]["ports"], second["spec"]["ports"]);
    let narrowed = cluster.merge("services", "b", json!({"spec": {"type": "ClusterIP"}})).unwrap();
    assert_eq!(meta::at(&narrowed["spec"]["ports"][0], "nodePort"), None);
}

#[test]
fn events_expire_an_hour_after_they_were_written_last() {
    let mut cluster = Cluster::new();
    let event =
        json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}});
    cluster.create("events", event).unwrap();
    let hour_ms = 3600 * 1000;
    assert_eq!(cluster.state.next_expiry(), Some(cluster.now + hour_ms));
    cluster.now = cluster.now + 60_000;
    cluster.merge("events", "e", json!({"count": 2})).unwrap();
    assert_eq!(cluster.state.next_expiry(), Some(cluster.now + hour_ms));
    cluster.create("configmaps", config_map("a")).unwrap();
    assert_eq!(cluster.state.expired(cluster.now + hour_ms).count(), 1);
}

#[test]
fn a_lease_that_is_only_renewed_may_wait() {
    let mut cluster = Cluster::new();
    let lease =
        json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "renewTime": "2026-01-01T12:00:00.000000Z"}});
    cluster.create("leases.coordination.k8s.io", lease).unwrap();
    let kind = kinds::by_group_resource("leases.coordination.k8s.io").unwrap();
    for (body, lazy) in [
        (json!({"spec": {"renewTime": "2026-01-01T12:00:10.000000Z"}}), true),
        (json!({"spec": {"holderIdentity": "b", "renewTime": "2026-01-01T12:00:10.000000Z"}}), false),
    ] {
        let patch = Patch { ty: PatchType::Merge, body: &body, validation: Validation::Strict, of: Part::Main };
        let name = Name { namespace: "default", name: "l" };
        assert_eq!(super::patch(&context(&cluster.state), kind, name, patch).unwrap().lazy, lazy, "{body}");
    }
}

/// What is claimed, without what `kubernetes` would have.
fn claimed(cluster: &Cluster) -> Vec<String> {
    cluster.state.list(claims::CLAIMS, None).map(|claim| claim.key.name.to_string()).collect()
}

#[test]
fn what_a_service_has_is_claimed_as_long_as_it_has_it() {
    let mut cluster = Cluster::new();
    let ports = json!([{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]);
    let spec = json!({"clusterIP": "10.43.0.7", "type": "NodePort", "ports": ports});
    let first = cluster.create("services", service("a", spec)).unwrap();
    assert_eq!(claimed(&cluster), ["node-port-tcp-30001", "node-port-tcp-30002", "service-ip-10.43.0.7"]);
    let moved = json!([{"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30003}]);
    cluster.merge("services", "a", json!({"spec": {"ports": moved}})).unwrap();
    assert_eq!(claimed(&cluster), ["node-port-tcp-30001", "node-port-tcp-30003", "service-ip-10.43.0.7"]);
    cluster.merge("services", "a", json!({"spec": {"type": "ClusterIP"}})).unwrap();
    assert_eq!(claimed(&cluster), ["service-ip-10.43.0.7"]);
    // A service of a time before there were claims gets its own with the next change of it, and goes without any.
    for op in claims::changes(&context(&cluster.state), service_kind(), Some(&first), None) {
        cluster.index += 1;
        cluster.state.apply(cluster.index, &Txn::one(op)).unwrap();
    }
    assert!(claimed(&cluster).is_empty());
    cluster.merge("services", "a", json!({"metadata": {"labels": {"x": "1"}}})).unwrap();
    assert_eq!(claimed(&cluster), ["service-ip-10.43.0.7"]);
    cluster.delete("services", "a", &DeleteOptions::default()).unwrap();
    assert!(claimed(&cluster).is_empty());
}

fn service_kind() -> &'static Kind {
    kinds::by_group_resource("services").unwrap()
}

fn context(state: &State) -> Context<'_> {
    let now = Time::parse("2026-01-01T12:00:00Z").unwrap();
    Context { view: state, now, seed: 7, services: ServiceRanges::parse("10.43.0.0/16").unwrap(), dry_run: false }
}

#[test]
fn of_two_plans_for_one_address_the_state_takes_one() {
    let mut cluster = Cluster::new();
    let plan = |cluster: &Cluster, name: &str| {
        let tree = service(name, json!({"clusterIP": "10.43.0.7"}));
        super::create(&context(&cluster.state), service_kind(), "default", tree).unwrap().txn.unwrap()
    };
    let mut second = plan(&cluster, "b");
    let first = plan(&cluster, "a");
    cluster.state.apply(cluster.index + 1, &first).unwrap();
    let rejected = cluster.state.apply(cluster.index + 2, &second).unwrap_err();
    assert_eq!(rejected, Rejected::Exists { key: claims::claim_key("service-ip-10.43.0.7") });
    assert_eq!(rejection(service_kind(), &rejected).code, 409);
    // It is the claim that holds them apart.
    second.ops.truncate(1);
    cluster.state.apply(cluster.index + 3, &second).unwrap();
}

#[test]
fn a_claim_of_no_class_gets_the_youngest_default_one() {
    let mut cluster = Cluster::new();
    let claim = |name: &str, class: Option<&str>| {
        json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let class_of = |tree: Tree| meta::at(&tree, "spec.storageClassName").and_then(Tree::as_str).map(str::to_owned);
    let mut create =
        |name: &str, class| class_of(cluster.create("persistentvolumeclaims", claim(name, class)).unwrap());
    assert_eq!(create("before", None), None);
    for (name, default) in [("plain", "false"), ("b", "true"), ("a", "true")] {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": default});
        let class = json!({"kind": "StorageClass", "metadata": {"name": name, "annotations": annotations},
            "provisioner": "dhow.dev/local"});
        cluster.create("storageclasses.storage.k8s.io", class).unwrap();
    }
    let mut create =
        |name: &str, class| class_of(cluster.create("persistentvolumeclaims", claim(name, class)).unwrap());
    assert_eq!(create("after", None).as_deref(), Some("a"), "of two of one age the first by name");
    assert_eq!(create("none", Some("")).as_deref(), Some(""));
    assert_eq!(create("other", Some("x")).as_deref(), Some("x"));
}

#[test]
fn a_mistyped_annotation_is_taken_and_told_of() {
    let mut cluster = Cluster::new();
    let mut tree = pod("p");
    tree["metadata"]["annotations"] = json!({"dhow.dev/http-resue": "2"});
    let told =
        |plan: &Plan| plan.warnings.iter().any(|line| line.contains("[dhow.dev/http-resue]: unknown annotation"));
    let kind = kinds::by_group_resource("pods").unwrap();
    let created =
        cluster.run(|ctx| super::create(ctx, kind, "default", tree.clone()).inspect(|plan| assert!(told(plan))));
    let mut tree = created.unwrap();
    let name = Name { namespace: "default", name: "p" };
    cluster.run(|ctx| update(ctx, kind, name, tree.clone()).inspect(|plan| assert!(told(plan)))).unwrap();
    let status = cluster.run(|ctx| update_status(ctx, kind, name, tree.clone()).inspect(|plan| assert!(!told(plan))));
    status.unwrap();
    tree["metadata"]["annotations"] = json!({"dhow.dev/http-reuse": "2"});
    cluster.run(|ctx| update(ctx, kind, name, tree.clone()).inspect(|plan| assert!(!told(plan)))).unwrap();
}

#[test]
fn a_scale_reads_and_writes_replicas() {
    let mut cluster = Cluster::new();
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "d", "a": "b"}},
        "template": {"metadata": {"labels": {"app": "d", "a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    cluster.create("deployments.apps", deployment).unwrap();
    let kind = kinds::by_group_resource("deployments.apps").unwrap();
    let name = Name { namespace: "default", name: "d" };
    let body = json!({"spec": {"replicas": 3}});
    let patch = Patch { ty: PatchType::Merge, body: &body, validation: Validation::Strict, of: Part::Main };
    let scale = cluster.run(|ctx| patch_scale(ctx, kind, name, patch)).unwrap();
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"]["selector"], "a=b,app=d");
    let deployment = cluster.get("deployments.apps", "d").unwrap();
    assert_eq!((meta::int(&deployment, "spec.replicas"), meta::generation(&deployment)), (Some(3), 2));
    let body = json!({"spec": {"replicas": -1}});
    let patch = Patch { body: &body, ..patch };
    assert_eq!(
        refusal(cluster.run(|ctx| patch_scale(ctx, kind, name, patch))),
        "422 Invalid Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or \
         equal to 0"
    );
}

#[test]
fn pages_of_a_list_show_one_state() {
    let mut cluster = Cluster::new();
    for name in ["a", "b", "c", "d", "e"] {
        cluster.create("configmaps", config_map(name)).unwrap();
    }
    let kind = kinds::by_group_resource("configmaps").unwrap();
    let read = |cluster: &Cluster, query: &str| {
        let options = options::list_options(kind, &Query::parse(query)).unwrap();
        list(&cluster.state, kind, Some("default"), &options)
    };
    let names = |page: &crate::list::Page| page.items.iter().map(|o| o.key.name.to_string()).collect::<Vec<_>>();
    let first = read(&cluster, "limit=2").unwrap();
    assert_eq!((names(&first), first.remaining), (vec!["a".to_owned(), "b".to_owned()], Some(3)));
    // Between the pages, one goes, one comes, one changes.
    cluster.delete("configmaps", "c", &DeleteOptions::default()).unwrap();
    cluster.create("configmaps", config_map("bb")).unwrap();
    cluster.merge("configmaps", "d", json!({"data": {"a": "2"}})).unwrap();
    let second = read(&cluster, &format!("limit=2&continue={}", first.resume.unwrap())).unwrap();
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second.revision, first.revision);
    assert_eq!(second.items[1].tree()["data"], json!({"a": "1"}));
    let third = read(&cluster, &format!("limit=2&continue={}", second.resume.unwrap())).unwrap();
    assert_eq!((names(&third), third.resume), (vec!["e".to_owned()], None));
    let exact = format!("resourceVersionMatch=Exact&resourceVersion={}", first.revision);
    assert_eq!(names(&read(&cluster, &exact).unwrap()), ["a", "b", "c", "d", "e"]);
    assert_eq!(names(&read(&cluster, "fieldSelector=metadata.name%3Dbb").unwrap()), ["bb"]);
    let future = read(&cluster, "resourceVersion=99999999&resourceVersionMatch=NotOlderThan").unwrap_err();
    assert_eq!(
        (future.error.code, future.error.message.starts_with("Timeout: Too large resource version")),
        (504, true)
    );
}

#[test]
fn who_leaves_a_selection_is_deleted_for_its_watchers() {
    let mut cluster = Cluster::new();
    let kind = kinds::by_group_resource("configmaps").unwrap();
    let start = cluster.state.revision();
    cluster.create("configmaps", config_map("a")).unwrap();
    for label in ["x", "x", "y"] {
        cluster.merge("configmaps", "a", json!({"metadata": {"labels": {"l": label}}, "data": {"n": label}})).unwrap();
    }
    cluster.merge("configmaps", "a", json!({"metadata": {"labels": {"l": "x"}}})).unwrap();
    cluster.delete("configmaps", "a", &DeleteOptions::default()).unwrap();
    let options = options::watch_options(kind, &Query::parse("labelSelector=l%3Dx"), "").unwrap();
    let seen: Vec<(EventType, String)> = cluster
        .state
        .since(start)
        .unwrap()
        .filter_map(|change| event(&options.selection, change))
        .map(|(ty, shown)| {
            let tree = shown.tree();
            (ty, format!("{} {}", meta::label(&tree, "l").unwrap_or("-"), meta::resource_version(&tree)))
        })
        .collect();
    let want = [
        (EventType::Added, "x 3"),
        (EventType::Deleted, "x 4"),
        (EventType::Added, "x 5"),
        (EventType::Deleted, "x 6"),
    ];
    assert_eq!(seen, want.map(|(ty, text)| (ty, text.to_owned())));
}

#[test]
fn bad_options_are_refused_as_upstream_does() {
    let kind = kinds::by_group_resource("pods").unwrap();
    for (query, watch, want) in [
        (
            "resourceVersion=abc",
            false,
            "invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": \
             invalid syntax",
        ),
        (
            "resourceVersionMatch=Exact",
            false,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
             forbidden unless resourceVersion is provided",
        ),
        (
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            false,
            "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch is \
             forbidden unless resourceVersion is provided, sendInitialEvents: Forbidden: sendInitialEvents is \
             forbidden for list]",
        ),
        (
            "watch=1&sendInitialEvents=true",
            true,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
             setting resourceVersionMatch to NotOlderThan",
        ),
        ("fieldSelector=spec.replicas%3D1", false, "field label not supported: spec.replicas"),
    ] {
        let query = Query::parse(query);
        let error = if watch {
            options::watch_options(kind, &query, "").unwrap_err()
        } else {
            options::list_options(kind, &query).unwrap_err()
        };
        assert_eq!(error.message, want);
    }
    for (query, want) in [
        (
            "dryRun=foo",
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"foo\"]: supported values: \"All\"",
        ),
        (
            "fieldValidation=foo",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"foo\": supported values: \
             \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
    ] {
        assert_eq!(options::write_options("CreateOptions", &Query::parse(query)).unwrap_err().message, want);
    }
}

/// Whatever a stranger sends, it is read or refused; nothing panics.
#[test]
fn nonsense_is_refused_and_never_panics() {
    let alphabet: Vec<char> = "/&=?%;,+.!()[]{}\"\\ abz09\u{e9}\u{1F600}".chars().collect();
    let words = ["api", "apis", "v1", "namespaces", "watch", "limit", "continue", "labelSelector", "in", "notin", "as"];
    let mut rng = dhow_types::Rng::new(7);
    let kind = kinds::by_group_resource("pods").unwrap();
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..rng.below(12) {
            match rng.below(3) {
                0 => text.push_str(words[rng.below(words.len() as u64) as usize]),
                1 => text.push('/'),
                _ => text.push(alphabet[rng.below(alphabet.len() as u64) as usize]),
            }
        }
        let query = Query::parse(&text);
        let _ = crate::RequestInfo::parse("GET", &text, &query);
        let _ = crate::media::negotiate(Some(&text), crate::media::Endpoint::Objects);
        let _ = options::Continue::decode(&text);
        for key in ["labelSelector", "fieldSelector", "continue", "resourceVersion", "limit"] {
            let _ = options::list_options(kind, &Query::parse(&format!("{key}={text}")));
        }
        let value = json!(text);
        for tree in [value.clone(), json!({"metadata": value, "spec": value}), json!([value])] {
            let _ = delete_options(&query, Some(&tree));
            let _ = scale_of(&tree);
        }
    }
}

#[test]
fn ephemeral_containers_are_added_by_their_own_door_and_stay() {
    let mut cluster = Cluster::new();
    cluster.create("pods", pod("p")).unwrap();
    let patch = |cluster: &mut Cluster, body: Tree| {
        let kind = kinds::by_group_resource("pods").unwrap();
        let patch =
            Patch { ty: PatchType::Strategic, body: &body, validation: Validation::Strict, of: Part::Ephemeral };
        cluster.run(|ctx| super::patch(ctx, kind, Name { namespace: "default", name: "p" }, patch))
    };
    let added = |name: &str, image: &str| json!({"spec": {"ephemeralContainers": [{"name": name, "image": image}]}});
    let mut body = added("d", "toolbox:1");
    body["spec"]["activeDeadlineSeconds"] = json!(5);
    body["metadata"] = json!({"labels": {"a": "b"}});
    let changed = patch(&mut cluster, body).unwrap();
    assert_eq!(meta::text(&changed["spec"]["ephemeralContainers"][0], "terminationMessagePolicy"), "File");
    assert_eq!((changed["spec"].get("activeDeadlineSeconds"), meta::label(&changed, "a")), (None, None));
    assert_eq!(meta::generation(&changed), 2);
    patch(&mut cluster, added("e", "toolbox:1")).unwrap();
    let names: Vec<Tree> = meta::list(&cluster.get("pods", "p").unwrap(), "spec.ephemeralContainers")
        .iter()
        .map(|container| container["name"].clone())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for (body, part) in [
        (added("d", "other:1"), "existing ephemeral containers \\\"d\\\" may not be changed"),
        (json!({"spec": {"ephemeralContainers": [{"name": "d", "$patch": "delete"}]}}), "may not be removed"),
        (added("c", "toolbox:1"), "Duplicate value"),
    ] {
        let error = format!("{:?}", patch(&mut cluster, body).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
    // By the main door nothing of them changes.
    let error = cluster.merge("pods", "p", json!({"spec": {"ephemeralContainers": []}})).unwrap_err();
    assert!(error.message.contains("spec.ephemeralContainers"), "{}", error.message);
    cluster.merge("pods", "p", json!({"metadata": {"labels": {"a": "b"}}})).unwrap();
}
