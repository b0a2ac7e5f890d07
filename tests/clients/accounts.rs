//! Service accounts, as `kubectl` asks for their tokens and shows them.

use crate::Kubectl;
use crate::harness::eventually;
use serde_json::Value;

/// Reads the tokens that its volumes show.
const SPEAKER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: speaker}
spec:
  restartPolicy: Never
  automountServiceAccountToken: true
  volumes:
  - name: vault
    projected:
      sources:
      - serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}
  containers:
  - name: own
    image: dhow.dev/toolbox
    command: [cat, /var/run/secrets/kubernetes.io/serviceaccount/token]
  - name: vault
    image: dhow.dev/toolbox
    command: [cat, /tokens/token]
    volumeMounts: [{name: vault, mountPath: /tokens}]
  - name: namespace
    image: dhow.dev/toolbox
    command: [cat, /var/run/secrets/kubernetes.io/serviceaccount/namespace]
";

/// What a client needs to call with a token alone.
struct Caller<'a> {
    client: &'a Kubectl<'a>,
    server: String,
    ca_file: String,
}

impl Caller<'_> {
    fn args<'b>(&'b self, token: &'b str, words: &[&'b str]) -> Vec<&'b str> {
        let own = ["--kubeconfig=/dev/null", "--server", &self.server, "--certificate-authority", &self.ca_file];
        own.into_iter().chain(["--token", token]).chain(words.iter().copied()).collect()
    }

    #[track_caller]
    fn ok(&self, token: &str, words: &[&str]) -> String {
        self.client.cluster.ok(&self.client.program, &self.args(token, words))
    }

    #[track_caller]
    fn refused(&self, token: &str, words: &[&str]) -> String {
        self.client.cluster.refused(&self.client.program, &self.args(token, words))
    }
}

pub fn speak_for_themselves(client: &Kubectl<'_>) {
    eventually(|| {
        let found =
            client.cluster.run(&client.program, &["get", "configmap/kube-root-ca.crt", "serviceaccount/default"]);
        found.status.success().then_some(()).ok_or("the namespace has no account yet".to_owned())
    });
    let ca = client.ok("get configmap kube-root-ca.crt -o jsonpath={.data.ca\\.crt}");
    let server = client.ok("config view --minify -o jsonpath={.clusters[0].cluster.server}");
    let caller = Caller { client, server, ca_file: client.cluster.file("ca.crt", ca.as_bytes()) };

    let admin = client.ok("auth whoami");
    assert!(admin.contains("kubernetes-admin") && admin.contains("system:masters"), "{admin}");
    client.ok("create serviceaccount robot");
    let token = client.ok("create token robot --duration=20m");
    let who = caller.ok(&token, &["auth", "whoami"]);
    for part in ["system:serviceaccount:default:robot", "system:serviceaccounts:default", "credential-id"] {
        assert!(who.contains(part), "{who}");
    }
    caller.ok(&token, &["api-resources"]);
    let refused = caller.refused(&token, &["get", "pods"]);
    assert!(refused.contains("system:serviceaccount:default:robot\" cannot list resource \"pods\""), "{refused}");
    let refused = client.refused("create token robot --duration=1m");
    assert!(refused.contains("may not specify a duration less than 10 minutes"), "{refused}");

    let manifest = client.cluster.manifest("speaker.yaml", SPEAKER);
    client.ok(&format!("apply -f {manifest}"));
    let said = |container: &str| {
        eventually(|| {
            let log = client.cluster.run(&client.program, &["logs", "speaker", "-c", container]);
            let log = crate::harness::text(&log.stdout);
            if log.is_empty() { Err(format!("{container} says nothing yet")) } else { Ok(log) }
        })
    };
    assert_eq!(said("namespace"), "default");
    let own = said("own");
    let who = caller.ok(&own, &["auth", "whoami", "-o", "json"]);
    let who: Value = serde_json::from_str(&who).unwrap();
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:default");
    assert_eq!(info["extra"]["authentication.kubernetes.io/pod-name"][0], "speaker");
    let refused = caller.refused(&said("vault"), &["auth", "whoami"]);
    assert!(refused.contains("Unauthorized") || refused.contains("must be logged in"), "{refused}");
    let bound = client.ok("create token default --bound-object-kind Pod --bound-object-name speaker --audience x");
    assert!(bound.starts_with("eyJ"), "{bound}");
    client.ok("delete pod speaker --now");
    caller.refused(&own, &["auth", "whoami"]);
    client.ok("delete serviceaccount robot");
    caller.refused(&token, &["auth", "whoami"]);
}
