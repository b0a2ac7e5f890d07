//! Files of both WASIs: how many, how long, how much; and on whose account.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dhow_engine::{Io, Program};
use dhow_runtime_contract::{ContainerSpec, ExitReason};

use crate::rig::{Net, load, output, rig, run, spec, start, until, with_data};

fn with(dir: &Path, args: &[&str]) -> ContainerSpec {
    with_data(dir, false, args)
}

/// The tool of either WASI, and what it calls a file in the directory.
async fn tools() -> [(Program, &'static str); 2] {
    [(load("tool").await, "/data/f"), (load("tool3").await, "f")]
}

#[tokio::test]
async fn a_container_has_so_many_files_open_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "text").unwrap();
    for ((tool, file), error) in tools().await.iter().zip(["OutOfMemory", "ErrorCode::InsufficientMemory"]) {
        let (exit, said) = run(tool, with(dir.path(), &["tool", "open", file]), Net::new().pod(2)).await;
        assert_eq!((exit.code, said), (0, format!("1024 files, then {error}; again: true\n")));
    }
}

#[tokio::test]
async fn what_is_read_and_written_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    for (tool, file) in &tools().await {
        let used = async |args: &[&str]| {
            let container = start(tool, with(dir.path(), args), Net::new().pod(2));
            assert_eq!(container.wait().await.code, 0, "{}", output(&container));
            let used = container.usage();
            (used.fs_reads, used.fs_read_bytes, used.fs_writes, used.fs_written_bytes)
        };
        let long = "x".repeat(100_000);
        let written = used(&["tool", "write", file, &long]).await;
        assert_eq!((written.0, written.1, written.3), (0, 0, 100_000));
        assert!(written.2 >= 1);
        let read = used(&["tool", "read", file]).await;
        assert_eq!((read.1, read.2, read.3), (100_000, 0, 0));
        assert!(read.0 >= 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("f")).unwrap(), long);
        used(&["tool", "append", file, "end"]).await;
        assert!(std::fs::read_to_string(dir.path().join("f")).unwrap().starts_with(&format!("{long}end")));
    }
}

#[tokio::test]
async fn a_pipe_that_never_opens_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = CString::new(dir.path().join("f").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that lives as long as the call.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    let net = Net::new();
    let mut stuck = Vec::new();
    // More than there are threads for the files of all.
    for number in 0..40 {
        let (tool, file) = &tools().await[number % 2];
        let spec = ContainerSpec { foreign_files: true, ..with(dir.path(), &["tool", "read", file]) };
        let container = start(tool, spec, net.pod(u8::try_from(number).unwrap() + 10));
        container.running().await.unwrap();
        until(|| container.usage().cpu_ns > 0).await;
        stuck.push(container);
    }
    let own = tempfile::tempdir().unwrap();
    for (tool, file) in &tools().await {
        assert_eq!(run(tool, with(own.path(), &["tool", "write", file, "text"]), net.pod(2)).await.1, "written\n");
        assert_eq!(run(tool, with(own.path(), &["tool", "read", file]), net.pod(3)).await.1, "text\n");
    }
    for container in stuck {
        container.kill();
        assert_eq!((container.wait().await.code, output(&container)), (137, String::new()));
    }
}

#[tokio::test]
async fn a_command_in_a_container_is_on_its_account() {
    let (tool, net) = (load("tool").await, Net::new());
    let main = ContainerSpec { memory_limit: Some(16 << 20), ..spec(&["tool", "sleep"]) };
    let main = start(&tool, main, net.pod(2));
    main.running().await.unwrap();
    let idle = main.usage();
    let exec = |args: &[&str]| {
        let capture = Io::Capture { max_bytes: 64 * 1024 };
        rig().engine.exec(&main, &tool, spec(args), capture, net.pod(2))
    };
    let sleeping = exec(&["tool", "sleep"]);
    sleeping.running().await.unwrap();
    assert_eq!(main.usage().memory_bytes, 2 * idle.memory_bytes);
    let printing = exec(&["tool", "print", "1000"]);
    assert_eq!(printing.wait().await.code, 0);
    assert!(main.usage().cpu_ns > idle.cpu_ns);
    let hog = exec(&["tool", "hog"]);
    let exit = hog.wait().await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled), "the container's limit holds: {exit:?}");
    sleeping.kill();
    sleeping.wait().await;
    until(|| main.usage().memory_bytes == idle.memory_bytes).await;
    main.kill();
    main.wait().await;
}
