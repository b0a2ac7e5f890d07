//! When a container is asked how it is, and what the answers add up to.

use std::sync::Arc;

use dhow_types::Time;
use k8s_openapi::api::core::v1::{Container, Probe};

use crate::message::{ProbeKind, ProbeOutcome};

/// The first wait of a readiness or startup probe that has not succeeded yet. A Wasm program needs milliseconds, not
/// a period, until it listens: it is asked soon again, at growing distances, until the period is reached. What such an
/// early question finds is not counted as a failure.
const EAGER_FIRST_MS: u64 = 20;

/// One probe of one attempt of a container.
#[derive(Clone, Debug)]
pub(crate) struct ProbeRun {
    pub(crate) kind: ProbeKind,
    pub(crate) probe: Arc<Probe>,
    next: Time,
    in_flight: bool,
    eager_ms: Option<u64>,
    successes: u32,
    failures: u32,
    /// What the thresholds say; `None` until one of them is reached.
    pub(crate) verdict: Option<bool>,
}

/// What an answer changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Nothing.
    Same,
    /// An early question that does not count.
    Early,
    /// A failure that the user should see; the verdict may have changed to `false`.
    Failed(String),
    /// The verdict changed to `true`.
    Passed,
}

impl ProbeRun {
    /// The probes of a container that began at `started`.
    pub(crate) fn of(container: &Container, started: Time) -> Vec<ProbeRun> {
        let list = [
            (ProbeKind::Startup, &container.startup_probe),
            (ProbeKind::Readiness, &container.readiness_probe),
            (ProbeKind::Liveness, &container.liveness_probe),
        ];
        let run = |(kind, probe): (ProbeKind, &Option<Probe>)| {
            let probe = probe.as_ref()?;
            Some(ProbeRun {
                kind,
                next: started + seconds(probe.initial_delay_seconds, 0) * 1000,
                in_flight: false,
                eager_ms: (kind != ProbeKind::Liveness).then_some(EAGER_FIRST_MS),
                successes: 0,
                failures: 0,
                verdict: None,
                probe: Arc::new(probe.clone()),
            })
        };
        list.into_iter().filter_map(run).collect()
    }

    /// How long one question may take.
    pub(crate) fn timeout_ms(&self) -> u64 {
        seconds(self.probe.timeout_seconds, 1).max(1) * 1000
    }

    /// When it is to be asked next, unless an answer is awaited.
    pub(crate) fn due(&self) -> Option<Time> {
        (!self.in_flight).then_some(self.next)
    }

    /// It is asked now.
    pub(crate) fn ask(&mut self, now: Time) {
        self.in_flight = true;
        self.next = now + self.period_ms();
    }

    /// It answered.
    pub(crate) fn answer(&mut self, now: Time, outcome: ProbeOutcome) -> Finding {
        self.in_flight = false;
        match outcome {
            ProbeOutcome::Success => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.eager_ms = None;
                if self.verdict == Some(true) || self.successes < threshold(self.probe.success_threshold, 1) {
                    return Finding::Same;
                }
                self.verdict = Some(true);
                Finding::Passed
            }
            ProbeOutcome::Failure(why) => {
                self.successes = 0;
                if let Some(eager) = self.eager_ms {
                    if eager < self.period_ms() {
                        self.next = now + eager;
                        self.eager_ms = Some(eager * 2);
                        return Finding::Early;
                    }
                    self.eager_ms = None;
                }
                self.failures = self.failures.saturating_add(1);
                if self.failures >= threshold(self.probe.failure_threshold, 3) {
                    self.verdict = Some(false);
                }
                Finding::Failed(why)
            }
        }
    }

    /// Whether enough failures came together to act.
    pub(crate) fn failed(&self) -> bool {
        self.verdict == Some(false)
    }

    fn period_ms(&self) -> u64 {
        seconds(self.probe.period_seconds, 10).max(1) * 1000
    }
}

fn seconds(value: Option<i32>, default: u64) -> u64 {
    value.map_or(default, |s| u64::try_from(s).unwrap_or(0))
}

fn threshold(value: Option<i32>, default: u32) -> u32 {
    value.map_or(default, |n| u32::try_from(n).unwrap_or(0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: ProbeKind, probe: Probe) -> ProbeRun {
        let mut container = Container::default();
        match kind {
            ProbeKind::Startup => container.startup_probe = Some(probe),
            ProbeKind::Readiness => container.readiness_probe = Some(probe),
            ProbeKind::Liveness => container.liveness_probe = Some(probe),
        }
        ProbeRun::of(&container, Time::from_secs(100)).remove(0)
    }

    #[test]
    fn a_liveness_probe_fails_at_its_threshold_and_a_success_starts_over() {
        let mut p = run(
            ProbeKind::Liveness,
            Probe {
                failure_threshold: Some(2),
                period_seconds: Some(5),
                initial_delay_seconds: Some(3),
                ..Probe::default()
            },
        );
        assert_eq!(p.due(), Some(Time::from_secs(103)));
        let bad = || ProbeOutcome::Failure("no".into());
        let mut now = Time::from_secs(103);
        for (outcome, failed) in [(bad(), false), (ProbeOutcome::Success, false), (bad(), false), (bad(), true)] {
            p.ask(now);
            assert_eq!(p.due(), None);
            p.answer(now, outcome);
            assert_eq!(p.failed(), failed);
            now = now + 5000;
            assert_eq!(p.due(), Some(now));
        }
    }

    #[test]
    fn a_readiness_probe_asks_soon_again_before_its_first_success() {
        let mut p = run(ProbeKind::Readiness, Probe { period_seconds: Some(1), ..Probe::default() });
        let mut now = Time::from_secs(100);
        let mut waits = Vec::new();
        loop {
            p.ask(now);
            let finding = p.answer(now, ProbeOutcome::Failure("refused".into()));
            let next = p.due().unwrap();
            waits.push(next.ms_since(now));
            now = next;
            if finding != Finding::Early {
                assert_eq!(finding, Finding::Failed("refused".into()));
                break;
            }
        }
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1000]);
        p.ask(now);
        assert_eq!(p.answer(now, ProbeOutcome::Success), Finding::Passed);
        for verdict in [Some(true), Some(true), Some(false)] {
            p.ask(now);
            assert!(matches!(p.answer(now, ProbeOutcome::Failure("x".into())), Finding::Failed(_)));
            assert_eq!(p.verdict, verdict);
        }
    }
}
