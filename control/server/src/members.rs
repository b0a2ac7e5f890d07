//! The members of the cluster, for people: who they are, how far each is, letting one vote and letting one go. How one is
//! taken in is in `admit`.
//!
//! Everything here is decided by the leader, which alone knows how far the others are and through which all changes go
//! one after the other; another member passes the request on with its own certificate.

use crate::admit::{self, BOUND_NAME, BOUND_WITNESS, Wanted};
use crate::answer::{self, Answer, Style};
use crate::app::{App, LEADER_WAIT, now};
use crate::body::RequestBody;
use crate::member::{self, Member};
use crate::{auth, certs, route, write};
use bytes::Bytes;
use dhow_api::status::{ApiError, Details, Reason};
use dhow_api::{Tree, meta};
use dhow_client::{Client, ClientError};
use dhow_gate::user::CONTROL_BOOTSTRAPPERS;
use dhow_gate::write::claims;
use dhow_gate::{User, authorize};
use dhow_pki::token::JoinToken;
use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::{MemberChange, Status};
use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How long a member may take to tell of itself before it is listed without.
const ASK: Duration = Duration::from_secs(2);

/// How long the leader may take for a request that is passed on to it.
const FORWARD: Duration = Duration::from_secs(30);

/// How long the list waits for a leader before it tells what is known without one.
const LIST_WAIT: Duration = Duration::from_secs(1);

/// A learner counts as caught up when it lacks no more entries than come in while it is promoted.
pub(crate) const LAG_MAX: u64 = 256;

/// A join token is good for a day: long enough to set up machines, short enough to be forgotten.
const TOKEN_VALID_MS: u64 = 24 * 3600 * 1000;

const ROOT: &str = "/dhow/v1/members";

/// Answers what is below `/dhow/v1/members`, and `/dhow/v1/status`.
pub(crate) async fn handle(
    app: &Arc<App>,
    user: &User,
    method: &Method,
    path: &str,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let body = write::read_body(body).await?;
    if method == Method::GET && path == "/dhow/v1/members/self" {
        return Ok(answer::tree(200, &about_self(app).await, Style::PLAIN));
    }
    if method == Method::GET && path == "/dhow/v1/members/records" {
        return Ok(answer::tree(200, &json!({"members": app.known_members()}), Style::PLAIN));
    }
    if app.member.witness && method != Method::GET {
        // It may not ask for it in its own name.
        return Err(route::witness(app));
    }
    let is_join = method == Method::POST && path == authorize::MEMBER_JOIN_PATH;
    let (body, is_direct) = if is_join { admit::attest(app, user, &body)? } else { (body, user.member().is_none()) };
    let patience = if method == Method::GET { LIST_WAIT } else { LEADER_WAIT };
    app.until_led(patience).await;
    if app.is_leader() && app.replica.barrier().await.is_err() {
        // It was deposed and has not heard of it yet, or nobody hears it: whoever leads now tells for all.
        app.until_led(patience).await;
    }
    if app.is_leader() {
        return handle_as_leader(app, method, path, &body).await;
    }
    // Whoever passed it on took this member for the leader: it looks again, or the two would ask each other for ever.
    if !is_direct {
        return Err(ApiError::unavailable("the leader of the control nodes is changing: try again"));
    }
    match forward(app, method, path, &body).await {
        // Without a leader the list is all the more wanted: of what this member knows by itself.
        Err(error) if error.code == 503 && method == Method::GET => {
            let status = app.replica.status().await.map_err(unavailable)?;
            Ok(answer::tree(200, &list(app, &status, path.ends_with("/status")).await, Style::PLAIN))
        }
        other => other,
    }
}

async fn handle_as_leader(app: &Arc<App>, method: &Method, path: &str, body: &Bytes) -> Result<Answer, ApiError> {
    let rest = path.strip_prefix(ROOT).map(|rest| rest.trim_matches('/'));
    match (method, rest) {
        (&Method::GET, None | Some("")) => {
            let status = app.replica.status().await.map_err(unavailable)?;
            Ok(answer::tree(200, &list(app, &status, rest.is_none()).await, Style::PLAIN))
        }
        (&Method::POST, Some("")) => add(app, body).await,
        (&Method::POST, Some("join")) => admit::join(app, body).await,
        (&Method::POST, Some(rest)) if rest.ends_with("/promote") => {
            promote(app, rest.trim_end_matches("/promote")).await
        }
        (&Method::DELETE, Some(name)) if !name.is_empty() && !name.contains('/') => remove(app, name).await,
        _ => Err(ApiError::method_not_allowed_here()),
    }
}

pub(crate) fn unavailable(error: impl std::fmt::Display) -> ApiError {
    ApiError::unavailable(error.to_string())
}

pub(crate) fn conflict(message: String) -> ApiError {
    ApiError::new(409, Reason::Conflict, message).with_details(Details::default())
}

/// The changes of members are carried out one after the other: two that see the same state could each be harmless, and
/// both together not.
pub(crate) async fn turn(app: &App) -> tokio::sync::MutexGuard<'_, ()> {
    app.member_turn.lock().await
}

/// A client of another member, with this member's certificate.
pub(crate) fn client_of(app: &App, member: &Member) -> Result<Client, ClientError> {
    Client::new(dhow_client::Config {
        server: member.url(),
        others: Vec::new(),
        ca_pem: Some(app.certs.ca.cert_pem().to_owned()),
        identity: Some(app.certs.identity()),
        token: None,
        namespace: "default".to_owned(),
    })
}

/// Has the leader answer.
async fn forward(app: &App, method: &Method, path: &str, body: &Bytes) -> Result<Answer, ApiError> {
    let none = || {
        ApiError::unavailable(
            "the control nodes have no leader now: are more than half of them running and reaching each other?",
        )
    };
    let leader = app.role.borrow().leader.ok_or_else(none)?;
    let member = app.known_members().into_iter().find(|member| member.id == leader).ok_or_else(none)?;
    let client = client_of(app, &member).map_err(unavailable)?;
    let body = (!body.is_empty()).then(|| ("application/json", body.clone()));
    let asked = tokio::time::timeout(FORWARD, client.request(method.clone(), path, "application/json", body)).await;
    let answered = asked.map_err(|_| none())?.map_err(|error| {
        ApiError::unavailable(format!("the leader `{}` cannot be asked: {}", member.name, dhow_types::Chain(&error)))
    })?;
    let code = answered.status.as_u16();
    Ok(answer::answer(code, "application/json", answer::full(answered.body)))
}

/// What a member tells of itself, for the leader's list.
async fn about_self(app: &App) -> Tree {
    let mut about = json!({"id": app.member.id, "name": app.member.name, "version": env!("CARGO_PKG_VERSION"), "lastBackup": app.backups.last()});
    if let Ok(status) = app.replica.status().await {
        about["databaseBytes"] = status.database_bytes.into();
        about["logBytes"] = status.log_bytes.into();
        about["applied"] = status.applied.index.into();
    }
    about
}

/// `{leader, term, members}`, or with `whole` what `/dhow/v1/status` tells too.
async fn list(app: &App, status: &Status, whole: bool) -> Tree {
    let members = app.known_members();
    let leader = status.leader;
    let told = if whole { join_all(members.iter().map(|member| ask(app, member))).await } else { Vec::new() };
    let mut last_backup = Tree::Null;
    let mut rows = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let progress = status.progress.iter().find(|progress| progress.member == member.id);
        let is_self = member.id == app.member.id;
        let lag = match (is_self, progress) {
            (true, _) => Some(status.last.index.saturating_sub(status.applied.index)),
            (false, Some(progress)) => Some(status.last.index.saturating_sub(progress.matched)),
            (false, None) => None,
        };
        let reachable = is_self || progress.map_or_else(|| app.links.is_linked(member.id), |progress| progress.active);
        let mut row = json!({
            "id": member.id,
            "name": member.name,
            "address": member.url(),
            "role": role_of(member, status),
            "reachable": reachable,
            "lag": lag,
            "version": member.version,
        });
        if let Some(about) = told.get(at) {
            for field in ["databaseBytes", "logBytes", "lastBackup"] {
                row[field] = about[field].clone();
            }
            let time = |backup: &Tree| meta::text(backup, "time").to_owned();
            if time(&about["lastBackup"]) > time(&last_backup) {
                last_backup = about["lastBackup"].clone();
            }
        }
        rows.push(row);
    }
    if !whole {
        return json!({"leader": leader, "term": status.term, "members": rows});
    }
    let leader = members.iter().find(|member| Some(member.id) == leader);
    json!({
        "leader": leader.map(|leader| json!({"id": leader.id, "name": leader.name, "address": leader.url()})),
        "term": status.term,
        "revision": status.revision.0,
        "objects": status.objects,
        "members": rows,
        "lastBackup": last_backup,
    })
}

async fn ask(app: &App, member: &Member) -> Tree {
    if member.id == app.member.id {
        return about_self(app).await;
    }
    let Ok(client) = client_of(app, member) else { return Tree::Null };
    match tokio::time::timeout(ASK, client.get("/dhow/v1/members/self")).await {
        Ok(Ok(about)) => about,
        _ => Tree::Null,
    }
}

fn role_of(member: &Member, status: &Status) -> &'static str {
    let votes = status.members.voters.contains(&member.id);
    match () {
        () if status.leader == Some(member.id) => "leader",
        () if votes && member.witness => "witness",
        () if votes => "voter",
        () => "learner",
    }
}

/// POST `{name}`: a token with which the machine of that name may join, once, also in the place of a member that is lost.
async fn add(app: &App, body: &Bytes) -> Result<Answer, ApiError> {
    let request = read_json(body)?;
    let (name, witness) = (meta::text(&request, "name"), request["witness"] == true);
    member::check_name(name).map_err(ApiError::bad_request)?;
    let former = admit::check_name(app, &Wanted { name, address: None, witness }).await?;
    let what = if witness { TokenFor::Witness(name) } else { TokenFor::Member(Some(name)) };
    let token = create_token(app, what).await?;
    let replaces = former.map(|former| former.id);
    Ok(answer::tree(201, &json!({"name": name, "token": token.to_string(), "replaces": replaces}), Style::PLAIN))
}

/// What a token lets join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenFor<'a> {
    /// Any number of agents.
    Agents,
    /// A control node; the one of this name alone, and once, if it has one.
    Member(Option<&'a str>),
    /// A witness of this name, once.
    Witness(&'a str),
}

/// Makes a join token and keeps it as Kubernetes keeps bootstrap tokens.
pub(crate) async fn create_token(app: &App, what: TokenFor<'_>) -> Result<JoinToken, ApiError> {
    let ca_hash = app.certs.ca.cert_der_sha256_hex();
    let token = JoinToken::random(&ca_hash).map_err(|error| ApiError::internal(error.to_string()))?;
    let mut data = json!({
        "token-id": token.id,
        "token-secret": token.secret,
        "expiration": (now() + TOKEN_VALID_MS).to_rfc3339(),
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
    });
    if what != TokenFor::Agents {
        data[auth::EXTRA_GROUPS] = CONTROL_BOOTSTRAPPERS.into();
    }
    if let TokenFor::Member(Some(name)) | TokenFor::Witness(name) = what {
        data[BOUND_NAME] = name.into();
    }
    if let TokenFor::Witness(_) = what {
        data[BOUND_WITNESS] = "true".into();
    }
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": auth::token_secret_name(&token.id), "namespace": "kube-system"},
        "type": auth::TOKEN_SECRET_TYPE,
        "stringData": data,
    });
    if let Some(kind) = dhow_api::kinds::by_group_resource("secrets") {
        app.write(kind, false, |ctx| dhow_gate::write::create(ctx, kind, "kube-system", secret.clone())).await?;
    }
    Ok(token)
}

fn read_json(body: &Bytes) -> Result<Tree, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))
}

/// Takes the records away of members that consensus does not know: a leader that takes one in may die in between.
pub(crate) async fn tidy(app: &App) -> Result<(), ApiError> {
    let _turn = turn(app).await;
    let status = app.replica.status().await.map_err(unavailable)?;
    let members = status.members;
    let known = |id: u64| {
        [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next]
            .iter()
            .any(|ids| ids.contains(&id))
    };
    let recorded = member::all(&app.replica.state());
    let (kept, orphans): (Vec<&Member>, Vec<&Member>) = recorded.iter().partition(|member| known(member.id));
    for orphan in orphans {
        warn!(member = orphan.id, name = orphan.name, "the record of a control node that is none is removed");
        forget(app, orphan).await;
    }
    for member in kept {
        // A newcomer that was to have its place may have claimed them.
        admit::claim_again(app, member).await;
    }
    Ok(())
}

/// Takes a member's record away, with what it had claimed.
pub(crate) async fn forget(app: &App, member: &Member) {
    let mut ops = vec![Op::Delete { key: member.key(), expect: Expect::Present, last: None }];
    {
        let state = app.replica.state();
        // Another one may have its name by now, and with it what is kept under that.
        let claimed = member.claims().map(|what| claims::claim_key(&what));
        let is_its = |key: &Key| state.get(key).is_some_and(|claim| admit::is_held_by(&claim.tree(), member));
        let has_heir = member::all(&state).iter().any(|other| other.name == member.name && other.id != member.id);
        let [own, admin] = certs::keys_of_member(member.id, &member.name);
        let shown = [Some(own), Some(admin).filter(|_| !has_heir)].into_iter().flatten();
        let gone = claimed.into_iter().filter(is_its).chain(shown.filter(|key| state.get(key).is_some()));
        ops.extend(gone.map(|key| Op::Delete { key, expect: Expect::Present, last: None }));
    }
    if let Err(error) = app.replica.write(Txn { ops }).await {
        warn!(member = member.id, %error, "the record of a control node could not be removed");
    }
}

fn named(app: &App, name: &str) -> Result<Member, ApiError> {
    let members = member::all(&app.replica.state());
    member::find(&members, name).cloned().ok_or_else(|| {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let message = format!("no control node is called `{name}`; there are {}", names.join(", "));
        ApiError::new(404, Reason::NotFound, message).with_details(Details::default())
    })
}

/// POST `promote`: lets a learner vote that has caught up. It happens by itself; this is for who does not want to wait.
async fn promote(app: &App, name: &str) -> Result<Answer, ApiError> {
    let member = named(app, name)?;
    let _turn = turn(app).await;
    let status = app.replica.status().await.map_err(unavailable)?;
    if status.members.voters.contains(&member.id) {
        return Err(conflict(format!("the control node `{}` votes already", member.name)));
    }
    let progress = status.progress.iter().find(|progress| progress.member == member.id);
    let lag = progress.map(|progress| status.last.index.saturating_sub(progress.matched));
    if lag.is_none_or(|lag| lag > LAG_MAX) {
        let behind = lag.map_or("is not heard of yet".to_owned(), |lag| format!("lacks {lag} entries"));
        return Err(conflict(format!(
            "the control node `{}` {behind}: it can vote when it has caught up",
            member.name
        )));
    }
    app.replica.change_members(vec![MemberChange::Promote(member.id)]).await.map_err(unavailable)?;
    info!(member = member.id, name = member.name, "a control node votes from now on");
    admit::spend_tokens(app, member.id).await;
    Ok(answer::tree(200, &json!({"id": member.id, "name": member.name}), Style::PLAIN))
}

/// DELETE: lets a member go.
async fn remove(app: &App, name: &str) -> Result<Answer, ApiError> {
    let member = named(app, name)?;
    let _turn = turn(app).await;
    let status = app.replica.status().await.map_err(unavailable)?;
    if member.id == app.member.id && status.members.voters.len() > 1 {
        // Who is no member any more cannot take its own record away: another one leads first.
        check_removal(&member, app.member.id, &status)?;
        app.replica.transfer_leadership(None).await.map_err(unavailable)?;
        return forward(app, &Method::DELETE, &format!("{ROOT}/{}", member.id), &Bytes::new()).await;
    }
    check_removal(&member, app.member.id, &status)?;
    let is_in = |ids: &[u64]| ids.contains(&member.id);
    if is_in(&status.members.voters) || is_in(&status.members.learners) {
        app.replica.change_members(vec![MemberChange::Remove(member.id)]).await.map_err(unavailable)?;
    }
    forget(app, &member).await;
    admit::spend_tokens(app, member.id).await;
    info!(member = member.id, name = member.name, "a control node was removed");
    Ok(answer::tree(200, &json!({"id": member.id, "name": member.name}), Style::PLAIN))
}

/// Refuses what would leave the cluster without a majority that is there.
pub(crate) fn check_removal(member: &Member, leader: u64, status: &Status) -> Result<(), ApiError> {
    let voters: BTreeSet<u64> = status.members.voters.iter().copied().collect();
    if !voters.contains(&member.id) {
        return Ok(());
    }
    let rest: Vec<u64> = voters.into_iter().filter(|id| *id != member.id).collect();
    if rest.is_empty() {
        return Err(conflict(format!(
            "`{}` is the only control node that votes: to end the cluster stop it and delete its data directory",
            member.name
        )));
    }
    let is_there = |id: &&u64| **id == leader || status.progress.iter().any(|one| one.member == **id && one.active);
    let there = rest.iter().filter(is_there).count();
    if there * 2 <= rest.len() {
        return Err(conflict(format!(
            "without `{}` only {there} of {} control nodes that vote would be reachable, too few to go on: bring the others \
             back or remove those first",
            member.name,
            rest.len()
        )));
    }
    Ok(())
}
