//! A real server on a free port, driven over TLS as clients drive it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use bytes::Bytes;
use dhow_client::{Client, Config as ClientConfig, PatchType};
use dhow_pki::Identity;
use dhow_server::{Config, Server};
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;

struct Cluster {
    server: Option<Server>,
    dir: TempDir,
    client: Client,
}

const JSON: &str = "application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn client(server: &Server, identity: Option<Identity>, token: Option<String>) -> Client {
    let ca_pem = Some(server.ca_pem().to_owned());
    let namespace = "default".to_owned();
    Client::new(ClientConfig { server: server.url(), others: Vec::new(), ca_pem, identity, token, namespace }).unwrap()
}

impl Cluster {
    async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Config::new(dir.path(), "127.0.0.1:0".parse().unwrap())).await.unwrap();
        let client = client(&server, Some(server.admin_identity().clone()), None);
        Cluster { server: Some(server), dir, client }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    async fn stop(mut self) {
        self.server.take().unwrap().stop().await;
    }

    /// The status code and the body of a request without one.
    async fn ask(&self, method: Method, path: &str, accept: &str) -> (u16, Value) {
        let answer = self.client.request(method, path, accept, None).await.unwrap();
        (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    /// The lines of a watch, until it has `count` of them.
    async fn watch(&self, path: &str, accept: &str, count: usize) -> Vec<Value> {
        let mut body = self.client.stream(Method::GET, path, accept, None).await.unwrap().into_body();
        let mut text = Vec::new();
        loop {
            let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
            if lines.len() > count {
                return lines[..count].iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("an event comes");
            let Some(Ok(frame)) = frame else {
                return lines.iter().filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
            };
            text.extend(frame.into_data().unwrap_or_default());
        }
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn objects_live_from_create_to_delete_and_over_a_restart() {
    let mut cluster = Cluster::start().await;
    let client = &cluster.client;
    let created = client.create(CONFIG_MAPS, &config_map("a")).await.unwrap();
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(client.get(&path).await.unwrap(), created);
    let patched = client.patch(&path, PatchType::Strategic, &json!({"data": {"b": "2"}})).await.unwrap();
    assert_eq!(patched["data"], json!({"a": "1", "b": "2"}));
    let mut stale = created.clone();
    stale["data"]["a"] = "9".into();
    assert!(client.update(&path, &stale).await.unwrap_err().is(409));

    let ca = cluster.server().ca_pem().to_owned();
    cluster.server.take().unwrap().stop().await;
    let config = Config::new(cluster.dir.path(), "127.0.0.1:0".parse().unwrap());
    cluster.server = Some(Server::start(config).await.unwrap());
    assert_eq!(cluster.server().ca_pem(), ca, "the CA is kept");
    let identity = cluster.server().admin_identity().clone();
    cluster.client = self::client(cluster.server(), Some(identity), None);
    assert_eq!(cluster.client.get(&path).await.unwrap(), patched);
    // What happened before the restart cannot be watched any more, and the watcher is told.
    let expired = cluster.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1"), JSON, 1).await;
    assert_eq!((&expired[0]["type"], &expired[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(expired[0]["object"]["reason"], "Expired");

    let status = cluster.client.delete(&path, None).await.unwrap();
    assert_eq!((&status["status"], &status["details"]["name"]), (&json!("Success"), &json!("a")));
    let (code, status) = cluster.ask(Method::GET, &path, JSON).await;
    let want = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "configmaps \"a\" not found", "reason": "NotFound",
        "details": {"name": "a", "kind": "configmaps"}, "code": 404});
    assert_eq!((code, status), (404, want));
    cluster.stop().await;
}

#[tokio::test]
async fn refusals_are_those_of_a_real_server() {
    let cluster = Cluster::start().await;
    cluster.client.create(CONFIG_MAPS, &config_map("a")).await.unwrap();
    let a = format!("{CONFIG_MAPS}/a");
    type Case<'a> = (Method, String, Option<(&'static str, &'a str)>, u16, &'static str, &'static str);
    let cases: Vec<Case<'_>> = vec![
        (
            Method::POST,
            CONFIG_MAPS.to_owned(),
            Some(("application/cbor", "x")),
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        ),
        (
            Method::POST,
            format!("{CONFIG_MAPS}?dryRun=foo"),
            Some((JSON, "{}")),
            422,
            "Invalid",
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"foo\"]: supported values: \"All\"",
        ),
        (
            Method::PATCH,
            a.clone(),
            Some(("application/json-patch+json", r#"[{"op":"test","path":"/data/a","value":"zz"}]"#)),
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        ),
        (
            Method::PATCH,
            a.clone(),
            Some(("application/json-patch+json", r#"{"op":"replace"}"#)),
            400,
            "BadRequest",
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (
            Method::PATCH,
            format!("{a}?force=true"),
            Some(("application/merge-patch+json", "{}")),
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
        ),
        (
            Method::GET,
            "/apis/apps/v1/widgets".to_owned(),
            None,
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
        (
            Method::GET,
            format!("{CONFIG_MAPS}?fieldSelector=spec.x%3D1"),
            None,
            400,
            "BadRequest",
            "field label not supported: spec.x",
        ),
        (
            Method::PUT,
            CONFIG_MAPS.to_owned(),
            Some((JSON, "{}")),
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ),
    ];
    for (method, path, body, code, reason, message) in cases {
        let body = body.map(|(ty, text)| (ty, Bytes::copy_from_slice(text.as_bytes())));
        let answer = cluster.client.request(method, &path, JSON, body).await.unwrap();
        let status: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            (answer.status.as_u16(), &status["reason"], &status["message"]),
            (code, &json!(reason), &json!(message))
        );
        assert_eq!(status["code"], code);
    }
    let accept = "application/json;as=Table;v=v9;g=meta.k8s.io";
    assert_eq!(cluster.ask(Method::GET, &a, accept).await.0, 406);
    let huge = Bytes::from(vec![b' '; (3 << 20) + 1]);
    let answer = cluster.client.request(Method::POST, CONFIG_MAPS, JSON, Some((JSON, huge))).await.unwrap();
    assert_eq!(answer.status.as_u16(), 413);
    cluster.stop().await;
}

#[tokio::test]
async fn unknown_fields_are_told_or_refused() {
    let cluster = Cluster::start().await;
    let body = |name: &str| {
        let mut tree = config_map(name);
        tree["bogus"] = json!(1);
        Some((JSON, Bytes::from(tree.to_string())))
    };
    let answer = cluster.client.request(Method::POST, CONFIG_MAPS, JSON, body("a")).await.unwrap();
    assert_eq!(answer.status.as_u16(), 201);
    assert_eq!(answer.headers["warning"], r#"299 - "unknown field \"bogus\"""#);
    let strict = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let answer = cluster.client.request(Method::POST, &strict, JSON, body("b")).await.unwrap();
    assert_eq!(answer.status.as_u16(), 400);
    cluster.stop().await;
}

#[tokio::test]
async fn a_protobuf_body_is_read_and_a_yaml_one_too() {
    let cluster = Cluster::start().await;
    // What kubectl 1.33 sends for `create configmap c9 --from-literal=a=b`.
    let mut body = b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12".to_vec();
    let object = b"\n\x12\n\x02c9\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\x06\n\x01a\x12\x01b";
    body.push(u8::try_from(object.len()).unwrap());
    body.extend(object);
    body.extend(b"\x1a\0\"\0");
    let accept = "application/vnd.kubernetes.protobuf,application/json";
    let body = Some(("application/vnd.kubernetes.protobuf", Bytes::from(body)));
    let answer = cluster.client.request(Method::POST, CONFIG_MAPS, accept, body).await.unwrap();
    let tree: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (answer.status.as_u16(), &tree["data"], &tree["metadata"]["name"]),
        (201, &json!({"a": "b"}), &json!("c9"))
    );
    // What client-go sends as options of a deletion: the group is the resource's.
    let mut body = b"k8s\0\n\x1a\n\x07apps/v1\x12\rDeleteOptions".to_vec();
    body[5] = u8::try_from(body.len() - 6).unwrap();
    let object = b"\x12\x06\n\x04nope\x22\nBackground";
    body.push(0x12);
    body.push(u8::try_from(object.len()).unwrap());
    body.extend(object);
    let body = Some(("application/vnd.kubernetes.protobuf", Bytes::from(body)));
    let answer = cluster.client.request(Method::DELETE, &format!("{CONFIG_MAPS}/c9"), accept, body).await.unwrap();
    let status: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.status.as_u16(), 409, "the precondition is read: {status}");
    let yaml = Bytes::from_static(b"metadata:\n  name: y\ndata:\n  k: v\n");
    let answer =
        cluster.client.request(Method::POST, CONFIG_MAPS, JSON, Some(("application/yaml", yaml))).await.unwrap();
    assert_eq!(answer.status.as_u16(), 201);
    cluster.stop().await;
}

#[tokio::test]
async fn lists_in_all_shapes() {
    let cluster = Cluster::start().await;
    for at in 0..100 {
        cluster
            .client
            .create("/api/v1/namespaces/kube-public/configmaps", &config_map(&format!("c{at:02}")))
            .await
            .unwrap();
    }
    let path = "/api/v1/namespaces/kube-public/configmaps?fieldSelector=metadata.name!%3Dkube-root-ca.crt";
    let (_, all) = cluster.ask(Method::GET, path, JSON).await;
    assert_eq!((&all["kind"], &all["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
    assert_eq!(all["items"].as_array().unwrap().len(), 100);
    let (_, page) = cluster.ask(Method::GET, &format!("{path}&limit=30"), JSON).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = cluster.ask(Method::GET, &format!("{path}&continue={token}"), JSON).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 70);
    assert_eq!(rest["items"][0]["metadata"]["name"], "c30");
    let (_, table) = cluster.ask(Method::GET, path, TABLE).await;
    assert_eq!((&table["kind"], &table["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, partial) = cluster.ask(Method::GET, path, accept).await;
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0].get("data"), None);
    let (code, _) = cluster.ask(Method::GET, &format!("{path}&continue=zzz"), JSON).await;
    assert_eq!(code, 400);
    let (_, gone) = cluster.ask(Method::DELETE, path, JSON).await;
    assert_eq!(gone["items"].as_array().unwrap().len(), 100);
    let (_, left) = cluster.ask(Method::GET, path, JSON).await;
    assert_eq!(left["items"], json!([]));
    cluster.stop().await;
}

#[tokio::test]
async fn a_watch_shows_the_state_and_then_every_change() {
    let cluster = Cluster::start().await;
    let client = &cluster.client;
    let labelled = |name: &str, label: &str| {
        let mut tree = config_map(name);
        tree["metadata"]["labels"] = json!({"l": label});
        tree
    };
    client.create(CONFIG_MAPS, &labelled("a", "x")).await.unwrap();
    let brief = |events: &[Value]| -> Vec<String> {
        events
            .iter()
            .map(|event| {
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
                format!("{} {name}", event["type"].as_str().unwrap())
            })
            .collect()
    };
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true\
                 &timeoutSeconds=18446744073709551615";
    let events = cluster.watch(&format!("{CONFIG_MAPS}?{query}&labelSelector=l%3Dx"), JSON, 2).await;
    assert_eq!(brief(&events), ["ADDED a", "BOOKMARK -"]);
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let version = events[1]["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned();

    client.create(CONFIG_MAPS, &labelled("b", "y")).await.unwrap();
    let b = format!("{CONFIG_MAPS}/b");
    client.patch(&b, PatchType::Merge, &json!({"metadata": {"labels": {"l": "x"}}})).await.unwrap();
    client.patch(&b, PatchType::Merge, &json!({"metadata": {"labels": {"l": "y"}}})).await.unwrap();
    client.delete(&format!("{CONFIG_MAPS}/a"), None).await.unwrap();
    let path = format!("{CONFIG_MAPS}?watch=1&labelSelector=l%3Dx&resourceVersion={version}");
    let events = cluster.watch(&path, JSON, 3).await;
    assert_eq!(brief(&events), ["ADDED b", "DELETED b", "DELETED a"]);
    assert_eq!(events[1]["object"]["metadata"]["labels"]["l"], "x", "it is shown as it last matched");

    let path = "/api/v1/namespaces?watch=1&resourceVersion=0";
    let tables = cluster.watch(path, TABLE, 2).await;
    assert_eq!(tables[0]["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(tables[1]["object"]["columnDefinitions"], Value::Null);
    let ended =
        cluster.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=99999999&timeoutSeconds=1"), JSON, 1).await;
    assert_eq!(ended, Vec::<Value>::new());
    cluster.stop().await;
}

#[tokio::test]
async fn the_api_describes_itself() {
    let cluster = Cluster::start().await;
    let (_, version) = cluster.ask(Method::GET, "/version", JSON).await;
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
    for version in ["v2", "v2beta1"] {
        let accept = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let answer = cluster.client.request(Method::GET, "/apis", &accept, None).await.unwrap();
        assert_eq!(answer.headers["content-type"], accept.as_str());
        let tree: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(tree["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
    }
    let (_, groups) = cluster.ask(Method::GET, "/apis", JSON).await;
    assert_eq!(groups["kind"], "APIGroupList");
    let (_, resources) = cluster.ask(Method::GET, "/apis/apps/v1", JSON).await;
    assert_eq!(resources["kind"], "APIResourceList");
    let (_, index) = cluster.ask(Method::GET, "/openapi/v3", JSON).await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let (code, document) = cluster.ask(Method::GET, url, JSON).await;
    assert_eq!((code, document["paths"].is_object()), (200, true));
    let (_, old) = cluster.ask(Method::GET, "/openapi/v2", JSON).await;
    assert_eq!(old["swagger"], "2.0");
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let old = cluster.client.request(Method::GET, "/openapi/v2", accept, None).await.unwrap();
    assert_eq!(old.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    let ready = cluster.client.request(Method::GET, "/readyz?verbose", "*/*", None).await.unwrap();
    assert!(String::from_utf8_lossy(&ready.body).ends_with("readyz check passed\n"));
    let head = cluster.client.request(Method::HEAD, "/version", JSON, None).await.unwrap();
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let (_, service) = cluster.ask(Method::GET, "/api/v1/namespaces/default/services/kubernetes", JSON).await;
    assert_eq!(service["spec"]["clusterIP"], "10.43.0.1");
    cluster.stop().await;
}

#[tokio::test]
async fn callers_are_known_by_certificate_or_token() {
    let cluster = Cluster::start().await;
    let server = cluster.server();
    let code = async |client: &Client, method: Method, path: &str, body: Option<Value>| {
        let body = body.map(|body| (JSON, Bytes::from(body.to_string())));
        client.request(method, path, JSON, body).await.unwrap().status.as_u16()
    };
    let nobody = client(server, None, None);
    assert_eq!(code(&nobody, Method::GET, "/version", None).await, 200);
    assert_eq!(code(&nobody, Method::GET, "/api/v1/pods", None).await, 401);
    let cacerts = nobody.request(Method::GET, "/cacerts", "*/*", None).await.unwrap();
    assert_eq!(cacerts.body, server.ca_pem().as_bytes());

    let token: dhow_pki::token::JoinToken = server.create_join_token().await.unwrap().parse().unwrap();
    let joiner = client(server, None, Some(token.bearer()));
    assert_eq!(code(&joiner, Method::GET, "/api/v1/secrets", None).await, 403);
    let wrong = client(server, None, Some(format!("{}.aaaaaaaaaaaaaaaa", token.id)));
    assert_eq!(code(&wrong, Method::GET, "/version", None).await, 401);
    let (csr, key_pem) = dhow_pki::new_csr("whatever").unwrap();
    assert_eq!(
        code(&joiner, Method::POST, "/dhow/v1/join", Some(json!({"name": "dhow-control", "csr": csr}))).await,
        400
    );
    let body = Some((JSON, Bytes::from(json!({"name": "n1", "csr": csr}).to_string())));
    let answer = joiner.request(Method::POST, "/dhow/v1/join", JSON, body).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer["ca"], server.ca_pem());
    let identity = Identity { cert_pem: answer["certificate"].as_str().unwrap().to_owned(), key_pem };

    let node = client(server, Some(identity), None);
    let new_node = |name: &str| Some(json!({"metadata": {"name": name}}));
    assert_eq!(code(&node, Method::POST, "/api/v1/nodes", new_node("n1")).await, 201);
    assert_eq!(code(&node, Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", None).await, 200);
    assert_eq!(code(&node, Method::DELETE, "/api/v1/nodes/n1", None).await, 403);
    assert_eq!(code(&node, Method::GET, "/v2/", None).await, 200);
    cluster.stop().await;
}

#[tokio::test]
async fn many_writers_of_one_object_lose_nothing() {
    let cluster = Cluster::start().await;
    cluster.client.create(CONFIG_MAPS, &config_map("a")).await.unwrap();
    let path = format!("{CONFIG_MAPS}/a");
    let writers = (0..8).map(|at| {
        let (client, path) = (cluster.client.clone(), path.clone());
        tokio::spawn(async move {
            let key = format!("k{at}");
            client.patch(&path, PatchType::Merge, &json!({"data": {key: "v"}})).await.unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(cluster.client.get(&path).await.unwrap()["data"].as_object().unwrap().len(), 9);
    cluster.stop().await;
}

#[tokio::test]
async fn who_uses_a_deprecated_kind_is_warned() {
    const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
    let cluster = Cluster::start().await;
    let body = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"}}).to_string();
    for (method, path, body, warned) in [
        (Method::POST, ENDPOINTS.to_owned(), Some((JSON, Bytes::from(body))), true),
        (Method::GET, format!("{ENDPOINTS}/db"), None, true),
        (Method::GET, ENDPOINTS.to_owned(), None, true),
        (Method::DELETE, format!("{ENDPOINTS}/db"), None, true),
        (Method::GET, CONFIG_MAPS.to_owned(), None, false),
    ] {
        let answer = cluster.client.request(method.clone(), &path, JSON, body).await.unwrap();
        let warning = answer.headers.get("warning").map(|value| value.to_str().unwrap());
        let want = "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
        assert_eq!(warning, warned.then_some(want), "{method} {path}");
    }
    cluster.stop().await;
}
