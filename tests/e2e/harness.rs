//! Starts the built `dhow` as a process, talks to it, and ends it by its id.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before the test fails. Generous: the machine may be busy, and nothing waits for it
/// in a good run.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// No Pod has to leave because somebody else has filled the disk of the machine that runs the tests.
pub const ON_FULL_DISKS: [&str; 2] = ["--eviction-hard", "memory.available<1Mi"];

/// A running `dhow up`.
pub struct Cluster {
    process: Child,
    data: PathBuf,
}

impl Cluster {
    /// Starts a cluster in `data` and waits until it says that it is ready.
    pub fn start(data: &Path, more: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_dhow"))
            .args(["up", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .args(ON_FULL_DISKS)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let cluster = Self { process, data: data.to_owned() };
        let mut said = Vec::new();
        for line in out.lines() {
            let line = line.unwrap();
            let ready = line.starts_with("ready: https://");
            said.push(line);
            if ready {
                return cluster;
            }
        }
        panic!("the cluster ended before it was ready; it said: {said:?}");
    }

    /// Where the kubeconfig is.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("dhow.kubeconfig")
    }

    /// Sends a signal by process id.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.process.id()).unwrap();
        // SAFETY: kill(2) takes two integers; the process is our child and has not been reaped.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Kills the process without warning.
    pub fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.process.wait().unwrap();
    }

    /// Asks the process to end and returns how it did.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal(libc::SIGTERM);
        self.process.wait().unwrap()
    }

    /// Runs a command against the cluster and returns what it said.
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Output {
        let program = program.as_ref();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        Command::new(program)
            .current_dir(root)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", &self.data)
            .args(args)
            .output()
            .unwrap()
    }

    /// As [`Cluster::run`], and it must succeed; returns its standard output.
    #[track_caller]
    pub fn ok(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
        let output = self.run(program, args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?} failed: {}\n{out}\n{err}", output.status);
        out
    }

    /// As [`Cluster::run`], and it must fail; returns its standard error.
    #[track_caller]
    #[allow(dead_code, reason = "not every test that shares this file refuses something")]
    pub fn refused(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
        let output = self.run(program, args);
        assert!(!output.status.success(), "{args:?} succeeded: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Runs our own client.
    #[track_caller]
    pub fn dhow(&self, args: &[&str]) -> String {
        self.ok(env!("CARGO_BIN_EXE_dhow"), args)
    }

    /// Pushes the sample images.
    pub fn push_samples(&self) {
        for (file, image) in [
            ("samples/hello-http/hello-http.wasm", "hello-http:1.0"),
            ("samples/hello-p3/hello-p3.wasm", "hello-p3:1.0"),
            ("samples/counter/counter.wasm", "counter:1.0"),
            ("samples/echo-tcp/echo-tcp.wasm", "echo-tcp:1.0"),
            ("samples/guestbook/guestbook-frontend.wasm", "guestbook-frontend:1.0"),
            ("samples/guestbook/guestbook-store.wasm", "guestbook-store:1.0"),
            ("samples/visits/visits.wasm", "visits:1.0"),
        ] {
            self.dhow(&["push", file, image]);
        }
    }

    /// Writes a manifest of the samples with its fixed node ports left out, so that tests do not share ports.
    pub fn sample(&self, path: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = std::fs::read_to_string(root.join(path)).unwrap();
        let text: String =
            text.lines().filter(|line| !line.contains("nodePort:")).map(|line| format!("{line}\n")).collect();
        self.manifest(&path.replace('/', "-"), &text)
    }

    /// Writes a manifest file and returns its path.
    pub fn manifest(&self, name: &str, text: &str) -> String {
        self.file(name, text.as_bytes())
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let file = self.data.join(name);
        std::fs::write(&file, bytes).unwrap();
        file.display().to_string()
    }

    /// The node port that a service got.
    pub fn node_port(&self, service: &str) -> u16 {
        let json: serde_json::Value =
            serde_json::from_str(&self.dhow(&["get", "service", service, "-o", "json"])).unwrap();
        u16::try_from(json["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill, and nothing to reap.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Repeats `attempt` until it gives something; what it says last is the failure.
#[track_caller]
pub fn eventually<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > PATIENCE => panic!("did not happen within {PATIENCE:?}: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The body of an HTTP GET on a loopback port, once it answers 200.
#[track_caller]
pub fn http_get(port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    eventually(|| {
        let answer = converse(port, request.as_bytes(), AfterSending::Listen)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => Err(answer),
        }
    })
}

/// Sends bytes to a loopback port, closes the sending side, and reads until the end.
pub fn exchange(port: u16, bytes: &[u8]) -> Result<String, String> {
    converse(port, bytes, AfterSending::Close)
}

/// Sends bytes to a loopback port and reads until the end, as a client of HTTP does.
#[allow(dead_code, reason = "some of the tests use it")]
pub fn listen_after(port: u16, bytes: &[u8]) -> Result<String, String> {
    converse(port, bytes, AfterSending::Listen)
}

/// What becomes of the sending side. An HTTP server takes its end for a client that has gone, and ends the guest.
enum AfterSending {
    Close,
    Listen,
}

fn converse(port: u16, bytes: &[u8], then: AfterSending) -> Result<String, String> {
    let work = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(bytes)?;
        if matches!(then, AfterSending::Close) {
            stream.shutdown(std::net::Shutdown::Write)?;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    work().map(|answer| text(&answer)).map_err(|err| err.to_string())
}
