//! Agents that compile nothing, and a control node that does it for them: as real processes.

use crate::harness::{ON_FULL_DISKS, eventually};
use crate::members::{Member, Process};
use std::path::Path;
use std::process::Command;

/// An agent whose programs the control node compiles.
fn agent(server: &Member, dir: &Path, name: &str, more: &[&str]) -> Process {
    let token = server.dhow(&["token", "create", "--agent"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dhow"));
    command.args(["agent", "--server", &server.url, "--token", token.trim(), "--name", name]);
    command.args(["--compile", "control-node"]).args(ON_FULL_DISKS).args(more);
    Process::start(command.arg("--data-dir").arg(dir.join(name))).0
}

/// A Deployment on one node, called as the node is.
fn deploy(server: &Member, dir: &Path, node: &str, image: &str) {
    let text = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {node}}}\nspec:\n  selector: {{matchLabels: {{app: \
         {node}}}}}\n  template:\n    metadata: {{labels: {{app: {node}}}}}\n    spec:\n      nodeSelector: \
         {{kubernetes.io/hostname: {node}}}\n      containers: [{{name: c, image: '{image}', args: [echo, '7000']}}]\n"
    );
    let file = dir.join(format!("{node}.yaml"));
    std::fs::write(&file, text).unwrap();
    server.dhow(&["apply", "-f", file.to_str().unwrap()]);
}

/// What the pod of a Deployment waits for.
fn waits_for(server: &Member, app: &str) -> String {
    let path = "jsonpath={.items[0].status.containerStatuses[0].state.waiting.message}";
    server.try_dhow(&["get", "pods", "-l", &format!("app={app}"), "-o", path]).unwrap_or_default()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_control_node_compiles_for_agents_that_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Member::first(dir);
    let _agents = [agent(&server, dir, "native", &[]), agent(&server, dir, "pulley", &["--pulley"])];
    server.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    for (node, kind) in [("native", ".command.cwasm"), ("pulley", ".command-pulley.cwasm")] {
        deploy(&server, dir, node, "tool:1.0");
        server.dhow(&["rollout", "status", &format!("deployment/{node}")]);
        let pod = server.dhow(&["get", "pods", "-l", &format!("app={node}"), "-o", "name"]);
        eventually(|| match server.try_dhow(&["logs", pod.trim()])? {
            said if said == "listening\n" => Ok(()),
            said => Err(said),
        });
        let compiled = names(&dir.join(node).join("compiled"));
        assert!(matches!(compiled.as_slice(), [one] if one.ends_with(kind)), "{compiled:?}");
    }
    let made = server.data.join("server/compiled");
    assert_eq!(names(&made).len(), 2, "one for each target");

    // What the compiler says of a program reaches who deployed it.
    let invalid = dir.join("invalid.wasm");
    let text = r#"(module (memory (export "memory") 1) (func (export "_start") i32.add))"#;
    std::fs::write(&invalid, wat::parse_str(text).unwrap()).unwrap();
    // Not pushed: a push refuses it.
    let _third = agent(&server, dir, "third", &["--allow-file-images"]);
    deploy(&server, dir, "third", &format!("file://{}", invalid.display()));
    eventually(|| match waits_for(&server, "third") {
        why if why.starts_with("compiling the program failed: ") && why.contains("type mismatch") => Ok(()),
        why => Err(why),
    });
    // Code that was changed behind the control node's back is not what the cluster vouches for.
    let tampered = names(&made).into_iter().find(|name| name.contains("~command.cwasm~")).unwrap();
    let mut code = std::fs::read(made.join(&tampered)).unwrap();
    let last = code.last_mut().unwrap();
    *last ^= 1;
    std::fs::write(made.join(&tampered), code).unwrap();
    let _fourth = agent(&server, dir, "fourth", &[]);
    deploy(&server, dir, "fourth", "tool:1.0");
    eventually(|| match waits_for(&server, "fourth") {
        why if why.contains("the code that the control node sent cannot be used: the signature is not") => Ok(()),
        why => Err(why),
    });
    assert_eq!(names(&dir.join("fourth/compiled")), [""; 0]);
}
