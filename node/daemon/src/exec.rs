//! Commands inside of a pod: a program, entered in the pod's sandbox with the same files, network and environment as the
//! container itself, and on its account: what it uses is the container's, whose limits hold for both together.
//!
//! A Wasm image holds one program, so which one a command means is told from its first word: a path to a `.wasm` file
//! that the container sees; else an applet of the toolbox, which every node has; else the container's own program, which
//! gets all the words.

use std::time::Duration;

use dhow_agent::{ContainerRef, StartFault};
use dhow_engine::{Container, Io};
use dhow_runtime_contract::EntryPoint;
use k8s_openapi::api::core::v1::Pod;

use crate::runner::{Shared, container_spec};
use crate::toolbox;
use crate::view::{Located, View};

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
    let command = Command { words: command, io: capture, env: Vec::new() };
    let Started { container, .. } = start(shared, at, pod, command).await?;
    match tokio::time::timeout(timeout, container.0.wait()).await {
        Ok(exit) if exit.code == 0 => Ok(()),
        Ok(exit) => {
            let output = String::from_utf8_lossy(&container.0.captured()).trim_end().to_owned();
            Err(if output.is_empty() { format!("command exited with code {}", exit.code) } else { output })
        }
        Err(_) => Err(format!("command timed out after {}s", timeout.as_secs())),
    }
}

/// A command that runs.
pub(crate) struct Started {
    pub(crate) container: Owned,
    /// Whether it is the toolbox, which hears a terminal's keys as bytes.
    pub(crate) is_toolbox: bool,
}

/// What is to be run, and how.
pub(crate) struct Command {
    pub(crate) words: Vec<String>,
    pub(crate) io: Io,
    /// Variables beside those of the container.
    pub(crate) env: Vec<(String, String)>,
}

/// The program that a command means.
enum Program {
    File(Located),
    Toolbox,
    Own,
}

fn program_of(words: &[String], view: &View) -> Program {
    let Some(word) = words.first() else { return Program::Own };
    match view.locate(word).filter(|_| word.ends_with(".wasm")) {
        Some(file) => Program::File(file),
        None if dhow_toolbox::applet(word).is_some() => Program::Toolbox,
        None => Program::Own,
    }
}

/// Starts a command in a container's sandbox.
pub(crate) async fn start(shared: &Shared, at: &ContainerRef, pod: &Pod, command: Command) -> Result<Started, String> {
    let Command { words, io, env } = command;
    let sandbox = shared.sandboxes.with(&at.uid, |s| {
        let running = s.running.get(&at.container).map(|running| (running.attempt, running.container.clone()));
        (s.net.clone(), s.ip, s.volumes.clone(), s.images.get(&at.container).cloned().zip(running))
    });
    let (net, ip, volumes, found) = sandbox.ok_or("the container is gone")?;
    let (own, (attempt, within)) = found.ok_or("the container is gone")?;
    let fault = |fault: StartFault| match fault {
        StartFault::Config(why) | StartFault::Create(why) | StartFault::Run(why) => why,
    };
    let (mut spec, view) = container_spec(shared, pod, at, attempt, ip, &volumes).await.map_err(fault)?;
    let which = program_of(&words, &view);
    let is_toolbox =
        matches!(which, Program::Toolbox) || (matches!(which, Program::Own) && toolbox::runs_in(pod, &at.container));
    let image = match which {
        Program::File(file) => shared.images.in_container(file).await?,
        Program::Toolbox => shared.images.toolbox().await?,
        Program::Own => own,
    };
    let program = shared.images.program(&image).await.map_err(fault)?;
    if program.entry() != EntryPoint::Command {
        return Err("the program has no command to run: it only answers HTTP requests".to_owned());
    }
    // A volume that is mounted there, or above, is the pod's.
    let state = format!("{}/{}", dhow_toolbox::STATE_DIR, dhow_toolbox::STATE_FILE);
    if is_toolbox && matches!(io, Io::Streams { .. }) && view.locate(&state).is_none() {
        spec.mounts.extend(toolbox::tell(shared, at, attempt).await);
    }
    let missing = env.into_iter().filter(|(name, _)| !spec.env.iter().any(|(given, _)| given == name));
    let missing: Vec<_> = missing.collect();
    spec.env.extend(missing);
    spec.args = words;
    spec.name = format!("{}-exec", at.container);
    let container = Owned(shared.engine.exec(&within, &program, spec, io, net));
    Ok(Started { container, is_toolbox })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_runtime_contract::Mount;

    #[test]
    fn the_first_word_says_which_program_is_meant() {
        let mount = Mount { host: "/host".into(), guest: "/data".to_owned(), read_only: false, volume: None };
        let view = View { mounts: vec![mount], ..View::default() };
        for (line, expected) in [
            ("/data/x.wasm a", "file"),
            ("/nowhere/x.wasm", "own"),
            ("/data/sh", "own"),
            ("sh -c x", "toolbox"),
            ("/bin/ls", "toolbox"),
            ("tool env", "own"),
            ("", "own"),
        ] {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let found = match program_of(&words, &view) {
                Program::File(_) => "file",
                Program::Toolbox => "toolbox",
                Program::Own => "own",
            };
            assert_eq!(found, expected, "{line}");
        }
    }
}
