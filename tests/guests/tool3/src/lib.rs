//! A command of WASI 0.3 with many behaviours, chosen by its arguments as those of `tool` are.

use wasip3::cli::{environment, stdin, stdout};
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket, UdpSocket};
use wasip3::filesystem::{preopens, types as fs};
use wasip3::{wit_bindgen, wit_stream};

struct Tool;

wasip3::cli::command::export!(Tool);

impl wasip3::exports::cli::run::Guest for Tool {
    async fn run() -> Result<(), ()> {
        let args = environment::get_arguments();
        let args: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
        match args[..] {
            ["env"] => {
                let mut text: Vec<String> = args.iter().map(|arg| format!("arg {arg}\n")).collect();
                text.extend(environment::get_environment().iter().map(|(name, value)| format!("env {name}={value}\n")));
                print(&text.concat()).await;
            }
            // Listens and gives each connection back what it sends, all of them at a time.
            ["echo", port] => echo(port.parse().expect("a port")).await,
            // Sends some text, ends its side, and prints all of the answer.
            ["call", to, text] => match call(to, text).await {
                Ok(answer) => print(&format!("{answer}\n")).await,
                Err(code) => print(&format!("error: {code}\n")).await,
            },
            // Sends a datagram to itself.
            ["udp", address] => print(&udp(address).await).await,
            ["resolve", name] => match resolve_addresses(name.to_owned()).await {
                Ok(addresses) => {
                    let text: Vec<String> = addresses.iter().map(|a| format!("{}\n", ip(a))).collect();
                    print(&text.concat()).await;
                }
                Err(code) => print(&format!("error: {code:?}\n")).await,
            },
            ["write", name, text] => print(&write(name, text).await).await,
            ["read", name] => print(&read(name).await).await,
            ["append", name, text] => print(&append(name, text).await).await,
            ["open", name] => print(&open(name).await).await,
            ["shout"] => {
                let (input, _ended) = stdin::read_via_stream();
                let text = input.collect().await;
                print(&String::from_utf8_lossy(&text).to_uppercase()).await;
            }
            ["fail"] => return Err(()),
            ["panic"] => panic!("as I was told"),
            ["exit", code] => wasip3::cli::exit::exit_with_code(code.parse().expect("a code")),
            _ => return Err(()),
        }
        Ok(())
    }
}

async fn print(text: &str) {
    let (mut sender, receiver) = wit_stream::new();
    let written = stdout::write_via_stream(receiver);
    let _rest = sender.write_all(text.as_bytes().to_vec()).await;
    drop(sender);
    let _written = written.await;
}

fn address(text: &str) -> IpSocketAddress {
    let address: std::net::SocketAddrV4 = text.parse().expect("an address with a port");
    let [a, b, c, d] = address.ip().octets();
    IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) })
}

fn ip(address: &IpAddress) -> String {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => format!("{a}.{b}.{c}.{d}"),
        IpAddress::Ipv6(parts) => format!("{parts:?}"),
    }
}

async fn echo(port: u16) {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).expect("create");
    socket.bind(address(&format!("0.0.0.0:{port}"))).expect("bind");
    let mut connections = socket.listen().expect("listen");
    print("listening\n").await;
    while let Some(connection) = connections.next().await {
        wit_bindgen::spawn_local(async move {
            let (incoming, _ended) = connection.receive();
            let _sent = connection.send(incoming).await;
        });
    }
}

async fn call(to: &str, text: &str) -> Result<String, String> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(|c| format!("{c:?}"))?;
    socket.connect(address(to)).await.map_err(|c| format!("{c:?}"))?;
    let (mut sender, receiver) = wit_stream::new();
    let sent = socket.send(receiver);
    let (incoming, _ended) = socket.receive();
    let _rest = sender.write_all(text.as_bytes().to_vec()).await;
    drop(sender);
    sent.await.map_err(|c| format!("{c:?}"))?;
    Ok(String::from_utf8_lossy(&incoming.collect().await).into_owned())
}

async fn udp(to: &str) -> String {
    let socket = UdpSocket::create(IpAddressFamily::Ipv4).expect("create");
    socket.bind(address(to)).expect("bind");
    socket.send(b"ping".to_vec(), Some(address(to))).await.expect("send");
    let (data, _from) = socket.receive().await.expect("receive");
    format!("{}\n", String::from_utf8_lossy(&data))
}

async fn write(name: &str, text: &str) -> String {
    let [(dir, _)] = &preopens::get_directories()[..] else { return "one directory is expected\n".to_owned() };
    let flags = fs::OpenFlags::CREATE | fs::OpenFlags::TRUNCATE;
    let file = dir.open_at(fs::PathFlags::empty(), name.to_owned(), flags, fs::DescriptorFlags::WRITE).await;
    let file = match file {
        Ok(file) => file,
        Err(code) => return format!("error: {code:?}\n"),
    };
    let (mut sender, receiver) = wit_stream::new();
    let written = file.write_via_stream(receiver, 0);
    let _rest = sender.write_all(text.as_bytes().to_vec()).await;
    drop(sender);
    match written.await {
        Ok(()) => "written\n".to_owned(),
        Err(code) => format!("error: {code:?}\n"),
    }
}

async fn append(name: &str, text: &str) -> String {
    let [(dir, _)] = &preopens::get_directories()[..] else { return "one directory is expected\n".to_owned() };
    let file = dir.open_at(fs::PathFlags::empty(), name.to_owned(), fs::OpenFlags::CREATE, fs::DescriptorFlags::WRITE).await;
    let file = match file {
        Ok(file) => file,
        Err(code) => return format!("error: {code:?}\n"),
    };
    let (mut sender, receiver) = wit_stream::new();
    let written = file.append_via_stream(receiver);
    let _rest = sender.write_all(text.as_bytes().to_vec()).await;
    drop(sender);
    match written.await {
        Ok(()) => "written\n".to_owned(),
        Err(code) => format!("error: {code:?}\n"),
    }
}

/// Opens a file until it may not any more, keeping no more than a stream of each; lets go of all, and opens it once more.
async fn open(name: &str) -> String {
    let [(dir, _)] = &preopens::get_directories()[..] else { return "one directory is expected\n".to_owned() };
    let one = || {
        dir.open_at(fs::PathFlags::empty(), name.to_owned(), fs::OpenFlags::empty(), fs::DescriptorFlags::READ)
    };
    let mut held = Vec::new();
    let code = loop {
        match one().await {
            Ok(file) => held.push(file.read_via_stream(0)),
            Err(code) => break code,
        }
    };
    let count = held.len();
    drop(held);
    format!("{count} files, then {code:?}; again: {}\n", one().await.is_ok())
}

async fn read(name: &str) -> String {
    let [(dir, _)] = &preopens::get_directories()[..] else { return "one directory is expected\n".to_owned() };
    let empty = (fs::PathFlags::empty(), fs::OpenFlags::empty());
    match dir.open_at(empty.0, name.to_owned(), empty.1, fs::DescriptorFlags::READ).await {
        Ok(file) => {
            let (contents, _ended) = file.read_via_stream(0);
            format!("{}\n", String::from_utf8_lossy(&contents.collect().await))
        }
        Err(code) => format!("error: {code:?}\n"),
    }
}
