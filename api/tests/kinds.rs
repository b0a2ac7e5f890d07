//! The kinds by their data: manifest in, stored object or refusal out.
//!
//! Each file of `tests/data` holds a manifest, a line `---`, and what must come of it. `UPDATE_EXPECT=1` writes the
//! second part anew, to be read and committed.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use dhow_api::decode::{self, Media, Validation};
use dhow_api::kinds::{self, Kind};
use dhow_api::{Tree, discovery, index, meta, patch, schema, table};
use dhow_types::Time;
use serde_json::{Value, json};

/// A document before the separator and what must come of it.
struct Case {
    path: PathBuf,
    input: String,
    expected: String,
}

fn cases(folder: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let (input, expected) = text.split_once("\n---\n").unwrap_or((text.trim_end(), ""));
            Case { path, input: input.to_owned(), expected: expected.trim_end().to_owned() }
        })
        .collect()
}

/// Compares with what the files say, or writes it into them.
fn check(folder: &str, run: impl Fn(&str) -> String) {
    let mut wrong = Vec::new();
    for case in cases(folder) {
        let found = run(&case.input).trim_end().to_owned();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            // Other tests may read the file meanwhile: it changes at once or not at all.
            let whole = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{folder}-case"));
            fs::write(&whole, format!("{}\n---\n{found}\n", case.input)).unwrap();
            fs::rename(&whole, &case.path).unwrap();
        } else if found != case.expected {
            wrong.push(format!("{}:\nexpected\n{}\nfound\n{found}", case.path.display(), case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn read(text: &str) -> (&'static Kind, Tree) {
    let plain = decode::decode(text.as_bytes(), Media::Yaml, None, Validation::Ignore).unwrap().tree;
    let kind = kinds::by_kind(meta::api_version(&plain), meta::kind(&plain)).expect("the manifest is of a known kind");
    let decoded = decode::decode(text.as_bytes(), Media::Yaml, Some(kind.schema), Validation::Strict).unwrap();
    (kind, decoded.tree)
}

fn created(text: &str) -> (&'static Kind, Tree) {
    let (kind, mut tree) = read(text);
    (kind.default)(&mut tree);
    (kind.prepare_create)(&mut tree);
    (kind, tree)
}

#[test]
fn manifests_are_filled_as_upstream_fills_them() {
    check("defaults", |input| {
        let (kind, tree) = created(input);
        kind.check_create(&tree).unwrap();
        serde_json::to_string_pretty(&tree).unwrap()
    });
}

#[test]
fn bad_manifests_are_refused_with_all_their_faults() {
    check("invalid", |input| {
        let (kind, tree) = created(input);
        let error = kind.check_create(&tree).unwrap_err();
        assert_eq!(error.code, 422);
        let details = error.details.unwrap();
        assert_eq!((details.kind.as_str(), details.group.as_str()), (kind.kind, kind.group));
        let lines = details.causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message));
        lines.collect::<Vec<_>>().join("\n")
    });
}

#[test]
fn lines_read_as_kubectl_shows_them() {
    let now = Time::parse("2026-01-02T15:04:05Z").unwrap();
    check("tables", |input| {
        let (kind, tree) = read(input);
        let table = table::table(kind, &[&tree], &json!({}), table::Include::None, now, true);
        let heads = meta::list(&table, "columnDefinitions").iter().map(|column| column["name"].as_str().unwrap());
        let cells = table["rows"][0]["cells"].as_array().unwrap().iter();
        let lines = heads.zip(cells).map(|(head, cell)| match cell {
            Value::String(text) => format!("{head}: {text}"),
            cell => format!("{head}: {cell}"),
        });
        lines.collect::<Vec<_>>().join("\n")
    });
}

/// What `kubectl apply` of an unchanged manifest does: nothing may change, least of all the generation.
#[test]
fn applying_a_manifest_again_changes_nothing() {
    for case in cases("defaults") {
        let (kind, live) = created(&case.input);
        let (_, manifest) = read(&case.input);
        for patched in [patch::strategic(&live, &manifest, kind.schema).unwrap(), patch::merge(&live, &manifest)] {
            let mut new = patched;
            (kind.default)(&mut new);
            (kind.prepare_update)(&mut new, &live);
            kind.check_update(&new, &live).unwrap();
            assert_eq!(new, live, "{}", case.path.display());
        }
    }
}

#[test]
fn statuses_and_specs_are_written_apart() {
    for case in cases("defaults") {
        let (kind, old) = created(&case.input);
        if !kind.has(kinds::Subresource::Status) {
            continue;
        }
        let mut new = old.clone();
        meta::set(&mut new, "spec.bogus", 1);
        meta::set(&mut new, "status.bogus", 1);
        let (mut main, mut status) = (new.clone(), new);
        (kind.prepare_update)(&mut main, &old);
        (kind.prepare_status)(&mut status, &old);
        assert_eq!(main.get("status"), old.get("status"), "{}", kind.kind);
        assert_eq!(status.get("spec"), old.get("spec"), "{}", kind.kind);
        assert_eq!(status["status"]["bogus"], 1, "{}", kind.kind);
        assert_eq!(meta::generation(&status), meta::generation(&old), "{}", kind.kind);
        let bump = i64::from(kind.has_generation);
        assert_eq!(meta::generation(&main), meta::generation(&old) + bump, "{}", kind.kind);
    }
}

#[test]
fn every_kind_is_complete() {
    let mut names = std::collections::BTreeSet::new();
    for kind in kinds::all() {
        let name = kind.kind;
        assert!(schema::table().get(kind.schema).is_some(), "{name}");
        assert!(kinds::by_kind(&kind.api_version(), name).is_some_and(|found| std::ptr::eq(found, *kind)));
        assert!(kinds::by_group_resource(&kind.resource()).is_some_and(|found| std::ptr::eq(found, *kind)));
        let found = kinds::by_resource(kind.group, kind.version, kind.plural);
        assert!(found.is_some_and(|found| std::ptr::eq(found, *kind)));
        for short in kind.short_names {
            assert!(names.insert(*short), "{short}");
        }
        assert!(kind.verbs.is_sorted() && kind.columns.iter().any(|column| column.format == "name"), "{name}");
        let fields: Vec<&str> = kind.field_values(&json!({})).into_iter().map(|(label, _)| label).collect();
        assert!(fields.iter().all(|label| kind.knows_field(label)), "{name}");
        assert!(kind.field_labels.iter().all(|label| fields.contains(label)), "{name}");
        assert_eq!((kind.cells)(&json!({}), Time::default()).len(), kind.columns.len(), "{name}");
        assert!(discovery::resource_list(kind.group, kind.version).is_some(), "{name}");
        assert!(cases("defaults").iter().any(|case| std::ptr::eq(read(&case.input).0, *kind)), "{name} has no sample");
    }
}

#[test]
fn an_index_holds_what_selectors_need() {
    let tree = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"a": "b"},
        "deletionTimestamp": "2026-01-02T15:04:05Z",
        "ownerReferences": [{"uid": "o"}]}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
    let index = index::index(&kinds::POD, &tree);
    assert_eq!((index.uid.as_str(), index.label("a"), index.field("spec.nodeName")), ("u", Some("b"), Some("n1")));
    assert_eq!((index.owners.as_slice(), index.deleting), (["o".to_owned()].as_slice(), true));
    assert_eq!((index.field("status.phase"), index.field("metadata.namespace")), (Some("Running"), Some("d")));
    assert_eq!((index.field("status.podIP"), index.field("spec.bogus")), (Some(""), None));
    for case in cases("defaults") {
        let (kind, mut tree) = read(&case.input);
        meta::set_name(&mut tree, "größer");
        let index = index::index(kind, &tree);
        for (label, value) in kind.field_values(&tree) {
            assert_eq!(index.field(label), Some(value.as_str()), "{label} of {}", kind.kind);
        }
    }
}

/// A sample, a merge patch on it, and the faults that come of it.
#[test]
fn what_is_set_once_stays() {
    const SPEC: &str = "spec: Forbidden: pod updates may not change fields other than";
    let gone = "field is immutable when `immutable` is set";
    let cases: &[(&str, Tree, &[&str])] = &[
        ("pod", json!({"spec": {"activeDeadlineSeconds": 5}}), &[]),
        ("pod", json!({"metadata": {"labels": {"a": "b"}}}), &[]),
        ("pod", json!({"spec": {"nodeName": "n1"}}), &[SPEC]),
        (
            "pod",
            json!({"spec": {"containers": []}}),
            &[
                "spec.containers: Required value",
                "spec.containers: Forbidden: pod updates may not add or remove containers",
            ],
        ),
        (
            "pod",
            json!({"spec": {"tolerations": []}}),
            &["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
        ),
        ("pod", json!({"metadata": {"name": "q"}}), &["metadata.name: Invalid value: \"q\": field is immutable"]),
        ("pod", json!({"metadata": {"uid": "q"}}), &["metadata.uid: Invalid value: \"q\": field is immutable"]),
        ("deployment", json!({"spec": {"replicas": 7}}), &[]),
        (
            "deployment",
            json!({"spec": {"selector": {"matchLabels": {"b": "c"}}, "template": {"metadata": {"labels": {"b": "c"}}}}}),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"b\":\"c\"}}: field is immutable"],
        ),
        (
            "service-nodeport",
            json!({"spec": {"clusterIP": "10.43.0.8", "clusterIPs": null}}),
            &["spec.clusterIPs[0]: Invalid value: [\"10.43.0.8\"]: may not change once set"],
        ),
        ("service-nodeport", json!({"spec": {"clusterIP": null, "clusterIPs": null, "ports": [{"port": 80}]}}), &[]),
        ("service-nodeport", json!({"spec": {"type": "ClusterIP"}}), &[]),
        ("secret", json!({"type": "other"}), &["type: Invalid value: \"other\": field is immutable"]),
        ("secret", json!({"immutable": true, "data": {"a": "Qg=="}}), &[]),
        ("configmap", json!({"immutable": null}), &[&*format!("immutable: Forbidden: {gone}")]),
        ("configmap", json!({"data": {"a": "b"}}), &[&*format!("data: Forbidden: {gone}")]),
        (
            "node",
            json!({"spec": {"podCIDR": "10.64.64.0/18"}}),
            &["spec.podCIDR: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
        ),
        ("persistentvolumeclaim", json!({"spec": {"volumeName": "pv1", "storageClassName": "local"}}), &[]),
        (
            "persistentvolumeclaim",
            json!({"spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "2Gi"}}}}),
            &[
                "spec.resources.requests: Forbidden: only dynamically provisioned pvc can be resized",
                "spec: Forbidden: spec is immutable after creation except resources.requests",
            ],
        ),
        ("persistentvolume", json!({"spec": {"claimRef": {"namespace": "default", "name": "data"}}}), &[]),
        (
            "persistentvolume",
            json!({"spec": {"hostPath": {"path": "/other"}, "volumeMode": "Block"}}),
            &[
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
                "spec.volumeMode: Invalid value: \"Block\": field is immutable",
            ],
        ),
        (
            "storageclass",
            json!({"provisioner": "x/y", "reclaimPolicy": "Retain", "parameters": {"a": "b"}}),
            &[
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
            ],
        ),
        (
            "endpointslice",
            json!({"addressType": "FQDN", "endpoints": []}),
            &["addressType: Invalid value: \"FQDN\": field is immutable"],
        ),
    ];
    for (sample, change, faults) in cases {
        let case = cases_of("defaults", sample);
        let (kind, mut old) = created(&case.input);
        if kind.kind == "ConfigMap" {
            meta::set(&mut old, "immutable", true);
        }
        let mut new = patch::merge(&old, change);
        (kind.default)(&mut new);
        (kind.prepare_update)(&mut new, &old);
        let found: Vec<String> = match kind.check_update(&new, &old) {
            Ok(()) => Vec::new(),
            Err(error) => {
                let causes = error.details.unwrap().causes;
                causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
            }
        };
        assert_eq!(found.len(), faults.len(), "{sample} {change}: {found:?}");
        assert!(
            found.iter().zip(*faults).all(|(found, fault)| found.starts_with(fault)),
            "{sample} {change}: {found:?}"
        );
    }
}

fn cases_of(folder: &str, name: &str) -> Case {
    cases(folder).into_iter().find(|case| case.path.file_stem().is_some_and(|stem| stem == name)).unwrap()
}

/// A manifest without addresses and node ports keeps those that were given out.
#[test]
fn a_service_keeps_what_was_given_to_it() {
    let (kind, mut live) = created(&cases_of("defaults", "service").input);
    meta::set(&mut live, "spec.type", "NodePort");
    meta::set(&mut live, "spec.clusterIP", "10.43.0.9");
    meta::set(&mut live, "spec.clusterIPs", json!(["10.43.0.9"]));
    live["spec"]["ports"][0]["nodePort"] = json!(30001);
    let update = |spec: Tree| {
        let mut new = live.clone();
        meta::set(&mut new, "spec", spec);
        (kind.default)(&mut new);
        (kind.prepare_update)(&mut new, &live);
        kind.check_update(&new, &live).unwrap();
        new
    };
    let kept = update(json!({"type": "NodePort", "ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}));
    assert_eq!(
        (meta::text(&kept, "spec.clusterIP"), &kept["spec"]["ports"][0]["nodePort"]),
        ("10.43.0.9", &json!(30001))
    );
    let dns: Vec<Tree> =
        ["TCP", "UDP"].map(|protocol| json!({"port": 53, "name": protocol, "protocol": protocol})).into();
    let mut numbered = live.clone();
    meta::set(&mut numbered, "spec.ports", dns.clone());
    for port in 0..2 {
        numbered["spec"]["ports"][port]["nodePort"] = json!(30053);
    }
    let mut again = numbered.clone();
    meta::set(&mut again, "spec.ports", dns);
    (kind.prepare_update)(&mut again, &numbered);
    let ports = meta::list(&again, "spec.ports").iter().map(|port| meta::int(port, "nodePort"));
    assert_eq!(ports.collect::<Vec<_>>(), [Some(30053); 2], "one number for two protocols");
    let inward = update(json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30001}]}));
    assert!(inward["spec"]["ports"][0].get("nodePort").is_none());
    let renamed = update(
        json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"]}),
    );
    assert!(meta::at(&renamed, "spec.clusterIP").is_none() && meta::at(&renamed, "spec.ipFamilies").is_none());
}

/// Puts something absurd at every place of every sample: refusals are fine, panics are not.
#[test]
fn no_tree_makes_a_kind_panic() {
    let absurd = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("ä%[0]"),
        json!([]),
        json!([[]]),
        json!({}),
        json!({"": {"": null}}),
    ];
    for case in cases("defaults") {
        let (kind, sample) = created(&case.input);
        for path in paths(&sample, "") {
            for value in &absurd {
                let mut tree = sample.clone();
                *tree.pointer_mut(&path).unwrap() = value.clone();
                live_through(kind, tree.clone(), &sample);
                live_through(kind, sample.clone(), &tree);
            }
        }
    }
}

fn live_through(kind: &'static Kind, tree: Tree, old: &Tree) {
    let mut created = tree.clone();
    (kind.default)(&mut created);
    (kind.prepare_create)(&mut created);
    let _ = kind.check_create(&created);
    let mut updated = tree.clone();
    (kind.default)(&mut updated);
    (kind.prepare_update)(&mut updated, old);
    let _ = kind.check_update(&updated, old);
    let mut status = tree;
    (kind.prepare_status)(&mut status, old);
    let _ = kind.check_update(&status, old);
    assert_eq!((kind.cells)(&status, Time::default()).len(), kind.columns.len());
    let _ = index::index(kind, &created);
}

fn paths(tree: &Tree, prefix: &str) -> Vec<String> {
    let mut all = vec![prefix.to_owned()];
    match tree {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                all.extend(paths(value, &format!("{prefix}/{key}")));
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                all.extend(paths(value, &format!("{prefix}/{i}")));
            }
        }
        _ => {}
    }
    all
}
