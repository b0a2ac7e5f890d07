//! What a container may import beside WASI: configuration, logging, stores, and its Pod.

use std::path::Path;
use std::time::Duration;

use dhow_runtime_contract::{ContainerSpec, ExitReason, Mount};

use crate::rig::{Net, load, output, run, serve, spec};

/// A container that mounts `volume` of the host's `root` and keeps its own files in `own`.
fn with(root: &Path, volume: &str, read_only: bool, args: &[&str]) -> ContainerSpec {
    let (host, guest) = (root.join(volume), format!("/{volume}"));
    std::fs::create_dir_all(&host).unwrap();
    let mounts = vec![Mount { host, guest, read_only, volume: Some(volume.to_owned()) }];
    ContainerSpec { mounts, stores: Some(root.join("own")), ..spec(args) }
}

async fn said(spec: ContainerSpec) -> String {
    let (exit, output) = run(&load("stores").await, spec, Net::new().pod(2)).await;
    assert_eq!(exit.code, 0, "{output}");
    output
}

#[tokio::test]
async fn configuration_is_the_environment_and_messages_are_lines_of_the_log() {
    assert_eq!(said(spec(&["x", "config", "NAME"])).await, "Ok(Some(\"value\")) of 1\n");
    assert_eq!(said(spec(&["x", "config", "OTHER"])).await, "Ok(None) of 1\n");
    assert_eq!(said(spec(&["x", "log", "shop", "one\ntwo"])).await, "WARN  shop: one\\ntwo\n");
}

#[tokio::test]
async fn a_bucket_is_a_volume() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    assert_eq!(said(with(root, "data", false, &["x", "set", "data", "a/b", "text"])).await, "Ok(())\n");
    assert_eq!(std::fs::read_to_string(root.join("data/.dhow/keyvalue/a%2fb")).unwrap(), "text");
    assert_eq!(said(with(root, "data", true, &["x", "get", "data", "a/b"])).await, "Some(\"text\")\n");
    assert_eq!(said(with(root, "data", true, &["x", "set", "data", "a", "b"])).await, "Err(Error::AccessDenied)\n");
    assert_eq!(said(with(root, "data", false, &["x", "get", "other", "a"])).await, "Error::NoSuchStore\n");
    // The default one is the container's own, unless there is a volume of that name.
    assert_eq!(said(with(root, "data", false, &["x", "set", "default", "a", "own"])).await, "Ok(())\n");
    assert_eq!(said(with(root, "default", false, &["x", "get", "default", "a"])).await, "None\n");
    assert_eq!(said(spec(&["x", "get", "default", "a"])).await, "Error::NoSuchStore\n");
}

#[tokio::test]
async fn both_drafts_of_the_key_value_store_do_what_they_say() {
    let root = tempfile::tempdir().unwrap();
    let new = said(with(root.path(), "data", false, &["x", "store", "data"])).await;
    let expected = [
        "1000 and 1 keys, then None",
        "Ok([(\"key/0000\", Some([1])), (\"key/0001\", None)])",
        "(Ok(5), Ok(3))",
        "true",
        "lost to Ok(Some(Ok(\"10\")))",
        "true",
        "Ok(false), [\"n\"]",
    ];
    assert_eq!(new.lines().collect::<Vec<_>>(), expected);
    let old = said(with(root.path(), "old", false, &["x", "store-draft", "old"])).await;
    assert_eq!(old.lines().collect::<Vec<_>>(), ["Ok([Some((\"a\", [49])), None])", "Ok(42)", "[\"a\"] None"]);
}

#[tokio::test]
async fn objects_are_there_once_they_are_finished() {
    let root = tempfile::tempdir().unwrap();
    for (name, there) in [("data", true), ("of/its own", false)] {
        let output = said(with(root.path(), "data", false, &["x", "blobs", name])).await;
        let first = format!("Ok({there})");
        let expected = [
            first.as_str(),
            "before: Ok(false)",
            "after: Ok(true), Ok(200003)",
            "4 Ok([7, 101, 110, 100])",
            "200003 bytes",
            "Ok(([\"c\", \"d\"], true))",
            "Ok(false) true",
            "Ok(200003)",
        ];
        assert_eq!(output.lines().collect::<Vec<_>>(), expected, "{name}");
    }
    let nothing = said(with(root.path(), "data", true, &["x", "blob", "data", "nothing"])).await;
    assert_eq!(nothing, "Err(\"there is no object `nothing` in `data`\")\n");
}

#[tokio::test]
async fn a_program_learns_who_it_is() {
    let output = said(spec(&["x", "whoami"])).await;
    for part in ["name: \"pod-2\"", "node: \"n1\"", "ip: \"10.64.0.2\"", "container: \"main\"", "(\"app\", \"test\")"] {
        assert!(output.contains(part), "{part} in {output}");
    }
}

#[tokio::test]
async fn who_wants_to_hear_of_its_end_has_the_grace_period() {
    let (net, program) = (Net::new(), load("stores").await);
    for (code, reason) in [("0", ExitReason::Completed), ("1", ExitReason::Error)] {
        let container = serve(&program, &["x", "wait", code], net.pod(2)).await;
        container.stop(Duration::from_secs(3600));
        let exit = container.wait().await;
        assert_eq!((exit.code.to_string().as_str(), exit.reason), (code, reason), "{exit:?}");
        assert_eq!(output(&container), "waiting\nasked: true, 3600 s left\n");
    }
    // One that takes its time is ended when there is none left, or when nobody waits any longer.
    let slow = serve(&program, &["x", "ignore"], net.pod(3)).await;
    slow.stop(Duration::from_secs(3600));
    slow.stop(Duration::from_millis(1));
    let exit = slow.wait().await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Killed));
    let killed = serve(&program, &["x", "ignore"], net.pod(4)).await;
    killed.stop(Duration::from_secs(3600));
    killed.kill();
    assert_eq!(killed.wait().await.code, 137);
}
