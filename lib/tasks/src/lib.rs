//! Owned tasks and an ordered stop.
//!
//! Every task that a shell starts belongs to a [`Tasks`] group; nothing is detached. A group stops by telling its
//! tasks ([`Stop`]), waiting until a deadline, and then aborting and naming those that missed it. Groups are stopped
//! one after the other, in the order that their owner chooses.
//!
//! Invariants: a panic in a task is logged with the task's name and ends that task alone.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A group of tasks with one owner.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    stop: watch::Sender<bool>,
    running: Mutex<Vec<(&'static str, JoinHandle<()>)>>,
}

/// Finished handles are swept out when the list has grown by this many since the last sweep.
const SWEEP_AT: usize = 64;

/// Tells a task when to end. Cheap to clone.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Waits until the group is told to stop, or its owner is gone.
    pub async fn stopped(&self) {
        let mut receiver = self.0.clone();
        // An error means that the owner was dropped, which is a stop as well.
        let _ended = receiver.wait_for(|stopped| *stopped).await;
    }

    /// Whether the group has been told to stop.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Runs `work` until it ends (`Some`) or the group stops (`None`).
    pub async fn or<F: Future>(&self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.stopped() => None,
            output = work => Some(output),
        }
    }
}

impl Tasks {
    /// A new group; `name` appears in warnings.
    pub fn new(name: &'static str) -> Self {
        Self { inner: Arc::new(Inner { name, stop: watch::Sender::new(false), running: Mutex::default() }) }
    }

    /// What the group's tasks watch to know when to end.
    pub fn stop_token(&self) -> Stop {
        Stop(self.inner.stop.subscribe())
    }

    /// Starts a task of the given kind on the current tokio runtime.
    pub fn spawn<F>(&self, kind: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let group = self.inner.name;
        let inner = tokio::spawn(work);
        let abort = AbortOnDrop(inner.abort_handle());
        let handle = tokio::spawn(async move {
            let _abort = abort;
            if let Err(err) = inner.await
                && err.is_panic()
            {
                tracing::error!(group, kind, "a task panicked");
            }
        });
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.len() >= SWEEP_AT && running.len().is_power_of_two() {
            running.retain(|(_, handle)| !handle.is_finished());
        }
        running.push((kind, handle));
    }

    /// Tells the tasks to end without waiting for them.
    pub fn signal(&self) {
        self.inner.stop.send_replace(true);
    }

    /// Tells the tasks to end, waits for them until `deadline` is over, then aborts the late ones and names them.
    pub async fn stop(&self, deadline: Duration) {
        self.signal();
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let next = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((kind, mut handle)) = next else { return };
            if tokio::time::timeout_at(end, &mut handle).await.is_err() {
                tracing::warn!(group = self.inner.name, kind, "a task missed the deadline of its stop");
                handle.abort();
            }
        }
    }
}

/// Ends the task that does the work when the task that watches it is aborted.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn stop_waits_for_the_willing_and_aborts_the_late() {
        let tasks = Tasks::new("test");
        let ended = Arc::new(AtomicBool::new(false));
        let (stop, seen) = (tasks.stop_token(), ended.clone());
        tasks.spawn("willing", async move {
            stop.stopped().await;
            seen.store(true, Ordering::SeqCst);
        });
        let dropped = Arc::new(AtomicBool::new(false));
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let flag = Flag(dropped.clone());
        tasks.spawn("late", async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        });
        tasks.spawn("panics", async { panic!("on purpose") });
        tasks.stop(Duration::from_millis(50)).await;
        assert!(ended.load(Ordering::SeqCst));
        while !dropped.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }
}
