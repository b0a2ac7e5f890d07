//! Backups: a snapshot becomes a store again, and nothing else does.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::{Alone, Config, Filter, From, ImageError, OpenError, Replica, SnapshotError, WatchItem, restore};
use dhow_types::{Rng, Time};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

async fn open(dir: &Path, member: u64) -> Result<Replica, OpenError> {
    let flush_every = Duration::from_millis(5);
    let config = Config { member, flush_every, segment_bytes: 64 << 10, ..Config::new(dir) };
    tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(Alone))).await.unwrap()
}

fn put(name: &str, bytes: usize) -> Txn {
    let value = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"v":"{}"}}}}"#, "x".repeat(bytes)).into();
    let (key, expires) = (Key::new("configmaps", "default", name), (bytes % 2 == 1).then(|| Time::from_ms(77)));
    Txn::one(Op::Put { key, value, expect: Expect::Any, expires })
}

/// A store with some objects, one of them large, and its backup.
async fn backed_up(dir: &Path) -> (Replica, Vec<u8>) {
    let replica = open(dir, 1).await.unwrap();
    for n in 0..60 {
        replica.write(put(&format!("n{}", n % 40), n * 31)).await.unwrap();
    }
    replica.write(put("large", 1_400_001)).await.unwrap();
    let pieces: Vec<_> = replica.snapshot().await.collect();
    assert!(pieces.iter().all(|piece| piece.len() <= 1 << 20));
    (replica, pieces.concat())
}

fn objects(replica: &Replica) -> Vec<(Key, u64, Option<Time>, bytes::Bytes)> {
    let state = replica.state();
    state.iter().map(|o| (o.key.clone(), o.revision.0, o.expires, o.json().clone())).collect()
}

#[tokio::test]
async fn a_backup_is_consistent_and_becomes_a_store_of_one_member() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, backup) = backed_up(&dir.path().join("a")).await;
    let want = objects(&replica);
    let seen = replica.state().revision();
    // What is written while the bytes are made does not show in them.
    let mut late = replica.snapshot().await;
    replica.write(put("later", 1)).await.unwrap();
    assert_eq!(late.by_ref().flat_map(|piece| piece.to_vec()).collect::<Vec<u8>>(), backup);

    let target = dir.path().join("new/store");
    let restored = restore(&backup[..], &target, 7).unwrap();
    assert_eq!((restored.objects, restored.snapshot), (want.len(), seen));
    for round in 0..2 {
        let copy = open(&target, 7).await.unwrap();
        assert_eq!(copy.status().await.unwrap().members.voters, [7]);
        if round == 0 {
            assert_eq!(objects(&copy), want);
            assert_eq!(copy.state().revision(), restored.revision);
            // No revision that somebody may have seen comes again, and who saw one has to list anew.
            let filter = Filter::new("configmaps", None);
            assert!(copy.watch(filter.clone(), From::After(replica.state().revision())).is_err());
            let mut watch = copy.watch(filter, From::Now).unwrap();
            let applied = copy.write(put("n1", 5)).await.unwrap();
            assert_eq!(applied.revision.0, restored.revision.0 + 1);
            assert!(matches!(watch.next().await, Some(WatchItem::Changes(_))));
        } else {
            assert_eq!(objects(&copy).len(), want.len());
            assert_eq!(copy.state().revision().0, restored.revision.0 + 1);
        }
        copy.close().await;
    }
    assert!(matches!(open(&target, 1).await, Err(OpenError::OtherMember { found: 7, wanted: 1, .. })));
}

#[tokio::test]
async fn a_backup_that_is_not_whole_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_replica, backup) = backed_up(&dir.path().join("a")).await;
    let target = dir.path().join("target");
    let mut rng = Rng::new(8);
    for _ in 0..30 {
        let cut = rng.below(backup.len() as u64) as usize;
        let error = restore(&backup[..cut], &target, 1).unwrap_err();
        assert!(matches!(error, SnapshotError::Image(ImageError::Short)), "{error}");
        let mut bad = backup.clone();
        bad[cut] ^= 1 << rng.below(8);
        let error = restore(&bad[..], &target, 1).unwrap_err();
        assert!(matches!(error, SnapshotError::Image(_)), "{error}");
    }
    assert!(!target.exists());
    let names = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(dir.path()), ["a"], "nothing is left beside it either");
    // A directory that is used is left alone; an empty one is taken.
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "x").unwrap();
    let error = restore(&backup[..], &target, 1).unwrap_err();
    assert!(matches!(error, SnapshotError::Occupied { .. }), "{error}");
    assert_eq!(fs::read(target.join("mine")).unwrap(), b"x");
    fs::remove_file(target.join("mine")).unwrap();
    restore(&backup[..], &target, 1).unwrap();
    assert_eq!(open(&target, 1).await.unwrap().state().len(), 41);
}
