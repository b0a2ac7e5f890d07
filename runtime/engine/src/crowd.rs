//! Instances that answer several requests at a time, as programs of WASI 0.3 can.
//!
//! Each is a task of its own with a queue. A request goes to the first that has room for it and has not served its time;
//! a new one is made if there is none. A trap costs all requests that the instance works on, and nobody else anything:
//! those that still wait for it are given to another.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Request;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use wasmtime_wasi_http::handler::Proxy;

use crate::command::discard;
use crate::instances::{Failure, IDLE_MAX, Instances, Reply, done, respond};
use crate::output::lock;

/// The shared instances of one container. Dropping it ends them.
#[derive(Default)]
pub(crate) struct Crowd {
    workers: Mutex<Workers>,
}

#[derive(Default)]
struct Workers {
    /// Those that take more requests.
    open: Vec<Worker>,
    tasks: JoinSet<()>,
}

/// An instance as those see it who have a request for it.
struct Worker {
    jobs: mpsc::Sender<Job>,
    /// How many requests it has been given.
    taken: u32,
    /// How many of them it works on.
    busy: Arc<AtomicU32>,
    task: AbortHandle,
}

/// One request on its way to an instance.
struct Job {
    request: Request<Incoming>,
    reply: Reply,
    _busy: Busy,
}

/// Counts one request of an instance while it lives.
struct Busy(Arc<AtomicU32>);

impl Busy {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Crowd {
    /// Gives a request to an instance. What comes back ends that instance, should it never answer. `meter` wraps the
    /// task of a new one.
    pub(crate) fn give<F: Future<Output = ()> + Send + 'static>(
        &self,
        instances: &Arc<Instances>,
        mut request: Request<Incoming>,
        reply: Reply,
        meter: impl FnOnce(Work) -> F,
    ) -> AbortHandle {
        let serving = instances.serving();
        let mut workers = lock(&self.workers);
        let Workers { open, tasks } = &mut *workers;
        while tasks.try_join_next().is_some() {}
        open.retain(|worker| !worker.jobs.is_closed());
        while let Some(at) = open.iter().position(|worker| worker.busy.load(Ordering::Relaxed) < serving.concurrency) {
            let worker = &mut open[at];
            let job = Job { request, reply: reply.clone(), _busy: Busy::new(&worker.busy) };
            match worker.jobs.try_send(job) {
                Ok(()) => {
                    worker.taken += 1;
                    let task = worker.task.clone();
                    if worker.taken >= serving.reuse {
                        open.swap_remove(at);
                    }
                    return task;
                }
                // It ended in this moment.
                Err(error) => {
                    request = error.into_inner().request;
                    open.swap_remove(at);
                }
            }
        }
        let busy = Arc::new(AtomicU32::new(0));
        let first = Job { request, reply, _busy: Busy::new(&busy) };
        // No more are ever given than may be worked on at a time.
        let (jobs, queue) = mpsc::channel(serving.concurrency.min(serving.reuse) as usize);
        let task = tasks.spawn(meter(Box::pin(work(instances.clone(), first, queue))));
        if serving.reuse > 1 {
            open.push(Worker { jobs, taken: 1, busy, task: task.clone() });
        }
        task
    }
}

/// The life of one instance.
pub(crate) type Work = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn work(instances: Arc<Instances>, first: Job, mut queue: mpsc::Receiver<Job>) {
    let mut instance = match instances.make().await {
        Ok(instance) => instance,
        Err(error) => {
            instances.note_no_start(&error, &first.reply);
            queue.close();
            while let Some(job) = queue.recv().await {
                instances.note_no_start(&error, &job.reply);
            }
            return;
        }
    };
    let Proxy::P3(service) = &instance.proxy else { return };
    let ended = instance.store.run_concurrent(async |accessor| {
        let answer = async |job: Job| respond(accessor, service, job.request, &job.reply).await;
        let mut working = FuturesUnordered::from_iter([answer(first)]);
        let mut open = true;
        while open || !working.is_empty() {
            tokio::select! {
                biased;
                Some(result) = working.next() => result?,
                job = queue.recv(), if open => match job {
                    Some(job) => working.push(answer(job)),
                    None => open = false,
                },
                // What has been sent until then is still received.
                () = sleep(IDLE_MAX), if working.is_empty() => queue.close(),
            }
        }
        drop(working);
        done(accessor).await;
        wasmtime::error::Ok(())
    });
    if let Err(error) = ended.await.and_then(|result| result) {
        instances.note_failure(&error);
    }
    // Those that came while it ended have nothing to do with why.
    queue.close();
    while let Some(Job { request, reply, .. }) = queue.recv().await {
        reply.send(Err(Failure::Again(Box::new(request))));
    }
    let held = instance.store.data().memory.held();
    discard(instance, held).await;
}
