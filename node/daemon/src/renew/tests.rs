//! When a certificate is renewed, and that it is.

use super::*;
use std::sync::Arc;

use dhow_pki::{Ca, San, Subject, Usage};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const DAY_MS: u64 = 86_400_000;

/// A certificate of 90 days that begins at day 100.
fn facts() -> Facts {
    let begin = Time::from_ms(0) + 100 * DAY_MS;
    Facts {
        subject: Subject { common_name: "system:node:n".to_owned(), organizations: Vec::new() },
        usage: None,
        not_before: begin,
        not_after: begin + 90 * DAY_MS,
    }
}

fn day(day: u64) -> Time {
    Time::from_ms(0) + day * DAY_MS
}

#[test]
fn a_certificate_is_renewed_after_two_thirds_of_its_life_and_long_after_its_end() {
    let plan = Plan::default();
    for (now, refused, expected) in [
        (day(100), false, LOOK_EVERY_MS),
        (day(160) - 5, false, 5),
        (day(160), false, 0),
        (day(400), false, 0),
        (day(10), false, LOOK_EVERY_MS), // our clock is behind
        (day(110), true, 0),             // or it is, and nobody believes us any more
    ] {
        assert_eq!(plan.wait_ms(now, &facts(), refused), expected, "{now} {refused}");
    }
}

#[test]
fn attempts_grow_apart_and_a_wrong_clock_does_not_make_a_loop() {
    let (mut plan, mut now) = (Plan::default(), day(160));
    let mut waits = Vec::new();
    for _ in 0..12 {
        plan.failed(now);
        let wait = plan.wait_ms(now, &facts(), false);
        waits.push(wait / 1000);
        now = now + wait;
        assert_eq!(plan.wait_ms(now, &facts(), false), 0);
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
    plan.renewed(now, &facts());
    let mut looks = 0;
    while plan.wait_ms(now, &facts(), true) > 0 {
        now = now + plan.wait_ms(now, &facts(), true);
        looks += 1;
    }
    assert_eq!(looks, 6, "six hours");
    // One of a test's, which is made for six seconds and valid from an hour before.
    plan.renewed(now, &Facts { not_before: now - HOUR_MS, not_after: now + 6_000, ..facts() });
    assert_eq!(plan.wait_ms(now, &facts(), true), 2_000);
    assert_eq!(plan.failures, 0);
}

const HOUR_MS: u64 = 3_600_000;

/// A CA and what it signs.
struct Cluster {
    ca: Ca,
}

impl Cluster {
    fn sans() -> [San; 2] {
        [San::Dns("peer".to_owned()), San::Ip([127, 0, 0, 1].into())]
    }

    /// An identity that began `age_ms` ago and is good for an hour.
    fn identity(&self, name: &str, age_ms: u64) -> Identity {
        let subject = Subject { common_name: name.to_owned(), organizations: Vec::new() };
        self.ca.issue(&subject, &Self::sans(), Usage::Both, clock::now() - age_ms, HOUR_MS).unwrap()
    }

    fn tls(&self, identity: &Identity) -> dhow_quic::Tls {
        tls(self.ca.cert_pem(), identity)
    }

    fn sign(&self, name: &str, body: &[u8]) -> String {
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
        let subject = Subject { common_name: name.to_owned(), organizations: Vec::new() };
        let csr = asked["csr"].as_str().unwrap();
        let signed = self.ca.sign_csr(csr, &subject, &Self::sans(), Usage::Both, clock::now(), HOUR_MS).unwrap();
        json!({"certificate": signed, "ca": self.ca.cert_pem()}).to_string()
    }

    /// An API that only renews; certificates that are over are believed.
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let cert = dhow_pki::ServerCert::new(&self.identity("api", 0)).unwrap();
        let tls = TlsAcceptor::from(Arc::new(dhow_pki::api_server_config(&cert, self.ca.cert_pem(), &["h2"]).unwrap()));
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(stream) = tls.accept(socket).await else { continue };
            let peer = dhow_pki::subject_of(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap();
            let this = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let (this, name) = (this.clone(), peer.common_name.clone());
                    async move {
                        assert_eq!((request.method(), request.uri().path()), (&Method::POST, PATH));
                        let body = request.into_body().collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(this.sign(&name, &body)))))
                    }
                });
                let server = http2::Builder::new(TokioExecutor::new());
                server.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_over_is_renewed_and_shown_everywhere_at_once() {
    let cluster = Arc::new(Cluster { ca: Ca::create("test", clock::now()).unwrap() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let api = tokio::spawn(cluster.clone().serve(listener));
    let old = cluster.identity("system:node:n", 2 * HOUR_MS);
    let bind = || "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::bind(bind(), &cluster.tls(&old)).unwrap();
    let peer = Endpoint::bind(bind(), &cluster.tls(&cluster.identity("peer", 0))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (refuse, refused) = watch::channel(false);
    let client = Client::new(dhow_client::Config {
        server,
        others: Vec::new(),
        ca_pem: Some(cluster.ca.cert_pem().to_owned()),
        identity: Some(old.clone()),
        token: None,
        namespace: "default".to_owned(),
    })
    .unwrap();
    let renewal = Renewal {
        client,
        endpoint: endpoint.clone(),
        identity: old.clone(),
        ca_pem: cluster.ca.cert_pem().to_owned(),
        kept: Some(dir.path().to_owned()),
        refused,
    };
    let tasks = dhow_tasks::Tasks::new("test");
    tasks.spawn("renewal", renewal.run(tasks.stop_token()));
    let kept = dir.path().join("node.crt");
    let fresh = loop {
        match std::fs::read_to_string(&kept) {
            Ok(text) => break text,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert!(!facts_of_pem(&fresh).unwrap().is_expired(clock::now()));
    // The kept certificate fits the key that stays, and the other nodes believe it.
    Endpoint::bind(bind(), &cluster.tls(&Identity { cert_pem: fresh, key_pem: old.key_pem })).unwrap();
    let (made, accepted) = tokio::join!(endpoint.connect(peer.local_addr(), "peer"), peer.accept());
    assert_eq!((made.unwrap().peer(), accepted.unwrap().peer()), ("peer", "system:node:n"));
    drop(refuse);
    tasks.stop(Duration::from_secs(5)).await;
    api.abort();
}
