//! The parameters of requests: read from the query (and, for deletions, from the body), checked, and refused in
//! Kubernetes' words.

use crate::request::Query;
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use dhow_api::Tree;
use dhow_api::decode::Validation;
use dhow_api::field::{Fault, Faults};
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::selector::{FieldSelector, LabelSelector};
use dhow_api::status::ApiError;
use dhow_types::Revision;
use serde_json::json;

/// Which objects of a collection are meant.
#[derive(Clone, Debug)]
pub struct Selection {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
    /// Whether either selector excludes anything.
    pub is_everything: bool,
    /// The one name that can match, if the field selector or the path says so.
    pub name: Option<String>,
    /// The one node whose objects can match, if the field selector says so: what every agent asks for.
    pub node: Option<String>,
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`; `name` comes from a watch on one object.
    pub fn parse(kind: &Kind, query: &Query<'_>, name: &str) -> Result<Selection, ApiError> {
        let labels_text = query.get("labelSelector").unwrap_or("").trim();
        let fields_text = query.get("fieldSelector").unwrap_or("").trim();
        let labels = LabelSelector::parse(labels_text)?;
        let fields = FieldSelector::parse(fields_text, kind)?;
        let by_field = single_name(fields_text);
        let node = single(fields_text, "spec.nodeName").map(str::to_owned);
        let name = if name.is_empty() { by_field } else { Some(name) };
        Ok(Selection {
            labels,
            fields,
            is_everything: labels_text.is_empty() && fields_text.is_empty() && name.is_none(),
            name: name.map(str::to_owned),
            node,
        })
    }

    /// Whether an object's indexed keys are selected.
    pub fn matches(&self, name: &str, index: &dhow_api::index::Index) -> bool {
        self.is_everything
            || (self.name.as_deref().is_none_or(|wanted| wanted == name)
                && self.labels.matches(|key| index.label(key))
                && self.fields.matches(|label| index.field(label)))
    }
}

/// The name in `metadata.name=x`, the commonest field selector: it turns a scan into a look-up.
pub(crate) fn single_name(fields: &str) -> Option<&str> {
    single(fields, "metadata.name")
}

/// The value that a field must have.
fn single<'a>(fields: &'a str, label: &str) -> Option<&'a str> {
    fields
        .split(',')
        .filter_map(|term| term.strip_prefix(label)?.strip_prefix('='))
        .map(|value| value.strip_prefix('=').unwrap_or(value))
        .find(|value| !value.is_empty() && !value.contains('\\'))
}

/// How a list's revision relates to the one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest state.
    Newest,
    /// Any state; here that is the newest one.
    Any,
    /// At least as new as this revision.
    NotOlderThan(Revision),
    /// Exactly this revision.
    Exact(Revision),
}

/// The parameters of a list.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// What to list.
    pub selection: Selection,
    /// The revision.
    pub at: At,
    /// How many at most; zero for no limit.
    pub limit: usize,
    /// Where an earlier page stopped.
    pub resume: Option<Continue>,
}

/// The parameters of a watch.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// What to watch.
    pub selection: Selection,
    /// The revision to go on from.
    pub at: At,
    /// Whether bookmarks are welcome.
    pub bookmarks: bool,
    /// `sendInitialEvents`.
    pub initial_events: Option<bool>,
    /// When the server shall end the watch.
    pub timeout_s: Option<u64>,
}

impl WatchOptions {
    /// Whether the state comes first, as ADDED events.
    pub fn starts_with_state(&self) -> bool {
        self.initial_events.unwrap_or(matches!(self.at, At::Newest | At::Any))
    }

    /// Whether a bookmark marks the end of the state.
    pub fn marks_end_of_state(&self) -> bool {
        self.initial_events == Some(true) && self.bookmarks
    }
}

/// The parameters of a list.
pub fn list_options(kind: &Kind, query: &Query<'_>) -> Result<ListOptions, ApiError> {
    let selection = Selection::parse(kind, query, "")?;
    check_list(query, false)?;
    let limit = query.non_empty("limit").map_or(Ok(0), |text| {
        text.parse::<i64>().map(|n| usize::try_from(n).unwrap_or(0)).map_err(|_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", dhow_api::field::quote(text)))
        })
    })?;
    let resume = query.non_empty("continue").map(Continue::decode).transpose()?;
    if resume.is_some() && query.non_empty("resourceVersion").is_some_and(|rv| rv != "0") {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(ListOptions { selection, at: read_at(query)?, limit, resume })
}

/// The parameters of a watch; `name` is the object in the path, if any.
pub fn watch_options(kind: &Kind, query: &Query<'_>, name: &str) -> Result<WatchOptions, ApiError> {
    let selection = Selection::parse(kind, query, name)?;
    check_list(query, true)?;
    Ok(WatchOptions {
        selection,
        at: read_at(query)?,
        bookmarks: query.is_true("allowWatchBookmarks"),
        initial_events: query.non_empty("sendInitialEvents").map(|_| query.is_true("sendInitialEvents")),
        timeout_s: query.non_empty("timeoutSeconds").and_then(|text| text.parse().ok()),
    })
}

fn check_list(query: &Query<'_>, watch: bool) -> Result<(), ApiError> {
    let rv_match = query.non_empty("resourceVersionMatch");
    let has_version = query.non_empty("resourceVersion").is_some();
    let initial_events = query.non_empty("sendInitialEvents").is_some();
    let mut faults = Faults::new();
    if let Some(rv_match) = rv_match {
        if watch && !initial_events {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            faults.push(Fault::forbidden("resourceVersionMatch", why));
        }
        if !watch && !has_version {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            faults.push(Fault::forbidden("resourceVersionMatch", why));
        }
        if !watch && query.non_empty("continue").is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            faults.push(Fault::forbidden("resourceVersionMatch", why));
        }
        if !["Exact", "NotOlderThan"].contains(&rv_match) {
            faults.push(Fault::not_supported("resourceVersionMatch", rv_match, &["Exact", "NotOlderThan", ""]));
        }
        if rv_match == "Exact" && query.get("resourceVersion") == Some("0") {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            faults.push(Fault::forbidden("resourceVersionMatch", why));
        }
    }
    if initial_events && !watch {
        faults.push(Fault::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if initial_events && watch && rv_match != Some("NotOlderThan") {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        faults.push(Fault::forbidden("resourceVersionMatch", why));
    }
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid_options("ListOptions", &faults)) }
}

fn read_at(query: &Query<'_>) -> Result<At, ApiError> {
    let Some(text) = query.non_empty("resourceVersion") else { return Ok(At::Newest) };
    let revision = text.parse::<u64>().map_err(|_| {
        let quoted = dhow_api::field::quote(text);
        ApiError::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: \
             invalid syntax"
        ))
    })?;
    Ok(match (revision, query.get("resourceVersionMatch")) {
        (0, _) => At::Any,
        (revision, Some("Exact")) => At::Exact(Revision(revision)),
        (revision, _) => At::NotOlderThan(Revision(revision)),
    })
}

/// Where a list goes on: the state it began with, and the last object it has shown. To clients it is opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    /// The revision of the first page; all pages show this one state.
    pub revision: Revision,
    /// The namespace of the last object shown.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What our tokens begin with, so that tokens of a later form can be told apart.
const CONTINUE_FORM: &str = "meta.k8s.io/v1";

impl Continue {
    /// As text in a list's metadata.
    pub fn encode(&self) -> String {
        let start = format!("{}/{}", self.namespace, self.name);
        URL_SAFE_NO_PAD.encode(json!({"v": CONTINUE_FORM, "rv": self.revision.0, "start": start}).to_string())
    }

    /// From a query.
    pub fn decode(text: &str) -> Result<Continue, ApiError> {
        let bad = || ApiError::bad_request("continue key is not valid: the token was not made by this server");
        let bytes = URL_SAFE_NO_PAD.decode(text).or_else(|_| URL_SAFE.decode(text)).map_err(|_| bad())?;
        let tree: Tree = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let revision = meta::int(&tree, "rv").and_then(|rv| u64::try_from(rv).ok()).ok_or_else(bad)?;
        let (namespace, name) = meta::text(&tree, "start").split_once('/').ok_or_else(bad)?;
        if meta::text(&tree, "v") != CONTINUE_FORM {
            return Err(bad());
        }
        Ok(Continue { revision: Revision(revision), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The parameters that all writes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// Go all the way, but write nothing.
    pub dry_run: bool,
    /// What to do about unknown and duplicate fields.
    pub validation: Validation,
}

/// The parameters of a write; `kind` is `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`.
pub fn write_options(kind: &str, query: &Query<'_>) -> Result<WriteOptions, ApiError> {
    let mut faults = Faults::new();
    let dry_run: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
    if dry_run.iter().any(|value| *value != "All") {
        faults.push(Fault::not_supported("dryRun", json!(dry_run), &["All"]));
    }
    let validation = match query.get("fieldValidation").unwrap_or("") {
        "" | "Warn" => Validation::Warn,
        "Ignore" => Validation::Ignore,
        "Strict" => Validation::Strict,
        other => {
            faults.push(Fault::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]));
            Validation::Warn
        }
    };
    if kind == "PatchOptions" && query.non_empty("force").is_some() {
        faults.push(Fault::forbidden("force", "may not be specified for non-apply patch"));
    }
    if !faults.is_empty() {
        return Err(ApiError::invalid_options(kind, &faults));
    }
    Ok(WriteOptions { dry_run: !dry_run.is_empty(), validation })
}

/// What a deletion does with dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The garbage collector takes them afterwards.
    Background,
    /// They go first; the object stays until then.
    Foreground,
    /// They lose their owner and stay.
    Orphan,
}

/// The parameters of a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// How long the object may take to end; `None` for its own wish.
    pub grace_s: Option<i64>,
    /// Only this life of the object.
    pub uid: Option<String>,
    /// Only this version of the object.
    pub resource_version: Option<String>,
    /// What happens to dependents; `None` for the kind's usual way.
    pub propagation: Option<Propagation>,
    /// Go all the way, but write nothing.
    pub dry_run: bool,
}

/// The parameters of a deletion: those of the body go before those of the query.
pub fn delete_options(query: &Query<'_>, body: Option<&Tree>) -> Result<DeleteOptions, ApiError> {
    let mut faults = Faults::new();
    let mut options =
        DeleteOptions { dry_run: write_options("DeleteOptions", query)?.dry_run, ..DeleteOptions::default() };
    if let Some(text) = query.non_empty("gracePeriodSeconds") {
        options.grace_s = Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", dhow_api::field::quote(text)))
        })?);
    }
    let mut propagation = query.non_empty("propagationPolicy").map(str::to_owned);
    let mut orphan = query.non_empty("orphanDependents").map(|_| query.is_true("orphanDependents"));
    if let Some(body) = body.filter(|body| !body.is_null()) {
        let kind = meta::kind(body);
        if !body.is_object() || !(kind.is_empty() || kind == "DeleteOptions" || kind == "Status") {
            return Err(ApiError::bad_request(format!("the body of a deletion is a DeleteOptions, not a {kind}")));
        }
        options.grace_s = meta::int(body, "gracePeriodSeconds").or(options.grace_s);
        options.uid = meta::at(body, "preconditions.uid").and_then(Tree::as_str).map(str::to_owned);
        options.resource_version =
            meta::at(body, "preconditions.resourceVersion").and_then(Tree::as_str).map(str::to_owned);
        propagation = meta::at(body, "propagationPolicy").and_then(Tree::as_str).map(str::to_owned).or(propagation);
        orphan = meta::at(body, "orphanDependents").and_then(Tree::as_bool).or(orphan);
        let dry_run = meta::list(body, "dryRun");
        if dry_run.iter().any(|value| value != "All") {
            faults.push(Fault::not_supported("dryRun", Tree::Array(dry_run.to_vec()), &["All"]));
        }
        options.dry_run |= !dry_run.is_empty();
    }
    if orphan.is_some() && propagation.is_some() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        faults.push(Fault::invalid("propagationPolicy", propagation.clone().unwrap_or_default(), why));
    }
    options.propagation = match propagation.as_deref() {
        None => orphan.map(|orphan| if orphan { Propagation::Orphan } else { Propagation::Background }),
        Some("Background") => Some(Propagation::Background),
        Some("Foreground") => Some(Propagation::Foreground),
        Some("Orphan") => Some(Propagation::Orphan),
        Some(other) => {
            let supported = ["Foreground", "Background", "Orphan", "nil"];
            faults.push(Fault::not_supported("propagationPolicy", other, &supported));
            None
        }
    };
    if faults.is_empty() { Ok(options) } else { Err(ApiError::invalid_options("DeleteOptions", &faults)) }
}
