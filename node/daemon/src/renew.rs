//! Keeps the node's certificate fresh: after two thirds of its life the cluster is asked for the next one, and
//! everything that shows a certificate shows it from then on. Pods do not notice.
//!
//! A certificate that is over is still good for that one question, so that a node that was off for months comes back by
//! itself. The key stays: only the certificate is written, whole or not at all, and always fits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dhow_client::{Client, ClientError};
use dhow_files::Access;
use dhow_pki::{Facts, Identity, PkiError, csr_for, facts_of_pem};
use dhow_quic::{Endpoint, QuicError};
use dhow_tasks::Stop;
use dhow_types::{Chain, Time};
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::clock;
use crate::node::tls;

const PATH: &str = "/dhow/v1/renew";
/// How often the clock is looked at: it may be set, and it does not stand still while the machine sleeps.
const LOOK_EVERY_MS: u64 = 3_600_000;
/// The pauses after failures: there is a third of a certificate's life for attempts, and everybody's come together after
/// an outage.
const RETRY_MIN_MS: u64 = 5_000;
const RETRY_MAX_MS: u64 = 3_600_000;
/// Between two renewals, however old the new certificate seems: our clock may be wrong. A third of its life, if that is
/// shorter: then it was made for a test.
const RENEWED_REST_MS: u64 = 6 * 3_600_000;

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("the control plane gave no new certificate")]
    Client(#[from] ClientError),
    #[error("the new certificate cannot be used")]
    Pki(#[from] PkiError),
    #[error("the new certificate cannot be used")]
    Quic(#[from] QuicError),
    #[error("the answer is malformed")]
    Answer(#[from] serde_json::Error),
    #[error("the new certificate is for `{0}`")]
    OtherName(String),
}

#[derive(Deserialize)]
struct Answer {
    certificate: String,
    ca: String,
}

/// The next attempt of a renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Plan {
    failures: u32,
    /// Not before then.
    rest_until: Option<Time>,
}

impl Plan {
    /// How long to wait before the next look; zero: ask now. `refused`: the API does not believe the certificate, so
    /// that it may be over whatever our clock says.
    fn wait_ms(&self, now: Time, facts: &Facts, refused: bool) -> u64 {
        let due = if refused { now } else { facts.renew_after() };
        let due = self.rest_until.map_or(due, |rest| due.max(rest));
        due.ms_since(now).min(LOOK_EVERY_MS)
    }

    fn failed(&mut self, now: Time) {
        let pause_ms = RETRY_MIN_MS.saturating_mul(1 << self.failures.min(20)).min(RETRY_MAX_MS);
        *self = Self { failures: self.failures + 1, rest_until: Some(now + pause_ms) };
    }

    fn renewed(&mut self, now: Time, fresh: &Facts) {
        let rest_ms = RENEWED_REST_MS.min(fresh.life_ms() / 3);
        *self = Self { failures: 0, rest_until: Some(now + rest_ms) };
    }
}

/// What shows the certificate, and where it is kept.
pub(crate) struct Renewal {
    client: Client,
    endpoint: Endpoint,
    identity: Identity,
    ca_pem: String,
    /// The directory of an identity that is kept; `None` where each start makes another one.
    kept: Option<PathBuf>,
    /// Whether the API refuses to know this node.
    refused: watch::Receiver<bool>,
}

impl Renewal {
    /// For those who show the certificate.
    pub(crate) fn new(
        (client, endpoint): (Client, Endpoint),
        identity: Identity,
        ca_pem: String,
        kept: Option<PathBuf>,
        refused: watch::Receiver<bool>,
    ) -> Self {
        Self { client, endpoint, identity, ca_pem, kept, refused }
    }

    /// Renews whenever it is due, until told to stop.
    pub(crate) async fn run(mut self, stop: Stop) {
        let mut plan = Plan::default();
        loop {
            let facts = match facts_of_pem(&self.identity.cert_pem) {
                Ok(facts) => facts,
                Err(err) => {
                    tracing::error!(err = %Chain(&err), "this node's certificate cannot be read; it is not renewed");
                    return;
                }
            };
            let refused = *self.refused.borrow_and_update();
            match plan.wait_ms(clock::now(), &facts, refused) {
                0 => {
                    let Some(result) = stop.or(self.renew(&facts)).await else { return };
                    match result {
                        Ok(fresh) => plan.renewed(clock::now(), &fresh),
                        Err(err) => {
                            tracing::warn!(err = %Chain(&err), "this node's certificate was not renewed, trying again");
                            plan.failed(clock::now());
                        }
                    }
                }
                wait_ms => {
                    let changed = async {
                        if self.refused.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    };
                    let pause = tokio::time::timeout(Duration::from_millis(wait_ms), changed);
                    // Elapsed or changed: either way it is time to look again.
                    if stop.or(pause).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn renew(&mut self, facts: &Facts) -> Result<Facts, RenewError> {
        let name = &facts.subject.common_name;
        let csr = csr_for(&self.identity.key_pem, name)?;
        let body = Bytes::from(json!({ "csr": csr }).to_string());
        let answer = self.client.json(Method::POST, PATH, Some(("application/json", body))).await?;
        let Answer { certificate, ca } = serde_json::from_value(answer)?;
        let fresh = facts_of_pem(&certificate)?;
        if fresh.subject.common_name != *name {
            return Err(RenewError::OtherName(fresh.subject.common_name));
        }
        let identity = Identity { cert_pem: certificate, key_pem: self.identity.key_pem.clone() };
        self.endpoint.renew(&tls(&ca, &identity))?;
        self.client.set_identity(&ca, &identity)?;
        tracing::info!(until = %fresh.not_after, "renewed this node's certificate");
        self.identity = identity;
        self.ca_pem = ca;
        if let Some(dir) = &self.kept {
            self.keep(dir);
        }
        Ok(fresh)
    }

    /// A certificate that cannot be kept is renewed again after the next start.
    fn keep(&self, dir: &Path) {
        for (file, text) in [("ca.crt", &self.ca_pem), ("node.crt", &self.identity.cert_pem)] {
            let path = dir.join(file);
            if let Err(err) = dhow_files::write(&path, text.as_bytes(), Access::Private) {
                tracing::warn!(path = %path.display(), %err, "the renewed certificate cannot be kept");
            }
        }
    }
}

#[cfg(test)]
mod tests;
