use super::*;
use crate::image::Snapshot;
use crate::replica::{Alone, Replica};
use dhow_state::{Expect, HistoryMax, Key, Op, Txn};
use std::sync::Arc;
use std::time::Duration;

fn config(dir: &Path) -> Config {
    Config { segment_bytes: 16 << 10, flush_every: Duration::from_millis(1), ..Config::new(dir) }
}

fn put(name: &str) -> Txn {
    let padding = "x".repeat(700);
    let value = format!("{{\"metadata\":{{\"name\":\"{name}\"}},\"data\":\"{padding}\"}}").into();
    Txn::one(Op::Put { key: Key::new("pods", "a", name), value, expect: Expect::Any, expires: None })
}

async fn open(dir: &Path) -> Result<Replica, OpenError> {
    let config = config(dir);
    tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(Alone))).await.unwrap()
}

/// A closed store with some writes.
async fn store(dir: &Path, writes: u64) -> u64 {
    let replica = open(dir).await.unwrap();
    for n in 0..writes {
        replica.write(put(&format!("p{}", n % 50))).await.unwrap();
    }
    let hash = replica.state().hash();
    replica.close().await;
    hash
}

/// A state that is ahead of every store of these tests, and where it stands.
fn image() -> (State, Checkpoint) {
    let mut state = State::new(HistoryMax::default());
    for index in 1..=1_000 {
        state.apply(index, &put(&format!("image-{}", index % 70))).unwrap();
    }
    let (applied, members) = (Position { index: 1_000, term: 9 }, Members::founded_by(1));
    let (revision, hash) = (state.revision().0, state.hash());
    (state, Checkpoint { applied, revision, hash, members })
}

/// Leaves the directory as a crash does after `step` steps of an installation, and gives the hash that a start must
/// find: that of the former state or of the image.
fn crash_while_installing(dir: &Path, step: u32, former: u64) -> u64 {
    let (state, checkpoint) = image();
    let objects: Vec<_> = state.iter().cloned().collect();
    let made = tempfile::tempdir().unwrap();
    drop(Objects::install(made.path(), 1, None, &objects, &checkpoint).unwrap());
    let fresh = Objects::path(made.path());
    match step {
        0 => {
            // In the middle of making it.
            fs::create_dir(dir.join("objects.tmp")).unwrap();
            fs::write(dir.join("objects.tmp/half"), "x").unwrap();
            return former;
        }
        1 => copy(&fresh, &dir.join("objects.next")),
        2 => {
            copy(&fresh, &dir.join("objects.next"));
            fs::remove_dir_all(dir.join("objects")).unwrap();
        }
        _ => {
            fs::remove_dir_all(dir.join("objects")).unwrap();
            copy(&fresh, &dir.join("objects"));
        }
    }
    state.hash()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (source, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            fs::copy(source, target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_step_of_an_installation_leaves_one_state_or_the_other() {
    for writes in [3, 90] {
        for step in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let former = store(dir.path(), writes).await;
            let want = crash_while_installing(dir.path(), step, former);
            for round in 0..3 {
                let replica = open(dir.path()).await.unwrap();
                let hash = replica.state().hash();
                if round == 0 {
                    assert_eq!(hash, want, "{writes} writes, step {step}");
                }
                let status = replica.status().await.unwrap();
                if want != former {
                    assert!(status.applied.index >= 1_000 && status.term > 9);
                }
                replica.write(put(&format!("after-{round}"))).await.unwrap();
                replica.close().await;
            }
            let replica = open(dir.path()).await.unwrap();
            assert!((0..3).all(|n| replica.state().get(&Key::new("pods", "a", format!("after-{n}"))).is_some()));
            replica.close().await;
        }
    }
}

#[tokio::test]
async fn an_installed_image_is_not_replaced_by_the_log_before_it() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), 60).await;
    let (state, checkpoint) = image();
    let objects: Vec<_> = state.iter().cloned().collect();
    drop(Objects::install(dir.path(), 1, None, &objects, &checkpoint).unwrap());
    let (mut wal, _) = Wal::open(&dir.path().join("wal"), 1, 16 << 10, 0).unwrap();
    wal.reset(Default::default(), checkpoint).unwrap();
    drop(wal);
    // The image alone was durable; then it is damaged: the log cannot bring it back, and must not pretend to.
    fs::remove_dir_all(dir.path().join("objects")).unwrap();
    assert!(matches!(open(dir.path()).await, Err(OpenError::Damaged { .. })));
}

#[tokio::test]
async fn how_a_store_began_is_decided_once() {
    let dir = tempfile::tempdir().unwrap();
    let join = Config { start: Start::Join, ..config(dir.path()) };
    drop(recover(&join).unwrap());
    // Nothing has come yet, and the next start is asked for a new cluster by mistake.
    let recovered = recover(&config(dir.path())).unwrap();
    assert!(recovered.restored.members.is_empty());
    drop(recovered);

    let dir = tempfile::tempdir().unwrap();
    drop(recover(&config(dir.path())).unwrap());
    let recovered = recover(&Config { start: Start::Join, ..config(dir.path()) }).unwrap();
    assert_eq!(recovered.restored.members, Members::founded_by(1));
    assert_eq!(recovered.restored.applied, FOUNDED);
}

#[tokio::test]
async fn a_database_of_the_former_format_is_read_and_a_newer_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let hash = store(dir.path(), 30).await;
    let path = Objects::path(dir.path());
    let image = |path: &Path| Objects::load(path, 1, Duration::from_secs(60)).unwrap().1.unwrap();
    let head = |format: u64, checkpoint: &Checkpoint| {
        let Checkpoint { applied, revision, hash, .. } = checkpoint;
        [format, 1, applied.index, applied.term, *revision, *hash].map(u64::to_be_bytes).concat()
    };
    let checkpoint = image(&path).checkpoint;
    Objects::open(&path, 1).unwrap().put_head(head(1, &checkpoint));
    let old = image(&path);
    assert_eq!((old.checkpoint.members, old.objects.len(), old.installed), (Members::founded_by(1), 30, false));
    let replica = open(dir.path()).await.unwrap();
    assert_eq!(replica.state().hash(), hash);
    replica.write(put("more")).await.unwrap();
    replica.close().await;
    Objects::open(&path, 1).unwrap().put_head(head(9, &checkpoint));
    assert!(matches!(open(dir.path()).await, Err(OpenError::Newer { found: 9, .. })));
}

#[test]
fn a_snapshot_of_a_state_shows_its_place() {
    let (state, checkpoint) = image();
    let snapshot = Snapshot::new(&state, checkpoint.applied, checkpoint.members.clone());
    assert_eq!((snapshot.position(), snapshot.revision().0), (checkpoint.applied, checkpoint.revision));
    assert_eq!(snapshot.members(), &checkpoint.members);
}
