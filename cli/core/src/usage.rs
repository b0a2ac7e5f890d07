//! The tables of `dhow top`, of what `metrics.k8s.io` says.

use dhow_api::quantity::Quantity;
use serde_json::Value as Tree;
use std::ops::Add;

/// By what rows are sorted; the greatest comes first, and names come in their own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Namespace and name.
    Name,
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
}

/// What is used, or could be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    /// Thousandths of a CPU.
    cpu_m: i128,
    bytes: i128,
}

impl Amount {
    /// Of a list of resources. What cannot be understood counts as nothing.
    fn of(list: &Tree) -> Self {
        let quantity = |field: &str| list[field].as_str().and_then(|text| Quantity::parse(text).ok());
        Self {
            cpu_m: quantity("cpu").map_or(0, |cpu| cpu.milli()),
            bytes: quantity("memory").map_or(0, |memory| memory.value()),
        }
    }

    fn cells(self) -> [String; 2] {
        [format!("{}m", self.cpu_m), format!("{}Mi", self.bytes / (1 << 20))]
    }

    fn key(self, order: Order) -> i128 {
        match order {
            Order::Name => 0,
            Order::Cpu => -self.cpu_m,
            Order::Memory => -self.bytes,
        }
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { cpu_m: self.cpu_m + other.cpu_m, bytes: self.bytes + other.bytes }
    }
}

fn text<'a>(tree: &'a Tree, field: &str) -> &'a str {
    tree["metadata"][field].as_str().unwrap_or_default()
}

/// The heading of [`nodes`].
pub const NODE_HEADING: [&str; 5] = ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"];

/// A row a node: what is used, and how much that is of what pods may have. A node that says nothing is named all the same.
pub fn nodes(metrics: &[Tree], nodes: &[Tree], order: Order) -> Vec<Vec<String>> {
    let used = |name: &str| metrics.iter().find(|one| text(one, "name") == name).map(|one| Amount::of(&one["usage"]));
    let mut found: Vec<_> = nodes.iter().map(|node| (text(node, "name"), used(text(node, "name")), node)).collect();
    found.sort_by_key(|(name, used, _)| (used.unwrap_or_default().key(order), *name));
    let share = |part: i128, whole: i128| match whole {
        0 => "<unknown>".to_owned(),
        whole => format!("{}%", part * 100 / whole),
    };
    let rows = found.into_iter().map(|(name, used, node)| {
        let Some(used) = used else {
            return std::iter::once(name.to_owned()).chain(std::iter::repeat_n("<unknown>".to_owned(), 4)).collect();
        };
        let whole = Amount::of(&node["status"]["allocatable"]);
        let [cpu, memory] = used.cells();
        vec![name.to_owned(), cpu, share(used.cpu_m, whole.cpu_m), memory, share(used.bytes, whole.bytes)]
    });
    rows.collect()
}

/// What a table of pods shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodTable {
    /// A column with the namespace.
    pub namespaces: bool,
    /// A row a container instead of a row a pod.
    pub containers: bool,
    /// How rows are sorted.
    pub order: Order,
}

impl PodTable {
    /// The heading of [`PodTable::rows`].
    pub fn heading(self) -> Vec<String> {
        let mut heading = Vec::new();
        heading.extend(self.namespaces.then_some("NAMESPACE"));
        heading.extend(self.containers.then_some("POD"));
        heading.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"]);
        heading.into_iter().map(str::to_owned).collect()
    }

    /// The rows.
    pub fn rows(self, metrics: &[Tree]) -> Vec<Vec<String>> {
        let containers = |pod: &Tree| pod["containers"].as_array().cloned().unwrap_or_default();
        let sum = |pod: &Tree| {
            containers(pod).iter().map(|one| Amount::of(&one["usage"])).fold(Amount::default(), Amount::add)
        };
        let mut pods: Vec<&Tree> = metrics.iter().collect();
        pods.sort_by_key(|pod| (sum(pod).key(self.order), text(pod, "namespace"), text(pod, "name")));
        let mut rows = Vec::new();
        for pod in pods {
            let mut head = Vec::new();
            head.extend(self.namespaces.then(|| text(pod, "namespace").to_owned()));
            head.push(text(pod, "name").to_owned());
            if !self.containers {
                rows.push([head, sum(pod).cells().to_vec()].concat());
                continue;
            }
            let mut containers = containers(pod);
            containers.sort_by_key(|one| Amount::of(&one["usage"]).key(self.order));
            for one in containers {
                let name = one["name"].as_str().unwrap_or_default().to_owned();
                rows.push([head.clone(), vec![name], Amount::of(&one["usage"]).cells().to_vec()].concat());
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(rows: &[Vec<String>]) -> Vec<String> {
        rows.iter().map(|row| row.join(" ")).collect()
    }

    #[test]
    fn nodes_show_their_share() {
        let metrics = [
            json!({"metadata": {"name": "b"}, "usage": {"cpu": "250000001n", "memory": "1536Ki"}}),
            json!({"metadata": {"name": "a"}, "usage": {"cpu": "100m", "memory": "3Gi"}}),
        ];
        let node =
            |name: &str| json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}});
        let all = [node("a"), node("b"), node("silent"), json!({"metadata": {"name": "z"}})];
        assert_eq!(
            shown(&nodes(&metrics, &all[..3], Order::Cpu)),
            ["b 251m 12% 1Mi 0%", "a 100m 5% 3072Mi 75%", "silent <unknown> <unknown> <unknown> <unknown>"]
        );
        assert!(shown(&nodes(&metrics, &all[..2], Order::Memory))[0].starts_with("a "));
        assert!(shown(&nodes(&metrics, &all[..2], Order::Name))[0].starts_with("a "));
        let bare = [json!({"metadata": {"name": "z"}, "usage": {"cpu": "1", "memory": "1Mi"}})];
        assert_eq!(shown(&nodes(&bare, &all[3..], Order::Name)), ["z 1000m <unknown> 1Mi <unknown>"]);
    }

    #[test]
    fn pods_show_their_sum_or_their_containers() {
        let pod = |namespace: &str, name: &str, used: &[(&str, &str, &str)]| {
            let containers: Vec<Tree> = used
                .iter()
                .map(|(name, cpu, memory)| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}}))
                .collect();
            json!({"metadata": {"name": name, "namespace": namespace}, "containers": containers})
        };
        let metrics = [
            pod("y", "p", &[("c", "10m", "1Mi"), ("d", "20m", "2Mi")]),
            pod("x", "q", &[("c", "5m", "9Mi")]),
            pod("x", "none", &[]),
        ];
        let table = PodTable { namespaces: true, containers: false, order: Order::Name };
        assert_eq!(table.heading().join(" "), "NAMESPACE NAME CPU(cores) MEMORY(bytes)");
        assert_eq!(shown(&table.rows(&metrics)), ["x none 0m 0Mi", "x q 5m 9Mi", "y p 30m 3Mi"]);
        let table = PodTable { namespaces: false, containers: true, order: Order::Cpu };
        assert_eq!(table.heading().join(" "), "POD NAME CPU(cores) MEMORY(bytes)");
        assert_eq!(shown(&table.rows(&metrics)), ["p d 20m 2Mi", "p c 10m 1Mi", "q c 5m 9Mi"]);
    }
}
