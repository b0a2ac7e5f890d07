//! The data of one Store, and the template that a container makes it from.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use dhow_runtime_contract::{Mount, Scratch};
use dhow_switch::PodNet;
use wasmtime::component::{HasData, Resource, ResourceTable};
use wasmtime_wasi::cli::{StdinStream, StdoutStream};
#[cfg(feature = "logging")]
use wasmtime_wasi::p2::OutputStream;
use wasmtime_wasi::p2::bindings::sockets::network;
use wasmtime_wasi::p2::{Network, SocketError};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::files::Files;
use crate::filesystem::FileAccount;
use crate::http::Outgoing;
use crate::memory::{MemoryAccount, MemoryMeter};
use crate::pod::{About, StopNotice};
#[cfg(any(feature = "keyvalue", feature = "blobstore"))]
use crate::stores::Stores;

/// Handles that one instance may have open: sockets, streams, files, pollables. A program that needs more than 64 Ki
/// leaks; it traps with "table full".
const HANDLES_MAX: usize = 65_536;

/// What a container grants its guests.
#[derive(Clone)]
pub struct Setup {
    /// The argument list, program name first.
    pub args: Vec<String>,
    /// The environment; of two equal names the later one holds.
    pub env: Vec<(String, String)>,
    /// Directories of the host that the guest sees.
    pub mounts: Vec<Mount>,
    /// Directories of the container's own.
    pub scratch: Vec<Scratch>,
    /// The initial working directory.
    pub working_dir: Option<String>,
    /// The Pod's network.
    pub net: PodNet,
    /// What the guests may learn of their Pod.
    pub about: About,
    /// Where the container may keep what its guests store in no volume.
    pub stores: Option<PathBuf>,
    /// What its guests draw on.
    pub accounts: Accounts,
}

/// What the guests of a container draw on together; commands that are run in it do as well.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// Linear memory and tables.
    pub memory: Arc<MemoryAccount>,
    /// Files.
    pub files: Arc<FileAccount>,
}

impl Accounts {
    /// Of a container that may hold so much memory.
    pub fn new(memory_limit: Option<u64>) -> Self {
        Self { memory: MemoryAccount::new(memory_limit), files: Arc::default() }
    }
}

/// A container that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A mount's host side cannot be opened as a directory. Where that lies is not for the Pod's owner to know.
    #[error("mounting `{guest}` failed: its directory on the node cannot be opened: {detail}")]
    Mount {
        /// The path in the guest.
        guest: String,
        /// What the host said.
        detail: String,
    },
}

/// What every instance of one container has in common.
pub struct Template {
    args: Vec<String>,
    env: Arc<[(String, String)]>,
    working_dir: Option<String>,
    files: Files,
    net: PodNet,
    about: Arc<About>,
    #[cfg(any(feature = "keyvalue", feature = "blobstore"))]
    stores: Arc<Stores>,
    stop: Arc<StopNotice>,
    accounts: Accounts,
}

impl Template {
    /// Opens the mounts and settles the environment.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let Setup { args, env, mounts, scratch, working_dir, net, about, stores, accounts } = setup;
        #[cfg(not(any(feature = "keyvalue", feature = "blobstore")))]
        drop(stores);
        Ok(Self {
            args,
            env: last_of_each_name(env).into(),
            working_dir,
            #[cfg(any(feature = "keyvalue", feature = "blobstore"))]
            stores: Arc::new(Stores::new(&mounts, stores)),
            files: Files::open(mounts, scratch)?,
            net,
            about: Arc::new(about),
            stop: Arc::default(),
            accounts,
        })
    }

    /// The account that all instances draw on.
    pub fn memory(&self) -> &Arc<MemoryAccount> {
        &self.accounts.memory
    }

    /// The Pod's network.
    pub fn net(&self) -> &PodNet {
        &self.net
    }

    /// What tells the guests that they are to stop.
    pub fn stop_notice(&self) -> &Arc<StopNotice> {
        &self.stop
    }

    /// The data for one more instance, which draws its memory from `memory`.
    pub fn guest(
        &self,
        memory: MemoryMeter,
        stdin: impl StdinStream + 'static,
        stdout: impl StdoutStream + 'static,
        stderr: impl StdoutStream + 'static,
    ) -> Guest {
        #[cfg(feature = "logging")]
        let log = stderr.p2_stream();
        let mut builder = WasiCtxBuilder::new();
        builder.args(&self.args).envs(&self.env).stdin(stdin).stdout(stdout).stderr(stderr);
        if let Some(dir) = &self.working_dir {
            builder.initial_cwd(dir);
        }
        let mut wasi = builder.build();
        *wasi.filesystem() = self.files.mounted();
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        Guest {
            table,
            wasi,
            http: WasiHttpCtx::new(),
            outgoing: Outgoing::new(self.net.clone()),
            net: self.net.clone(),
            files: self.files.clone(),
            file_account: self.accounts.files.clone(),
            #[cfg(feature = "config")]
            env: self.env.clone(),
            #[cfg(feature = "logging")]
            log,
            about: self.about.clone(),
            #[cfg(any(feature = "keyvalue", feature = "blobstore"))]
            stores: self.stores.clone(),
            stop: self.stop.clone(),
            memory,
        }
    }
}

/// Kubernetes lets a later variable replace an earlier one of the same name; a guest must not see both.
fn last_of_each_name(env: Vec<(String, String)>) -> Vec<(String, String)> {
    let last: BTreeMap<String, usize> = env.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
    env.into_iter().enumerate().filter(|(at, (name, _))| last.get(name) == Some(at)).map(|(_, pair)| pair).collect()
}

/// The data of one Store: what its imports act on.
pub struct Guest {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    net: PodNet,
    pub(crate) files: Files,
    pub(crate) file_account: Arc<FileAccount>,
    /// What `wasi:config` tells.
    #[cfg(feature = "config")]
    pub(crate) env: Arc<[(String, String)]>,
    /// Where `wasi:logging` writes to.
    #[cfg(feature = "logging")]
    pub(crate) log: Box<dyn OutputStream>,
    pub(crate) about: Arc<About>,
    #[cfg(any(feature = "keyvalue", feature = "blobstore"))]
    pub(crate) stores: Arc<Stores>,
    pub(crate) stop: Arc<StopNotice>,
    /// Its share of the container's memory; the engine makes it the Store's limiter.
    pub memory: MemoryMeter,
}

impl Guest {
    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    pub(crate) fn net(&self) -> &PodNet {
        &self.net
    }

    pub(crate) fn pod_sockets(&mut self) -> SocketsView<'_> {
        SocketsView { table: &mut self.table, net: &self.net }
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

/// What the socket interfaces act on.
pub(crate) struct SocketsView<'a> {
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) net: &'a PodNet,
}

impl network::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<network::ErrorCode> {
        error.downcast()
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<network::ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<io::Error>().map(network::ErrorCode::from))
    }
}

impl network::HostNetwork for SocketsView<'_> {
    fn drop(&mut self, this: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

pub(crate) struct Sockets;

impl HasData for Sockets {
    type Data<'a> = SocketsView<'a>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_equal_names_the_later_holds() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = last_of_each_name(vec![pair("A", "1"), pair("B", "2"), pair("A", "3")]);
        assert_eq!(env, [pair("B", "2"), pair("A", "3")]);
    }
}
