//! The answer to a request that went wrong: a Kubernetes `Status` with a reason that clients match on.
//!
//! The constructors hold Kubernetes' exact sentences, since people and programs read them.

use serde_json::{Map, json};

use crate::Tree;
use crate::field::{Fault, Faults, quote};

/// The machine-readable reason of a failure (`status.reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No reason is given; the field is left out.
    Unknown,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 409: the name is taken
    AlreadyExists,
    /// 409: the object has changed meanwhile
    Conflict,
    /// 410
    Gone,
    /// 422
    Invalid,
    /// 500: try again
    ServerTimeout,
    /// 504
    Timeout,
    /// 429
    TooManyRequests,
    /// 400
    BadRequest,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 413
    RequestEntityTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 500
    InternalError,
    /// 410: the revision or token is too old
    Expired,
    /// 503
    ServiceUnavailable,
}

impl Reason {
    /// The reason as clients read it; empty for [`Reason::Unknown`].
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Unknown => "",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Invalid => "Invalid",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::Timeout => "Timeout",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::BadRequest => "BadRequest",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::InternalError => "InternalError",
            Reason::Expired => "Expired",
            Reason::ServiceUnavailable => "ServiceUnavailable",
        }
    }
}

/// One cause in a `Status`: mostly one fault of one field. Empty texts are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid` and the like.
    pub reason: String,
    /// The fault in words, without the field.
    pub message: String,
    /// The field: `spec.containers[0].image`.
    pub field: String,
}

/// What a `Status` is about. Empty texts are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The object's name.
    pub name: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource (`pods`) or, for invalid objects, the kind (`Pod`).
    pub kind: String,
    /// The object's UID.
    pub uid: String,
    /// The single faults.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: Option<u32>,
}

impl Details {
    /// Details about an object of a resource like `deployments.apps`.
    pub fn of(resource: &str, name: &str) -> Details {
        let (kind, group) = split_resource(resource);
        Details { name: name.to_owned(), group: group.to_owned(), kind: kind.to_owned(), ..Details::default() }
    }

    fn to_tree(&self) -> Tree {
        let mut tree = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                tree.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            tree.insert("causes".to_owned(), self.causes.iter().map(Cause::to_tree).collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            tree.insert("retryAfterSeconds".to_owned(), seconds.into());
        }
        Tree::Object(tree)
    }
}

impl Cause {
    fn to_tree(&self) -> Tree {
        let mut tree = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                tree.insert(key.to_owned(), text.as_str().into());
            }
        }
        Tree::Object(tree)
    }
}

/// A failed request, ready to be sent as a `Status`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// What clients match on.
    pub reason: Reason,
    /// What people read.
    pub message: String,
    /// What it is about.
    pub details: Option<Box<Details>>,
}

/// Who wanted to do what, for [`ApiError::forbidden`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Access<'a> {
    /// The user's name.
    pub user: &'a str,
    /// `get`, `list`, …
    pub verb: &'a str,
    /// The API group; empty for core.
    pub group: &'a str,
    /// `pods` or `pods/log`.
    pub resource: &'a str,
    /// Empty at cluster scope.
    pub namespace: &'a str,
    /// Empty for collections.
    pub name: &'a str,
}

impl ApiError {
    /// An error of any code.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: None }
    }

    /// The same error with other details.
    pub fn with_details(mut self, details: Details) -> ApiError {
        self.details = Some(Box::new(details));
        self
    }

    /// 404: no object of that name. `resource` is like `deployments.apps`.
    pub fn not_found(resource: &str, name: &str) -> ApiError {
        ApiError::new(404, Reason::NotFound, format!("{resource} {} not found", quote(name)))
            .with_details(Details::of(resource, name))
    }

    /// 404: no such path.
    pub fn no_such_path() -> ApiError {
        ApiError::new(404, Reason::NotFound, "the server could not find the requested resource")
            .with_details(Details::default())
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &str, name: &str) -> ApiError {
        ApiError::new(409, Reason::AlreadyExists, format!("{resource} {} already exists", quote(name)))
            .with_details(Details::of(resource, name))
    }

    /// 409: the object is not as the caller thought. `resource` may also be a kind (`Foo.ex.io`).
    pub fn conflict(resource: &str, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {resource} {}: {why}", quote(name));
        ApiError::new(409, Reason::Conflict, message).with_details(Details::of(resource, name))
    }

    /// 409: a write with an old `resourceVersion`.
    pub fn modified(resource: &str, name: &str) -> ApiError {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::conflict(resource, name, why)
    }

    /// 409: a failed UID precondition. `kind` is like `Foo.ex.io`.
    pub fn uid_mismatch(kind: &str, name: &str, wanted: &str, found: &str) -> ApiError {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({found}). \
             The object might have been deleted and then recreated"
        );
        ApiError::conflict(kind, name, &why)
    }

    /// 409: a failed resourceVersion precondition. `kind` is like `Foo.ex.io`.
    pub fn version_mismatch(kind: &str, name: &str, wanted: &str, found: &str) -> ApiError {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({found}). The object might have been modified"
        );
        ApiError::conflict(kind, name, &why)
    }

    /// 422: an object with faults. `kind` is like `Deployment.apps`; `name` may be empty.
    pub fn invalid(kind: &str, name: &str, faults: &[Fault]) -> ApiError {
        let mut texts: Vec<String> = Vec::new();
        for fault in faults {
            let text = fault.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        let mut details = Details::of(kind, name);
        details.causes = faults.iter().map(cause_of).collect();
        ApiError::new(422, Reason::Invalid, format!("{kind} {} is invalid: {list}", quote(name))).with_details(details)
    }

    /// 422: request parameters with faults: `invalid_options("ListOptions", …)`.
    pub fn invalid_options(kind: &str, faults: &Faults) -> ApiError {
        ApiError::invalid(&format!("{kind}.meta.k8s.io"), "", faults)
    }

    /// 422 without a field, as a JSON patch that cannot be applied gives.
    pub fn rejected() -> ApiError {
        ApiError::new(422, Reason::Invalid, "the server rejected our request due to an error in our request")
            .with_details(Details::default())
    }

    /// 400
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, Reason::BadRequest, message)
    }

    /// 401
    pub fn unauthorized() -> ApiError {
        ApiError::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 403: the user may not do that.
    pub fn forbidden(access: &Access<'_>) -> ApiError {
        let Access { user, verb, group, resource, namespace, name } = *access;
        let plural = resource.split('/').next().unwrap_or(resource);
        let full = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", quote(namespace))
        };
        let why = format!(
            "User {} cannot {verb} resource {} in API group {} {scope}",
            quote(user),
            quote(resource),
            quote(group)
        );
        ApiError::refused(&full, name, &why)
    }

    /// 403: a user without permission for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> ApiError {
        let message = format!("forbidden: User {} cannot {verb} path {}", quote(user), quote(path));
        ApiError::new(403, Reason::Forbidden, message).with_details(Details::default())
    }

    /// 403: the object is refused for another reason than the user's permissions. `name` may be empty.
    pub fn refused(resource: &str, name: &str, why: &str) -> ApiError {
        let message = match name {
            "" => format!("{resource} is forbidden: {why}"),
            name => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        ApiError::new(403, Reason::Forbidden, message).with_details(Details::of(resource, name))
    }

    /// 405: the path does not know this method.
    pub fn method_not_allowed_here() -> ApiError {
        let message = "the server does not allow this method on the requested resource";
        ApiError::new(405, Reason::MethodNotAllowed, message).with_details(Details::default())
    }

    /// 406
    pub fn not_acceptable(accepted: &str) -> ApiError {
        let message = format!("only the following media types are accepted: {accepted}");
        ApiError::new(406, Reason::NotAcceptable, message)
    }

    /// 415
    pub fn unsupported_media_type(accepted: &str) -> ApiError {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        ApiError::new(415, Reason::UnsupportedMediaType, message)
    }

    /// 410: a revision or a continue token that is too old.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, Reason::Expired, message)
    }

    /// 410: a watch from a revision that is no longer kept.
    pub fn too_old(wanted: u64, oldest: u64) -> ApiError {
        ApiError::expired(format!("too old resource version: {wanted} ({oldest})"))
    }

    /// 504: a read at a revision that has not come yet.
    pub fn too_large_version(wanted: u64, current: u64) -> ApiError {
        let cause = Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        ApiError::timeout(&format!("Too large resource version: {wanted}, current: {current}"), 1)
            .with_details(Details { causes: vec![cause], retry_after_seconds: Some(1), ..Details::default() })
    }

    /// 410
    pub fn gone(message: impl Into<String>) -> ApiError {
        ApiError::new(410, Reason::Gone, message)
    }

    /// 413
    pub fn too_large(bytes_max: usize) -> ApiError {
        let message = format!("Request entity too large: limit is {bytes_max}");
        ApiError::new(413, Reason::RequestEntityTooLarge, message)
    }

    /// 500
    pub fn internal(message: impl Into<String>) -> ApiError {
        let message = message.into();
        let cause = Cause { message: message.clone(), ..Cause::default() };
        ApiError::new(500, Reason::InternalError, format!("Internal error occurred: {message}"))
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 504
    pub fn timeout(message: &str, retry_after_seconds: u32) -> ApiError {
        ApiError::new(504, Reason::Timeout, format!("Timeout: {message}"))
            .with_details(Details { retry_after_seconds: Some(retry_after_seconds), ..Details::default() })
    }

    /// 503
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(503, Reason::ServiceUnavailable, message)
            .with_details(Details { retry_after_seconds: Some(1), ..Details::default() })
    }

    /// The same for a request that has waited already: without `Retry-After` kubectl shows it instead of waiting on.
    pub fn at_once(mut self) -> ApiError {
        if let Some(details) = &mut self.details {
            details.retry_after_seconds = None;
        }
        self
    }

    /// When the client shall try again (`Retry-After`).
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details.as_ref().and_then(|details| details.retry_after_seconds)
    }

    /// The `Status` object, its fields in upstream's order.
    pub fn to_tree(&self) -> Tree {
        let mut tree = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
        });
        if self.reason != Reason::Unknown {
            tree["reason"] = self.reason.as_str().into();
        }
        if let Some(details) = &self.details {
            tree["details"] = details.to_tree();
        }
        tree["code"] = self.code.into();
        tree
    }
}

fn cause_of(fault: &Fault) -> Cause {
    Cause { reason: fault.kind.reason().to_owned(), message: fault.body(), field: fault.path.clone() }
}

fn split_resource(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

/// The `Status` of a request that worked and has no object to show, such as a deletion.
pub fn success(details: &Details) -> Tree {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_tree()})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of a real 1.36 API server, byte for byte.
    #[test]
    fn statuses_are_those_of_the_real_server() {
        let owner = ["apiVersion", "name"].map(|field| {
            let detail = if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
            Fault::invalid(format!("metadata.ownerReferences.{field}"), "", detail)
        });
        let uid = Fault::invalid("metadata.uid", "q", "field is immutable");
        let cases = [
            (
                ApiError::not_found("foos.ex.io", "b2"),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"foos.ex.io \"b2\" not found","reason":"NotFound","details":{"name":"b2","group":"ex.io","kind":"foos"},"code":404}"#,
            ),
            (
                ApiError::modified("foos.ex.io", "a"),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on foos.ex.io \"a\": the object has been modified; please apply your changes to the latest version and try again","reason":"Conflict","details":{"name":"a","group":"ex.io","kind":"foos"},"code":409}"#,
            ),
            (
                ApiError::rejected(),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"the server rejected our request due to an error in our request","reason":"Invalid","details":{},"code":422}"#,
            ),
            (
                ApiError::too_large_version(99999999, 7),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Timeout: Too large resource version: 99999999, current: 7","reason":"Timeout","details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1},"code":504}"#,
            ),
            (
                ApiError::invalid("Foo.ex.io", "a", &[uid.clone(), uid]),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Foo.ex.io \"a\" is invalid: metadata.uid: Invalid value: \"q\": field is immutable","reason":"Invalid","details":{"name":"a","group":"ex.io","kind":"Foo","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: \"q\": field is immutable","field":"metadata.uid"},{"reason":"FieldValueInvalid","message":"Invalid value: \"q\": field is immutable","field":"metadata.uid"}]},"code":422}"#,
            ),
            (
                ApiError::invalid("Foo.ex.io", "o", &owner),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Foo.ex.io \"o\" is invalid: [metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty, metadata.ownerReferences.name: Invalid value: \"\": must not be empty]","reason":"Invalid","details":{"name":"o","group":"ex.io","kind":"Foo","causes":[{"reason":"FieldValueInvalid","message":"Invalid value: \"\": version must not be empty","field":"metadata.ownerReferences.apiVersion"},{"reason":"FieldValueInvalid","message":"Invalid value: \"\": must not be empty","field":"metadata.ownerReferences.name"}]},"code":422}"#,
            ),
            (
                ApiError::uid_mismatch("Foo.ex.io", "b2", "x", "5e"),
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on Foo.ex.io \"b2\": the UID in the precondition (x) does not match the UID in record (5e). The object might have been deleted and then recreated","reason":"Conflict","details":{"name":"b2","group":"ex.io","kind":"Foo"},"code":409}"#,
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_tree().to_string(), text);
        }
        let details = Details { uid: "5e".to_owned(), ..Details::of("foos.ex.io", "b2") };
        let text = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"b2","group":"ex.io","kind":"foos","uid":"5e"}}"#;
        assert_eq!(success(&details).to_string(), text);
    }

    #[test]
    fn a_forbidden_request_names_user_verb_and_scope() {
        let access = Access {
            user: "jane",
            verb: "list",
            group: "apps",
            resource: "deployments",
            namespace: "default",
            name: "",
        };
        assert_eq!(
            ApiError::forbidden(&access).message,
            r#"deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API group "apps" in the namespace "default""#
        );
        let access = Access { user: "jane", verb: "get", resource: "pods/log", name: "p", ..Access::default() };
        assert_eq!(
            ApiError::forbidden(&access).message,
            r#"pods "p" is forbidden: User "jane" cannot get resource "pods/log" in API group "" at the cluster scope"#
        );
    }
}
