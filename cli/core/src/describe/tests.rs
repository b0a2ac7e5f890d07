//! What `kubectl` said of real objects, and what we say of them.

use super::*;
use dhow_types::Time;

/// An object, what stands around it, and what `kubectl describe` wrote.
const CASES: &[(&str, &str, &str)] = &[
    ("pending-pod", include_str!("cases/pending-pod.json"), include_str!("cases/pending-pod.txt")),
    ("running-pod", include_str!("cases/running-pod.json"), include_str!("cases/running-pod.txt")),
    ("deployment", include_str!("cases/deployment.json"), include_str!("cases/deployment.txt")),
    ("replica-set", include_str!("cases/replica-set.json"), include_str!("cases/replica-set.txt")),
    ("service", include_str!("cases/service.json"), include_str!("cases/service.txt")),
    ("node", include_str!("cases/node.json"), include_str!("cases/node.txt")),
    ("config-map", include_str!("cases/config-map.json"), include_str!("cases/config-map.txt")),
    ("secret", include_str!("cases/secret.json"), include_str!("cases/secret.txt")),
    ("namespace", include_str!("cases/namespace.json"), include_str!("cases/namespace.txt")),
    ("service-account", include_str!("cases/service-account.json"), include_str!("cases/service-account.txt")),
    ("lease", include_str!("cases/lease.json"), include_str!("cases/lease.txt")),
];

#[test]
fn descriptions_are_those_of_kubectl() {
    for (name, given, expected) in CASES {
        let given: Tree = serde_json::from_str(given).unwrap();
        let lists = given["related"].as_array().unwrap().iter().map(|list| list.as_array().unwrap().clone()).collect();
        let events = given["events"].as_array().cloned();
        let around = Around { related: lists, events, now: Time::parse(given["now"].as_str().unwrap()).unwrap() };
        assert_eq!(related(&given["object"]).len(), around.related.len(), "{name}");
        assert_eq!(&describe(&given["object"], &around), expected, "{name}");
    }
}

#[test]
fn whatever_is_missing_or_of_another_type_is_left_out() {
    let around = || Around { related: Vec::new(), events: Some(Vec::new()), now: Time::from_secs(0) };
    for own in DESCRIBERS {
        let bare = serde_json::json!({"apiVersion": own.api_version, "kind": own.kind, "metadata": {"name": "x"}});
        assert!(describe(&bare, &around()).starts_with("Name:"), "{}", own.kind);
        let mut strange = bare.clone();
        for field in ["spec", "status", "data"] {
            strange[field] = serde_json::json!([1, "x", {"containers": 1}]);
        }
        assert!(describe(&strange, &around()).contains("x\n"), "{}", own.kind);
    }
}
