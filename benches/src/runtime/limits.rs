//! How exactly a CPU limit holds a program that never stops computing, and how soon such a program is gone when its pod
//! is deleted.
//!
//! The CPU time is the kernel's for the whole agent, less what the agent takes when it has nothing to do, and not what
//! the agent believes to have measured. So it has the cost of holding the guest back in it.

use super::{PODS, Pair, pod, until, watch};
use crate::figure;
use anyhow::{Context as _, bail};
use dhow_client::Event;
use serde_json::{Value as Tree, json};
use std::fs;
use std::time::{Duration, Instant};

/// Computes for ever.
const SPIN: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
const IMAGE: &str = "spin:1.0";

/// Limits in thousandths of a CPU, and among how many containers each is divided: a guest is one thread, so two cores
/// take two.
const LIMITS: [(u32, u32); 7] = [(10, 1), (50, 1), (100, 1), (500, 1), (1000, 1), (1000, 2), (2000, 2)];

/// What a pod may have saved up is spent by then.
const WARM_UP: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(10);

/// The smallest limits let a program run some 15 ms at a time, less than once a second: many of these must fit, so that the
/// first and the last do not decide.
const MEASURED_SMALL: Duration = Duration::from_secs(100);
const SMALL_M: u32 = 50;

/// How often a program is ended.
const KILLS: usize = 50;

/// How long it computes before.
const SPINS: Duration = Duration::from_millis(100);

pub(crate) async fn measure() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let pair = Pair::start(dir.path()).await?;
    let file = dir.path().join("spin.wasm");
    fs::write(&file, wat::parse_str(SPIN)?)?;
    pair.control.dhow(&["push", file.to_str().context("a path of text")?, IMAGE])?;
    tokio::time::sleep(WARM_UP).await;
    let idle_m = used_m(&pair, MEASURED_SMALL).await?;
    figure("an idle agent", format!("{idle_m:.1}m used"));
    for (limit_m, containers) in LIMITS {
        accuracy(&pair, idle_m, (limit_m, containers)).await?;
    }
    kills(&pair).await
}

/// Thousandths of a CPU that the agent takes for a while.
async fn used_m(pair: &Pair, during: Duration) -> anyhow::Result<f64> {
    let (begun, before) = (Instant::now(), cpu(pair.agent.pid())?);
    tokio::time::sleep(during).await;
    let (passed, after) = (begun.elapsed(), cpu(pair.agent.pid())?);
    Ok((after - before).as_secs_f64() / passed.as_secs_f64() * 1e3)
}

async fn accuracy(pair: &Pair, idle_m: f64, (limit_m, containers): (u32, u32)) -> anyhow::Result<()> {
    let each = format!("{}m", limit_m / containers);
    let all: Vec<Tree> = (0..containers)
        .map(|n| json!({"name": format!("spin-{n}"), "image": IMAGE, "resources": {"limits": {"cpu": each}, "requests": {"cpu": "1m"}}}))
        .collect();
    let name = format!("spin-{limit_m}-{containers}");
    let mut spin = pod(&name, json!({}));
    spin["spec"]["containers"] = json!(all);
    pair.run(&spin).await?;
    tokio::time::sleep(WARM_UP).await;
    let used_m = used_m(pair, if limit_m <= SMALL_M { MEASURED_SMALL } else { MEASURED }).await? - idle_m;
    let off = (used_m / f64::from(limit_m) - 1.0) * 100.0;
    let what = if containers == 1 { "one container".to_owned() } else { format!("{containers} containers of {each}") };
    figure(&format!("a limit of {limit_m}m, {what}"), format!("{used_m:.1}m used, {off:+.1} %"));
    delete(pair, &name).await?;
    Ok(())
}

/// Deletes a pod and gives how long it took from the request until its object was gone, which is after its containers
/// are.
async fn delete(pair: &Pair, name: &str) -> anyhow::Result<Duration> {
    let mut watcher = watch(&pair.client, name);
    // It is listed first, so that nothing is missed.
    until(&mut watcher, |event| matches!(event, Event::Applied(_))).await?;
    let begun = Instant::now();
    pair.client.delete(&format!("{PODS}/{name}"), None).await?;
    until(&mut watcher, |event| matches!(event, Event::Deleted(_))).await?;
    Ok(begun.elapsed())
}

async fn kills(pair: &Pair) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for n in 0..KILLS {
        let name = format!("kill-{n}");
        pair.run(&pod(&name, json!({"name": "spin", "image": IMAGE}))).await?;
        tokio::time::sleep(SPINS).await;
        times.push(delete(pair, &name).await?);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    figure(
        &format!("delete of a spinning program's pod to its end, {KILLS} times"),
        format!("p50 {:.1} ms   p99 {:.1} ms", at(50), at(99)),
    );
    Ok(())
}

/// CPU time of a process, that of threads which have ended included.
fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    let pid = i32::try_from(pid).context("a process has a small number")?;
    // SAFETY: both calls write to one place of the right type each.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        bail!("the CPU time of process {pid} cannot be read");
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}
