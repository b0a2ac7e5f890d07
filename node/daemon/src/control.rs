//! The control nodes that this agent knows: a link to each of them, over which it reaches this node's kubelet API, and
//! the list of them that the API client falls back on.
//!
//! The list comes from the EndpointSlices of the service `kubernetes`; before they are known, from where the node joined
//! and from what the last start left on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_api::Tree;
use dhow_client::Client;
use dhow_files::Access;
use dhow_quic::{Connection, Endpoint, Fabric};
use dhow_switch::Switch;
use dhow_tasks::Stop;
use dhow_types::Chain;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The name in a control node's certificate.
const CONTROL_NAME: &str = "dhow-control";
/// The organization in it: who is told so by the cluster's CA is a control node, whatever a slice says.
const CONTROL_NODES: &str = "dhow:control-nodes";
/// The service whose endpoints are the control nodes.
const SERVICE: (&str, &str) = ("default", "kubernetes");
/// A cluster has a handful of control nodes. What a slice names beyond that is left out: each costs a link.
const SERVERS_MAX: usize = 16;

/// The control node through which this node joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Joined {
    /// Its API.
    pub(crate) url: String,
    /// Where it listens for agents, as `host:port`.
    pub(crate) quic: String,
}

/// What is known of the control nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// Where this node joined: the first one that is tried.
    joined: Joined,
    /// What the last start left.
    remembered: BTreeSet<SocketAddr>,
    /// By slice, the addresses that it names.
    slices: BTreeMap<String, BTreeSet<SocketAddr>>,
}

impl Known {
    /// The members' addresses. What was known stays while the slices name nobody.
    fn members(&self) -> BTreeSet<SocketAddr> {
        let named: BTreeSet<_> = self.slices.values().flatten().copied().take(SERVERS_MAX).collect();
        if named.is_empty() { self.remembered.clone() } else { named }
    }

    /// Everybody who may answer, in the order in which a client tries them.
    fn urls(&self) -> Vec<String> {
        let first = &self.joined.url;
        let members = self.members().into_iter().map(|addr| format!("https://{addr}"));
        std::iter::once(first.clone()).chain(members.filter(|url| url != first)).collect()
    }

    /// Whom to keep a link to. Where the node joined is one of the members under another name, unless none of them can
    /// be reached by the addresses that they give.
    fn links(&self, resolved: &BTreeSet<SocketAddr>) -> BTreeSet<String> {
        let members = self.members();
        let mut links: BTreeSet<String> = members.iter().map(SocketAddr::to_string).collect();
        if members.is_disjoint(resolved) {
            links.insert(self.joined.quic.clone());
        }
        links
    }
}

/// The control nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ControlNodes {
    known: watch::Sender<Known>,
}

impl ControlNodes {
    /// Those of the last start, and where the node joined.
    pub(crate) fn new(joined: Joined, file: &Path) -> Self {
        let remembered = remembered(file);
        Self { known: watch::Sender::new(Known { joined, remembered, slices: BTreeMap::new() }) }
    }

    /// Their addresses for an API client, as URLs, the first one to be tried first.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.known.borrow().urls()
    }

    /// An EndpointSlice is there or has changed.
    pub(crate) fn slice(&self, slice: &Tree) {
        if let Some((name, addresses)) = of_slice(slice) {
            self.known.send_if_modified(|known| {
                let before = known.slices.insert(name, addresses.clone());
                before.as_ref() != Some(&addresses)
            });
        }
    }

    /// An EndpointSlice is gone. The last list stays until there is another one.
    pub(crate) fn slice_gone(&self, namespace: &str, name: &str) {
        if namespace == SERVICE.0 {
            self.known.send_if_modified(|known| {
                let last = known.slices.len() == 1;
                !last && known.slices.remove(name).is_some()
            });
        }
    }

    /// Tells the client of every change, and the disk.
    pub(crate) async fn publish(self, client: Client, file: PathBuf, stop: Stop) {
        let mut known = self.known.subscribe();
        while let Some(Ok(())) = stop.or(known.changed()).await {
            let now = known.borrow_and_update().clone();
            if let Err(err) = client.set_servers(&now.urls()) {
                tracing::warn!(err = %Chain(&err), "the addresses of the control nodes cannot be used");
            }
            let members = now.members();
            let text: String = members.iter().map(|addr| format!("{addr}\n")).collect();
            tracing::info!(?members, "the control nodes");
            if let Err(err) = dhow_files::write(&file, text.as_bytes(), Access::Private) {
                tracing::warn!(path = %file.display(), %err, "the list of control nodes cannot be kept");
            }
        }
    }

    /// Keeps a link to each of them, until told to stop.
    pub(crate) async fn keep_links(self, links: Links, stop: Stop) {
        let mut known = self.known.subscribe();
        let mut tasks = JoinSet::new();
        let mut kept: BTreeMap<String, AbortHandle> = BTreeMap::new();
        loop {
            let now = known.borrow_and_update().clone();
            let Some(resolved) = stop.or(resolve(&now.joined.quic)).await else { break };
            let wanted = now.links(&resolved);
            kept.retain(|control, task| {
                let keep = wanted.contains(control);
                if !keep {
                    tracing::info!(control, "no control node any more");
                    task.abort();
                }
                keep
            });
            for control in wanted {
                kept.entry(control.clone()).or_insert_with(|| tasks.spawn(links.clone().stay_connected(control)));
            }
            while tasks.try_join_next().is_some() {}
            if !matches!(stop.or(known.changed()).await, Some(Ok(()))) {
                break;
            }
        }
        tasks.shutdown().await;
    }
}

/// The name of a slice of the service, and the addresses that it names.
fn of_slice(slice: &Tree) -> Option<(String, BTreeSet<SocketAddr>)> {
    let text = |path: &str| slice.pointer(path).and_then(Tree::as_str);
    let labels = slice.pointer("/metadata/labels")?;
    let service = labels.get("kubernetes.io/service-name").and_then(Tree::as_str)?;
    if (text("/metadata/namespace")?, service) != SERVICE {
        return None;
    }
    let list = |field: &str| slice.get(field).and_then(Tree::as_array).into_iter().flatten();
    let port = list("ports").find_map(|port| u16::try_from(port.get("port")?.as_u64()?).ok())?;
    // One that is not ready may be a moment later; a link to it is tried again and again anyway.
    let addresses = list("endpoints").flat_map(|endpoint| endpoint.get("addresses").and_then(Tree::as_array));
    let ips = addresses.flatten().filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok());
    Some((text("/metadata/name")?.to_owned(), ips.map(|ip| SocketAddr::new(ip, port)).collect()))
}

fn remembered(file: &Path) -> BTreeSet<SocketAddr> {
    match std::fs::read_to_string(file) {
        Ok(text) => text.lines().filter_map(|line| line.trim().parse().ok()).take(SERVERS_MAX).collect(),
        Err(err) => {
            if err.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %file.display(), %err, "the list of control nodes cannot be read");
            }
            BTreeSet::new()
        }
    }
}

/// The addresses of `host:port`; none if they cannot be found out.
async fn resolve(authority: &str) -> BTreeSet<SocketAddr> {
    crate::config::addresses_of(authority).await.into_iter().collect()
}

/// What a link needs.
#[derive(Clone)]
pub(crate) struct Links {
    pub(crate) endpoint: Endpoint,
    pub(crate) fabric: Fabric,
    pub(crate) switch: Switch,
}

impl Links {
    /// Keeps a connection to one control node, for ever.
    async fn stay_connected(self, control: String) {
        let mut pause = RETRY_MIN;
        loop {
            match self.dial(&control).await {
                Ok(connection) => {
                    tracing::info!(control, "connected to the control node");
                    let began = tokio::time::Instant::now();
                    // Pods reach the API by its service, and who answers here is it.
                    let _open = Opened::to(&self.switch, connection.remote_addr());
                    let why = self.fabric.serve(connection).await;
                    tracing::info!(control, why = %Chain(&why), "the connection to the control node ended");
                    if began.elapsed() > RETRY_MAX {
                        pause = RETRY_MIN;
                    }
                }
                Err(why) => tracing::debug!(control, why, "connecting to the control node failed"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// The name is looked up each time: the control node may have moved.
    async fn dial(&self, control: &str) -> Result<Connection, String> {
        let mut why = format!("`{control}` has no address");
        for addr in tokio::net::lookup_host(control).await.map_err(|err| err.to_string())? {
            match self.endpoint.connect(addr, CONTROL_NAME).await {
                Ok(connection) if connection.is_in(CONTROL_NODES) => return Ok(connection),
                Ok(connection) => {
                    why = format!("`{}` is no control node", connection.peer());
                    connection.close();
                }
                Err(err) => why = Chain(&err).to_string(),
            }
        }
        Err(why)
    }
}

/// An address that pods may reach as long as this lives.
struct Opened<'a> {
    switch: &'a Switch,
    addr: SocketAddr,
}

impl<'a> Opened<'a> {
    fn to(switch: &'a Switch, addr: SocketAddr) -> Self {
        switch.allow_egress(addr);
        Self { switch, addr }
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.switch.forbid_egress(self.addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(name: &str, ips: &[&str]) -> Tree {
        let endpoints: Vec<_> = ips.iter().map(|ip| json!({"addresses": [ip]})).collect();
        json!({
            "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "ports": [{"name": "https", "port": 6443}], "endpoints": endpoints,
        })
    }

    fn joined() -> Joined {
        Joined { url: "https://dhow.example:6443".to_owned(), quic: "dhow.example:6443".to_owned() }
    }

    fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    #[test]
    fn only_slices_of_the_apis_own_service_count() {
        let (name, found) = of_slice(&slice("kubernetes", &["192.0.2.1", "::1", "?"])).unwrap();
        assert_eq!((name.as_str(), found), ("kubernetes", set(&["192.0.2.1:6443", "[::1]:6443"])));
        for (path, value) in [
            ("/metadata/namespace", json!("other")),
            ("/metadata/labels", json!({"kubernetes.io/service-name": "web"})),
            ("/ports", json!([])),
        ] {
            let mut tree = slice("kubernetes", &["192.0.2.1"]);
            *tree.pointer_mut(path).unwrap() = value;
            assert_eq!(of_slice(&tree), None, "{path}");
        }
    }

    #[test]
    fn members_come_and_go_and_the_last_list_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("servers");
        std::fs::write(&file, "192.0.2.8:6443\nnonsense\n").unwrap();
        let nodes = ControlNodes::new(joined(), &file);
        assert_eq!(nodes.urls(), ["https://dhow.example:6443", "https://192.0.2.8:6443"]);
        nodes.slice(&slice("a", &["192.0.2.1"]));
        nodes.slice(&slice("b", &["192.0.2.2"]));
        let expected = ["https://dhow.example:6443", "https://192.0.2.1:6443", "https://192.0.2.2:6443"];
        assert_eq!(nodes.urls(), expected);
        nodes.slice_gone("default", "a");
        nodes.slice_gone("default", "b");
        nodes.slice_gone("other", "b");
        assert_eq!(nodes.urls()[1..], ["https://192.0.2.2:6443"]);
    }

    #[test]
    fn a_link_goes_to_each_member_once() {
        let mut known = Known { joined: joined(), ..Known::default() };
        let links = |known: &Known, resolved: &[&str]| known.links(&set(resolved)).into_iter().collect::<Vec<_>>();
        assert_eq!(links(&known, &["192.0.2.1:6443"]), ["dhow.example:6443"]);
        known.slices.insert("a".to_owned(), set(&["192.0.2.1:6443", "192.0.2.2:6443"]));
        assert_eq!(links(&known, &["192.0.2.1:6443"]), ["192.0.2.1:6443", "192.0.2.2:6443"]);
        // Behind an address translation, or when the name leads nowhere.
        assert_eq!(links(&known, &["203.0.113.1:6443"]).len(), 3);
        let many: Vec<_> = (1..=40).map(|n| format!("192.0.2.{n}:6443")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        known.slices.insert("a".to_owned(), set(&many));
        assert_eq!(links(&known, &["192.0.2.1:6443"]).len(), SERVERS_MAX);
    }
}
