//! Volumes of pods in data, and what they hold.

use super::*;
use crate::env::Claimed;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

fn place() -> Place {
    Place {
        node_name: "n1".into(),
        host_ip: "127.0.0.1".parse().unwrap(),
        pod_ip: "10.64.0.2".parse().unwrap(),
        allocatable_cpu_m: 2000,
        allocatable_memory: 1 << 30,
    }
}

fn pod(volumes: serde_json::Value, mounts: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "labels": {"app": "web", "a\"b": "c"}},
        "spec": {"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": volumes},
    }))
    .unwrap()
}

fn objects() -> Objects {
    let text = |pairs: &[(&str, &str)]| {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        Arc::new(Entries { data, binary: BTreeMap::new() })
    };
    Objects {
        config_maps: BTreeMap::from([("conf".to_owned(), text(&[("a", "1"), ("b", "2")]))]),
        secrets: BTreeMap::from([("pass".to_owned(), text(&[("word", "x")]))]),
        tokens: BTreeMap::from([
            (wish("", 3600), "for-the-api".to_owned()),
            (wish("vault", 600), "for-the-vault".to_owned()),
        ]),
        ..Objects::default()
    }
}

fn wish(audience: &str, seconds: i64) -> TokenWish {
    TokenWish { account: "default".to_owned(), audience: audience.to_owned(), seconds }
}

/// Each file as `path=content:mode`.
fn files(volumes: serde_json::Value) -> Result<String, String> {
    let plan = plan(&pod(volumes, json!([])), &place(), &objects()).map_err(|e| e.to_string())?;
    let Content::Files(files) = &plan[0].content else { return Ok(format!("{:?}", plan[0].content)) };
    let one = |(path, f): (&String, &FilePlan)| format!("{path}={}:{:o}", String::from_utf8_lossy(&f.bytes), f.mode);
    Ok(files.iter().map(one).collect::<Vec<_>>().join(" "))
}

#[test]
fn volumes_hold_what_their_sources_say() {
    let cases = [
        (json!([{"name": "v", "configMap": {"name": "conf"}}]), Ok("a=1:644 b=2:644")),
        (
            json!([{"name": "v", "configMap": {"name": "conf", "defaultMode": 256,
                "items": [{"key": "b", "path": "x/y"}]}}]),
            Ok("x/y=2:400"),
        ),
        (json!([{"name": "v", "configMap": {"name": "none", "optional": true}}]), Ok("")),
        (
            json!([{"name": "v", "projected": {"defaultMode": 256, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"serviceAccountToken": {"path": "to/vault", "audience": "vault", "expirationSeconds": 600}},
                {"configMap": {"name": "conf", "items": [{"key": "a", "path": "ca.crt"}]}}]}}]),
            Ok("ca.crt=1:400 to/vault=for-the-vault:400 token=for-the-api:400"),
        ),
        (
            json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "x"}}]}}]),
            Err("MountVolume.SetUp failed for volume \"v\" : no token of the service account \"default\""),
        ),
        (
            json!([{"name": "v", "configMap": {"name": "none"}}]),
            Err("MountVolume.SetUp failed for volume \"v\" : configmap \"none\" not found"),
        ),
        (
            json!([{"name": "v", "secret": {"secretName": "pass", "items": [{"key": "no", "path": "p"}]}}]),
            Err("MountVolume.SetUp failed for volume \"v\" : references non-existent secret key: no"),
        ),
        (
            json!([{"name": "v", "configMap": {"name": "conf", "items": [{"key": "a", "path": "../../etc/x"}]}}]),
            Err("MountVolume.SetUp failed for volume \"v\" : path `../../etc/x` must stay inside of the volume"),
        ),
        (
            json!([{"name": "v", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}}]}}]),
            Ok("cpu=2:644 labels=a\"b=\"c\"\napp=\"web\":644"),
        ),
        (
            json!([{"name": "v", "projected": {"sources": [{"configMap": {"name": "conf"}},
                {"secret": {"name": "pass", "items": [{"key": "word", "path": "s/w", "mode": 256}]}}]}}]),
            Ok("a=1:644 b=2:644 s/w=x:400"),
        ),
        (json!([{"name": "v", "emptyDir": {}}]), Ok("Empty { in_memory: false }")),
    ];
    for (volumes, expected) in cases {
        let found = files(volumes.clone());
        assert_eq!(found.as_ref().map(String::as_str).map_err(String::as_str), expected, "{volumes}");
    }
    let unsupported = files(json!([{"name": "v", "nfs": {"server": "s", "path": "/"}}])).unwrap_err();
    assert!(unsupported.contains("use emptyDir"), "{unsupported}");
}

#[test]
fn mounts_name_volume_part_and_place() {
    let pod = pod(
        json!([{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "conf"}}]),
        json!([{"name": "e", "mountPath": "/data", "subPathExpr": "$(POD)/x"}, {"name": "c", "mountPath": "/etc/c"}]),
    );
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let env = [("POD".to_owned(), "web".to_owned())];
    let found = mounts(&pod, container, &env).unwrap();
    let mount = |volume: &str, sub_path: &str, guest: &str, read_only| MountPlan {
        volume: volume.into(),
        sub_path: sub_path.into(),
        guest: guest.into(),
        read_only,
    };
    assert_eq!(found, [mount("e", "web/x", "/data", false), mount("c", "", "/etc/c", true)]);
    let env = [("POD".to_owned(), "..".to_owned())];
    assert!(matches!(mounts(&pod, container, &env), Err(VolumeFault::Path { .. })));
    let missing = mounts(&pod, container, &[]).unwrap_err().to_string();
    assert_eq!(missing, "container cannot mount volume \"e\": missing value for \"POD\"");
}

/// A claim that is bound to a volume of this node, with changes to both, and what comes of it.
#[test]
fn a_claimed_volume_is_a_directory_of_the_node_that_it_names() {
    let on = |node: &str| {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
    };
    let local = json!({"csi": {"driver": LOCAL_DRIVER, "volumeHandle": "pvc-1"}, "nodeAffinity": on("n1")});
    let plain = json!({"spec": {}});
    let cases = [
        (json!({}), local.clone(), Ok("Local { handle: \"pvc-1\" }")),
        (json!({}), json!({"hostPath": {"path": "/mnt"}}), Ok("HostPath { path: \"/mnt\", kind: \"\" }")),
        (json!({}), json!({"local": {"path": "/mnt"}}), Ok("HostPath { path: \"/mnt\", kind: \"Directory\" }")),
        (json!({}), json!({"nfs": {"server": "s", "path": "/"}}), Err("this node has no volumes of this type")),
        (json!({"metadata": {"deletionTimestamp": "2026-01-02T15:04:05Z"}}), local.clone(), Err("is being deleted")),
        (json!({"metadata": {"uid": "c2"}}), local.clone(), Err("is bound to another claim")),
        (json!({"status": {"phase": "Pending"}}), local.clone(), Err("has no volume: its phase is \"Pending\"")),
        (
            plain.clone(),
            json!({"csi": {"driver": "x", "volumeHandle": "y"}}),
            Err("this node has no volumes of this type"),
        ),
        (plain.clone(), json!({"csi": local["csi"], "nodeAffinity": on("n2")}), Err("the volume lies on another node")),
        (plain.clone(), json!({"csi": local["csi"]}), Err("the volume lies on another node")),
        (plain, json!({"csi": local["csi"], "volumeMode": "Block"}), Err("block volumes are not supported")),
    ];
    for (claim_change, source, wanted) in cases {
        let mut claim = json!({"metadata": {"name": "data", "uid": "c1"}, "status": {"phase": "Bound"}});
        for (part, fields) in claim_change.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                claim[part][field] = value.clone();
            }
        }
        let mut volume = json!({"spec": source});
        volume["spec"]["claimRef"] = json!({"name": "data", "uid": "c1"});
        let claimed =
            Claimed { claim: serde_json::from_value(claim).unwrap(), volume: serde_json::from_value(volume).ok() };
        let objects = Objects { claims: BTreeMap::from([("data".to_owned(), claimed)]), ..objects() };
        let pod = pod(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]), json!([]));
        let found = plan(&pod, &place(), &objects).map(|plans| format!("{:?}", plans[0].content));
        match (found.map_err(|fault| fault.to_string()), wanted) {
            (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
            (Err(found), Err(wanted)) => assert!(found.contains(wanted), "{found}"),
            (found, wanted) => panic!("{source}: {found:?} instead of {wanted:?}"),
        }
    }
    let pod = pod(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]), json!([]));
    let missing = plan(&pod, &place(), &objects()).unwrap_err().to_string();
    assert_eq!(missing, "MountVolume.SetUp failed for volume \"v\" : persistentvolumeclaim \"data\" not found");
    assert_eq!(references(&pod).claims, BTreeSet::from(["data".to_owned()]));
}

#[test]
fn a_brought_claim_must_be_the_pods_own() {
    let pod = pod(json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]), json!([]));
    assert_eq!(references(&pod).claims, BTreeSet::from(["web-v".to_owned()]));
    let volume: PersistentVolume = serde_json::from_value(json!({"spec": {"claimRef": {"uid": "c1"},
        "hostPath": {"path": "/mnt"}}}))
    .unwrap();
    for (owner, ok) in [("u1", true), ("u2", false)] {
        let claim = serde_json::from_value(json!({"metadata": {"uid": "c1", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": owner}]}, "status": {"phase": "Bound"}}));
        let claimed = Claimed { claim: claim.unwrap(), volume: Some(volume.clone()) };
        let objects = Objects { claims: BTreeMap::from([("web-v".to_owned(), claimed)]), ..objects() };
        assert_eq!(plan(&pod, &place(), &objects).is_ok(), ok, "{owner}");
    }
}

#[test]
fn a_node_lets_go_of_what_is_deleted_and_unused_and_its_own() {
    let cases = [
        ("n1", true, json!(["dhow.dev/local-volume"]), "Delete", Some(true)),
        ("n1", true, json!(["dhow.dev/local-volume"]), "Retain", Some(false)),
        ("n1", true, json!(["dhow.dev/local-volume", "kubernetes.io/pv-protection"]), "Delete", None),
        ("n1", true, json!([]), "Delete", None),
        ("n1", false, json!(["dhow.dev/local-volume"]), "Delete", None),
        ("n2", true, json!(["dhow.dev/local-volume"]), "Delete", None),
    ];
    for (node, deleted, finalizers, policy, wanted) in cases {
        let at = deleted.then_some("2026-01-02T15:04:05Z");
        let volume = serde_json::from_value(json!({
            "metadata": {"finalizers": finalizers, "deletionTimestamp": at},
            "spec": {
                "csi": {"driver": LOCAL_DRIVER, "volumeHandle": "pvc-1"}, "persistentVolumeReclaimPolicy": policy,
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}},
            },
        }));
        let found = let_go(&volume.unwrap(), "n1");
        assert_eq!(found, wanted.map(|removed| ("pvc-1".to_owned(), removed)), "{node} {deleted} {policy}");
    }
}
