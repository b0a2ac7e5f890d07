//! From an empty data directory to ready, and the memory of an idle cluster.

use crate::cluster::Cluster;
use crate::figure;
use std::time::Duration;

/// How long a cluster is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(5);

/// Starts are repeated this often.
const ROUNDS: usize = 5;

pub(crate) async fn measure() -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(Cluster::start()?.ready_after);
    }
    times.sort();
    figure("dhow up, empty data dir to ready, median", format!("{} ms", times[ROUNDS / 2].as_millis()));
    let cluster = Cluster::start()?;
    tokio::time::sleep(SETTLE).await;
    figure("dhow up, idle, resident", format!("{:.1} MB", cluster.resident_kib()? as f64 / 1024.0));
    Ok(())
}
