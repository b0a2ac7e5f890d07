//! Power cuts, without a machine that can be cut off: this program has syncs of its own, which remember what each file
//! and directory held when it was synced, the object database's included. A cut keeps that, and of everything since as
//! much as chance wants: sectors of files, and names in directories. What was acknowledged before must be there.
//!
//! `DHOW_POWER_CUTS` names another number of cuts for each size of values.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::{Alone, Config, OpenError, Replica};
use dhow_types::Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The disks that are looked after.
static DISKS: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());

/// Takes the place of the system's, in this program only.
///
/// # Safety
///
/// As the system's: any number may be given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    synced(fd)
}

/// As [`fsync`].
///
/// # Safety
///
/// As the system's: any number may be given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    synced(fd)
}

fn synced(fd: c_int) -> c_int {
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{fd}")) else { return 0 };
    let disk = DISKS.lock().unwrap().iter().find(|disk| path.starts_with(&disk.root)).cloned();
    if let Some(disk) = disk {
        disk.syncs.fetch_add(1, Ordering::SeqCst);
        // Through the descriptor: the file may have another name by now, or none.
        // What cannot be read any more has been removed; then it is as if it had not been synced.
        let _ = disk.sync(&path, Path::new(&format!("/proc/self/fd/{fd}")));
    }
    0
}

/// A directory and what of it would be there after a power cut.
struct Disk {
    root: PathBuf,
    syncs: AtomicU64,
    durable: Mutex<Durable>,
}

#[derive(Default)]
struct Durable {
    /// By number. A file whose number is known is held open, so that the number is not given to another one.
    files: HashMap<u64, (Arc<Vec<u8>>, File)>,
    /// By path: the names in it.
    dirs: HashMap<PathBuf, BTreeMap<PathBuf, Entry>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Dir,
    File(u64),
}

impl Disk {
    fn watch(root: &Path) -> Arc<Self> {
        let root = root.canonicalize().unwrap();
        let disk = Arc::new(Self { root, syncs: AtomicU64::new(0), durable: Mutex::default() });
        DISKS.lock().unwrap().push(disk.clone());
        disk
    }

    fn sync(&self, path: &Path, open: &Path) -> io::Result<()> {
        let mut durable = self.durable.lock().unwrap();
        let meta = fs::metadata(open)?;
        if meta.is_dir() {
            let names = self.names(path, &mut durable)?;
            durable.dirs.insert(path.to_owned(), names);
        } else {
            let content = Arc::new(fs::read(open)?);
            durable.files.insert(meta.ino(), (content, File::open(open)?));
        }
        Ok(())
    }

    fn names(&self, path: &Path, durable: &mut Durable) -> io::Result<BTreeMap<PathBuf, Entry>> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            // A file that is gone meanwhile has no name to be kept.
            let Ok(file) = File::open(&path) else { continue };
            let meta = file.metadata()?;
            if meta.is_dir() {
                names.insert(path, Entry::Dir);
            } else {
                durable.files.entry(meta.ino()).or_insert_with(|| (Arc::default(), file));
                names.insert(path, Entry::File(meta.ino()));
            }
        }
        Ok(names)
    }

    /// Writes to `target` what a power cut at this moment leaves.
    fn cut(&self, target: &Path, rng: &mut Rng) -> io::Result<()> {
        let mut durable = self.durable.lock().unwrap();
        self.cut_dir(&self.root, target, &mut durable, rng)
    }

    fn cut_dir(&self, dir: &Path, target: &Path, durable: &mut Durable, rng: &mut Rng) -> io::Result<()> {
        fs::create_dir_all(target)?;
        let mut names = durable.dirs.get(dir).cloned().unwrap_or_default();
        // Names that were given or taken since may be so already, or not yet.
        let now = self.names(dir, durable).unwrap_or_default();
        let all: BTreeSet<PathBuf> = names.keys().chain(now.keys()).cloned().collect();
        for name in all {
            if names.get(&name) != now.get(&name) && rng.chance(1, 2) {
                match now.get(&name) {
                    Some(entry) => names.insert(name, *entry),
                    None => names.remove(&name),
                };
            }
        }
        for (name, entry) in names {
            let target = target.join(name.file_name().unwrap());
            match entry {
                Entry::Dir => self.cut_dir(&name, &target, durable, rng)?,
                Entry::File(number) => {
                    let (synced, open) = &durable.files[&number];
                    let mut now = Vec::new();
                    io::Read::read_to_end(&mut &File::open(format!("/proc/self/fd/{}", fd(open)))?, &mut now)?;
                    fs::write(target, torn(synced, &now, rng))?;
                }
            }
        }
        Ok(())
    }
}

fn fd(file: &File) -> c_int {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

const SECTOR: usize = 512;

/// What was synced, with some of the sectors that were written since.
fn torn(synced: &[u8], now: &[u8], rng: &mut Rng) -> Vec<u8> {
    if synced == now {
        return synced.to_vec();
    }
    let len = if rng.chance(1, 2) { synced.len() } else { now.len() };
    let mut out = vec![0; len];
    let often = rng.below(4);
    for at in (0..len).step_by(SECTOR) {
        let source = if rng.below(3) < often { now } else { synced };
        let end = source.len().min(at + SECTOR).min(len);
        if at < end {
            out[at..end].copy_from_slice(&source[at..end]);
        }
    }
    out
}

fn open(dir: &Path) -> Result<Replica, OpenError> {
    let (flush_every, load_patience) = (Duration::from_millis(20), Duration::from_secs(20));
    let config = Config { segment_bytes: 256 << 10, flush_every, load_patience, ..Config::new(dir) };
    Replica::open(config, Arc::new(Alone))
}

fn key(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

fn put(name: &str, number: u64, bytes: usize) -> Txn {
    let padding: String = format!("{number:x}").repeat(bytes / 8);
    let value = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"n":{number},"v":"{padding}"}}}}"#).into();
    Txn::one(Op::Put { key: key(name), value, expect: Expect::Any, expires: None })
}

type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

/// Writes until it is told to stop, and notes what was acknowledged.
async fn load(replica: Replica, task: u64, bytes: usize, acknowledged: Acknowledged, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("t{task}-{}", number % 7);
        replica.write(put(&name, number, bytes)).await.unwrap();
        acknowledged.lock().unwrap().insert(name, number);
    }
}

fn assert_holds(replica: &Replica, acknowledged: &BTreeMap<String, u64>, what: &str) {
    for (name, number) in acknowledged {
        let found = replica.state().get(&key(name)).map(|object| object.tree()["data"]["n"].as_u64().unwrap());
        assert!(found >= Some(*number), "{what}: `{name}` is {found:?}, {number} was acknowledged");
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Cuts the power `cuts` times while values of this size are written; every fourth time a byte is flipped, too.
fn cut_and_look(cuts: u64, bytes: usize) {
    // What is below it is new, so nothing has to be synced before.
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fs::create_dir(&root).unwrap();
    let disk = Disk::watch(&root);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let replica = open(&root).unwrap();
    let (acknowledged, stop) = (Acknowledged::default(), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = (0..8)
        .map(|task| runtime.spawn(load(replica.clone(), task, bytes, acknowledged.clone(), stop.clone())))
        .collect();
    let mut rng = Rng::new(bytes as u64);
    let mut refused = 0;
    let mut wanted = 0;
    for cut in 0..cuts {
        // Somewhere between two writes and in the middle of a flush or two.
        wanted += rng.below(40) * 8_000 / (bytes as u64 + 2_000);
        while acknowledged.lock().unwrap().values().sum::<u64>() < wanted {
            std::thread::yield_now();
        }
        let before = acknowledged.lock().unwrap().clone();
        wanted = before.values().sum();
        let target = dir.path().join(format!("cut-{cut}"));
        disk.cut(&target, &mut rng).unwrap();
        let flip = cut % 4 == 3;
        let mut what = format!("cut {cut} with values of {bytes} bytes");
        if flip {
            let found = files(&target);
            let path = &found[rng.below(found.len() as u64) as usize];
            let mut content = fs::read(path).unwrap();
            let at = rng.below(content.len() as u64) as usize;
            content[at] ^= 1 << rng.below(8);
            fs::write(path, content).unwrap();
            what = format!("{what} and byte {at} of {} flipped", path.display());
        }
        match open(&target) {
            Ok(copy) => {
                assert_holds(&copy, &before, &what);
                runtime.block_on(copy.close());
            }
            Err(error) if flip => {
                assert!(matches!(error, OpenError::Damaged { .. } | OpenError::OtherMember { .. }), "{what}: {error}");
                refused += 1;
            }
            Err(error) => panic!("{what}: {error}"),
        }
        fs::remove_dir_all(target).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
    runtime.block_on(replica.close());
    assert!(refused <= cuts / 4);
    let mut disks = DISKS.lock().unwrap();
    disks.retain(|other| !Arc::ptr_eq(other, &disk));
}

/// A hundred nodes renew their leases every ten seconds: in the three seconds that a lazy write may wait, 30 come
/// together and cost one sync. A flush of the object database costs a few more, every half minute.
#[test]
fn heartbeats_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fs::create_dir(&root).unwrap();
    let disk = Disk::watch(&root);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let replica = Replica::open(Config::new(&root), Arc::new(Alone)).unwrap();
    let beat = |n: u64| {
        let replica = replica.clone();
        runtime.spawn(async move {
            replica.write_prepared(put(&format!("node-{n}"), n, 100).prepare().unwrap(), true).await.unwrap().revision
        })
    };
    // Whoever is not lazy takes those along who are.
    let before = disk.syncs.load(Ordering::SeqCst);
    let beats: Vec<_> = (0..30).map(beat).collect();
    let waiting = || 30 - beats.iter().filter(|beat| beat.is_finished()).count();
    while runtime.block_on(replica.status()).unwrap().lazy < 30 {
        assert_eq!(waiting(), 30, "nobody else has synced");
    }
    let applied = runtime.block_on(replica.write(put("eager", 1, 100))).unwrap();
    for beat in beats {
        assert!(runtime.block_on(beat).unwrap() > applied.revision);
    }
    assert_eq!(disk.syncs.load(Ordering::SeqCst), before + 1);
    // And if nobody comes, they go together.
    let beats: Vec<_> = (0..30).map(beat).collect();
    for beat in beats {
        runtime.block_on(beat).unwrap();
    }
    assert_eq!(disk.syncs.load(Ordering::SeqCst), before + 2);
    runtime.block_on(replica.close());
    let flush = disk.syncs.load(Ordering::SeqCst) - before - 2;
    assert!(flush <= 12, "a flush of little costs {flush} syncs");
}

/// How often the power is cut for each size of values.
fn cuts() -> u64 {
    std::env::var("DHOW_POWER_CUTS").map_or(34, |cuts| cuts.parse().unwrap())
}

#[test]
fn no_power_cut_loses_small_values() {
    cut_and_look(cuts(), 200);
}

#[test]
fn no_power_cut_loses_values_of_20_kib() {
    cut_and_look(cuts(), 20 << 10);
}

#[test]
fn no_power_cut_loses_values_of_200_kib() {
    cut_and_look(cuts(), 200 << 10);
}
