//! Reads container logs as `kubectl logs` asks for them.
//!
//! A log is lines of `<time> <stream> <F|P> <text>`; `P` marks a part of a line that goes on in the next one. The file
//! is rotated to `<file>.1`, `<file>.2`…, 1 the youngest. A reader begins in the oldest file that it needs, goes on
//! through the younger ones, and, if it follows, waits at the end of the file for more, also across a rotation, until
//! the container has ended.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dhow_types::Time;

/// How long a follower waits before it looks for more.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// What is read from the disk and sent in one piece.
const CHUNK_BYTES: usize = 64 * 1024;
/// A line longer than this is sent in parts; the runtime writes shorter ones.
const LINE_BYTES_MAX: usize = 256 * 1024;

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since: Option<Time>,
    pub(crate) limit_bytes: Option<u64>,
}

impl LogOptions {
    /// From the query of a request at `now`.
    pub(crate) fn parse(query: &str, now: Time) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in pairs(query) {
            let bad = || format!("invalid value `{value}` of `{key}`");
            let flag = || match value.as_str() {
                "" | "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(bad()),
            };
            let number = || value.parse::<u64>().map_err(|_| bad());
            match key.as_str() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail_lines = Some(number()?),
                "limitBytes" => options.limit_bytes = Some(number()?),
                "sinceSeconds" => options.since = Some(now - number()?.saturating_mul(1000)),
                "sinceTime" => options.since = Some(Time::parse(&value).map_err(|_| bad())?),
                _ => {}
            }
        }
        Ok(options)
    }
}

/// The decoded pairs of a query.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

/// Undoes percent encoding; what is malformed stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |b: u8| char::from(b).to_digit(16);
        match (byte, after) {
            (b'%', [a, b, after @ ..]) if hex(*a).is_some() && hex(*b).is_some() => {
                bytes.push((hex(*a).unwrap_or(0) * 16 + hex(*b).unwrap_or(0)) as u8);
                rest = after;
            }
            _ => {
                bytes.push(if byte == b'+' { b' ' } else { byte });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one log from where its options say.
pub(crate) struct LogReader {
    path: PathBuf,
    options: LogOptions,
    /// The file that is being read, if it exists yet.
    file: Option<File>,
    /// Rotated files that come after it, the next one last.
    younger: Vec<PathBuf>,
    /// What was read and not yet ended by a newline.
    partial: Vec<u8>,
    /// Whether the next text begins a line of output.
    at_line_start: bool,
    left: u64,
}

/// The last lines of a log, and of those the last bytes.
pub(crate) async fn end_of(path: &Path, lines: u64, bytes_max: usize) -> io::Result<String> {
    let options = LogOptions { tail_lines: Some(lines), ..LogOptions::default() };
    let (mut reader, mut text) = (LogReader::open(path, options)?, Vec::new());
    while let Some((bytes, next)) = reader.next(|| false).await? {
        text.extend_from_slice(&bytes);
        text.drain(..text.len().saturating_sub(bytes_max));
        reader = next;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Data(Vec<u8>),
    AtEnd,
    Full,
}

impl LogReader {
    /// A reader of the log at `path`; a file that is not there (yet) is an empty one.
    pub(crate) fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let mut files = files_of(path);
        let mut skip = 0;
        if let Some(lines) = options.tail_lines {
            let (first, offset) = tail(&files, lines)?;
            files.drain(..first);
            skip = offset;
        }
        files.reverse();
        let file = match files.pop() {
            Some(first) => {
                let mut file = File::open(first)?;
                file.seek(SeekFrom::Start(skip))?;
                Some(file)
            }
            None => None,
        };
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        Ok(Self {
            path: path.to_owned(),
            options,
            file,
            younger: files,
            partial: Vec::new(),
            at_line_start: true,
            left,
        })
    }

    /// The next piece; `None` at the end. `running` says whether the container may still write.
    pub(crate) async fn next(mut self, running: impl Fn() -> bool) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            // Asked before reading: what was written before the end is read after it.
            let may_grow = self.options.follow && running();
            let work = tokio::task::spawn_blocking(move || {
                let step = self.step();
                (step, self)
            });
            let (step, reader) = work.await.map_err(io::Error::other)?;
            self = reader;
            match step? {
                Step::Data(bytes) => return Ok(Some((Bytes::from(bytes), self))),
                Step::Full => return Ok(None),
                Step::AtEnd if may_grow => tokio::time::sleep(POLL_EVERY).await,
                Step::AtEnd => return Ok(None),
            }
        }
    }

    fn step(&mut self) -> io::Result<Step> {
        if self.left == 0 {
            return Ok(Step::Full);
        }
        let mut output = Vec::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        while output.is_empty() {
            let read = self.read(&mut chunk)?;
            if read == 0 {
                return Ok(Step::AtEnd);
            }
            self.partial.extend_from_slice(&chunk[..read]);
            self.take_lines(&mut output);
        }
        let allowed = usize::try_from(self.left).unwrap_or(usize::MAX).min(output.len());
        output.truncate(allowed);
        self.left -= allowed as u64;
        Ok(Step::Data(output))
    }

    /// Reads on, into the next file at the end of one.
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.file {
                let read = file.read(chunk)?;
                if read > 0 {
                    return Ok(read);
                }
            }
            let next = match self.younger.pop() {
                Some(path) => path,
                None if self.rotated() => self.successor(),
                None => return Ok(0),
            };
            match File::open(next) {
                Ok(file) => self.file = Some(file),
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(0),
                Err(err) => return Err(err),
            }
        }
    }

    /// Whether the file at the path is another one than the one that is being read.
    fn rotated(&self) -> bool {
        let Ok(there) = std::fs::metadata(&self.path) else { return false };
        match self.file.as_ref().map(File::metadata) {
            Some(Ok(here)) => (here.ino(), here.dev()) != (there.ino(), there.dev()),
            Some(Err(_)) => false,
            None => true,
        }
    }

    /// The file that follows the one that was read to its end: the next younger one, if it was rotated more than once
    /// meanwhile.
    fn successor(&mut self) -> PathBuf {
        let here = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|m| (m.ino(), m.dev()));
        let files = files_of(&self.path);
        let is_here = |path: &PathBuf| std::fs::metadata(path).ok().map(|m| (m.ino(), m.dev())) == here;
        match files.iter().position(is_here) {
            Some(at) if here.is_some() => {
                let mut rest = files[at + 1..].to_vec();
                rest.reverse();
                let next = rest.pop().unwrap_or_else(|| self.path.clone());
                self.younger = rest;
                next
            }
            _ => self.path.clone(),
        }
    }

    fn take_lines(&mut self, output: &mut Vec<u8>) {
        let mut begin = 0;
        while let Some(length) = self.partial[begin..].iter().position(|b| *b == b'\n') {
            let line = begin..begin + length;
            begin += length + 1;
            Self::put_line(&self.options, &mut self.at_line_start, &self.partial[line], output);
        }
        self.partial.drain(..begin);
        // Not ours: a foreign writer's line without an end must not fill the memory.
        if self.partial.len() > LINE_BYTES_MAX {
            output.append(&mut self.partial);
        }
    }

    fn put_line(options: &LogOptions, at_line_start: &mut bool, line: &[u8], output: &mut Vec<u8>) {
        let Some(line) = Line::parse(line) else {
            output.extend_from_slice(line);
            output.push(b'\n');
            return;
        };
        if options.since.is_some_and(|since| line.time().is_some_and(|time| time < since)) {
            return;
        }
        if options.timestamps && *at_line_start {
            output.extend_from_slice(line.stamp);
            output.push(b' ');
        }
        output.extend_from_slice(line.text);
        if line.full {
            output.push(b'\n');
        }
        *at_line_start = line.full;
    }
}

struct Line<'a> {
    stamp: &'a [u8],
    full: bool,
    text: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (stamp, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let text = parts.next().unwrap_or_default();
        let known = (stream == b"stdout" || stream == b"stderr") && matches!(tag, b"F" | b"P");
        known.then_some(Self { stamp, full: tag == b"F", text })
    }

    fn time(&self) -> Option<Time> {
        Time::parse(std::str::from_utf8(self.stamp).ok()?).ok()
    }
}

/// The existing files of a log, oldest first.
fn files_of(path: &Path) -> Vec<PathBuf> {
    let rotated = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let mut files: Vec<_> = (1..).map(rotated).take_while(|file| file.exists()).collect();
    files.reverse();
    if path.exists() {
        files.push(path.to_owned());
    }
    files
}

/// Where the last `lines` lines begin: in which file, and at which byte of it.
fn tail(files: &[PathBuf], lines: u64) -> io::Result<(usize, u64)> {
    let mut missing = lines;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if missing == 0 {
            // Nothing of the youngest file is wanted, only what comes.
            return Ok((index, length));
        }
        if let Some(offset) = tail_of(&mut file, length, &mut missing)? {
            return Ok((index, offset));
        }
    }
    Ok((0, 0))
}

/// Walks back over whole lines; `None` if the file has fewer than `missing`, which is counted down.
fn tail_of(file: &mut File, length: u64, missing: &mut u64) -> io::Result<Option<u64>> {
    let mut end = length;
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 {
        let begin = end.saturating_sub(CHUNK_BYTES as u64);
        let part = &mut chunk[..(end - begin) as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(part)?;
        for (at, byte) in part.iter().enumerate().rev() {
            let position = begin + at as u64;
            // The newline at the very end ends the last line and begins none.
            if *byte != b'\n' || position + 1 == length {
                continue;
            }
            *missing -= 1;
            if *missing == 0 {
                return Ok(Some(position + 1));
            }
        }
        end = begin;
    }
    if length > 0 {
        *missing -= 1;
        if *missing == 0 {
            return Ok(Some(0));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn line(second: u32, tag: &str, text: &str) -> String {
        format!("2026-01-02T15:04:{second:02}.000000000Z stdout {tag} {text}\n")
    }

    async fn read(path: &Path, options: LogOptions) -> String {
        let mut reader = LogReader::open(path, options).unwrap();
        let mut text = String::new();
        while let Some((bytes, next)) = reader.next(|| false).await.unwrap() {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            reader = next;
        }
        text
    }

    #[tokio::test]
    async fn a_log_is_read_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.2"), line(1, "F", "a") + &line(2, "F", "b")).unwrap();
        fs::write(dir.path().join("0.log.1"), line(3, "F", "c")).unwrap();
        fs::write(&path, line(4, "P", "d") + &line(4, "F", "e") + &line(5, "F", "")).unwrap();
        let options = LogOptions::default;
        let since = Time::parse("2026-01-02T15:04:03Z").unwrap();
        for (options, expected) in [
            (options(), "a\nb\nc\nde\n\n"),
            (LogOptions { tail_lines: Some(1), ..options() }, "\n"),
            (LogOptions { tail_lines: Some(0), ..options() }, ""),
            (LogOptions { tail_lines: Some(4), ..options() }, "c\nde\n\n"),
            (LogOptions { tail_lines: Some(5), ..options() }, "b\nc\nde\n\n"),
            (LogOptions { tail_lines: Some(99), ..options() }, "a\nb\nc\nde\n\n"),
            (LogOptions { since: Some(since), ..options() }, "c\nde\n\n"),
            (LogOptions { limit_bytes: Some(3), ..options() }, "a\nb"),
            (
                LogOptions { timestamps: true, tail_lines: Some(3), ..options() },
                "2026-01-02T15:04:04.000000000Z de\n2026-01-02T15:04:05.000000000Z \n",
            ),
        ] {
            assert_eq!(read(&path, options.clone()).await, expected, "{options:?}");
        }
        assert_eq!(read(&dir.path().join("none.log"), options()).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_sees_what_comes_also_across_rotations_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let rotate = |path: &Path| {
            for n in (1..3).rev() {
                let from = path.with_file_name(format!("0.log.{n}"));
                if from.exists() {
                    fs::rename(&from, path.with_file_name(format!("0.log.{}", n + 1))).unwrap();
                }
            }
            fs::rename(path, path.with_file_name("0.log.1")).unwrap();
        };
        let asked = AtomicU32::new(0);
        // Each look is one moment in the container's life.
        let running = || {
            match asked.fetch_add(1, Ordering::Relaxed) {
                0 => {}
                1 => fs::write(&path, line(1, "F", "a")).unwrap(),
                2 => {
                    fs::write(&path, line(1, "F", "a") + &line(2, "F", "b")).unwrap();
                    rotate(&path);
                    fs::write(&path, line(3, "F", "c")).unwrap();
                    rotate(&path);
                    fs::write(&path, line(4, "F", "d")).unwrap();
                }
                3..=6 => {}
                _ => return false,
            }
            true
        };
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut reader = LogReader::open(&path, options).unwrap();
        let text = Cell::new(String::new());
        while let Some((bytes, next)) = reader.next(running).await.unwrap() {
            text.set(text.take() + std::str::from_utf8(&bytes).unwrap());
            reader = next;
        }
        assert_eq!(text.take(), "a\nb\nc\nd\n");
    }

    #[test]
    fn options_come_from_the_query() {
        let now = Time::from_secs(1000);
        let found = LogOptions::parse("follow=true&tailLines=5&sinceSeconds=10&timestamps=false&limitBytes=7&x=y", now);
        let expected = LogOptions {
            follow: true,
            tail_lines: Some(5),
            since: Some(Time::from_secs(990)),
            limit_bytes: Some(7),
            ..LogOptions::default()
        };
        assert_eq!(found, Ok(expected));
        let at = LogOptions::parse("sinceTime=2026-01-02T15%3A04%3A05Z", now).unwrap().since;
        assert_eq!(at, Some(Time::parse("2026-01-02T15:04:05Z").unwrap()));
        assert!(LogOptions::parse("tailLines=-1", now).is_err());
        assert_eq!(decode("a%20b%zz%"), "a b%zz%");
    }
}
