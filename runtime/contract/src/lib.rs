//! What a node agent asks of a container runtime and what comes back: plain data.
//!
//! Invariants: types only. Nothing here does I/O, reads a clock, or names an engine, so that the pure agent can speak
//! about containers and the simulator can play the runtime.

use dhow_types::{Time, Uid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The port that an HTTP container serves when its Pod names none.
pub const HTTP_PORT_DEFAULT: u16 = 8080;

/// One start of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The Pod's `metadata.uid`.
    pub pod_uid: Uid,
    /// The Pod's namespace.
    pub namespace: String,
    /// The Pod's name.
    pub pod: String,
    /// The container's name in the Pod.
    pub name: String,
    /// How many starts came before this one.
    pub attempt: u32,
    /// The full argument list, program name first.
    pub args: Vec<String>,
    /// The environment, in order; of two equal names the later one holds.
    pub env: Vec<(String, String)>,
    /// Host directories that the guest sees.
    pub mounts: Vec<Mount>,
    /// Whether some of these directories are not the node's own but the machine's (`hostPath`), where files may be pipes
    /// or lie on a disk that hangs.
    pub foreign_files: bool,
    /// Directories of the container's own that the guest sees.
    pub scratch: Vec<Scratch>,
    /// `workingDir` of the container, if the Pod names one.
    pub working_dir: Option<String>,
    /// Bytes of linear memory and tables that the container may have.
    pub memory_limit: Option<u64>,
    /// Thousandths of a CPU that the container asks for: its weight when there is not enough for all.
    pub cpu_request_m: Option<u32>,
    /// Thousandths of a CPU that the container may use.
    pub cpu_limit_m: Option<u32>,
    /// TCP ports that an HTTP container serves; empty means [`HTTP_PORT_DEFAULT`].
    pub http_ports: Vec<u16>,
    /// How the instances of an HTTP container are used.
    pub http: HttpServing,
    /// The node's name.
    pub node: String,
    /// The Pod's labels when the container was started.
    pub labels: BTreeMap<String, String>,
    /// Where this start of the container may keep what it stores in no volume; made when it is first needed.
    pub stores: Option<PathBuf>,
    /// Where the memory of an instance that traps is written to, if somebody wants to look at it.
    pub core_dump: Option<PathBuf>,
    /// The Pod's host name.
    pub hostname: String,
    /// Whether a client may attach to the program's standard input, which else is at its end.
    pub stdin: bool,
    /// Whether the program is told that it talks to a terminal.
    pub tty: bool,
}

/// A directory of the host that a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it lies on the host.
    pub host: PathBuf,
    /// The absolute path at which the guest sees it.
    pub guest: String,
    /// Whether writes fail.
    pub read_only: bool,
    /// The Pod's name for the volume, if it is one.
    pub volume: Option<String>,
}

/// How the instances of an HTTP container are used. By default each request gets an instance of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpServing {
    /// Requests that one instance answers before another takes its place.
    pub reuse: u32,
    /// Requests that one instance answers at a time; more than one only in WASI 0.3.
    pub concurrency: u32,
}

impl Default for HttpServing {
    fn default() -> Self {
        Self { reuse: 1, concurrency: 1 }
    }
}

/// A directory that a container has for itself. It is made, with these files, when a guest first asks which directories
/// there are: most never do, and a node runs thousands of containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Where it is to lie on the host.
    pub host: PathBuf,
    /// The absolute path at which the guest sees it.
    pub guest: String,
    /// Names and contents of its files at first.
    pub files: Vec<(String, String)>,
}

/// How a program is entered, told from what it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EntryPoint {
    /// `wasi:cli/run`, or `_start` of an adapted preview 1 module: runs once, to its end.
    Command,
    /// `wasi:http/incoming-handler` (0.2) or `wasi:http/handler` (0.3): the node listens and calls it for each request.
    Http,
}

/// Why a container ended, in the words of a Pod's container status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExitReason {
    /// Ended by itself with code 0.
    Completed,
    /// Ended by itself with another code, or trapped.
    Error,
    /// Was refused memory and could not go on.
    OomKilled,
    /// Was stopped or killed by the node.
    Killed,
    /// Never ran: it could not be instantiated or its port is taken.
    ContainerCannotRun,
}

impl ExitReason {
    /// The `reason` that clients read in `state.terminated`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            // Kubernetes reports a killed container as `Error`; the exit code (137, 143) tells them apart.
            Self::Error | Self::Killed => "Error",
            Self::OomKilled => "OOMKilled",
            Self::ContainerCannotRun => "ContainerCannotRun",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The end of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code: 128 plus a signal's number where Linux would have sent one.
    pub code: i32,
    /// Why it ended.
    pub reason: ExitReason,
    /// What a person should know about it; empty for an ordinary end.
    pub message: String,
    /// When it was started.
    pub started_at: Time,
    /// When it had ended.
    pub finished_at: Time,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry at every start.
    Always,
    /// Only if the node has none under that name.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

/// Where a container's output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The file; rotated ones lie beside it with `.1`, `.2`… appended, 1 the youngest.
    pub path: PathBuf,
    /// The size at which the file is rotated.
    pub max_bytes: u64,
    /// How many files are kept, the current one included.
    pub max_files: u32,
}

/// What a container has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in nanoseconds since its start.
    pub cpu_ns: u64,
    /// Linear memory and tables that it holds now, in bytes.
    pub memory_bytes: u64,
    /// The most that it may hold, if it has a limit.
    pub memory_limit: Option<u64>,
    /// Periods of 100 ms in which a container with a CPU limit ran or was held back.
    pub cpu_periods: u64,
    /// Those of them in which it was held back.
    pub cpu_throttled_periods: u64,
    /// For how long it was held back.
    pub cpu_throttled_ns: u64,
    /// HTTP requests that it has been asked.
    pub http_requests: u64,
    /// Those of them that it did not answer: it failed, took too long, or there was no room for it.
    pub http_failures: u64,
    /// Bytes that it has written to its log.
    pub log_bytes: u64,
    /// Operations that read a file.
    pub fs_reads: u64,
    /// Bytes that it has read from files.
    pub fs_read_bytes: u64,
    /// Operations that wrote to a file.
    pub fs_writes: u64,
    /// Bytes that it has written to files.
    pub fs_written_bytes: u64,
}
