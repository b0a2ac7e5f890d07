//! `ps` and `top`: the containers of the pod. A sandbox cannot see beyond itself; what is shown is what the node writes
//! into a file for as long as a command of the toolbox runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::list::human;
use super::{Cx, Fail, Options, Outcome, number};
use crate::platform;

/// Where the node writes.
const FILE: &str = "/run/dhow/containers";
/// How long the first look lasts; the node writes each second.
const FIRST: Duration = Duration::from_millis(1_200);

/// One container: `NAME⇥STATE⇥CPU milliseconds⇥memory bytes⇥COMMAND`.
struct Container {
    name: String,
    state: String,
    cpu_ms: u64,
    memory: u64,
    command: String,
}

fn read(cx: &Cx) -> Result<Vec<Container>, Fail> {
    let none = |_| Fail::Say("the node tells nothing of the pod's containers here; use kubectl exec".to_owned());
    let text = cx.read(FILE).map_err(none)?;
    let text = String::from_utf8_lossy(&text);
    let parse = |line: &str| {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap_or_default().to_owned();
        let (name, state, cpu, memory, command) = (next(), next(), next(), next(), next());
        let number = |text: String| text.parse().unwrap_or(0);
        Container { name, state, cpu_ms: number(cpu), memory: number(memory), command }
    };
    Ok(text.lines().map(parse).collect())
}

pub(super) fn ps(cx: &mut Cx, _args: &[String]) -> Outcome {
    let containers = read(cx)?;
    let width = containers.iter().map(|c| c.name.len()).max().unwrap_or(0).max(9);
    cx.line(&format!("{:width$} {:8} {:>8} {:>8} COMMAND", "CONTAINER", "STATE", "TIME", "MEMORY"))?;
    for c in containers {
        let time = format!("{}:{:02}", c.cpu_ms / 60_000, c.cpu_ms / 1000 % 60);
        cx.line(&format!("{:width$} {:8} {time:>8} {:>8} {}", c.name, c.state, human(c.memory), c.command))?;
    }
    Ok(0)
}

/// What each container has used until now.
fn sample(cx: &Cx) -> Result<BTreeMap<String, (u64, Instant)>, Fail> {
    Ok(read(cx)?.into_iter().map(|c| (c.name, (c.cpu_ms, Instant::now()))).collect())
}

pub(super) fn top(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "bn:d:", &[])?;
    let every = Duration::try_from_secs_f64(options.value('d').map_or(Ok(2.0), number::<f64>)?);
    let every = every.map_err(|_| Fail::Say("invalid time".to_owned()))?.max(Duration::from_secs(1));
    let screen = cx.stdin.is_terminal() && !options.has('b');
    let rounds = options.value('n').map_or(Ok(if screen { u64::MAX } else { 1 }), number)?;
    let mut before = sample(cx)?;
    for round in 0..rounds {
        // What is shown is a rate: the first one is over a short while, so that nobody waits long.
        platform::sleep(if round == 0 { FIRST } else { every })?;
        let containers = read(cx)?;
        if screen {
            use std::io::Write as _;
            write!(cx.stdout, "\x1b[H\x1b[J")?;
        }
        let width = containers.iter().map(|c| c.name.len()).max().unwrap_or(0).max(9);
        cx.line(&format!("{:width$} {:8} {:>7} {:>8} COMMAND", "CONTAINER", "STATE", "CPU(m)", "MEMORY"))?;
        for c in containers {
            let (used, over) = match before.get(&c.name) {
                Some((cpu, at)) => (c.cpu_ms.saturating_sub(*cpu), at.elapsed().as_millis()),
                None => (0, 1),
            };
            let cpu = u128::from(used) * 1000 / over.max(1);
            cx.line(&format!("{:width$} {:8} {cpu:>7} {:>8} {}", c.name, c.state, human(c.memory), c.command))?;
            before.insert(c.name, (c.cpu_ms, Instant::now()));
        }
        platform::flush();
    }
    Ok(0)
}
