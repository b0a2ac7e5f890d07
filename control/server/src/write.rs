//! POST, PUT, PATCH and DELETE: the body becomes a tree, the gate plans, the store writes.

use crate::answer::{self, Answer};
use crate::app::{Done, Shown};
use crate::body::RequestBody;
use crate::read;
use crate::route::Call;
use bytes::Bytes;
use dhow_api::Tree;
use dhow_api::decode::{self, Decoded, Media, Validation};
use dhow_api::kinds::Subresource;
use dhow_api::status::ApiError;
use dhow_api::table;
use dhow_gate::list::Page;
use dhow_gate::media::{self, Accepted, Endpoint, PatchType, Shape};
use dhow_gate::options::{self, ListOptions, WriteOptions};
use dhow_gate::write::{self as plan, Name, Patch};
use dhow_state::Object;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Limited};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// The size at which a body is refused: upstream's limit.
const BODY_BYTES_MAX: usize = 3 << 20;

pub(crate) fn name<'a>(call: &'a Call<'_>) -> Name<'a> {
    Name { namespace: &call.target.namespace, name: &call.target.name }
}

/// Who has not sent a body of that size by then only holds our memory.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a whole body.
pub(crate) async fn read_body(body: RequestBody) -> Result<Bytes, ApiError> {
    let reading = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect());
    let Ok(read) = reading.await else { return Err(ApiError::timeout("the body did not come in time", 1)) };
    match read {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(ApiError::bad_request(format!("the body cannot be read: {error}"))),
    }
}

/// The object of a body. A plan takes its tree; if it has to be planned again, which is rare, the body is read again.
struct Given {
    tree: Option<Tree>,
    body: Bytes,
    media: Media,
    schema: &'static str,
    validation: Validation,
}

impl Given {
    fn take(&mut self) -> Result<Tree, ApiError> {
        if let Some(tree) = self.tree.take() {
            return Ok(tree);
        }
        Ok(decode::decode(&self.body, self.media, Some(self.schema), self.validation)?.tree)
    }
}

/// Reads the object of a body, and gives the warnings about it.
async fn read_object(
    call: &Call<'_>,
    body: RequestBody,
    schema: &'static str,
    validation: Validation,
) -> Result<(Given, Vec<String>), ApiError> {
    let media = media::body_media(call.content_type())?;
    let body = read_body(body).await?;
    let Decoded { tree, warnings } = decode::decode(&body, media, Some(schema), validation)?;
    Ok((Given { tree: Some(tree), body, media, schema, validation }, warnings))
}

/// Reads an object of a type that is not stored as it is.
pub(crate) async fn read_typed(
    content_type: Option<&str>,
    body: RequestBody,
    schema: &str,
    validation: Validation,
) -> Result<Decoded, ApiError> {
    let media = media::body_media(content_type)?;
    decode::decode(&read_body(body).await?, media, Some(schema), validation)
}

fn finish(call: &Call<'_>, accepted: Accepted, done: Done, mut warnings: Vec<String>) -> Answer {
    let style = call.style(accepted);
    warnings.extend(done.warnings);
    let mut answer = match (&done.shown, accepted.shape) {
        (Shown::Object(object), Shape::Object) if style.is_as_stored() => {
            answer::json_bytes(done.code, object.json().clone(), style)
        }
        (Shown::Object(object), Shape::Table) => {
            let tree = object.tree();
            let meta = json!({"resourceVersion": object.revision.to_string()});
            let include = read::include(call.query);
            answer::tree(done.code, &table::table(call.kind, &[&tree], &meta, include, crate::app::now(), true), style)
        }
        (Shown::Object(object), Shape::Metadata) => {
            answer::tree(done.code, &table::partial_metadata(&object.tree()), style)
        }
        (shown, _) => answer::tree(done.code, &shown.tree(), style),
    };
    answer::warn(&mut answer, &warnings);
    answer
}

/// POST to a collection.
pub(crate) async fn create(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = options::write_options("CreateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, call.kind.schema, options.validation).await?;
    let done = call
        .app
        .write(call.kind, options.dry_run, |ctx| plan::create(ctx, call.kind, &call.target.namespace, given.take()?))
        .await?;
    Ok(finish(call, accepted, done, warnings))
}

/// PUT.
pub(crate) async fn update(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = options::write_options("UpdateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, call.kind.schema, options.validation).await?;
    let done = call
        .app
        .write(call.kind, options.dry_run, |ctx| plan::update(ctx, call.kind, name(call), given.take()?))
        .await?;
    Ok(finish(call, accepted, done, warnings))
}

/// PUT of `/status`.
pub(crate) async fn update_status(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = options::write_options("UpdateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, call.kind.schema, options.validation).await?;
    let done = call
        .app
        .write(call.kind, options.dry_run, |ctx| plan::update_status(ctx, call.kind, name(call), given.take()?))
        .await?;
    Ok(finish(call, accepted, done, warnings))
}

/// PUT of a pod's `/ephemeralcontainers`.
pub(crate) async fn update_ephemeral(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = options::write_options("UpdateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, call.kind.schema, options.validation).await?;
    let done = call
        .app
        .write(call.kind, options.dry_run, |ctx| plan::update_ephemeral(ctx, call.kind, name(call), given.take()?))
        .await?;
    Ok(finish(call, accepted, done, warnings))
}

/// PUT of a namespace's `/finalize`.
pub(crate) async fn finalize(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = options::write_options("UpdateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, call.kind.schema, options.validation).await?;
    let done = call
        .app
        .write(call.kind, options.dry_run, |ctx| plan::finalize(ctx, call.kind, name(call), given.take()?))
        .await?;
    Ok(finish(call, accepted, done, warnings))
}

/// PUT of `/scale`.
pub(crate) async fn update_scale(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Plain)?;
    let options = options::write_options("UpdateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, plan::SCALE_SCHEMA, options.validation).await?;
    let tree = given.take()?;
    let done =
        call.app.write(call.kind, options.dry_run, |ctx| plan::update_scale(ctx, call.kind, name(call), &tree)).await?;
    Ok(finish(call, accepted, done, warnings))
}

/// PATCH of an object, its status, its ephemeral containers, or its scale.
pub(crate) async fn patch(call: &Call<'_>, body: RequestBody, sub: Option<Subresource>) -> Result<Answer, ApiError> {
    let ty = media::patch_type(call.content_type())?;
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = options::write_options("PatchOptions", call.query)?;
    let body = read_patch(body, ty).await?;
    let of = match sub {
        Some(Subresource::Status) => plan::Part::Status,
        Some(Subresource::EphemeralContainers) => plan::Part::Ephemeral,
        _ => plan::Part::Main,
    };
    let patch = Patch { ty, body: &body, validation: options.validation, of };
    let done = call
        .app
        .write(call.kind, options.dry_run, |ctx| match sub {
            Some(Subresource::Scale) => plan::patch_scale(ctx, call.kind, name(call), patch),
            _ => plan::patch(ctx, call.kind, name(call), patch),
        })
        .await?;
    Ok(finish(call, accepted, done, Vec::new()))
}

async fn read_patch(body: RequestBody, ty: PatchType) -> Result<Tree, ApiError> {
    let body = read_body(body).await?;
    let tree: Tree = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    if ty == PatchType::Json && !tree.is_array() {
        let shape = if tree.is_object() { "object" } else { "value" };
        return Err(ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {shape} into Go value of type []handlers.jsonPatchOp"
        )));
    }
    Ok(tree)
}

/// The body of a deletion: `DeleteOptions`, or nothing.
async fn read_delete_options(call: &Call<'_>, body: RequestBody) -> Result<options::DeleteOptions, ApiError> {
    let bytes = read_body(body).await?;
    let tree = if bytes.iter().all(u8::is_ascii_whitespace) {
        None
    } else {
        let media = media::body_media(call.content_type())?;
        Some(decode::decode(&bytes, media, Some(DELETE_OPTIONS_SCHEMA), Validation::Ignore)?.tree)
    };
    options::delete_options(call.query, tree.as_ref())
}

const DELETE_OPTIONS_SCHEMA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const BINDING_SCHEMA: &str = "io.k8s.api.core.v1.Binding";
const EVICTION_SCHEMA: &str = "io.k8s.api.policy.v1.Eviction";

/// DELETE of one object.
pub(crate) async fn delete(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = read_delete_options(call, body).await?;
    let done =
        call.app.write(call.kind, options.dry_run, |ctx| plan::delete(ctx, call.kind, name(call), &options)).await?;
    Ok(finish(call, accepted, done, Vec::new()))
}

/// Deletions of a collection that are under way at a time: they share the store's group commits.
const DELETIONS_MAX: usize = 32;

/// DELETE of a collection: one object after the other; those that somebody else deletes meanwhile are gone as wished.
pub(crate) async fn delete_collection(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let options = read_delete_options(call, body).await?;
    let list_options: ListOptions = options::list_options(call.kind, call.query)?;
    let namespace = Some(call.target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    read::settle(call.app, list_options.at).await?;
    let page = dhow_gate::list::list(&call.app.replica.state(), call.kind, namespace, &list_options)
        .map_err(|error| error.error)?;
    let options = &options;
    let deletions = page.items.into_iter().map(|object| async move {
        let name = Name { namespace: &object.key.namespace, name: &object.key.name };
        match call.app.write(call.kind, options.dry_run, |ctx| plan::delete(ctx, call.kind, name, options)).await {
            // What goes gracefully is shown as it is now, what is gone as it was.
            Ok(Done { shown: Shown::Object(going), .. }) => Ok(Some(going)),
            Ok(_) => Ok(Some(object)),
            Err(error) if error.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    });
    let items: Vec<Option<Arc<Object>>> = stream::iter(deletions).buffered(DELETIONS_MAX).try_collect().await?;
    let page = Page {
        items: items.into_iter().flatten().collect(),
        revision: call.app.replica.state().revision(),
        resume: None,
        remaining: None,
    };
    Ok(read::objects(call, page, call.style(accepted)))
}

/// POST of a pod's `/binding`.
pub(crate) async fn bind(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Plain)?;
    let WriteOptions { dry_run, validation } = options::write_options("CreateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, BINDING_SCHEMA, validation).await?;
    let tree = given.take()?;
    let done = call.app.write(call.kind, dry_run, |ctx| plan::bind(ctx, call.kind, name(call), &tree)).await?;
    Ok(finish(call, accepted, done, warnings))
}

/// POST of a pod's `/eviction`.
pub(crate) async fn evict(call: &Call<'_>, body: RequestBody) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Plain)?;
    let WriteOptions { dry_run, validation } = options::write_options("CreateOptions", call.query)?;
    let (mut given, warnings) = read_object(call, body, EVICTION_SCHEMA, validation).await?;
    let tree = given.take()?;
    let done =
        call.app.write(call.kind, dry_run, |ctx| plan::evict(ctx, call.kind, name(call), &tree, call.query)).await?;
    Ok(finish(call, accepted, done, warnings))
}
