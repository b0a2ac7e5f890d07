//! One program with many behaviours, chosen by its arguments: `tool echo 7000`, `tool call web:7000 hello`…

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // Listens and gives each connection back what it sends, one after the other.
        ["echo", port] => echo(port),
        // Sends one line and prints the answer.
        ["call", to, text] => match call(to, text) {
            Ok(answer) => println!("{answer}"),
            Err(error) => println!("error: {:?}", error.kind()),
        },
        // Takes one connection, reads it to its end, and only then answers.
        ["collect", port] => collect(port),
        // Sends some text, ends its side, and prints all that the other side says after that.
        ["finish", to, text] => match finish(to, text) {
            Ok(answer) => println!("{answer}"),
            Err(error) => println!("error: {:?}", error.kind()),
        },
        // Takes connections and never reads from them.
        ["stall", port] => stall(port),
        // Sends until the other side takes no more, and prints how much that was.
        ["flood", to] => println!("{}", flood(to).expect("send")),
        ["resolve", name] => match (name, 0).to_socket_addrs() {
            Ok(addresses) => addresses.for_each(|address| println!("{}", address.ip())),
            Err(error) => println!("error: {error}"),
        },
        // Sends a datagram to itself.
        ["udp", address] => {
            let socket = UdpSocket::bind(address).expect("bind");
            let to = socket.local_addr().expect("address");
            socket.send_to(b"ping", to).expect("send");
            let mut buffer = [0; 16];
            let (len, from) = socket.recv_from(&mut buffer).expect("receive");
            println!("{} from {from}", String::from_utf8_lossy(&buffer[..len]));
        }
        // Gives each datagram back to who sent it.
        ["udp-echo", port] => udp_echo(port),
        ["env"] => {
            std::env::args().for_each(|arg| println!("arg {arg}"));
            std::env::vars().for_each(|(name, value)| println!("env {name}={value}"));
        }
        ["write", path, text] => match std::fs::write(path, text) {
            Ok(()) => println!("written"),
            Err(error) => println!("error: {:?}", error.kind()),
        },
        ["append", path, text] => append(path, text),
        // Makes a link; what it leads to need not be there.
        ["link", target, path] => {
            #[allow(deprecated, reason = "the only link of the standard library that every target has")]
            match std::fs::soft_link(target, path) {
                Ok(()) => println!("linked"),
                Err(error) => println!("error: {:?}", error.kind()),
            }
        }
        // Prints a file whenever it has changed.
        ["follow", path] => follow(path),
        // Leaves a last word in a file and fails.
        ["leave", path, text] => {
            std::fs::write(path, text).expect("write");
            std::process::exit(1);
        }
        ["read", path] => match std::fs::read_to_string(path) {
            Ok(text) => println!("{text}"),
            Err(error) => println!("error: {:?}", error.kind()),
        },
        // Opens a file until it may not any more, lets go of all, and opens it once more.
        ["open", path] => {
            let mut held = Vec::new();
            let error = loop {
                match std::fs::File::open(path) {
                    Ok(file) => held.push(file),
                    Err(error) => break error,
                }
            };
            let count = held.len();
            drop(held);
            let again = std::fs::File::open(path).is_ok();
            println!("{count} files, then {:?}; again: {again}", error.kind());
        }
        // Prints stdin line by line, in capitals.
        ["shout"] => {
            for line in std::io::stdin().lock().lines() {
                println!("{}", line.expect("a line").to_uppercase());
            }
            eprintln!("done");
        }
        ["panic"] => panic!("as I was told"),
        ["exit", code] => std::process::exit(code.parse().expect("a number")),
        // Takes memory, a MiB at a time.
        ["hog"] => {
            let mut held = Vec::new();
            loop {
                held.push(vec![1_u8; 1 << 20]);
            }
        }
        ["print", lines] => {
            for number in 0..lines.parse::<u64>().expect("a number") {
                println!("line {number}");
            }
        }
        ["sleep"] => loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        },
        _ => {
            eprintln!("what is {args:?}?");
            std::process::exit(1);
        }
    }
}

fn echo(port: &str) {
    let port: u16 = port.parse().expect("a port");
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("bind");
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream.expect("accept");
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
    }
}

fn collect(port: &str) {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().expect("a port"))).expect("bind");
    println!("listening");
    let (mut stream, _) = listener.accept().expect("accept");
    let mut received = String::new();
    stream.read_to_string(&mut received).expect("read");
    write!(stream, "{} bytes, the last of them {:?}", received.len(), received.chars().last()).expect("write");
}

fn finish(to: &str, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn stall(port: &str) {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().expect("a port"))).expect("bind");
    println!("listening");
    let _held: Vec<_> = listener.incoming().collect();
}

fn flood(to: &str) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nonblocking(true)?;
    let mut sent = 0;
    loop {
        match stream.write(&[7; 4096]) {
            Ok(len) => sent += len,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(sent),
            Err(error) => return Err(error),
        }
    }
}

fn udp_echo(port: &str) {
    let port: u16 = port.parse().expect("a port");
    let socket = UdpSocket::bind(("0.0.0.0", port)).expect("bind");
    println!("listening");
    let mut buffer = [0; 4096];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).expect("receive");
        socket.send_to(&buffer[..len], from).expect("send");
    }
}

fn follow(path: &str) {
    let mut last = None;
    loop {
        let text = std::fs::read_to_string(path).map_err(|error| format!("error: {:?}", error.kind()));
        let text = text.unwrap_or_else(|error| error);
        if last.as_ref() != Some(&text) {
            println!("{text}");
            last = Some(text);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn append(path: &str, text: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.expect("open"), "{text}").expect("write");
}

fn call(to: &str, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to)?;
    writeln!(stream, "{text}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}
