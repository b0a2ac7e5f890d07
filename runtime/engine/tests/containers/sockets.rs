//! Sockets of both WASIs, over the Pod's network.

use dhow_mesh::Update;
use serde_json::json;

use crate::rig::{Net, load, run, serve, spec};

#[tokio::test]
async fn guests_of_both_wasis_talk_over_the_pod_network() {
    let net = Net::new();
    let (old, new) = (load("tool").await, load("tool3").await);
    let server = serve(&new, &["tool", "echo", "7000"], net.pod(2)).await;
    let pod = net.pod(3);
    for (program, args, answer) in [
        (&new, vec!["tool", "call", "10.64.0.2:7000", "hello"], "hello\n"),
        (&old, vec!["tool", "finish", "10.64.0.2:7000", "hello"], "hello\n"),
        (&new, vec!["tool", "call", "10.64.0.2:7001", "hello"], "error: ErrorCode::ConnectionRefused\n"),
        // The host's own neighbourhood is no place for a guest.
        (&new, vec!["tool", "call", "169.254.169.254:80", "hello"], "error: ErrorCode::AccessDenied\n"),
        (&old, vec!["tool", "call", "169.254.169.254:80", "hello"], "error: PermissionDenied\n"),
        (&new, vec!["tool", "udp", "10.64.0.3:5000"], "ping\n"),
        (&new, vec!["tool", "resolve", "10.64.0.9"], "10.64.0.9\n"),
    ] {
        assert_eq!(run(program, spec(&args), pod.clone()).await.1, answer, "{args:?}");
    }
    server.kill();
}

#[tokio::test]
async fn names_of_services_are_looked_up() {
    let net = Net::new();
    let meta = json!({"name": "web", "namespace": "default"});
    let service = json!({"metadata": meta, "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}});
    net.switch.apply(Update::service(&service).unwrap());
    for (program, unknown) in [("tool", "error: "), ("tool3", "error: ErrorCode::NameUnresolvable\n")] {
        let program = load(program).await;
        let pod = net.pod(2);
        for name in ["web", "web.default", "web.default.svc.cluster.local"] {
            let (_, said) = run(&program, spec(&["tool", "resolve", name]), pod.clone()).await;
            assert_eq!(said, "10.43.0.7\n", "{name}");
        }
        let nobody = spec(&["tool", "resolve", "nobody.default.svc.cluster.local"]);
        let (_, said) = run(&program, nobody, pod).await;
        assert!(said.starts_with(unknown), "{said}");
    }
}

#[tokio::test]
async fn one_direction_of_a_connection_ends_before_the_other() {
    let net = Net::new();
    let (old, new) = (load("tool").await, load("tool3").await);
    for (client, action) in [(&old, "finish"), (&new, "call")] {
        let server = serve(&old, &["tool", "collect", "7000"], net.pod(2)).await;
        let (_, said) = run(client, spec(&["tool", action, "10.64.0.2:7000", "some text"]), net.pod(3)).await;
        assert_eq!(said, "9 bytes, the last of them Some('t')\n");
        assert_eq!(server.wait().await.code, 0);
    }
}

#[tokio::test]
async fn who_does_not_read_holds_up_who_writes() {
    let net = Net::new();
    let tool = load("tool").await;
    let server = serve(&tool, &["tool", "stall", "7000"], net.pod(2)).await;
    let (exit, said) = run(&tool, spec(&["tool", "flood", "10.64.0.2:7000"]), net.pod(3)).await;
    assert_eq!(exit.code, 0, "{said}");
    let sent: usize = said.trim().parse().unwrap();
    assert!((4096..=1 << 20).contains(&sent), "{sent} bytes lie between the two");
    server.kill();
}
