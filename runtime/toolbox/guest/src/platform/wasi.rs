//! The platform of a pod: WASI 0.2, by its own bindings where the standard library has nothing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::time::Duration;

use wasip2::cli::{environment, exit as wasi_exit, stdin, terminal_stdin};
use wasip2::clocks::monotonic_clock;
use wasip2::filesystem::preopens;
use wasip2::io::poll::{Pollable, poll};
use wasip2::io::streams::InputStream;

/// How much is read at a time.
const READ_BYTES: u64 = 64 * 1024;

/// The program's input. What is typed ahead waits in `typed`.
struct Stdin {
    // Before the stream that it belongs to: that is the order in which they are to be dropped.
    ready: Pollable,
    stream: InputStream,
    typed: VecDeque<u8>,
    ended: bool,
    terminal: bool,
}

thread_local! {
    static STDIN: RefCell<Stdin> = RefCell::new(Stdin::open());
}

impl Stdin {
    fn open() -> Self {
        let stream = stdin::get_stdin();
        let terminal = terminal_stdin::get_terminal_stdin().is_some();
        Self { ready: stream.subscribe(), stream, typed: VecDeque::new(), ended: false, terminal }
    }

    /// Takes what has come, without waiting.
    fn take(&mut self) {
        let Ok(bytes) = self.stream.read(READ_BYTES) else {
            self.ended = true;
            return;
        };
        // As a terminal's driver does it: what was typed before `^C` is not read any more.
        let after = match bytes.iter().rposition(|byte| self.terminal && *byte == super::KEY_INTERRUPT) {
            Some(at) => {
                self.typed.clear();
                super::interrupt();
                &bytes[at + 1..]
            }
            None => &bytes[..],
        };
        self.typed.extend(after);
    }

    fn give(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.terminal && self.typed.front() == Some(&super::KEY_END) {
            self.typed.pop_front();
            return Some(0);
        }
        let end = self.typed.iter().position(|byte| self.terminal && *byte == super::KEY_END);
        let count = end.unwrap_or(self.typed.len()).min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(self.typed.drain(..count)) {
            *to = from;
        }
        (count > 0 || self.ended).then_some(count)
    }
}

/// Reads the program's input; waits for it.
pub fn read(buffer: &mut [u8]) -> io::Result<usize> {
    super::flush();
    STDIN.with_borrow_mut(|stdin| {
        loop {
            if super::interrupted() {
                return Err(super::broken_off());
            }
            if let Some(count) = stdin.give(buffer) {
                return Ok(count);
            }
            stdin.ready.block();
            stdin.take();
        }
    })
}

/// Whether a read would not wait.
pub fn is_readable() -> bool {
    STDIN.with_borrow_mut(|stdin| {
        if stdin.typed.is_empty() && !stdin.ended && stdin.ready.ready() {
            stdin.take();
        }
        stdin.ended || !stdin.typed.is_empty()
    })
}

/// Whether the input is a terminal.
pub fn is_terminal() -> bool {
    STDIN.with_borrow(|stdin| stdin.terminal)
}

pub(super) fn look() {
    STDIN.with_borrow_mut(|stdin| {
        if stdin.terminal && !stdin.ended && stdin.ready.ready() {
            stdin.take();
        }
    });
}

pub(super) fn wait(time: Duration) {
    let timer = timer(time);
    STDIN.with_borrow_mut(|stdin| {
        if stdin.ended || !stdin.typed.is_empty() {
            timer.block();
        } else if poll(&[&timer, &stdin.ready]).contains(&1) {
            stdin.take();
        }
    });
}

pub(super) fn sleep(time: Duration) {
    let timer = timer(time);
    while !super::interrupted() && !timer.ready() {
        STDIN.with_borrow_mut(|stdin| {
            if !stdin.terminal || stdin.ended {
                timer.block();
            } else if poll(&[&timer, &stdin.ready]).contains(&1) {
                stdin.take();
            }
        });
    }
}

fn timer(time: Duration) -> Pollable {
    monotonic_clock::subscribe_duration(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Fills a buffer with random bytes.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let bytes = wasip2::random::random::get_random_bytes(buffer.len() as u64);
    buffer.copy_from_slice(&bytes);
    Ok(())
}

/// Where the program was started.
pub fn initial_dir() -> Option<String> {
    environment::initial_cwd()
}

/// The directories that are mounted.
pub fn mounts() -> Vec<String> {
    preopens::get_directories().into_iter().map(|(_, path)| path).collect()
}

/// Makes a symbolic link.
pub fn symlink(target: &str, link: &str) -> io::Result<()> {
    let (target, link) = (CString::new(target)?, CString::new(link)?);
    // SAFETY: both are strings that end with a zero and live as long as the call.
    match unsafe { libc::symlink(target.as_ptr(), link.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the program; the code arrives whole, which `std::process::exit` does not see to.
pub fn exit(code: i32) -> ! {
    wasi_exit::exit_with_code(code as u8);
    unreachable!("an exit does not come back")
}
