//! Lists: which objects of which state, and where the next page begins.
//!
//! All pages of one list show the state that the first one showed. The store keeps no old versions, but it keeps the
//! recent changes, and a change knows what was there before: an older state is the present one with those undone.

use crate::options::{At, Continue, ListOptions};
use dhow_api::kinds::Kind;
use dhow_api::status::ApiError;
use dhow_state::{Compacted, Key, Object, State};
use dhow_types::Revision;
use std::sync::Arc;

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The objects, in the order of their names.
    pub items: Vec<Arc<Object>>,
    /// The state that they are from.
    pub revision: Revision,
    /// The token of the next page.
    pub resume: Option<String>,
    /// How many objects follow, where that is known without looking at them.
    pub remaining: Option<u64>,
}

/// Why there is no page.
#[derive(Clone, Debug)]
pub struct ListError {
    /// What to tell the client.
    pub error: ApiError,
    /// A token that goes on from the same object, but in the present state.
    pub resume: Option<String>,
}

impl From<ApiError> for ListError {
    fn from(error: ApiError) -> ListError {
        ListError { error, resume: None }
    }
}

/// Reads one page; `namespace` is `None` for all namespaces.
pub fn list(state: &State, kind: &Kind, namespace: Option<&str>, options: &ListOptions) -> Result<Page, ListError> {
    let resource = kind.resource();
    let current = state.revision();
    let revision = revision_of(options, current)?;
    let after = options.resume.as_ref().map(|resume| (resume.namespace.as_str(), resume.name.as_str()));
    let is_past = revision < current;
    let selection = &options.selection;
    if let (Some(name), Some(namespace), false, None) = (&selection.name, namespace, is_past, after) {
        let found = state.get(&Key::new(resource, namespace, name.as_str())).cloned();
        let items = found.into_iter().filter(|o| selection.matches(&o.key.name, &o.index)).collect();
        return Ok(Page { items, revision, resume: None, remaining: None });
    }
    let total = state.count(&resource, namespace);
    let page = if is_past {
        let past = state.list_at(&resource, namespace, after, revision);
        take(past.map_err(|compacted| too_old(options, compacted))?, options, total)
    } else {
        take(state.list_from(&resource, namespace, after), options, total)
    };
    let resume = page.more.then(|| page.items.last().map(|last| token(&last.key, revision))).flatten();
    // With a selector nobody knows how many of the rest match; in an older state, how many there were.
    let countable = page.more && selection.is_everything && !is_past && after.is_none();
    let remaining = countable.then(|| total.saturating_sub(page.items.len()) as u64);
    Ok(Page { items: page.items, revision, resume, remaining })
}

fn token(key: &Key, revision: Revision) -> String {
    Continue { revision, namespace: key.namespace.to_string(), name: key.name.to_string() }.encode()
}

fn revision_of(options: &ListOptions, current: Revision) -> Result<Revision, ApiError> {
    match (&options.resume, options.at) {
        // A token without a revision goes on in the present state.
        (Some(Continue { revision: Revision(0), .. }), _) => Ok(current),
        (Some(resume), _) if resume.revision > current => {
            Err(ApiError::bad_request("continue key is not valid: it is from the future"))
        }
        (Some(resume), _) => Ok(resume.revision),
        (None, At::NotOlderThan(wanted) | At::Exact(wanted)) if wanted > current => {
            Err(ApiError::too_large_version(wanted.0, current.0))
        }
        (None, At::Exact(wanted)) => Ok(wanted),
        (None, At::Newest | At::Any | At::NotOlderThan(_)) => Ok(current),
    }
}

/// What the client hears of a revision that the history has forgotten; one in the middle of a list may go on in the
/// present state, if it says so.
fn too_old(options: &ListOptions, compacted: Compacted) -> ListError {
    match &options.resume {
        Some(resume) => {
            let resume = Continue { revision: Revision(0), ..resume.clone() };
            ListError { error: ApiError::expired(TOKEN_EXPIRED), resume: Some(resume.encode()) }
        }
        None => ApiError::expired(format!(
            "The resourceVersion for the provided list is too old: {}, the oldest is {}",
            compacted.asked, compacted.oldest
        ))
        .into(),
    }
}

const TOKEN_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
    created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

struct Taken {
    items: Vec<Arc<Object>>,
    more: bool,
}

fn take<'a>(objects: impl Iterator<Item = &'a Arc<Object>>, options: &ListOptions, total: usize) -> Taken {
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut items = Vec::with_capacity(if options.selection.is_everything { total.min(limit) } else { 0 });
    for object in objects.filter(|object| options.selection.matches(&object.key.name, &object.index)) {
        if items.len() == limit {
            return Taken { items, more: true };
        }
        items.push(object.clone());
    }
    Taken { items, more: false }
}
