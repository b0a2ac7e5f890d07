//! What a request asks for, read from its method, path and query alone: the words that authorisation, routing and
//! error messages share.

use std::borrow::Cow;

/// The verbs of Kubernetes' authorisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make one (POST; also the verb of most sub-resources that act).
    Create,
    /// Replace one (PUT).
    Update,
    /// Change parts of one (PATCH).
    Patch,
    /// Delete one.
    Delete,
    /// Delete all that a selector names.
    DeleteCollection,
    /// A method that the API has no verb for.
    Other,
}

impl Verb {
    /// The verb as authorisation messages and RBAC rules write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Other => "",
        }
    }

    /// Whether nothing changes by it.
    pub fn is_read(self) -> bool {
        matches!(self, Verb::Get | Verb::List | Verb::Watch)
    }
}

/// The object or collection that a request names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRequest {
    /// The API group; empty for the core group.
    pub group: String,
    /// The version in the path.
    pub version: String,
    /// The namespace in the path; empty for cluster scope (or all namespaces).
    pub namespace: String,
    /// The plural resource name.
    pub resource: String,
    /// The object's name; empty for collections.
    pub name: String,
    /// The only name that a list or watch of a collection asks for by `metadata.name=x`; empty if it asks for more.
    pub selected: String,
    /// The sub-resource; empty if none.
    pub subresource: String,
    /// Path segments after the sub-resource (`proxy`).
    pub rest: String,
}

impl ResourceRequest {
    /// `pods`, `deployments.apps`: the form of messages and store keys.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.resource.clone() } else { format!("{}.{}", self.resource, self.group) }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An API object or collection.
    Resource(ResourceRequest),
    /// Any other path: discovery, health, version, the registry.
    Path(String),
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    /// What is to be done.
    pub verb: Verb,
    /// The HTTP method in lower case: the verb of non-resource paths.
    pub method: String,
    /// With what.
    pub target: Target,
}

impl RequestInfo {
    /// Reads a request line. Paths that only look like API paths (too short, unknown prefix) are non-resource paths.
    pub fn parse(method: &str, path: &str, query: &Query<'_>) -> RequestInfo {
        let method_lower = method.to_ascii_lowercase();
        let Some((mut resource, legacy_watch)) = parse_resource(path) else {
            let verb = match method {
                "GET" | "HEAD" => Verb::Get,
                _ => Verb::Other,
            };
            return RequestInfo { verb, method: method_lower, target: Target::Path(path.to_owned()) };
        };
        let collection = resource.name.is_empty();
        let wants_watch = query.is_true("watch");
        let verb = match method {
            "GET" | "HEAD" if legacy_watch || (wants_watch && resource.subresource.is_empty()) => Verb::Watch,
            "GET" | "HEAD" if collection => Verb::List,
            "GET" | "HEAD" => Verb::Get,
            "POST" => Verb::Create,
            "PUT" => Verb::Update,
            "PATCH" => Verb::Patch,
            "DELETE" if collection => Verb::DeleteCollection,
            "DELETE" => Verb::Delete,
            _ => Verb::Other,
        };
        if resource.resource == "namespaces" && resource.group.is_empty() {
            // A namespace is cluster scoped, but its own name is the namespace that a rule about it speaks of.
            resource.namespace = String::new();
        }
        if collection && verb.is_read() {
            let selected = query.get("fieldSelector").and_then(crate::options::single_name);
            resource.selected = selected.unwrap_or_default().to_owned();
        }
        RequestInfo { verb, method: method_lower, target: Target::Resource(resource) }
    }

    /// The resource, if it is a resource request.
    pub fn resource(&self) -> Option<&ResourceRequest> {
        match &self.target {
            Target::Resource(resource) => Some(resource),
            Target::Path(_) => None,
        }
    }
}

/// Sub-resources of a namespace object, told from resources inside of it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

fn parse_resource(path: &str) -> Option<(ResourceRequest, bool)> {
    let mut parts = path.trim_matches('/').split('/').map(percent_decode);
    let mut request = ResourceRequest::default();
    match parts.next()?.as_ref() {
        "api" => request.version = parts.next()?.into_owned(),
        "apis" => {
            request.group = parts.next()?.into_owned();
            request.version = parts.next()?.into_owned();
        }
        _ => return None,
    }
    let mut parts: Vec<String> = parts.map(Cow::into_owned).collect();
    let legacy_watch = parts.first().is_some_and(|p| p == "watch");
    if legacy_watch {
        parts.remove(0);
    }
    if parts.first().is_none_or(String::is_empty) {
        return None;
    }
    let in_namespace = parts[0] == "namespaces"
        && parts.len() > 2
        && !(parts.len() == 3 && NAMESPACE_SUBRESOURCES.contains(&parts[2].as_str()));
    let mut parts = parts.into_iter();
    if in_namespace {
        parts.next();
        request.namespace = parts.next()?;
    }
    request.resource = parts.next()?;
    request.name = parts.next().unwrap_or_default();
    request.subresource = parts.next().unwrap_or_default();
    request.rest = parts.collect::<Vec<_>>().join("/");
    Some((request, legacy_watch))
}

/// The query of a request: decoded pairs in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    /// Splits and decodes `a=b&c=d`.
    pub fn parse(text: &'a str) -> Query<'a> {
        let pairs = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (form_decode(key), form_decode(value))
            })
            .collect();
        Query { pairs }
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_ref())
    }

    /// The first value of a key, unless it is empty.
    pub fn non_empty(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// All values of a key.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.pairs.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_ref())
    }

    /// Whether a key is there with a value that means yes; a bare `?watch` does too.
    pub fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, "false" | "0" | "f" | "F" | "False" | "FALSE"))
    }
}

fn form_decode(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        Cow::Owned(percent_decode(&text.replace('+', " ")).into_owned())
    } else {
        percent_decode(text)
    }
}

/// Decodes `%xx`; a broken escape stays as it is, and bytes that are no UTF-8 become U+FFFD (no name has them).
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(method: &str, target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(method, path, &Query::parse(query));
        match info.target {
            Target::Path(path) => format!("{} path {path}", info.method),
            Target::Resource(r) => format!(
                "{} {} ns={} name={} sub={} rest={} version={}",
                info.verb.as_str(),
                r.group_resource(),
                r.namespace,
                r.name,
                r.subresource,
                r.rest,
                r.version
            ),
        }
    }

    #[test]
    fn paths_and_methods() {
        for (method, target, want) in [
            ("GET", "/api/v1/pods", "list pods ns= name= sub= rest= version=v1"),
            ("GET", "/api/v1/namespaces/a/pods?watch=1", "watch pods ns=a name= sub= rest= version=v1"),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch pods ns=a name= sub= rest= version=v1"),
            ("GET", "/api/v1/namespaces/a/pods/p?watch=true", "watch pods ns=a name=p sub= rest= version=v1"),
            ("GET", "/api/v1/namespaces/a/pods/p?watch=false", "get pods ns=a name=p sub= rest= version=v1"),
            ("GET", "/api/v1/namespaces/a/pods/p/log", "get pods ns=a name=p sub=log rest= version=v1"),
            ("GET", "/api/v1/namespaces", "list namespaces ns= name= sub= rest= version=v1"),
            ("GET", "/api/v1/namespaces/a", "get namespaces ns= name=a sub= rest= version=v1"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update namespaces ns= name=a sub=finalize rest= version=v1"),
            ("POST", "/api/v1/namespaces/a/pods/p/binding", "create pods ns=a name=p sub=binding rest= version=v1"),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection deployments.apps ns=a name= sub= rest= version=v1",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments/d/",
                "delete deployments.apps ns=a name=d sub= rest= version=v1",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch deployments.apps ns=a name=d sub=scale rest= version=v1",
            ),
            (
                "GET",
                "/api/v1/namespaces/a/services/s/proxy/x/y",
                "get services ns=a name=s sub=proxy rest=x/y version=v1",
            ),
            ("GET", "/api/v1/namespaces/a/pods/a%2Fb", "get pods ns=a name=a/b sub= rest= version=v1"),
            ("GET", "/api/v1", "get path /api/v1"),
            ("GET", "/apis/apps/v1", "get path /apis/apps/v1"),
            ("GET", "/apis", "get path /apis"),
            ("POST", "/v2/x/blobs/uploads/", "post path /v2/x/blobs/uploads/"),
            ("GET", "/", "get path /"),
        ] {
            assert_eq!(describe(method, target), want, "{method} {target}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("labelSelector=a%3Db%2Cc+d&watch&x=%zz&x=2&e=");
        assert_eq!(query.get("labelSelector"), Some("a=b,c d"));
        assert!(query.is_true("watch"));
        assert_eq!(query.all("x").collect::<Vec<_>>(), ["%zz", "2"]);
        assert_eq!(query.non_empty("e"), None);
    }
}
