//! Taking a newcomer in, by the leader: whether it may, under which number, and in whose place.
//!
//! A control node that lost its data comes back as a newcomer of the same name, never as the member that it was: that one
//! would vote on what it has forgotten. Both steps are one joint change of the members, so that no majority of the old or
//! the new ones decides without knowing of the other: the former member goes, the newcomer is a learner, and votes once it
//! has caught up.
//!
//! | who asks with | may have |
//! |---|---|
//! | a token for any control node | a new name, or that of one which never voted and is not reached: its join was cut short |
//! | a token for one name (`dhow member add NAME`) | also that name itself, if nobody reaches its member any more |
//! | the former member's own certificate | its own name |
//!
//! A token that is good for many is kept in scripts, so it gives nobody's place away. A token for one name is good until
//! the member of that name votes.

use crate::answer::{self, Answer, Style};
use crate::app::App;
use crate::member::{self, Cluster, Member};
use crate::members::{check_removal, client_of, conflict, forget, turn, unavailable};
use crate::{auth, pki};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_api::status::ApiError;
use dhow_api::{Tree, meta};
use dhow_gate::User;
use dhow_gate::user::BOOTSTRAPPERS;
use dhow_gate::write::claims;
use dhow_pki::Usage;
use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::{MemberChange, Status, WriteError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// More members make every write slower and nothing safer: seven survive the loss of three.
const MEMBERS_MAX: usize = 9;

/// How long a member that was heard of a moment ago is given to fall silent, before whoever wants its place is told that it
/// runs: a process that was killed counts as heard of for an election's time.
const FALL_SILENT: Duration = Duration::from_secs(3);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// How long a member that nobody has heard of may take to answer on its API's port. A leader of a moment ago has not
/// heard of everybody yet.
const ASK: Duration = Duration::from_secs(2);

/// The keys of a token's Secret: the name that it is good for, whether only a witness may have it, and the number of the
/// member that was taken in by it.
pub(crate) const BOUND_NAME: &str = "dhow-member-name";
pub(crate) const BOUND_WITNESS: &str = "dhow-member-witness";
const BOUND_MEMBER: &str = "dhow-member-id";

/// What must be the same on all control nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    /// The range of service addresses.
    pub(crate) service_cidr: String,
    /// The range of pod addresses.
    pub(crate) cluster_cidr: String,
    /// The version of the program.
    pub(crate) version: String,
}

/// What a newcomer has shown where it asked. Only that member can know; the leader believes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Permit {
    /// A token, by its public part.
    Token(String),
    /// The certificate of a member.
    Member(u64),
    /// An administrator's.
    Administrator,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    name: String,
    csr: String,
    address: String,
    #[serde(default)]
    witness: bool,
    #[serde(flatten)]
    settings: Settings,
    permit: Permit,
}

/// What a newcomer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// A name that is new, or of one that never voted.
    Join,
    /// Also the name of a voter.
    Replace,
    /// The name of the member that it was.
    Return(u64),
}

/// Notes in a newcomer's request what it has shown here, unless another full member has done so already. Gives the
/// request as the leader takes it, and whether it was made here.
pub(crate) fn attest(app: &App, user: &User, body: &Bytes) -> Result<(Bytes, bool), ApiError> {
    let mut request: Tree = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    let is_full = |id| member::all(&app.replica.state()).iter().any(|member| member.id == id && !member.witness);
    if user.member().is_some_and(is_full) && !request["permit"].is_null() {
        return Ok((body.clone(), false));
    }
    let token = user.name.strip_prefix("system:bootstrap:").filter(|_| user.is_in(BOOTSTRAPPERS));
    let permit = match (token, user.member()) {
        (Some(id), _) => Permit::Token(id.to_owned()),
        (None, Some(id)) => Permit::Member(id),
        (None, None) => Permit::Administrator,
    };
    request["permit"] = json!(permit);
    Ok((request.to_string().into(), true))
}

/// POST `join`: takes a newcomer in as a learner. All that it needs to be a member is in the answer.
pub(crate) async fn join(app: &Arc<App>, body: &Bytes) -> Result<Answer, ApiError> {
    let request: Request = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the request to join cannot be understood: {error}")))?;
    let (name, witness) = (request.name.as_str(), request.witness);
    member::check_name(name).map_err(ApiError::bad_request)?;
    let address = read_address(&request.address)?;
    check_settings(&app.settings, &request.settings).map_err(conflict)?;
    let _turn = turn(app).await;
    let status = app.replica.status().await.map_err(unavailable)?;
    let (may, token) = rights(app, &request, &status)?;
    let members = member::all(&app.replica.state());
    let former = place(&members, &status, may, &Wanted { name, address: Some(address), witness })?.cloned();
    if let Some(former) = &former {
        check_silent(app, former, Some(address)).await?;
        check_removal(former, app.member.id, &app.replica.status().await.map_err(unavailable)?)?;
    }
    let version = request.settings.version.clone();
    let take_in = |id| Member { id, name: name.to_owned(), address, witness, version };
    let member = record(app, take_in, former.as_ref(), token).await?;
    let names = pki::member_names(address, &app.services);
    let certificate = app.certs.sign_member(member.id, &names, &request.csr).map_err(|error| {
        ApiError::bad_request(format!("the signing request cannot be read: {}", dhow_types::Chain(&error)))
    });
    let certificate = match certificate {
        Ok(certificate) => certificate,
        Err(error) => return Err(give_up(app, &member, former.as_ref(), error).await),
    };
    let leaves = former.as_ref().map(|former| MemberChange::Remove(former.id));
    let changes = leaves.into_iter().chain([MemberChange::AddLearner(member.id)]).collect();
    match app.replica.change_members(changes).await {
        Ok(_) => {}
        // It may have happened, or happen yet: whoever leads then tidies up.
        Err(WriteError::Lost) => return Err(unavailable(WriteError::Lost)),
        Err(error) => {
            let error = unavailable(dhow_types::Chain(&error));
            return Err(give_up(app, &member, former.as_ref(), error).await);
        }
    }
    if let Some(former) = &former {
        info!(former = former.id, member = member.id, name, "a control node comes back as a new member");
        forget(app, former).await;
    }
    info!(member = member.id, name, %address, "a control node joins");
    welcome(app, &member, &certificate)
}

/// What a member must have.
fn welcome(app: &App, member: &Member, certificate: &str) -> Result<Answer, ApiError> {
    let state = app.replica.state();
    let (cluster, _) = Cluster::of(&state).ok_or_else(|| ApiError::internal("the cluster's own record is missing"))?;
    let members = member::all(&state);
    drop(state);
    let mut answer = json!({
        "id": member.id,
        "cluster": cluster.id,
        "certificate": certificate,
        "ca": app.certs.ca.cert_pem(),
        "members": members,
    });
    if member.witness {
        // It can make no certificate by itself, its administrator's neither.
        let admin = app.certs.issue(&pki::admin_subject(), &[], Usage::Client);
        let admin = admin.map_err(|error| ApiError::internal(dhow_types::Chain(&error).to_string()))?;
        answer["admin"] = json!({"certificate": admin.cert_pem, "key": admin.key_pem});
    } else {
        answer["caKey"] = json!(app.certs.ca.key_pem());
    }
    Ok(answer::tree(200, &answer, Style::PLAIN))
}

fn read_address(text: &str) -> Result<SocketAddr, ApiError> {
    let address: SocketAddr =
        text.parse().map_err(|_| ApiError::bad_request(format!("`{text}` is no address of the form ip:port")))?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(ApiError::bad_request(format!(
            "`{address}` cannot be reached by others: bind to an address of the machine"
        )));
    }
    Ok(address)
}

/// Why a newcomer with these settings would harm the cluster, if so.
fn check_settings(ours: &Settings, theirs: &Settings) -> Result<(), String> {
    for (what, ours, theirs) in
        [("service", &ours.service_cidr, &theirs.service_cidr), ("pod", &ours.cluster_cidr, &theirs.cluster_cidr)]
    {
        if ours != theirs {
            return Err(format!(
                "the cluster's range of {what} addresses is `{ours}`, and the newcomer's `{theirs}`: start it with the \
                 cluster's"
            ));
        }
    }
    let parts = |version: &str| -> Option<(u64, u64)> {
        let mut numbers = version.split('.').map(|part| part.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    let (Some(cluster), Some(newcomer)) = (parts(&ours.version), parts(&theirs.version)) else {
        return Err(format!("the newcomer's version `{}` cannot be understood", theirs.version));
    };
    // A newer one reads all that an older one writes; that is how a cluster is upgraded, one member after the other.
    if newcomer < cluster || newcomer.0 != cluster.0 {
        return Err(format!(
            "the cluster runs version {}, and the newcomer {}: start it with the cluster's version",
            ours.version, theirs.version
        ));
    }
    Ok(())
}

/// A token's Secret.
struct Token {
    key: Key,
    tree: Tree,
    expect: Expect,
    expires: Option<dhow_types::Time>,
}

/// What the newcomer may have, and the token that will be bound to it.
fn rights(app: &App, request: &Request, status: &Status) -> Result<(May, Option<Token>), ApiError> {
    let id = match &request.permit {
        Permit::Member(id) => return Ok((May::Return(*id), None)),
        Permit::Administrator => return Ok((May::Join, None)),
        Permit::Token(id) => id,
    };
    let key = Key::new("secrets", "kube-system", auth::token_secret_name(id));
    let object = app.replica.state().get(&key).cloned().ok_or_else(ApiError::unauthorized)?;
    let tree = object.tree();
    let value = |key: &str| auth::secret_value(&tree, key);
    let Some(bound) = value(BOUND_NAME) else { return Ok((May::Join, None)) };
    let another = format!("make another token with `dhow member add {}`", request.name);
    if bound != request.name {
        return Err(ApiError::bad_request(format!(
            "the token was made for the control node `{bound}`, not for `{}`: start it with `--name {bound}` or {another}",
            request.name
        )));
    }
    if value(BOUND_WITNESS).is_some() && !request.witness {
        return Err(ApiError::bad_request(format!(
            "the token was made for a witness: start it with `--witness` or {another}"
        )));
    }
    let used_by = value(BOUND_MEMBER).and_then(|id| id.parse::<u64>().ok());
    if used_by.is_some_and(|id| status.members.votes(id)) {
        return Err(ApiError::bad_request(format!(
            "the token was used by a control node that votes by now: {another}"
        )));
    }
    let (expect, expires) = (Expect::At(object.revision), object.expires);
    Ok((May::Replace, Some(Token { key, tree, expect, expires })))
}

/// Whom a newcomer wants to be. One that is not there yet has no address.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) witness: bool,
}

/// Whose place a newcomer would take, if it may, whether or not that one runs.
fn place<'a>(
    members: &'a [Member],
    status: &Status,
    may: May,
    wanted: &Wanted<'_>,
) -> Result<Option<&'a Member>, ApiError> {
    let Wanted { name, address, witness } = *wanted;
    let next = "choose another with `--name` and `--bind`, or remove the old one first with `dhow member remove";
    let former = members.iter().find(|member| match may {
        May::Return(id) => member.id == id,
        May::Join | May::Replace => member.name == name,
    });
    match (may, former) {
        (May::Return(id), None) => {
            return Err(ApiError::bad_request(format!(
                "member {id} was removed: join anew with a token of `dhow member add {name}`"
            )));
        }
        (May::Return(id), Some(former)) if former.name != name || former.witness != witness => {
            let what = if former.witness { "the witness" } else { "the control node" };
            return Err(conflict(format!("the certificate is of {what} `{}`, member {id}", former.name)));
        }
        (May::Join, Some(former)) if status.members.votes(former.id) => {
            return Err(conflict(format!(
                "a control node `{name}` exists: {next} {name}`; to have its place, if it is lost, join with a token of \
                 `dhow member add {name}`"
            )));
        }
        _ => {}
    }
    let mut others = members.iter().filter(|member| former.is_none_or(|former| former.id != member.id));
    if let Some(taken) = others.clone().find(|member| Some(member.address) == address) {
        let address = taken.address;
        return Err(conflict(format!(
            "the control node `{}` listens at {address}: {next} {}`",
            taken.name, taken.name
        )));
    }
    if let Some(taken) = others.find(|member| member.name == name) {
        return Err(conflict(format!(
            "a control node `{name}` exists twice: remove one with `dhow member remove {}`",
            taken.id
        )));
    }
    if former.is_none() && members.len() >= MEMBERS_MAX {
        return Err(conflict(format!(
            "the cluster has {MEMBERS_MAX} control nodes, and more would only slow it down: remove one with `dhow member remove`"
        )));
    }
    Ok(former)
}

/// Whose place a token for this name will be good for. Refused if that member runs.
pub(crate) async fn check_name(app: &App, wanted: &Wanted<'_>) -> Result<Option<Member>, ApiError> {
    let status = app.replica.status().await.map_err(unavailable)?;
    let members = member::all(&app.replica.state());
    let former = place(&members, &status, May::Replace, wanted)?.cloned();
    if let Some(former) = &former {
        check_silent(app, former, None).await?;
    }
    Ok(former)
}

/// Refuses to take the place of a member that is reached. Whoever listens at its address now has taken that over already.
async fn check_silent(app: &App, former: &Member, taken_over: Option<SocketAddr>) -> Result<(), ApiError> {
    let runs = || {
        conflict(format!(
            "the control node `{}` runs at {}: stop it first, or choose another name with `--name`",
            former.name, former.address
        ))
    };
    let end = Instant::now() + FALL_SILENT;
    loop {
        let status = app.replica.status().await.map_err(unavailable)?;
        let is_heard = status.progress.iter().any(|one| one.member == former.id && one.active);
        if !is_heard {
            break;
        }
        if Instant::now() >= end {
            return Err(runs());
        }
        tokio::time::sleep(LOOK).await;
    }
    if taken_over != Some(former.address) && answers(app, former).await { Err(runs()) } else { Ok(()) }
}

async fn answers(app: &App, member: &Member) -> bool {
    let Ok(client) = client_of(app, member) else { return false };
    let asked = tokio::time::timeout(ASK, client.get("/dhow/v1/members/self")).await;
    asked.is_ok_and(|answer| answer.is_ok_and(|about| about["id"] == member.id))
}

/// Gives the newcomer its number and writes down who it is. What the former member had claimed is its own from now on; the
/// record of that one stays until the members are changed.
async fn record(
    app: &App,
    take_in: impl FnOnce(u64) -> Member,
    former: Option<&Member>,
    token: Option<Token>,
) -> Result<Member, ApiError> {
    let (member, ops) = {
        let state = app.replica.state();
        let (id, expect) = member::next(&state);
        let member = take_in(id);
        let mut ops = vec![member::put_next(id + 1, expect), member.put(Expect::Absent)];
        for (what, claim) in member.claims().iter().zip(member.claim()) {
            let held = state.get(&claims::claim_key(what));
            let held = held.filter(|claim| former.is_some_and(|former| is_held_by(&claim.tree(), former)));
            ops.push(match (claim, held) {
                (Op::Put { key, value, expires, .. }, Some(held)) => {
                    Op::Put { key, value, expires, expect: Expect::At(held.revision) }
                }
                (claim, _) => claim,
            });
        }
        (member, ops)
    };
    let mut ops = ops;
    if let Some(Token { key, mut tree, expect, expires }) = token {
        tree["data"][BOUND_MEMBER] = STANDARD.encode(member.id.to_string()).into();
        ops.push(Op::Put { key, value: tree.to_string().into(), expect, expires });
    }
    match app.replica.write(Txn { ops }).await {
        Ok(_) => Ok(member),
        Err(error @ WriteError::Rejected(_)) => {
            Err(conflict(format!("another change came in between ({error}): try again")))
        }
        Err(error) => Err(unavailable(error)),
    }
}

/// Whether a claim is this member's.
pub(crate) fn is_held_by(claim: &Tree, member: &Member) -> bool {
    meta::text(claim, "holder") == member.id.to_string()
}

/// Takes back what was written down for a newcomer that was not taken in.
async fn give_up(app: &App, member: &Member, former: Option<&Member>, error: ApiError) -> ApiError {
    forget(app, member).await;
    if let Some(former) = former {
        claim_again(app, former).await;
    }
    error
}

/// A member's name and address are its own, also if somebody else was about to have them.
pub(crate) async fn claim_again(app: &App, member: &Member) {
    let missing: Vec<Op> = {
        let state = app.replica.state();
        member.claim().into_iter().filter(|claim| state.get(claim.key()).is_none()).collect()
    };
    if !missing.is_empty()
        && let Err(error) = app.replica.write(Txn { ops: missing }).await
    {
        warn!(member = member.id, %error, "the name of a control node is not claimed");
    }
}

/// Takes the tokens away that were good for this member alone: it votes now, or is none any more.
pub(crate) async fn spend_tokens(app: &App, id: u64) {
    let spent: Vec<Key> = {
        let state = app.replica.state();
        let secrets = state.list("secrets", Some("kube-system"));
        let tokens = secrets.filter(|secret| secret.key.name.starts_with(&*auth::token_secret_name("")));
        let is_its = |secret: &Tree| auth::secret_value(secret, BOUND_MEMBER).is_some_and(|of| of == id.to_string());
        tokens.filter(|secret| is_its(&secret.tree())).map(|secret| secret.key.clone()).collect()
    };
    for key in spent {
        if let Err(error) = app.replica.write(Txn::one(Op::Delete { key, expect: Expect::Present, last: None })).await {
            warn!(%error, "a join token that was used stays until it expires");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_store::{Members, Position, Role};
    use dhow_types::Revision;

    fn member(id: u64) -> Member {
        let address = format!("192.0.2.{id}:6443").parse().unwrap();
        Member { id, name: format!("m{id}"), address, witness: id == 3, version: String::new() }
    }

    /// Members 1 to 3 vote, 4 is a learner.
    fn status() -> Status {
        let at = Position { index: 9, term: 2 };
        Status {
            member: 1,
            witness: false,
            role: Role::Leader,
            term: 2,
            leader: Some(1),
            members: Members { voters: vec![1, 2, 3], learners: vec![4], ..Members::default() },
            applied: at,
            committed: 9,
            last: at,
            progress: Vec::new(),
            database_bytes: 0,
            log_bytes: 0,
            lazy: 0,
            objects: 0,
            revision: Revision(5),
        }
    }

    #[test]
    fn a_place_is_given_to_whom_it_belongs() {
        let members: Vec<Member> = (1..=4).map(member).collect();
        for (may, name, address, witness, want) in [
            (May::Join, "m5", "192.0.2.5:6443", false, Ok(None)),
            (May::Join, "m4", "192.0.2.5:6443", false, Ok(Some(4))),
            (
                May::Join,
                "m2",
                "192.0.2.5:6443",
                false,
                Err(
                    "a control node `m2` exists: choose another with `--name` and `--bind`, or remove the old one first with `dhow member remove m2`; to have its place",
                ),
            ),
            (
                May::Join,
                "m5",
                "192.0.2.1:6443",
                false,
                Err("the control node `m1` listens at 192.0.2.1:6443: choose another"),
            ),
            (May::Replace, "m5", "192.0.2.5:6443", false, Ok(None)),
            (May::Replace, "m2", "192.0.2.5:6443", false, Ok(Some(2))),
            (May::Replace, "m2", "192.0.2.2:6443", true, Ok(Some(2))),
            (May::Replace, "m2", "192.0.2.1:6443", false, Err("the control node `m1` listens at 192.0.2.1:6443")),
            (May::Return(2), "m2", "192.0.2.2:6443", false, Ok(Some(2))),
            (
                May::Return(2),
                "m1",
                "192.0.2.2:6443",
                false,
                Err("the certificate is of the control node `m2`, member 2"),
            ),
            (
                May::Return(7),
                "m7",
                "192.0.2.7:6443",
                false,
                Err("member 7 was removed: join anew with a token of `dhow member add m7`"),
            ),
            (May::Return(3), "m3", "192.0.2.3:6443", true, Ok(Some(3))),
            // A witness has no way to the CA's key.
            (May::Return(3), "m3", "192.0.2.3:6443", false, Err("the certificate is of the witness `m3`, member 3")),
        ] {
            let wanted = Wanted { name, address: Some(address.parse().unwrap()), witness };
            let found = place(&members, &status(), may, &wanted);
            match (found, want) {
                (Ok(found), Ok(want)) => assert_eq!(found.map(|member| member.id), want, "{may:?} {name}"),
                (Err(error), Err(want)) => {
                    assert!(error.message.starts_with(want), "{may:?} {name}: {}", error.message)
                }
                (found, want) => panic!("{may:?} {name}: {found:?} instead of {want:?}"),
            }
        }
        let nine: Vec<Member> = (1..=9).map(member).collect();
        let wanted = |name| Wanted { name, address: None, witness: false };
        assert!(place(&nine, &status(), May::Replace, &wanted("m10")).is_err());
        assert!(place(&nine, &status(), May::Replace, &wanted("m9")).is_ok(), "they are no more than before");
    }

    #[test]
    fn who_differs_where_all_must_be_the_same_is_told_in_what() {
        let ours = Settings {
            service_cidr: "10.43.0.0/16".to_owned(),
            cluster_cidr: "10.64.0.0/10".to_owned(),
            version: "0.2.1".to_owned(),
        };
        for (service_cidr, cluster_cidr, version, want) in [
            ("10.43.0.0/16", "10.64.0.0/10", "0.2.1", ""),
            ("10.43.0.0/16", "10.64.0.0/10", "0.2.0", ""),
            ("10.43.0.0/16", "10.64.0.0/10", "0.3.0-rc.1", ""),
            (
                "10.44.0.0/16",
                "10.64.0.0/10",
                "0.2.1",
                "the cluster's range of service addresses is `10.43.0.0/16`, and the newcomer's `10.44.0.0/16`",
            ),
            ("10.43.0.0/16", "10.128.0.0/10", "0.2.1", "the cluster's range of pod addresses is `10.64.0.0/10`"),
            ("10.43.0.0/16", "10.64.0.0/10", "0.1.9", "the cluster runs version 0.2.1, and the newcomer 0.1.9"),
            ("10.43.0.0/16", "10.64.0.0/10", "1.2.1", "the cluster runs version 0.2.1, and the newcomer 1.2.1"),
            ("10.43.0.0/16", "10.64.0.0/10", "", "the newcomer's version `` cannot be understood"),
        ] {
            let theirs = Settings {
                service_cidr: service_cidr.to_owned(),
                cluster_cidr: cluster_cidr.to_owned(),
                version: version.to_owned(),
            };
            let found = check_settings(&ours, &theirs).err().unwrap_or_default();
            assert!(found.starts_with(want) && found.is_empty() == want.is_empty(), "{version}: {found}");
        }
    }
}
