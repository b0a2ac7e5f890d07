//! The guestbook's back end: keeps entries in a file on a volume and serves them over HTTP/1.1.
//!
//! `GET /` gives the entries, a line each; `POST /` adds the body as an entry. It is an ordinary program with a
//! `std::net` listener: it holds its state in memory between requests, which an HTTP handler does not.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

/// The longest entry, so that one guest cannot fill the book.
const ENTRY_BYTES_MAX: usize = 4096;

fn main() -> io::Result<()> {
    let path = std::env::var("GUESTBOOK_FILE").unwrap_or_else(|_| "/data/entries".to_owned());
    let mut entries: Vec<String> = match File::open(&path) {
        Ok(file) => BufReader::new(file).lines().collect::<io::Result<_>>()?,
        Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(err) => return Err(err),
    };
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let listener = TcpListener::bind("0.0.0.0:7000")?;
    println!("{} entries in {path}, serving on {}", entries.len(), listener.local_addr()?);
    for stream in listener.incoming() {
        if let Err(err) = serve(stream?, &mut entries, &mut file) {
            println!("a request failed: {err}");
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream, entries: &mut Vec<String>, file: &mut File) -> io::Result<()> {
    let mut reader = BufReader::new(&mut stream);
    let mut first = String::new();
    reader.by_ref().take(1024).read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.by_ref().take(8192).read_line(&mut header)? <= 2 {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let (status, body) = match first.split(' ').next() {
        Some("GET") => ("200 OK", entries.join("\n")),
        Some("POST") if length > ENTRY_BYTES_MAX => ("413 Content Too Large", String::new()),
        Some("POST") => {
            let mut entry = vec![0; length];
            reader.read_exact(&mut entry)?;
            let entry = String::from_utf8_lossy(&entry).replace(['\r', '\n'], " ");
            writeln!(file, "{entry}")?;
            file.sync_data()?;
            println!("new entry: {entry}");
            entries.push(entry);
            ("201 Created", String::new())
        }
        _ => ("405 Method Not Allowed", String::new()),
    };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
    stream.flush()
}
