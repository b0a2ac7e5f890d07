//! `dhow:pod`: what a program can learn of its Pod, and that it is to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use crate::guest::Guest;
use bindings::dhow::pod::{identity, lifecycle};

mod bindings {
    //! The interfaces of `wit/deps/pod.wit`.
    #![allow(missing_docs, unreachable_pub)]

    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "dhow:container/pod",
        imports: { default: trappable },
        require_store_data_send: true,
        with: { "wasi:io": wasmtime_wasi_io::bindings::wasi::io },
    });
}

/// The interface whose importers are told to stop instead of being ended.
pub(crate) const LIFECYCLE: &str = "dhow:pod/lifecycle@";
/// The interfaces that are offered, without their version.
pub(crate) const INTERFACES: [&str; 2] = ["dhow:pod/identity", "dhow:pod/lifecycle"];
/// The minor line of versions that is offered.
pub(crate) const LINE: &str = "0.1";

/// What a container is told of its Pod besides what its network knows.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The node's name.
    pub node: String,
    /// The container's name.
    pub container: String,
    /// The Pod's labels.
    pub labels: BTreeMap<String, String>,
}

/// Tells the instances of one container that it is to stop.
#[derive(Debug)]
pub struct StopNotice(watch::Sender<Option<Instant>>);

impl Default for StopNotice {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl StopNotice {
    /// The container is to stop, and is ended at this time. A later call may only bring that forward.
    pub fn give(&self, deadline: Instant) {
        self.0.send_if_modified(|given| {
            let earlier = given.is_none_or(|given| deadline < given);
            if earlier {
                *given = Some(deadline);
            }
            earlier
        });
    }

    fn deadline(&self) -> Option<Instant> {
        *self.0.borrow()
    }
}

/// What resolves when the notice is given.
struct Stopping(Arc<StopNotice>);

#[async_trait::async_trait]
impl Pollable for Stopping {
    async fn ready(&mut self) {
        let mut given = self.0.0.subscribe();
        // The sender lives in `self`, so the wait ends with the notice only.
        given.wait_for(Option::is_some).await.ok();
    }
}

pub(crate) struct Pod;

impl HasData for Pod {
    type Data<'a> = &'a mut Guest;
}

/// Links both interfaces.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    identity::add_to_linker::<Guest, Pod>(linker, |guest| guest)?;
    lifecycle::add_to_linker::<Guest, Pod>(linker, |guest| guest)
}

impl identity::Host for Guest {
    fn get(&mut self) -> wasmtime::Result<identity::Pod> {
        let pod = self.net().identity().clone();
        let about = &self.about;
        Ok(identity::Pod {
            name: pod.name,
            namespace: pod.namespace,
            uid: pod.uid.to_string(),
            node: about.node.clone(),
            service_account: pod.service_account,
            ip: pod.ip.to_string(),
            container: about.container.clone(),
        })
    }

    fn labels(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.about.labels.clone().into_iter().collect())
    }
}

impl lifecycle::Host for Guest {
    fn stopping(&mut self) -> wasmtime::Result<bool> {
        Ok(self.stop.deadline().is_some())
    }

    fn subscribe(&mut self) -> wasmtime::Result<Resource<DynPollable>> {
        let stopping = Stopping(self.stop.clone());
        let stopping = self.table().push(stopping)?;
        subscribe(self.table(), stopping)
    }

    fn grace_left_ms(&mut self) -> wasmtime::Result<Option<u64>> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        Ok(self.stop.deadline().map(left).map(|left: Duration| left.as_millis() as u64))
    }
}
