//! Several members in one process: what is acknowledged by any is on all, whoever stops, starts, joins or leaves.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use bytes::Bytes;
use dhow_state::{Expect, Key, Op, Rejected, Txn};
use dhow_store::{
    Alone, ChangeError, Config, Filter, From, MemberChange, Members, Peers, Replica, Role, Snapshot, Start, Watch,
    WatchItem, WriteError,
};
use dhow_types::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;

/// Channels between the members of a test.
#[derive(Default)]
struct Network {
    members: Mutex<BTreeMap<u64, Replica>>,
    /// Those who hear and are heard by nobody.
    cut: Mutex<BTreeSet<u64>>,
    /// Snapshots that were taken in, by member.
    snapshots: Mutex<Vec<u64>>,
    /// What was last sent to each member as a snapshot.
    streams: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// How many of the next snapshots do not arrive as they were sent.
    spoils: AtomicU64,
}

struct Wire {
    from: u64,
    network: Arc<Network>,
    runtime: Handle,
}

impl Network {
    fn reach(&self, from: u64, to: u64) -> Option<Replica> {
        let cut = self.cut.lock().unwrap();
        let open = !cut.contains(&from) && !cut.contains(&to);
        open.then(|| self.members.lock().unwrap().get(&to).cloned()).flatten()
    }
}

impl Peers for Wire {
    fn send(&self, to: u64, message: Bytes) {
        if let Some(member) = self.network.reach(self.from, to) {
            member.receive(message);
        }
    }

    fn send_snapshot(&self, to: u64, snapshot: Snapshot) {
        let (from, network) = (self.from, self.network.clone());
        self.runtime.spawn(async move {
            let mut stream: Vec<u8> = snapshot.flat_map(|piece| piece.to_vec()).collect();
            network.streams.lock().unwrap().insert(to, stream.clone());
            let spoil = network.spoils.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            match spoil {
                Ok(left) if left % 2 == 0 => stream.truncate(stream.len() / 2),
                Ok(_) => stream[60] ^= 4,
                Err(_) => {}
            }
            let taken = match network.reach(from, to) {
                Some(member) => member.receive_snapshot(&stream[..]).await.is_ok(),
                None => false,
            };
            if taken {
                network.snapshots.lock().unwrap().push(to);
            }
            if let Some(sender) = network.reach(to, from) {
                sender.snapshot_sent(to, taken);
            }
        });
    }
}

struct Cluster {
    network: Arc<Network>,
    dir: tempfile::TempDir,
    witness: Option<u64>,
    flush_every: Duration,
}

/// Long enough for any election of these tests on a busy machine; nothing is expected to take it.
const PATIENCE: Duration = Duration::from_secs(60);

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

impl Cluster {
    fn new(witness: Option<u64>) -> Self {
        let flush_every = Duration::from_millis(5);
        Self { network: Arc::default(), dir: tempfile::tempdir().unwrap(), witness, flush_every }
    }

    fn path(&self, member: u64) -> PathBuf {
        self.dir.path().join(format!("m{member}"))
    }

    async fn open(&self, member: u64) -> Replica {
        let config = Config {
            member,
            start: if member == 1 { Start::New } else { Start::Join },
            witness: self.witness == Some(member),
            segment_bytes: 64 << 10,
            flush_every: self.flush_every,
            // An election in a second: shorter ones follow one another where the disk is busy with something else.
            tick: Duration::from_millis(60),
            ..Config::new(self.path(member))
        };
        let wire = Wire { from: member, network: self.network.clone(), runtime: Handle::current() };
        let opened = tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(wire))).await.unwrap();
        let replica = opened.unwrap();
        self.network.members.lock().unwrap().insert(member, replica.clone());
        replica
    }

    /// Stops a member; the others may notice at once, or have it cut off before.
    async fn close(&self, member: u64) {
        let replica = self.network.members.lock().unwrap().remove(&member).unwrap();
        replica.close().await;
    }

    async fn kill(&self, member: u64) {
        self.network.cut.lock().unwrap().insert(member);
        self.close(member).await;
        self.network.cut.lock().unwrap().remove(&member);
    }

    fn member(&self, member: u64) -> Replica {
        self.network.members.lock().unwrap()[&member].clone()
    }

    /// Members 1 to `count`, all voting.
    async fn start(count: u64, witness: Option<u64>) -> Self {
        let cluster = Self::new(witness);
        cluster.grow(count).await;
        cluster
    }

    async fn grow(&self, count: u64) {
        self.open(1).await;
        for member in 2..=count {
            self.open(member).await;
            self.admit(member).await;
        }
    }

    /// Makes a voter of a member that is up.
    async fn admit(&self, member: u64) {
        let one = self.member(1);
        change(&one, &[MemberChange::AddLearner(member)]).await;
        assert!(change(&one, &[MemberChange::Promote(member)]).await.votes(member));
    }

    /// The member that leads, in the eyes of all who are up.
    async fn leader(&self) -> u64 {
        let all: Vec<Replica> = self.network.members.lock().unwrap().values().cloned().collect();
        patiently("all agree on a leader", async {
            loop {
                let mut seen = BTreeSet::new();
                for member in &all {
                    let mut role = member.role();
                    let now = *role.wait_for(|now| now.leader.is_some()).await.unwrap();
                    seen.insert((now.term, now.leader));
                }
                if let (1, Some((_, Some(leader)))) = (seen.len(), seen.first()) {
                    break *leader;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// All who hold objects hold the same ones.
    async fn assert_equal(&self) {
        let all: Vec<Replica> = self.network.members.lock().unwrap().values().cloned().collect();
        let mut hashes = BTreeSet::new();
        for member in all {
            if member.status().await.unwrap().witness {
                continue;
            }
            patiently("a barrier", barrier(&member)).await;
            hashes.insert((member.state().revision(), member.state().hash()));
        }
        assert_eq!(hashes.len(), 1, "{hashes:?}");
    }
}

/// Changes the members, however often the leader changes meanwhile; a learner is promoted when it has caught up.
async fn change(member: &Replica, changes: &[MemberChange]) -> Members {
    patiently("a change of the members", async {
        loop {
            match member.change_members(changes.to_vec()).await {
                Ok(members) => return members,
                Err(WriteError::NoLeader | WriteError::Lost) => {}
                Err(WriteError::Change(ChangeError::Lags(_) | ChangeError::Silent(_))) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn barrier(member: &Replica) -> Revision {
    loop {
        match member.barrier().await {
            Ok(revision) => return revision,
            Err(WriteError::NoLeader) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn key(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

fn put(name: &str, expect: Expect) -> Txn {
    sized(name, 10, expect)
}

fn sized(name: &str, bytes: usize, expect: Expect) -> Txn {
    let value = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"v":"{}"}}}}"#, "x".repeat(bytes));
    Txn::one(Op::Put { key: key(name), value: value.into(), expect, expires: None })
}

/// Writes until it is acknowledged; a lost answer may hide a success.
async fn write(member: &Replica, name: &str) {
    write_txn(member, put(name, Expect::Absent)).await;
}

async fn write_txn(member: &Replica, txn: Txn) {
    patiently("a write", async {
        loop {
            match member.write(txn.clone()).await {
                Ok(_) | Err(WriteError::Rejected(Rejected::Exists { .. })) => return,
                Err(WriteError::NoLeader | WriteError::Lost) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_takes_writes_and_reads_its_own() {
    let cluster = Cluster::start(3, None).await;
    for n in 0..30 {
        let member = cluster.member(n % 3 + 1);
        write(&member, &format!("n{n}")).await;
        let seen = member.state().revision();
        assert!(member.state().get(&key(&format!("n{n}"))).is_some(), "a member reads what it wrote");
        let other = cluster.member((n + 1) % 3 + 1);
        assert!(barrier(&other).await >= seen, "and so does every other after a barrier");
        assert!(other.state().get(&key(&format!("n{n}"))).is_some());
        let again = other.write(put(&format!("n{n}"), Expect::Absent)).await;
        assert!(matches!(again, Err(WriteError::Rejected(Rejected::Exists { .. }) | WriteError::Lost)), "{again:?}");
    }
    cluster.assert_equal().await;
    let status = cluster.member(cluster.leader().await).status().await.unwrap();
    assert_eq!((status.members.voters, status.progress.len()), (vec![1, 2, 3], 3));
    assert!(status.log_bytes > 0 && status.objects == 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_and_comes_back() {
    let cluster = Cluster::start(3, None).await;
    let mut name = 0;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        let survivor = cluster.member(leader % 3 + 1);
        let mut running = Vec::new();
        for _ in 0..20 {
            let (member, name) = (survivor.clone(), format!("n{name}"));
            running.push(tokio::spawn(async move { write(&member, &name).await }));
        }
        cluster.kill(leader).await;
        for task in running {
            task.await.unwrap();
        }
        name += 1;
        write(&survivor, &format!("after-{name}")).await;
        assert_ne!(cluster.leader().await, leader);
        cluster.open(leader).await;
        cluster.assert_equal().await;
    }
    assert!(cluster.network.snapshots.lock().unwrap().len() <= 2, "who was away for a moment needs no snapshot");
}

/// What a crash would leave of a directory whose writer is idle: the log syncs what it writes.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Its database was last flushed when it was alone; only its log knows of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_is_killed_young_does_not_take_itself_to_be_alone() {
    let mut cluster = Cluster::new(None);
    cluster.flush_every = Duration::from_secs(3600);
    cluster.grow(3).await;
    write(&cluster.member(1), "first").await;
    let crashed = cluster.dir.path().join("crashed");
    copy(&cluster.path(1), &crashed);
    cluster.kill(1).await;
    std::fs::remove_dir_all(cluster.path(1)).unwrap();
    std::fs::rename(crashed, cluster.path(1)).unwrap();

    // Nobody hears it until it is open, as when a process starts.
    let leader = cluster.leader().await;
    write(&cluster.member(leader), "second").await;
    patiently("a start that waits for nobody", cluster.open(1)).await;
    cluster.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_closed_hands_over_first() {
    let cluster = Cluster::start(3, None).await;
    let leader = cluster.leader().await;
    let survivor = cluster.member(leader % 3 + 1);
    cluster.close(leader).await;
    let now = *survivor.role().borrow();
    assert!(now.leader.is_some_and(|next| next != leader), "{now:?}");
    write(&survivor, "a").await;

    let next = cluster.leader().await;
    let wanted = cluster.network.members.lock().unwrap().keys().copied().find(|member| *member != next).unwrap();
    survivor.transfer_leadership(Some(wanted)).await.unwrap();
    assert_eq!(cluster.leader().await, wanted);
}

async fn fill(member: &Replica, from: u64, count: u64) {
    for n in from..from + count {
        let ops = (0..50).flat_map(|k| sized(&format!("n{}", (n * 50 + k) % 700), 900, Expect::Any).ops).collect();
        write_txn(member, Txn { ops }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lags_too_far_gets_a_snapshot() {
    let cluster = Cluster::start(3, None).await;
    let laggard = cluster.leader().await % 3 + 1;
    let behind = cluster.member(laggard);
    barrier(&behind).await;
    let mut watch: Watch = behind.watch(Filter::new("configmaps", None), From::Now).unwrap();
    let others: Vec<u64> = (1..=3).filter(|member| *member != laggard).collect();
    cluster.network.cut.lock().unwrap().insert(laggard);
    fill(&cluster.member(others[0]), 0, 40).await;
    // Who starts anew keeps of the log only what is not flushed.
    for member in &others {
        cluster.close(*member).await;
    }
    for member in &others {
        cluster.open(*member).await;
    }
    write(&cluster.member(others[0]), "more").await;
    let before = cluster.network.snapshots.lock().unwrap().len();
    cluster.network.cut.lock().unwrap().remove(&laggard);
    cluster.assert_equal().await;
    assert!(cluster.network.snapshots.lock().unwrap()[before..].contains(&laggard));
    assert!(matches!(watch.next().await, Some(WatchItem::Lagged)), "what lies between is not known");
    assert!(watch.next().await.is_none());
    // The image is on its disk, and its log goes on behind it.
    write(&behind, "last").await;
    drop((watch, behind));
    for member in 1..=3 {
        cluster.close(member).await;
    }
    for member in 1..=3 {
        cluster.open(member).await;
    }
    cluster.assert_equal().await;
    assert_eq!(cluster.member(laggard).state().len(), 702);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_arrives_spoiled_is_sent_again() {
    let cluster = Cluster::start(1, None).await;
    fill(&cluster.member(1), 0, 5).await;
    cluster.network.spoils.store(2, Ordering::SeqCst);
    let joined = cluster.open(2).await;
    cluster.admit(2).await;
    cluster.assert_equal().await;
    assert_eq!(cluster.network.spoils.load(Ordering::SeqCst), 0);
    assert_eq!(*cluster.network.snapshots.lock().unwrap(), [2], "the spoiled ones were refused");
    assert_eq!(joined.state().len(), 250);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_was_emptied_does_not_vote_again() {
    let cluster = Cluster::start(3, None).await;
    fill(&cluster.member(1), 0, 5).await;
    let emptied = cluster.leader().await % 3 + 1;
    cluster.assert_equal().await;
    cluster.kill(emptied).await;
    std::fs::remove_dir_all(cluster.path(emptied)).unwrap();
    let member = cluster.open(emptied).await;
    let why = patiently("it notices", async {
        loop {
            match member.write(put("x", Expect::Any)).await {
                Err(WriteError::Unavailable(why)) => break why,
                Err(WriteError::NoLeader | WriteError::Lost) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert!(why.contains("had acknowledged its log up to"), "{why}");
    assert_eq!(member.state().len(), 0);
    let other = cluster.member(emptied % 3 + 1);
    write(&other, "without").await;
    // Under another number it is welcome.
    change(&other, &[MemberChange::Remove(emptied)]).await;
    cluster.close(emptied).await;
    cluster.open(4).await;
    change(&other, &[MemberChange::AddLearner(4)]).await;
    change(&other, &[MemberChange::Promote(4)]).await;
    cluster.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_under_load() {
    let cluster = Cluster::start(1, None).await;
    let first = cluster.member(1);
    fill(&first, 0, 5).await;
    let (load, stop) = (first.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let mut written = 0;
        while !stopped.load(Ordering::Relaxed) {
            write(&load, &format!("load-{written}")).await;
            written += 1;
        }
        written
    });
    for member in [2, 3] {
        cluster.open(member).await;
        cluster.admit(member).await;
        patiently("a barrier", barrier(&cluster.member(member))).await;
    }
    // Two at once, by joint consensus: 4 takes the place of 3.
    cluster.open(4).await;
    change(&first, &[MemberChange::AddLearner(4)]).await;
    change(&first, &[MemberChange::Promote(4), MemberChange::Remove(3)]).await;
    let mut role = cluster.member(3).role();
    patiently("the removed one notices", role.wait_for(|now| now.role == Role::Removed)).await.unwrap();
    assert!(matches!(cluster.member(3).write(put("x", Expect::Any)).await, Err(WriteError::Unavailable(_))));
    cluster.close(3).await;
    let refused = first.change_members(vec![MemberChange::Promote(9)]).await;
    assert_eq!(refused.unwrap_err(), WriteError::Change(ChangeError::NoLearner(9)));
    // Down to one again.
    for member in [2, 4] {
        let members = change(&first, &[MemberChange::Remove(member)]).await;
        assert!(!members.contains(member));
        cluster.close(member).await;
    }
    stop.store(true, Ordering::Relaxed);
    let written = load.await.unwrap();
    write(&first, "alone").await;
    drop(first);
    cluster.close(1).await;
    let first = cluster.open(1).await;
    assert_eq!(first.state().count("configmaps", None), 250 + written + 1, "a member alone again starts by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_is_needed_and_nobody_is_told_otherwise() {
    let cluster = Cluster::start(3, None).await;
    write(&cluster.member(1), "before").await;
    let alone = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|member| *member != alone).collect();
    cluster.network.cut.lock().unwrap().insert(alone);
    let cut_off = cluster.member(alone);
    let ended = patiently("an answer", cut_off.write(put("lost", Expect::Absent))).await;
    assert!(matches!(ended, Err(WriteError::Lost | WriteError::NoLeader)), "{ended:?}");
    let read = patiently("an answer", cut_off.barrier()).await;
    assert!(read.is_err(), "a member that is cut off does not know what is new");
    write(&cluster.member(others[0]), "kept").await;
    cluster.network.cut.lock().unwrap().remove(&alone);
    cluster.assert_equal().await;
    assert!(cut_off.state().get(&key("kept")).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_forgotten_what_it_acknowledged_ends_and_says_so_ever_after() {
    let cluster = Cluster::start(3, None).await;
    cluster.close(3).await;
    let old = cluster.dir.path().join("old");
    copy(&cluster.path(3), &old);
    cluster.open(3).await;
    fill(&cluster.member(1), 0, 10).await;
    cluster.assert_equal().await;
    cluster.close(3).await;
    std::fs::remove_dir_all(cluster.path(3)).unwrap();
    copy(&old, &cluster.path(3));
    let forgetful = cluster.open(3).await;
    let failure = patiently("it hears of what it had", forgetful.failed()).await;
    assert!(failure.is_loss && failure.why.contains("the member had acknowledged its log up to entry"), "{failure}");
    cluster.close(3).await;
    let config = Config { member: 3, start: Start::Join, ..Config::new(cluster.path(3)) };
    let opened = tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(Alone))).await.unwrap();
    let refused = opened.unwrap_err().to_string();
    assert!(refused.contains(&failure.why) && refused.contains("cannot be trusted"), "{refused}");
}

#[tokio::test]
async fn a_panic_of_the_replicas_thread_is_told() {
    struct Broken;
    impl Peers for Broken {
        fn send(&self, _to: u64, _message: Bytes) {
            panic!("a broken link");
        }

        fn send_snapshot(&self, _to: u64, _snapshot: Snapshot) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(dir.path());
    let opened = tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(Broken))).await.unwrap();
    let replica = opened.unwrap();
    let added = replica.change_members(vec![MemberChange::AddLearner(2)]);
    let (failure, _) = tokio::join!(patiently("the panic", replica.failed()), added);
    assert!(!failure.is_loss && failure.why.contains("panicked: a broken link"), "{failure}");
    assert!(matches!(replica.barrier().await, Err(WriteError::Unavailable(_))));
    replica.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_votes_and_holds_no_objects() {
    let cluster = Cluster::start(2, Some(3)).await;
    write(&cluster.member(1), "not-for-the-witness").await;
    let witness = cluster.open(3).await;
    cluster.admit(3).await;
    let shows = |to: u64| {
        let streams = cluster.network.streams.lock().unwrap();
        streams[&to].windows(19).any(|part| part == b"not-for-the-witness")
    };
    assert!(!shows(3), "a witness is not sent what it does not need");
    fill(&cluster.member(1), 0, 10).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        assert_ne!(leader, 3, "a witness does not keep the lead");
        let survivor = 3 - leader;
        cluster.kill(leader).await;
        write(&cluster.member(survivor), &format!("without-{leader}")).await;
        assert_eq!(witness.state().len(), 0);
        assert!(matches!(witness.barrier().await, Err(WriteError::Unavailable(_))));
        cluster.open(leader).await;
        cluster.assert_equal().await;
    }
    let status = witness.status().await.unwrap();
    assert!(status.witness && status.applied.index > 10);
    drop(witness);
    for member in 1..=3 {
        cluster.close(member).await;
    }
    for member in 1..=3 {
        cluster.open(member).await;
    }
    write(&cluster.member(1), "again").await;
    cluster.assert_equal().await;
}
