//! From a request to its handler. Everything that can be refused by looking at the request line and the credential is
//! refused here.

use crate::answer::{self, Answer, Style};
use crate::app::App;
use crate::auth::Shown;
use crate::body::RequestBody;
use crate::{accounts, auth, kubelet, node_proxy, plain, read, sessions, usage, watch, write};
use dhow_api::discovery;
use dhow_api::kinds::{self, Kind, Subresource};
use dhow_api::status::ApiError;
use dhow_gate::media::{self, Accepted, Endpoint};
use dhow_gate::{Query, RequestInfo, ResourceRequest, Target, User, Verb};
use futures_util::FutureExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Version};
use hyper::body::Incoming;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tracing::{Instrument, debug_span, warn};

/// A request on its way to a handler.
pub(crate) struct Call<'a> {
    pub(crate) app: &'a Arc<App>,
    pub(crate) user: &'a User,
    pub(crate) query: &'a Query<'a>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) kind: &'static Kind,
    pub(crate) target: &'a ResourceRequest,
}

impl Call<'_> {
    /// What the client wants to read.
    pub(crate) fn accepted(&self, endpoint: Endpoint) -> Result<Accepted, ApiError> {
        media::negotiate(header(self.headers, ACCEPT), endpoint)
    }

    /// How it wants JSON written.
    pub(crate) fn style(&self, accepted: Accepted) -> Style {
        style(self.query, self.headers, accepted)
    }

    /// The media type of the body.
    pub(crate) fn content_type(&self) -> Option<&str> {
        header(self.headers, CONTENT_TYPE)
    }
}

/// How a client wants JSON written.
pub(crate) fn style(query: &Query<'_>, headers: &HeaderMap, accepted: Accepted) -> Style {
    Style { encoding: accepted.encoding, pretty: query.is_true("pretty"), gzip: answer::accepts_gzip(headers) }
}

/// A header as text; several of one name count as one list.
pub(crate) fn header(headers: &HeaderMap, name: http::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Answers a request; every failure is a `Status`. A panic is our fault and costs one request, not the connection with
/// all its watches.
pub(crate) async fn handle(app: Arc<App>, certificate: Option<Arc<Shown>>, request: Request<Incoming>) -> Answer {
    let span = debug_span!("request", method = %request.method(), path = request.uri().path());
    let (is_head, is_h2) = (request.method() == Method::HEAD, request.version() == Version::HTTP_2);
    let (head, body) = request.into_parts();
    let (body, left) = RequestBody::new(body);
    let request = Request::from_parts(head, body);
    // In a box, for the future is moved a few times before it runs; and the less common ways below in boxes of their
    // own, for otherwise each request would be as large as the largest of them.
    let answer = AssertUnwindSafe(Box::pin(route(&app, certificate.as_deref(), request))).catch_unwind();
    let answer = async {
        let error = match answer.await {
            Ok(Ok(answer)) if is_head => return answer::head_of(answer),
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => error,
            Err(_) => ApiError::internal("the request made the server panic, which is a fault of the server"),
        };
        if error.code >= 500 {
            warn!(code = error.code, message = %error.message, "a request failed");
        }
        answer::error(&error)
    }
    .instrument(span)
    .await;
    if is_h2 { left.drained_by(answer) } else { answer }
}

async fn route(app: &Arc<App>, certificate: Option<&Shown>, request: Request<RequestBody>) -> Result<Answer, ApiError> {
    let (path, query_text) = (request.uri().path().to_owned(), request.uri().query().unwrap_or("").to_owned());
    let query = Query::parse(&query_text);
    let info = RequestInfo::parse(request.method().as_str(), &path, &query);
    if app.member.witness && (!is_for_witness(&info.target) || request.headers().contains_key(AUTHORIZATION)) {
        return Err(witness(app));
    }
    let user = match auth::authenticate(app, certificate, request.headers()) {
        // A token that was made at another member a moment ago may not have come here yet.
        Err(_) if request.headers().contains_key(AUTHORIZATION) && app.barrier().await.is_ok() => {
            auth::authenticate(app, certificate, request.headers())
        }
        other => other,
    }?;
    check_leave(app, &user, &info).await?;
    match &info.target {
        Target::Path(path) => Box::pin(plain::handle(app, &user, path, &query, request)).await,
        Target::Resource(target) if target.group == discovery::METRICS_GROUP => {
            Box::pin(usage::handle(app, info.verb, target, &query, request.headers())).await
        }
        Target::Resource(target) if target.group == discovery::AUTHENTICATION_GROUP => {
            Box::pin(accounts::review(app, &user, &info, target, &query, request)).await
        }
        Target::Resource(target) => {
            let kind = kinds::by_resource(&target.group, &target.version, &target.resource)
                .filter(|kind| kind.namespaced || target.namespace.is_empty())
                .ok_or_else(ApiError::no_such_path)?;
            let mut answer = resource((app, &user), &info, target, kind, &query, request).await?;
            answer::warn(&mut answer, kind.deprecation.map(str::to_owned).as_slice());
            Ok(answer)
        }
    }
}

/// What a witness can answer, which holds no objects, no images, no tokens to tell anybody by, and no key to sign with.
fn is_for_witness(target: &Target) -> bool {
    let Target::Path(path) = target else { return false };
    let health = ["/healthz", "/livez", "/readyz", "/version", "/cacerts", "/metrics"];
    let own = ["/dhow/v1/members", "/dhow/v1/status"];
    health
        .iter()
        .chain(&own)
        .any(|known| path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// A witness holds no objects to show, and gives no leave to write any.
pub(crate) fn witness(app: &App) -> ApiError {
    let others = app.known_members().into_iter().filter(|member| !member.witness);
    let others: Vec<String> = others.map(|member| member.url()).collect();
    ApiError::unavailable(format!("this control node is a witness and holds no objects: ask {}", others.join(" or ")))
}

async fn check_leave(app: &App, user: &User, info: &RequestInfo) -> Result<(), ApiError> {
    let Err(refusal) = dhow_gate::authorize(user, info, &app.view()) else { return Ok(()) };
    // Who has not said who they are is asked for that first.
    if *user == User::anonymous() {
        return Err(ApiError::unauthorized());
    }
    // What a node may depends on its pods, and it may have heard of a pod from a member that is ahead of this one.
    if user.node().is_some() && app.barrier().await.is_ok() {
        return dhow_gate::authorize(user, info, &app.view());
    }
    Err(refusal)
}

async fn resource(
    (app, user): (&Arc<App>, &User),
    info: &RequestInfo,
    target: &ResourceRequest,
    kind: &'static Kind,
    query: &Query<'_>,
    request: Request<RequestBody>,
) -> Result<Answer, ApiError> {
    if !target.subresource.is_empty() {
        return Box::pin(subresource((app, user), info, target, kind, query, request)).await;
    }
    let named = !target.name.is_empty();
    let scoped = !kind.namespaced || !target.namespace.is_empty();
    let (parts, body) = request.into_parts();
    let call = Call { app, user, query, headers: &parts.headers, kind, target };
    match (info.verb, named) {
        (Verb::Watch, _) => Box::pin(watch::watch(&call)).await,
        (Verb::Get, true) if scoped => read::get(&call).await,
        (Verb::List, false) => read::list(&call).await,
        (Verb::Create, false) if scoped => write::create(&call, body).await,
        (Verb::Update, true) if scoped => write::update(&call, body).await,
        (Verb::Patch, true) if scoped => write::patch(&call, body, None).await,
        (Verb::Delete, true) if scoped => write::delete(&call, body).await,
        (Verb::DeleteCollection, false) if scoped && kind.verbs.contains(&"deletecollection") => {
            Box::pin(write::delete_collection(&call, body)).await
        }
        _ => Err(ApiError::method_not_allowed_here()),
    }
}

async fn subresource(
    (app, user): (&Arc<App>, &User),
    info: &RequestInfo,
    target: &ResourceRequest,
    kind: &'static Kind,
    query: &Query<'_>,
    request: Request<RequestBody>,
) -> Result<Answer, ApiError> {
    let sub = kind.subresource(&target.subresource).ok_or_else(ApiError::no_such_path)?;
    match (sub, info.verb) {
        (Subresource::Log, Verb::Get) => {
            let call = Call { app, user, query, headers: &request.headers().clone(), kind, target };
            return kubelet::log(&call).await;
        }
        (Subresource::Proxy, Verb::Get) if kind.plural == "nodes" => {
            let call = Call { app, user, query, headers: &request.headers().clone(), kind, target };
            return node_proxy::get(&call, request.uri().query()).await;
        }
        (Subresource::PortForward, Verb::Get | Verb::Create) => {
            let headers = request.headers().clone();
            let call = Call { app, user, query, headers: &headers, kind, target };
            return kubelet::port_forward(&call, request).await;
        }
        (Subresource::Exec | Subresource::Attach, Verb::Get | Verb::Create) => {
            let headers = request.headers().clone();
            let call = Call { app, user, query, headers: &headers, kind, target };
            let session = if sub == Subresource::Exec { sessions::Kind::Exec } else { sessions::Kind::Attach };
            return sessions::open(&call, session, request).await;
        }
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let call = Call { app, user, query, headers: &parts.headers, kind, target };
    match (sub, info.verb) {
        (Subresource::Status, Verb::Get) => read::get(&call).await,
        (Subresource::Status, Verb::Update) => write::update_status(&call, body).await,
        (Subresource::Scale, Verb::Get) => read::scale(&call).await,
        (Subresource::Scale, Verb::Update) => write::update_scale(&call, body).await,
        (Subresource::EphemeralContainers, Verb::Get) => read::get(&call).await,
        (Subresource::EphemeralContainers, Verb::Update) => write::update_ephemeral(&call, body).await,
        (Subresource::Status | Subresource::Scale | Subresource::EphemeralContainers, Verb::Patch) => {
            write::patch(&call, body, Some(sub)).await
        }
        (Subresource::Binding, Verb::Create) => write::bind(&call, body).await,
        (Subresource::Eviction, Verb::Create) => write::evict(&call, body).await,
        (Subresource::Finalize, Verb::Update) => write::finalize(&call, body).await,
        (Subresource::Token, Verb::Create) => accounts::create_token(&call, body).await,
        (Subresource::Proxy, _) => Err(ApiError::new(
            501,
            dhow_api::status::Reason::Unknown,
            format!("{}/{} is not implemented by this server yet", target.resource, target.subresource),
        )),
        _ => Err(ApiError::method_not_allowed_here()),
    }
}
