//! The paths of a document: what can be done with each kind, with which parameters and bodies.

use serde_json::{Map, json};

use super::Schemas;
use crate::Tree;
use crate::kinds::{Kind, Subresource};
use crate::schema::{META, table};

/// The bodies that a create or an update may have.
const BODIES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The forms of a patch that the server takes.
const PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

/// Adds everything about one kind.
pub(super) fn add(paths: &mut Map<String, Tree>, root: &str, kind: &'static Kind, schemas: &mut Schemas<'_>) {
    let prefix = format!("/{root}");
    let collection = if kind.namespaced {
        format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{prefix}/{}", kind.plural)
    };
    let mut place = Place { kind, schemas, scope: Scope::of(kind), subresource: None };

    paths.insert(collection.clone(), place.path(&["list", "create", "deletecollection"], false));
    if kind.namespaced {
        place.scope = Scope::AllNamespaces;
        paths.insert(format!("{prefix}/{}", kind.plural), place.path(&["list"], false));
        place.scope = Scope::Namespaced;
    }
    let item = format!("{collection}/{{name}}");
    paths.insert(item.clone(), place.path(&["get", "update", "patch", "delete"], true));
    for subresource in kind.subresources {
        place.subresource = Some(*subresource);
        paths.insert(format!("{item}/{}", subresource.name()), place.path(subresource.verbs(), true));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Cluster,
    Namespaced,
    AllNamespaces,
}

impl Scope {
    fn of(kind: &Kind) -> Scope {
        if kind.namespaced { Scope::Namespaced } else { Scope::Cluster }
    }
}

/// One path in the making.
struct Place<'a, 'b> {
    kind: &'static Kind,
    schemas: &'a mut Schemas<'b>,
    scope: Scope,
    subresource: Option<Subresource>,
}

impl Place<'_, '_> {
    fn path(&mut self, verbs: &[&str], named: bool) -> Tree {
        let mut path = Map::new();
        for verb in verbs {
            let allowed = self.subresource.is_some() || self.kind.verbs.contains(verb);
            if let (true, Some(method)) = (allowed, method(verb)) {
                path.insert(method.to_owned(), self.operation(verb));
            }
        }
        let mut parameters = Vec::new();
        if named {
            parameters.push(in_path("name", &format!("name of the {}", self.kind.kind)));
        }
        if self.scope == Scope::Namespaced {
            parameters.push(in_path("namespace", "object name and auth scope, such as for teams and projects"));
        }
        parameters.push(in_query("pretty", "string", "If 'true', the output is pretty printed."));
        path.insert("parameters".to_owned(), parameters.into());
        Tree::Object(path)
    }

    fn operation(&mut self, verb: &str) -> Tree {
        let (group, version, kind) = match self.subresource {
            Some(subresource) => subresource.response(self.kind),
            None => (self.kind.group, self.kind.version, self.kind.kind),
        };
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let schema = table().by_kind(&api_version, kind).map(|found| found.name);
        let is_connect = matches!(self.subresource, Some(Subresource::Exec | Subresource::Attach))
            || matches!(self.subresource, Some(Subresource::PortForward | Subresource::Proxy));
        let is_text = is_connect || self.subresource == Some(Subresource::Log);
        let action = if is_connect { "connect" } else { action(verb) };

        let answer = match (verb, schema) {
            _ if is_text => None,
            ("list", Some(schema)) => Some(format!("{schema}List")),
            ("delete" | "deletecollection", _) => Some(format!("{META}.Status")),
            (_, schema) => schema.map(str::to_owned),
        };
        let content = match answer {
            Some(answer) => self.content(BODIES, &answer),
            None => json!({"text/plain": {"schema": {"type": "string"}}}),
        };
        let mut responses = Map::from_iter([("200".to_owned(), json!({"description": "OK", "content": content}))]);
        if matches!(verb, "create") {
            responses.insert("201".to_owned(), json!({"description": "Created", "content": content}));
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));

        let mut operation = Map::new();
        operation.insert("tags".to_owned(), json!([format!("{}_{}", short_group(self.kind.group), self.kind.version)]));
        operation.insert("operationId".to_owned(), self.operation_id(verb, action).into());
        let parameters = parameters(verb, self.subresource);
        if !parameters.is_empty() && !is_connect {
            operation.insert("parameters".to_owned(), parameters.into());
        }
        let body = match (verb, schema) {
            _ if is_text => None,
            ("create" | "update", Some(schema)) => Some(self.content(&["*/*"], schema)),
            ("patch", _) => Some(self.content(PATCHES, &format!("{META}.Patch"))),
            ("delete" | "deletecollection", _) => Some(self.content(&["*/*"], &format!("{META}.DeleteOptions"))),
            _ => None,
        };
        if let Some(content) = body {
            let required = matches!(verb, "create" | "update" | "patch");
            let body =
                if required { json!({"content": content, "required": true}) } else { json!({"content": content}) };
            operation.insert("requestBody".to_owned(), body);
        }
        operation.insert("responses".to_owned(), Tree::Object(responses));
        operation.insert("x-kubernetes-action".to_owned(), action.into());
        operation.insert(
            "x-kubernetes-group-version-kind".to_owned(),
            json!({"group": group, "kind": kind, "version": version}),
        );
        Tree::Object(operation)
    }

    fn content(&mut self, media: &[&str], schema: &str) -> Tree {
        let reference = self.schemas.reference(schema);
        media.iter().map(|media| ((*media).to_owned(), json!({"schema": reference}))).collect::<Map<_, _>>().into()
    }

    /// `listCoreV1NamespacedPod`
    fn operation_id(&self, verb: &str, action: &str) -> String {
        let act = match (verb, action) {
            ("get", "get") => "read".to_owned(),
            ("update", _) => "replace".to_owned(),
            ("deletecollection", _) => "deleteCollection".to_owned(),
            (_, "connect") => format!("connect{}", capital(method(verb).unwrap_or("get"))),
            (verb, _) => verb.to_owned(),
        };
        let scope = if self.scope == Scope::Namespaced { "Namespaced" } else { "" };
        let (kind, version) = (self.kind.kind, capital(self.kind.version));
        let below = self.subresource.map_or_else(String::new, |subresource| capital(subresource.name()));
        let all = if self.scope == Scope::AllNamespaces { "ForAllNamespaces" } else { "" };
        format!("{act}{}{version}{scope}{kind}{below}{all}", capital(&short_group(self.kind.group)))
    }
}

fn method(verb: &str) -> Option<&'static str> {
    match verb {
        "get" | "list" => Some("get"),
        "create" => Some("post"),
        "update" => Some("put"),
        "patch" => Some("patch"),
        "delete" | "deletecollection" => Some("delete"),
        _ => None,
    }
}

fn action(verb: &str) -> &str {
    match verb {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}

fn short_group(group: &str) -> String {
    if group.is_empty() { "core".to_owned() } else { group.split('.').next().unwrap_or(group).to_owned() }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

// ---------------------------------------------------------------------------------------------------------- parameters

fn parameters(verb: &str, subresource: Option<Subresource>) -> Vec<Tree> {
    let names: &[&str] = match (verb, subresource) {
        ("get", Some(Subresource::Log)) => {
            &["container", "follow", "limitBytes", "previous", "sinceSeconds", "sinceTime", "tailLines", "timestamps"]
        }
        ("list", _) => LIST,
        ("create" | "update", _) => &["dryRun", "fieldManager", "fieldValidation"],
        ("patch", _) => &["dryRun", "fieldManager", "fieldValidation", "force"],
        ("delete", _) => &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"],
        ("deletecollection", _) => &[
            "continue",
            "dryRun",
            "fieldSelector",
            "gracePeriodSeconds",
            "labelSelector",
            "limit",
            "orphanDependents",
            "propagationPolicy",
            "resourceVersion",
            "resourceVersionMatch",
        ],
        _ => &[],
    };
    let known = |name: &&str| PARAMETERS.iter().find(|(known, ..)| known == name);
    names.iter().filter_map(known).map(|(name, ty, words)| in_query(name, ty, words)).collect()
}

const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];

const PARAMETERS: &[(&str, &str, &str)] = &[
    ("allowWatchBookmarks", "boolean", "Whether the watch may send bookmarks."),
    ("container", "string", "The container whose log is meant; needed if the pod has several."),
    ("continue", "string", "Where the next chunk of a list begins, from the metadata of the chunk before."),
    ("dryRun", "string", "`All`: do everything but keep the result."),
    ("fieldManager", "string", "The name of the program or person that makes the change."),
    (
        "fieldValidation",
        "string",
        "What to do about unknown and duplicate fields: `Ignore`, `Warn` (the default) or `Strict`.",
    ),
    ("fieldSelector", "string", "Only objects whose fields have these values."),
    ("follow", "boolean", "Whether to go on with what the container will write."),
    ("force", "boolean", "Whether an apply takes over fields that others own."),
    ("gracePeriodSeconds", "integer", "How long the object has to end by itself; 0 deletes it at once."),
    ("labelSelector", "string", "Only objects whose labels fit."),
    ("limit", "integer", "How many objects to answer at most."),
    ("limitBytes", "integer", "How many bytes to answer at most."),
    ("orphanDependents", "boolean", "Superseded by propagationPolicy."),
    ("previous", "boolean", "The log of the container's run before this one."),
    ("propagationPolicy", "string", "What happens to dependents: `Orphan`, `Background` or `Foreground`."),
    ("resourceVersion", "string", "The revision that the answer is to be of, by resourceVersionMatch."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: `Exact` or `NotOlderThan`."),
    ("sendInitialEvents", "boolean", "Whether the watch begins with the objects that are there."),
    ("sinceSeconds", "integer", "Only lines of the last so many seconds."),
    ("sinceTime", "string", "Only lines after this RFC 3339 time."),
    ("tailLines", "integer", "Only so many lines from the end."),
    ("timeoutSeconds", "integer", "When the call ends by itself."),
    ("timestamps", "boolean", "Whether each line begins with its time."),
    ("watch", "boolean", "Whether to stream changes instead of answering a list."),
];

fn in_query(name: &str, ty: &str, words: &str) -> Tree {
    json!({"name": name, "in": "query", "description": words, "schema": {"type": ty, "uniqueItems": true}})
}

fn in_path(name: &str, words: &str) -> Tree {
    json!({
        "name": name, "in": "path", "description": words, "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}
