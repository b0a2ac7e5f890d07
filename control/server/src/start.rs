//! How a control node starts: which member its data directory makes it, its sockets, its tasks.

use crate::app::{App, now};
use crate::backups::Backups;
use crate::certs::{Certs, Own, quic_tls};
use crate::compiled::Compiled;
use crate::join::{Former, Joined};
use crate::links::Links;
use crate::member::{self, Cluster, ClusterId, Member, MemberFile};
use crate::nodes::Nodes;
use crate::pki::{Given, Kept};
use crate::rebuild::Rebuild;
use crate::{Config, Join, Server, ServerError, bootstrap, certs, control, images, join, kubeconfig, lead, pki};
use dhow_gate::write::ServiceRanges;
use dhow_gate::write::claims::CLAIMS;
use dhow_pki::token::JoinToken;
use dhow_pki::{Ca, Usage};
use dhow_quic::Endpoint;
use dhow_registry::Registry;
use dhow_state::{Expect, Op, Txn};
use dhow_store::{OpenError, Replica, Start};
use dhow_tasks::{Stop, Tasks};
use dhow_types::Chain;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

/// The number of the member that a cluster begins with.
pub(crate) const FOUNDER: u64 = 1;

/// Where the API listens unless something else is said.
const USUAL_PORT: u16 = 6443;

/// How long a start waits for the others, so that it serves what they know: a leader is elected in a second, and a
/// newcomer gets an image of the state in a few.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(20);

/// How long the certificate is good with which a member that lost its data asks to be taken in again.
const FORMER_VALID_MS: u64 = 3600 * 1000;

/// A member with its store open.
struct Opened {
    replica: Replica,
    links: Links,
    kept: Kept,
    file: MemberFile,
    member: Member,
    /// The cluster begins with this start.
    is_founding: bool,
    /// Where the data of a member is that was lost.
    set_aside: Option<PathBuf>,
}

pub(crate) async fn start(config: Config) -> Result<Server, ServerError> {
    let services = ServiceRanges::parse(&config.service_cidr)
        .ok_or_else(|| ServerError::ServiceCidr(config.service_cidr.clone()))?;
    let (listener, udp, bound) = bind_sockets(config.bind).await?;
    let link_tasks = Tasks::new("links");
    let opened = open(&config, bound, &link_tasks).await?;
    let replica = opened.replica.clone();
    let started = serve(config, opened, (listener, udp, bound), services, &link_tasks).await;
    if started.is_err() {
        // The store and its links hold each other: it ends by being told.
        replica.close().await;
        link_tasks.signal();
    }
    started
}

async fn serve(
    config: Config,
    opened: Opened,
    (listener, udp, bound): (TcpListener, UdpSocket, SocketAddr),
    services: ServiceRanges,
    link_tasks: &Tasks,
) -> Result<Server, ServerError> {
    let valid_ms = u64::try_from(config.certificate_life.as_millis()).unwrap_or(pki::VALID_MS);
    let (tasks, machines) = (Tasks::new("api"), Tasks::new("controllers"));
    let Opened { replica, links, kept: Kept { ca, given }, file, member, is_founding, set_aside } = opened;
    let settings = join::settings(&config);
    let Config { data_dir, cluster_cidr, backups, compile, .. } = config;
    let own = Own {
        key_pem: pki::server_key(&data_dir)?,
        subject: pki::member_subject(member.id),
        names: pki::member_names(member.address, &services),
        valid_ms,
    };
    let controllers = control::config(&cluster_cidr, ca.cert_pem())?;
    let (identity, admin) = match given {
        Some(Given { identity, admin }) => (identity.clone(), admin.unwrap_or(identity)),
        None => (own.issue(&ca)?, ca.issue(&pki::admin_subject(), &[], Usage::Client, now(), valid_ms)?),
    };
    let endpoint =
        Endpoint::on(udp, &quic_tls(&ca, &identity)).map_err(|source| ServerError::Quic { address: bound, source })?;
    links.set_endpoint(endpoint.clone());
    links.set_replica(replica.clone());
    let registry_dir = data_dir.join("registry");
    let registry = Registry::open(&registry_dir).map_err(|source| ServerError::Io { path: registry_dir, source })?;
    let compiled_dir = data_dir.join("compiled");
    let compiled = Compiled::open(compiled_dir.clone(), compile)
        .map_err(|source| ServerError::Io { path: compiled_dir, source })?;
    let (certs, shown) = Certs::new(ca, own, identity, endpoint.clone())?;
    let tls = dhow_pki::api_server_config(&shown, certs.ca.cert_pem(), &["h2", "http/1.1"])?;
    let app = Arc::new(App {
        role: replica.role(),
        replica,
        registry,
        certs,
        token_key: Default::default(),
        nodes: Nodes::default(),
        services,
        settings,
        links: links.clone(),
        members: watch::Sender::new(file.members.clone()),
        member_turn: tokio::sync::Mutex::new(()),
        backups: Backups::new(data_dir.join("backups"), backups),
        compiled,
        usage: Default::default(),
        file: Mutex::new((data_dir, file)),
        member,
        stop: tasks.stop_token(),
        machines_stop: machines.stop_token(),
        streams: link_tasks.clone(),
    });
    let accepting = app.nodes.clone().accept(endpoint.clone(), links, link_tasks.clone(), link_tasks.stop_token());
    link_tasks.spawn("node connections", accepting);
    settle(&app, is_founding).await?;
    let kubeconfig = kubeconfig::start(&app, &machines, &admin, bound);
    run_machines(&app, &machines, controllers, endpoint.strangers());
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tasks.spawn("accept", crate::serve::accept(listener, acceptor, app.clone(), tasks.clone(), tasks.stop_token()));
    info!(address = %bound, member = app.member.id, name = app.member.name, "serving the API");
    Ok(Server { app, bound, admin, kubeconfig, set_aside, endpoint, tasks, machines, links: link_tasks.clone() })
}

/// Says once that members or agents of another cluster call here, and what to do about it.
async fn tell_strangers(mut strangers: watch::Receiver<u64>, stop: Stop) {
    if let Some(Ok(_)) = stop.or(strangers.wait_for(|count| *count > 0)).await {
        warn!(
            "a member or agent of another cluster calls here: if this machine is to join that cluster, remove the data \
             directory and start with `--join`; if this cluster has taken the place of that one, its agents must join anew"
        );
    }
}

fn run_machines(
    app: &Arc<App>,
    machines: &Tasks,
    controllers: dhow_controllers::Config,
    strangers: watch::Receiver<u64>,
) {
    machines.spawn("members", lead::follow_members(app.clone()));
    machines.spawn("strangers", tell_strangers(strangers, app.machines_stop.clone()));
    machines.spawn("removal", lead::tell_removal(app.clone()));
    machines.spawn("certificate", certs::keep_fresh(app.clone()));
    if app.member.witness {
        return;
    }
    machines.spawn("lead", lead::run(app.clone()));
    machines.spawn("controllers", control::run(app.clone(), controllers));
    machines.spawn("expiry sweep", lead::sweep(app.clone()));
    machines.spawn("images", images::follow(app.clone()));
    machines.spawn("backups", crate::backups::run(app.clone()));
}

/// Before anything is served: the first objects of a cluster of one, or, among several, what the others know.
async fn settle(app: &Arc<App>, is_founding: bool) -> Result<(), ServerError> {
    if app.is_leader() {
        bootstrap::ensure(app).await?;
        bootstrap::publish(app, &[(app.member.clone(), true)]).await?;
        if is_founding {
            images::adopt(app).await;
        }
        return Ok(());
    }
    if app.member.witness {
        return Ok(());
    }
    let caught_up = tokio::time::timeout(WAIT_FOR_OTHERS, async {
        while app.replica.barrier().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let in_time = tokio::select! {
        () = lead::until_removed(app) => return Err(app.removed()),
        caught_up = caught_up => caught_up.is_ok(),
    };
    if !in_time {
        warn!("the other control nodes are not reached yet; requests wait until more than half of all are up");
    }
    Ok(())
}

/// Finds out which member this is, by its data directory or by joining, and opens its store.
async fn open(config: &Config, bound: SocketAddr, tasks: &Tasks) -> Result<Opened, ServerError> {
    let dir = &config.data_dir;
    let address = reachable(bound);
    if let Some(name) = &config.name {
        member::check_name(name).map_err(|why| place(dir, format!("gets no member: {why}")))?;
    }
    let kept = open_kept(config, address, tasks).await;
    match (kept, &config.join) {
        (Ok(Some(opened)), _) => Ok(opened),
        (Err(ServerError::Lost { why, rebuild, .. }), Some(to)) => {
            let Some(name) = &rebuild.name else {
                let why = format!(
                    "was a control node's, and nothing is left that says which ({why}): add `--name NAME` and a token of \
                     `dhow member add NAME`; `dhow member list` shows which name is not reached"
                );
                return Err(place(dir, why));
            };
            warn!(why, "the data of this control node is lost: it joins anew");
            join_anew(config, to, (address, name, rebuild.witness), former(dir), tasks).await
        }
        (Err(error), _) => Err(error),
        (Ok(None), Some(_)) if has_store(dir) => Err(place(
            dir,
            "holds a cluster of its own: to join another one name a new directory, or start without `--join`"
                .to_owned(),
        )),
        (Ok(None), Some(to)) => {
            let name = config.name.clone().unwrap_or_else(|| own_name(address));
            join_anew(config, to, (address, &name, config.witness), None, tasks).await
        }
        (Ok(None), None) => found(config, address, tasks).await,
    }
}

/// Becomes a member, of a number that no member had before.
async fn join_anew(
    config: &Config,
    to: &Join,
    (address, name, witness): (SocketAddr, &str, bool),
    former: Option<Former>,
    tasks: &Tasks,
) -> Result<Opened, ServerError> {
    let dir = &config.data_dir;
    let witness = witness || config.witness;
    let who = join::Newcomer { name, address, witness, settings: join::settings(config), former };
    let Joined { file, kept, set_aside } = join::join(to, who, dir).await?;
    let opened = open_member(dir, file, kept, address, tasks).await?;
    Ok(Opened { set_aside, ..opened })
}

/// What the data directory holds: `None` if it is no member's yet.
async fn open_kept(config: &Config, address: SocketAddr, tasks: &Tasks) -> Result<Option<Opened>, ServerError> {
    let file = match MemberFile::load(&config.data_dir) {
        Ok(None) => return Ok(None),
        Ok(Some(file)) => file,
        Err(error @ ServerError::Member { .. }) => {
            let rebuild = Rebuild::unknown(config.name.clone(), config.witness);
            return Err(lost(&config.data_dir, error.to_string(), rebuild));
        }
        Err(error) => return Err(error),
    };
    open_again(config, file, config.join.as_ref(), address, tasks).await.map(Some)
}

fn lost(dir: &Path, why: String, rebuild: Rebuild) -> ServerError {
    let rebuild = Rebuild { has_certificate: former(dir).is_some(), ..rebuild };
    ServerError::Lost { dir: dir.to_owned(), why, rebuild }
}

/// What a member that lost its data can still show of itself.
fn former(dir: &Path) -> Option<Former> {
    let file = MemberFile::load(dir).ok()??;
    let Kept { ca, given } = pki::load(dir, file.witness).ok()??;
    let made = || {
        let (subject, key_pem) = (pki::member_subject(file.id), pki::server_key(dir).ok()?);
        ca.issue_for(&key_pem, &subject, &[], Usage::Client, now(), FORMER_VALID_MS).ok()
    };
    let identity = given.map_or_else(made, |given| Some(given.identity))?;
    Some(Former { ca_pem: ca.cert_pem().to_owned(), identity })
}

fn place(dir: &Path, why: String) -> ServerError {
    ServerError::Place { dir: dir.to_owned(), why }
}

/// The address that others are told: the machine's own, if this node listens on all.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = if bound.ip().is_unspecified() { pki::host_ip().unwrap_or(bound.ip()) } else { bound.ip() };
    SocketAddr::new(ip, bound.port())
}

/// The machine's name; with the port, if it is not the usual one: several control nodes may run on one machine.
fn own_name(address: SocketAddr) -> String {
    let host = pki::host_name().unwrap_or_default().to_lowercase();
    let host = if member::check_name(&host).is_ok() { host } else { "control".to_owned() };
    if address.port() == USUAL_PORT { host } else { format!("{host}-{}", address.port()) }
}

fn has_store(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("store")).is_ok_and(|mut entries| entries.next().is_some())
}

/// A data directory that belongs to a member.
async fn open_again(
    config: &Config,
    file: MemberFile,
    join: Option<&Join>,
    address: SocketAddr,
    tasks: &Tasks,
) -> Result<Opened, ServerError> {
    let dir = &config.data_dir;
    if let Some(wanted) = config.name.as_ref().filter(|wanted| **wanted != file.name) {
        let why = format!("belongs to the control node `{}`, not to `{wanted}`: name another directory", file.name);
        return Err(place(dir, why));
    }
    if config.witness && !file.witness {
        let why = "belongs to a control node that holds objects: to make it a witness remove it at another one with \
            `dhow member remove`, and join anew with an empty directory";
        return Err(place(dir, why.to_owned()));
    }
    let gone = |why| lost(dir, why, Rebuild::new(&file.name, file.witness, file.id, &file.members));
    let kept = match pki::load(dir, file.witness) {
        Ok(Some(kept)) => kept,
        Ok(None) => return Err(gone("its `pki` is gone".to_owned())),
        Err(ServerError::Pki(error)) => return Err(gone(format!("its `pki` cannot be read: {}", Chain(&error)))),
        Err(error) => return Err(error),
    };
    if !file.fresh && !has_store(dir) {
        // It would vote again on what it had forgotten.
        return Err(gone("its `store` is gone".to_owned()));
    }
    if let Some(Join { token, .. }) = join {
        let ca_pem = kept.ca.cert_pem();
        let other = token.trim().parse::<JoinToken>().is_ok_and(|token| !token.accepts(ca_pem).unwrap_or(true));
        if other {
            let why = "belongs to another cluster than the token: name another directory, or start without `--join`";
            return Err(place(dir, why.to_owned()));
        }
    }
    match open_member(dir, file.clone(), kept, address, tasks).await {
        Err(ServerError::Store(error @ OpenError::Damaged { .. })) => Err(gone(error.to_string())),
        opened => opened.inspect(|_| {
            if join.is_some() {
                info!("this control node has joined before; it is not done again");
            }
        }),
    }
}

async fn open_member(
    dir: &Path,
    mut file: MemberFile,
    kept: Kept,
    address: SocketAddr,
    tasks: &Tasks,
) -> Result<Opened, ServerError> {
    let cluster = file.cluster(dir)?;
    let member = member_at(file.id, &file.name, address, file.witness);
    let links = Links::new(file.id, cluster, &file.members, tasks);
    let start = if file.id == FOUNDER { Start::New } else { Start::Join };
    let replica = open_store(dir, &member, start, &links).await?;
    if std::mem::take(&mut file.fresh) {
        file.save(dir)?;
    }
    Ok(Opened { replica, links, kept, file, member, is_founding: false, set_aside: None })
}

fn member_at(id: u64, name: &str, address: SocketAddr, witness: bool) -> Member {
    Member { id, name: name.to_owned(), address, witness, version: env!("CARGO_PKG_VERSION").to_owned() }
}

async fn open_store(dir: &Path, member: &Member, start: Start, links: &Links) -> Result<Replica, ServerError> {
    let mut store = dhow_store::Config::new(dir.join("store"));
    store.member = member.id;
    store.start = start;
    store.witness = member.witness;
    let peers = Arc::new(links.clone());
    let opening = tokio::task::spawn_blocking(move || Replica::open(store, peers)).await;
    Ok(opening.map_err(|error| ServerError::Refused(format!("opening the store: {error}")))??)
}

/// A new cluster, or one whose store is from a backup or from a version that knew no members: this member is all of it.
async fn found(config: &Config, address: SocketAddr, tasks: &Tasks) -> Result<Opened, ServerError> {
    let dir = &config.data_dir;
    if config.witness {
        return Err(place(dir, "gets no member: a witness joins a cluster, it does not begin one".to_owned()));
    }
    let name = config.name.clone().unwrap_or_else(|| own_name(address));
    let member = member_at(FOUNDER, &name, address, false);
    let id = ClusterId::random()?;
    let links = Links::new(FOUNDER, id, &[], tasks);
    let replica = open_store(dir, &member, Start::New, &links).await?;
    let recorded = Cluster::of(&replica.state()).map(|(cluster, _)| cluster);
    let ca = match (&recorded, pki::load_ca(dir)?) {
        (Some(recorded), _) => Ca::load(&recorded.ca_cert, &recorded.ca_key)?,
        (None, Some(kept)) => kept,
        (None, None) => Ca::create("dhow-ca", now())?,
    };
    pki::keep_ca(dir, &ca)?;
    let cluster = Cluster {
        id: id.to_string(),
        ca_cert: ca.cert_pem().to_owned(),
        ca_key: ca.key_pem().unwrap_or_default().to_owned(),
        next_member: recorded.map_or(FOUNDER + 1, |recorded| recorded.next_member),
    };
    let ops = founding(&replica, &cluster, &member);
    let written = replica.write(Txn { ops }).await;
    written.map_err(|error| {
        ServerError::Refused(format!("the store does not take the cluster's first record: {error}"))
    })?;
    let mut file = MemberFile::new(id, &member, vec![member.clone()]);
    file.fresh = false;
    file.save(dir)?;
    let kept = Kept { ca, given: None };
    Ok(Opened { replica, links, kept, file, member, is_founding: true, set_aside: None })
}

/// Whoever was a member in the backup is none of this cluster.
fn founding(replica: &Replica, cluster: &Cluster, me: &Member) -> Vec<Op> {
    let state = replica.state();
    let mut ops = vec![cluster.put(Expect::Any), me.put(Expect::Any)];
    let claims = me.claim();
    let others = state.list(member::MEMBERS, None).filter(|object| object.key != me.key());
    let old = state.list(CLAIMS, None).filter(|claim| claim.key.name.starts_with("member-"));
    let (kept, gone): (Vec<_>, Vec<_>) =
        others.chain(old).partition(|object| claims.iter().any(|claim| *claim.key() == object.key));
    ops.extend(gone.iter().map(|object| Op::Delete { key: object.key.clone(), expect: Expect::Present, last: None }));
    ops.extend(claims.into_iter().filter(|claim| !kept.iter().any(|object| object.key == *claim.key())));
    ops
}

/// How often a free port is looked for when the system may choose one: TCP's choice may be taken for UDP.
const BIND_ATTEMPTS: usize = 16;

/// Binds TCP and UDP to the same address.
async fn bind_sockets(bind: SocketAddr) -> Result<(TcpListener, UdpSocket, SocketAddr), ServerError> {
    let failed = |source| ServerError::Bind { address: bind, source };
    let mut attempt = 1;
    loop {
        let listener = TcpListener::bind(bind).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        match UdpSocket::bind(address) {
            Ok(udp) => return Ok((listener, udp, address)),
            Err(_) if bind.port() == 0 && attempt < BIND_ATTEMPTS => attempt += 1,
            Err(source) => return Err(failed(source)),
        }
    }
}
