//! Paths that are no objects: discovery, health, version, schemas, the CA, joining, the registry.

use crate::answer::{self, Answer, Style};
use crate::app::App;
use crate::body::RequestBody;
use crate::route::{header, style};
use crate::{accounts, backups, certs, compiled, images, members, pki, write};
use bytes::Bytes;
use dhow_api::status::{ApiError, Details, Reason};
use dhow_api::{Tree, discovery, meta, openapi};
use dhow_gate::authorize::{ISSUER_PATH, JWKS_PATH};
use dhow_gate::media::{self, Accepted, Encoding, Endpoint, Shape};
use dhow_gate::write::View;
use dhow_gate::{Query, User};
use dhow_state::Key;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Method, Request};
use serde_json::json;
use std::sync::Arc;

/// Where the control node runs, in Go's words.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

/// The Kubernetes release whose API is served.
const MINOR: &str = "36";

/// Answers a request for a path that is no object.
pub(crate) async fn handle(
    app: &Arc<App>,
    user: &User,
    path: &str,
    query: &Query<'_>,
    request: Request<RequestBody>,
) -> Result<Answer, ApiError> {
    if path == "/v2" || path.starts_with("/v2/") {
        return images::handle(app, user, request).await;
    }
    if let Some(rest) = path.strip_prefix("/dhow/v1/") {
        return own(app, user, rest, request).await;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed_here());
    }
    let headers = request.headers();
    match path.trim_end_matches('/') {
        "" => root(query, headers),
        "/version" => show(&version(), query, headers),
        "/cacerts" => {
            Ok(answer::answer(200, "application/x-pem-file", answer::full(app.certs.ca.cert_pem().to_owned())))
        }
        "/healthz" | "/livez" | "/readyz" => health(app, path.trim_matches('/'), query).await,
        "/metrics" => Ok(answer::text(200, metrics(app))),
        JWKS_PATH => accounts::jwks(app),
        ISSUER_PATH => Ok(accounts::issuer(app)),
        "/openapi/v2" => Ok(schema_v2(headers)),
        "/openapi/v3" => show(&openapi::v3_index(), query, headers),
        other => {
            if let Some(document) = other.strip_prefix("/openapi/v3/") {
                return schema(document, query, headers);
            }
            if let Some((probe, check)) = probe_of(other) {
                return match check {
                    "ping" | "log" => Ok(answer::text(200, "ok")),
                    "store" | "etcd" => store_check(app, probe).await,
                    _ => Err(ApiError::no_such_path()),
                };
            }
            find(other, query, headers)
        }
    }
}

/// What is Dhow's own: joining, certificates, members, backups, compiled code.
async fn own(app: &Arc<App>, user: &User, rest: &str, request: Request<RequestBody>) -> Result<Answer, ApiError> {
    if let Some(digest) = rest.strip_prefix("compiled/") {
        return compiled::handle(app, user, digest, request).await;
    }
    let (head, body) = request.into_parts();
    match (&head.method, rest) {
        (&Method::POST, "join") => join(app, body).await,
        (&Method::POST, "renew") => certs::renew(app, user, body).await,
        (&Method::GET, "certificates") => {
            app.barrier().await?;
            certs::list(app)
        }
        (&Method::GET, "backup") => backups::download(app).await,
        (&Method::GET, "status") => members::handle(app, user, &head.method, head.uri.path(), body).await,
        _ if rest == "members" || rest.starts_with("members/") => {
            members::handle(app, user, &head.method, head.uri.path(), body).await
        }
        (_, "join" | "renew" | "certificates" | "backup" | "status") => Err(ApiError::method_not_allowed_here()),
        _ => Err(ApiError::no_such_path()),
    }
}

fn probe_of(path: &str) -> Option<(&str, &str)> {
    let (probe, check) = path.strip_prefix('/')?.split_once('/')?;
    matches!(probe, "healthz" | "livez" | "readyz").then_some((probe, check))
}

fn show(tree: &Tree, query: &Query<'_>, headers: &HeaderMap) -> Result<Answer, ApiError> {
    let accepted = accepted(headers, Endpoint::Plain)?;
    Ok(answer::tree(200, tree, style(query, headers, accepted)))
}

/// What a client wants to read. Documents that have no protobuf form are JSON for those who would take that too.
fn accepted(headers: &HeaderMap, endpoint: Endpoint) -> Result<Accepted, ApiError> {
    let accepted = media::negotiate(header(headers, ACCEPT), endpoint)?;
    match accepted.encoding {
        Encoding::Protobuf => Err(ApiError::not_acceptable(media::MEDIA_TYPES)),
        Encoding::Json | Encoding::Yaml => Ok(accepted),
    }
}

fn version() -> Tree {
    json!({
        "major": "1",
        "minor": MINOR,
        "emulationMajor": "1",
        "emulationMinor": MINOR,
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.0+dhow.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": PLATFORM,
    })
}

fn root(query: &Query<'_>, headers: &HeaderMap) -> Result<Answer, ApiError> {
    let paths = [
        ISSUER_PATH,
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        JWKS_PATH,
        "/readyz",
        "/v2/",
        "/version",
    ];
    show(&json!({"paths": paths}), query, headers)
}

/// Discovery: all groups in one document for those who ask for that, else the classic documents.
fn find(path: &str, query: &Query<'_>, headers: &HeaderMap) -> Result<Answer, ApiError> {
    if matches!(path, "/api" | "/apis") {
        let accepted = accepted(headers, Endpoint::Discovery)?;
        let style = style(query, headers, accepted);
        let Shape::Discovery(version) = accepted.shape else {
            let tree = if path == "/api" { discovery::api_versions() } else { discovery::api_group_list() };
            return Ok(answer::tree(200, &tree, style));
        };
        let version = version.as_str();
        let tree =
            if path == "/api" { discovery::aggregated_core(version) } else { discovery::aggregated_groups(version) };
        let mut answer = answer::tree(200, &tree, style);
        // The content type must be the variant that was asked for: older clients find no resources otherwise.
        let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        if let Ok(value) = HeaderValue::from_str(&content_type) {
            answer.headers_mut().insert(CONTENT_TYPE, value);
        }
        return Ok(answer);
    }
    let tree = match path.strip_prefix("/api/") {
        Some(version) => discovery::resource_list("", version),
        None => path.strip_prefix("/apis/").and_then(|rest| match rest.split_once('/') {
            None => discovery::api_group(rest),
            Some((group, version)) => discovery::resource_list(group, version),
        }),
    };
    show(&tree.ok_or_else(ApiError::no_such_path)?, query, headers)
}

/// What older clients (kubectl up to 1.28, helm 3) read schemas in.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// All schemas in one document.
fn schema_v2(headers: &HeaderMap) -> Answer {
    let gzip = answer::accepts_gzip(headers);
    // Clients name the protobuf form with a dot or with an at sign; Go's own parser takes only the dot in an answer.
    let accept = header(headers, ACCEPT).unwrap_or("").replace('@', ".");
    if accept.contains(V2_PROTOBUF) {
        let style = Style { encoding: Encoding::Protobuf, pretty: false, gzip };
        let mut answer = answer::json_bytes(200, Bytes::from_owner(openapi::v2_protobuf()), style);
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(V2_PROTOBUF));
        return answer;
    }
    answer::json_bytes(200, Bytes::from_owner(openapi::v2()), Style { gzip, ..Style::PLAIN })
}

/// A schema document. Its URL in the index carries its hash, so it may be kept for ever under that URL.
fn schema(document: &str, query: &Query<'_>, headers: &HeaderMap) -> Result<Answer, ApiError> {
    let hash = openapi::v3_hash(document).ok_or_else(ApiError::no_such_path)?;
    let etag = format!("\"{hash}\"");
    let mut answer = if header(headers, IF_NONE_MATCH) == Some(etag.as_str()) {
        answer::answer(304, "application/json", answer::empty())
    } else {
        let bytes = openapi::v3_document(document).ok_or_else(ApiError::no_such_path)?;
        answer::json_bytes(200, Bytes::from_owner(bytes), Style { gzip: answer::accepts_gzip(headers), ..Style::PLAIN })
    };
    if query.non_empty("hash").is_some() {
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    if let Ok(value) = HeaderValue::from_str(&etag) {
        answer.headers_mut().insert(ETAG, value);
    }
    Ok(answer)
}

/// `healthz`, `livez`, `readyz`: whether the store answers; `?verbose` says which parts were looked at.
async fn health(app: &App, probe: &str, query: &Query<'_>) -> Result<Answer, ApiError> {
    let store = if probe == "livez" { true } else { app.replica.barrier().await.is_ok() };
    let running = probe != "readyz" || !app.stop.is_stopped();
    let checks = [("ping", true), ("store", store), ("running", running)];
    let healthy = checks.iter().all(|(_, good)| *good);
    if healthy && !query.is_true("verbose") {
        return Ok(answer::text(200, "ok"));
    }
    let mut lines: String = checks
        .iter()
        .map(|(name, good)| if *good { format!("[+]{name} ok\n") } else { format!("[-]{name} failed\n") })
        .collect();
    lines.push_str(&format!("{probe} check {}\n", if healthy { "passed" } else { "failed" }));
    Ok(answer::text(if healthy { 200 } else { 500 }, lines))
}

async fn store_check(app: &App, probe: &str) -> Result<Answer, ApiError> {
    match app.replica.barrier().await {
        Ok(_) => Ok(answer::text(200, "ok")),
        Err(error) => Ok(answer::text(500, format!("{probe}: {error}\n"))),
    }
}

fn metrics(app: &App) -> String {
    let role = *app.role.borrow();
    let state = app.replica.state();
    let mut text = String::from("# TYPE dhow_consensus_term counter\n");
    text.push_str(&format!("dhow_consensus_term {}\n", role.term));
    text.push_str("# TYPE dhow_consensus_leader gauge\n");
    text.push_str(&format!("dhow_consensus_leader {}\n", u8::from(app.is_leader())));
    text.push_str("# TYPE dhow_consensus_members gauge\n");
    text.push_str(&format!("dhow_consensus_members {}\n", app.members.borrow().len()));
    text.push_str("# TYPE dhow_store_revision counter\n");
    text.push_str(&format!("dhow_store_revision {}\n", state.revision()));
    text.push_str("# TYPE dhow_store_objects gauge\n");
    for kind in dhow_api::kinds::all() {
        let resource = kind.resource();
        text.push_str(&format!("dhow_store_objects{{resource=\"{resource}\"}} {}\n", state.count(&resource, None)));
    }
    text
}

/// Names that a node may not have, since its certificate would then speak for another.
const RESERVED_NAMES: [&str; 3] = [pki::QUIC_SERVER_NAME, "localhost", "kubernetes"];

/// Gives a node that has a join token its certificate.
async fn join(app: &App, body: RequestBody) -> Result<Answer, ApiError> {
    let body = write::read_body(body).await?;
    let request: Tree = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    let (name, csr) = (meta::text(&request, "name"), meta::text(&request, "csr"));
    let faults = dhow_api::validate::dns1123_subdomain(name);
    if !faults.is_empty() || RESERVED_NAMES.contains(&name) || name.starts_with("kubernetes.") {
        let why = faults.first().map_or("the name is reserved", String::as_str);
        return Err(ApiError::bad_request(format!("`{name}` cannot be a node's name: {why}")));
    }
    app.barrier().await?;
    // Its pods' Secrets would be open to the newcomer.
    if app.view().get(&Key::new("nodes", "", name)).is_some() {
        let message = format!(
            "a node `{name}` exists: choose another name, or, if its machine is set up anew, remove the old node first with \
             `kubectl delete node {name}`"
        );
        return Err(ApiError::new(409, Reason::AlreadyExists, message).with_details(Details::of("nodes", name)));
    }
    let certificate = app.certs.sign_node(name, csr).map_err(|error| {
        ApiError::bad_request(format!("the signing request cannot be read: {}", dhow_types::Chain(&error)))
    })?;
    tracing::info!(node = name, "signed a node's certificate");
    certs::record(app, &certificate, name).await;
    Ok(answer::tree(200, &json!({"certificate": certificate, "ca": app.certs.ca.cert_pem()}), Style::PLAIN))
}
