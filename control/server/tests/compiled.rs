//! The code of programs, for agents that cannot compile.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use bytes::Bytes;
use dhow_client::{Client, Config as ClientConfig, Response};
use dhow_pki::{CodeStatement, Identity, verify_code};
use dhow_server::{Compile, CompileJob, CompileRefusal, Config, Server};
use http::Method;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::{Arc, Mutex};

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A compiler whose code is the program backwards. Says what it was asked.
fn backwards(asked: Arc<Mutex<Vec<String>>>) -> Compile {
    Compile::new(move |job: &CompileJob| {
        asked.lock().unwrap().push(job.settings.clone());
        let mut bytes = std::fs::read(&job.program).unwrap();
        match bytes.as_slice() {
            b"bad" => return Err(CompileRefusal::Program("it is bad".to_owned())),
            b"down" => return Err(CompileRefusal::Failed("no room".to_owned())),
            _ if job.settings != "1-x" => return Err(CompileRefusal::Settings("only `1-x`".to_owned())),
            _ => bytes.reverse(),
        }
        std::fs::write(&job.code, bytes).unwrap();
        Ok("command".to_owned())
    })
}

async fn start(dir: &Path, compile: Option<Compile>) -> Server {
    Server::start(Config { compile, ..Config::new(dir, "127.0.0.1:0".parse().unwrap()) }).await.unwrap()
}

fn client(server: &Server, identity: Option<Identity>) -> Client {
    let (url, ca_pem) = (server.url(), Some(server.ca_pem().to_owned()));
    let namespace = "default".to_owned();
    Client::new(ClientConfig { server: url, others: Vec::new(), ca_pem, identity, token: None, namespace }).unwrap()
}

async fn ask(client: &Client, method: Method, path: &str, program: &'static [u8]) -> Response {
    let body = (method == Method::POST).then_some(("application/wasm", Bytes::from_static(program)));
    client.request(method, &format!("/dhow/v1/compiled/{path}"), "*/*", body).await.unwrap()
}

/// The code of an answer, if the cluster vouches for it.
#[track_caller]
fn vouched(server: &Server, program: &str, answer: &Response) -> Bytes {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
    let (kind, code, signature) = (header("dhow-code-kind"), header("dhow-code-digest"), header("dhow-code-signature"));
    assert_eq!(code, digest(&answer.body));
    let statement = CodeStatement { program, settings: "1-x", kind: &kind, code: &code };
    verify_code(server.ca_pem(), &statement, &signature).unwrap();
    answer.body.clone()
}

#[tokio::test]
async fn a_program_is_compiled_once_and_its_code_is_signed() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let server = start(dir.path(), Some(backwards(asked.clone()))).await;
    let agent = client(&server, Some(server.issue_node_identity("n1").unwrap()));
    let program = digest(b"program");
    let path = format!("{program}?settings=1-x");
    assert_eq!(ask(&agent, Method::GET, &path, b"").await.status, 404);
    let other = client(&server, Some(server.issue_node_identity("n2").unwrap()));
    let both =
        tokio::join!(ask(&agent, Method::POST, &path, b"program"), ask(&other, Method::POST, &path, b"program"),);
    for answer in [both.0, both.1, ask(&other, Method::GET, &path, b"").await] {
        assert_eq!(vouched(&server, &program, &answer), b"margorp"[..]);
    }
    assert_eq!(*asked.lock().unwrap(), ["1-x"]);
    server.stop().await;
    // It lasts, and what was being written does not.
    let kept = dir.path().join("compiled");
    std::fs::write(kept.join(".a.1.1"), "").unwrap();
    std::fs::write(kept.join("a.program"), "").unwrap();
    let server = start(dir.path(), None).await;
    let agent = client(&server, Some(server.issue_node_identity("n1").unwrap()));
    assert_eq!(vouched(&server, &program, &ask(&agent, Method::GET, &path, b"").await), b"margorp"[..]);
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 1);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_compiled_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Some(backwards(Arc::default()))).await;
    let agent = client(&server, Some(server.issue_node_identity("n1").unwrap()));
    let (own, bad, down) = (digest(b"program"), digest(b"bad"), digest(b"down"));
    for (method, path, program, code, part) in [
        (Method::GET, format!("{own}?settings=1-x"), &b""[..], 404, "has not been compiled here yet"),
        (Method::POST, format!("{own}?settings=1-x"), b"other", 400, "the program's digest is"),
        (Method::POST, format!("{own}?settings=1-y"), b"program", 406, "only `1-x`"),
        (Method::POST, format!("{bad}?settings=1-x"), b"bad", 422, "it is bad"),
        (Method::POST, format!("{down}?settings=1-x"), b"down", 503, "no room"),
        (Method::POST, own.clone(), b"program", 400, "are no settings"),
        (Method::POST, format!("{own}?settings=a/b"), b"program", 400, "are no settings"),
        (Method::POST, "sha256:a?settings=1-x".to_owned(), b"program", 400, "no digest"),
        (Method::PUT, format!("{own}?settings=1-x"), b"", 403, "forbidden"),
    ] {
        let answer = ask(&agent, method, &path, program).await;
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status.as_u16() == code && text.contains(part), "{path}: {text}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("compiled")).unwrap().count(), 0);
    let nobody = client(&server, None);
    assert_eq!(ask(&nobody, Method::GET, &format!("{own}?settings=1-x"), b"").await.status, 401);
    server.stop().await;
    let server = start(dir.path(), None).await;
    let agent = client(&server, Some(server.issue_node_identity("n1").unwrap()));
    let answer = ask(&agent, Method::POST, &format!("{own}?settings=1-x"), b"program").await;
    assert!(answer.status == 501 && String::from_utf8_lossy(&answer.body).contains("without a compiler"));
    server.stop().await;
}
