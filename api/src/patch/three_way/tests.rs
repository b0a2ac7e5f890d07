use dhow_types::Rng;
use serde_json::json;

use super::*;
use crate::patch::{merge, strategic};

const POD: Option<&str> = Some("io.k8s.api.core.v1.Pod");
const DEPLOYMENT: Option<&str> = Some("io.k8s.api.apps.v1.Deployment");
const SERVICE: Option<&str> = Some("io.k8s.api.core.v1.Service");

struct Case {
    what: &'static str,
    of: Option<&'static str>,
    original: Tree,
    wanted: Tree,
    current: Tree,
    patch: Tree,
    /// What the server has afterwards.
    new: Tree,
}

/// Containers as `name:image` or `name`, for short.
fn pod(containers: &[&str]) -> Tree {
    let container = |text: &&str| match text.split_once(':') {
        Some((name, image)) => json!({"name": name, "image": image}),
        None => json!({"name": text}),
    };
    json!({"spec": {"containers": containers.iter().map(container).collect::<Tree>()}})
}

#[test]
fn patches_set_remove_and_leave_alone() {
    let cases = [
        Case {
            what: "what is wanted is set, what was and no longer is goes, what others set stays",
            of: POD,
            original: json!({"metadata": {"labels": {"a": "1", "gone": "1", "lost": "1"}}}),
            wanted: json!({"metadata": {"labels": {"a": "2", "new": "1"}}}),
            current: json!({"metadata": {"labels": {"a": "1", "gone": "1", "others": "1"}, "uid": "u"}}),
            patch: json!({"metadata": {"labels": {"a": "2", "new": "1", "gone": null}}}),
            new: json!({"metadata": {"labels": {"a": "2", "others": "1", "new": "1"}, "uid": "u"}}),
        },
        Case {
            what: "what others changed is set again",
            of: POD,
            original: pod(&["a:1"]),
            wanted: pod(&["a:1"]),
            current: pod(&["a:2"]),
            patch: json!({"spec": {"$setElementOrder/containers": [{"name": "a"}],
                "containers": [{"name": "a", "image": "1"}]}}),
            new: pod(&["a:1"]),
        },
        Case {
            what: "nothing to do among defaults and others' entries",
            of: POD,
            original: pod(&["a:1", "b:1"]),
            wanted: pod(&["a:1", "b:1"]),
            current: json!({"spec": {"containers": [{"name": "a", "image": "1", "imagePullPolicy": "Always"},
                {"name": "injected", "image": "9"}, {"name": "b", "image": "1"}], "restartPolicy": "Always"}}),
            patch: json!({}),
            new: json!({"spec": {"containers": [{"name": "a", "image": "1", "imagePullPolicy": "Always"},
                {"name": "injected", "image": "9"}, {"name": "b", "image": "1"}], "restartPolicy": "Always"}}),
        },
        Case {
            what: "a list's entry is removed, another changed, a third is new; others' entries stay",
            of: POD,
            original: pod(&["a:1", "b:1"]),
            wanted: pod(&["c:1", "b:2"]),
            current: pod(&["a:1", "b:1", "injected:9"]),
            patch: json!({"spec": {
                "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}],
                "containers": [{"name": "c", "image": "1"}, {"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}]}}),
            new: pod(&["c:1", "b:2", "injected:9"]),
        },
        Case {
            what: "a list's entry that somebody removed already is not removed again",
            of: POD,
            original: pod(&["a", "b"]),
            wanted: pod(&["b"]),
            current: pod(&["b"]),
            patch: json!({}),
            new: pod(&["b"]),
        },
        Case {
            what: "another order",
            of: POD,
            original: pod(&["a", "b"]),
            wanted: pod(&["b", "a"]),
            current: pod(&["a", "x", "b"]),
            patch: json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            new: pod(&["x", "b", "a"]),
        },
        Case {
            what: "a field of a list's entry is removed",
            of: POD,
            original: json!({"spec": {"containers": [{"name": "a", "args": ["x"], "env": [{"name": "E", "value": "1"}]}]}}),
            wanted: json!({"spec": {"containers": [{"name": "a", "env": []}]}}),
            current: json!({"spec": {"containers": [{"name": "a", "args": ["x"],
                "env": [{"name": "E", "value": "1"}, {"name": "O", "value": "1"}]}]}}),
            patch: json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [
                {"name": "a", "env": [{"name": "E", "$patch": "delete"}], "args": null}]}}),
            new: json!({"spec": {"containers": [{"name": "a", "env": [{"name": "O", "value": "1"}]}]}}),
        },
        Case {
            what: "a list that does not merge is replaced, also if only something in it is gone",
            of: POD,
            original: json!({"spec": {"tolerations": [{"key": "k", "effect": "NoExecute"}]}}),
            wanted: json!({"spec": {"tolerations": [{"key": "k"}]}}),
            current: json!({"spec": {"tolerations": [{"key": "k", "effect": "NoExecute"}]}}),
            patch: json!({"spec": {"tolerations": [{"key": "k"}]}}),
            new: json!({"spec": {"tolerations": [{"key": "k"}]}}),
        },
        Case {
            what: "another strategy takes the old one's fields away, though a default put them there",
            of: DEPLOYMENT,
            original: json!({"spec": {"replicas": 1}}),
            wanted: json!({"spec": {"replicas": 1.0, "strategy": {"type": "Recreate"}}}),
            current: json!({"spec": {"replicas": 1, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            patch: json!({"spec": {"strategy": {"type": "Recreate", "$retainKeys": ["type"]}}}),
            new: json!({"spec": {"replicas": 1, "strategy": {"type": "Recreate"}}}),
        },
        Case {
            what: "a volume changes its source",
            of: POD,
            original: json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            wanted: json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}),
            current: json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            patch: json!({"spec": {"$setElementOrder/volumes": [{"name": "v"}], "volumes": [
                {"name": "v", "configMap": {"name": "c"}, "emptyDir": null, "$retainKeys": ["name", "configMap"]}]}}),
            new: json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "c"}}]}}),
        },
        Case {
            what: "scalars of a merging list are added and taken out",
            of: POD,
            original: json!({"metadata": {"finalizers": ["a/x", "b/x"]}}),
            wanted: json!({"metadata": {"finalizers": ["c/x", "a/x"]}}),
            current: json!({"metadata": {"finalizers": ["a/x", "b/x", "others/x"]}}),
            patch: json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b/x"],
                "$setElementOrder/finalizers": ["c/x", "a/x"], "finalizers": ["c/x"]}}),
            new: json!({"metadata": {"finalizers": ["c/x", "a/x", "others/x"]}}),
        },
        Case {
            what: "ports of one number and two protocols are replaced together",
            of: SERVICE,
            original: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}]}}),
            wanted: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}}),
            current: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP", "targetPort": 53}]}}),
            patch: json!({"spec": {"ports": [
                {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"$patch": "replace"}]}}),
            new: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}}),
        },
        Case {
            what: "and left alone if they are as wanted",
            of: SERVICE,
            original: Tree::Null,
            wanted: json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}}),
            current: json!({"spec": {"ports": [
                {"port": 53, "protocol": "UDP", "targetPort": 53}, {"port": 53, "protocol": "TCP", "targetPort": 53}]}}),
            patch: json!({}),
            new: json!({"spec": {"ports": [
                {"port": 53, "protocol": "UDP", "targetPort": 53}, {"port": 53, "protocol": "TCP", "targetPort": 53}]}}),
        },
        Case {
            what: "null asks for the default",
            of: DEPLOYMENT,
            original: Tree::Null,
            wanted: json!({"metadata": {"generation": null}, "spec": {"replicas": null}}),
            current: json!({"metadata": {}, "spec": {"replicas": 3}}),
            patch: json!({"spec": {"replicas": null}}),
            new: json!({"metadata": {}, "spec": {}}),
        },
        Case {
            what: "fields that the table does not know are patched as JSON",
            of: None,
            original: json!({"spec": {"containers": [{"name": "a"}], "old": 1}}),
            wanted: json!({"spec": {"containers": [{"name": "b"}]}}),
            current: json!({"spec": {"containers": [{"name": "a"}], "old": 1, "others": 1}}),
            patch: json!({"spec": {"containers": [{"name": "b"}], "old": null}}),
            new: json!({"spec": {"containers": [{"name": "b"}], "others": 1}}),
        },
    ];
    for Case { what, of, original, wanted, current, patch, new } in cases {
        let found = three_way(Versions { original: &original, wanted: &wanted, current: &current }, of);
        assert_eq!(found.to_string(), patch.to_string(), "{what}");
        assert_eq!(applied(&current, &found, of), new, "{what}");
    }
}

fn applied(current: &Tree, patch: &Tree, of: Option<&str>) -> Tree {
    match of {
        Some(of) => strategic(current, patch, of).unwrap_or_else(|err| panic!("{patch}: {}", err.message)),
        None => merge(current, patch),
    }
}

/// A pod of few names, so that versions have much in common.
fn random_pod(rng: &mut Rng) -> Tree {
    let mut pick = |of: &[&str]| {
        let mut names: Vec<_> = of.iter().filter(|_| rng.chance(1, 2)).map(|name| Tree::from(*name)).collect();
        if rng.chance(1, 3) {
            names.reverse();
        }
        names
    };
    let names = ["a", "b", "c"];
    let finalizers = pick(&["x/a", "x/b", "x/c"]);
    let (containers, ports, volumes, args) = (pick(&names), pick(&names), pick(&names), pick(&names));
    let labels: Map<_, _> = pick(&names)
        .into_iter()
        .map(|key| (key.as_str().unwrap().to_owned(), rng.below(2).to_string().into()))
        .collect();
    let volume = |name: Tree| match rng.below(3) {
        0 => json!({"name": name, "emptyDir": {}}),
        1 => json!({"name": name, "configMap": {"name": "c"}}),
        _ => json!({"name": name, "configMap": {"name": "d", "optional": true}}),
    };
    let volumes: Vec<_> = volumes.into_iter().map(volume).collect();
    let container = |name: Tree| {
        let env: Vec<_> = ports.iter().map(|name| json!({"name": name, "value": rng.below(2).to_string()})).collect();
        json!({"name": name, "image": rng.below(2).to_string(), "env": env, "args": args})
    };
    let containers: Vec<_> = containers.into_iter().map(container).collect();
    json!({"metadata": {"labels": labels, "finalizers": finalizers}, "spec": {"containers": containers, "volumes": volumes}})
}

#[test]
fn whatever_the_versions_the_wish_is_met_once_and_for_all() {
    let mut rng = Rng::new(7);
    for _ in 0..3_000 {
        let [original, wanted, current] = [(); 3].map(|()| random_pod(&mut rng));
        let patch = three_way(Versions { original: &original, wanted: &wanted, current: &current }, POD);
        let new = applied(&current, &patch, POD);
        let case = || format!("original {original}\nwanted {wanted}\ncurrent {current}\npatch {patch}\nnew {new}");
        let again = three_way(Versions { original: &wanted, wanted: &wanted, current: &new }, POD);
        assert_eq!(again, json!({}), "{}", case());
        for list in ["containers", "volumes"] {
            let names = |tree: &Tree| {
                entries(&tree["spec"][list]).iter().map(|entry| entry["name"].clone()).collect::<Vec<_>>()
            };
            let [original, wanted, current, new] = [&original, &wanted, &current, &new].map(names);
            let places: Vec<_> = wanted.iter().map(|name| new.iter().position(|there| there == name)).collect();
            assert!(places.is_sorted(), "{list}: {}", case());
            for name in ["a", "b", "c"].map(Tree::from) {
                let stays = wanted.contains(&name) || (current.contains(&name) && !original.contains(&name));
                assert_eq!(new.contains(&name), stays, "{list} {name}: {}", case());
            }
        }
        for key in ["a", "b", "c"] {
            let [original, wanted, current, new] =
                [&original, &wanted, &current, &new].map(|tree| &tree["metadata"]["labels"][key]);
            let others = if original.is_null() { current } else { &Tree::Null };
            assert_eq!(new, if wanted.is_null() { others } else { wanted }, "{key}: {}", case());
        }
    }
}
