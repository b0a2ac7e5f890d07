//! The platform of tests: no terminal, an empty input, everything mounted.

use std::io;
use std::time::Duration;

/// Reads the program's input.
pub fn read(_buffer: &mut [u8]) -> io::Result<usize> {
    Ok(0)
}

/// Whether a read would not wait.
pub fn is_readable() -> bool {
    true
}

/// Whether the input is a terminal.
pub fn is_terminal() -> bool {
    false
}

pub(super) fn look() {}

pub(super) fn wait(time: Duration) {
    std::thread::sleep(time);
}

pub(super) fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// Fills a buffer with random bytes.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, buffer)
}

/// Where the program was started.
pub fn initial_dir() -> Option<String> {
    None
}

/// The directories that are mounted.
pub fn mounts() -> Vec<String> {
    vec!["/".to_owned()]
}

/// Makes a symbolic link.
#[cfg(unix)]
pub fn symlink(target: &str, link: &str) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Ends the program.
pub fn exit(code: i32) -> ! {
    std::process::exit(code)
}
