//! Tokens of service accounts, fetched for the pods whose volumes show them, and kept until they are to be exchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dhow_agent::volumes::TokenWish;
use dhow_api::meta;
use dhow_client::{Client, ClientError, resource_path};
use dhow_types::{Chain, Time, Uid};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::clock::now;

/// Requests that are under way at the same time; other pods wait.
const REQUESTS_MAX: usize = 32;

struct Kept {
    token: String,
    refresh_at: Time,
    ends: Time,
}

/// The tokens of this node's pods.
pub(crate) struct Tokens {
    client: Client,
    kept: Mutex<BTreeMap<Uid, BTreeMap<TokenWish, Kept>>>,
    requests: Semaphore,
    /// Makes chance of a pod's UID, another one on each node.
    chance: RandomState,
}

impl Tokens {
    pub(crate) fn new(client: Client) -> Self {
        let (requests, chance) = (Semaphore::new(REQUESTS_MAX), RandomState::new());
        Self { client, kept: Mutex::default(), requests, chance }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uid, BTreeMap<TokenWish, Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens that a pod wants. One that is to be exchanged stays if there is no other to be had and it is still good.
    pub(crate) async fn of(
        &self,
        uid: &Uid,
        pod: &Pod,
        wishes: BTreeSet<TokenWish>,
    ) -> Result<BTreeMap<TokenWish, String>, String> {
        let mut tokens = BTreeMap::new();
        for wish in wishes {
            let now = now();
            let known = self
                .lock()
                .get(uid)
                .and_then(|of_pod| of_pod.get(&wish))
                .map(|k| (k.token.clone(), k.refresh_at, k.ends));
            let token = match known {
                Some((token, refresh_at, _)) if now < refresh_at => token,
                known => match (self.request(uid, pod, &wish).await, known) {
                    (Ok(kept), _) => {
                        let token = kept.token.clone();
                        self.lock().entry(uid.clone()).or_default().insert(wish.clone(), kept);
                        token
                    }
                    (Err(why), Some((token, _, ends))) if now < ends => {
                        tracing::debug!(%uid, why, "a token is not exchanged yet");
                        token
                    }
                    (Err(why), _) => return Err(why),
                },
            };
            tokens.insert(wish, token);
        }
        Ok(tokens)
    }

    async fn request(&self, uid: &Uid, pod: &Pod, wish: &TokenWish) -> Result<Kept, String> {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let audiences: Vec<&str> =
            Some(wish.audience.as_str()).filter(|audience| !audience.is_empty()).into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": wish.seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid.as_str()},
            },
        });
        let path = format!("{}/token", resource_path("", "v1", "serviceaccounts", namespace, Some(&wish.account)));
        let _permit = self.requests.acquire().await.expect("the semaphore is never closed");
        let failed = |error: ClientError| format!("failed to fetch token: {}", Chain(&error));
        let answer = self.client.create(&path, &request).await.map_err(failed)?;
        let token = meta::text(&answer, "status.token");
        match meta::time(&answer, "status.expirationTimestamp") {
            Some(ends) if !token.is_empty() => {
                let refresh_at = wish.refresh_at(ends, self.chance.hash_one(uid));
                Ok(Kept { token: token.to_owned(), refresh_at, ends })
            }
            _ => Err("failed to fetch token: the answer holds none".to_owned()),
        }
    }

    /// Whether a pod lacks one of these tokens, or has one that is to be exchanged.
    pub(crate) fn is_due(&self, uid: &Uid, wishes: &BTreeSet<TokenWish>) -> bool {
        let (kept, now) = (self.lock(), now());
        let of_pod = kept.get(uid);
        wishes.iter().any(|wish| of_pod.and_then(|of_pod| of_pod.get(wish)).is_none_or(|kept| kept.refresh_at <= now))
    }

    /// Forgets what no pod wants any more. One that is just being set up asks once more.
    pub(crate) fn keep(&self, there: &BTreeSet<Uid>) {
        self.lock().retain(|uid, _| there.contains(uid));
    }

    /// Forgets a pod's.
    pub(crate) fn forget(&self, uid: &Uid) {
        self.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_client::Config;

    /// The tokens of a node that nobody answers.
    fn unreachable() -> Tokens {
        let ca = dhow_pki::Ca::create("dhow", now()).unwrap();
        let config = Config {
            // Nobody listens there: it is asked for no port.
            server: "https://127.0.0.1:0".to_owned(),
            others: Vec::new(),
            ca_pem: Some(ca.cert_pem().to_owned()),
            identity: None,
            token: None,
            namespace: "default".to_owned(),
        };
        Tokens::new(Client::new(config).unwrap())
    }

    fn wish(audience: &str) -> TokenWish {
        TokenWish { account: "web".to_owned(), audience: audience.to_owned(), seconds: 3600 }
    }

    #[tokio::test]
    async fn a_token_is_shown_until_it_is_over_and_asked_for_anew_before() {
        const HOUR_MS: u64 = 3600 * 1000;
        let tokens = unreachable();
        let (now, pod) = (now(), Pod::default());
        for (name, refresh_at, ends, is_due, shown) in [
            ("fresh", now + HOUR_MS, now + 2 * HOUR_MS, false, Some("fresh")),
            ("old", now - HOUR_MS, now + HOUR_MS, true, Some("old")),
            ("over", now - 2 * HOUR_MS, now - HOUR_MS, true, None),
        ] {
            let (uid, wishes) = (Uid::new(name), BTreeSet::from([wish("a")]));
            assert!(tokens.is_due(&uid, &wishes), "one that is not there");
            let kept = Kept { token: name.to_owned(), refresh_at, ends };
            tokens.lock().entry(uid.clone()).or_default().insert(wish("a"), kept);
            assert_eq!(tokens.is_due(&uid, &wishes), is_due, "{name}");
            assert!(tokens.is_due(&uid, &BTreeSet::from([wish("a"), wish("b")])), "{name}: the other one");
            let found = tokens.of(&uid, &pod, wishes).await;
            assert_eq!(
                found.as_ref().ok().and_then(|found| found.get(&wish("a")).cloned()).as_deref(),
                shown,
                "{found:?}"
            );
            assert!(found.is_ok() || found.unwrap_err().starts_with("failed to fetch token: "));
        }
        tokens.forget(&Uid::new("old"));
        tokens.keep(&BTreeSet::from([Uid::new("fresh"), Uid::new("new")]));
        assert_eq!(tokens.lock().keys().collect::<Vec<_>>(), [&Uid::new("fresh")]);
    }
}
