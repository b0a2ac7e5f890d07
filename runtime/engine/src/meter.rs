//! Counts the CPU time of a container's guests and holds it to its limit.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::ticker::Ticker;

/// A container may save up this much time and spend it at once, as Linux's 100 ms period allows.
const BURST_MS: u64 = 100;
/// The longest that a container is made to wait before it is looked at again.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The CPU time of one container.
pub(crate) struct Cpu {
    used_ns: AtomicU64,
    bucket: Option<Mutex<Bucket>>,
}

/// Time that may be spent; negative when too much has been.
struct Bucket {
    /// CPU nanoseconds that flow in each millisecond: the limit in thousandths of a CPU, times 1000.
    per_ms: u64,
    saved_ns: i64,
    at: Instant,
}

impl Cpu {
    pub(crate) fn new(limit_m: Option<u32>) -> Arc<Self> {
        let bucket = limit_m.filter(|&limit| limit > 0).map(|limit| {
            let per_ms = u64::from(limit) * 1000;
            Mutex::new(Bucket { per_ms, saved_ns: (per_ms * BURST_MS) as i64, at: Instant::now() })
        });
        Arc::new(Self { used_ns: AtomicU64::new(0), bucket })
    }

    pub(crate) fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }

    /// Takes `spent_ns` from the bucket and says how long the container must pause.
    fn charge(&self, spent_ns: u64, now: impl FnOnce() -> Instant) -> Option<Duration> {
        self.used_ns.fetch_add(spent_ns, Ordering::Relaxed);
        let bucket = self.bucket.as_ref()?;
        bucket.lock().unwrap_or_else(PoisonError::into_inner).charge(spent_ns, now())
    }
}

impl Bucket {
    fn charge(&mut self, spent_ns: u64, now: Instant) -> Option<Duration> {
        let elapsed_ns = now.saturating_duration_since(self.at).as_nanos() as u64;
        self.at = now;
        let gained = (u128::from(elapsed_ns) * u128::from(self.per_ms) / 1_000_000) as i64;
        let full = (self.per_ms * BURST_MS) as i64;
        self.saved_ns = self.saved_ns.saturating_add(gained).min(full).saturating_sub_unsigned(spent_ns);
        (self.saved_ns < 0).then(|| {
            let wait_ns = u128::from(self.saved_ns.unsigned_abs()) * 1_000_000 / u128::from(self.per_ms);
            Duration::from_nanos(wait_ns as u64).min(PAUSE_MAX)
        })
    }
}

/// A guest's future: each poll is metered, and none happens while the container has to pause.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    cpu: Arc<Cpu>,
    ticker: Arc<Ticker>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Metered<F> {
    pub(crate) fn new(guest: F, cpu: Arc<Cpu>, ticker: Arc<Ticker>) -> Self {
        Self { guest: Box::pin(guest), cpu, ticker, pause: None }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let before = thread_cpu_ns();
        let computing = this.ticker.computing();
        let result = this.guest.as_mut().poll(cx);
        drop(computing);
        let pause = this.cpu.charge(thread_cpu_ns().saturating_sub(before), Instant::now);
        if let (Poll::Pending, Some(pause)) = (&result, pause) {
            let pause = this.pause.insert(Box::pin(tokio::time::sleep(pause)));
            if pause.as_mut().poll(cx).is_ready() {
                this.pause = None;
                cx.waker().wake_by_ref();
            }
        }
        result
    }
}

/// CPU time of the calling thread.
fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write one `timespec` to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    if failed { 0 } else { time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_pass_and_then_the_limit() {
        let start = Instant::now();
        let ms = |n: u64| Duration::from_millis(n);
        // 100m: 10 ms may be saved up, and each 10 ms of CPU cost 100 ms of time.
        let mut bucket = Bucket { per_ms: 100_000, saved_ns: 10_000_000, at: start };
        assert_eq!(bucket.charge(10_000_000, start), None);
        assert_eq!(bucket.charge(10_000_000, start), Some(ms(100)));
        assert_eq!(bucket.charge(0, start + ms(40)), Some(ms(60)));
        assert_eq!(bucket.charge(0, start + ms(100)), None);
        assert_eq!(bucket.charge(10_000_000, start + ms(10_000)), None);
        assert_eq!(bucket.charge(1_000_000, start + ms(10_000)), Some(ms(10)));
        assert_eq!(bucket.charge(100_000_000_000, start + ms(10_000)), Some(PAUSE_MAX));
    }
}
