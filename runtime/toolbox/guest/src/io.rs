//! Where a command reads from and writes to: the program's own streams, files, and what is kept between the commands of
//! a pipeline.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read, Write};
use std::rc::Rc;

use crate::platform;

/// What a command of a pipeline that runs to its end may leave for the next: all of it is kept. A pipeline with a command
/// that writes more is broken off. Those that are pulled ([`crate::applets::stream`]) have no limit.
pub const PIPE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How much is read of a file at a time.
const READ_BYTES: usize = 16 * 1024;
/// How much is kept back of what is written to a file: a call of the host costs as much as some thousand bytes.
const WRITE_BYTES: usize = 16 * 1024;

/// Something to read. Clones share their place in it.
#[derive(Clone)]
pub struct Input(Rc<RefCell<Source>>);

struct Source {
    from: From,
    buffer: Vec<u8>,
    at: usize,
}

/// Gives the next piece of something to read; false when nothing follows.
type Stream = Box<dyn FnMut(&mut Vec<u8>) -> io::Result<bool>>;

enum From {
    Process,
    File(File),
    Stream(Stream),
    Nothing,
}

impl Input {
    fn new(from: From, buffer: Vec<u8>) -> Self {
        Self(Rc::new(RefCell::new(Source { from, buffer, at: 0 })))
    }

    /// The program's input.
    pub fn process() -> Self {
        Self::new(From::Process, Vec::new())
    }

    /// A file.
    pub fn file(file: File) -> Self {
        Self::new(From::File(file), Vec::new())
    }

    /// These bytes.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::new(From::Nothing, bytes)
    }

    /// What is made when it is read.
    pub fn stream(next: impl FnMut(&mut Vec<u8>) -> io::Result<bool> + 'static) -> Self {
        Self::new(From::Stream(Box::new(next)), Vec::new())
    }

    /// Whether more of it has been read already.
    pub fn is_at_hand(&self) -> bool {
        let source = self.0.borrow();
        source.at < source.buffer.len()
    }

    /// Whether somebody types it.
    pub fn is_terminal(&self) -> bool {
        matches!(self.0.borrow().from, From::Process) && platform::is_terminal()
    }

    /// Whether a read would not wait.
    pub fn is_readable(&self) -> bool {
        let source = self.0.borrow();
        source.at < source.buffer.len() || !matches!(source.from, From::Process) || platform::is_readable()
    }

    /// Reads up to and with the next line's end; 0 at the end.
    pub fn read_line(&self, line: &mut Vec<u8>) -> io::Result<usize> {
        let mut source = self.0.borrow_mut();
        let before = line.len();
        loop {
            if source.at == source.buffer.len() && source.fill()? == 0 {
                return Ok(line.len() - before);
            }
            let rest = &source.buffer[source.at..];
            let end = rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            line.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            source.at += end.unwrap_or(rest.len());
            if end.is_some() {
                return Ok(line.len() - before);
            }
        }
    }
}

impl Source {
    fn fill(&mut self) -> io::Result<usize> {
        if platform::step() {
            return Err(platform::broken_off());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        self.at = 0;
        let count = match &mut self.from {
            From::Process => {
                settle()?;
                platform::read(&mut buffer)?
            }
            From::File(file) => file.read(&mut buffer)?,
            From::Stream(next) => {
                let mut more = true;
                buffer.clear();
                while buffer.is_empty() && more {
                    if platform::step() {
                        return Err(platform::broken_off());
                    }
                    more = next(&mut buffer)?;
                }
                if !more {
                    self.from = From::Nothing;
                }
                buffer.len()
            }
            From::Nothing => 0,
        };
        buffer.truncate(count);
        self.buffer = buffer;
        Ok(count)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut source = self.0.borrow_mut();
        if source.at == source.buffer.len() && source.fill()? == 0 {
            return Ok(0);
        }
        let rest = &source.buffer[source.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        source.at += count;
        Ok(count)
    }
}

/// A file that is written, and what is not in it yet.
pub struct Written {
    file: File,
    waiting: Vec<u8>,
}

impl Written {
    fn settle(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.waiting);
        self.waiting.clear();
        written
    }
}

thread_local! {
    /// The files that something waits for.
    static UNSETTLED: RefCell<Vec<Rc<RefCell<Written>>>> = const { RefCell::new(Vec::new()) };
}

fn put(file: &Rc<RefCell<Written>>, bytes: &[u8]) -> io::Result<()> {
    let mut written = file.borrow_mut();
    if written.waiting.is_empty() && !bytes.is_empty() {
        UNSETTLED.with_borrow_mut(|files| files.push(file.clone()));
    }
    written.waiting.extend_from_slice(bytes);
    if written.waiting.len() >= WRITE_BYTES {
        drop(written);
        return settle();
    }
    Ok(())
}

/// Lets everything be in its file that was written to one: before somebody looks, and where a failure is to be told.
pub fn settle() -> io::Result<()> {
    let files = UNSETTLED.take();
    let settled: Vec<io::Result<()>> = files.iter().map(|file| file.borrow_mut().settle()).collect();
    settled.into_iter().collect()
}

/// Something to write to. Clones write to the same place.
#[derive(Clone)]
pub enum Output {
    /// The program's output.
    Stdout,
    /// The program's error output.
    Stderr,
    /// A file.
    File(Rc<RefCell<Written>>),
    /// What the next command of a pipeline reads, and whether there was too much of it.
    Kept(Rc<RefCell<Vec<u8>>>, Rc<Cell<bool>>),
    /// Nowhere.
    Nowhere,
}

impl Output {
    /// A file.
    pub fn file(file: File) -> Self {
        Self::File(Rc::new(RefCell::new(Written { file, waiting: Vec::new() })))
    }

    /// An output that is kept.
    pub fn kept() -> (Self, Rc<RefCell<Vec<u8>>>) {
        let kept = Rc::new(RefCell::new(Vec::new()));
        (Self::Kept(kept.clone(), Rc::default()), kept)
    }

    /// Whether more was written than can be kept.
    pub fn is_overfull(&self) -> bool {
        matches!(self, Self::Kept(_, overfull) if overfull.get())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !matches!(self, Output::Stdout) && platform::step() {
            return Err(platform::broken_off());
        }
        match self {
            Output::Stdout => platform::write(bytes)?,
            Output::Stderr => platform::write_error(bytes)?,
            Output::File(file) => put(file, bytes)?,
            Output::Kept(kept, overfull) if kept.borrow().len() + bytes.len() > PIPE_BYTES_MAX => {
                overfull.set(true);
                return Err(io::Error::other(format!(
                    "more than {} MiB for the next command of a pipeline: write it to a file",
                    PIPE_BYTES_MAX >> 20
                )));
            }
            Output::Kept(kept, _) => kept.borrow_mut().extend_from_slice(bytes),
            Output::Nowhere => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Output::Stdout = self {
            platform::flush();
        }
        Ok(())
    }
}
