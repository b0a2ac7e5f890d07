//! `dhow exec`: runs a command in a container.

use crate::kube::{Global, pod_name};
use crate::session::{Command, PIECES_MAX, Terminated, Typed, carry, read_aloud};
use crate::terminal::{self, Raw};
use crate::{output, signals};
use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Which command, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A pod, or TYPE/NAME of what owns pods (`deployment/web`)
    pod: String,
    /// The container; needed when the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments, behind `--`
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    let pod = pod_name(&session, &args.pod).await?;
    let is_person = terminal::is_there();
    if args.tty && args.stdin && !is_person {
        output::note("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let tty = args.tty && (is_person || !args.stdin);
    let command = Command {
        namespace: &session.namespace,
        pod: &pod,
        container: args.container.as_deref(),
        words: &args.command,
        stdin: args.stdin,
        tty,
    };
    let streams = command.start(&session).await?;
    let (to, typed) = mpsc::channel(PIECES_MAX);
    // Only now: an error of before is for a terminal that is as usual.
    let raw = (tty && args.stdin).then(Raw::enter).transpose()?;
    if tty && let Some((width, height)) = terminal::size() {
        // Nothing waits there yet.
        let _told = to.send(Typed::Size(width, height)).await;
    }
    if args.stdin {
        read_aloud(std::io::stdin(), to.clone());
    }
    let told = tell_sizes(tty, to);
    let ended = carry(streams, typed, async |bytes| output::write_all(&bytes));
    let code = tokio::select! {
        code = ended => code,
        told = told => told,
        // A raw terminal would stay so.
        stopped = signals::stop_requested(), if raw.is_some() => {
            stopped.context("waiting for signals").map(|()| CODE_TERMINATED)
        }
    };
    drop(raw);
    match code? {
        0 => Ok(()),
        code => Err(Terminated(code).into()),
    }
}

/// The exit code of what SIGTERM has ended.
const CODE_TERMINATED: i32 = 128 + 15;

/// Tells each new size of the terminal; ends only if that is not possible.
async fn tell_sizes(tty: bool, to: mpsc::Sender<Typed>) -> anyhow::Result<i32> {
    if !tty {
        return std::future::pending().await;
    }
    let mut changes = signal(SignalKind::window_change()).context("waiting for the terminal's size to change")?;
    while changes.recv().await.is_some() {
        if let Some((width, height)) = terminal::size()
            && to.send(Typed::Size(width, height)).await.is_err()
        {
            break;
        }
    }
    std::future::pending().await
}
