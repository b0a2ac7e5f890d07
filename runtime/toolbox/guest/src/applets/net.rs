//! Programs that talk over the pod's network.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use super::{Cx, Fail, Options, Outcome, basename, number};
use crate::platform;

/// How often a socket is asked whether it has something: nothing but the terminal can be waited for beside it.
const TICK: Duration = Duration::from_millis(10);
/// Redirections that are followed.
const REDIRECTS_MAX: usize = 5;
/// The longest line of an answer's head, and the longest head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long `wget` waits for a connection or the next bytes.
const WGET_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn nslookup(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "", &[])?;
    let Some(name) = options.rest.first() else { return Err(Fail::Say("usage: nslookup NAME".to_owned())) };
    if name.parse::<IpAddr>().is_ok() {
        return Err(Fail::Say(format!("{name}: the pod's network knows no names of addresses")));
    }
    let found = (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|a| a.ip()).collect::<Vec<_>>());
    let Some(mut found) = found.ok().filter(|found| !found.is_empty()) else {
        return Err(Fail::Say(format!("can't resolve '{name}'")));
    };
    found.dedup();
    cx.line(&format!("Name:\t{name}"))?;
    for address in found {
        cx.line(&format!("Address:\t{address}"))?;
    }
    Ok(0)
}

fn lookup(host: &str, port: u16) -> Result<SocketAddr, Fail> {
    let found = (host, port).to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| Fail::Say(format!("bad address '{host}'")))
}

/// A connection whose every wait can be broken off.
struct Patient {
    stream: TcpStream,
    timeout: Option<Duration>,
}

impl Patient {
    fn connect(address: SocketAddr, timeout: Option<Duration>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, timeout })
    }

    fn insist<T>(&mut self, mut act: impl FnMut(&mut TcpStream) -> io::Result<T>) -> io::Result<T> {
        let begin = Instant::now();
        loop {
            match act(&mut self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if self.timeout.is_some_and(|timeout| begin.elapsed() > timeout) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "timed out"));
            }
            platform::sleep(TICK)?;
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.insist(|stream| stream.read(buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.insist(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ---- wget ----

/// A URL in parts.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
    path: String,
}

fn parse_url(text: &str) -> Result<Url, Fail> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(Fail::Say(format!("{text}: https is not supported by the toolbox; use http")));
        }
        Some((scheme, _)) => return Err(Fail::Say(format!("{text}: unsupported scheme `{scheme}`"))),
        None => text,
    };
    let (place, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let bad = || Fail::Say(format!("{text}: bad address"));
    let (host, port) = match place.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, after)) => (host, after.strip_prefix(':')),
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Ok(80), |port| port.parse().map_err(|_| bad()))?;
    if host.is_empty() {
        return Err(bad());
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Url { host: host.to_owned(), port, path })
}

struct Answer {
    status: u16,
    line: String,
    headers: Vec<(String, String)>,
    body: io::BufReader<Patient>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

pub(super) fn wget(cx: &mut Cx, args: &[String]) -> Outcome {
    let long = [
        ("header", 'H'),
        ("post-data", 'D'),
        ("spider", 's'),
        ("timeout", 'T'),
        ("quiet", 'q'),
        ("output-document", 'O'),
    ];
    let options = Options::read(args, "qO:ST:cU:H:D:sY:t:", &long)?;
    let Some(text) = options.rest.first() else { return Err(Fail::Say("usage: wget [-q] [-O FILE] URL".to_owned())) };
    let mut url = parse_url(text)?;
    for _ in 0..REDIRECTS_MAX {
        let answer = ask(cx, &options, &url)?;
        let target = answer.header("location").filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
        if let Some(target) = target {
            url = match target.starts_with('/') {
                true => Url { path: target.to_owned(), ..url },
                false => parse_url(target)?,
            };
            continue;
        }
        if !(200..300).contains(&answer.status) {
            return Err(Fail::Say(format!("server returned error: {}", answer.line)));
        }
        if options.has('s') {
            return Ok(0);
        }
        return save(cx, &options, &url, answer);
    }
    Err(Fail::Say("too many redirections".to_owned()))
}

fn ask(cx: &mut Cx, options: &Options, url: &Url) -> Result<Answer, Fail> {
    let address = lookup(&url.host, url.port)?;
    if !options.has('q') {
        writeln!(cx.stderr, "Connecting to {}:{} ({address})", url.host, url.port)?;
    }
    let timeout = options.value('T').map(number::<u64>).transpose()?.map_or(WGET_TIMEOUT, Duration::from_secs);
    let connect = |error| Fail::Say(format!("can't connect to remote host ({address}): {error}"));
    let mut stream = Patient::connect(address, Some(timeout)).map_err(connect)?;
    let host = if url.port == 80 { url.host.clone() } else { format!("{}:{}", url.host, url.port) };
    let method = if options.has('D') { "POST" } else { "GET" };
    let agent = options.value('U').unwrap_or("Wget");
    let mut request =
        format!("{method} {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: close\r\n", url.path);
    for header in options.values('H') {
        request.push_str(&format!("{header}\r\n"));
    }
    let body = options.value('D').unwrap_or_default();
    if options.has('D') {
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        let given = options.values('H').any(|header| header.to_ascii_lowercase().starts_with("content-type:"));
        request.push_str(&format!("{}Content-Length: {}\r\n", if given { "" } else { kind }, body.len()));
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
    let mut body = io::BufReader::new(stream);
    let line = head_line(&mut body)?;
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|code| code.parse().ok()).filter(|_| version.starts_with("HTTP/1."));
    let status = status.ok_or_else(|| Fail::Say("the server does not speak HTTP".to_owned()))?;
    let mut headers = Vec::new();
    loop {
        let line = head_line(&mut body)?;
        if options.has('S') {
            writeln!(cx.stderr, "  {line}")?;
        }
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
        if headers.len() > HEAD_BYTES_MAX / 64 {
            return Err(Fail::Say("the server's answer has too many headers".to_owned()));
        }
    }
    Ok(Answer { status, line, headers, body })
}

fn head_line(body: &mut impl io::BufRead) -> Result<String, Fail> {
    let mut line = Vec::new();
    io::BufRead::read_until(&mut body.take(HEAD_BYTES_MAX as u64), b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(Fail::Say("the server broke off its answer".to_owned()));
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn save(cx: &mut Cx, options: &Options, url: &Url, mut answer: Answer) -> Outcome {
    let name = basename(url.path.split('?').next().unwrap_or_default());
    let path = options.value('O').unwrap_or(if name.is_empty() { "index.html" } else { name }).to_owned();
    let mut out = if path == "-" { cx.stdout.clone() } else { cx.create(&path, false)? };
    let chunked = answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    let length = answer.header("content-length").map(number::<u64>).transpose()?;
    let cut = || Fail::Say("the server broke off its answer".to_owned());
    if chunked {
        loop {
            let line = head_line(&mut answer.body)?;
            let size = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16).map_err(|_| cut())?;
            if size == 0 {
                break;
            }
            if io::copy(&mut (&mut answer.body).take(size), &mut out)? < size {
                return Err(cut());
            }
            head_line(&mut answer.body)?;
        }
    } else {
        let copied = io::copy(&mut (&mut answer.body).take(length.unwrap_or(u64::MAX)), &mut out)?;
        if length.is_some_and(|length| copied < length) {
            return Err(cut());
        }
    }
    if path != "-" && !options.has('q') {
        writeln!(cx.stderr, "'{path}' saved")?;
    }
    Ok(0)
}

// ---- nc ----

pub(super) fn nc(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "lp:uw:zvkn", &[])?;
    let wait = options.value('w').map(number::<u64>).transpose()?.map(Duration::from_secs);
    if options.has('l') {
        let port = options.value('p').or(options.rest.last().map(String::as_str));
        let port: u16 = number(port.ok_or_else(|| Fail::Say("usage: nc -l -p PORT".to_owned()))?)?;
        let listener = TcpListener::bind(("0.0.0.0", port))?;
        listener.set_nonblocking(true)?;
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    platform::sleep(TICK)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            talk(cx, stream, wait)?;
            if !options.has('k') {
                return Ok(0);
            }
        }
    }
    let [host, port] = &options.rest[..] else {
        return Err(Fail::Say("usage: nc [-u] [-z] [-w SECONDS] HOST PORT, or nc -l -p PORT".to_owned()));
    };
    let address = lookup(host, number(port)?)?;
    if options.has('u') {
        return datagrams(cx, address, wait);
    }
    let stream = TcpStream::connect(address).map_err(|error| Fail::Say(format!("{host} ({address}): {error}")))?;
    if options.has('v') {
        writeln!(cx.stderr, "{host} ({address}) open")?;
    }
    if options.has('z') {
        return Ok(0);
    }
    talk(cx, stream, wait)?;
    Ok(0)
}

/// Both ways until the other side ends.
fn talk(cx: &mut Cx, mut stream: TcpStream, wait: Option<Duration>) -> Result<(), Fail> {
    stream.set_nonblocking(true)?;
    let (mut input, mut buffer) = (cx.stdin.clone(), vec![0; 16 * 1024]);
    let (mut open, mut unsent, mut last) = (true, Vec::new(), Instant::now());
    loop {
        let mut idle = true;
        if open && unsent.is_empty() && input.is_readable() {
            idle = false;
            match input.read(&mut buffer)? {
                0 => {
                    open = false;
                    // The other side may have closed before.
                    let _closed = stream.shutdown(Shutdown::Write);
                }
                count => unsent.extend_from_slice(&buffer[..count]),
            }
        }
        if !unsent.is_empty() {
            match stream.write(&unsent) {
                Ok(count) => {
                    idle = false;
                    unsent.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                idle = false;
                cx.stdout.write_all(&buffer[..count])?;
                platform::flush();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if idle {
            if wait.is_some_and(|wait| last.elapsed() > wait) {
                return Ok(());
            }
            if open { platform::wait(TICK)? } else { platform::sleep(TICK)? }
        } else {
            last = Instant::now();
        }
    }
}

/// Sends each line as a datagram and shows the answers.
fn datagrams(cx: &mut Cx, address: SocketAddr, wait: Option<Duration>) -> Outcome {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let (mut input, mut buffer, mut open) = (cx.stdin.clone(), vec![0; 64 * 1024], true);
    // Datagrams have no end: after the input's, answers are waited for a moment.
    let wait = wait.unwrap_or(Duration::from_secs(1));
    let mut last = Instant::now();
    loop {
        if open && input.is_readable() {
            match input.read(&mut buffer)? {
                0 => open = false,
                count => drop(socket.send(&buffer[..count])?),
            }
            last = Instant::now();
        }
        match socket.recv(&mut buffer) {
            Ok(count) => {
                cx.stdout.write_all(&buffer[..count])?;
                platform::flush();
                last = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !open && last.elapsed() > wait {
                    return Ok(0);
                }
                if open { platform::wait(TICK)? } else { platform::sleep(TICK)? }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (text, host, port, path) in [
            ("http://web", "web", 80, "/"),
            ("web:8080/a?b=c", "web", 8080, "/a?b=c"),
            ("http://u:p@web?x", "web", 80, "/?x"),
            ("http://[::1]:81/", "::1", 81, "/"),
        ] {
            let url = parse_url(text).unwrap();
            assert_eq!((url.host.as_str(), url.port, url.path.as_str()), (host, port, path));
        }
        for text in ["https://web", "ftp://web", "http://", "http://web:x"] {
            assert!(parse_url(text).is_err(), "{text}");
        }
    }
}
