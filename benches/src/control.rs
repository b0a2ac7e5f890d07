//! `dhow server` and `dhow agent` as processes of their own, so that each one's memory is seen by itself. Both are ended
//! by their ids.

use crate::cluster::{binary, root};
use anyhow::{Context as _, bail};
use dhow_client::{Client, Config};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process that said that it is ready.
struct Process {
    child: Child,
    /// What followed `ready: `.
    ready: String,
}

impl Process {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("starting `dhow`")?;
        let out = BufReader::new(child.stdout.take().context("the output is piped")?);
        let mut process = Self { child, ready: String::new() };
        for line in out.lines() {
            if let Some(what) = line.context("reading the process's output")?.strip_prefix("ready: ") {
                what.clone_into(&mut process.ready);
                return Ok(process);
            }
        }
        bail!("the process ended before it was ready")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A control node.
pub(crate) struct Control {
    process: Process,
    dir: PathBuf,
    /// Removes the directory if it was made for this.
    _made: Option<tempfile::TempDir>,
}

impl Control {
    /// Starts one with an empty data directory below `parent`.
    pub(crate) fn start(parent: &Path) -> anyhow::Result<Self> {
        let made = tempfile::tempdir_in(parent).context("making a data directory")?;
        let started = Self::start_in(made.path().to_owned())?;
        Ok(Self { _made: Some(made), ..started })
    }

    /// Starts one on this data directory.
    pub(crate) fn start_in(dir: PathBuf) -> anyhow::Result<Self> {
        let mut command = Command::new(binary()?);
        let process = Process::start(command.args(["server", "--bind", "127.0.0.1:0", "--data-dir"]).arg(&dir))?;
        Ok(Self { process, dir, _made: None })
    }

    pub(crate) fn url(&self) -> &str {
        &self.process.ready
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// An API client with the administrator's certificate.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Config::from_kubeconfig(&self.kubeconfig())?)?)
    }

    /// Runs the command line against the control node and gives what it printed.
    pub(crate) fn dhow(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary()?);
        let output = command.current_dir(root()).env("KUBECONFIG", self.kubeconfig()).args(args).output()?;
        if !output.status.success() {
            bail!("`dhow {}` ended with {}", args.join(" "), output.status);
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("dhow.kubeconfig")
    }
}

/// A node of a control node.
pub(crate) struct Agent {
    process: Process,
    dir: tempfile::TempDir,
}

impl Agent {
    /// Starts one with an empty data directory below `parent`.
    pub(crate) fn start(control: &Control, name: &str, parent: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(parent).context("making a data directory")?;
        let token = control.dhow(&["token", "create"])?;
        let process = Self::process(control, &["--token", &token, "--name", name], dir.path())?;
        Ok(Self { process, dir })
    }

    /// Ends it, does something, and starts it again on its data directory.
    pub(crate) async fn around<T>(
        self,
        control: &Control,
        name: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(Self, T)> {
        let Self { process, dir } = self;
        drop(process);
        let done = work.await?;
        let process = Self::process(control, &["--name", name], dir.path())?;
        Ok((Self { process, dir }, done))
    }

    fn process(control: &Control, args: &[&str], dir: &Path) -> anyhow::Result<Process> {
        let mut command = Command::new(binary()?);
        command.args(["agent", "--server", control.url()]).args(args).arg("--data-dir").arg(dir);
        Process::start(&mut command)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

/// Resident memory of a process, in MB of 1,000,000 bytes.
pub(crate) struct Resident {
    pub(crate) now: f64,
    pub(crate) peak: f64,
    /// Pages that are not a file's. A page of a file counts in `now` as often as it is mapped: the data that all
    /// containers of an image begin with does so once for each of them.
    pub(crate) own: f64,
}

impl Resident {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the process's status")?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a process has memory")?;
            let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
            Ok((kib * 1024) as f64 / 1e6)
        };
        Ok(Self { now: field("VmRSS:")?, peak: field("VmHWM:")?, own: field("RssAnon:")? })
    }
}

impl std::fmt::Display for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} MB, at most {:.0} MB; {:.0} MB without files", self.now, self.peak, self.own)
    }
}

/// Bytes that the files below a directory take on the disk.
pub(crate) fn bytes_below(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("reading `{}`", dir.display()))? {
        let entry = entry?;
        // A file that is gone meanwhile takes nothing.
        let Ok(meta) = entry.metadata() else { continue };
        sum += if meta.is_dir() { bytes_below(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Syncs that a process makes in a while, told by `strace`; `None` where that cannot be run.
pub(crate) fn syncs(pid: u32, during: Duration) -> anyhow::Result<Option<usize>> {
    let calls = tempfile::NamedTempFile::new()?;
    let seconds = during.as_secs().to_string();
    // `timeout` ends it as one would by hand, so that it lets go of the process.
    let traced = Command::new("timeout")
        .args(["-s", "INT", &seconds, "strace", "-f", "-e", "trace=fsync,fdatasync,sync_file_range,msync"])
        .args(["-e", "signal=none", "-p", &pid.to_string(), "-o"])
        .arg(calls.path())
        .stderr(Stdio::null())
        .status();
    match traced {
        // As `timeout` says that it had to end the program.
        Ok(status) if status.code() == Some(124) => {
            let text = fs::read_to_string(calls.path())?;
            Ok(Some(text.lines().filter(|line| line.contains("sync(") && !line.contains("resumed")).count()))
        }
        _ => Ok(None),
    }
}
