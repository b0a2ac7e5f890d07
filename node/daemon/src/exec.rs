//! Commands inside of a pod: the container's own image, entered once more in the pod's sandbox with other arguments. A
//! Wasm image holds one program, so there is no other that a command could name.

use std::time::Duration;

use dhow_agent::{ContainerRef, StartFault};
use dhow_engine::{Container, Io};
use dhow_runtime_contract::EntryPoint;
use k8s_openapi::api::core::v1::Pod;

use crate::runner::{Shared, container_spec};

/// What is kept of the output of a probe's or hook's command for its message.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// A container that ends with its owner.
pub(crate) struct Owned(pub(crate) Container);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Runs a command of a probe or hook; what it says goes into the error. Dropped, it ends the command.
pub(crate) async fn run(
    shared: &Shared,
    at: &ContainerRef,
    pod: &Pod,
    command: Vec<String>,
    timeout: Duration,
) -> Result<(), String> {
    let capture = Io::Capture { max_bytes: OUTPUT_BYTES_MAX };
    let container = Owned(start(shared, at, pod, command, capture).await?);
    match tokio::time::timeout(timeout, container.0.wait()).await {
        Ok(exit) if exit.code == 0 => Ok(()),
        Ok(exit) => {
            let output = String::from_utf8_lossy(&container.0.captured()).trim_end().to_owned();
            Err(if output.is_empty() { format!("command exited with code {}", exit.code) } else { output })
        }
        Err(_) => Err(format!("command timed out after {}s", timeout.as_secs())),
    }
}

/// Starts a command in a container's sandbox. Its first word is a path to a `.wasm` file that the container sees; else
/// the container's own program gets all the words.
pub(crate) async fn start(
    shared: &Shared,
    at: &ContainerRef,
    pod: &Pod,
    command: Vec<String>,
    io: Io,
) -> Result<Container, String> {
    let sandbox = shared.sandboxes.with(&at.uid, |s| {
        let attempt = s.running.get(&at.container).map(|running| running.attempt);
        (s.net.clone(), s.ip, s.volumes.clone(), s.images.get(&at.container).cloned().zip(attempt))
    });
    let (net, ip, volumes, found) = sandbox.ok_or("the container is gone")?;
    let (image, attempt) = found.ok_or("the container is gone")?;
    let fault = |fault: StartFault| match fault {
        StartFault::Config(why) | StartFault::Create(why) | StartFault::Run(why) => why,
    };
    let (mut spec, view) = container_spec(shared, pod, at, attempt, ip, &volumes).await.map_err(fault)?;
    let image = match command.first().filter(|word| word.ends_with(".wasm")).and_then(|word| view.locate(word)) {
        Some(file) => shared.images.in_container(file).await?,
        None => image,
    };
    let program = shared.images.program(&image).await.map_err(fault)?;
    if program.entry() != EntryPoint::Command {
        return Err("the program has no command to run: it only answers HTTP requests".to_owned());
    }
    spec.args = command;
    spec.name = format!("{}-exec", at.container);
    Ok(shared.engine.start(&program, spec, io, net))
}
