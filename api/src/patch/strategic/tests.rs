use serde_json::json;

use super::*;

const POD: &str = "io.k8s.api.core.v1.Pod";
const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
const SERVICE: &str = "io.k8s.api.core.v1.Service";

struct Case {
    what: &'static str,
    of: &'static str,
    old: Tree,
    patch: Tree,
    new: Tree,
}

#[test]
fn patches_do_what_upstream_documents() {
    let cases = [
        Case {
            what: "maps are merged, null deletes",
            of: POD,
            old: json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "2"}}}),
            patch: json!({"metadata": {"labels": {"a": null, "c": "3", "d": null}}}),
            new: json!({"metadata": {"name": "p", "labels": {"b": "2", "c": "3"}}}),
        },
        Case {
            what: "containers are merged by name",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}),
            patch: json!({"spec": {"containers": [{"name": "b", "image": "2"}]}}),
            new: json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}}),
        },
        Case {
            what: "a new entry without an order comes first",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a"}]}}),
            patch: json!({"spec": {"containers": [{"name": "b", "image": null}]}}),
            new: json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}}),
        },
        Case {
            what: "$setElementOrder puts it where it was asked for",
            of: DEPLOYMENT,
            old: json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "side"}]}}}}),
            patch: json!({"spec": {"template": {"spec": {
                "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                "containers": [{"name": "b", "image": "2"}]}}}}),
            new: json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a"}, {"name": "b", "image": "2"}, {"name": "side"}]}}}}),
        },
        Case {
            what: "$setElementOrder alone reorders",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
            patch: json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}}),
            new: json!({"spec": {"containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}}),
        },
        Case {
            what: "$patch: delete takes an entry out",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            patch: json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            new: json!({"spec": {"containers": [{"name": "b"}]}}),
        },
        Case {
            what: "$patch: delete with an order, as kubectl apply sends it",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            patch: json!({"spec": {"$setElementOrder/containers": [{"name": "b"}],
                "containers": [{"$patch": "delete", "name": "a"}]}}),
            new: json!({"spec": {"containers": [{"name": "b"}]}}),
        },
        Case {
            what: "$patch: replace in a list",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            patch: json!({"spec": {"containers": [{"name": "c"}, {"$patch": "replace"}]}}),
            new: json!({"spec": {"containers": [{"name": "c"}]}}),
        },
        Case {
            what: "$patch: replace in a list keeps two entries of one key",
            of: SERVICE,
            old: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 80}]}}),
            patch: json!({"spec": {"ports": [
                {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"$patch": "replace"}]}}),
            new: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}}),
        },
        Case {
            what: "$patch: replace in an object",
            of: POD,
            old: json!({"metadata": {"labels": {"a": "1"}}, "spec": {"nodeName": "n", "securityContext": {"runAsUser": 1}}}),
            patch: json!({"spec": {"securityContext": {"$patch": "replace", "runAsGroup": 2}}}),
            new: json!({"metadata": {"labels": {"a": "1"}}, "spec": {"nodeName": "n", "securityContext": {"runAsGroup": 2}}}),
        },
        Case {
            what: "$patch: delete in an object",
            of: POD,
            old: json!({"spec": {"securityContext": {"runAsUser": 1}}}),
            patch: json!({"spec": {"securityContext": {"$patch": "delete"}}}),
            new: json!({"spec": {"securityContext": {}}}),
        },
        Case {
            what: "$retainKeys takes away what it does not name",
            of: DEPLOYMENT,
            old: json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            patch: json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            new: json!({"spec": {"strategy": {"type": "Recreate"}}}),
        },
        Case {
            what: "$retainKeys in a list's entry: a volume changes its source",
            of: POD,
            old: json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            patch: json!({"spec": {"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}}),
            new: json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}),
        },
        Case {
            what: "lists of scalars with the merge strategy are joined",
            of: POD,
            old: json!({"metadata": {"finalizers": ["a", "b"]}}),
            patch: json!({"metadata": {"finalizers": ["b", "c"]}}),
            new: json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
        },
        Case {
            what: "$deleteFromPrimitiveList takes scalars out",
            of: POD,
            old: json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
            patch: json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b", "x"]}}),
            new: json!({"metadata": {"finalizers": ["a", "c"]}}),
        },
        Case {
            what: "as kubectl apply sends it, with an order",
            of: POD,
            old: json!({"metadata": {"finalizers": ["a", "b"]}}),
            patch: json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"],
                "$setElementOrder/finalizers": ["c", "a"], "finalizers": ["c"]}}),
            new: json!({"metadata": {"finalizers": ["c", "a"]}}),
        },
        Case {
            what: "atomic lists are replaced",
            of: POD,
            old: json!({"spec": {"containers": [{"name": "a", "args": ["1", "2"]}], "tolerations": [{"key": "a"}]}}),
            patch: json!({"spec": {"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}}),
            new: json!({"spec": {"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}}),
        },
        Case {
            what: "ports of a service are merged by port alone",
            of: SERVICE,
            old: json!({"spec": {"ports": [{"port": 80, "targetPort": 1}, {"port": 81}]}}),
            patch: json!({"spec": {"ports": [{"port": 80, "targetPort": 2}]}}),
            new: json!({"spec": {"ports": [{"port": 80, "targetPort": 2}, {"port": 81}]}}),
        },
        Case {
            what: "directives in new values are not stored",
            of: POD,
            old: json!({}),
            patch: json!({"spec": {"$retainKeys": ["containers"], "containers": [{"name": "a", "x": null}, {"$patch": "delete", "name": "b"}]}}),
            new: json!({"spec": {"containers": [{"name": "a"}]}}),
        },
        Case {
            what: "unknown fields are merged as JSON",
            of: POD,
            old: json!({"bogus": {"a": 1, "l": [1]}}),
            patch: json!({"bogus": {"b": 2, "l": [2]}}),
            new: json!({"bogus": {"a": 1, "l": [2], "b": 2}}),
        },
    ];
    for case in cases {
        assert_eq!(strategic(&case.old, &case.patch, case.of).unwrap(), case.new, "{}", case.what);
    }
}

#[test]
fn patches_that_make_no_sense_are_refused() {
    let old =
        json!({"spec": {"containers": [{"name": "a"}], "securityContext": {}}, "metadata": {"finalizers": ["a"]}});
    let crowd = json!(vec!["a"; 10_000]);
    let cases = [
        (json!([]), 400, "cannot unmarshal array"),
        (json!({"metadata": {"finalizers": crowd}}), 422, "at most 10000 merge"),
        (json!({"metadata": {"$setElementOrder/finalizers": crowd, "finalizers": ["a"]}}), 422, "at most 10000 merge"),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": crowd}}), 422, "at most 10000 merge"),
        (json!({"spec": {"securityContext": {"$patch": "eat"}}}), 400, "unknown patch type: eat"),
        (json!({"spec": {"containers": [{"name": "a", "$patch": "eat"}]}}), 400, "unknown patch type: eat"),
        (json!({"spec": {"containers": [{"name": "a", "$patch": "merge"}]}}), 422, "merging lists cannot yet"),
        (json!({"spec": {"containers": [{"image": "a"}]}}), 422, "does not contain declared merge key: name"),
        (json!({"spec": {"containers": [5]}}), 422, "not identical"),
        (json!({"spec": {"securityContext": {"$retainKeys": 5}}}), 400, "retainKeys"),
        (json!({"spec": {"securityContext": {"$retainKeys": [], "runAsUser": 5}}}), 400, "retainKeys"),
        (json!({"spec": {"$setElementOrder/containers": 5}}), 400, "setElementOrder"),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                "containers": [{"name": "b"}, {"name": "a"}]}}),
            400,
            "doesn't match $setElementOrder",
        ),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}}), 400, "primitive list"),
    ];
    for (patch, code, words) in cases {
        let error = strategic(&old, &patch, POD).unwrap_err();
        assert_eq!(error.code, code, "{patch}: {error}");
        assert!(error.message.contains(words), "{patch}: {error}");
    }
}

/// What kubectl 1.30 to 1.33 sent when a manifest changed its image, its strategy and the source of a volume, and lost a
/// container and a variable.
#[test]
fn a_patch_of_kubectl_apply_gives_what_the_manifest_says() {
    let old = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "replicas": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"}},
            "template": {"spec": {
                "containers": [
                    {"name": "a", "image": "x", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "env": [{"name": "A", "value": "b"}, {"name": "B", "value": "c"}]},
                    {"name": "b", "image": "y"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "restartPolicy": "Always",
            }},
        },
    });
    let patch = json!({"spec": {
        "strategy": {"$retainKeys": ["type"], "rollingUpdate": null, "type": "Recreate"},
        "template": {"spec": {
            "$setElementOrder/containers": [{"name": "a"}],
            "$setElementOrder/volumes": [{"name": "v"}],
            "containers": [
                {"$setElementOrder/env": [{"name": "B"}], "env": [{"$patch": "delete", "name": "A"}],
                    "image": "z", "name": "a"},
                {"$patch": "delete", "name": "b"},
            ],
            "volumes": [
                {"$retainKeys": ["configMap", "name"], "configMap": {"name": "c"}, "emptyDir": null, "name": "v"},
            ],
        }},
    }});
    let new = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "replicas": 2,
            "strategy": {"type": "Recreate"},
            "template": {"spec": {
                "containers": [{"name": "a", "image": "z", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "B", "value": "c"}]}],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}],
                "restartPolicy": "Always",
            }},
        },
    });
    assert_eq!(strategic(&old, &patch, DEPLOYMENT).unwrap(), new);
}

/// Whatever a patch holds, it is applied or refused, and what it leaves alone stays.
#[test]
fn strange_patches_do_not_panic() {
    let mut rng = dhow_types::Rng::new(11);
    let old = json!({
        "metadata": {"name": "p", "finalizers": ["a"], "labels": {"a": "b"}}, "keep": {"x": 1},
        "spec": {"containers": [{"name": "a", "args": ["1"], "ports": [{"containerPort": 1}]}], "volumes": []},
    });
    for _ in 0..3_000 {
        let patch = json!({"metadata": random(&mut rng, 3), "spec": random(&mut rng, 4)});
        if let Ok(new) = strategic(&old, &patch, POD) {
            assert_eq!(new["keep"], old["keep"]);
            assert!(!new.to_string().contains("$setElementOrder"), "{patch}");
        }
    }
}

fn random(rng: &mut dhow_types::Rng, depth: u64) -> Tree {
    const KEYS: &[&str] = &[
        "name",
        "containers",
        "volumes",
        "finalizers",
        "labels",
        "args",
        "ports",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$setElementOrder/finalizers",
        "$deleteFromPrimitiveList/finalizers",
    ];
    const TEXTS: &[&str] = &["a", "b", "delete", "replace", "merge", "containers"];
    match rng.below(if depth == 0 { 3 } else { 7 }) {
        0 => TEXTS[rng.below(TEXTS.len() as u64) as usize].into(),
        1 => rng.below(3).into(),
        2 => Tree::Null,
        3 => (0..rng.below(3)).map(|_| random(rng, depth - 1)).collect(),
        _ => {
            let pairs = (0..rng.below(4))
                .map(|_| (KEYS[rng.below(KEYS.len() as u64) as usize].to_owned(), random(rng, depth - 1)));
            Tree::Object(pairs.collect())
        }
    }
}
