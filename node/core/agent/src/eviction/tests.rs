use super::*;
use serde_json::{Value, json};

/// A pod `name` that uses, in MiB, so much memory and disk, with these resources of its only container and volumes.
fn pod(name: &str, spec: Value, (memory, disk): (u64, u64), volumes: &[(&str, u64)]) -> PodUse {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "resources": spec["resources"]}]);
    }
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": spec})).unwrap();
    let names = pod.spec.as_ref().unwrap().containers.iter().map(|c| c.name.clone());
    let used = ContainerUse { memory: memory << 20, disk: disk << 20 };
    PodUse {
        containers: names.map(|name| (name, used)).collect(),
        volumes: volumes.iter().map(|(name, mib)| ((*name).to_owned(), mib << 20)).collect(),
        pod: Arc::new(pod),
    }
}

fn stock(capacity_mib: u64, available_mib: u64) -> Option<Stock> {
    Some(Stock { capacity: capacity_mib << 20, available: available_mib << 20 })
}

fn plenty(pods: Vec<PodUse>) -> Observation {
    Observation { memory: stock(4096, 4000), disk: stock(10_000, 5000), pods }
}

fn evicted(seen: &Observation) -> Vec<(String, String)> {
    let decision = Evictor::new(Thresholds::default()).observe(Time::from_ms(0), seen);
    decision.evictions.into_iter().map(|e| (e.uid.as_str().to_owned(), e.message)).collect()
}

#[test]
fn a_pod_over_a_limit_of_its_own_leaves_with_the_words_of_a_kubelet() {
    let storage = |limit: &str| json!({"resources": {"limits": {"ephemeral-storage": limit}}});
    let dir = |source: Value| json!({"resources": {}, "volumes": [{"name": "data", "emptyDir": source}]});
    let two = json!({"containers": [
        {"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
        {"name": "b", "resources": {"limits": {"ephemeral-storage": "100Mi"}}}]});
    let in_pod = "Pod ephemeral local storage usage exceeds the total limit of containers";
    let cases: [(&str, PodUse, Option<String>); 9] = [
        ("within", pod("p", storage("10Mi"), (0, 10), &[]), None),
        ("over", pod("p", storage("10Mi"), (0, 11), &[]), Some(format!("{in_pod} 10Mi. "))),
        (
            "one of two containers is over",
            pod("p", two, (0, 2), &[]),
            Some("Container a exceeded its local ephemeral storage limit \"1Mi\". ".to_owned()),
        ),
        (
            "the volume counts for the pod",
            pod(
                "p",
                json!({"resources": {"limits": {"ephemeral-storage": "5Mi"}}, "volumes": [{"name": "data", "emptyDir": {}}]}),
                (0, 3),
                &[("data", 3)],
            ),
            Some(format!("{in_pod} 5Mi. ")),
        ),
        (
            "one in memory does not",
            pod(
                "p",
                json!({"resources": {"limits": {"ephemeral-storage": "5Mi"}}, "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}]}),
                (0, 3),
                &[("data", 3)],
            ),
            None,
        ),
        (
            "size limit",
            pod("p", dir(json!({"sizeLimit": "1Gi"})), (0, 0), &[("data", 1025)]),
            Some("Usage of EmptyDir volume \"data\" exceeds the limit \"1Gi\". ".to_owned()),
        ),
        (
            "size limit in memory",
            pod("p", dir(json!({"sizeLimit": "1000k", "medium": "Memory"})), (0, 0), &[("data", 1)]),
            Some("Usage of EmptyDir volume \"data\" exceeds the limit \"1M\". ".to_owned()),
        ),
        ("within the size limit", pod("p", dir(json!({"sizeLimit": "1Gi"})), (0, 0), &[("data", 1024)]), None),
        ("no limit", pod("p", dir(json!({})), (9, 9), &[("data", 9999)]), None),
    ];
    for (name, pod, message) in cases {
        let expected: Vec<_> = message.map(|message| ("p".to_owned(), message)).into_iter().collect();
        assert_eq!(evicted(&plenty(vec![pod])), expected, "{name}");
    }
}

#[test]
fn all_that_are_over_a_limit_leave_before_the_node_is_looked_at() {
    let over = |name: &str| pod(name, json!({"resources": {"limits": {"ephemeral-storage": "1Mi"}}}), (1, 2), &[]);
    let free = pod("free", json!({"resources": {}}), (3000, 0), &[]);
    let seen = Observation { memory: stock(4096, 1), disk: None, pods: vec![free, over("a"), over("b")] };
    let gone: Vec<_> = evicted(&seen).into_iter().map(|(name, _)| name).collect();
    assert_eq!(gone, ["a", "b"]);
}

/// Who leaves when, one a round, while the node stays short.
fn order(mut seen: Observation) -> Vec<String> {
    let mut gone = Vec::new();
    while let Some((name, _)) = evicted(&seen).into_iter().next() {
        seen.pods.retain(|pod| pod.uid().as_str() != name);
        gone.push(name);
    }
    gone
}

#[test]
fn under_pressure_pods_leave_in_kubernetes_order() {
    let asks = |memory: &str, priority: i32| json!({"priority": priority, "resources": {"requests": {"memory": memory, "ephemeral-storage": memory}}});
    let pods = vec![
        pod("within", asks("100Mi", 0), (90, 90), &[]),
        pod("far-within", asks("100Mi", 0), (10, 10), &[]),
        pod("best-effort", json!({"resources": {}}), (20, 20), &[]),
        pod("beyond", asks("10Mi", 0), (60, 60), &[]),
        pod("important-beyond", asks("10Mi", 100), (500, 500), &[]),
        pod("important-within", asks("1Gi", 100), (500, 500), &[]),
        pod("critical", asks("1Mi", CRITICAL_PRIORITY), (900, 900), &[]),
        pod("idle", json!({"resources": {}}), (0, 0), &[]),
    ];
    let expected = ["beyond", "best-effort", "important-beyond", "within", "far-within", "important-within"];
    let memory = Observation { memory: stock(4096, 99), disk: None, pods: pods.clone() };
    assert_eq!(order(memory), expected);
    let disk = Observation { memory: None, disk: stock(10_000, 499), pods };
    assert_eq!(order(disk), expected);
}

#[test]
fn the_message_names_threshold_and_consumption() {
    let spec = json!({"resources": {"requests": {"memory": "10Mi"}}});
    let seen = Observation { memory: stock(4096, 50), disk: None, pods: vec![pod("p", spec, (64, 0), &[])] };
    let decision = Evictor::new(Thresholds::default()).observe(Time::from_ms(0), &seen);
    assert_eq!(
        decision.evictions[0].message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
         Container c was using 64Mi, request is 10Mi, has larger consumption of memory. "
    );
    assert!(decision.evictions[0].disrupted);
}

#[test]
fn pressure_is_said_until_it_has_been_away_for_a_while() {
    let mut evictor = Evictor::new(Thresholds::default());
    let mut at = |minute: u64, memory: u64, disk: u64| {
        let seen = Observation { memory: stock(4096, memory), disk: stock(1000, disk), pods: Vec::new() };
        let pressure = evictor.observe(Time::from_ms(0) + minute * 60_000, &seen).pressure;
        (pressure.memory, pressure.disk)
    };
    assert_eq!(at(0, 4000, 500), (false, false));
    assert_eq!(at(1, 99, 500), (true, false));
    assert_eq!(at(2, 100, 49), (true, true));
    assert_eq!(at(5, 4000, 500), (true, true));
    assert_eq!(at(6, 4000, 500), (false, true));
    assert_eq!(at(7, 4000, 500), (false, false));
}

#[test]
fn thresholds_are_read_as_a_kubelet_reads_them() {
    let parsed = Thresholds::parse("memory.available<1.5Gi, nodefs.available<7.5%").unwrap();
    let expected = [(Signal::Memory, Least::Bytes(1536 << 20)), (Signal::Disk, Least::PerMille(75))];
    assert_eq!(parsed, Thresholds(BTreeMap::from(expected)));
    assert_eq!(Thresholds::parse("").unwrap(), Thresholds(BTreeMap::new()));
    for bad in
        ["memory.available", "memory.available<x", "swap.available<1Gi", "nodefs.available<101%", "memory.available>1"]
    {
        assert_eq!(Thresholds::parse(bad), Err(ThresholdFault(bad.to_owned())), "{bad}");
    }
}
