//! What `exec` and `cp` share: a command in a container, what it reads and writes, and how it ends.

use crate::kube::{Session, escape};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use dhow_cli_core::session::exit_code;
use dhow_client::{Heard, SessionInput, SessionOutput, resource_path};
use std::io::{Read, Write as _};
use tokio::sync::mpsc;

/// Pieces that wait on their way to or from the command: then whoever makes them waits.
pub(crate) const PIECES_MAX: usize = 16;

/// What is read at a time.
const PIECE_BYTES: usize = 32 << 10;

/// The command ended so, and this process ends likewise.
#[derive(Debug, thiserror::Error)]
#[error("command terminated with exit code {0}")]
pub(crate) struct Terminated(pub(crate) i32);

/// A command, and what it is connected with. Its outputs always are.
pub(crate) struct Command<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) container: Option<&'a str>,
    pub(crate) words: &'a [String],
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

impl Command<'_> {
    /// Starts it.
    pub(crate) async fn start(&self, session: &Session) -> anyhow::Result<(SessionInput, SessionOutput)> {
        let mut query = vec!["stdout=true".to_owned()];
        // A terminal has one screen.
        query.extend((!self.tty).then(|| "stderr=true".to_owned()));
        query.extend(self.stdin.then(|| "stdin=true".to_owned()));
        query.extend(self.tty.then(|| "tty=true".to_owned()));
        query.extend(self.container.map(|name| format!("container={}", escape(name))));
        query.extend(self.words.iter().map(|word| format!("command={}", escape(word))));
        let pod = resource_path("", "v1", "pods", Some(self.namespace), Some(self.pod));
        Ok(session.client.session(&format!("{pod}/exec?{}", query.join("&"))).await?)
    }
}

/// What goes to a command.
pub(crate) enum Typed {
    /// Something to read.
    Bytes(Bytes),
    /// The size of the terminal: columns, then lines.
    Size(u16, u16),
    /// The end of what there is to read.
    End,
}

/// Carries what is typed to a command, and its output to `out` and our standard error, until it ends. Gives its exit code.
pub(crate) async fn carry(
    (mut input, mut output): (SessionInput, SessionOutput),
    mut typed: mpsc::Receiver<Typed>,
    mut out: impl AsyncFnMut(Bytes),
) -> anyhow::Result<i32> {
    let feed = async {
        while let Some(typed) = typed.recv().await {
            let sent = match typed {
                Typed::Bytes(bytes) => input.write(&bytes).await,
                Typed::Size(width, height) => input.resize(width, height).await,
                Typed::End => input.end().await,
            };
            // The other direction tells why.
            if sent.is_err() {
                break;
            }
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    let hear = async {
        while let Some(heard) = output.next().await.context("the session broke off")? {
            match heard {
                Heard::Stdout(bytes) => out(bytes).await,
                // With standard error gone there is nobody left to tell.
                Heard::Stderr(bytes) => drop(std::io::stderr().write_all(&bytes)),
                Heard::Ended(status) => return Ok(exit_code(&status)?),
            }
        }
        bail!("the session was closed before the command's end")
    };
    tokio::select! {
        never = feed => match never {},
        ended = hear => ended,
    }
}

/// Reads until the end, on a thread of its own: one that waits for a person does not keep this process from ending.
pub(crate) fn read_aloud(mut from: impl Read + Send + 'static, to: mpsc::Sender<Typed>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let typed = match from.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Ok(count @ 1..) => Typed::Bytes(Bytes::copy_from_slice(&buffer[..count])),
                Ok(0) | Err(_) => Typed::End,
            };
            let is_end = matches!(typed, Typed::End);
            // Nobody listens any more once the command has ended.
            if to.blocking_send(typed).is_err() || is_end {
                return;
            }
        }
    });
}
