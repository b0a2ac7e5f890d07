use super::*;
use serde_json::json;

fn place() -> Place {
    Place {
        node_name: "n1".into(),
        host_ip: "192.0.2.1".parse().unwrap(),
        pod_ip: "10.64.0.2".parse().unwrap(),
        allocatable_cpu_m: 1500,
        allocatable_memory: 3 << 30,
    }
}

fn objects() -> Objects {
    let text = |pairs: &[(&str, &str)]| {
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        Arc::new(Entries { data, binary: BTreeMap::new() })
    };
    Objects {
        config_maps: BTreeMap::from([("conf".to_owned(), text(&[("COLOR", "red"), ("SIZE", "2")]))]),
        secrets: BTreeMap::from([("pass".to_owned(), text(&[("word", "x")]))]),
        ..Objects::default()
    }
}

fn resolve(spec: Value, container: Value, services: &[Arc<ServiceLink>]) -> Result<Vec<String>, String> {
    let mut pod = json!({
        "metadata": {"name": "web-1", "namespace": "team", "uid": "u1", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}], "serviceAccountName": "sa"},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let mut spec = json!({"name": "c", "image": "i"});
    for (key, value) in container.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let container: Container = serde_json::from_value(spec).unwrap();
    let env = environment(&pod, &container, &place(), &objects(), services).map_err(|e| e.to_string())?;
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

#[test]
fn references_expand_as_kubernetes_does() {
    let value = |name: &str| match name {
        "A" => Some("1"),
        "EMPTY" => Some(""),
        _ => None,
    };
    for (text, expected) in [
        ("$(A)", "1"),
        ("x$(A)$(A)y", "x11y"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(NO)", "$(NO)"),
        ("$(EMPTY)", ""),
        ("$A", "$A"),
        ("$", "$"),
        ("$(A", "$(A"),
        ("a$$b", "a$b"),
        ("$()", "$()"),
        ("ü$(A)ü", "ü1ü"),
    ] {
        assert_eq!(expand(text, value), expected, "{text}");
    }
}

#[test]
fn variables_come_in_order_and_later_ones_win() {
    let found = resolve(
        json!({}),
        json!({
            "envFrom": [{"configMapRef": {"name": "conf"}}, {"prefix": "S_", "secretRef": {"name": "pass"}},
                {"configMapRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "SIZE", "value": "3"},
                {"name": "BOTH", "value": "$(COLOR)-$(SIZE)-$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "COLOR"}}},
                {"name": "W", "valueFrom": {"secretKeyRef": {"name": "pass", "key": "word"}}},
                {"name": "OPT", "valueFrom": {"secretKeyRef": {"name": "pass", "key": "no", "optional": true}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "SA", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            ],
        }),
        &[],
    );
    let expected = [
        "HOSTNAME=web-1",
        "COLOR=red",
        "SIZE=3",
        "S_word=x",
        "BOTH=red-3-$(LATER)",
        "LATER=x",
        "K=red",
        "W=x",
        "NAME=web-1",
        "APP=web",
        "IP=10.64.0.2",
        "SA=sa",
        "CPU=2",
        "MEM=3072",
    ];
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn what_is_missing_is_named() {
    for (env, expected) in [
        (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
        (json!({"secretKeyRef": {"name": "none", "key": "k"}}), "secret \"none\" not found"),
        (json!({"configMapKeyRef": {"name": "conf", "key": "k"}}), "couldn't find key k in ConfigMap team/conf"),
        (json!({"fieldRef": {"fieldPath": "spec.x"}}), "unsupported fieldPath: spec.x"),
    ] {
        let found = resolve(json!({}), json!({"env": [{"name": "X", "valueFrom": env}]}), &[]);
        assert_eq!(found, Err(expected.to_owned()));
    }
}

#[test]
fn services_of_the_namespace_and_the_api_are_linked() {
    let service = |namespace: &str, name: &str, ip: &str, ports: Value| {
        let tree =
            json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": ip, "ports": ports}});
        ServiceLink::of(&tree).map(Arc::new)
    };
    let services: Vec<_> = [
        service(
            "team",
            "my-web",
            "10.43.0.5",
            json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]),
        ),
        service("team", "headless", "None", json!([{"port": 80}])),
        service("other", "db", "10.43.0.6", json!([{"port": 5432}])),
        service("default", "kubernetes", "10.43.0.1", json!([{"name": "https", "port": 443}])),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut found =
        resolve(json!({}), json!({"env": [{"name": "U", "value": "http://$(MY_WEB_SERVICE_HOST)"}]}), &services)
            .unwrap();
    found.retain(|v| !v.starts_with("KUBERNETES_PORT"));
    let expected = [
        "HOSTNAME=web-1",
        "U=http://10.43.0.5",
        "KUBERNETES_SERVICE_HOST=10.43.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
        "MY_WEB_PORT=tcp://10.43.0.5:80",
        "MY_WEB_PORT_53_UDP=udp://10.43.0.5:53",
        "MY_WEB_PORT_53_UDP_ADDR=10.43.0.5",
        "MY_WEB_PORT_53_UDP_PORT=53",
        "MY_WEB_PORT_53_UDP_PROTO=udp",
        "MY_WEB_PORT_80_TCP=tcp://10.43.0.5:80",
        "MY_WEB_PORT_80_TCP_ADDR=10.43.0.5",
        "MY_WEB_PORT_80_TCP_PORT=80",
        "MY_WEB_PORT_80_TCP_PROTO=tcp",
        "MY_WEB_SERVICE_HOST=10.43.0.5",
        "MY_WEB_SERVICE_PORT=80",
        "MY_WEB_SERVICE_PORT_DNS=53",
        "MY_WEB_SERVICE_PORT_HTTP=80",
    ];
    assert_eq!(found, expected);
    let without = resolve(json!({"enableServiceLinks": false}), json!({}), &services).unwrap();
    assert!(without.iter().all(|v| v.starts_with("HOSTNAME") || v.starts_with("KUBERNETES_")), "{without:?}");
}
