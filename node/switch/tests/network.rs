//! Pods on one node, as their guests see the network.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dhow_mesh::{Proto, Update};
use dhow_switch::{
    BoxFuture, Config, Duplex, Egress, NetError, NodePort, NodePortEvent, NodePorts, PodIdentity, PodNet, ReadError,
    Remote, Switch, UdpSocket, splice,
};
use dhow_types::{NodeName, Uid};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn switch() -> Switch {
    switch_with(Egress::default())
}

fn switch_with(egress: Egress) -> Switch {
    let mut config = Config::new(NodeName::new("n1"), "192.0.2.1".parse().unwrap());
    config.egress = egress;
    let switch = Switch::new(config);
    for (name, range) in [("n1", "10.64.0.0/18"), ("n2", "10.64.64.0/18")] {
        let tree = json!({"metadata": {"name": name}, "spec": {"podCIDRs": [range]}});
        switch.apply(Update::node(&tree).unwrap());
    }
    switch
}

fn pod(switch: &Switch, last: u8) -> PodNet {
    switch.add_pod(PodIdentity {
        uid: Uid::new(format!("uid-{last}")),
        namespace: "default".into(),
        name: format!("pod-{last}"),
        ip: IpAddr::from([10, 64, 0, last]),
        hostname: format!("host-{last}"),
        service_account: "default".into(),
    })
}

fn service(switch: &Switch, name: &str, spec: Value, endpoints: &[&str]) {
    let meta = json!({"name": name, "namespace": "default"});
    switch.apply(Update::service(&json!({"metadata": meta, "spec": spec})).unwrap());
    endpoints_of(switch, name, endpoints);
}

fn endpoints_of(switch: &Switch, name: &str, endpoints: &[&str]) {
    let by_port = endpoints.iter().fold(BTreeMap::<u16, Vec<Value>>::new(), |mut all, text| {
        all.entry(at(text).port()).or_default().push(json!({"addresses": [at(text).ip().to_string()]}));
        all
    });
    let (port, endpoints) = by_port.into_iter().next().unwrap_or((1, vec![]));
    let labels = json!({"kubernetes.io/service-name": name});
    let tcp_and_udp = json!([{"name": "", "port": port}, {"name": "dns", "port": port, "protocol": "UDP"}]);
    let tree = json!({"metadata": {"name": name, "namespace": "default", "labels": labels}, "ports": tcp_and_udp,
        "endpoints": endpoints});
    switch.apply(Update::slice(&tree).unwrap());
}

#[tokio::test]
async fn two_pods_talk() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    let listener = server.listen(at("0.0.0.0:80"), 16).unwrap();
    let mut call = client.connect(at("10.64.0.2:80")).await.unwrap();
    let mut answer = listener.accept().await.unwrap();
    assert_eq!(call.peer_addr(), at("10.64.0.2:80"));
    assert_eq!(answer.local_addr(), at("10.64.0.2:80"));
    assert_eq!(answer.peer_addr(), call.local_addr());
    assert_eq!(answer.peer_addr().ip(), client.ip());
    call.write_all(b"hello").await.unwrap();
    call.shutdown().await.unwrap();
    let mut heard = String::new();
    answer.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
    answer.write_all(b"world").await.unwrap();
    drop(answer);
    heard.clear();
    call.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "world");
    let traffic = |pod: &PodNet| (pod.traffic().rx_bytes, pod.traffic().tx_bytes);
    assert_eq!((traffic(&client), traffic(&server)), ((5, 5), (5, 5)));
}

#[tokio::test]
async fn a_slow_reader_holds_its_writer_and_loses_nothing() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    let listener = server.listen(at("0.0.0.0:80"), 16).unwrap();
    let mut call = client.connect(at("10.64.0.2:80")).await.unwrap();
    let mut answer = listener.accept().await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        for piece in copy.chunks(7_919) {
            call.write_all(piece).await.unwrap();
        }
        call.shutdown().await.unwrap();
    });
    let (mut received, mut buffer) = (Vec::new(), vec![0; 5_003]);
    loop {
        match answer.read(&mut buffer).await.unwrap() {
            0 => break,
            count => received.extend_from_slice(&buffer[..count]),
        }
    }
    writer.await.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn connects_are_refused_for_the_right_reason() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    let _own = server.listen(at("127.0.0.1:81"), 16).unwrap();
    let _bound = server.bind(at("0.0.0.0:82")).unwrap();
    service(&switch, "empty", json!({"clusterIP": "10.43.0.5", "ports": [{"port": 80}]}), &[]);
    for (to, expected) in [
        ("10.64.0.2:80", NetError::Refused),
        ("10.64.0.2:81", NetError::Refused),
        ("10.64.0.2:82", NetError::Refused),
        ("127.0.0.1:81", NetError::Refused),
        ("10.64.0.99:80", NetError::HostUnreachable),
        ("10.64.64.2:80", NetError::HostUnreachable),
        ("10.64.128.2:80", NetError::HostUnreachable),
        ("10.43.0.5:80", NetError::Refused),
        ("10.43.0.5:81", NetError::Refused),
        ("10.43.0.6:80", NetError::HostUnreachable),
        ("169.254.169.254:80", NetError::Denied),
        ("[::ffff:10.64.0.2]:80", NetError::Refused),
        ("10.64.0.2:0", NetError::AddrNotAvailable),
    ] {
        assert_eq!(client.connect(at(to)).await.err(), Some(expected), "{to}");
    }
    assert_eq!(switch.dial(at("127.0.0.1:81")).await.err(), Some(NetError::Denied), "the node's own loopback");
    assert!(server.connect(at("127.0.0.1:81")).await.is_ok(), "the pod's own loopback");
    assert!(server.connect(at("0.0.0.0:81")).await.is_ok(), "any address means the loopback");
}

#[tokio::test]
async fn addresses_are_taken_and_given_back() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    assert_eq!(server.listen(at("10.64.0.3:80"), 1).err(), Some(NetError::AddrNotAvailable));
    let first = server.listen(at("0.0.0.0:80"), 1).unwrap();
    assert_eq!(server.listen(at("0.0.0.0:80"), 1).err(), Some(NetError::AddrInUse));
    drop(first);
    let free = server.listen(at("0.0.0.0:0"), 1).unwrap();
    assert!((32_768..=60_999).contains(&free.local_addr().port()));
    let again = server.listen(at("0.0.0.0:80"), 2).unwrap();
    let to = at("10.64.0.2:80");
    let (one, _two) = (client.connect(to).await.unwrap(), client.connect(to).await.unwrap());
    assert_eq!(client.connect(to).await.err(), Some(NetError::Refused), "the queue is full");
    assert!(again.try_accept().unwrap().is_ok());
    assert!(client.connect(to).await.is_ok());
    drop(again);
    assert_eq!(client.connect(to).await.err(), Some(NetError::Refused));
    // Its peer was accepted and dropped; the others waited in the queue and are reset.
    assert_eq!(one.try_read(1), Err(ReadError::Eof));
    assert_eq!(_two.try_read(1), Err(ReadError::Reset));
    let from = client.bind(at("0.0.0.0:4000")).unwrap();
    let _listener = server.listen(at("0.0.0.0:81"), 1).unwrap();
    assert_eq!(from.connect(at("10.64.0.2:81")).await.unwrap().local_addr(), at("10.64.0.3:4000"));
}

#[tokio::test]
async fn a_pods_end_is_heard_by_all() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    let listener = server.listen(at("0.0.0.0:80"), 16).unwrap();
    let mut call = client.connect(at("10.64.0.2:80")).await.unwrap();
    let mut answer = listener.accept().await.unwrap();
    let waiting = tokio::spawn(async move { listener.accept().await.err() });
    let reading = tokio::spawn(async move { call.read_u8().await.err().map(|error| error.kind()) });
    tokio::task::yield_now().await;
    switch.remove_pod(&Uid::new("uid-2"));
    assert_eq!(waiting.await.unwrap(), Some(NetError::Reset));
    assert_eq!(reading.await.unwrap(), Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(answer.read_u8().await.err().map(|e| e.kind()), Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(client.connect(at("10.64.0.2:80")).await.err(), Some(NetError::HostUnreachable));
    assert_eq!(server.listen(at("0.0.0.0:81"), 1).err(), Some(NetError::Reset));
    assert!(switch.pod(&Uid::new("uid-2")).is_none());
}

#[tokio::test]
async fn a_service_spreads_its_calls_and_skips_the_dead() {
    let switch = switch();
    let client = pod(&switch, 9);
    let to = at("10.43.0.7:80");
    let spec = json!({"clusterIP": "10.43.0.7", "ports": [{"port": 80}]});
    service(&switch, "web", spec, &["10.64.0.2:8080", "10.64.0.3:8080", "10.64.0.4:8080"]);
    // The third endpoint is in the table, but nobody listens there.
    let servers: Vec<_> = [2, 3].map(|last| pod(&switch, last).listen(at("0.0.0.0:8080"), 100).unwrap()).into();
    pod(&switch, 4);
    let mut calls = Vec::new();
    for _ in 0..60 {
        let call = client.connect(to).await.expect("one refusal is made good by another endpoint");
        assert_eq!(call.peer_addr(), to);
        calls.push(call);
    }
    let counts: Vec<usize> = servers.iter().map(|l| std::iter::from_fn(|| l.try_accept()).count()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 60);
    assert!(counts.iter().all(|count| *count >= 20), "{counts:?}");
    endpoints_of(&switch, "web", &[]);
    assert_eq!(client.connect(to).await.err(), Some(NetError::Refused));
}

#[tokio::test]
async fn names_are_answered_from_the_tables() {
    let switch = switch();
    let client = pod(&switch, 3);
    service(&switch, "web", json!({"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}), &[]);
    service(&switch, "alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}), &[]);
    service(
        &switch,
        "circle",
        json!({"type": "ExternalName", "externalName": "circle.default.svc.cluster.local"}),
        &[],
    );
    for (name, expected) in [
        ("web", Ok("10.43.0.7")),
        ("web.default.svc.cluster.local", Ok("10.43.0.7")),
        ("alias", Ok("10.43.0.7")),
        ("host-3", Ok("10.64.0.3")),
        ("localhost", Ok("127.0.0.1")),
        ("circle", Err(NetError::NameNotFound)),
        ("nobody", Err(NetError::NameNotFound)),
        ("", Err(NetError::NameNotFound)),
    ] {
        let expected = expected.map(|ip| vec![ip.parse::<IpAddr>().unwrap()]);
        assert_eq!(client.resolve(name).await, expected, "{name}");
    }
    // What the pod's own list says comes before the cluster's names, and only this pod hears it.
    client.set_hosts(vec![("web".to_owned(), "192.0.2.9".parse().unwrap())]);
    for (net, expected) in [(&client, "192.0.2.9"), (&pod(&switch, 4), "10.43.0.7")] {
        assert_eq!(net.resolve("web").await, Ok(vec![expected.parse::<IpAddr>().unwrap()]));
    }
    let closed = pod(&switch_with(Egress { closed: true, allow: vec![] }), 3);
    assert_eq!(closed.resolve("example.org").await, Err(NetError::NameNotFound));
}

#[tokio::test]
async fn port_forward_reaches_a_pods_loopback() {
    let switch = switch();
    let server = pod(&switch, 2);
    let listener = server.listen(at("127.0.0.1:80"), 16).unwrap();
    let uid = Uid::new("uid-2");
    let mut call = switch.dial_pod(&uid, 80).unwrap();
    call.write_all(b"x").await.unwrap();
    assert_eq!(listener.accept().await.unwrap().read_u8().await.unwrap(), b'x');
    assert_eq!(switch.dial_pod(&uid, 81).err(), Some(NetError::Refused));
    assert_eq!(switch.dial_pod(&Uid::new("nobody"), 80).err(), Some(NetError::HostUnreachable));
}

#[tokio::test]
async fn datagrams_find_pods_and_services() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    let spec = json!({"clusterIP": "10.43.0.53", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
    service(&switch, "dns", spec, &["10.64.0.2:5353"]);
    let (ear, mouth) = (server.udp_bind(at("0.0.0.0:5353")).unwrap(), client.udp_bind(at("0.0.0.0:0")).unwrap());
    let word = Bytes::from_static(b"question");
    assert_eq!(mouth.try_send_to(word.clone(), at("10.43.0.53:53")), Ok(true));
    std::future::poll_fn(|cx| ear.poll_readable(cx)).await;
    let (heard, from) = ear.try_recv().unwrap();
    assert_eq!((heard, from.ip()), (word.clone(), client.ip()));
    assert_eq!(ear.try_send_to(Bytes::from_static(b"answer"), from), Ok(true));
    assert_eq!(mouth.try_recv(), Some((Bytes::from_static(b"answer"), at("10.43.0.53:53"))), "the service answers");
    assert_eq!(mouth.try_recv(), None);
    for _ in 0..1000 {
        assert_eq!(mouth.try_send_to(word.clone(), at("10.64.0.2:5353")), Ok(true));
    }
    assert_eq!(std::iter::from_fn(|| ear.try_recv()).count(), 256, "what finds no room is lost");
    assert_eq!(mouth.try_send_to(vec![0; 70_000].into(), at("10.64.0.2:5353")), Err(NetError::MessageTooLarge));
    assert_eq!(mouth.try_send_to(word.clone(), at("10.64.0.2:1")), Ok(true), "nobody there: lost");
    assert_eq!(mouth.try_send_to(word, at("127.0.0.1:53")), Ok(true), "the pod's own loopback");
    assert_eq!(server.udp_bind(at("0.0.0.0:5353")).err(), Some(NetError::AddrInUse));
}

/// A way to other nodes that ends in a listener on the host, and notes what was asked.
struct Loop {
    to: SocketAddr,
    asked: Mutex<Vec<(NodeName, SocketAddr)>>,
    datagrams: Mutex<Vec<(NodeName, SocketAddr, Bytes)>>,
}

impl Remote for Loop {
    fn connect(&self, node: &NodeName, _: SocketAddr, to: SocketAddr) -> BoxFuture<Result<Box<dyn Duplex>, NetError>> {
        self.asked.lock().unwrap().push((node.clone(), to));
        let host = self.to;
        Box::pin(async move {
            let socket = tokio::net::TcpStream::connect(host).await.map_err(|_| NetError::Refused)?;
            Ok(Box::new(socket) as Box<dyn Duplex>)
        })
    }

    fn send_udp(&self, node: &NodeName, _: SocketAddr, to: SocketAddr, payload: Bytes) {
        self.datagrams.lock().unwrap().push((node.clone(), to, payload));
    }
}

async fn echo(listener: tokio::net::TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut from, mut to) = socket.split();
            tokio::io::copy(&mut from, &mut to).await.ok();
            to.shutdown().await.ok();
        });
    }
}

#[tokio::test]
async fn other_nodes_are_reached_through_the_remote() {
    let switch = switch();
    let client = pod(&switch, 3);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let server = tokio::spawn(echo(listener));
    let remote = Arc::new(Loop { to, asked: Mutex::default(), datagrams: Mutex::default() });
    switch.set_remote(remote.clone());
    service(&switch, "far", json!({"clusterIP": "10.43.0.8", "ports": [{"port": 80}]}), &["10.64.64.5:8080"]);
    let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    for target in ["10.64.64.5:8080", "10.43.0.8:80"] {
        let mut call = client.connect(at(target)).await.unwrap();
        let mut received = Vec::new();
        let (mut from, mut to) = tokio::io::split(&mut call);
        let write = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(from.read_to_end(&mut received), write);
        read.unwrap();
        assert!(received == sent, "{target}");
    }
    assert_eq!(*remote.asked.lock().unwrap(), vec![(NodeName::new("n2"), at("10.64.64.5:8080")); 2]);
    let udp = client.udp_bind(at("0.0.0.0:0")).unwrap();
    let word = Bytes::from_static(b"far");
    assert_eq!(udp.try_send_to(word.clone(), at("10.64.64.5:53")), Ok(true));
    assert_eq!(*remote.datagrams.lock().unwrap(), [(NodeName::new("n2"), at("10.64.64.5:53"), word)]);
    // The caller's pod goes: the carried connection breaks, too.
    let mut call = client.connect(at("10.64.64.5:8080")).await.unwrap();
    switch.remove_pod(&Uid::new("uid-3"));
    assert!(call.read_u8().await.is_err());
    server.abort();
}

#[tokio::test]
async fn callers_of_other_nodes_speak_only_for_themselves() {
    let switch = switch();
    let server = pod(&switch, 2);
    let listener = server.listen(at("0.0.0.0:80"), 16).unwrap();
    let (n2, to) = (NodeName::new("n2"), at("10.64.0.2:80"));
    let call = switch.accept_remote(&n2, at("10.64.64.9:4000"), to).unwrap();
    let answer = listener.accept().await.unwrap();
    assert_eq!(answer.peer_addr(), at("10.64.64.9:4000"));
    drop((call, answer));
    assert_eq!(switch.accept_remote(&n2, at("10.64.0.9:4000"), to).err(), Some(NetError::Denied));
    assert_eq!(switch.accept_remote(&n2, at("10.64.64.9:1"), at("10.64.0.2:81")).err(), Some(NetError::Refused));
    let nowhere = at("10.64.0.77:80");
    assert_eq!(switch.accept_remote(&n2, at("10.64.64.9:1"), nowhere).err(), Some(NetError::HostUnreachable));
}

#[tokio::test]
async fn egress_reaches_what_is_allowed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    let server = tokio::spawn(echo(listener));
    let spec = json!({"clusterIP": "10.43.0.1", "ports": [{"port": 443}]});
    let endpoint = host.to_string();
    // The same service is closed by default, and open where the rule names its endpoint.
    let closed = switch();
    service(&closed, "kubernetes", spec.clone(), &[&endpoint]);
    assert_eq!(pod(&closed, 2).connect(at("10.43.0.1:443")).await.err(), Some(NetError::Denied));
    let open = switch_with(Egress { closed: true, allow: vec![host] });
    service(&open, "kubernetes", spec, &[&endpoint]);
    let client = pod(&open, 2);
    let call = client.connect(at("10.43.0.1:443")).await.unwrap();
    assert_eq!(client.connect(host).await.err(), Some(NetError::Refused), "a pod's loopback is its own");
    // The byte-level calls on a socket of the host, with more than the kernel takes at once.
    let sent = Bytes::from((0..4_000_000u32).map(|i| (i % 249) as u8).collect::<Vec<_>>());
    let (mut left, mut received) = (sent.clone(), Vec::new());
    while received.len() < sent.len() {
        let room = call.writable_bytes().min(left.len());
        if room > 0 {
            call.try_write(left.split_to(room)).unwrap();
            if left.is_empty() {
                call.shutdown_write();
            }
        }
        match call.try_read(100_000) {
            Ok(Some(bytes)) => received.extend_from_slice(&bytes),
            Ok(None) => {
                std::future::poll_fn(|cx| {
                    let readable = call.poll_readable(cx);
                    if left.is_empty() || readable.is_ready() { readable } else { call.poll_writable(cx) }
                })
                .await;
            }
            Err(error) => panic!("{error} after {} bytes", received.len()),
        }
    }
    assert!(received == sent[..]);
    std::future::poll_fn(|cx| call.poll_readable(cx)).await;
    assert_eq!(call.try_read(1), Err(ReadError::Eof));
    // A pod's removal breaks its connections to the outside.
    let mut call = client.connect(at("10.43.0.1:443")).await.unwrap();
    let reading = tokio::spawn(async move { call.read_u8().await.map_err(|error| error.kind()) });
    tokio::task::yield_now().await;
    open.remove_pod(&Uid::new("uid-2"));
    assert!(reading.await.unwrap().is_err());
    server.abort();
}

#[tokio::test]
async fn a_splice_passes_ends_and_breaks_on() {
    let switch = switch();
    let (server, client) = (pod(&switch, 2), pod(&switch, 3));
    let listener = server.listen(at("0.0.0.0:80"), 16).unwrap();
    let mut call = client.connect(at("10.64.0.2:80")).await.unwrap();
    let (near, mut far) = tokio::io::duplex(100);
    let carrying = tokio::spawn(splice(listener.accept().await.unwrap(), near));
    call.write_all(b"in").await.unwrap();
    call.shutdown().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"in");
    far.write_all(&[7; 1000]).await.unwrap();
    drop(far);
    heard.clear();
    call.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, [7; 1000]);
    carrying.await.unwrap().unwrap();
    // A splice that is cut off is a reset, not an end.
    let mut call = client.connect(at("10.64.0.2:80")).await.unwrap();
    let (near, _far) = tokio::io::duplex(100);
    let carrying = tokio::spawn(splice(listener.accept().await.unwrap(), near));
    tokio::task::yield_now().await;
    carrying.abort();
    assert_eq!(call.read_u8().await.err().map(|error| error.kind()), Some(std::io::ErrorKind::ConnectionReset));
}

/// A port of the host that is free at the moment.
async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn tcp(number: u16) -> NodePort {
    NodePort { proto: Proto::Tcp, number }
}

fn with_node_port(port: u16) -> Value {
    json!({"clusterIP": "10.43.0.7", "ports": [{"port": 80, "nodePort": port}]})
}

#[tokio::test]
async fn node_ports_follow_the_services() {
    let switch = switch();
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let (ports, mut events) = NodePorts::start(&switch, local);
    let port = free_port().await;
    let server = pod(&switch, 2);
    let listener = server.listen(at("0.0.0.0:8080"), 100).unwrap();
    service(&switch, "web", with_node_port(port), &["10.64.0.2:8080"]);
    assert_eq!(events.recv().await, Some(NodePortEvent::Open { port: tcp(port) }));

    let mut client = tokio::net::TcpStream::connect((local, port)).await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let mut accepted = listener.accept().await.unwrap();
    assert_eq!(accepted.peer_addr(), client.local_addr().unwrap(), "the pod sees the client");
    assert_eq!(accepted.local_addr(), at("10.64.0.2:8080"));
    let mut heard = [0; 4];
    accepted.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    accepted.write_all(b"pong").await.unwrap();
    accepted.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "pong");

    // Nobody behind the service: the client is refused, not left waiting.
    endpoints_of(&switch, "web", &[]);
    let mut client = tokio::net::TcpStream::connect((local, port)).await.unwrap();
    assert!(matches!(client.read_u8().await, Err(error) if error.kind() != std::io::ErrorKind::WouldBlock));

    // A pod on another node is reached as well.
    let far = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = far.local_addr().unwrap();
    let far = tokio::spawn(echo(far));
    switch.set_remote(Arc::new(Loop { to, asked: Mutex::default(), datagrams: Mutex::default() }));
    endpoints_of(&switch, "web", &["10.64.64.5:8080"]);
    let mut client = tokio::net::TcpStream::connect((local, port)).await.unwrap();
    client.write_all(b"far away").await.unwrap();
    client.shutdown().await.unwrap();
    answer.clear();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "far away");
    far.abort();

    switch.apply(Update::service_gone("default", "web"));
    assert_eq!(events.recv().await, Some(NodePortEvent::Closed { port: tcp(port) }));
    ports.stop().await;
}

#[tokio::test]
async fn a_taken_node_port_is_reported_and_tried_again() {
    let switch = switch();
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let (ports, mut events) = NodePorts::start(&switch, local);
    service(&switch, "web", with_node_port(port), &[]);
    assert!(matches!(events.recv().await, Some(NodePortEvent::Failed { port: failed, .. }) if failed == tcp(port)));
    drop(taken);
    // Any change of the tables makes the next attempt.
    endpoints_of(&switch, "web", &["10.64.0.2:8080"]);
    assert_eq!(events.recv().await, Some(NodePortEvent::Open { port: tcp(port) }));
    ports.stop().await;
    assert!(tokio::net::TcpListener::bind((local, port)).await.is_ok(), "a stopped listener frees its port");
}

/// A port of the host that is free for datagrams at the moment.
async fn free_udp_port() -> u16 {
    tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn with_udp_node_port(port: u16) -> Value {
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": port}]);
    json!({"clusterIP": "10.43.0.53", "ports": ports})
}

/// Waits for a datagram of a pod's socket.
async fn hear(socket: &UdpSocket) -> (Bytes, SocketAddr) {
    loop {
        std::future::poll_fn(|cx| socket.poll_readable(cx)).await;
        if let Some(heard) = socket.try_recv() {
            return heard;
        }
    }
}

/// A client of the host that talks to one address only, as most do.
async fn host_client(port: u16) -> tokio::net::UdpSocket {
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", port)).await.unwrap();
    client
}

async fn answer_to(client: &tokio::net::UdpSocket) -> Bytes {
    let mut buffer = [0; 64];
    let len = client.recv(&mut buffer).await.unwrap();
    Bytes::copy_from_slice(&buffer[..len])
}

#[tokio::test]
async fn datagrams_come_in_through_node_ports_and_answers_find_their_client() {
    let switch = switch();
    let (ports, mut events) = NodePorts::start(&switch, "127.0.0.1".parse().unwrap());
    let number = free_udp_port().await;
    let port = NodePort { proto: Proto::Udp, number };
    let servers = [2, 3].map(|last| pod(&switch, last).udp_bind(at("0.0.0.0:5353")).unwrap());
    service(&switch, "dns", with_udp_node_port(number), &["10.64.0.2:5353"]);
    assert_eq!(events.recv().await, Some(NodePortEvent::Open { port }));
    let clients = [host_client(number).await, host_client(number).await];
    let mut seen = Vec::new();
    for (client, word) in clients.iter().zip(["one", "two"]) {
        client.send(word.as_bytes()).await.unwrap();
        let (heard, from) = hear(&servers[0]).await;
        assert_eq!((heard, from.ip()), (Bytes::from(word), "10.64.0.1".parse().unwrap()), "seen as the node");
        seen.push(from);
    }
    // Answered in the other order, and twice: each client hears its own.
    for at in [1, 0, 1] {
        assert_eq!(servers[0].try_send_to(Bytes::from(format!("for {at}")), seen[at]), Ok(true));
        assert_eq!(answer_to(&clients[at]).await, format!("for {at}"));
    }
    // Nobody else may answer in its place.
    assert_eq!(servers[1].try_send_to(Bytes::from_static(b"no"), seen[0]), Ok(true));
    assert_eq!(servers[0].try_send_to(Bytes::from_static(b"yes"), seen[0]), Ok(true));
    assert_eq!(answer_to(&clients[0]).await, "yes");
    // A client keeps its endpoint while that is one, and gets another one afterwards.
    endpoints_of(&switch, "dns", &["10.64.0.2:5353", "10.64.0.3:5353"]);
    clients[0].send(b"still").await.unwrap();
    assert_eq!(hear(&servers[0]).await, (Bytes::from_static(b"still"), seen[0]));
    endpoints_of(&switch, "dns", &["10.64.0.3:5353"]);
    clients[0].send(b"moved").await.unwrap();
    let (heard, from) = hear(&servers[1]).await;
    assert_eq!(servers[1].try_send_to(heard, from), Ok(true));
    assert_eq!(answer_to(&clients[0]).await, "moved");
    switch.apply(Update::service_gone("default", "dns"));
    assert_eq!(events.recv().await, Some(NodePortEvent::Closed { port }));
    assert_eq!(servers[1].try_send_to(Bytes::from_static(b"late"), from), Ok(true), "lost, as datagrams may be");
    ports.stop().await;
}

#[tokio::test]
async fn an_endpoint_on_another_node_answers_through_this_one() {
    let switch = switch();
    let remote = Arc::new(Loop { to: at("127.0.0.1:1"), asked: Mutex::default(), datagrams: Mutex::default() });
    switch.set_remote(remote.clone());
    let (ports, mut events) = NodePorts::start(&switch, "127.0.0.1".parse().unwrap());
    let number = free_udp_port().await;
    service(&switch, "dns", with_udp_node_port(number), &["10.64.64.5:53"]);
    assert!(matches!(events.recv().await, Some(NodePortEvent::Open { .. })));
    let client = host_client(number).await;
    client.send(b"far").await.unwrap();
    // What comes next by the same socket is taken after it.
    let (peer, to, from) = loop {
        if let Some((node, to, payload)) = remote.datagrams.lock().unwrap().first().cloned() {
            assert_eq!((to, payload), (at("10.64.64.5:53"), Bytes::from_static(b"far")));
            break (node, to, at("10.64.0.1:32768"));
        }
        tokio::task::yield_now().await;
    };
    for (endpoint, word) in [(at("10.64.64.6:53"), "not asked"), (to, "near")] {
        switch.accept_remote_udp(&peer, endpoint, from, Bytes::from(word));
    }
    assert_eq!(answer_to(&client).await, "near");
    ports.stop().await;
}

#[tokio::test]
async fn a_taken_udp_node_port_is_reported_and_its_number_is_free_for_tcp() {
    let switch = switch();
    let taken = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let number = taken.local_addr().unwrap().port();
    let (ports, mut events) = NodePorts::start(&switch, "127.0.0.1".parse().unwrap());
    service(&switch, "dns", with_udp_node_port(number), &[]);
    let port = NodePort { proto: Proto::Udp, number };
    assert!(matches!(events.recv().await, Some(NodePortEvent::Failed { port: failed, .. }) if failed == port));
    service(&switch, "web", with_node_port(number), &[]);
    assert_eq!(events.recv().await, Some(NodePortEvent::Open { port: tcp(number) }));
    drop(taken);
    endpoints_of(&switch, "dns", &["10.64.0.2:53"]);
    assert_eq!(events.recv().await, Some(NodePortEvent::Open { port }));
    ports.stop().await;
}

#[tokio::test]
async fn an_idle_pod_costs_little() {
    // Not a measurement, a guard: what one pod keeps is a few small structs, no buffers.
    let switch = switch();
    let nets: Vec<PodNet> = (0..10_000u32)
        .map(|i| {
            switch.add_pod(PodIdentity {
                uid: Uid::new(format!("u{i}")),
                namespace: "default".into(),
                name: format!("p{i}"),
                ip: IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a40_0002 + i)),
                hostname: format!("p{i}"),
                service_account: "default".into(),
            })
        })
        .collect();
    let listeners: Vec<_> = nets.iter().map(|net| net.listen(at("0.0.0.0:8080"), 128).unwrap()).collect();
    let call = nets[0].connect(SocketAddr::new(nets[9_999].ip(), 8080)).await;
    assert!(call.is_ok() && listeners[9_999].try_accept().is_some());
    switch.close();
    assert_eq!(listeners[5].try_accept().unwrap().err(), Some(NetError::Reset));
}
