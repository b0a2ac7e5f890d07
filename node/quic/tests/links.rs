//! Two nodes, each with its switch, joined by real links on the loopback.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dhow_mesh::Update;
use dhow_quic::{Endpoint, Fabric, KubeletStream, QuicError, StreamHeader, Tls};
use dhow_switch::{Config, NetError, PodIdentity, PodNet, Switch};
use dhow_types::{NodeName, Uid};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Ca {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, common_name: &str, dns: &str) -> Tls {
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Tls { ca_pem: self.0.pem(), cert_pem: cert.pem(), key_pem: key.serialize_pem() }
    }

    fn endpoint(&self, common_name: &str, dns: &str) -> Endpoint {
        Endpoint::bind(at("127.0.0.1:0"), &self.issue(common_name, dns)).unwrap()
    }
}

/// One node of a cluster of two.
struct Node {
    switch: Switch,
    fabric: Fabric,
    addr: SocketAddr,
    kubelet: mpsc::Receiver<KubeletStream>,
}

impl Node {
    fn start(ca: &Ca, name: &str) -> Node {
        Node::at(ca, name, at("127.0.0.1:0"))
    }

    fn at(ca: &Ca, name: &str, addr: SocketAddr) -> Node {
        Node::with(&ca.issue(&format!("system:node:{name}"), name), name, addr)
    }

    fn with(identity: &Tls, name: &str, addr: SocketAddr) -> Node {
        let endpoint = Endpoint::bind(addr, identity).unwrap();
        let addr = endpoint.local_addr();
        let switch = Switch::new(Config::new(NodeName::new(name), "192.0.2.1".parse().unwrap()));
        let (sender, kubelet) = mpsc::channel(4);
        let fabric = Fabric::start(endpoint, switch.clone(), sender);
        Node { switch, fabric, addr, kubelet }
    }

    fn learn(&self, nodes: &[(&str, &str, SocketAddr)]) {
        for (name, range, addr) in nodes {
            let meta = json!({"name": name, "annotations": {"dhow.dev/quic-address": addr.to_string()}});
            self.switch.apply(Update::node(&json!({"metadata": meta, "spec": {"podCIDR": range}})).unwrap());
        }
    }

    fn pod(&self, ip: &str) -> PodNet {
        self.switch.add_pod(PodIdentity {
            uid: Uid::new(ip),
            namespace: "default".into(),
            name: ip.into(),
            ip: ip.parse::<IpAddr>().unwrap(),
            hostname: ip.into(),
            service_account: "default".into(),
        })
    }

    async fn stop(self) {
        self.switch.close();
        self.fabric.stop().await;
    }
}

fn two(ca: &Ca) -> (Node, Node) {
    let (n1, n2) = (Node::start(ca, "n1"), Node::start(ca, "n2"));
    let nodes = [("n1", "10.64.0.0/18", n1.addr), ("n2", "10.64.64.0/18", n2.addr)];
    n1.learn(&nodes);
    n2.learn(&nodes);
    (n1, n2)
}

#[tokio::test]
async fn pods_of_two_nodes_talk() {
    let ca = Ca::new();
    let (n1, n2) = two(&ca);
    let (client, server) = (n1.pod("10.64.0.2"), n2.pod("10.64.64.2"));
    let listener = server.listen(at("0.0.0.0:80"), 64).unwrap();
    let echo = tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            assert_eq!(stream.peer_addr().ip(), "10.64.0.2".parse::<IpAddr>().unwrap());
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(&mut stream);
                tokio::io::copy(&mut from, &mut to).await.ok();
                to.shutdown().await.ok();
            });
        }
    });
    let sent: Vec<u8> = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let (client, sent) = (client.clone(), sent.clone());
            tokio::spawn(async move {
                let mut call = client.connect(at("10.64.64.2:80")).await.unwrap();
                let (mut from, mut to) = tokio::io::split(&mut call);
                let write = async {
                    to.write_all(&sent).await.unwrap();
                    to.shutdown().await.unwrap();
                };
                let mut received = Vec::new();
                let (read, ()) = tokio::join!(from.read_to_end(&mut received), write);
                read.unwrap();
                assert!(received == sent);
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(client.connect(at("10.64.64.2:81")).await.err(), Some(NetError::Refused));
    assert_eq!(client.connect(at("10.64.64.9:80")).await.err(), Some(NetError::HostUnreachable));
    echo.abort();
    n1.stop().await;
    n2.stop().await;
}

/// More streams at once than a link allows at first.
#[tokio::test]
async fn a_link_grows_with_its_streams() {
    let ca = Ca::new();
    let (n1, n2) = two(&ca);
    let (client, server) = (n1.pod("10.64.0.2"), n2.pod("10.64.64.2"));
    let listener = server.listen(at("0.0.0.0:80"), 1000).unwrap();
    let mut open = Vec::new();
    for _ in 0..600 {
        let call = client.connect(at("10.64.64.2:80")).await.unwrap();
        open.push((call, listener.accept().await.unwrap()));
    }
    let (call, answer) = open.last_mut().unwrap();
    call.write_all(b"x").await.unwrap();
    assert_eq!(answer.read_u8().await.unwrap(), b'x');
    n1.stop().await;
    n2.stop().await;
}

#[tokio::test]
async fn a_pods_end_is_heard_on_the_other_node() {
    let ca = Ca::new();
    let (n1, n2) = two(&ca);
    let (client, server) = (n1.pod("10.64.0.2"), n2.pod("10.64.64.2"));
    let listener = server.listen(at("0.0.0.0:80"), 64).unwrap();
    let mut call = client.connect(at("10.64.64.2:80")).await.unwrap();
    let _answer = listener.accept().await.unwrap();
    n2.switch.remove_pod(&Uid::new("10.64.64.2"));
    assert_eq!(call.read_u8().await.err().map(|e| e.kind()), Some(std::io::ErrorKind::ConnectionReset));
    n1.stop().await;
    n2.stop().await;
}

#[tokio::test]
async fn datagrams_cross_small_and_large() {
    let ca = Ca::new();
    let (n1, n2) = two(&ca);
    let (a, b) = (n1.pod("10.64.0.2"), n2.pod("10.64.64.2"));
    let (mouth, ear) = (a.udp_bind(at("0.0.0.0:4000")).unwrap(), b.udp_bind(at("0.0.0.0:53")).unwrap());
    for len in [5, 20_000, 3] {
        let payload = Bytes::from(vec![len as u8; len]);
        assert_eq!(mouth.try_send_to(payload.clone(), at("10.64.64.2:53")), Ok(true));
        std::future::poll_fn(|cx| ear.poll_readable(cx)).await;
        assert_eq!(ear.try_recv(), Some((payload, at("10.64.0.2:4000"))));
    }
    // The answer takes the same link back.
    assert_eq!(ear.try_send_to(Bytes::from_static(b"back"), at("10.64.0.2:4000")), Ok(true));
    std::future::poll_fn(|cx| mouth.poll_readable(cx)).await;
    assert_eq!(mouth.try_recv().unwrap().1, at("10.64.64.2:53"));
    n1.stop().await;
    n2.stop().await;
}

#[tokio::test]
async fn a_node_that_comes_back_is_dialled_anew() {
    let ca = Ca::new();
    let (n1, n2) = two(&ca);
    let client = n1.pod("10.64.0.2");
    let serve = |node: &Node| node.pod("10.64.64.2").listen(at("0.0.0.0:80"), 64).unwrap();
    let listener = serve(&n2);
    client.connect(at("10.64.64.2:80")).await.unwrap();
    drop(listener);
    n2.stop().await;
    let n2 = Node::start(&ca, "n2");
    n1.learn(&[("n2", "10.64.64.0/18", n2.addr)]);
    let _listener = serve(&n2);
    client.connect(at("10.64.64.2:80")).await.unwrap();
    n1.stop().await;
    n2.stop().await;
}

/// A node that was killed has said goodbye to nobody. Back on its port, it is talked to at once.
#[test]
fn a_killed_node_is_found_again_on_its_port() {
    let ca = Ca::new();
    let identity = ca.issue("system:node:n2", "n2");
    // Each life of the node has a runtime of its own; with that, it dies without a word.
    let live = |addr: SocketAddr| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = runtime.enter();
        let node = Node::with(&identity, "n2", addr);
        let listener = node.pod("10.64.64.2").listen(at("0.0.0.0:80"), 64).unwrap();
        drop(guard);
        (runtime, node, listener)
    };
    let (first_life, n2, listener) = live(at("127.0.0.1:0"));
    let addr = n2.addr;
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (n1, mut call) = own.block_on(async {
        let n1 = Node::start(&ca, "n1");
        n1.learn(&[("n1", "10.64.0.0/18", n1.addr), ("n2", "10.64.64.0/18", addr)]);
        let call = n1.pod("10.64.0.2").connect(at("10.64.64.2:80")).await.unwrap();
        (n1, call)
    });
    // First all that could still send something ends, then the socket.
    drop(first_life);
    drop((n2, listener));
    let (_second_life, _n2, _listener) = live(addr);
    own.block_on(async {
        let client = n1.switch.pod(&Uid::new("10.64.0.2")).unwrap();
        client.connect(at("10.64.64.2:80")).await.unwrap();
        assert!(call.read_u8().await.is_err(), "what went through the old link is lost");
        n1.stop().await;
    });
}

#[tokio::test]
async fn strangers_are_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = ca.endpoint("system:node:n2", "n2");
    // A certificate of a foreign CA: the two do not trust each other.
    let stranger = other.endpoint("system:node:n1", "n1");
    assert!(matches!(stranger.connect(server.local_addr(), "n2").await, Err(QuicError::Connect { .. })));
    server.strangers().wait_for(|count| *count == 1).await.unwrap();
    // One that trusts the cluster's CA, but has an identity of another: refused by the server.
    let forged = Tls { ca_pem: ca.issue("x", "x").ca_pem, ..other.issue("system:node:n1", "n1") };
    let forger = Endpoint::bind(at("127.0.0.1:0"), &forged).unwrap();
    // The client's side of the handshake is done before the server has judged it; a stream is never answered.
    if let Ok(link) = forger.connect(server.local_addr(), "n2").await {
        assert!(matches!(link.closed().await, QuicError::Lost(_)));
    }
    server.strangers().wait_for(|count| *count == 2).await.unwrap();
    // The right CA, the wrong name.
    let node = ca.endpoint("system:node:n1", "n1");
    assert!(matches!(node.connect(server.local_addr(), "n3").await, Err(QuicError::Connect { .. })));
    // A good one, afterwards: the refusals have not harmed the endpoint.
    let link = node.connect(server.local_addr(), "n2").await.unwrap();
    assert_eq!(link.peer(), "system:node:n2");
    assert_eq!(server.accept().await.unwrap().peer(), "system:node:n1");
    assert_eq!(*server.strangers().borrow(), 2, "a wrong name is no other cluster");
    server.close();
    assert!(server.accept().await.is_none());
    for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let broken = Tls { ca_pem: pem.to_owned(), ..ca.issue("a", "a") };
        assert!(matches!(Endpoint::bind(at("127.0.0.1:0"), &broken), Err(QuicError::Identity(_))));
    }
}

#[tokio::test]
async fn an_impostor_does_not_get_a_nodes_traffic() {
    let ca = Ca::new();
    let n1 = Node::start(&ca, "n1");
    // Its certificate is good for the DNS name, but it is another's.
    let impostor = ca.endpoint("somebody", "n2");
    n1.learn(&[("n1", "10.64.0.0/18", n1.addr), ("n2", "10.64.64.0/18", impostor.local_addr())]);
    let refused = n1.pod("10.64.0.2").connect(at("10.64.64.2:80")).await.err();
    assert_eq!(refused, Some(NetError::HostUnreachable));
    n1.stop().await;
}

#[tokio::test]
async fn kubelet_streams_come_from_the_control_node_only() {
    let ca = Ca::new();
    let mut n1 = Node::start(&ca, "n1");
    let control = ca.endpoint("dhow-control", "dhow-control");
    let agent = ca.endpoint("system:node:n1", "n1");
    // The agent dials the control node and serves what that opens.
    let (link, accepted) = tokio::join!(agent.connect(control.local_addr(), "dhow-control"), control.accept());
    let (link, accepted) = (link.unwrap(), accepted.unwrap());
    let fabric = n1.fabric.clone();
    let serving = tokio::spawn(async move { fabric.serve(link).await });
    let mut asked = accepted.open(&StreamHeader::Kubelet).await.unwrap();
    asked.write_all(b"GET").await.unwrap();
    asked.shutdown().await.unwrap();
    let mut got = n1.kubelet.recv().await.unwrap();
    assert_eq!(got.peer, "dhow-control");
    let mut request = Vec::new();
    got.stream.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"GET");
    got.stream.write_all(b"200").await.unwrap();
    got.stream.shutdown().await.unwrap();
    let mut response = Vec::new();
    asked.read_to_end(&mut response).await.unwrap();
    assert_eq!(response, b"200");

    // Another node that dials in is served as a node: its kubelet stream is reset.
    let peer = ca.endpoint("system:node:n2", "n2");
    let link = peer.connect(n1.addr, "n1").await.unwrap();
    let mut stream = link.open(&StreamHeader::Kubelet).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    assert!(n1.kubelet.try_recv().is_err());
    // It cannot speak for pods of others either, and garbage does it no good.
    n1.learn(&[("n3", "10.64.128.0/18", at("127.0.0.1:9"))]);
    n1.pod("10.64.0.2");
    let header = StreamHeader::Tcp { from: at("10.64.128.5:1"), to: at("10.64.0.2:80") };
    assert_eq!(link.open(&header).await.unwrap().read_u8().await.unwrap(), 3);
    link.send_datagram(Bytes::from_static(b"garbage")).unwrap();
    assert!(!link.is_closed());
    // Somebody with a good certificate who is no node is sent away.
    let user = ca.endpoint("alice", "alice");
    let link = user.connect(n1.addr, "n1").await.unwrap();
    assert!(matches!(link.closed().await, QuicError::Lost(_)));
    control.close();
    assert!(matches!(serving.await.unwrap(), QuicError::Lost(_)));
    n1.stop().await;
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_and_a_shut_one_an_end() {
    let ca = Ca::new();
    let (a, b) = (ca.endpoint("system:node:a", "a"), ca.endpoint("system:node:b", "b"));
    let (here, there) = tokio::join!(a.connect(b.local_addr(), "b"), b.accept());
    let (here, there) = (here.unwrap(), there.unwrap());
    for shut in [true, false] {
        let mut stream = here.open(&StreamHeader::Kubelet).await.unwrap();
        let (header, mut other) = there.accept().await.unwrap();
        assert_eq!(header, StreamHeader::Kubelet);
        stream.write_all(b"part").await.unwrap();
        if shut {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        let mut heard = Vec::new();
        assert_eq!(other.read_to_end(&mut heard).await.is_ok(), shut);
        assert!(!shut || heard == b"part");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_whoever_comes_later() {
    let ca = Ca::new();
    let (a, b) = (ca.endpoint("dhow:control:1", "dhow-control"), ca.endpoint("dhow:control:2", "dhow-control"));
    let (old, accepted) = tokio::join!(a.connect_control(b.local_addr(), "dhow-control"), b.accept());
    let (old, accepted) = (old.unwrap(), accepted.unwrap());
    assert_eq!((old.peer(), accepted.peer()), ("dhow:control:2", "dhow:control:1"));
    assert!(!old.is_in("dhow:control-nodes"));
    a.renew(&ca.issue("dhow:control:1b", "dhow-control")).unwrap();
    b.renew(&ca.issue("dhow:control:2b", "dhow-control")).unwrap();
    let (new, accepted) = tokio::join!(a.connect(b.local_addr(), "dhow-control"), b.accept());
    assert_eq!((new.unwrap().peer(), accepted.unwrap().peer()), ("dhow:control:2b", "dhow:control:1b"));
    assert!(!old.is_closed());
    assert!(a.renew(&Tls { key_pem: String::new(), ..ca.issue("x", "x") }).is_err());
}

#[tokio::test]
async fn a_farewell_reaches_the_peer_and_waits_for_nothing_else() {
    let ca = Ca::new();
    let (a, b) = (ca.endpoint("system:node:a", "a"), ca.endpoint("system:node:b", "b"));
    let (here, _there) = tokio::join!(a.connect(b.local_addr(), "b"), b.accept());
    let here = here.unwrap();
    b.close();
    b.drained().await;
    assert!(matches!(here.closed().await, QuicError::Lost(_)));
    // Nobody has to be told.
    let idle = ca.endpoint("system:node:c", "c");
    idle.close();
    idle.drained().await;
}
