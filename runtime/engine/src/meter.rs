//! Counts the CPU time of a container's guests, holds it to its limit, and sends guests that compute at length to the
//! slow lane.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::Sleep;

use crate::lane::{Away, Back, Lane};
use crate::share::Share;
use crate::ticker::Ticker;

/// A container may save up this much time and spend it at once, as Linux's 100 ms period allows.
const BURST_MS: u64 = 100;
/// The longest that a container is made to wait before it is looked at again.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How far a guest that computes may overdraw before it pauses: a turn of several ticks wakes as many threads as one of
/// one, which costs up to a third of a millisecond that nobody is charged for.
const OVERDRAFT_NS: i64 = 10_000_000;
/// The period that throttling is counted in, as Linux and the metrics of other runtimes have it.
const PERIOD_NS: u64 = 100_000_000;
/// A poll that took less does not count as computing at length: a neighbour that waits for it notices nothing.
const LONG_NS: u64 = 1_000_000;
/// How much of long polls a container may have had lately before its guests go to the slow lane without being polled
/// where they are: less than one tick, so that one uninterrupted computation is enough.
const HEAT_MAX_NS: u64 = 4_000_000;
/// How fast that is forgotten: a container that computes for less than an eighth of the time stays out of the lane.
const COOLING: u64 = 8;
/// How much of it is remembered at most, so that one long computation does not slow an HTTP container's other requests
/// for long after it has ended: a fifth of a second.
const HEAT_CAP_NS: u64 = 25_000_000;

/// The CPU time of one container.
pub(crate) struct Cpu {
    used_ns: AtomicU64,
    share: Arc<Share>,
    /// When the long polls of the past are forgotten, on [`clock_ns`].
    cool_at_ns: AtomicU64,
    limit: Option<Limit>,
    /// Where the blocking operations of its guests are done, if not where those of all are.
    aside: Option<Handle>,
}

struct Limit {
    bucket: Mutex<Bucket>,
    /// When what was spent too much has been saved again, on [`clock_ns`]; looked at before a guest is polled.
    paid_at_ns: AtomicU64,
}

/// How often a container was held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Throttling {
    /// Periods in which it ran or was held back.
    pub(crate) periods: u64,
    /// Those of them in which it was held back.
    pub(crate) throttled: u64,
    /// For how long.
    pub(crate) throttled_ns: u64,
}

/// Time that may be spent; negative when too much has been.
struct Bucket {
    /// CPU nanoseconds that flow in each millisecond: the limit in thousandths of a CPU, times 1000.
    per_ms: u64,
    saved_ns: i64,
    at_ns: u64,
    throttling: Throttling,
    /// The first period that is not counted yet, and the first one that is not counted as throttled.
    period: u64,
    throttled_period: u64,
    /// Until when time is counted as throttled.
    throttled_until_ns: u64,
}

impl Cpu {
    pub(crate) fn new(request_m: Option<u32>, limit_m: Option<u32>, aside: Option<Handle>) -> Arc<Self> {
        let limit = limit_m.filter(|&limit| limit > 0).map(|limit| Limit {
            bucket: Mutex::new(Bucket::new(u64::from(limit) * 1000, clock_ns())),
            paid_at_ns: AtomicU64::new(0),
        });
        // As in Kubernetes, who states a limit only requests as much.
        let share = Arc::new(Share::new(request_m.or(limit_m)));
        Arc::new(Self { used_ns: AtomicU64::new(0), share, cool_at_ns: AtomicU64::new(0), limit, aside })
    }

    pub(crate) fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.share
    }

    pub(crate) fn throttling(&self) -> Throttling {
        self.limit.as_ref().map_or_else(Throttling::default, |limit| limit.bucket().throttling)
    }

    /// Takes `spent_ns` from the bucket and says how long the container must pause.
    fn charge(&self, spent_ns: u64, now: impl FnOnce() -> u64) -> Option<Duration> {
        self.used_ns.fetch_add(spent_ns, Ordering::Relaxed);
        if spent_ns >= LONG_NS {
            self.heat(spent_ns, clock_ns());
        }
        let limit = self.limit.as_ref()?;
        let now = now();
        let pause = limit.bucket().charge(spent_ns, now);
        let paid_at = pause.map_or(0, |pause| now + pause.as_nanos() as u64);
        limit.paid_at_ns.store(paid_at, Ordering::Relaxed);
        pause
    }

    /// Whether a guest that was cut may go on although its container has to pause.
    pub(crate) fn may_overdraw(&self) -> bool {
        self.limit.as_ref().is_none_or(|limit| limit.bucket().saved_ns > -OVERDRAFT_NS)
    }

    /// How long the container must still pause for what it has spent.
    fn debt(&self, now: impl FnOnce() -> u64) -> Option<Duration> {
        let limit = self.limit.as_ref()?;
        if limit.paid_at_ns.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.charge(0, now)
    }

    fn heat(&self, spent_ns: u64, now_ns: u64) {
        let hottest = now_ns.saturating_add(HEAT_CAP_NS * COOLING);
        let heated = |cool_at: u64| {
            let cool_at = cool_at.max(now_ns).saturating_add(spent_ns.saturating_mul(COOLING));
            Some(cool_at.min(hottest))
        };
        // The closure never refuses.
        self.cool_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, heated).ok();
    }

    /// How much there is to forget.
    fn heat_left(&self, now_ns: u64) -> u64 {
        self.cool_at_ns.load(Ordering::Relaxed).saturating_sub(now_ns)
    }

    /// A guest that was cut when there was `left` to forget goes on now. It has not rested meanwhile but waited for its
    /// turn, for as long as the machine was busy with others: else nobody would count as computing on one that is.
    fn keep_heat(&self, left: u64, now_ns: u64) {
        self.cool_at_ns.fetch_max(now_ns.saturating_add(left), Ordering::Relaxed);
    }

    /// Whether the container has computed at length lately.
    fn is_hot(&self, now: impl FnOnce() -> u64) -> bool {
        let cool_at = self.cool_at_ns.load(Ordering::Relaxed);
        cool_at > 0 && cool_at.saturating_sub(now()) > HEAT_MAX_NS * COOLING
    }
}

impl Limit {
    fn bucket(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn new(per_ms: u64, now_ns: u64) -> Self {
        Self {
            per_ms,
            saved_ns: (per_ms * BURST_MS) as i64,
            at_ns: now_ns,
            throttling: Throttling::default(),
            period: 0,
            throttled_period: 0,
            throttled_until_ns: 0,
        }
    }

    fn charge(&mut self, spent_ns: u64, now_ns: u64) -> Option<Duration> {
        // Several threads charge; the clock of one may have been read before another's.
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let gained = (u128::from(elapsed_ns) * u128::from(self.per_ms) / 1_000_000) as i64;
        let full = (self.per_ms * BURST_MS) as i64;
        self.saved_ns = self.saved_ns.saturating_add(gained).min(full).saturating_sub_unsigned(spent_ns);
        let pause = (self.saved_ns < 0).then(|| {
            let wait_ns = u128::from(self.saved_ns.unsigned_abs()) * 1_000_000 / u128::from(self.per_ms);
            Duration::from_nanos(wait_ns as u64).min(PAUSE_MAX)
        });
        self.count(now_ns, pause);
        pause
    }

    fn count(&mut self, now_ns: u64, pause: Option<Duration>) {
        let first = now_ns / PERIOD_NS;
        let until = pause.map_or(now_ns, |pause| now_ns + pause.as_nanos() as u64);
        let next = until / PERIOD_NS + 1;
        self.throttling.periods += next.saturating_sub(self.period.max(first));
        self.period = self.period.max(next);
        if pause.is_some() {
            self.throttling.throttled += next.saturating_sub(self.throttled_period.max(first));
            self.throttled_period = self.throttled_period.max(next);
            self.throttling.throttled_ns += until.saturating_sub(self.throttled_until_ns.max(now_ns));
            self.throttled_until_ns = self.throttled_until_ns.max(until);
        }
    }
}

thread_local! {
    /// Whether the guest that this thread polls has been cut off by the ticker.
    static CUT: Cell<bool> = const { Cell::new(false) };
}

/// The guest that this thread polls gives way because its time is over, not because it waits for anything.
pub(crate) fn note_cut() {
    CUT.set(true);
}

/// What came of one poll of a guest.
pub(crate) struct Slice<T> {
    pub(crate) result: Poll<T>,
    /// How long its container must pause.
    pub(crate) pause: Option<Duration>,
    /// It would have gone on.
    pub(crate) cut: bool,
    /// The CPU time that it took.
    pub(crate) spent_ns: u64,
}

/// Polls a guest once, at its container's cost.
pub(crate) fn slice<F: Future>(
    guest: Pin<&mut F>,
    cpu: &Cpu,
    ticker: &Ticker,
    cx: &mut Context<'_>,
) -> Slice<F::Output> {
    CUT.set(false);
    let _entered = cpu.aside.as_ref().map(Handle::enter);
    let before = thread_cpu_ns();
    let computing = ticker.computing();
    let result = guest.poll(cx);
    drop(computing);
    let spent_ns = thread_cpu_ns().saturating_sub(before);
    let pause = cpu.charge(spent_ns, clock_ns);
    Slice { result, pause, cut: CUT.get(), spent_ns }
}

/// A guest's future: each poll is metered, and none happens while the container has to pause.
pub(crate) struct Metered<F: Future> {
    cpu: Arc<Cpu>,
    ticker: Arc<Ticker>,
    lane: Arc<Lane>,
    pause: Option<Pin<Box<Sleep>>>,
    /// It was cut, and its container had so much to forget then.
    cut: Option<u64>,
    /// It was cut and goes on for now, although its container has to pause.
    overdraws: bool,
    place: Place<F>,
}

enum Place<F: Future> {
    /// It is polled where this future is.
    Here(Pin<Box<F>>),
    /// It computes in the slow lane.
    Lane(Away<F>),
    /// It has come to its end.
    Gone,
}

impl<F> Metered<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    pub(crate) fn new(guest: F, cpu: Arc<Cpu>, ticker: Arc<Ticker>, lane: Arc<Lane>) -> Self {
        Self { cpu, ticker, lane, pause: None, cut: None, overdraws: false, place: Place::Here(Box::pin(guest)) }
    }

    /// Ready when the container need not pause (any more).
    fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.cpu.debt(clock_ns) {
                Some(pause) => self.pause = Some(Box::pin(tokio::time::sleep(pause))),
                None => return Poll::Ready(()),
            }
        }
    }
}

impl<F> Future for Metered<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.place, Place::Gone) {
                Place::Gone => return Poll::Pending,
                Place::Lane(mut away) => {
                    let Poll::Ready(back) = away.poll_back(cx) else {
                        this.place = Place::Lane(away);
                        return Poll::Pending;
                    };
                    match back {
                        Some(Back::Done(output)) => return Poll::Ready(output),
                        Some(Back::Panicked(panic)) => resume_unwind(panic),
                        Some(Back::Again(guest, signal, pause)) => {
                            this.place = Place::Here(guest);
                            if pause.is_none() && signal.is_quiet(cx) {
                                return Poll::Pending;
                            }
                        }
                        // The engine is going, and with it all guests.
                        None => return Poll::Pending,
                    }
                }
                Place::Here(guest) => {
                    if !std::mem::take(&mut this.overdraws) && this.poll_paid(cx).is_pending() {
                        this.place = Place::Here(guest);
                        return Poll::Pending;
                    }
                    if this.cpu.is_hot(clock_ns) {
                        this.place = Place::Lane(this.lane.enter(guest, &this.cpu, &this.ticker, cx));
                        continue;
                    }
                    if let Some(done) = slice_here(guest, this, cx) {
                        return done;
                    }
                }
            }
        }
    }
}

/// Polls a guest here; `None` when there is more to do at once.
fn slice_here<F>(mut guest: Pin<Box<F>>, this: &mut Metered<F>, cx: &mut Context<'_>) -> Option<Poll<F::Output>>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    if let Some(left) = this.cut.take() {
        this.cpu.keep_heat(left, clock_ns());
    }
    let Slice { result, pause, cut, .. } = slice(guest.as_mut(), &this.cpu, &this.ticker, cx);
    if result.is_ready() {
        return Some(result);
    }
    let pauses = pause.is_some() && !(cut && this.cpu.may_overdraw());
    this.cut = (cut && !pauses).then(|| this.cpu.heat_left(clock_ns()));
    this.overdraws = cut && pause.is_some() && !pauses;
    this.place = Place::Here(guest);
    // A guest that was cut has woken this task already, and goes on in its own turn, or in the lane. One that waits is
    // woken by what it waits for; its pause is looked at then.
    if cut && (pauses || this.cpu.is_hot(clock_ns)) { None } else { Some(Poll::Pending) }
}

/// Nanoseconds since this process first asked; never 0.
fn clock_ns() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64 + 1
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

    const MS: u64 = 1_000_000;

    #[test]
    fn a_bucket_lets_a_burst_pass_and_then_the_limit() {
        let ms = |n: u64| Duration::from_millis(n);
        // 100m: 10 ms may be saved up, and each 10 ms of CPU cost 100 ms of time.
        let mut bucket = Bucket::new(100_000, 0);
        assert_eq!(bucket.charge(10 * MS, 0), None);
        assert_eq!(bucket.charge(10 * MS, 0), Some(ms(100)));
        assert_eq!(bucket.charge(0, 40 * MS), Some(ms(60)));
        assert_eq!(bucket.charge(0, 100 * MS), None);
        assert_eq!(bucket.charge(10 * MS, 10_000 * MS), None);
        assert_eq!(bucket.charge(MS, 10_000 * MS), Some(ms(10)));
        assert_eq!(bucket.charge(100_000 * MS, 10_000 * MS), Some(PAUSE_MAX));
    }

    #[test]
    fn throttling_is_counted_in_periods() {
        // 100m. Slices of 20 ms: the first one spends the burst and 10 ms more.
        let mut bucket = Bucket::new(100_000, 0);
        bucket.charge(20 * MS, 20 * MS);
        // 10 ms of debt are 100 ms of pause, to 120 ms: in the second period.
        let mut expected = Throttling { periods: 2, throttled: 2, throttled_ns: 100 * MS };
        assert_eq!(bucket.throttling, expected);
        // Looked at again before it is over: nothing new.
        bucket.charge(0, 60 * MS);
        assert_eq!(bucket.throttling, expected);
        // It runs for a moment in each of two periods more.
        bucket.charge(MS, 250 * MS);
        bucket.charge(MS, 350 * MS);
        expected.periods = 4;
        assert_eq!(bucket.throttling, expected);
    }

    #[test]
    fn long_polls_make_a_container_hot_and_rest_cools_it() {
        let cpu = Cpu::new(None, None, None);
        let hot = |at: u64| cpu.is_hot(|| at);
        assert!(!hot(1));
        cpu.heat(5 * MS, 10 * MS);
        assert!(hot(10 * MS) && hot(17 * MS));
        assert!(!hot(19 * MS), "an eighth of a CPU is forgotten");
        // 1 ms each 8 ms never counts up.
        for turn in 0..100 {
            cpu.heat(MS, (100 + turn * 8) * MS);
        }
        assert!(!hot(900 * MS));
        // 4 of 5 ms do.
        for turn in 0..10 {
            cpu.heat(4 * MS, (1000 + turn * 5) * MS);
        }
        assert!(hot(1050 * MS));
        // Nor is it forgotten while a guest that was cut waits for its turn.
        cpu.heat(3 * MS, 1300 * MS);
        let left = cpu.heat_left(1300 * MS);
        assert!(!hot(1300 * MS));
        cpu.keep_heat(left, 1500 * MS);
        cpu.heat(3 * MS, 1503 * MS);
        assert!(hot(1503 * MS));
        // However long it was, it is forgotten soon.
        cpu.heat(60_000 * MS, 2000 * MS);
        assert!(hot(2150 * MS) && !hot(2200 * MS));
    }
}
