//! Tokens of service accounts: had, shown, reviewed, and void once what they are bound to is gone.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use dhow_client::{Client, Config as ClientConfig};
use dhow_pki::Identity;
use dhow_server::{Config, Join, Server};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Nothing here takes this long, except on a machine that does something else.
const PATIENCE: Duration = Duration::from_secs(60);

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/default/pods";
const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn client(server: &Server, identity: Option<&Identity>, token: Option<&str>) -> Client {
    Client::new(ClientConfig {
        server: server.url(),
        others: Vec::new(),
        ca_pem: Some(server.ca_pem().to_owned()),
        identity: identity.cloned(),
        token: token.map(str::to_owned),
        namespace: "default".to_owned(),
    })
    .unwrap()
}

fn admin(server: &Server) -> Client {
    client(server, Some(server.admin_identity()), None)
}

async fn start(dir: &Path) -> Server {
    Server::start(Config::new(dir, "127.0.0.1:0".parse().unwrap())).await.unwrap()
}

async fn ask(client: &Client, account: &str, spec: Value) -> Value {
    client.create(&format!("{ACCOUNTS}/{account}/token"), &json!({"spec": spec})).await.unwrap()
}

fn token(answer: &Value) -> String {
    answer["status"]["token"].as_str().unwrap().to_owned()
}

async fn review(client: &Client, spec: Value) -> Value {
    client.create(REVIEWS, &json!({"spec": spec})).await.unwrap()["status"].clone()
}

#[tokio::test]
async fn a_token_speaks_for_its_account_and_opens_next_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let admin = admin(&server);
    let account = admin.create(ACCOUNTS, &json!({"metadata": {"name": "web"}})).await.unwrap();
    let answer = ask(&admin, "web", json!({"expirationSeconds": 1200})).await;
    assert_eq!(answer["spec"], json!({"expirationSeconds": 1200, "audiences": [ISSUER]}));

    let holder = client(&server, None, Some(&token(&answer)));
    let who = holder.create(WHO, &json!({})).await.unwrap();
    assert_eq!(
        (&who["kind"], &who["status"]["userInfo"]["uid"]),
        (&json!("SelfSubjectReview"), &account["metadata"]["uid"])
    );
    assert_eq!(who["status"]["userInfo"]["username"], "system:serviceaccount:default:web");
    let keys = holder.get("/openid/v1/jwks").await.unwrap();
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("EC"), &json!("ES256")));
    assert_eq!(holder.get("/.well-known/openid-configuration").await.unwrap()["issuer"], ISSUER);
    assert!(holder.get("/apis").await.is_ok() && holder.get("/version").await.is_ok());
    for path in [PODS, "/api/v1/namespaces/default/secrets", "/dhow/v1/backup", "/v2/"] {
        assert!(holder.get(path).await.unwrap_err().is(403), "{path}");
    }
    let more = holder.create(&format!("{ACCOUNTS}/web/token"), &json!({"spec": {}})).await;
    assert!(more.unwrap_err().is(403), "a token is no way to another");

    // The key is the cluster's, not the process's.
    server.stop().await;
    let server = start(dir.path()).await;
    let holder = client(&server, None, Some(&token(&answer)));
    assert!(holder.create(WHO, &json!({})).await.is_ok());
    let admin = self::admin(&server);
    admin.delete(&format!("{ACCOUNTS}/web"), None).await.unwrap();
    assert!(holder.create(WHO, &json!({})).await.unwrap_err().is(401));
    admin.create(ACCOUNTS, &json!({"metadata": {"name": "web"}})).await.unwrap();
    assert!(holder.create(WHO, &json!({})).await.unwrap_err().is(401), "one of the same name is another account");
    server.stop().await;
}

#[tokio::test]
async fn a_review_says_for_whom_and_to_whom_a_token_speaks() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let admin = admin(&server);
    admin.create(ACCOUNTS, &json!({"metadata": {"name": "web"}})).await.unwrap();
    let vault = token(&ask(&admin, "web", json!({"audiences": ["vault", "bank"]})).await);
    let status = review(&admin, json!({"token": vault, "audiences": ["vault"]})).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(status["user"]["groups"][1], "system:serviceaccounts:default");
    for (spec, want) in [
        (json!({"token": vault}), "invalid bearer token: token audiences [\"vault\" \"bank\"] is invalid"),
        (json!({"token": format!("{vault}x"), "audiences": ["vault"]}), "invalid bearer token"),
        (json!({"token": "nonsense"}), "invalid bearer token"),
    ] {
        let status = review(&admin, spec).await;
        assert!(status["authenticated"].is_null() && status["error"].as_str().unwrap().starts_with(want), "{status}");
    }
    assert!(admin.create(REVIEWS, &json!({"spec": {}})).await.unwrap_err().is(400));
    // What is meant for others opens nothing here.
    assert!(client(&server, None, Some(&vault)).create(WHO, &json!({})).await.unwrap_err().is(401));
    assert!(client(&server, None, None).create(WHO, &json!({})).await.unwrap_err().is(401));
    let who = admin.create(WHO, &json!({})).await.unwrap();
    assert_eq!(
        who["status"]["userInfo"],
        json!({"username": "kubernetes-admin", "groups": ["system:masters", "system:authenticated"]})
    );
    server.stop().await;
}

#[tokio::test]
async fn a_node_has_tokens_for_its_pods_and_they_end_with_the_pod() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let admin = admin(&server);
    admin.create(ACCOUNTS, &json!({"metadata": {"name": "web"}})).await.unwrap();
    let projected = json!([{"serviceAccountToken": {"path": "token"}}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "projected": {"sources": projected}}],
    }});
    let pod = admin.create(PODS, &pod).await.unwrap();
    let bound = json!({"boundObjectRef": {
        "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"],
    }});
    let node = |name| client(&server, Some(&server.issue_node_identity(name).unwrap()), None);
    let (mine, other) = (node("n1"), node("n2"));
    let refused = other.create(&format!("{ACCOUNTS}/web/token"), &json!({"spec": bound})).await;
    assert!(refused.unwrap_err().is(403));
    let answer = ask(&mine, "web", bound).await;
    let holder = client(&server, None, Some(&token(&answer)));
    let who = holder.create(WHO, &json!({})).await.unwrap();
    let extra = &who["status"]["userInfo"]["extra"];
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!([pod["metadata"]["uid"]]));
    assert_eq!(extra["authentication.kubernetes.io/node-name"], json!(["n1"]));
    let now = json!({"gracePeriodSeconds": 0});
    admin.delete(&format!("{PODS}/p"), Some(&now)).await.unwrap();
    assert!(holder.create(WHO, &json!({})).await.unwrap_err().is(401));
    server.stop().await;
}

/// Asks until there is an answer: a second member makes the first wait for it at times.
async fn answered(client: &Client, path: &str, body: &Value) -> Value {
    let asking = async {
        loop {
            match client.create(path, body).await {
                Err(error) if error.is(503) || error.is(504) => tokio::task::yield_now().await,
                answer => return answer.unwrap(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path}: no answer within {PATIENCE:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_member_has_signed_another_believes() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(dir.path()).await;
    let join = Some(Join { server: first.url(), token: first.create_member_token(Some("m2")).await.unwrap() });
    let config = Config::new(other_dir.path(), "127.0.0.1:0".parse().unwrap());
    let second = Server::start(Config { join, name: Some("m2".to_owned()), ..config }).await.unwrap();
    let path = format!("{ACCOUNTS}/web/token");
    answered(&admin(&first), ACCOUNTS, &json!({"metadata": {"name": "web"}})).await;
    for (signs, believes) in [(&first, &second), (&second, &first)] {
        let answer = answered(&admin(signs), &path, &json!({"spec": {}})).await;
        let holder = client(believes, None, Some(&token(&answer)));
        let who = answered(&holder, WHO, &json!({})).await;
        assert_eq!(who["status"]["userInfo"]["username"], "system:serviceaccount:default:web");
    }
    second.stop().await;
    first.stop().await;
}
