//! The slow lane: threads for guests that compute at length.
//!
//! A guest that answers quickly is polled where it is, on the guests' runtime. One that computes on and on is handed over
//! to this lane for as long as it does, so that it never stands before a neighbour in a worker's queue, nor keeps a
//! worker from its timers and sockets. The lane's threads take slices in turn, by the containers' [`Share`]s, and have a
//! lower priority than the workers: a neighbour that wakes up takes the processor from them at once.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::meter::{Cpu, Slice, slice};
use crate::output::lock;
use crate::priority::be_nice;
use crate::share::{FairQueue, Share, Ticket};
use crate::ticker::Ticker;

/// What wakes a guest that is or was in the lane.
pub(crate) struct Signal {
    /// The task that the guest came from.
    task: Waker,
    woken: AtomicBool,
    /// While the guest is in the lane, its task need not hear of it.
    in_lane: AtomicBool,
}

impl Signal {
    /// Whether the guest, which has come back to the task of this context, need not be polled: nothing has happened
    /// since, and what does will wake this task.
    pub(crate) fn is_quiet(&self, cx: &Context<'_>) -> bool {
        !self.woken.load(Ordering::SeqCst) && self.task.will_wake(cx.waker())
    }

    /// The guest leaves the lane; `false` if it has been woken and may as well go on.
    fn leave(&self) -> bool {
        self.in_lane.store(false, Ordering::SeqCst);
        !self.woken.load(Ordering::SeqCst)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.in_lane.load(Ordering::SeqCst) {
            self.task.wake_by_ref();
        }
    }
}

/// The lane's queue. Cheap to share.
pub(crate) struct Lane {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: FairQueue<Box<dyn Job>>,
    stopped: bool,
}

/// Something that runs a slice at a time.
trait Job: Send {
    /// Runs one slice; `None` when it has left the lane.
    fn run(self: Box<Self>) -> Option<Box<dyn Job>>;
}

/// A guest's way back from the lane.
pub(crate) enum Back<F: Future> {
    /// It has come to its end.
    Done(F::Output),
    /// It waits for something, and wakes by this signal; or it has to pause for its limit.
    Again(Pin<Box<F>>, Arc<Signal>, Option<Duration>),
    /// The host's side of it panicked.
    Panicked(Box<dyn Any + Send>),
}

impl Lane {
    /// Starts as many threads as there are workers. `handle` is what guests find as their runtime.
    pub(crate) fn start(threads: usize, handle: &Handle) -> std::io::Result<Arc<Self>> {
        let lane = Arc::new(Self { state: Mutex::default(), work: Condvar::new() });
        for number in 0..threads.max(1) {
            let (lane, handle) = (lane.clone(), handle.clone());
            thread::Builder::new().name(format!("dhow-slow-{number}")).spawn(move || {
                be_nice();
                let _entered = handle.enter();
                lane.run();
            })?;
        }
        Ok(lane)
    }

    /// Ends the threads, and what waits.
    pub(crate) fn stop(&self) {
        let left = {
            let mut state = lock(&self.state);
            state.stopped = true;
            state.queue.drain()
        };
        self.work.notify_all();
        drop(left);
    }

    /// Takes a guest of the task `cx` over until it waits for something.
    pub(crate) fn enter<F>(
        self: &Arc<Self>,
        guest: Pin<Box<F>>,
        cpu: &Arc<Cpu>,
        ticker: &Arc<Ticker>,
        cx: &Context<'_>,
    ) -> Away<F>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let (back, reply) = oneshot::channel();
        let ticket = {
            let mut state = lock(&self.state);
            let ticket = state.queue.ticket();
            let (woken, in_lane) = (AtomicBool::new(false), AtomicBool::new(true));
            let signal = Arc::new(Signal { task: cx.waker().clone(), woken, in_lane });
            let job = Guest { guest, cpu: cpu.clone(), ticker: ticker.clone(), signal, back };
            if !state.stopped {
                state.queue.enter(ticket, cpu.share().clone(), Box::new(job));
            }
            ticket
        };
        self.work.notify_one();
        Away { lane: self.clone(), ticket, reply }
    }

    fn run(&self) {
        while let Some((ticket, share, job)) = self.next() {
            if let Some(job) = job.run() {
                let mut state = lock(&self.state);
                if !state.stopped {
                    state.queue.push(ticket, share, job);
                }
            }
        }
    }

    fn next(&self) -> Option<(Ticket, Arc<Share>, Box<dyn Job>)> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            if let Some(next) = state.queue.pop() {
                return Some(next);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A guest that is in the lane. Dropping this ends it: at once if it waits for its turn, else with its slice.
pub(crate) struct Away<F: Future> {
    lane: Arc<Lane>,
    ticket: Ticket,
    reply: oneshot::Receiver<Back<F>>,
}

impl<F: Future> Away<F> {
    /// Waits until the guest comes back.
    pub(crate) fn poll_back(&mut self, cx: &mut Context<'_>) -> Poll<Option<Back<F>>> {
        // An error means that the lane has been stopped.
        Pin::new(&mut self.reply).poll(cx).map(Result::ok)
    }
}

impl<F: Future> Drop for Away<F> {
    fn drop(&mut self) {
        let left = lock(&self.lane.state).queue.remove(self.ticket);
        // Not under the lock: the guest's own destructors run here.
        drop(left);
    }
}

struct Guest<F: Future> {
    guest: Pin<Box<F>>,
    cpu: Arc<Cpu>,
    ticker: Arc<Ticker>,
    signal: Arc<Signal>,
    back: oneshot::Sender<Back<F>>,
}

impl<F> Job for Guest<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn run(mut self: Box<Self>) -> Option<Box<dyn Job>> {
        if self.back.is_closed() {
            return None;
        }
        self.signal.in_lane.store(true, Ordering::SeqCst);
        self.signal.woken.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.signal.clone());
        let mut cx = Context::from_waker(&waker);
        let Self { guest, cpu, ticker, .. } = &mut *self;
        let ran = catch_unwind(AssertUnwindSafe(|| slice(guest.as_mut(), cpu, ticker, &mut cx)));
        if let Ok(ran) = &ran {
            self.cpu.share().charge(ran.spent_ns);
        }
        let back = match ran {
            Ok(Slice { result: Poll::Pending, pause, cut, .. }) => {
                let pauses = pause.is_some() && !(cut && self.cpu.may_overdraw());
                if !pauses && (cut || !self.signal.leave()) {
                    return (!self.back.is_closed()).then_some(self as Box<dyn Job>);
                }
                self.signal.in_lane.store(false, Ordering::SeqCst);
                let Self { guest, back, signal, .. } = *self;
                // Who does not want it back any more has dropped it with the channel.
                back.send(Back::Again(guest, signal, pause)).ok();
                return None;
            }
            Ok(Slice { result: Poll::Ready(output), .. }) => Back::Done(output),
            Err(panic) => Back::Panicked(panic),
        };
        self.back.send(back).ok();
        None
    }
}
