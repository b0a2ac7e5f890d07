//! The registry of several members: which images there are is part of the state, their bytes lie on each member's disk.
//!
//! Whoever takes a push writes down what was pushed; the others hear of it by their watch and fetch what they lack. Who
//! is asked for something that it has not fetched yet does so at once. So every member serves every image, and losing
//! one loses none that the others had the time to fetch.

use crate::answer::{self, Answer};
use crate::app::App;
use crate::body::RequestBody;
use crate::members::client_of;
use bytes::Bytes;
use dhow_api::status::ApiError;
use dhow_api::{Tree, meta};
use dhow_client::Client;
use dhow_gate::User;
use dhow_registry::RegistryBody;
use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::{Filter, From, WatchItem};
use dhow_types::Chain;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, warn};

/// The resource of the records. No kind has it.
const IMAGES: &str = "images.dhow.dev";

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Manifests of manifests are followed no deeper: an index of images is one deep.
const DEPTH_MAX: usize = 4;

/// The largest manifest that is fetched from another member: what the registry itself takes.
const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// The rest before images that could not be fetched are tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What a name in a repository stands for: a tag, or a digest that was pushed as such.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    repository: String,
    reference: String,
    digest: String,
}

impl Record {
    fn key_of(repository: &str, reference: &str) -> Key {
        let hash = Sha256::digest(format!("{repository}\n{reference}").as_bytes());
        Key::new(IMAGES, "", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    fn read(tree: &Tree) -> Record {
        let text = |field: &str| meta::text(tree, &format!("spec.{field}")).to_owned();
        Record { repository: text("repository"), reference: text("reference"), digest: text("digest") }
    }

    fn put(&self) -> Op {
        let key = Record::key_of(&self.repository, &self.reference);
        let value = json!({
            "metadata": {"name": &*key.name},
            "spec": {"repository": self.repository, "reference": self.reference, "digest": self.digest},
        });
        Op::Put { key, value: value.to_string().into(), expect: Expect::Any, expires: None }
    }
}

/// What a path under `/v2/` is about, as far as members have to know.
#[derive(Debug, PartialEq, Eq)]
enum What<'a> {
    Manifest { repository: &'a str, reference: &'a str },
    Blob { repository: &'a str, digest: &'a str },
    Other,
}

fn what(path: &str) -> What<'_> {
    let Some(rest) = path.strip_prefix("/v2/") else { return What::Other };
    let Some((before, last)) = rest.trim_end_matches('/').rsplit_once('/') else { return What::Other };
    match before.rsplit_once('/') {
        Some((repository, "manifests")) => What::Manifest { repository, reference: last },
        Some((repository, "blobs")) if last != "uploads" => What::Blob { repository, digest: last },
        _ => What::Other,
    }
}

/// Answers a request for the registry.
pub(crate) async fn handle(app: &App, user: &User, request: Request<RequestBody>) -> Result<Answer, ApiError> {
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let is_read = matches!(method, Method::GET | Method::HEAD);
    match what(&path) {
        What::Manifest { repository, reference } if is_read => {
            let digest = resolve(app, repository, reference).await;
            let path = format!("/v2/{repository}/manifests/{digest}");
            read(app, user, &method, &path, || fetch_manifest(app, repository, &digest)).await
        }
        What::Blob { repository, digest } if is_read => {
            read(app, user, &method, &path, || fetch_blob(app, repository, digest)).await
        }
        What::Manifest { repository, reference } if method == Method::PUT => {
            let answer = app.registry.handle(request).await;
            if answer.status().is_success() {
                let digest = answer.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
                let digest = digest.unwrap_or(reference).to_owned();
                let record = Record { repository: repository.to_owned(), reference: reference.to_owned(), digest };
                app.write_raw(Txn::one(record.put())).await?;
            }
            Ok(pass(answer))
        }
        What::Manifest { repository, reference } if method == Method::DELETE => {
            let ops = forget(app, repository, reference);
            let is_known = !ops.is_empty();
            if is_known {
                app.write_raw(Txn { ops }).await?;
            }
            let mut answer = pass(app.registry.handle(request).await);
            if is_known && answer.status() == StatusCode::NOT_FOUND {
                // It had not come to this member's disk yet, and now it never will.
                answer = answer::answer(202, "text/plain", answer::empty());
            }
            Ok(answer)
        }
        _ => Ok(pass(app.registry.handle(request).await)),
    }
}

fn pass(answer: Response<RegistryBody>) -> Answer {
    answer.map(|body| body.map_err(Into::into).boxed_unsync())
}

/// How long a tag waits for what the other members know. Without them it is what this one knows: an image that is here is
/// of use to a node even while nobody leads.
const TAG_WAIT: Duration = Duration::from_secs(1);

/// The digest that a tag names now, by the state; a tag of a time before there were records stays a tag.
async fn resolve(app: &App, repository: &str, reference: &str) -> String {
    if reference.contains(':') {
        return reference.to_owned();
    }
    if !matches!(tokio::time::timeout(TAG_WAIT, app.replica.barrier()).await, Ok(Ok(_))) {
        debug!(repository, reference, "a tag is answered as it is known here");
    }
    let found = app.replica.state().get(&Record::key_of(repository, reference)).cloned();
    found.map_or_else(|| reference.to_owned(), |object| Record::read(&object.tree()).digest)
}

/// Reads from this member's disk, after a fetch if it is not there.
async fn read<F: Future<Output = bool>>(
    app: &App,
    user: &User,
    method: &Method,
    path: &str,
    fetch: impl FnOnce() -> F,
) -> Result<Answer, ApiError> {
    let answer = local(app, method.clone(), path).await;
    // A member that asks is one that fetches: it asks the others itself.
    if answer.status() != StatusCode::NOT_FOUND || user.member().is_some() || !fetch().await {
        return Ok(pass(answer));
    }
    Ok(pass(local(app, method.clone(), path).await))
}

async fn local(app: &App, method: Method, path: &str) -> Response<RegistryBody> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    match path.parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => debug!(path, %error, "a path of the registry is malformed"),
    }
    app.registry.handle(request).await
}

/// What has to go from the state with a manifest: the tag, or all that names the digest.
fn forget(app: &App, repository: &str, reference: &str) -> Vec<Op> {
    let state = app.replica.state();
    let gone = state.list(IMAGES, None).filter(|object| {
        let record = Record::read(&object.tree());
        record.repository == repository && (record.reference == reference || record.digest == reference)
    });
    gone.map(|object| Op::Delete { key: object.key.clone(), expect: Expect::Present, last: None }).collect()
}

/// The other members that hold images, those that can be reached first.
fn others(app: &App) -> Vec<Client> {
    let mut others = app.known_members();
    others.retain(|member| member.id != app.member.id && !member.witness);
    others.sort_by_key(|member| !app.links.is_linked(member.id));
    others.iter().filter_map(|member| client_of(app, member).ok()).collect()
}

/// Fetches a manifest with all that it refers to; whether it is here now.
async fn fetch_manifest(app: &App, repository: &str, digest: &str) -> bool {
    for client in others(app) {
        match copy_manifest(app, &client, repository, digest, digest, DEPTH_MAX).await {
            Ok(()) => return true,
            Err(why) => debug!(repository, digest, server = client.server(), why, "an image was not fetched"),
        }
    }
    false
}

async fn fetch_blob(app: &App, repository: &str, digest: &str) -> bool {
    for client in others(app) {
        match copy_blob(app, &client, repository, digest).await {
            Ok(()) => return true,
            Err(why) => debug!(repository, digest, server = client.server(), why, "a blob was not fetched"),
        }
    }
    false
}

/// Copies a manifest and its blobs from another member, and keeps it under `reference`.
async fn copy_manifest(
    app: &App,
    client: &Client,
    repository: &str,
    digest: &str,
    reference: &str,
    depth: usize,
) -> Result<(), String> {
    let path = format!("/v2/{repository}/manifests/{digest}");
    let answer = client.request(Method::GET, &path, "*/*", None).await.map_err(|error| Chain(&error).to_string())?;
    if !answer.status.is_success() {
        return Err(format!("it answers {}", answer.status));
    }
    if answer.body.len() > MANIFEST_BYTES_MAX {
        return Err(format!("a manifest of {} bytes is too large", answer.body.len()));
    }
    let tree: Tree = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    for part in std::iter::once(&tree["config"]).chain(meta::list(&tree, "layers")) {
        if let Some(blob) = part["digest"].as_str()
            && !is_here(app, &format!("/v2/{repository}/blobs/{blob}")).await
        {
            copy_blob(app, client, repository, blob).await?;
        }
    }
    for part in meta::list(&tree, "manifests") {
        let Some(inner) = part["digest"].as_str() else { continue };
        if depth > 0 && !is_here(app, &format!("/v2/{repository}/manifests/{inner}")).await {
            Box::pin(copy_manifest(app, client, repository, inner, inner, depth - 1)).await?;
        }
    }
    let media_type = answer.headers.get(CONTENT_TYPE).cloned();
    put_manifest(app, repository, reference, media_type, answer.body).await
}

async fn put_manifest(
    app: &App,
    repository: &str,
    reference: &str,
    media_type: Option<http::HeaderValue>,
    bytes: Bytes,
) -> Result<(), String> {
    let mut request = Request::put(format!("/v2/{repository}/manifests/{reference}"));
    if let Some(media_type) = media_type {
        request = request.header(CONTENT_TYPE, media_type);
    }
    let request = request.body(Full::new(bytes)).map_err(|error| error.to_string())?;
    done(app.registry.handle(request).await).await
}

async fn copy_blob(app: &App, client: &Client, repository: &str, digest: &str) -> Result<(), String> {
    let path = format!("/v2/{repository}/blobs/{digest}");
    let answer = client.stream(Method::GET, &path, "*/*", None).await.map_err(|error| Chain(&error).to_string())?;
    if !answer.status().is_success() {
        return Err(format!("it answers {}", answer.status()));
    }
    let upload = Request::post(format!("/v2/{repository}/blobs/uploads/?digest={digest}"));
    let upload = upload.body(answer.into_body()).map_err(|error| error.to_string())?;
    done(app.registry.handle(upload).await).await
}

async fn done(answer: Response<RegistryBody>) -> Result<(), String> {
    if answer.status().is_success() {
        return Ok(());
    }
    let status = answer.status();
    let text = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Err(format!("the registry answers {status}: {}", String::from_utf8_lossy(&text)))
}

async fn is_here(app: &App, path: &str) -> bool {
    local(app, Method::HEAD, path).await.status().is_success()
}

/// Keeps this member's disk in step with the records, until told to stop.
pub(crate) async fn follow(app: Arc<App>) {
    let stop = app.machines_stop.clone();
    stop.or(async {
        loop {
            follow_until_lagged(&app).await;
            tokio::time::sleep(RETRY).await;
        }
    })
    .await;
}

async fn follow_until_lagged(app: &App) {
    let Ok(mut watch) = app.replica.watch(Filter::new(IMAGES, None), From::Now) else { return };
    // What could not be done yet: the record, or `None` for one that is gone.
    let mut todo: BTreeMap<Key, (Record, bool)> = BTreeMap::new();
    let present: Vec<_> = app.replica.state().list(IMAGES, None).cloned().collect();
    todo.extend(present.iter().map(|object| (object.key.clone(), (Record::read(&object.tree()), true))));
    loop {
        for (key, (record, wanted)) in std::mem::take(&mut todo) {
            if let Err(why) = bring_in_step(app, &record, wanted).await {
                debug!(
                    repository = record.repository,
                    reference = record.reference,
                    why,
                    "an image is not here yet, tried again"
                );
                todo.insert(key, (record, wanted));
            }
        }
        let item = tokio::select! {
            item = watch.next() => item,
            () = tokio::time::sleep(RETRY), if !todo.is_empty() => continue,
        };
        match item {
            Some(WatchItem::Changes(changes)) => {
                for change in changes {
                    let record = Record::read(&change.last.tree());
                    todo.insert(change.key.clone(), (record, change.new.is_some()));
                }
            }
            Some(WatchItem::Progress(_)) => {}
            Some(WatchItem::Lagged) | None => return warn!("the images are compared anew"),
        }
    }
}

async fn bring_in_step(app: &App, record: &Record, wanted: bool) -> Result<(), String> {
    let Record { repository, reference, digest } = record;
    let path = format!("/v2/{repository}/manifests/{reference}");
    let here = local(app, Method::HEAD, &path).await;
    let found = here.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok()).map(str::to_owned);
    match (here.status().is_success(), wanted) {
        (true, true) if found.as_deref() == Some(digest) => Ok(()),
        (true, false) => done(local(app, Method::DELETE, &path).await).await,
        (false, false) => Ok(()),
        (_, true) => {
            let by_digest = local(app, Method::GET, &format!("/v2/{repository}/manifests/{digest}")).await;
            if by_digest.status().is_success() {
                // Only the tag is another one.
                let media_type = by_digest.headers().get(CONTENT_TYPE).cloned();
                let bytes = by_digest.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
                return put_manifest(app, repository, reference, media_type, bytes).await;
            }
            let mut why = "no other member has it".to_owned();
            for client in others(app) {
                match copy_manifest(app, &client, repository, digest, reference, DEPTH_MAX).await {
                    Ok(()) => return Ok(()),
                    Err(error) => why = format!("{}: {error}", client.server()),
                }
            }
            Err(why)
        }
    }
}

/// Writes down the images of a data directory from before there were records.
pub(crate) async fn adopt(app: &App) {
    let catalog = read_json(app, "/v2/_catalog").await;
    let mut ops = Vec::new();
    for repository in meta::list(&catalog, "repositories").iter().filter_map(Tree::as_str) {
        let tags = read_json(app, &format!("/v2/{repository}/tags/list")).await;
        for tag in meta::list(&tags, "tags").iter().filter_map(Tree::as_str) {
            let here = local(app, Method::HEAD, &format!("/v2/{repository}/manifests/{tag}")).await;
            let Some(digest) = here.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok()) else {
                continue;
            };
            let (repository, reference, digest) = (repository.to_owned(), tag.to_owned(), digest.to_owned());
            ops.push(Record { repository, reference, digest }.put());
        }
    }
    if ops.is_empty() {
        return;
    }
    if let Err(error) = app.replica.write(Txn { ops }).await {
        warn!(error = %Chain(&error), "the images that are here are not known to other control nodes");
    }
}

async fn read_json(app: &App, path: &str) -> Tree {
    let answer = local(app, Method::GET, path).await;
    let Ok(body) = answer.into_body().collect().await else { return Tree::Null };
    serde_json::from_slice(&body.to_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_manifests_and_blobs() {
        for (path, want) in [
            ("/v2/a/b/manifests/1.0", What::Manifest { repository: "a/b", reference: "1.0" }),
            ("/v2/a/blobs/sha256:00", What::Blob { repository: "a", digest: "sha256:00" }),
            ("/v2/a/blobs/uploads/", What::Other),
            ("/v2/a/blobs/uploads/0123", What::Other),
            ("/v2/_catalog", What::Other),
            ("/v2/a/tags/list", What::Other),
            ("/v2", What::Other),
        ] {
            assert_eq!(what(path), want, "{path}");
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let record =
            Record { repository: "a/b".to_owned(), reference: "1.0".to_owned(), digest: "sha256:00".to_owned() };
        let Op::Put { key, value, .. } = record.put() else { panic!("a put") };
        assert_eq!(key, Record::key_of("a/b", "1.0"));
        assert_eq!(Record::read(&serde_json::from_slice(&value).unwrap()), record);
        assert_ne!(Record::key_of("a/b", "1.0"), Record::key_of("a", "b/1.0"));
    }
}
