//! The clock that makes guests yield: one thread that moves the engines' epochs on while any guest computes, and sleeps
//! for good while none does, so that an idle node does not wake up 200 times a second.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use wasmtime::EngineWeak;

use crate::output::lock;

/// The longest time a guest computes before it lets another have the thread. At 1 ms the ticks themselves cost 3 % of
/// a core, at 5 ms 0.7 %, and CPU limits hold to within a percent at both.
const TICK: Duration = Duration::from_millis(5);

/// Counts the guests that compute right now.
pub(crate) struct Ticker {
    computing: AtomicUsize,
    parked: AtomicBool,
    stopped: AtomicBool,
    engines: Mutex<Vec<EngineWeak>>,
    thread: std::sync::OnceLock<Thread>,
}

impl Ticker {
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let ticker = Arc::new(Self {
            computing: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            engines: Mutex::default(),
            thread: std::sync::OnceLock::new(),
        });
        let for_thread = ticker.clone();
        let handle = thread::Builder::new().name("dhow-epochs".to_owned()).spawn(move || for_thread.run())?;
        ticker.thread.get_or_init(|| handle.thread().clone());
        Ok(ticker)
    }

    /// From now on, this engine's epochs move on too.
    pub(crate) fn add(&self, engine: EngineWeak) {
        lock(&self.engines).push(engine);
    }

    /// A guest begins to compute; it stops when the guard is dropped.
    pub(crate) fn computing(&self) -> Computing<'_> {
        self.computing.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        Computing(self)
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn run(&self) {
        let mut next = Instant::now() + TICK;
        while !self.stopped.load(Ordering::SeqCst) {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            lock(&self.engines).retain(|engine| {
                let engine = engine.upgrade();
                engine.iter().for_each(wasmtime::Engine::increment_epoch);
                engine.is_some()
            });
            next += TICK;
            if self.computing.load(Ordering::SeqCst) == 0 {
                self.park();
                // Whoever has woken it has begun just now, and has a whole tick.
                next = Instant::now() + TICK;
            }
            // When the machine was too busy to run this thread, ticks are not caught up.
            next = next.max(Instant::now());
        }
    }

    fn park(&self) {
        self.parked.store(true, Ordering::SeqCst);
        // A guest that began before it could see the flag is seen here; one that begins later wakes the thread.
        while self.parked.load(Ordering::SeqCst)
            && self.computing.load(Ordering::SeqCst) == 0
            && !self.stopped.load(Ordering::SeqCst)
        {
            thread::park();
        }
        self.parked.store(false, Ordering::SeqCst);
    }
}

/// A guest computes as long as this lives.
pub(crate) struct Computing<'a>(&'a Ticker);

impl Drop for Computing<'_> {
    fn drop(&mut self) {
        self.0.computing.fetch_sub(1, Ordering::SeqCst);
    }
}
