//! Sessions of clients in containers: `exec` starts a command in a pod's sandbox, `attach` joins the program that runs.
//!
//! A terminal's size is told to the program at its start, as `COLUMNS` and `LINES`; no interface of a guest could tell it
//! of another one later.
//!
//! A session is one stream of [`channels`]: what the client types comes in, what the program says goes out, and at the
//! end a `Status` says how it went. It ends with the client: a command that nobody hears is ended too.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use dhow_agent::ContainerRef;
use dhow_engine::{Container, Io};
use dhow_quic::channels::{Channel, read_frame, write_frame};
use dhow_runtime_contract::Exit;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, duplex,
};
use tokio::sync::Mutex;

use crate::exec::{self, Command, Started};
use crate::logs::pairs;
use crate::runner::Shared;
use crate::toolbox;
use crate::tty::{self, Key, Keys, Line};

/// What waits between the client and the program, in each direction.
const PIPE_BYTES: usize = 64 * 1024;
/// How long a client may take to tell the size of its terminal before its command is started without.
const SIZE_TIMEOUT: Duration = Duration::from_millis(200);
/// The exit code of a command that its client interrupted: 128 + SIGINT.
const CODE_INTERRUPTED: i32 = 130;

/// What a client wants of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// From the query of a request.
    pub(crate) fn parse(query: &str) -> Self {
        let mut wanted = Self::default();
        for (key, value) in pairs(query) {
            let flag = matches!(value.as_str(), "true" | "1");
            match key.as_str() {
                "command" => wanted.command.push(value),
                "stdin" => wanted.stdin = flag,
                "stdout" => wanted.stdout = flag,
                "stderr" => wanted.stderr = flag,
                "tty" => wanted.tty = flag,
                _ => {}
            }
        }
        wanted
    }

    /// Whether the client wants to type.
    pub(crate) fn reads(&self) -> bool {
        self.stdin
    }
}

/// Runs a command for a client, to the end of either.
pub(crate) async fn exec(
    shared: &Shared,
    at: &ContainerRef,
    pod: &Pod,
    wanted: Wanted,
    stream: impl AsyncRead + AsyncWrite + Send,
) -> io::Result<()> {
    let (stdin, guest_stdin) = duplex(PIPE_BYTES);
    let (guest_stdout, stdout) = duplex(PIPE_BYTES);
    let (guest_stderr, stderr) = duplex(PIPE_BYTES);
    let io = Io::Streams {
        stdin: wanted.stdin.then(|| Box::new(guest_stdin) as _),
        stdout: Box::new(guest_stdout),
        stderr: Box::new(guest_stderr),
        tty: wanted.tty,
    };
    let (reader, writer) = tokio::io::split(Box::pin(stream));
    let (mut reader, client) = (BufReader::new(reader), Client::new(wanted.clone(), writer));
    let env = if wanted.tty { terminal(&mut reader).await? } else { Vec::new() };
    let command = Command { words: wanted.command, io, env };
    let Started { container, is_toolbox } = match exec::start(shared, at, pod, command).await {
        Ok(started) => started,
        Err(why) => return client.end(failed_to_start(&why)).await,
    };
    let ended = async {
        let (out, err) = (client.pass_on(Channel::Stdout, stdout), client.pass_on(Channel::Stderr, stderr));
        let (out, err, exit) = tokio::join!(out, err, container.0.wait());
        out.and(err).map(|()| exit)
    };
    let telling = async {
        if is_toolbox {
            toolbox::keep_telling(shared, at).await;
        }
        std::future::pending::<Infallible>().await
    };
    let exit = tokio::select! {
        exit = ended => exit?,
        never = telling => match never {},
        left = client.feed(reader, Stdin::Pipe(Some(stdin)), keys(is_toolbox)) => match left? {
            Left::Gone => return Ok(()),
            Left::Interrupted => return client.end(terminated(CODE_INTERRUPTED)).await,
        },
    };
    client.end(status_of(&exit)).await
}

/// Who acts on the keys of a terminal.
fn keys(is_toolbox: bool) -> Keys {
    if is_toolbox { Keys::Program } else { Keys::Session }
}

/// What a program is told of its terminal. Clients tell its size first of all; one that does not is not waited for.
async fn terminal(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<(String, String)>> {
    let mut env = vec![("TERM".to_owned(), "xterm".to_owned())];
    // Looking does not consume: only what begins with a whole frame's first byte is read.
    let begun = tokio::time::timeout(SIZE_TIMEOUT, reader.fill_buf()).await;
    let Some(Ok([first, ..])) = begun.ok() else { return Ok(env) };
    if *first != Channel::Resize as u8 {
        return Ok(env);
    }
    let Some((_, bytes)) = read_frame(reader).await? else { return Ok(env) };
    let size: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    for (field, name) in [("Width", "COLUMNS"), ("Height", "LINES")] {
        if let Some(value) = size[field].as_u64().filter(|value| (1..=u64::from(u16::MAX)).contains(value)) {
            env.push((name.to_owned(), value.to_string()));
        }
    }
    Ok(env)
}

/// A container that a client joins.
pub(crate) struct Joined<'a> {
    pub(crate) container: &'a Container,
    /// Whether it is the toolbox, which hears a terminal's keys as bytes.
    pub(crate) is_toolbox: bool,
}

/// Joins a client to the program that runs, to the end of either.
pub(crate) async fn attach(
    Joined { container, is_toolbox }: Joined<'_>,
    wanted: Wanted,
    stream: impl AsyncRead + AsyncWrite + Send,
) -> io::Result<()> {
    let (guest_stdout, stdout) = duplex(PIPE_BYTES);
    let (guest_stderr, stderr) = duplex(PIPE_BYTES);
    let (reader, writer) = tokio::io::split(Box::pin(stream));
    let client = Client::new(wanted, writer);
    let ended = async {
        let attached = container.attach(Box::new(guest_stdout), Box::new(guest_stderr));
        let (out, err) = (client.pass_on(Channel::Stdout, stdout), client.pass_on(Channel::Stderr, stderr));
        let ((), out, err) = tokio::join!(attached, out, err);
        out.and(err)?;
        Ok::<_, io::Error>(container.wait().await)
    };
    let exit = tokio::select! {
        exit = ended => exit?,
        // The program goes on without its client.
        left = client.feed(reader, Stdin::Container(container), keys(is_toolbox)) => return left.map(drop),
    };
    client.end(status_of(&exit)).await
}

/// Where what a client types goes.
enum Stdin<'a> {
    Pipe(Option<DuplexStream>),
    Container(&'a Container),
}

impl Stdin<'_> {
    /// A program that reads no more, or has ended, is no fault of the session.
    async fn put(&mut self, bytes: &[u8]) {
        let written = match self {
            Stdin::Pipe(Some(pipe)) => pipe.write_all(bytes).await,
            Stdin::Pipe(None) => Ok(()),
            Stdin::Container(container) => container.write_stdin(bytes).await,
        };
        if let Err(error) = written {
            tracing::trace!(%error, "a program reads no more");
        }
    }

    async fn end(&mut self) {
        match self {
            Stdin::Pipe(pipe) => drop(pipe.take()),
            Stdin::Container(container) => container.close_stdin().await,
        }
    }
}

/// Why a client types no more.
enum Left {
    /// It has closed its stream.
    Gone,
    /// It typed `^C`.
    Interrupted,
}

/// The client's end of a session.
struct Client<W> {
    wanted: Wanted,
    /// Shared by the outputs, which write whole frames.
    writer: Mutex<W>,
}

impl<W: AsyncWrite + Unpin> Client<W> {
    fn new(wanted: Wanted, writer: W) -> Self {
        Self { wanted, writer: Mutex::new(writer) }
    }

    async fn send(&self, channel: Channel, bytes: &[u8]) -> io::Result<()> {
        write_frame(&mut *self.writer.lock().await, channel, bytes).await
    }

    /// Passes on what the program says. A terminal has one screen, and wants to be told to go to the line's begin.
    async fn pass_on(&self, channel: Channel, mut from: DuplexStream) -> io::Result<()> {
        let wants = if channel == Channel::Stdout { self.wanted.stdout } else { self.wanted.stderr };
        let (wants, channel) = if self.wanted.tty { (self.wanted.stdout, Channel::Stdout) } else { (wants, channel) };
        let mut buffer = vec![0; PIPE_BYTES];
        loop {
            let count = match from.read(&mut buffer).await? {
                0 => return Ok(()),
                count => count,
            };
            match (wants, self.wanted.tty) {
                // It is taken from the program all the same: it must not wait for nobody.
                (false, _) => {}
                (true, false) => self.send(channel, &buffer[..count]).await?,
                (true, true) => self.send(channel, &tty::to_screen(&buffer[..count])).await?,
            }
        }
    }

    /// Passes on what the client types, until it is gone.
    async fn feed(&self, mut from: impl AsyncRead + Unpin, mut to: Stdin<'_>, keys: Keys) -> io::Result<Left> {
        let mut line = Line::default();
        while let Some((channel, bytes)) = read_frame(&mut from).await? {
            match channel {
                Channel::Stdin if !self.wanted.stdin => {}
                Channel::Stdin if self.wanted.tty => {
                    let typed = line.take(&bytes, keys);
                    self.send(Channel::Stdout, &typed.echo).await?;
                    to.put(&typed.lines).await;
                    match typed.key {
                        Some(Key::Interrupt) => return Ok(Left::Interrupted),
                        Some(Key::End) => to.end().await,
                        None => {}
                    }
                }
                Channel::Stdin => to.put(&bytes).await,
                Channel::Close if bytes.as_ref() == [Channel::Stdin as u8] => to.end().await,
                // No interface of a guest tells that the size of a terminal has changed.
                _ => {}
            }
        }
        Ok(Left::Gone)
    }

    /// Says how it went. The stream ends with it.
    async fn end(&self, status: Value) -> io::Result<()> {
        self.send(Channel::Error, status.to_string().as_bytes()).await?;
        self.writer.lock().await.shutdown().await
    }
}

/// What clients expect at the end: `kubectl` takes its own exit code from it.
fn status_of(exit: &Exit) -> Value {
    match exit.code {
        0 => json!({"metadata": {}, "status": "Success"}),
        code => terminated(code),
    }
}

fn terminated(code: i32) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failed_to_start(why: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("failed to exec in container: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Wanted {
        Wanted::parse(query)
    }

    #[test]
    fn what_is_wanted_comes_from_the_query() {
        let found = wanted("command=ls&command=-l%20a&stdin=true&stdout=1&tty=false");
        let expected =
            Wanted { command: vec!["ls".into(), "-l a".into()], stdin: true, stdout: true, ..Wanted::default() };
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn what_is_typed_reaches_the_program_and_its_end_too() {
        let (guest, typed) = duplex(1024);
        let client = Client::new(wanted("stdin=true&stdout=true"), Vec::new());
        let mut sent = Vec::new();
        for (channel, bytes) in [(Channel::Stdin, &b"one"[..]), (Channel::Resize, b"{}"), (Channel::Close, &[0])] {
            write_frame(&mut sent, channel, bytes).await.unwrap();
        }
        assert!(matches!(
            client.feed(sent.as_slice(), Stdin::Pipe(Some(typed)), Keys::Session).await.unwrap(),
            Left::Gone
        ));
        let mut heard = String::new();
        let mut guest = guest;
        guest.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "one");
    }

    #[tokio::test]
    async fn a_program_is_told_the_size_of_its_terminal_if_that_comes_first() {
        for (channel, bytes, expected) in [
            (Channel::Resize, &br#"{"Width":120,"Height":40}"#[..], "TERM=xterm COLUMNS=120 LINES=40"),
            (Channel::Resize, b"nonsense", "TERM=xterm"),
            (Channel::Stdin, b"typed", "TERM=xterm"),
        ] {
            let mut sent = Vec::new();
            write_frame(&mut sent, channel, bytes).await.unwrap();
            write_frame(&mut sent, Channel::Stdin, b"after").await.unwrap();
            let mut reader = BufReader::new(sent.as_slice());
            let env = terminal(&mut reader).await.unwrap();
            let env: Vec<_> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(env.join(" "), expected);
            let next = read_frame(&mut reader).await.unwrap().unwrap();
            let expected = if channel == Channel::Stdin { &b"typed"[..] } else { b"after" };
            assert_eq!(next.1.as_ref(), expected, "nothing is lost");
        }
    }

    #[tokio::test]
    async fn a_terminal_echoes_and_has_one_screen() {
        let (mut guest, typed) = duplex(1024);
        let client = Client::new(wanted("stdin=true&stdout=true&tty=true"), Vec::new());
        let mut sent = Vec::new();
        for bytes in [&b"hx\x7fi\r"[..], b"\x03late"] {
            write_frame(&mut sent, Channel::Stdin, bytes).await.unwrap();
        }
        assert!(matches!(
            client.feed(sent.as_slice(), Stdin::Pipe(Some(typed)), Keys::Session).await.unwrap(),
            Left::Interrupted
        ));
        let mut heard = String::new();
        guest.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hi\n");
        let (mut program, err) = duplex(64);
        program.write_all(b"oh\nno").await.unwrap();
        drop(program);
        client.pass_on(Channel::Stderr, err).await.unwrap();
        let written = client.writer.into_inner();
        let (mut reader, mut screen) = (written.as_slice(), String::new());
        while let Some((channel, bytes)) = read_frame(&mut reader).await.unwrap() {
            assert_eq!(channel, Channel::Stdout);
            screen.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        assert_eq!(screen, "hx\x08 \x08i\r\n^C\r\noh\r\nno");
    }
}
