//! The store as its users see it: what is acknowledged stays, whatever happens to the process.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use bytes::Bytes;
use dhow_state::{Expect, Key, Op, Rejected, Txn};
use dhow_store::{Alone, Config, Filter, From, OpenError, Replica, WatchItem, WriteError};
use dhow_types::{Revision, Rng};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const SEGMENT: u64 = 64 << 10;

fn config(dir: &Path) -> Config {
    let load_patience = Duration::from_secs(10);
    Config { segment_bytes: SEGMENT, flush_every: Duration::from_millis(20), load_patience, ..Config::new(dir) }
}

/// Opens off the async thread, as the store asks for.
async fn open(config: Config) -> Result<Replica, OpenError> {
    tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(Alone))).await.unwrap()
}

fn key(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

fn put(name: &str, data: &str, expect: Expect) -> Txn {
    let value =
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"v":"{data}"}}}}"#);
    Txn::one(Op::Put { key: key(name), value: value.into(), expect, expires: None })
}

fn delete(name: &str) -> Txn {
    Txn::one(Op::Delete { key: key(name), expect: Expect::Present, last: None })
}

fn value(replica: &Replica, name: &str) -> Option<String> {
    let state = replica.state();
    state.get(&key(name)).map(|object| object.tree()["data"]["v"].as_str().unwrap().to_owned())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // A file that is removed while the copy runs was not needed.
            let _ = fs::copy(entry.path(), target);
        }
    }
}

#[tokio::test]
async fn writes_that_wait_for_the_object_database_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let flush_every = Duration::from_millis(1);
    let replica = open(Config { flush_every, behind_bytes_max: 0, ..config(dir.path()) }).await.unwrap();
    let writers = (0..8).map(|writer| {
        let replica = replica.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                replica.write(put(&format!("w{writer}-{n}"), "x", Expect::Absent)).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(replica.state().len(), 800);
    let late = replica.clone();
    let closing = tokio::spawn(replica.close());
    // Done or refused, but answered.
    let ended = late.write(put("late", "x", Expect::Absent)).await;
    assert!(matches!(ended, Ok(_) | Err(WriteError::Unavailable(_))), "{ended:?}");
    closing.await.unwrap();
}

#[tokio::test]
async fn writes_are_answered_with_their_revision_and_survive_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    for n in 1..=5 {
        let applied = replica.write(put(&format!("c{n}"), "x", Expect::Absent)).await.unwrap();
        assert_eq!(applied.revision, Revision(n));
        assert_eq!(applied.objects[0].tree()["metadata"]["resourceVersion"], n.to_string());
    }
    let rejected = replica.write(put("c1", "y", Expect::Absent)).await.unwrap_err();
    assert_eq!(rejected, WriteError::Rejected(Rejected::Exists { key: key("c1") }));
    replica.write(delete("c2")).await.unwrap();
    assert_eq!(replica.barrier().await.unwrap(), Revision(6));
    let hash = replica.state().hash();
    let other = replica.clone();
    replica.close().await;
    assert!(matches!(other.write(delete("c3")).await, Err(WriteError::Unavailable(_))));

    for _ in 0..3 {
        let replica = open(config(dir.path())).await.unwrap();
        assert_eq!(replica.state().hash(), hash);
        assert_eq!(replica.barrier().await.unwrap(), Revision(6));
        replica.close().await;
    }
    let replica = open(config(dir.path())).await.unwrap();
    assert_eq!(replica.write(put("c9", "x", Expect::Absent)).await.unwrap().revision, Revision(7));
}

#[tokio::test]
async fn a_directory_serves_one_process_and_one_member() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    match open(config(dir.path())).await {
        Err(OpenError::InUse { owner, .. }) => assert_eq!(owner, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    replica.write(put("c", "x", Expect::Any)).await.unwrap();
    replica.close().await;
    let other = Config { member: 2, ..config(dir.path()) };
    assert!(matches!(open(other).await, Err(OpenError::OtherMember { found: 1, wanted: 2, .. })));
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    let large = "x".repeat(1_500_000);
    replica.write(put("fits", &large, Expect::Any)).await.unwrap();
    assert_eq!(replica.write(put("not", &"x".repeat(1_600_000), Expect::Any)).await.unwrap_err(), WriteError::TooLarge);
    let ops = (0..6).flat_map(|n| put(&format!("n{n}"), &large, Expect::Any).ops).collect();
    assert_eq!(replica.write(Txn { ops }).await.unwrap_err(), WriteError::TooLarge);
    assert_eq!(replica.state().len(), 1);
    replica.close().await;
    let replica = open(config(dir.path())).await.unwrap();
    assert_eq!(value(&replica, "fits").as_deref(), Some(&*large));
}

/// Writes from many tasks at once until told to stop; gives what was acknowledged last for each name.
async fn load(replica: &Replica, seed: u64, tasks: u64, writes: u64) -> BTreeMap<String, Option<String>> {
    let mut running = Vec::new();
    for task in 0..tasks {
        let replica = replica.clone();
        running.push(tokio::spawn(async move {
            let mut rng = Rng::new(seed * 1_000 + task);
            let mut acknowledged = BTreeMap::new();
            for n in 0..writes {
                let name = format!("t{task}-{}", rng.below(20));
                if rng.chance(1, 5) {
                    if replica.write(delete(&name)).await.is_ok() {
                        acknowledged.insert(name, None);
                    }
                    continue;
                }
                let data = format!("{n}-{}", "x".repeat(rng.below(600) as usize));
                replica.write(put(&name, &data, Expect::Any)).await.unwrap();
                acknowledged.insert(name, Some(data));
            }
            acknowledged
        }));
    }
    let mut all = BTreeMap::new();
    for task in running {
        all.extend(task.await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_at_any_moment_holds_all_that_was_acknowledged_before() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    let mut refused = 0;
    for round in 0..6 {
        let acknowledged = load(&replica, round, 8, 40).await;
        // More writes run while the copy is made; flushes and rotations happen in the middle of it.
        let (more, stop) = (replica.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let stopped = stop.clone();
        let noise = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                more.write(put(&format!("noise-{}", n % 50), &n.to_string(), Expect::Any)).await.unwrap();
                n += 1;
            }
        });
        let target = dir.path().join(format!("copy-{round}"));
        for part in ["objects", "wal"] {
            // The log last: a power cut freezes both at once, and the log may then only be newer.
            copy(&dir.path().join(part), &target.join(part));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        noise.await.unwrap();
        let crashed = match open(config(&target)).await {
            Ok(crashed) => crashed,
            // The copy is not of one instant: the database may be caught in a flush, the log in the dropping of a
            // segment. That must be seen; what must not be is a start that lacks something.
            Err(OpenError::Damaged { .. } | OpenError::Io { .. }) => {
                refused += 1;
                continue;
            }
            Err(error) => panic!("round {round}: {error}"),
        };
        for (name, data) in &acknowledged {
            assert_eq!(value(&crashed, name), *data, "round {round}, {name}");
        }
        crashed.close().await;
    }
    assert!(refused < 6, "most copies are good enough to say something");
    replica.close().await;
}

/// Not a test of its own: what `a_killed_process_loses_nothing` runs in another process.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(dir) = std::env::var("DHOW_TEST_STORE_DIR") else { return };
    let padding = "x".repeat(std::env::var("DHOW_TEST_VALUE_BYTES").map_or(0, |bytes| bytes.parse().unwrap()));
    let replica = Replica::open(config(Path::new(&dir)), Arc::new(Alone)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let start = replica.state().revision().0;
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let (replica, padding) = (replica.clone(), padding.clone());
                tokio::spawn(async move {
                    for n in start.. {
                        let name = format!("t{task}-{}", n % 30);
                        let applied = replica.write(put(&name, &format!("{n}-{padding}"), Expect::Any)).await.unwrap();
                        let line = format!("ack {name} {n} {}\n", applied.revision);
                        std::io::stdout().write_all(line.as_bytes()).unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[tokio::test]
async fn a_killed_process_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(11);
    let mut acknowledged: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (round, (value_bytes, writes)) in
        [(0, 3_000), (200_000, 50), (20_000, 300), (500, 2_000)].repeat(2).into_iter().enumerate()
    {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_until_it_is_killed", "--exact", "--nocapture"])
            .env("DHOW_TEST_STORE_DIR", dir.path())
            .env("DHOW_TEST_VALUE_BYTES", value_bytes.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let wanted = 10 + rng.below(writes);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            // The test harness prints lines of its own into the same stream.
            let Some(at) = words.iter().position(|word| *word == "ack") else { continue };
            let [name, n, revision] = words[at + 1..] else { continue };
            let entry = acknowledged.entry(name.to_owned()).or_default();
            *entry = (n.parse().unwrap(), revision.parse().unwrap()).max(*entry);
            seen += 1;
            if seen == wanted {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= wanted, "the child wrote until it was killed: {seen} of {wanted}");
        let replica = open(config(dir.path())).await.unwrap();
        for (name, (n, revision)) in &acknowledged {
            let found = value(&replica, name).expect("an acknowledged object is there");
            let found: u64 = found.split('-').next().unwrap().parse().unwrap();
            assert!(found >= *n, "round {round}: {name} is {found}, {n} was acknowledged");
            assert!(replica.state().revision().0 >= *revision);
        }
        replica.close().await;
    }
}

#[tokio::test]
async fn watchers_see_every_change_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    let filter = |resource: &str, namespace: Option<&str>| Filter::new(resource, namespace);
    replica.write(put("a", "1", Expect::Any)).await.unwrap();
    let mut from_start = replica.watch(filter("configmaps", Some("default")), From::After(Revision(0))).unwrap();
    let mut from_now = replica.watch(filter("configmaps", None), From::Now).unwrap();
    let mut elsewhere = replica.watch(filter("configmaps", Some("other")), From::Now).unwrap();
    let mut pods = replica.watch(filter("pods", None), From::Now).unwrap();
    let mut all = replica.watch_all();
    assert_eq!((all.objects.len(), all.revision), (1, Revision(1)));
    for n in 2..=50 {
        replica.write(put("a", &n.to_string(), Expect::Any)).await.unwrap();
    }
    replica.write(delete("a")).await.unwrap();

    let mut seen = Vec::new();
    while seen.last() != Some(&51) {
        let Some(WatchItem::Changes(changes)) = from_start.next().await else { panic!("changes come first") };
        seen.extend(changes.iter().map(|change| change.revision.0));
    }
    assert_eq!(seen, (1..=51).collect::<Vec<_>>());
    let mut seen = Vec::new();
    while seen.last() != Some(&51) {
        let Some(WatchItem::Changes(changes)) = from_now.next().await else { panic!("changes come first") };
        seen.extend(changes.iter().map(|change| change.revision.0));
    }
    assert_eq!(seen, (2..=51).collect::<Vec<_>>());
    let mut seen = Vec::new();
    while seen.last() != Some(&51) {
        let Some(WatchItem::Changes(changes)) = all.next().await else { panic!("changes come first") };
        seen.extend(changes.iter().map(|change| change.revision.0));
    }
    assert_eq!(seen, (2..=51).collect::<Vec<_>>());
    for watch in [&mut elsewhere, &mut pods] {
        watch.request_progress();
        assert!(matches!(watch.next().await, Some(WatchItem::Progress(Revision(51)))));
    }
    replica.close().await;
    assert!(from_start.next().await.is_none());
    assert!(elsewhere.next().await.is_none());
}

#[tokio::test]
async fn a_node_sees_what_comes_to_it_and_what_leaves_it() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    let pod = |name: &str, node: &str| {
        let value = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"nodeName":"{node}"}}}}"#).into();
        let key = Key::new("pods", if name == "c" { "other" } else { "default" }, name);
        Txn::one(Op::Put { key, value, expect: Expect::Any, expires: None })
    };
    let on = |node: &str, namespace| Filter { node: Some(node.into()), ..Filter::new("pods", namespace) };
    replica.write(pod("a", "")).await.unwrap();
    let filters =
        [on("n1", None), on("n2", None), on("n1", Some("default")), on("n3", None), Filter::new("pods", None)];
    let mut live: Vec<_> = filters.iter().map(|filter| replica.watch(filter.clone(), From::Now).unwrap()).collect();
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "n1"), ("a", "n1"), ("a", "n2"), ("b", "")] {
        replica.write(pod(name, node)).await.unwrap();
    }
    let key = Key::new("pods", "other", "c");
    replica.write(Txn::one(Op::Delete { key, expect: Expect::Present, last: None })).await.unwrap();
    let wanted: [&[u64]; 5] = [&[2, 4, 5, 6, 8], &[3, 6, 7], &[2, 5, 6], &[], &[2, 3, 4, 5, 6, 7, 8]];
    for ((filter, watch), want) in filters.iter().zip(&mut live).zip(wanted) {
        let mut resumed = replica.watch(filter.clone(), From::After(Revision(1))).unwrap();
        for watch in [watch, &mut resumed] {
            watch.request_progress();
            let mut seen = Vec::new();
            loop {
                match watch.next().await.unwrap() {
                    WatchItem::Changes(changes) => seen.extend(changes.iter().map(|change| change.revision.0)),
                    WatchItem::Progress(at) => break assert_eq!(at, Revision(8)),
                    WatchItem::Lagged => panic!("nobody is slow"),
                }
            }
            assert_eq!(seen, want, "{filter:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_the_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    let filter = Filter::new("configmaps", None);
    let mut slow = replica.watch(filter.clone(), From::Now).unwrap();
    let mut all = replica.watch_all();
    for n in 0..50 {
        let ops = (0..100).flat_map(|k| put(&format!("n{n}-{k}"), "x", Expect::Any).ops).collect();
        replica.write(Txn { ops }).await.unwrap();
    }
    assert!(matches!(slow.next().await, Some(WatchItem::Lagged)));
    assert!(slow.next().await.is_none());
    let mut count = 0;
    while count < 5_000 {
        let Some(WatchItem::Changes(changes)) = all.next().await else { panic!("the larger queue holds them") };
        count += changes.len();
    }
    let mut resumed = replica.watch(filter, From::After(Revision(49))).unwrap();
    assert!(matches!(resumed.next().await, Some(WatchItem::Changes(changes)) if changes.len() == 100));
}

#[tokio::test]
async fn a_watch_from_before_the_history_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    for n in 0..10 {
        replica.write(put("a", &n.to_string(), Expect::Any)).await.unwrap();
    }
    replica.close().await;
    let replica = open(config(dir.path())).await.unwrap();
    let filter = Filter::new("configmaps", None);
    assert!(replica.watch(filter.clone(), From::After(Revision(3))).is_err());
    assert!(replica.watch(filter, From::After(Revision(10))).is_ok());
}

fn files(dir: &Path) -> Vec<(String, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push((entry.path().display().to_string(), meta.len(), meta.modified().unwrap()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn the_object_database_is_rebuilt_from_a_complete_log_and_refused_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let big = Config { segment_bytes: 4 << 20, ..config(dir.path()) };
    let replica = open(big.clone()).await.unwrap();
    let kept = load(&replica, 3, 2, 50).await;
    replica.close().await;
    let objects = dir.path().join("objects");
    // The whole database is gone.
    fs::remove_dir_all(&objects).unwrap();
    let replica = open(big.clone()).await.unwrap();
    for (name, data) in &kept {
        assert_eq!(value(&replica, name), *data);
    }
    let hash = replica.state().hash();
    replica.close().await;
    // The log is gone: what it held may have been acknowledged.
    let log = dir.path().join("wal");
    let aside = dir.path().join("aside");
    fs::rename(&log, &aside).unwrap();
    assert!(matches!(open(big.clone()).await, Err(OpenError::Damaged { .. })));
    fs::remove_dir_all(&log).ok();
    fs::rename(&aside, &log).unwrap();
    // A byte of the database has changed: whichever it is, the start notices or does not need it.
    let mut rng = Rng::new(4);
    for _ in 0..12 {
        let found = files(&objects);
        let (path, len, _) = &found[rng.below(found.len() as u64) as usize];
        if *len == 0 {
            continue;
        }
        let whole = fs::read(path).unwrap();
        let mut bad = whole.clone();
        bad[rng.below(*len) as usize] ^= 0x10;
        fs::write(path, &bad).unwrap();
        let replica = open(big.clone()).await.unwrap();
        assert_eq!(replica.state().hash(), hash);
        replica.close().await;
    }
}

#[tokio::test]
async fn an_old_epoch_of_the_object_database_is_brought_forward() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    replica.write(put("a", "1", Expect::Any)).await.unwrap();
    replica.close().await;
    let old = tempfile::tempdir().unwrap();
    copy(&dir.path().join("objects"), &old.path().join("objects"));
    let replica = open(config(dir.path())).await.unwrap();
    replica.write(put("a", "2", Expect::Any)).await.unwrap();
    replica.write(put("b", "3", Expect::Any)).await.unwrap();
    replica.close().await;
    fs::remove_dir_all(dir.path().join("objects")).unwrap();
    copy(&old.path().join("objects"), &dir.path().join("objects"));
    let replica = open(config(dir.path())).await.unwrap();
    assert_eq!((value(&replica, "a").as_deref(), value(&replica, "b").as_deref()), (Some("2"), Some("3")));
    replica.close().await;

    // Once the log has dropped what lies between, there is no way forward, and the start says so.
    let replica = open(config(dir.path())).await.unwrap();
    for n in 0..1_000 {
        replica.write(put(&format!("n{}", n % 7), &"x".repeat(900), Expect::Any)).await.unwrap();
    }
    replica.close().await;
    fs::remove_dir_all(dir.path().join("objects")).unwrap();
    copy(&old.path().join("objects"), &dir.path().join("objects"));
    assert!(matches!(open(config(dir.path())).await, Err(OpenError::Damaged { .. })));
}

#[tokio::test]
async fn a_flipped_byte_in_the_object_database_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    for n in 0..400 {
        replica.write(put(&format!("n{}", n % 90), &"x".repeat(900), Expect::Any)).await.unwrap();
    }
    let hash = replica.state().hash();
    replica.close().await;
    let mut rng = Rng::new(6);
    let mut found = files(&dir.path().join("objects"));
    found.retain(|(_, len, _)| *len > 0);
    let mut refused = 0;
    for round in 0..20 {
        let (path, len, _) = &found[rng.below(found.len() as u64) as usize];
        let target = dir.path().join(format!("copy-{round}"));
        copy(&dir.path().join("objects"), &target.join("objects"));
        copy(&dir.path().join("wal"), &target.join("wal"));
        let path = target.join(Path::new(path).strip_prefix(dir.path()).unwrap());
        let mut bytes = fs::read(&path).unwrap();
        bytes[rng.below(*len) as usize] ^= 0x04;
        fs::write(&path, bytes).unwrap();
        // The log has dropped its beginning, so there is nothing to rebuild from.
        match open(config(&target)).await {
            Ok(replica) => {
                // The byte was in a place that nobody uses any more.
                assert_eq!(replica.state().hash(), hash);
                replica.close().await;
            }
            Err(OpenError::Damaged { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        fs::remove_dir_all(&target).unwrap();
    }
    assert!(refused > 0, "no flipped byte was in use");
}

#[tokio::test]
async fn values_come_back_as_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    let odd = r#"{ "z": 1.50, "a": 1e400, "metadata": {"name":"odd", "x": [] }, "u": "\u00e9é" }"#;
    let txn = Txn::one(Op::Put {
        key: key("odd"),
        value: Bytes::from_static(odd.as_bytes()),
        expect: Expect::Any,
        expires: None,
    });
    replica.write(txn).await.unwrap();
    replica.close().await;
    let replica = open(config(dir.path())).await.unwrap();
    let state = replica.state();
    let got = state.get(&key("odd")).unwrap().json().clone();
    let want =
        r#"{ "z": 1.50, "a": 1e400, "metadata": {"resourceVersion":"1","name":"odd", "x": [] }, "u": "\u00e9é" }"#;
    assert_eq!(got, want.as_bytes());
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open(config(dir.path())).await.unwrap();
    // Directories in the place of the next segment's files stand for a disk that gives no more room.
    let blocks = ["next.tmp", "spare.tmp"].map(|name| dir.path().join("wal").join(name));
    blocks.iter().for_each(|block| fs::create_dir(block).unwrap());
    let mut kept = 0;
    let why = loop {
        match replica.write(put(&format!("n{kept}"), &"x".repeat(2_000), Expect::Any)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&why, WriteError::Unavailable(why) if why.contains("free space")), "{why:?}");
    assert_eq!(replica.barrier().await.unwrap(), Revision(kept));
    assert_eq!(replica.state().len() as u64, kept);
    blocks.iter().for_each(|block| fs::remove_dir(block).unwrap());
    while let Err(error) = replica.write(put("again", "x", Expect::Any)).await {
        assert!(matches!(error, WriteError::Unavailable(_)), "{error:?}");
    }
    // The refused one may have been on its way to the log, where it waited for room: its error says that much.
    let waited = value(&replica, &format!("n{kept}")).is_some();
    let there = kept + 1 + u64::from(waited);
    assert_eq!(replica.state().len() as u64, there);
    replica.close().await;
    let replica = open(config(dir.path())).await.unwrap();
    assert_eq!(replica.state().len() as u64, there);
}
