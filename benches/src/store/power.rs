//! Power cuts with a real file system: a control node's data lies in a loop-mounted image, which is copied while it
//! writes. A copy holds what the file system had handed to its disk by then, and nothing that only waited in memory. It
//! is mounted, which replays the file system's own journal, and a control node opened on it must hold every write that
//! was acknowledged before.
//!
//! Needs `mkfs.ext4` and the right to mount; says so where that is not there. The process stands still while its image
//! is copied, so that the copy shows one moment.

use crate::cluster::root;
use crate::control::Control;
use crate::figure;
use anyhow::{Context as _, bail};
use dhow_client::{Client, PatchType};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const CUTS: usize = 100;

/// Room for the log's segments and what is written.
const IMAGE_BYTES: u64 = 1 << 30;

/// Values of these sizes are written, by so many callers each, each in turns under so many names.
const SIZES: [usize; 3] = [200, 20 << 10, 200 << 10];
const CALLERS: usize = 3;
const NAMES: u64 = 5;

/// The longest time between two cuts.
const BETWEEN_MS: u128 = 700;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The newest number under each name that was acknowledged.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

pub(crate) async fn measure(parent: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(parent)?;
    let image = dir.path().join("image");
    std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
    let made = run("mkfs.ext4", &["-q", "-F"], &[&image]).and_then(|()| Mounted::new(&image, &dir.path().join("live")));
    let live = match made {
        Ok(live) => live,
        Err(why) => {
            println!("SKIPPED: power cuts with a file system of its own: {why:#}");
            return Ok(());
        }
    };
    let control = Control::start(&live.0)?;
    let acknowledged = Acknowledged::default();
    let mut load = JoinSet::new();
    for caller in 0..CALLERS * SIZES.len() {
        load.spawn(write(control.client()?, caller, acknowledged.clone()));
    }
    let (mut checked, mut lost) = (0, 0);
    for cut in 0..CUTS {
        tokio::time::sleep(Duration::from_millis(chance(cut))).await;
        let before = lock(&acknowledged).clone();
        let copy = dir.path().join("copy");
        copied(&control, &image, &copy)?;
        let data = control.dir().strip_prefix(&live.0)?.to_owned();
        let found =
            reopened(&copy, &dir.path().join("cut"), &data).await.with_context(|| format!("after cut {cut}"))?;
        checked += before.len();
        for (name, number) in before {
            if found.get(&name).is_none_or(|found| *found < number) {
                println!("LOST at cut {cut}: `{name}` is {:?}, {number} was acknowledged", found.get(&name));
                lost += 1;
            }
        }
        if let Some(ended) = load.try_join_next() {
            bail!("a writer ended: {ended:?}");
        }
    }
    figure(
        &format!("power cuts of an ext4 image, {CUTS}"),
        format!("{lost} acknowledged writes lost, {checked} looked at"),
    );
    Ok(())
}

/// Writes for ever, one after the other.
async fn write(client: Client, caller: usize, acknowledged: Acknowledged) -> anyhow::Result<()> {
    let padding = "x".repeat(SIZES[caller % SIZES.len()]);
    for number in 1.. {
        let name = format!("c{caller}-{}", number % NAMES);
        let data = json!({"number": number.to_string(), "padding": padding});
        if number <= NAMES {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
            client.create(CONFIG_MAPS, &object).await?;
        } else {
            client.patch(&format!("{CONFIG_MAPS}/{name}"), PatchType::Merge, &json!({"data": data})).await?;
        }
        lock(&acknowledged).insert(name, number);
    }
    Ok(())
}

/// Copies the image while the process stands still.
fn copied(control: &Control, image: &Path, copy: &Path) -> anyhow::Result<()> {
    let pid = control.pid().to_string();
    let signal = |name: &str| run("kill", &[name, &pid], &[]);
    signal("-STOP")?;
    let copied = run("cp", &["--sparse=always"], &[image, copy]);
    signal("-CONT")?;
    copied
}

/// What a control node holds that starts on a copy.
async fn reopened(copy: &Path, at: &Path, data: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let mounted = Mounted::new(copy, at)?;
    let control = Control::start_in(mounted.0.join(data))?;
    let list = control.client()?.get(CONFIG_MAPS).await?;
    let items = list["items"].as_array().context("a list has items")?;
    let found = items.iter().filter_map(|object| {
        let number = object["data"]["number"].as_str()?.parse().ok()?;
        Some((object["metadata"]["name"].as_str()?.to_owned(), number))
    });
    let found = found.collect();
    drop(control);
    drop(mounted);
    std::fs::remove_file(copy)?;
    Ok(found)
}

/// An image that is mounted as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at)?;
        run("mount", &["-o", "loop"], &[image, at])?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(why) = run("umount", &[], &[&self.0]) {
            println!("note: `{}` stays mounted: {why:#}", self.0.display());
        }
    }
}

fn run(program: &str, args: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
    let ended = Command::new(program).args(args).args(paths).current_dir(root()).stderr(Stdio::null()).status();
    let ended = ended.with_context(|| format!("running `{program}`"))?;
    if ended.success() { Ok(()) } else { bail!("`{program}` ended with {ended}") }
}

/// A time until the next cut, from the clock: the moments need not come again.
fn chance(cut: usize) -> u64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let passed = BEGAN.get_or_init(Instant::now).elapsed().as_nanos() / 1_000;
    ((passed * 7_919 + cut as u128 * 104_729) % BETWEEN_MS) as u64
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
