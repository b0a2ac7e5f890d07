//! The engine of a node: the Wasmtime engines, the threads that guests run on, and what all containers share.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use dhow_runtime_contract::ContainerSpec;
use dhow_switch::PodNet;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;

use crate::aside::Asides;
use crate::cache::Cache;
use crate::compile::{self, Compiler};
use crate::container::{self, Container, Io};
use crate::elsewhere::{Elsewhere, NotDelivered, Wanted};
use crate::instances::Places;
use crate::lane::Lane;
use crate::linkers::{Family, HTTP_INSTANCES_MAX, Linkers};
use crate::logs::LogWriter;
use crate::output::lock;
use crate::priority::be_quick;
use crate::program::{self, Linked, LoadError, Program};
use crate::target::{Code, CodeSettings};
use crate::ticker::Ticker;

/// Programs that are compiled at a time. One uses all cores by itself and, for 12 MiB, 370 MB of memory.
const COMPILERS_MAX: usize = 1;
/// Threads for guests' file operations. A slow disk fills them and then makes guests wait, not the node.
const FILE_THREADS_MAX: usize = 32;
/// How long containers have to end at shutdown after they were killed.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where compiled code is kept. Only the node may be able to write there.
    pub cache_dir: PathBuf,
    /// Threads that guests run on; as many as cores when `None`.
    pub workers: Option<usize>,
    /// Where programs are compiled.
    pub compiler: Compiler,
    /// What they are compiled to. Code of Pulley is taken in any case from somebody else who can make no other.
    pub code: Code,
}

impl Config {
    /// The defaults, with compiled code in `cache_dir`. Programs are compiled in this process, if it can.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache_dir: cache_dir.into(), workers: None, compiler: Compiler::default(), code: Code::default() }
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A directory or a thread could not be made.
    #[error("setting up `{}` failed", path.display())]
    Io {
        /// The directory of compiled code.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Wasmtime refuses this machine or these settings.
    #[error("setting up the WebAssembly engine failed: {detail}")]
    Setup {
        /// What it said.
        detail: String,
    },
}

/// Runs the containers of a node. Handles are cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    cache: Arc<Cache>,
    compilers: Semaphore,
    /// Programs by digest, as long as something uses them.
    programs: Mutex<BTreeMap<String, Slot>>,
    containers: Mutex<BTreeMap<u64, Container>>,
    next_id: AtomicU64,
    places: Places,
    asides: Asides,
    ticker: Arc<Ticker>,
    lane: Arc<Lane>,
    logs: LogWriter,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

/// The place of one program. Its lock makes those who ask at the same time wait for one compilation.
type Slot = Arc<tokio::sync::Mutex<Weak<Linked>>>;

impl Engine {
    /// Makes the engines and starts the threads.
    pub fn new(config: Config) -> Result<Engine, EngineError> {
        let Config { cache_dir, workers, compiler, code } = config;
        let setup = |error: wasmtime::Error| EngineError::Setup { detail: format!("{error:#}") };
        let failed = |source: io::Error| EngineError::Io { path: cache_dir.clone(), source };
        let ticker = Ticker::start().map_err(failed)?;
        let linkers = Linkers::new(ticker.clone(), code).map_err(setup)?;
        let cache = Cache::open(cache_dir.clone(), linkers, compiler, code).map_err(failed)?;
        let workers = workers.or_else(|| thread::available_parallelism().ok().map(|n| n.get())).unwrap_or(1).max(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("dhow-guests")
            .on_thread_start(be_quick)
            .max_blocking_threads(FILE_THREADS_MAX)
            .enable_all()
            .build()
            .map_err(failed)?;
        Ok(Engine {
            inner: Arc::new(Inner {
                cache: Arc::new(cache),
                compilers: Semaphore::new(COMPILERS_MAX),
                programs: Mutex::default(),
                containers: Mutex::default(),
                next_id: AtomicU64::new(0),
                places: Places::new(HTTP_INSTANCES_MAX),
                asides: Asides::default(),
                ticker,
                lane: Lane::start(workers, runtime.handle()).map_err(failed)?,
                logs: LogWriter::start().map_err(failed)?,
                handle: runtime.handle().clone(),
                runtime: Mutex::new(Some(runtime)),
            }),
        })
    }

    /// Makes the program in the file `wasm`, whose content has this digest, ready to be started. Compiles it unless
    /// that has been done before.
    pub async fn load(&self, wasm: &Path, digest: &str) -> Result<Program, LoadError> {
        let slot = self.slot(digest);
        let mut program = slot.lock().await;
        if let Some(inner) = program.upgrade() {
            return Ok(Program { inner });
        }
        let (cache, wasm, digest) = (self.inner.cache.clone(), wasm.to_owned(), digest.to_owned());
        let found = {
            let (cache, digest) = (cache.clone(), digest.clone());
            self.blocking(&wasm, move || Ok(cache.find(&digest))).await?
        };
        let linked = match found {
            Some(linked) => linked,
            None => {
                let _turn = self.inner.compilers.acquire().await;
                let path = wasm.clone();
                match cache.compiler().clone() {
                    Compiler::Nowhere => return Err(LoadError::NoCompiler),
                    Compiler::Elsewhere(elsewhere) => self.fetch(&elsewhere, path, digest).await?,
                    _ => self.blocking(&wasm, move || cache.compile(&path, &digest)).await?,
                }
            }
        };
        let inner = Arc::new(linked);
        *program = Arc::downgrade(&inner);
        Ok(Program { inner })
    }

    /// Has a program compiled by somebody else.
    async fn fetch(&self, elsewhere: &Elsewhere, wasm: PathBuf, digest: String) -> Result<Linked, LoadError> {
        let cache = self.inner.cache.clone();
        let path = wasm.clone();
        // What cannot run is refused without asking anybody.
        self.blocking(&wasm, move || compile::read_program(&path).and_then(|bytes| program::inspect(&bytes))).await?;
        let to = cache.unnamed(&digest);
        let settings: Vec<CodeSettings> = cache.codes().iter().map(|code| code.settings()).collect();
        let wanted = Wanted { wasm: wasm.clone(), digest: digest.clone(), settings, to: to.clone() };
        let delivered = elsewhere.fetch(wanted).await.map_err(|error| match error {
            NotDelivered::Refused(detail) => LoadError::Compile { detail },
            NotDelivered::Failed(why) => LoadError::NotDelivered { why },
        })?;
        let family = Family::of_suffix(&delivered.kind).ok_or_else(|| {
            let detail = format!("it is of the kind `{}`, which is not known here", delivered.kind);
            LoadError::Unfit { detail }
        })?;
        self.blocking(&wasm, move || cache.install(&to, &digest, family)).await
    }

    /// The code that was made of programs, by their digests: bytes, and when it was made. Blocks.
    pub fn compiled(&self) -> io::Result<BTreeMap<String, (u64, SystemTime)>> {
        self.inner.cache.list()
    }

    /// Removes the code of a program, unless it is in use.
    pub async fn forget(&self, digest: &str) {
        let slot = self.slot(digest);
        let program = slot.lock().await;
        if program.strong_count() > 0 {
            return;
        }
        let (cache, of) = (self.inner.cache.clone(), digest.to_owned());
        let removed = self.inner.handle.spawn_blocking(move || cache.remove(&of)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::warn!(digest, %error, "compiled code could not be removed");
        }
    }

    /// Starts a container. What goes wrong from here on is its exit.
    pub fn start(&self, program: &Program, spec: ContainerSpec, io: Io, net: PodNet) -> Container {
        container::start(self, program, spec, io, net, None)
    }

    /// Starts a command in a container: it is a container of its own, but what it uses counts as the other's, and the
    /// other's limits hold for both together, as for processes of one cgroup. Those of `spec` are not looked at.
    pub fn exec(&self, within: &Container, program: &Program, spec: ContainerSpec, io: Io, net: PodNet) -> Container {
        container::start(self, program, spec, io, net, Some(within))
    }

    /// Kills all containers and waits for their ends.
    pub async fn shutdown(&self) {
        let containers: Vec<Container> = lock(&self.inner.containers).values().cloned().collect();
        containers.iter().for_each(Container::kill);
        let ended = async {
            for container in &containers {
                container.wait().await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_MAX, ended).await.is_err() {
            tracing::warn!(left = lock(&self.inner.containers).len(), "containers did not end in time");
        }
    }

    fn slot(&self, digest: &str) -> Slot {
        let mut programs = lock(&self.inner.programs);
        programs.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|program| program.strong_count() > 0)
        });
        programs.entry(digest.to_owned()).or_default().clone()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        wasm: &Path,
        work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
    ) -> Result<T, LoadError> {
        let done = self.inner.handle.spawn_blocking(work).await;
        done.unwrap_or_else(|error| {
            let source = io::Error::other(format!("the compiler gave up: {error}"));
            Err(LoadError::Io { path: wasm.to_owned(), source })
        })
    }

    pub(crate) fn register(&self, container: Container) -> u64 {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.containers).insert(id, container);
        id
    }

    pub(crate) fn unregister(&self, id: u64) {
        lock(&self.inner.containers).remove(&id);
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.handle
    }

    pub(crate) fn ticker(&self) -> &Arc<Ticker> {
        &self.inner.ticker
    }

    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.inner.lane
    }

    pub(crate) fn places(&self) -> &Places {
        &self.inner.places
    }

    pub(crate) fn asides(&self) -> &Asides {
        &self.inner.asides
    }

    pub(crate) fn logs(&self) -> &LogWriter {
        &self.inner.logs
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ticker.stop();
        self.lane.stop();
        if let Some(runtime) = lock(&self.runtime).take() {
            // The last handle may be dropped by a task, where waiting for threads is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// How many instances of commands the kernel lets one process have: each takes some six mappings, and a fifth of them
/// is left to everything else. `None` where the limit cannot be read.
pub fn instances_max() -> Option<u32> {
    let mappings: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    u32::try_from(mappings * 4 / 5 / 6).ok()
}
