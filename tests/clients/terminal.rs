//! A person at a terminal: `exec -it`, typed at through a pseudo-terminal.

use crate::{Kubectl, harness, words};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

const CTRL_C: &str = "\x03";

/// A program that runs at a terminal of its own until it is dropped.
struct Screen {
    process: Child,
    keys: File,
    shows: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Screen {
    fn start(client: &Kubectl<'_>, line: &str) -> Self {
        let (ours, theirs) = open_terminal();
        let mut command = Command::new(&client.program);
        command
            .env("KUBECONFIG", client.cluster.kubeconfig())
            .args(words(line))
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs.try_clone().unwrap()))
            .stderr(Stdio::from(theirs));
        // SAFETY: between fork and exec only two system calls are made, which take integers.
        let process = unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            })
        };
        let process = process.spawn().unwrap();
        // The command keeps the other end open, by which we would never see an end.
        drop(command);
        let keys = File::from(ours);
        let mut screen = keys.try_clone().unwrap();
        let (sender, shows) = mpsc::channel();
        // The thread ends with the program, which closes the terminal.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { process, keys, shows, seen: String::new() }
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen shows a text, and goes on behind it.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.shows.recv_timeout(harness::PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(why) => panic!("the screen does not show `{text}` ({why}), only: {:?}", self.seen),
            }
        }
    }

    /// Waits for the end of the program, and gives its exit code.
    fn code(mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// The two ends of a new pseudo-terminal.
fn open_terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointers are to two integers and a size that live through the call; the others may be null.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null_mut(), &size) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty has just opened both, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

pub fn is_typed_at(client: &Kubectl<'_>) {
    let mut shell = Screen::start(client, "exec -it tool -c c -- sh");
    shell.types("echo $((6 * 7)) in all\r");
    // What is typed is echoed; the answer is what nobody has typed.
    shell.shows("42 in all\r\n");
    shell.types("sleep 1000\r");
    shell.types(CTRL_C);
    shell.shows("^C");
    shell.types("echo after $?\r");
    shell.shows("after 130\r\n");
    shell.types("echo here >/data/word\r");
    shell.types("exit 9\r");
    shell.shows("command terminated with exit code 9");
    assert_eq!(shell.code(), Some(9));

    // A program that knows no keys is ended for it. Until it shows something, the terminal may not be its own.
    let mut program = Screen::start(client, "exec -it tool -c c -- tool follow /data/word");
    program.shows("here\r\n");
    program.types(CTRL_C);
    program.shows("^C");
    program.shows("command terminated with exit code 130");
    assert_eq!(program.code(), Some(130));
}
