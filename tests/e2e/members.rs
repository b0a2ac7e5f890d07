//! Control nodes of three as real processes: killed, stopped, filled up, emptied, restarted and restored, under load.

use crate::harness::{ON_FULL_DISKS, eventually, http_get, text};
use dhow_client::{Client, Config};
use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A `dhow server` or `dhow agent` process, ended by its id.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it and waits for its `ready:` line; gives what follows there.
    pub(crate) fn start(command: &mut Command) -> (Self, String) {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let process = Self(process);
        let mut said = Vec::new();
        for line in out.lines() {
            let line = line.unwrap();
            if let Some(url) = line.strip_prefix("ready: ") {
                return (process, url.to_owned());
            }
            said.push(line);
        }
        panic!("the process ended before it was ready; it said: {said:?}");
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.0.id()).unwrap();
        // SAFETY: kill(2) takes two integers; the process is our child and has not been reaped.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended: then there is nothing to kill, and nothing to reap.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A control node. Its process may be down.
pub(crate) struct Member {
    name: String,
    pub(crate) data: PathBuf,
    pub(crate) url: String,
    process: Option<Process>,
}

impl Member {
    /// The first of a cluster.
    pub(crate) fn first(dir: &Path) -> Self {
        Self::launch(dir, "a", &[])
    }

    /// Joins the cluster of `other`.
    fn join(dir: &Path, name: &str, other: &Member, more: &[&str]) -> Self {
        let token = other.dhow(&["token", "create"]);
        let mut args = vec!["--join", &other.url, "--token", token.trim()];
        args.extend(more);
        Self::launch(dir, name, &args)
    }

    fn launch(dir: &Path, name: &str, more: &[&str]) -> Self {
        let mut member = Self { name: name.to_owned(), data: dir.join(name), url: String::new(), process: None };
        let (process, url) = Process::start(member.command("127.0.0.1:0").args(["--name", name]).args(more));
        (member.process, member.url) = (Some(process), url);
        member
    }

    fn command(&self, bind: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhow"));
        command.args(["server", "--bind", bind, "--data-dir"]).arg(&self.data);
        command
    }

    /// Starts it again where it was.
    fn restart(&mut self) {
        let (process, url) = Process::start(&mut self.command(self.bind()));
        assert_eq!(url, self.url);
        self.process = Some(process);
    }

    fn kill(&mut self) {
        self.process = None;
    }

    fn signal(&self, signal: i32) {
        self.process.as_ref().unwrap().signal(signal);
    }

    fn bind(&self) -> &str {
        self.url.trim_start_matches("https://")
    }

    /// Starts it again, waits until it ends by itself, and gives what it said; it must not pass for a success.
    fn fail(&self) -> String {
        let log = self.data.with_extension("log");
        let mut command = self.command(self.bind());
        let spawned = command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn();
        let mut process = Process(spawned.unwrap());
        let status = eventually(|| process.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(!status.success(), "{said}");
        said
    }

    /// Runs the one command that an error names.
    fn rebuild(&mut self, said: &str) {
        let command = said.split_once("with `dhow ").and_then(|(_, rest)| rest.split_once('`'));
        let (command, _) = command.unwrap_or_else(|| panic!("it names no command: {said}"));
        let (process, url) = Process::start(Command::new(env!("CARGO_BIN_EXE_dhow")).args(command.split(' ')));
        assert_eq!(url, self.url);
        self.process = Some(process);
    }

    /// Asks it to end, and waits.
    fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal(libc::SIGTERM);
        assert!(process.0.wait().unwrap().success());
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_dhow"))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
            .env("KUBECONFIG", self.data.join("dhow.kubeconfig"))
            .args(args)
            .output()
            .unwrap()
    }

    /// Runs our own client by this member's kubeconfig.
    pub(crate) fn try_dhow(&self, args: &[&str]) -> Result<String, String> {
        let output = self.run(args);
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    pub(crate) fn dhow(&self, args: &[&str]) -> String {
        self.try_dhow(args).unwrap_or_else(|err| panic!("{args:?}: {err}"))
    }

    /// The line of `dhow member list` about a member.
    fn about(&self, name: &str) -> Result<String, String> {
        let list = self.try_dhow(&["member", "list"])?;
        let found = list.lines().find(|line| line.split_whitespace().any(|word| word == name));
        found.map(str::to_owned).ok_or(list)
    }
}

/// Three control nodes, all voting.
fn three(dir: &Path) -> [Member; 3] {
    let a = Member::first(dir);
    let b = Member::join(dir, "b", &a, &[]);
    let c = Member::join(dir, "c", &a, &[]);
    let members = [a, b, c];
    all_vote(&members);
    members
}

#[track_caller]
fn all_vote(members: &[Member; 3]) {
    for member in members {
        eventually(|| {
            let line = members[0].about(&member.name)?;
            if line.contains("leader") || line.contains("voter") { Ok(()) } else { Err(line) }
        });
    }
}

/// Which member leads, by what `asked` says.
#[track_caller]
fn leader(members: &[Member; 3], asked: usize) -> usize {
    eventually(|| {
        let list = members[asked].try_dhow(&["member", "list"])?;
        let line = list.lines().find(|line| line.contains("leader")).ok_or(list.clone())?;
        members.iter().position(|member| line.contains(&member.url)).ok_or(list.clone())
    })
}

/// Writes ConfigMaps one after the other, through whichever member answers, until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    writer: std::thread::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(member: &Member, tag: &str) -> Self {
        Self::start_of(member, tag, 1)
    }

    /// Objects near the largest size.
    fn start_large(member: &Member, tag: &str) -> Self {
        Self::start_of(member, tag, 1 << 20)
    }

    fn start_of(member: &Member, tag: &str, bytes: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, kubeconfig, tag) = (stop.clone(), member.data.join("dhow.kubeconfig"), tag.to_owned());
        let writer = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let client = Client::new(Config::from_kubeconfig(&kubeconfig).unwrap()).unwrap();
            let value = "v".repeat(bytes);
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let name = format!("{tag}-{number}");
                let object = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value},
                });
                let created = client.create("/api/v1/namespaces/default/configmaps", &object);
                if runtime.block_on(created).is_ok() {
                    acknowledged.push(name);
                }
            }
            acknowledged
        });
        Self { stop, writer }
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.writer.join().unwrap()
    }
}

/// A write that goes through, sooner or later.
#[track_caller]
fn writes_go_on(member: &Member, name: &str) {
    let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
    let file = member.data.with_extension(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    eventually(|| member.try_dhow(&["apply", "-f", file.to_str().unwrap()]));
}

#[track_caller]
fn all_there(member: &Member, names: &[String]) {
    let listed = eventually(|| member.try_dhow(&["get", "configmaps", "-o", "name"]));
    for name in names {
        assert!(listed.contains(&format!("configmap/{name}\n")), "{name} was acknowledged; {} lacks it", member.name);
    }
}

#[test]
fn three_control_nodes_survive_kills_and_stops_of_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = three(dir.path());
    let agents: Vec<Process> = ["n1", "n2"]
        .iter()
        .map(|name| {
            let token = members[0].dhow(&["token", "create"]);
            let mut command = Command::new(env!("CARGO_BIN_EXE_dhow"));
            command.args(["agent", "--server", &members[0].url, "--token", token.trim(), "--name", name]);
            command.args(ON_FULL_DISKS);
            Process::start(command.arg("--data-dir").arg(dir.path().join(name))).0
        })
        .collect();
    members[1].dhow(&["push", "samples/hello-http/hello-http.wasm", "hello-http:1.0"]);
    members[2].dhow(&["apply", "-f", &plain_sample(dir.path())]);
    members[2].dhow(&["rollout", "status", "deployment/hello-http"]);
    let port = members[0].dhow(&["get", "service", "hello-http", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let port: u16 = port.trim().parse().unwrap();
    assert!(http_get(port, "/").contains("Hello from"));

    let dead = leader(&members, 0);
    let (one, two) = ((dead + 1) % 3, (dead + 2) % 3);
    let load = Load::start(&members[one], "kill");
    writes_go_on(&members[one], "before");
    members[dead].kill();
    writes_go_on(&members[two], "after");
    assert!(http_get(port, "/").contains("Hello from"), "pods do not depend on the control plane");
    let acknowledged = load.end();
    assert!(!acknowledged.is_empty());
    members[dead].restart();
    for member in &members {
        all_there(member, &acknowledged);
    }

    let stopped = leader(&members, one);
    let load = Load::start(&members[(stopped + 1) % 3], "stop");
    members[stopped].signal(libc::SIGSTOP);
    let next = eventually(|| {
        let now = leader(&members, (stopped + 1) % 3);
        if now == stopped { Err("no new leader".to_owned()) } else { Ok(now) }
    });
    writes_go_on(&members[next], "while-stopped");
    members[stopped].signal(libc::SIGCONT);
    assert_ne!(leader(&members, stopped), stopped, "who was stopped took itself for the leader, and said so");
    let acknowledged = load.end();
    for member in &members {
        all_there(member, &acknowledged);
    }
    drop(agents);
}

/// The sample without its fixed node port.
fn plain_sample(dir: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("samples/hello-http/hello-http.yaml")).unwrap();
    let text: String =
        text.lines().filter(|line| !line.contains("nodePort:")).map(|line| format!("{line}\n")).collect();
    let path = dir.join("hello-http.yaml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_rolling_restart_and_a_lost_data_directory_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = three(dir.path());
    let load = Load::start(&members[0], "rolling");
    for (turn, member) in members.iter_mut().enumerate() {
        member.stop();
        member.restart();
        writes_go_on(member, &format!("turn-{turn}"));
    }
    let acknowledged = load.end();
    assert!(!acknowledged.is_empty());
    for member in &members {
        all_there(member, &acknowledged);
    }

    // The walk of the README: a machine is lost with its disk; another takes its place by the command that is printed.
    members[2].kill();
    std::fs::remove_dir_all(&members[2].data).unwrap();
    let command = members[0].dhow(&["member", "add", "c"]);
    let args: Vec<&str> = command.split_whitespace().skip(2).collect();
    assert!(args.starts_with(&["--join", &members[0].url, "--token"]) && args.ends_with(&["--name", "c"]), "{command}");
    members[2] = Member::launch(dir.path(), "c", &args[..4]);
    all_vote(&members);
    all_there(&members[2], &acknowledged);
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

#[test]
fn a_member_that_cannot_be_trusted_names_the_command_that_rebuilds_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = three(dir.path());
    let names = ["one".to_owned(), "two".to_owned(), "three".to_owned()];
    writes_go_on(&members[0], &names[0]);

    // A byte of what it has stored is another one now.
    members[2].stop();
    let store = members[2].data.join("server/store");
    let wal = std::fs::read_dir(store.join("wal")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&wal).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&wal, bytes).unwrap();
    let said = members[2].fail();
    assert!(said.contains("is damaged") && said.contains("this member's data cannot be trusted"), "{said}");
    members[2].rebuild(&said);
    all_vote(&members);
    all_there(&members[2], &names[..1]);
    assert!(members[2].data.join("server/damaged-1/store/wal").exists(), "nothing is deleted");

    // Its disk shows an earlier time, of which nothing in itself is wrong: it ends as soon as it hears of the others.
    members[2].stop();
    let old = dir.path().join("old");
    copy(&store, &old);
    members[2].restart();
    writes_go_on(&members[2], &names[1]);
    all_there(&members[2], &names[..2]);
    members[2].stop();
    std::fs::remove_dir_all(&store).unwrap();
    copy(&old, &store);
    let said = members[2].fail();
    assert!(said.contains("had acknowledged its log up to entry"), "{said}");
    assert!(members[2].fail().contains("had acknowledged its log up to entry"), "and it does not try again");
    members[2].rebuild(&said);
    all_vote(&members);
    writes_go_on(&members[2], &names[2]);
    for member in &members {
        all_there(member, &names);
    }
}

/// A program that says a line and ends.
const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\08\00\00\00\06\00\00\00hello\0a")
    (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))))"#;

/// Certificates of a few seconds: whatever shows one has to show a fresh one in time, or be shut out.
#[test]
fn an_agent_outlives_its_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let server = Member::launch(dir.path(), "a", &["--certificate-seconds", "6"]);
    let token = server.dhow(&["token", "create"]);
    let agent = dir.path().join("n1");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dhow"));
    command.args(["agent", "--server", &server.url, "--token", token.trim(), "--name", "n1", "--allow-file-images"]);
    command.args(ON_FULL_DISKS);
    let (process, _) = Process::start(command.arg("--data-dir").arg(&agent));
    let shown = || std::fs::read_to_string(agent.join("identity/node.crt")).unwrap();
    let first = shown();
    let program = dir.path().join("hello.wasm");
    std::fs::write(&program, wat::parse_str(HELLO).unwrap()).unwrap();
    let image = format!("file://{}", program.display());
    let runs = |name: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: \
             [{{name: c, image: '{image}'}}]}}\n"
        );
        let file = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        eventually(|| server.try_dhow(&["apply", "-f", file.to_str().unwrap()]));
        eventually(|| {
            let phase = server.try_dhow(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
            if phase.trim() == "Succeeded" { Ok(()) } else { Err(phase) }
        });
        let log = eventually(|| server.try_dhow(&["logs", name]));
        assert_eq!(log, "hello\n");
    };
    runs("before");
    let end = dhow_pki::facts_of_pem(&first).unwrap().not_after;
    eventually(|| {
        let now = dhow_types::Time::from_ms(
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64,
        );
        let renewed = shown() != first;
        if renewed && now > end { Ok(()) } else { Err(format!("renewed: {renewed}, until {end}")) }
    });
    runs("after");
    drop(process);
}

#[test]
fn a_backup_brings_a_cluster_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Member::first(dir.path());
    writes_go_on(&first, "kept");
    let file = dir.path().join("backup");
    let backup = file.to_str().unwrap();
    first.dhow(&["backup", backup]);
    writes_go_on(&first, "later");
    first.stop();

    let new = dir.path().join("new");
    let cut = dir.path().join("cut");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 10]).unwrap();
    let restore =
        |file: &Path| first.try_dhow(&["restore", file.to_str().unwrap(), "--data-dir", new.to_str().unwrap()]);
    let refused = restore(&cut).unwrap_err();
    assert!(refused.contains("cut"), "{refused}");
    assert!(!new.exists(), "a backup that is refused changes nothing");
    restore(&file).unwrap();
    let restored = Member::launch(dir.path(), "new", &[]);
    let listed = restored.dhow(&["get", "configmaps", "-o", "name"]);
    assert!(listed.contains("configmap/kept\n") && !listed.contains("configmap/later\n"), "{listed}");
}

/// What must be refused: the arguments of a server that wants to join, and what the refusal names.
#[test]
fn joins_that_cannot_be_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Member::launch(dir.path(), "ours", &[]), Member::launch(dir.path(), "theirs", &[]));
    let token = |of: &Member| of.dhow(&["token", "create"]).trim().to_owned();
    let (good, foreign) = (token(&ours), token(&theirs));
    let wrong = {
        let (head, _) = good.rsplit_once('.').unwrap();
        format!("{head}.0123456789abcdef")
    };
    for (name, token, says) in [
        ("x", &foreign, "another CA"),
        ("x", &wrong, "token"),
        ("ours", &good, "`ours`"),
        ("x", &"nonsense".to_owned(), "token"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_dhow"))
            .args([
                "server",
                "--bind",
                "127.0.0.1:0",
                "--join",
                &ours.url,
                "--token",
                token,
                "--name",
                name,
                "--data-dir",
            ])
            .arg(dir.path().join("refused"))
            .output()
            .unwrap();
        let err = text(&output.stderr);
        assert!(!output.status.success() && err.contains(says), "{says}: {err}");
    }
    let list = ours.dhow(&["member", "list"]);
    assert_eq!(list.lines().filter(|line| line.contains("https://")).count(), 1, "{list}");
}

/// Whether this machine lets us mount a small file system that nobody else sees.
fn can_mount() -> bool {
    let tried = Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_stops_one_member_and_nobody_else() {
    if !can_mount() {
        eprintln!("SKIPPED: no mount namespaces here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("a");
    std::fs::create_dir(&small).unwrap();
    let kubeconfig = dir.path().join("a.kubeconfig");
    let script = r#"mount -t tmpfs -o size=300m none "$1" && exec "$2" server --bind 127.0.0.1:0 --name a --data-dir "$1" --kubeconfig "$3""#;
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh"]).args([
        &small,
        &PathBuf::from(env!("CARGO_BIN_EXE_dhow")),
        &kubeconfig,
    ]);
    let (process, url) = Process::start(&mut command);
    // Our own view of the directory is empty: the file system is mounted for the member alone.
    std::fs::copy(&kubeconfig, small.join("dhow.kubeconfig")).unwrap();
    let inside = PathBuf::from(format!("/proc/{}/root{}", process.0.id(), small.display()));
    let a = Member { name: "a".to_owned(), data: small, url, process: Some(process) };
    let b = Member::join(dir.path(), "b", &a, &[]);
    let c = Member::join(dir.path(), "c", &a, &[]);
    let members = [a, b, c];
    all_vote(&members);

    let filler = inside.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 1 << 16]).is_ok() {}
    drop(file);
    // More than the rest of its log segment holds.
    let load = Load::start_large(&members[1], "full");
    eventually(|| {
        let written = members[2].try_dhow(&["get", "configmaps", "-o", "name"])?;
        if written.matches("configmap/full-").count() > 12 { Ok(()) } else { Err(written) }
    });
    let acknowledged = load.end();
    std::fs::remove_file(filler).unwrap();
    writes_go_on(&members[0], "after");
    for member in &members {
        all_there(member, &acknowledged);
    }
    eventually(|| {
        let line = members[1].about("a")?;
        if line.contains("leader") || line.split_whitespace().any(|word| word == "0") { Ok(()) } else { Err(line) }
    });
}
