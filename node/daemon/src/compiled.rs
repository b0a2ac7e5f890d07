//! Compiled code from the control node, for an agent that has no compiler, or is not to use it.
//!
//! The agent asks by digest and settings; what the control node has not compiled yet is sent to it and compiled there. The
//! connection is the agent's own, but what makes code believed is the signature of the cluster's CA under it.

use std::fmt;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use dhow_client::{Body, Client, ClientError};
use dhow_engine::{CodeSettings, Delivered, Elsewhere, NotDelivered, Wanted};
use dhow_files::{Access, NewFile};
use dhow_pki::{CodeStatement, verify_code};
use dhow_types::Chain;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The largest code that is taken: programs have at most 256 MiB, and code is some three times as large.
const CODE_BYTES_MAX: u64 = 1 << 30;
/// What is read of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// How often it is asked when a control node cannot be reached or cannot serve: another one is called then.
const ATTEMPTS_MAX: usize = 3;

/// Why there is no code for these settings.
enum Refusal {
    /// The control node makes no such code.
    Settings(String),
    /// For good, or for now.
    Other(NotDelivered),
}

/// Everything compiled by the control nodes of this cluster.
pub(crate) fn by_control_node(client: Client, ca_pem: String) -> Elsewhere {
    let fetch = move |wanted| {
        let (client, ca_pem) = (client.clone(), ca_pem.clone());
        async move { fetch(&client, &ca_pem, wanted).await }
    };
    // SAFETY: code gets its file only after the signature was verified that the cluster's CA has made under the program,
    // the settings, the kind and the code itself. Control nodes sign nothing but what their own compiler made, and they
    // decide what runs here anyway.
    unsafe { Elsewhere::new(fetch) }
}

async fn fetch(client: &Client, ca_pem: &str, wanted: Wanted) -> Result<Delivered, NotDelivered> {
    let mut refused = String::new();
    for settings in &wanted.settings {
        match fetch_for(client, ca_pem, &wanted, settings).await {
            Ok(delivered) => return Ok(delivered),
            Err(Refusal::Settings(why)) => refused = why,
            Err(Refusal::Other(why)) => return Err(why),
        }
    }
    Err(NotDelivered::Failed(refused))
}

async fn fetch_for(
    client: &Client,
    ca_pem: &str,
    wanted: &Wanted,
    settings: &CodeSettings,
) -> Result<Delivered, Refusal> {
    let path = format!("/dhow/v1/compiled/{}?settings={settings}", wanted.digest);
    let mut answer = ask(client, Method::GET, &path, None).await?;
    if answer.status() == StatusCode::NOT_FOUND {
        let program = tokio::fs::read(&wanted.wasm).await;
        let program = program.map_err(|error| failed(format!("the program cannot be read: {error}")))?;
        answer = ask(client, Method::POST, &path, Some(program.into())).await?;
    }
    let (head, body) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(refusal(head.status, body).await);
    }
    let settings = settings.to_string();
    let received = receive(ca_pem, (&wanted.digest, &settings), &head.headers, body, &wanted.to).await;
    received.map_err(|why| failed(format!("the code that the control node sent cannot be used: {why}")))
}

/// Asks a control node; the next one if that one cannot serve.
async fn ask(
    client: &Client,
    method: Method,
    path: &str,
    program: Option<Bytes>,
) -> Result<http::Response<Body>, Refusal> {
    let mut attempt = 1;
    loop {
        let body = program.clone().map(|program| ("application/wasm", program));
        let answer = client.stream(method.clone(), path, "application/octet-stream", body).await;
        let lost = match &answer {
            Ok(answer) => answer.status() == StatusCode::SERVICE_UNAVAILABLE,
            Err(error) => matches!(error, ClientError::Connect { .. } | ClientError::Http { .. }),
        };
        if !lost || attempt == ATTEMPTS_MAX {
            return answer
                .map_err(|error| failed(format!("the control node cannot be asked to compile it: {}", Chain(&error))));
        }
        attempt += 1;
    }
}

async fn refusal(status: StatusCode, body: Body) -> Refusal {
    let body = Limited::new(body, REFUSAL_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let tree: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = tree["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    match status {
        StatusCode::NOT_ACCEPTABLE => Refusal::Settings(message),
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
            Refusal::Other(NotDelivered::Refused(message))
        }
        _ => failed(format!("the control node does not compile it: {message}")),
    }
}

fn failed(why: String) -> Refusal {
    Refusal::Other(NotDelivered::Failed(why))
}

/// Takes code in. It gets its file if the cluster vouches for it.
async fn receive<B>(
    ca_pem: &str,
    (program, settings): (&str, &str),
    headers: &HeaderMap,
    mut body: B,
    to: &Path,
) -> Result<Delivered, String>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned).ok_or_else(|| format!("it says nothing of `{name}`"))
    };
    let (kind, signature) = (header("dhow-code-kind")?, header("dhow-code-signature")?);
    let mut file = NewFile::create(to, Access::Private).map_err(|error| error.to_string())?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| format!("it broke off: {error}"))?.into_data() else { continue };
        bytes += data.len() as u64;
        if bytes > CODE_BYTES_MAX {
            return Err(format!("it has more than {CODE_BYTES_MAX} bytes"));
        }
        hash.update(&data);
        // To the page cache, in pieces of a frame's size.
        file.write_all(&data).map_err(|error| error.to_string())?;
    }
    let code = hash.finalize().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let statement = CodeStatement { program, settings, kind: &kind, code: &code };
    verify_code(ca_pem, &statement, &signature).map_err(|error| Chain(&error).to_string())?;
    let committed = tokio::task::spawn_blocking(move || file.commit()).await;
    committed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    Ok(Delivered { kind })
}

#[cfg(test)]
mod tests {
    use dhow_pki::Ca;
    use dhow_types::Time;
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn only_what_the_cluster_vouches_for_gets_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("code");
        let ca = Ca::create("cluster", Time::from_secs(0)).unwrap();
        let other = Ca::create("other", Time::from_secs(0)).unwrap();
        let code = "sha256:5694d08a2e53ffcae0c3103e5ad6f6076abd960eb1f8a56577040bc1028f702b";
        let statement = CodeStatement { program: "sha256:a", settings: "1-x", kind: "command", code };
        let good = ca.sign_code(&statement).unwrap();
        let foreign = other.sign_code(&statement).unwrap();
        let received = async |asked, kind: Option<&str>, signature: Option<&str>, body: &'static str| {
            let mut headers = HeaderMap::new();
            for (name, value) in [("dhow-code-kind", kind), ("dhow-code-signature", signature)] {
                headers.extend(value.map(|value| (http::HeaderName::from_static(name), value.parse().unwrap())));
            }
            let received = receive(ca.cert_pem(), asked, &headers, Full::<Bytes>::from(body), &to).await;
            received.map(|delivered| delivered.kind)
        };
        let (asked, kind, signature) = (("sha256:a", "1-x"), Some("command"), Some(good.as_str()));
        for (asked, kind, signature, body, part) in [
            (asked, kind, signature, "cadge", "the signature is not"),
            (asked, kind, signature, "", "the signature is not"),
            (asked, Some("http"), signature, "code", "the signature is not"),
            (("sha256:b", "1-x"), kind, signature, "code", "the signature is not"),
            (("sha256:a", "1-y"), kind, signature, "code", "the signature is not"),
            (asked, kind, Some(foreign.as_str()), "code", "the signature is not"),
            (asked, kind, Some("00"), "code", "the signature is not"),
            (asked, kind, None, "code", "`dhow-code-signature`"),
            (asked, None, signature, "code", "`dhow-code-kind`"),
        ] {
            let why = received(asked, kind, signature, body).await.unwrap_err();
            assert!(why.contains(part), "{why}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of it");
        }
        assert_eq!(received(asked, kind, signature, "code").await.as_deref(), Ok("command"));
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "code");
    }
}
