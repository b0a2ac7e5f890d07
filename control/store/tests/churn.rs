//! A month of a cluster's life, replayed as fast as the disk allows: the object database must not grow with what has
//! been, only with what is.

#![allow(clippy::unwrap_used, reason = "a test may stop where it finds what it does not expect")]

use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::{Alone, Config, Replica};
use dhow_types::{Rng, Time};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the database may take beside twice what lives in it: empty slots of each size, and a log of its own.
const BESIDE_BYTES: u64 = 4 << 20;

/// A round is a minute. So many pass within seconds; `DHOW_CHURN_ROUNDS` names another number: a month has 43,200.
const ROUNDS: u64 = 200;

const MINUTE_MS: u64 = 60_000;

/// In each round: objects that get another content and size, as ConfigMaps and statuses do, of so many that there are.
const CHANGED: u64 = 10;
const KEPT: u64 = 1_000;

/// How many rounds an object lives that comes under a name of its own, as a pod does.
const LIVES: u64 = 50;

/// In each round: objects that expire after an hour, as events do.
const EVENTS: u64 = 5;
const EVENT_MS: u64 = 60 * MINUTE_MS;

/// Rounds between two looks at the disk, and how often the store is closed and opened again.
const LOOK_EVERY: u64 = 50;
const RESTARTS: u64 = 4;

async fn open(dir: &Path) -> Replica {
    // A flush after the other, so that there are about as many as a month has, with one every half minute.
    let config = Config { segment_bytes: 256 << 10, flush_every: Duration::ZERO, ..Config::new(dir) };
    tokio::task::spawn_blocking(move || Replica::open(config, Arc::new(Alone)).unwrap()).await.unwrap()
}

fn key(resource: &str, name: String) -> Key {
    Key::new(resource, "default", name)
}

fn put(key: Key, rng: &mut Rng, bytes: usize, expires: Option<Time>) -> Op {
    // Nothing that compresses well.
    let data: String = (0..bytes / 16).map(|_| format!("{:016x}", rng.next_u64())).collect();
    let value = format!(r#"{{"metadata":{{"name":"{}"}},"data":{{"v":"{data}"}}}}"#, key.name);
    Op::Put { key, value: value.into(), expect: Expect::Any, expires }
}

fn delete(key: Key) -> Op {
    Op::Delete { key, expect: Expect::Present, last: None }
}

fn changes(replica: &Replica, round: u64, rng: &mut Rng) -> Txn {
    let now = Time::from_ms(0) + round * MINUTE_MS;
    let mut ops = Vec::new();
    for n in 0..CHANGED {
        let bytes = [100, 900, 5_000, 20_000][rng.below(4) as usize];
        let name = format!("kept-{}", (round * CHANGED + n) % KEPT);
        ops.push(put(key("configmaps", name), rng, bytes, None));
    }
    ops.push(put(key("pods", format!("pod-{round}")), rng, 3_000, None));
    if let Some(ended) = round.checked_sub(LIVES) {
        ops.push(delete(key("pods", format!("pod-{ended}"))));
    }
    for n in 0..EVENTS {
        ops.push(put(key("events", format!("event-{round}-{n}")), rng, 700, Some(now + EVENT_MS)));
    }
    ops.extend(replica.state().expired(now).map(|object| delete(object.key.clone())));
    Txn { ops }
}

fn live_bytes(replica: &Replica) -> u64 {
    replica.state().iter().map(|object| object.json().len() as u64).sum()
}

#[tokio::test]
async fn churn_does_not_let_the_database_grow() {
    let dir = tempfile::tempdir().unwrap();
    let rounds: u64 = std::env::var("DHOW_CHURN_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let begun = Instant::now();
    let mut rng = Rng::new(9);
    let mut replica = open(dir.path()).await;
    let (mut most, mut most_beside, mut written) = (0, 0, 0);
    for round in 0..rounds {
        if round > 0 && round % (rounds / RESTARTS).max(1) == 0 {
            replica.close().await;
            replica = open(dir.path()).await;
        }
        let txn = changes(&replica, round, &mut rng);
        written +=
            txn.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() as u64 } else { 0 }).sum::<u64>();
        replica.write(txn).await.unwrap();
        if round % LOOK_EVERY == LOOK_EVERY - 1 {
            let (bytes, live) = (replica.status().await.unwrap().database_bytes, live_bytes(&replica));
            most = most.max(bytes);
            most_beside = most_beside.max(bytes.saturating_sub(2 * live));
            assert!(bytes <= 2 * live + BESIDE_BYTES, "round {round}: {bytes} bytes for {live}");
        }
    }
    let objects = replica.state().len() as u64;
    assert_eq!(
        objects,
        KEPT.min(rounds * CHANGED) + rounds.min(LIVES) + EVENTS * rounds.min(EVENT_MS / MINUTE_MS),
        "what ended is gone"
    );
    println!(
        "{rounds} rounds in {:.0?}: {written} bytes written, {} live at the end; at most {most} on the disk, \
         {most_beside} beside twice what lived",
        begun.elapsed(),
        live_bytes(&replica),
    );
    let status = replica.status().await.unwrap();
    assert!(status.log_bytes < 4 << 20, "the log is cut behind the flushes: {}", status.log_bytes);
    replica.close().await;
}
