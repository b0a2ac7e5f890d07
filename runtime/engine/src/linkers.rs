//! The Wasmtime engines of a node, each with what its programs may import.
//!
//! Commands are allocated on demand, so that their memory comes back; HTTP programs from a pool, because an instance is
//! made for each request. What WASI 0.3 needs costs each instantiation 15 %, so programs of 0.2 have engines without
//! it, and those of 0.3 have theirs once the first such program comes; so do those that run another kind of code than the
//! node's own.

use std::sync::{Arc, OnceLock};

use dhow_host::{Guest, Wasi};
use dhow_runtime_contract::EntryPoint;
use wasmtime::component::Linker;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use crate::target::{Code, Target};
use crate::ticker::Ticker;
use crate::trap::FRAMES_FOUND_MAX;

/// Instances that all HTTP containers have at a time; further requests wait.
pub(crate) const HTTP_INSTANCES_MAX: u32 = 512;
/// A component is several core instances (the program and its adapters), with a table each.
const CORE_INSTANCES_MAX: u32 = 4 * HTTP_INSTANCES_MAX;
/// Most components have one memory, composed ones several. Each slot reserves 4 GiB of address space: 2.5 TiB of the
/// 128 TiB that a process has, so that some twenty agents fit into one, even with programs of both WASIs.
const MEMORIES_MAX: u32 = HTTP_INSTANCES_MAX + HTTP_INSTANCES_MAX / 4;
/// Memory that a slot keeps for its next instance: zeroing it is far cheaper than giving it back and faulting it in
/// again (1.6 to 2.5 times the requests a second). Idle slots cost at most 100 × this.
const KEEP_RESIDENT_BYTES: usize = 256 * 1024;
const TABLE_KEEP_RESIDENT_BYTES: usize = 4 * 1024;

/// What decides which engine a program is compiled for and runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) entry: EntryPoint,
    pub(crate) wasi: Wasi,
    pub(crate) code: Code,
}

impl Family {
    /// All there are.
    pub(crate) const ALL: [Family; 8] = [
        Family { entry: EntryPoint::Command, wasi: Wasi::P2, code: Code::Native },
        Family { entry: EntryPoint::Http, wasi: Wasi::P2, code: Code::Native },
        Family { entry: EntryPoint::Command, wasi: Wasi::P3, code: Code::Native },
        Family { entry: EntryPoint::Http, wasi: Wasi::P3, code: Code::Native },
        Family { entry: EntryPoint::Command, wasi: Wasi::P2, code: Code::Pulley },
        Family { entry: EntryPoint::Http, wasi: Wasi::P2, code: Code::Pulley },
        Family { entry: EntryPoint::Command, wasi: Wasi::P3, code: Code::Pulley },
        Family { entry: EntryPoint::Http, wasi: Wasi::P3, code: Code::Pulley },
    ];

    /// What the names of its compiled files end in.
    pub(crate) fn suffix(self) -> &'static str {
        match (self.entry, self.wasi, self.code) {
            (EntryPoint::Command, Wasi::P2, Code::Native) => "command.cwasm",
            (EntryPoint::Http, Wasi::P2, Code::Native) => "http.cwasm",
            (EntryPoint::Command, Wasi::P3, Code::Native) => "command3.cwasm",
            (EntryPoint::Http, Wasi::P3, Code::Native) => "http3.cwasm",
            (EntryPoint::Command, Wasi::P2, Code::Pulley) => "command-pulley.cwasm",
            (EntryPoint::Http, Wasi::P2, Code::Pulley) => "http-pulley.cwasm",
            (EntryPoint::Command, Wasi::P3, Code::Pulley) => "command3-pulley.cwasm",
            (EntryPoint::Http, Wasi::P3, Code::Pulley) => "http3-pulley.cwasm",
        }
    }

    pub(crate) fn of_suffix(suffix: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.suffix() == suffix)
    }
}

/// The linkers, and with each its engine.
pub(crate) struct Linkers {
    /// In the order of [`Family::ALL`].
    made: [OnceLock<Made>; Family::ALL.len()],
    ticker: Arc<Ticker>,
    code: Code,
}

/// A linker, or why it could not be made.
type Made = Result<Linker<Guest>, String>;

impl Linkers {
    /// Makes those of WASI 0.2 for this kind of code.
    pub(crate) fn new(ticker: Arc<Ticker>, code: Code) -> wasmtime::Result<Self> {
        let linkers = Self { made: Default::default(), ticker, code };
        for (family, made) in Family::ALL.into_iter().zip(&linkers.made) {
            if !linkers.is_late(family) {
                let linker = make(family, &linkers.ticker)?;
                made.get_or_init(|| Ok(linker));
            }
        }
        Ok(linkers)
    }

    /// Whether it is made only when it is needed.
    pub(crate) fn is_late(&self, family: Family) -> bool {
        family.wasi != Wasi::P2 || family.code != self.code
    }

    /// The linker of this family. Takes some milliseconds the first time, for those that are late.
    pub(crate) fn get(&self, family: Family) -> Result<&Linker<Guest>, String> {
        let mut all = Family::ALL.into_iter().zip(&self.made);
        let (_, made) = all.find(|(one, _)| *one == family).expect("all families are listed");
        made.get_or_init(|| make(family, &self.ticker).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// What decides how the code of a program looks.
pub(crate) fn settings(wasi: Wasi, target: &Target) -> wasmtime::Result<wasmtime::Config> {
    let mut config = wasmtime::Config::new();
    if let Some(triple) = target.triple() {
        config.target(&triple)?;
    }
    config.epoch_interruption(true);
    config.concurrency_support(wasi == Wasi::P3);
    // What a dump needs is noted when a guest traps; it is written only for those that want it.
    config.coredump_on_trap(true);
    config.wasm_backtrace_max_frames(Some(FRAMES_FOUND_MAX));
    // A backtrace then has the lines of a program that was built with debug information.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    Ok(config)
}

fn make(family: Family, ticker: &Ticker) -> wasmtime::Result<Linker<Guest>> {
    let mut config = settings(family.wasi, &Target::here(family.code))?;
    if family.entry == EntryPoint::Http {
        config.allocation_strategy(pool());
    }
    let engine = Engine::new(&config)?;
    ticker.add(engine.weak());
    let mut linker = Linker::new(&engine);
    dhow_host::add_to_linker(&mut linker)?;
    if family.wasi == Wasi::P3 {
        dhow_host::add_p3_to_linker(&mut linker)?;
    }
    Ok(linker)
}

fn pool() -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(HTTP_INSTANCES_MAX)
        .total_stacks(HTTP_INSTANCES_MAX)
        .total_core_instances(CORE_INSTANCES_MAX)
        .total_tables(CORE_INSTANCES_MAX)
        .total_memories(MEMORIES_MAX)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    InstanceAllocationStrategy::Pooling(pool)
}
