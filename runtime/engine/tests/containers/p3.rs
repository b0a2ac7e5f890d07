//! Programs of WASI 0.3.

use std::time::Duration;

use dhow_engine::LoadError;
use dhow_runtime_contract::{EntryPoint, ExitReason};

use crate::rig::{Net, idle, load, rig, run, serve, spec, start, with_data};

#[tokio::test]
async fn commands_of_0_3_end_as_those_of_0_2_do() {
    let tool = load("tool3").await;
    assert_eq!(tool.entry(), EntryPoint::Command);
    for (args, code, reason, said) in [
        (vec!["tool", "env"], 0, ExitReason::Completed, "arg env\nenv NAME=value\n"),
        (vec!["tool", "fail"], 1, ExitReason::Error, ""),
        (vec!["tool", "exit", "3"], 3, ExitReason::Error, ""),
        (vec!["tool", "panic"], 134, ExitReason::Error, "as I was told"),
        (vec!["tool", "shout"], 0, ExitReason::Completed, ""),
    ] {
        let (exit, output) = run(&tool, spec(&args), Net::new().pod(2)).await;
        assert_eq!((exit.code, exit.reason), (code, reason), "{args:?}: {exit:?}");
        assert!(output.contains(said), "{args:?}: {output}");
    }
    let server = serve(&tool, &["tool", "echo", "7000"], Net::new().pod(2)).await;
    server.kill();
    assert_eq!(server.wait().await.code, 137);
}

#[tokio::test]
async fn files_of_0_3_are_those_of_the_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let tool = load("tool3").await;
    let said =
        async |read_only, args: &[&str]| run(&tool, with_data(dir.path(), read_only, args), Net::new().pod(2)).await.1;
    assert_eq!(said(false, &["tool", "write", "out", "text"]).await, "written\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "text");
    assert_eq!(said(true, &["tool", "read", "out"]).await, "text\n");
    assert!(said(true, &["tool", "write", "no", "text"]).await.starts_with("error: "));
    assert!(said(true, &["tool", "read", "../out"]).await.starts_with("error: "));
    assert!(!dir.path().join("no").exists());
}

#[tokio::test]
async fn http_programs_of_0_3_answer_from_a_fresh_instance_each_time() {
    let net = Net::new();
    let handler = load("http3").await;
    assert_eq!(handler.entry(), EntryPoint::Http);
    let container = start(&handler, spec(&[]), net.pod(2));
    container.running().await.unwrap();
    let at = "10.64.0.2:8080";
    let failed = "the program failed; see its log\n";
    for (path, body, status, answer) in [
        ("/", "", 200, "hello\n"),
        ("/count", "", 200, "1"),
        ("/count", "", 200, "1"),
        ("/upper", "some text", 200, "SOME TEXT"),
        ("/panic", "", 500, failed),
        ("/refuse", "", 500, "the program answered with an error; see its log\n"),
        ("/fetch?10.64.0.2:8080/count", "", 200, "200 1"),
        ("/fetch?10.64.0.2:1/", "", 200, "ErrorCode::ConnectionRefused"),
        ("/", "", 200, "hello\n"),
    ] {
        assert_eq!(net.request(at, path, body).await, (status, answer.to_owned()), "{path}");
    }
    idle(&container).await;
    container.stop(Duration::from_secs(10));
    let exit = container.wait().await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed), "{exit:?}");
}

#[tokio::test]
async fn what_0_3_does_not_have_is_named() {
    let text = r#"(component (import "wasi:cli/nothing@0.3.0" (instance)) (instance $i)
        (export "wasi:cli/run@0.3.0" (instance $i)))"#;
    let Err(LoadError::UnknownImport { names }) = rig().load_wat(text).await else {
        panic!("an unknown import was accepted")
    };
    assert_eq!(names, ["wasi:cli/nothing@0.3.0"]);
    // A run of another type than 0.3 has.
    let text = r#"(component (instance $i) (export "wasi:cli/run@0.3.0" (instance $i)))"#;
    assert!(matches!(rig().load_wat(text).await, Err(LoadError::NoEntryPoint)));
}
