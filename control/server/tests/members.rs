//! Three control nodes in one process, joined over the loopback: what one acknowledges all show, and two go on alone.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use dhow_client::{Client, ClientError, Config as ClientConfig};
use dhow_server::{Config, Join, Server, ServerError};
use http::Method;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Nothing here takes this long, except on a machine that does something else.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &Path, name: &str, bind: SocketAddr) -> Config {
    Config { name: Some(name.to_owned()), ..Config::new(dir, bind) }
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn client_config(server: &Server, identity: dhow_pki::Identity) -> ClientConfig {
    ClientConfig {
        server: server.url(),
        others: Vec::new(),
        ca_pem: Some(server.ca_pem().to_owned()),
        identity: Some(identity),
        token: None,
        namespace: "default".to_owned(),
    }
}

fn admin(server: &Server) -> Client {
    Client::new(client_config(server, server.admin_identity().clone())).unwrap()
}

async fn join(to: &Server, dir: &Path, name: &str, witness: bool) -> Result<Server, ServerError> {
    let token = to.create_member_token(Some(name)).await.unwrap();
    let join = Some(Join { server: to.url(), token });
    Server::start(Config { join, witness, ..config(dir, name, anywhere()) }).await
}

struct Trio {
    servers: Vec<Option<Server>>,
    dirs: Vec<TempDir>,
}

impl Trio {
    async fn start() -> Trio {
        let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let first = Server::start(config(dirs[0].path(), "m1", anywhere())).await.unwrap();
        let second = join(&first, dirs[1].path(), "m2", false).await.unwrap();
        // Any member takes a newcomer in.
        let third = join(&second, dirs[2].path(), "m3", false).await.unwrap();
        let trio = Trio { servers: vec![Some(first), Some(second), Some(third)], dirs };
        trio.until(0, "three members vote", |list| roles(list).iter().filter(|role| *role != "learner").count() == 3)
            .await;
        trio
    }

    fn server(&self, at: usize) -> &Server {
        self.servers[at].as_ref().unwrap()
    }

    /// The list of members as one of them tells it, once it is as wanted.
    async fn until(&self, at: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until_at(at, "/dhow/v1/members", what, wanted).await
    }

    async fn until_at(&self, at: usize, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let client = admin(self.server(at));
        let mut last = Value::Null;
        let waiting = async {
            loop {
                if let Ok(list) = client.get(path).await {
                    if wanted(&list) {
                        return list;
                    }
                    last = list;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(list) => list,
            Err(_) => panic!("{what}: not so after {PATIENCE:?}: {last}"),
        }
    }

    /// The index of the leader.
    async fn leader(&self, ask: usize) -> usize {
        let list = self.until(ask, "there is a leader", |list| list["leader"].is_u64()).await;
        let members = list["members"].as_array().unwrap();
        let leader = members.iter().find(|member| member["id"] == list["leader"]).unwrap();
        leader["name"].as_str().unwrap()[1..].parse::<usize>().unwrap() - 1
    }

    async fn stop(self) {
        futures_util::future::join_all(self.servers.into_iter().flatten().map(Server::stop)).await;
    }
}

fn roles(list: &Value) -> Vec<String> {
    let members = list["members"].as_array().into_iter().flatten();
    members.map(|member| member["role"].as_str().unwrap().to_owned()).collect()
}

/// Asks until there is an answer: while a leader is elected, which a busy machine may do at any time, nobody can know
/// more. What was created by an attempt without an answer is there all the same.
async fn answered<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let asking = async {
        loop {
            match ask().await {
                Err(error) if error.is(503) || error.is(504) => tokio::time::sleep(Duration::from_millis(20)).await,
                answer => return answer,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{what}: no answer within {PATIENCE:?}"))
}

/// Creates a ConfigMap through a member, and returns once that is acknowledged.
async fn acknowledged(server: &Server, name: &str) {
    created(server, CONFIG_MAPS, &config_map(name)).await;
}

/// Creates an object through a member, and returns once that is acknowledged.
async fn created(server: &Server, path: &str, object: &Value) {
    let (client, mut attempts) = (admin(server), 0);
    let created = answered(path, async || {
        attempts += 1;
        client.create(path, object).await
    });
    match created.await {
        // By an attempt of before.
        Err(error) if error.is(409) && attempts > 1 => {}
        created => drop(created.unwrap()),
    }
}

/// Asserts that a member shows what was acknowledged before: at once, whenever it answers at all.
async fn shows(server: &Server, name: &str) {
    let (client, path) = (admin(server), format!("{CONFIG_MAPS}/{name}"));
    answered(name, async || client.get(&path).await).await.unwrap();
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_acknowledges_all_show_and_two_go_on_without_the_third() {
    let mut trio = Trio::start().await;
    for at in 0..3 {
        acknowledged(trio.server(at), &format!("from-{at}")).await;
        for other in 0..3 {
            shows(trio.server(other), &format!("from-{at}")).await;
        }
    }
    // Each member's kubeconfig knows the others to fall back on.
    for (at, other) in [(0, 2), (2, 0)] {
        let mut kubeconfigs = trio.server(at).kubeconfigs();
        let named = format!("- name: dhow-m{}\n  cluster:\n    server: {}\n", other + 1, trio.server(other).url());
        let named = tokio::time::timeout(PATIENCE, kubeconfigs.wait_for(|text| text.contains(&named))).await;
        assert!(named.is_ok(), "{}", trio.server(at).admin_kubeconfig());
    }
    // All serve the API by the cluster's own service.
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    for at in 0..3 {
        let port = u64::from(trio.server(at).local_addr().port());
        let has_port = |slices: &Value| {
            let slices = slices["items"].as_array().unwrap();
            slices
                .iter()
                .any(|slice| slice["ports"][0]["port"] == port && slice["endpoints"][0]["conditions"]["ready"] == true)
        };
        trio.until_at(2, path, "each is an endpoint of the API", has_port).await;
    }
    let leader = trio.leader(1).await;
    let rest = (leader + 1) % 3;
    trio.servers[leader].take().unwrap().stop().await;
    acknowledged(trio.server(rest), "after").await;
    let client = admin(trio.server((leader + 2) % 3));
    let list = answered("the list", async || client.get(CONFIG_MAPS).await).await.unwrap();
    for name in ["after", "from-0", "from-1", "from-2"] {
        assert!(names(&list).contains(&name), "{name} in {:?}", names(&list));
    }
    // It comes back without a token, at another port, and the others learn where it is.
    let name = format!("m{}", leader + 1);
    let again = Server::start(config(trio.dirs[leader].path(), &name, anywhere())).await.unwrap();
    let url = again.url();
    shows(&again, "after").await;
    trio.servers[leader] = Some(again);
    trio.until(rest, "the member is there again", |list| {
        let members = list["members"].as_array().unwrap();
        members.iter().any(|member| member["address"] == url.as_str() && member["reachable"] == true)
    })
    .await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_listed_promoted_and_removed() {
    let mut trio = Trio::start().await;
    for at in 0..3 {
        let list = trio
            .until(at, "all are listed, one as the leader", |list| {
                roles(list).len() == 3 && roles(list).iter().filter(|role| *role == "leader").count() == 1
            })
            .await;
        assert_eq!(list["members"][1]["address"], trio.server(1).url());
    }
    let led = |status: &Value| status["leader"]["address"].is_string();
    let status = trio.until_at(2, "/dhow/v1/status", "there is a leader", led).await;
    assert!(status["members"][2]["databaseBytes"].is_u64(), "{status}");
    assert!(status["term"].as_u64().unwrap() > 0, "{status}");
    let leader = trio.leader(0).await;
    let (client, victim) = (admin(trio.server(leader)), (leader + 1) % 3);
    let refused = client.json(Method::POST, "/dhow/v1/members/m1/promote", None).await.unwrap_err();
    assert!(refused.is(409) && refused.to_string().contains("votes already"), "{refused}");
    let refused = client.json(Method::DELETE, "/dhow/v1/members/m7", None).await.unwrap_err();
    assert!(refused.is(404) && refused.to_string().contains("there are m1, m2, m3"), "{refused}");
    // Asked of the one that goes: the leader does it.
    let path = format!("/dhow/v1/members/m{}", victim + 1);
    admin(trio.server((leader + 2) % 3)).json(Method::DELETE, &path, None).await.unwrap();
    trio.until(leader, "two are left", |list| list["members"].as_array().unwrap().len() == 2).await;
    acknowledged(trio.server(leader), "two-are-enough").await;
    // It learns of it, now and at every later start.
    let why = tokio::time::timeout(PATIENCE, trio.server(victim).removed()).await.unwrap().to_string();
    assert!(why.contains("which was removed from its cluster: remove its data directory"), "{why}");
    trio.servers[victim].take().unwrap().stop().await;
    let again = config(trio.dirs[victim].path(), &format!("m{}", victim + 1), anywhere());
    assert_eq!(Server::start(again).await.err().unwrap().to_string(), why);
    // The leader goes as well as any other.
    let next = (leader + 2) % 3;
    let path = format!("/dhow/v1/members/m{}", leader + 1);
    client.json(Method::DELETE, &path, None).await.unwrap();
    trio.until(next, "one is left and leads", |list| roles(list) == ["leader"]).await;
    let (client, leader) = (admin(trio.server(next)), next);
    acknowledged(trio.server(next), "one-is-enough").await;
    let path = format!("/dhow/v1/members/m{}", leader + 1);
    let refused = client.json(Method::DELETE, &path, None).await.unwrap_err();
    assert!(refused.is(409) && refused.to_string().contains("is the only control node that votes"), "{refused}");
    let listed = client.get("/dhow/v1/certificates").await.unwrap();
    let admins: Vec<&Value> = listed["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["name"] == "kubernetes-admin")
        .map(|one| &one["holder"])
        .collect();
    assert_eq!(admins, [&json!(format!("m{}", leader + 1))], "those of members that went are not listed");
    // Its name is free again.
    let dir = tempfile::tempdir().unwrap();
    let name = format!("m{}", victim + 1);
    let again = join(trio.server(leader), dir.path(), &name, false).await.unwrap();
    admin(&again).get(&format!("{CONFIG_MAPS}/two-are-enough")).await.unwrap();
    again.stop().await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_join_is_told_why_and_changes_nothing() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(config(dir.path(), "m1", anywhere())).await.unwrap();
    let other = Server::start(config(other_dir.path(), "o1", anywhere())).await.unwrap();
    let member_token = server.create_member_token(None).await.unwrap();
    let bound = server.create_member_token(Some("m5")).await.unwrap();
    let for_agents = server.create_join_token().await.unwrap();
    let unknown = format!("{}.aaaaaa.0123456789abcdef", member_token.rsplitn(3, '.').last().unwrap());
    let used = other.local_addr();
    for (name, server_url, token, bind, want) in [
        ("m1", server.url(), &member_token, anywhere(), "a control node `m1` exists"),
        ("m2", server.url(), &for_agents, anywhere(), "the token is one for agents"),
        ("m2", server.url(), &unknown, anywhere(), "the token is not known or has expired"),
        ("m2", server.url(), &bound, anywhere(), "the token was made for the control node `m5`, not for `m2`"),
        ("m2", other.url(), &member_token, anywhere(), "it has another CA than the one that the token was made for"),
        ("7", server.url(), &member_token, anywhere(), "it could be taken for a member's number"),
        ("m2", server.url(), &"nonsense".to_owned(), anywhere(), "not a join token"),
        ("m2", server.url(), &String::new(), anywhere(), "`dhow member add m2` prints one"),
        ("m2", "https://127.0.0.1:9".to_owned(), &member_token, anywhere(), "connecting to"),
        ("m2", server.url(), &member_token, used, "listening on"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let join = Some(Join { server: server_url, token: token.clone() });
        let refused = Server::start(Config { join, ..config(dir.path(), name, bind) }).await.err().unwrap();
        assert!(refused.to_string().contains(want), "{name}: {refused}");
        assert!(!dir.path().join("member.json").exists() && !dir.path().join("store").exists(), "{name}: {want}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let join_by_token = Some(Join { server: server.url(), token: member_token.clone() });
    let base = || Config { join: join_by_token.clone(), ..config(elsewhere.path(), "m2", anywhere()) };
    for (differs, want) in [
        (Config { service_cidr: "10.99.0.0/16".to_owned(), ..base() }, "range of service addresses is `10.43.0.0/16`"),
        (Config { cluster_cidr: "10.128.0.0/10".to_owned(), ..base() }, "range of pod addresses is `10.64.0.0/10`"),
    ] {
        let refused = Server::start(differs).await.err().unwrap();
        assert!(refused.to_string().contains(want), "{refused}");
    }
    let list = admin(&server).get("/dhow/v1/members").await.unwrap();
    assert_eq!(list["members"].as_array().unwrap().len(), 1, "{list}");
    server.stop().await;
    // A data directory stays what it is.
    let token = other.create_member_token(None).await.unwrap();
    let join = Some(Join { server: other.url(), token });
    for (config, want) in [
        (config(dir.path(), "m2", anywhere()), "belongs to the control node `m1`, not to `m2`"),
        (
            Config { join: join.clone(), ..config(dir.path(), "m1", anywhere()) },
            "belongs to another cluster than the token",
        ),
        (
            Config { witness: true, ..config(dir.path(), "m1", anywhere()) },
            "belongs to a control node that holds objects",
        ),
    ] {
        let refused = Server::start(config).await.err().unwrap();
        assert!(refused.to_string().contains(want), "{refused}");
    }
    std::fs::remove_file(dir.path().join("member.json")).unwrap();
    let refused = Server::start(Config { join, ..config(dir.path(), "m1", anywhere()) }).await.err().unwrap();
    assert!(refused.to_string().contains("holds a cluster of its own"), "{refused}");
    let server = Server::start(config(dir.path(), "m1", anywhere())).await.unwrap();
    server.stop().await;
    std::fs::rename(dir.path().join("store"), dir.path().join("elsewhere")).unwrap();
    let refused = Server::start(config(dir.path(), "m1", anywhere())).await.err().unwrap();
    assert!(refused.to_string().contains("is lost: its `store` is gone"), "{refused}");
    other.stop().await;
}

/// Changes a byte of the log of a member that is stopped.
fn flip_a_byte(dir: &Path) {
    let mut segments: Vec<_> =
        std::fs::read_dir(dir.join("store/wal")).unwrap().map(|one| one.unwrap().path()).collect();
    segments.sort();
    let mut bytes = std::fs::read(&segments[0]).unwrap();
    bytes[20] ^= 0x10;
    std::fs::write(&segments[0], bytes).unwrap();
}

fn ids(list: &Value) -> Vec<u64> {
    list["members"].as_array().unwrap().iter().map(|member| member["id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_member_joins_anew_in_its_own_place() {
    let mut trio = Trio::start().await;
    let damaged = (trio.leader(0).await + 1) % 3;
    let (one, two) = ((damaged + 1) % 3, (damaged + 2) % 3);
    acknowledged(trio.server(one), "before").await;
    let (name, dir) = (format!("m{}", damaged + 1), trio.dirs[damaged].path().to_owned());
    let bind = trio.server(damaged).local_addr();
    trio.servers[damaged].take().unwrap().stop().await;
    flip_a_byte(&dir);
    let start = || start_patiently(config(&dir, &name, bind));
    let lost = start().await.err().unwrap();
    let ServerError::Lost { rebuild, .. } = &lost else { panic!("{lost}") };
    assert!(lost.to_string().contains("this member's data cannot be trusted"), "{lost}");
    let hint = rebuild.hint(&dir, bind);
    let command =
        format!("`dhow server --data-dir {} --bind {bind} --join {}`", dir.display(), rebuild.other.as_ref().unwrap());
    assert!(hint.contains(&command), "{hint}");
    // The others have no token to give, and need none: it still has its certificate.
    let join = Some(Join { server: trio.server(two).url(), token: String::new() });
    let again = start_patiently(Config { join, ..config(&dir, &name, bind) }).await.unwrap();
    assert_eq!(again.set_aside(), Some(&*dir.join("damaged-1")));
    assert!(dir.join("damaged-1/store/wal").exists() && dir.join("damaged-1/member.json").exists());
    shows(&again, "before").await;
    trio.servers[damaged] = Some(again);
    let list = trio
        .until(one, "all three vote", |list| roles(list).iter().filter(|role| *role != "learner").count() == 3)
        .await;
    assert!(!ids(&list).contains(&(damaged as u64 + 1)) && ids(&list).contains(&4), "{list}");
    // All that was there votes and holds what there is: one of the others may go.
    trio.servers[one].take().unwrap().stop().await;
    acknowledged(trio.server(two), "after").await;
    shows(trio.server(damaged), "after").await;
    // Without a majority nobody is kept waiting for ever.
    trio.servers[damaged].take().unwrap().stop().await;
    let client = admin(trio.server(two));
    let refused = tokio::time::timeout(PATIENCE, client.get(CONFIG_MAPS)).await.unwrap().unwrap_err();
    assert!(refused.is(503), "{refused}");
    trio.stop().await;
}

/// Starts a server at an address whose last connections may still say good-bye.
async fn start_patiently(config: Config) -> Result<Server, ServerError> {
    let starting = async {
        loop {
            match Server::start(config.clone()).await {
                Err(error) if error.is_in_use() => tokio::time::sleep(Duration::from_millis(20)).await,
                started => return started,
            }
        }
    };
    tokio::time::timeout(PATIENCE, starting).await.expect("the address becomes free")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_members_place_is_for_a_token_of_its_name() {
    let mut trio = Trio::start().await;
    let leader = trio.leader(0).await;
    let lost = (leader + 1) % 3;
    let name = format!("m{}", lost + 1);
    let client = admin(trio.server(leader));
    let wanted = json!({"name": name});
    let refused = client.create("/dhow/v1/members", &wanted).await.unwrap_err();
    assert!(refused.is(409) && refused.to_string().contains(&format!("`{name}` runs at")), "{refused}");
    trio.servers[lost].take().unwrap().stop().await;
    let dir = tempfile::tempdir().unwrap();
    let through = trio.server((leader + 2) % 3).url();
    let with = |token: &str| {
        let join = Some(Join { server: through.clone(), token: token.to_owned() });
        Config { join, ..config(dir.path(), &name, anywhere()) }
    };
    // A token that many may have gives nobody's place away.
    let general = trio.server(leader).create_member_token(None).await.unwrap();
    let refused = Server::start(with(&general)).await.err().unwrap();
    assert!(refused.to_string().contains(&format!("a token of `dhow member add {name}`")), "{refused}");
    let added = client.create("/dhow/v1/members", &wanted).await.unwrap();
    assert_eq!(added["replaces"], lost as u64 + 1);
    let token = added["token"].as_str().unwrap();
    // Its first attempt ends between the cluster's yes and its own disk; the second is as good.
    let bearer = token.parse::<dhow_pki::token::JoinToken>().unwrap().bearer();
    let (csr, _key) = dhow_pki::new_csr("x").unwrap();
    let request = json!({
        "name": name, "address": "127.0.0.1:9", "csr": csr, "version": env!("CARGO_PKG_VERSION"),
        "serviceCidr": "10.43.0.0/16", "clusterCidr": "10.64.0.0/10",
    });
    let joiner = ClientConfig {
        identity: None,
        token: Some(bearer),
        ..client_config(trio.server(leader), trio.server(leader).admin_identity().clone())
    };
    let joiner = Client::new(joiner).unwrap();
    let answer = joiner.create("/dhow/v1/members/join", &request).await.unwrap();
    assert_eq!(answer["id"], 4);
    let again = Server::start(with(token)).await.unwrap();
    assert_eq!(again.set_aside(), None);
    trio.servers[lost] = Some(again);
    let voting = |list: &Value| roles(list).iter().filter(|role| *role != "learner").count() == 3;
    let list = trio.until(leader, "all three vote", voting).await;
    assert!(ids(&list).contains(&5) && list["members"].as_array().unwrap().len() == 3, "{list}");
    // Once it votes, nobody else gets in by it.
    let other = tempfile::tempdir().unwrap();
    let refused = Server::start(Config { data_dir: other.path().to_owned(), ..with(token) }).await.err().unwrap();
    assert!(refused.to_string().contains("make another"), "{refused}");
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_does_not_mix_with_the_one_that_it_comes_from() {
    let mut trio = Trio::start().await;
    let leader = trio.leader(0).await;
    let client = admin(trio.server(leader));
    let backup = client.request(Method::GET, "/dhow/v1/backup", "*/*", None).await.unwrap().body;
    // Where one of the old members was, another cluster is now, with the same CA and the same numbers.
    let noted = |status: &Value| status["lastBackup"]["bytes"] == backup.len();
    trio.until_at(leader, "/dhow/v1/status", "a backup is noted a moment after its last byte", noted).await;
    let bind = trio.server(0).local_addr();
    trio.servers[0].take().unwrap().stop().await;
    let dir = tempfile::tempdir().unwrap();
    dhow_store::restore(&backup[..], &dir.path().join("store"), 1).unwrap();
    let restored = start_patiently(config(dir.path(), "m1", bind)).await.unwrap();
    acknowledged(trio.server(1), "old").await;
    acknowledged(&restored, "new").await;
    for (server, name) in [(&restored, "old"), (trio.server(2), "new")] {
        let (client, path) = (admin(server), format!("{CONFIG_MAPS}/{name}"));
        assert!(answered(name, async || client.get(&path).await).await.unwrap_err().is(404));
    }
    let list = admin(&restored).get("/dhow/v1/members").await.unwrap();
    assert_eq!(roles(&list), ["leader"], "{list}");
    // It is heard no more; who was heard a moment ago still counts as reachable.
    trio.until(2, "the first member is gone", |list| list["members"][0]["reachable"] == false).await;
    restored.stop().await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_run_on_whoever_leads() {
    let mut trio = Trio::start().await;
    let team = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let account = |name: &str| format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    let leader = trio.leader(0).await;
    let (next, last) = ((leader + 1) % 3, (leader + 2) % 3);
    created(trio.server(next), "/api/v1/namespaces", &team("before")).await;
    trio.until_at(last, &account("before"), "the leader's controllers work", |_| true).await;
    trio.servers[leader].take().unwrap().stop().await;
    created(trio.server(last), "/api/v1/namespaces", &team("after")).await;
    trio.until_at(next, &account("after"), "the next leader's controllers work", |_| true).await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_keeps_two_going_and_shows_no_objects() {
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Server::start(config(dirs[0].path(), "m1", anywhere())).await.unwrap();
    let second = join(&first, dirs[1].path(), "m2", false).await.unwrap();
    let witness = join(&first, dirs[2].path(), "m3", true).await.unwrap();
    let mut trio = Trio { servers: vec![Some(first), Some(second), Some(witness)], dirs };
    let both_vote = |list: &Value| roles(list).iter().filter(|role| *role != "learner").count() == 3;
    trio.until(0, "all vote", both_vote).await;
    let list = trio.until(2, "the witness tells of all", both_vote).await;
    assert_eq!(list["members"][2]["role"], "witness", "{list}");
    let refused = admin(trio.server(2)).get(CONFIG_MAPS).await.unwrap_err();
    assert!(
        refused.is(503) && refused.to_string().contains("is a witness and holds no objects: ask https://"),
        "{refused}"
    );
    // It does not hold the CA's key, nor anything that opens a way to it.
    let pki = trio.dirs[2].path().join("pki");
    let read = |name: &str| std::fs::read_to_string(pki.join(name)).unwrap();
    assert!(!pki.join("ca.key").exists());
    let own = dhow_pki::Identity { cert_pem: read("server.crt"), key_pem: read("server.key") };
    let as_witness = |to: usize| Client::new(client_config(trio.server(to), own.clone())).unwrap();
    for path in ["/dhow/v1/backup", "/api/v1/secrets"] {
        assert!(as_witness(0).get(path).await.unwrap_err().is(403), "{path}");
    }
    as_witness(0).get("/dhow/v1/members").await.unwrap();
    let csr = dhow_pki::csr_for(&own.key_pem, "x").unwrap();
    let join_as = |witness: bool| {
        let body = json!({
            "name": "m3", "address": trio.server(2).local_addr(), "csr": csr, "witness": witness,
            "version": env!("CARGO_PKG_VERSION"), "serviceCidr": "10.43.0.0/16", "clusterCidr": "10.64.0.0/10",
            "permit": "administrator",
        });
        Some(("application/json", body.to_string().into()))
    };
    for (witness, want) in [(false, "the certificate is of the witness `m3`"), (true, "the control node `m3` runs at")]
    {
        let refused = as_witness(1).json(Method::POST, "/dhow/v1/members/join", join_as(witness)).await.unwrap_err();
        assert!(refused.is(409) && refused.to_string().contains(want), "{refused}");
    }
    // It signs nothing, and asks others for its own.
    let renewal = Some(("application/json", json!({"csr": csr}).to_string().into()));
    let refused = as_witness(2).json(Method::POST, "/dhow/v1/renew", renewal.clone()).await.unwrap_err();
    assert!(refused.is(503) && refused.to_string().contains("ask https://"), "{refused}");
    let fresh = as_witness(1).json(Method::POST, "/dhow/v1/renew", renewal).await.unwrap();
    assert!(fresh["certificate"].as_str().unwrap().starts_with("-----BEGIN"));
    // Its kubeconfig begins with a member that has objects.
    let file = trio.dirs[2].path().join("kubeconfig");
    std::fs::write(&file, trio.server(2).admin_kubeconfig()).unwrap();
    let by_kubeconfig = Client::new(ClientConfig::from_kubeconfig(&file).unwrap()).unwrap();
    by_kubeconfig.create(CONFIG_MAPS, &config_map("through-the-witness")).await.unwrap();
    let push = admin(trio.server(2)).request(Method::POST, "/v2/a/blobs/uploads/", "*/*", None).await.unwrap();
    assert_eq!(push.status, 503, "an image on a witness would be lost");
    // It hands the lead on, should it get it.
    let leads = |member: &Value, list: &Value| member["id"] == list["leader"] && member["name"] != "m3";
    let led = |list: &Value| list["members"].as_array().unwrap().iter().any(|member| leads(member, list));
    let list = trio.until(0, "one with objects leads", led).await;
    let leader = list["members"].as_array().unwrap().iter().position(|member| leads(member, &list)).unwrap();
    acknowledged(trio.server(leader), "before").await;
    trio.servers[leader].take().unwrap().stop().await;
    let rest = 1 - leader;
    acknowledged(trio.server(rest), "after").await;
    shows(trio.server(rest), "before").await;
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_three_becomes_a_cluster_of_one_that_its_nodes_know() {
    let trio = Trio::start().await;
    let client = admin(trio.server(1));
    acknowledged(trio.server(1), "kept").await;
    let backup = client.request(Method::GET, "/dhow/v1/backup", "*/*", None).await.unwrap();
    assert!(backup.status.is_success());
    let ca = trio.server(0).ca_pem().to_owned();
    trio.stop().await;
    let dir = tempfile::tempdir().unwrap();
    dhow_store::restore(&backup.body[..], &dir.path().join("store"), 1).unwrap();
    let restored = Server::start(config(dir.path(), "r1", anywhere())).await.unwrap();
    assert_eq!(restored.ca_pem(), ca, "nodes and kubeconfigs go on trusting it");
    let client = admin(&restored);
    client.get(&format!("{CONFIG_MAPS}/kept")).await.unwrap();
    let list = client.get("/dhow/v1/members").await.unwrap();
    assert_eq!((list["members"].as_array().unwrap().len(), &list["members"][0]["name"]), (1, &json!("r1")), "{list}");
    // Names of members that were are free, their numbers are not.
    let more = tempfile::tempdir().unwrap();
    let joined = join(&restored, more.path(), "m2", false).await.unwrap();
    let list = client.get("/dhow/v1/members").await.unwrap();
    assert!(list["members"][1]["id"].as_u64().unwrap() > 3, "{list}");
    joined.stop().await;
    restored.stop().await;
}

/// Pushes an image of one layer and answers its manifest's digest.
async fn push(client: &Client, repository: &str, tag: &str, layer: &'static [u8]) -> String {
    let digest = |bytes: &[u8]| {
        use sha2::Digest;
        let hash: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hash}")
    };
    for blob in [&b"{}"[..], layer] {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(blob));
        let body = Some(("application/octet-stream", blob.into()));
        assert_eq!(client.request(Method::POST, &path, "*/*", body).await.unwrap().status, 201);
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type,
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": digest(layer), "size": layer.len()}],
    })
    .to_string();
    let path = format!("/v2/{repository}/manifests/{tag}");
    let body = Some((media_type, manifest.clone().into()));
    assert_eq!(client.request(Method::PUT, &path, "*/*", body).await.unwrap().status, 201);
    digest(manifest.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_outlives_the_member_that_it_was_pushed_to() {
    let mut trio = Trio::start().await;
    let digest = push(&admin(trio.server(0)), "team/app", "1.0", b"first").await;
    let digest_of = async |client: &Client, tag: &str| {
        let path = format!("/v2/team/app/manifests/{tag}");
        let answer = client.request(Method::HEAD, &path, "*/*", None).await.unwrap();
        answer.headers.get("docker-content-digest").map(|digest| digest.to_str().unwrap().to_owned())
    };
    // Another member serves it at once, whether it has fetched it already or not.
    assert_eq!(digest_of(&admin(trio.server(1)), "1.0").await, Some(digest.clone()));
    // A tag that moves is moved everywhere.
    let moved = push(&admin(trio.server(1)), "team/app", "1.0", b"second").await;
    assert_eq!(digest_of(&admin(trio.server(2)), "1.0").await, Some(moved.clone()));
    let store = |at: usize, digest: &str| trio.dirs[at].path().join("registry/blobs").join(&digest[7..]);
    let all_have = |at: usize| store(at, &digest).exists() && store(at, &moved).exists();
    let fetched = async {
        while !(0..3).all(all_have) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, fetched).await.expect("all members fetch what was pushed to one");
    for at in [0, 1] {
        trio.servers[at].take().unwrap().stop().await;
    }
    // The last one serves it though nobody leads: what it has needs nobody's leave. Its answer to a tag is what it knows.
    assert_eq!(digest_of(&admin(trio.server(2)), &digest).await, Some(digest));
    trio.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_renew_while_the_server_runs_and_a_node_that_overslept_gets_a_fresh_one() {
    let dir = tempfile::tempdir().unwrap();
    // As short as a busy machine lets it be: what is issued here must be used before it is over.
    let life = Duration::from_secs(10);
    let server =
        Server::start(Config { certificate_life: life, ..config(dir.path(), "m1", anywhere()) }).await.unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let client_with = |identity: dhow_pki::Identity| {
        let config = ClientConfig {
            server: server.url(),
            others: Vec::new(),
            ca_pem: Some(server.ca_pem().to_owned()),
            identity: Some(identity),
            token: None,
            namespace: "default".to_owned(),
        };
        Client::new(config).unwrap()
    };
    admin(&server).create("/api/v1/nodes", &node).await.unwrap();
    let (known, gone) = (server.issue_node_identity("n1").unwrap(), server.issue_node_identity("n2").unwrap());
    let old = admin(&server);
    // All certificates of the first second are over.
    tokio::time::sleep(life + Duration::from_secs(2)).await;
    let csr = json!({"csr": dhow_pki::csr_for(&known.key_pem, "n1").unwrap()}).to_string();
    let renew = async |client: &Client| {
        client.json(Method::POST, "/dhow/v1/renew", Some(("application/json", csr.clone().into()))).await
    };
    // The handshakes show that the server's own certificate is a fresh one.
    let sleeper = client_with(known.clone());
    assert!(sleeper.get("/api/v1/pods").await.unwrap_err().is(403));
    let fresh = renew(&sleeper).await.unwrap();
    assert!(renew(&client_with(gone)).await.unwrap_err().is(403), "nobody knows that node any more");
    assert!(old.get("/api/v1/pods").await.unwrap_err().is(401), "an administrator's is not let through");
    let identity = dhow_pki::Identity { cert_pem: fresh["certificate"].as_str().unwrap().to_owned(), ..known };
    client_with(identity).get("/api/v1/nodes").await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_token_does_not_take_a_nodes_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(config(dir.path(), "m1", anywhere())).await.unwrap();
    let admin = admin(&server);
    let token: dhow_pki::token::JoinToken = server.create_join_token().await.unwrap().parse().unwrap();
    let joiner = Client::new(ClientConfig {
        server: server.url(),
        others: Vec::new(),
        ca_pem: Some(server.ca_pem().to_owned()),
        identity: None,
        token: Some(token.bearer()),
        namespace: "default".to_owned(),
    })
    .unwrap();
    let (csr, _key) = dhow_pki::new_csr("n1").unwrap();
    let body = json!({"name": "n1", "csr": csr}).to_string();
    let ask =
        async || joiner.json(Method::POST, "/dhow/v1/join", Some(("application/json", body.clone().into()))).await;
    ask().await.unwrap();
    // It has not registered yet: who was interrupted may ask again.
    ask().await.unwrap();
    admin.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await.unwrap();
    let refused = ask().await.unwrap_err();
    assert!(refused.is(409) && refused.to_string().contains("kubectl delete node n1"), "{refused}");
    admin.delete("/api/v1/nodes/n1", None).await.unwrap();
    ask().await.unwrap();
    let certificates = admin.get("/dhow/v1/certificates").await.unwrap();
    let names: Vec<&str> =
        certificates["certificates"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    for name in ["dhow-ca", "system:node:n1", "dhow:control:1"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    server.stop().await;
}
