//! `/stats/summary`: what a kubelet says of the node and its pods, in one document.

use dhow_agent::eviction::Stock;
use dhow_agent::rate::Rate;
use dhow_types::{NodeName, Time};
use serde_json::{Map, Value, json};

use crate::disk_use::{ContainerDisk, Taken};
use crate::host::{self, FileSystem};
use crate::usage::{ContainerReading, NodeReading, PodReading, Reading};

/// Whether only processor and memory are asked for, as the metrics server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    CpuAndMemory,
    All,
}

impl Extent {
    /// Of the request's query.
    pub(crate) fn of(query: &str) -> Self {
        let only = query.split('&').any(|pair| matches!(pair, "only_cpu_and_memory=true" | "only_cpu_and_memory=1"));
        if only { Self::CpuAndMemory } else { Self::All }
    }
}

/// The document.
pub(crate) fn summary(node: &NodeName, reading: &Reading, extent: Extent) -> Value {
    let pods: Vec<Value> = reading.pods.iter().map(|pod| pod_stats(pod, reading, extent)).collect();
    json!({"node": node_stats(node, &reading.node, reading.at, extent), "pods": pods})
}

fn node_stats(name: &NodeName, node: &NodeReading, at: Time, extent: Extent) -> Value {
    let mut stats = Map::new();
    stats.insert("nodeName".to_owned(), json!(name.as_str()));
    if let Some(boot) = host::boot_time_s() {
        stats.insert("startTime".to_owned(), json!(Time::from_secs(boot).to_rfc3339()));
    }
    if let Some(cpu_ns) = node.cpu_ns {
        stats.insert("cpu".to_owned(), cpu(at, node.rate, cpu_ns));
    }
    if let Some(Stock { capacity, available }) = node.memory {
        let used = capacity.saturating_sub(available);
        stats.insert(
            "memory".to_owned(),
            json!({"time": at.to_rfc3339(), "availableBytes": available, "usageBytes": used, "workingSetBytes": used}),
        );
    }
    if let (Some(fs), Extent::All) = (node.file_system, extent) {
        let used = Taken {
            bytes: fs.bytes.capacity.saturating_sub(fs.bytes.available),
            files: fs.inodes.capacity.saturating_sub(fs.inodes.available),
        };
        stats.insert("fs".to_owned(), disk(at, Some(fs), used));
        stats.insert("runtime".to_owned(), json!({"imageFs": disk(at, Some(fs), used)}));
    }
    Value::Object(stats)
}

fn pod_stats(pod: &PodReading, reading: &Reading, extent: Extent) -> Value {
    let at = reading.at;
    let meta = &pod.pod.metadata;
    let fs = reading.node.file_system;
    let mut stats = Map::new();
    stats.insert("podRef".to_owned(), json!({"name": meta.name, "namespace": meta.namespace, "uid": pod.uid.as_str()}));
    let start = pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    if let Some(start) = start {
        stats.insert("startTime".to_owned(), json!(start));
    }
    let containers: Vec<Value> =
        pod.containers.iter().map(|container| container_stats(pod, container, (at, fs), extent)).collect();
    stats.insert("containers".to_owned(), Value::Array(containers));
    stats.insert("cpu".to_owned(), cpu(at, pod.rate(), pod.sum(|container| container.usage.cpu_ns)));
    stats.insert("memory".to_owned(), memory(at, pod.sum(|container| container.usage.memory_bytes), None));
    if extent == Extent::All {
        let (rx, tx) = (pod.traffic.rx_bytes, pod.traffic.tx_bytes);
        let interface = json!({"name": "eth0", "rxBytes": rx, "rxErrors": 0, "txBytes": tx, "txErrors": 0});
        let mut network = json!({"time": at.to_rfc3339(), "interfaces": [interface]});
        if let (Value::Object(network), Value::Object(interface)) = (&mut network, interface) {
            network.extend(interface);
        }
        stats.insert("network".to_owned(), network);
        let volumes: Vec<Value> =
            pod.disk.volumes.iter().map(|(name, taken)| named(disk(at, fs, *taken), name)).collect();
        if !volumes.is_empty() {
            stats.insert("volume".to_owned(), Value::Array(volumes));
        }
        stats.insert("ephemeral-storage".to_owned(), disk(at, fs, pod.disk.total()));
    }
    Value::Object(stats)
}

fn container_stats(
    pod: &PodReading,
    container: &ContainerReading,
    (at, fs): (Time, Option<FileSystem>),
    extent: Extent,
) -> Value {
    let usage = &container.usage;
    let mut stats = json!({
        "name": &*container.name,
        "startTime": container.started_at.to_rfc3339(),
        "cpu": cpu(at, container.rate, usage.cpu_ns),
        "memory": memory(at, usage.memory_bytes, usage.memory_limit),
    });
    if extent == Extent::All {
        let ContainerDisk { own, logs } = pod.disk.containers.get(&*container.name).copied().unwrap_or_default();
        stats["rootfs"] = disk(at, fs, own);
        stats["logs"] = disk(at, fs, logs);
    }
    stats
}

fn named(mut value: Value, name: &str) -> Value {
    value["name"] = json!(name);
    value
}

fn cpu(at: Time, rate: Option<Rate>, total_ns: u64) -> Value {
    let mut cpu = json!({"time": at.to_rfc3339(), "usageCoreNanoSeconds": total_ns});
    if let Some(rate) = rate {
        cpu["usageNanoCores"] = json!(rate.per_s);
        // Not a kubelet's field: over what time the rate was taken, for the control node's answers.
        cpu["windowMilliseconds"] = json!(rate.window_ms);
    }
    cpu
}

fn memory(at: Time, bytes: u64, limit: Option<u64>) -> Value {
    let mut memory = json!({"time": at.to_rfc3339(), "usageBytes": bytes, "workingSetBytes": bytes, "rssBytes": bytes});
    if let Some(limit) = limit {
        memory["availableBytes"] = json!(limit.saturating_sub(bytes));
    }
    memory
}

fn disk(at: Time, fs: Option<FileSystem>, used: Taken) -> Value {
    let mut disk = json!({"time": at.to_rfc3339(), "usedBytes": used.bytes, "inodesUsed": used.files});
    if let Some(fs) = fs {
        disk["availableBytes"] = json!(fs.bytes.available);
        disk["capacityBytes"] = json!(fs.bytes.capacity);
        disk["inodesFree"] = json!(fs.inodes.available);
        disk["inodes"] = json!(fs.inodes.capacity);
    }
    disk
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_use::DiskUse;
    use dhow_runtime_contract::Usage;
    use dhow_switch::Traffic;
    use dhow_types::Uid;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn the_summary_says_what_a_kubelets_says() {
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}})).unwrap();
        let container = |name: &str, cpu_ns, per_s| ContainerReading {
            name: name.into(),
            started_at: Time::from_ms(1_000),
            usage: Usage { cpu_ns, memory_bytes: 100, memory_limit: Some(150), ..Usage::default() },
            rate: Some(Rate { per_s, window_ms: 15_000 }),
        };
        let taken = |bytes| Taken { bytes, files: 1 };
        let disk = DiskUse {
            containers: BTreeMap::from([("a".to_owned(), ContainerDisk { own: taken(1), logs: taken(2) })]),
            volumes: BTreeMap::from([("data".to_owned(), taken(4))]),
        };
        let pod = PodReading {
            uid: Uid::new("u1"),
            pod: Arc::new(pod),
            traffic: Traffic { rx_bytes: 11, tx_bytes: 22 },
            containers: vec![container("a", 10, 3), container("b", 20, 4)],
            disk: Arc::new(disk),
        };
        let node = NodeReading {
            cpu_ns: Some(99),
            rate: None,
            memory: Some(Stock { capacity: 10, available: 4 }),
            file_system: None,
        };
        let reading = Reading { at: Time::from_ms(2_000), node, pods: vec![pod] };
        let all = summary(&NodeName::new("n1"), &reading, Extent::All);
        for (path, value) in [
            ("/node/nodeName", json!("n1")),
            ("/node/cpu/usageCoreNanoSeconds", json!(99)),
            ("/node/memory/workingSetBytes", json!(6)),
            ("/pods/0/podRef", json!({"name": "web", "namespace": "shop", "uid": "u1"})),
            ("/pods/0/cpu/usageNanoCores", json!(7)),
            ("/pods/0/cpu/usageCoreNanoSeconds", json!(30)),
            ("/pods/0/containers/1/memory/availableBytes", json!(50)),
            ("/pods/0/containers/0/cpu/time", json!("1970-01-01T00:00:02Z")),
            ("/pods/0/containers/0/logs/usedBytes", json!(2)),
            ("/pods/0/network/rxBytes", json!(11)),
            ("/pods/0/volume/0/name", json!("data")),
            ("/pods/0/ephemeral-storage/usedBytes", json!(7)),
        ] {
            assert_eq!(all.pointer(path), Some(&value), "{path}");
        }
        let some = summary(&NodeName::new("n1"), &reading, Extent::of("only_cpu_and_memory=true"));
        assert!(some.pointer("/pods/0/network").is_none() && some.pointer("/pods/0/containers/0/logs").is_none());
        assert_eq!(some.pointer("/pods/0/containers/0/memory/workingSetBytes"), Some(&json!(100)));
    }
}
