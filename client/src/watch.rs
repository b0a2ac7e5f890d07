//! List, then watch, for ever.

use crate::conn::{Body, Client, ClientError, refusal};
use bytes::{Buf, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value as Tree;
use std::collections::VecDeque;
use std::time::Duration;

/// The first pause after a failure; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The longest single event: an object of 1.5 MiB with its envelope, and room.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What happened to the collection.
#[derive(Debug)]
pub enum Event {
    /// The whole collection as it is now: everything that is not in it is gone. First of all, and again after the
    /// watcher lost its place.
    Restarted(Vec<Tree>),
    /// An object was created or changed.
    Applied(Tree),
    /// An object was deleted, or no longer matches the selectors.
    Deleted(Tree),
}

/// A list-watch of one collection.
pub struct Watcher {
    client: Client,
    path: String,
    revision: Option<String>,
    stream: Option<Lines>,
    ready: VecDeque<Event>,
    backoff: Duration,
}

impl Watcher {
    pub(crate) fn new(client: Client, path: &str) -> Self {
        Self {
            client,
            path: path.to_owned(),
            revision: None,
            stream: None,
            ready: VecDeque::new(),
            backoff: BACKOFF_MIN,
        }
    }

    /// The next event. Failures are retried with growing pauses, so this returns only with news. Cancel-safe: an
    /// event is either returned or kept.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            if let Err(err) = self.advance().await {
                tracing::warn!(path = %self.path, err = %dhow_types::Chain(&err), "watching failed, trying again");
                self.stream = None;
                if err.is(410) {
                    self.revision = None;
                }
                let pause = self.backoff;
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn advance(&mut self) -> Result<(), ClientError> {
        let Some(revision) = &self.revision else {
            return self.list().await;
        };
        let Some(lines) = &mut self.stream else {
            let watch = format!("watch=true&allowWatchBookmarks=true&resourceVersion={revision}");
            let path = with_query(&self.path, &watch);
            let response = self.client.stream(Method::GET, &path, "application/json", None).await?;
            let status = response.status().as_u16();
            if status != 200 {
                let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                return Err(refusal(status, &body));
            }
            self.stream = Some(Lines { body: response.into_body(), buffer: BytesMut::new() });
            return Ok(());
        };
        match lines.next(self.client.server()).await? {
            None => self.stream = None, // the server ends watches now and then: go on from where we are
            Some(line) => self.take(line)?,
        }
        Ok(())
    }

    async fn list(&mut self) -> Result<(), ClientError> {
        let mut list = self.client.get(&self.path).await?;
        self.revision = list["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let api_version = list["apiVersion"].clone();
        let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
        let mut items = match list["items"].take() {
            Tree::Array(items) => items,
            _ => Vec::new(),
        };
        for item in &mut items {
            // Items of a typed list may leave out what the list says of all of them.
            if let (Some(object), Some(kind)) = (item.as_object_mut(), &kind) {
                object.entry("apiVersion").or_insert_with(|| api_version.clone());
                object.entry("kind").or_insert_with(|| Tree::from(kind.as_str()));
            }
        }
        self.ready.push_back(Event::Restarted(items));
        self.backoff = BACKOFF_MIN;
        Ok(())
    }

    fn take(&mut self, mut line: Tree) -> Result<(), ClientError> {
        let object = line["object"].take();
        let kind = line["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
            return Err(refusal(code, object.to_string().as_bytes()));
        }
        if let Some(revision) = object["metadata"]["resourceVersion"].as_str() {
            self.revision = Some(revision.to_owned());
        }
        self.backoff = BACKOFF_MIN;
        match kind {
            "ADDED" | "MODIFIED" => self.ready.push_back(Event::Applied(object)),
            "DELETED" => self.ready.push_back(Event::Deleted(object)),
            _ => {} // bookmarks only move the revision
        }
        Ok(())
    }
}

fn with_query(path: &str, query: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}{query}")
}

/// The JSON lines of a watch.
struct Lines {
    body: Body,
    buffer: BytesMut,
}

impl Lines {
    async fn next(&mut self, server: &str) -> Result<Option<Tree>, ClientError> {
        let broken = |what: String| ClientError::Body { server: server.to_owned(), what };
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + at);
                self.buffer.advance(1);
                let tree = serde_json::from_slice(&line)
                    .map_err(|source| ClientError::Json { server: server.to_owned(), source })?;
                return Ok(Some(tree));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(broken(format!("a watch event is longer than {LINE_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(err)) => return Err(broken(err.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
