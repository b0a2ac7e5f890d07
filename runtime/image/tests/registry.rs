//! Pushes to and pulls from the cluster's registry, over TLS as in production.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::sync::Arc;

use dhow_client::{Client, Config};
use dhow_image::{Image, Keyring, PullError, Reference, Registries, Sources, Store, push};
use dhow_pki::{Ca, San, Subject, Usage};
use dhow_registry::Registry;
use dhow_runtime_contract::PullPolicy;
use dhow_types::Time;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const WASM: &[u8] = b"\0asm\x0d\0\x01\0 and more";

/// A registry that answers on a port of its own, and a client of it.
async fn registry(dir: &Path) -> (Client, tokio::task::JoinHandle<()>) {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    let now = Time::from_ms(since.as_millis() as i64);
    let ca = Ca::create("test", now).unwrap();
    let subject = Subject { common_name: "registry".to_owned(), organizations: Vec::new() };
    let sans = [San::Ip([127, 0, 0, 1].into())];
    let identity = ca.issue(&subject, &sans, Usage::Server, now, 3_600_000).unwrap();
    let tls = dhow_pki::server_config(&identity, None, &["h2"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let registry = Registry::open(dir).unwrap();
    let serving = tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, registry) = (acceptor.clone(), registry.clone());
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let service = service_fn(move |request| {
                    let registry = registry.clone();
                    async move { Ok::<_, std::convert::Infallible>(registry.handle(request).await) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.serve_connection(TokioIo::new(tls), service).await.ok();
            });
        }
    });
    let ca_pem = Some(ca.cert_pem().to_owned());
    let config =
        Config { server, others: Vec::new(), ca_pem, identity: None, token: None, namespace: "default".to_owned() };
    (Client::new(config).unwrap(), serving)
}

/// Pulls as a node does that was told nothing about registries.
async fn get(
    store: &Store,
    name: &str,
    policy: PullPolicy,
    client: &Client,
    allow_files: bool,
) -> Result<Image, PullError> {
    let (registries, secrets) = (Registries::default(), Keyring::default());
    store
        .pull(name, policy, Sources { client: Some(client), registries: &registries, secrets: &secrets, allow_files })
        .await
}

#[tokio::test]
async fn what_is_pushed_is_pulled_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (client, serving) = registry(&dir.path().join("registry")).await;
    let name = Reference::parse("team/hello:1.0").unwrap();
    let manifest = push(&client, WASM.to_vec(), &name).await.unwrap();
    assert!(manifest.starts_with("sha256:"));
    // The same again is no error, and the same outcome.
    assert_eq!(push(&client, WASM.to_vec(), &name).await.unwrap(), manifest);

    let store = Store::open(dir.path().join("images")).unwrap();
    let pull = |name: &'static str, policy| get(&store, name, policy, &client, false);
    let missing = pull("team/hello:1.0", PullPolicy::Never).await.unwrap_err();
    assert_eq!(missing.reason(), "ErrImageNeverPull");
    let image = pull("team/hello:1.0", PullPolicy::IfNotPresent).await.unwrap();
    assert!(!image.already_present);
    assert_eq!((std::fs::read(&image.path).unwrap().as_slice(), image.size), (WASM, WASM.len() as u64));
    for policy in [PullPolicy::Never, PullPolicy::IfNotPresent, PullPolicy::Always] {
        let again = pull("team/hello:1.0", policy).await.unwrap();
        assert!(again.already_present);
        assert_eq!((&again.digest, &again.path), (&image.digest, &image.path));
    }
    let by_digest = format!("team/hello@{manifest}");
    assert_eq!(get(&store, &by_digest, PullPolicy::IfNotPresent, &client, false).await.unwrap().digest, image.digest);

    // A tag that moves is noticed by `Always` only.
    let newer = [WASM, b"!"].concat();
    push(&client, newer.clone(), &name).await.unwrap();
    assert_eq!(pull("team/hello:1.0", PullPolicy::IfNotPresent).await.unwrap().digest, image.digest);
    let moved = pull("team/hello:1.0", PullPolicy::Always).await.unwrap();
    assert_eq!(std::fs::read(moved.path).unwrap(), newer);

    let unknown = pull("team/other", PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(matches!(unknown, PullError::NotFound { .. }), "{unknown}");
    assert_eq!(unknown.reason(), "ErrImagePull");
    serving.abort();

    // What the node has survives the registry and a restart; what was damaged meanwhile is found out.
    let store = Store::open(dir.path().join("images")).unwrap();
    let kept = get(&store, "team/hello:1.0", PullPolicy::IfNotPresent, &client, false).await.unwrap();
    assert!(kept.already_present);
    std::fs::write(&kept.path, b"damaged").unwrap();
    let store = Store::open(dir.path().join("images")).unwrap();
    let damaged = get(&store, "team/hello:1.0", PullPolicy::Never, &client, false).await.unwrap_err();
    assert!(matches!(damaged, PullError::NotPresent { .. }), "{damaged}");
}

#[tokio::test]
async fn names_and_registries_that_cannot_be_used_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let (client, serving) = registry(&dir.path().join("registry")).await;
    let store = Store::open(dir.path().join("images")).unwrap();
    for (name, reason, part) in [
        ("Not A Name", "InvalidImageName", "is not a valid image name"),
        ("127.0.0.1:1/library/nginx", "ErrImagePull", "the registry `127.0.0.1:1`: connecting"),
        ("file:///somewhere/x.wasm", "ErrImagePull", "does not allow"),
        ("file://x.wasm", "InvalidImageName", "absolute path"),
    ] {
        let error = get(&store, name, PullPolicy::IfNotPresent, &client, false).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let text = push(&client, b"text".to_vec(), &Reference::parse("x").unwrap()).await.unwrap_err();
    assert!(text.to_string().contains("not a WebAssembly program"), "{text}");
    serving.abort();
    serving.await.unwrap_err();
    let gone = get(&store, "x", PullPolicy::IfNotPresent, &client, false).await.unwrap_err();
    assert!(matches!(gone, PullError::Unreachable { .. }), "{gone}");
}

#[tokio::test]
async fn a_file_on_the_node_is_copied_and_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _serving) = registry(&dir.path().join("registry")).await;
    let store = Store::open(dir.path().join("images")).unwrap();
    let file = dir.path().join("x.wasm");
    let name = format!("file://{}", file.display());
    let pull = || get(&store, &name, PullPolicy::Always, &client, true);
    let missing = pull().await.unwrap_err();
    assert!(matches!(missing, PullError::NoSuchFile { .. }) && missing.reason() == "ErrImagePull", "{missing}");
    std::fs::write(&file, WASM).unwrap();
    let first = pull().await.unwrap();
    assert_eq!((first.already_present, pull().await.unwrap().already_present), (false, true));
    std::fs::write(&file, [WASM, b"!"].concat()).unwrap();
    let second = pull().await.unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(std::fs::read(first.path).unwrap(), WASM);
}
