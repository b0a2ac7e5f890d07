//! Node ports: sockets of the host, kept in line with the services' tables.

mod tcp;
mod udp;

use crate::switch::Switch;
use dhow_mesh::Proto;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

pub(crate) use udp::UdpGate;

/// Connections through all node ports of a node. Beyond it new ones wait in the kernel's queue, and the host keeps
/// descriptors for itself.
const CONNECTIONS_MAX: usize = 16_384;
/// When a port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Events that wait for their reader. An event that finds no room is dropped: it is news, not state.
const EVENTS_MAX: usize = 256;

/// A port of every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePort {
    /// Its protocol: both may have the same number.
    pub proto: Proto,
    /// Its number.
    pub number: u16,
}

impl std::fmt::Display for NodePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.proto)
    }
}

/// What happened to a node port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortEvent {
    /// The host listens on it.
    Open {
        /// The port.
        port: NodePort,
    },
    /// The host cannot listen on it (somebody else does, for one); it is tried again.
    Failed {
        /// The port.
        port: NodePort,
        /// Why.
        error: String,
    },
    /// No service wants it any more.
    Closed {
        /// The port.
        port: NodePort,
    },
}

/// The node ports' sockets. Dropping it closes them at once.
pub struct NodePorts {
    stop: watch::Sender<bool>,
    keeper: Option<JoinHandle<()>>,
}

impl NodePorts {
    /// Begins to keep sockets on `host_ip` in line with the tables of `switch`. Call it inside a tokio runtime.
    pub fn start(switch: &Switch, host_ip: IpAddr) -> (NodePorts, mpsc::Receiver<NodePortEvent>) {
        let (events, reader) = mpsc::channel(EVENTS_MAX);
        let (stop, stopped) = watch::channel(false);
        let keeper = Keeper {
            switch: switch.clone(),
            host_ip,
            events,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            tasks: JoinSet::new(),
            limit: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        let keeper = tokio::spawn(keeper.run(stopped));
        (NodePorts { stop, keeper: Some(keeper) }, reader)
    }

    /// Closes all sockets and waits until they are closed. Connections that pods hold stay theirs.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(keeper) = self.keeper.take()
            && let Err(error) = keeper.await
        {
            tracing::error!(%error, "keeper of the node ports did not end in order");
        }
    }
}

impl Drop for NodePorts {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// The one owner of all node ports.
struct Keeper {
    switch: Switch,
    host_ip: IpAddr,
    events: mpsc::Sender<NodePortEvent>,
    open: BTreeMap<NodePort, AbortHandle>,
    /// Ports that could not be opened, with what was reported.
    failed: BTreeMap<NodePort, String>,
    /// One task a port. Its failure closes the port until the next change; its end closes the socket.
    tasks: JoinSet<()>,
    limit: Arc<Semaphore>,
}

impl Keeper {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut changes = self.switch.changes();
        loop {
            changes.borrow_and_update();
            self.adjust();
            tokio::select! {
                _ = stopped.changed() => break,
                changed = changes.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if !self.failed.is_empty() => {}
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "task of a node port ended");
                        self.open.retain(|_, task| !task.is_finished());
                    }
                }
            }
        }
        self.tasks.shutdown().await;
    }

    /// Opens what is wanted and not open, closes what is open and not wanted.
    fn adjust(&mut self) {
        let wanted = self.switch.node_ports();
        let unwanted: Vec<_> = self.open.keys().filter(|port| wanted.binary_search(port).is_err()).copied().collect();
        for port in unwanted {
            if let Some(task) = self.open.remove(&port) {
                task.abort();
                self.tell(NodePortEvent::Closed { port });
            }
        }
        self.failed.retain(|port, _| wanted.binary_search(port).is_ok());
        for port in wanted {
            if !self.open.contains_key(&port) {
                self.open_port(port);
            }
        }
    }

    fn open_port(&mut self, port: NodePort) {
        match self.serve(port) {
            Ok(task) => {
                self.open.insert(port, task);
                self.failed.remove(&port);
                self.tell(NodePortEvent::Open { port });
            }
            Err(error) => {
                let error = error.to_string();
                if self.failed.get(&port) != Some(&error) {
                    self.failed.insert(port, error.clone());
                    self.tell(NodePortEvent::Failed { port, error });
                }
            }
        }
    }

    /// Opens the socket of a port and starts its task.
    fn serve(&mut self, port: NodePort) -> io::Result<AbortHandle> {
        let addr = SocketAddr::new(self.host_ip, port.number);
        let (switch, number) = (self.switch.clone(), port.number);
        Ok(match port.proto {
            Proto::Tcp => self.tasks.spawn(tcp::accept(switch, tcp::listen(addr)?, number, self.limit.clone())),
            Proto::Udp => self.tasks.spawn(udp::receive(switch.clone(), udp::open(&switch, addr)?, number)),
        })
    }

    fn tell(&self, event: NodePortEvent) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "event of a node port is dropped");
        }
    }
}
