//! How a container gets its image: asked for, waited for, tried again.

use dhow_runtime_contract::PullPolicy;
use dhow_types::Time;

use super::PodRun;
use crate::container::{Step, Waiting, pull_policy, short_duration};
use crate::message::{ContainerRef, EventKind, Out, PullFault, PulledImage};

/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const ERR_IMAGE_PULL_SHOWN_MS: u64 = 2_000;
const ERR_IMAGE_PULL: &str = "ErrImagePull";
const UNSIGNED: &str = "SignatureValidationFailed";

impl PodRun {
    pub(super) fn begin_pull(&mut self, at: usize, out: &mut Vec<Out>) {
        let pod = self.pod.clone();
        let Some(spec) = self.containers[at].spec(&pod) else { return };
        let image = spec.image.clone().unwrap_or_default();
        let policy = pull_policy(spec.image_pull_policy.as_deref(), &image);
        let container = &mut self.containers[at];
        container.step = Step::Pulling;
        container.image.clone_from(&image);
        container.pull_turns = None;
        out.push(Out::Pull { at: self.container_ref(at), image, policy });
    }

    /// `ErrImagePull → ImagePullBackOff`, a little after the failure.
    pub(super) fn turn_into_backoff(&mut self, at: usize, now: Time, out: &mut Vec<Out>) {
        let Some(turns) = self.containers[at].pull_turns else { return };
        if !self.due(Some(turns), now) {
            return;
        }
        let container = &mut self.containers[at];
        container.pull_turns = None;
        let image = &container.image;
        let back_off = format!("Back-off pulling image \"{image}\"");
        let message = format!("{back_off}: {}: {}", container.waiting.reason, container.waiting.message);
        container.waiting = Waiting { reason: "ImagePullBackOff", message };
        self.event(now, Some(at), EventKind::Normal, "BackOff", back_off, out);
        self.event(now, Some(at), EventKind::Warning, "Failed", "Error: ImagePullBackOff".to_owned(), out);
        self.report.touch(now);
    }

    /// A registry is asked.
    pub(super) fn pull_began(&mut self, now: Time, at: &ContainerRef, out: &mut Vec<Out>) {
        let Some(at) = self.find(at, |step| matches!(step, Step::Pulling)) else { return };
        let image = &self.containers[at].image;
        self.event(now, Some(at), EventKind::Normal, "Pulling", format!("Pulling image \"{image}\""), out);
    }

    pub(super) fn pulled(&mut self, now: Time, at: &ContainerRef, image: &PulledImage, out: &mut Vec<Out>) {
        let Some(at) = self.find(at, |step| matches!(step, Step::Pulling)) else { return };
        let container = &mut self.containers[at];
        container.image_id.clone_from(&image.image_id);
        container.pull.reset();
        let name = container.image.clone();
        // Nothing is started in a pod that is ending.
        if self.ending().is_some() {
            self.containers[at].step = Step::Idle { until: None };
            return;
        }
        let always = self.containers[at]
            .spec(&self.pod)
            .is_some_and(|s| pull_policy(s.image_pull_policy.as_deref(), &name) == PullPolicy::Always);
        let message = if image.already_present && !always {
            format!("Container image \"{name}\" already present on machine")
        } else {
            let took = short_duration(image.took_ms);
            format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {} bytes.",
                image.size
            )
        };
        self.event(now, Some(at), EventKind::Normal, "Pulled", message, out);
        let (reference, container) = (self.container_ref(at), &mut self.containers[at]);
        container.step = Step::Starting;
        out.push(Out::Start { at: reference, attempt: container.next_attempt(), pod: self.pod.clone() });
    }

    pub(super) fn pull_failed(&mut self, now: Time, at: &ContainerRef, fault: PullFault, out: &mut Vec<Out>) {
        let Some(at) = self.find(at, |step| matches!(step, Step::Pulling)) else { return };
        let image = self.containers[at].image.clone();
        let (reason, message, event) = match fault {
            PullFault::InvalidName(why) => {
                let message =
                    format!("Failed to apply default image tag \"{image}\": couldn't parse image name: {why}");
                ("InvalidImageName", message.clone(), ("InspectFailed", message))
            }
            PullFault::NotPresent => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                ("ErrImageNeverPull", message.clone(), ("ErrImageNeverPull", message))
            }
            PullFault::Failed(why) => {
                let message = format!("Failed to pull image \"{image}\": {why}");
                (ERR_IMAGE_PULL, why, ("Failed", message))
            }
            PullFault::Unsigned(why) => {
                let message = format!("Failed to pull image \"{image}\": {why}");
                (UNSIGNED, why, ("Failed", message))
            }
        };
        self.event(now, Some(at), EventKind::Warning, event.0, event.1, out);
        self.event(now, Some(at), EventKind::Warning, "Failed", format!("Error: {reason}"), out);
        let container = &mut self.containers[at];
        container.step = Step::Idle { until: Some(now + container.pull.fail(now)) };
        container.pull_turns = matches!(reason, ERR_IMAGE_PULL | UNSIGNED).then_some(now + ERR_IMAGE_PULL_SHOWN_MS);
        container.waiting = Waiting { reason, message };
        self.report.touch(now);
    }
}
