//! Threads of a container's own, for one that sees directories of the machine.
//!
//! A file operation takes a thread until the kernel comes back with it, and nothing calls it off: opening a pipe that
//! nobody writes to, or a disk that hangs, keep the thread though the container has long been killed. The node's own disk
//! is shared by all containers, and with it the threads for it; a container that sees other directories (`hostPath`) gets
//! a runtime of its own while it lives, so that it can hold up nobody else. What it leaves behind is counted by the
//! directories: a container that is started again and again on a disk that hangs is refused in the end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::output::lock;
use crate::priority::be_quick;

/// Threads for the file operations of one start of such a container; more operations wait for these.
const THREADS_MAX: usize = 8;
/// Threads that former starts on the same directories may have left behind between them. Beyond it the next start is
/// refused.
const STUCK_MAX: usize = 64;

/// The threads of a process that are set aside, by the directories that they are for.
#[derive(Default)]
pub(crate) struct Asides {
    all: Mutex<Vec<(Vec<PathBuf>, Weak<Threads>)>>,
}

/// The threads of one start; there as long as one of them is.
#[derive(Default)]
struct Threads {
    count: AtomicUsize,
    /// Whether the container has ended.
    are_left: AtomicBool,
}

/// The threads of one start of a container. Dropped, they end as soon as they can.
pub(crate) struct Aside {
    /// Nothing once it is on its way out.
    runtime: Option<Runtime>,
    threads: Weak<Threads>,
}

impl Asides {
    /// Threads for a container that sees these directories. Fails, in words for the Pod's owner, if former ones are
    /// stuck there.
    pub(crate) fn open(&self, mut dirs: Vec<PathBuf>) -> Result<Aside, String> {
        dirs.sort();
        let mut all = lock(&self.all);
        all.retain(|(_, threads)| threads.strong_count() > 0);
        let same = all.iter().filter(|(of, _)| *of == dirs).filter_map(|(_, threads)| threads.upgrade());
        let left = same.filter(|threads| threads.are_left.load(Ordering::Relaxed));
        let stuck: usize = left.map(|threads| threads.count.load(Ordering::Relaxed)).sum();
        if stuck >= STUCK_MAX {
            return Err(format!(
                "{stuck} operations of former starts still hang on the files of the Pod's `hostPath` volumes: look for a \
                 pipe without a writer, or a disk that does not answer"
            ));
        }
        let threads = Arc::new(Threads::default());
        let (begun, ended, threads) = (threads.clone(), threads.clone(), Arc::downgrade(&threads));
        // A worker beside them drives what the guest waits for.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(THREADS_MAX)
            .thread_name("dhow-aside")
            .on_thread_start(move || {
                begun.count.fetch_add(1, Ordering::Relaxed);
                be_quick();
            })
            .on_thread_stop(move || {
                ended.count.fetch_sub(1, Ordering::Relaxed);
            })
            .enable_all()
            .build()
            .map_err(|error| format!("no threads can be had for the Pod's `hostPath` volumes: {error}"))?;
        all.push((dirs, threads.clone()));
        Ok(Aside { runtime: Some(runtime), threads })
    }
}

impl Aside {
    /// What finds itself in this runtime has its blocking operations done here.
    pub(crate) fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("it is there until it is dropped").handle()
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.upgrade() {
            threads.are_left.store(true, Ordering::Relaxed);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn threads_that_do_not_come_back_count_against_their_directories_only() {
        let (asides, dirs) = (Asides::default(), || vec![PathBuf::from("/b"), PathBuf::from("/a")]);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (stuck, told) = mpsc::channel();
        for _ in 0..STUCK_MAX / THREADS_MAX {
            let aside = asides.open(dirs()).unwrap();
            for _ in 0..THREADS_MAX {
                let (held, stuck) = (held.clone(), stuck.clone());
                aside.handle().spawn_blocking(move || {
                    stuck.send(()).unwrap();
                    // Ends when the sender goes.
                    lock(&held).recv().ok();
                });
            }
            // All are under way: the start before may be dropped.
            (0..THREADS_MAX).for_each(|_| told.recv().unwrap());
        }
        // Those that live are no matter.
        let _others: Vec<_> = (0..3).map(|_| asides.open(vec![PathBuf::from("/a")]).unwrap()).collect();
        let same = vec![PathBuf::from("/a"), PathBuf::from("/b")];
        let refused = asides.open(same.clone()).err().unwrap();
        assert!(refused.contains("operations of former starts still hang"), "{refused}");
        assert!(asides.open(vec![PathBuf::from("/a")]).is_ok());
        drop(release);
        while asides.open(same.clone()).is_err() {
            std::thread::yield_now();
        }
    }
}
