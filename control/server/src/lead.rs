//! What the leader alone does for the cluster besides the controllers: it makes what every cluster has, lets learners
//! vote that have caught up, and tells agents and clients where the API is.

use crate::app::{App, now};
use crate::bootstrap;
use crate::member::{self, Member};
use crate::members::LAG_MAX;
use dhow_state::{Expect, Op, Txn};
use dhow_store::{MemberChange, Role, Status, WriteError};
use dhow_types::Chain;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, error, info, warn};

/// How often learners are looked at while there are any.
const LEARNERS_EVERY: Duration = Duration::from_millis(250);

/// How often the others are looked at: who cannot be reached is no endpoint of the API until it can.
const OTHERS_EVERY: Duration = Duration::from_secs(5);

/// How often a member that is alone looks at itself; nothing changes there without an event.
const ALONE_EVERY: Duration = Duration::from_secs(3600);

/// How often things that are over are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// How many of them one transaction removes: beyond that, watchers would get them in bursts that they cannot take.
const SWEEP_MAX: usize = 500;

/// Leads whenever this member does, until told to stop.
pub(crate) async fn run(app: Arc<App>) {
    while app.until_leader().await {
        tokio::select! {
            () = app.until_deposed() => debug!("this control node leads no more"),
            () = lead(&app) => {}
        }
    }
}

async fn lead(app: &Arc<App>) {
    // What a former leader has acknowledged is looked at before anything is decided.
    while let Err(error) = prepare(app).await {
        warn!(%error, "the cluster's first objects could not be made, tried again");
        tokio::time::sleep(LEARNERS_EVERY).await;
    }
    let mut members = app.members.subscribe();
    loop {
        let rest = match look(app).await {
            Ok(rest) => rest,
            Err(error) => {
                debug!(error, "the members could not be looked at, tried again");
                LEARNERS_EVERY
            }
        };
        tokio::select! {
            changed = members.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(rest) => {}
        }
    }
}

async fn prepare(app: &App) -> Result<(), String> {
    app.replica.barrier().await.map_err(|error| Chain(&error).to_string())?;
    bootstrap::ensure(app).await.map_err(|error| error.message)
}

/// Does what there is to do about the members, and tells when to look again.
async fn look(app: &App) -> Result<Duration, String> {
    let status = app.replica.status().await.map_err(|error| Chain(&error).to_string())?;
    let members = app.known_members();
    bootstrap::publish(app, &endpoints(app, &status, &members)).await.map_err(|error| error.message)?;
    for progress in status.progress.iter().filter(|progress| !progress.voter && progress.active) {
        if status.last.index.saturating_sub(progress.matched) > LAG_MAX {
            continue;
        }
        match app.replica.change_members(vec![MemberChange::Promote(progress.member)]).await {
            Ok(_) => {
                info!(member = progress.member, "a control node has caught up and votes from now on");
                crate::admit::spend_tokens(app, progress.member).await;
            }
            Err(error) => debug!(member = progress.member, %error, "a learner does not vote yet"),
        }
    }
    let known = |id: &u64| status.members.voters.contains(id) || status.members.learners.contains(id);
    if !members.iter().all(|member| known(&member.id)) {
        crate::members::tidy(app).await.map_err(|error| error.message)?;
    }
    // As of the status: who has just been let vote is looked at once more, and is an endpoint then.
    let all_vote = members.iter().all(|member| status.members.voters.contains(&member.id));
    Ok(match (all_vote, members.len()) {
        (false, _) => LEARNERS_EVERY,
        (true, 0 | 1) => ALONE_EVERY,
        (true, _) => OTHERS_EVERY,
    })
}

/// The members that serve the API, and whether each can be reached.
fn endpoints(app: &App, status: &Status, members: &[Member]) -> Vec<(Member, bool)> {
    let serving = members.iter().filter(|member| !member.witness && status.members.voters.contains(&member.id));
    let reachable = |id: u64| {
        id == app.member.id || status.progress.iter().any(|progress| progress.member == id && progress.active)
    };
    serving.map(|member| (member.clone(), reachable(member.id))).collect()
}

/// Says it once, and aloud, when this member is none any more.
pub(crate) async fn tell_removal(app: Arc<App>) {
    if app.machines_stop.or(until_removed(&app)).await.is_some() {
        error!(name = app.member.name, "this control node was removed from its cluster: {}", member::AFTER_REMOVAL);
    }
}

/// Waits until this member knows that it is none any more.
pub(crate) async fn until_removed(app: &App) {
    if app.role.clone().wait_for(|now| now.role == Role::Removed).await.is_err() {
        // Its store has ended, so that nothing will be known any more.
        std::future::pending().await
    }
}

/// Removes what is over, on the leader.
pub(crate) async fn sweep(app: Arc<App>) {
    while app.machines_stop.or(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
        while app.is_leader() {
            let reader = app.clone();
            // Many take a while to read: not on a thread that answers requests.
            let Ok(ops) = tokio::task::spawn_blocking(move || expired(&reader)).await else { return };
            let more = ops.len() == SWEEP_MAX;
            if ops.is_empty() {
                break;
            }
            if let Err(error) = app.replica.write(Txn { ops }).await {
                debug!(%error, "what is over stays until the next sweep");
                break;
            }
            if !more {
                break;
            }
        }
    }
}

fn expired(app: &App) -> Vec<Op> {
    let state = app.replica.state();
    let over = state.expired(now()).take(SWEEP_MAX);
    over.map(|object| Op::Delete { key: object.key.clone(), expect: Expect::At(object.revision), last: None }).collect()
}

/// Follows who the members are, on every member: where the others listen, and that this one's own record is true.
pub(crate) async fn follow_members(app: Arc<App>) {
    let stop = app.machines_stop.clone();
    stop.or(async {
        loop {
            if app.member.witness {
                ask_members(&app).await;
            } else {
                watch_members(&app).await;
            }
            tokio::time::sleep(FOLLOW_REST).await;
        }
    })
    .await;
}

/// The rest before members are read anew, when the watch has ended or, on a witness, when they were asked for.
const FOLLOW_REST: Duration = Duration::from_secs(1);

/// How often a witness, which holds no objects, asks another member for the list.
const WITNESS_ASKS_EVERY: Duration = Duration::from_secs(60);

async fn watch_members(app: &App) {
    let filter = dhow_store::Filter::new(member::MEMBERS, None);
    let Ok(mut watch) = app.replica.watch(filter, dhow_store::From::Now) else { return };
    loop {
        take_members(app, member::all(&app.replica.state()));
        // A record of this member that is not true is tried again as long as it takes.
        let wait = match tell_truth(app).await {
            Ok(()) => ALONE_EVERY,
            Err(error) => {
                debug!(%error, "this control node's own record is not up to date, tried again");
                FOLLOW_REST
            }
        };
        tokio::select! {
            item = watch.next() => if !matches!(item, Some(dhow_store::WatchItem::Changes(_) | dhow_store::WatchItem::Progress(_))) { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn ask_members(app: &App) {
    for other in app.known_members().into_iter().filter(|member| member.id != app.member.id) {
        let Ok(client) = crate::members::client_of(app, &other) else { continue };
        let asked = tokio::time::timeout(FOLLOW_REST * 5, client.get("/dhow/v1/members/records")).await;
        let Ok(Ok(answer)) = asked else { continue };
        if let Ok(members) = serde_json::from_value(answer["members"].clone()) {
            take_members(app, members);
            tokio::time::sleep(WITNESS_ASKS_EVERY).await;
            return;
        }
    }
}

fn take_members(app: &App, members: Vec<Member>) {
    // A member that has nothing yet knows more from its file than from its state.
    if members.is_empty() || !members.iter().any(|member| member.id == app.member.id) {
        return;
    }
    app.links.set_members(&members);
    let changed = app.members.send_if_modified(|known| {
        let changed = *known != members;
        known.clone_from(&members);
        changed
    });
    if changed && let Err(error) = app.keep_members(members) {
        warn!(error = %Chain(&error), "the list of control nodes could not be kept");
    }
}

/// Writes this member's record if it says something else than what is so: it may have come back at another address, or
/// as another version.
async fn tell_truth(app: &App) -> Result<(), WriteError> {
    let found = {
        let state = app.replica.state();
        state.get(&app.member.key()).and_then(|object| Some((member::read(object)?, object.revision)))
    };
    let Some((recorded, revision)) = found else { return Ok(()) };
    if recorded == app.member {
        return Ok(());
    }
    let mut ops = vec![app.member.put(Expect::At(revision))];
    let (old, new) = (recorded.claims(), app.member.claims());
    for given_back in old.iter().filter(|what| !new.contains(what)) {
        let key = dhow_gate::write::claims::claim_key(given_back);
        if app.replica.state().get(&key).is_some() {
            ops.push(Op::Delete { key, expect: Expect::Present, last: None });
        }
    }
    let holder = app.member.id.to_string();
    let taken = new.iter().filter(|what| !old.contains(what));
    ops.extend(taken.map(|what| dhow_gate::write::claims::claim(what, &holder)));
    app.replica.write(Txn { ops }).await.map(drop)
}

/// Whether this member leads now.
pub(crate) fn leads(role: &dhow_store::RoleNow) -> bool {
    role.role == Role::Leader
}
