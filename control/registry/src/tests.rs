//! The registry driven by requests, without sockets.

use super::*;

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn code(&self) -> String {
        let tree: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        tree["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

async fn ask(registry: &Registry, method: &str, path: &str, body: &[u8]) -> Answer {
    let request = Request::builder().method(method).uri(path).header("content-type", MANIFEST);
    let response = registry.handle(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn push_blob(registry: &Registry, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let begun = ask(registry, "POST", "/v2/a/b/blobs/uploads/", b"").await;
    assert_eq!(begun.status, 202);
    let put = ask(registry, "PUT", &format!("{}?digest={digest}", begun.header("location")), bytes).await;
    assert_eq!((put.status, put.header("docker-content-digest")), (201, digest.as_str()));
    digest
}

#[tokio::test]
async fn what_is_pushed_is_pulled_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    let layer = push_blob(&registry, b"\0asm").await;
    let config = push_blob(&registry, b"{}").await;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": config.as_str()}, "layers": [{"digest": layer.as_str()}]})
            .to_string();
    let put = ask(&registry, "PUT", "/v2/a/b/manifests/1.0", manifest.as_bytes()).await;
    assert_eq!(put.status, 201);

    let registry = Registry::open(dir.path()).unwrap();
    for reference in ["1.0", put.header("docker-content-digest")] {
        let got = ask(&registry, "GET", &format!("/v2/a/b/manifests/{reference}"), b"").await;
        assert_eq!((got.status, got.header("content-type"), got.body.as_slice()), (200, MANIFEST, manifest.as_bytes()));
    }
    let got = ask(&registry, "GET", &format!("/v2/a/b/blobs/{layer}"), b"").await;
    assert_eq!((got.status, got.header("content-length"), got.body.as_slice()), (200, "4", b"\0asm".as_slice()));
    let absent = ask(&registry, "HEAD", "/v2/a/b/manifests/2.0", b"").await;
    assert_eq!((absent.status, absent.body.len()), (404, 0));
    let head = ask(&registry, "HEAD", &format!("/v2/a/b/blobs/{layer}"), b"").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "4", 0));
    assert_eq!(ask(&registry, "GET", "/v2/a/b/tags/list", b"").await.body, br#"{"name":"a/b","tags":["1.0"]}"#);
    assert_eq!(ask(&registry, "GET", "/v2/_catalog", b"").await.body, br#"{"repositories":["a/b"]}"#);
    assert_eq!(ask(&registry, "GET", "/v2/", b"").await.status, 200);

    assert_eq!(ask(&registry, "DELETE", "/v2/a/b/manifests/1.0", b"").await.status, 202);
    assert_eq!(ask(&registry, "GET", "/v2/a/b/manifests/1.0", b"").await.code(), "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_blob_may_come_in_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    let begun = ask(&registry, "POST", "/v2/a/blobs/uploads/", b"").await;
    let place = begun.header("location").to_owned();
    let first = ask(&registry, "PATCH", &place, b"one").await;
    assert_eq!((first.status, first.header("range")), (202, "0-2"));
    let digest = Digest::of(b"onetwo");
    assert_eq!(ask(&registry, "PUT", &format!("{place}?digest={digest}"), b"two").await.status, 201);
    assert_eq!(ask(&registry, "GET", &format!("/v2/a/blobs/{digest}"), b"").await.body, b"onetwo");
    assert_eq!(ask(&registry, "PATCH", &place, b"more").await.code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    let absent = Digest::of(b"absent");
    let dangling = json!({"mediaType": MANIFEST, "layers": [{"digest": absent.as_str()}]}).to_string();
    for (method, path, body, status, code) in [
        ("GET", "/v2/UPPER/manifests/1", "", 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/manifests/1", "", 400, "NAME_INVALID"),
        ("GET", "/v2/a/manifests/..", "", 400, "MANIFEST_INVALID"),
        ("GET", "/v2/a/manifests/none", "", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/tags/list", "", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/blobs/sha256:zz", "", 400, "DIGEST_INVALID"),
        ("GET", &format!("/v2/a/blobs/{absent}"), "", 404, "BLOB_UNKNOWN"),
        ("PUT", "/v2/a/manifests/1", "no json", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/a/manifests/1", &dangling, 404, "MANIFEST_BLOB_UNKNOWN"),
        ("PUT", "/v2/a/blobs/uploads/../../x?digest=y", "", 404, "NAME_UNKNOWN"),
        ("PUT", "/v2/a/blobs/uploads/x?digest=y", "", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("POST", &format!("/v2/a/blobs/uploads/?digest={absent}"), "present", 400, "DIGEST_INVALID"),
        ("DELETE", "/v2/_catalog", "", 405, "UNSUPPORTED"),
        ("GET", "/v2/a", "", 404, "NAME_UNKNOWN"),
    ] {
        let answer = ask(&registry, method, path, body.as_bytes()).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0, "refused uploads leave nothing");
}

#[tokio::test]
async fn uploads_are_bounded_and_forgotten_ones_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    let begin = || ask(&registry, "POST", "/v2/a/blobs/uploads/", b"");
    for _ in 0..disk::UPLOADS_MAX {
        assert_eq!(begin().await.status, 202);
    }
    let refused = begin().await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "TOOMANYREQUESTS"));
    let forgotten = std::fs::read_dir(dir.path().join("uploads")).unwrap().next().unwrap().unwrap().path();
    let long_ago = std::time::SystemTime::now() - 2 * disk::UPLOAD_IDLE_MAX;
    std::fs::File::options().write(true).open(&forgotten).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(begin().await.status, 202);
    assert!(!forgotten.exists());
}
