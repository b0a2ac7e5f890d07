//! GET: one object, or a list.

use crate::answer::{self, Answer, Style};
use crate::app::{App, now};
use crate::route::Call;
use bytes::Bytes;
use dhow_api::Tree;
use dhow_api::status::ApiError;
use dhow_api::table::{self, Include};
use dhow_gate::Query;
use dhow_gate::list::Page;
use dhow_gate::media::{Endpoint, Shape};
use dhow_gate::options::{self, At};
use dhow_gate::write::{Name, key_of, scale_of};
use dhow_state::Object;
use dhow_types::Revision;
use serde_json::json;
use std::sync::Arc;

/// Waits until the state is as new as the caller wants it: as new as any member's, or as a revision; `0` is any state.
pub(crate) async fn settle(app: &App, at: At) -> Result<(), ApiError> {
    let enough = match at {
        At::Any => true,
        At::Newest => false,
        // This member may lag behind the one that told the revision.
        At::NotOlderThan(revision) | At::Exact(revision) => app.replica.state().revision() >= revision,
    };
    if !enough {
        app.barrier().await?;
    }
    Ok(())
}

/// What a GET of one object says about its age.
fn age_of(call: &Call<'_>) -> Result<At, ApiError> {
    let Some(text) = call.query.non_empty("resourceVersion") else { return Ok(At::Newest) };
    match text.parse() {
        Ok(0) => Ok(At::Any),
        Ok(revision) => Ok(At::NotOlderThan(Revision(revision))),
        Err(_) => Err(ApiError::bad_request(format!("resourceVersion: Invalid value: \"{text}\": it is no number"))),
    }
}

async fn find(call: &Call<'_>) -> Result<Arc<Object>, ApiError> {
    let at = age_of(call)?;
    settle(call.app, at).await?;
    if let At::NotOlderThan(wanted) = at {
        let current = call.app.replica.state().revision();
        if wanted > current {
            return Err(ApiError::too_large_version(wanted.0, current.0));
        }
    }
    let name = Name { namespace: &call.target.namespace, name: &call.target.name };
    let found = call.app.replica.state().get(&key_of(call.kind, name)).cloned();
    found.ok_or_else(|| ApiError::not_found(&call.kind.resource(), name.name))
}

/// One object; its status sub-resource shows the same.
pub(crate) async fn get(call: &Call<'_>) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let style = call.style(accepted);
    let object = find(call).await?;
    Ok(match accepted.shape {
        Shape::Object | Shape::Discovery(_) => show(&object, style),
        Shape::Metadata => answer::tree(200, &table::partial_metadata(&object.tree()), style),
        Shape::Table => {
            let tree = object.tree();
            let meta = json!({"resourceVersion": object.revision.to_string()});
            let table = table::table(call.kind, &[&tree], &meta, include(call.query), now(), true);
            answer::tree(200, &table, style)
        }
    })
}

/// A stored object, unparsed where the client's style allows.
pub(crate) fn show(object: &Object, style: Style) -> Answer {
    if style.is_as_stored() {
        answer::json_bytes(200, object.json().clone(), style)
    } else {
        answer::tree(200, &object.tree(), style)
    }
}

/// The scale of a workload.
pub(crate) async fn scale(call: &Call<'_>) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Plain)?;
    Ok(answer::tree(200, &scale_of(&find(call).await?.tree()), call.style(accepted)))
}

/// A list.
pub(crate) async fn list(call: &Call<'_>) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Objects)?;
    let style = call.style(accepted);
    let options = options::list_options(call.kind, call.query)?;
    let namespace = Some(call.target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    // Pages after the first show the state of the first, which this member must have reached.
    let at = options.resume.as_ref().map_or(options.at, |resume| At::NotOlderThan(resume.revision));
    settle(call.app, at).await?;
    // The lock is held for the walk alone; the answer is made from shared objects afterwards.
    let page = dhow_gate::list::list(&call.app.replica.state(), call.kind, namespace, &options);
    let page = match page {
        Ok(page) => page,
        Err(error) => {
            let mut status = error.error.to_tree();
            if let Some(resume) = error.resume {
                status["metadata"] = json!({"continue": resume});
            }
            return Ok(answer::tree(error.error.code, &status, Style::PLAIN));
        }
    };
    Ok(match accepted.shape {
        Shape::Table => {
            let trees: Vec<Tree> = page.items.iter().map(|item| item.tree()).collect();
            let trees: Vec<&Tree> = trees.iter().collect();
            let table = table::table(call.kind, &trees, &list_meta(&page), include(call.query), now(), true);
            answer::tree(200, &table, style)
        }
        Shape::Metadata => {
            let items: Vec<Tree> = page.items.iter().map(|item| table::partial_metadata(&item.tree())).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_meta(&page),
                "items": items,
            });
            answer::tree(200, &list, style)
        }
        Shape::Object | Shape::Discovery(_) => objects(call, page, style),
    })
}

/// A list of objects, unparsed where the client's style allows.
pub(crate) fn objects(call: &Call<'_>, page: Page, style: Style) -> Answer {
    let (kind, api_version) = (call.kind.list_kind(), call.kind.api_version());
    let meta = list_meta(&page);
    if style.is_as_stored() {
        let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{meta},"items":["#);
        return answer::stored_list(200, Bytes::from(head), page.items, style);
    }
    let items: Vec<Tree> = page.items.iter().map(|item| item.tree()).collect();
    answer::tree(200, &json!({"kind": kind, "apiVersion": api_version, "metadata": meta, "items": items}), style)
}

fn list_meta(page: &Page) -> Tree {
    let mut meta = json!({"resourceVersion": page.revision.to_string()});
    if let Some(resume) = &page.resume {
        meta["continue"] = resume.as_str().into();
    }
    if let Some(remaining) = page.remaining {
        meta["remainingItemCount"] = remaining.into();
    }
    meta
}

/// How much of each object a table carries beside its cells.
pub(crate) fn include(query: &Query<'_>) -> Include {
    match query.get("includeObject") {
        Some("None") => Include::None,
        Some("Object") => Include::Object,
        _ => Include::Metadata,
    }
}
