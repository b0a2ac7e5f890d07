//! Sends back what it receives, over TCP, one client after the other. Plain `std::net`: nothing in it knows of Dhow.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let port = std::env::var("PORT").unwrap_or_else(|_| "7".to_owned());
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    println!("echoing on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        let peer = stream.peer_addr()?;
        match echo(stream) {
            Ok(bytes) => println!("{peer}: {bytes} bytes"),
            Err(err) => println!("{peer}: {err}"),
        }
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(total);
        }
        stream.write_all(&buffer[..len])?;
        total += len;
    }
}
