//! What the kernel's scheduler is told of our threads: those that answer are to get the processor soon, those that compute
//! may wait.
//!
//! Both are wishes: a kernel that does not know them, or refuses, changes nothing but the latency of neighbours.

/// How much nicer than the rest of the process the slow lane's threads are: at 5, Linux gives them a third of what it
/// gives a worker that competes for the same processor. Less, and a neighbour waits for a slice to end; more, and a node
/// whose workers are busy would let computing containers starve.
const NICER: i32 = 5;
/// How long a worker wants to run at a time: the least that Linux takes. Since 6.12, who asks for short turns gets them
/// sooner, at the same share.
#[cfg(target_os = "linux")]
const TURN_NS: u64 = 100_000;

/// Lowers the priority of the calling thread, and of no other: on Linux each thread has its own.
pub(crate) fn be_nice() {
    // SAFETY: both calls take integers only; 0 is the calling thread.
    let failed = unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, now.saturating_add(NICER)) != 0
    };
    if failed {
        tracing::debug!("the priority of a thread for computing guests could not be lowered");
    }
}

/// Asks for short turns for the calling thread.
#[cfg(target_os = "linux")]
pub(crate) fn be_quick() {
    /// `struct sched_attr` of the kernel, in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    // SAFETY: takes integers only; 0 is the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let size = size_of::<Attributes>() as u32;
    // Policy 0 is the ordinary one.
    let wanted = Attributes { size, nice, runtime: TURN_NS, ..Attributes::default() };
    // SAFETY: `wanted` is as large as it says and outlives the call, which only reads it; 0 is the calling thread.
    let failed = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) } != 0;
    if failed {
        tracing::debug!("the kernel does not take a thread's wish for short turns");
    }
}

/// Other systems have no such wish.
#[cfg(not(target_os = "linux"))]
pub(crate) fn be_quick() {}
