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
    let cases = [
        (json!([]), 400, "cannot unmarshal array"),
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
