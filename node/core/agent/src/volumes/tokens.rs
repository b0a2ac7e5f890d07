//! Tokens of service accounts that volumes show: which ones a pod wants, and when each is exchanged for a fresh one.

use dhow_types::Time;
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};

/// How long a token is good for that asks for no time, in seconds: the default of the API, for pods that have none.
const SECONDS_USUAL: i64 = 3600;

/// The age at which every token is exchanged, however long it is good for: a kubelet's.
const AGE_MAX_MS: u64 = 24 * 3600 * 1000;

/// Pods that came together do not ask together: each does so up to this part of a token's life earlier.
const JITTER_PARTS: u64 = 20;

/// A token that a pod wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    /// For which service account it speaks.
    pub account: String,
    /// To whom; empty for the API server.
    pub audience: String,
    /// For how long it is to be good, in seconds.
    pub seconds: i64,
}

impl TokenWish {
    pub(super) fn of(pod: &Pod, source: &ServiceAccountTokenProjection) -> Self {
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        Self {
            account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(SECONDS_USUAL),
        }
    }

    /// When a token for this wish is to be exchanged that is good until `ends`: after four fifths of its life, or a day,
    /// whichever comes first, as a kubelet does; and a little earlier, by chance.
    pub fn refresh_at(&self, ends: Time, chance: u64) -> Time {
        let life_ms = u64::try_from(self.seconds).unwrap_or(0) * 1000;
        let age_ms = (life_ms / 5 * 4).min(AGE_MAX_MS);
        ends - life_ms + (age_ms - chance % (age_ms / JITTER_PARTS + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_exchanged_in_good_time() {
        const HOUR: i64 = 3600;
        const ISSUED: i64 = 1_780_000_000;
        for (seconds, chance, want_s) in [
            (HOUR, 0, 2880),
            (HOUR, 144_000, 2736),
            (HOUR, 144_001, 2880),
            (600, 0, 480),
            (30 * HOUR, 0, 24 * HOUR),
            (1 << 32, 0, 24 * HOUR),
            (1 << 32, 4_320_000, 24 * HOUR - 4320),
        ] {
            let wish = TokenWish { account: String::new(), audience: String::new(), seconds };
            let found = wish.refresh_at(Time::from_secs(ISSUED + seconds), chance);
            assert_eq!(found, Time::from_secs(ISSUED + want_s), "{seconds} {chance}");
        }
    }
}
