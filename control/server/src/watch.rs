//! Watches: the state if asked for, then every change, for as long as the client stays.

use crate::answer::{self, Answer, BodyError};
use crate::app::{now, seed};
use crate::read::{self, include};
use crate::route::Call;
use bytes::{BufMut, Bytes, BytesMut};
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::status::ApiError;
use dhow_api::table::{self, Include};
use dhow_gate::list::Page;
use dhow_gate::media::{Endpoint, Shape};
use dhow_gate::options::{self, At, ListOptions, Selection};
use dhow_gate::watch::{EventType, Shown, event};
use dhow_state::Object;
use dhow_store::{Filter, From, Watch, WatchItem};
use dhow_tasks::Stop;
use dhow_types::Revision;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a client that takes bookmarks gets one: often enough that it can resume although nothing of its own has
/// happened, as in Kubernetes.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without a time of its own ends after this and up to as much again, so that not all come back at once.
const TIMEOUT_MIN_S: u64 = 1800;
/// The longest time that a client may name, a year: what is more is for ever to it, and no sum with it overflows.
const TIMEOUT_MAX_S: u64 = 365 * 24 * 3600;
/// How many bytes of events are put into one piece of the body.
const PIECE_BYTES: usize = 64 << 10;

/// Starts a watch.
pub(crate) async fn watch(call: &Call<'_>) -> Result<Answer, ApiError> {
    let accepted = call.accepted(Endpoint::Watch)?;
    let options = options::watch_options(call.kind, call.query, &call.target.name)?;
    let namespace = Some(call.target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let show = Show { kind: call.kind, shape: accepted.shape, include: include(call.query), told_columns: false };
    let initial = if options.starts_with_state() {
        read::settle(call.app, options.at).await?;
        Some(initial_state(call, namespace, &options.selection, options.at)?)
    } else {
        None
    };
    let after = match (&initial, options.at) {
        (Some(page), _) => page.revision,
        // This member may not have come as far: then nothing is shown until it is farther.
        (None, At::NotOlderThan(revision) | At::Exact(revision)) => revision,
        (None, At::Newest | At::Any) => call.app.replica.state().revision(),
    };
    let mut filter = Filter::new(call.kind.resource(), namespace);
    filter.node = options.selection.node.as_deref().map(Arc::from);
    let watch = match call.app.replica.watch(filter, From::After(after)) {
        Ok(watch) => watch,
        Err(compacted) => {
            let error = ApiError::too_old(compacted.asked.0, compacted.oldest.0);
            let line = show.line(EventType::Error, &error.to_tree());
            return Ok(answer::answer(200, "application/json", answer::full(line)));
        }
    };
    let timeout_s = match options.timeout_s.filter(|seconds| *seconds > 0) {
        Some(seconds) => seconds.min(TIMEOUT_MAX_S),
        None => TIMEOUT_MIN_S + seed()? % TIMEOUT_MIN_S,
    };
    let stream = Stream {
        watch,
        show,
        initial: initial.as_ref().map(|page| page.items.iter().cloned().collect()).unwrap_or_default(),
        initial_end: (initial.is_some() && options.marks_end_of_state()).then_some(after),
        selection: options.selection,
        after,
        pending: VecDeque::new(),
        end: Instant::now() + Duration::from_secs(timeout_s),
        bookmark: options.bookmarks.then(|| Instant::now() + BOOKMARK_EVERY),
        stop: call.app.stop.clone(),
    };
    let pieces = futures_util::stream::unfold(stream, |mut stream| async move {
        stream.next().await.map(|piece| (Ok::<Bytes, BodyError>(piece), stream))
    });
    Ok(answer::answer(200, "application/json", answer::streamed(pieces)))
}

fn initial_state(call: &Call<'_>, namespace: Option<&str>, selection: &Selection, at: At) -> Result<Page, ApiError> {
    let options = ListOptions { selection: selection.clone(), at, limit: 0, resume: None };
    dhow_gate::list::list(&call.app.replica.state(), call.kind, namespace, &options).map_err(|error| error.error)
}

/// One client's watch. It is the body of its answer: it works when the client reads, and is gone when the client is.
struct Stream {
    watch: Watch,
    show: Show,
    /// Objects of the initial state that have not been shown yet.
    initial: VecDeque<Arc<Object>>,
    /// The bookmark that ends the initial state.
    initial_end: Option<Revision>,
    selection: Selection,
    /// Changes up to here are known to the client.
    after: Revision,
    pending: VecDeque<Arc<dhow_state::Change>>,
    end: Instant,
    bookmark: Option<Instant>,
    stop: Stop,
}

impl Stream {
    /// The next piece of the body; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        let mut piece = BytesMut::new();
        loop {
            self.fill(&mut piece);
            if !piece.is_empty() {
                return Some(piece.freeze());
            }
            let bookmark_at = self.bookmark.unwrap_or(self.end);
            let item = tokio::select! {
                () = self.stop.stopped() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
                () = tokio::time::sleep_until(bookmark_at), if self.bookmark.is_some() => {
                    self.bookmark = Some(Instant::now() + BOOKMARK_EVERY);
                    self.watch.request_progress();
                    continue;
                }
                item = self.watch.next() => item,
            };
            match item {
                Some(WatchItem::Changes(changes)) => self.pending.extend(changes),
                Some(WatchItem::Progress(revision)) => {
                    let line = self.show.bookmark(revision.max(self.after), false);
                    return Some(line);
                }
                // The client was too slow; it resumes from the last revision that it has seen.
                Some(WatchItem::Lagged) | None => return None,
            }
        }
    }

    /// Appends events until the piece is full or none waits.
    fn fill(&mut self, piece: &mut BytesMut) {
        while piece.len() < PIECE_BYTES {
            let Some(object) = self.initial.pop_front() else { break };
            self.show.put(piece, EventType::Added, &Shown::Stored(object));
        }
        if !self.initial.is_empty() {
            return;
        }
        if let Some(revision) = self.initial_end.take() {
            piece.put(self.show.bookmark(revision, true));
        }
        while piece.len() < PIECE_BYTES {
            let Some(change) = self.pending.pop_front() else { break };
            if change.revision <= self.after {
                continue;
            }
            if let Some((ty, shown)) = event(&self.selection, &change) {
                self.show.put(piece, ty, &shown);
            }
        }
    }
}

/// How one client sees objects.
struct Show {
    kind: &'static Kind,
    shape: Shape,
    include: Include,
    told_columns: bool,
}

impl Show {
    /// Appends one event. A stored object's bytes are the ones that all watchers share.
    fn put(&mut self, piece: &mut BytesMut, ty: EventType, shown: &Shown) {
        if let (Shape::Object, Shown::Stored(object)) = (self.shape, shown) {
            put_line(piece, ty, object.json());
            return;
        }
        let tree = self.shaped(shown.tree());
        piece.put(self.line(ty, &tree));
    }

    fn shaped(&mut self, tree: Tree) -> Tree {
        match self.shape {
            Shape::Object | Shape::Discovery(_) => tree,
            Shape::Metadata => table::partial_metadata(&tree),
            Shape::Table => {
                let meta = json!({"resourceVersion": dhow_api::meta::resource_version(&tree)});
                // The columns are told once, with the first event.
                let first = !std::mem::replace(&mut self.told_columns, true);
                table::table(self.kind, &[&tree], &meta, self.include, now(), first)
            }
        }
    }

    fn bookmark(&self, revision: Revision, ends_initial: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": revision.to_string()});
        if ends_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let tree = match self.shape {
            Shape::Object | Shape::Discovery(_) => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta})
            }
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta})
            }
            Shape::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": null, "rows": []})
            }
        };
        self.line(EventType::Bookmark, &tree)
    }

    fn line(&self, ty: EventType, tree: &Tree) -> Bytes {
        let mut line = BytesMut::new();
        put_line(&mut line, ty, tree.to_string().as_bytes());
        line.freeze()
    }
}

fn put_line(piece: &mut BytesMut, ty: EventType, object: &[u8]) {
    piece.reserve(object.len() + 40);
    piece.put_slice(b"{\"type\":\"");
    piece.put_slice(ty.as_str().as_bytes());
    piece.put_slice(b"\",\"object\":");
    piece.put_slice(object);
    piece.put_slice(b"}\n");
}
