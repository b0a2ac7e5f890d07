//! What a Prometheus server reads of this node, in the OpenMetrics text form, under the names that dashboards for
//! Kubernetes know.
//!
//! | path | families |
//! |---|---|
//! | `/metrics` | the agent's own: pods, containers, its process |
//! | `/metrics/resource` | CPU and memory of node, pods and containers |
//! | `/metrics/cadvisor` | per container: CPU, throttling, memory, disk, files read and written, network, HTTP requests |

use std::fmt;
use std::path::Path;

use dhow_runtime_contract::Usage;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::host;
use crate::usage::{ContainerReading, PodReading, Reading};

/// The media type of what these functions give.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Metrics of one name.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: Vec<(Labels, f64)>,
}

/// What is shown in one answer.
#[derive(Debug, Default)]
struct Page(Vec<Family>);

impl Page {
    fn counter(&mut self, name: &'static str, help: &'static str, values: Vec<(Labels, f64)>) {
        self.0.push(Family { name, help, kind: MetricType::Counter, values });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, values: Vec<(Labels, f64)>) {
        self.0.push(Family { name, help, kind: MetricType::Gauge, values });
    }

    fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(page)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Family { name, help, kind, values } in &self.0 {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (labels, value) in values {
                if labels.is_empty() {
                    encode(&mut family, *kind, *value)?;
                } else {
                    encode(&mut family.encode_family(labels)?, *kind, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: f64) -> Result<(), fmt::Error> {
    match kind {
        MetricType::Counter => encoder.encode_counter::<[(&str, &str); 0], f64, f64>(&value, None),
        _ => encoder.encode_gauge(&value),
    }
}

fn plain(value: Option<f64>) -> Vec<(Labels, f64)> {
    value.map(|value| (Labels::new(), value)).into_iter().collect()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn labels_of_pod(pod: &PodReading) -> Labels {
    let meta = &pod.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    vec![("namespace", text(&meta.namespace)), ("pod", text(&meta.name))]
}

fn of_pods(reading: &Reading, value: impl Fn(&PodReading) -> f64) -> Vec<(Labels, f64)> {
    reading.pods.iter().map(|pod| (labels_of_pod(pod), value(pod))).collect()
}

fn of_containers(
    reading: &Reading,
    value: impl Fn(&PodReading, &ContainerReading) -> Option<f64>,
) -> Vec<(Labels, f64)> {
    let of_pod = |pod| {
        let labels = labels_of_pod(pod);
        let value = &value;
        pod.containers.iter().filter_map(move |container| {
            let mut labels = labels.clone();
            labels.insert(0, ("container", container.name.to_string()));
            Some((labels, value(pod, container)?))
        })
    };
    reading.pods.iter().flat_map(of_pod).collect()
}

/// `/metrics/resource`
pub(crate) fn resource(reading: &Reading) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    let node = &reading.node;
    page.counter(
        "node_cpu_usage_seconds",
        "Cumulative cpu time consumed by the node in core-seconds",
        plain(node.cpu_ns.map(seconds)),
    );
    let used = node.memory.map(|memory| memory.capacity.saturating_sub(memory.available) as f64);
    page.gauge("node_memory_working_set_bytes", "Current working set of the node in bytes", plain(used));
    cpu_and_memory(&mut page, reading);
    page.counter(
        "pod_cpu_usage_seconds",
        "Cumulative cpu time consumed by the pod in core-seconds",
        of_pods(reading, |pod| seconds(pod.sum(|container| container.usage.cpu_ns))),
    );
    page.gauge(
        "pod_memory_working_set_bytes",
        "Current working set of the pod in bytes",
        of_pods(reading, |pod| pod.sum(|container| container.usage.memory_bytes) as f64),
    );
    page.gauge(
        "resource_scrape_error",
        "1 if there was an error while getting container metrics, 0 otherwise",
        plain(Some(0.0)),
    );
    page.text()
}

fn cpu_and_memory(page: &mut Page, reading: &Reading) {
    page.counter(
        "container_cpu_usage_seconds",
        "Cumulative cpu time consumed by the container in core-seconds",
        of_containers(reading, |_, container| Some(seconds(container.usage.cpu_ns))),
    );
    page.gauge(
        "container_memory_working_set_bytes",
        "Current working set of the container in bytes",
        of_containers(reading, |_, container| Some(container.usage.memory_bytes as f64)),
    );
    page.gauge(
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds",
        of_containers(reading, |_, container| Some(container.started_at.as_ms() as f64 / 1000.0)),
    );
}

/// `/metrics/cadvisor`
pub(crate) fn containers(reading: &Reading) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    cpu_and_memory(&mut page, reading);
    throttling(&mut page, reading);
    page.gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit for the container",
        of_containers(reading, |_, container| container.usage.memory_limit.map(|limit| limit as f64)),
    );
    page.gauge(
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem",
        of_containers(reading, |pod, container| {
            let disk = pod.disk.containers.get(&*container.name)?;
            Some((disk.own.bytes + disk.logs.bytes) as f64)
        }),
    );
    files(&mut page, reading);
    let network = |value: fn(&PodReading) -> u64| {
        let mut values = of_pods(reading, |pod| value(pod) as f64);
        values.iter_mut().for_each(|(labels, _)| labels.insert(0, ("interface", "eth0".to_owned())));
        values
    };
    page.counter(
        "container_network_receive_bytes",
        "Cumulative count of bytes received",
        network(|pod| pod.traffic.rx_bytes),
    );
    page.counter(
        "container_network_transmit_bytes",
        "Cumulative count of bytes transmitted",
        network(|pod| pod.traffic.tx_bytes),
    );
    page.counter(
        "dhow_container_http_requests",
        "HTTP requests that the container was asked",
        of_containers(reading, |_, container| Some(container.usage.http_requests as f64)),
    );
    page.counter(
        "dhow_container_http_failures",
        "HTTP requests that the container did not answer",
        of_containers(reading, |_, container| Some(container.usage.http_failures as f64)),
    );
    page.counter(
        "dhow_container_log_bytes",
        "Bytes that the container wrote to its log",
        of_containers(reading, |_, container| Some(container.usage.log_bytes as f64)),
    );
    page.gauge(
        "machine_memory_bytes",
        "Amount of memory installed on the machine",
        plain(reading.node.memory.map(|m| m.capacity as f64)),
    );
    page.text()
}

/// What containers read and write.
fn files(page: &mut Page, reading: &Reading) {
    let of =
        |value: fn(&Usage) -> u64| of_containers(reading, move |_, container| Some(value(&container.usage) as f64));
    page.counter("container_fs_reads", "Cumulative count of reads completed", of(|usage| usage.fs_reads));
    page.counter("container_fs_reads_bytes", "Cumulative count of bytes read", of(|usage| usage.fs_read_bytes));
    page.counter("container_fs_writes", "Cumulative count of writes completed", of(|usage| usage.fs_writes));
    page.counter("container_fs_writes_bytes", "Cumulative count of bytes written", of(|usage| usage.fs_written_bytes));
}

/// Of containers that have a CPU limit.
fn throttling(page: &mut Page, reading: &Reading) {
    let limited = |of: fn(&Usage) -> f64| {
        of_containers(reading, move |_, container| (container.usage.cpu_periods > 0).then(|| of(&container.usage)))
    };
    page.counter(
        "container_cpu_cfs_periods",
        "Number of elapsed enforcement period intervals",
        limited(|usage| usage.cpu_periods as f64),
    );
    page.counter(
        "container_cpu_cfs_throttled_periods",
        "Number of throttled period intervals",
        limited(|usage| usage.cpu_throttled_periods as f64),
    );
    page.counter(
        "container_cpu_cfs_throttled_seconds",
        "Total time duration the container has been throttled",
        limited(|usage| seconds(usage.cpu_throttled_ns)),
    );
}

/// `/metrics`
pub(crate) fn agent(reading: &Reading, data_dir: &Path) -> Result<String, fmt::Error> {
    let mut page = Page::default();
    let process = host::process();
    page.gauge(
        "kubelet_running_pods",
        "Number of pods that have a running pod sandbox",
        plain(Some(reading.pods.len() as f64)),
    );
    let running: usize = reading.pods.iter().map(|pod| pod.containers.len()).sum();
    let state = vec![("container_state", "running".to_owned())];
    page.gauge("kubelet_running_containers", "Number of containers currently running", vec![(state, running as f64)]);
    page.counter("process_cpu_seconds", "Total user and system CPU time spent in seconds", plain(Some(process.cpu_s)));
    page.gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes",
        plain(Some(process.resident_bytes as f64)),
    );
    page.gauge("process_open_fds", "Number of open file descriptors", plain(Some(process.open_files as f64)));
    let disk = host::file_system(data_dir).map(|found| found.bytes);
    page.gauge(
        "dhow_node_data_available_bytes",
        "Bytes that are left on the file system of the node's data directory",
        plain(disk.map(|disk| disk.available as f64)),
    );
    page.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::disk_use::DiskUse;
    use crate::usage::NodeReading;
    use dhow_switch::Traffic;
    use dhow_types::{Time, Uid};
    use serde_json::json;

    fn reading() -> Reading {
        let pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}})).unwrap();
        let usage = Usage {
            cpu_ns: 1_500_000_000,
            memory_bytes: 4096,
            cpu_periods: 5,
            cpu_throttled_periods: 3,
            http_requests: 7,
            fs_reads: 2,
            fs_read_bytes: 300,
            fs_written_bytes: 400,
            ..Usage::default()
        };
        let container = ContainerReading { name: "c\"1".into(), started_at: Time::from_ms(1_000), usage, rate: None };
        let node = NodeReading { cpu_ns: Some(2_000_000_000), rate: None, memory: None, file_system: None };
        let traffic = Traffic { rx_bytes: 11, tx_bytes: 22 };
        let (uid, disk) = (Uid::new("u"), Arc::new(DiskUse::default()));
        let pod = PodReading { uid, pod: Arc::new(pod), traffic, containers: vec![container], disk };
        Reading { at: Time::from_ms(2_000), node, pods: vec![pod] }
    }

    #[test]
    fn pages_name_what_dashboards_know() {
        let reading = reading();
        let pages =
            [resource(&reading).unwrap(), containers(&reading).unwrap(), agent(&reading, Path::new("/")).unwrap()];
        for (page, line) in [
            (0, "node_cpu_usage_seconds_total 2.0"),
            (0, r#"container_cpu_usage_seconds_total{container="c\"1",namespace="shop",pod="web"} 1.5"#),
            (0, r#"pod_memory_working_set_bytes{namespace="shop",pod="web"} 4096.0"#),
            (0, "# TYPE container_start_time_seconds gauge"),
            (1, r#"container_cpu_cfs_throttled_periods_total{container="c\"1",namespace="shop",pod="web"} 3.0"#),
            (1, r#"container_network_transmit_bytes_total{interface="eth0",namespace="shop",pod="web"} 22.0"#),
            (1, r#"dhow_container_http_requests_total{container="c\"1",namespace="shop",pod="web"} 7.0"#),
            (1, r#"container_fs_reads_total{container="c\"1",namespace="shop",pod="web"} 2.0"#),
            (1, r#"container_fs_reads_bytes_total{container="c\"1",namespace="shop",pod="web"} 300.0"#),
            (1, r#"container_fs_writes_bytes_total{container="c\"1",namespace="shop",pod="web"} 400.0"#),
            (2, "kubelet_running_pods 1.0"),
            (2, r#"kubelet_running_containers{container_state="running"} 1.0"#),
        ] {
            assert!(pages[page].lines().any(|found| found == line), "{line} is not in\n{}", pages[page]);
        }
        for page in pages {
            assert!(page.ends_with("# EOF\n"), "{page}");
        }
    }
}
