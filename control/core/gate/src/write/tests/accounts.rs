//! What a new pod gets of its ServiceAccount.

use super::*;

#[test]
fn a_pod_speaks_for_an_account_that_exists() {
    let mut cluster = Cluster::new();
    let with_account = |name: &str, account: &str| {
        let mut pod = pod(name);
        pod["spec"]["serviceAccountName"] = account.into();
        pod
    };
    assert_eq!(
        refusal(cluster.create("pods", with_account("x", "y"))),
        "403 Forbidden pods \"x\" is forbidden: error looking up service account default/y: serviceaccount \"y\" not found"
    );
    cluster.create("serviceaccounts", json!({"metadata": {"name": "y"}})).unwrap();
    cluster.create("pods", with_account("x", "y")).unwrap();
    cluster.create("pods", with_account("z", "default")).unwrap();
    cluster.create("pods", pod("w")).unwrap();
}

#[test]
fn a_pod_pulls_with_its_accounts_secrets_unless_it_names_its_own() {
    let mut cluster = Cluster::new();
    let account = json!({"metadata": {"name": "y"}, "imagePullSecrets": [{"name": "of-account"}]});
    cluster.create("serviceaccounts", account).unwrap();
    for (account, own, expected) in [
        ("y", json!(null), "of-account"),
        ("y", json!([]), "of-account"),
        ("y", json!([{"name": "own"}]), "own"),
        ("default", json!(null), ""),
    ] {
        let mut pod = pod("");
        pod["metadata"] = json!({"generateName": "p-"});
        pod["spec"]["serviceAccountName"] = account.into();
        if !own.is_null() {
            pod["spec"]["imagePullSecrets"] = own;
        }
        let made = cluster.create("pods", pod).unwrap();
        let names: Vec<_> =
            meta::list(&made, "spec.imagePullSecrets").iter().map(|one| meta::text(one, "name").to_owned()).collect();
        assert_eq!(names.concat(), expected);
    }
}

#[test]
fn a_pod_gets_a_token_where_it_or_its_account_asks_for_one() {
    let mut cluster = Cluster::new();
    for (name, wish) in [("quiet", json!(null)), ("yes", json!(true)), ("no", json!(false))] {
        let mut account = json!({"metadata": {"name": name}});
        if !wish.is_null() {
            account["automountServiceAccountToken"] = wish;
        }
        cluster.create("serviceaccounts", account).unwrap();
    }
    for (account, own, want) in [
        ("quiet", None, false),
        ("quiet", Some(true), true),
        ("yes", None, true),
        ("yes", Some(false), false),
        ("no", None, false),
        ("no", Some(true), true),
        ("default", None, false),
        ("default", Some(true), true),
    ] {
        let mut pod = pod("");
        pod["metadata"] = json!({"generateName": "p-"});
        pod["spec"]["serviceAccountName"] = account.into();
        if let Some(own) = own {
            pod["spec"]["automountServiceAccountToken"] = own.into();
        }
        let made = cluster.create("pods", pod).unwrap();
        let volumes = meta::list(&made, "spec.volumes");
        assert_eq!(volumes.len(), usize::from(want), "{account} {own:?}");
        let Some(volume) = volumes.first() else { continue };
        assert!(meta::text(volume, "name").starts_with("kube-api-access-"));
        let sources = meta::list(volume, "projected.sources");
        assert_eq!(sources[0], json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}));
        assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
        let mount = json!({"name": volume["name"], "readOnly": true,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
        assert_eq!(meta::list(&made, "spec.containers")[0]["volumeMounts"], json!([mount]));
    }
}

#[test]
fn a_container_keeps_what_it_mounts_at_the_tokens_place() {
    let mut cluster = Cluster::new();
    let mut pod = pod("p");
    let mount = json!({"name": "own", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    pod["spec"]["automountServiceAccountToken"] = true.into();
    pod["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
    pod["spec"]["containers"] = json!([{"name": "c", "image": "i", "volumeMounts": [mount]}]);
    let made = cluster.create("pods", pod).unwrap();
    assert_eq!(meta::list(&made, "spec.volumes").len(), 1);
    assert_eq!(meta::list(&made, "spec.containers")[0]["volumeMounts"].as_array().unwrap().len(), 1);
}
