//! Pulls from registries outside of the cluster: our own one, in this process, and Debian's `docker-registry`, if it is
//! installed or `DOCKER_REGISTRY` names it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail as tests do, and say what they skip"
)]

mod registry;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_image::{Image, Keyring, PullError, Registries, Sources, Store};
use dhow_runtime_contract::PullPolicy;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use registry::{Door, Kind, PASSWORD, TestRegistry, USER, digest_of};

const WASM: &[u8] = b"\0asm\x0d\0\x01\0 and more";
const WASM_LAYER: &str = "application/wasm";
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A node: its store, and what it was told.
struct Node {
    dir: tempfile::TempDir,
    store: Store,
    registries: Registries,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("images")).unwrap();
        Self { store, dir, registries: Registries::default() }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn told(&mut self, rules: &Value) {
        let path = self.file("registries.yaml", &json!({ "registries": rules }).to_string());
        self.registries = Registries::load(&path).unwrap();
    }

    async fn pull_with(&self, name: &str, policy: PullPolicy, secrets: &Keyring) -> Result<Image, PullError> {
        let sources = Sources { client: None, registries: &self.registries, secrets, allow_files: true };
        self.store.pull(name, policy, sources).await
    }

    async fn pull(&self, name: &str) -> Result<Image, PullError> {
        self.pull_with(name, PullPolicy::IfNotPresent, &Keyring::default()).await
    }

    async fn refusal(&self, name: &str) -> String {
        match self.pull(name).await {
            Ok(image) => panic!("{image:?}"),
            Err(error) => error.to_string(),
        }
    }
}

fn secret(authority: &str, password: &str) -> Keyring {
    let mut keyring = Keyring::default();
    let auth = STANDARD.encode(format!("{USER}:{password}"));
    keyring.add_config_json(json!({"auths": {authority: {"auth": auth}}}).to_string().as_bytes()).unwrap();
    keyring
}

/// Pushes a program; gives the manifest's digest.
async fn push(registry: &TestRegistry, repository: &str, tag: &str, wasm: &[u8]) -> String {
    let layer = registry.blob(repository, WASM_LAYER, wasm).await;
    let config = registry.blob(repository, WASM_CONFIG, b"{}").await;
    registry.manifest(repository, tag, MANIFEST, &json!({"config": config, "layers": [layer]})).await
}

/// Runs a test against each kind of registry that is here.
async fn each(door: Door, test: impl AsyncFn(&TestRegistry)) {
    for kind in [Kind::Own, Kind::Docker] {
        match TestRegistry::start(kind, door).await {
            Some(registry) => test(&registry).await,
            None => eprintln!("SKIPPED: `docker-registry` is not installed and DOCKER_REGISTRY does not name it"),
        }
    }
}

#[tokio::test]
async fn plain_http_is_spoken_only_where_it_is_allowed_and_tags_and_digests_are_followed() {
    each(Door::PLAIN, async |registry| {
        let digest = push(registry, "team/hello", "1.0", WASM).await;
        let (mut node, host) = (Node::new(), &registry.authority);
        let name = format!("{host}/team/hello:1.0");
        assert!(node.refusal(&name).await.contains(&format!("the registry `{host}`: connecting")));
        node.told(&json!([{"prefix": host, "plainHttp": true}]));
        let image = node.pull(&name).await.unwrap();
        assert_eq!((&image.manifest, image.digest.as_str()), (&digest, digest_of(WASM).as_str()));
        assert_eq!(std::fs::read(&image.path).unwrap(), WASM);
        let by_digest = node.pull(&format!("{host}/team/hello@{digest}")).await.unwrap();
        assert_eq!((by_digest.path, by_digest.already_present), (image.path, true));
        // A tag that moves is noticed when it is asked for.
        let newer = [WASM, b"!"].concat();
        let moved = push(registry, "team/hello", "1.0", &newer).await;
        assert_eq!(node.pull(&name).await.unwrap().manifest, digest);
        let always = node.pull_with(&name, PullPolicy::Always, &Keyring::default()).await.unwrap();
        assert_eq!((always.manifest, std::fs::read(always.path).unwrap()), (moved, newer));
        let absent = node.refusal(&format!("{host}/team/hello:2")).await;
        assert!(absent.contains(&format!("the registry `{host}` has no image")), "{absent}");
        let other = node.refusal(&format!("{host}/team/hello@{}", digest_of(b"other"))).await;
        assert!(other.contains("has no image"), "{other}");
    })
    .await;
}

#[tokio::test]
async fn a_private_authority_and_a_password_open_the_door() {
    each(Door::CLOSED, async |registry| {
        let digest = push(registry, "team/hello", "1.0", WASM).await;
        let (mut node, host) = (Node::new(), &registry.authority);
        let name = format!("{host}/team/hello:1.0");
        let unknown = node.refusal(&name).await;
        assert!(unknown.contains("certificate"), "{unknown}");
        let ca = node.file("ca.pem", registry::ca().cert_pem());
        node.told(&json!([{"prefix": host, "caFile": ca}]));
        assert!(matches!(node.pull(&name).await, Err(PullError::Unauthorized { .. })));
        let (right, wrong) = (secret(host, PASSWORD), secret(host, "guess"));
        let elsewhere = secret("registry.example.com", PASSWORD);
        for secrets in [&wrong, &elsewhere] {
            let refused = node.pull_with(&name, PullPolicy::IfNotPresent, secrets).await.unwrap_err();
            assert!(matches!(refused, PullError::Unauthorized { .. }), "{refused}");
            assert!(!refused.to_string().contains("guess"));
        }
        let image = node.pull_with(&name, PullPolicy::IfNotPresent, &right).await.unwrap();
        assert_eq!((image.manifest, image.already_present), (digest, false));
        // What is on the node is not for those who could not have fetched it.
        assert!(node.pull_with(&name, PullPolicy::IfNotPresent, &right).await.unwrap().already_present);
        assert!(matches!(node.pull(&name).await, Err(PullError::Unauthorized { .. })));
        let never = node.pull_with(&name, PullPolicy::Never, &wrong).await;
        assert!(matches!(never, Err(PullError::NotPresent { .. })));
        // The node's own credential is for everybody on it.
        node.file("password", &format!("{PASSWORD}\n"));
        node.told(&json!([{"prefix": format!("{host}/team"), "caFile": "ca.pem", "username": USER, "passwordFile": "password"}]));
        assert!(node.pull(&name).await.unwrap().already_present);
    })
    .await;
}

#[tokio::test]
async fn a_token_server_is_asked_with_the_password_and_its_token_is_shown() {
    let registry = TestRegistry::start(Kind::Own, Door { tokens: true, ..Door::CLOSED }).await.unwrap();
    push(&registry, "team/hello", "1.0", WASM).await;
    let (mut node, host) = (Node::new(), &registry.authority);
    let name = format!("{host}/team/hello:1.0");
    let ca = node.file("ca.pem", registry::ca().cert_pem());
    node.told(&json!([{"prefix": host, "caFile": ca}]));
    let refused = node.refusal(&name).await;
    assert!(refused.contains("refused the node's request"), "{refused}");
    node.pull_with(&name, PullPolicy::IfNotPresent, &secret(host, PASSWORD)).await.unwrap();
    let mut identity = Keyring::default();
    let text = json!({"auths": {host: {"identitytoken": PASSWORD}}}).to_string();
    identity.add_config_json(text.as_bytes()).unwrap();
    node.pull_with(&name, PullPolicy::Always, &identity).await.unwrap();
    assert!(registry.scopes().iter().all(|scope| scope == "repository:team/hello:pull"), "{:?}", registry.scopes());
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    each(Door::PLAIN, async |registry| {
        push(registry, "team/hello", "1.0", WASM).await;
        let (mut node, host) = (Node::new(), &registry.authority);
        // The first mirror is not there, the second has it.
        let mirrors = json!(["http://127.0.0.1:1", format!("http://{host}")]);
        node.told(&json!([{"prefix": "registry.invalid", "mirrors": mirrors}]));
        let image = node.pull("registry.invalid/team/hello:1.0").await.unwrap();
        assert_eq!(image.reference, "registry.invalid/team/hello:1.0");
        // The mirror has nothing; the registry itself does.
        let empty = TestRegistry::start(Kind::Own, Door::PLAIN).await.unwrap();
        let mirrors = json!([format!("http://{}", empty.authority)]);
        node.told(&json!([{"prefix": host, "mirrors": mirrors, "plainHttp": true}]));
        node.pull(&format!("{host}/team/hello:1.0")).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn images_of_files_and_indices_give_their_program() {
    each(Door::PLAIN, async |registry| {
        let (mut node, host) = (Node::new(), &registry.authority);
        node.told(&json!([{"prefix": host, "plainHttp": true}]));
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(WASM.len() as u64);
        archive.append_data(&mut header, "srv/app.wasm", WASM).unwrap();
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let layer = registry.blob("app", layer, &archive.into_inner().unwrap()).await;
        let config = json!({"architecture": "wasm", "os": "wasip1", "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"Entrypoint": ["/srv/app.wasm", "serve"], "Cmd": ["-v"], "Env": ["MODE=fast"]}});
        let config =
            registry.blob("app", "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()).await;
        let wasm = json!({"config": config, "layers": [layer]});
        let wasm = registry.manifest("app", "wasm", MANIFEST, &wasm).await;
        let linux = json!({"config": config, "layers": [registry.blob("app", "application/x-other", b"linux").await]});
        let linux = registry.manifest("app", "linux", MANIFEST, &linux).await;
        let entry = |digest: &str, os: &str, architecture: &str| {
            json!({"mediaType": MANIFEST, "digest": digest, "size": 1, "platform": {"os": os, "architecture": architecture}})
        };
        let index = json!({"manifests": [entry(&linux, "linux", "amd64"), entry(&wasm, "wasip1", "wasm")]});
        let index = registry.manifest("app", "1.0", INDEX, &index).await;

        let image = node.pull(&format!("{host}/app:1.0")).await.unwrap();
        assert_eq!(std::fs::read(&image.path).unwrap(), WASM);
        assert_eq!((image.manifest, image.digest.as_str()), (index, digest_of(WASM).as_str()));
        assert_eq!((image.defaults.entrypoint, image.defaults.args), (vec!["serve".to_owned()], vec!["-v".to_owned()]));
        assert_eq!(image.defaults.env, [("MODE".to_owned(), "fast".to_owned())]);
        // The same program under another name is not unpacked again, and nothing is left over.
        assert!(node.pull(&format!("{host}/app@{wasm}")).await.is_ok());
        assert_eq!(std::fs::read_dir(node.store.dir().join("unpacking")).unwrap().count(), 0);
        let other = node.refusal(&format!("{host}/app:linux")).await;
        assert!(other.contains("holds no WebAssembly program: its layers are `application/x-other`"), "{other}");
    })
    .await;
}

#[tokio::test]
async fn what_is_not_as_promised_is_refused() {
    let registry = TestRegistry::start(Kind::Own, Door::PLAIN).await.unwrap();
    let (mut node, host) = (Node::new(), &registry.authority);
    node.told(&json!([{"prefix": host, "plainHttp": true}]));
    let config = registry.blob("x", WASM_CONFIG, b"{}").await;
    let good = registry.blob("x", WASM_LAYER, WASM).await;
    let with = |field: &str, value: Value| {
        let mut layer = good.clone();
        layer[field] = value;
        layer
    };
    for (tag, layer, part) in [
        ("huge", with("size", json!(1_u64 << 40)), "1099511627776 bytes; at most"),
        ("short", with("size", json!(3)), "came as more"),
        ("long", with("size", json!(1000)), "came as 17 bytes"),
        ("digest", with("digest", json!("sha256:../../etc")), "it names the digest"),
    ] {
        registry.raw_manifest("x", tag, MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}));
        let refused = node.refusal(&format!("{host}/x:{tag}")).await;
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(node.store.list().unwrap(), [], "nothing of them is kept");
    // A blob whose bytes are others than its digest says.
    registry.corrupt(&digest_of(WASM));
    push_again(&registry, &config, &good).await;
    let refused = node.refusal(&format!("{host}/x:again")).await;
    assert!(refused.contains("with the digest"), "{refused}");
    assert_eq!(node.store.list().unwrap(), []);
}

async fn push_again(registry: &TestRegistry, config: &Value, layer: &Value) {
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    registry.raw_manifest("x", "again", MANIFEST, &manifest);
}

/// A key of this test alone.
struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    fn pem(&self) -> String {
        let header =
            b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        let key = STANDARD.encode([&header[..], self.pair.public_key().as_ref()].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n")
    }

    /// Does what `cosign sign --key` does.
    async fn sign(&self, registry: &TestRegistry, repository: &str, digest: &str) {
        let payload = json!({"critical": {"identity": {"docker-reference": "r"},
            "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}, "optional": null});
        let payload = payload.to_string();
        let media_type = "application/vnd.dev.cosign.simplesigning.v1+json";
        let mut layer = registry.blob(repository, media_type, payload.as_bytes()).await;
        let signature = self.pair.sign(&self.random, payload.as_bytes()).unwrap();
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(signature)});
        let config = registry.blob(repository, "application/vnd.oci.image.config.v1+json", b"{}").await;
        let manifest = json!({"config": config, "layers": [layer]});
        registry.manifest(repository, &format!("{}.sig", digest.replace(':', "-")), MANIFEST, &manifest).await;
    }
}

#[tokio::test]
async fn an_image_is_taken_only_with_a_signature_where_the_node_wants_one() {
    each(Door::PLAIN, async |registry| {
        let (signer, stranger) = (Signer::new(), Signer::new());
        let digest = push(registry, "signed", "1", WASM).await;
        let (mut node, host) = (Node::new(), &registry.authority);
        let key = node.file("cosign.pub", &signer.pem());
        let name = format!("{host}/signed:1");
        // Fetched while no signature was wanted: it does not count once one is.
        node.told(&json!([{"prefix": host, "plainHttp": true}]));
        node.pull(&name).await.unwrap();
        node.told(&json!([{"prefix": host, "plainHttp": true}, {"prefix": "*", "signatureKeys": [key]}]));
        let unsigned = node.pull(&name).await.unwrap_err();
        assert_eq!(unsigned.reason(), "SignatureValidationFailed");
        assert!(unsigned.to_string().contains("it has no signature"), "{unsigned}");
        stranger.sign(registry, "signed", &digest).await;
        let stranger = node.refusal(&name).await;
        assert!(stranger.contains("none of its signatures"), "{stranger}");
        signer.sign(registry, "signed", &digest).await;
        assert_eq!(node.pull(&name).await.unwrap().manifest, digest);
        let never = node.pull_with(&name, PullPolicy::Never, &Keyring::default()).await;
        assert!(never.unwrap().already_present, "its signature is remembered");
        let file = node.file("x.wasm", "\0asm");
        let file = node.refusal(&format!("file://{}", Path::new(&file).display())).await;
        assert!(file.contains("signature"), "{file}");
    })
    .await;
}

#[tokio::test]
async fn what_is_removed_is_fetched_again_and_what_was_used_since_stays() {
    let registry = TestRegistry::start(Kind::Own, Door::PLAIN).await.unwrap();
    let digest = push(&registry, "x", "1", WASM).await;
    let (mut node, host) = (Node::new(), &registry.authority);
    node.told(&json!([{"prefix": host, "plainHttp": true}]));
    let name = format!("{host}/x:1");
    node.pull(&name).await.unwrap();
    let [kept] = node.store.list().unwrap().try_into().unwrap();
    assert_eq!((kept.digest.as_str(), kept.size), (digest_of(WASM).as_str(), WASM.len() as u64));
    assert_eq!(kept.names, [name.clone(), format!("{host}/x@{digest}")]);
    let changes = node.store.changes();
    node.store.touch(&kept.digest);
    assert!(!node.store.remove(&kept.digest, kept.used).await.unwrap(), "it was used after the decision");
    let [kept] = node.store.list().unwrap().try_into().unwrap();
    assert!(node.store.remove(&kept.digest, kept.used).await.unwrap());
    assert_ne!(node.store.changes(), changes);
    assert_eq!(node.store.list().unwrap(), []);
    assert!(!node.pull(&name).await.unwrap().already_present);
}
