use crate::{Answer, Config, Origin, Proto, Route, Tables, Update};
use dhow_types::{NodeName, Rng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn service(name: &str, spec: Value) -> Update {
    Update::service(&json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap()
}

fn web(extra: Value) -> Update {
    let mut spec = json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": "www"}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    service("web", spec)
}

fn slice(name: &str, service: &str, endpoints: Value) -> Update {
    let labels = json!({"kubernetes.io/service-name": service});
    Update::slice(&json!({"metadata": {"name": name, "namespace": "default", "labels": labels},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}))
    .unwrap()
}

fn node(name: &str, range: &str, quic: &str) -> Update {
    Update::node(&json!({"metadata": {"name": name, "annotations": {"dhow.dev/quic-address": quic}},
        "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.7.1"}, {"type": "Hostname", "address": name}]}}))
    .unwrap()
}

fn tables(updates: impl IntoIterator<Item = Update>) -> Tables {
    let mut tables = Tables::new(Config::new(NodeName::new("n1")));
    updates.into_iter().for_each(|update| tables.apply(update));
    tables
}

/// A route in one line.
fn show(route: Route) -> String {
    match route {
        Route::Service(b) => {
            let all: Vec<String> = b.endpoints.iter().map(|e| e.addr.to_string()).collect();
            format!("{} [{}]", b.service, all.join(" "))
        }
        Route::Node(node) => format!("node {node}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn addresses_are_routed() {
    let tables = tables([
        web(json!({})),
        slice("web-1", "web", json!([{"addresses": ["10.64.0.2"]}, {"addresses": ["10.64.64.3"]}])),
        node("n1", "10.64.0.0/18", "127.0.0.1:4001"),
        node("n2", "10.64.64.0/18", "127.0.0.1:4002"),
    ]);
    for (to, expected) in [
        ("10.43.0.7:80", "default/web [10.64.0.2:8080 10.64.64.3:8080]"),
        ("10.43.0.7:81", "Refused"),
        ("10.43.0.8:80", "Unreachable"),
        ("10.64.0.9:1", "node n1"),
        ("10.64.127.255:1", "node n2"),
        ("10.64.128.0:1", "Unreachable"),
        ("192.168.7.1:30080", "default/web [10.64.0.2:8080 10.64.64.3:8080]"),
        ("192.168.7.1:30081", "External"),
        ("192.168.7.2:30080", "External"),
        ("[2001:db8::1]:80", "External"),
    ] {
        assert_eq!(show(tables.route(at(to), Proto::Tcp)), expected, "{to}");
    }
    assert_eq!(show(tables.route(at("10.43.0.7:80"), Proto::Udp)), "Refused");
    assert_eq!(tables.node_ports(Proto::Tcp).collect::<Vec<_>>(), [30080]);
    assert_eq!(tables.quic_addr(&NodeName::new("n2")), Some(at("127.0.0.1:4002")));
}

#[test]
fn endpoints_follow_their_conditions() {
    let up = |ip: &str| json!({"addresses": [ip], "conditions": {"ready": true}});
    let down = |ip: &str| json!({"addresses": [ip], "conditions": {"ready": false}});
    let ending =
        |ip: &str| json!({"addresses": [ip], "conditions": {"ready": false, "serving": true, "terminating": true}});
    for (endpoints, expected) in [
        (json!([]), ""),
        (json!([up("10.64.0.2"), down("10.64.0.3")]), "10.64.0.2:8080"),
        (json!([up("10.64.0.2"), ending("10.64.0.3")]), "10.64.0.2:8080"),
        (json!([down("10.64.0.2"), ending("10.64.0.3")]), "10.64.0.3:8080"),
        (json!([down("10.64.0.2")]), ""),
    ] {
        let tables = tables([slice("s", "web", endpoints), web(json!({}))]);
        assert_eq!(show(tables.route(at("10.43.0.7:80"), Proto::Tcp)), format!("default/web [{expected}]"));
    }
}

#[test]
fn what_is_gone_leaves_nothing_behind() {
    let one = |ip: &str| json!([{"addresses": [ip]}]);
    let mut tables = tables([web(json!({})), slice("a", "web", one("10.64.0.2")), slice("b", "web", one("10.64.0.3"))]);
    tables.apply(Update::slice_gone("default", "a"));
    assert_eq!(show(tables.route(at("10.43.0.7:80"), Proto::Tcp)), "default/web [10.64.0.3:8080]");
    tables.apply(slice("b", "other", one("10.64.0.3")));
    assert_eq!(show(tables.route(at("10.43.0.7:80"), Proto::Tcp)), "default/web []");
    tables.apply(web(json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"]})));
    assert_eq!(show(tables.route(at("10.43.0.7:80"), Proto::Tcp)), "Unreachable");
    tables.apply(Update::service_gone("default", "web"));
    assert_eq!(show(tables.route(at("10.43.0.9:80"), Proto::Tcp)), "Unreachable");
    assert_eq!(tables.node_ports(Proto::Tcp).count(), 0);
    tables.apply(node("n2", "10.64.64.0/18", ""));
    tables.apply(Update::node_gone("n2"));
    assert_eq!(show(tables.route(at("10.64.64.3:1"), Proto::Tcp)), "Unreachable");
}

#[test]
fn names_mean_what_a_pod_expects() {
    let tables = tables([
        web(json!({})),
        service("db", json!({"clusterIP": "None", "ports": [{"port": 5432}]})),
        slice(
            "db-1",
            "db",
            json!([{"addresses": ["10.64.0.2"], "hostname": "db-0"},
            {"addresses": ["10.64.0.3"], "hostname": "db-1"}, {"addresses": ["10.64.0.4"], "conditions": {"ready": false}}]),
        ),
        service("far", json!({"type": "ExternalName", "externalName": "example.org"})),
    ]);
    let list = |ips: &[&str]| Answer::Addresses(ips.iter().map(|text| ip(text)).collect());
    for (name, namespace, expected) in [
        ("web", "default", list(&["10.43.0.7"])),
        ("WEB", "default", list(&["10.43.0.7"])),
        ("web", "other", Answer::NotFound),
        ("web.default", "other", list(&["10.43.0.7"])),
        ("web.default.svc", "other", list(&["10.43.0.7"])),
        ("web.default.svc.cluster.local", "other", list(&["10.43.0.7"])),
        ("web.default.svc.cluster.local.", "other", list(&["10.43.0.7"])),
        ("web.", "default", Answer::NotFound),
        ("web.default.svc.", "default", Answer::NotOurs),
        ("nobody.default.svc.cluster.local", "default", Answer::NotFound),
        ("db", "default", list(&["10.64.0.2", "10.64.0.3"])),
        ("db-1.db", "default", list(&["10.64.0.3"])),
        ("db-7.db", "default", Answer::NotOurs),
        ("db-7.db.default.svc.cluster.local", "default", Answer::NotFound),
        ("10-64-0-9.default.pod", "default", list(&["10.64.0.9"])),
        ("10-0-0-9.default.pod.cluster.local", "default", Answer::NotFound),
        ("far", "default", Answer::Alias("example.org".to_owned())),
        ("example.org", "default", Answer::NotOurs),
        ("localhost", "default", list(&["127.0.0.1"])),
        ("192.0.2.1", "default", list(&["192.0.2.1"])),
        ("fd00::1", "default", list(&["fd00::1"])),
        ("", "default", Answer::NotFound),
        (".", "default", Answer::NotFound),
        ("cluster.local", "default", Answer::NotFound),
        ("..", "default", Answer::NotOurs),
        (&"x".repeat(300), "default", Answer::NotFound),
    ] {
        assert_eq!(tables.resolve(name, namespace), expected, "{name} in {namespace}");
    }
}

#[test]
fn load_is_spread_and_kept_over_changes() {
    let three =
        |extra: &str| json!([{"addresses": ["10.64.0.2"]}, {"addresses": ["10.64.0.3"]}, {"addresses": [extra]}]);
    let mut tables = tables([web(json!({})), slice("a", "web", three("10.64.0.4"))]);
    let backends = |tables: &Tables| tables.node_port(Proto::Tcp, 30080).unwrap();
    let (mut rng, mut open, client) = (Rng::new(1), Vec::new(), ip("10.64.0.9"));
    for _ in 0..300 {
        open.push(backends(&tables).pick(client, Origin::Inside, &[], &mut rng).unwrap().load.begin());
    }
    let loads = |tables: &Tables| backends(tables).endpoints.iter().map(|e| e.load.open()).collect::<Vec<_>>();
    assert!(loads(&tables).iter().all(|load| (90..=110).contains(load)), "{:?}", loads(&tables));
    tables.apply(slice("a", "web", three("10.64.0.5")));
    let after = loads(&tables);
    assert_eq!(after[2], 0, "a new endpoint begins idle");
    assert!(after[0] >= 90, "a known endpoint keeps its count");
    drop(open);
    assert_eq!(loads(&tables), [0, 0, 0]);
    let tried = [at("10.64.0.2:8080"), at("10.64.0.3:8080")];
    let pick = backends(&tables).pick(client, Origin::Inside, &tried, &mut rng).unwrap();
    assert_eq!(pick.addr, at("10.64.0.5:8080"));
}

#[test]
fn a_sticky_service_keeps_its_clients() {
    let all = json!((2..10).map(|i| json!({"addresses": [format!("10.64.0.{i}")]})).collect::<Vec<_>>());
    let less = json!((3..10).map(|i| json!({"addresses": [format!("10.64.0.{i}")]})).collect::<Vec<_>>());
    let mut tables = tables([web(json!({"sessionAffinity": "ClientIP"})), slice("a", "web", all)]);
    let mut rng = Rng::new(3);
    let mut choices = |tables: &Tables| -> BTreeMap<u8, SocketAddr> {
        let backends = tables.node_port(Proto::Tcp, 30080).unwrap();
        let mut pick = |i: u8| backends.pick(IpAddr::from([10, 64, 1, i]), Origin::Inside, &[], &mut rng).unwrap().addr;
        (0..100).map(|i| (i, pick(i))).collect()
    };
    let (first, again) = (choices(&tables), choices(&tables));
    assert_eq!(first, again);
    assert!(first.values().collect::<std::collections::BTreeSet<_>>().len() >= 6, "clients are spread");
    tables.apply(slice("a", "web", less));
    for (client, now) in choices(&tables) {
        assert!(
            first[&client] == now || first[&client].ip() == ip("10.64.0.2"),
            "client {client} was moved for nothing"
        );
    }
}

#[test]
fn local_policies_stay_on_the_node() {
    let endpoints =
        json!([{"addresses": ["10.64.0.2"], "nodeName": "n1"}, {"addresses": ["10.64.64.3"], "nodeName": "n2"}]);
    let tables = tables([web(json!({"externalTrafficPolicy": "Local"})), slice("a", "web", endpoints)]);
    let (mut rng, client) = (Rng::new(5), ip("192.0.2.1"));
    let backends = tables.node_port(Proto::Tcp, 30080).unwrap();
    let mut picks = |origin: Origin| -> std::collections::BTreeSet<IpAddr> {
        (0..50).map(|_| backends.pick(client, origin, &[], &mut rng).unwrap().addr.ip()).collect()
    };
    assert_eq!(picks(Origin::Outside).len(), 1);
    assert_eq!(picks(Origin::Inside).len(), 2);
}

#[test]
fn malformed_objects_are_refused_by_field() {
    let meta = json!({"name": "x", "namespace": "d", "labels": {"kubernetes.io/service-name": "x"},
        "annotations": {"dhow.dev/quic-address": "nowhere"}});
    for (update, field) in [
        (Update::service(&json!({})), "metadata.name"),
        (Update::service(&json!({"metadata": meta, "spec": {"clusterIP": "ten"}})), "spec.clusterIP"),
        (Update::service(&json!({"metadata": meta, "spec": {"ports": [{"port": 70000}]}})), "spec.ports.port"),
        (Update::slice(&json!({"metadata": meta, "endpoints": [{"addresses": ["?"]}]})), "endpoints.addresses"),
        (Update::node(&json!({"metadata": meta})), "metadata.annotations[dhow.dev/quic-address]"),
        (Update::node(&json!({"metadata": {"name": "x"}, "spec": {"podCIDR": "1/2"}})), "spec.podCIDR"),
    ] {
        assert_eq!(update.map_err(|crate::MeshError::Field { field, .. }| field), Err(field));
    }
    assert!(matches!(Update::slice(&json!({"metadata": {"name": "x"}})), Ok(Update::SliceGone(..))));
}
