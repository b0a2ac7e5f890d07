//! Events: what the controllers tell people about an object.
//!
//! A flood says no more than its first lines, so equal events raise a count, similar ones are combined, and one source
//! may only say so much about one object. The numbers are those that Kubernetes users know.

use crate::plan::api_type;
use crate::wish::Write;
use dhow_state::{Key, Object};
use dhow_types::{Revision, Time};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Events of one source about one object in a burst; after that one each [`REFILL_MS`].
const BURST: u64 = 25;
/// After this time a source may say one more thing about an object.
const REFILL_MS: u64 = 300_000;
/// Different messages with one reason about one object; the next ones are combined into one event.
const SIMILAR_MAX: usize = 10;
/// Events further apart than this are not the same story.
const SIMILAR_WINDOW_MS: u64 = 600_000;
/// Objects whose events are remembered. A forgotten one begins anew, which costs at most a repeated event.
const REMEMBERED_MAX: usize = 4096;
/// What stands before the message of a combined event.
const COMBINED: &str = "(combined from similar events): ";

/// Something worth telling about an object.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) about: Arc<Object>,
    pub(crate) severity: Severity,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Note {
    pub(crate) fn normal(about: &Arc<Object>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about: Arc::clone(about), severity: Severity::Normal, reason, message: message.into() }
    }

    pub(crate) fn warning(about: &Arc<Object>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about: Arc::clone(about), severity: Severity::Warning, reason, message: message.into() }
    }
}

/// An event that was written.
#[derive(Debug)]
struct Recorded {
    name: String,
    count: u64,
    first: Time,
    last: Time,
}

/// What one source said about one object.
#[derive(Debug, Default)]
struct Story {
    /// Tokens times [`REFILL_MS`].
    tokens: u64,
    refilled: Time,
    /// By reason, then by message.
    told: BTreeMap<&'static str, BTreeMap<String, Recorded>>,
}

/// An event that is to be written. Small, since thousands may wait for their turn; the tree is made when it has come.
#[derive(Debug)]
pub(crate) struct Told {
    source: &'static str,
    about: Key,
    uid: String,
    revision: Revision,
    severity: Severity,
    reason: &'static str,
    message: String,
    name: String,
    count: u64,
    first: Time,
    last: Time,
}

/// Turns notes into events.
#[derive(Debug)]
pub(crate) struct Events {
    /// By the UID of the object and the source.
    stories: BTreeMap<(String, &'static str), Story>,
    made: u64,
}

impl Events {
    /// Begins to count at `seed`, so that the names of two leaders' events of one moment differ.
    pub(crate) fn new(seed: u64) -> Self {
        Self { stories: BTreeMap::new(), made: seed }
    }

    /// The event that a note of `source` makes, unless too much was said already.
    pub(crate) fn record(&mut self, now: Time, source: &'static str, note: &Note) -> Option<Told> {
        self.make_room();
        let key = (note.about.index.uid.clone(), source);
        let story = self.stories.entry(key).or_insert_with(|| Story {
            tokens: BURST * REFILL_MS,
            refilled: now,
            told: BTreeMap::new(),
        });
        story.tokens = (story.tokens + now.ms_since(story.refilled)).min(BURST * REFILL_MS);
        story.refilled = now;
        if story.tokens < REFILL_MS {
            return None;
        }
        story.tokens -= REFILL_MS;
        let told = story.told.entry(note.reason).or_default();
        told.retain(|_, recorded| now.ms_since(recorded.last) < SIMILAR_WINDOW_MS);
        let combine = told.len() >= SIMILAR_MAX && !told.contains_key(&note.message);
        let message = if combine { format!("{COMBINED}{}", note.message) } else { note.message.clone() };
        let entry = if combine { COMBINED.to_owned() } else { note.message.clone() };
        let made = &mut self.made;
        let recorded = told.entry(entry).or_insert_with(|| {
            *made = made.wrapping_add(1);
            // Unique in this process by the counter, and among others by the time and where they began to count.
            let unique = (now.as_ms().unsigned_abs() << 20) | (*made & 0xf_ffff);
            Recorded { name: format!("{}.{unique:016x}", note.about.key.name), count: 0, first: now, last: now }
        });
        recorded.count += 1;
        recorded.last = now;
        Some(Told {
            source,
            about: note.about.key.clone(),
            uid: note.about.index.uid.clone(),
            revision: note.about.revision,
            severity: note.severity,
            reason: note.reason,
            message,
            name: recorded.name.clone(),
            count: recorded.count,
            first: recorded.first,
            last: now,
        })
    }

    /// Lets go of what was said about an object that is gone.
    pub(crate) fn forget(&mut self, uid: &str) {
        let of_it =
            self.stories.range((uid.to_owned(), "")..).map(|(key, _)| key).take_while(|(about, _)| about == uid);
        for key in of_it.cloned().collect::<Vec<_>>() {
            self.stories.remove(&key);
        }
    }

    /// How many objects' events are remembered.
    pub(crate) fn len(&self) -> usize {
        self.stories.len()
    }

    fn make_room(&mut self) {
        if self.stories.len() < REMEMBERED_MAX {
            return;
        }
        let mut ages: Vec<Time> = self.stories.values().map(|story| story.refilled).collect();
        ages.sort_unstable();
        let middle = ages[ages.len() / 2];
        self.stories.retain(|_, story| story.refilled > middle);
    }
}

impl Told {
    /// Who says it.
    pub(crate) fn source(&self) -> &'static str {
        self.source
    }

    /// The write that records it.
    pub(crate) fn into_write(self) -> Write {
        let about = &self.about;
        let (api_version, kind) = api_type(about);
        let namespace = if about.namespace.is_empty() { "default" } else { &*about.namespace };
        let mut involved = json!({
            "kind": kind, "name": &*about.name, "uid": self.uid,
            "apiVersion": api_version, "resourceVersion": self.revision.to_string(),
        });
        if !about.namespace.is_empty() {
            involved["namespace"] = json!(&*about.namespace);
        }
        let tree = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": self.name, "namespace": namespace},
            "involvedObject": involved,
            "reason": self.reason,
            "message": self.message,
            "source": {"component": self.source},
            "firstTimestamp": self.first.to_rfc3339(),
            "lastTimestamp": self.last.to_rfc3339(),
            "count": self.count,
            "type": match self.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
            "eventTime": null,
            "reportingComponent": self.source,
            "reportingInstance": "",
        });
        Write::Event { tree }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use dhow_api::{Tree, meta};
    use std::collections::BTreeSet;

    fn pod(name: &str) -> Arc<Object> {
        let bytes = Bytes::from(format!(r#"{{"metadata":{{"name":"{name}","namespace":"d","uid":"{name}"}}}}"#));
        Arc::new(Object::restore(Key::new("pods", "d", name), Revision(7), bytes).unwrap())
    }

    fn say(events: &mut Events, at_s: i64, message: &str) -> Option<Tree> {
        let note = Note::normal(&pod("web"), "Created", message);
        match events.record(Time::from_secs(at_s), "tester", &note)?.into_write() {
            Write::Event { tree } => Some(tree),
            other => panic!("not an event: {other:?}"),
        }
    }

    #[test]
    fn equal_events_are_counted() {
        let mut events = Events::new(0);
        let first = say(&mut events, 100, "hello").unwrap();
        let second = say(&mut events, 160, "hello").unwrap();
        assert_eq!(meta::name(&first), meta::name(&second));
        assert_eq!((&second["count"], &first["count"]), (&json!(2), &json!(1)));
        assert_eq!(second["firstTimestamp"], first["firstTimestamp"]);
        assert_eq!(second["lastTimestamp"], "1970-01-01T00:02:40Z");
        assert_eq!(second["involvedObject"]["resourceVersion"], "7");
        let later = say(&mut events, 160 + 600, "hello").unwrap();
        assert_ne!(meta::name(&later), meta::name(&first), "ten minutes later it is another story");
    }

    #[test]
    fn a_flood_is_combined_and_then_cut_off() {
        let mut events = Events::new(0);
        let told: Vec<Tree> = (0..1000).filter_map(|n| say(&mut events, 100, &format!("pod {n}"))).collect();
        assert_eq!(told.len(), usize::try_from(BURST).unwrap());
        let names: BTreeSet<&str> = told.iter().map(meta::name).collect();
        assert_eq!(names.len(), SIMILAR_MAX + 1);
        assert_eq!(told.last().unwrap()["message"], "(combined from similar events): pod 24");
        assert!(say(&mut events, 100 + 300, "one more after five minutes").is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut events = Events::new(0);
        for n in 0..3 * REMEMBERED_MAX {
            let note = Note::normal(&pod(&format!("p{n}")), "Created", "hello");
            let at = Time::from_ms(i64::try_from(n).unwrap());
            assert!(events.record(at, "tester", &note).is_some());
        }
        assert!(events.stories.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut events = Events::new(0);
        for (name, source) in [("a", "one"), ("a", "two"), ("ab", "one"), ("b", "one")] {
            events.record(Time::default(), source, &Note::normal(&pod(name), "Created", "hello")).unwrap();
        }
        events.forget("a");
        let left: Vec<&str> = events.stories.keys().map(|(uid, _)| uid.as_str()).collect();
        assert_eq!(left, ["ab", "b"]);
    }
}
