//! What the toolbox needs of its host beyond what the standard library offers: a terminal that can be asked whether
//! somebody pressed a key, exit codes that arrive whole, and the list of mounted directories.

#[cfg(target_os = "wasi")]
#[path = "wasi.rs"]
mod host;

#[cfg(not(target_os = "wasi"))]
#[path = "native.rs"]
mod host;

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::time::Duration;

pub use host::{exit, initial_dir, is_readable, is_terminal, mounts, random, read, symlink};

/// The key that ends what runs in the foreground. The node sends it as a byte of its own, since no signal reaches a
/// WebAssembly program.
pub const KEY_INTERRUPT: u8 = 0x03;
/// The key that ends the input, once.
pub const KEY_END: u8 = 0x04;

/// What is written is kept back until so much has come together, or somebody is to see it.
const WRITE_BYTES: usize = 16 * 1024;
/// A question to the terminal is a call of the host, so not each step asks it.
const STEPS_A_QUESTION: u32 = 32;

thread_local! {
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static STEPS: Cell<u32> = const { Cell::new(0) };
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// One step of some work was done; true if somebody pressed `^C` since the last [`resume`].
pub fn step() -> bool {
    let steps = STEPS.get().wrapping_add(1);
    STEPS.set(steps);
    if steps.is_multiple_of(STEPS_A_QUESTION) {
        host::look();
    }
    INTERRUPTED.get()
}

/// Whether somebody pressed `^C` since the last [`resume`].
pub fn interrupted() -> bool {
    INTERRUPTED.get()
}

/// Forgets that somebody pressed `^C`.
pub fn resume() {
    INTERRUPTED.set(false);
}

/// Somebody pressed `^C`.
pub fn interrupt() {
    INTERRUPTED.set(true);
}

/// The error of an operation that `^C` broke off. Not of the kind `Interrupted`, which the standard library takes for
/// a reason to try again.
pub fn broken_off() -> io::Error {
    io::Error::other("interrupted")
}

/// Waits, or until somebody types.
pub fn wait(time: Duration) -> io::Result<()> {
    flush();
    host::wait(time);
    if INTERRUPTED.get() { Err(broken_off()) } else { Ok(()) }
}

/// Waits all of the time.
pub fn sleep(time: Duration) -> io::Result<()> {
    flush();
    host::sleep(time);
    if INTERRUPTED.get() { Err(broken_off()) } else { Ok(()) }
}

/// Writes to the program's output.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    if step() {
        return Err(broken_off());
    }
    OUT.with_borrow_mut(|out| {
        out.extend_from_slice(bytes);
        if out.len() >= WRITE_BYTES { pass_on(out) } else { Ok(()) }
    })
}

/// Writes to the program's error output, after everything that was written before.
pub fn write_error(bytes: &[u8]) -> io::Result<()> {
    flush();
    io::stderr().write_all(bytes)
}

/// Lets everything that was written be seen.
pub fn flush() {
    // Who writes next hears of an output that is gone.
    let _gone = OUT.with_borrow_mut(pass_on);
}

fn pass_on(out: &mut Vec<u8>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(out).and_then(|()| stdout.flush());
    out.clear();
    written
}
