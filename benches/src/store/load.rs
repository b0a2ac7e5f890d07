//! A closed loop: so many callers, each with one request under way at a time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a load came to.
pub(crate) struct Outcome {
    /// Requests that were answered, a second.
    pub(crate) rate: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:>9.0}/s   p50 {:.2} ms   p99 {:.2} ms", self.rate, ms(self.p50), ms(self.p99))
    }
}

/// The one whose rate is in the middle; `None` of none.
pub(crate) fn median(mut outcomes: Vec<Outcome>) -> Option<Outcome> {
    outcomes.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let middle = outcomes.len() / 2;
    outcomes.into_iter().nth(middle)
}

/// Lets `callers` call `request` for `length`; each request gets a number of its own. The first failure ends the load.
pub(crate) async fn closed_loop<F, R>(callers: usize, length: Duration, request: F) -> anyhow::Result<Outcome>
where
    F: Fn(usize, u64) -> R + Clone + Send + 'static,
    R: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let end = start + length;
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (request, next) = (request.clone(), next.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    request(caller, next.fetch_add(1, Ordering::Relaxed)).await?;
                    times.push(begun.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    Ok(Outcome { rate, p50: at(0.5), p99: at(0.99) })
}

/// Half of it compresses well, as objects do; no two are alike.
pub(crate) fn value(number: u64, bytes: usize) -> String {
    let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes / 2 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // Digits by hand: a load costs the machine that it measures as little as possible.
        text.extend((0..16).map(|digit| char::from(b"0123456789abcdef"[(seed >> (4 * digit)) as usize & 15])));
    }
    text.truncate(bytes / 2);
    text.push_str(&"a".repeat(bytes - text.len()));
    text
}
