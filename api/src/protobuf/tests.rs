use serde_json::json;

use super::*;

fn body(text: &[u8]) -> Tree {
    to_tree(text).unwrap()
}

#[test]
fn what_kubectl_sends_becomes_the_tree_that_it_meant() {
    let text = b"k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x1c\n\x12\n\x02c9\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\n\x01a\x12\x01b\x1a\x00\"\x00";
    assert_eq!(
        body(text).to_string(),
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c9"},"data":{"a":"b"}}"#
    );
    let text = b"k8s\x00\n\x0c\n\x02v1\x12\x06Secret\x12\x1d\n\x11\n\x01s\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\n\x01a\x12\x01b\x1a\x00\x1a\x00\"\x00";
    assert_eq!(
        body(text).to_string(),
        r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"data":{"a":"Yg=="}}"#
    );
    let text = b"k8s\x00\n\x0f\n\x02v1\x12\tNamespace\x12\x1b\n\x13\n\x03foo\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x00\x1a\x02\n\x00\x1a\x00\"\x00";
    assert_eq!(body(text).to_string(), r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"foo"}}"#);
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// `kubectl create deployment dx --image=nginx --port=80 --replicas=0` and `kubectl create service clusterip s
/// --tcp=80:8080` of 1.33: Go sends every empty scalar, and the empty pointer `replicas` must not get lost among them.
#[test]
fn what_kubectl_1_33_creates_is_understood() {
    let deployment = unhex(
        "6b3873000a150a07617070732f7631120a4465706c6f796d656e7412b4010a1d0a02647812001a0022002a0032003800\
         42005a090a03617070120264781284010800120b0a090a03617070120264781a6b0a1b0a0012001a0022002a00320038\
         0042005a090a0361707012026478124c122e0a056e67696e7812056e67696e782a00320a0a001000185022002a004200\
         6a007200800100880100900100a201001a00320042004a0052005800600068008201008a01009a0100c2010022020a00\
         280038001a0c0800100018002000280038001a002200",
    );
    assert_eq!(
        body(&deployment),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "dx", "labels": {"app": "dx"}},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "dx"}},
                "template": {
                    "metadata": {"labels": {"app": "dx"}},
                    "spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}]}]},
                },
            },
        })
    );
    let service = unhex(
        "6b3873000a0d0a02763112075365727669636512630a1b0a017312001a0022002a003200380042005a080a0361707012\
         017312400a1b0a0738302d38303830120354435018502207080010903f1a00280012080a036170701201731a00220943\
         6c757374657249503a00420052005a00600068001a020a001a002200",
    );
    assert_eq!(
        body(&service),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "s", "labels": {"app": "s"}},
            "spec": {
                "ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}],
                "selector": {"app": "s"},
                "type": "ClusterIP",
            },
        })
    );
}

/// Objects that together have every sort of field.
fn samples() -> Vec<Tree> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "default", "generation": 3, "creationTimestamp": "2026-01-02T15:04:05Z",
                "labels": {"a": "1", "b": "2"}, "deletionGracePeriodSeconds": 0,
                "ownerReferences": [
                    {"kind": "ReplicaSet", "name": "r", "uid": "u", "apiVersion": "apps/v1", "controller": true},
                ],
                "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {".": {}}}}],
            },
            "spec": {
                "volumes": [
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "conf", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}], "optional": false}},
                ],
                "containers": [{
                    "name": "c", "image": "hello:1.0", "command": ["a", ""],
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                    "envFrom": [{"configMapRef": {"name": "c"}}],
                    "env": [
                        {"name": "A", "value": "b"},
                        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    ],
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                    "readinessProbe": {
                        "httpGet": {"path": "/", "port": "http", "httpHeaders": [{"name": "X", "value": "y"}]},
                        "periodSeconds": 2,
                    },
                    "livenessProbe": {"tcpSocket": {"port": 8080}, "terminationGracePeriodSeconds": 0},
                    "securityContext": {"runAsUser": -1},
                }],
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": {},
                "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 300}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.64.0.2"}],
                "containerStatuses": [{"name": "c", "state": {"running": {"startedAt": "2026-01-02T15:04:06Z"}},
                    "lastState": {}, "ready": false, "restartCount": 0, "image": "i", "imageID": ""}]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {
                "replicas": 0,
                "selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0}},
                "revisionHistoryLimit": 0,
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
                "selector": {"a": "b"}, "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
        }),
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"holderIdentity": "n", "leaseDurationSeconds": 40, "renewTime": "2026-01-02T15:04:05.123456Z"},
        }),
        json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p", "uid": "u", "apiVersion": "v1"},
            "reason": "Started", "message": "m", "source": {"component": "agent"}, "count": 2, "type": "Normal",
            "firstTimestamp": "2026-01-02T15:04:05Z", "eventTime": "2026-01-02T15:04:05.000001Z",
        }),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "AAEC/w=="}, "type": "Opaque"}),
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": "t"},
            "status": {"authenticated": true, "user": {"username": "u", "extra": {"k": ["a", "b"], "l": []}}},
        }),
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background"}),
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 3}, "status": {"replicas": 2}}),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {"resourceVersion": "5"},
            "items": [{"metadata": {"name": "s"}, "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.64.0.2"], "conditions": {"ready": false}}], "ports": [{"name": "", "port": 80}]}],
        }),
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404,
            "details": {"name": "n", "causes": [{"reason": "r", "message": "m", "field": "f"}]}}),
    ]
}

#[test]
fn objects_survive_the_way_there_and_back() {
    for mut sample in samples() {
        let bytes = from_tree(&sample).unwrap();
        let back = to_tree(&bytes).unwrap();
        if sample["metadata"] == json!({}) && sample["kind"] == "Status" {
            sample.as_object_mut().unwrap().shift_remove("metadata");
        }
        // The embedded empty state of a container is not a pointer in Go, and an empty one is left out.
        if let Some(status) = sample.pointer_mut("/status/containerStatuses/0") {
            status.as_object_mut().unwrap().shift_remove("lastState");
        }
        assert_eq!(back, sample);
    }
}

/// An independent reader and writer of the same types finds the same names and forms.
#[test]
fn the_samples_are_what_typed_clients_mean() {
    use k8s_openapi::api::{apps, coordination, core};
    fn through<T: serde::de::DeserializeOwned + serde::Serialize>(tree: &Tree) -> Tree {
        let typed: T = serde_json::from_str(&tree.to_string()).unwrap();
        serde_json::to_value(&typed).unwrap()
    }
    for mut sample in samples() {
        let typed = match sample["kind"].as_str().unwrap() {
            "Pod" => through::<core::v1::Pod>(&sample),
            "Deployment" => through::<apps::v1::Deployment>(&sample),
            "Service" => through::<core::v1::Service>(&sample),
            "Lease" => through::<coordination::v1::Lease>(&sample),
            "Secret" => through::<core::v1::Secret>(&sample),
            _ => continue,
        };
        // Typed objects always have what is required.
        if sample["kind"] == "Deployment" {
            sample["spec"]["template"]["spec"]["containers"][0] =
                typed["spec"]["template"]["spec"]["containers"][0].clone();
        }
        assert_eq!(typed, sample);
    }
}

#[test]
fn unknown_field_numbers_are_skipped() {
    let mut object = Writer::default();
    object.varint(1000, 5);
    object.fixed64(1001, 5);
    object.message(2, |data| {
        data.bytes(1, b"a");
        data.bytes(2, b"b");
    });
    let mut unknown = Writer::default();
    unknown.message(1, |meta| {
        meta.bytes(1, b"v1");
        meta.bytes(2, b"ConfigMap");
    });
    unknown.bytes(2, &object.0);
    let tree = body(&[MAGIC, &unknown.0].concat());
    assert_eq!(tree, json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}}));
}

#[test]
fn spans_are_written_as_go_writes_them() {
    let cases = [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (250_000_000, "250ms"),
        (1_500_000_000, "1.5s"),
        (60_000_000_000, "1m0s"),
        (5_400_000_000_000, "1h30m0s"),
        (-2_000_000_000, "-2s"),
    ];
    for (ns, text) in cases {
        assert_eq!(go_duration(ns), text);
        assert_eq!(duration_ns(text), Some(ns));
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let whole = from_tree(&samples()[0]).unwrap();
    let mut rng = dhow_types::Rng::new(7);
    for len in 0..whole.len() {
        let _ = to_tree(&whole[..len]);
    }
    for _ in 0..4_000 {
        let mut bytes = whole.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        let _ = to_tree(&bytes);
    }
    assert_eq!(to_tree(b"{}"), Err(WireError::Magic));
}
